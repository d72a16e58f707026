//! Long operations, interrupted at every opportunity; and what frames say of themselves when an operation fails.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::errno::EINVAL;
use ring_abi::memory::*;
use ring_abi::mmu::{MMUEXT_PIN_L1_TABLE, MmuUpdate, MmuextOp};
use ring_abi::types::{DOMID_SELF, Mfn};
use zerocopy::IntoBytes;

use super::calls::{ARGS, Guest, at, neg};
use super::{World, entry};
use crate::error::HypercallError;
use crate::hypercall::{Args, Current, HypercallResult, Outcome, descriptor, memory, mmu, mmuext};
use crate::mem::frame::Kind;
use crate::mem::pte::{P, RW, US};
use crate::mem::{FrameOwner, TableError, Update, pte};
use crate::platform::Platform;
use crate::testing::TestMachine;

type Handler = fn(&mut Current<'_, TestMachine>, &Args) -> HypercallResult;

/// Where the operation's structure is in the page of arguments.
const STRUCTURE: usize = 0x800;

fn reservation(extent_start: u64, nr_extents: u64, extent_order: u32) -> XenMemoryReservation {
    let domid = DOMID_SELF;
    XenMemoryReservation { extent_start, nr_extents, extent_order, mem_flags: 0, domid, _pad0: [0; 3] }
}

fn memory(world: &World, guest: &Guest, command: u32) -> i64 {
    world.call(guest, memory::memory_op, [command.into(), ARGS + STRUCTURE as u64, 0, 0])
}

fn interrupted(world: &World, on: bool) {
    world.hv.platform.pending.store(on, Ordering::Relaxed);
}

/// The page that the guest's arguments are in is `ARGS`; others are its own to exchange.
fn map(world: &World, guest: &Guest, slot: usize, entry: u64) {
    let own = FrameOwner::Domain(&guest.dom);
    world.hv.lock_tables(&guest.dom).update_leaf(guest.tables[3], slot, entry, own, Update::Plain).unwrap();
}

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
        assert_eq!(world.hv.platform.m2p(mfn), Some(0x200 + page));
    }
    // One page of it is mapped, and lives on; the others go.
    map(&world, &guest, 50, entry(Mfn::new(first.raw() + 100), P | RW));
    assert_eq!(memory(&world, &guest, XENMEM_DECREASE_RESERVATION), 1);
    assert_eq!(guest.dom.mm.tot_pages(), owned + 1);
    // A caller that says what is done has that skipped: here all but the last page, which is gone already.
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
    assert_eq!(world.hv.populate(&guest.dom, 9, 0), Err(TableError::Restart));
    assert_eq!(world.hv.frames.free_pages(), free - 512);
    assert_eq!(world.hv.populate(&guest.dom, 8, 0), Err(TableError::Restart), "another order");
    assert_eq!(world.hv.frames.free_pages(), free - 256);
    assert!(world.hv.populate(&guest.dom, 0, 0).is_ok(), "a single page does not wait for it");
    assert_eq!(world.hv.populate(&guest.dom, 8, 0), Err(TableError::Restart));
    interrupted(&world, false);
    let owned = guest.dom.mm.tot_pages();
    world.destroy(&guest.dom, false);
    assert_eq!(world.hv.frames.free_pages(), free + owned, "and its shared_info");
}

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
fn teardown_that_is_interrupted_after_each_base_loses_neither() {
    let world = World::new(256);
    let free = world.hv.frames.free_pages();
    let dom = world.domain(1, false, 100);
    let (kernel, user) = (world.address_space(&dom), world.address_space(&dom));
    // Each base has so many entries that its end comes in pieces.
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
fn a_lent_page_that_outlives_its_owner_is_not_the_next_ones() {
    let world = World::new(256);
    let dom0 = world.guest(0, true);
    let guest = world.domain(1, false, 10);
    let shared_info = guest.shared_info_mfn;
    let other = FrameOwner::Domain(&guest);
    let slot = |owner: FrameOwner<'_>, entry| {
        world.hv.lock_tables(&dom0.dom).update_leaf(dom0.tables[3], 60, entry, owner, Update::Plain)
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
    let repeat = |what: &str, step: &dyn Fn() -> Result<(), TableError>| {
        let calls = (0..1000).take_while(|_| step() == Err(TableError::Restart)).count();
        assert!((20..200).contains(&calls), "{what}: {calls} calls for 27 tables of level 1");
        world.check();
    };
    repeat("pin", &|| world.hv.pin_table(&dom, root, 4));
    world.hv.unpin_table(&dom, root).expect("pinned");
    repeat("unpin", &|| if world.hv.finish_deferred(&dom) { Ok(()) } else { Err(TableError::Restart) });
    assert!(tree.iter().all(|&mfn| world.hv.frames.held(mfn).load_kind().count() == 0));
    interrupted(&world, false);
}

/// As entries of a multicall, whose own looks are few: each call is done, and then continued, with nothing left to do.
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
    assert!(world.hv.frames.held(l1).load_kind().has(Kind::PINNED));
    assert_eq!(run(mmuext::mmuext_op, rest()), Ok(Outcome::OK), "pinned once");
    // An entry of level 2, alone in its list.
    let update = MmuUpdate { ptr: at(guest.tables[2], 9), val: entry(l1, P | RW | US) };
    world.write(&guest, 0, update.as_bytes());
    assert_eq!(run(mmu::mmu_update, [ARGS, 1, 0, DOMID_SELF.into(), 0, 0]), Ok(Outcome::Continue));
    assert_eq!(run(mmu::mmu_update, rest()), Ok(Outcome::OK));
    assert_eq!(pte::frame(world.peek(guest.tables[2], 9)), l1);
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

#[test]
fn what_the_heap_cannot_give_is_refused() {
    let world = World::new(256);
    let dom = world.domain(1, false, 10);
    world.hv.platform.heap_has_room.store(false, Ordering::Relaxed);
    assert_eq!(world.hv.grow_grant_table(&dom, 1), Err(HypercallError::NoMemory), "though frames are free");
    world.hv.platform.heap_has_room.store(true, Ordering::Relaxed);
    assert_eq!(world.hv.grow_grant_table(&dom, 1), Ok(()));
}
