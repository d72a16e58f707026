//! Who may print now: the consoles of all domains share one line.

use pvrt::console;
use pvrt::executor::sync::{Mutex, MutexGuard};
use pvrt::executor::time;

use backends::console::Bucket;

/// All consoles together print 128 KiB at once, and 128 KiB a second.
const BURST_BYTES: u64 = 128 * 1024;
const BYTE_NS: u64 = 7_630;
/// Bytes that are printed between two questions whether the line is busy. It is asked early enough to take them.
const CREDIT_BYTES: u64 = 4096;
/// How long to leave a busy line alone.
const BUSY_NS: u64 = 10_000_000;

/// The line, for one console at a time: who asks again waits behind who asked before.
pub(super) struct Share(Mutex<Line>);

struct Line {
    bucket: Bucket,
    /// Bytes to print before the line is asked again.
    credit: u64,
}

/// The right to print a slice.
pub(super) struct Turn<'a> {
    line: MutexGuard<'a, Line>,
    /// When it began.
    pub(super) now_ns: u64,
}

impl Share {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Line { bucket: Bucket::new(BYTE_NS, BURST_BYTES), credit: 0 }))
    }

    /// Waits until `bytes` may be printed: it is the caller's turn, the line takes them, and all consoles together have
    /// not printed too much. `now_ns` is the time of the call.
    pub(super) async fn turn(&self, bytes: u64, mut now_ns: u64) -> Turn<'_> {
        let mut line = match self.0.try_lock() {
            Some(line) => line,
            None => {
                let line = self.0.lock().await;
                now_ns = time::now_ns();
                line
            }
        };
        let ready_ns = line.bucket.ready_at(bytes);
        if ready_ns > now_ns {
            time::sleep_until(ready_ns).await;
            now_ns = time::now_ns();
        }
        if line.credit == 0 {
            while console::is_busy() {
                time::sleep(BUSY_NS).await;
                now_ns = time::now_ns();
            }
            line.credit = CREDIT_BYTES;
        }
        Turn { line, now_ns }
    }
}

impl Turn<'_> {
    /// So many bytes were printed.
    pub(super) fn spend(mut self, bytes: u64) {
        self.line.bucket.spend(self.now_ns, bytes);
        self.line.credit = self.line.credit.saturating_sub(bytes);
    }
}
