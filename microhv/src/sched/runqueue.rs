//! The run queue of one CPU: which vCPU runs, which wait, and which is next.

mod admitted;
mod several;

use alloc::collections::BinaryHeap;
use core::cmp::Ordering as Order;
use core::sync::atomic::Ordering;

use ring_abi::types::DomId;

use super::state::RESTS;
use super::{
    COURTEOUS_RUN_NS, DEFAULT_WEIGHT, LEAST_RUN_NS, TIME_SLICE_NS, VAIN_WAIT_NS, WAKE_CREDIT_NS,
    WAKE_GRANULARITY_NS, is_runnable,
};
use crate::domain::{Domain, Vcpu, VcpuRef};
use crate::growth::missing;
use crate::platform::{CpuId, CpuSet};
use crate::return_stack;
use admitted::Place;
pub(super) use admitted::Refused;

/// How many vCPUs one choice puts back into the queue at most. Then the next vCPU is taken as it comes: guests choose how
/// many wait. (I13)
const PUT_BACK: usize = 128;

#[derive(Debug)]
struct Waiting {
    run_time: u64,
    arrival: u64,
    vcpu: VcpuRef,
}

impl Waiting {
    /// The least runs first: least run time, then first come.
    fn order(&self) -> (u64, u64) {
        (self.run_time, self.arrival)
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    /// The greatest runs first.
    fn cmp(&self, other: &Self) -> Order {
        other.order().cmp(&self.order())
    }
}

/// The vCPU that runs on a CPU, and the vCPUs that wait for the CPU. An entry whose vCPU may no longer run stays until the
/// entry comes up.
#[derive(Debug, Default)]
pub(super) struct RunQueue {
    waiting: BinaryHeap<Waiting>,
    current: Option<VcpuRef>,
    /// System time at which the current vCPU came.
    came_ns: u64,
    /// System time at which the CPU last looked at the queue, if there are other CPUs.
    looked_ns: u64,
    /// System time from which the current vCPU's run is not accounted.
    since_ns: u64,
    /// No vCPU on this CPU has less run time than this, except on the credit of a wake-up. Never falls.
    minimum: u64,
    arrivals: u64,
    /// ns without a vCPU until `since_ns`.
    idle_ns: u64,
    /// The domain that waits until the current vCPU has run for [`LEAST_RUN_NS`], and since when.
    wait: Option<(DomId, u64)>,
    /// What makes run times of this queue those of the common scale when it is added, modulo 2^64.
    to_common: u64,
    /// CPUs on which vCPUs that wait here may run: none is missing, and some may be left from vCPUs that went.
    wanted: CpuSet,
    /// The CPUs among which vCPUs move that this one may run: those of its pool, this one too; none while it is in no pool.
    pool: CpuSet,
    /// Whether there are other CPUs, of this pool or another.
    is_shared: bool,
    /// Whether the pool's policy is null: the CPU belongs to one vCPU, or to none.
    is_dedicated: bool,
    /// Whether some domain has a cap, or had one.
    has_caps: bool,
    /// Neither other CPUs nor caps count here.
    is_plain: bool,
    cpu: CpuId,
    /// What the other CPUs of the core mean for this one.
    place: Place,
}

/// How long `current` runs until its run time has clearly passed `run_time`.
fn passes_in_ns(current: &Vcpu, run_time: u64) -> u64 {
    let ahead = run_time.saturating_add(WAKE_GRANULARITY_NS).saturating_sub(current.sched.run_time());
    let weight = u64::from(current.sched.weight.load(Ordering::Relaxed));
    ahead.saturating_mul(weight) / u64::from(DEFAULT_WEIGHT)
}

/// When a vCPU that wakes gets the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// At once.
    Now,
    /// At this system time, unless the running vCPU gives way before.
    At(u64),
    /// When the vCPU's turn comes.
    Later,
}

/// The vCPU that ran, and the vCPU that runs.
pub(super) type Change = (Option<VcpuRef>, Option<VcpuRef>);

impl RunQueue {
    pub(super) fn new(cpu: CpuId) -> Self {
        Self { cpu, pool: CpuSet::only(cpu), is_plain: true, ..Self::default() }
    }

    /// Makes room for so many vCPUs in all, so that adding them takes no memory. `false`: `may_spend` refuses what the room
    /// takes, or there is none. (I31)
    pub(super) fn make_room(&mut self, vcpus: usize, may_spend: impl Fn(usize) -> bool) -> bool {
        let more = missing::<Waiting>((self.waiting.len(), self.waiting.capacity()), vcpus, may_spend);
        more.is_some_and(|more| self.waiting.try_reserve_exact(more).is_ok())
    }

    /// ns without a vCPU since the first came, until `now`.
    pub(super) fn idle_ns(&self, now: u64) -> u64 {
        let is_idle = self.current.is_none() && self.arrivals != 0;
        self.idle_ns + if is_idle { now.saturating_sub(self.since_ns) } else { 0 }
    }

    pub(super) fn current(&self) -> Option<&VcpuRef> {
        self.current.as_ref()
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = &VcpuRef> {
        self.waiting.iter().map(|entry| &entry.vcpu)
    }

    /// How long the current vCPU, which was chosen just now, runs before the queue is looked at again. `None`: no vCPU
    /// waits.
    pub(super) fn slice_ns(&self) -> Option<u64> {
        let first = self.waiting.peek()?;
        let Some(current) = self.current.as_ref().filter(|_| self.is_on_credit(first.run_time)) else {
            return Some(TIME_SLICE_NS);
        };
        Some(passes_in_ns(current, first.run_time).clamp(LEAST_RUN_NS, TIME_SLICE_NS))
    }

    /// The least run time with which a vCPU of `domain` waits here. A domain's only vCPU has that in its own run time.
    fn spent(&self, domain: &Domain) -> u64 {
        if domain.vcpus.len() > 1 { domain.sched.spent[self.cpu.index()].load(Ordering::Relaxed) } else { 0 }
    }

    /// Whether a vCPU that waits with this run time has had clearly less than others.
    fn is_on_credit(&self, run_time: u64) -> bool {
        run_time.saturating_add(WAKE_GRANULARITY_NS) < self.minimum
    }

    /// Adds what the current vCPU ran since the last time to its account. Another CPU that read its clock later may have been
    /// here before: what it accounted for is not counted twice. (I55)
    pub(super) fn account(&mut self, now: u64) {
        let ran = now.saturating_sub(self.since_ns);
        self.since_ns += ran;
        let Some(current) = &self.current else {
            // Idle time counts as if a vCPU had run, so that a vCPU that sleeps meanwhile gets credit too.
            // With others of a core the CPU idles for their sake, and goes on from where they are: see `cores`.
            self.minimum = self.minimum.saturating_add(if self.shares_core() { 0 } else { ran });
            self.idle_ns += if self.arrivals == 0 { 0 } else { ran };
            return;
        };
        let (domain, current) = (current.domain(), &current.vcpu().sched);
        let weight = u64::from(current.weight.load(Ordering::Relaxed).max(1));
        let mut weighted = ran.saturating_mul(u64::from(DEFAULT_WEIGHT)) / weight;
        if !self.is_plain {
            if !domain.sched.cap.pay(ran, now) {
                domain.pause_count.fetch_or(RESTS, Ordering::AcqRel);
            }
            weighted = current.pay(weighted);
        }
        let run_time = current.run_time().saturating_add(weighted);
        current.set_run_time(run_time);
        let least = self.waiting.peek().map_or(run_time, |first| first.run_time.min(run_time));
        self.minimum = self.minimum.max(least);
        if domain.vcpus.len() > 1 {
            let spent = &domain.sched.spent[self.cpu.index()];
            let rest = spent.load(Ordering::Relaxed).max(self.minimum.saturating_sub(WAKE_CREDIT_NS));
            spent.store(rest.saturating_add(weighted).min(self.minimum), Ordering::Relaxed);
        }
    }

    fn push(&mut self, vcpu: VcpuRef) {
        let sched = &vcpu.vcpu().sched;
        self.arrivals += 1;
        sched.queued.store(true, Ordering::Relaxed);
        if self.is_shared {
            self.wanted = CpuSet::from_bits(self.wanted.bits() | sched.allowed().bits());
        }
        let (run_time, arrival) = (sched.run_time(), self.arrivals);
        let waiting = Waiting { run_time, arrival, vcpu };
        // There is room (I31), so the compiler's code for the other case is out of the way of each wake-up.
        if self.waiting.len() < self.waiting.capacity() {
            self.waiting.push(waiting);
        } else {
            self.push_and_grow(waiting);
        }
    }

    #[cold]
    #[inline(never)]
    fn push_and_grow(&mut self, waiting: Waiting) {
        let _filled = return_stack::fill_at_end();
        self.waiting.push(waiting);
    }

    /// Takes the next vCPU that can run out of the queue.
    fn pop(&mut self) -> Option<VcpuRef> {
        let mut put_back = 0;
        while let Some(Waiting { vcpu, run_time, arrival }) = self.waiting.pop() {
            let (domain, this) = (vcpu.domain(), vcpu.vcpu());
            if !is_runnable(domain, this) {
                this.sched.queued.store(false, Ordering::Relaxed);
                continue;
            }
            // Other vCPUs of its domain ran since this vCPU came: all vCPUs of a domain share the credit, so this
            // vCPU has no more left than they have.
            let spent = self.spent(domain);
            if run_time < spent && put_back < PUT_BACK {
                put_back += 1;
                let run_time = spent + 1; // after a vCPU that has this run time because it ran so long itself
                this.sched.set_run_time(run_time);
                if self.waiting.peek().is_some_and(|first| first.run_time < run_time) {
                    self.waiting.push(Waiting { vcpu, run_time, arrival });
                    continue;
                }
            }
            this.sched.queued.store(false, Ordering::Relaxed);
            return Some(vcpu);
        }
        None
    }

    /// Lets `vcpu` wait for the CPU, unless it waits or runs already, and says when it should get the CPU.
    #[inline(always)]
    pub(super) fn add(&mut self, vcpu: VcpuRef, now: u64) -> Wake {
        if self.current.as_ref().is_some_and(|current| current.same(&vcpu)) {
            return Wake::Later;
        }
        self.account(now);
        let (domain, is_control) = (vcpu.domain_id, vcpu.domain().privileged);
        let sched = &vcpu.vcpu().sched;
        let mut run_time = sched.run_time();
        // A vCPU that could not run for a while may still be in the queue, at its old place.
        if !sched.queued.load(Ordering::Relaxed) {
            let spent = self.spent(vcpu.domain());
            run_time = run_time.max(self.minimum.saturating_sub(WAKE_CREDIT_NS));
            if run_time < spent {
                run_time = spent + 1;
            }
            sched.set_run_time(run_time);
            sched.woke_at.store(run_time, Ordering::Relaxed);
            self.push(vcpu);
        }
        // A vCPU that went to sleep just now stays the current one until the scheduler runs.
        let Some((its_domain, current)) = self.current.as_ref().map(|vcpu| (vcpu.domain(), vcpu.vcpu()))
        else {
            return Wake::Now;
        };
        if !is_runnable(its_domain, current) {
            return Wake::Now;
        }
        if run_time.saturating_add(WAKE_GRANULARITY_NS) >= current.sched.run_time() {
            if !self.is_on_credit(run_time) {
                return Wake::Later;
            }
            let least = self.came_ns.saturating_add(LEAST_RUN_NS);
            return Wake::At(now.saturating_add(passes_in_ns(current, run_time)).max(least));
        }
        if self.came_ns.saturating_add(LEAST_RUN_NS) <= now {
            return Wake::Now;
        }
        // What a busy guest asks of the control domain meanwhile piles up. Between others nothing does.
        let is_busy = (its_domain.privileged || !is_control) && current.sched.has_run_without_sleep();
        let least_ns = if is_busy || current.sched.is_courteous_to(domain) {
            COURTEOUS_RUN_NS
        } else {
            if self.wait.is_none_or(|(waiter, _)| waiter != domain) {
                self.wait = Some((domain, now));
            }
            LEAST_RUN_NS
        };
        let may_go = self.came_ns.saturating_add(least_ns);
        if may_go <= now { Wake::Now } else { Wake::At(may_go) }
    }

    /// Chooses the vCPU that runs from `now` on; `None` when nothing changes.
    #[inline(always)]
    pub(super) fn pick(&mut self, now: u64) -> Option<Change> {
        self.pick_by(now, Self::pop)
    }

    /// The same, where `pop` takes the next vCPU that can run here out of the queue.
    #[inline(always)]
    fn pick_by(&mut self, now: u64, pop: impl Fn(&mut Self) -> Option<VcpuRef>) -> Option<Change> {
        self.account(now);
        let (mut stays, mut yields) = (false, false);
        if let Some(current) = &self.current {
            let (domain, current) = (current.domain(), current.vcpu());
            stays = is_runnable(domain, current) && self.may_keep(current);
            yields = current.sched.yielded.swap(false, Ordering::Relaxed);
            let slept_early = !stays && now < self.came_ns.saturating_add(LEAST_RUN_NS);
            if let Some((waiter, since)) = self.wait.take()
                && slept_early
                && now < since.saturating_add(VAIN_WAIT_NS)
            {
                current.sched.be_courteous_to(waiter);
            }
        }
        if !stays {
            let next = pop(self);
            let previous = self.current.take();
            self.current = next.clone();
            self.came_ns = self.since_ns;
            return (previous.is_some() || next.is_some()).then_some((previous, next));
        }
        let next = pop(self)?;
        let current = self.current.take()?;
        let (ran, waited) = (current.sched.run_time(), next.sched.run_time());
        if !yields && ran <= waited {
            self.push(next);
            self.current = Some(current);
            return None;
        }
        if yields && ran <= waited {
            current.sched.set_run_time(waited.saturating_add(1));
        }
        self.push(current.clone());
        self.current = Some(next.clone());
        self.came_ns = self.since_ns;
        Some((Some(current), Some(next)))
    }

    /// Takes all vCPUs of a domain out of the queue but the running vCPU.
    pub(super) fn forget(&mut self, domain: DomId) {
        self.waiting.retain(|entry| {
            let keep = entry.vcpu.domain_id != domain;
            if !keep {
                entry.vcpu.sched.queued.store(false, Ordering::Relaxed);
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    #[test]
    fn a_cpu_that_waited_for_the_queue_accounts_for_nothing_twice() {
        let world = World::new(128);
        let mut queue = RunQueue::new(CpuId::BOOT);
        let guest = world.guest(1);
        queue.push(VcpuRef::new(&guest, 0).expect("a vCPU"));
        queue.since_ns = 1_000;
        assert!(queue.pick(1_000).is_some());
        for now in [5_000, 3_000, 6_000] {
            queue.account(now);
        }
        assert_eq!(guest.vcpus[0].sched.run_time(), 5_000);
    }

    #[test]
    fn no_more_are_put_back_than_there_is_time_for() {
        let world = World::new(512);
        let mut queue = RunQueue::new(CpuId::BOOT);
        let guests = [1, 2].map(|_| world.guest(PUT_BACK as u32 - 1));
        for guest in &guests {
            guest.sched.spent[0].store(1_000, Ordering::Relaxed);
            for vcpu in &guest.vcpus {
                queue.push(VcpuRef::new(guest, vcpu.id.raw()).expect("it has this one"));
            }
        }
        let run_time = |vcpu: &VcpuRef| vcpu.sched.run_time();
        queue.waiting().for_each(|vcpu| vcpu.sched.set_run_time(0));
        assert_eq!(queue.pop().map(|vcpu| run_time(&vcpu)), Some(0), "as it came");
        assert_eq!(queue.waiting().filter(|vcpu| run_time(vcpu) == 1_001).count(), PUT_BACK);
    }
}
