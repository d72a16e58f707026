//! CPUs come, go, and change pools; domains change pools.
//!
//! Each change is one of the table first. Then all vCPUs get their new masks, and those that wait where they may not run any more
//! are placed anew; a CPU that runs such a vCPU leaves it at its next decision. A CPU that goes is then empty: its timers go to
//! another, and it may stop (I58). The hypercall waits for none of that (W2 of `docs/SMP.md`): it says "again", and goes on when it is
//! executed again.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::pools::{Change, Policy, Pool, PoolError};
use super::{DEFAULT_WEIGHT, Scheduler, is_runnable};
use crate::Hypervisor;
use crate::domain::{Domain, PauseFlags, Vcpu, VcpuRef};
use crate::platform::{CpuId, CpuSet, MAX_CPUS, Platform, SOFTIRQ_SCHEDULE};
use crate::return_stack;

impl Scheduler {
    /// The first pool whose number is at least `id`.
    pub(crate) fn pool_from(&self, id: u32) -> Option<Pool> {
        self.pools.lock().first_from(id)
    }

    /// The CPUs that are in no pool.
    pub(crate) fn free_cpus(&self) -> CpuSet {
        self.pools.lock().free()
    }

    /// The CPU whose coming into a pool, or going from it, is under way.
    pub(crate) fn moving_cpu(&self, id: u32) -> Option<CpuId> {
        self.pools.lock().moving(id)
    }

    /// The policy and the CPUs of a domain's pool.
    pub(crate) fn pool_of(&self, domain: &Domain) -> (Policy, CpuSet) {
        let pool = self.pools.lock().find(domain.sched.pool());
        pool.map_or((Policy::Shares, CpuSet::default()), |pool| (pool.policy, pool.cpus))
    }

    /// Makes a pool without CPUs. `None`: with any number.
    pub(crate) fn create_pool(&self, id: Option<u32>, policy: Policy) -> Result<u32, PoolError> {
        self.pools.lock().create(id, policy)
    }

    /// Ends a pool that has neither domains nor CPUs.
    pub(crate) fn destroy_pool(&self, id: u32) -> Result<(), PoolError> {
        self.pools.lock().destroy(id)
    }

    /// Counts a domain that is made next in its pool.
    pub(crate) fn enter_pool(&self, id: u32) -> Result<(), PoolError> {
        self.pools.lock().enter(id).map(|_| ())
    }

    /// A domain that was counted in a pool was not made.
    pub(crate) fn leave_pool(&self, id: u32) {
        self.pools.lock().leave(id);
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Gives the vCPUs of a new domain the CPUs of its pool. The domain is in the list: a change of the pool finds it there, or came
    /// before.
    pub(crate) fn settle_in_pool(&self, domain: &Domain) {
        domain.vcpus.iter().for_each(|vcpu| {
            self.refresh(domain, vcpu);
        });
    }

    /// Takes a dying domain out of all queues and out of its pool: it shows pool 0 from now on, and counts nowhere.
    pub(crate) fn forget_domain(&self, domain: &Domain) {
        self.sched.forget(domain.id);
        self.sched.pools.lock().leave(domain.sched.pool());
        domain.vcpus.iter().for_each(|vcpu| {
            self.refresh(domain, vcpu);
        });
        domain.sched.set_pool(0);
    }

    /// Stops a vCPU that goes down, and keeps no CPU of the null policy. No other vCPU asks the table of the pools, which is one
    /// for the whole machine: a guest may do this all the time.
    pub(crate) fn take_down(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        let old = vcpu.pause_flags.fetch_or(PauseFlags::DOWN, Ordering::AcqRel);
        self.stop(vcpu);
        if old & PauseFlags::DOWN == 0 && domain.sched.is_null() {
            self.refresh(domain, vcpu);
            // The vCPU may wait for the CPU that is another's now. If another CPU has brought it up again meanwhile, it waits anew.
            self.place_anew(domain, vcpu);
        }
    }

    /// Makes a vCPU's mask. Whether the mask is another than before.
    pub(super) fn refresh(&self, domain: &Domain, vcpu: &Vcpu) -> bool {
        self.make_mask(domain, vcpu, false)
    }

    /// Whether a vCPU that is about to run has a CPU to run on, or one of the null policy finds one.
    pub(super) fn has_cpu(&self, domain: &Domain, vcpu: &Vcpu) -> bool {
        let has = |vcpu: &Vcpu| vcpu.sched.allowed() != CpuSet::default();
        has(vcpu) || self.make_mask(domain, vcpu, true) && has(vcpu)
    }

    fn make_mask(&self, domain: &Domain, vcpu: &Vcpu, runs: bool) -> bool {
        let mut pools = self.sched.pools.lock();
        let before = vcpu.sched.allowed();
        let (cpus, left) = pools.refresh(domain, vcpu, runs);
        drop(pools);
        if let Some(cpu) = left {
            self.raise_softirq(cpu, SOFTIRQ_SCHEDULE); // the CPU looks who waits for one
        }
        cpus != before
    }

    /// A CPU of the null policy has nothing to run: if the CPU is nobody's, the vCPU that has waited longest gets it.
    #[cold]
    pub(super) fn find_owner(&self, cpu: CpuId) {
        // Another CPU may give its own to the same vCPU at the same time: then this one looks again.
        for _ in 0..MAX_CPUS {
            let Some(pool) = self.sched.pools.lock().unowned(cpu) else { return };
            let Some(first) = self.first_waiting(cpu, pool) else { return };
            self.make_runnable(first.domain(), first.vcpu());
        }
    }

    /// Of the vCPUs of a pool of the null policy that have no CPU and could run on `cpu`, the one that has waited longest.
    fn first_waiting(&self, cpu: CpuId, pool: u32) -> Option<VcpuRef> {
        let (mut next, mut first) = (0, None);
        while let Some(domain) = self.domains.first_from(next) {
            next = domain.id.raw() + 1;
            if domain.sched.pool() != pool {
                continue;
            }
            let (_, cpus) = self.sched.pool_of(&domain);
            let waits = |vcpu: &&Vcpu| {
                is_runnable(&domain, vcpu)
                    && vcpu.sched.allowed() == CpuSet::default()
                    && vcpu.sched.usable(cpus).contains(cpu)
            };
            for vcpu in domain.vcpus.iter().filter(waits) {
                let since = vcpu.time.lock().entry_ns;
                if first.as_ref().is_none_or(|(earliest, _)| since < *earliest) {
                    first = VcpuRef::new(&domain, vcpu.id.raw()).map(|vcpu| (since, vcpu));
                }
            }
        }
        first.map(|(_, vcpu)| vcpu)
    }

    /// Takes a vCPU out of the queue in which it waits.
    fn unqueue(&self, vcpu: &VcpuRef) {
        loop {
            let cpu = vcpu.sched.cpu();
            let mut queue = self.sched.cpus[cpu.index()].queue.lock();
            if vcpu.sched.cpu() != cpu {
                continue;
            }
            if vcpu.sched.queued.load(Ordering::Relaxed) {
                queue.remove(vcpu);
            }
            return;
        }
    }

    /// Places a vCPU anew whose mask has changed.
    fn place_anew(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        let Some(this) = VcpuRef::new(domain, vcpu.id.raw()) else { return };
        self.unqueue(&this);
        self.stop(vcpu);
        self.make_runnable(domain, vcpu);
    }

    /// Lets a vCPU run on the CPUs of `hard` alone, as far as its pool has one of them, and rather on those of `soft`.
    pub(crate) fn set_affinity(&self, domain: &Arc<Domain>, vcpu: &Vcpu, hard: CpuSet, soft: CpuSet) {
        vcpu.sched.set_affinity(hard, soft);
        self.refresh(domain, vcpu);
        self.place_anew(domain, vcpu);
    }

    /// Makes the mask of a domain's vCPUs, and places those anew that may not run where they are.
    fn refresh_domain(&self, domain: &Arc<Domain>) {
        let _filled = return_stack::fill_at_end();
        let mut broken = 0;
        for vcpu in &domain.vcpus {
            let had_none = vcpu.sched.allowed() == CpuSet::default();
            let is_new = self.refresh(domain, vcpu);
            let cpus = vcpu.sched.allowed();
            let (hard, _) = vcpu.sched.affinity();
            broken += u32::from(is_new && cpus != CpuSet::default() && cpus.bits() & hard.bits() == 0);
            if is_new && (had_none || !cpus.contains(vcpu.sched.cpu())) {
                self.place_anew(domain, vcpu);
            }
        }
        if broken != 0 {
            log::warn!(
                "{domain:?}: its CPU pool has no CPU of the hard affinity of {broken} vCPU(s), which may run on all of it"
            );
        }
    }

    /// Moves a domain to another pool. Weight and cap begin anew there.
    ///
    /// # Errors
    /// `Invalid`: the domain is dying. `NoSuchPool`: no pool has this number, or the pool has no CPU.
    pub(crate) fn move_to_pool(&self, domain: &Arc<Domain>, pool: u32) -> Result<(), PoolError> {
        {
            let mut pools = self.sched.pools.lock();
            let from = domain.sched.pool();
            if domain.is_dying() {
                return Err(PoolError::Invalid);
            }
            if from == pool {
                return Ok(());
            }
            pools.enter(pool).map_err(|_| PoolError::NoSuchPool)?;
            pools.leave(from);
            domain.sched.set_pool(pool);
        }
        domain.vcpus.iter().for_each(|vcpu| vcpu.sched.weight.store(DEFAULT_WEIGHT, Ordering::Relaxed));
        if domain.sched.cap.percent() != 0 {
            self.set_cap(domain, 0);
        }
        self.refresh_domain(domain);
        // A vCPU that waited for a CPU of the old pool looks for one of the new pool.
        let waits = |vcpu: &&Vcpu| vcpu.sched.allowed() == CpuSet::default();
        domain.vcpus.iter().filter(waits).for_each(|vcpu| self.make_runnable(domain, vcpu));
        Ok(())
    }

    /// Changes what a CPU is used for: one change at a time.
    ///
    /// # Errors
    /// As [`PoolError`] says. `Again`: the same call goes on, or begins when the change that is under way is complete.
    pub(crate) fn change_cpus(&self, change: Change) -> Result<(), PoolError> {
        {
            // The CPU goes on under the lock too: no other change lets it stop meanwhile.
            let mut pools = self.sched.pools.lock();
            if let Change::Online { cpu } = change
                && pools.may_begin(change)
                && self.sched.known_cpus().contains(cpu)
                && !self.sched.online().contains(cpu)
                && !self.platform.unpark(cpu)
            {
                return Err(PoolError::Again);
            }
            pools.begin(change, self.sched.online(), self.sched.known_cpus())?;
            match change {
                Change::Online { cpu } => {
                    self.sched.online.fetch_or(CpuSet::only(cpu).bits(), Ordering::SeqCst)
                }
                Change::Offline { cpu } => {
                    self.sched.online.fetch_and(!CpuSet::only(cpu).bits(), Ordering::SeqCst)
                }
                Change::Add { .. } | Change::Remove { .. } => 0,
            };
        }
        self.tell_queues();
        loop {
            let Some(next) = self.sched.pools.lock().next_domain(change) else { return Ok(()) };
            let Some(domain) = self.domains.first_from(next) else { break };
            self.refresh_domain(&domain);
            self.sched.pools.lock().set_next_domain(change, domain.id.raw() + 1);
            if self.platform.work_pending() {
                return Err(PoolError::Again);
            }
        }
        self.look_again();
        if let Change::Remove { cpu, .. } | Change::Offline { cpu } = change {
            self.empty(cpu)?;
        }
        if let Change::Offline { cpu } = change {
            let pools = self.sched.pools.lock();
            if pools.next_domain(change).is_none() {
                return Ok(());
            }
            if !self.platform.park(cpu) {
                return Err(PoolError::Again);
            }
            drop(pools);
            // A timer that fired there meanwhile may have been set again there.
            self.take_timers(cpu)?;
        }
        self.sched.pools.lock().end(change);
        Ok(())
    }

    /// Tells each queue the CPUs of its pool.
    fn tell_queues(&self) {
        for cpu in self.sched.known() {
            let pool = self.sched.pools.lock().of_cpu(cpu);
            let cpus = pool.map_or(CpuSet::default(), |pool| pool.cpus);
            let is_dedicated = pool.is_some_and(|pool| pool.policy == Policy::Null);
            let mut queue = self.sched.cpus[cpu.index()].queue.lock();
            if queue.pool() != cpus || queue.is_dedicated() != is_dedicated {
                queue.set_pool(cpus, is_dedicated);
                drop(queue);
                self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
            }
        }
    }

    /// Lets the CPUs that share vCPUs look what waits where by the new masks. A dedicated CPU is left in peace.
    fn look_again(&self) {
        for cpu in self.sched.known() {
            let mut queue = self.sched.cpus[cpu.index()].queue.lock();
            if !queue.is_dedicated() {
                queue.count_wanted();
                drop(queue);
                self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
            }
        }
    }

    /// Sees to it that `cpu`, which is in no mask any more, has neither a vCPU nor timers.
    fn empty(&self, cpu: CpuId) -> Result<(), PoolError> {
        if !self.sched.cpus[cpu.index()].queue.lock().is_empty() {
            self.raise_softirq(cpu, SOFTIRQ_SCHEDULE);
            return Err(PoolError::Again);
        }
        let others = self.sched.leave_core(cpu);
        others.iter().for_each(|other| self.raise_softirq(other, SOFTIRQ_SCHEDULE));
        self.take_timers(cpu)
    }

    /// Moves the timers of a CPU that goes to one of pool 0.
    fn take_timers(&self, cpu: CpuId) -> Result<(), PoolError> {
        let to = self.sched.pool_from(0).and_then(|pool| pool.cpus.iter().next()).unwrap_or(CpuId::BOOT);
        if self.move_all_timers(cpu, to) { Ok(()) } else { Err(PoolError::Again) }
    }
}
