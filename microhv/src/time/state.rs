//! What a vCPU holds of time: its runstate, the areas that show its guest the time, and its timers.

mod shown;

use ring_abi::types::GuestVa;

use self::shown::ShownOn;
use crate::platform::CpuId;

/// What a vCPU is doing: `RUNSTATE_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Runstate {
    /// The vCPU runs.
    Running = 0,
    /// The vCPU could run.
    Runnable = 1,
    /// The vCPU waits for an event.
    Blocked = 2,
    /// The vCPU is down or paused.
    #[default]
    Offline = 3,
}

/// A second `vcpu_time_info`, which a guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeArea {
    /// Where the guest wants it.
    pub va: GuestVa,
    /// `TimeParams::generation` that the area shows; 0: none.
    pub published: u32,
}

/// Names a timer of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId(pub(super) u32);

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
    /// The domain's second watchdog.
    SecondWatchdog,
    /// The end of the period in which a domain has run as much as its cap allows: on vCPU 0 alone.
    Period,
}

impl TimerKind {
    /// The timers of a vCPU.
    pub(crate) const ALL: [Self; 6] = [
        Self::Periodic,
        Self::Singleshot,
        Self::Poll,
        Self::FirstWatchdog,
        Self::SecondWatchdog,
        Self::Period,
    ];
}

/// The timers of one vCPU, in the queue of the CPU on which the vCPU last began to run; of another if the vCPU may not run there
/// any more, or the CPU has gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VcpuTimers {
    pub(super) cpu: CpuId,
    pub(super) ids: [TimerId; TimerKind::ALL.len()],
}

/// Period of the `VIRQ_TIMER` that every new vCPU has: 100 Hz.
pub(super) const DEFAULT_PERIOD_NS: u64 = 10_000_000;

/// `struct vcpu_runstate_info`: state u32, entry time @8, four times @10.
pub(crate) type RunstateInfo = [u64; 6];

/// The clock, runstate and timers of one vCPU. Guarded by `Vcpu::time`. A new vCPU is down since boot.
#[derive(Debug, Default)]
pub struct VcpuTime {
    /// What the vCPU does since `entry_ns`.
    pub state: Runstate,
    /// System time at which `state` began.
    pub entry_ns: u64,
    /// ns spent in each state before `entry_ns`.
    pub spent_ns: [u64; 4],
    /// The registered runstate area.
    pub runstate_area: Option<GuestVa>,
    /// The registered time area.
    pub time_area: Option<TimeArea>,
    /// Period of the periodic `VIRQ_TIMER`; 0: stopped.
    pub period_ns: u64,
    /// When the periodic timer last fired.
    pub last_period_ns: u64,
    /// `TimeParams::generation` that `vcpu_info` shows; 0: none.
    pub published: u32,
    /// Whether the timer of `SCHEDOP_poll` may be set.
    pub(super) poll_ends: bool,
    /// By which CPU's TSC the clock counts.
    pub(super) shown_on: ShownOn,
    /// `None`: not made yet, or ended.
    pub(crate) timers: Option<VcpuTimers>,
}

impl VcpuTime {
    /// Begins `state` at `now_ns`, or where the last state began if that is later: the caller read the clock before it had the
    /// lock.
    pub fn enter(&mut self, state: Runstate, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.entry_ns);
        self.spent_ns[self.state as usize] += passed;
        self.state = state;
        self.entry_ns += passed;
    }

    /// The vCPU could run from `now_ns` on.
    #[inline]
    pub(crate) fn wait_to_run(&mut self, now_ns: u64) {
        if matches!(self.state, Runstate::Blocked | Runstate::Offline) {
            self.enter(Runstate::Runnable, now_ns);
        }
    }

    /// The vCPU leaves its CPU, one of several, whose time is `now_ns`.
    pub(crate) fn leave(&mut self, now_ns: u64) {
        self.shown_on.leave(now_ns);
    }

    /// ns spent in each state until `until_ns`.
    fn spent_until(&self, until_ns: u64) -> [u64; 4] {
        let mut spent_ns = self.spent_ns;
        spent_ns[self.state as usize] += until_ns.saturating_sub(self.entry_ns);
        spent_ns
    }

    /// ns spent running until `now_ns`.
    pub fn cpu_ns(&self, now_ns: u64) -> u64 {
        self.spent_until(now_ns)[Runstate::Running as usize]
    }

    /// `vcpu_runstate_info` with the times until `until_ns`.
    pub(crate) fn runstate_info(&self, until_ns: u64) -> RunstateInfo {
        let [running, runnable, blocked, offline] = self.spent_until(until_ns);
        [self.state as u64, self.entry_ns, running, runnable, blocked, offline]
    }

    /// One of the vCPU's timers, and the CPU in whose queue it is.
    #[inline]
    pub(crate) fn timer(&self, kind: TimerKind) -> Option<(CpuId, TimerId)> {
        self.timers.as_ref().map(|timers| (timers.cpu, timers.ids[kind as usize]))
    }

    /// The timer of the periodic `VIRQ_TIMER`, and its period, unless that is stopped.
    #[inline]
    pub(super) fn periodic(&self) -> Option<(CpuId, TimerId, u64)> {
        let (cpu, id) = self.timer(TimerKind::Periodic).filter(|_| self.period_ns != 0)?;
        Some((cpu, id, self.period_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runstate_accounts_all_time() {
        let mut time = VcpuTime::default();
        time.enter(Runstate::Runnable, 100);
        time.enter(Runstate::Running, 150);
        assert_eq!(time.cpu_ns(200), 50);
        time.enter(Runstate::Blocked, 250);
        assert_eq!(time.spent_ns, [100, 50, 0, 100]);
    }

    #[test]
    fn time_from_before_another_cpus_entry_is_not_counted_twice() {
        let mut time = VcpuTime::default();
        time.enter(Runstate::Runnable, 100);
        time.enter(Runstate::Running, 90);
        assert_eq!(time.runstate_info(90)[1], 100, "no state begins before the last one");
        time.enter(Runstate::Blocked, 150);
        assert_eq!(time.spent_ns, [50, 0, 0, 100]);
    }
}
