//! The toolstack reads and sets vCPUs: contexts, extended contexts, affinity, state. An NMI is sent here too.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::guest_context::{VGCF_ONLINE, VcpuGuestContext};
use ring_abi::types::GuestVa;
use zerocopy::{FromZeros, IntoBytes};

use super::Operation;
use super::info::{read_bitmap, write_bitmap};
use crate::domain::{Callback, Current, PauseFlags, Vcpu};
use crate::emul::cr4_of_guest;
use crate::frames::pte::is_canonical;
use crate::hypercall::{Answer, HypercallError};
use crate::platform::{CpuSet, Platform};

/// Reads a vCPU's whole state, which is too large for the stack.
///
/// # Errors
/// `Fault`; `NoMemory`: a guest may have used up what there is.
pub(in crate::hypercall) fn read_context<P: Platform>(
    cur: &Current<'_, P>,
    at: GuestVa,
) -> Answer<Box<VcpuGuestContext>> {
    let mut context = VcpuGuestContext::new_box_zeroed().map_err(|_| HypercallError::NoMemory)?;
    cur.copy_from_guest(context.as_mut_bytes(), at)?;
    Ok(context)
}

impl<P: Platform> Operation<'_, '_, P> {
    /// # Errors
    /// `NoSuchDomain`: no such vCPU.
    pub(super) fn vcpu(&self, id: u32) -> Answer<&Vcpu> {
        self.domain.vcpu(id).ok_or(HypercallError::NoSuchDomain)
    }

    pub(super) fn set_context(&self, wanted: &XenDomctlVcpucontext) -> Answer {
        self.not_own()?;
        let vcpu = self.domain.vcpu(wanted.vcpu).ok_or(HypercallError::Invalid)?;
        HypercallError::Invalid.when(wanted.ctxt == 0)?;
        let context = read_context(self.cur, GuestVa::new(wanted.ctxt))?;
        self.hold()?;
        let cr4 = cr4_of_guest(self.cur.hv, self.domain, context.ctrlreg[4]);
        let result = self.cur.hv.set_vcpu_context(self.domain, vcpu, &context, cr4, false);
        if result.is_ok() {
            if context.flags & VGCF_ONLINE != 0 {
                self.cur.hv.wake(self.domain, vcpu, PauseFlags::DOWN);
            } else {
                self.cur.hv.take_down(self.domain, vcpu);
            }
        }
        self.cur.hv.unpause_domain(self.domain);
        Ok(result?)
    }

    pub(super) fn get_context(&self, wanted: &XenDomctlVcpucontext) -> Answer {
        self.not_own()?;
        let vcpu = self.domain.vcpu(wanted.vcpu).ok_or(HypercallError::Invalid)?;
        HypercallError::NoData.when(!vcpu.initialised.load(Ordering::Acquire))?;
        let mut context = VcpuGuestContext::new_box_zeroed().map_err(|_| HypercallError::NoMemory)?;
        self.hold()?;
        crate::lifecycle::fill_context(self.domain, vcpu, &mut context);
        self.cur.hv.unpause_domain(self.domain);
        Ok(self.cur.copy_to_guest(GuestVa::new(wanted.ctxt), context.as_bytes())?)
    }

    pub(super) fn set_ext_context(
        &self,
        context: XenDomctlExtVcpucontext,
    ) -> Answer<XenDomctlExtVcpucontext> {
        let entries = &self.vcpu(context.vcpu)?.entries;
        let callback = |address, disables_events: u8| {
            HypercallError::Invalid
                .when(!is_canonical(address))
                .map(|()| Callback { address, masks_events: disables_events != 0 })
        };
        let syscall32 = callback(context.syscall32_callback_eip, context.syscall32_disables_events)?;
        let sysenter = callback(context.sysenter_callback_eip, context.sysenter_disables_events)?;
        self.hold()?;
        entries.sysenter.set(sysenter);
        entries.syscall32.set(syscall32);
        self.cur.hv.unpause_domain(self.domain);
        Ok(context)
    }

    pub(super) fn get_ext_context(&self, wanted: XenDomctlExtVcpucontext) -> Answer<XenDomctlExtVcpucontext> {
        let entries = &self.vcpu(wanted.vcpu)?.entries;
        let (syscall32, sysenter) = (entries.syscall32.get(), entries.sysenter.get());
        Ok(XenDomctlExtVcpucontext {
            vcpu: wanted.vcpu,
            size: size_of::<XenDomctlExtVcpucontext>() as u32,
            syscall32_callback_eip: syscall32.address,
            sysenter_callback_eip: sysenter.address,
            syscall32_disables_events: syscall32.masks_events.into(),
            sysenter_disables_events: sysenter.masks_events.into(),
            ..XenDomctlExtVcpucontext::default()
        })
    }

    pub(super) fn info(&self, wanted: XenDomctlGetvcpuinfo) -> Answer<XenDomctlGetvcpuinfo> {
        let vcpu = self.vcpu(wanted.vcpu)?;
        Ok(XenDomctlGetvcpuinfo {
            online: vcpu.is_up().into(),
            blocked: (vcpu.pause_flags.load(Ordering::Relaxed) & PauseFlags::BLOCKED != 0).into(),
            running: vcpu.running_on().is_some().into(),
            cpu_time: vcpu.time.lock().cpu_ns(self.cur.hv.platform.now_ns()),
            cpu: vcpu.sched.cpu().raw(),
            ..wanted
        })
    }

    /// Sets what the caller names of hard and soft affinity, and gives back what of that takes effect: of hard affinity the CPUs
    /// of the domain's pool, of soft affinity those that hard affinity allows too.
    ///
    /// # Errors
    /// `Invalid`: neither is named, or a set has no CPU of the domain's pool. Then nothing was changed.
    pub(super) fn set_affinity(&self, wanted: &XenDomctlVcpuaffinity) -> Answer {
        let vcpu = self.vcpu(wanted.vcpu)?;
        let named = |flag, map| (wanted.flags & flag != 0).then_some(map);
        let hard_map = named(XEN_VCPUAFFINITY_HARD, &wanted.cpumap_hard);
        let soft_map = named(XEN_VCPUAFFINITY_SOFT, &wanted.cpumap_soft);
        HypercallError::Invalid.when(hard_map.or(soft_map).is_none())?;
        let online = self.cur.hv.sched.pool_of(self.domain).1.bits();
        let set = |map: Option<&XenctlBitmap>, old: CpuSet| {
            let bits = map.map_or(Ok(old.bits()), |map| read_bitmap(self.cur, map))?;
            HypercallError::Invalid.when(bits & online == 0).map(|()| bits)
        };
        let (hard, soft) = vcpu.sched.affinity();
        let (hard, soft) = (set(hard_map, hard)?, set(soft_map, soft)?);
        let (hard_cpus, soft_cpus) = (CpuSet::from_bits(hard), CpuSet::from_bits(soft));
        self.cur.hv.set_affinity(self.domain, vcpu, hard_cpus, soft_cpus);
        hard_map.map_or(Ok(()), |map| write_bitmap(self.cur, map, hard & online))?;
        soft_map.map_or(Ok(()), |map| write_bitmap(self.cur, map, soft & hard & online))
    }

    /// # Errors
    /// `Invalid`: neither hard nor soft affinity is asked for.
    pub(super) fn get_affinity(&self, wanted: &XenDomctlVcpuaffinity) -> Answer {
        let vcpu = self.vcpu(wanted.vcpu)?;
        HypercallError::Invalid.when(wanted.flags & (XEN_VCPUAFFINITY_HARD | XEN_VCPUAFFINITY_SOFT) == 0)?;
        let (hard, soft) = vcpu.sched.affinity();
        if wanted.flags & XEN_VCPUAFFINITY_HARD != 0 {
            write_bitmap(self.cur, &wanted.cpumap_hard, hard.bits())?;
        }
        if wanted.flags & XEN_VCPUAFFINITY_SOFT != 0 {
            write_bitmap(self.cur, &wanted.cpumap_soft, soft.bits())?;
        }
        Ok(())
    }

    pub(super) fn trigger(&self, wanted: XenDomctlSendtrigger) -> Answer {
        let vcpu = self.vcpu(wanted.vcpu)?;
        match wanted.trigger {
            XEN_DOMCTL_SENDTRIGGER_NMI => {
                self.cur.hv.send_nmi(self.domain, vcpu);
                Ok(())
            }
            // Buttons of machines that a PV domain has not.
            XEN_DOMCTL_SENDTRIGGER_POWER | XEN_DOMCTL_SENDTRIGGER_SLEEP => Err(HypercallError::Invalid),
            _ => Err(HypercallError::NoSys),
        }
    }
}
