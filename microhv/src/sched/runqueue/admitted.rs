//! The queue of a CPU whose core admits vCPUs of one domain at a time: see `cores`.

use super::super::cores::Admits;
use super::several::LOOKED_AT;
use super::{Change, RunQueue, Waiting, is_runnable};
use crate::domain::VcpuRef;
use crate::platform::{CpuId, CpuSet};
use ring_abi::types::DomId;

/// What the other CPUs of the core mean for a CPU.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Whether there are others.
    shares_core: bool,
    /// When the CPU looks at latest whether the core's domain has had its turn.
    look_in_ns: Option<u64>,
    /// CPUs that look when this one has settled.
    calls: CpuSet,
    /// How many vCPUs had come when others were last told what waits.
    told: u64,
}

/// A vCPU that the core did not admit, though the vCPU's turn had come.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Refused {
    /// The vCPU's run time in the common scale.
    pub(in super::super) run_time: u64,
    /// Whether the vCPU waits on the credit of a wake-up.
    pub(in super::super) is_on_credit: bool,
}

impl RunQueue {
    /// From now on the core of the CPU admits one domain at a time.
    pub(in super::super) fn share_core(&mut self) {
        (self.place.shares_core, self.is_plain) = (true, false);
    }

    /// Whether the core of the CPU admits one domain at a time.
    #[inline(always)]
    pub(in super::super) fn shares_core(&self) -> bool {
        self.place.shares_core
    }

    /// When the CPU looks at latest, from its last decision on.
    pub(super) fn look_in_ns(&self) -> Option<u64> {
        self.place.look_in_ns
    }

    /// The CPU looks again in so many ns, and the CPUs of `calls` look when this one has settled.
    pub(in super::super) fn set_place(&mut self, look_in_ns: Option<u64>, calls: CpuSet) {
        self.place.look_in_ns = look_in_ns;
        self.place.calls = CpuSet::from_bits(self.place.calls.bits() | calls.bits());
    }

    /// The CPUs that are to look.
    pub(in super::super) fn take_calls(&mut self) -> CpuSet {
        core::mem::take(&mut self.place.calls)
    }

    /// Whether vCPUs came since this was asked last.
    pub(in super::super) fn has_news(&mut self) -> bool {
        core::mem::replace(&mut self.place.told, self.arrivals) != self.arrivals
    }

    /// Others are told again what waits.
    pub(in super::super) fn retell(&mut self) {
        self.place.told = 0;
    }

    /// CPUs on which something that waits may run.
    pub(in super::super) fn wanted(&self) -> CpuSet {
        self.wanted
    }

    /// Whether a vCPU of `domain` waits that may run on `cpu`.
    pub(in super::super) fn wants(&self, cpu: CpuId, domain: DomId) -> bool {
        let fits =
            |entry: &Waiting| entry.vcpu.domain_id == domain && entry.vcpu.sched.allowed().contains(cpu);
        self.waiting.iter().take(LOOKED_AT).any(fits)
    }

    /// A vCPU's run time in the common scale.
    pub(in super::super) fn common(&self, vcpu: &VcpuRef) -> u64 {
        vcpu.sched.run_time().wrapping_add(self.to_common)
    }

    /// Raises the minimum to `floor`, of the common scale.
    pub(in super::super) fn keep_up(&mut self, floor: u64) {
        let behind = floor.wrapping_sub(self.floor()) as i64;
        self.minimum = self.minimum.saturating_add(behind.max(0) as u64);
    }

    /// Whether something may run here that is admitted.
    pub(in super::super) fn has_admitted(&self, admits: Admits) -> bool {
        let runs = |vcpu: &VcpuRef| admits.admits(vcpu.domain_id) && is_runnable(vcpu.domain(), vcpu.vcpu());
        self.current.as_ref().is_some_and(|current| runs(current) && self.may_keep(current.vcpu()))
            || self.waiting.iter().take(LOOKED_AT).any(|entry| runs(&entry.vcpu))
    }

    /// What waits and should run before the current vCPU.
    pub(in super::super) fn refused(&self) -> Option<Refused> {
        let first = self.waiting.peek()?;
        let is_first = |current: &VcpuRef| first.run_time < current.sched.run_time();
        self.current.as_ref().is_none_or(is_first).then(|| Refused {
            run_time: first.run_time.wrapping_add(self.to_common),
            is_on_credit: self.is_on_credit(first.run_time),
        })
    }

    /// Chooses the vCPU that runs from `now` on among those that are admitted; `None` when nothing changes.
    pub(in super::super) fn pick_admitted(&mut self, now: u64, admits: Admits) -> Option<Change> {
        match admits {
            Admits::All => self.pick(now),
            Admits::Only(domain) => self.pick_by(now, |queue| queue.pop_of(domain)),
            Admits::Nothing => {
                self.account(now);
                let goes_on = self.goes_on();
                let previous = self.current.take()?;
                if goes_on {
                    self.push(previous.clone());
                }
                (self.wait, self.came_ns) = (None, self.since_ns);
                Some((Some(previous), None))
            }
        }
    }

    /// Takes the next vCPU of `domain` that can run out of the queue.
    fn pop_of(&mut self, domain: DomId) -> Option<VcpuRef> {
        let runs = |entry: &&Waiting| {
            entry.vcpu.domain_id == domain && is_runnable(entry.vcpu.domain(), entry.vcpu.vcpu())
        };
        let first = self.waiting.iter().take(LOOKED_AT).filter(runs).min_by_key(|entry| entry.order());
        let vcpu = first.map(|entry| entry.vcpu.clone())?;
        self.remove(&vcpu);
        // As in `pop`: all vCPUs of a domain share the credit.
        let spent = self.spent(vcpu.domain());
        if vcpu.sched.run_time() < spent {
            vcpu.sched.set_run_time(spent + 1);
        }
        Some(vcpu)
    }
}
