//! `domctl`, one function per operation, for the control domain. ABI: `xen/include/public/domctl.h` (4.17).

use alloc::vec;
use alloc::vec::Vec;

use super::{Result, tools};
use ring_abi::domctl::*;
use ring_abi::errno::Errno;
use ring_abi::guest_context::{VcpuGuestContext, XEN_CPUID_NO_SUBLEAF, XenCpuidLeaf};
use ring_abi::payload::Payload;
use ring_abi::types::{DomId, Mfn};

/// An operation with an argument without addresses.
pub(super) fn plain<T: Payload>(cmd: u32, dom: DomId, payload: &T) -> Result<XenDomctl> {
    let mut arg = XenDomctl::with(cmd, dom, payload);
    // SAFETY: plain data in and out.
    unsafe { tools::domctl(&mut arg) }?;
    Ok(arg)
}

/// An operation without argument.
pub(super) fn bare(cmd: u32, dom: DomId) -> Result<XenDomctl> {
    let mut arg = XenDomctl::new(cmd, dom);
    // SAFETY: plain data in and out.
    unsafe { tools::domctl(&mut arg) }?;
    Ok(arg)
}

/// Makes a domain, paused and without memory. The hypervisor chooses the domain's number, and the result is that
/// number.
///
/// # Errors
/// - `ENOMEM`: memory for the domain is missing.
/// - `EINVAL`: `config` asks for something that the hypervisor does not have.
/// - `EPERM`: the caller is not privileged.
pub fn create(config: &XenDomctlCreatedomain) -> Result<DomId> {
    // Number 0 asks the hypervisor to choose.
    plain(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), config).map(|arg| DomId::new(arg.domain))
}

/// Destroys a domain. The domain stops at once, and its memory is freed, except pages that another domain still uses.
/// If the call is interrupted, this function calls again.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EPERM`: the caller has no right over the domain.
pub fn destroy(dom: DomId) -> Result<()> {
    loop {
        match bare(XEN_DOMCTL_DESTROYDOMAIN, dom) {
            Err(Errno::EAGAIN | Errno::ERESTART) => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Goes on destroying a domain for about `ns` nanoseconds; `true` when the destruction is complete. The caller's own
/// timer ends the piece: the hypervisor leaves a long operation when an interrupt waits. On Xen one call does
/// everything.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EPERM`: the caller has no right over the domain.
pub fn destroy_some(dom: DomId, ns: u64) -> Result<bool> {
    let mut arg = XenDomctl::new(XEN_DOMCTL_DESTROYDOMAIN, dom);
    arg.want_return();
    crate::time::interrupt_in(ns);
    // SAFETY: plain data in and out.
    match unsafe { tools::domctl(&mut arg) } {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::ERESTART) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Does an operation of dirty tracking (`XEN_DOMCTL_SHADOW_OP_*`), with the bitmap that the operation gives, a bit for each pfn.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: the domain is the caller, or tracking is on already, or is not on.
/// - `EBUSY`: another round is not over.
/// - `EPERM`: the caller has no right over the domain.
pub fn shadow_op(dom: DomId, op: u32, bitmap: Option<&mut [u64]>) -> Result<XenDomctlShadowOpStats> {
    let (dirty_bitmap, pages) =
        bitmap.map_or((0, 0), |words| (words.as_mut_ptr() as u64, 64 * words.len() as u64));
    let payload = XenDomctlShadowOp { op, dirty_bitmap, pages, ..Default::default() };
    plain(XEN_DOMCTL_SHADOW_OP, dom, &payload).map(|arg| arg.payload::<XenDomctlShadowOp>().stats)
}

/// Stops a domain's vCPUs until the domain is unpaused as often as it was paused.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: the domain is the caller.
/// - `EOVERFLOW`: the domain was paused too often.
pub fn pause(dom: DomId) -> Result<()> {
    bare(XEN_DOMCTL_PAUSEDOMAIN, dom).map(|_| ())
}

/// Undoes one pause.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: the domain was not paused.
pub fn unpause(dom: DomId) -> Result<()> {
    bare(XEN_DOMCTL_UNPAUSEDOMAIN, dom).map(|_| ())
}

/// What the hypervisor says of `dom`, or of the next domain after that number: the caller compares the field `domain`.
///
/// # Errors
/// `ESRCH`: no domain has this number or a higher one.
pub fn info(dom: DomId) -> Result<XenDomctlGetdomaininfo> {
    bare(XEN_DOMCTL_GETDOMAININFO, dom).map(|arg| arg.payload())
}

/// Sets how much memory a domain may have.
///
/// # Errors
/// `ESRCH`: there is no such domain. `EPERM`: the caller has no right over the domain.
pub fn max_mem(dom: DomId, kib: u64) -> Result<()> {
    plain(XEN_DOMCTL_MAX_MEM, dom, &XenDomctlMaxMem { max_memkb: kib }).map(|_| ())
}

/// Makes the vCPUs that `create` announced.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: `count` is not the number that `create` announced.
/// - `ENOMEM`: memory for the vCPUs is missing.
pub fn max_vcpus(dom: DomId, count: u32) -> Result<()> {
    plain(XEN_DOMCTL_MAX_VCPUS, dom, &XenDomctlMaxVcpus { max: count }).map(|_| ())
}

/// Sets a vCPU's registers.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: a guest must not have such a state, or there is no such vCPU.
pub fn set_vcpu_context(dom: DomId, vcpu: u32, context: &VcpuGuestContext) -> Result<()> {
    let payload = XenDomctlVcpucontext {
        vcpu,
        ctxt: (context as *const VcpuGuestContext) as u64,
        ..Default::default()
    };
    let mut arg = XenDomctl::with(XEN_DOMCTL_SETVCPUCONTEXT, dom, &payload);
    // SAFETY: the context is only read.
    unsafe { tools::domctl(&mut arg) }.map(|_| ())
}

/// The state of one vCPU.
///
/// # Errors
/// `ESRCH`: there is no such domain or vCPU.
pub fn vcpu_info(dom: DomId, vcpu: u32) -> Result<XenDomctlGetvcpuinfo> {
    let payload = XenDomctlGetvcpuinfo { vcpu, ..Default::default() };
    plain(XEN_DOMCTL_GETVCPUINFO, dom, &payload).map(|arg| arg.payload())
}

/// Sets on which CPUs a vCPU may run, those of `hard` and none beyond, and on which the vCPU had better run, those of `soft`; `None`
/// leaves a set as it is. The hypervisor leaves out CPUs that the machine does not have.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: the machine has none of these CPUs.
pub fn set_vcpu_affinity(dom: DomId, vcpu: u32, hard: Option<&[u8]>, soft: Option<&[u8]>) -> Result<()> {
    let map = |cpus: Option<&[u8]>| {
        let mut map = [0u8; 128];
        map.iter_mut().zip(cpus.unwrap_or_default()).for_each(|(to, from)| *to = *from);
        map
    };
    let flags = hard.map_or(0, |_| XEN_VCPUAFFINITY_HARD) | soft.map_or(0, |_| XEN_VCPUAFFINITY_SOFT);
    affinity(XEN_DOMCTL_SETVCPUAFFINITY, (dom, vcpu), flags, &mut [map(hard), map(soft)])
}

/// The CPUs on which a vCPU may run, and those on which it had better run, lowest bit first.
///
/// # Errors
/// `ESRCH`: there is no such domain or vCPU.
pub fn vcpu_affinity(dom: DomId, vcpu: u32) -> Result<[[u8; 128]; 2]> {
    let mut maps = [[0u8; 128]; 2];
    let flags = XEN_VCPUAFFINITY_HARD | XEN_VCPUAFFINITY_SOFT;
    affinity(XEN_DOMCTL_GETVCPUAFFINITY, (dom, vcpu), flags, &mut maps)?;
    Ok(maps)
}

fn affinity(cmd: u32, (dom, vcpu): (DomId, u32), flags: u32, maps: &mut [[u8; 128]; 2]) -> Result<()> {
    let bitmap = |map: &mut [u8; 128]| XenctlBitmap {
        bitmap: map.as_mut_ptr() as u64,
        nr_bits: map.len() as u32 * 8,
        ..Default::default()
    };
    let [cpumap_hard, cpumap_soft] = maps.each_mut().map(bitmap);
    let mut arg = XenDomctl::with(cmd, dom, &XenDomctlVcpuaffinity { vcpu, flags, cpumap_hard, cpumap_soft });
    // SAFETY: the hypervisor reads and writes no more of the maps than `nr_bits`.
    unsafe { tools::domctl(&mut arg) }.map(|_| ())
}

/// Sets a domain's share of the CPUs: the domain's weight, and the most that the domain may use in percent of a CPU (0:
/// no limit). `scheduler` is the machine's, [`super::sysctl::scheduler`].
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: the machine has another scheduler, or its scheduler has no such parameters.
pub fn set_share(dom: DomId, scheduler: u32, weight: u16, cap: u16) -> Result<()> {
    let share = u64::from(weight) | u64::from(cap) << 16;
    let payload =
        XenDomctlSchedulerOp { sched_id: scheduler, cmd: XEN_DOMCTL_SCHEDOP_PUTINFO, u: [share, 0] };
    plain(XEN_DOMCTL_SCHEDULER_OP, dom, &payload).map(|_| ())
}

/// A domain's weight and cap, as [`set_share`] sets them.
///
/// # Errors
/// The errors of [`set_share`].
pub fn share(dom: DomId, scheduler: u32) -> Result<(u16, u16)> {
    let payload = XenDomctlSchedulerOp { sched_id: scheduler, cmd: XEN_DOMCTL_SCHEDOP_GETINFO, u: [0; 2] };
    let got: XenDomctlSchedulerOp = plain(XEN_DOMCTL_SCHEDULER_OP, dom, &payload)?.payload();
    Ok((got.u[0] as u16, (got.u[0] >> 16) as u16))
}

/// Fills a frame of `dom` with the hypercall page.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EACCES`: the frame is not the domain's.
pub fn hypercall_init(dom: DomId, frame: Mfn) -> Result<()> {
    plain(XEN_DOMCTL_HYPERCALL_INIT, dom, &XenDomctlHypercallInit { gmfn: frame.raw() }).map(|_| ())
}

/// Sets how far a domain's wall clock is ahead of the machine's.
///
/// # Errors
/// `ESRCH`: there is no such domain.
pub fn set_time_offset(dom: DomId, seconds: i64) -> Result<()> {
    let payload = XenDomctlSettimeoffset { time_offset_seconds: seconds };
    plain(XEN_DOMCTL_SETTIMEOFFSET, dom, &payload).map(|_| ())
}

/// Sets how a domain's `rdtsc` behaves: 0 default, 1 always emulated, 2 never.
///
/// # Errors
/// `ESRCH`: there is no such domain. `EINVAL`: there is no such mode.
pub fn set_tsc_mode(dom: DomId, mode: u32) -> Result<()> {
    super::saved::set_tsc_info(dom, &XenDomctlTscInfo { tsc_mode: mode, ..Default::default() })
}

/// Leaves of a policy, and more than there are of any CPU.
const LEAVES_MAX: usize = 256;

/// What a domain's guest sees of the CPU.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `ENOBUFS`: there are more leaves than of any CPU.
pub fn cpu_policy(dom: DomId) -> Result<Vec<XenCpuidLeaf>> {
    let mut leaves = vec![XenCpuidLeaf::default(); LEAVES_MAX];
    let (nr_leaves, at) = (leaves.len() as u32, leaves.as_mut_ptr() as u64);
    let payload = XenDomctlCpuPolicy { nr_leaves, leaves: at, ..Default::default() };
    let mut arg = XenDomctl::with(XEN_DOMCTL_GET_CPU_POLICY, dom, &payload);
    // SAFETY: the hypervisor writes at most `nr_leaves` elements.
    unsafe { tools::domctl(&mut arg) }?;
    leaves.truncate(arg.payload::<XenDomctlCpuPolicy>().nr_leaves as usize);
    Ok(leaves)
}

/// Hides from a domain, which has not run, what these leaves do not show. A refusal comes with the leaf and subleaf at fault, if the
/// hypervisor names one.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EEXIST`: the domain has run.
/// - `EINVAL`: a leaf shows more than the domain could see, or the domain is the caller.
pub fn set_cpu_policy(
    dom: DomId,
    leaves: &[XenCpuidLeaf],
) -> core::result::Result<(), (Errno, Option<(u32, u32)>)> {
    let (nr_leaves, at) = (leaves.len() as u32, leaves.as_ptr() as u64);
    let payload = XenDomctlCpuPolicy { nr_leaves, leaves: at, ..Default::default() };
    let mut arg = XenDomctl::with(XEN_DOMCTL_SET_CPU_POLICY, dom, &payload);
    // SAFETY: the hypervisor reads `nr_leaves` elements.
    unsafe { tools::domctl(&mut arg) }.map(|_| ()).map_err(|errno| {
        let told: XenDomctlCpuPolicy = arg.payload();
        let named = errno == Errno::EINVAL && told.err_leaf != XEN_CPUID_NO_SUBLEAF;
        (errno, named.then_some((told.err_leaf, told.err_subleaf)))
    })
}

/// Sets a domain's UUID.
///
/// # Errors
/// `ESRCH`: there is no such domain.
pub fn set_handle(dom: DomId, handle: [u8; 16]) -> Result<()> {
    plain(XEN_DOMCTL_SETDOMAINHANDLE, dom, &XenDomctlSetdomainhandle { handle }).map(|_| ())
}

/// Sends a vCPU the event that `trigger`, `XEN_DOMCTL_SENDTRIGGER_*`, names. A PV domain knows the NMI alone.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: there is no such vCPU.
/// - `ENOSYS`: a PV domain does not know the trigger.
pub fn send_trigger(dom: DomId, trigger: u32, vcpu: u32) -> Result<()> {
    plain(XEN_DOMCTL_SENDTRIGGER, dom, &XenDomctlSendtrigger { trigger, vcpu }).map(|_| ())
}
