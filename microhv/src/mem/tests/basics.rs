//! Page tables are checked, used and given back.

use core::sync::atomic::Ordering;

use ring_abi::types::Mfn;

use super::{World, entry};
use crate::frames::PageType;
use crate::frames::pte::{G, GUEST_KERNEL, NX, P, PCD, PSE, PWT, Pte, RW, US, is_hypervisor_slot};
use crate::mem::{FrameOwner, MemError, MemError as E, Update};

fn refused(error: E) -> Result<(), MemError> {
    Err(error)
}

#[test]
fn a_tree_is_validated_and_given_back() {
    let world = World::new(128);
    let dom = world.domain(1, false, 64);
    let free = world.hv.frames.free_pages();
    let [l4, l3, l2, l1] = world.address_space(&dom);
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    world.check();
    for (mfn, page_type) in [(l4, PageType::L4), (l3, PageType::L3), (l2, PageType::L2), (l1, PageType::L1)] {
        assert_eq!(world.hv.frames.held(mfn).page_type(), (page_type, 1));
    }
    assert_eq!(world.peek(l1, 0), entry(l4, P | US | GUEST_KERNEL), "stored as a guest kernel's entry");
    assert_eq!(world.hv.pin_table(&dom, l4, 4), refused(E::Invalid), "pinned twice");
    world.check();
    world.hv.unpin_table(&dom, l4).expect("pinned");
    assert_eq!(world.hv.unpin_table(&dom, l4), refused(E::Invalid));
    world.check();
    for mfn in [l4, l3, l2, l1] {
        assert_eq!(world.hv.frames.held(mfn).page_type().1, 0);
        assert!(world.hv.get_page_writable(mfn, &dom).is_ok());
    }
    world.destroy(&dom, false);
    world.check();
    assert_eq!(world.hv.frames.free_pages(), free + 1, "its pages and shared_info are free");
}

/// Each entry of a table of each level that a guest may use, so that no count over a table's length runs out.
#[test]
fn a_full_table_of_each_level_is_validated_and_given_back() {
    for level in 1..=4u8 {
        let world = World::new(128);
        let dom = world.domain(1, false, 64);
        let tables = world.address_space(&dom);
        let [page] = world.pages(&dom);
        let at = usize::from(4 - level);
        let full = tables[at];
        let below = tables.get(at + 1).copied().unwrap_or(page);
        let slots = || (0..512).filter(|&slot| level != 4 || !is_hypervisor_slot(slot));
        slots().for_each(|slot| world.poke(full, slot, entry(below, P | RW | US)));
        world.hv.pin_table(&dom, full, level).expect("valid");
        let uses = |mfn| world.hv.frames.held(mfn).page_type().1;
        assert_eq!(uses(below) as usize, slots().count(), "level {level}");
        world.check();
        world.hv.unpin_table(&dom, full).expect("pinned");
        assert!(tables.iter().chain([&page]).all(|&mfn| uses(mfn) == 0), "level {level}");
        world.check();
        world.hv.pin_table(&dom, full, level).expect("valid");
        world.destroy(&dom, false);
        world.check();
    }
}

#[test]
fn tables_are_never_mapped_for_writing() {
    let world = World::new(128);
    let dom = world.domain(1, false, 64);
    let [l4, _, _, l1] = world.address_space(&dom);
    world.poke(l1, 9, entry(l4, P | RW));
    // The L4 gets its type first, so the L1 entry that maps it for writing is refused.
    assert_eq!(world.hv.pin_table(&dom, l4, 4), refused(E::Busy));
    world.check();
    world.poke(l1, 9, 0);
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    let [page] = world.pages(&dom);
    let mut mm = world.hv.lock_tables(&dom);
    let own = FrameOwner::Domain(&dom);
    assert_eq!(mm.update_leaf(l1, 9, Pte::new(entry(l1, P | RW)), own, Update::Plain), Err(MemError::Busy));
    mm.update_leaf(l1, 9, Pte::new(entry(page, P | RW)), own, Update::Plain).expect("own page");
    // To make a read-only entry of a table writable is no harmless change (XSA-182).
    assert!(mm.update_leaf(l1, 0, Pte::new(entry(l4, P | RW | US)), own, Update::Plain).is_err());
    drop(mm);
    world.check();
    assert_eq!(world.hv.pin_table(&dom, page, 1), refused(E::Invalid), "mapped for writing");
    world.check();
    world.destroy(&dom, true);
    world.check();
}

#[test]
fn frames_of_others_are_refused() {
    let world = World::new(128);
    let (dom, other) = (world.domain(1, false, 64), world.domain(2, false, 64));
    let [theirs] = world.pages(&other);
    let [l4, _, l2, l1] = world.address_space(&dom);
    let free = Mfn::new(100);
    for (mfn, error) in [
        (theirs, E::NotPermitted),
        (free, E::Invalid),
        (Mfn::new(0), E::Invalid),
        (Mfn::new(128), E::NotPermitted),
        (Mfn::new((1 << 40) - 1), E::NotPermitted),
    ] {
        world.poke(l1, 9, entry(mfn, P));
        assert_eq!(world.hv.pin_table(&dom, l4, 4), refused(error), "{mfn}");
        world.check();
    }
    world.poke(l1, 9, 0);
    for mfn in [theirs, free, Mfn::new(0), Mfn::new(1 << 30)] {
        world.poke(l2, 9, entry(mfn, P));
        assert_eq!(world.hv.pin_table(&dom, l4, 4), refused(E::Invalid));
        world.check();
    }
    world.poke(l2, 9, 0);
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    world.destroy(&other, false);
    world.destroy(&dom, false);
    world.check();
}

#[test]
fn bits_that_would_break_isolation_are_refused() {
    let world = World::new(128);
    let dom = world.domain(1, false, 64);
    let [l4, l3, l2, l1] = world.address_space(&dom);
    let [page] = world.pages(&dom);
    for table in [l4, l3, l2] {
        let good = world.peek(table, 0);
        for bit in [PSE, G, PWT, PCD] {
            world.poke(table, 0, good | bit);
            assert_eq!(world.hv.pin_table(&dom, l4, 4), refused(E::Invalid));
            world.check();
        }
        world.poke(table, 0, good);
    }
    world.poke(l1, 9, entry(page, P | PCD));
    assert_eq!(world.hv.pin_table(&dom, l4, 4), refused(E::Invalid));
    world.poke(l1, 9, entry(page, P | RW | US | NX));
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    assert_eq!(world.peek(l1, 9), entry(page, P | RW | US | NX | G));
    world.check();
}

#[test]
fn hypervisor_slots_are_not_the_guests() {
    let world = World::new(128);
    let dom = world.domain(1, false, 64);
    let [l4, l3, ..] = world.address_space(&dom);
    for slot in [256, 271] {
        world.poke(l4, slot, entry(l3, P | RW | US));
    }
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    world.check();
    assert_eq!(world.peek(l4, 256), 0, "written over");
    let mut mm = world.hv.lock_tables(&dom);
    for slot in [256, 260, 271] {
        assert!(mm.update_upper(l4, 4, slot, Pte::new(entry(l3, P)), Update::Plain).is_err());
    }
    for slot in [255, 272, 511] {
        mm.update_upper(l4, 4, slot, Pte::new(entry(l3, P | RW)), Update::Plain).expect("the guest's");
    }
    drop(mm);
    world.check();
}

/// An L4 used as its own L3 would map the hypervisor's slots at addresses outside of them.
#[test]
fn no_table_is_used_as_one_of_a_lower_level() {
    let world = World::new(512);
    let dom = world.domain(1, false, 400);
    let other = world.address_space(&dom);
    world.hv.pin_table(&dom, other[0], 4).expect("valid");
    for (depth, level) in [(0, 4), (1, 3), (2, 2)] {
        for bits in [P, P | RW, P | US, P | RW | US] {
            for in_itself in [true, false] {
                let tables = world.address_space(&dom);
                let target = if in_itself { tables[depth] } else { other[depth] };
                world.poke(tables[depth], 300, entry(target, bits));
                assert!(
                    world.hv.pin_table(&dom, tables[depth], level).is_err(),
                    "an L{level} with {bits:#x}"
                );
                world.check();
            }
        }
    }
    let tables = world.address_space(&dom);
    world.hv.pin_table(&dom, tables[0], 4).expect("valid");
    let mut mm = world.hv.lock_tables(&dom);
    for (depth, level) in [(0, 4), (1, 3), (2, 2)] {
        for target in [tables[depth], other[depth]] {
            let update =
                mm.update_upper(tables[depth], level, 301, Pte::new(entry(target, P | US)), Update::Plain);
            assert!(update.is_err(), "an entry of an L{level}");
        }
    }
    drop(mm);
    world.check();
    world.destroy(&dom, true);
    world.check();
}

#[test]
fn validation_and_its_undoing_can_be_interrupted_anywhere() {
    let world = World::new(256);
    let dom = world.domain(1, false, 200);
    let [l4, l3, l2, _] = world.address_space(&dom);
    for slot in 1..6 {
        let [l1] = world.pages(&dom);
        world.poke(l2, slot, entry(l1, P | RW));
        let [l2, l1] = world.pages(&dom);
        world.poke(l2, 7, entry(l1, P | RW));
        world.poke(l3, slot, entry(l2, P | RW));
    }
    for bad in [None, Some(l2)] {
        if let Some(table) = bad {
            world.poke(table, 500, entry(l4, P | RW)); // an L4 cannot be an L1
        }
        world.hv.platform.pending.store(true, Ordering::Relaxed);
        let mut calls = 0;
        let result = loop {
            let result = world.hv.pin_table(&dom, l4, 4);
            world.check();
            calls += 1;
            assert!(calls < 100);
            if result != Err(MemError::Restart) {
                break result;
            }
        };
        assert!(calls > 5);
        assert_eq!(result.is_ok(), bad.is_none());
        if result.is_ok() {
            world.hv.unpin_table(&dom, l4).expect("pinned");
            world.check();
        }
        while world.hv.lock_tables(&dom).begin().is_err() {
            world.check();
        }
        world.check();
        assert_eq!(world.hv.frames.held(l4).page_type().1, 0, "all undone");
        world.hv.platform.pending.store(false, Ordering::Relaxed);
    }
    // A validation that never finishes is undone when the domain is destroyed.
    world.poke(l2, 500, 0);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    assert_eq!(world.hv.pin_table(&dom, l4, 4), Err(MemError::Restart));
    world.destroy(&dom, true);
    world.check();
    assert_eq!(dom.mm.tot_pages(), 0);
}

#[test]
fn a_changed_type_flushes_before_a_guest_runs() {
    let world = World::new(64);
    let dom = world.domain(1, false, 32);
    let [page] = world.pages(&dom);
    drop(world.hv.get_page_writable(page, &dom).expect("own page"));
    let flushes = || world.hv.platform.flushes.load(Ordering::Relaxed);
    let before = flushes();
    world.hv.pin_table(&dom, page, 1).expect("an empty table");
    assert_eq!(flushes(), before + 1, "writable to L1");
    world.hv.unpin_table(&dom, page).expect("pinned");
    world.hv.pin_table(&dom, page, 1).expect("an empty table");
    world.hv.unpin_table(&dom, page).expect("pinned");
    assert_eq!(flushes(), before + 1, "the type never changed");
    drop(world.hv.get_page_writable(page, &dom).expect("own page"));
    assert_eq!(flushes(), before + 2, "L1 to writable");
}

#[test]
fn a_table_that_leaves_its_parent_is_flushed() {
    let world = World::new(128);
    let dom = world.domain(1, false, 64);
    let [l4, _, l2, _] = world.address_space(&dom);
    let [table] = world.pages(&dom);
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    let flushes_of = |new| {
        let before = world.hv.platform.flushes.load(Ordering::Relaxed);
        let mut mm = world.hv.lock_tables(&dom);
        mm.update_upper(l2, 2, 5, Pte::new(new), Update::Plain).expect("valid");
        drop(mm);
        world.hv.platform.flushes.load(Ordering::Relaxed) - before
    };
    assert_eq!(flushes_of(entry(table, P | RW | US)), 0, "nothing was there");
    assert_eq!(flushes_of(entry(table, P | US)), 1, "less may be written");
    assert_eq!(flushes_of(0), 1, "nothing is there any more");
    assert_eq!(flushes_of(0), 0);
    world.check();
}
