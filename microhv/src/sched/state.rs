//! What the scheduler keeps in each domain and each vCPU.

mod cap;

use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence,
};

use ring_abi::types::DomId;

use crate::platform::{CpuId, CpuSet, MAX_CPUS};
use crate::sync::may_come_between_words;
pub(crate) use cap::Cap;

/// How long a vCPU keeps the CPU before a waking vCPU takes its place, unless [`COURTEOUS_RUN_NS`] applies. A frontend and a
/// back end would else change places for every request.
pub(super) const LEAST_RUN_NS: u64 = 1_000_000;
/// How long a vCPU keeps the CPU before a vCPU takes its place whose domain last waited in vain. Long enough that changes of
/// domain are not most of the work.
pub(super) const COURTEOUS_RUN_NS: u64 = 50_000;
/// A wait for a vCPU was in vain if the vCPU slept so soon after the wait began. Measured: with 32 reads of 4 KiB in flight a
/// guest runs for half a millisecond after the first of them; with one read the guest sleeps within microseconds.
pub(super) const VAIN_WAIT_NS: u64 = LEAST_RUN_NS / 4;
/// A vCPU that has run for so long since it last slept computes, or it is a control domain's and serves a domain that never
/// lets it sleep. A domain that wakes beside such a vCPU gains nothing by waiting for its sleep.
pub(super) const BUSY_NS: u64 = 4 * LEAST_RUN_NS;
/// The most that is owed to a vCPU when it wakes, and what a vCPU makes up for slowly. What a CPU that takes a vCPU over finds it to lag is partly the credit of a
/// wake-up: a vCPU that sleeps much would save that up.
pub(super) const MOST_OWED_NS: u64 = 40_000_000;
/// How many times a vCPU gives way early to a domain that waited in vain.
pub(super) const COURTESIES: u8 = 16;
/// Weight of a domain unless set.
pub(super) const DEFAULT_WEIGHT: u32 = 256;

/// The bit of a domain's `pause_count` that says: the domain has used up what its cap allows, and rests. The bit is beyond all counts.
pub(super) const RESTS: u32 = 1 << 31;

/// What the scheduler keeps in each domain.
#[derive(Debug)]
pub(crate) struct DomainSched {
    /// For each CPU, the least run time with which a vCPU of the domain waits there. What the domain's vCPUs run on the CPU
    /// raises this, up to the queue's minimum. Only the holder of the CPU's queue uses the entry.
    pub(super) spent: [AtomicU64; MAX_CPUS],
    /// The most that the domain may run.
    pub(crate) cap: Cap,
    /// The number of the domain's pool. Changed under the lock of the pools.
    pub(super) pool: AtomicU32,
    /// Whether that pool is of the null policy, as the masks of the vCPUs say.
    is_null: AtomicBool,
}

impl DomainSched {
    pub(crate) fn new(pool: u32) -> Self {
        let spent = [const { AtomicU64::new(0) }; MAX_CPUS];
        Self { spent, cap: Cap::default(), pool: AtomicU32::new(pool), is_null: AtomicBool::new(false) }
    }

    /// The number of the domain's pool.
    pub(crate) fn pool(&self) -> u32 {
        self.pool.load(Relaxed)
    }

    /// Says whether the domain's pool is of the null policy. The caller looks afterwards whether a vCPU is down.
    pub(super) fn set_null(&self, is_null: bool) {
        self.is_null.store(is_null, SeqCst);
        fence(SeqCst);
    }

    /// Whether a vCPU of the domain may have a CPU of its own. A vCPU first is down, then this is asked: so one of both sees the other.
    pub(super) fn is_null(&self) -> bool {
        fence(SeqCst);
        self.is_null.load(SeqCst)
    }
}

/// What the scheduler keeps in each vCPU.
#[derive(Debug)]
pub struct VcpuSched {
    /// Weighted ns that the vCPU ran.
    run_time: AtomicU64,
    /// Weighted ns that the vCPU lagged when CPUs took the vCPU over. Half of the time that the vCPU runs is free until that is made
    /// up for, and all of it while more than [`MOST_OWED_NS`] are owed.
    pub(super) owed: AtomicU64,
    /// Share of the CPU, relative to others.
    pub weight: AtomicU32,
    /// The CPU on which the vCPU runs, or for which it waits or last waited. Changed under the locks of the old CPU's queue and
    /// of the new one's.
    cpu: AtomicU32,
    /// Whether the vCPU is in a run queue.
    pub(super) queued: AtomicBool,
    /// Whether the vCPU gives way at the next decision.
    pub(super) yielded: AtomicBool,
    /// The vCPU's run time when it last woke.
    pub(super) woke_at: AtomicU64,
    /// The domain to which the vCPU gives way after [`COURTEOUS_RUN_NS`]. Only the holder of the queue in which the vCPU is the
    /// current one uses this field and the next.
    courteous_to: AtomicU16,
    /// How many times more the vCPU does so.
    courtesies: AtomicU8,
    /// Hard affinity as the toolstack set it: a bit for each CPU on which the vCPU may run.
    affinity: AtomicU64,
    /// Soft affinity likewise: the CPUs on which the vCPU had better run.
    soft_affinity: AtomicU64,
    /// On which CPUs the vCPU may run, by its domain's pool and its hard affinity: a bit each. None: the vCPU is of a pool of the
    /// null policy, and has no CPU. Changed under the lock of the pools.
    allowed: AtomicU64,
}

impl Default for VcpuSched {
    /// A vCPU that never ran.
    fn default() -> Self {
        Self {
            run_time: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            weight: AtomicU32::new(DEFAULT_WEIGHT),
            cpu: AtomicU32::new(CpuId::BOOT.raw()),
            queued: AtomicBool::new(false),
            yielded: AtomicBool::new(false),
            woke_at: AtomicU64::new(0),
            courteous_to: AtomicU16::new(0),
            courtesies: AtomicU8::new(0),
            affinity: AtomicU64::new(u64::MAX),
            soft_affinity: AtomicU64::new(u64::MAX),
            allowed: AtomicU64::new(0),
        }
    }
}

/// What `by` leaves of a set: all if that is nothing.
#[inline]
fn narrowed(cpus: CpuSet, by: &AtomicU64) -> CpuSet {
    let bits = cpus.bits() & by.load(Relaxed);
    if bits == 0 { cpus } else { CpuSet::from_bits(bits) }
}

impl VcpuSched {
    /// The CPU on which the vCPU runs, or for which it waits or last waited.
    #[inline]
    pub fn cpu(&self) -> CpuId {
        may_come_between_words();
        CpuId::new(self.cpu.load(Relaxed)).unwrap_or(CpuId::BOOT)
    }

    #[inline]
    pub(super) fn set_cpu(&self, cpu: CpuId) {
        self.cpu.store(cpu.raw(), Relaxed);
    }

    /// The hard affinity, and the soft affinity.
    pub fn affinity(&self) -> (CpuSet, CpuSet) {
        let (hard, soft) = (self.affinity.load(Relaxed), self.soft_affinity.load(Relaxed));
        (CpuSet::from_bits(hard), CpuSet::from_bits(soft))
    }

    pub(super) fn set_affinity(&self, hard: CpuSet, soft: CpuSet) {
        self.affinity.store(hard.bits(), SeqCst);
        self.soft_affinity.store(soft.bits(), SeqCst);
    }

    /// What the hard affinity leaves of `pool`: all if that is nothing.
    pub(super) fn usable(&self, pool: CpuSet) -> CpuSet {
        narrowed(pool, &self.affinity)
    }

    /// On which CPUs the vCPU may run; none: it waits until its pool has a CPU for it.
    #[inline]
    pub(crate) fn allowed(&self) -> CpuSet {
        may_come_between_words();
        CpuSet::from_bits(self.allowed.load(SeqCst))
    }

    pub(super) fn set_allowed(&self, cpus: CpuSet) {
        may_come_between_words();
        self.allowed.store(cpus.bits(), SeqCst);
    }

    /// On which CPUs of `allowed` the vCPU had better run: on all if its soft affinity leaves none.
    pub(super) fn preferred(&self, allowed: CpuSet) -> CpuSet {
        narrowed(allowed, &self.soft_affinity)
    }

    /// Weighted ns that the vCPU ran.
    #[inline]
    pub(super) fn run_time(&self) -> u64 {
        self.run_time.load(Relaxed)
    }

    #[inline]
    pub(super) fn set_run_time(&self, weighted_ns: u64) {
        self.run_time.store(weighted_ns, Relaxed);
    }

    /// Sets the run time to that of another queue's scale, or of a vCPU that is owed what it lagged: what the vCPU ran since it woke
    /// stays what it was.
    pub(super) fn move_run_time(&self, weighted_ns: u64) {
        let since = self.run_time().wrapping_sub(self.woke_at.load(Relaxed));
        self.woke_at.store(weighted_ns.wrapping_sub(since), Relaxed);
        self.set_run_time(weighted_ns);
    }

    /// What of these weighted ns counts, as far as none are owed to the vCPU.
    #[inline]
    pub(super) fn pay(&self, weighted_ns: u64) -> u64 {
        let owed = self.owed.load(Relaxed);
        if owed == 0 {
            return weighted_ns;
        }
        // Half would not do for a vCPU that is the one to wait each time vCPUs change CPUs: more is owed each time than it repays.
        let free = owed.min(if owed > MOST_OWED_NS { weighted_ns } else { weighted_ns / 2 });
        self.owed.store(owed - free, Relaxed);
        weighted_ns - free
    }

    /// Whether the vCPU has run for long since it last slept, and so is busy with more than the waking domain's requests.
    pub(super) fn has_run_without_sleep(&self) -> bool {
        self.run_time().wrapping_sub(self.woke_at.load(Relaxed)) > BUSY_NS
    }

    /// Whether the vCPU gives way early to a vCPU of `domain`, which wakes now.
    pub(super) fn is_courteous_to(&self, domain: DomId) -> bool {
        let left = self.courtesies.load(Relaxed);
        let is_courteous = left != 0 && self.courteous_to.load(Relaxed) == domain.raw();
        if is_courteous {
            self.courtesies.store(left - 1, Relaxed);
        }
        is_courteous
    }

    /// Lets the vCPU give way early to `domain`, which waited for the vCPU in vain.
    pub(super) fn be_courteous_to(&self, domain: DomId) {
        self.courteous_to.store(domain.raw(), Relaxed);
        self.courtesies.store(COURTESIES, Relaxed);
    }
}
