//! What the toolstack may set about a domain as a whole.

use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::types::{Mfn, PAGE_SHIFT};

use super::Operation;
use super::info::{read_bitmap, write_bitmap};
use crate::domain::{Permissions, TscSettings};
use crate::hypercall::page::write_hypercall_page;
use crate::hypercall::{Answer, HypercallError};
use crate::platform::Platform;
use crate::rangeset::RangeSet;
use crate::sched::pools::Policy;

/// The last of `settscinfo`'s modes: native.
const TSC_MODE_LAST: u32 = 2;
/// Bits of an address, of every domain.
pub(super) const ADDRESS_SIZE: XenDomctlAddressSize = XenDomctlAddressSize { size: 64 };

pub(super) fn set_address_size(wanted: XenDomctlAddressSize) -> Answer {
    HypercallError::Invalid.when(wanted.size != ADDRESS_SIZE.size)
}

impl<P: Platform> Operation<'_, '_, P> {
    pub(super) fn max_mem(&self, max: XenDomctlMaxMem) -> Answer {
        self.domain.mm.set_max_pages(max.max_memkb >> (PAGE_SHIFT - 10));
        Ok(())
    }

    /// The vCPUs were made with the domain.
    pub(super) fn max_vcpus(&self, wanted: XenDomctlMaxVcpus) -> Answer {
        self.not_own()?;
        HypercallError::Invalid.when(wanted.max as usize != self.domain.vcpus.len())
    }

    pub(super) fn handle(&self, wanted: XenDomctlSetdomainhandle) -> Answer {
        *self.domain.handle.lock() = wanted.handle;
        Ok(())
    }

    /// There is one node.
    pub(super) fn set_node_affinity(&self, wanted: &XenDomctlNodeaffinity) -> Answer {
        HypercallError::Invalid.when(read_bitmap(self.cur, &wanted.nodemap)? & 1 == 0)
    }

    pub(super) fn get_node_affinity(&self, wanted: &XenDomctlNodeaffinity) -> Answer {
        write_bitmap(self.cur, &wanted.nodemap, 1)
    }

    /// The weight of each vCPU of a domain, and the domain's cap. A weight of 0 and a cap of 65535 leave them.
    pub(super) fn scheduler(&self, mut op: XenDomctlSchedulerOp) -> Answer<XenDomctlSchedulerOp> {
        // As Xen's, the null policy knows neither weight nor cap, and takes what it is told for done.
        let (policy, _) = self.cur.hv.sched.pool_of(self.domain);
        let (scheduler, is_null) = match policy {
            Policy::Shares => (XEN_SCHEDULER_CREDIT2, false),
            Policy::Null => (XEN_SCHEDULER_NULL, true),
        };
        HypercallError::Invalid.when(op.sched_id != scheduler)?;
        let first = &self.domain.vcpu(0).ok_or(HypercallError::NoSuchDomain)?.sched;
        match op.cmd {
            XEN_DOMCTL_SCHEDOP_PUTINFO | XEN_DOMCTL_SCHEDOP_GETINFO if is_null => {}
            XEN_DOMCTL_SCHEDOP_PUTINFO => {
                let (weight, cap) = (op.u[0] as u16, (op.u[0] >> 16) as u16);
                for vcpu in self.domain.vcpus.iter().filter(|_| weight != 0) {
                    vcpu.sched.weight.store(u32::from(weight), Ordering::Relaxed);
                }
                if cap != u16::MAX {
                    self.cur.hv.set_cap(self.domain, cap.into());
                }
            }
            XEN_DOMCTL_SCHEDOP_GETINFO => {
                let weight = u64::from(first.weight.load(Ordering::Relaxed) & 0xffff);
                op.u[0] = weight | self.domain.sched.cap.percent() << 16;
            }
            _ => return Err(HypercallError::Invalid),
        }
        Ok(op)
    }

    pub(super) fn irq_permission(&self, p: XenDomctlIrqPermission) -> Answer {
        self.permit(|all| &mut all.irqs, p.pirq.into(), 1, p.allow_access)
    }

    pub(super) fn iomem_permission(&self, p: XenDomctlIomemPermission) -> Answer {
        self.permit(|all| &mut all.iomem, p.first_mfn, p.nr_mfns, p.allow_access)
    }

    pub(super) fn ioport_permission(&self, p: XenDomctlIoportPermission) -> Answer {
        let (first, count) = (u64::from(p.first_port), u64::from(p.nr_ports));
        HypercallError::Invalid.when(first + count > 1 << 16)?;
        self.permit(|all| &mut all.ports, first, count, p.allow_access)
    }

    /// Gives or takes `count` numbers from `first` on; the caller must have what it gives.
    fn permit(
        &self,
        set: impl Fn(&mut Permissions) -> &mut RangeSet,
        first: u64,
        count: u64,
        allow: u8,
    ) -> Answer {
        let last = count.checked_sub(1).and_then(|more| first.checked_add(more));
        let last = last.ok_or(HypercallError::Invalid)?;
        HypercallError::NotPermitted
            .when(!set(&mut self.cur.domain.permissions.lock()).contains_range(first, last))?;
        let mut permissions = self.domain.permissions.lock();
        let set = set(&mut permissions);
        let is_done = if allow != 0 { set.add(first, last) } else { set.remove(first, last) };
        if is_done { Ok(()) } else { Err(HypercallError::NoMemory) }
    }

    pub(super) fn hypercall_init(&self, wanted: XenDomctlHypercallInit) -> Answer {
        let (hv, mfn) = (self.cur.hv, Mfn::new(wanted.gmfn));
        let page = hv.get_page_writable(mfn, self.domain).map_err(|_| HypercallError::Access)?;
        write_hypercall_page(&hv.platform.shared(page.mfn()));
        Ok(())
    }

    pub(super) fn time_offset(&self, wanted: XenDomctlSettimeoffset) -> Answer {
        *self.domain.time_offset.lock() = wanted.time_offset_seconds;
        self.cur.hv.publish_wall_clock(self.domain);
        Ok(())
    }

    pub(super) fn set_tsc(&self, p: XenDomctlTscInfo) -> Answer {
        self.not_own()?;
        HypercallError::Invalid.when(p.tsc_mode > TSC_MODE_LAST)?;
        self.domain.tsc_mode.store(p.tsc_mode, Ordering::Relaxed);
        *self.domain.tsc.lock() =
            TscSettings { elapsed_ns: p.elapsed_nsec, gtsc_khz: p.gtsc_khz, incarnation: p.incarnation };
        Ok(())
    }

    pub(super) fn get_tsc(&self) -> XenDomctlTscInfo {
        let tsc = *self.domain.tsc.lock();
        let platform = &self.cur.hv.platform;
        XenDomctlTscInfo {
            tsc_mode: self.domain.tsc_mode.load(Ordering::Relaxed),
            gtsc_khz: if tsc.gtsc_khz != 0 { tsc.gtsc_khz } else { platform.time_params().tsc_khz },
            incarnation: tsc.incarnation,
            elapsed_nsec: platform.now_ns(),
            ..XenDomctlTscInfo::default()
        }
    }
}
