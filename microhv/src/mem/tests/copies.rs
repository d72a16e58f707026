//! Guests that run on copies of their level 4 tables, as on a CPU with Meltdown: no CPU goes on with an old copy.

use ring_abi::mmu::{MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE};
use ring_abi::types::{DOMID_SELF, Mfn};

use super::guest::{Guest, SELF, at};
use super::remembered::on_cpu;
use super::{World, entry};
use crate::frames::pte::{P, RW, US};
use crate::testing::wild;

/// A slot that the guest's tables leave empty, behind the hypervisor's.
const SLOT: usize = 300;

/// CPUs run on copies, and CPUs 1 and 0 run a guest on the same tables.
fn on_two_cpus() -> (World, Guest) {
    let world = World::new(256);
    world.hv.platform.run_on_copies();
    let guest = world.guest(1, false);
    on_cpu(&world, 1, &guest);
    on_cpu(&world, 0, &guest);
    (world, guest)
}

/// What the guest's L4 names in a slot, as any CPU's guest finds it: by a violation if that is not so.
fn set(world: &World, guest: &Guest, slot: usize, new: u64) {
    assert_eq!(world.mmu(guest, &[(at(guest.tables[0], slot), new)], SELF), 0);
    assert_eq!(world.peek(guest.tables[0], slot) & !US, new);
    world.check();
}

#[test]
fn an_entry_that_changes_is_changed_for_all_cpus() {
    let (world, guest) = on_two_cpus();
    let [one, other] = world.pages(&guest.dom);
    for (slot, new) in [
        (SLOT, entry(one, P | RW)),
        (SLOT, entry(other, P | RW)),
        (1, entry(one, P | RW)),
        // A bit that needs no look at the frame.
        (1, entry(one, P | RW | 0x200)),
        (1, 0),
        (SLOT, 0),
    ] {
        set(&world, &guest, slot, new);
    }
}

/// A CPU keeps the copy of a table that it has no longer loaded. The frame becomes a page, and another table.
#[test]
fn a_frame_that_becomes_a_table_again_is_copied_again() {
    let (world, guest) = on_two_cpus();
    let [l4, l3] = world.pages(&guest.dom);
    let ext = |cmd| world.ext(&guest, &[(cmd, l4.raw(), 0)], DOMID_SELF);
    let run_on = |cpu: usize, l4: Mfn| {
        world.hv.platform.on_cpu(cpu);
        world.hv.platform.switch_to(l4);
        world.hv.platform.settle_tlb();
    };
    for new in [0, entry(l3, P | RW)] {
        world.poke(l4, SLOT, new);
        world.hv.platform.on_cpu(0);
        assert_eq!(ext(MMUEXT_PIN_L4_TABLE), 0);
        for cpu in [1, 0] {
            run_on(cpu, l4);
            run_on(cpu, guest.tables[0]);
        }
        assert_eq!(ext(MMUEXT_UNPIN_TABLE), 0);
        world.check();
    }
}

/// Guests call as they like.
#[test]
fn no_calls_leave_a_cpu_with_an_old_copy() {
    for seed in 0..30 {
        let steps = wild::decode(&wild::bytes_of(seed, 4000), wild::MOST_STEPS);
        for cpus in [1, 5] {
            let found = wild::play_on_copies(cpus, &steps);
            assert!(found.is_none(), "seed {seed}, {cpus} CPUs: {found:#?}");
        }
    }
}
