//! What a domain may run in each period.

use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// The length of a period.
const PERIOD_NS: u64 = 10_000_000;
/// The least time that is worth a slice, when little of a budget is left.
const LEAST_SLICE_NS: u64 = 100_000;

/// What a domain may run.
#[derive(Debug, Default)]
pub(crate) struct Cap {
    /// The budget for each period in ns; 0: no bound.
    budget_ns: AtomicU64,
    /// What is left of it; less than 0: what was run too long.
    left_ns: AtomicI64,
    /// When the present period ends.
    period_end: AtomicU64,
    /// When the cap was set: what was run before costs nothing.
    set_at: AtomicU64,
}

impl Cap {
    /// The most that the domain may run, in percent of a CPU; 0: no bound.
    pub(crate) fn percent(&self) -> u64 {
        self.budget_ns.load(Ordering::Relaxed) / (PERIOD_NS / 100)
    }

    /// Adds the budgets of the periods that ended by `now`. Whether the domain may run.
    pub(in crate::sched) fn refill(&self, now: u64) -> bool {
        let budget = self.budget_ns.load(Ordering::Relaxed);
        let end = self.period_end.load(Ordering::Relaxed);
        let periods = now.checked_sub(end).map_or(0, |late| late / PERIOD_NS + 1);
        let next = end.saturating_add(periods.saturating_mul(PERIOD_NS));
        // Of several CPUs one fills the budget.
        if periods != 0
            && self.period_end.compare_exchange(end, next, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            let fill = |left: i64| {
                let full = left.saturating_add_unsigned(periods.saturating_mul(budget));
                Some(full.min(budget as i64))
            };
            let _ = self.left_ns.fetch_update(Ordering::AcqRel, Ordering::Relaxed, fill);
        }
        budget == 0 || self.left_ns.load(Ordering::Acquire) > 0
    }

    /// Takes what a vCPU of the domain ran from the budget, if there is one. `false`: nothing is left.
    #[cold]
    pub(in crate::sched) fn pay(&self, ran: u64, now: u64) -> bool {
        if self.budget_ns.load(Ordering::Relaxed) == 0 {
            return true;
        }
        let ran = ran.min(now.saturating_sub(self.set_at.load(Ordering::Relaxed)));
        self.left_ns.fetch_sub(ran as i64, Ordering::AcqRel);
        self.refill(now)
    }

    /// Sets the cap at `now`.
    pub(in crate::sched) fn set(&self, percent: u64, now: u64) {
        let budget = percent * (PERIOD_NS / 100);
        self.set_at.store(now, Ordering::Relaxed);
        self.period_end.store(now + PERIOD_NS, Ordering::Relaxed);
        self.left_ns.store(budget as i64, Ordering::Relaxed);
        self.budget_ns.store(budget, Ordering::Release);
    }

    /// When the present period ends.
    pub(in crate::sched) fn period_end(&self) -> u64 {
        self.period_end.load(Ordering::Relaxed)
    }

    /// How long each of so many vCPUs of the domain may run, if there is a budget.
    pub(in crate::sched) fn slice_ns(&self, vcpus: u64) -> Option<u64> {
        let left = self.left_ns.load(Ordering::Relaxed).max(0) as u64;
        let is_bound = self.budget_ns.load(Ordering::Relaxed) != 0;
        is_bound.then(|| (left / vcpus.max(1)).max(LEAST_SLICE_NS))
    }
}
