//! Calls that are short by themselves, eight of them in a multicall.
#![allow(unsafe_code)] // the fields of a context

use alloc::boxed::Box;
use alloc::vec::Vec;

use pvrt::mem::Pages;
use pvrt::println;
use pvrt::space::*;
use ring_abi::grant::*;
use ring_abi::guest_context::{VGCF_IN_KERNEL, VcpuGuestContext};
use ring_abi::hypercall::*;
use ring_abi::memory::XENMEM_DECREASE_RESERVATION;
use ring_abi::types::PAGE_SIZE;
use ring_abi::vcpu::VCPUOP_INITIALISE;

use super::case;
use crate::memory::reservation;

/// Calls that a multicall makes between two looks.
const CALLS: usize = 8;
/// Pages of a GDT.
const GDT_PAGES: usize = 14;
/// Unmaps that one call makes between two looks.
const UNMAPS: usize = 32;

/// Runs all of them.
pub(super) fn run() {
    contexts();
    unmaps();
}

/// A multicall of calls with these arguments.
fn multicall(number: u32, args: &[[u64; 6]]) -> i64 {
    let mut calls: Vec<MulticallEntry> =
        args.iter().map(|&args| MulticallEntry { op: number.into(), result: 0, args }).collect();
    let got = call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, calls.len() as u64, 0, 0, 0]);
    if got == 0 { calls.last().map_or(0, |last| last.result as i64) } else { got }
}

/// Contexts for a vCPU that has none, each with descriptors that were never checked, and refused at its end.
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

/// Mappings that hold the last references on their pages, ended by lists so short that they do not look.
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
    let args: Vec<[u64; 6]> = unmaps
        .chunks_mut(UNMAPS)
        .map(|list| [GNTTABOP_UNMAP_GRANT_REF.into(), list.as_mut_ptr() as u64, UNMAPS as u64, 0, 0, 0])
        .collect();
    case("a multicall of 8 ends of 32 mappings that hold the last references", || {
        multicall(__HYPERVISOR_GRANT_TABLE_OP, &args)
    });
}
