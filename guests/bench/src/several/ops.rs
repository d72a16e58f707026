//! The operations of a storm.
#![allow(unsafe_code)] // raw hypercalls and page-table entries

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::hint::black_box;

use pvrt::grant::Granted;
use pvrt::hypercall::mmu::{mmu_update, mmuext_op, pte, update_va_mapping};
use pvrt::hypercall::{event, raw, vcpu};
use pvrt::mem::{Pages, WindowPages};
use ring_abi::grant::*;
use ring_abi::guest_context::TrapInfo;
use ring_abi::hypercall::{__HYPERVISOR_GRANT_TABLE_OP, __HYPERVISOR_XEN_VERSION};
use ring_abi::mmu::*;
use ring_abi::segment::FLAT_KERNEL_CS;
use ring_abi::types::{DomId, PAGE_SIZE};
use ring_abi::version::XENVER_VERSION;

use super::peers::Peer;
use crate::{asm, polling};

/// One operation, done once a call.
pub(super) type Operation = Box<dyn FnMut() + Send>;

/// Pages that are faulted in one after another, and entries in a list of changes.
const PAGES: usize = 64;
const WRITABLE: u64 = pte::P | pte::RW | pte::A | pte::D;
/// Turns of the loop that stands for an operation and never leaves the guest.
const TURNS: u64 = 300;

/// Gives the calling vCPU this image's handler of page faults.
///
/// # Errors
/// The hypervisor refuses the table.
pub(super) fn install() -> Result<(), String> {
    let address = asm::handlers().page_fault;
    let entry = TrapInfo { vector: 14, flags: 3, cs: FLAT_KERNEL_CS, address, ..TrapInfo::default() };
    // SAFETY: the handler keeps to its frame.
    unsafe { vcpu::set_trap_table(&[entry, TrapInfo::default()]) }.map_err(|errno| format!("traps: {errno}"))
}

/// The operation `kind` for vCPU `vcpu`.
///
/// # Errors
/// There is no such operation, or something for it is missing.
pub(super) fn find(kind: &str, vcpu: u32, peer: Option<&Peer>) -> Result<Operation, String> {
    match kind {
        "compute" => Ok(Box::new(|| {
            (0..TURNS).for_each(|turn| {
                black_box(turn);
            })
        })),
        "hypercall" => Ok(Box::new(|| {
            // SAFETY: no memory is touched.
            unsafe { raw(__HYPERVISOR_XEN_VERSION, [u64::from(XENVER_VERSION), 0, 0, 0, 0]) };
        })),
        "flush" => Ok(Box::new(|| flush(MMUEXT_TLB_FLUSH_LOCAL))),
        "event" => events(vcpu),
        "table" => tables(1, false),
        "tables" => tables(PAGES, false),
        "pin" => tables(PAGES, true),
        "fault" => faults(),
        "grant" => grants(None),
        "copy" => copies(None),
        "peer-grant" => grants(Some(peer.ok_or("no peer")?)),
        "peer-copy" => copies(Some(peer.ok_or("no peer")?)),
        _ => Err(format!("there is no operation {kind}")),
    }
}

fn flush(cmd: u32) {
    // SAFETY: a flush changes no mapping.
    let result = unsafe { mmuext_op(&[MmuextOp { cmd, ..MmuextOp::default() }], DomId::SELF) };
    assert!(result.is_ok(), "flush: {result:?}");
}

/// An event to the own vCPU, taken by a look.
fn events(vcpu: u32) -> Result<Operation, String> {
    let port = event::bind_ipi(vcpu).map_err(|errno| format!("port: {errno}"))?;
    let vcpu = vcpu as usize;
    Ok(Box::new(move || {
        polling::take(port, vcpu);
        polling::send(port);
    }))
}

/// Changes `count` entries of a table that no address space has, to and fro; with `pins` the full table is pinned and
/// unpinned instead.
fn tables(count: usize, pins: bool) -> Result<Operation, String> {
    let pages = pages(2)?;
    let (table, frame) = (pages.va() as u64, pages.mfn(0).maddr().raw());
    let entry = pages.mfn(1).maddr().raw() | WRITABLE;
    if pins {
        (0..count).for_each(|index| pages.page(0).store_u64(index * 8, entry));
    }
    // SAFETY: the page is this function's own, and it is not written while it is read-only.
    unsafe { update_va_mapping(table, frame | pte::P | pte::A, UVMF_INVLPG) }
        .map_err(|errno| format!("read-only page: {errno}"))?;
    let pin = move |cmd: u32| {
        let op = MmuextOp { cmd, arg1: frame >> 12, ..MmuextOp::default() };
        // SAFETY: the table is in nobody's address space.
        let result = unsafe { mmuext_op(&[op], DomId::SELF) };
        assert!(result.is_ok(), "pin: {result:?}");
    };
    // The pages live as long as the domain.
    core::mem::forget(pages);
    if pins {
        return Ok(Box::new(move || {
            pin(MMUEXT_PIN_L1_TABLE);
            pin(MMUEXT_UNPIN_TABLE);
        }));
    }
    pin(MMUEXT_PIN_L1_TABLE);
    let request = |index: usize, val| MmuUpdate { ptr: frame + index as u64 * 8, val };
    let lists = [entry, 0].map(|val| (0..count).map(|index| request(index, val)).collect::<Vec<_>>());
    let mut turn = 1;
    Ok(Box::new(move || {
        turn ^= 1;
        // SAFETY: the table is in nobody's address space.
        let result = unsafe { mmu_update(&lists[turn], DomId::SELF) };
        assert!(result.is_ok(), "update: {result:?}");
    }))
}

/// Touches a page without a mapping, and maps it, one after another; when all are mapped they are unmapped in one list.
fn faults() -> Result<Operation, String> {
    let pages = pages(PAGES)?;
    let window = WindowPages::take(PAGES).ok_or("no window")?;
    let at = move |index: usize| (window.va() + index * PAGE_SIZE) as u64;
    let frames: Vec<u64> = (0..PAGES).map(|index| pages.mfn(index).maddr().raw()).collect();
    core::mem::forget(pages);
    let mut next = 0;
    Ok(Box::new(move || {
        if next == PAGES {
            for index in 0..PAGES {
                // SAFETY: a window page of this function's own.
                let result = unsafe { update_va_mapping(at(index), 0, UVMF_NONE) };
                assert!(result.is_ok(), "unmap: {result:?}");
            }
            flush(MMUEXT_TLB_FLUSH_LOCAL);
            next = 0;
        }
        asm::page_fault(at(next));
        // SAFETY: as above.
        let result = unsafe { update_va_mapping(at(next), frames[next] | WRITABLE, UVMF_NONE) };
        assert!(result.is_ok(), "map: {result:?}");
        next += 1;
    }))
}

/// Whose grant is used: the peer's, or one to this very domain.
fn lender(peer: Option<&Peer>) -> Result<(u16, u32), String> {
    if let Some(peer) = peer {
        return Ok((peer.dom.raw(), peer.gref));
    }
    let own = event::own_domid().map_err(|errno| format!("own number: {errno}"))?;
    let lent = Granted::whole(pages(1)?, own, false).map_err(|errno| format!("grant: {errno}"))?;
    let gref = lent.gref(0).raw();
    core::mem::forget(lent);
    Ok((own.raw(), gref))
}

/// Maps a grant and unmaps it.
fn grants(peer: Option<&Peer>) -> Result<Operation, String> {
    let (dom, gref) = lender(peer)?;
    let window = WindowPages::take(1).ok_or("no window")?;
    Ok(Box::new(move || {
        let mut map = GnttabMapGrantRef {
            host_addr: window.va() as u64,
            flags: GNTMAP_HOST_MAP,
            r#ref: gref,
            dom,
            ..Default::default()
        };
        grant_op(GNTTABOP_MAP_GRANT_REF, &mut map);
        let mut unmap =
            GnttabUnmapGrantRef { host_addr: map.host_addr, handle: map.handle, ..Default::default() };
        grant_op(GNTTABOP_UNMAP_GRANT_REF, &mut unmap);
        assert!(map.status == GNTST_OKAY && unmap.status == GNTST_OKAY, "{map:?} {unmap:?}");
    }))
}

/// Copies 64 bytes of a granted page to a page of the own.
fn copies(peer: Option<&Peer>) -> Result<Operation, String> {
    let (dom, gref) = lender(peer)?;
    let pages = pages(1)?;
    let mut copy = GnttabCopy {
        source: GnttabCopyPtr { u: u64::from(gref), domid: dom, ..Default::default() },
        dest: GnttabCopyPtr { u: pages.mfn(0).raw(), domid: DomId::SELF.raw(), ..Default::default() },
        len: 64,
        flags: GNTCOPY_SOURCE_GREF,
        ..Default::default()
    };
    core::mem::forget(pages);
    Ok(Box::new(move || {
        grant_op(GNTTABOP_COPY, &mut copy);
        assert!(copy.status == GNTST_OKAY, "{copy:?}");
    }))
}

fn grant_op<T>(cmd: u32, arg: &mut T) {
    // SAFETY: mappings go to a window page of the caller's, copies to a page of the caller's.
    unsafe { raw(__HYPERVISOR_GRANT_TABLE_OP, [u64::from(cmd), (&raw mut *arg) as u64, 1, 0, 0]) };
}

fn pages(count: usize) -> Result<Pages, String> {
    Pages::zeroed(count).map_err(|_| "no memory".into())
}
