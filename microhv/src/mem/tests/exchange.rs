//! `XENMEM_exchange`, interrupted and failing.

use core::sync::atomic::Ordering;

use ring_abi::errno::{EINVAL, ENOMEM};
use ring_abi::memory::*;

use super::guest::*;
use super::{World, entry};
use crate::frames::pte::{P, RW};
use crate::mem::MemError;

#[test]
fn an_exchange_is_done_in_pieces_and_all_or_nothing() {
    let world = World::new(1024);
    let guest = world.guest(1, false);
    guest.dom.mm.set_max_pages(700);
    let pages = world.pages::<16>(&guest.dom);
    put_exchange(&world, &guest, &pages, 4);
    let (owned, free) = (guest.dom.mm.tot_pages(), world.hv.frames.free_pages());
    interrupted(&world, true);
    // The last page is mapped; then the list names the first page twice. Neither call changes anything.
    map(&world, &guest, 50, entry(pages[15], P));
    assert_eq!(memory(&world, &guest, XENMEM_EXCHANGE), neg(EINVAL));
    map(&world, &guest, 50, 0);
    world.write(&guest, 15 * 8, &pages[0].raw().to_le_bytes());
    assert_eq!(memory(&world, &guest, XENMEM_EXCHANGE), neg(EINVAL));
    assert_eq!((guest.dom.mm.tot_pages(), world.hv.frames.free_pages()), (owned, free));
    world.check();
    world.write(&guest, 15 * 8, &pages[15].raw().to_le_bytes());
    assert_eq!(memory(&world, &guest, XENMEM_EXCHANGE), 0);
    assert_eq!(world.word(&guest, STRUCTURE + 0x40), 16);
    interrupted(&world, false);
    assert_eq!((guest.dom.mm.tot_pages(), world.hv.frames.free_pages()), (owned, free));
    world.check();
}

/// Other CPUs may free pages all the time, so that each page that is taken waits for their flush.
#[test]
fn what_waits_is_looked_at_after_each_flush_that_a_page_waits_for() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [page] = world.pages(&guest.dom);
    map(&world, &guest, 50, entry(page, P | RW));
    map(&world, &guest, 50, 0);
    world.hv.release_page(&guest.dom, page).expect("nothing refers to it");
    assert!(world.hv.frames.stale().is_some(), "a TLB may know the page");
    interrupted(&world, true);
    let take = || world.hv.take_clean(&guest.dom, 0, 0, 2);
    assert_eq!(take().err(), Some(MemError::Restart));
    assert!(world.hv.frames.stale().is_none(), "the first page was taken, after a flush");
    let taken = take().expect("the second page waits for nobody");
    interrupted(&world, false);
    taken.iter().for_each(|&mfn| world.hv.frames.release(mfn, 0));
}

/// Two vCPUs exchange at the same time: the first has given its page when the second takes its extents.
#[test]
fn what_another_vcpu_gave_is_not_lost() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [page] = world.pages(&guest.dom);
    let free = world.hv.frames.free_pages();
    world.hv.steal_page(&guest.dom, page).expect("nothing refers to it");
    world.hv.keep_given(&guest.dom, alloc::vec![page]);
    let taken = world.hv.take_clean(&guest.dom, 0, 0, 1).expect("there is memory");
    taken.iter().for_each(|&mfn| world.hv.frames.release(mfn, 0));
    assert!(world.hv.release_given(&guest.dom));
    assert_eq!(world.hv.frames.free_pages(), free + 1);
}

#[test]
fn a_failed_exchange_does_not_forget_that_a_page_was_written() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [written, mapped] = world.pages(&guest.dom);
    map(&world, &guest, 50, entry(written, P | RW));
    map(&world, &guest, 50, 0);
    map(&world, &guest, 51, entry(mapped, P));
    for twice in [mapped, written] {
        put_exchange(&world, &guest, &[written, twice], 1); // one extent: both pages in one step
        assert_eq!(memory(&world, &guest, XENMEM_EXCHANGE), neg(EINVAL));
        let flushes = || world.hv.platform.flushes.load(Ordering::Relaxed);
        let before = flushes();
        world.hv.pin_table(&guest.dom, written, 1).expect("its own page");
        assert!(flushes() > before, "the page may be written through the TLB");
        world.hv.unpin_table(&guest.dom, written).expect("pinned");
        map(&world, &guest, 50, entry(written, P | RW));
        map(&world, &guest, 50, 0);
    }
    world.check();
}

#[test]
fn an_exchange_leaves_what_others_claimed() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let other = world.domain(2, false, 250);
    let [page] = world.pages(&guest.dom);
    put_exchange(&world, &guest, &[page], 0);
    world.hv.claim_pages(&other, world.hv.frames.free_pages()).expect("all that is free");
    assert_eq!(memory(&world, &guest, XENMEM_EXCHANGE), neg(ENOMEM));
    world.hv.claim_pages(&other, 0).expect("given up");
    assert_eq!(memory(&world, &guest, XENMEM_EXCHANGE), 0);
}
