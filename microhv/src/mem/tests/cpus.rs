//! What another CPU does at the same moment: each CPU is a thread.

use core::time::Duration;
use std::thread;

use ring_abi::errno::ESRCH;
use ring_abi::mmu::MmuUpdate;
use ring_abi::types::{DOMID_SELF, Mfn};
use zerocopy::IntoBytes;

use super::World;
use super::guest::{ARGS, at, neg};
use crate::domain::DyingState;
use crate::hypercall::mmu;
use crate::mem::MemError;
use crate::testing::turns::play_plan;

/// Time in which another thread gets to the lock that this thread holds. A slower thread makes a test see less, never fail.
const WAY_TO_THE_LOCK: Duration = Duration::from_millis(50);

/// A domain's end begins while a call waits for the lock of the domain's page tables.
#[test]
fn a_call_that_waited_for_the_tables_finds_the_domain_dying() {
    for is_own in [true, false] {
        let world = World::new(256);
        let (control, guest) = (world.guest(0, true), world.guest(1, false));
        let caller = if is_own { &guest } else { &control };
        let request = MmuUpdate { ptr: at(guest.tables[3], 0x40), val: 0 };
        world.write(caller, 0, request.as_bytes());
        let whose = if is_own { DOMID_SELF.into() } else { u64::from(DOMID_SELF) | 2 << 16 };
        let tables = guest.dom.mm.tables.lock();
        thread::scope(|scope| {
            let call = scope.spawn(|| world.call(caller, mmu::mmu_update, [ARGS, 1, 0, whose]));
            thread::sleep(WAY_TO_THE_LOCK);
            guest.dom.set_dying(DyingState::Dying);
            drop(tables);
            assert_eq!(call.join().expect("no panic"), neg(ESRCH), "its own tables: {is_own}");
        });
        guest.dom.set_dying(DyingState::Alive);
    }
}

/// A session found the domain alive, and goes on while another CPU begins to take everything.
#[test]
fn the_end_of_a_domain_waits_for_sessions_that_found_it_alive() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    world.hv.claim_pages(&guest.dom, 20).expect("enough is free");
    let claimed = || world.hv.frames.claimed();
    assert_ne!(claimed(), 0);
    world.hv.platform.identity();
    let tables = guest.dom.mm.tables.lock();
    thread::scope(|scope| {
        guest.dom.set_dying(DyingState::Dying);
        let end = scope.spawn(|| world.hv.relinquish_memory(&guest.dom));
        thread::sleep(WAY_TO_THE_LOCK);
        assert_ne!(claimed(), 0, "nothing is taken yet");
        drop(tables);
        assert_eq!(end.join().expect("no panic"), crate::mem::Progress::Done);
    });
    assert_eq!((claimed(), guest.dom.mm.tot_pages()), (0, 0));
}

/// A page that is no table is unpinned while another CPU gives the page back. The page is the first of a free block then, whose
/// order and link stand where the page's type stood.
#[test]
fn what_the_allocator_notes_in_a_free_page_is_no_table() {
    const ORDER: u8 = 17;
    let world = World::new(1 << (ORDER + 1));
    let dom = world.domain(1, false, 10);
    for turn in 0..6 {
        let block = world.hv.alloc_frames(ORDER, 64).expect("half of all");
        assert!(world.hv.assign(&dom, &[block], 1, true));
        for order in 0..ORDER {
            world.hv.frames.release(Mfn::new(block.raw() + (1 << order)), order);
        }
        let free = world.hv.frames.free_pages();
        let unpin = || {
            world.hv.platform.on_cpu(0);
            assert_eq!(world.hv.unpin_table(&dom, block), Err(MemError::Invalid));
        };
        let give_back = || {
            world.hv.platform.on_cpu(1);
            assert_eq!(world.hv.release_page(&dom, block), Ok(()));
        };
        let both: [Box<dyn FnOnce() + Send + '_>; 2] = [Box::new(unpin), Box::new(give_back)];
        play_plan(&[turn, 100], both.into());
        assert_eq!(world.hv.frames.free_pages(), free + 1, "{turn}");
        assert_eq!(world.hv.alloc_frames(ORDER, 64), Some(block), "{turn}: the block is whole again");
        world.hv.frames.release(block, ORDER);
    }
}
