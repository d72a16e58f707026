//! The timers of vCPUs: setting them, and what their firing does.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::VIRQ_TIMER;
use ring_abi::sched::SHUTDOWN_WATCHDOG;
use ring_abi::types::{DomId, VcpuId};

use super::state::{DEFAULT_PERIOD_NS, Runstate, TimerId, TimerKind, VcpuTimers};
use crate::Hypervisor;
use crate::domain::{Domain, PauseFlags, Vcpu};
use crate::platform::{CpuId, Platform, SOFTIRQ_SCHEDULE, SOFTIRQ_TIMER};
use crate::sync::lock_pair;

/// How many timers fire before interrupts are taken again: guests choose how many timers are due at one instant.
const FIRED_TOGETHER: u32 = 32;

/// Waking so many vCPUs that poll events takes as long as firing many timers.
const HERD: u32 = 8;

/// Whose timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimerKey {
    domain: DomId,
    vcpu: VcpuId,
    kind: TimerKind,
}

impl<P: Platform> Hypervisor<P> {
    /// Makes the timers of a new vCPU, and room for the vCPU and its timers in the queues of all CPUs. `false`: there is no
    /// memory.
    #[must_use]
    pub(crate) fn create_timers(&self, vcpu: &Vcpu) -> bool {
        // First the count, then the CPUs: a CPU that comes meanwhile makes room for this vCPU.
        let vcpus = self.time.vcpus.fetch_add(1, Ordering::SeqCst) + 1;
        if !self.sched.known().all(|cpu| self.make_room_on(cpu, vcpus)) {
            self.time.vcpus.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        let cpu = vcpu.sched.cpu();
        let key = |kind| TimerKey { domain: vcpu.domain_id, vcpu: vcpu.id, kind };
        let mut time = vcpu.time.lock();
        let mut queue = self.time.queue(cpu).lock();
        let ids = TimerKind::ALL.map(|kind| queue.insert(key(kind)));
        (time.period_ns, time.timers) = (DEFAULT_PERIOD_NS, Some(VcpuTimers { cpu, ids }));
        true
    }

    /// Makes room for so many vCPUs in all in the queues of a CPU. `false`: there is no memory.
    pub(crate) fn make_room_on(&self, cpu: CpuId, vcpus: usize) -> bool {
        let may_spend = |bytes| self.may_spend(bytes);
        self.time.make_room(cpu, vcpus, may_spend) && self.sched.make_room(cpu, vcpus, may_spend)
    }

    /// Moves the timers of a vCPU that now runs on `cpu`.
    #[cold]
    fn move_timers(&self, timers: &mut VcpuTimers, cpu: CpuId) {
        let queue = |cpu: CpuId| (cpu.raw() as u16, self.time.queue(cpu));
        let (mut from, Some(mut to)) = lock_pair(queue(timers.cpu), queue(cpu)) else { return };
        timers.cpu = cpu;
        let deadlines = timers.ids.iter_mut().filter_map(|id| from.move_to(&mut to, id));
        if deadlines.min().is_some_and(|deadline| to.is_too_late_for(deadline)) {
            self.raise_softirq(cpu, SOFTIRQ_TIMER);
        }
    }

    /// Moves all timers of `cpu`, which runs no vCPU any more, to the CPU `to`. `false`: something else waits, and some are left.
    #[must_use]
    pub(crate) fn move_all_timers(&self, cpu: CpuId, to: CpuId) -> bool {
        loop {
            let first = self.time.queue(cpu).lock().first();
            let Some(key) = first else { return true };
            let domain = self.domains.get(key.domain);
            if let Some(vcpu) = domain.as_ref().and_then(|domain| domain.vcpu(key.vcpu.raw()))
                && let Some(timers) = vcpu.time.lock().timers.as_mut().filter(|timers| timers.cpu == cpu)
            {
                self.move_timers(timers, to);
            }
            if self.platform.work_pending() {
                return false;
            }
        }
    }

    /// Sets one of the timers of the vCPU that runs here to a system time, or stops it.
    #[inline]
    pub fn arm_own_timer(&self, vcpu: &Vcpu, kind: TimerKind, deadline_ns: Option<u64>) {
        // Under the lock: another CPU may move the timers of a vCPU that runs, too. (I55)
        let time = vcpu.time.lock();
        if let Some((cpu, id)) = time.timer(kind) {
            self.arm(cpu, id, deadline_ns);
        }
    }

    /// Sets one of a vCPU's timers to a system time, or stops it.
    #[cold]
    pub fn arm_timer(&self, vcpu: &Vcpu, kind: TimerKind, deadline_ns: Option<u64>) {
        // Under the lock, since the timers move with the vCPU.
        let mut time = vcpu.time.lock();
        let may_use = vcpu.sched.allowed();
        if deadline_ns.is_some()
            && let Some(timers) = time.timers.as_mut().filter(|timers| !may_use.contains(timers.cpu))
        {
            // The CPU on which the vCPU ran last may belong to another's vCPU now, which nobody's timers are to disturb. (I57)
            let me = Some(self.platform.cpu()).filter(|me| may_use.contains(*me));
            let home = me.or_else(|| may_use.iter().next()).unwrap_or(CpuId::BOOT);
            self.move_timers(timers, home);
        }
        if let Some((cpu, id)) = time.timer(kind) {
            self.arm(cpu, id, deadline_ns);
            // A CPU that goes first leaves the online ones, then moves its timers: one of both moves this timer.
            if deadline_ns.is_some()
                && !self.sched.online().contains(cpu)
                && let Some(timers) = &mut time.timers
            {
                self.move_timers(timers, self.platform.cpu());
            }
        }
    }

    #[inline(never)]
    pub(super) fn arm(&self, cpu: CpuId, id: TimerId, deadline_ns: Option<u64>) {
        let mut queue = self.time.queue(cpu).lock();
        queue.set(id, deadline_ns);
        let too_late = deadline_ns.is_some_and(|deadline| queue.is_too_late_for(deadline));
        drop(queue);
        if too_late {
            self.raise_softirq(cpu, SOFTIRQ_TIMER);
        }
    }

    /// Lets this CPU's timer interrupt by `deadline_ns`, the end of a slice, which [`Hypervisor::run_timers`] asks the scheduler
    /// for.
    pub(crate) fn wake_by(&self, cpu: CpuId, deadline_ns: u64) {
        if self.time.queue(cpu).lock().is_too_late_for(deadline_ns) {
            self.raise_softirq(cpu, SOFTIRQ_TIMER);
        }
    }

    /// Fires the timers that are due on this CPU, and sets the CPU's timer for the next deadline, which is past when so many
    /// were due that some are left.
    pub(crate) fn run_timers(&self, cpu: CpuId) {
        let now = self.platform.now_ns();
        for _ in 0..FIRED_TOGETHER {
            let due = self.time.queue(cpu).lock().pop_due(now);
            let Some(key) = due else { break };
            if let Some(domain) = self.domains.get(key.domain)
                && let Some(vcpu) = domain.vcpu(key.vcpu.raw())
            {
                let is_of_all_vcpus = matches!(
                    key.kind,
                    TimerKind::FirstWatchdog | TimerKind::SecondWatchdog | TimerKind::Period
                );
                // An event may wake all vCPUs that poll.
                let takes_long = is_of_all_vcpus || domain.events.pollers() >= HERD;
                self.fire(&domain, vcpu, key.kind, now);
                if takes_long {
                    break; // this timer took as long as many others
                }
            }
        }
        // The timer is set under the lock, so that code which changes the slice's end later sees the deadline
        // that was set.
        let mut queue = self.time.queue(cpu).lock();
        let slice_end = self.sched.slice_end(cpu);
        let next = queue.interrupt_at(now, slice_end.filter(|end| *end > now));
        drop(queue);
        if slice_end.is_some_and(|end| end <= now) {
            self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
        }
        self.platform.set_timer(next);
        // After the timer is set: the timer ends this when the next deadline has come.
        self.reap_dead();
    }

    fn fire(&self, domain: &Arc<Domain>, vcpu: &Vcpu, kind: TimerKind, now: u64) {
        match kind {
            TimerKind::Singleshot => self.send_vcpu_virq(domain, vcpu, VIRQ_TIMER),
            TimerKind::Periodic => self.tick(domain, vcpu, now),
            TimerKind::Poll => {
                if vcpu.pause_flags.load(Ordering::Acquire) & PauseFlags::POLLING != 0 {
                    self.wake(domain, vcpu, PauseFlags::WAITING);
                }
            }
            TimerKind::Period => self.period_ended(domain, now),
            TimerKind::FirstWatchdog | TimerKind::SecondWatchdog => {
                if self.may_report() {
                    log::warn!("{domain:?}: watchdog");
                }
                self.shutdown_domain(domain, SHUTDOWN_WATCHDOG);
            }
        }
    }

    /// The periodic timer of a vCPU has fired. A vCPU that does not run gets its tick when it begins to run.
    fn tick(&self, domain: &Arc<Domain>, vcpu: &Vcpu, now: u64) {
        let mut time = vcpu.time.lock();
        if time.state != Runstate::Running {
            return;
        }
        time.last_period_ns = time.last_period_ns.max(now);
        if let Some((cpu, id, period)) = time.periodic() {
            self.arm(cpu, id, Some(now + period));
        }
        drop(time);
        self.send_vcpu_virq(domain, vcpu, VIRQ_TIMER);
    }

    /// Sets the period of a vCPU's periodic timer; 0 stops the timer.
    pub(crate) fn set_period(&self, vcpu: &Vcpu, period_ns: u64) {
        let now = self.platform.now_ns();
        let mut time = vcpu.time.lock();
        (time.period_ns, time.last_period_ns) = (period_ns, now);
        if let Some((cpu, id)) = time.timer(TimerKind::Periodic) {
            let is_set = period_ns != 0 && time.state == Runstate::Running;
            self.arm(cpu, id, is_set.then_some(now + period_ns));
        }
    }

    /// Restarts the periodic timer of a vCPU that begins to run at `now`. The timer fires at once if a period
    /// has passed.
    pub(crate) fn begin_running(&self, domain: &Arc<Domain>, vcpu: &Vcpu, cpu: CpuId, now: u64) {
        let mut time = vcpu.time.lock();
        time.enter(Runstate::Running, now);
        if let Some(timers) = time.timers.as_mut().filter(|timers| timers.cpu != cpu) {
            self.move_timers(timers, cpu);
        }
        let Some((cpu, id, period)) = time.periodic() else { return };
        let due = now.saturating_sub(time.last_period_ns) >= period;
        if due {
            time.last_period_ns = now;
        }
        // Under the lock, since another CPU may end the timers: the domain may be destroyed before this CPU has seen that. (I55)
        self.arm(cpu, id, Some(time.last_period_ns + period));
        drop(time);
        if due {
            self.send_vcpu_virq(domain, vcpu, VIRQ_TIMER);
        }
    }

    /// A vCPU stops running at `now` and is in `state` from then on: its periodic timer stops.
    pub(crate) fn end_running(&self, vcpu: &Vcpu, state: impl FnOnce() -> Runstate, now: u64) {
        let mut time = vcpu.time.lock();
        // The state is read under the lock: a CPU that wakes the vCPU amid this finds the state entered, or is seen here.
        time.enter(state(), now);
        // Under the lock, as in `begin_running`.
        if let Some((cpu, id, _)) = time.periodic() {
            self.arm(cpu, id, None);
        }
    }
}
