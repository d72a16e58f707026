//! CPU pools: which CPUs are whose, by what policy, and which vCPU a CPU of the null policy belongs to.
//!
//! Each CPU that is online is in one pool, or free. A domain is in one pool, and its vCPUs run on the pool's CPUs alone: what
//! each may use is a mask that this table makes from the pool's CPUs and the vCPU's hard affinity (I57). All else in the
//! scheduler obeys the masks and knows no pools.
//!
//! The null policy gives each vCPU a CPU of its own: the vCPU's mask has that CPU alone. A vCPU for which no CPU is free has an
//! empty mask, and waits. The vCPU keeps the CPU while it sleeps or is paused, until it goes down, ends, or leaves the pool.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::types::{DomId, VcpuId};

use crate::domain::{Domain, Vcpu};
use crate::platform::{CpuId, CpuSet, MAX_CPUS};

/// The most pools.
const MAX_POOLS: usize = MAX_CPUS;

/// How a pool's CPUs are given to vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// By weight, and taken over from each other.
    Shares,
    /// One vCPU for each CPU.
    Null,
}

/// Why a request about pools or CPUs is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolError {
    /// There is no such pool.
    NoSuchPool,
    /// The pool exists, or the CPU is in that state already.
    Exists,
    /// There are too many pools.
    TooMany,
    /// The pool has domains or CPUs, a CPU comes or goes, or this CPU is the last to run the pool's domains.
    Busy,
    /// The pool has no CPU.
    NoCpu,
    /// The CPU is not free, or in a pool that it does not leave this way.
    NotFree,
    /// The CPU is not in the pool.
    NotInPool,
    /// There is no such CPU, or it is the boot CPU.
    Invalid,
    /// The change is under way: the same request goes on.
    Again,
}

/// A pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    /// The pool's number.
    pub(crate) id: u32,
    /// How the pool's CPUs are given out.
    pub(crate) policy: Policy,
    /// The pool's CPUs.
    pub(crate) cpus: CpuSet,
    /// How many domains are in it: the dying are not.
    pub(crate) domains: u32,
}

/// A change of what a CPU is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A free CPU becomes one of a pool.
    Add { pool: u32, cpu: CpuId },
    /// A pool's CPU becomes free.
    Remove { pool: u32, cpu: CpuId },
    /// A CPU that is free or in pool 0 stops.
    Offline { cpu: CpuId },
    /// A CPU that stopped goes to pool 0.
    Online { cpu: CpuId },
}

/// The pools and their CPUs.
#[derive(Debug)]
pub(super) struct Pools {
    /// By number. There is room for the most there can be.
    pools: Vec<Pool>,
    free: CpuSet,
    /// For each CPU of the null policy, the vCPU to which it belongs.
    owners: Box<[Option<(DomId, VcpuId)>; MAX_CPUS]>,
    /// The change that some vCPUs do not know yet: those of this domain and of those behind it.
    under_way: Option<(Change, u16)>,
}

impl Default for Pools {
    /// The boot CPU in pool 0.
    fn default() -> Self {
        let mut pools = Vec::with_capacity(MAX_POOLS);
        pools.push(Pool { id: 0, policy: Policy::Shares, cpus: CpuSet::only(CpuId::BOOT), domains: 0 });
        Self { pools, free: CpuSet::default(), owners: CpuId::each(|_| None), under_way: None }
    }
}

impl Pools {
    /// The first pool whose number is at least `id`.
    pub(super) fn first_from(&self, id: u32) -> Option<Pool> {
        self.pools.iter().find(|pool| pool.id >= id).copied()
    }

    pub(super) fn find(&self, id: u32) -> Option<Pool> {
        self.first_from(id).filter(|pool| pool.id == id)
    }

    fn get(&mut self, id: u32) -> Result<&mut Pool, PoolError> {
        self.pools.iter_mut().find(|pool| pool.id == id).ok_or(PoolError::NoSuchPool)
    }

    /// The pool that has `cpu`.
    pub(super) fn of_cpu(&self, cpu: CpuId) -> Option<Pool> {
        self.pools.iter().find(|pool| pool.cpus.contains(cpu)).copied()
    }

    /// The CPUs that are in no pool.
    pub(super) fn free(&self) -> CpuSet {
        self.free
    }

    /// Makes a pool without CPUs. `None`: with the least number that is free.
    pub(super) fn create(&mut self, id: Option<u32>, policy: Policy) -> Result<u32, PoolError> {
        let gap = || (0..).zip(&self.pools).find(|(n, pool)| *n != pool.id).map(|(n, _)| n);
        let id = id.or_else(gap).unwrap_or(self.pools.len() as u32);
        if self.find(id).is_some() {
            return Err(PoolError::Exists);
        }
        let place = self.pools.iter().take_while(|pool| pool.id < id).count();
        let pool = Pool { id, policy, cpus: CpuSet::default(), domains: 0 };
        if self.pools.len() == MAX_POOLS {
            return Err(PoolError::TooMany);
        }
        self.pools.insert(place, pool);
        Ok(id)
    }

    /// Ends a pool that has neither domains nor CPUs.
    pub(super) fn destroy(&mut self, id: u32) -> Result<(), PoolError> {
        let pool = *self.get(id)?;
        // The caller that moves a CPU goes on by the pool's number: without the pool that change would stay under way for good.
        if id == 0 || pool.domains != 0 || pool.cpus != CpuSet::default() || self.moving(id).is_some() {
            return Err(PoolError::Busy);
        }
        self.pools.retain(|pool| pool.id != id);
        Ok(())
    }

    /// Counts a domain that comes into a pool with CPUs.
    pub(super) fn enter(&mut self, id: u32) -> Result<Policy, PoolError> {
        let pool = self.get(id)?;
        if pool.cpus == CpuSet::default() {
            return Err(PoolError::NoCpu);
        }
        pool.domains += 1;
        Ok(pool.policy)
    }

    /// Counts a domain that leaves a pool.
    pub(super) fn leave(&mut self, id: u32) {
        if let Ok(pool) = self.get(id) {
            pool.domains = pool.domains.saturating_sub(1);
        }
    }

    /// Whether no other change is under way.
    pub(super) fn may_begin(&self, change: Change) -> bool {
        self.under_way.is_none_or(|(under_way, _)| under_way == change)
    }

    /// Changes what a CPU is used for, unless that very change is under way. `online` are the CPUs that are in use, `known` those
    /// that there are.
    ///
    /// # Errors
    /// As [`PoolError`] says. `Again`: another change is under way.
    pub(super) fn begin(&mut self, change: Change, online: CpuSet, known: CpuSet) -> Result<(), PoolError> {
        if !self.may_begin(change) {
            return Err(PoolError::Again);
        }
        if self.under_way.is_some() {
            return Ok(());
        }
        match change {
            Change::Add { pool, cpu } => {
                let free = self.free;
                let pool = self.get(pool)?;
                if !free.contains(cpu) {
                    return Err(PoolError::NotFree);
                }
                pool.cpus = pool.cpus.with(cpu);
                self.free = free.without(cpu);
            }
            Change::Remove { pool, cpu } => {
                self.take_from(pool, cpu)?;
                self.free = self.free.with(cpu);
            }
            Change::Offline { cpu } => match () {
                () if cpu == CpuId::BOOT || !known.contains(cpu) => return Err(PoolError::Invalid),
                () if !online.contains(cpu) => return Err(PoolError::Exists),
                () if self.free.contains(cpu) => self.free = self.free.without(cpu),
                () if self.pools[0].cpus.contains(cpu) => self.take_from(0, cpu)?,
                () => return Err(PoolError::NotFree),
            },
            Change::Online { cpu } => match () {
                () if !known.contains(cpu) => return Err(PoolError::Invalid),
                () if online.contains(cpu) => return Err(PoolError::Exists),
                () => self.pools[0].cpus = self.pools[0].cpus.with(cpu),
            },
        }
        self.under_way = Some((change, 0));
        Ok(())
    }

    /// Takes a CPU out of a pool that keeps one, or has no domain.
    fn take_from(&mut self, id: u32, cpu: CpuId) -> Result<(), PoolError> {
        let pool = self.get(id)?;
        if !pool.cpus.contains(cpu) {
            return Err(PoolError::NotInPool);
        }
        let rest = pool.cpus.without(cpu);
        if rest == CpuSet::default() && pool.domains != 0 {
            return Err(PoolError::Busy);
        }
        pool.cpus = rest;
        Ok(())
    }

    /// The CPU whose coming into a pool, or going from it, is under way.
    pub(super) fn moving(&self, id: u32) -> Option<CpuId> {
        match self.under_way? {
            (Change::Add { pool, cpu } | Change::Remove { pool, cpu }, _) if pool == id => Some(cpu),
            _ => None,
        }
    }

    /// The domain from which on vCPUs do not know of `change`; `None`: the change is not under way, since the same call on
    /// another CPU completed it.
    pub(super) fn next_domain(&self, change: Change) -> Option<u16> {
        self.under_way.filter(|(under_way, _)| *under_way == change).map(|(_, next)| next)
    }

    /// The vCPUs of the domains below `next` know of `change`, if that is still under way.
    pub(super) fn set_next_domain(&mut self, change: Change, next: u16) {
        if let Some((_, known)) = self.under_way.as_mut().filter(|(under_way, _)| *under_way == change) {
            *known = next.max(*known);
        }
    }

    /// `change` is complete.
    pub(super) fn end(&mut self, change: Change) {
        self.under_way = self.under_way.filter(|(under_way, _)| *under_way != change);
    }

    /// On which CPUs a vCPU may run from now on, and the CPU that is nobody's any more for that. A vCPU of the null policy that has
    /// no CPU gets a free one if it is about to run: `runs`.
    pub(super) fn refresh(&mut self, domain: &Domain, vcpu: &Vcpu, runs: bool) -> (CpuSet, Option<CpuId>) {
        let me = (domain.id, vcpu.id);
        let own = vcpu.sched.allowed().iter().next().filter(|cpu| self.owners[cpu.index()] == Some(me));
        let pool = self.find(domain.sched.pool());
        domain.sched.set_null(pool.is_some_and(|pool| pool.policy == Policy::Null));
        let usable = pool.map_or(CpuSet::default(), |pool| vcpu.sched.usable(pool.cpus));
        let cpus = match pool.map(|pool| pool.policy) {
            Some(Policy::Shares) => usable,
            Some(Policy::Null) if vcpu.is_up() && !domain.is_dying() => {
                let keeps = own.filter(|cpu| usable.contains(*cpu));
                keeps
                    .or_else(|| self.choose(vcpu, usable).filter(|_| runs))
                    .map_or(CpuSet::default(), CpuSet::only)
            }
            _ => CpuSet::default(),
        };
        let left = own
            .filter(|cpu| cpus != CpuSet::only(*cpu) || pool.is_none_or(|pool| pool.policy != Policy::Null));
        if let Some(cpu) = left {
            self.owners[cpu.index()] = None;
        }
        if pool.is_some_and(|pool| pool.policy == Policy::Null)
            && let Some(cpu) = cpus.iter().next()
        {
            self.owners[cpu.index()] = Some(me);
        }
        vcpu.sched.set_allowed(cpus);
        (cpus, left)
    }

    /// A CPU for a vCPU of the null policy: of its soft affinity rather, and rather its last.
    fn choose(&self, vcpu: &Vcpu, usable: CpuSet) -> Option<CpuId> {
        let is_free = |cpu: &CpuId| self.owners[cpu.index()].is_none();
        let free = usable.iter().filter(is_free).fold(CpuSet::default(), CpuSet::with);
        let rather = vcpu.sched.preferred(free);
        Some(vcpu.sched.cpu()).filter(|last| rather.contains(*last)).or_else(|| rather.iter().next())
    }

    /// Whether `cpu` is of the null policy and nobody's: then the number of its pool.
    pub(super) fn unowned(&self, cpu: CpuId) -> Option<u32> {
        let pool = self.of_cpu(cpu).filter(|pool| pool.policy == Policy::Null)?;
        self.owners[cpu.index()].is_none().then_some(pool.id)
    }
}

impl super::state::DomainSched {
    /// Says in which pool the domain is. Under the lock of the pools.
    pub(super) fn set_pool(&self, id: u32) {
        self.pool.store(id, Ordering::Relaxed);
    }
}
