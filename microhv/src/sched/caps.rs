//! Caps: what a domain may run at most in each period.
//!
//! A domain with a cap has a budget for each period; what its vCPUs run is taken from that, on all CPUs. When nothing is left, the
//! domain rests until a period comes that pays what was run too long. A resting domain is stopped by [`RESTS`] in its
//! `pause_count`, so nothing else needs to look.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::state::RESTS;
use super::state_of;
use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::platform::Platform;
use crate::time::state::{Runstate, TimerKind};

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
    fn refill(&self, now: u64) -> bool {
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

    /// Takes what a vCPU of `domain` ran from the budget, if there is one. If nothing is left, the domain rests.
    #[cold]
    pub(super) fn pay(&self, domain: &Domain, ran: u64, now: u64) {
        if self.budget_ns.load(Ordering::Relaxed) == 0 {
            return;
        }
        let ran = ran.min(now.saturating_sub(self.set_at.load(Ordering::Relaxed)));
        self.left_ns.fetch_sub(ran as i64, Ordering::AcqRel);
        if !self.refill(now) {
            domain.pause_count.fetch_or(RESTS, Ordering::AcqRel);
        }
    }

    /// How long each of so many vCPUs of the domain may run, if there is a budget.
    pub(super) fn slice_ns(&self, vcpus: u64) -> Option<u64> {
        let left = self.left_ns.load(Ordering::Relaxed).max(0) as u64;
        let is_bound = self.budget_ns.load(Ordering::Relaxed) != 0;
        is_bound.then(|| (left / vcpus.max(1)).max(LEAST_SLICE_NS))
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Sets the most that a domain may run, in percent of a CPU; 0: no bound.
    pub(crate) fn set_cap(&self, domain: &Arc<Domain>, percent: u64) {
        self.sched.cpus.iter().for_each(|cpu| cpu.queue.lock().heed_caps());
        let cap = &domain.sched.cap;
        let budget = percent * (PERIOD_NS / 100);
        let now = self.platform.now_ns();
        cap.set_at.store(now, Ordering::Relaxed);
        cap.period_end.store(now + PERIOD_NS, Ordering::Relaxed);
        cap.left_ns.store(budget as i64, Ordering::Relaxed);
        cap.budget_ns.store(budget, Ordering::Release);
        self.go_on(domain);
        // Slices end by the new cap.
        domain.vcpus.iter().for_each(|vcpu| self.stop(vcpu));
    }

    /// A vCPU of a domain that rests has left its CPU: the timer ends the rest.
    #[cold]
    pub(super) fn rest(&self, domain: &Domain) {
        let end = domain.sched.cap.period_end.load(Ordering::Relaxed);
        if let Some(first) = domain.vcpus.first() {
            self.arm_timer(first, TimerKind::Period, Some(end));
        }
    }

    /// The period of a domain that rests has ended.
    pub(crate) fn period_ended(&self, domain: &Arc<Domain>, now: u64) {
        if domain.sched.cap.refill(now) {
            self.go_on(domain);
        } else {
            self.rest(domain);
        }
    }

    /// A vCPU may run but for the rest of its domain.
    #[cold]
    pub(super) fn waits_for_period(&self, domain: &Domain, vcpu: &Vcpu) {
        if state_of(domain, vcpu) == Runstate::Runnable {
            vcpu.time.lock().wait_to_run(self.platform.now_ns());
        }
    }

    /// Ends a domain's rest.
    fn go_on(&self, domain: &Arc<Domain>) {
        if domain.pause_count.fetch_and(!RESTS, Ordering::AcqRel) & RESTS != 0 {
            domain.vcpus.iter().for_each(|vcpu: &Vcpu| self.make_runnable(domain, vcpu));
        }
    }
}
