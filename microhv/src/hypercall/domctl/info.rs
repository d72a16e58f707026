//! What domains, frames and CPUs are, as the toolstack reads it.

use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::types::{GuestVa, Mfn};
use zerocopy::IntoBytes;

use super::Operation;
use crate::Hypervisor;
use crate::domain::{Current, Domain, PauseFlags};
use crate::frames::PageType;
use crate::hypercall::{Answer, HypercallError};
use crate::nospec::At;
use crate::platform::{MAX_CPUS, Platform};

/// Entries that one `getpageframeinfo3` may ask for.
const MAX_PAGE_FRAMES: u64 = 1024;
/// Entries that are read and written together.
const FRAMES_TOGETHER: usize = 64;

/// `getdomaininfo` of a domain.
pub(in crate::hypercall) fn domain_info<P: Platform>(
    hv: &Hypervisor<P>,
    domain: &Domain,
) -> XenDomctlGetdomaininfo {
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
        max_vcpu_id: domain.config.max_vcpus - 1,
        ssidref: domain.config.ssidref,
        handle: *domain.handle.lock(),
        cpupool: domain.sched.pool(),
        ..XenDomctlGetdomaininfo::default()
    }
}

/// Reads a bitmap's first 64 bits.
pub(super) fn read_bitmap<P: Platform>(cur: &Current<'_, P>, map: &XenctlBitmap) -> Answer<u64> {
    let mut bytes = [0; 8];
    let len = (map.nr_bits as usize).div_ceil(8).min(bytes.len());
    cur.copy_from_guest(&mut bytes[..len], GuestVa::new(map.bitmap))?;
    let bits = u64::from_le_bytes(bytes);
    Ok(if map.nr_bits < 64 { bits & ((1 << map.nr_bits) - 1) } else { bits })
}

/// Writes a bitmap that has at most 64 bits set; the rest of the guest's is zeroed.
pub(in crate::hypercall) fn write_bitmap<P: Platform>(
    cur: &Current<'_, P>,
    map: &XenctlBitmap,
    bits: u64,
) -> Answer {
    let bytes = bits.to_le_bytes();
    for index in 0..map.nr_bits.div_ceil(8).min(MAX_CPUS as u32 / 8 * 16) {
        let byte = bytes.at(index as usize).copied().unwrap_or(0);
        cur.copy_out_at(GuestVa::new(map.bitmap), u64::from(index), &byte)?;
    }
    Ok(())
}

impl<P: Platform> Operation<'_, '_, P> {
    /// `XEN_DOMCTL_getpageframeinfo3`: what each frame of a domain is used as.
    pub(super) fn page_frame_info(&self, wanted: &XenDomctlGetpageframeinfo3) -> Answer {
        HypercallError::TooBig.when(wanted.num > MAX_PAGE_FRAMES)?;
        let mut room = [0u64; FRAMES_TOGETHER];
        let mut done = 0;
        while done < wanted.num {
            let words = &mut room[..((wanted.num - done) as usize).min(FRAMES_TOGETHER)];
            let at = GuestVa::new(wanted.array).wrapping_add(done * size_of::<u64>() as u64);
            self.cur.copy_from_guest(words.as_mut_bytes(), at)?;
            words.iter_mut().for_each(|word| *word = self.kind_of(Mfn::new(*word)));
            self.cur.copy_to_guest(at, words.as_bytes())?;
            done += words.len() as u64;
        }
        Ok(())
    }

    /// What a frame of a domain is used as: `XEN_DOMCTL_PFINFO_*`.
    fn kind_of(&self, mfn: Mfn) -> u64 {
        let page = self.cur.hv.get_page(mfn, self.domain);
        let info = page.as_ref().and_then(|page| self.cur.hv.frames.info(page.mfn()));
        let Some(info) = info else { return XEN_DOMCTL_PFINFO_XTAB.into() };
        let table = match info.page_type() {
            (PageType::L1, 1..) => XEN_DOMCTL_PFINFO_L1TAB,
            (PageType::L2, 1..) => XEN_DOMCTL_PFINFO_L2TAB,
            (PageType::L3, 1..) => XEN_DOMCTL_PFINFO_L3TAB,
            (PageType::L4, 1..) => XEN_DOMCTL_PFINFO_L4TAB,
            _ => XEN_DOMCTL_PFINFO_NOTAB,
        };
        u64::from(table | if info.is_pinned() { XEN_DOMCTL_PFINFO_LPINTAB } else { 0 })
    }
}
