//! Turns of printing, since the consoles of all domains share one serial line. Carriage returns, which the serial
//! line adds to what an attached reader prints, are not counted here.

use pvrt::console;
use pvrt::executor::sync::{Mutex, MutexGuard};
use pvrt::executor::time;

use backends::console::Bucket;

/// All consoles together may print 128 KiB at once, and 128 KiB a second.
const BURST_BYTES: u64 = 128 * 1024;
const BYTE_NS: u64 = 7_630;
/// Bytes that are taken from the bucket, and checked with the serial line, at a time. Most turns then need neither
/// the clock nor the line.
const CREDIT_BYTES: u64 = 4096;
/// How long to wait before a busy line is asked again.
const BUSY_NS: u64 = 10_000_000;

/// The serial line, for one console at a time. A console that asks again waits behind those that asked
/// before.
pub(super) struct Share(Mutex<Line>);

struct Line {
    bucket: Bucket,
    /// Bytes that may be printed before the bucket and the line are asked again.
    credit: u64,
}

/// The right to print a slice.
pub(super) struct Turn<'a> {
    line: MutexGuard<'a, Line>,
    /// Whether the turn had to wait, so that the clock has gone on.
    pub(super) is_late: bool,
}

impl Share {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Line { bucket: Bucket::new(BYTE_NS, BURST_BYTES), credit: 0 }))
    }

    /// Waits until the caller has its turn, the serial line has room for `bytes`, and the bucket of all consoles has
    /// as many.
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
    /// Notes that `bytes` were printed.
    pub(super) fn spend(mut self, bytes: u64) {
        self.line.credit = self.line.credit.saturating_sub(bytes);
    }
}
