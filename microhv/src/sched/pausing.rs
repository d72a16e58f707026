//! Blocking, waking and pausing: what lets a vCPU run, or keeps the vCPU from running.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use crate::Hypervisor;
use crate::domain::{Domain, PauseFlags, Vcpu};
use crate::platform::{Platform, SOFTIRQ_SCHEDULE};
use crate::time::state::TimerKind;

impl<P: Platform> Hypervisor<P> {
    /// An event came for a vCPU: a blocked vCPU wakes, and a vCPU that runs elsewhere looks at once.
    #[inline]
    pub fn kick_vcpu(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        if vcpu.pause_flags.load(Ordering::Acquire) & PauseFlags::BLOCKED != 0 {
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
        let old = vcpu.pause_flags.fetch_and(!flags, Ordering::AcqRel);
        if old & flags & PauseFlags::POLLING != 0 {
            domain.events.poller_left(vcpu);
            self.arm_timer(vcpu, TimerKind::Poll, None);
        }
        if old & flags != 0 {
            self.make_runnable(domain, vcpu);
        }
    }

    /// Sets reasons for which a vCPU does not run.
    pub(crate) fn hold(&self, vcpu: &Vcpu, flags: u32) {
        vcpu.pause_flags.fetch_or(flags, Ordering::AcqRel);
        self.stop(vcpu);
    }

    /// The vCPU, if it runs, leaves its CPU at the next chance.
    pub(super) fn stop(&self, vcpu: &Vcpu) {
        if let Some(cpu) = vcpu.running_on() {
            self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
        }
    }

    /// Waits until `vcpu` has left every other CPU, so that its registers are saved.
    pub(crate) fn wait_stopped(&self, vcpu: &Vcpu) {
        while vcpu.running_on().is_some_and(|cpu| cpu != self.platform.cpu()) {
            core::hint::spin_loop();
        }
    }

    /// Lets the vCPUs that wait for this CPU run first.
    pub(crate) fn yield_now(&self, vcpu: &Vcpu) {
        let cpu = self.platform.cpu();
        if self.sched.cpus[cpu.index()].queue.lock().waiting().next().is_some() {
            vcpu.sched.yielded.store(true, Ordering::Relaxed);
            self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
        }
    }

    /// Keeps a vCPU from running once more.
    pub fn pause_vcpu(&self, vcpu: &Vcpu) {
        vcpu.pause_count.fetch_add(1, Ordering::AcqRel);
        self.stop(vcpu);
        self.wait_stopped(vcpu);
    }

    /// Ends one [`Hypervisor::pause_vcpu`].
    pub fn unpause_vcpu(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        if vcpu.pause_count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.make_runnable(domain, vcpu);
        }
    }

    /// Makes a vCPU take an NMI when the vCPU runs next. A blocked vCPU wakes for that; a vCPU that runs elsewhere leaves its
    /// CPU and comes back.
    pub(crate) fn send_nmi(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        self.pause_vcpu(vcpu);
        vcpu.nmi_pending.store(true, Ordering::Release);
        self.wake(domain, vcpu, PauseFlags::WAITING);
        self.unpause_vcpu(domain, vcpu);
    }

    /// Keeps all vCPUs of a domain from running once more. When this returns, they run nowhere, except for a caller of the
    /// same domain.
    pub fn pause_domain(&self, domain: &Domain) {
        domain.pause_count.fetch_add(1, Ordering::AcqRel);
        for vcpu in &domain.vcpus {
            self.stop(vcpu);
        }
        for vcpu in &domain.vcpus {
            self.wait_stopped(vcpu);
        }
    }

    /// Ends one [`Hypervisor::pause_domain`].
    pub fn unpause_domain(&self, domain: &Arc<Domain>) {
        if domain.pause_count.fetch_sub(1, Ordering::AcqRel) == 1 {
            for vcpu in &domain.vcpus {
                self.make_runnable(domain, vcpu);
            }
        }
    }
}
