//! Cores whose CPUs run vCPUs of one domain at a time, or idle: `sched-gran=core`. (I62)
//!
//! Each CPU keeps its own queue and chooses as ever, among the vCPUs that the core admits: all if no other CPU of the core runs a
//! vCPU, else those of the domain that runs there. A CPU is refused when a vCPU with less run time than the current one waits there and is not
//! admitted. Once the core's domain has had its turn, and all that it runs has more run time than what was refused, the refused CPU
//! claims the core: the other CPUs leave, nobody but the claimant may take the core, and the claimant goes first. When the domain
//! leaves by itself, a refused CPU is next too. So a domain that sleeps and wakes all the time keeps nobody out.
//!
//! A vCPU leaves a core when its CPU, which is in the hypervisor, has decided for another; a vCPU enters in the same way. Both are
//! done under the lock of the core, with the CPU's queue locked.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ring_abi::types::DomId;

use super::places::next_of;
use super::runqueue::{Change, Refused, RunQueue};
use super::{DEFAULT_WEIGHT, LEAST_RUN_NS, Scheduler, TIME_SLICE_NS};
use crate::platform::{CpuId, CpuSet};
use crate::sync::MutexGuard;

/// Which vCPUs a CPU may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admits {
    /// Those of any domain.
    All,
    /// Those of this domain.
    Only(DomId),
    /// None: another CPU is next, or this one is and others have not left.
    Nothing,
}

impl Admits {
    #[inline]
    pub(super) fn admits(self, domain: DomId) -> bool {
        match self {
            Self::All => true,
            Self::Only(only) => domain == only,
            Self::Nothing => false,
        }
    }
}

/// What the CPUs of a core run.
#[derive(Debug, Default)]
pub(super) struct Core {
    /// CPUs that run a vCPU.
    running: CpuSet,
    /// The domain of all these vCPUs.
    domain: DomId,
    /// When the domain's turn began.
    since_ns: u64,
    /// CPUs that were refused at their last decision.
    refused: CpuSet,
    /// The CPU that decides next: the others leave.
    next: Option<CpuId>,
    /// How many turns there were.
    turns: u64,
}

impl Core {
    /// What `cpu` may run.
    pub(super) fn admits(&self, cpu: CpuId) -> Admits {
        match self.next {
            Some(next) if next != cpu => Admits::Nothing,
            _ if self.running.without(cpu) == CpuSet::default() => Admits::All,
            // What this CPU took of the domain now would keep the others from their claims.
            Some(_) => Admits::Nothing,
            None => Admits::Only(self.domain),
        }
    }

    /// `cpu` has decided: it runs a vCPU of the domain `runs`, which the core admits, or idles. The CPUs of the core that look
    /// next, of `siblings`.
    pub(super) fn decide(
        &mut self,
        cpu: CpuId,
        runs: Option<DomId>,
        is_refused: bool,
        siblings: CpuSet,
        now: u64,
    ) -> CpuSet {
        let (was_running, was_next) = (self.running, self.next);
        let mut is_new = false;
        if let Some(domain) = runs {
            is_new = was_running == CpuSet::default() || domain != self.domain;
            if is_new {
                (self.domain, self.since_ns) = (domain, now);
                self.turns += 1;
            }
            self.running = was_running.with(cpu);
        } else {
            self.running = was_running.without(cpu);
        }
        self.refused = if is_refused { self.refused.with(cpu) } else { self.refused.without(cpu) };
        self.next = self.next.filter(|next| *next != cpu || is_refused);
        let is_left = self.running == CpuSet::default();
        if is_left {
            self.next = self.next.or_else(|| next_of(self.refused, cpu));
        }
        let has_moved = self.running != was_running;
        match self.next {
            Some(next) => {
                let is_free = self.running.without(next) == CpuSet::default();
                let is_news = next != cpu && is_free && (has_moved || was_next != self.next);
                if is_news { CpuSet::only(next) } else { CpuSet::default() }
            }
            // What waits elsewhere may be admitted from now on.
            None if is_new || was_next.is_some() || is_left && has_moved => {
                CpuSet::from_bits(siblings.bits() & !self.running.bits()).without(cpu)
            }
            None => CpuSet::default(),
        }
    }

    /// The weight by which the run time of a CPU rises that idles: as if a vCPU ran, unless others of the core do.
    fn idle_weight(&self) -> u32 {
        if self.running == CpuSet::default() { DEFAULT_WEIGHT } else { 0 }
    }

    /// `cpu` decides next. The CPUs that leave for that.
    pub(super) fn claim(&mut self, cpu: CpuId) -> CpuSet {
        self.next = Some(cpu);
        self.running.without(cpu)
    }
}

/// A CPU's place in a core, and how far the CPU has come in the common scale, as of its last decision. Written under the core's lock.
#[derive(Debug)]
pub(super) struct Seat {
    /// The CPUs of the core.
    siblings: AtomicU64,
    /// The run time of the vCPU that runs, or the queue's minimum.
    run_time: AtomicU64,
    since_ns: AtomicU64,
    /// The weight by which the run time rises since then; 0: it stands still.
    weight: AtomicU32,
}

impl Seat {
    /// A core of one CPU.
    pub(super) fn new(cpu: CpuId) -> Self {
        let siblings = AtomicU64::new(CpuSet::only(cpu).bits());
        let [run_time, since_ns] = [(); 2].map(|()| AtomicU64::new(0));
        Self { siblings, run_time, since_ns, weight: AtomicU32::new(0) }
    }

    fn tell(&self, run_time: u64, weight: u32, now: u64) {
        self.run_time.store(run_time, Ordering::Relaxed);
        self.since_ns.store(now, Ordering::Relaxed);
        self.weight.store(weight, Ordering::Relaxed);
    }

    /// How far the CPU has come at `now`.
    fn run_time(&self, now: u64) -> u64 {
        let ran = now.saturating_sub(self.since_ns.load(Ordering::Relaxed));
        let weight = self.weight.load(Ordering::Relaxed);
        let weighted = ran.saturating_mul(DEFAULT_WEIGHT.into()).checked_div(weight.into()).unwrap_or(0);
        self.run_time.load(Ordering::Relaxed).wrapping_add(weighted)
    }

    /// How long the vCPU that runs still runs until it has as much run time as `run_time`.
    fn passes_in_ns(&self, run_time: u64, now: u64) -> u64 {
        let ahead = run_time.wrapping_sub(self.run_time(now)) as i64;
        let weight = u64::from(self.weight.load(Ordering::Relaxed));
        (ahead.max(0) as u64).saturating_mul(weight) / u64::from(DEFAULT_WEIGHT)
    }
}

impl Scheduler {
    /// Says which CPUs are a core, `siblings` of each, before there are vCPUs. `is_gran_core`: a core has one domain at a time.
    pub fn set_cores(&self, siblings: impl Fn(CpuId) -> CpuSet, is_gran_core: bool) {
        for cpu in self.known() {
            let per_cpu = &self.cpus[cpu.index()];
            let core = siblings(cpu).and(self.known_cpus());
            per_cpu.seat.siblings.store(core.bits(), Ordering::Relaxed);
            if is_gran_core && core.count() > 1 {
                per_cpu.queue.lock().share_core();
                self.has_cores.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The CPUs of `cpu`'s core.
    pub(crate) fn siblings(&self, cpu: CpuId) -> CpuSet {
        CpuSet::from_bits(self.cpus[cpu.index()].seat.siblings.load(Ordering::Relaxed))
    }

    /// The most CPUs of a core.
    pub fn threads_per_core(&self) -> u32 {
        self.known().map(|cpu| self.siblings(cpu).count()).max().unwrap_or(1)
    }

    /// The core of `cpu`: the first of its CPUs keeps it.
    fn core(&self, cpu: CpuId) -> MutexGuard<'_, Core> {
        let first = self.siblings(cpu).bits().trailing_zeros() as usize;
        self.cpus[first % self.cpus.len()].core.lock()
    }

    /// What the core of `cpu`, whose queue this is, admits there.
    #[inline]
    pub(super) fn admits(&self, cpu: CpuId, queue: &RunQueue) -> Admits {
        if queue.shares_core() { self.core(cpu).admits(cpu) } else { Admits::All }
    }

    /// Of `idle`, the CPUs on which a vCPU of `domain` may begin at once; `None`: of any domain.
    #[inline]
    pub(super) fn fit_for(&self, idle: CpuSet, domain: Option<DomId>) -> CpuSet {
        if !self.has_cores.load(Ordering::Relaxed) {
            return idle;
        }
        let fits = |cpu: &CpuId| match self.core(*cpu).admits(*cpu) {
            Admits::All => true,
            admits => domain.is_some_and(|domain| admits.admits(domain)),
        };
        idle.iter().filter(fits).fold(CpuSet::default(), CpuSet::with)
    }

    /// Lets the queue of `cpu`, if nothing runs or waits there, go on from where the core has come meanwhile. By itself the
    /// queue of a CPU that idles stands still: how fast the others of the core have gone on depends on what they run.
    fn keep_up(&self, cpu: CpuId, core: &Core, queue: &mut RunQueue, now: u64) {
        let run_time = |other: CpuId| self.cpus[other.index()].seat.run_time(now);
        let running = core.running.without(cpu).iter().map(run_time).min();
        if let Some(floor) = running.or_else(|| self.siblings(cpu).iter().map(run_time).max()) {
            queue.keep_up(floor);
        }
    }

    /// A vCPU is about to wait for `cpu`, whose queue this is.
    #[inline]
    pub(super) fn prepare(&self, cpu: CpuId, queue: &mut RunQueue, now: u64) {
        if queue.shares_core() && queue.is_empty() {
            self.keep_up(cpu, &self.core(cpu), queue, now);
        }
    }

    /// Whether something waits that may run on `cpu`.
    fn is_wanted(&self, cpu: CpuId) -> bool {
        let wanted = |other: CpuId| self.cpus[other.index()].shown.wanted.load(Ordering::Relaxed);
        self.known().any(|other| CpuSet::from_bits(wanted(other)).contains(cpu))
    }

    /// Chooses what runs on `cpu`, whose queue this is, as the core admits.
    #[cold]
    pub(super) fn pick_in_core(&self, cpu: CpuId, queue: &mut RunQueue, now: u64) -> Option<Change> {
        let mut core = self.core(cpu);
        if queue.is_empty() {
            self.keep_up(cpu, &core, queue, now);
        }
        let admits = core.admits(cpu);
        let change = queue.pick_admitted(now, admits);
        let refused = if admits == Admits::All { None } else { queue.refused() };
        let runs = queue.current().map(|vcpu| vcpu.domain_id);
        let siblings = self.siblings(cpu).and(self.online());
        let mut calls = core.decide(cpu, runs, refused.is_some(), siblings, now);
        let seat = &self.cpus[cpu.index()].seat;
        match queue.current() {
            Some(vcpu) => {
                seat.tell(queue.common(vcpu), vcpu.sched.weight.load(Ordering::Relaxed).max(1), now)
            }
            None => seat.tell(queue.floor(), core.idle_weight(), now),
        }
        if core.next.is_none() {
            calls = calls.iter().filter(|other| self.is_wanted(*other)).fold(CpuSet::default(), CpuSet::with);
        }
        let mut look_in_ns = None;
        if let Some(refused) = refused.filter(|_| core.next.is_none()) {
            let due = self.turn_ends(&core, refused, now);
            if due <= now {
                calls = CpuSet::from_bits(calls.bits() | core.claim(cpu).bits());
            } else {
                look_in_ns = Some((due - now).min(TIME_SLICE_NS));
            }
        }
        queue.set_place(look_in_ns, calls);
        change
    }

    /// When the core's domain leaves for a vCPU that was refused: after its turn, and when all vCPUs that it runs have had as much as
    /// that vCPU. A vCPU that woke just now gets the core soon, as it would get a CPU.
    fn turn_ends(&self, core: &Core, refused: Refused, now: u64) -> u64 {
        if refused.is_on_credit {
            return core.since_ns.saturating_add(LEAST_RUN_NS);
        }
        let passes = |cpu: CpuId| self.cpus[cpu.index()].seat.passes_in_ns(refused.run_time, now);
        let passed = core.running.iter().map(passes).max().unwrap_or(0);
        core.since_ns.saturating_add(TIME_SLICE_NS).max(now.saturating_add(passed))
    }

    /// The CPUs that idle beside a vCPU of a domain of which another vCPU waits in the queue of `cpu`.
    pub(super) fn beside_own(&self, cpu: CpuId, queue: &RunQueue) -> CpuSet {
        let idle = CpuSet::from_bits(self.idle.load(Ordering::SeqCst)).and(queue.wanted());
        let waits = |other: &CpuId| match self.core(*other).admits(*other) {
            Admits::Only(domain) => queue.wants(*other, domain),
            Admits::All | Admits::Nothing => false,
        };
        idle.without(cpu).iter().filter(waits).fold(CpuSet::default(), CpuSet::with)
    }

    /// A CPU that has nothing to run any more goes: its core does not wait for it.
    pub(super) fn leave_core(&self, cpu: CpuId) -> CpuSet {
        if !self.has_cores.load(Ordering::Relaxed) {
            return CpuSet::default();
        }
        self.core(cpu).decide(cpu, None, false, self.siblings(cpu).and(self.online()), 0)
    }

    /// Shows `line` the CPUs of each core that has several, how many turns there were, and what runs there.
    pub fn describe_cores(&self, mut line: impl FnMut(CpuSet, u64, &[Option<DomId>; 2])) {
        for cpu in self.known().filter(|_| self.has_cores.load(Ordering::Relaxed)) {
            let first = self.siblings(cpu).iter().next();
            if let Some(first) = first.filter(|first| *first != cpu) {
                // With both queues locked, neither CPU decides meanwhile.
                let (a, b) = self.lock_two(first, cpu);
                let domain = |queue: &RunQueue| queue.current().map(|vcpu| vcpu.domain_id);
                let runs = [domain(&a), b.as_deref().and_then(domain)];
                drop((a, b));
                let turns = self.core(cpu).turns;
                line(self.siblings(cpu), turns, &runs);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_forgets_the_claim_of_a_cpu_that_goes() {
        let sched = Scheduler::default();
        let [stays, goes] = [0, 1].map(|cpu| CpuId::new(cpu).expect("few CPUs"));
        let both = CpuSet::only(stays).with(goes);
        sched.has_cores.store(true, Ordering::Relaxed);
        for cpu in both.iter() {
            sched.cpus[cpu.index()].seat.siblings.store(both.bits(), Ordering::Relaxed);
        }
        let (first, other) = (DomId::new(1), DomId::new(2));
        let _ = sched.core(stays).decide(stays, Some(first), false, both, 0);
        let _ = sched.core(goes).decide(goes, None, true, both, 0);
        assert_eq!(sched.core(goes).claim(goes), CpuSet::only(stays), "the other CPU leaves for it");
        assert_eq!(sched.core(stays).admits(stays), Admits::Nothing);
        let _ = sched.leave_core(goes);
        assert_eq!(sched.core(stays).admits(stays), Admits::All);
        let _ = sched.core(stays).decide(stays, Some(other), false, both, 0);
        assert_eq!(sched.core(stays).admits(stays), Admits::All, "nobody else is refused");
    }
}
