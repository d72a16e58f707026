//! Grant tables: references that do not exist, frames of other domains, addresses that the guest may not map.

use alloc::format;

use pvrt::hypercall::event;
use ring_abi::errno::Errno::{EBUSY, EINVAL, ENOSYS, EOPNOTSUPP};
use ring_abi::grant::*;
use ring_abi::hypercall::__HYPERVISOR_GRANT_TABLE_OP;
use ring_abi::mmu::MMUEXT_PIN_L1_TABLE;
use ring_abi::types::{DomId, Mfn};

use crate::ground::{grant_access, probe, space::*};
use crate::report::Report;

/// How often one grant is mapped at a time.
const MANY: usize = 600;

fn grant<T>(command: u32, arg: &mut T) -> i64 {
    one(__HYPERVISOR_GRANT_TABLE_OP, command, arg)
}

/// Maps a grant, and returns the status and the handle.
fn map_ref(dom: u16, gref: u32, flags: u32, host_addr: u64) -> (i64, u32) {
    let mut arg = GnttabMapGrantRef { host_addr, flags, r#ref: gref, dom, ..Default::default() };
    match grant(GNTTABOP_MAP_GRANT_REF, &mut arg) {
        0 => (arg.status.into(), arg.handle),
        other => (other, 0),
    }
}

fn unmap(handle: u32, host_addr: u64, dev_bus_addr: u64) -> i64 {
    let mut arg = GnttabUnmapGrantRef { host_addr, dev_bus_addr, handle, ..Default::default() };
    match grant(GNTTABOP_UNMAP_GRANT_REF, &mut arg) {
        0 => arg.status.into(),
        other => other,
    }
}

/// Runs all cases.
pub(crate) fn run(report: &mut Report) {
    let Ok(me) = event::own_domid() else { return report.case("own number", false, ()) };
    references(report, me);
    frames(report, me);
    places(report, me);
    copies(report, me);
    tables_and_versions(report);
}

fn references(report: &mut Report, me: DomId) {
    let scratch = Scratch::new(1);
    let at = scratch.at(0);
    for gref in [7, 400, 511, 512, 65_536, 1 << 31, u32::MAX] {
        let (got, _) = map_ref(me.raw(), gref, GNTMAP_HOST_MAP, at);
        report.case(&format!("gref {gref:#x}"), matches!(got, -3 | -1), got);
        let (got, _) = map_ref(me.raw(), gref, GNTMAP_DEVICE_MAP, 0);
        report.case(&format!("gref {gref:#x} for a device"), matches!(got, -3 | -1), got);
    }
    for dom in [12345, 0x7ff1, 0x7ff2, 0x7ff4, 0xffff] {
        let (got, _) = map_ref(dom, 8, GNTMAP_HOST_MAP, at);
        report.case(&format!("a grant of domain {dom:#x}"), got == -2, got);
    }
    if !report.privileged {
        let got = (0..64).find(|gref| map_ref(0, *gref, GNTMAP_HOST_MAP, at).0 >= 0);
        report.case("dom0's grants", got.is_none(), got);
    }
    let (got, _) = map_ref(me.raw(), 8, 0, at);
    report.case("neither host nor device", got < 0, got);
    for handle in [0, 5000, 1 << 20, u32::MAX] {
        let got = unmap(handle, at, 0);
        report.case(&format!("handle {handle:#x}"), matches!(got, -4 | -5 | -2), got);
    }
    let grant = grant_access(me, scratch.pages.mfn(0), true).expect("a grant");
    let gref = grant.number().raw();
    let (got, _) = map_ref(me.raw(), gref, GNTMAP_HOST_MAP, at);
    report.case("writing what is granted for reading", got == -1, got);
    let (got, handle) = map_ref(me.raw(), gref, GNTMAP_HOST_MAP | GNTMAP_READONLY, at);
    report.case("reading it", got == 0, got);
    report.case("another address", unmap(handle, at ^ 0x1000, 0) < 0, ());
    report.case("unmap", unmap(handle, at, 0) == 0, handle);
    report.case("unmap twice", unmap(handle, at, 0) == -4, handle);
    drop(grant);
    // A grant to another domain is not for this domain to use.
    let grant = grant_access(DomId::new(me.raw() ^ 1), scratch.pages.mfn(0), false).expect("a grant");
    let (got, _) = map_ref(me.raw(), grant.number().raw(), GNTMAP_HOST_MAP, at);
    report.case("another's grant", got == -1, got);
}

fn frames(report: &mut Report, me: DomId) {
    let scratch = Scratch::new(1);
    let at = scratch.at(0);
    let flags = [
        ("writable", GNTMAP_HOST_MAP),
        ("readable", GNTMAP_HOST_MAP | GNTMAP_READONLY),
        ("to a device", GNTMAP_DEVICE_MAP),
    ];
    for (how, flags) in flags {
        let mut taken = None;
        for mfn in foreign_frames().into_iter().take(48).chain([end_of_memory() + 1, 0xffff_ffff]) {
            // The control domain may grant device memory.
            if report.privileged && (mfn < 0x100 || mfn >= end_of_memory()) {
                continue;
            }
            let grant = grant_access(me, Mfn::new(mfn), false).expect("a grant");
            let address = if flags & GNTMAP_HOST_MAP != 0 { at } else { 0 };
            let (got, handle) = map_ref(me.raw(), grant.number().raw(), flags, address);
            if got >= 0 {
                taken = Some(mfn);
                unmap(handle, address, mfn << 12);
            }
        }
        report.case(&format!("a grant of a foreign frame, {how}"), taken.is_none(), taken);
    }
    for (level, mfn) in [4, 3, 2, 1].into_iter().zip(tables(at)) {
        let grant = grant_access(me, Mfn::new(mfn), false).expect("a grant");
        let gref = grant.number().raw();
        let (got, handle) = map_ref(me.raw(), gref, GNTMAP_HOST_MAP, at);
        report.case(&format!("an L{level} by its grant, writable"), got < 0, got);
        if got >= 0 {
            unmap(handle, at, 0);
        }
        let (got, _) = map_ref(me.raw(), gref, GNTMAP_DEVICE_MAP, 0);
        report.case(&format!("an L{level} for a device to write"), got < 0, got);
    }
    // A page that a grant maps writable must not become a page table.
    let grant = grant_access(me, scratch.pages.mfn(0), false).expect("a grant");
    let (got, handle) = map_ref(me.raw(), grant.number().raw(), GNTMAP_HOST_MAP, at);
    report.case("own page by its grant", got == 0, got);
    scratch.protect(0);
    let got = extended(MMUEXT_PIN_L1_TABLE, scratch.mfn(0), 0);
    report.refused("a table that a grant can write", got, &[EINVAL, EBUSY]);
    report.case("unmap", unmap(handle, at, 0) == 0, handle);
    let (got, handle) = map_ref(me.raw(), grant.number().raw(), GNTMAP_DEVICE_MAP, 0);
    report.case("own page for a device", got == 0, got);
    let got = extended(MMUEXT_PIN_L1_TABLE, scratch.mfn(0), 0);
    report.refused("a table that a device can write", got, &[EINVAL, EBUSY]);
    report.case("unmap for the device", unmap(handle, 0, scratch.mfn(0) << 12) == 0, handle);
    scratch.unprotect(0);
}

/// Tries to map a grant at addresses where it may not be mapped.
fn places(report: &mut Report, me: DomId) {
    let scratch = Scratch::new(2);
    let grant = grant_access(me, scratch.pages.mfn(0), false).expect("a grant");
    let gref = grant.number().raw();
    let mut refuse = |name: &str, flags: u32, address: u64| {
        let (got, handle) = map_ref(me.raw(), gref, GNTMAP_HOST_MAP | flags, address);
        report.case(&format!("a grant at {name}"), got < 0, got);
        if got >= 0 {
            unmap(handle, address, 0);
        }
    };
    refuse("the M2P", 0, M2P);
    refuse("hypervisor space", 0, 0xffff_8300_0000_0000);
    refuse("a non-canonical address", 0, 1 << 63);
    refuse("an address without tables", 0, 0x0000_5555_5555_5000);
    refuse("an entry beyond memory", GNTMAP_CONTAINS_PTE, 1 << 50);
    refuse("a misaligned entry", GNTMAP_CONTAINS_PTE, scratch.entry_address(0) + 4);
    refuse("an entry in a plain page", GNTMAP_CONTAINS_PTE, scratch.mfn(1) << 12);
    let [l4, l3, l2, _] = tables(scratch.at(0));
    refuse("an L2 entry", GNTMAP_CONTAINS_PTE, (l2 << 12) + 200 * 8);
    refuse("an L3 entry", GNTMAP_CONTAINS_PTE, (l3 << 12) + 100 * 8);
    refuse("a hypervisor slot", GNTMAP_CONTAINS_PTE, (l4 << 12) + 256 * 8);
    for mfn in foreign_frames().into_iter().take(8) {
        refuse("a foreign frame's entry", GNTMAP_CONTAINS_PTE, mfn << 12);
    }
    // One grant is mapped many times; each unmap must give back what its map took.
    let mut handles = alloc::vec::Vec::new();
    for _ in 0..MANY {
        match map_ref(me.raw(), gref, GNTMAP_DEVICE_MAP, 0) {
            (0, handle) => handles.push(handle),
            (other, _) => {
                report.case("many mappings", matches!(other, -13 | -1), other);
                break;
            }
        }
    }
    let frame = scratch.mfn(0) << 12;
    let wrong = handles.iter().filter(|handle| unmap(**handle, 0, frame) != 0).count();
    report.case("many mappings end", wrong == 0, (handles.len(), wrong));
    // The guest overwrites the page table entry of a mapping. The unmap then finds another entry, and must
    // not release that one's references.
    let (got, handle) = map_ref(me.raw(), gref, GNTMAP_HOST_MAP, scratch.at(0));
    report.case("mapped", got == 0, got);
    report.succeeds("overwritten", map(scratch.at(0), scratch.mfn(1) << 12 | RW));
    let got = unmap(handle, scratch.at(0), 0);
    report.case("unmap of another entry", got < 0, got);
    let there = probe::write(scratch.at(0), 1);
    report.case("which is still there", there.is_none(), there);
    // With the mapping's entry restored, the unmap works, and nothing uses the page any more.
    report.succeeds("the entry as it was", map(scratch.at(0), scratch.mfn(0) << 12 | RW));
    report.case("unmap of it", unmap(handle, scratch.at(0), 0) == 0, handle);
}

fn copies(report: &mut Report, me: DomId) {
    let scratch = Scratch::new(2);
    let grant_of = grant_access(me, scratch.pages.mfn(0), true).expect("a grant");
    let gref = u64::from(grant_of.number().raw());
    let copy = |source: (u64, u16, u16), dest: (u64, u16, u16), len: u16, flags: u16| -> i64 {
        let place = |(u, domid, offset)| GnttabCopyPtr { u, domid, offset, ..Default::default() };
        let mut arg =
            GnttabCopy { source: place(source), dest: place(dest), len, flags, ..Default::default() };
        match grant(GNTTABOP_COPY, &mut arg) {
            0 => arg.status.into(),
            other => other,
        }
    };
    const SELF: u16 = 0x7ff0;
    let own = scratch.mfn(1);
    let (source, target) = ((gref, me.raw(), 0), (own, SELF, 0));
    let got = copy(source, target, 64, GNTCOPY_SOURCE_GREF);
    report.case("a copy", got == 0, got);
    let got = copy((gref, me.raw(), 4000), target, 200, GNTCOPY_SOURCE_GREF);
    report.case("over the end of the source", got == -10, got);
    let got = copy(source, (own, SELF, 4095), 2, GNTCOPY_SOURCE_GREF);
    report.case("over the end of the target", got == -10, got);
    let got = copy((gref, me.raw(), 0xffff), target, 0xffff, GNTCOPY_SOURCE_GREF);
    report.case("offset and length that wrap", got == -10, got);
    let got = copy((gref, me.raw(), 0), (gref, me.raw(), 0), 64, GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF);
    report.case("to what is granted for reading", got < 0, got);
    let got = copy((u64::from(u32::MAX), me.raw(), 0), target, 64, GNTCOPY_SOURCE_GREF);
    report.case("from a reference that is not there", got == -3, got);
    let got = copy((gref, 12345, 0), target, 64, GNTCOPY_SOURCE_GREF);
    report.case("from a domain that is not there", got == -2, got);
    if !report.privileged {
        let got = copy((own, SELF, 0), (own, 0, 0), 64, 0);
        report.case("to dom0's frame", got < 0, got);
        let got = copy((own, 0, 0), (own, SELF, 0), 64, 0);
        report.case("from dom0's frame", got < 0, got);
    }
    let taken = foreign_frames().into_iter().find(|mfn| copy((*mfn, SELF, 0), target, 64, 0) >= 0);
    report.case("from a foreign frame", taken.is_none(), taken);
    let taken =
        foreign_frames().into_iter().find(|mfn| copy(source, (*mfn, SELF, 0), 64, GNTCOPY_SOURCE_GREF) >= 0);
    report.case("to a foreign frame", taken.is_none(), taken);
    for (level, mfn) in [4, 3, 2, 1].into_iter().zip(tables(scratch.at(0))) {
        let got = copy(source, (mfn, SELF, 0), 64, GNTCOPY_SOURCE_GREF);
        report.case(&format!("to an L{level}"), got < 0, got);
    }
}

fn tables_and_versions(report: &mut Report) {
    let call_grant =
        |command: u64, at: u64, count: u64| call(__HYPERVISOR_GRANT_TABLE_OP, [command, at, count, 0, 0]);
    let mut list = [0u64; 4];
    let at = list.as_mut_ptr() as u64;
    let mut setup =
        GnttabSetupTable { dom: 0x7ff0, nr_frames: 1 << 20, frame_list: at, ..Default::default() };
    let got = grant(GNTTABOP_SETUP_TABLE, &mut setup);
    report.case("a table of a million frames", got < 0 || setup.status < 0, (got, setup.status));
    let mut setup = GnttabSetupTable { dom: 0x7ff0, nr_frames: 1, frame_list: M2P, ..Default::default() };
    let got = grant(GNTTABOP_SETUP_TABLE, &mut setup);
    report.case("its list in hypervisor space", got < 0 || setup.status < 0, (got, setup.status));
    if !report.privileged {
        let mut setup = GnttabSetupTable { dom: 0, nr_frames: 1, frame_list: at, ..Default::default() };
        let got = grant(GNTTABOP_SETUP_TABLE, &mut setup);
        report.case("dom0's table", got < 0 || setup.status < 0, (got, setup.status));
        let mut size = GnttabQuerySize { dom: 0, ..Default::default() };
        let got = grant(GNTTABOP_QUERY_SIZE, &mut size);
        report.case("the size of dom0's", got < 0 || size.status < 0, (got, size.status));
    }
    for version in [0, 3, u32::MAX] {
        let mut arg = GnttabSetVersion { version };
        report.refused(&format!("version {version:#x}"), grant(GNTTABOP_SET_VERSION, &mut arg), &[EINVAL]);
    }
    report.refused("command 13", call_grant(13, at, 1), &[ENOSYS, EINVAL]);
    report.refused("command -1", call_grant(u64::from(u32::MAX), at, 1), &[ENOSYS, EINVAL]);
    report.refused("-1 operations", call_grant(0, at, u64::from(u32::MAX)), &[EINVAL]);
    let got = call_grant(GNTTABOP_TRANSFER.into(), at, 0);
    report.case("transfer", got == 0 || [ENOSYS, EOPNOTSUPP].iter().any(|e| e.negated() == got), got);
}
