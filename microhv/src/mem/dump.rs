//! The debug keys of memory.

use alloc::collections::BTreeMap;

use ring_abi::types::Mfn;

use super::check::Extra;
use crate::Hypervisor;
use crate::frames::info::PageType;
use crate::platform::Platform;

/// Key `m`: which frames are free, and how many frames of each owner are used as what.
pub(crate) fn memory<P: Platform>(hv: &Hypervisor<P>) {
    let frames = &hv.frames;
    log::info!(
        "memory: {} of {} frames free, {} claimed",
        frames.free_pages(),
        frames.total_pages(),
        frames.claimed()
    );
    let mut owners: BTreeMap<u16, [u32; 10]> = BTreeMap::new();
    for info in (0..frames.end().raw()).filter_map(|mfn| frames.info(Mfn::new(mfn))) {
        let Some(owner) = info.owner() else { continue };
        let counts = owners.entry(owner.raw()).or_default();
        let (page_type, uses) = info.page_type();
        counts[if uses > 0 { page_type as usize } else { PageType::None as usize }] += 1;
        counts[8] += u32::from(info.is_pinned());
        counts[9] += u32::from(info.is_lent());
    }
    for (owner, [none, l1, l2, l3, l4, descriptors, shared, writable, pinned, lent]) in owners {
        log::info!(
            "  d{owner}: L1 {l1} L2 {l2} L3 {l3} L4 {l4} (pinned {pinned}) descriptors {descriptors} writable \
             {writable} other {none}; lent to it {lent}, of them read-only {shared}"
        );
    }
}

/// Key `M`: checks the frame table against all page tables.
pub(crate) fn check<P: Platform>(hv: &Hypervisor<P>) {
    let mut extra = Extra::new();
    for domain in hv.domains.snapshot() {
        domain.grants.visit_device_frames(|mfn, writable| {
            let held = extra.entry(mfn.raw()).or_default();
            held.0 += 1;
            held.1 += u32::from(writable);
        });
    }
    let wrong = hv.check_frames(&extra);
    for line in &wrong {
        log::error!("frame table: {line}");
    }
    log::info!("frame table: {} differences", wrong.len());
}
