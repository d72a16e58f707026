//! Makes whole lines of a byte stream, for a log that several consoles share.

use alloc::string::String;
use alloc::vec::Vec;

/// Longest line handed out; a longer one is broken.
const MAX_LINE: usize = 1024;

/// Collects bytes until a line is whole.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes `bytes` and hands each line that is now whole to `line`, without its end; `\r` is dropped, other
    /// control characters are shown as `^X` so that no guest drives the terminal of whoever reads the log.
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

    /// Hands out a line that has begun and not ended, as when the domain is gone.
    pub fn flush(&mut self, mut line: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            self.finish(&mut line);
        }
    }

    /// Whether a line has begun.
    pub fn has_partial(&self) -> bool {
        !self.partial.is_empty()
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
}
