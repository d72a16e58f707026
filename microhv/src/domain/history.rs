//! The last hypercalls of a vCPU, for a panic's report.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

const ENTRIES: u32 = u64::BITS / 8;
/// No call yet. No hypercall has this number.
const NONE: u8 = 0xff;

/// The numbers of the last 8 hypercalls, a byte each, the newest lowest. Only the vCPU itself writes the numbers, with
/// four instructions a call.
#[derive(Debug)]
pub struct CallHistory {
    calls: AtomicU64,
}

impl CallHistory {
    /// Notes hypercall `number`, of which the low byte is kept.
    #[inline(always)]
    pub fn record(&self, number: u32) {
        self.calls.store(self.calls.load(Relaxed) << 8 | u64::from(number as u8), Relaxed);
    }

    /// The numbers, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = u32> {
        let calls = self.calls.load(Relaxed);
        (0..ENTRIES).map(move |n| (calls >> (8 * n)) as u8).filter(|number| *number != NONE).map(u32::from)
    }
}

impl Default for CallHistory {
    /// No call yet.
    fn default() -> Self {
        Self { calls: AtomicU64::new(u64::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let history = CallHistory::default();
        assert_eq!(history.newest_first().count(), 0);
        history.record(7);
        history.record(0);
        assert!(history.newest_first().eq([0, 7]));
        for n in 0..100 {
            history.record(n);
        }
        assert!(history.newest_first().eq((92..100).rev()));
    }
}
