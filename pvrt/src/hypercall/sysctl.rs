//! `sysctl`, one function per operation, for the control domain. ABI: `xen/include/public/sysctl.h` (4.17).

use super::{Result, tools};
use ring_abi::domctl::XenDomctlGetdomaininfo;
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
