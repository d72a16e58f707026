//! A console daemon that does only what a case tells it to.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::event::Port;
use pvrt::executor::{spawn_join, time};
use pvrt::mem::Pages;
use ring_abi::io::console::{IN, OUT};
use ring_abi::shared::SharedBytes;
use ring_abi::types::DomId;

use super::ConsoleFrontend;
use crate::blkfront::FrontError;
use crate::blkfront::back::Asked;
use crate::console::front::{IN_BYTES, Indices, OUT_BYTES};
use crate::{Env, Problem, Verdict};

/// How long a frontend may take for anything.
const PATIENCE_NS: u64 = 5_000_000_000;
/// A frontend's pause that counts as doing nothing.
const SILENCE_NS: u64 = 100_000_000;

/// The daemon's end of a ring, and the frontend at the other end.
pub struct Back {
    /// The page.
    pub page: SharedBytes<'static>,
    port: Port,
    front: Arc<dyn ConsoleFrontend>,
    /// How far was read.
    cons: u32,
    /// How far was written.
    prod: u32,
}

impl Back {
    /// A frontend on a new ring.
    ///
    /// # Errors
    /// [`Problem::Skip`]: there is no frontend to try.
    pub fn new(env: &Env) -> Verdict<Self> {
        Self::starting(env, 0, 0)
    }

    /// A frontend on a ring, empty both ways, whose indices stand at `out` and `input`.
    ///
    /// # Errors
    /// The errors of [`Self::new`].
    pub fn starting(env: &Env, out: u32, input: u32) -> Verdict<Self> {
        let Some(place) = &env.frontend_under_test else {
            return Err(Problem::Skip("no frontend to try".into()));
        };
        let pages = Pages::zeroed(1).map_err(|_| Problem::Error("out of memory".into()))?;
        // Nothing tells when the frontend is done with the page, so the page is never freed.
        let page = pages.leak();
        for (channel, start) in [(OUT, out), (IN, input)] {
            page.store_u32(channel.cons, start);
            page.store_u32(channel.prod, start);
        }
        let broken = |errno| Problem::Error(format!("an event channel: {errno}"));
        let port = Port::alloc_unbound(DomId::new(place.dom)).map_err(broken)?;
        let theirs = Port::bind_interdomain(DomId::DOM0, port.number()).map_err(broken)?;
        let front = place.frontends.console(page, theirs);
        let front = front.map_err(|error| match error {
            FrontError::Unsupported => Problem::Skip("no frontend of a console to try".into()),
            error => Problem::Fail(format!("a frontend on a page: {error:?}")),
        })?;
        Ok(Self { page, port, front, cons: out, prod: input })
    }

    /// The indices in the page.
    pub fn indices(&self) -> Indices {
        let at = |offset| self.page.load_u32(offset);
        Indices { in_cons: at(IN.cons), in_prod: at(IN.prod), out_cons: at(OUT.cons), out_prod: at(OUT.prod) }
    }

    /// Sends an event.
    pub fn notify(&self) {
        self.port.notify();
    }

    /// Tells the frontend to write.
    pub fn write(&self, bytes: &[u8]) -> Asked<()> {
        let writing = self.front.clone().write(bytes.to_vec());
        spawn_join(writing)
    }

    /// Tells the frontend to read.
    pub fn read(&self, most: usize) -> Asked<Vec<u8>> {
        let reading = self.front.clone().read(most);
        spawn_join(reading)
    }

    /// Waits for the result of an operation.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the operation does not end, or fails.
    pub async fn end<T>(&self, asked: Asked<T>) -> Verdict<T> {
        match time::timeout(PATIENCE_NS, asked).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(error))) => Err(Problem::Fail(format!("an operation failed: {error:?}"))),
            Ok(Err(_)) => Err(Problem::Fail("the frontend dropped an operation".into())),
            Err(_) => Err(Problem::Fail("an operation does not end".into())),
        }
    }

    /// The result of an operation after a short time; `None` if the operation has failed, or still waits.
    pub async fn gave<T>(&self, asked: Asked<T>) -> Option<T> {
        time::timeout(SILENCE_NS, asked).await.ok()?.ok()?.ok()
    }

    /// Bytes that wait for the daemon.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frontend claims more than the ring holds.
    pub fn waiting(&self) -> Verdict<usize> {
        let waiting = self.page.load_u32(OUT.prod).wrapping_sub(self.cons) as usize;
        ensure!(waiting <= OUT_BYTES, "out_prod is {waiting} ahead of out_cons");
        Ok(waiting)
    }

    /// Waits until the frontend has written bytes. The wait ends by events alone.
    ///
    /// # Errors
    /// [`Problem::Fail`]: no bytes come, or no event comes with them.
    pub async fn output(&self) -> Verdict {
        while self.waiting()? == 0 {
            if time::timeout(PATIENCE_NS, self.port.wait()).await.is_err() {
                ensure!(self.waiting()? == 0, "there are bytes, but no event told of them");
                return Err(Problem::Fail("the frontend writes nothing".into()));
            }
        }
        Ok(())
    }

    /// Takes at most `most` bytes of output, and sends an event, since there is room again.
    ///
    /// # Errors
    /// The errors of [`Self::waiting`].
    pub fn take(&mut self, most: usize) -> Verdict<Vec<u8>> {
        let count = self.waiting()?.min(most);
        let at = |n: usize| OUT.data + self.cons.wrapping_add(n as u32) as usize % OUT_BYTES;
        let bytes = (0..count).map(|n| self.page.load_u8(at(n))).collect();
        self.cons = self.cons.wrapping_add(count as u32);
        self.page.swap_u32(OUT.cons, self.cons);
        if count > 0 {
            self.notify();
        }
        Ok(bytes)
    }

    /// Takes output, at most `most` bytes at a time, until there are `count` bytes.
    ///
    /// # Errors
    /// [`Problem::Fail`]: fewer bytes come.
    pub async fn take_all(&mut self, count: usize, most: usize) -> Verdict<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            self.output().await?;
            bytes.extend(self.take(most)?);
            // The frontend may use the room before the next look.
            pvrt::yield_now().await;
        }
        Ok(bytes)
    }

    /// Types as many bytes as there is room for, and returns how many.
    ///
    /// # Errors
    /// [`Problem::Fail`]: in_cons is nonsense.
    pub fn enter(&mut self, bytes: &[u8]) -> Verdict<usize> {
        let unread = self.prod.wrapping_sub(self.page.load_u32(IN.cons)) as usize;
        ensure!(unread <= IN_BYTES, "in_cons is {unread} behind in_prod");
        let count = bytes.len().min(IN_BYTES - unread);
        for byte in &bytes[..count] {
            self.page.store_u8(IN.data + self.prod as usize % IN_BYTES, *byte);
            self.prod = self.prod.wrapping_add(1);
        }
        self.page.swap_u32(IN.prod, self.prod);
        self.notify();
        Ok(count)
    }

    /// Drops an event that came earlier.
    pub fn forget_event(&self) {
        self.port.take_event();
    }

    /// Waits for an event.
    ///
    /// # Errors
    /// [`Problem::Fail`]: no event comes.
    pub async fn event(&self) -> Verdict {
        let came = time::timeout(PATIENCE_NS, self.port.wait()).await.is_ok();
        ensure!(came, "no event came");
        Ok(())
    }
}

/// Time in which a frontend that has something to do would have begun.
pub async fn quiet() {
    time::sleep(SILENCE_NS).await;
}
