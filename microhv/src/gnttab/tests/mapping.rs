//! Grants mapped for devices and into page tables, and unmapped.

use core::sync::atomic::Ordering;

use ring_abi::grant::*;
use ring_abi::types::{DomId, Maddr, Mfn};

use super::*;
use crate::domain::DomainConfig;
use crate::hypercall::Outcome;

#[test]
fn device_mapping_needs_its_machine_address_to_end() {
    for w in worlds() {
        let page = w.page(&w.granter);
        w.grant(9, ACCESS, 0, page);
        let mapped = w.map(GNTMAP_DEVICE_MAP, 9, 0);
        assert_eq!((mapped.status, mapped.dev_bus_addr), (GNTST_OKAY, page.maddr().raw()));
        assert_eq!(w.flags(9), ACCESS | GTF_READING | GTF_WRITING);
        assert_eq!(w.uses(page), (1, 1));
        assert_eq!(w.unmap(mapped.handle, 0, 0), GNTST_OKAY, "accepted, and releases nothing");
        assert_eq!(w.uses(page), (1, 1));
        assert_eq!(w.unmap(mapped.handle, 0, 0xdead_0000), GNTST_GENERAL_ERROR);
        assert_eq!(w.unmap(mapped.handle, 0, page.maddr().raw()), GNTST_OKAY);
        assert_eq!(w.uses(page), (0, 0));
        assert_eq!(w.flags(9), ACCESS);
        assert_eq!(w.unmap(mapped.handle, 0, page.maddr().raw()), GNTST_BAD_HANDLE, "once");
        w.nothing_is_left();
    }
}

#[test]
fn without_a_handle_nothing_is_held() {
    for w in worlds() {
        let config = DomainConfig { privileged: true, max_maptrack_frames: 0, ..DomainConfig::default() };
        let mapper = w.hv.create_domain(Some(DomId::new(2)), config).unwrap();
        let page = w.page(&w.granter);
        w.grant(9, ACCESS, 2, page);
        let w = World { mapper, ..w };
        assert_eq!(w.map(GNTMAP_DEVICE_MAP, 9, 0).status, GNTST_NO_DEVICE_SPACE);
        assert_eq!((w.uses(page), w.flags(9)), ((0, 0), ACCESS));
        w.nothing_is_left();
    }
}

#[test]
fn read_only_mapping_takes_no_type() {
    for w in worlds() {
        let page = w.page(&w.granter);
        w.grant(8, ACCESS | GTF_READONLY, 0, page);
        assert_eq!(w.map(GNTMAP_DEVICE_MAP, 8, 0).status, GNTST_GENERAL_ERROR, "writing a read-only grant");
        let mapped = w.map(GNTMAP_DEVICE_MAP | GNTMAP_READONLY, 8, 0);
        assert_eq!(mapped.status, GNTST_OKAY);
        assert_eq!(w.flags(8), ACCESS | GTF_READONLY | GTF_READING);
        assert_eq!(w.uses(page), (1, 0));
        assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
        assert_eq!(w.flags(8), ACCESS | GTF_READONLY);
        w.nothing_is_left();
    }
}

#[test]
fn host_mapping_lives_in_its_page_table_entry() {
    for w in worlds() {
        let (page, l1) = (w.page(&w.granter), w.page(&w.mapper));
        w.hv.pin_table(&w.mapper, l1, 1).unwrap();
        w.grant(9, ACCESS, 0, page);
        let at = l1.maddr().raw() + 7 * 8;
        let mapped = w.map(GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, 9, at);
        assert_eq!(mapped.status, GNTST_OKAY);
        assert_eq!(w.hv.platform.load(Maddr::new(at)) & 0x000f_ffff_ffff_f003, page.maddr().raw() | 3);
        assert_eq!(w.uses(page), (1, 1));
        assert_eq!(w.unmap(mapped.handle, at + 8, 0), GNTST_GENERAL_ERROR, "another entry");
        assert_eq!(w.unmap(mapped.handle, at, 0), GNTST_OKAY);
        assert_eq!(w.hv.platform.load(Maddr::new(at)), 0);
        assert_eq!(w.uses(page), (0, 0));
        assert!(w.hv.platform.flushes.load(Ordering::Relaxed) > 0);
        // Addresses at which the mapper has no page-table entry.
        for bad in [at + 1, page.maddr().raw(), 0, u64::MAX] {
            assert_eq!(
                w.map(GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, 9, bad).status,
                GNTST_GENERAL_ERROR,
                "{bad:#x}"
            );
        }
        assert_eq!(w.uses(page), (0, 0));
        assert_eq!(w.flags(9), ACCESS);
        w.nothing_is_left();
    }
}

#[test]
fn every_bogus_grant_gets_its_error() {
    for w in worlds() {
        let (page, foreign) = (w.page(&w.granter), w.page(&w.mapper));
        w.grant(8, GTF_INVALID, 0, page);
        w.grant(9, ACCESS, 5, page);
        w.grant(10, GTF_ACCEPT_TRANSFER, 0, page);
        w.grant(11, ACCESS | GTF_SUB_PAGE, 0, page);
        w.grant(12, ACCESS, 0, foreign);
        w.grant(13, ACCESS, 0, Mfn::new(0xffff_ffff));
        w.grant(14, ACCESS, 0, Mfn::new(2));
        for (gref, status) in [
            (8, GNTST_GENERAL_ERROR),
            (9, GNTST_GENERAL_ERROR),
            (10, GNTST_GENERAL_ERROR),
            (11, GNTST_GENERAL_ERROR),
            (12, GNTST_BAD_PAGE),
            (13, GNTST_BAD_PAGE),
            (14, GNTST_BAD_PAGE),
            (512, GNTST_BAD_GNTREF),
            (u32::MAX, GNTST_BAD_GNTREF),
        ] {
            assert_eq!(w.map(GNTMAP_DEVICE_MAP, gref, 0).status, status, "reference {gref}");
        }
        assert_eq!(w.map(0, 12, 0).status, GNTST_BAD_GNTREF, "neither host nor device");
        for gref in [12, 13, 14] {
            assert_eq!(w.flags(gref), ACCESS, "a failed use leaves no mark");
        }
        for handle in [0, 1, u32::MAX] {
            assert_eq!(w.unmap(handle, 0, 1), GNTST_BAD_HANDLE);
        }
        let mut op: GnttabMapGrantRef = w.get(0);
        (op.dom, op.flags) = (77, GNTMAP_DEVICE_MAP);
        w.put(0, &op);
        assert_eq!(w.call(&w.mapper, GNTTABOP_MAP_GRANT_REF, 1), Ok(Outcome::OK));
        assert_eq!(w.get::<GnttabMapGrantRef>(0).status, GNTST_BAD_DOMAIN);
        w.nothing_is_left();
    }
}

#[test]
fn a_page_table_is_never_granted_for_writing() {
    for w in worlds() {
        let table = w.page(&w.granter);
        w.hv.pin_table(&w.granter, table, 1).unwrap();
        w.grant(9, ACCESS, 0, table);
        assert_eq!(w.map(GNTMAP_DEVICE_MAP, 9, 0).status, GNTST_BAD_PAGE);
        let mapped = w.map(GNTMAP_DEVICE_MAP | GNTMAP_READONLY, 9, 0);
        assert_eq!(mapped.status, GNTST_OKAY, "reading does no harm");
        assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
        // Nor does a page that a device may write become a page table.
        let page = w.page(&w.granter);
        w.grant(10, ACCESS, 0, page);
        let mapped = w.map(GNTMAP_DEVICE_MAP, 10, 0);
        assert!(w.hv.pin_table(&w.granter, page, 1).is_err());
        assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
        w.hv.pin_table(&w.granter, page, 1).unwrap();
    }
}

#[test]
fn changing_an_entry_in_use_does_not_move_the_mapping() {
    for w in worlds() {
        let (first, second) = (w.page(&w.granter), w.page(&w.granter));
        w.grant(9, ACCESS, 0, first);
        let one = w.map(GNTMAP_DEVICE_MAP, 9, 0);
        w.grant(9, ACCESS, 0, second);
        let two = w.map(GNTMAP_DEVICE_MAP, 9, 0);
        assert_eq!(two.dev_bus_addr, first.maddr().raw(), "the frame is the one that was pinned");
        assert_eq!(w.uses(second), (0, 0));
        for mapped in [one, two] {
            assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
        }
        w.nothing_is_left();
        assert_eq!(w.uses(first), (0, 0));
    }
}

#[test]
fn an_entry_named_by_its_address_is_not_replaced() {
    for w in worlds() {
        let (page, l1) = (w.page(&w.granter), w.page(&w.mapper));
        w.hv.pin_table(&w.mapper, l1, 1).unwrap();
        w.grant(9, ACCESS, 0, page);
        let at = l1.maddr().raw();
        let handle = w.map(GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, 9, at).handle;
        let replace = |new_addr| {
            let op = GnttabUnmapAndReplace { host_addr: at, new_addr, handle, ..Default::default() };
            w.put(0, &op);
            assert_eq!(w.call(&w.mapper, GNTTABOP_UNMAP_AND_REPLACE, 1), Ok(Outcome::OK));
            w.get::<GnttabUnmapAndReplace>(0).status
        };
        assert_eq!(replace(0x1000), GNTST_GENERAL_ERROR);
        assert_eq!(w.uses(page), (1, 1));
        assert_eq!(replace(0), GNTST_OKAY, "as an unmap");
        assert_eq!(replace(0), GNTST_BAD_HANDLE);
        w.nothing_is_left();
    }
}
