//! Blocking, waking and pausing: what lets a vCPU run, or keeps the vCPU from running.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use crate::Hypervisor;
use crate::domain::{Domain, PauseFlags, Vcpu};
use crate::platform::{CpuId, Platform, SOFTIRQ_SCHEDULE};
use crate::sync::words::AtomicU32;
use crate::sync::{may_come_between, may_come_between_words, wait_for};

use super::is_paused;

/// Counts one more pause. A full barrier: who pauses then looks where the domain's vCPUs run.
fn count_pause(count: &AtomicU32) {
    count.fetch_add(1, Ordering::SeqCst);
}

impl<P: Platform> Hypervisor<P> {
    /// An event came for a vCPU: a blocked vCPU wakes, and a vCPU that runs elsewhere looks at once.
    #[inline]
    pub fn kick_vcpu(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        if vcpu.is_blocked() {
            self.wake(domain, vcpu, PauseFlags::WAITING);
        } else if let Some(cpu) = vcpu.running_on()
            && cpu != self.platform.cpu()
        {
            self.platform.kick(cpu);
        }
    }

    /// Clears reasons for which a vCPU does not run, and lets the vCPU run if none is left.
    #[cold]
    pub(crate) fn wake(&self, domain: &Arc<Domain>, vcpu: &Vcpu, flags: u32) {
        may_come_between_words();
        let old = vcpu.pause_flags.fetch_and(!flags, Ordering::AcqRel);
        if old & flags & PauseFlags::POLLING != 0 {
            self.end_poll(domain, vcpu);
        }
        if old & flags != 0 {
            self.make_runnable(domain, vcpu);
        }
    }

    /// Sets reasons for which a vCPU does not run. A full barrier.
    pub(crate) fn hold(&self, vcpu: &Vcpu, flags: u32) {
        vcpu.set_reasons(flags);
        self.stop(vcpu);
    }

    /// The vCPU, if it runs, leaves its CPU at the next chance.
    pub(super) fn stop(&self, vcpu: &Vcpu) {
        if let Some(cpu) = vcpu.running_on() {
            self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
        }
    }

    /// Waits until no other CPU runs `vcpu` or has some of its state. `false`: another CPU may wait for this one meanwhile, and the
    /// caller, who holds no lock, gives up. So two CPUs that wait for each other's vCPUs both leave theirs.
    #[must_use]
    fn wait_stopped(&self, vcpu: &Vcpu) -> bool {
        self.has_stopped(vcpu).unwrap_or_else(|| wait_for(|| self.has_stopped(vcpu)))
    }

    /// What [`Self::wait_stopped`] answers, once that is known.
    fn has_stopped(&self, vcpu: &Vcpu) -> Option<bool> {
        let me = self.platform.cpu();
        let (runs, holder) = (vcpu.running_on(), vcpu.holder());
        let Some(other) = runs.or(holder).filter(|&cpu| cpu != me) else { return Some(true) };
        if self.may_be_waited_for(me) {
            return Some(false);
        }
        if runs.is_none() {
            self.platform.ask_to_let_go(other);
        }
        None
    }

    /// Whether another CPU may wait until `me`, which this runs on, leaves its vCPU. A CPU that pauses the vCPU's domain has counted
    /// the pause, then asked `me` to choose anew. `me` is asked for other work too, for which nobody waits.
    fn may_be_waited_for(&self, me: CpuId) -> bool {
        self.sched.pending(me).load(Ordering::Acquire) & SOFTIRQ_SCHEDULE != 0
            && self.sched.running(me).is_none_or(|current| is_paused(current.domain()))
    }

    /// Lets the vCPUs that wait for this CPU run first.
    pub(crate) fn yield_now(&self, vcpu: &Vcpu) {
        let cpu = self.platform.cpu();
        if self.sched.cpus[cpu.index()].queue.lock().waiting().next().is_some() {
            vcpu.sched.yielded.store(true, Ordering::Relaxed);
            self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
        }
    }

    /// Makes a vCPU take an NMI: at once if the vCPU runs, else when it runs next. A blocked vCPU wakes for that.
    pub(crate) fn send_nmi(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        vcpu.nmi_pending.store(true, Ordering::SeqCst);
        self.wake(domain, vcpu, PauseFlags::WAITING);
        // The CPU looks for the NMI when it has looked who runs next.
        self.stop(vcpu);
    }

    /// Keeps all vCPUs of a domain from running once more, without waiting until they have left their CPUs.
    pub(crate) fn hold_domain(&self, domain: &Domain) {
        may_come_between();
        count_pause(&domain.pause_count);
        for vcpu in &domain.vcpus {
            self.stop(vcpu);
        }
    }

    /// Keeps all vCPUs of a domain from running once more. When this returns, they run nowhere, except for a caller of the
    /// same domain, and all of their state is in memory. `false`: another CPU may wait for this one meanwhile, and nothing has
    /// changed; the caller tries again later.
    #[must_use]
    pub fn pause_domain(&self, domain: &Arc<Domain>) -> bool {
        self.hold_domain(domain);
        let is_paused = domain.vcpus.iter().all(|vcpu| self.wait_stopped(vcpu));
        if !is_paused {
            self.unpause_domain(domain);
        }
        is_paused
    }

    /// Whether `domain`, of which this CPU is about to run a vCPU, was paused since the CPU chose the vCPU. The CPU then
    /// chooses again, and does not touch the vCPU.
    #[inline]
    pub fn must_leave(&self, domain: &Domain) -> bool {
        let is_paused = is_paused(domain);
        if is_paused {
            self.raise_softirq(self.platform.cpu(), SOFTIRQ_SCHEDULE);
        }
        is_paused
    }

    /// Ends one [`Hypervisor::pause_domain`] or [`Hypervisor::hold_domain`].
    pub fn unpause_domain(&self, domain: &Arc<Domain>) {
        if domain.pause_count.fetch_sub(1, Ordering::AcqRel) == 1 {
            for vcpu in &domain.vcpus {
                self.make_runnable(domain, vcpu);
            }
        }
    }
}

#[cfg(test)]
#[cfg(loom)]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::sched::counts_pauses;

    /// A CPU begins to run a vCPU, and looks whether its domain is paused; another CPU pauses the domain, and looks who runs the vCPU.
    #[test]
    fn a_cpu_leaves_a_vcpu_that_is_paused_or_is_waited_for() {
        loom::model(|| {
            let shared = Arc::new((Vcpu::default(), AtomicU32::new(0)));
            let (vcpu, count) = &*shared;
            vcpu.set_running_on(None);
            let runner = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (vcpu, count) = &*shared;
                    vcpu.set_running_on(CpuId::new(1));
                    counts_pauses(count) // as `must_leave` asks
                })
            };
            count_pause(count);
            let is_waited_for = vcpu.running_on().is_some();
            assert!(runner.join().unwrap() || is_waited_for, "the vCPU runs, and the pause does not know");
        });
    }
}
