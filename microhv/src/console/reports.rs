//! How often guests may make the hypervisor say something.

use crate::sync::{Mutex, rank};

/// Reports about guests at once; each is at most nine lines.
const BURST: u64 = 32;
/// The time after which one more report may be made.
const EACH_NS: u64 = 500_000_000;

/// How many reports about guests may still be made.
#[derive(Debug, Default)]
pub struct Reports(Mutex<rank::Reports, State>);

#[derive(Debug, Default)]
struct State {
    /// The time that the reports made so far stand for: each takes [`EACH_NS`]. This time is ahead of the clock by at most
    /// [`BURST`] reports.
    paid_ns: u64,
    held_back: u64,
}

impl Reports {
    /// Allows a report at `now_ns`, and returns the number of reports held back since the last one. `None`: the
    /// caller does not make this report.
    pub fn allow(&self, now_ns: u64) -> Option<u64> {
        let mut state = self.0.lock();
        let paid_ns = state.paid_ns.max(now_ns) + EACH_NS;
        if paid_ns - now_ns > BURST * EACH_NS {
            state.held_back += 1;
            return None;
        }
        state.paid_ns = paid_ns;
        Some(core::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_in_a_while_and_the_others_are_counted() {
        let reports = Reports::default();
        for _ in 0..BURST {
            assert_eq!(reports.allow(7), Some(0));
        }
        assert_eq!(reports.allow(7), None);
        assert_eq!(reports.allow(7 + EACH_NS - 1), None);
        assert_eq!(reports.allow(7 + EACH_NS), Some(2));
        assert_eq!(reports.allow(7 + EACH_NS), None);
        let late = 1_000_000 * EACH_NS;
        let made = (0..100).filter(|_| reports.allow(late).is_some()).count();
        assert_eq!(made as u64, BURST, "time that passed in silence does not add up");
    }
}
