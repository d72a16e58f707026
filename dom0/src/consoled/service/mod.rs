//! One console: its ring, its kept and printed output, and each reader's position.

mod attachment;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::pin::pin;

use backends::Notifier;
use backends::console::{Bucket, ConsoleBack, Lines, Scrollback};
use pvrt::event::Port;
use pvrt::executor::sync::Notify;
use pvrt::executor::{select, time};
use pvrt::grant::GrantMap;
use ring_abi::ring::RingError;
use spin::Mutex;

pub use attachment::Attachment;

use super::kept::{Kept, Stamps};
use super::share::Share;
use super::{Printer, SCROLLBACK_BYTES};

/// A domain may print 64 KiB at once, which is more than a Linux kernel prints while it boots, and 64 KiB a
/// second.
const BURST_BYTES: u64 = 64 * 1024;
const BYTE_NS: u64 = 15_259;
/// How many bytes attached readers may be behind before the domain waits for them: fewer than are kept, so that
/// readers miss nothing.
const MOST_BEHIND: u64 = SCROLLBACK_BYTES as u64 / 2;
/// The expected length of a line, prefix included.
const LINE_BYTES: usize = 160;
/// The most bytes taken of a domain's last output: many times the size of its ring.
const LAST_BYTES: usize = 8192;

struct Bell(Arc<Port>);

impl Notifier for Bell {
    fn notify(&mut self) {
        self.0.notify();
    }
}

/// One domain's console.
///
/// The lock is held for a poll of the ring or a read of the scroll-back; lines are printed and readers are woken
/// under it, which cannot deadlock, since neither takes this lock.
pub(super) struct Console {
    state: Mutex<State>,
    /// Wakes the task that serves the console: the console has ended, or a reader has read on.
    changed: Notify,
    print: Arc<Printer>,
    share: Arc<Share>,
}

struct State {
    /// The prefix of each line: the domain's number and name.
    prefix: String,
    /// The times at which the output came.
    stamps: Stamps,
    /// `None` once the domain is gone or its ring is ruined.
    live: Option<Live>,
    /// The kept output, once there is no ring.
    kept: Scrollback,
    lines: Lines,
    /// The output that was left in the ring at the end, and is still to be printed.
    rest: Vec<u8>,
    /// Attached readers, by number.
    readers: BTreeMap<u32, Reader>,
    next_reader: u32,
    /// What the domain may print.
    bucket: Bucket,
    /// Whether the task waits for readers.
    is_held: bool,
    /// The error in the ring that ended the console.
    ruin: Option<RingError>,
}

struct Live {
    back: ConsoleBack<GrantMap, Bell>,
    port: Arc<Port>,
}

struct Reader {
    wake: Arc<Notify>,
    /// The position up to which the reader has read the output.
    position: u64,
}

impl State {
    /// The most bytes that are printed at once.
    fn slice(&self) -> usize {
        Lines::slice(self.prefix.len())
    }

    fn scrollback(&self) -> &Scrollback {
        self.live.as_ref().map_or(&self.kept, |live| live.back.scrollback())
    }
}

/// The result of a poll.
enum Polled {
    /// The ring is gone.
    Over,
    /// There is more to take.
    More,
    /// The ring is empty; an event will come with more.
    Empty,
    /// Attached readers are too far behind.
    Held,
    Ruined(RingError),
}

/// The cost of bytes on the serial line, where a line's end takes two. (I28)
fn cost(bytes: &[u8]) -> u64 {
    bytes.len() as u64 + ends(bytes)
}

const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
const ONES: u64 = 0x0101_0101_0101_0101;
const NEWLINES: u64 = ONES * b'\n' as u64;

fn ends_of_word(word: &[u8; 8]) -> u64 {
    let differs = u64::from_le_bytes(*word) ^ NEWLINES;
    // The top bit of each byte that is a newline.
    let found = !(((differs & LOW) + LOW) | differs | LOW);
    (found >> 7).wrapping_mul(ONES) >> 56
}

/// Counts line ends, eight bytes at a time, since every byte of a domain passes here.
fn ends(bytes: &[u8]) -> u64 {
    // Not 0 if a byte of the word is a newline, which in most words none is. Bits beside the bytes' top bits mean nothing.
    let hint = |word: &[u8; 8]| {
        let differs = u64::from_le_bytes(*word) ^ NEWLINES;
        differs.wrapping_sub(ONES) & !differs
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut count = 0;
    for words in words.chunks(4) {
        if words.iter().fold(0, |all, word| all | hint(word)) & !LOW != 0 {
            count += words.iter().map(ends_of_word).sum::<u64>();
        }
    }
    count + rest.iter().filter(|&&byte| byte == b'\n').count() as u64
}

impl Console {
    pub(super) fn new(
        page: GrantMap,
        port: Port,
        prefix: String,
        print: Arc<Printer>,
        share: Arc<Share>,
    ) -> Result<Self, RingError> {
        let port = Arc::new(port);
        let back = ConsoleBack::new(page, Bell(port.clone()), SCROLLBACK_BYTES)?;
        let state = State {
            prefix,
            stamps: Stamps::default(),
            live: Some(Live { back, port }),
            kept: Scrollback::new(0),
            lines: Lines::default(),
            rest: Vec::new(),
            readers: BTreeMap::new(),
            next_reader: 0,
            bucket: Bucket::new(BYTE_NS, BURST_BYTES),
            is_held: false,
            ruin: None,
        };
        Ok(Self { state: Mutex::new(state), changed: Notify::new(), print, share })
    }

    /// Puts another prefix before lines from now on.
    pub(super) fn set_prefix(&self, prefix: String) {
        self.state.lock().prefix = prefix;
    }

    /// Whether the domain has written anything.
    pub(super) fn has_output(&self) -> bool {
        self.state.lock().scrollback().end() > 0
    }

    /// Copies the last bytes of the output with their times, at most so many.
    pub(super) fn copy(&self, most: usize, to: &mut Kept) {
        let state = self.state.lock();
        to.take(state.scrollback(), &state.stamps, most);
    }

    /// Drains the ring at each event, as fast as the domain may print, until the console ends; then prints the rest.
    pub(super) async fn serve(&self) {
        // One wait serves the whole loop: a new one for each event would cost more than the event.
        let mut changed = pin!(self.changed.notified());
        loop {
            let now = time::now_ns();
            let (ready, prints, slice) = {
                let state = self.state.lock();
                (state.bucket.ready_at(state.slice() as u64), state.readers.is_empty(), state.slice() as u64)
            };
            if ready > now {
                select(time::sleep_until(ready), changed.as_mut()).await;
                if self.port().is_some() {
                    continue;
                }
            }
            let polled = if prints {
                let turn = self.share.turn(slice).await;
                let (polled, cost) = self.poll(if turn.is_late { time::now_ns() } else { now });
                turn.spend(cost);
                polled
            } else {
                self.poll(now).0
            };
            match polled {
                Polled::Over => break,
                Polled::More => pvrt::yield_now().await,
                Polled::Empty => {
                    let Some(port) = self.port() else { continue };
                    select(port.wait(), changed.as_mut()).await;
                }
                Polled::Held => changed.as_mut().await,
                Polled::Ruined(error) => self.ruin(error),
            }
        }
        // This task logs the error in the ring, whether it or a typing reader found the error.
        {
            let state = self.state.lock();
            if let Some(error) = &state.ruin {
                log::error!("{}console: disconnect: {error}", state.prefix);
            }
        }
        while let Some(slice) = self.rest_slice() {
            let turn = self.share.turn(slice).await;
            let cost = self.print_rest(&mut self.state.lock());
            turn.spend(cost);
            pvrt::yield_now().await;
        }
    }

    /// The most bytes of the rest that are printed at once; `None` if there is no rest.
    fn rest_slice(&self) -> Option<u64> {
        let state = self.state.lock();
        (!state.rest.is_empty()).then(|| state.slice() as u64)
    }

    fn port(&self) -> Option<Arc<Port>> {
        self.state.lock().live.as_ref().map(|live| live.port.clone())
    }

    /// Takes a slice of the domain's output, and prints it if no reader is attached; also returns the cost on the
    /// serial line.
    fn poll(&self, now: u64) -> (Polled, u64) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let slice = state.slice();
        let Some(live) = &mut state.live else { return (Polled::Over, 0) };
        let begin = live.back.scrollback().end();
        let (taken, printed) = if state.readers.is_empty() {
            let mut text = String::with_capacity(LINE_BYTES);
            let (lines, prefix) = (&mut state.lines, &state.prefix);
            let mut room = slice;
            let most = lines.allowance(room, prefix.len());
            let taken = live.back.poll(most, |bytes| {
                let before = text.len();
                let mut ends = 0;
                lines.push(bytes, |line| {
                    text.push_str(prefix);
                    text.push_str(line);
                    text.push('\n');
                    ends += 1;
                });
                room -= text.len() - before + ends;
                lines.allowance(room, prefix.len())
            });
            (taken, self.print(text))
        } else {
            // Attached readers print the output themselves, so it is not printed again after they leave.
            let last = state.readers.values().map(|reader| reader.position).min().unwrap_or(0);
            let behind = live.back.scrollback().end().saturating_sub(last);
            let mut left = MOST_BEHIND.saturating_sub(behind).min(slice as u64) as usize;
            state.is_held = left == 0;
            if state.is_held {
                return (Polled::Held, 0);
            }
            let mut spent = 0;
            let taken = live.back.poll(left, |bytes| {
                spent += cost(bytes);
                left -= bytes.len();
                left
            });
            if spent > 0 {
                state.readers.values().for_each(|reader| reader.wake.notify_one());
            }
            (taken, spent)
        };
        state.bucket.spend(now, printed);
        if live.back.scrollback().end() != begin {
            state.stamps.came(now, begin, live.back.scrollback().start(), time::wall_at);
        }
        let polled = match taken {
            Ok(true) => Polled::More,
            Ok(false) => Polled::Empty,
            Err(error) => Polled::Ruined(error),
        };
        (polled, printed)
    }

    /// Prints whole lines, and returns their cost on the serial line.
    fn print(&self, mut text: String) -> u64 {
        let ends = ends(text.as_bytes());
        if text.pop().is_none() {
            return 0;
        }
        (self.print)(&text) as u64 + ends
    }

    /// Prints the begun line, although its end has not come.
    fn flush(&self, prefix: &str, lines: &mut Lines) {
        lines.flush(|line| {
            (self.print)(&[prefix, line].concat());
        });
    }

    /// Prints a slice of the rest, and returns its cost.
    fn print_rest(&self, state: &mut State) -> u64 {
        let mut text = String::new();
        let mut room = state.slice();
        loop {
            let most = state.lines.allowance(room, state.prefix.len()).min(state.rest.len());
            if most == 0 {
                break;
            }
            let before = text.len();
            let mut ends = 0;
            let (lines, prefix) = (&mut state.lines, &state.prefix);
            lines.push(&state.rest[..most], |line| {
                text.push_str(prefix);
                text.push_str(line);
                text.push('\n');
                ends += 1;
            });
            state.rest.drain(..most);
            room -= text.len() - before + ends;
        }
        let cost = self.print(text);
        if state.rest.is_empty() {
            self.flush(&state.prefix, &mut state.lines);
        }
        cost
    }

    /// Ends the console because of an error in its ring.
    fn ruin(&self, error: RingError) {
        self.state.lock().ruin.get_or_insert(error);
        self.end();
    }

    /// Takes the last output and releases the ring.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(mut live) = state.live.take() {
            // Takes what the domain wrote before it died. A ruined ring gives nothing more, and the limit stops a
            // domain that goes on writing.
            let mut left = LAST_BYTES;
            let rest = &mut state.rest;
            let begin = live.back.scrollback().end();
            let _ = live.back.poll(left, |bytes| {
                rest.extend_from_slice(bytes);
                left = left.saturating_sub(bytes.len());
                left
            });
            state.kept = live.back.into_scrollback();
            if state.kept.end() != begin {
                state.stamps.came(time::now_ns(), begin, state.kept.start(), time::wall_at);
            }
            if !state.readers.is_empty() {
                state.rest.clear();
            }
            self.print_rest(state);
        }
        state.readers.values().for_each(|reader| reader.wake.notify_one());
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ends_are_counted(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\n' | 0x80), 9u8..12, any::<u8>()], 0..70)) {
            prop_assert_eq!(ends(&bytes), bytes.iter().filter(|&&byte| byte == b'\n').count() as u64);
        }
    }
}
