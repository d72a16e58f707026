//! What a toolstack reads of a domain that is saved, and sets of one that is restored. ABI: `xen/include/public/domctl.h` (4.17).

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use super::domctl::{bare, plain};
use super::{Result, tools};
use ring_abi::domctl::*;
use ring_abi::guest_context::VcpuGuestContext;
use ring_abi::types::DomId;

/// Lets a domain that was shut down go on.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: the domain is the caller.
pub fn resume(dom: DomId) -> Result<()> {
    bare(XEN_DOMCTL_RESUMEDOMAIN, dom).map(|_| ())
}

/// A vCPU's registers, page-table bases and descriptor tables.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: there is no such vCPU.
/// - `ENODATA`: the vCPU never got a state.
pub fn vcpu_context(dom: DomId, vcpu: u32) -> Result<Box<VcpuGuestContext>> {
    let mut context = Box::<VcpuGuestContext>::default();
    let at = (&raw mut *context) as u64;
    let payload = XenDomctlVcpucontext { vcpu, ctxt: at, ..Default::default() };
    let mut arg = XenDomctl::with(XEN_DOMCTL_GETVCPUCONTEXT, dom, &payload);
    // SAFETY: the hypervisor writes one context.
    unsafe { tools::domctl(&mut arg) }?;
    Ok(context)
}

/// A vCPU's further callbacks.
///
/// # Errors
/// `ESRCH`: there is no such domain or vCPU.
pub fn ext_vcpu_context(dom: DomId, vcpu: u32) -> Result<XenDomctlExtVcpucontext> {
    let payload = XenDomctlExtVcpucontext { vcpu, ..Default::default() };
    plain(XEN_DOMCTL_GET_EXT_VCPUCONTEXT, dom, &payload).map(|arg| arg.payload())
}

/// Sets a vCPU's further callbacks.
///
/// # Errors
/// - `ESRCH`: there is no such domain or vCPU.
/// - `EINVAL`: an address is not canonical.
pub fn set_ext_vcpu_context(dom: DomId, context: &XenDomctlExtVcpucontext) -> Result<()> {
    plain(XEN_DOMCTL_SET_EXT_VCPUCONTEXT, dom, context).map(|_| ())
}

/// A vCPU's XCR0, the components that it ever enabled, and its area of `XSAVE`; empty: the CPU has no `XSAVE`.
///
/// # Errors
/// `ESRCH`: there is no such domain or vCPU.
pub fn vcpu_xstate(dom: DomId, vcpu: u32) -> Result<Vec<u8>> {
    let payload = XenDomctlVcpuextstate { vcpu, ..Default::default() };
    let told: XenDomctlVcpuextstate = plain(XEN_DOMCTL_GETVCPUEXTSTATE, dom, &payload)?.payload();
    let mut bytes = vec![0; told.size as usize];
    if !bytes.is_empty() {
        let payload = XenDomctlVcpuextstate { buffer: bytes.as_mut_ptr() as u64, ..told };
        let mut arg = XenDomctl::with(XEN_DOMCTL_GETVCPUEXTSTATE, dom, &payload);
        // SAFETY: the hypervisor writes at most `size` bytes.
        unsafe { tools::domctl(&mut arg) }?;
    }
    Ok(bytes)
}

/// Sets what [`vcpu_xstate`] gives.
///
/// # Errors
/// - `ESRCH`: there is no such domain or vCPU.
/// - `EINVAL`: the CPU does not have what the state has, or the state is damaged.
pub fn set_vcpu_xstate(dom: DomId, vcpu: u32, bytes: &[u8]) -> Result<()> {
    let (size, buffer) = (bytes.len() as u64, bytes.as_ptr() as u64);
    let payload = XenDomctlVcpuextstate { vcpu, size, buffer, ..Default::default() };
    let mut arg = XenDomctl::with(XEN_DOMCTL_SETVCPUEXTSTATE, dom, &payload);
    // SAFETY: the hypervisor reads `size` bytes.
    unsafe { tools::domctl(&mut arg) }.map(|_| ())
}

/// How a domain sees the TSC.
///
/// # Errors
/// `ESRCH`: there is no such domain.
pub fn tsc_info(dom: DomId) -> Result<XenDomctlTscInfo> {
    bare(XEN_DOMCTL_GETTSCINFO, dom).map(|arg| arg.payload())
}

/// Sets how a domain sees the TSC.
///
/// # Errors
/// `ESRCH`: there is no such domain. `EINVAL`: there is no such mode.
pub fn set_tsc_info(dom: DomId, info: &XenDomctlTscInfo) -> Result<()> {
    plain(XEN_DOMCTL_SETTSCINFO, dom, info).map(|_| ())
}

/// Replaces each machine frame in `frames` by what the frame is used as: `XEN_DOMCTL_PFINFO_*`.
///
/// # Errors
/// `ESRCH`: there is no such domain. `E2BIG`: these are more than 1,024.
pub fn page_types(dom: DomId, frames: &mut [u64]) -> Result<()> {
    let payload = XenDomctlGetpageframeinfo3 { num: frames.len() as u64, array: frames.as_mut_ptr() as u64 };
    let mut arg = XenDomctl::with(XEN_DOMCTL_GETPAGEFRAMEINFO3, dom, &payload);
    // SAFETY: the hypervisor reads and writes `num` words.
    unsafe { tools::domctl(&mut arg) }.map(|_| ())
}
