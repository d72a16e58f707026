//! The turns of printing: the consoles of all domains share one line. Carriage returns, which the serial line adds to what an
//! attached reader prints, are not counted here.

use pvrt::console;
use pvrt::executor::sync::{Mutex, MutexGuard};
use pvrt::executor::time;

use backends::console::Bucket;

/// All consoles together print 128 KiB at once, and 128 KiB a second.
const BURST_BYTES: u64 = 128 * 1024;
const BYTE_NS: u64 = 7_630;
/// Bytes that the bucket gives and the line is asked about at a time: most turns then need no look at the clock and ask
/// nobody.
const CREDIT_BYTES: u64 = 4096;
/// How long to leave a busy line alone.
const BUSY_NS: u64 = 10_000_000;

/// The line, for one console at a time: a console that asks again waits behind those that asked before.
pub(super) struct Share(Mutex<Line>);

struct Line {
    bucket: Bucket,
    /// Bytes that may be printed before the bucket and the line are asked again.
    credit: u64,
}

/// The right to print a slice.
pub(super) struct Turn<'a> {
    line: MutexGuard<'a, Line>,
    /// The turn was waited for, so that the clock has gone on.
    pub(super) is_late: bool,
}

impl Share {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Line { bucket: Bucket::new(BYTE_NS, BURST_BYTES), credit: 0 }))
    }

    /// Waits until `bytes` may be printed: it is the caller's turn, the line takes them, and all consoles together have
    /// not printed too much.
    pub(super) async fn turn(&self, bytes: u64) -> Turn<'_> {
        let (mut line, mut is_late) = match self.0.try_lock() {
            Some(line) => (line, false),
            None => (self.0.lock().await, true),
        };
        if line.credit < bytes {
            is_late = true;
            line.refill(bytes).await;
        }
        Turn { line, is_late }
    }
}

impl Line {
    async fn refill(&mut self, bytes: u64) {
        let more = CREDIT_BYTES.max(bytes);
        time::sleep_until(self.bucket.ready_at(more)).await;
        while console::is_busy() {
            time::sleep(BUSY_NS).await;
        }
        self.bucket.spend(time::now_ns(), more);
        self.credit += more;
    }
}

impl Turn<'_> {
    /// So many bytes were printed.
    pub(super) fn spend(mut self, bytes: u64) {
        self.line.credit = self.line.credit.saturating_sub(bytes);
    }
}
