//! Long output, in steps: the printer yields between lines, and waits until the serial line has sent earlier output.

use alloc::string::String;
use core::fmt::{self, Write};

use pvrt::console;
use pvrt::executor::{time, yield_now};

/// Bytes that are printed at a time.
const PIECE_BYTES: usize = 1024;
/// The most characters shown of an error or a warning.
const SHOWN_MAX: usize = 1000;
/// The time between checks of a busy serial line, which sends 230 bytes meanwhile at 115,200 baud.
const BUSY_NS: u64 = 20_000_000;

/// Prints a list: for commands whose output grows with the number of guests, files or disks.
///
/// Lines are gathered and printed in pieces. A printer that is dropped before [`Printer::end`] loses its last lines.
#[derive(Default)]
pub(crate) struct Printer {
    waiting: String,
}

/// Text that contains words from outside, such as a configuration's or a kernel's notes. Control characters are made
/// visible, so that they do not control the administrator's terminal, and a long text is cut.
pub(crate) fn shown(text: &str) -> Shown<'_> {
    Shown(text, SHOWN_MAX)
}

/// See [`shown`].
pub(crate) struct Shown<'a>(&'a str, usize);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text, most) = *self;
        let end = text.char_indices().nth(most).map_or(text.len(), |(at, _)| at);
        for c in text[..end].chars() {
            match c {
                '\t' => f.write_char(c)?,
                '\0'..='\x1f' => write!(f, "^{}", char::from(c as u8 + 0x40))?,
                '\x7f' => f.write_str("^?")?,
                // C1 control characters, and marks that change the direction of the text.
                '\u{80}'..='\u{9f}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' => {
                    f.write_char('\u{fffd}')?;
                }
                c => f.write_char(c)?,
            }
        }
        match text.len() - end {
            0 => Ok(()),
            more => write!(f, "... ({more} bytes more)"),
        }
    }
}

impl Printer {
    /// Adds a line, with its control characters made visible. Yields before the next line.
    pub(crate) async fn line(&mut self, text: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.waiting, "{}", Shown(text, usize::MAX));
        self.waiting.push('\n');
        if self.waiting.len() >= PIECE_BYTES {
            bytes(&core::mem::take(&mut self.waiting).into_bytes()).await;
        }
        yield_now().await;
    }

    /// Prints the remaining lines.
    pub(crate) async fn end(self) {
        bytes(self.waiting.as_bytes()).await;
    }
}

/// Prints bytes in pieces.
pub(crate) async fn bytes(all: &[u8]) {
    for piece in all.chunks(PIECE_BYTES) {
        while console::is_busy() {
            time::sleep(BUSY_NS).await;
        }
        console::write(piece);
        yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use pvrt::executor::{block_on_test, spawn};
    use pvrt::host::{set_console_busy, take_console_output};

    #[test]
    fn others_run_between_lines_and_nothing_is_lost() {
        take_console_output();
        let turns = Arc::new(AtomicUsize::new(0));
        let others = turns.clone();
        block_on_test(async move {
            spawn(async move {
                loop {
                    others.fetch_add(1, Relaxed);
                    yield_now().await;
                }
            });
            let mut printer = Printer::default();
            for _ in 0..300 {
                printer.line("twelve bytes").await;
            }
            printer.end().await;
        });
        assert_eq!(take_console_output(), "twelve bytes\n".repeat(300).as_bytes());
        assert!(turns.load(Relaxed) >= 300, "{turns:?}");
    }

    #[test]
    fn text_from_outside_does_not_drive_the_terminal() {
        for (text, want) in [
            ("plain \t ü", "plain \t ü"),
            ("\x1b[2J\x1b[Hforged\r\n", "^[[2J^[[Hforged^M^J"),
            ("\0\x7f\u{9b}2J\u{202e}x", "^@^?\u{fffd}2J\u{fffd}x"),
        ] {
            assert_eq!(alloc::format!("{}", shown(text)), want, "{text:?}");
        }
        let long = "ü".repeat(SHOWN_MAX);
        assert_eq!(alloc::format!("{}", shown(&long)), long);
        let longer = alloc::format!("{}", shown(&(long.clone() + "\x1b12")));
        assert_eq!(longer, long + "... (3 bytes more)");
    }

    #[test]
    fn a_busy_line_gets_no_more_than_a_piece() {
        take_console_output();
        set_console_busy(true);
        block_on_test(async {
            let printing = async {
                let mut printer = Printer::default();
                for _ in 0..300 {
                    printer.line("twelve bytes").await;
                }
            };
            assert!(time::timeout(1_000_000_000, printing).await.is_err());
            assert_eq!(take_console_output(), b"");
            set_console_busy(false);
        });
    }
}
