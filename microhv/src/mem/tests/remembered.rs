//! Guests that use what a processor still remembers of their page tables: the model of `testing::tlb` ends a test at
//! the moment at which that would do harm.

use ring_abi::mmu::{MMUEXT_PIN_L1_TABLE, MmuextOp};
use ring_abi::types::{DOMID_SELF, Mfn};
use zerocopy::IntoBytes;

use super::calls::{ARGS, Guest};
use super::{World, entry};
use crate::hypercall::{mmu, mmuext};
use crate::mem::pte::{P, RW, US};
use crate::platform::{Platform, Settled};

const SELF: u64 = DOMID_SELF as u64;
/// Where the tests map a page.
const VA: u64 = 0x30_000;

fn map(world: &World, guest: &Guest, va: u64, new: u64) -> i64 {
    world.call(guest, mmu::update_va_mapping, [va, new, 0, 0])
}

fn pin_l1(world: &World, guest: &Guest, mfn: Mfn) -> i64 {
    world.write(
        guest,
        0,
        MmuextOp { cmd: MMUEXT_PIN_L1_TABLE, _pad0: 0, arg1: mfn.raw(), arg2: 0 }.as_bytes(),
    );
    world.call(guest, mmuext::mmuext_op, [ARGS, 1, 0, SELF])
}

/// The tables map a page, the guest writes there, and the page is mapped no more: the processor remembers it.
#[test]
fn a_page_that_becomes_a_table_is_forgotten() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [page] = world.pages(&guest.dom);
    assert_eq!(map(&world, &guest, VA, entry(page, P | RW | US)), 0);
    world.hv.platform.copy_to_guest(Settled::new(), VA, &[0; 8]).expect("mapped");
    assert_eq!(map(&world, &guest, VA, 0), 0);
    assert!(world.hv.platform.remembered().iter().any(|leaf| leaf.va == VA && leaf.frame == page));
    assert_eq!(pin_l1(&world, &guest, page), 0);
    assert!(!world.hv.platform.remembered().iter().any(|leaf| leaf.va == VA));
}
