//! Calls that are short by themselves, eight of them in a multicall.
#![allow(unsafe_code)] // the fields of a context

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use pvrt::mem::Pages;
use pvrt::println;
use pvrt::space::*;
use ring_abi::grant::*;
use ring_abi::guest_context::{VGCF_IN_KERNEL, VcpuGuestContext};
use ring_abi::hypercall::*;
use ring_abi::memory::{XENMEM_DECREASE_RESERVATION, XENMEM_EXCHANGE, XenMemoryExchange};
use ring_abi::types::PAGE_SIZE;
use ring_abi::vcpu::VCPUOP_INITIALISE;

use super::case;
use crate::memory::reservation;

/// Calls of a multicall between two checks for a pending interrupt.
const CALLS: usize = 8;
/// Pages of a GDT.
const GDT_PAGES: usize = 14;
/// Unmaps of one call between two checks for a pending interrupt.
const UNMAPS: usize = 32;
/// Copies and maps of one call between two checks for a pending interrupt.
const EACH: usize = 8;

/// Runs all cases.
pub(super) fn run() {
    exchanges();
    copies_and_maps();
    contexts();
    unmaps();
}

/// Makes a multicall of calls with these arguments.
fn multicall(number: u32, args: &[[u64; 6]]) -> i64 {
    let mut calls: Vec<MulticallEntry> =
        args.iter().map(|&args| MulticallEntry { op: number.into(), result: 0, args }).collect();
    let got = call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, calls.len() as u64, 0, 0, 0]);
    if got == 0 { calls.last().map_or(0, |last| last.result as i64) } else { got }
}

/// The arguments for calls of a command, one call for each structure.
fn each<T>(command: u32, structures: &mut [T]) -> Vec<[u64; 6]> {
    structures.iter_mut().map(|arg| [command.into(), (&raw mut *arg) as u64, 0, 0, 0, 0]).collect()
}

/// The arguments for calls of a command, each with `length` of the structures.
fn lists<T>(command: u32, structures: &mut [T], length: usize) -> Vec<[u64; 6]> {
    let lists = structures.chunks_mut(length);
    lists.map(|list| [command.into(), list.as_mut_ptr() as u64, list.len() as u64, 0, 0, 0]).collect()
}

/// Makes exchanges that the hypervisor refuses for the last of their frames.
fn exchanges() {
    const COUNT: usize = 512;
    let Ok(pages) = Pages::zeroed(COUNT) else { return println!("stretch: no memory for exchanges") };
    let mut frames: Vec<u64> = (0..COUNT).map(|n| pages.mfn(n).raw()).collect();
    for n in 0..COUNT - 1 {
        map((pages.va() + n * PAGE_SIZE) as u64, 0);
    }
    let mut place = 0u64;
    let exchange = XenMemoryExchange {
        r#in: reservation(frames.as_mut_ptr() as u64, COUNT as u64, 0),
        out: reservation((&raw mut place) as u64, 1, 9),
        nr_exchanged: 0,
    };
    let mut exchanges = [exchange; CALLS];
    let calls = each(XENMEM_EXCHANGE, &mut exchanges);
    case("a multicall of 8 exchanges whose last frame is mapped", || {
        multicall(__HYPERVISOR_MEMORY_OP, &calls)
    });
    frames[COUNT - 1] = frames[0];
    case("an exchange that names a frame twice", || multicall(__HYPERVISOR_MEMORY_OP, &calls[..1]));
    // Most of the pages are no longer mapped, so no code may use them again.
    core::mem::forget(pages);
}

/// Makes calls with lists of copies and of maps that are too short for a check within a call.
fn copies_and_maps() {
    let Ok(pages) = Pages::zeroed(3) else { return println!("stretch: no memory for copies") };
    let Ok(me) = pvrt::hypercall::event::own_domid() else { return };
    let grant = |n: usize| crate::ground::grant_access(me, pages.mfn(n), false);
    let (Ok(from), Ok(to)) = (grant(0), grant(1)) else {
        return println!("stretch: no grants to copy between");
    };
    let side = |gref: u32| GnttabCopyPtr { u: gref.into(), domid: me.raw(), ..Default::default() };
    let copy = GnttabCopy {
        source: side(from.number().raw()),
        dest: side(to.number().raw()),
        len: PAGE_SIZE as u16,
        flags: GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF,
        ..Default::default()
    };
    let mut copies = vec![copy; CALLS * EACH];
    let calls = lists(GNTTABOP_COPY, &mut copies, EACH);
    case("a multicall of 8 lists of 8 copies between grants", || {
        multicall(__HYPERVISOR_GRANT_TABLE_OP, &calls)
    });
    let map = GnttabMapGrantRef {
        flags: GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP,
        host_addr: (pages.va() + 2 * PAGE_SIZE) as u64,
        r#ref: from.number().raw(),
        dom: me.raw(),
        ..Default::default()
    };
    let mut maps = vec![map; CALLS * EACH];
    let calls = lists(GNTTABOP_MAP_GRANT_REF, &mut maps, EACH);
    case("a multicall of 8 lists of 8 maps for host and device", || {
        multicall(__HYPERVISOR_GRANT_TABLE_OP, &calls)
    });
    if copies.iter().any(|copy| copy.status != GNTST_OKAY) || maps.iter().any(|map| map.status != GNTST_OKAY)
    {
        println!("stretch: a copy or a map was refused");
    }
    core::mem::forget((pages, from, to));
}

/// Gives a vCPU contexts whose GDT pages were never checked; the hypervisor refuses each context at the last
/// check.
fn contexts() {
    let scratch = Scratch::new(CALLS * GDT_PAGES);
    for n in 0..CALLS * GDT_PAGES {
        scratch.protect(n);
    }
    let contexts: Vec<Box<VcpuGuestContext>> = (0..CALLS)
        .map(|n| {
            let mut context = Box::<VcpuGuestContext>::default();
            context.flags = VGCF_IN_KERNEL;
            for page in 0..GDT_PAGES {
                context.gdt_frames[page] = scratch.mfn(n * GDT_PAGES + page);
            }
            context.gdt_ents = GDT_PAGES as u64 * 512;
            context
        })
        .collect();
    let args: Vec<[u64; 6]> = contexts
        .iter()
        .map(|context| [VCPUOP_INITIALISE.into(), 1, (&raw const **context) as u64, 0, 0, 0])
        .collect();
    case("initialise with descriptors that were never checked", || {
        multicall(__HYPERVISOR_VCPU_OP, &args[..1])
    });
    case("seven more in a multicall", || multicall(__HYPERVISOR_VCPU_OP, &args[1..]));
    core::mem::forget(scratch);
}

/// Ends mappings that hold the last references on their pages, by lists that are too short for a check within
/// a call.
fn unmaps() {
    const COUNT: usize = CALLS * UNMAPS;
    let (Ok(pages), Ok(places)) = (Pages::zeroed(COUNT), Pages::zeroed(COUNT)) else {
        return println!("stretch: no memory for last mappings");
    };
    let Ok(me) = pvrt::hypercall::event::own_domid() else { return };
    let at = |pages: &Pages, n: usize| (pages.va() + n * PAGE_SIZE) as u64;
    let mut unmaps = Vec::new();
    let mut frames = Vec::new();
    for n in 0..COUNT {
        let Ok(granted) = crate::ground::grant_access(me, pages.mfn(n), false) else {
            return println!("stretch: no grant {n}");
        };
        let mut arg = GnttabMapGrantRef {
            flags: GNTMAP_HOST_MAP,
            host_addr: at(&places, n),
            r#ref: granted.number().raw(),
            dom: me.raw(),
            ..Default::default()
        };
        one(__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_MAP_GRANT_REF, &mut arg);
        if arg.status != GNTST_OKAY {
            return println!("stretch: no mapping {n}: {}", arg.status);
        }
        core::mem::forget(granted);
        frames.push(pages.mfn(n).raw());
        unmaps.push(GnttabUnmapGrantRef {
            handle: arg.handle,
            host_addr: arg.host_addr,
            ..Default::default()
        });
    }
    for n in 0..COUNT {
        map(at(&pages, n), 0);
    }
    let mut arg = reservation(frames.as_ptr() as u64, COUNT as u64, 0);
    let given = op(__HYPERVISOR_MEMORY_OP, XENMEM_DECREASE_RESERVATION, &mut arg);
    if given != COUNT as i64 {
        return println!("stretch: gave back {given}");
    }
    core::mem::forget((pages, places));
    let args = lists(GNTTABOP_UNMAP_GRANT_REF, &mut unmaps, UNMAPS);
    case("a multicall of 8 ends of 32 mappings that hold the last references", || {
        multicall(__HYPERVISOR_GRANT_TABLE_OP, &args)
    });
}
