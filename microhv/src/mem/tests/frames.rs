//! Frames that are given, taken back, lent and granted.

use core::sync::atomic::Ordering;

use ring_abi::types::{GuestVa, Maddr, Mfn};

use super::{World, entry};
use crate::frames::pte::{GUEST_KERNEL, P, PCD, PWT, Pte, RW, US};
use crate::mem::{FrameOwner, GrantAddress, MemError, MemError as E, Update};
use crate::platform::*;

#[test]
fn a_freed_frame_is_flushed_before_it_is_given_again() {
    let world = World::new(64);
    let dom = world.domain(1, false, 32);
    let flushes = || world.hv.platform.flushes.load(Ordering::Relaxed);
    let [page] = world.pages(&dom);
    world.poke(page, 3, 0x5ec7e7);
    let before = flushes();
    assert!(world.hv.frames.held(page).end_ownership());
    world.hv.put_page(page);
    assert_eq!(dom.mm.tot_pages(), 0);
    let [again, _] = world.pages(&dom);
    assert_eq!(flushes(), before + 1);
    assert_eq!(again, page, "the last freed is the first given");
    assert_eq!(world.peek(again, 3), 0, "scrubbed");
    world.check();
}

#[test]
fn a_refused_reference_is_not_given_back() {
    let world = World::new(64);
    let (dom, other) = (world.domain(1, false, 32), world.domain(2, false, 32));
    let [page] = world.pages(&dom);
    assert!(world.hv.get_page(page, &other).is_none());
    assert_eq!(world.hv.get_page_writable(page, &other).err(), Some(E::Invalid));
    assert!(world.hv.get_page(Mfn::new(64), &other).is_none());
    assert_eq!(world.hv.frames.held(page).load_use().count(), 1);
    world.check();
}

#[test]
fn limits_are_kept() {
    let world = World::new(64);
    let dom = world.domain(1, false, 3);
    assert_eq!(world.hv.populate(&dom, 2, 0), Err(MemError::NoMemory));
    world.hv.populate(&dom, 1, 0).expect("two");
    world.hv.populate(&dom, 0, 0).expect("three");
    assert_eq!(world.hv.populate(&dom, 0, 0), Err(MemError::NoMemory));
    dom.mm.set_max_pages(1000);
    assert_eq!(world.hv.populate(&dom, 63, 0), Err(MemError::NoMemory));
    while world.hv.populate(&dom, 0, 0).is_ok() {}
    world.check();
    assert_eq!(world.hv.frames.free_pages(), 0);
    world.destroy(&dom, false);
    assert_eq!(world.hv.populate(&dom, 0, 0), Err(MemError::NoMemory), "dying");
}

#[test]
fn lent_pages_are_no_tables_and_are_freed_when_unmapped() {
    let world = World::new(64);
    let dom = world.domain(1, false, 32);
    let [l4, _, _, l1] = world.address_space(&dom);
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    let read_only = world.hv.alloc_zeroed().expect("a frame");
    world.hv.share_with_guest(read_only, dom.id, true);
    let own = FrameOwner::Domain(&dom);
    let mut mm = world.hv.lock_tables(&dom);
    assert!(mm.update_leaf(l1, 8, Pte::new(entry(read_only, P | RW)), own, Update::Plain).is_err());
    mm.update_leaf(l1, 8, Pte::new(entry(read_only, P)), own, Update::Plain).expect("for reading");
    mm.update_leaf(l1, 9, Pte::new(entry(dom.shared_info_mfn, P | RW)), own, Update::Plain)
        .expect("shared_info");
    assert!(mm.pin(dom.shared_info_mfn, 1).is_err());
    drop(mm);
    world.check();
    let free = world.hv.frames.free_pages();
    world.hv.unshare(read_only);
    assert_eq!(world.hv.frames.free_pages(), free, "still mapped");
    world.check();
    world.hv.lock_tables(&dom).update_leaf(l1, 8, Pte::NONE, own, Update::Plain).expect("unmap");
    assert_eq!(world.hv.frames.free_pages(), free + 1);
    world.check();
}

#[test]
fn device_memory_needs_the_right_and_is_uncached() {
    let world = World::new(64);
    let dom = world.domain(1, false, 32);
    let [l4, _, _, l1] = world.address_space(&dom);
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    let device = Mfn::new(0xfebc0);
    let set = |e| {
        world.hv.lock_tables(&dom).update_leaf(l1, 8, Pte::new(e), FrameOwner::Devices(&dom), Update::Plain)
    };
    assert_eq!(set(entry(device, P | RW)), Err(MemError::NotPermitted));
    dom.permissions.lock().iomem.add(0xfebc0, 0xfebc1);
    set(entry(device, P | RW)).expect("permitted");
    assert_eq!(world.peek(l1, 8), entry(device, P | RW | PCD | PWT | US | GUEST_KERNEL));
    world.hv.frames.protect_device_frames(Mfn::new(0xfebc1), Mfn::new(0xfebc1));
    set(entry(Mfn::new(0xfebc1), P | RW)).expect("permitted, for reading");
    assert_eq!(world.peek(l1, 8) & RW, 0);
    assert!(set(entry(l4, P)).is_err(), "memory is no device");
    set(0).expect("unmap");
    world.check();
}

#[test]
fn grant_entries_own_the_references_they_are_given() {
    let world = World::new(128);
    let (dom, granter) = (world.domain(1, false, 64), world.domain(2, false, 64));
    let [l4, _, _, l1] = world.address_space(&dom);
    let [page] = world.pages(&granter);
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    world.hv.install_bases(&dom, &dom.vcpus[0], l4, None).expect("valid");
    let take = || world.hv.get_page_writable(page, &granter).expect("theirs").into_raw();
    let place = GrantAddress::Virtual(GuestVa::new(0x8000));
    world.run(&dom, |cur| {
        world.hv.map_grant_frame(cur.domain, cur.vcpu, place, take(), false, 0).expect("a slot");
        world.check();
        assert_eq!(
            world.hv.unmap_grant_frame(cur.domain, cur.vcpu, place, page, true),
            Err(E::Invalid),
            "other access"
        );
        assert_eq!(
            world.hv.unmap_grant_frame(cur.domain, cur.vcpu, place, l1, false),
            Err(E::Invalid),
            "other frame"
        );
        world.hv.unmap_grant_frame(cur.domain, cur.vcpu, place, page, false).expect("mapped");
        world.hv.flush_grants(&dom);
        world.hv.put_page_and_type(page);
        world.check();
        // The place is the entry's own address. When the guest overwrites the entry, the references are given back.
        let at = Maddr::new(l1.raw() * 4096 + 8 * 8);
        world
            .hv
            .map_grant_frame(cur.domain, cur.vcpu, GrantAddress::Entry(at), take(), false, 0)
            .expect("a slot");
        let own = FrameOwner::Domain(&dom);
        world.hv.lock_tables(&dom).update_leaf(l1, 8, Pte::NONE, own, Update::Plain).expect("overwrite");
        world.check();
        assert_eq!(
            world.hv.unmap_grant_frame(cur.domain, cur.vcpu, GrantAddress::Entry(at), page, false),
            Err(E::Invalid)
        );
        for bad in [Maddr::new(at.raw() + 1), Maddr::new(l4.raw() * 4096), Maddr::new(!7)] {
            assert_eq!(
                world.hv.unmap_grant_frame(cur.domain, cur.vcpu, GrantAddress::Entry(bad), page, false),
                Err(E::Invalid)
            );
        }
        assert!(
            world
                .hv
                .unmap_grant_frame(
                    cur.domain,
                    cur.vcpu,
                    GrantAddress::Virtual(GuestVa::new(0xffff_8000_0000_0000)),
                    page,
                    false
                )
                .is_err()
        );
    });
    // The granter dies while its page is mapped: the page stays until the mapping goes.
    world
        .run(&dom, |cur| world.hv.map_grant_frame(cur.domain, cur.vcpu, place, take(), false, 0))
        .expect("a slot");
    world.destroy(&granter, false);
    world.check();
    assert_eq!(granter.mm.tot_pages(), 1);
    world.hv.platform.load_cr3(l4);
    world.destroy(&dom, true);
    world.check();
    assert_eq!(granter.mm.tot_pages(), 0, "the last page is gone");
}

#[test]
fn a_lent_page_that_outlives_its_owner_is_not_the_next_ones() {
    let world = World::new(256);
    let dom0 = world.guest(0, true);
    let guest = world.domain(1, false, 10);
    let shared_info = guest.shared_info_mfn;
    let other = FrameOwner::Domain(&guest);
    let slot = |owner: FrameOwner<'_>, entry| {
        world.hv.lock_tables(&dom0.dom).update_leaf(dom0.tables[3], 60, Pte::new(entry), owner, Update::Plain)
    };
    slot(other, entry(shared_info, P | RW)).expect("dom0 maps what the domain has");
    world.destroy(&guest, false);
    assert!(world.hv.get_page(shared_info, &guest).is_none(), "by its number alone");
    assert!(!world.hv.frames.held(shared_info).load_use().is_owned_by(guest.id));
    let free = world.hv.frames.free_pages();
    slot(FrameOwner::Domain(&dom0.dom), 0).expect("unmapped");
    assert_eq!(world.hv.frames.free_pages(), free + 1, "freed with the last mapping");
}

#[test]
fn what_the_heap_cannot_give_is_refused() {
    let world = World::new(256);
    let dom = world.domain(1, false, 10);
    world.hv.platform.heap_has_room.store(false, Ordering::Relaxed);
    assert_eq!(
        world.hv.grow_grant_table(&dom, 2),
        Err(crate::gnttab::GrowError::NoMemory),
        "though frames are free"
    );
    world.hv.platform.heap_has_room.store(true, Ordering::Relaxed);
    assert_eq!(world.hv.grow_grant_table(&dom, 2), Ok(()));
}
