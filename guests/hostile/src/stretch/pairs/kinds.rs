//! The kinds of calls. Each keeps a lock for long, makes the other CPU flush, or both.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use pvrt::space::*;
use ring_abi::evtchn::*;
use ring_abi::grant::*;
use ring_abi::guest_context::{VGCF_IN_KERNEL, VcpuGuestContext};
use ring_abi::hypercall::*;
use ring_abi::mmu::*;
use ring_abi::types::{DOMID_SELF, PAGE_SIZE};
use ring_abi::vcpu::VCPUOP_INITIALISE;

use super::super::tree::Tree;
use super::super::{FREE_SLOT, SELF, TABLE};
use super::{Act, Kind, memory};

/// Tables of a tree.
const TABLES: usize = 24;
/// Entries of a list, copies, maps, ports.
const MANY: usize = 2048;
const SOME: usize = 256;
/// Pages of a GDT.
const GDT_PAGES: usize = 14;

/// All kinds.
pub(super) fn all() -> impl Iterator<Item = Kind> {
    [
        Kind { name: "pins of 24 tables", make: pins },
        Kind { name: "new_user_baseptr", make: bases },
        Kind { name: "set_gdt", make: descriptors },
        Kind { name: "flushes", make: flushes },
        Kind { name: "mmu_update of 2,048 entries", make: updates },
        Kind { name: "lists of level 2", make: lists_of_tables },
        Kind { name: "exchanges of 2 MiB", make: memory::exchanges },
        Kind { name: "exchanges that are refused", make: memory::refused_exchanges },
        Kind { name: "reservations of 512", make: memory::reservations },
        Kind { name: "copies", make: copies },
        Kind { name: "maps", make: maps },
        Kind { name: "ports", make: ports },
        Kind { name: "contexts", make: contexts },
    ]
    .into_iter()
}

/// Whether the next call does or undoes.
pub(super) fn alternating(mut act: impl FnMut(bool) -> i64 + 'static) -> Option<Act> {
    let mut is_done = false;
    Some(Box::new(move || {
        is_done = !is_done;
        act(is_done)
    }))
}

fn updates() -> Option<Act> {
    let scratch = Scratch::new(1);
    let (at, own) = (scratch.entry_address(0), scratch.mfn(0) << 12 | RW);
    let list: Vec<MmuUpdate> =
        (0..MANY).map(|n| MmuUpdate { ptr: at, val: if n % 2 == 0 { own } else { 0 } }).collect();
    core::mem::forget(scratch);
    Some(Box::new(move || call(__HYPERVISOR_MMU_UPDATE, [list.as_ptr() as u64, MANY as u64, 0, SELF, 0])))
}

fn pins() -> Option<Act> {
    let tree = Tree::new(TABLES)?;
    alternating(move |pin| {
        let l3 = tree.frame(tree.l3());
        extended(if pin { MMUEXT_PIN_L3_TABLE } else { MMUEXT_UNPIN_TABLE }, l3, 0)
    })
}

fn bases() -> Option<Act> {
    let tree = Tree::new(TABLES)?;
    let l4 = tree.with_kernel();
    core::mem::forget(tree);
    alternating(move |to| extended(MMUEXT_NEW_USER_BASEPTR, if to { l4 } else { 0 }, 0))
}

fn lists_of_tables() -> Option<Act> {
    const LISTS: usize = 16;
    const EACH: usize = 8;
    let tree = Tree::new(4)?;
    let scratch = Scratch::new(1);
    let l2 = tables(scratch.at(0))[2] << 12;
    let requests: Vec<MmuUpdate> = (0..LISTS * EACH)
        .map(|n| {
            let ptr = l2 + (FREE_SLOT + n as u64 / 2 % 4) * 8;
            let val = if n % 2 == 0 { tree.frame(tree.l1_at(n / 2 % 4)) << 12 | TABLE } else { 0 };
            MmuUpdate { ptr, val }
        })
        .collect();
    core::mem::forget((tree, scratch));
    let mut calls: Vec<MulticallEntry> = requests
        .chunks(EACH)
        .map(|list| entry_of(__HYPERVISOR_MMU_UPDATE, [list.as_ptr() as u64, EACH as u64, 0, SELF]))
        .collect();
    core::mem::forget(requests);
    Some(Box::new(move || multicall(&mut calls)))
}

fn entry_of(number: u32, args: [u64; 4]) -> MulticallEntry {
    let [a, b, c, d] = args;
    MulticallEntry { op: number.into(), result: 0, args: [a, b, c, d, 0, 0] }
}

/// Makes a multicall.
pub(super) fn multicall(calls: &mut [MulticallEntry]) -> i64 {
    call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, calls.len() as u64, 0, 0, 0])
}

fn grant(command: u32, list: u64, count: usize) -> i64 {
    call(__HYPERVISOR_GRANT_TABLE_OP, [command.into(), list, count as u64, 0, 0])
}

fn copies() -> Option<Act> {
    let me = pvrt::hypercall::event::own_domid().ok()?;
    let scratch = Scratch::new(2);
    let granted = [0, 1].map(|n| crate::ground::grant_access(me, scratch.pages.mfn(n), false).ok());
    let [Some(from), Some(to)] = granted else { return None };
    let side = |gref: u32| GnttabCopyPtr { u: gref.into(), domid: me.raw(), ..Default::default() };
    let copy = GnttabCopy {
        source: side(from.number().raw()),
        dest: side(to.number().raw()),
        len: PAGE_SIZE as u16,
        flags: GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF,
        ..Default::default()
    };
    core::mem::forget((scratch, from, to));
    let mut copies = vec![copy; SOME];
    Some(Box::new(move || grant(GNTTABOP_COPY, copies.as_mut_ptr() as u64, SOME)))
}

fn maps() -> Option<Act> {
    let me = pvrt::hypercall::event::own_domid().ok()?;
    let scratch = Scratch::new(1);
    let granted = crate::ground::grant_access(me, scratch.pages.mfn(0), false).ok()?;
    let at = scratch.at(0);
    let map = GnttabMapGrantRef {
        flags: GNTMAP_HOST_MAP,
        host_addr: at,
        r#ref: granted.number().raw(),
        dom: me.raw(),
        ..Default::default()
    };
    core::mem::forget((scratch, granted));
    let mut maps = vec![map; SOME];
    let mut unmaps = vec![GnttabUnmapGrantRef { host_addr: at, ..Default::default() }; SOME];
    alternating(move |is_map| {
        if is_map {
            return grant(GNTTABOP_MAP_GRANT_REF, maps.as_mut_ptr() as u64, SOME);
        }
        for (unmap, map) in unmaps.iter_mut().zip(&maps) {
            unmap.handle = map.handle;
        }
        grant(GNTTABOP_UNMAP_GRANT_REF, unmaps.as_mut_ptr() as u64, SOME)
    })
}

fn ports() -> Option<Act> {
    let alloc = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: DOMID_SELF, ..Default::default() };
    let mut opened = vec![alloc; SOME];
    let mut closes = vec![EvtchnClose { port: 0 }; SOME];
    let calls = |command: u32, list: u64, size: usize| -> Vec<MulticallEntry> {
        let call =
            |n| entry_of(__HYPERVISOR_EVENT_CHANNEL_OP, [command.into(), list + (n * size) as u64, 0, 0]);
        (0..SOME).map(call).collect()
    };
    let list = opened.as_mut_ptr() as u64;
    let mut opening = calls(EVTCHNOP_ALLOC_UNBOUND, list, size_of::<EvtchnAllocUnbound>());
    let list = closes.as_mut_ptr() as u64;
    let mut closing = calls(EVTCHNOP_CLOSE, list, size_of::<EvtchnClose>());
    alternating(move |is_open| {
        if is_open {
            return multicall(&mut opening);
        }
        for (close, open) in closes.iter_mut().zip(&opened) {
            close.port = open.port;
        }
        multicall(&mut closing)
    })
}

fn descriptors() -> Option<Act> {
    let scratch = Scratch::new(GDT_PAGES);
    let frames: Vec<u64> = (0..GDT_PAGES).map(|n| scratch.mfn(n)).collect();
    alternating(move |is_set| {
        // Pages that could be written meanwhile are looked at anew.
        for n in (0..GDT_PAGES).filter(|_| is_set) {
            scratch.unprotect(n);
            scratch.protect(n);
        }
        let entries = if is_set { GDT_PAGES as u64 * 512 } else { 0 };
        call(__HYPERVISOR_SET_GDT, [frames.as_ptr() as u64, entries, 0, 0, 0])
    })
}

fn flushes() -> Option<Act> {
    let operations = vec![MmuextOp { cmd: MMUEXT_TLB_FLUSH_ALL, ..MmuextOp::default() }; SOME];
    Some(Box::new(move || {
        call(__HYPERVISOR_MMUEXT_OP, [operations.as_ptr() as u64, SOME as u64, 0, SELF, 0])
    }))
}

/// Contexts for the third vCPU, which the hypervisor refuses after it has looked at their descriptors.
fn contexts() -> Option<Act> {
    let scratch = Scratch::new(GDT_PAGES);
    let mut context = Box::<VcpuGuestContext>::default();
    context.flags = VGCF_IN_KERNEL;
    for n in 0..GDT_PAGES {
        context.gdt_frames[n] = scratch.mfn(n);
    }
    context.gdt_ents = GDT_PAGES as u64 * 512;
    Some(Box::new(move || {
        for n in 0..GDT_PAGES {
            scratch.unprotect(n);
            scratch.protect(n);
        }
        let at = (&raw const *context) as u64;
        call(__HYPERVISOR_VCPU_OP, [VCPUOP_INITIALISE.into(), 2, at, 0, 0])
    }))
}
