//! Long operations, interrupted at every opportunity.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::memory::*;
use ring_abi::mmu::{MMUEXT_PIN_L1_TABLE, MmuUpdate, MmuextOp};
use ring_abi::types::{DOMID_SELF, Mfn, Pfn};
use zerocopy::IntoBytes;

use super::guest::*;
use super::{World, entry};
use crate::domain::Domain;
use crate::frames::info::TypeWord;
use crate::frames::pte::{P, Pte, RW, US};
use crate::hypercall::{Args, HypercallError, Outcome, descriptor, memory, mmu, mmuext};
use crate::mem::{MemError, Update};
use crate::platform::*;

#[test]
fn a_large_extent_is_zeroed_and_given_back_in_pieces() {
    let world = World::new(1024);
    let guest = world.guest(1, false);
    guest.dom.mm.set_max_pages(700);
    let owned = guest.dom.mm.tot_pages();
    for mfn in 512..1024 {
        world.hv.platform.table(Mfn::new(mfn))[511].store(7, Ordering::Relaxed);
    }
    world.write(&guest, 0, &0x200u64.to_le_bytes());
    world.write(&guest, STRUCTURE, reservation(ARGS, 1, 9).as_bytes());
    interrupted(&world, true);
    assert_eq!(memory(&world, &guest, XENMEM_POPULATE_PHYSMAP), 1);
    assert_eq!(guest.dom.mm.tot_pages(), owned + 512);
    let first = Mfn::new(world.word(&guest, 0));
    for page in 0..512 {
        let mfn = Mfn::new(first.raw() + page);
        assert_eq!(world.hv.platform.table(mfn)[511].load(Ordering::Relaxed), 0, "page {page}");
        assert_eq!(world.hv.platform.m2p(mfn), Some(Pfn::new(0x200 + page)));
    }
    // One page of the extent is mapped, and stays; the others are freed.
    map(&world, &guest, 50, entry(Mfn::new(first.raw() + 100), P | RW));
    assert_eq!(memory(&world, &guest, XENMEM_DECREASE_RESERVATION), 1);
    assert_eq!(guest.dom.mm.tot_pages(), owned + 1);
    // The caller may claim that a part is done, and that part is skipped: here all but the last page, which is gone already.
    let lie = u64::from(XENMEM_DECREASE_RESERVATION) | 511 << (6 + 42);
    assert_eq!(world.call(&guest, memory::memory_op, [lie, ARGS + STRUCTURE as u64, 0, 0]), 0);
    interrupted(&world, false);
    world.check();
}

#[test]
fn what_is_zeroed_in_part_goes_when_another_is_asked_for_and_at_the_end() {
    let world = World::new(1024);
    let guest = world.guest(1, false);
    guest.dom.mm.set_max_pages(700);
    let free = world.hv.frames.free_pages();
    interrupted(&world, true);
    assert_eq!(world.hv.populate(&guest.dom, 9, 0), Err(MemError::Restart));
    assert_eq!(world.hv.frames.free_pages(), free - 512);
    assert_eq!(world.hv.populate(&guest.dom, 8, 0), Err(MemError::Restart), "another order");
    assert_eq!(world.hv.frames.free_pages(), free - 256);
    assert!(world.hv.populate(&guest.dom, 0, 0).is_ok(), "a single page does not wait for it");
    assert_eq!(world.hv.populate(&guest.dom, 8, 0), Err(MemError::Restart));
    interrupted(&world, false);
    let owned = guest.dom.mm.tot_pages();
    world.destroy(&guest.dom, false);
    assert_eq!(world.hv.frames.free_pages(), free + owned, "and its shared_info");
}

#[test]
fn teardown_that_is_interrupted_after_each_base_loses_neither() {
    let world = World::new(256);
    let free = world.hv.frames.free_pages();
    let dom = world.domain(1, false, 100);
    let (kernel, user) = (world.address_space(&dom), world.address_space(&dom));
    // Each base has so many entries that giving it back takes several pieces.
    for slot in [1, 2] {
        world.poke(kernel[0], slot, entry(user[1], P | RW | US));
        world.poke(user[0], slot, entry(kernel[1], P | RW | US));
    }
    world.hv.install_bases(&dom, &dom.vcpus[0], kernel[0], Some(user[0])).expect("valid");
    world.check();
    world.destroy(&dom, true);
    assert_eq!(dom.mm.tot_pages(), 0);
    assert_eq!(world.hv.frames.free_pages(), free);
}

#[test]
fn interrupted_trees_leave_a_table_of_each_level_at_most() {
    let world = World::new(1024);
    let dom = world.domain(1, false, 900);
    // An L4 with 3 x 3 x 3 tables below it.
    let mut tree = world.pages::<1>(&dom).to_vec();
    let root = tree[0];
    let mut parents = tree.clone();
    for _ in 0..3 {
        let mut children = Vec::new();
        for &parent in &parents {
            for slot in 0..3 {
                let [child] = world.pages(&dom);
                world.poke(parent, slot, entry(child, P | RW | US));
                children.push(child);
            }
        }
        tree.extend(&children);
        parents = children;
    }
    interrupted(&world, true);
    let repeat = |what: &str, step: &dyn Fn() -> Result<(), MemError>| {
        let calls = (0..1000).take_while(|_| step() == Err(MemError::Restart)).count();
        assert!((20..200).contains(&calls), "{what}: {calls} calls for 27 tables of level 1");
        world.check();
    };
    repeat("pin", &|| world.hv.pin_table(&dom, root, 4));
    world.hv.unpin_table(&dom, root).expect("pinned");
    repeat("unpin", &|| {
        let is_done = world.hv.finish_deferred(&dom);
        assert!(dom.mm.tables.lock().deferred.len() <= 3, "one of each level from 4 to 2");
        if is_done { Ok(()) } else { Err(MemError::Restart) }
    });
    assert!(tree.iter().all(|&mfn| world.hv.frames.held(mfn).load_kind().count() == 0));
    interrupted(&world, false);
}

/// Calls with one long request each, as in a multicall, which seldom asks whether something waits. Each call is done, says
/// that it is to be continued, and then finds nothing left to do.
#[test]
fn short_calls_that_took_long_end_after_what_waits() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [l1, gdt] = world.pages(&guest.dom);
    let run = |handler: Handler, args: Args| world.run(&guest.dom, |cur| handler(cur, &args));
    let rest = || guest.dom.vcpus[0].continuation();
    interrupted(&world, true);
    let pin = MmuextOp { cmd: MMUEXT_PIN_L1_TABLE, _pad0: 0, arg1: l1.raw(), arg2: 0 };
    world.write(&guest, 0, pin.as_bytes());
    assert_eq!(run(mmuext::mmuext_op, [ARGS, 1, 0, DOMID_SELF.into(), 0, 0]), Ok(Outcome::Continue));
    assert!(world.hv.frames.held(l1).load_kind().has(TypeWord::PINNED));
    assert_eq!(run(mmuext::mmuext_op, rest()), Ok(Outcome::OK), "pinned once");
    // A list of one entry, of level 2.
    let update = MmuUpdate { ptr: at(guest.tables[2], 9), val: entry(l1, P | RW | US) };
    world.write(&guest, 0, update.as_bytes());
    assert_eq!(run(mmu::mmu_update, [ARGS, 1, 0, DOMID_SELF.into(), 0, 0]), Ok(Outcome::Continue));
    assert_eq!(run(mmu::mmu_update, rest()), Ok(Outcome::OK));
    assert_eq!(Pte::new(world.peek(guest.tables[2], 9)).frame(), l1);
    // Two pages of descriptors.
    let [other] = world.pages(&guest.dom);
    for (n, mfn) in [gdt, other].iter().enumerate() {
        world.write(&guest, n * 8, &mfn.raw().to_le_bytes());
    }
    assert_eq!(run(descriptor::set_gdt, [ARGS, 1024, 0, 0, 0, 0]), Ok(Outcome::Continue));
    world.write(&guest, 0, &guest.tables[0].raw().to_le_bytes());
    assert_eq!(run(descriptor::set_gdt, rest()), Ok(Outcome::OK), "the list is not looked at again");
    assert_eq!(guest.dom.vcpus[0].cpu.lock().gdt_entries, 1024);
    interrupted(&world, false);
    world.check();
}

/// An L1 whose 512 entries hold the last references on their pages.
fn l1_of_last_references(world: &World, dom: &Domain) -> Mfn {
    let [l1] = world.pages(dom);
    let pages: Vec<Mfn> = (0..512).map(|_| world.pages::<1>(dom)[0]).collect();
    for (slot, &page) in pages.iter().enumerate() {
        world.poke(l1, slot, entry(page, P | RW * (slot as u64 & 1)));
    }
    world.hv.pin_table(dom, l1, 1).expect("valid");
    pages.iter().for_each(|&page| world.hv.release_page(dom, page).expect("its own"));
    l1
}

/// The unpinned table frees 512 pages, at most 64 of them between two looks at what waits.
#[test]
fn an_l1_that_holds_the_last_references_is_given_back_in_pieces() {
    let world = World::new(1024);
    let dom = world.domain(1, false, 900);
    let free = || world.hv.frames.free_pages();
    let begun = free();
    let l1 = l1_of_last_references(&world, &dom);
    assert_eq!(free(), begun - 513);
    interrupted(&world, true);
    world.hv.unpin_table(&dom, l1).expect("pinned");
    let mut steps = 0;
    loop {
        let before = free();
        world.check();
        let done = world.hv.finish_deferred(&dom);
        steps += 1;
        assert!(free() - before <= 64, "{} pages without a look", free() - before);
        if done {
            break;
        }
    }
    assert!(steps >= 7, "{steps}");
    assert_eq!(free(), begun - 1, "but for the table itself");
    interrupted(&world, false);
    world.check();
}

/// A table whose references are given back in part is used again: the upper entries take theirs anew, the lower still have
/// theirs.
#[test]
fn an_l1_that_is_given_back_in_part_becomes_valid_again() {
    let world = World::new(1024);
    let dom = world.domain(1, false, 900);
    let [l1, page] = world.pages(&dom);
    (0..512).for_each(|slot| world.poke(l1, slot, entry(page, P | RW)));
    world.hv.pin_table(&dom, l1, 1).expect("valid");
    interrupted(&world, true);
    world.hv.unpin_table(&dom, l1).expect("pinned");
    assert!(world.hv.frames.held(l1).load_kind().has(TypeWord::PARTIAL));
    assert_eq!(world.hv.frames.held(page).load_kind().count(), 512 - 64);
    world.check();
    // With the lock held, as when an entry comes to name the table.
    let mut mm = world.hv.lock_tables(&dom);
    mm.get_table(l1, 1).expect("what it held before");
    drop(mm);
    assert_eq!(world.hv.frames.held(page).load_kind().count(), 512);
    interrupted(&world, false);
    world.hv.lock_tables(&dom).put_table(l1);
    assert_eq!(world.hv.frames.held(page).load_kind().count(), 0);
    world.check();
}

/// A list too short to look at what waits, whose requests each remove the last use of a full L1.
#[test]
fn short_lists_that_each_give_up_a_full_l1_stop_at_the_first() {
    let world = World::new(2048);
    let guest = world.guest(1, false);
    guest.dom.mm.set_max_pages(1900);
    let free = || world.hv.frames.free_pages();
    for slot in [8, 9] {
        let l1 = l1_of_last_references(&world, &guest.dom);
        let mut mm = world.hv.lock_tables(&guest.dom);
        mm.update_upper(guest.tables[2], 2, slot, Pte::new(entry(l1, P | RW | US)), Update::Plain)
            .expect("valid");
        drop(mm);
        world.hv.unpin_table(&guest.dom, l1).expect("pinned");
    }
    for (n, slot) in [8, 9].into_iter().enumerate() {
        let update = MmuUpdate { ptr: at(guest.tables[2], slot), val: 0 };
        world.write(&guest, n * 16, update.as_bytes());
    }
    interrupted(&world, true);
    let (mut args, mut steps) = ([ARGS, 2, 0, DOMID_SELF.into(), 0, 0], 0);
    loop {
        let before = free();
        let outcome = world.run(&guest.dom, |cur| mmu::mmu_update(cur, &args));
        // The last piece of the first table, the first of the second, and what that call finishes of it.
        assert!(free() - before <= 3 * 64, "{} pages in one call", free() - before);
        steps += 1;
        if outcome == Ok(Outcome::OK) {
            break;
        }
        match outcome {
            Ok(Outcome::Continue) => args = guest.dom.vcpus[0].continuation(),
            other => assert_eq!(other, Err(HypercallError::Again)),
        }
        assert!(steps < 100);
    }
    assert!(steps > 8, "{steps}");
    interrupted(&world, false);
    world.check();
}

#[test]
fn frames_of_a_call_that_failed_are_released_in_pieces() {
    let world = World::new(512);
    let guest = world.guest(1, false);
    let free = || world.hv.frames.free_pages();
    let begun = free();
    assert!(begun > 300);
    assert_eq!(world.hv.take_clean(&guest.dom, 0, 0, 512), Err(MemError::NoMemory));
    assert_eq!(free(), 0);
    interrupted(&world, true);
    let steps = (0..100).take_while(|_| !world.hv.release_given(&guest.dom)).count();
    assert_eq!(steps as u64, begun.div_ceil(32) - 1);
    assert_eq!(free(), begun);
    // A call of another kind comes next, and releases the frames first.
    interrupted(&world, false);
    assert!(world.hv.take_clean(&guest.dom, 0, 0, 512).is_err());
    interrupted(&world, true);
    assert_eq!(world.hv.take_clean(&guest.dom, 1, 0, 1), Err(MemError::Restart));
    assert_eq!(free(), 32);
    interrupted(&world, false);
    assert!(world.hv.release_given(&guest.dom));
    assert_eq!(free(), begun);
}
