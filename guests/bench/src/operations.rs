//! Every operation that is timed.
//!
//! Hypercalls are issued raw, so that all ticks belong to the hypervisor or to the instruction itself.
#![allow(unsafe_code)] // raw hypercalls and page-table entries

use alloc::vec;
use alloc::vec::Vec;
use pvrt::event::Port;
use pvrt::grant::Granted as Lent;
use pvrt::hypercall::mmu::{mmuext_op, pte, update_va_mapping};
use pvrt::hypercall::{event, raw, vcpu};
use pvrt::mem::{Pages, WindowPages};
use ring_abi::evtchn::{EVTCHNOP_SEND, EvtchnSend};
use ring_abi::grant::*;
use ring_abi::guest_context::TrapInfo;
use ring_abi::hypercall::*;
use ring_abi::mmu::*;
use ring_abi::segment::FLAT_KERNEL_CS;
use ring_abi::shared_info::{
    EVTCHN_PENDING_OFFSET, PENDING_SEL_OFFSET, UPCALL_MASK_OFFSET, UPCALL_PENDING_OFFSET,
};
use ring_abi::types::DomId;
use ring_abi::vcpu::VCPUOP_IS_UP;
use ring_abi::version::XENVER_VERSION;

use crate::asm;
use crate::measure::{Bench, Clock, WARM_UP, report};
use crate::timers;

/// Runs all cases.
pub(crate) fn run(bench: &Bench) {
    install();
    calls(bench);
    events(bench);
    timers::run(bench);
    tables(bench);
    grants(bench);
    traps(bench);
}

/// Sets this image's own handlers.
fn install() {
    asm::set_shared(pvrt::shared_info().as_ptr() as u64);
    let handlers = asm::handlers();
    // SAFETY: the handlers keep to their frames. No segment is ever loaded, so the failsafe entry is never used.
    unsafe { vcpu::set_callbacks(handlers.upcall, handlers.upcall, handlers.syscall) }
        .expect("set_callbacks");
    let entry =
        |vector, address| TrapInfo { vector, flags: 3, cs: FLAT_KERNEL_CS, address, ..TrapInfo::default() };
    let table = [entry(3, handlers.int3), entry(14, handlers.page_fault), TrapInfo::default()];
    // SAFETY: the handlers keep to their frames.
    unsafe { vcpu::set_trap_table(&table) }.expect("set_trap_table");
}

fn calls(bench: &Bench) {
    bench.time("xen_version", || {
        // SAFETY: no memory is touched.
        unsafe { raw(__HYPERVISOR_XEN_VERSION, [u64::from(XENVER_VERSION), 0, 0, 0, 0]) };
    });
    bench.time("vcpu_is_up", || {
        // SAFETY: no memory is touched.
        unsafe { raw(__HYPERVISOR_VCPU_OP, [u64::from(VCPUOP_IS_UP), 0, 0, 0, 0]) };
    });
    let stack = asm::kernel_stack();
    bench.time("stack_switch", || {
        // SAFETY: the stack is this image's own; only entries from user mode use it.
        unsafe { raw(__HYPERVISOR_STACK_SWITCH, [0xe02b, stack, 0, 0, 0]) };
    });
    let version = MulticallEntry {
        op: u64::from(__HYPERVISOR_XEN_VERSION),
        args: [u64::from(XENVER_VERSION), 0, 0, 0, 0, 0],
        ..MulticallEntry::default()
    };
    let mut list = [version; 8];
    bench.time("multicall_8", || {
        // SAFETY: the list is this function's own.
        unsafe { raw(__HYPERVISOR_MULTICALL, [list.as_mut_ptr() as u64, 8, 0, 0, 0]) };
    });
}

fn events(bench: &Bench) {
    let port = match event::bind_ipi(0) {
        Ok(number) => Port::adopt(number),
        Err(errno) => return bench.skip("evtchn_send", errno),
    };
    let info = pvrt::shared_info();
    let arg = EvtchnSend { port: port.number().raw() };
    let send = || {
        let args = [u64::from(EVTCHNOP_SEND), (&raw const arg) as u64, 0, 0, 0];
        // SAFETY: the argument is only read.
        unsafe { raw(__HYPERVISOR_EVENT_CHANNEL_OP, args) };
    };
    let word = EVTCHN_PENDING_OFFSET + arg.port as usize / 64 * 8;
    bench.time("evtchn_send_masked", || {
        // Upcalls are masked. The pending bit is cleared before each send, as by a consumer that polls.
        info.store_u8(UPCALL_PENDING_OFFSET, 0);
        info.store_u64(PENDING_SEL_OFFSET, 0);
        info.store_u64(word, 0);
        send();
    });
    bench.time("evtchn_send_pending", send);
    info.store_u64(PENDING_SEL_OFFSET, 0);
    info.store_u64(word, 0);
    info.store_u8(UPCALL_PENDING_OFFSET, 0);
    let before = asm::upcalls();
    let mut sent = 0;
    info.store_u8(UPCALL_MASK_OFFSET, 0);
    bench.time("evtchn_self", || {
        sent += 1;
        send();
    });
    info.store_u8(UPCALL_MASK_OFFSET, 1);
    let taken = asm::upcalls() - before;
    // Events of the runtime may arrive too.
    if taken < sent {
        bench.skip("evtchn_self", ("upcalls missing", sent - taken));
    }
}

fn tables(bench: &Bench) {
    let (Ok(pages), Some(window)) = (Pages::zeroed(2), WindowPages::take(1)) else {
        return bench.skip("update_va_mapping", "no memory");
    };
    let va = window.va() as u64;
    let bits = pte::P | pte::RW | pte::A | pte::D;
    let entries = [pages.mfn(0).maddr().raw() | bits, pages.mfn(1).maddr().raw() | bits];
    for (name, flags) in [("update_va_mapping", UVMF_NONE), ("update_va_mapping_invlpg", UVMF_INVLPG)] {
        let mut turn = 0;
        bench.time(name, || {
            turn ^= 1;
            // SAFETY: the window page is this function's own, and nothing uses the mapping.
            unsafe { raw(__HYPERVISOR_UPDATE_VA_MAPPING, [va, entries[turn], flags, 0, 0]) };
        });
    }
    // SAFETY: as above.
    unsafe { update_va_mapping(va, 0, UVMF_INVLPG) }.expect("unmapping a window page");

    let flush = MmuextOp { cmd: MMUEXT_TLB_FLUSH_LOCAL, ..MmuextOp::default() };
    bench.time("tlb_flush_local", || mmuext(&flush));

    // A page table must not be mapped writable.
    let table = pages.va() as u64;
    let frame = pages.mfn(0).maddr().raw();
    // SAFETY: the page is this function's own, and it is not written while it is read-only.
    unsafe { update_va_mapping(table, frame | pte::P | pte::A, UVMF_INVLPG) }.expect("read-only page");
    let pin = MmuextOp { cmd: MMUEXT_PIN_L1_TABLE, arg1: frame >> 12, ..MmuextOp::default() };
    let unpin = MmuextOp { cmd: MMUEXT_UNPIN_TABLE, arg1: frame >> 12, ..MmuextOp::default() };
    bench.time("pin_unpin_l1", || {
        mmuext(&pin);
        mmuext(&unpin);
    });
    mmuext(&pin);
    for (name, count) in [("mmu_update_1", 1), ("mmu_update_8", 8), ("mmu_update_64", 64)] {
        updates(bench, name, count, frame, entries[1]);
    }
    mmuext(&unpin);
    // SAFETY: the mapping becomes what it was before.
    unsafe { update_va_mapping(table, frame | bits, UVMF_INVLPG) }.expect("writable page");
}

/// Times `count` requests in one call: entries of the pinned table at `frame` that map a page, and then none.
fn updates(bench: &Bench, name: &str, count: usize, frame: u64, entry: u64) {
    let request = |index: usize, val| MmuUpdate { ptr: frame + index as u64 * 8, val };
    let lists = [entry, 0].map(|val| (0..count).map(|index| request(index, val)).collect::<Vec<_>>());
    let mut turn = 1;
    let mut update = || {
        turn ^= 1;
        let args = [lists[turn].as_ptr() as u64, count as u64, 0, u64::from(DomId::SELF.raw()), 0];
        // SAFETY: the list is only read; the table is in nobody's address space.
        unsafe { raw(__HYPERVISOR_MMU_UPDATE, args) }
    };
    let failed = (0..2).filter(|_| update() != 0).count();
    if failed > 0 {
        return bench.skip(name, ("requests refused", failed));
    }
    bench.time(name, || {
        update();
    });
}

fn mmuext(op: &MmuextOp) {
    let args = [(op as *const MmuextOp) as u64, 1, 0, u64::from(DomId::SELF.raw()), 0];
    // SAFETY: the operation is only read; pinning an empty table and flushing change no mapping.
    unsafe { raw(__HYPERVISOR_MMUEXT_OP, args) };
}

/// A page granted to this very domain.
struct Granted {
    pages: Lent,
    dom: DomId,
}

fn granted() -> Result<Granted, &'static str> {
    let dom = event::own_domid().map_err(|_| "no domain number")?;
    let pages = Pages::zeroed(2).map_err(|_| "no memory")?;
    let mut pages = Lent::new(pages);
    pages.allow(dom, 0, false).map_err(|_| "no grant")?;
    Ok(Granted { pages, dom })
}

/// Names of the rows, for each version.
type Rows = [&'static str; 4];
const ROWS: Rows = ["grant_map_unmap", "grant_map_unmap_device", "grant_copy_4096", "grant_copy_64"];
const WIDE_ROWS: Rows = ["grant2_map_unmap", "grant2_map_unmap_device", "grant2_copy_4096", "grant2_copy_64"];
/// Names of the rows of many copies in one call: from grants to grants, from grants to own frames, and from own frames to
/// grants.
type BatchRows = [&'static str; 3];
const BATCH_ROWS: BatchRows = ["grant_copy_batch", "grant_copy_batch_from", "grant_copy_batch_to"];
const WIDE_BATCH_ROWS: BatchRows = ["grant2_copy_batch", "grant2_copy_batch_from", "grant2_copy_batch_to"];
/// Copies in a call.
const BATCH: usize = 32;

fn grants(bench: &Bench) {
    grants_of(bench, ROWS);
    batches(bench, BATCH_ROWS);
    match pvrt::grant::set_version(2) {
        Ok(()) => {
            grants_of(bench, WIDE_ROWS);
            batches(bench, WIDE_BATCH_ROWS);
        }
        Err(errno) => bench.skip("grant2", errno),
    }
    if let Err(errno) = pvrt::grant::set_version(1) {
        bench.skip("grant", errno);
    }
}

fn grants_of(bench: &Bench, [map_unmap, map_unmap_device, copy_page, copy_64]: Rows) {
    let granted = match granted() {
        Ok(granted) => granted,
        Err(why) => return bench.skip("grant", why),
    };
    let gref = granted.pages.gref(0).raw();
    let Some(window) = WindowPages::take(1) else { return bench.skip("grant", "no window") };
    let mut status = 0;
    bench.time(map_unmap, || {
        let mut map = GnttabMapGrantRef {
            host_addr: window.va() as u64,
            flags: GNTMAP_HOST_MAP,
            r#ref: gref,
            dom: granted.dom.raw(),
            ..Default::default()
        };
        grant_op(GNTTABOP_MAP_GRANT_REF, &mut map);
        let mut unmap =
            GnttabUnmapGrantRef { host_addr: map.host_addr, handle: map.handle, ..Default::default() };
        grant_op(GNTTABOP_UNMAP_GRANT_REF, &mut unmap);
        status |= map.status | unmap.status;
    });
    check(bench, map_unmap, status);
    bench.time(map_unmap_device, || {
        let mut map = GnttabMapGrantRef {
            flags: GNTMAP_DEVICE_MAP,
            r#ref: gref,
            dom: granted.dom.raw(),
            ..Default::default()
        };
        grant_op(GNTTABOP_MAP_GRANT_REF, &mut map);
        let mut unmap =
            GnttabUnmapGrantRef { dev_bus_addr: map.dev_bus_addr, handle: map.handle, ..Default::default() };
        grant_op(GNTTABOP_UNMAP_GRANT_REF, &mut unmap);
        status |= map.status | unmap.status;
    });
    check(bench, map_unmap_device, status);
    for (name, len) in [(copy_page, 4096), (copy_64, 64)] {
        let mut copy = GnttabCopy {
            source: GnttabCopyPtr { u: u64::from(gref), domid: granted.dom.raw(), ..Default::default() },
            dest: GnttabCopyPtr {
                u: granted.pages.memory().mfn(1).raw(),
                domid: DomId::SELF.raw(),
                ..Default::default()
            },
            len,
            flags: GNTCOPY_SOURCE_GREF,
            ..Default::default()
        };
        bench.time(name, || grant_op(GNTTABOP_COPY, &mut copy));
        check(bench, name, copy.status);
    }
}

/// Copies of 64 bytes, [`BATCH`] in a call, each from a page of its own to a page of its own: what one of them takes.
fn batches(bench: &Bench, rows: BatchRows) {
    let granted = || {
        let dom = event::own_domid().ok()?;
        Some((dom, Lent::whole(Pages::zeroed(2 * BATCH).ok()?, dom, false).ok()?))
    };
    let Some((dom, granted)) = granted() else { return bench.skip(rows[0], "no grants") };
    let side = |is_granted: bool, page: usize| match is_granted {
        true => GnttabCopyPtr { u: granted.gref(page).raw().into(), domid: dom.raw(), ..Default::default() },
        false => GnttabCopyPtr {
            u: granted.memory().mfn(page).raw(),
            domid: DomId::SELF.raw(),
            ..Default::default()
        },
    };
    let flags = [GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTCOPY_DEST_GREF];
    for (name, flags) in rows.into_iter().zip(flags) {
        let Some(count) = bench.count(name, u64::MAX) else { continue };
        let mut copies: [GnttabCopy; BATCH] = core::array::from_fn(|n| GnttabCopy {
            source: side(flags & GNTCOPY_SOURCE_GREF != 0, 2 * n),
            dest: side(flags & GNTCOPY_DEST_GREF != 0, 2 * n + 1),
            len: 64,
            flags,
            ..Default::default()
        });
        let mut calls = |count| (0..count).for_each(|_| grant_ops(GNTTABOP_COPY, &mut copies));
        calls(WARM_UP);
        let count = count.div_ceil(BATCH as u64);
        let clock = Clock::start();
        calls(count);
        report(name, clock.stop(), count * BATCH as u64);
        check(bench, name, copies.iter().map(|copy| copy.status).min().unwrap_or(GNTST_OKAY));
    }
}

fn grant_op<T>(cmd: u32, arg: &mut T) {
    grant_ops(cmd, core::slice::from_mut(arg));
}

fn grant_ops<T>(cmd: u32, ops: &mut [T]) {
    let args = [u64::from(cmd), ops.as_mut_ptr() as u64, ops.len() as u64, 0, 0];
    // SAFETY: mappings go to a window page of the caller's, copies to a page of the caller's.
    unsafe { raw(__HYPERVISOR_GRANT_TABLE_OP, args) };
}

fn check(bench: &Bench, name: &str, status: i16) {
    if status != GNTST_OKAY {
        bench.skip(name, ("status", status));
    }
}

fn traps(bench: &Bench) {
    bench.time("int3", asm::int3);
    let stack = asm::kernel_stack();
    let base = MmuextOp { cmd: MMUEXT_NEW_USER_BASEPTR, arg1: asm::base_table(), ..MmuextOp::default() };
    // SAFETY: the stack is this image's own; user mode runs on the kernel's own tables.
    let ready = unsafe {
        raw(__HYPERVISOR_STACK_SWITCH, [0xe02b, stack, 0, 0, 0]);
        mmuext_op(&[base], DomId::SELF)
    };
    match ready {
        Ok(()) => bench.time_loop("user_syscall", asm::user_syscalls),
        Err(errno) => bench.skip("user_syscall", errno),
    }
    if let Some(window) = WindowPages::take(1) {
        let nothing = window.va() as u64;
        bench.time("page_fault", || asm::page_fault(nothing));
        if ready.is_ok() {
            bench.time_loop("page_fault_user", |count| asm::user_faults(count, nothing));
        }
    }
    bench.time("cpuid_forced", asm::forced_cpuid);
    bench.time("rdmsr_efer", asm::read_efer);
    bench.time("clts", asm::clts);
    bench.time("rdtsc", || {
        pvrt::time::tsc();
    });
    let mut text: Vec<u8> = vec![0; 64];
    bench.time("nothing", || {
        text[0] = core::hint::black_box(text[0]);
    });
}
