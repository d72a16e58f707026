//! The last hypercalls of a vCPU, for a panic's report.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

const ENTRIES: usize = 16;

/// A ring of the numbers of the last 16 hypercalls. Only the vCPU itself writes it.
#[derive(Debug, Default)]
pub struct CallHistory {
    next: AtomicU32,
    calls: [AtomicU32; ENTRIES],
}

impl CallHistory {
    /// Notes hypercall `number`.
    #[inline(always)]
    pub fn record(&self, number: u32) {
        let next = self.next.load(Relaxed);
        self.calls[next as usize % ENTRIES].store(number, Relaxed);
        self.next.store(next.wrapping_add(1), Relaxed);
    }

    /// The numbers, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = u32> + '_ {
        let next = self.next.load(Relaxed);
        (1..=ENTRIES as u32)
            .take_while(move |n| *n <= next)
            .map(move |n| self.calls[next.wrapping_sub(n) as usize % ENTRIES].load(Relaxed))
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
        history.record(8);
        assert!(history.newest_first().eq([8, 7]));
        for n in 0..100 {
            history.record(n);
        }
        assert!(history.newest_first().eq((84..100).rev()));
    }
}
