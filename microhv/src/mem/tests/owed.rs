//! What a session on page tables owes to several CPUs, and what it keeps until it has paid. The model of `testing::tlb` fails a
//! test whose tables or pages become something else while a CPU still knows them.

use core::sync::atomic::Ordering;

use ring_abi::types::{GuestVa, Mfn};

use super::guest::{Guest, SELF, at};
use super::remembered::on_cpu;
use super::{World, entry};
use crate::frames::PageType;
use crate::frames::pte::{P, RW, US};
use crate::mem::{GrantAddress, TypedRef};

const ALL: u64 = P | RW | US;

/// A guest that CPUs 0 and 1 run, and CPU 0 acts for, with `N` pages of its own.
fn on_two_cpus<const N: usize>(world: &World) -> (Guest, [Mfn; N]) {
    let guest = world.guest(1, false);
    let pages = world.pages(&guest.dom);
    on_cpu(world, 1, &guest);
    on_cpu(world, 0, &guest);
    (guest, pages)
}

/// Makes a list of changes that succeeds. How many flushes it took, of this CPU or of several at once.
fn flushes_of(world: &World, guest: &Guest, requests: &[(u64, u64)]) -> u32 {
    let before = world.hv.platform.flushes.load(Ordering::Relaxed);
    assert_eq!(world.mmu(guest, requests, SELF), 0);
    let flushes = world.hv.platform.flushes.load(Ordering::Relaxed) - before;
    world.check();
    flushes
}

#[test]
fn tables_that_leave_together_take_one_flush() {
    let world = World::new(256);
    let (guest, pages) = on_two_cpus::<9>(&world);
    let l2 = guest.tables[2];
    let slots = |count: usize| pages.iter().enumerate().take(count).map(|(n, page)| (n + 1, *page));
    for (count, flushes) in [(1, 1), (6, 1), (8, 1), (9, 2)] {
        let links: Vec<_> = slots(count).map(|(slot, page)| (at(l2, slot), entry(page, ALL))).collect();
        assert_eq!(world.mmu(&guest, &links, SELF), 0);
        let gone: Vec<_> = slots(count).map(|(slot, _)| (at(l2, slot), 0)).collect();
        assert_eq!(flushes_of(&world, &guest, &gone), flushes, "{count} tables");
        assert!(
            pages.iter().all(|page| world.hv.frames.held(*page).page_type().1 == 0),
            "all were given back"
        );
    }
}

/// A long list of others' pages, more than a session keeps.
#[test]
fn others_pages_that_leave_together_take_one_flush() {
    let world = World::new(256);
    let owner = world.guest(2, false);
    let others: [Mfn; 40] = world.pages(&owner.dom);
    let (guest, []) = on_two_cpus(&world);
    let l1 = guest.tables[3];
    for (count, flushes) in [(1, 1), (8, 1), (40, 5)] {
        for (n, page) in others[..count].iter().enumerate() {
            let held = world.hv.get_page_writable(*page, &owner.dom).map(TypedRef::into_raw);
            assert_eq!(held, Ok(*page));
            let va = GrantAddress::Virtual(GuestVa::new((0x40 + n as u64) << 12));
            let mapped = world
                .run(&guest.dom, |cur| world.hv.map_grant_frame(cur.domain, cur.vcpu, va, *page, false, US));
            assert_eq!(mapped, Ok(()));
        }
        let gone: Vec<_> = (0..count).map(|n| (at(l1, 0x40 + n), 0)).collect();
        // Requests are read eight at a time, and before each reading what is owed is paid.
        assert_eq!(flushes_of(&world, &guest, &gone), flushes, "{count} pages");
        assert!(
            others.iter().all(|page| world.hv.frames.held(*page).page_type().1 == 0),
            "all were given back"
        );
    }
}

/// The other CPU is flushed for the first page that becomes a table, and for no other. This CPU is flushed in the end.
#[test]
fn pages_that_become_tables_together_take_one_flush_of_each_cpu() {
    let world = World::new(256);
    let (guest, pages) = on_two_cpus::<5>(&world);
    let [_, _, l2, l1] = guest.tables;
    for (n, page) in pages.iter().enumerate() {
        assert_eq!(world.mmu(&guest, &[(at(l1, 0x40 + n), entry(*page, ALL))], SELF), 0);
    }
    let gone: Vec<_> = (0..pages.len()).map(|n| (at(l1, 0x40 + n), 0)).collect();
    assert_eq!(flushes_of(&world, &guest, &gone), 0, "its own pages");
    let links: Vec<_> =
        pages.iter().enumerate().map(|(n, page)| (at(l2, n + 1), entry(*page, ALL))).collect();
    assert_eq!(flushes_of(&world, &guest, &links), 2);
}

/// The list that makes one page a table unmaps another and makes that a table too: the other CPU was flushed before the second
/// page was unmapped.
#[test]
fn a_page_that_is_unmapped_after_a_flush_is_forgotten_by_the_next() {
    let world = World::new(256);
    let (guest, [first, second]) = on_two_cpus(&world);
    let [_, _, l2, l1] = guest.tables;
    for (n, page) in [first, second].into_iter().enumerate() {
        assert_eq!(world.mmu(&guest, &[(at(l1, 0x40 + n), entry(page, ALL))], SELF), 0);
    }
    let requests = [
        (at(l1, 0x40), 0),
        (at(l2, 1), entry(first, ALL)),
        (at(l1, 0x41), 0),
        (at(l2, 2), entry(second, ALL)),
    ];
    flushes_of(&world, &guest, &requests);
}

/// A table that leaves its parent is a page for what follows in the same list, and so is a table below.
#[test]
fn what_is_kept_until_the_flush_is_in_nobodys_way() {
    let world = World::new(256);
    let (guest, [upper, lower, page]) = on_two_cpus(&world);
    let [_, l3, l2, l1] = guest.tables;
    let value = |mfn, slot| world.peek(mfn, slot);
    world.poke(upper, 0, entry(lower, ALL));
    let link = [(at(l3, 1), entry(upper, ALL))];
    // As a page of data, written; mapped for writing; as a table of another level.
    assert_eq!(world.mmu(&guest, &link, SELF), 0);
    flushes_of(&world, &guest, &[(at(l3, 1), 0), (at(upper, 7), 0x1234_5678)]);
    assert_eq!(value(upper, 7), 0x1234_5678);
    world.poke(upper, 7, 0);
    assert_eq!(world.mmu(&guest, &link, SELF), 0);
    flushes_of(&world, &guest, &[(at(l3, 1), 0), (at(l1, 0x40), entry(lower, ALL))]);
    assert_eq!(world.hv.frames.held(lower).page_type(), (PageType::Writable, 1));
    assert_eq!(world.mmu(&guest, &[(at(l1, 0x40), 0)], SELF), 0);
    assert_eq!(world.mmu(&guest, &link, SELF), 0);
    flushes_of(
        &world,
        &guest,
        &[(at(l3, 1), 0), (at(l3, 2), entry(lower, ALL)), (at(lower, 0), entry(page, ALL))],
    );
    assert_eq!(world.hv.frames.held(lower).page_type(), (PageType::L2, 1));
    assert_eq!(world.hv.frames.held(l2).page_type().0, PageType::L2);
}

/// Tables are given back after one flush, and something else waits all the time: none is lost, whatever each of them names.
#[test]
fn tables_that_are_kept_and_interrupted_are_all_given_back() {
    let world = World::new(256);
    let (guest, pages) = on_two_cpus::<16>(&world);
    let l3 = guest.tables[1];
    let (uppers, lowers) = pages.split_at(8);
    for (upper, lower) in uppers.iter().zip(lowers) {
        world.poke(*upper, 0, entry(*lower, ALL));
        world.poke(*upper, 9, entry(*lower, ALL));
    }
    let links: Vec<_> =
        uppers.iter().enumerate().map(|(n, upper)| (at(l3, n + 1), entry(*upper, ALL))).collect();
    assert_eq!(world.mmu(&guest, &links, SELF), 0);
    let gone: Vec<_> = (1..=8).map(|slot| (at(l3, slot), 0)).collect();
    for questions in 0..24 {
        world.hv.platform.interrupt_after(questions);
        assert_eq!(world.mmu(&guest, &gone, SELF), 0);
        world.hv.platform.return_to_guest();
        world.check();
        assert!(pages.iter().all(|page| world.hv.frames.held(*page).page_type().1 == 0), "{questions}");
        assert_eq!(world.mmu(&guest, &links, SELF), 0);
    }
}

/// One CPU takes the pages of an LDT away that another CPU's vCPU uses: the pages stay descriptors until the other is flushed.
#[test]
fn pages_of_an_ldt_are_kept_until_the_other_cpus_are_flushed() {
    let world = World::new(256);
    let (guest, [page]) = on_two_cpus(&world);
    let vcpu = &guest.dom.vcpus[0];
    let slot = at(guest.tables[3], 0x40);
    assert_eq!(world.mmu(&guest, &[(slot, entry(page, P | US))], SELF), 0);
    world.hv.platform.on_cpu(1);
    world.hv.platform.set_window(Some(&vcpu.window));
    world.hv.set_ldt(&guest.dom, vcpu, 0x40 << 12, 512).expect("a good base");
    assert!(world.hv.fault_in_ldt(&guest.dom, vcpu, 0));
    assert!(world.hv.platform.window(1).contains(&page));
    world.hv.platform.on_cpu(0);
    assert_eq!(flushes_of(&world, &guest, &[(slot, 0)]), 2, "of the other CPU, and of this one in the end");
    assert!(!world.hv.platform.window(1).contains(&page));
    assert_eq!(world.hv.frames.held(page).page_type().1, 0, "given back");
}
