//! What another CPU does at the same moment: each CPU is a thread.

use core::time::Duration;
use std::thread;

use ring_abi::errno::ESRCH;
use ring_abi::mmu::MmuUpdate;
use ring_abi::types::DOMID_SELF;
use zerocopy::IntoBytes;

use super::World;
use super::guest::{ARGS, at, neg};
use crate::domain::DyingState;
use crate::hypercall::mmu;

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
