//! Page tables whose entries hold the last references on their pages: when such a table is released, all its
//! pages are freed.

use alloc::vec::Vec;

use pvrt::mem::Pages;
use pvrt::println;
use pvrt::probe;
use pvrt::space::*;
use ring_abi::hypercall::*;
use ring_abi::memory::XENMEM_DECREASE_RESERVATION;
use ring_abi::mmu::*;
use ring_abi::types::PAGE_SIZE;

use super::{FREE_SLOT, SELF, TABLE, case};
use crate::memory::reservation;

/// Tables that one multicall releases.
const TABLES: usize = 8;

/// Runs all cases.
pub(super) fn run() {
    let Some(table) = l1_of_last_references() else {
        return println!("stretch: no memory for last references");
    };
    case("unpin of an L1 that holds the last references", || {
        extended(MMUEXT_UNPIN_TABLE, table.mfn(0).raw(), 0)
    });
    let tables: Vec<Pages> = (0..TABLES).map_while(|_| l1_of_last_references()).collect();
    let scratch = Scratch::new(1);
    let l2 = pvrt::space::tables(scratch.at(0))[2] << 12;
    let place = |n: usize| l2 + (FREE_SLOT + n as u64) * 8;
    for (n, table) in tables.iter().enumerate() {
        update(place(n), table.mfn(0).raw() << 12 | TABLE);
        extended(MMUEXT_UNPIN_TABLE, table.mfn(0).raw(), 0);
    }
    let requests: Vec<MmuUpdate> = (0..tables.len()).map(|n| MmuUpdate { ptr: place(n), val: 0 }).collect();
    let mut calls: Vec<MulticallEntry> = requests
        .iter()
        .map(|request| MulticallEntry {
            op: __HYPERVISOR_MMU_UPDATE.into(),
            result: 0,
            args: [core::ptr::from_ref(request) as u64, 1, 0, SELF, 0, 0],
        })
        .collect();
    case("a multicall of mmu_update that give eight such up", || {
        call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, calls.len() as u64, 0, 0, 0])
    });
}

/// Makes a pinned L1 that holds the only references on 512 pages, which this guest has given back. `None`: no memory.
fn l1_of_last_references() -> Option<Pages> {
    let pages = Pages::zeroed(512).ok()?;
    let table = Pages::zeroed(1).ok()?;
    let at = table.va() as u64;
    let frames: Vec<u64> = (0..512).map(|n| pages.mfn(n).raw()).collect();
    for (slot, frame) in frames.iter().enumerate() {
        probe::write(at + slot as u64 * 8, frame << 12 | RW | pvrt::hypercall::mmu::pte::US);
    }
    map(at, table.mfn(0).raw() << 12 | RO);
    let pinned = extended(MMUEXT_PIN_L1_TABLE, table.mfn(0).raw(), 0);
    if pinned != 0 {
        println!("stretch: no table of last references: {pinned}");
        return None;
    }
    for n in 0..512 {
        map((pages.va() + n * PAGE_SIZE) as u64, 0);
    }
    // These pages are no longer mapped, so this kernel must never use or free them.
    core::mem::forget(pages);
    let mut arg = reservation(frames.as_ptr() as u64, 512, 0);
    (op(__HYPERVISOR_MEMORY_OP, XENMEM_DECREASE_RESERVATION, &mut arg) == 512).then_some(table)
}
