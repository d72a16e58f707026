//! The timers of vCPUs: setting them, and what their firing does.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::types::DomId;

use super::{Runstate, TimerId, VcpuTime};
use crate::Hypervisor;
use crate::domain::{Domain, PauseFlags, Vcpu};
use crate::platform::{CpuId, Platform};
use crate::sched::{SOFTIRQ_SCHEDULE, SOFTIRQ_TIMER};
use ring_abi::evtchn::VIRQ_TIMER;
use ring_abi::sched::SHUTDOWN_WATCHDOG;

/// Which of a vCPU's timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerKind {
    /// The periodic `VIRQ_TIMER`, set only while the vCPU runs.
    Periodic,
    /// `VCPUOP_set_singleshot_timer` and `set_timer_op`.
    Singleshot,
    /// The timeout of `SCHEDOP_poll`.
    Poll,
    /// `SCHEDOP_watchdog`: on vCPU 0 alone, for the domain.
    FirstWatchdog,
    /// The second of these.
    SecondWatchdog,
}

impl TimerKind {
    const fn stops_a_domain(self) -> bool {
        matches!(self, Self::FirstWatchdog | Self::SecondWatchdog)
    }
}

/// Timers that fire together at most, before interrupts are taken again: guests choose how many are due at one instant.
const FIRED_TOGETHER: u32 = 32;

/// To wake so many vCPUs that poll events takes as long as to fire many timers.
const HERD: u32 = 8;

/// Timers of a vCPU.
const KINDS: [TimerKind; 5] = [
    TimerKind::Periodic,
    TimerKind::Singleshot,
    TimerKind::Poll,
    TimerKind::FirstWatchdog,
    TimerKind::SecondWatchdog,
];

/// Whose timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerKey {
    domain: DomId,
    vcpu: u32,
    kind: TimerKind,
}

/// The timers of one vCPU, in the queue of the CPU that made them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VcpuTimers {
    cpu: CpuId,
    ids: [TimerId; KINDS.len()],
}

impl VcpuTime {
    /// One of the vCPU's timers, and in whose queue it is.
    #[inline]
    fn timer(&self, kind: TimerKind) -> Option<(CpuId, TimerId)> {
        self.timers.as_ref().map(|timers| (timers.cpu, timers.ids[kind as usize]))
    }

    /// The timer of the periodic `VIRQ_TIMER`, and its period, unless that is stopped.
    #[inline]
    fn periodic(&self) -> Option<(CpuId, TimerId, u64)> {
        let (cpu, id) = self.timer(TimerKind::Periodic).filter(|_| self.period_ns != 0)?;
        Some((cpu, id, self.period_ns))
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Makes the timers of a new vCPU, and room for the vCPU to wait for its CPU. `false`: there is no memory.
    pub(crate) fn create_timers(&self, vcpu: &Vcpu) -> bool {
        let cpu = CpuId::new(vcpu.cpu_id.load(Ordering::Relaxed)).unwrap_or(CpuId::BOOT);
        let may_spend = |bytes| self.may_spend(bytes);
        let mut queue = self.time.queue(cpu).lock();
        if !queue.make_room(KINDS.len(), may_spend) {
            return false;
        }
        let ids =
            KINDS.map(|kind| queue.insert(TimerKey { domain: vcpu.domain_id, vcpu: vcpu.id.raw(), kind }));
        let vcpus = queue.most().div_ceil(KINDS.len());
        drop(queue);
        vcpu.time.lock().timers = Some(VcpuTimers { cpu, ids });
        self.sched.make_room(cpu, vcpus, may_spend)
    }

    /// Ends the timers of a vCPU that will run no more: whether it had any.
    pub(crate) fn remove_timers_of(&self, vcpu: &Vcpu) -> bool {
        let Some(timers) = vcpu.time.lock().timers.take() else { return false };
        let mut queue = self.time.queue(timers.cpu).lock();
        timers.ids.into_iter().for_each(|id| queue.remove(id));
        true
    }

    /// Ends the timers of a dying domain's vCPUs. `false`: something else waits, and some are left.
    pub(crate) fn remove_timers(&self, domain: &Domain) -> bool {
        domain.vcpus.iter().all(|vcpu| !self.remove_timers_of(vcpu) || !self.platform.work_pending())
    }

    /// Sets one of a vCPU's timers to a system time, or stops it.
    #[inline]
    pub fn arm_timer(&self, vcpu: &Vcpu, kind: TimerKind, deadline_ns: Option<u64>) {
        let timer = vcpu.time.lock().timer(kind);
        if let Some((cpu, id)) = timer {
            self.arm(cpu, id, deadline_ns);
        }
    }

    #[inline(never)]
    fn arm(&self, cpu: CpuId, id: TimerId, deadline_ns: Option<u64>) {
        let mut queue = self.time.queue(cpu).lock();
        queue.set(id, deadline_ns);
        let too_late = deadline_ns.is_some_and(|deadline| queue.is_too_late_for(deadline));
        drop(queue);
        if too_late {
            self.raise_softirq(cpu, SOFTIRQ_TIMER);
        }
    }

    /// Makes sure that this CPU's timer work is done at `deadline_ns`, which [`Hypervisor::run_timers`] finds by itself.
    pub(crate) fn wake_by(&self, cpu: CpuId, deadline_ns: u64) {
        if self.time.queue(cpu).lock().is_too_late_for(deadline_ns) {
            self.raise_softirq(cpu, SOFTIRQ_TIMER);
        }
    }

    /// When one of a vCPU's timers fires.
    pub fn timer_deadline(&self, vcpu: &Vcpu, kind: TimerKind) -> Option<u64> {
        let timers = vcpu.time.lock().timers?;
        self.time.queue(timers.cpu).lock().deadline(timers.ids[kind as usize])
    }

    /// Fires what is due on this CPU and programs its timer for what comes next: at once, if so many are due that some
    /// are left.
    pub(crate) fn run_timers(&self, cpu: CpuId) {
        let now = self.platform.now_ns();
        for _ in 0..FIRED_TOGETHER {
            let due = self.time.queue(cpu).lock().pop_due(now);
            let Some(key) = due else { break };
            if let Some(domain) = self.domains.get(key.domain)
                && let Some(vcpu) = domain.vcpu(key.vcpu)
            {
                // An event may wake all of them.
                let takes_long = key.kind.stops_a_domain() || domain.events.pollers() >= HERD;
                self.fire(&domain, vcpu, key.kind, now);
                if takes_long {
                    break; // this one took as long as many others
                }
            }
        }
        // Under the lock: whoever changes the slice's end from now on sees what the timer was set for.
        let mut queue = self.time.queue(cpu).lock();
        let slice_end = self.sched.slice_end(cpu);
        let next = queue.interrupt_at(slice_end.filter(|end| *end > now));
        drop(queue);
        if slice_end.is_some_and(|end| end <= now) {
            self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
        }
        self.platform.set_timer(next);
        // With the timer set, which ends this when the next deadline has come.
        self.reap_dead();
    }

    fn fire(&self, domain: &Arc<Domain>, vcpu: &Vcpu, kind: TimerKind, now: u64) {
        match kind {
            TimerKind::Singleshot => self.send_vcpu_virq(domain, vcpu, VIRQ_TIMER),
            TimerKind::Periodic => {
                self.send_vcpu_virq(domain, vcpu, VIRQ_TIMER);
                let mut time = vcpu.time.lock();
                time.last_period_ns = now;
                let periodic = time.periodic();
                drop(time);
                if vcpu.running_on().is_some()
                    && let Some((cpu, id, period)) = periodic
                {
                    self.arm(cpu, id, Some(now + period));
                }
            }
            TimerKind::Poll => {
                if vcpu.pause_flags.load(Ordering::Acquire) & PauseFlags::POLLING != 0 {
                    self.end_poll(domain, vcpu);
                }
            }
            TimerKind::FirstWatchdog | TimerKind::SecondWatchdog => {
                if self.may_report() {
                    log::warn!("{domain:?}: watchdog");
                }
                self.shutdown_domain(domain, SHUTDOWN_WATCHDOG);
            }
        }
    }

    /// A vCPU begins to run at `now`: its periodic timer runs again, and fires at once when a period has passed.
    pub(crate) fn begin_running(&self, domain: &Arc<Domain>, vcpu: &Vcpu, now: u64) {
        let mut time = vcpu.time.lock();
        time.enter(Runstate::Running, now);
        let Some((cpu, id, period)) = time.periodic() else { return };
        let due = now.saturating_sub(time.last_period_ns) >= period;
        if due {
            time.last_period_ns = now;
        }
        let next = time.last_period_ns + period;
        drop(time);
        if due {
            self.send_vcpu_virq(domain, vcpu, VIRQ_TIMER);
        }
        self.arm(cpu, id, Some(next));
    }

    /// A vCPU stops running at `now` and is in `state` from then on: its periodic timer stops.
    pub(crate) fn end_running(&self, vcpu: &Vcpu, state: Runstate, now: u64) {
        let mut time = vcpu.time.lock();
        time.enter(state, now);
        let periodic = time.periodic();
        drop(time);
        if let Some((cpu, id, _)) = periodic {
            self.arm(cpu, id, None);
        }
    }

    /// The timer interrupt of this CPU.
    pub fn timer_interrupt(&self, cpu: CpuId) {
        self.raise_softirq(cpu, SOFTIRQ_TIMER);
    }
}
