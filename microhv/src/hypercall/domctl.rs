//! Control of domains, by the toolstack: interface version 0x15.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::guest_context::{VGCF_ONLINE, VcpuGuestContext};
use ring_abi::types::{DomId, Mfn, PAGE_SHIFT};
use zerocopy::{FromBytes, IntoBytes};

use super::page::write_hypercall_page;
use super::{Args, Current, HypercallError, HypercallResult, Outcome};
use crate::Hypervisor;
use crate::domain::{
    Domain, DomainConfig, FIRST_RESERVED, PauseFlags, Permissions, RangeSet, TscSettings, Vcpu,
};
use crate::mem::PageType;
use crate::platform::{CpuSet, MAX_CPUS, Platform};

/// Entries that one `getpageframeinfo3` may ask for.
const MAX_PAGE_FRAMES: u64 = 1024;
/// Default of what a domain may have when the toolstack says "default".
const DEFAULT_GRANT_FRAMES: u32 = 64;
const DEFAULT_MAPTRACK_FRAMES: u32 = 1024;

/// `domctl(op)`. Only a privileged domain may.
///
/// # Errors
/// `NotPermitted`; `Fault`; `Access`: another interface version; `NoSuchDomain`; as each operation says; `NoSys`: no
/// such operation.
pub fn domctl<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    if !cur.domain.privileged {
        return Err(HypercallError::NotPermitted);
    }
    let mut op: XenDomctl = cur.copy_in(args[0])?;
    if op.interface_version != XEN_DOMCTL_INTERFACE_VERSION {
        return Err(HypercallError::Access);
    }
    let result = if op.cmd == XEN_DOMCTL_CREATEDOMAIN {
        create(cur, &mut op)
    } else {
        let domain = cur.hv.domains.get(DomId::new(op.domain)).ok_or(HypercallError::NoSuchDomain)?;
        execute(cur, &domain, &mut op)
    };
    let result = match result {
        Ok(Reply::Nothing) => Ok(Outcome::OK),
        Ok(Reply::Changed) => cur.copy_out(args[0], &op).map(|()| Outcome::OK),
        Err(HypercallError::Again)
            if matches!(op.cmd, XEN_DOMCTL_DESTROYDOMAIN | XEN_DOMCTL_SETVCPUCONTEXT) =>
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
    if wanted.flags & !XEN_DOMCTL_CDF_XS_DOMAIN != 0 || wanted.iommu_opts != 0 || wanted.vmtrace_size != 0 {
        return Err(HypercallError::Invalid);
    }
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
    let id = (op.domain != 0 && op.domain < FIRST_RESERVED).then(|| DomId::new(op.domain));
    let domain = cur.hv.create_domain(id, config)?;
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
            hv.pause_domain(domain);
            domain.controller_pause_count.fetch_add(1, Ordering::AcqRel);
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
            if wanted.max == 0 || wanted.max as usize > domain.vcpus.len() {
                return Err(HypercallError::Invalid);
            }
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
            if read_bitmap(cur, &wanted.nodemap)? & 1 == 0 {
                return Err(HypercallError::Invalid);
            }
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
            if u64::from(p.first_port) + u64::from(p.nr_ports) > 1 << 16 {
                return Err(HypercallError::Invalid);
            }
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
            if wanted.size != 64 {
                return Err(HypercallError::Invalid);
            }
        }
        XEN_DOMCTL_GET_ADDRESS_SIZE => {
            op.set_payload(&XenDomctlAddressSize { size: 64 });
            return Ok(Reply::Changed);
        }
        XEN_DOMCTL_SETTSCINFO => {
            let p: XenDomctlTscInfo = op.payload();
            not_own(cur, domain)?;
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

/// `getdomaininfo` of a domain.
pub(super) fn domain_info<P: Platform>(hv: &Hypervisor<P>, domain: &Domain) -> XenDomctlGetdomaininfo {
    let now = hv.platform.now_ns();
    let shutdown = *domain.shutdown.lock();
    let up = || domain.vcpus.iter().filter(|vcpu| vcpu.is_up());
    let blocked = up().all(|vcpu| vcpu.pause_flags.load(Ordering::Relaxed) & PauseFlags::BLOCKED != 0);
    let running = up().any(|vcpu| vcpu.running_on().is_some());
    let mut flags = 0;
    for (set, flag) in [
        (domain.is_dying(), XEN_DOMINF_DYING),
        (shutdown.is_shut_down, XEN_DOMINF_SHUTDOWN),
        (domain.controller_pause_count.load(Ordering::Relaxed) > 0, XEN_DOMINF_PAUSED),
        (blocked, XEN_DOMINF_BLOCKED),
        (running, XEN_DOMINF_RUNNING),
        (domain.config.flags & XEN_DOMCTL_CDF_XS_DOMAIN != 0, XEN_DOMINF_XS_DOMAIN),
    ] {
        flags |= if set { flag } else { 0 };
    }
    flags |= (shutdown.code.unwrap_or(0) & XEN_DOMINF_SHUTDOWNMASK) << XEN_DOMINF_SHUTDOWNSHIFT;
    XenDomctlGetdomaininfo {
        domain: domain.id.raw(),
        flags,
        tot_pages: domain.mm.tot_pages(),
        max_pages: domain.mm.max_pages(),
        shared_info_frame: domain.shared_info_mfn.raw(),
        cpu_time: domain.vcpus.iter().map(|vcpu| vcpu.time.lock().cpu_ns(now)).sum(),
        nr_online_vcpus: up().count() as u32,
        max_vcpu_id: domain.vcpus.len() as u32 - 1,
        ssidref: domain.config.ssidref,
        handle: *domain.handle.lock(),
        ..XenDomctlGetdomaininfo::default()
    }
}

/// Room for a vCPU context, which is too large for the stack.
fn context_room() -> alloc::vec::Vec<u64> {
    alloc::vec![0u64; size_of::<VcpuGuestContext>() / 8]
}

fn set_context<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Arc<Domain>,
    wanted: &XenDomctlVcpucontext,
) -> Result<(), HypercallError> {
    not_own(cur, domain)?;
    let vcpu = vcpu_of(domain, wanted.vcpu)?;
    if wanted.ctxt == 0 {
        return Err(HypercallError::Invalid);
    }
    let mut room = context_room();
    cur.hv.platform.copy_from_guest(room.as_mut_bytes(), wanted.ctxt)?;
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

fn get_context<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Arc<Domain>,
    wanted: &XenDomctlVcpucontext,
) -> Result<(), HypercallError> {
    not_own(cur, domain)?;
    let vcpu = vcpu_of(domain, wanted.vcpu)?;
    if !vcpu.initialised.load(Ordering::Acquire) {
        return Err(HypercallError::NoData);
    }
    let mut room = context_room();
    let context =
        VcpuGuestContext::mut_from_bytes(room.as_mut_bytes()).map_err(|_| HypercallError::Invalid)?;
    cur.hv.pause_domain(domain);
    cur.hv.fill_vcpu_context(domain, vcpu, context);
    cur.hv.unpause_domain(domain);
    cur.copy_out_bytes(wanted.ctxt, room.as_bytes())
}

fn ext_context(
    domain: &Domain,
    context: &mut XenDomctlExtVcpucontext,
    set: bool,
) -> Result<(), HypercallError> {
    let vcpu = domain.vcpu(context.vcpu).ok_or(HypercallError::NoSuchDomain)?;
    let mut cpu = vcpu.cpu.lock();
    if set {
        for address in [context.syscall32_callback_eip, context.sysenter_callback_eip] {
            if !super::state::is_canonical(address) {
                return Err(HypercallError::Invalid);
            }
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

/// Reads a bitmap's first 64 bits.
fn read_bitmap<P: Platform>(cur: &Current<'_, P>, map: &XenctlBitmap) -> Result<u64, HypercallError> {
    let mut bytes = [0; 8];
    let len = (map.nr_bits as usize).div_ceil(8).min(bytes.len());
    cur.hv.platform.copy_from_guest(&mut bytes[..len], map.bitmap)?;
    let bits = u64::from_le_bytes(bytes);
    Ok(if map.nr_bits < 64 { bits & ((1 << map.nr_bits) - 1) } else { bits })
}

/// Writes a bitmap that has at most 64 bits set; the rest of the guest's is zeroed.
pub(super) fn write_bitmap<P: Platform>(
    cur: &Current<'_, P>,
    map: &XenctlBitmap,
    bits: u64,
) -> Result<(), HypercallError> {
    let bytes = bits.to_le_bytes();
    for index in 0..map.nr_bits.div_ceil(8).min(MAX_CPUS as u32 / 8 * 16) {
        let byte = bytes.get(index as usize).copied().unwrap_or(0);
        cur.copy_out_at(map.bitmap, u64::from(index), &byte)?;
    }
    Ok(())
}

fn affinity<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Domain,
    wanted: &XenDomctlVcpuaffinity,
    set: bool,
) -> Result<(), HypercallError> {
    let vcpu = domain.vcpu(wanted.vcpu).ok_or(HypercallError::NoSuchDomain)?;
    if wanted.flags & (XEN_VCPUAFFINITY_HARD | XEN_VCPUAFFINITY_SOFT) == 0 {
        return Err(HypercallError::Invalid);
    }
    let online = online_cpus(cur.hv).bits();
    if wanted.flags & XEN_VCPUAFFINITY_HARD != 0 {
        if set {
            let bits = read_bitmap(cur, &wanted.cpumap_hard)?;
            if bits & online == 0 {
                return Err(HypercallError::Invalid);
            }
            vcpu.sched.affinity.store(bits, Ordering::Relaxed);
        }
        write_bitmap(cur, &wanted.cpumap_hard, vcpu.sched.affinity.load(Ordering::Relaxed) & online)?;
    }
    if wanted.flags & XEN_VCPUAFFINITY_SOFT != 0 {
        write_bitmap(cur, &wanted.cpumap_soft, online)?;
    }
    Ok(())
}

/// The CPUs in use.
pub(super) fn online_cpus<P: Platform>(hv: &Hypervisor<P>) -> CpuSet {
    let cpus = hv.platform.machine_info().cpus.clamp(1, MAX_CPUS as u32);
    CpuSet::from_bits(u64::MAX >> (64 - cpus))
}

/// Weight and cap, which all vCPUs of a domain share.
fn scheduler(domain: &Domain, op: &mut XenDomctlSchedulerOp) -> Result<(), HypercallError> {
    if op.sched_id != XEN_SCHEDULER_CREDIT2 {
        return Err(HypercallError::Invalid);
    }
    let first = &domain.vcpus[0].sched;
    match op.cmd {
        XEN_DOMCTL_SCHEDOP_PUTINFO => {
            let (weight, cap) = (op.u[0] as u16, (op.u[0] >> 16) as u16);
            for vcpu in &domain.vcpus {
                if weight != 0 {
                    vcpu.sched.weight.store(u32::from(weight), Ordering::Relaxed);
                }
                if cap != u16::MAX {
                    vcpu.sched.cap.store(u32::from(cap), Ordering::Relaxed);
                }
            }
        }
        XEN_DOMCTL_SCHEDOP_GETINFO => {
            let (weight, cap) = (first.weight.load(Ordering::Relaxed), first.cap.load(Ordering::Relaxed));
            op.u[0] = u64::from(weight & 0xffff) | u64::from(cap) << 16;
        }
        _ => return Err(HypercallError::Invalid),
    }
    Ok(())
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
    if !set(&mut cur.domain.permissions.lock()).contains_range(first, last) {
        return Err(HypercallError::NotPermitted);
    }
    let mut permissions = domain.permissions.lock();
    if allow != 0 {
        set(&mut permissions).add(first, last);
    } else {
        set(&mut permissions).remove(first, last);
    }
    Ok(())
}

/// `XEN_DOMCTL_getpageframeinfo3`: what each frame of a domain is used as.
fn page_frame_info<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Domain,
    wanted: &XenDomctlGetpageframeinfo3,
) -> Result<(), HypercallError> {
    if wanted.num > MAX_PAGE_FRAMES {
        return Err(HypercallError::TooBig);
    }
    for index in 0..wanted.num {
        let raw: u64 = cur.copy_in_at(wanted.array, index)?;
        let kind = match cur.hv.get_page(Mfn::new(raw), domain) {
            None => XEN_DOMCTL_PFINFO_XTAB,
            Some(page) => cur.hv.frames.info(page.mfn()).map_or(XEN_DOMCTL_PFINFO_XTAB, |info| {
                let table = match info.page_type() {
                    (_, 0) => XEN_DOMCTL_PFINFO_NOTAB,
                    (PageType::L1, _) => XEN_DOMCTL_PFINFO_L1TAB,
                    (PageType::L2, _) => XEN_DOMCTL_PFINFO_L2TAB,
                    (PageType::L3, _) => XEN_DOMCTL_PFINFO_L3TAB,
                    (PageType::L4, _) => XEN_DOMCTL_PFINFO_L4TAB,
                    _ => XEN_DOMCTL_PFINFO_NOTAB,
                };
                table | if info.is_pinned() { XEN_DOMCTL_PFINFO_LPINTAB } else { 0 }
            }),
        };
        cur.copy_out_at(wanted.array, index, &u64::from(kind))?;
    }
    Ok(())
}
