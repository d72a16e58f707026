//! Scheduling of vCPUs on physical CPUs.
//!
//! Each CPU has a run queue ordered by weighted run time: the vCPU that has had the least runs next, for at most a
//! time slice while others wait. A vCPU that wakes is placed no more than [`WAKE_CREDIT_NS`] before the queue's
//! minimum, so that one that sleeps much gets the CPU soon, and none can save up time to starve the others.
//!
//! That credit is one for all vCPUs of a domain on a CPU: what one of them runs is taken from all, those that wait already
//! too. So a domain that wakes many at once is before a neighbour that wakes for no longer than a domain with one. And the
//! slice of whoever runs ends, after [`LEAST_RUN_NS`], when its run time has passed that of one that waits on credit.
//!
//! Soon is after [`LEAST_RUN_NS`] of whoever runs: what two domains do for each other gathers meanwhile, and one change of
//! domain serves for much. A frontend with one request in flight gathers nothing: it goes to sleep before, and its request
//! reached the back end late for nothing. So a vCPU that slept within [`VAIN_WAIT_NS`] after a domain began to wait for that time to pass
//! gives way to this domain after [`COURTEOUS_RUN_NS`], [`COURTESIES`] times; then it is tried again. One that runs on for
//! longer before it sleeps has gathered work meanwhile, as a frontend does with many requests in flight.

mod runqueue;
mod pausing;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use ring_abi::types::DomId;

use crate::Hypervisor;
use crate::domain::{Domain, Vcpu, VcpuRef};
use crate::platform::{CpuId, MAX_CPUS, Platform};
use crate::sync::{Mutex, rank};
use crate::time::Runstate;
use runqueue::{RunQueue, Wake};

/// Longest time that a vCPU runs while another waits.
pub const TIME_SLICE_NS: u64 = 10_000_000;
/// What a vCPU that wakes has in advance of the others, in weighted run time.
pub const WAKE_CREDIT_NS: u64 = 5_000_000;
/// How much less run time than the running vCPU a waking one must have to take its place.
pub const WAKE_GRANULARITY_NS: u64 = 500_000;
/// What a vCPU that got the CPU has of it before one that wakes takes its place, but for [`COURTEOUS_RUN_NS`]. Two domains
/// that work for each other, a frontend and a back end, else change places for each request.
pub const LEAST_RUN_NS: u64 = 1_000_000;
/// The same towards a domain that last waited for nothing. Enough that changes of domain are not most of the work.
pub const COURTEOUS_RUN_NS: u64 = 50_000;
/// A control domain that has run for so long since it slept last serves somebody who never lets it sleep. Whoever else wakes
/// beside it gathers nothing by waiting.
const BUSY_NS: u64 = 4 * LEAST_RUN_NS;
/// A wait for a vCPU was for nothing if this vCPU slept so soon after the wait began. With 32 reads of 4 KiB in flight, a
/// guest that is counted runs for half a millisecond after the first of them; with one it sleeps within microseconds.
pub const VAIN_WAIT_NS: u64 = LEAST_RUN_NS / 4;
/// How often a vCPU gives way sooner to a domain that waited for nothing.
const COURTESIES: u8 = 16;
/// Weight of a domain unless set.
pub const DEFAULT_WEIGHT: u32 = 256;

/// The run queue is to be looked at.
pub const SOFTIRQ_SCHEDULE: u32 = 1;
/// Timers are to be looked at.
pub const SOFTIRQ_TIMER: u32 = 2;

const NO_SLICE: u64 = u64::MAX;
/// No domain's number.
const NOBODY: u32 = u32::MAX;

#[derive(Debug)]
struct PerCpu {
    queue: Mutex<rank::RunQueue, RunQueue>,
    pending: AtomicU32,
    slice_end: AtomicU64,
    /// ns without a vCPU until `idle_since`, and since when there is none (0: there is one).
    idle_ns: AtomicU64,
    idle_since: AtomicU64,
}

impl PerCpu {
    fn idle_changed(&self, was_idle: bool, is_idle: bool, now: u64) {
        let since = self.idle_since.swap(if is_idle { now } else { 0 }, Ordering::Relaxed);
        if was_idle && since != 0 {
            self.idle_ns.fetch_add(now.saturating_sub(since), Ordering::Relaxed);
        }
    }
}

/// The run queues.
#[derive(Debug)]
pub struct Scheduler {
    cpus: Vec<PerCpu>,
}

impl Scheduler {
    /// Empty run queues.
    pub fn new() -> Self {
        let cpu = |n| PerCpu {
            queue: Mutex::new(RunQueue::new(n)),
            pending: AtomicU32::new(0),
            slice_end: AtomicU64::new(NO_SLICE),
            idle_ns: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
        };
        Self { cpus: (0..MAX_CPUS).map(cpu).collect() }
    }

    /// The `SOFTIRQ_*` bits that wait on `cpu`: to be looked at before each return to a guest, and while idle.
    #[inline]
    pub fn pending(&self, cpu: CpuId) -> &AtomicU32 {
        &self.cpus[cpu.index()].pending
    }

    /// Makes room for so many vCPUs to wait for `cpu`. `false`: there is no memory.
    pub(crate) fn make_room(&self, cpu: CpuId, vcpus: usize, may_spend: impl Fn(usize) -> bool) -> bool {
        self.cpus[cpu.index()].queue.lock().make_room(vcpus, may_spend)
    }

    pub(crate) fn slice_end(&self, cpu: CpuId) -> Option<u64> {
        Some(self.cpus[cpu.index()].slice_end.load(Ordering::Relaxed)).filter(|end| *end != NO_SLICE)
    }

    /// Names of the waiting vCPUs of `cpu` with their weighted run times, and the one that runs, for the debug key.
    pub fn describe(&self, cpu: CpuId, mut line: impl FnMut(&VcpuRef, u64, bool)) {
        let queue = self.cpus[cpu.index()].queue.lock();
        if let Some(current) = queue.current() {
            line(current, current.sched.run_time.load(Ordering::Relaxed), true);
        }
        queue.waiting().for_each(|vcpu| line(vcpu, vcpu.sched.run_time.load(Ordering::Relaxed), false));
    }
}

impl Default for Scheduler {
    fn default() -> Self {
        Self::new()
    }
}

/// What the scheduler keeps in each domain.
#[derive(Debug)]
pub(crate) struct DomainSched {
    /// For each CPU the run time below which no vCPU of the domain waits there: it rises with what they ran, never
    /// above the queue's minimum. It belongs to the queue.
    spent: [AtomicU64; MAX_CPUS],
}

impl DomainSched {
    pub(crate) const fn new() -> Self {
        Self { spent: [const { AtomicU64::new(0) }; MAX_CPUS] }
    }
}

/// What the scheduler keeps in each vCPU.
#[derive(Debug)]
pub struct VcpuSched {
    /// Weighted ns that it ran.
    pub(crate) run_time: AtomicU64,
    /// Share of the CPU, relative to others.
    pub weight: AtomicU32,
    /// It is in a run queue.
    queued: AtomicBool,
    /// It gives way once.
    yielded: AtomicBool,
    /// Its run time when it woke last.
    woke_at: AtomicU64,
    /// The domain that waits until this vCPU has run for [`LEAST_RUN_NS`], or [`NOBODY`]. This and the next three belong to
    /// the queue in which it is the current one.
    waiter: AtomicU32,
    /// System time at which that wait began.
    waits_since_ns: AtomicU64,
    /// The domain to which it gives way after [`COURTEOUS_RUN_NS`], and how often still.
    courteous_to: AtomicU32,
    courtesies: AtomicU8,
    /// Affinity as the toolstack set it: a bit for each CPU.
    pub affinity: AtomicU64,
}

impl VcpuSched {
    /// A vCPU that never ran.
    pub const fn new() -> Self {
        Self {
            run_time: AtomicU64::new(0),
            weight: AtomicU32::new(DEFAULT_WEIGHT),
            queued: AtomicBool::new(false),
            yielded: AtomicBool::new(false),
            woke_at: AtomicU64::new(0),
            waiter: AtomicU32::new(NOBODY),
            waits_since_ns: AtomicU64::new(0),
            courteous_to: AtomicU32::new(NOBODY),
            courtesies: AtomicU8::new(0),
            affinity: AtomicU64::new(u64::MAX),
        }
    }

    /// Whether it has run for long since it slept last: it is busy with more than who wakes now asked of it.
    fn has_run_without_sleep(&self) -> bool {
        let woke_at = self.woke_at.load(Ordering::Relaxed);
        self.run_time.load(Ordering::Relaxed).saturating_sub(woke_at) > BUSY_NS
    }

    /// What it has of the CPU before a vCPU of `domain` takes its place.
    fn least_run_ns(&self, domain: DomId, now: u64) -> u64 {
        let domain = u32::from(domain.raw());
        let left = self.courtesies.load(Ordering::Relaxed);
        if left != 0 && self.courteous_to.load(Ordering::Relaxed) == domain {
            self.courtesies.store(left - 1, Ordering::Relaxed);
            return COURTEOUS_RUN_NS;
        }
        if self.waiter.swap(domain, Ordering::Relaxed) != domain {
            self.waits_since_ns.store(now, Ordering::Relaxed);
        }
        LEAST_RUN_NS
    }

    /// The wait of whoever waits for it is over; `slept`: since it went to sleep before its time.
    fn end_wait(&self, slept: bool, now: u64) {
        let waiter = self.waiter.swap(NOBODY, Ordering::Relaxed);
        let since = self.waits_since_ns.load(Ordering::Relaxed);
        if waiter != NOBODY && slept && now < since.saturating_add(VAIN_WAIT_NS) {
            self.courteous_to.store(waiter, Ordering::Relaxed);
            self.courtesies.store(COURTESIES, Ordering::Relaxed);
        }
    }
}

impl Default for VcpuSched {
    fn default() -> Self {
        Self::new()
    }
}

/// What [`Hypervisor::schedule`] decided.
#[derive(Debug)]
pub enum Decision {
    /// The same vCPU, or idleness, goes on.
    Same,
    /// The CPU goes over to this vCPU; `None`: it is idle.
    Switch(Option<VcpuRef>),
}

/// Whether the vCPU of `domain` could run.
#[inline]
pub fn is_runnable(domain: &Domain, vcpu: &Vcpu) -> bool {
    vcpu.pause_flags.load(Ordering::Acquire) == 0
        && vcpu.pause_count.load(Ordering::Acquire) == 0
        && domain.pause_count.load(Ordering::Acquire) == 0
}

fn state_of(domain: &Domain, vcpu: &Vcpu) -> Runstate {
    use crate::domain::PauseFlags;
    if is_runnable(domain, vcpu) {
        Runstate::Runnable
    } else if vcpu.pause_flags.load(Ordering::Acquire) & PauseFlags::DOWN == 0
        && vcpu.pause_count.load(Ordering::Acquire) == 0
        && domain.pause_count.load(Ordering::Acquire) == 0
    {
        Runstate::Blocked
    } else {
        Runstate::Offline
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Marks work on `cpu`, and makes it look when it is another than this.
    #[inline]
    pub fn raise_softirq(&self, cpu: CpuId, bits: u32) {
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

    /// Decides what runs on this CPU from now on, if [`SOFTIRQ_SCHEDULE`] is pending, and accounts for what ran. After `Switch` the caller saves the old
    /// vCPU's state, loads the new one's, and calls [`Hypervisor::switched_in`].
    pub fn schedule(&self, cpu: CpuId) -> Decision {
        let per_cpu = &self.sched.cpus[cpu.index()];
        if per_cpu.pending.fetch_and(!SOFTIRQ_SCHEDULE, Ordering::AcqRel) & SOFTIRQ_SCHEDULE == 0 {
            return Decision::Same;
        }
        let now = self.platform.now_ns();
        let mut queue = per_cpu.queue.lock();
        let decision = queue.pick(now);
        let slice_end = queue.slice_ns().map_or(NO_SLICE, |slice| now + slice);
        drop(queue);
        per_cpu.slice_end.store(slice_end, Ordering::Relaxed);
        if slice_end != NO_SLICE {
            self.wake_by(cpu, slice_end);
        }
        if let Some((previous, next)) = decision {
            if let Some(previous) = &previous {
                let (domain, vcpu) = (previous.domain(), previous.vcpu());
                vcpu.set_running_on(None);
                self.end_running(vcpu, state_of(domain, vcpu), now);
            }
            per_cpu.idle_changed(previous.is_none(), next.is_none(), now);
            if let Some(next) = &next {
                let (domain, vcpu) = (next.domain(), next.vcpu());
                vcpu.set_running_on(Some(cpu));
                self.begin_running(domain, vcpu, now);
            }
            if self.unfinished.has_dead() {
                // One of them may have run here until now.
                self.raise_softirq(cpu, SOFTIRQ_TIMER);
            }
            return Decision::Switch(next);
        }
        Decision::Same
    }

    /// ns that a CPU ran no vCPU since its first.
    pub fn idle_ns(&self, cpu: u32) -> u64 {
        let Some(cpu) = CpuId::new(cpu) else { return 0 };
        let per_cpu = &self.sched.cpus[cpu.index()];
        let since = per_cpu.idle_since.load(Ordering::Relaxed);
        let now = if since == 0 { 0 } else { self.platform.now_ns().saturating_sub(since) };
        per_cpu.idle_ns.load(Ordering::Relaxed) + now
    }

    /// The vCPU that runs on `cpu`.
    pub fn running(&self, cpu: CpuId) -> Option<VcpuRef> {
        self.sched.cpus[cpu.index()].queue.lock().current().cloned()
    }

    /// Puts a vCPU that may run again into its queue.
    pub(crate) fn enqueue(&self, vcpu: VcpuRef) {
        let cpu = CpuId::new(vcpu.cpu_id.load(Ordering::Relaxed)).unwrap_or(CpuId::BOOT);
        let this = vcpu.vcpu();
        if !is_runnable(vcpu.domain(), this) {
            return;
        }
        let now = self.platform.now_ns();
        {
            let mut time = this.time.lock();
            if matches!(time.state, Runstate::Blocked | Runstate::Offline) {
                time.enter(Runstate::Runnable, now);
            }
        }
        let per_cpu = &self.sched.cpus[cpu.index()];
        let mut queue = per_cpu.queue.lock();
        let wake = queue.add(vcpu, now);
        drop(queue);
        let slice_end = per_cpu.slice_end.load(Ordering::Relaxed);
        let end = match wake {
            Wake::Now => return self.raise_softirq(cpu, SOFTIRQ_SCHEDULE),
            Wake::At(end) => end.min(slice_end),
            Wake::Later if slice_end == NO_SLICE => now + TIME_SLICE_NS,
            Wake::Later => slice_end,
        };
        if end != slice_end {
            per_cpu.slice_end.store(end, Ordering::Relaxed);
            self.wake_by(cpu, end);
        }
    }
}
