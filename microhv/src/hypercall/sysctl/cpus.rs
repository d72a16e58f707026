//! CPUs as the toolstack sees and changes them: what there are, which are in use, and CPU pools.

use ring_abi::domctl::{XEN_SCHEDULER_CREDIT2, XEN_SCHEDULER_NULL};
use ring_abi::sysctl::*;
use ring_abi::types::{DOMID_SELF, DomId, GuestVa};

use crate::hypercall::domctl::write_bitmap;
use crate::hypercall::{Answer, Current, HypercallError};
use crate::platform::{CpuId, CpuSet, Platform};
use crate::sched::pools::{Change, Policy};

/// One more than the highest number of a CPU.
pub(super) fn ids<P: Platform>(cur: &Current<'_, P>) -> u32 {
    u64::BITS - cur.hv.sched.known_cpus().bits().leading_zeros()
}

pub(super) fn info<P: Platform>(cur: &Current<'_, P>, wanted: &mut XenSysctlGetcpuinfo) -> Answer {
    wanted.nr_cpus = wanted.max_cpus.min(ids(cur));
    for cpu in (0..wanted.nr_cpus).filter_map(CpuId::new) {
        let idletime = cur.hv.sched.idle_ns(cpu, cur.hv.platform.now_ns());
        cur.copy_out_at(GuestVa::new(wanted.info), u64::from(cpu.raw()), &XenSysctlCpuinfo { idletime })?;
    }
    Ok(())
}

pub(super) fn topology<P: Platform>(cur: &Current<'_, P>, wanted: &mut XenSysctlCputopoinfo) -> Answer {
    let cpus = ids(cur);
    if wanted.cputopo != 0 {
        HypercallError::NoBuffers.when(wanted.num_cpus < cpus)?;
        for cpu in (0..cpus).filter_map(CpuId::new) {
            let place = if cur.hv.sched.known_cpus().contains(cpu) {
                // A core has the number of its first CPU.
                let core = cur.hv.sched.siblings(cpu).bits().trailing_zeros();
                XenSysctlCputopo { core, socket: 0, node: 0 }
            } else {
                let (core, socket, node) = (XEN_INVALID_CORE_ID, XEN_INVALID_SOCKET_ID, XEN_INVALID_NODE_ID);
                XenSysctlCputopo { core, socket, node }
            };
            cur.copy_out_at(GuestVa::new(wanted.cputopo), u64::from(cpu.raw()), &place)?;
        }
    }
    wanted.num_cpus = cpus;
    Ok(())
}

/// Lets a CPU stop, or go on.
///
/// # Errors
/// As Xen's: `Invalid`: no such CPU, or the boot CPU is to stop. `Exists`: the CPU is in that state. `Busy`: the CPU is the last of
/// pool 0. `NoDevice`: the CPU is in another pool. `NotSupported`: another operation.
pub(super) fn hotplug<P: Platform>(cur: &Current<'_, P>, wanted: XenSysctlCpuHotplug) -> Answer {
    let cpu = CpuId::new(wanted.cpu).ok_or(HypercallError::Invalid);
    Ok(cur.hv.change_cpus(match wanted.op {
        XEN_SYSCTL_CPU_HOTPLUG_ONLINE => Change::Online { cpu: cpu? },
        XEN_SYSCTL_CPU_HOTPLUG_OFFLINE => Change::Offline { cpu: cpu? },
        _ => return Err(HypercallError::NotSupported),
    })?)
}

/// What Xen calls a policy.
const fn scheduler_of(policy: Policy) -> u32 {
    match policy {
        Policy::Shares => XEN_SCHEDULER_CREDIT2,
        Policy::Null => XEN_SCHEDULER_NULL,
    }
}

/// The CPU that an operation names, or for "any" what `any` gives.
fn named<P: Platform>(cur: &Current<'_, P>, cpu: u32, any: Option<CpuId>) -> Answer<CpuId> {
    if cpu == XEN_SYSCTL_CPUPOOL_PAR_ANY {
        return any.ok_or(HypercallError::NoDevice);
    }
    CpuId::new(cpu).filter(|cpu| cpu.raw() < ids(cur)).ok_or(HypercallError::Invalid)
}

/// # Errors
/// As Xen's. `NoEntry`: there is no such pool or scheduler, or the pool for a domain has no CPU. `Exists`: the new pool exists. `Busy`: the
/// pool that ends has domains or CPUs; the CPU is the last of a pool with domains. `Invalid`: there is no such CPU; the domain is dying.
/// `NoDevice`: the CPU is not free. `NotAvailable`: the CPU is not in the pool. `NoSuchDomain`. `NotPermitted`: the domain is the caller's own.
pub(super) fn pool<P: Platform>(cur: &Current<'_, P>, wanted: &mut XenSysctlCpupoolOp) -> Answer {
    let sched = &cur.hv.sched;
    let id = wanted.cpupool_id;
    let exists = || sched.pool_from(id).filter(|pool| pool.id == id).ok_or(HypercallError::NoEntry);
    match wanted.op {
        XEN_SYSCTL_CPUPOOL_OP_CREATE => {
            let policy = match wanted.sched_id {
                XEN_SCHEDULER_CREDIT2 => Policy::Shares,
                XEN_SCHEDULER_NULL => Policy::Null,
                _ => return Err(HypercallError::NoEntry),
            };
            wanted.cpupool_id =
                sched.create_pool((id != XEN_SYSCTL_CPUPOOL_PAR_ANY).then_some(id), policy)?;
        }
        XEN_SYSCTL_CPUPOOL_OP_DESTROY => sched.destroy_pool(id)?,
        XEN_SYSCTL_CPUPOOL_OP_INFO => {
            let pool = sched.pool_from(id).ok_or(HypercallError::NoEntry)?;
            wanted.cpupool_id = pool.id;
            wanted.sched_id = scheduler_of(pool.policy);
            wanted.n_dom = pool.domains;
            write_bitmap(cur, &wanted.cpumap, pool.cpus.bits())?;
        }
        XEN_SYSCTL_CPUPOOL_OP_ADDCPU => {
            exists()?;
            let any = sched.moving_cpu(id).or_else(|| sched.free_cpus().iter().next());
            let cpu = named(cur, wanted.cpu, any)?;
            cur.hv.change_cpus(Change::Add { pool: id, cpu })?;
        }
        XEN_SYSCTL_CPUPOOL_OP_RMCPU => {
            let cpus: CpuSet = exists()?.cpus;
            let cpu = named(cur, wanted.cpu, sched.moving_cpu(id).or_else(|| cpus.iter().last()))?;
            cur.hv.change_cpus(Change::Remove { pool: id, cpu })?;
        }
        XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN => {
            let own = cur.domain.id.raw();
            let raw = u16::try_from(wanted.domid).map_err(|_| HypercallError::NoSuchDomain)?;
            HypercallError::NotPermitted.when(raw == own || raw == DOMID_SELF)?;
            let domain = cur.hv.domains.get(DomId::new(raw)).ok_or(HypercallError::NoSuchDomain)?;
            cur.hv.move_to_pool(&domain, id)?;
        }
        XEN_SYSCTL_CPUPOOL_OP_FREEINFO => write_bitmap(cur, &wanted.cpumap, sched.free_cpus().bits())?,
        _ => return Err(HypercallError::NoSys),
    }
    Ok(())
}
