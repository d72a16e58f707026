//! Guests' clocks and timers: pvclock, wall clock, runstate, the timers of each vCPU.

mod areas;
mod queue;
mod timers;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

pub(crate) use areas::runstate_info;
pub use queue::{TimerId, TimerQueue};
pub use timers::{TimerKey, TimerKind};

use crate::platform::{CpuId, MAX_CPUS};
use crate::sync::{Mutex, rank};

/// Timer queues, a CPU each, and the wall clock.
#[derive(Debug)]
pub struct Time {
    pub(crate) queues: Vec<Mutex<rank::TimerQueue, TimerQueue<TimerKey>>>,
    /// Wall time in ns since 1970 at system time 0; 0: as the platform read it at boot.
    wall_ns: AtomicU64,
}

impl Time {
    /// No timer is set.
    pub fn new() -> Self {
        Self {
            queues: (0..MAX_CPUS).map(|_| Mutex::new(TimerQueue::new())).collect(),
            wall_ns: AtomicU64::new(0),
        }
    }

    pub(crate) fn queue(&self, cpu: CpuId) -> &Mutex<rank::TimerQueue, TimerQueue<TimerKey>> {
        &self.queues[cpu.index()]
    }

    /// Wall time at system time 0 that was set, if one was.
    pub(crate) fn set_wall(&self) -> Option<u64> {
        Some(self.wall_ns.load(Ordering::Relaxed)).filter(|ns| *ns != 0)
    }

    pub(crate) fn store_wall(&self, ns: u64) {
        self.wall_ns.store(ns, Ordering::Relaxed);
    }
}

impl Default for Time {
    fn default() -> Self {
        Self::new()
    }
}

/// What a vCPU is doing: `RUNSTATE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Runstate {
    /// It runs.
    Running = 0,
    /// It could run.
    Runnable = 1,
    /// It waits for an event.
    Blocked = 2,
    /// It is down or paused.
    Offline = 3,
}

/// A second `vcpu_time_info`, which a guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeArea {
    /// Guest virtual address.
    pub va: u64,
    /// `TimeParams::generation` that it shows; `u32::MAX`: none.
    pub published: u32,
}

/// The clock, runstate and timers of one vCPU. Guarded by `Vcpu::time`.
#[derive(Debug)]
pub struct VcpuTime {
    /// What it does since `entry_ns`.
    pub state: Runstate,
    /// System time at which `state` began.
    pub entry_ns: u64,
    /// ns spent in each state before `entry_ns`.
    pub spent_ns: [u64; 4],
    /// Guest virtual address of the registered runstate area.
    pub runstate_area: Option<u64>,
    /// The registered time area.
    pub time_area: Option<TimeArea>,
    /// Period of the periodic `VIRQ_TIMER`; 0: stopped.
    pub period_ns: u64,
    /// When the periodic timer last fired.
    pub last_period_ns: u64,
    /// `TimeParams::generation` that `vcpu_info` shows; `u32::MAX`: none.
    pub published: u32,
    pub(crate) timers: Option<timers::VcpuTimers>,
}

/// Period of the `VIRQ_TIMER` that every new vCPU has: 100 Hz.
pub const DEFAULT_PERIOD_NS: u64 = 10_000_000;

impl VcpuTime {
    /// A vCPU that is down since `now_ns`.
    pub const fn new() -> Self {
        Self {
            state: Runstate::Offline,
            entry_ns: 0,
            spent_ns: [0; 4],
            runstate_area: None,
            time_area: None,
            period_ns: DEFAULT_PERIOD_NS,
            last_period_ns: 0,
            published: u32::MAX,
            timers: None,
        }
    }

    /// Begins `state` at `now_ns`.
    pub fn enter(&mut self, state: Runstate, now_ns: u64) {
        self.spent_ns[self.state as usize] += now_ns.saturating_sub(self.entry_ns);
        self.state = state;
        self.entry_ns = now_ns;
    }

    /// ns spent running until `now_ns`.
    pub fn cpu_ns(&self, now_ns: u64) -> u64 {
        let running = Runstate::Running;
        self.spent_ns[running as usize]
            + if self.state == running { now_ns.saturating_sub(self.entry_ns) } else { 0 }
    }
}

impl Default for VcpuTime {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runstate_accounts_all_time() {
        let mut time = VcpuTime::new();
        time.enter(Runstate::Runnable, 100);
        time.enter(Runstate::Running, 150);
        assert_eq!(time.cpu_ns(200), 50);
        time.enter(Runstate::Blocked, 250);
        time.enter(Runstate::Running, 240); // a clock that steps back adds nothing
        assert_eq!(time.spent_ns, [100, 50, 0, 100]);
        assert_eq!(time.cpu_ns(240), 100);
    }
}
