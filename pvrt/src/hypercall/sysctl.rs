//! `sysctl`, one function per operation, for the control domain. ABI: `xen/include/public/sysctl.h` (4.17).

use super::{Result, tools};
use ring_abi::domctl::{XenDomctlGetdomaininfo, XenctlBitmap};
use ring_abi::sysctl::*;
use ring_abi::types::DomId;

/// What the machine has.
///
/// # Errors
/// `EPERM`: the caller is not privileged.
pub fn physinfo() -> Result<XenSysctlPhysinfo> {
    let mut arg = XenSysctl::new(XEN_SYSCTL_PHYSINFO);
    // SAFETY: plain data in and out.
    unsafe { tools::sysctl(&mut arg) }?;
    Ok(arg.payload())
}

/// Fills `places` with the core, socket and node of each CPU. The result is the number of CPUs.
///
/// # Errors
/// - `ENOBUFS`: there are more.
/// - `EPERM`: the caller is not privileged.
pub fn cpu_places(places: &mut [XenSysctlCputopo]) -> Result<usize> {
    let payload = XenSysctlCputopoinfo {
        num_cpus: places.len() as u32,
        cputopo: places.as_mut_ptr() as u64,
        ..Default::default()
    };
    let mut arg = XenSysctl::with(XEN_SYSCTL_CPUTOPOINFO, &payload);
    // SAFETY: the hypervisor writes at most `num_cpus` elements.
    unsafe { tools::sysctl(&mut arg) }?;
    let got: XenSysctlCputopoinfo = arg.payload();
    Ok((got.num_cpus as usize).min(places.len()))
}

/// Which scheduler the machine has, `XEN_SCHEDULER_*`.
///
/// # Errors
/// `EPERM`: the caller is not privileged.
pub fn scheduler() -> Result<u32> {
    let mut arg = XenSysctl::new(XEN_SYSCTL_SCHED_ID);
    // SAFETY: plain data in and out.
    unsafe { tools::sysctl(&mut arg) }?;
    Ok(arg.payload::<XenSysctlSchedId>().sched_id)
}

/// Fills `list` with domains from number `first` on, in order. The result is the number of domains.
///
/// # Errors
/// `EPERM`: the caller is not privileged.
pub fn domain_list(first: DomId, list: &mut [XenDomctlGetdomaininfo]) -> Result<usize> {
    let payload = XenSysctlGetdomaininfolist {
        first_domain: first.raw(),
        max_domains: list.len() as u32,
        buffer: list.as_mut_ptr() as u64,
        ..Default::default()
    };
    let mut arg = XenSysctl::with(XEN_SYSCTL_GETDOMAININFOLIST, &payload);
    // SAFETY: the hypervisor writes at most `max_domains` elements.
    unsafe { tools::sysctl(&mut arg) }?;
    let got: XenSysctlGetdomaininfolist = arg.payload();
    Ok((got.num_domains as usize).min(list.len()))
}

/// Copies the hypervisor's messages from position `index` of the hypervisor's ring on. The result is the number of
/// bytes and the next position.
///
/// # Errors
/// `EPERM`: the caller is not privileged.
pub fn read_console(index: u32, buffer: &mut [u8]) -> Result<(usize, u32)> {
    let payload = XenSysctlReadconsole {
        incremental: 1,
        index,
        buffer: buffer.as_mut_ptr() as u64,
        count: buffer.len() as u32,
        ..Default::default()
    };
    let mut arg = XenSysctl::with(XEN_SYSCTL_READCONSOLE, &payload);
    // SAFETY: the hypervisor writes at most `count` bytes.
    unsafe { tools::sysctl(&mut arg) }?;
    let got: XenSysctlReadconsole = arg.payload();
    Ok(((got.count as usize).min(buffer.len()), got.index))
}

/// Has the hypervisor forget its messages.
///
/// # Errors
/// `EPERM`: the caller is not privileged.
pub fn clear_console() -> Result<()> {
    let payload = XenSysctlReadconsole { clear: 1, ..Default::default() };
    let mut arg = XenSysctl::with(XEN_SYSCTL_READCONSOLE, &payload);
    // SAFETY: with no room nothing is written.
    unsafe { tools::sysctl(&mut arg) }.map(|_| ())
}

/// Presses debug keys.
///
/// # Errors
/// `EPERM`: the caller is not privileged.
pub fn debug_keys(keys: &[u8]) -> Result<()> {
    let payload =
        XenSysctlDebugKeys { keys: keys.as_ptr() as u64, nr_keys: keys.len() as u32, ..Default::default() };
    let mut arg = XenSysctl::with(XEN_SYSCTL_DEBUG_KEYS, &payload);
    // SAFETY: the keys are only read.
    unsafe { tools::sysctl(&mut arg) }.map(|_| ())
}

/// Lets a CPU stop, or go on.
///
/// # Errors
/// - `EINVAL`: there is no such CPU, or the boot CPU is to stop.
/// - `EEXIST`: the CPU is in that state.
/// - `EBUSY`: the CPU is the last of pool 0.
/// - `ENODEV`: the CPU is in another pool.
/// - `EPERM`: the caller is not privileged.
pub fn set_cpu_online(cpu: u32, online: bool) -> Result<()> {
    let op = if online { XEN_SYSCTL_CPU_HOTPLUG_ONLINE } else { XEN_SYSCTL_CPU_HOTPLUG_OFFLINE };
    let mut arg = XenSysctl::with(XEN_SYSCTL_CPU_HOTPLUG, &XenSysctlCpuHotplug { cpu, op });
    // SAFETY: plain data in.
    unsafe { tools::sysctl(&mut arg) }.map(|_| ())
}

/// A CPU pool. CPUs are numbered below 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuPool {
    /// The pool's number.
    pub id: u32,
    /// `XEN_SCHEDULER_*`.
    pub scheduler: u32,
    /// How many domains are in the pool.
    pub domains: u32,
    /// The pool's CPUs, a bit each.
    pub cpus: u64,
}

fn pool_op(op: &XenSysctlCpupoolOp) -> Result<XenSysctlCpupoolOp> {
    let mut arg = XenSysctl::with(XEN_SYSCTL_CPUPOOL_OP, op);
    // SAFETY: of what `op` says the bitmap alone is written, which is as large as it says.
    unsafe { tools::sysctl(&mut arg) }?;
    Ok(arg.payload())
}

/// An operation that answers with CPUs.
fn pool_cpus(op: &XenSysctlCpupoolOp) -> Result<(XenSysctlCpupoolOp, u64)> {
    let mut cpus = 0u64;
    let cpumap = XenctlBitmap { bitmap: (&raw mut cpus) as u64, nr_bits: u64::BITS, ..Default::default() };
    let got = pool_op(&XenSysctlCpupoolOp { cpumap, ..*op })?;
    Ok((got, cpus))
}

/// The first CPU pool whose number is at least `id`.
///
/// # Errors
/// - `ENOENT`: there is none.
/// - `EPERM`: the caller is not privileged.
pub fn cpu_pool(id: u32) -> Result<CpuPool> {
    let op = XenSysctlCpupoolOp { op: XEN_SYSCTL_CPUPOOL_OP_INFO, cpupool_id: id, ..Default::default() };
    let (got, cpus) = pool_cpus(&op)?;
    Ok(CpuPool { id: got.cpupool_id, scheduler: got.sched_id, domains: got.n_dom, cpus })
}

/// The CPUs that are in no pool, a bit each.
///
/// # Errors
/// `EPERM`: the caller is not privileged.
pub fn free_cpus() -> Result<u64> {
    let op = XenSysctlCpupoolOp { op: XEN_SYSCTL_CPUPOOL_OP_FREEINFO, ..Default::default() };
    pool_cpus(&op).map(|(_, cpus)| cpus)
}

/// Makes a CPU pool without CPUs; its number.
///
/// # Errors
/// - `ENOENT`: there is no such scheduler.
/// - `ENOMEM`: there are too many pools.
/// - `EPERM`: the caller is not privileged.
pub fn create_cpu_pool(scheduler: u32) -> Result<u32> {
    let op = XenSysctlCpupoolOp {
        op: XEN_SYSCTL_CPUPOOL_OP_CREATE,
        cpupool_id: XEN_SYSCTL_CPUPOOL_PAR_ANY,
        sched_id: scheduler,
        ..Default::default()
    };
    pool_op(&op).map(|got| got.cpupool_id)
}

/// Ends a CPU pool that has neither domains nor CPUs.
///
/// # Errors
/// - `ENOENT`: there is no such pool.
/// - `EBUSY`: the pool has domains or CPUs.
/// - `EPERM`: the caller is not privileged.
pub fn destroy_cpu_pool(id: u32) -> Result<()> {
    let op = XenSysctlCpupoolOp { op: XEN_SYSCTL_CPUPOOL_OP_DESTROY, cpupool_id: id, ..Default::default() };
    pool_op(&op).map(|_| ())
}

/// Adds a free CPU to a CPU pool, or takes a CPU out, which is free then.
///
/// # Errors
/// - `ENOENT`: there is no such pool.
/// - `EINVAL`: there is no such CPU.
/// - `ENODEV`: the CPU to be added is not free.
/// - `EADDRNOTAVAIL`: the CPU to be taken out is not in the pool.
/// - `EBUSY`: the CPU is the last of a pool that has domains.
/// - `EPERM`: the caller is not privileged.
pub fn set_pool_cpu(id: u32, cpu: u32, is_in: bool) -> Result<()> {
    let op = if is_in { XEN_SYSCTL_CPUPOOL_OP_ADDCPU } else { XEN_SYSCTL_CPUPOOL_OP_RMCPU };
    pool_op(&XenSysctlCpupoolOp { op, cpupool_id: id, cpu, ..Default::default() }).map(|_| ())
}

/// Moves a domain to a CPU pool.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `ENOENT`: there is no such pool, or it has no CPU.
/// - `EPERM`: the domain is the caller's own, or the caller is not privileged.
pub fn move_to_cpu_pool(dom: DomId, id: u32) -> Result<()> {
    let op = XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN;
    let op = XenSysctlCpupoolOp { op, cpupool_id: id, domid: dom.raw().into(), ..Default::default() };
    pool_op(&op).map(|_| ())
}
