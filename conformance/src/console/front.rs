//! A console frontend, word by word.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::console::Paused;
use pvrt::event::Port;
use pvrt::executor::time;
use ring_abi::io::console::{IN, OUT};
use ring_abi::shared::SharedBytes;

use super::Watcher;
use crate::verdict::Need;
use crate::{Env, Problem, Verdict};

/// How long the daemon may take to do anything. Some daemons hold a domain back that writes much.
const PATIENCE_NS: u64 = 10_000_000_000;
/// A pause in which a daemon that has something to do would have begun.
const SILENCE_NS: u64 = 300_000_000;

/// Bytes of the ring to the daemon.
pub const OUT_BYTES: usize = 2048;
/// Bytes of the ring to the domain.
pub const IN_BYTES: usize = 1024;

/// The four indices as they stand in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indices {
    /// How far the domain has read.
    pub in_cons: u32,
    /// How far the daemon has written.
    pub in_prod: u32,
    /// How far the daemon has read.
    pub out_cons: u32,
    /// How far the domain has written.
    pub out_prod: u32,
}

/// The domain's end of the ring, which the case has to itself.
pub struct Front {
    /// The page.
    pub page: SharedBytes<'static>,
    port: Arc<Port>,
    watcher: Option<Arc<dyn Watcher>>,
    /// How far the ring is filled, published or not.
    prod: u32,
    /// How far was read.
    cons: u32,
    _kernel: Paused,
}

impl Front {
    /// Takes over the console as soon as the daemon has taken all output written before.
    ///
    /// # Errors
    /// [`Problem::Skip`]: the domain has no console. [`Problem::Error`]: the daemon does not take the earlier
    /// output.
    pub async fn take(env: &Env) -> Verdict<Self> {
        let Some(console) = &env.console else { return Err(Problem::Skip(Need::Console.missing().into())) };
        let mut front = Self {
            page: console.ring.page,
            port: console.ring.port.clone(),
            watcher: console.watcher.clone(),
            prod: 0,
            cons: 0,
            _kernel: pvrt::console::pause(),
        };
        let at = front.indices();
        (front.prod, front.cons) = (at.out_prod, at.in_cons);
        front.notify();
        front.settle().await.map_err(|problem| Problem::Error(format!("before the case: {problem}")))?;
        if let Some(watcher) = &front.watcher {
            watcher.shown();
        }
        Ok(front)
    }

    /// The indices in the page.
    pub fn indices(&self) -> Indices {
        let at = |offset| self.page.load_u32(offset);
        Indices { in_cons: at(IN.cons), in_prod: at(IN.prod), out_cons: at(OUT.cons), out_prod: at(OUT.prod) }
    }

    /// Bytes that still fit into the ring.
    pub fn room(&self) -> usize {
        OUT_BYTES.saturating_sub(self.prod.wrapping_sub(self.page.load_u32(OUT.cons)) as usize)
    }

    /// Writes bytes into the ring. The daemon does not see them before [`publish`](Self::publish). The ring
    /// must have room.
    pub fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.page.store_u8(OUT.data + self.prod as usize % OUT_BYTES, *byte);
            self.prod = self.prod.wrapping_add(1);
        }
    }

    /// Publishes the bytes written so far, without an event.
    pub fn publish(&mut self) {
        self.page.swap_u32(OUT.prod, self.prod);
    }

    /// Sends an event.
    pub fn notify(&self) {
        self.port.notify();
    }

    /// Writes bytes, publishes them, and sends an event.
    pub fn send(&mut self, bytes: &[u8]) {
        self.put(bytes);
        self.publish();
        self.notify();
    }

    /// Checks that nobody has changed the domain's index and that the daemon's index has not passed it.
    fn check(&self) -> Verdict<u32> {
        let at = self.indices();
        ensure_eq!(at.out_prod, self.prod, "out_prod, which is the domain's");
        let waiting = self.prod.wrapping_sub(at.out_cons);
        ensure!(waiting as usize <= OUT_BYTES, "out_cons is {} and out_prod {}", at.out_cons, self.prod);
        Ok(waiting)
    }

    /// Waits until at most `left` bytes are left in the ring. The wait ends by events alone.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the daemon does not take that much, or sends no event for it.
    pub async fn until(&mut self, left: usize) -> Verdict {
        let end = time::now_ns() + PATIENCE_NS;
        while self.check()? as usize > left {
            let patience = end.saturating_sub(time::now_ns());
            if time::timeout(patience, self.port.wait()).await.is_err() {
                let waiting = self.check()?;
                ensure!(waiting as usize > left, "bytes were taken, but no event told of it");
                return Err(Problem::Fail(format!("the daemon leaves {waiting} bytes")));
            }
        }
        Ok(())
    }

    /// Waits until the daemon has taken everything published.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the daemon does not take everything, or sends no event for it.
    pub async fn taken(&mut self) -> Verdict {
        self.until(0).await
    }

    /// Does the same as [`Self::taken`], but does not need an event.
    async fn settle(&mut self) -> Verdict {
        let end = time::now_ns() + PATIENCE_NS;
        while self.check()? > 0 {
            ensure!(time::now_ns() < end, "the daemon leaves bytes");
            time::sleep(5_000_000).await;
        }
        self.port.take_event();
        Ok(())
    }

    /// Waits for an event and until at least `count` bytes of input wait in the ring. The daemon's event for bytes
    /// that it took before may come this late, so one event is not enough.
    ///
    /// # Errors
    /// [`Problem::Fail`]: no event comes.
    pub async fn typed(&self, count: usize) -> Verdict {
        loop {
            let came = time::timeout(PATIENCE_NS, self.port.wait()).await.is_ok();
            ensure!(came, "no event came, and {} bytes of {count} are there", self.waiting());
            if self.waiting() >= count {
                return Ok(());
            }
        }
    }

    /// Drops an event that came earlier.
    pub fn forget_event(&self) {
        self.port.take_event();
    }

    /// Writes all bytes as a kernel does: as many as there is room for, then the rest after each event.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the daemon does not make room.
    pub async fn write(&mut self, bytes: &[u8]) -> Verdict {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.until(OUT_BYTES - 1).await?;
            let (now, later) = rest.split_at(rest.len().min(self.room()));
            self.send(now);
            rest = later;
        }
        Ok(())
    }

    /// Brings the ring to where the next byte goes to slot `slot`.
    ///
    /// # Errors
    /// [`Problem::Fail`].
    pub async fn advance_to(&mut self, slot: usize) -> Verdict {
        let ahead = (slot + OUT_BYTES - self.prod as usize % OUT_BYTES) % OUT_BYTES;
        if ahead > 0 {
            let mut filler = alloc::vec![b'.'; ahead];
            filler[ahead - 1] = b'\n';
            self.write(&filler).await?;
            self.taken().await?;
            self.expect_shown(&filler).await?;
        }
        Ok(())
    }

    /// The number of input bytes that wait in the ring.
    pub fn waiting(&self) -> usize {
        self.page.load_u32(IN.prod).wrapping_sub(self.cons) as usize
    }

    /// Takes at most `most` bytes of input, and sends an event, since there is room again.
    pub fn read(&mut self, most: usize) -> Vec<u8> {
        let count = self.waiting().min(most);
        let bytes = (0..count)
            .map(|n| self.page.load_u8(IN.data + self.cons.wrapping_add(n as u32) as usize % IN_BYTES));
        let bytes = bytes.collect();
        self.cons = self.cons.wrapping_add(count as u32);
        self.page.swap_u32(IN.cons, self.cons);
        if count > 0 {
            self.notify();
        }
        bytes
    }

    /// The bytes that the watcher saw since the last call; none where there is no watcher.
    pub fn shown(&self) -> Vec<u8> {
        self.watcher.as_ref().map(|watcher| watcher.shown()).unwrap_or_default()
    }

    /// Checks that the watcher, if there is one, saw just these bytes.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the watcher saw other bytes.
    pub async fn expect_shown(&self, wanted: &[u8]) -> Verdict {
        if self.watcher.is_none() {
            return Ok(());
        }
        quiet().await;
        let shown = self.shown();
        let same = shown.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        ensure!(
            shown == wanted,
            "{} bytes were shown of {}, the first {same} of them right",
            shown.len(),
            wanted.len()
        );
        Ok(())
    }

    /// Types `bytes` at the watcher's keyboard.
    ///
    /// # Errors
    /// [`Problem::Skip`]: there is no watcher.
    pub fn enter(&self, bytes: &[u8]) -> Verdict<usize> {
        let Some(watcher) = &self.watcher else {
            return Err(Problem::Skip(Need::BothEnds.missing().into()));
        };
        Ok(watcher.enter(bytes))
    }
}

/// Time in which a daemon that has something to do would have begun.
pub async fn quiet() {
    time::sleep(SILENCE_NS).await;
}

/// `count` bytes of all values, with a long period.
pub fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n * 7 + n / 256 * 13) as u8).collect()
}

/// `count` printable bytes, a line end last.
pub fn text(count: usize) -> Vec<u8> {
    let mut text: Vec<u8> = (0..count).map(|n| b'a' + ((n + n / 26) % 26) as u8).collect();
    if let Some(last) = text.last_mut() {
        *last = b'\n';
    }
    text
}
