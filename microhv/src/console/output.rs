//! Output of the serial console: sent as fast as the line takes it, not faster. The part that is the hypervisor's own is
//! kept for `xl dmesg`.
//!
//! A ring holds what the line has not got yet. No CPU waits for the line while interrupts are off. A writer puts as
//! many bytes into the transmitter as fit at once. The rest goes out at the transmitter's interrupts, or at ticks of
//! the timer if the interrupts do not come. Only a machine that dies, that starts, or that shows a debug key's answer
//! waits ([`Output::drain`]).

use core::fmt::{self, Write};

use arrayvec::ArrayString;

use super::messages::Messages;
use super::screen::{Screen, Surface};

/// The ring. A power of two.
pub const LOG_BYTES: usize = 32768;
/// Bytes that may wait for the line before a domain's write finds the ring full. The rest of the ring is the
/// hypervisor's own: its lines cannot wait.
pub const BUFFER_BYTES: usize = 16384;
/// If more bytes than this wait, the line is busy: code that can do without printing should not print.
pub const BUSY_BYTES: usize = 2048;
/// Most bytes that one call puts into the transmitter, however fast the transmitter is.
pub const GO_BYTES: usize = 256;
/// Most characters that one call draws on the screen: some 50,000 instructions.
pub const GO_CELLS: usize = 64;
/// A transmitter that has bytes waiting and has taken none for so long is no transmitter.
pub const STUCK_NS: u64 = 5_000_000_000;
/// Looks at the transmitter's status in one wait of [`Output::drain`]: many times what the slowest line needs.
const DRAIN_LOOKS: u32 = 1_000_000;
/// Longest note about bytes that were skipped.
const NOTE_BYTES: usize = 64;

/// The transmitter.
pub trait Uart {
    /// Bytes that the transmitter takes now without waiting; 0: busy.
    fn room(&mut self) -> usize;
    /// Puts bytes in. There is room.
    fn put(&mut self, bytes: &[u8]);
    /// Lets the transmitter interrupt when it has room, or not.
    fn set_interrupt(&mut self, on: bool);
}

/// What was written, and how much of it the line has.
#[derive(Debug)]
pub struct Output {
    /// What the hypervisor itself wrote.
    pub messages: Messages,
    /// The text on the screen, if there is one.
    pub screen: Option<Screen>,
    log: [u8; LOG_BYTES],
    /// Bytes ever written: the next goes to this modulo the size.
    written: u64,
    /// Number of bytes that the line has got. At most `LOG_BYTES` behind `written`.
    sent: u64,
    /// Room in the transmitter by the transmitter's last answer, less the bytes put in since.
    room: usize,
    /// The carriage return that goes before the next byte, a line's end, is on its way.
    returned: bool,
    /// Number of bytes that were overwritten before the line got them, and that no note has told of yet.
    skipped: u64,
    note: ArrayString<NOTE_BYTES>,
    /// Bytes of the note that were sent.
    note_at: usize,
    /// Writers wait for the line: before the interrupts work, and while a debug key is answered.
    synchronous: bool,
    interrupt: bool,
    /// When bytes began to wait, or the transmitter last took one.
    moved_ns: u64,
    stuck: bool,
}

impl Output {
    /// Nothing was written. Writers wait for the line until [`Output::set_synchronous`] says otherwise.
    #[allow(clippy::new_without_default, reason = "the one output is a static")]
    pub const fn new() -> Self {
        Self {
            messages: Messages::new(),
            screen: None,
            log: [0; LOG_BYTES],
            written: 0,
            sent: 0,
            room: 0,
            returned: false,
            skipped: 0,
            note: ArrayString::new_const(),
            note_at: 0,
            synchronous: true,
            interrupt: false,
            moved_ns: 0,
            stuck: false,
        }
    }

    /// Does the same as [`Output::push`] for text of the hypervisor itself.
    pub fn push_own(&mut self, bytes: &[u8]) {
        self.messages.push(bytes);
        self.push(bytes);
    }

    /// Appends `bytes`, over the ring's oldest bytes. Bytes that the ring overwrites before the line has got them are
    /// skipped. The line gets the bytes from [`Output::pump`].
    pub fn push(&mut self, bytes: &[u8]) {
        if let Some(screen) = &mut self.screen {
            screen.put(bytes);
        }
        for piece in bytes.chunks(LOG_BYTES) {
            let at = (self.written % LOG_BYTES as u64) as usize;
            let (head, tail) = piece.split_at(piece.len().min(LOG_BYTES - at));
            self.log[at..at + head.len()].copy_from_slice(head);
            self.log[..tail.len()].copy_from_slice(tail);
            self.written += piece.len() as u64;
            let oldest = self.written.saturating_sub(LOG_BYTES as u64);
            if self.sent < oldest {
                self.skipped += oldest - self.sent;
                self.sent = oldest;
                self.returned = false;
            }
        }
    }

    /// Bytes that wait for the line.
    pub const fn waiting(&self) -> usize {
        (self.written - self.sent) as usize
    }

    /// Bytes that a domain may add now.
    pub const fn domain_room(&self) -> usize {
        BUFFER_BYTES.saturating_sub(self.waiting())
    }

    /// Whether code that can do without printing should not print.
    pub const fn is_busy(&self) -> bool {
        self.waiting() > BUSY_BYTES
    }

    /// Sends what fits into the transmitter, at most [`GO_BYTES`] bytes; while writers are synchronous, sends all that
    /// waits. The transmitter's interrupt is on while bytes wait. `now_ns` is any clock that goes on.
    pub fn pump(&mut self, uart: &mut impl Uart, now_ns: impl Fn() -> u64) {
        if self.synchronous {
            return self.drain(uart);
        }
        let any = self.send(uart, GO_BYTES);
        if self.has_more() {
            self.watch(any, now_ns());
        }
        let wait = self.has_more();
        if wait != self.interrupt {
            self.interrupt = wait;
            uart.set_interrupt(wait);
        }
    }

    /// Watches the transmitter while bytes wait: when the transmitter has taken none for long, this function gives up
    /// the waiting bytes, which stay in the log.
    #[cold]
    #[inline(never)]
    fn watch(&mut self, any: bool, now_ns: u64) {
        if any || !self.interrupt {
            self.moved_ns = now_ns;
        }
        if any {
            self.stuck = false;
        }
        if self.stuck || now_ns.saturating_sub(self.moved_ns) > STUCK_NS {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.stuck = true;
        self.sent = self.written;
        (self.note_at, self.skipped) = (self.note.len(), 0);
    }

    /// Sends all that waits, however long the line takes. A transmitter that takes nothing is given up.
    pub fn drain(&mut self, uart: &mut impl Uart) {
        let mut looks = 0;
        while self.has_more() {
            if self.send(uart, GO_BYTES) {
                (looks, self.stuck) = (0, false);
            } else if self.stuck || looks == DRAIN_LOOKS {
                // The transmitter counts as dead from now on, so that it does not delay the machine for
                // minutes.
                self.give_up();
            } else {
                looks += 1;
                core::hint::spin_loop();
            }
        }
    }

    /// Draws at most `most` characters on the screen; whether there may be more to draw.
    pub fn draw(&mut self, surface: &mut impl Surface, most: usize) -> bool {
        self.screen.as_mut().is_some_and(|screen| screen.draw(surface, most))
    }

    /// Lets writers wait for the line, or not.
    pub const fn set_synchronous(&mut self, on: bool) {
        self.synchronous = on;
    }

    /// Whether writers wait for the line.
    pub const fn is_synchronous(&self) -> bool {
        self.synchronous
    }

    /// Something is to be sent.
    pub const fn has_more(&self) -> bool {
        self.sent != self.written || self.note_at != self.note.len()
    }

    /// Sends at most `most` bytes as long as there is room without waiting. Returns whether any byte went.
    fn send(&mut self, uart: &mut impl Uart, most: usize) -> bool {
        let mut left = most;
        while left > 0 && self.has_more() {
            if self.room == 0 {
                self.room = uart.room();
                if self.room == 0 {
                    break;
                }
            }
            let count = self.room.min(left);
            let used = self.fill(uart, count);
            self.room -= used;
            left -= used;
        }
        left < most
    }

    /// Puts at most `count` bytes; how many.
    fn fill(&mut self, uart: &mut impl Uart, count: usize) -> usize {
        let mut used = 0;
        if self.skipped != 0 || self.note_at != self.note.len() {
            used = self.fill_note(uart, count);
            if self.note_at != self.note.len() {
                return used;
            }
        }
        // Only up to the ring's end; the caller calls again for the bytes at its start.
        let at = (self.sent % LOG_BYTES as u64) as usize;
        let piece = &self.log[at..LOG_BYTES.min(at + self.waiting().min(count - used))];
        if let [b'\n', ..] = piece {
            // The carriage return before a newline goes first, perhaps in a call of its own.
            let end: &[u8] = if self.returned { b"\n" } else { b"\r\n" };
            let end = &end[..end.len().min(count - used)];
            uart.put(end);
            self.returned = end == b"\r";
            self.sent += u64::from(!self.returned);
            return used + end.len();
        }
        let text = line_len(piece);
        uart.put(&piece[..text]);
        self.sent += text as u64;
        used + text
    }

    #[cold]
    #[inline(never)]
    fn fill_note(&mut self, uart: &mut impl Uart, count: usize) -> usize {
        if self.note_at == self.note.len() {
            self.note.clear();
            // Even the longest number fits.
            let _ = write!(self.note, "\r\n(microhv) {} bytes skipped\r\n", self.skipped);
            (self.note_at, self.skipped) = (0, 0);
        }
        let rest = &self.note.as_bytes()[self.note_at..];
        let piece = &rest[..rest.len().min(count)];
        uart.put(piece);
        self.note_at += piece.len();
        piece.len()
    }
}

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push_own(text.as_bytes());
        Ok(())
    }
}

/// Number of bytes of `text` before the end of its first line. Eight bytes are looked at together, since every byte
/// that is printed comes by here.
fn line_len(text: &[u8]) -> usize {
    const ENDS: u64 = u64::from_le_bytes([b'\n'; 8]);
    const LOW: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = u64::from_le_bytes([0x80; 8]);
    let (words, rest) = text.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        // A zero byte marks a line end. The lowest set bit belongs to one; higher bits may come from a borrow.
        let differing = u64::from_le_bytes(*word) ^ ENDS;
        let ends = differing.wrapping_sub(LOW) & !differing & HIGH;
        if ends != 0 {
            return n * 8 + (ends.trailing_zeros() / 8) as usize;
        }
    }
    words.len() * 8 + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_at_its_first_end() {
        // What differs from the end in one bit, what borrows, and what has the top bit set.
        for filler in [b'\n' + 1, b'\n' - 1, 0, 0x8a, 0xff] {
            for len in 0..40 {
                let mut text = alloc::vec![filler; len];
                assert_eq!(line_len(&text), len, "{filler:#x}");
                for end in (0..len).rev() {
                    text[end] = b'\n';
                    assert_eq!(line_len(&text), end, "{filler:#x} {len}");
                }
            }
        }
    }
}
