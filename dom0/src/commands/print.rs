//! Long output, in steps: others run between its lines, and the serial line takes what was printed before more comes.

use alloc::string::String;

use pvrt::console;
use pvrt::executor::{time, yield_now};

/// Bytes that are printed at a time.
const PIECE_BYTES: usize = 1024;
/// How often a busy serial line is looked at: 115,200 baud send 230 bytes meanwhile.
const BUSY_NS: u64 = 20_000_000;

/// Prints a list: for commands whose output grows with what guests, files or disks there are.
///
/// Lines are gathered and printed in pieces. Who drops it before [`Printer::end`] loses the last lines.
#[derive(Default)]
pub(super) struct Printer {
    waiting: String,
}

impl Printer {
    /// Adds a line. Others run before the next.
    pub(super) async fn line(&mut self, text: &str) {
        self.waiting.push_str(text);
        self.waiting.push('\n');
        if self.waiting.len() >= PIECE_BYTES {
            bytes(&core::mem::take(&mut self.waiting).into_bytes()).await;
        }
        yield_now().await;
    }

    /// Prints what is left.
    pub(super) async fn end(self) {
        bytes(self.waiting.as_bytes()).await;
    }
}

/// Prints bytes in pieces.
pub(super) async fn bytes(all: &[u8]) {
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
