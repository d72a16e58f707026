//! One console and those who look at it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;

use backends::Notifier;
use backends::console::{ConsoleBack, Lines, Scrollback};
use pvrt::event::Port;
use pvrt::executor::sync::Notify;
use pvrt::executor::{select, time};
use pvrt::grant::GrantMap;
use ring_abi::ring::RingError;
use ring_abi::types::DomId;
use spin::Mutex;

use super::{Printer, SCROLLBACK_BYTES};

/// A domain may write this much in each period; then its ring waits, and so does whoever fills it. Serial lines are
/// slow, and other domains' lines share them.
const PERIOD_BYTES: u64 = 64 * 1024;
const PERIOD_NS: u64 = 200_000_000;
/// Polls for a domain's last output: many times what its ring holds.
const LAST_POLLS: usize = 8;

struct Bell(Arc<Port>);

impl Notifier for Bell {
    fn notify(&mut self) {
        self.0.notify();
    }
}

/// One domain's console.
///
/// The lock is held for a poll of the ring or a read of the scroll-back; lines are printed and readers are woken
/// under it, which is sound because neither comes back here.
pub(super) struct Console {
    state: Mutex<State>,
    /// Ends the task that serves it.
    stop: Notify,
    print: Arc<Printer>,
    prefix: String,
}

struct State {
    /// `None` once the domain is gone or its ring is ruined.
    live: Option<Live>,
    /// The output, once there is no ring.
    kept: Scrollback,
    lines: Lines,
    /// Those attached, by number.
    readers: BTreeMap<u32, Arc<Notify>>,
    next_reader: u32,
}

struct Live {
    back: ConsoleBack<GrantMap, Bell>,
    port: Arc<Port>,
}

impl State {
    fn scrollback(&self) -> &Scrollback {
        self.live.as_ref().map_or(&self.kept, |live| live.back.scrollback())
    }
}

impl Console {
    pub(super) fn new(
        page: GrantMap,
        port: Port,
        prefix: String,
        print: Arc<Printer>,
    ) -> Result<Self, RingError> {
        let port = Arc::new(port);
        let back = ConsoleBack::new(page, Bell(port.clone()), SCROLLBACK_BYTES)?;
        let state = State {
            live: Some(Live { back, port }),
            kept: Scrollback::new(0),
            lines: Lines::default(),
            readers: BTreeMap::new(),
            next_reader: 0,
        };
        Ok(Self { state: Mutex::new(state), stop: Notify::new(), print, prefix })
    }

    /// Drains the ring at each event until the console ends.
    pub(super) async fn serve(&self, domain: DomId) {
        let (mut since, mut from) = (time::now_ns(), 0);
        loop {
            let polled = self.poll();
            let (now, written) = (time::now_ns(), self.state.lock().scrollback().end());
            if now.saturating_sub(since) >= PERIOD_NS {
                (since, from) = (now, written);
            }
            match polled {
                None => return,
                Some(Ok(_)) if written.saturating_sub(from) > PERIOD_BYTES => {
                    select(time::sleep_until(since + PERIOD_NS), self.stop.notified()).await;
                }
                Some(Ok(true)) => pvrt::yield_now().await,
                Some(Ok(false)) => {
                    let Some(port) = self.port() else { return };
                    select(port.wait(), self.stop.notified()).await;
                }
                Some(Err(error)) => {
                    log::error!("console d{domain}: disconnect: {error:?}");
                    self.end();
                    return;
                }
            }
        }
    }

    fn port(&self) -> Option<Arc<Port>> {
        self.state.lock().live.as_ref().map(|live| live.port.clone())
    }

    /// Takes what the domain wrote; `None` when there is no ring any more.
    fn poll(&self) -> Option<Result<bool, RingError>> {
        let mut state = self.state.lock();
        let State { live, lines, readers, .. } = &mut *state;
        let live = live.as_mut()?;
        let mut any = false;
        let attached = !readers.is_empty();
        let result = live.back.poll(|bytes| {
            any = true;
            // What those attached have seen is not printed after they leave.
            if !attached {
                lines.push(bytes, |line| self.print_line(line));
            }
        });
        if any {
            readers.values().for_each(|reader| reader.notify_one());
        }
        Some(result)
    }

    fn print_line(&self, line: &str) {
        let mut text = String::with_capacity(self.prefix.len() + line.len());
        text.push_str(&self.prefix);
        text.push_str(line);
        (self.print)(&text);
    }

    /// Takes the last output and lets the ring go.
    pub(super) fn end(&self) {
        // What the domain wrote before it died; a ruined ring has no more to say, and one that lives on does not
        // keep us here.
        for _ in 0..LAST_POLLS {
            if !matches!(self.poll(), Some(Ok(true))) {
                break;
            }
        }
        let mut state = self.state.lock();
        if let Some(live) = state.live.take() {
            state.kept = live.back.into_scrollback();
        }
        state.lines.flush(|line| self.print_line(line));
        state.readers.values().for_each(|reader| reader.notify_one());
        drop(state);
        self.stop.notify_one();
    }
}

/// Somebody who looks at a console and may type; detached on drop.
pub struct Attachment {
    console: Arc<Console>,
    number: u32,
    wake: Arc<Notify>,
    /// How far in the output it has read.
    position: u64,
}

impl Attachment {
    pub(super) fn new(console: Arc<Console>, history: bool) -> Self {
        let wake = Arc::new(Notify::new());
        let mut state = console.state.lock();
        let number = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(number, wake.clone());
        // A line that has begun will be seen by the reader, at least its end.
        state.lines.flush(|line| console.print_line(line));
        let position = if history { state.scrollback().start() } else { state.scrollback().end() };
        drop(state);
        Self { console, number, wake, position }
    }

    /// Waits for output and copies it into `buffer`; gives the bytes, 0 when the console is over and all was read.
    pub async fn read(&mut self, buffer: &mut [u8]) -> usize {
        loop {
            {
                let state = self.console.state.lock();
                let (count, position) = state.scrollback().read(self.position, buffer);
                self.position = position;
                if count > 0 || state.live.is_none() {
                    return count;
                }
            }
            self.wake.notified().await;
        }
    }

    /// Types `bytes`; gives how many were taken, fewer when the domain does not read.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut state = self.console.state.lock();
        let taken = state.live.as_mut().map(|live| live.back.input(bytes));
        // A ruined ring is found by the task that serves it.
        taken.and_then(Result::ok).unwrap_or(0)
    }

    /// Whether the console is over: the domain is gone.
    pub fn is_over(&self) -> bool {
        self.console.state.lock().live.is_none()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.console.state.lock().readers.remove(&self.number);
    }
}
