use super::*;
use alloc::collections::BTreeMap;
use proptest::prelude::*;

const LINUX_BASE: u64 = 0xffff_ffff_8000_0000;

fn mfn(pfn: Pfn) -> u64 {
    pfn + 0x1_0000
}

/// All pages that a walk of the page tables finds: address to entry.
fn walk(layout: &Layout) -> BTreeMap<u64, u64> {
    let tables: BTreeMap<u64, [u64; 512]> =
        layout.page_tables(mfn).map(|(pfn, entries)| (mfn(pfn), entries)).collect();
    let mut found = BTreeMap::new();
    let mut level: Vec<(u64, u64)> = alloc::vec![(mfn(layout.tables.start), 0)];
    for depth in (1..=4).rev() {
        let mut below = Vec::new();
        for (table, va) in level {
            for (index, entry) in tables[&table].iter().enumerate().filter(|(_, entry)| **entry != 0) {
                let mut at = va + index as u64 * entry_span(depth);
                if depth == 4 && index >= 256 {
                    at |= 0xffff_0000_0000_0000;
                }
                if depth == 1 {
                    assert!(found.insert(at, *entry).is_none());
                } else {
                    assert_eq!(entry & 0xfff, TABLE_BITS);
                    below.push((entry >> 12, at));
                }
            }
        }
        level = below;
    }
    found
}

fn check(parts: &Parts, layout: &Layout) {
    let mut regions = alloc::vec![
        0..parts.kernel_end,
        layout.ramdisk.clone(),
        layout.start_info..layout.start_info + 1,
        layout.store..layout.store + 1,
        layout.console..layout.console + 1,
        layout.tables.clone(),
        layout.stack..layout.stack + 1,
        layout.p2m_frames.clone().unwrap_or(layout.p2m.clone()),
    ];
    regions.retain(|region| !region.is_empty());
    regions.sort_by_key(|region| region.start);
    assert!(regions.windows(2).all(|pair| pair[0].end <= pair[1].start), "{regions:x?}");
    assert!(regions.last().unwrap().end <= parts.nr_pages);
    assert!(layout.stack < layout.mapped_end && layout.mapped_end <= parts.nr_pages);
    assert_eq!(layout.p2m.end - layout.p2m.start, (parts.nr_pages * 8).div_ceil(PAGE));

    let found = walk(layout);
    let p2m = if parts.init_p2m.is_some() { layout.p2m.end - layout.p2m.start } else { 0 };
    assert_eq!(found.len() as u64, layout.mapped_end + p2m);
    for pfn in 0..layout.mapped_end {
        let entry = found[&layout.va(pfn)];
        assert_eq!(entry >> 12, mfn(pfn));
        assert_eq!(entry & RW == 0, layout.tables.contains(&pfn));
    }
    for (index, pfn) in layout.p2m.clone().enumerate() {
        assert_eq!(found[&(layout.p2m_va + index as u64 * PAGE)], mfn(pfn) << 12 | PAGE_BITS);
    }
    // Every page table is in one of the ranges that the layout states.
    let frames = layout.p2m_frames.clone().unwrap_or(0..0);
    for (pfn, _) in layout.page_tables(mfn) {
        assert!(layout.tables.contains(&pfn) || frames.contains(&pfn) && !layout.p2m.contains(&pfn));
    }
}

fn parts(nr_pages: u64) -> Parts {
    Parts {
        virt_base: LINUX_BASE,
        kernel_end: 75,
        ramdisk_pages: 0,
        map_ramdisk: false,
        init_p2m: None,
        nr_pages,
    }
}

#[test]
fn a_small_guest_is_mapped_to_4_mib() {
    let parts = parts(2048);
    let layout = Layout::new(&parts).unwrap();
    assert_eq!((layout.p2m.clone(), layout.start_info, layout.store, layout.console), (75..79, 79, 80, 81));
    assert_eq!((layout.tables.clone(), layout.stack, layout.mapped_end), (82..87, 87, 1024));
    check(&parts, &layout);
}

#[test]
fn linux_has_its_list_elsewhere() {
    let parts =
        Parts { kernel_end: 0x4000, ramdisk_pages: 1000, init_p2m: Some(0x80_0000_0000), ..parts(65536) };
    let layout = Layout::new(&parts).unwrap();
    assert_eq!(layout.ramdisk.start, layout.mapped_end);
    assert_eq!(layout.p2m.start, layout.ramdisk.end);
    assert_eq!(layout.p2m_frames, Some(layout.p2m.start..layout.p2m.end + 3));
    check(&parts, &layout);
}

#[test]
fn the_last_address_is_no_wrap() {
    let parts = Parts { virt_base: 0u64.wrapping_sub(4 << 20), ..parts(1024) };
    check(&parts, &Layout::new(&parts).unwrap());
    let beyond = Parts { virt_base: 0u64.wrapping_sub(2 << 20), ..parts };
    assert!(matches!(Layout::new(&beyond), Err(LayoutError::Address { what: "image", .. })));
}

#[test]
fn too_little_memory_is_told() {
    for nr_pages in 0..84 {
        assert!(matches!(Layout::new(&parts(nr_pages)), Err(LayoutError::TooSmall { .. })), "{nr_pages}");
    }
    let ramdisk = Parts { ramdisk_pages: u64::from(u32::MAX), ..parts(2048) };
    assert!(matches!(Layout::new(&ramdisk), Err(LayoutError::TooSmall { .. })));
}

#[test]
fn addresses_of_the_hypervisor_are_refused() {
    for va in [0xffff_8000_0000_0000, 0xffff_87ff_ffff_f000, 0x8000_0000_0000, LINUX_BASE, !0xfff] {
        let parts = Parts { init_p2m: Some(va), ..parts(2048) };
        assert!(matches!(Layout::new(&parts), Err(LayoutError::Address { what: "P2M list", .. })), "{va:#x}");
    }
    let low = Parts { virt_base: 0xffff_8000_0000_0000, ..parts(2048) };
    assert!(matches!(Layout::new(&low), Err(LayoutError::Address { what: "image", .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_address_once_and_no_table_writable(
        base in prop_oneof![Just(0u64), Just(LINUX_BASE), (0u64..0x7fff_ff00).prop_map(|page| page << 12)],
        kernel_end in 0u64..6000,
        ramdisk_pages in 0u64..3000,
        map_ramdisk: bool,
        init_p2m in prop_oneof![Just(None), Just(Some(0x80_0000_0000u64)), Just(Some(0xffff_9000_0000_0000u64))],
        nr_pages in 0u64..20_000,
    ) {
        let parts = Parts { virt_base: base, kernel_end, ramdisk_pages, map_ramdisk, init_p2m, nr_pages };
        if let Ok(layout) = Layout::new(&parts) {
            check(&parts, &layout);
        }
    }
}
