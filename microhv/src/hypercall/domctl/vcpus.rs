//! vCPUs as the toolstack sees and sets them: contexts, affinity, shares.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::guest_context::{VGCF_ONLINE, VcpuGuestContext};
use zerocopy::{FromBytes, IntoBytes};

use super::info::{online_cpus, read_bitmap, write_bitmap};
use super::{not_own, vcpu_of};
use crate::domain::Current;
use crate::domain::{Domain, PauseFlags};
use crate::frames::pte::is_canonical;
use crate::hypercall::HypercallError;
use crate::platform::Platform;

/// Room for a vCPU context, which is too large for the stack.
///
/// # Errors
/// `NoMemory`: a guest may have used up what there is.
pub(in crate::hypercall) fn context_room() -> Result<Vec<u64>, HypercallError> {
    const WORDS: usize = size_of::<VcpuGuestContext>() / 8;
    let mut room = Vec::new();
    room.try_reserve_exact(WORDS).map_err(|_| HypercallError::NoMemory)?;
    room.resize(WORDS, 0);
    Ok(room)
}

pub(super) fn set_context<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Arc<Domain>,
    wanted: &XenDomctlVcpucontext,
) -> Result<(), HypercallError> {
    not_own(cur, domain)?;
    let vcpu = vcpu_of(domain, wanted.vcpu)?;
    HypercallError::Invalid.when(wanted.ctxt == 0)?;
    let mut room = context_room()?;
    cur.copy_from_guest(room.as_mut_bytes(), wanted.ctxt)?;
    let context = VcpuGuestContext::ref_from_bytes(room.as_bytes()).map_err(|_| HypercallError::Invalid)?;
    cur.hv.pause_domain(domain);
    let result = cur.hv.set_vcpu_context(domain, vcpu, context);
    if result.is_ok() {
        if context.flags & VGCF_ONLINE != 0 {
            cur.hv.wake(domain, vcpu, PauseFlags::DOWN);
        } else {
            cur.hv.hold(vcpu, PauseFlags::DOWN);
        }
    }
    cur.hv.unpause_domain(domain);
    result
}

pub(super) fn get_context<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Arc<Domain>,
    wanted: &XenDomctlVcpucontext,
) -> Result<(), HypercallError> {
    not_own(cur, domain)?;
    let vcpu = vcpu_of(domain, wanted.vcpu)?;
    HypercallError::NoData.when(!vcpu.initialised.load(Ordering::Acquire))?;
    let mut room = context_room()?;
    let context =
        VcpuGuestContext::mut_from_bytes(room.as_mut_bytes()).map_err(|_| HypercallError::Invalid)?;
    cur.hv.pause_domain(domain);
    cur.hv.fill_vcpu_context(domain, vcpu, context);
    cur.hv.unpause_domain(domain);
    Ok(cur.copy_out_bytes(wanted.ctxt, room.as_bytes())?)
}

pub(super) fn ext_context(
    domain: &Domain,
    context: &mut XenDomctlExtVcpucontext,
    set: bool,
) -> Result<(), HypercallError> {
    let vcpu = domain.vcpu(context.vcpu).ok_or(HypercallError::NoSuchDomain)?;
    let mut cpu = vcpu.cpu.lock();
    if set {
        for address in [context.syscall32_callback_eip, context.sysenter_callback_eip] {
            HypercallError::Invalid.when(!is_canonical(address))?;
        }
        cpu.syscall32.address = context.syscall32_callback_eip;
        cpu.syscall32.masks_events = context.syscall32_disables_events != 0;
        cpu.sysenter.address = context.sysenter_callback_eip;
        cpu.sysenter.masks_events = context.sysenter_disables_events != 0;
    } else {
        *context = XenDomctlExtVcpucontext {
            vcpu: context.vcpu,
            size: size_of::<XenDomctlExtVcpucontext>() as u32,
            syscall32_callback_eip: cpu.syscall32.address,
            sysenter_callback_eip: cpu.sysenter.address,
            syscall32_disables_events: u8::from(cpu.syscall32.masks_events),
            sysenter_disables_events: u8::from(cpu.sysenter.masks_events),
            ..XenDomctlExtVcpucontext::default()
        };
    }
    Ok(())
}

pub(super) fn affinity<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Domain,
    wanted: &XenDomctlVcpuaffinity,
    set: bool,
) -> Result<(), HypercallError> {
    let vcpu = domain.vcpu(wanted.vcpu).ok_or(HypercallError::NoSuchDomain)?;
    HypercallError::Invalid.when(wanted.flags & (XEN_VCPUAFFINITY_HARD | XEN_VCPUAFFINITY_SOFT) == 0)?;
    let online = online_cpus(cur.hv).bits();
    if wanted.flags & XEN_VCPUAFFINITY_HARD != 0 {
        if set {
            let bits = read_bitmap(cur, &wanted.cpumap_hard)?;
            HypercallError::Invalid.when(bits & online == 0)?;
            vcpu.sched.affinity.store(bits, Ordering::Relaxed);
        }
        write_bitmap(cur, &wanted.cpumap_hard, vcpu.sched.affinity.load(Ordering::Relaxed) & online)?;
    }
    if wanted.flags & XEN_VCPUAFFINITY_SOFT != 0 {
        write_bitmap(cur, &wanted.cpumap_soft, online)?;
    }
    Ok(())
}

/// The weight, which all vCPUs of a domain share. There are no caps: 0 is given, and 0 or "leave it" taken.
pub(super) fn scheduler(domain: &Domain, op: &mut XenDomctlSchedulerOp) -> Result<(), HypercallError> {
    HypercallError::Invalid.when(op.sched_id != XEN_SCHEDULER_CREDIT2)?;
    let first = &domain.vcpu(0).ok_or(HypercallError::NoSuchDomain)?.sched;
    match op.cmd {
        XEN_DOMCTL_SCHEDOP_PUTINFO => {
            let (weight, cap) = (op.u[0] as u16, (op.u[0] >> 16) as u16);
            // No vCPU is kept from an idle CPU.
            HypercallError::NotSupported.when(!matches!(cap, 0 | u16::MAX))?;
            for vcpu in domain.vcpus.iter().filter(|_| weight != 0) {
                vcpu.sched.weight.store(u32::from(weight), Ordering::Relaxed);
            }
        }
        XEN_DOMCTL_SCHEDOP_GETINFO => {
            op.u[0] = u64::from(first.weight.load(Ordering::Relaxed) & 0xffff);
        }
        _ => return Err(HypercallError::Invalid),
    }
    Ok(())
}
