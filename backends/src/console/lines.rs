//! Makes whole lines of a byte stream, for a log that several consoles share.

use alloc::string::String;
use alloc::vec::Vec;

/// Longest line of a guest; a longer line is broken in two.
const MAX_LINE: usize = 1024;
/// Most bytes that one byte of a guest becomes: those of U+FFFD.
const MOST_OF_ONE: usize = 3;
/// A line's end, as the serial line gets it.
const LINE_END: usize = 2;
/// Number of a guest's bytes below which a look at the guest's ring is not worth while.
const LEAST_TAKEN: usize = 16;

/// Collects bytes until a line is whole.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes `bytes` and hands `line` each line that is now whole, without the line's end. A `\r` is dropped. Other
    /// control characters are shown as `^X`, so that no guest drives a log reader's terminal.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for &byte in bytes {
            match byte {
                b'\n' => self.finish(&mut line),
                b'\r' => {}
                _ => {
                    self.partial.push(byte);
                    if self.partial.len() == MAX_LINE {
                        self.finish(&mut line);
                    }
                }
            }
        }
    }

    /// Hands out a line that has begun and not ended. The caller needs this when the domain is gone.
    pub fn flush(&mut self, mut line: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            self.finish(&mut line);
        }
    }

    /// Whether a line has begun.
    pub fn has_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Most bytes that one byte of a guest may become, where each printed line gets a prefix of `prefix` bytes. A byte
    /// that ends a line costs the prefix and the line's end, and every byte costs [`MOST_OF_ONE`] as text.
    const fn most_of_each(prefix: usize) -> usize {
        prefix + LINE_END + MOST_OF_ONE
    }

    /// Printed bytes that must be free for [`Lines::allowance`] to be more than 0, however much of a line has begun.
    pub const fn slice(prefix: usize) -> usize {
        MOST_OF_ONE * (MAX_LINE - 1) + LEAST_TAKEN * Self::most_of_each(prefix)
    }

    /// How many bytes of a guest may be pushed so that at most `room` bytes come out, whatever the guest's bytes are.
    /// Prefixes and ends of lines count. Fewer than `LEAST_TAKEN` become 0.
    pub fn allowance(&self, room: usize, prefix: usize) -> usize {
        let count = room.saturating_sub(MOST_OF_ONE * self.partial.len()) / Self::most_of_each(prefix);
        if count < LEAST_TAKEN { 0 } else { count }
    }

    fn finish(&mut self, line: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.partial);
        if text.chars().any(|c| c.is_control() && c != '\t') {
            let mut shown = String::with_capacity(text.len() + 8);
            for c in text.chars() {
                match c {
                    '\t' => shown.push(c),
                    '\0'..='\x1f' => {
                        shown.push('^');
                        shown.push((c as u8 + 0x40) as char);
                    }
                    '\x7f' => shown.push_str("^?"),
                    c if c.is_control() => shown.push('\u{fffd}'),
                    c => shown.push(c),
                }
            }
            line(&shown);
        } else {
            line(&text);
        }
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed(lines: &mut Lines, bytes: &[u8]) -> Vec<String> {
        let mut out = Vec::new();
        lines.push(bytes, |line| out.push(line.into()));
        out
    }

    #[test]
    fn lines_in_pieces() {
        let mut lines = Lines::default();
        assert!(feed(&mut lines, b"he").is_empty());
        assert_eq!(feed(&mut lines, b"llo\r\n\nwor"), ["hello", ""]);
        assert!(lines.has_partial());
        let mut rest = Vec::new();
        lines.flush(|line| rest.push(String::from(line)));
        lines.flush(|_| panic!("nothing is left"));
        assert_eq!(rest, ["wor"]);
    }

    #[test]
    fn long_lines_break_and_controls_are_shown() {
        let mut lines = Lines::default();
        let long = [b'x'; 2 * MAX_LINE + 1];
        assert_eq!(feed(&mut lines, &long).len(), 2);
        assert_eq!(feed(&mut lines, b"\n"), ["x"]);
        assert_eq!(feed(&mut lines, b"a\x1b[2J\x00\x7f\t\xc2\x9b\xff\n"), ["a^[[2J^@^?\t\u{fffd}\u{fffd}"]);
    }

    proptest! {
        /// What comes out of a slice is never longer than the slice, and each slice lets some bytes through.
        #[test]
        fn a_slice_is_never_exceeded(
            prefix in 0usize..60,
            pieces in proptest::collection::vec((0usize..7, 1usize..900), 1..40),
        ) {
            const KINDS: [&[u8]; 7] = [b"\n", b"x", b"\xff", b"\x01", b"\xc2\x9b", b"words and words\r\n", b"\xf0\x90"];
            let text: Vec<u8> =
                pieces.iter().flat_map(|&(kind, count)| KINDS[kind].repeat(count)).collect();
            let (mut lines, mut rest) = (Lines::default(), &text[..]);
            let mut all = String::new();
            while !rest.is_empty() {
                let mut room = Lines::slice(prefix);
                let mut count = lines.allowance(room, prefix);
                prop_assert!(count >= LEAST_TAKEN);
                while count > 0 && !rest.is_empty() {
                    let (now, later) = rest.split_at(count.min(rest.len()));
                    let mut printed = 0;
                    lines.push(now, |line| {
                        printed += prefix + line.len() + LINE_END;
                        all.push_str(line);
                        all.push('\n');
                    });
                    prop_assert!(printed <= room);
                    rest = later;
                    room -= printed;
                    count = lines.allowance(room, prefix);
                }
            }
            let mut whole = String::new();
            Lines::default().push(&text, |line| {
                whole.push_str(line);
                whole.push('\n');
            });
            prop_assert_eq!(all, whole, "slices change nothing");
        }
    }
}
