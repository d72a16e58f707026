//! Scheduling of vCPUs on physical CPUs.
//!
//! Each CPU has a run queue ordered by weighted run time. The vCPU with the least run time runs next, for at most
//! [`TIME_SLICE_NS`] while others wait. A vCPU that wakes is placed no more than [`WAKE_CREDIT_NS`] before the queue's minimum:
//! a vCPU that sleeps much gets the CPU soon, and no vCPU saves up time to starve the others.
//!
//! The vCPUs of a domain share this credit on each CPU: what one of them runs is taken from all, also from those that wait
//! already. So a domain that wakes many vCPUs at once holds up its neighbours no longer than a domain that wakes one. While a
//! vCPU waits on credit, the running vCPU's slice ends as soon as its own run time has passed that of the waiting vCPU, but
//! never before [`LEAST_RUN_NS`].
//!
//! A vCPU that wakes waits until the running vCPU has had [`LEAST_RUN_NS`]. Meanwhile requests to the waking domain pile up, and
//! one switch then serves them all. But a frontend with one request in flight piles up nothing: the frontend goes to sleep, and
//! the wait has only made its request late. The scheduler learns this from the frontend's sleep. When the running vCPU sleeps
//! within [`VAIN_WAIT_NS`] after a domain began to wait for it, the wait was in vain, and the next few times that this domain
//! wakes, the vCPU gives way after [`COURTEOUS_RUN_NS`]. Then the full wait is tried again. A vCPU that runs on for longer before
//! it sleeps has piled up work, as a frontend does with many requests in flight.
//!
//! A vCPU that has not slept for [`state::BUSY_NS`] computes. Such a vCPU gives way after [`COURTEOUS_RUN_NS`], unless a guest would
//! give way to the control domain so: the guest may be one that always has requests in flight.
//!
//! - [`state`]: what a domain and a vCPU hold; `runqueue`: the queue of one CPU
//! - `pausing`: blocking, waking, pausing; `places`: several CPUs; `caps`: what a domain may run at most
//! - [`pools`]: which CPUs a vCPU may use; `cpus`: CPUs that come and go, and domains that change pools
//! - `cores`: CPUs of a core that run vCPUs of one domain at a time

mod caps;
mod cores;
mod cpus;
mod pausing;
mod places;
pub(crate) mod pools;
mod runqueue;
pub mod state;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ring_abi::types::DomId;

use crate::Hypervisor;
use crate::domain::{Domain, PauseFlags, Vcpu, VcpuRef};
use crate::platform::{CpuId, CpuSet, MAX_CPUS, Platform, SOFTIRQ_SCHEDULE, SOFTIRQ_TIMER};
use crate::sync::{Mutex, MutexGuard, may_come_between_words, rank, words};
use crate::time::state::Runstate;
use cores::{Core, Seat};
use places::News;
use pools::Pools;
use runqueue::{RunQueue, Wake};
use state::{COURTEOUS_RUN_NS, DEFAULT_WEIGHT, LEAST_RUN_NS, RESTS, VAIN_WAIT_NS};

/// Longest time that a vCPU runs while another waits.
const TIME_SLICE_NS: u64 = 10_000_000;
/// How far before the queue's minimum a vCPU that wakes is placed, in weighted run time.
const WAKE_CREDIT_NS: u64 = 5_000_000;
/// How much less run time than the running vCPU a waking vCPU must have to take its place.
const WAKE_GRANULARITY_NS: u64 = 500_000;

const NO_SLICE: u64 = u64::MAX;

/// What others see of a CPU's queue, as of the last change. Written under the queue's lock.
#[derive(Debug, Default)]
struct Shown {
    /// The queue's minimum in the common scale.
    floor: AtomicU64,
    /// The least run time of what waits, in the common scale.
    least: AtomicU64,
    /// On which CPUs something that waits may run, a bit each; none if nothing waits.
    wanted: AtomicU64,
}

/// A CPU's part of the scheduler, on cache lines of its own.
#[derive(Debug)]
#[repr(align(64))]
struct PerCpu {
    queue: Mutex<rank::RunQueue, RunQueue>,
    pending: AtomicU32,
    slice_end: AtomicU64,
    /// The end of the slice for which another CPU called last.
    called_until: AtomicU64,
    shown: Shown,
    seat: Seat,
    /// The core, if this is its first CPU.
    core: Mutex<rank::Core, Core>,
}

/// The run queues.
#[derive(Debug)]
pub struct Scheduler {
    cpus: Box<[PerCpu; MAX_CPUS]>,
    /// CPUs whose queues have room for all vCPUs, a bit each.
    known: AtomicU64,
    /// CPUs that are in use: in a pool, or free.
    online: AtomicU64,
    /// Which CPUs are whose.
    pools: Mutex<rank::Pools, Pools>,
    /// CPUs that have nothing to run.
    idle: AtomicU64,
    /// Whether CPUs of a core run vCPUs of one domain at a time.
    has_cores: AtomicBool,
}

impl Default for Scheduler {
    /// Empty run queues.
    fn default() -> Self {
        let cpu = |cpu| PerCpu {
            queue: Mutex::new(RunQueue::new(cpu)),
            pending: AtomicU32::new(0),
            slice_end: AtomicU64::new(NO_SLICE),
            called_until: AtomicU64::new(0),
            shown: Shown::default(),
            seat: Seat::new(cpu),
            core: Mutex::default(),
        };
        let boot = || AtomicU64::new(CpuSet::only(CpuId::BOOT).bits());
        let cpus = CpuId::each(cpu);
        let pools = Mutex::new(Pools::default());
        let (idle, has_cores) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { cpus, known: boot(), online: boot(), pools, idle, has_cores }
    }
}

impl Scheduler {
    /// The CPUs that are in use.
    pub fn online(&self) -> CpuSet {
        CpuSet::from_bits(self.online.load(Ordering::Relaxed))
    }

    /// The `SOFTIRQ_*` bits that wait on `cpu`: to be looked at before each return to a guest, and while idle.
    #[inline]
    pub fn pending(&self, cpu: CpuId) -> &AtomicU32 {
        &self.cpus[cpu.index()].pending
    }

    /// Makes room for so many vCPUs to wait for `cpu`. `false`: there is no memory.
    #[must_use]
    pub(crate) fn make_room(&self, cpu: CpuId, vcpus: usize, may_spend: impl Fn(usize) -> bool) -> bool {
        self.cpus[cpu.index()].queue.lock().make_room(vcpus, may_spend)
    }

    pub(crate) fn slice_end(&self, cpu: CpuId) -> Option<u64> {
        Some(self.cpus[cpu.index()].slice_end.load(Ordering::Relaxed)).filter(|end| *end != NO_SLICE)
    }

    /// The vCPU that runs on `cpu`.
    pub fn running(&self, cpu: CpuId) -> Option<VcpuRef> {
        self.cpus[cpu.index()].queue.lock().current().cloned()
    }

    /// ns that `cpu` ran no vCPU since its first, until `now`.
    pub fn idle_ns(&self, cpu: CpuId, now: u64) -> u64 {
        self.cpus[cpu.index()].queue.lock().idle_ns(now)
    }

    /// Takes a dying domain out of all queues.
    pub(crate) fn forget(&self, domain: DomId) {
        self.cpus.iter().for_each(|cpu| cpu.queue.lock().forget(domain));
    }

    /// Shows `line` the vCPU that runs on `cpu`, then those that wait, with their weighted run times; `true` marks
    /// the vCPU that runs.
    pub fn describe(&self, cpu: CpuId, mut line: impl FnMut(&VcpuRef, u64, bool)) {
        let queue = self.cpus[cpu.index()].queue.lock();
        let (current, waiting) = (queue.current().into_iter(), queue.waiting());
        let all = current.map(|vcpu| (vcpu, true)).chain(waiting.map(|vcpu| (vcpu, false)));
        all.for_each(|(vcpu, runs)| line(vcpu, vcpu.sched.run_time(), runs));
    }
}

/// What [`Hypervisor::schedule`] decided.
#[must_use = "the CPU goes over to what was decided"]
#[derive(Debug)]
pub enum Decision {
    /// The same vCPU, or idleness, goes on.
    Same,
    /// The CPU goes over to this vCPU; `None`: the CPU is idle.
    Switch(Option<VcpuRef>),
}

/// Whether the hypervisor or the toolstack holds the vCPUs of `domain`.
#[inline]
fn is_paused(domain: &Domain) -> bool {
    counts_pauses(&domain.pause_count)
}

#[inline]
fn counts_pauses(count: &words::AtomicU32) -> bool {
    count.load(Ordering::Acquire) & !RESTS != 0
}

/// Whether the vCPU of `domain` could run.
#[inline]
fn is_runnable(domain: &Domain, vcpu: &Vcpu) -> bool {
    may_come_between_words();
    vcpu.pause_flags.load(Ordering::Acquire) == 0 && domain.pause_count.load(Ordering::Acquire) == 0
}

/// What the vCPU of `domain`, which does not run, is doing.
#[inline(always)]
fn state_of(domain: &Domain, vcpu: &Vcpu) -> Runstate {
    match vcpu.pause_flags.load(Ordering::Acquire) {
        _ if is_paused(domain) => Runstate::Offline,
        0 => Runstate::Runnable,
        flags if flags & PauseFlags::DOWN == 0 => Runstate::Blocked,
        _ => Runstate::Offline,
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Marks work on `cpu`, and interrupts `cpu` when it is another than this CPU.
    #[inline]
    pub fn raise_softirq(&self, cpu: CpuId, bits: u32) {
        may_come_between_words();
        let old = self.sched.pending(cpu).fetch_or(bits, Ordering::AcqRel);
        if old & bits != bits && cpu != self.platform.cpu() {
            self.platform.kick(cpu);
        }
    }

    /// Does the timer work that waits on this CPU. The caller then asks [`Hypervisor::schedule`] when
    /// [`SOFTIRQ_SCHEDULE`] is pending.
    pub fn do_softirqs(&self, cpu: CpuId) {
        while self.sched.pending(cpu).fetch_and(!SOFTIRQ_TIMER, Ordering::AcqRel) & SOFTIRQ_TIMER != 0 {
            self.run_timers(cpu);
        }
    }

    /// Decides what runs on this CPU from now on, if [`SOFTIRQ_SCHEDULE`] is pending, and accounts for what ran. After `Switch`
    /// the caller saves the old vCPU's state, loads the new vCPU's, and calls [`Hypervisor::switched_in`]. `runs`: this CPU runs a
    /// vCPU. One that was chosen is not run if its domain was paused meanwhile ([`Hypervisor::must_leave`]): if the pause is over,
    /// that vCPU is chosen again.
    pub fn schedule(&self, cpu: CpuId, runs: bool) -> Decision {
        let per_cpu = &self.sched.cpus[cpu.index()];
        if per_cpu.pending.fetch_and(!SOFTIRQ_SCHEDULE, Ordering::AcqRel) & SOFTIRQ_SCHEDULE == 0 {
            return Decision::Same;
        }
        let queue = per_cpu.queue.lock();
        // Where there is one CPU and no cap, a decision does not look for others and for caps.
        if queue.is_plain() {
            self.decide::<true>(cpu, queue, runs)
        } else {
            self.decide_among_others(cpu, queue, runs)
        }
    }

    #[inline(never)]
    fn decide_among_others<'a>(
        &'a self,
        cpu: CpuId,
        queue: MutexGuard<'a, RunQueue>,
        runs: bool,
    ) -> Decision {
        self.decide::<false>(cpu, queue, runs)
    }

    /// The decision on a CPU, whose queue this is. `IS_PLAIN`: neither other CPUs nor caps count there.
    #[inline(always)]
    fn decide<'a, const IS_PLAIN: bool>(
        &'a self,
        cpu: CpuId,
        mut queue: MutexGuard<'a, RunQueue>,
        runs: bool,
    ) -> Decision {
        let per_cpu = &self.sched.cpus[cpu.index()];
        let now = self.platform.now_ns();
        let is_shared = !IS_PLAIN && queue.is_shared();
        let was_idle = is_shared && queue.current().is_none();
        if is_shared {
            queue = self.take_over(cpu, queue, now);
        }
        let change = if is_shared && queue.shares_core() {
            self.sched.pick_in_core(cpu, &mut queue, now)
        } else {
            queue.pick(now)
        };
        let mut slice = queue.slice_ns();
        if !IS_PLAIN {
            slice = queue.bounded_ns(slice);
        }
        let slice_end = slice.map_or(NO_SLICE, |slice| now + slice);
        per_cpu.slice_end.store(slice_end, Ordering::Relaxed);
        let news = if is_shared { self.settle(cpu, &mut queue, now, was_idle) } else { News::default() };
        drop(queue);
        if slice_end != NO_SLICE {
            self.wake_by(cpu, slice_end);
        }
        let Some((previous, next)) = change else {
            if is_shared {
                self.call(cpu, news, now);
            }
            return if runs { Decision::Same } else { self.again(cpu) };
        };
        if let Some(previous) = &previous {
            let (domain, vcpu) = (previous.domain(), previous.vcpu());
            self.end_running(vcpu, || state_of(domain, vcpu), now);
            if !IS_PLAIN {
                self.leave(domain, vcpu, now);
            }
            // From now on another CPU may run the vCPU.
            vcpu.set_running_on(None);
        }
        if let Some(next) = &next {
            let (domain, vcpu) = (next.domain(), next.vcpu());
            vcpu.set_running_on(Some(cpu));
            self.begin_running(domain, vcpu, cpu, now);
        }
        if is_shared {
            self.changed(cpu, news, now, [previous.as_ref(), next.as_ref()]);
        }
        if self.unfinished.has_dead() {
            // A vCPU of a dead domain may have run here until now.
            self.raise_softirq(cpu, SOFTIRQ_TIMER);
        }
        Decision::Switch(next)
    }

    /// What a CPU that runs no vCPU does when nothing changes: it may have left the vCPU that goes on.
    #[cold]
    fn again(&self, cpu: CpuId) -> Decision {
        self.sched.running(cpu).map_or(Decision::Same, |left| Decision::Switch(Some(left)))
    }

    /// A vCPU leaves its CPU, where there are several or caps.
    #[cold]
    fn leave(&self, domain: &Domain, vcpu: &Vcpu, now: u64) {
        vcpu.time.lock().leave(now);
        if domain.pause_count.load(Ordering::Relaxed) & RESTS != 0 {
            self.rest(domain);
        }
    }

    /// Puts a vCPU into its CPU's queue, if the vCPU may run.
    fn make_runnable(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        if !is_runnable(domain, vcpu) {
            return self.waits_for_period(domain, vcpu);
        }
        let Some(waking) = VcpuRef::new(domain, vcpu.id.raw()) else { return };
        let cpu = vcpu.sched.cpu();
        let now = self.platform.now_ns();
        vcpu.time.lock().wait_to_run(now);
        let mut queue = self.sched.cpus[cpu.index()].queue.lock();
        if queue.is_shared() || vcpu.sched.cpu() != cpu {
            drop(queue);
            return self.place(&waking, now);
        }
        let wake = queue.add(waking, now);
        self.follow(cpu, queue, wake, now);
    }

    /// Lets a CPU, whose queue this is, look when a vCPU that wakes should get the CPU.
    #[inline(always)]
    fn follow(&self, cpu: CpuId, queue: MutexGuard<'_, RunQueue>, wake: Wake, now: u64) {
        let per_cpu = &self.sched.cpus[cpu.index()];
        let slice_end = per_cpu.slice_end.load(Ordering::Relaxed);
        let end = match wake {
            Wake::Now => {
                drop(queue);
                return self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
            }
            Wake::At(end) => end.min(slice_end),
            Wake::Later if slice_end == NO_SLICE => now + TIME_SLICE_NS,
            Wake::Later => slice_end,
        };
        if end == slice_end {
            return;
        }
        per_cpu.slice_end.store(end, Ordering::Relaxed);
        drop(queue);
        self.wake_by(cpu, end);
    }
}
