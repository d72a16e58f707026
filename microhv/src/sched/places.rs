//! Several CPUs: for which CPU a vCPU waits, and what CPUs take over from each other.
//!
//! Run times of different CPUs are compared in a common scale. A busy CPU takes over a vCPU that lags behind all that the CPU has
//! itself, so shares hold over all CPUs. A queue that lags far behind another that cannot relieve it is moved up in the common
//! scale: what its vCPUs missed is due to affinity, or there are no more vCPUs than CPUs, and it is not made up for later.
//!
//! Two orders of stores and loads matter. A CPU first says that it is idle, or that its slice has no end, then looks what waits
//! elsewhere. A CPU that lets a vCPU wait first publishes that, then looks which CPU is idle or has no slice. So one sees the other.

use core::sync::atomic::{Ordering, fence};

use super::cores::Admits;
use super::pools::Change;
use super::runqueue::{RunQueue, Wake};
use super::state::MOST_OWED_NS;
use super::{NO_SLICE, Scheduler, TIME_SLICE_NS, is_runnable};
use crate::Hypervisor;
use crate::domain::{Vcpu, VcpuRef};
use crate::platform::{CpuId, CpuSet, MAX_CPUS, Platform, SOFTIRQ_SCHEDULE};
use crate::sync::{MutexGuard, lock_pair, may_come_between_words};

/// By how much run time a vCPU must lag behind all that a busy CPU has before the CPU takes the vCPU over. vCPUs that only take
/// turns, on different CPUs, are apart by as much as a slice.
const MOVE_LAG_NS: u64 = TIME_SLICE_NS;
/// How far a queue stays behind another that cannot relieve it.
const MOST_UNRELIEVED_NS: u64 = 10 * TIME_SLICE_NS;

type Guard<'a> = MutexGuard<'a, RunQueue>;

/// The CPUs that look after a queue has changed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    /// CPUs on which nothing that waits there could run before.
    wanted: CpuSet,
    /// CPUs whose core admits something that it did not before, or whose core another CPU is to have.
    cores: CpuSet,
}

/// The first of `cpus` behind `cpu`, and round.
pub(super) fn next_of(cpus: CpuSet, cpu: CpuId) -> Option<CpuId> {
    let turned = cpus.bits().rotate_right(cpu.raw());
    (turned != 0).then(|| (turned.trailing_zeros() + cpu.raw()) % MAX_CPUS as u32).and_then(CpuId::new)
}

impl Scheduler {
    /// The CPUs whose queues have room for all vCPUs: those that came up once.
    pub(crate) fn known_cpus(&self) -> CpuSet {
        CpuSet::from_bits(self.known.load(Ordering::SeqCst))
    }

    /// The same, one by one.
    pub(crate) fn known(&self) -> impl Iterator<Item = CpuId> + use<> {
        self.known_cpus().iter()
    }

    /// Locks the queues of two CPUs; the second is missing when both are one.
    pub(super) fn lock_two(&self, a: CpuId, b: CpuId) -> (Guard<'_>, Option<Guard<'_>>) {
        let lock = |cpu: CpuId| (cpu.raw() as u16, &self.cpus[cpu.index()].queue);
        lock_pair(lock(a), lock(b))
    }

    /// Tells others what waits in a queue that changed.
    fn publish(&self, cpu: CpuId, queue: &mut RunQueue) -> News {
        let shown = &self.cpus[cpu.index()].shown;
        let (least, wanted) = queue.offer().unwrap_or((u64::MAX, CpuSet::default()));
        let before = shown.wanted.load(Ordering::Relaxed);
        may_come_between_words();
        shown.floor.store(queue.floor(), Ordering::Relaxed);
        shown.least.store(least, Ordering::Relaxed);
        shown.wanted.store(wanted.bits(), Ordering::Relaxed);
        let wanted = CpuSet::from_bits(wanted.bits() & !before);
        // Those that came, or may run on other CPUs than before, have not been seen by CPUs that idle beside their domain.
        let is_news =
            self.has_cores.load(Ordering::Relaxed) && (queue.has_news() || wanted != CpuSet::default());
        let cores = if is_news { self.beside_own(cpu, queue) } else { CpuSet::default() };
        News { wanted, cores }
    }

    /// Of `cpus`, those where something waits that may run on `cpu`.
    fn offering(&self, cpus: CpuSet, cpu: CpuId) -> impl Iterator<Item = CpuId> {
        let wants = move |other: &CpuId| {
            let wanted = self.cpus[other.index()].shown.wanted.load(Ordering::Relaxed);
            CpuSet::from_bits(wanted).contains(cpu)
        };
        cpus.without(cpu).iter().filter(wants)
    }

    /// Of `cpus`, the CPU where something waits with the least run time in the common scale, below `below`, that may run on
    /// `cpu`.
    fn furthest_behind(&self, cpus: CpuSet, cpu: CpuId, below: u64) -> Option<CpuId> {
        let least = |other: CpuId| (self.cpus[other.index()].shown.least.load(Ordering::Relaxed), other);
        let (least, other) = self.offering(cpus, cpu).map(least).min()?;
        (least < below).then_some(other)
    }

    /// The CPU for which a vCPU that wakes waits. If that was idle, it counts as busy from now on, and the caller lets it look.
    fn choose(&self, vcpu: &Vcpu, last: CpuId) -> CpuId {
        if vcpu.running_on().is_some() || vcpu.sched.queued.load(Ordering::Relaxed) {
            return last;
        }
        let allowed = vcpu.sched.allowed();
        let preferred = vcpu.sched.preferred(allowed);
        let idle = allowed.and(CpuSet::from_bits(self.idle.load(Ordering::SeqCst)));
        let mut idle = self.fit_for(idle, Some(vcpu.domain_id));
        while let Some(cpu) = next_of(idle.and(preferred), last).or_else(|| next_of(idle, last)) {
            let bit = CpuSet::only(cpu);
            if self.idle.fetch_and(!bit.bits(), Ordering::SeqCst) & bit.bits() != 0 {
                return cpu;
            }
            idle = idle.without(cpu);
        }
        if allowed.contains(last) { last } else { next_of(preferred, last).unwrap_or(last) }
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Lets `cpu` run vCPUs. `false`: there is no memory for its queues.
    #[must_use]
    pub fn add_cpu(&self, cpu: CpuId) -> bool {
        let bit = CpuSet::only(cpu).bits();
        // First the mark, then the count of vCPUs: a vCPU that is made meanwhile makes its own room.
        self.sched.known.fetch_or(bit, Ordering::SeqCst);
        if !self.make_room_on(cpu, self.time.vcpus()) {
            self.sched.known.fetch_and(!bit, Ordering::SeqCst);
            return false;
        }
        self.change_cpus(Change::Online { cpu }).is_ok()
    }

    /// Lets one idle CPU look that may run what waits for `cpu`, and those of `news` that have no slices. These take one, so
    /// that nobody calls them again before its end.
    pub(super) fn call(&self, cpu: CpuId, news: News, now: u64) {
        may_come_between_words();
        fence(Ordering::SeqCst);
        let idle = CpuSet::from_bits(self.sched.idle.load(Ordering::Relaxed));
        let rests = |other: &CpuId| {
            let slice_end = self.sched.cpus[other.index()].slice_end.load(Ordering::Relaxed);
            slice_end == NO_SLICE && !idle.contains(*other)
        };
        let resting = news.wanted.without(cpu).iter().filter(rests).inspect(|other| {
            let called_until = &self.sched.cpus[other.index()].called_until;
            called_until.store(now + TIME_SLICE_NS, Ordering::Relaxed);
        });
        resting.for_each(|other| self.raise_softirq(other, SOFTIRQ_SCHEDULE));
        if news.cores != CpuSet::default() {
            news.cores.iter().for_each(|other| self.raise_softirq(other, SOFTIRQ_SCHEDULE));
        }
        self.call_idle(cpu, cpu);
    }

    /// Lets one idle CPU but `other` look that may run what waits for `cpu`.
    fn call_idle(&self, cpu: CpuId, other: CpuId) {
        may_come_between_words();
        let wanted = CpuSet::from_bits(self.sched.cpus[cpu.index()].shown.wanted.load(Ordering::Relaxed));
        let idle = CpuSet::from_bits(self.sched.idle.load(Ordering::SeqCst));
        let idle = self.sched.fit_for(wanted.and(idle).without(cpu).without(other), None);
        if let Some(idle) = next_of(idle, cpu) {
            self.raise_softirq(idle, SOFTIRQ_SCHEDULE);
        }
    }

    /// Lets a vCPU that may run wait for a CPU, where there are several.
    #[cold]
    pub(super) fn place(&self, waking: &VcpuRef, now: u64) {
        let vcpu = waking.vcpu();
        loop {
            // A vCPU of the null policy looks for a CPU of its own. Without one it waits: see `find_owner`.
            if !self.has_cpu(waking.domain(), vcpu) {
                return;
            }
            let last = vcpu.sched.cpu();
            let to = self.sched.choose(vcpu, last);
            let (mut from, mut other) = self.sched.lock_two(last, to);
            let stays = from.has(waking) || vcpu.running_on().is_some();
            let may = stays || vcpu.sched.allowed().contains(to);
            if vcpu.sched.cpu() != last || stays && other.is_some() || !may {
                drop((from, other));
                self.raise_softirq(to, SOFTIRQ_SCHEDULE); // the CPU may have nothing to do after all
                continue;
            }
            if let Some(other) = &mut other {
                from.account(now);
                other.account(now);
                other.adopt(&vcpu.sched, &from);
            }
            if !stays {
                vcpu.sched.owed.fetch_min(MOST_OWED_NS, Ordering::Relaxed);
            }
            let mut queue = other.unwrap_or(from);
            self.sched.prepare(to, &mut queue, now);
            if stays {
                queue.retell(); // the vCPU may have waited there all the time, and be able to run from now on
            }
            let wake = queue.add(waking.clone(), now);
            let wake = queue.not_again_soon(wake, now);
            let news = (wake != Wake::Now).then(|| self.sched.publish(to, &mut queue));
            self.follow(to, queue, wake, now);
            if let Some(news) = news {
                self.call(to, news, now);
            }
            return;
        }
    }

    /// Takes over what waits for another CPU, if this CPU is idle or, at the end of a slice, far ahead. The queue is this CPU's.
    #[cold]
    pub(super) fn take_over<'a>(&'a self, cpu: CpuId, mut queue: Guard<'a>, now: u64) -> Guard<'a> {
        queue.look(now);
        if queue.is_dedicated() {
            if queue.least().is_none() {
                drop(queue);
                self.find_owner(cpu);
                queue = self.sched.cpus[cpu.index()].queue.lock();
            }
            return queue;
        }
        let mut least = queue.least();
        let mut admits = self.sched.admits(cpu, &queue);
        if admits == Admits::All || queue.has_admitted(admits) {
            admits = Admits::All;
        } else {
            least = None;
        }
        may_come_between_words();
        if least.is_none() {
            self.sched.idle.fetch_or(CpuSet::only(cpu).bits(), Ordering::SeqCst);
        } else if now < self.sched.cpus[cpu.index()].slice_end.load(Ordering::Relaxed) {
            return queue;
        }
        let below = least.map_or(u64::MAX, |least| least.saturating_sub(MOVE_LAG_NS));
        let mut others = if admits == Admits::Nothing { CpuSet::default() } else { queue.pool() };
        while let Some(other) = self.sched.furthest_behind(others, cpu, below) {
            drop(queue);
            let (own, theirs) = self.sched.lock_two(cpu, other);
            queue = own;
            let Some(mut theirs) = theirs else { break };
            theirs.account(now);
            let taken = theirs.give(cpu, below, admits);
            let is_taken = taken.is_some();
            if let Some(vcpu) = taken {
                queue.take(vcpu, &theirs);
            }
            let news = self.sched.publish(other, &mut theirs);
            // One idle CPU was called; what is left may be for another, and so is what the core does not admit here. A CPU that
            // took nothing and is wanted all the same does not call: two such CPUs would call each other without end.
            if news.cores != CpuSet::default() {
                news.cores.iter().for_each(|other| self.raise_softirq(other, SOFTIRQ_SCHEDULE));
            }
            if is_taken
                || admits != Admits::All
                || theirs.offer().is_some_and(|(_, wanted)| !wanted.contains(cpu))
            {
                fence(Ordering::SeqCst);
                self.call_idle(other, cpu);
            }
            if is_taken {
                return queue;
            }
            others = others.without(other);
        }
        let (_, wanted) = queue.offer().unwrap_or_default();
        let cannot_relieve = |other: &CpuId| !wanted.contains(*other);
        let floor = |other: CpuId| self.sched.cpus[other.index()].shown.floor.load(Ordering::Relaxed);
        if let Some(floor) = self.sched.offering(queue.pool(), cpu).filter(cannot_relieve).map(floor).max() {
            queue.catch_up(floor.saturating_sub(MOST_UNRELIEVED_NS));
        }
        queue
    }

    /// Tells others what a CPU has decided, whose queue this is, and whether the CPU `was_idle`.
    #[cold]
    pub(super) fn settle(&self, cpu: CpuId, queue: &mut RunQueue, now: u64, was_idle: bool) -> News {
        let mut news = self.sched.publish(cpu, queue);
        if queue.shares_core() {
            news.cores = CpuSet::from_bits(news.cores.bits() | queue.take_calls().bits());
        }
        let bit = CpuSet::only(cpu).bits();
        may_come_between_words();
        if queue.current().is_none() {
            if self.sched.idle.fetch_or(bit, Ordering::SeqCst) & bit == 0 && !queue.is_dedicated() {
                // This CPU has not looked elsewhere since others know that it is idle.
                self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
            }
            return news;
        }
        self.sched.idle.fetch_and(!bit, Ordering::SeqCst);
        if was_idle {
            // Several CPUs may have called this one, which has taken one vCPU: what waits there is for other idle CPUs. A CPU that
            // calls from now on sees that this one is not idle.
            queue.pool().without(cpu).iter().for_each(|other| self.call_idle(other, cpu));
        }
        let per_cpu = &self.sched.cpus[cpu.index()];
        if per_cpu.slice_end.load(Ordering::SeqCst) == NO_SLICE && !queue.is_dedicated() {
            // What the CPU was called for may be gone again. Without a slice, the next that waits would call again at once. (I60)
            let called_until = per_cpu.called_until.load(Ordering::Relaxed);
            let is_offered = || self.sched.offering(queue.pool(), cpu).next().is_some();
            let end = if now < called_until { called_until } else { now + TIME_SLICE_NS };
            if now < called_until || is_offered() {
                per_cpu.slice_end.store(end, Ordering::Relaxed);
                self.wake_by(cpu, end);
            }
        }
        news
    }

    /// A CPU has gone over from one vCPU to another, where there are several CPUs.
    #[cold]
    pub(super) fn changed(&self, cpu: CpuId, news: News, now: u64, [from, to]: [Option<&VcpuRef>; 2]) {
        fence(Ordering::SeqCst);
        let goes_on =
            |next: &VcpuRef| is_runnable(next.domain(), next.vcpu()) && next.sched.allowed().contains(cpu);
        // A CPU that stopped the new vCPU meanwhile has not seen the vCPU run.
        if !to.is_none_or(goes_on) {
            self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
        }
        // The old vCPU may go on, but not on this CPU.
        if let Some(from) = from.filter(|from| !from.sched.queued.load(Ordering::Relaxed)) {
            self.make_runnable(from.domain(), from.vcpu());
        }
        self.call(cpu, news, now);
    }
}
