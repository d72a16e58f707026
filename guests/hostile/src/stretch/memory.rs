//! Calls that give memory back, take it, and exchange it, in small and large extents.

use alloc::vec;
use alloc::vec::Vec;

use pvrt::mem::Pages;
use pvrt::println;
use pvrt::space::*;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::types::PAGE_SIZE;

use super::case;
use crate::memory::reservation;

/// The cases.
pub(super) fn memory() {
    const COUNT: usize = 2048;
    let Ok(pages) = Pages::zeroed(COUNT) else { return println!("stretch: no memory to give back") };
    let mut frames: Vec<u64> = (0..COUNT).map(|n| pages.mfn(n).raw()).collect();
    let numbers: Vec<u64> = (0..COUNT).map(|n| pages.pfn(n).raw()).collect();
    for n in 0..COUNT {
        map((pages.va() + n * PAGE_SIZE) as u64, 0);
    }
    // These pages are no longer mapped, so this kernel must never use or free them.
    core::mem::forget(pages);
    let memory = |command: u32, arg: &mut XenMemoryReservation| {
        call(__HYPERVISOR_MEMORY_OP, [command.into(), (&raw mut *arg) as u64, 0, 0, 0])
    };
    let list = frames.as_mut_ptr() as u64;
    case("decrease_reservation by 2,048", || {
        memory(XENMEM_DECREASE_RESERVATION, &mut reservation(list, COUNT as u64, 0))
    });
    let mut out = numbers.clone();
    let at = out.as_mut_ptr() as u64;
    case("populate_physmap of 2,048", || {
        memory(XENMEM_POPULATE_PHYSMAP, &mut reservation(at, COUNT as u64, 0))
    });
    let exchange = |list: u64, (count, order): (u64, u32), at: u64, (places, out_order): (u64, u32)| {
        let mut arg = XenMemoryExchange {
            r#in: reservation(list, count, order),
            out: reservation(at, places, out_order),
            nr_exchanged: 0,
        };
        call(__HYPERVISOR_MEMORY_OP, [XENMEM_EXCHANGE.into(), (&raw mut arg) as u64, 0, 0, 0])
    };
    let mut place = numbers.clone();
    case("exchange of 2,048 for as many", || {
        exchange(at, (COUNT as u64, 0), place.as_mut_ptr() as u64, (COUNT as u64, 0))
    });
    let mut large = vec![numbers[0]; COUNT / 512];
    for (n, place) in large.iter_mut().enumerate() {
        *place = numbers[n * 512];
    }
    case("exchange of 2,048 for extents of 2 MiB", || {
        exchange(
            place.as_mut_ptr() as u64,
            (COUNT as u64, 0),
            large.as_mut_ptr() as u64,
            (COUNT as u64 / 512, 9),
        )
    });
    case("exchange of extents of 2 MiB for as many pages", || {
        exchange(
            large.as_mut_ptr() as u64,
            (COUNT as u64 / 512, 9),
            place.as_mut_ptr() as u64,
            (COUNT as u64, 0),
        )
    });
    for (n, pfn) in numbers.iter().enumerate().step_by(512) {
        large[n / 512] = *pfn;
    }
    exchange(
        place.as_mut_ptr() as u64,
        (COUNT as u64, 0),
        large.as_mut_ptr() as u64,
        (COUNT as u64 / 512, 9),
    );
    case("decrease_reservation by extents of 2 MiB", || {
        memory(
            XENMEM_DECREASE_RESERVATION,
            &mut reservation(large.as_mut_ptr() as u64, COUNT as u64 / 512, 9),
        )
    });
    for (n, place) in large.iter_mut().enumerate() {
        *place = numbers[n * 512];
    }
    case("populate_physmap of extents of 2 MiB", || {
        memory(XENMEM_POPULATE_PHYSMAP, &mut reservation(large.as_mut_ptr() as u64, COUNT as u64 / 512, 9))
    });
    case("decrease_reservation of 60,000 frames that are not there", || {
        let bad = vec![u64::MAX >> 13; 60_000];
        memory(XENMEM_DECREASE_RESERVATION, &mut reservation(bad.as_ptr() as u64, 60_000, 0))
    });
}
