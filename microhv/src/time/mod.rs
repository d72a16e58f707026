//! Guests' clocks and timers: pvclock, wall clock, runstate, the timers of each vCPU.
//!
//! - [`state`]: what a vCPU holds; `areas`: what guests read of time; `skew`: the same where TSCs differ
//! - `queue`: the deadlines of one CPU; `timers`: setting the vCPUs' timers, and what their firing does; `poll`: waits of
//!   `SCHEDOP_poll`

mod areas;
mod poll;
mod queue;
mod skew;
pub mod state;
#[cfg(test)]
mod tests;
mod timers;

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub(crate) use areas::{publish_time, update_areas, write_runstate, write_time_area};

use crate::domain::Vcpu;
use crate::platform::{CpuId, MAX_CPUS};
use crate::sync::{Mutex, rank};
use queue::TimerQueue;
use state::{TimerKind, VcpuTimers};
use timers::TimerKey;

type Queue = Mutex<rank::TimerQueue, TimerQueue<TimerKey>>;

/// Timer queues, a CPU each, and the wall clock.
#[derive(Debug)]
pub struct Time {
    queues: Box<[Queue; MAX_CPUS]>,
    /// How many vCPUs have timers. Each may have them in any queue.
    vcpus: AtomicUsize,
    /// Wall time in ns since 1970 at system time 0.
    wall_ns: AtomicU64,
}

impl Default for Time {
    /// No timer is set.
    fn default() -> Self {
        let queues = CpuId::each(|_| Mutex::new(TimerQueue::new()));
        Self { queues, vcpus: AtomicUsize::new(0), wall_ns: AtomicU64::new(0) }
    }
}

impl Time {
    fn queue(&self, cpu: CpuId) -> &Queue {
        &self.queues[cpu.index()]
    }

    /// How many vCPUs have timers.
    pub(crate) fn vcpus(&self) -> usize {
        self.vcpus.load(Ordering::SeqCst)
    }

    /// Makes room for so many vCPUs in the queue of `cpu`. `false`: there is no memory.
    pub(crate) fn make_room(&self, cpu: CpuId, vcpus: usize, may_spend: impl Fn(usize) -> bool) -> bool {
        self.queue(cpu).lock().make_room(vcpus * TimerKind::ALL.len(), may_spend)
    }

    /// Stops the timers of a vCPU that will run no more. Returns whether the vCPU had any.
    pub(crate) fn remove_timers(&self, vcpu: &Vcpu) -> bool {
        let Some(VcpuTimers { cpu, ids }) = vcpu.time.lock().timers.take() else { return false };
        let mut queue = self.queue(cpu).lock();
        ids.into_iter().for_each(|id| queue.remove(id));
        self.vcpus.fetch_sub(1, Ordering::SeqCst);
        true
    }

    /// All that is set in the queues are timers that there are.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        self.queues.iter().for_each(|queue| queue.lock().check());
    }

    /// When one of a vCPU's timers fires.
    #[cfg(test)]
    pub(crate) fn deadline(&self, vcpu: &Vcpu, kind: state::TimerKind) -> Option<u64> {
        let (cpu, id) = vcpu.time.lock().timer(kind)?;
        self.queue(cpu).lock().deadline(id)
    }
}
