//! `memory_op`, as a guest makes it.

use core::sync::atomic::Ordering;

use ring_abi::errno::{EINVAL, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM, ESRCH};
use ring_abi::memory::*;
use ring_abi::types::{DOMID_SELF, Mfn, Pfn};
use zerocopy::IntoBytes;

use super::guest::{ARGS, Guest, at, neg};
use super::{World, entry};
use crate::frames::pte::{P, Pte, RW};
use crate::gnttab::GrowError;
use crate::gnttab::state::{Part, Version};
use crate::hypercall::memory;
use crate::mem::{FrameOwner, Update};

fn reservation(extent_start: u64, nr_extents: u64, extent_order: u32, domid: u16) -> XenMemoryReservation {
    XenMemoryReservation { extent_start, nr_extents, extent_order, mem_flags: 0, domid, _pad0: [0; 3] }
}

#[test]
fn reservations_grow_and_shrink() {
    let world = World::new(512);
    let guest = world.guest(1, false);
    let owned = guest.dom.mm.tot_pages();
    let memory = |command: u32, start: u64| {
        world.call(&guest, memory::memory_op, [u64::from(command) | start << 6, ARGS + 0x800, 0, 0])
    };
    let put = |r: XenMemoryReservation| world.write(&guest, 0x800, r.as_bytes());
    for n in 0..8u64 {
        world.write(&guest, n as usize * 8, &(0x100 + n).to_le_bytes());
    }
    put(reservation(ARGS, 8, 0, DOMID_SELF));
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    assert_eq!(memory(XENMEM_POPULATE_PHYSMAP, 0), 8);
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    assert_eq!(guest.dom.mm.tot_pages(), owned + 8);
    let frames: [Mfn; 8] = core::array::from_fn(|n| Mfn::new(world.word(&guest, n * 8)));
    for (n, &mfn) in frames.iter().enumerate() {
        assert_eq!(world.hv.platform.m2p(mfn), Some(Pfn::new(0x100 + n as u64)));
    }
    world.check();
    assert_eq!(memory(XENMEM_POPULATE_PHYSMAP, 8), 8, "nothing left to do");
    assert_eq!(memory(XENMEM_POPULATE_PHYSMAP, u64::MAX >> 6), (u64::MAX >> 6) as i64);
    // A page that is mapped stays until the guest unmaps it.
    let own = FrameOwner::Domain(&guest.dom);
    let map = |e| {
        world.hv.lock_tables(&guest.dom).update_leaf(guest.tables[3], 50, Pte::new(e), own, Update::Plain)
    };
    map(entry(frames[0], P | RW)).expect("own page");
    assert_eq!(memory(XENMEM_DECREASE_RESERVATION, 0), 8);
    assert_eq!(guest.dom.mm.tot_pages(), owned + 1);
    world.check();
    assert_eq!(memory(XENMEM_DECREASE_RESERVATION, 0), 0, "given up already");
    map(0).expect("unmap");
    assert_eq!(guest.dom.mm.tot_pages(), owned);
    assert_eq!(world.hv.platform.m2p(frames[0]), None);
    world.check();
    for bad in [
        reservation(ARGS, 1, 10, DOMID_SELF),
        reservation(ARGS, 1, u32::MAX, DOMID_SELF),
        reservation(ARGS, u64::MAX, 0, DOMID_SELF),
        reservation(0x40_0000, 1, 0, DOMID_SELF),
    ] {
        put(bad);
        assert_eq!(memory(XENMEM_POPULATE_PHYSMAP, 0), 0);
        assert_eq!(memory(XENMEM_DECREASE_RESERVATION, 0), 0);
    }
    put(reservation(ARGS, 1, 0, 7));
    assert_eq!(memory(XENMEM_POPULATE_PHYSMAP, 0), 0, "no such domain");
    let nowhere = [XENMEM_POPULATE_PHYSMAP.into(), 0x40_0000, 0, 0];
    assert_eq!(world.call(&guest, memory::memory_op, nowhere), 0, "no such argument");
    put(reservation(ARGS, 500, 0, DOMID_SELF));
    assert_eq!(memory(XENMEM_INCREASE_RESERVATION, 0) as u64, 200 - owned, "as many as it may own");
    world.check();
    world.hv.platform.identity();
}

#[test]
fn exchange_gives_contiguous_memory() {
    let world = World::new(512);
    let guest = world.guest(1, false);
    let pages = world.pages::<4>(&guest.dom);
    for (n, mfn) in pages.iter().enumerate() {
        world.write(&guest, n * 8, &mfn.raw().to_le_bytes());
    }
    world.write(&guest, 0x100, &0x40u64.to_le_bytes());
    let exchange = |input: XenMemoryReservation, output: XenMemoryReservation| {
        let request = XenMemoryExchange { r#in: input, out: output, nr_exchanged: 0 };
        world.write(&guest, 0x800, request.as_bytes());
        let result = world.call(&guest, memory::memory_op, [XENMEM_EXCHANGE.into(), ARGS + 0x800, 0, 0]);
        (result, world.word(&guest, 0x840))
    };
    let (input, output) = (reservation(ARGS, 4, 0, DOMID_SELF), reservation(ARGS + 0x100, 1, 2, DOMID_SELF));
    let own = FrameOwner::Domain(&guest.dom);
    let map = |e| {
        world.hv.lock_tables(&guest.dom).update_leaf(guest.tables[3], 50, Pte::new(e), own, Update::Plain)
    };
    map(entry(pages[2], P)).expect("own page");
    let owned = guest.dom.mm.tot_pages();
    assert_eq!(exchange(input, output), (neg(EINVAL), 0), "one is referred to");
    world.check();
    assert_eq!(guest.dom.mm.tot_pages(), owned);
    map(0).expect("unmap");
    world.hv.platform.heap_has_room.store(false, Ordering::Relaxed);
    assert_eq!(exchange(input, output), (neg(ENOMEM), 0), "no room for the lists");
    world.hv.platform.heap_has_room.store(true, Ordering::Relaxed);
    assert_eq!(exchange(input, output), (0, 4));
    let first = Mfn::new(world.word(&guest, 0x100));
    assert_eq!(first.raw() % 4, 0);
    assert_eq!(world.hv.platform.m2p(Mfn::new(first.raw() + 3)), Some(Pfn::new(0x43)));
    assert_eq!(guest.dom.mm.tot_pages(), owned);
    world.check();
    assert_eq!(exchange(input, output).0, neg(EINVAL), "given away");
    assert_eq!(exchange(input, reservation(ARGS, 2, 2, DOMID_SELF)).0, neg(EINVAL), "sizes differ");
    assert_eq!(exchange(reservation(0, u64::MAX, 9, DOMID_SELF), output).0, neg(EINVAL));
    assert_eq!(exchange(reservation(0, 1, 64, DOMID_SELF), output).0, neg(EPERM));
    world.check();
}

#[test]
fn claims_keep_memory_for_a_domain() {
    let world = World::new(128);
    let (dom0, guest) = (world.guest(0, true), world.guest(1, false));
    let free = world.hv.frames.free_pages();
    let claim = |caller: &Guest, pages| {
        world.write(caller, 0, reservation(0, pages, 0, 1).as_bytes());
        world.call(caller, memory::memory_op, [XENMEM_CLAIM_PAGES.into(), ARGS, 0, 0])
    };
    let owned = guest.dom.mm.tot_pages();
    assert_eq!(claim(&guest, owned + 1), neg(EPERM));
    assert_eq!(claim(&dom0, owned), neg(EINVAL));
    assert_eq!(claim(&dom0, 201), neg(EINVAL));
    assert_eq!(claim(&dom0, owned + free + 1), -i64::from(ring_abi::errno::ENOMEM));
    assert_eq!(claim(&dom0, owned + free - 1), 0);
    assert!(world.hv.populate(&dom0.dom, 0, 0).is_ok());
    assert!(world.hv.populate(&dom0.dom, 0, 0).is_err(), "the rest is claimed");
    for _ in 0..free - 1 {
        world.hv.populate(&guest.dom, 0, 0).expect("claimed");
    }
    assert_eq!(world.hv.frames.claimed(), 0);
    world.check();
}

/// Memory that is claimed for a domain under construction goes to nobody else, not even through what the hypervisor
/// allocates for other domains.
#[test]
fn claimed_memory_does_not_become_anothers_grant_table() {
    let world = World::new(256);
    let (dom0, guest, other) = (world.guest(0, true), world.guest(1, false), world.guest(2, false));
    guest.dom.mm.set_max_pages(256);
    let free = world.hv.frames.free_pages();
    let owned = guest.dom.mm.tot_pages();
    world.write(&dom0, 0, reservation(0, owned + free, 0, 1).as_bytes());
    assert_eq!(world.call(&dom0, memory::memory_op, [XENMEM_CLAIM_PAGES.into(), ARGS, 0, 0]), 0);
    assert!(world.hv.populate(&other.dom, 0, 0).is_err(), "all is claimed");
    assert!(world.hv.grow_grant_table(&other.dom, 8).is_err(), "all is claimed");
    for n in 0..free {
        assert!(world.hv.populate(&guest.dom, 0, 0).is_ok(), "{n} of {free} claimed pages");
    }
}

#[test]
fn memory_maps_are_given() {
    let world = World::new(256);
    let (dom0, guest) = (world.guest(0, true), world.guest(1, false));
    let memory =
        |g: &Guest, command: u32| world.call(g, memory::memory_op, [command.into(), ARGS + 0x800, 0, 0]);
    let map = XenMemoryMap { nr_entries: 4, _pad0: 0, buffer: ARGS };
    world.write(&guest, 0x800, map.as_bytes());
    assert_eq!(memory(&guest, XENMEM_MEMORY_MAP), neg(ENOSYS));
    assert_eq!(memory(&guest, XENMEM_MACHINE_MEMORY_MAP), neg(EPERM));
    let e820 = E820Entry { addr: 0, size: 0x80_0000, r#type: E820_RAM };
    world.write(&dom0, 0, e820.as_bytes());
    let set = |domid, nr_entries| {
        let map = XenMemoryMap { nr_entries, _pad0: 0, buffer: ARGS };
        world.write(&dom0, 0x800, XenForeignMemoryMap { domid, _pad0: [0; 3], map }.as_bytes());
        memory(&dom0, XENMEM_SET_MEMORY_MAP)
    };
    assert_eq!(set(1, 1), 0);
    assert_eq!(set(1, 129), neg(EINVAL));
    assert_eq!(set(5, 1), neg(ESRCH));
    assert_eq!(memory(&guest, XENMEM_MEMORY_MAP), 0);
    assert_eq!(world.word(&guest, 0x800) as u32, 1);
    assert_eq!(world.word(&guest, 8), 0x80_0000);
    world.write(&dom0, 0x800, map.as_bytes());
    assert_eq!(memory(&dom0, XENMEM_MACHINE_MEMORY_MAP), 0);
    assert_eq!(world.word(&dom0, 8), 256 << 12);
    let short = XenMemoryMap { nr_entries: 0, ..map };
    world.write(&dom0, 0x800, short.as_bytes());
    assert_eq!(memory(&dom0, XENMEM_MACHINE_MEMORY_MAP), neg(EINVAL), "no room for all");
    world.write(&dom0, 0x800, XenMemoryMap { buffer: 0, ..short }.as_bytes());
    assert_eq!(memory(&dom0, XENMEM_MACHINE_MEMORY_MAP), 0);
    assert_eq!(world.word(&dom0, 0x800) as u32, 1, "the entries there are");
    assert_eq!(memory(&guest, XENMEM_MAXIMUM_RAM_PAGE), 256);
    assert_eq!(memory(&guest, 63), neg(ENOSYS));
    assert_eq!(memory(&guest, XENMEM_MACHPHYS_MAPPING), 0);
    assert_eq!(world.word(&guest, 0x800), 0xffff_8000_0000_0000);
}

#[test]
fn the_builder_gets_a_domains_grant_table() {
    let world = World::new(256);
    let (dom0, guest) = (world.guest(0, true), world.guest(1, false));
    let acquire = |caller: &Guest, request: XenMemAcquireResource| {
        world.write(caller, 0x800, request.as_bytes());
        world.call(caller, memory::memory_op, [XENMEM_ACQUIRE_RESOURCE.into(), ARGS + 0x800, 0, 0])
    };
    let grant_table = XenMemAcquireResource {
        domid: 1,
        r#type: XENMEM_RESOURCE_GRANT_TABLE as u16,
        id: XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED,
        nr_frames: 1,
        frame_list: ARGS,
        ..XenMemAcquireResource::default()
    };
    assert_eq!(acquire(&guest, grant_table), neg(EPERM));
    assert_eq!(acquire(&dom0, grant_table), 0);
    let frame = Mfn::new(world.word(&dom0, 0));
    assert_eq!(world.mmu(&dom0, &[(at(dom0.tables[3], 40), entry(frame, P | RW))], 1), 0, "dom0 maps it");
    world.check();
    assert_eq!(acquire(&dom0, XenMemAcquireResource { frame: u64::MAX, ..grant_table }), neg(EINVAL));
    assert_eq!(acquire(&dom0, XenMemAcquireResource { nr_frames: 1025, ..grant_table }), neg(EINVAL));
    assert_eq!(acquire(&dom0, XenMemAcquireResource { frame: 1 << 20, ..grant_table }), neg(EINVAL));
    assert_eq!(acquire(&dom0, XenMemAcquireResource { domid: 9, ..grant_table }), neg(ESRCH));
    let size = XenMemAcquireResource { nr_frames: 0, frame_list: 0, ..grant_table };
    assert_eq!(acquire(&dom0, size), 0);
    assert_eq!(world.word(&dom0, 0x808) as u32, 64);
    assert_eq!(world.mmu(&dom0, &[(at(dom0.tables[3], 40), 0)], 1), 0);
    world.check();
    // Status words come with version 2, a frame for eight of entries.
    let status = XenMemAcquireResource { id: XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS, frame: 1, ..grant_table };
    assert_eq!(acquire(&dom0, status), neg(EINVAL));
    assert_eq!(guest.dom.grants.frame_count(), 1, "nor does the table grow");
    world.hv.set_grant_version(&guest.dom, Version::Two).expect("memory");
    assert_eq!(acquire(&dom0, status), 0);
    assert_eq!(guest.dom.grants.frame_count(), 9);
    let frame = Mfn::new(world.word(&dom0, 0));
    let mut list = [0];
    assert_eq!((guest.dom.grants.frames_from(Part::Status, 1, &mut list), list), (1, [frame.raw()]));
    assert_eq!(acquire(&dom0, XenMemAcquireResource { frame: 8, ..status }), neg(EINVAL));
    assert_eq!(acquire(&dom0, XenMemAcquireResource { id: 2, ..status }), neg(EOPNOTSUPP));
    let size = XenMemAcquireResource { nr_frames: 0, frame_list: 0, ..status };
    assert_eq!(acquire(&dom0, size), 0);
    assert_eq!(world.word(&dom0, 0x808) as u32, 8);
    assert_eq!(world.mmu(&dom0, &[(at(dom0.tables[3], 40), entry(frame, P | RW))], 1), 0, "dom0 maps it");
    assert_eq!(world.hv.set_grant_version(&guest.dom, Version::One), Err(GrowError::Busy));
    assert_eq!(world.mmu(&dom0, &[(at(dom0.tables[3], 40), 0)], 1), 0);
    world.hv.set_grant_version(&guest.dom, Version::One).expect("nobody maps it");
    world.check();
}
