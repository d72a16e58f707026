//! What a queue says to other CPUs, and vCPUs that go from one queue to another.

use core::sync::atomic::Ordering;

use super::super::cores::Admits;
use super::super::state::{COURTEOUS_RUN_NS, DEFAULT_WEIGHT, VcpuSched};
use super::super::{TIME_SLICE_NS, is_runnable};
use super::{RunQueue, Waiting, Wake};
use crate::domain::{Vcpu, VcpuRef};
use crate::platform::{CpuId, CpuSet};

/// How many waiting vCPUs a CPU looks at for one that may move to it: guests choose how many wait. (I13)
pub(super) const LOOKED_AT: usize = 1024;
/// How far behind the queue to which it moves a vCPU may be.
const MOST_LATE_NS: u64 = 4 * TIME_SLICE_NS;
/// How much more a vCPU must lag before it moves to a CPU that is not of its soft affinity.
const DETOUR_NS: u64 = 2 * TIME_SLICE_NS;
/// How many slices of its own a vCPU may be ahead of the queue to which it moves.
const MOST_AHEAD: u64 = 8;

impl RunQueue {
    /// Whether other CPUs give vCPUs to this queue, or take some.
    #[inline]
    pub(in super::super) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Whether no other CPU and no cap counts here.
    #[inline]
    pub(in super::super) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// From now on there are domains with caps.
    pub(in super::super) fn heed_caps(&mut self) {
        (self.has_caps, self.is_plain) = (true, false);
    }

    /// How long the current vCPU, which has this slice, may run by the cap of its domain and by what its core refused.
    #[cold]
    pub(in super::super) fn bounded_ns(&self, slice: Option<u64>) -> Option<u64> {
        let Some(domain) = self.current.as_ref().map(VcpuRef::domain) else {
            return self.look_in_ns().or(slice);
        };
        let slice = self.look_in_ns().into_iter().chain(slice).min();
        let vcpus = domain.vcpus.len().min(self.pool.count() as usize);
        let most = domain.sched.cap.slice_ns(vcpus as u64);
        most.into_iter().chain(slice).min()
    }

    /// The CPUs of this CPU's pool.
    pub(in super::super) fn pool(&self) -> CpuSet {
        self.pool
    }

    /// Whether the CPU belongs to one vCPU, or to none: nothing is taken over, and no slice ends.
    pub(in super::super) fn is_dedicated(&self) -> bool {
        self.is_dedicated
    }

    /// Sets the CPUs of this CPU's pool, and whether its policy is null. From now on there are other CPUs.
    pub(in super::super) fn set_pool(&mut self, pool: CpuSet, is_dedicated: bool) {
        (self.pool, self.is_dedicated) = (pool, is_dedicated);
        (self.is_shared, self.is_plain) = (true, false);
        self.count_wanted();
    }

    /// Looks anew on which CPUs the vCPUs that wait here may run.
    pub(in super::super) fn count_wanted(&mut self) {
        let waiting = self.waiting.iter().map(|entry| entry.vcpu.sched.allowed().bits());
        self.wanted = CpuSet::from_bits(waiting.fold(0, |all, bits| all | bits));
    }

    /// Whether the current vCPU may go on here.
    #[inline]
    pub(super) fn may_keep(&self, current: &Vcpu) -> bool {
        !self.is_shared || current.sched.allowed().contains(self.cpu)
    }

    /// Whether no vCPU runs or waits here.
    pub(in super::super) fn is_empty(&self) -> bool {
        self.current.is_none() && self.waiting.is_empty()
    }

    /// Whether the current vCPU may go on.
    pub(super) fn goes_on(&self) -> bool {
        let current = self.current.as_ref().map(|current| (current.domain(), current.vcpu()));
        current.is_some_and(|(domain, current)| is_runnable(domain, current) && self.may_keep(current))
    }

    /// The CPU, of several, looks at the queue.
    pub(in super::super) fn look(&mut self, now: u64) {
        self.account(now);
        self.looked_ns = self.since_ns;
    }

    /// When the CPU looks for a vCPU that wakes, and for which [`RunQueue::add`] said `wake`. A guest may wake and stop a vCPU
    /// from another CPU again and again: this CPU finds nothing each time, and who runs here must get on all the same. (I60)
    pub(in super::super) fn not_again_soon(&self, wake: Wake, now: u64) -> Wake {
        let soonest = self.looked_ns.saturating_add(COURTEOUS_RUN_NS);
        match wake {
            Wake::Now if now < soonest && self.goes_on() => Wake::At(soonest),
            Wake::At(at) => Wake::At(at.max(soonest)),
            wake => wake,
        }
    }

    /// Whether `vcpu` runs here, or waits here.
    pub(in super::super) fn has(&self, vcpu: &VcpuRef) -> bool {
        vcpu.vcpu().sched.queued.load(Ordering::Relaxed)
            || self.current.as_ref().is_some_and(|current| current.same(vcpu))
    }

    /// The least run time, in the common scale, of what may run here; `None`: there is nothing.
    pub(in super::super) fn least(&mut self) -> Option<u64> {
        let runs = |entry: &Waiting| is_runnable(entry.vcpu.domain(), entry.vcpu.vcpu());
        if !self.waiting.peek().is_none_or(runs) {
            self.waiting.retain(|entry| {
                let keep = runs(entry);
                entry.vcpu.sched.queued.store(keep, Ordering::Relaxed);
                keep
            });
        }
        let current = self.current.as_ref().map(|current| (current.domain(), current.vcpu()));
        let current = current.filter(|(domain, vcpu)| is_runnable(domain, vcpu) && self.may_keep(vcpu));
        let current = current.map(|(_, vcpu)| vcpu.sched.run_time());
        let least = self.waiting.peek().map(|first| first.run_time).into_iter().chain(current).min();
        least.map(|run_time| run_time.wrapping_add(self.to_common))
    }

    /// The queue's minimum in the common scale.
    pub(in super::super) fn floor(&self) -> u64 {
        self.minimum.wrapping_add(self.to_common)
    }

    /// The run time, in the common scale, of the first vCPU that waits, and the CPUs on which some that wait may run.
    pub(in super::super) fn offer(&self) -> Option<(u64, CpuSet)> {
        self.waiting.peek().map(|first| (first.run_time.wrapping_add(self.to_common), self.wanted))
    }

    /// Raises run times in the common scale to `floor`.
    pub(in super::super) fn catch_up(&mut self, floor: u64) {
        self.to_common = self.to_common.wrapping_add(floor.saturating_sub(self.floor()));
    }

    /// Takes out the first vCPU that may move to `cpu`, is admitted there, and whose run time in the common scale is below `below`.
    pub(in super::super) fn give(&mut self, cpu: CpuId, below: u64, admits: Admits) -> Option<VcpuRef> {
        let to_common = self.to_common;
        // A vCPU that had better run elsewhere comes later.
        let place = |entry: &Waiting| {
            let sched = &entry.vcpu.vcpu().sched;
            let fits = sched.preferred(sched.allowed()).contains(cpu);
            entry.run_time.wrapping_add(to_common).saturating_add(if fits { 0 } else { DETOUR_NS })
        };
        let goes = |entry: &&Waiting| {
            let (domain, vcpu) = (entry.vcpu.domain(), entry.vcpu.vcpu());
            place(entry) < below
                && admits.admits(domain.id)
                && vcpu.sched.allowed().contains(cpu)
                // The CPU on which it ran has not yet accounted for it.
                && vcpu.running_on().is_none()
                && is_runnable(domain, vcpu)
        };
        let found = self.waiting.iter().take(LOOKED_AT).filter(goes);
        let found = found.min_by_key(|entry| (place(entry), entry.arrival)).map(|entry| entry.vcpu.clone());
        match &found {
            Some(vcpu) => self.remove(vcpu),
            None if admits == Admits::All && self.waiting.len() <= LOOKED_AT => self.count_wanted(), // nobody needs to look again
            None => {}
        }
        found
    }

    /// Takes a waiting vCPU out.
    pub(in super::super) fn remove(&mut self, vcpu: &VcpuRef) {
        self.waiting.retain(|entry| !entry.vcpu.same(vcpu));
        vcpu.sched.queued.store(false, Ordering::Relaxed);
    }

    /// Lets a vCPU that waited in `from` wait here.
    pub(in super::super) fn take(&mut self, vcpu: VcpuRef, from: &Self) {
        let sched = &vcpu.vcpu().sched;
        self.adopt(sched, from);
        // A vCPU that makes up for its lag at once would keep those that wake waiting.
        let lag = self.minimum.saturating_sub(sched.run_time());
        if lag != 0 {
            sched.move_run_time(self.minimum);
            sched.owed.fetch_add(lag, Ordering::Relaxed);
        }
        self.push(vcpu);
    }

    /// Makes a vCPU of the queue `from`, which neither runs nor waits there, one of this queue.
    pub(in super::super) fn adopt(&mut self, vcpu: &VcpuSched, from: &Self) {
        if self.waiting.is_empty() && self.current.is_none() {
            // What was idle begins where the other queue is.
            self.to_common = from.floor().wrapping_sub(self.minimum);
        }
        let run_time = vcpu.run_time().wrapping_add(from.to_common).wrapping_sub(self.to_common);
        let ahead = (run_time as i64).saturating_sub_unsigned(self.minimum);
        let slice =
            TIME_SLICE_NS * u64::from(DEFAULT_WEIGHT) / u64::from(vcpu.weight.load(Ordering::Relaxed).max(1));
        let ahead = ahead.clamp(-(MOST_LATE_NS as i64), (MOST_AHEAD * slice) as i64);
        vcpu.move_run_time(self.minimum.saturating_add_signed(ahead));
        vcpu.set_cpu(self.cpu);
    }
}
