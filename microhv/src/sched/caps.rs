//! Caps: what a domain may run at most in each period.
//!
//! A domain with a cap has a budget for each period; what its vCPUs run is taken from that, on all CPUs. When nothing is left, the
//! domain rests until a period comes that pays what was run too long. A resting domain is stopped by [`RESTS`] in its
//! `pause_count`, so nothing else needs to look.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::pools::Policy;
use super::state::RESTS;
use super::state_of;
use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::platform::Platform;
use crate::time::state::{Runstate, TimerKind};

impl<P: Platform> Hypervisor<P> {
    /// Sets the most that a domain may run, in percent of a CPU; 0: no bound.
    pub(crate) fn set_cap(&self, domain: &Arc<Domain>, percent: u64) {
        self.sched.cpus.iter().for_each(|cpu| cpu.queue.lock().heed_caps());
        domain.sched.cap.set(percent, self.platform.now_ns());
        // The domain may go over to the null policy meanwhile, which knows no cap: its move sees this cap, or this sees the move.
        if percent != 0 && self.sched.pool_of(domain).0 == Policy::Null {
            domain.sched.cap.set(0, self.platform.now_ns());
        }
        self.go_on(domain);
        // Slices end by the new cap.
        domain.vcpus.iter().for_each(|vcpu| self.stop(vcpu));
    }

    /// A vCPU of a domain that rests has left its CPU: the timer ends the rest.
    #[cold]
    pub(super) fn rest(&self, domain: &Domain) {
        let end = domain.sched.cap.period_end();
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
