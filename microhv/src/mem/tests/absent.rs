//! Entries that are not present, on a CPU whose first-level cache they can lead to (L1TF).

use super::{World, entry};
use crate::frames::PageType;
use crate::frames::pte::{P, PSE, Pte, RW, US};
use crate::mem::{FrameOwner, MemError, Update};

/// One past the last address of a [`World`] of 128 frames.
const END: u64 = 128 << 12;

#[test]
fn an_absent_entry_may_be_anything_where_there_is_no_l1tf() {
    let world = World::new(128);
    let dom = world.domain(1, false, 64);
    let [l4, _, l2, l1] = world.address_space(&dom);
    let [page] = world.pages(&dom);
    world.poke(l1, 9, entry(page, RW));
    world.poke(l2, 9, entry(page, 0));
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    let mut mm = world.hv.lock_tables(&dom);
    let new = Pte::new(entry(page, US));
    mm.update_leaf(l1, 9, new, FrameOwner::Domain(&dom), Update::Plain).expect("not present");
    drop(mm);
    world.destroy(&dom, false);
    world.check();
}

#[test]
fn an_absent_entry_that_names_memory_is_refused_with_l1tf() {
    let world = World::new(128);
    world.hv.frames.refuse_absent_memory();
    let dom = world.domain(1, false, 64);
    let [l4, l3, l2, l1] = world.address_space(&dom);
    let [page] = world.pages(&dom);
    let at = page.maddr().raw();
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    let mut mm = world.hv.lock_tables(&dom);
    let own = FrameOwner::Domain(&dom);
    // Bits from 44 on do not lead elsewhere in the cache of each CPU; the last byte of memory counts, and a large page from frame 0 on.
    for bad in
        [PSE, PSE | 1 << 44, at, at | RW | US, at | 1 << 44, at | 1 << 51, END - 1, 1 << 12, at | 0x7ff << 52]
    {
        let new = Pte::new(bad & !P);
        let updates = [Update::Plain, Update::PreserveAccessedDirty, Update::CompareExchange(Pte::NONE)];
        for update in updates {
            assert_eq!(mm.update_leaf(l1, 9, new, own, update), Err(MemError::Invalid), "{bad:#x}");
        }
        for (table, level) in [(l2, 2), (l3, 3), (l4, 4)] {
            let done = mm.update_upper(table, level, 9, new, Update::Plain);
            assert_eq!(done, Err(MemError::Invalid), "{bad:#x}, level {level}");
        }
    }
    // Linux inverts the address.
    for good in [0, END, !at & !P, 0xffe & !PSE, 1 << 43, 1 << 44, 1 << 62] {
        mm.update_leaf(l1, 9, Pte::new(good), own, Update::Plain).expect("names no memory");
        mm.update_upper(l2, 2, 9, Pte::new(good), Update::Plain).expect("names no memory");
    }
    // What is present is what it was.
    mm.update_leaf(l1, 9, Pte::new(entry(page, P | RW | US)), own, Update::Plain).expect("own page");
    mm.update_leaf(l1, 9, Pte::NONE, own, Update::Plain).expect("nothing");
    drop(mm);
    world.check();
    world.destroy(&dom, false);
    world.check();
}

#[test]
fn a_table_with_such_an_entry_is_no_table() {
    for level in 1..=4u8 {
        let world = World::new(128);
        world.hv.frames.refuse_absent_memory();
        let dom = world.domain(1, false, 64);
        let tables = world.address_space(&dom);
        let table = tables[usize::from(4 - level)];
        let [page] = world.pages(&dom);
        for slot in [0, 1, 511] {
            let before = world.peek(table, slot);
            world.poke(table, slot, entry(page, RW));
            let pinned = world.hv.pin_table(&dom, tables[0], 4);
            assert_eq!(pinned, Err(MemError::Invalid), "level {level}, slot {slot}");
            assert_eq!(world.hv.frames.held(table).page_type().1, 0);
            world.check();
            world.poke(table, slot, before);
        }
        world.hv.pin_table(&dom, tables[0], 4).expect("valid");
        assert_eq!(world.hv.frames.held(tables[0]).page_type(), (PageType::L4, 1));
        world.destroy(&dom, false);
        world.check();
    }
}
