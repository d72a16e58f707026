//! `XENMEM_exchange`, interrupted and failing.

use core::sync::atomic::Ordering;

use ring_abi::errno::{EINVAL, ENOMEM};
use ring_abi::memory::*;
use zerocopy::IntoBytes;

use super::guest::*;
use super::{World, entry};
use crate::mem::pte::{P, RW};

#[test]
fn an_exchange_is_done_in_pieces_and_all_or_nothing() {
    let world = World::new(1024);
    let guest = world.guest(1, false);
    guest.dom.mm.set_max_pages(700);
    let pages = world.pages::<16>(&guest.dom);
    for (n, mfn) in pages.iter().enumerate() {
        world.write(&guest, n * 8, &mfn.raw().to_le_bytes());
    }
    world.write(&guest, 0x100, &0x40u64.to_le_bytes());
    let request = XenMemoryExchange {
        r#in: reservation(ARGS, 16, 0),
        out: reservation(ARGS + 0x100, 1, 4),
        nr_exchanged: 0,
    };
    world.write(&guest, STRUCTURE, request.as_bytes());
    let (owned, free) = (guest.dom.mm.tot_pages(), world.hv.frames.free_pages());
    interrupted(&world, true);
    // The last is mapped; then it is named twice. Nothing has changed either time.
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

/// Two vCPUs exchange at the same time: one has given a page when the other takes its extents.
#[test]
fn what_another_vcpu_gave_is_not_lost() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [page] = world.pages(&guest.dom);
    let free = world.hv.frames.free_pages();
    world.hv.steal_page(&guest.dom, page).expect("nothing refers to it");
    world.hv.keep_given(&guest.dom, alloc::vec![page]);
    let taken = world.hv.take_clean(&guest.dom, 0, 0, 1).expect("there is memory");
    taken.iter().for_each(|&mfn| world.hv.release_frames(mfn, 0));
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
        world.write(&guest, 0, &written.raw().to_le_bytes());
        world.write(&guest, 8, &twice.raw().to_le_bytes());
        let request = XenMemoryExchange {
            r#in: reservation(ARGS, 2, 0),
            out: reservation(ARGS + 0x100, 1, 1), // both in one step
            nr_exchanged: 0,
        };
        world.write(&guest, STRUCTURE, request.as_bytes());
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
    world.write(&guest, 0, &page.raw().to_le_bytes());
    world.write(&guest, 0x100, &0x40u64.to_le_bytes());
    let request = XenMemoryExchange {
        r#in: reservation(ARGS, 1, 0),
        out: reservation(ARGS + 0x100, 1, 0),
        nr_exchanged: 0,
    };
    world.write(&guest, STRUCTURE, request.as_bytes());
    world.hv.claim_pages(&other, world.hv.frames.free_pages()).expect("all that is free");
    assert_eq!(memory(&world, &guest, XENMEM_EXCHANGE), neg(ENOMEM));
    world.hv.claim_pages(&other, 0).expect("given up");
    assert_eq!(memory(&world, &guest, XENMEM_EXCHANGE), 0);
}
