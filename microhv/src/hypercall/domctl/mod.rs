//! Control of domains, by the toolstack: interface version 0x15.

mod info;
mod vcpus;

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::types::{DomId, Mfn, PAGE_SHIFT};

pub(super) use info::{domain_info, online_cpus, write_bitmap};
use info::{page_frame_info, read_bitmap};
pub(super) use vcpus::context_room;
use vcpus::{affinity, ext_context, get_context, scheduler, set_context};

use super::page::write_hypercall_page;
use super::{Args, Current, HypercallError, HypercallResult, Outcome};
use crate::domain::{
    Domain, DomainConfig, FIRST_RESERVED, MAX_GRANT_FRAMES, MAX_MAPTRACK_FRAMES, PauseFlags, Permissions,
    TscSettings, Vcpu,
};
use crate::platform::Platform;
use crate::rangeset::RangeSet;

/// Default of what a domain may have when the toolstack says "default".
const DEFAULT_GRANT_FRAMES: u32 = 64;
const DEFAULT_MAPTRACK_FRAMES: u32 = 1024;
/// The last of `settscinfo`'s modes: native.
const TSC_MODE_LAST: u32 = 2;
/// Pauses of a domain by the toolstack at most.
const MAX_PAUSES: u32 = 255;

/// `domctl(op)`. Only a privileged domain may.
///
/// # Errors
/// `NotPermitted`; `Fault`; `Access`: another interface version; `NoSuchDomain`; as each operation says; `NoSys`: no
/// such operation. `Again`: a `destroydomain` that [`XenDomctl::wants_return`] was interrupted.
pub fn domctl<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    HypercallError::NotPermitted.when(!cur.domain.privileged)?;
    let mut op: XenDomctl = cur.copy_in(args[0])?;
    HypercallError::Access.when(op.interface_version != XEN_DOMCTL_INTERFACE_VERSION)?;
    let result = if op.cmd == XEN_DOMCTL_CREATEDOMAIN {
        create(cur, &mut op)
    } else {
        let domain = cur.hv.domains.get(DomId::new(op.domain)).ok_or(HypercallError::NoSuchDomain)?;
        execute(cur, &domain, &mut op)
    };
    let result = match result {
        Ok(Reply::Nothing) => Ok(Outcome::OK),
        Ok(Reply::Changed) => cur.copy_out(args[0], &op).map(|()| Outcome::OK).map_err(HypercallError::from),
        // The caller has other things to do as well, and calls again.
        Err(HypercallError::Again) if op.cmd == XEN_DOMCTL_DESTROYDOMAIN && op.wants_return() => {
            Err(HypercallError::Again)
        }
        Err(HypercallError::Again)
            if matches!(
                op.cmd,
                XEN_DOMCTL_CREATEDOMAIN | XEN_DOMCTL_DESTROYDOMAIN | XEN_DOMCTL_SETVCPUCONTEXT
            ) =>
        {
            Ok(cur.again(*args))
        }
        Err(error) => Err(error),
    };
    cur.hv.reap_dead();
    result
}

/// Whether the caller's structure is to be written back.
enum Reply {
    Nothing,
    Changed,
}

/// `XEN_DOMCTL_createdomain`: op.domain 0 or reserved asks for any number.
fn create<P: Platform>(cur: &Current<'_, P>, op: &mut XenDomctl) -> Result<Reply, HypercallError> {
    let wanted: XenDomctlCreatedomain = op.payload();
    HypercallError::Invalid.when(
        wanted.flags & !XEN_DOMCTL_CDF_XS_DOMAIN != 0 || wanted.iommu_opts != 0 || wanted.vmtrace_size != 0,
    )?;
    let or_default = |value: i32, default: u32| u32::try_from(value).unwrap_or(default);
    let config = DomainConfig {
        handle: wanted.handle,
        ssidref: wanted.ssidref,
        privileged: false,
        max_vcpus: wanted.max_vcpus,
        max_evtchn_port: wanted.max_evtchn_port,
        max_grant_frames: or_default(wanted.max_grant_frames, DEFAULT_GRANT_FRAMES),
        max_maptrack_frames: or_default(wanted.max_maptrack_frames, DEFAULT_MAPTRACK_FRAMES),
        flags: wanted.flags,
    };
    // What these are the limits of is freed, and copied as it grows, by parts of a size that is known.
    HypercallError::Invalid.when(
        config.max_grant_frames > MAX_GRANT_FRAMES || config.max_maptrack_frames > MAX_MAPTRACK_FRAMES,
    )?;
    let id = (op.domain != 0 && op.domain < FIRST_RESERVED).then(|| DomId::new(op.domain));
    let domain = cur.hv.create_domain_in_pieces(cur.vcpu, id, config)?;
    op.domain = domain.id.raw();
    Ok(Reply::Changed)
}

fn vcpu_of(domain: &Domain, id: u32) -> Result<&Vcpu, HypercallError> {
    domain.vcpu(id).ok_or(HypercallError::Invalid)
}

fn not_own<P: Platform>(cur: &Current<'_, P>, domain: &Arc<Domain>) -> Result<(), HypercallError> {
    if Arc::ptr_eq(cur.domain, domain) { Err(HypercallError::Invalid) } else { Ok(()) }
}

fn execute<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Arc<Domain>,
    op: &mut XenDomctl,
) -> Result<Reply, HypercallError> {
    let hv = cur.hv;
    match op.cmd {
        XEN_DOMCTL_DESTROYDOMAIN => {
            not_own(cur, domain)?;
            hv.kill_domain(domain)?;
        }
        XEN_DOMCTL_PAUSEDOMAIN => {
            not_own(cur, domain)?;
            let count = &domain.controller_pause_count;
            count
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                    count.checked_add(1).filter(|count| *count <= MAX_PAUSES)
                })
                .map_err(|_| HypercallError::Overflow)?;
            hv.pause_domain(domain);
        }
        XEN_DOMCTL_UNPAUSEDOMAIN => {
            let count = &domain.controller_pause_count;
            count
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1))
                .map_err(|_| HypercallError::Invalid)?;
            domain.started.store(true, Ordering::Relaxed);
            hv.unpause_domain(domain);
        }
        XEN_DOMCTL_RESUMEDOMAIN => {
            not_own(cur, domain)?;
            hv.resume_domain(domain);
        }
        XEN_DOMCTL_GETDOMAININFO => {
            op.set_payload(&domain_info(hv, domain));
            return Ok(Reply::Changed);
        }
        XEN_DOMCTL_MAX_MEM => {
            let max: XenDomctlMaxMem = op.payload();
            domain.mm.set_max_pages(max.max_memkb >> (PAGE_SHIFT - 10));
        }
        XEN_DOMCTL_MAX_VCPUS => {
            let wanted: XenDomctlMaxVcpus = op.payload();
            not_own(cur, domain)?;
            // They were made with the domain.
            HypercallError::Invalid.when(wanted.max as usize != domain.vcpus.len())?;
        }
        XEN_DOMCTL_SETVCPUCONTEXT => set_context(cur, domain, &op.payload())?,
        XEN_DOMCTL_GETVCPUCONTEXT => get_context(cur, domain, &op.payload())?,
        XEN_DOMCTL_GETVCPUINFO => {
            let wanted: XenDomctlGetvcpuinfo = op.payload();
            let vcpu = domain.vcpu(wanted.vcpu).ok_or(HypercallError::NoSuchDomain)?;
            let info = XenDomctlGetvcpuinfo {
                online: u8::from(vcpu.is_up()),
                blocked: u8::from(vcpu.pause_flags.load(Ordering::Relaxed) & PauseFlags::BLOCKED != 0),
                running: u8::from(vcpu.running_on().is_some()),
                cpu_time: vcpu.time.lock().cpu_ns(hv.platform.now_ns()),
                cpu: vcpu.cpu_id.load(Ordering::Relaxed),
                ..wanted
            };
            op.set_payload(&info);
            return Ok(Reply::Changed);
        }
        XEN_DOMCTL_SETVCPUAFFINITY | XEN_DOMCTL_GETVCPUAFFINITY => {
            affinity(cur, domain, &op.payload(), op.cmd == XEN_DOMCTL_SETVCPUAFFINITY)?;
        }
        XEN_DOMCTL_SETNODEAFFINITY => {
            let wanted: XenDomctlNodeaffinity = op.payload();
            HypercallError::Invalid.when(read_bitmap(cur, &wanted.nodemap)? & 1 == 0)?;
        }
        XEN_DOMCTL_GETNODEAFFINITY => {
            let wanted: XenDomctlNodeaffinity = op.payload();
            write_bitmap(cur, &wanted.nodemap, 1)?;
        }
        XEN_DOMCTL_SCHEDULER_OP => {
            let mut wanted: XenDomctlSchedulerOp = op.payload();
            scheduler(domain, &mut wanted)?;
            op.set_payload(&wanted);
            return Ok(Reply::Changed);
        }
        XEN_DOMCTL_SENDTRIGGER => {
            let wanted: XenDomctlSendtrigger = op.payload();
            let vcpu = domain.vcpu(wanted.vcpu).ok_or(HypercallError::NoSuchDomain)?;
            match wanted.trigger {
                XEN_DOMCTL_SENDTRIGGER_NMI => hv.send_nmi(domain, vcpu),
                // Buttons of machines that a PV domain has not.
                XEN_DOMCTL_SENDTRIGGER_POWER | XEN_DOMCTL_SENDTRIGGER_SLEEP => {
                    return Err(HypercallError::Invalid);
                }
                _ => return Err(HypercallError::NoSys),
            }
        }
        XEN_DOMCTL_SETDOMAINHANDLE => {
            let wanted: XenDomctlSetdomainhandle = op.payload();
            *domain.handle.lock() = wanted.handle;
        }
        XEN_DOMCTL_IRQ_PERMISSION => {
            let p: XenDomctlIrqPermission = op.payload();
            permit(cur, domain, |all| &mut all.irqs, u64::from(p.pirq), 1, p.allow_access)?;
        }
        XEN_DOMCTL_IOMEM_PERMISSION => {
            let p: XenDomctlIomemPermission = op.payload();
            permit(cur, domain, |all| &mut all.iomem, p.first_mfn, p.nr_mfns, p.allow_access)?;
        }
        XEN_DOMCTL_IOPORT_PERMISSION => {
            let p: XenDomctlIoportPermission = op.payload();
            HypercallError::Invalid.when(u64::from(p.first_port) + u64::from(p.nr_ports) > 1 << 16)?;
            permit(
                cur,
                domain,
                |all| &mut all.ports,
                p.first_port.into(),
                p.nr_ports.into(),
                p.allow_access,
            )?;
        }
        XEN_DOMCTL_HYPERCALL_INIT => {
            let wanted: XenDomctlHypercallInit = op.payload();
            let mfn = Mfn::new(wanted.gmfn);
            let page = hv.get_page_writable(mfn, domain).map_err(|_| HypercallError::Access)?;
            write_hypercall_page(&hv.platform.shared(page.mfn()));
        }
        XEN_DOMCTL_SETTIMEOFFSET => {
            let wanted: XenDomctlSettimeoffset = op.payload();
            domain.time_offset_seconds.store(wanted.time_offset_seconds, Ordering::Relaxed);
            hv.publish_wall_clock(domain);
        }
        XEN_DOMCTL_SET_ADDRESS_SIZE => {
            let wanted: XenDomctlAddressSize = op.payload();
            HypercallError::Invalid.when(wanted.size != 64)?;
        }
        XEN_DOMCTL_GET_ADDRESS_SIZE => {
            op.set_payload(&XenDomctlAddressSize { size: 64 });
            return Ok(Reply::Changed);
        }
        XEN_DOMCTL_SETTSCINFO => {
            let p: XenDomctlTscInfo = op.payload();
            not_own(cur, domain)?;
            HypercallError::Invalid.when(p.tsc_mode > TSC_MODE_LAST)?;
            *domain.tsc.lock() = TscSettings {
                mode: p.tsc_mode,
                elapsed_ns: p.elapsed_nsec,
                gtsc_khz: p.gtsc_khz,
                incarnation: p.incarnation,
            };
        }
        XEN_DOMCTL_GETTSCINFO => {
            let tsc = *domain.tsc.lock();
            op.set_payload(&XenDomctlTscInfo {
                tsc_mode: tsc.mode,
                gtsc_khz: if tsc.gtsc_khz != 0 { tsc.gtsc_khz } else { hv.platform.time_params().tsc_khz },
                incarnation: tsc.incarnation,
                elapsed_nsec: hv.platform.now_ns(),
                ..XenDomctlTscInfo::default()
            });
            return Ok(Reply::Changed);
        }
        XEN_DOMCTL_GETPAGEFRAMEINFO3 => page_frame_info(cur, domain, &op.payload())?,
        XEN_DOMCTL_SET_EXT_VCPUCONTEXT | XEN_DOMCTL_GET_EXT_VCPUCONTEXT => {
            let mut context: XenDomctlExtVcpucontext = op.payload();
            ext_context(domain, &mut context, op.cmd == XEN_DOMCTL_SET_EXT_VCPUCONTEXT)?;
            op.set_payload(&context);
            return Ok(Reply::Changed);
        }
        XEN_DOMCTL_GETHVMCONTEXT | XEN_DOMCTL_SETHVMCONTEXT | XEN_DOMCTL_GETHVMCONTEXT_PARTIAL => {
            return Err(HypercallError::Invalid);
        }
        _ => return Err(HypercallError::NoSys),
    }
    Ok(Reply::Nothing)
}

/// Gives or takes `count` numbers from `first` on; the caller must have what it gives.
fn permit<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Domain,
    set: impl Fn(&mut Permissions) -> &mut RangeSet,
    first: u64,
    count: u64,
    allow: u8,
) -> Result<(), HypercallError> {
    let last = first
        .checked_add(count.checked_sub(1).ok_or(HypercallError::Invalid)?)
        .ok_or(HypercallError::Invalid)?;
    HypercallError::NotPermitted
        .when(!set(&mut cur.domain.permissions.lock()).contains_range(first, last))?;
    let mut permissions = domain.permissions.lock();
    let set = set(&mut permissions);
    let is_done = if allow != 0 { set.add(first, last) } else { set.remove(first, last) };
    if is_done { Ok(()) } else { Err(HypercallError::NoMemory) }
}
