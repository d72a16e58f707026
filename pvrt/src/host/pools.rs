//! CPU pools of a machine for tests: four CPUs, of which the first stays.

use alloc::collections::BTreeMap;
use ring_abi::domctl::{XEN_SCHEDULER_CREDIT2, XEN_SCHEDULER_NULL};
use ring_abi::errno::Errno;
use ring_abi::sysctl::*;

const CPUS: u64 = 0b1111;

/// The pools: scheduler and CPUs of each, and in which a domain is, unless in pool 0.
#[derive(Clone, Debug)]
pub(super) struct Pools {
    pools: BTreeMap<u32, (u32, u64)>,
    domains: BTreeMap<u32, u32>,
    online: u64,
}

impl Default for Pools {
    fn default() -> Self {
        let pools = BTreeMap::from([(0, (XEN_SCHEDULER_CREDIT2, CPUS))]);
        Self { pools, domains: BTreeMap::new(), online: CPUS }
    }
}

impl Pools {
    fn free(&self) -> u64 {
        self.pools.values().fold(self.online, |free, (_, cpus)| free & !cpus)
    }

    pub(super) fn of_domain(&self, domain: u32) -> u32 {
        self.domains.get(&domain).copied().unwrap_or(0)
    }

    pub(super) fn set_domain(&mut self, domain: u32, pool: u32) {
        self.domains.insert(domain, pool);
    }

    pub(super) fn hotplug(&mut self, op: &XenSysctlCpuHotplug) -> Result<(), Errno> {
        let bit = 1u64.checked_shl(op.cpu).filter(|bit| bit & CPUS != 0).ok_or(Errno::EINVAL)?;
        let (goes, pool0) = (op.op == XEN_SYSCTL_CPU_HOTPLUG_OFFLINE, self.pools.get_mut(&0));
        match pool0 {
            _ if goes && bit == 1 => return Err(Errno::EINVAL),
            _ if goes == (self.online & bit == 0) => return Err(Errno::EEXIST),
            Some((_, cpus)) if goes && *cpus & bit != 0 => *cpus &= !bit,
            Some((_, cpus)) if !goes => *cpus |= bit,
            _ => return Err(Errno::ENODEV),
        }
        self.online ^= bit;
        Ok(())
    }

    pub(super) fn op(
        &mut self,
        op: &mut XenSysctlCpupoolOp,
        write: impl Fn(u64, u64) -> Result<u64, Errno>,
    ) -> Result<(), Errno> {
        let free = self.free();
        let bit = 1u64.checked_shl(op.cpu).unwrap_or(0);
        match op.op {
            XEN_SYSCTL_CPUPOOL_OP_CREATE => {
                if !matches!(op.sched_id, XEN_SCHEDULER_CREDIT2 | XEN_SCHEDULER_NULL) {
                    return Err(Errno::ENOENT);
                }
                op.cpupool_id = (0..).find(|id| !self.pools.contains_key(id)).unwrap_or(0);
                self.pools.insert(op.cpupool_id, (op.sched_id, 0));
            }
            XEN_SYSCTL_CPUPOOL_OP_INFO => {
                let found = self.pools.range(op.cpupool_id..).next().ok_or(Errno::ENOENT)?;
                let (id, (scheduler, cpus)) = (*found.0, *found.1);
                (op.cpupool_id, op.sched_id) = (id, scheduler);
                op.n_dom = self.domains.values().filter(|pool| **pool == id).count() as u32;
                write(op.cpumap.bitmap, cpus)?;
            }
            XEN_SYSCTL_CPUPOOL_OP_FREEINFO => drop(write(op.cpumap.bitmap, free)?),
            XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN => {
                self.pools.get(&op.cpupool_id).filter(|pool| pool.1 != 0).ok_or(Errno::ENOENT)?;
                self.set_domain(op.domid, op.cpupool_id);
            }
            _ => {
                let pool = self.pools.get_mut(&op.cpupool_id).ok_or(Errno::ENOENT)?;
                match op.op {
                    XEN_SYSCTL_CPUPOOL_OP_ADDCPU if free & bit == 0 => return Err(Errno::ENODEV),
                    XEN_SYSCTL_CPUPOOL_OP_ADDCPU => pool.1 |= bit,
                    XEN_SYSCTL_CPUPOOL_OP_RMCPU if pool.1 & bit == 0 => return Err(Errno::EADDRNOTAVAIL),
                    // Pool 0 always has domain 0.
                    XEN_SYSCTL_CPUPOOL_OP_RMCPU if op.cpupool_id == 0 && pool.1 == bit => {
                        return Err(Errno::EBUSY);
                    }
                    XEN_SYSCTL_CPUPOOL_OP_RMCPU => pool.1 &= !bit,
                    XEN_SYSCTL_CPUPOOL_OP_DESTROY if pool.1 != 0 => return Err(Errno::EBUSY),
                    XEN_SYSCTL_CPUPOOL_OP_DESTROY => drop(self.pools.remove(&op.cpupool_id)),
                    _ => return Err(Errno::ENOSYS),
                }
            }
        }
        Ok(())
    }
}
