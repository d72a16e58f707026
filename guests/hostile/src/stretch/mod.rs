//! The calls that keep the hypervisor busy for longest. `cargo xtask bench stretch` counts the hypervisor's
//! instructions between two moments at which interrupts are taken. None of these calls is refused: the hypervisor
//! must split each into pieces.
//!
//! A timer of this guest's fires all the time, so that an interrupt is soon pending after each piece begins. Prints
//! `stretch: NAME` for each, between marks 300 and 301. `pairs` has two vCPUs, on two CPUs.
#![allow(unsafe_code)] // the entry of an event upcall; page tables of its own

mod control;
mod events;
mod fifo;
mod herd;
mod last;
mod memory;
mod pairs;
mod short;
mod timers;
mod tree;

use alloc::vec;
use alloc::vec::Vec;
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use pvrt::marker::mark;
use pvrt::space::*;
use pvrt::{println, probe};
use ring_abi::callback::{CALLBACKOP_REGISTER, CALLBACKTYPE_EVENT, CallbackRegister};
use ring_abi::grant::*;
use ring_abi::guest_context::TrapInfo;
use ring_abi::hypercall::*;
use ring_abi::mmu::*;
use ring_abi::shared_info::{
    EVTCHN_PENDING_OFFSET, PENDING_SEL_OFFSET, UPCALL_MASK_OFFSET, UPCALL_PENDING_OFFSET,
};
use ring_abi::types::{DOMID_SELF, PAGE_SIZE};

use pvrt::hypercall::mmu::pte;

const SELF: u64 = DOMID_SELF as u64;
const TABLE: u64 = pte::P | pte::RW | pte::US | pte::A | pte::D;
/// The timer fires after this time plus up to as much again. With counted instructions, a nanosecond is one
/// instruction.
const TICK_NS: u64 = 8_000;
/// The first of some slots of the window's L2 that nothing uses.
const FREE_SLOT: u64 = 201;
/// Words of pending events that this kernel uses.
const WORDS: usize = 64;

global_asm!(
    r#"
    .text
    # An upcall: all registers that a function may change are kept. The frame of HYPERVISOR_iret is rax, r11, rcx, flags,
    # and the five words of the interrupted state, which are there.
    .globl hostile_tick_entry
hostile_tick_entry:
    push rax
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push rbp
    mov rbp, rsp
    and rsp, -16
    cld
    call {tick}
    mov rsp, rbp
    pop rbp
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rax
    pop rcx
    pop r11
    push 0
    push rcx
    push r11
    push rax
    mov eax, 23
    syscall
    "#,
    tick = sym tick,
);

unsafe extern "C" {
    fn hostile_tick_entry();
}

static TICKS: AtomicU64 = AtomicU64::new(1);

/// Takes all events, and sets the timer again.
extern "C" fn tick() {
    let info = pvrt::shared_info();
    info.store_u8(UPCALL_PENDING_OFFSET, 0);
    info.store_u64(PENDING_SEL_OFFSET, 0);
    for word in 0..WORDS {
        info.store_u64(EVTCHN_PENDING_OFFSET + word * 8, 0);
    }
    fifo::take_tick();
    // The distance to the last interrupt varies, so that an interrupt may come at any instruction.
    let count = TICKS.fetch_add(1, Ordering::Relaxed);
    let spread = count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let tick = pairs::tick_ns().unwrap_or(TICK_NS);
    let at = pvrt::time::now_ns() + tick + spread % tick;
    call(__HYPERVISOR_SET_TIMER_OP, [at, 0, 0, 0, 0]);
}

/// Runs the case of this module that `case` names; false if there is none.
pub(crate) async fn run(case: Option<&str>) -> bool {
    match case {
        Some("stretch") => ticking(of_any_guest),
        Some("stretch-control") => ticking(control::run),
        Some("stretch-pairs") => ticking(pairs::run),
        Some("stretch-hammer") => ticking(pairs::hammer),
        Some("stretch-herd") => herd::run().await,
        Some("stretch-herd-beside") => herd::beside().await,
        _ => return false,
    }
    true
}

/// Runs `act` while this module handles upcalls.
fn ticking(act: fn()) {
    let register = CallbackRegister {
        r#type: CALLBACKTYPE_EVENT,
        address: hostile_tick_entry as *const () as u64,
        ..Default::default()
    };
    call(__HYPERVISOR_CALLBACK_OP, [CALLBACKOP_REGISTER.into(), (&raw const register) as u64, 0, 0, 0]);
    act();
    println!("stretch: done, {} ticks", TICKS.load(Ordering::Relaxed));
    pvrt::install_handlers();
    let info = pvrt::shared_info();
    info.store_u64(PENDING_SEL_OFFSET, u64::MAX);
    info.store_u8(UPCALL_PENDING_OFFSET, 1);
}

/// The cases that any guest may run.
fn of_any_guest() {
    tree::trees();
    batches();
    versions();
    grants();
    memory::memory();
    events::events();
    fifo::fifo();
    others();
    short::run();
    timers::run();
    // This case comes last, since its memory does not come back.
    last::run();
}

/// Runs one case, `act`, while the timer fires.
fn case(name: &str, act: impl FnOnce() -> i64) {
    let info = pvrt::shared_info();
    mark::<300>();
    tick();
    info.store_u8(UPCALL_MASK_OFFSET, 0);
    let got = act();
    info.store_u8(UPCALL_MASK_OFFSET, 1);
    mark::<301>();
    println!("stretch: {name}: {got:#x}");
}

/// Makes calls with the longest lists.
fn batches() {
    let scratch = Scratch::new(1);
    let (at, own) = (scratch.entry_address(0), scratch.mfn(0) << 12 | RW);
    let requests: Vec<MmuUpdate> =
        (0..60_000).map(|n| MmuUpdate { ptr: at, val: if n % 2 == 0 { own } else { 0 } }).collect();
    let list = requests.as_ptr() as u64;
    case("mmu_update of 60,000 entries", || call(__HYPERVISOR_MMU_UPDATE, [list, 60_000, 0, SELF, 0]));
    let operations = vec![MmuextOp { cmd: MMUEXT_TLB_FLUSH_ALL, ..MmuextOp::default() }; 20_000];
    let list_of_operations = operations.as_ptr() as u64;
    case("20,000 flushes", || call(__HYPERVISOR_MMUEXT_OP, [list_of_operations, 20_000, 0, SELF, 0]));
    let copies = vec![MmuextOp { cmd: MMUEXT_CLEAR_PAGE, arg1: scratch.mfn(0), ..MmuextOp::default() }; 4096];
    map(scratch.at(0), 0);
    case("4,096 clear_page", || {
        call(__HYPERVISOR_MMUEXT_OP, [copies.as_ptr() as u64, copies.len() as u64, 0, SELF, 0])
    });
    let multicall = |name: &str, op: u32, args: [u64; 6], count: usize| {
        let mut calls = vec![MulticallEntry { op: op.into(), result: 0, args }; count];
        case(name, || call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, count as u64, 0, 0, 0]));
    };
    let mut room = vec![0u64; 512];
    let out = room.as_mut_ptr() as u64;
    multicall("20,000 xen_version in a multicall", __HYPERVISOR_XEN_VERSION, [2, out, 0, 0, 0, 0], 20_000);
    multicall(
        "a multicall of 512 mmu_update of 512",
        __HYPERVISOR_MMU_UPDATE,
        [list, 512, 0, SELF, 0, 0],
        512,
    );
    multicall("a multicall of 20,000 unknown calls", 60, [0; 6], 20_000);
    multicall(
        "20,000 set_debugreg in a multicall",
        __HYPERVISOR_SET_DEBUGREG,
        [0, 0x1000, 0, 0, 0, 0],
        20_000,
    );
}

/// Changes the version of a large grant table.
fn versions() {
    let mut frames = vec![0u64; 64];
    let mut setup = GnttabSetupTable {
        dom: DOMID_SELF,
        nr_frames: 64,
        frame_list: frames.as_mut_ptr() as u64,
        ..Default::default()
    };
    case("a grant table of 64 frames", || one(__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_SETUP_TABLE, &mut setup));
    let mut setup = GnttabSetupTable { nr_frames: 32, ..setup };
    case("a grant table of 32 frames", || one(__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_SETUP_TABLE, &mut setup));
    let set_version = |version: u32| {
        one(__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_SET_VERSION, &mut GnttabSetVersion { version })
    };
    case("version 2 of a grant table of 64 frames", || set_version(2));
    let mut status = GnttabGetStatusFrames {
        nr_frames: 8,
        dom: DOMID_SELF,
        status: 0,
        frame_list: frames.as_mut_ptr() as u64,
    };
    case("its frames of status words", || {
        one(__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_GET_STATUS_FRAMES, &mut status)
    });
    case("version 1 again", || set_version(1));
}

/// Makes the longest grant operations.
fn grants() {
    let scratch = Scratch::new(2);
    let (from, to) = (scratch.mfn(0), scratch.mfn(1));
    let place = |u| GnttabCopyPtr { u, domid: DOMID_SELF, ..Default::default() };
    let copy =
        GnttabCopy { source: place(from), dest: place(to), len: PAGE_SIZE as u16, ..Default::default() };
    let mut copies = vec![copy; 4096];
    let grant = |command: u32, list: u64, count: usize| {
        call(__HYPERVISOR_GRANT_TABLE_OP, [command.into(), list, count as u64, 0, 0])
    };
    case("4,096 copies of a page", || grant(GNTTABOP_COPY, copies.as_mut_ptr() as u64, 4096));
    let Ok(me) = pvrt::hypercall::event::own_domid() else { return };
    let Ok(granted) = crate::ground::grant_access(me, scratch.pages.mfn(0), false) else { return };
    let arg = GnttabMapGrantRef {
        flags: GNTMAP_DEVICE_MAP,
        r#ref: granted.number().raw(),
        dom: me.raw(),
        ..Default::default()
    };
    let mut maps = vec![arg; 4096];
    case("4,096 maps for a device", || grant(GNTTABOP_MAP_GRANT_REF, maps.as_mut_ptr() as u64, 4096));
    let mut unmaps: Vec<GnttabUnmapGrantRef> = maps
        .iter()
        .map(|map| GnttabUnmapGrantRef { handle: map.handle, dev_bus_addr: from << 12, ..Default::default() })
        .collect();
    case("their end", || grant(GNTTABOP_UNMAP_GRANT_REF, unmaps.as_mut_ptr() as u64, 4096));
    let host = GnttabMapGrantRef { flags: GNTMAP_HOST_MAP, host_addr: scratch.at(0), ..arg };
    let mut maps = vec![host; 4096];
    case("4,096 maps at one address", || grant(GNTTABOP_MAP_GRANT_REF, maps.as_mut_ptr() as u64, 4096));
    let mut unmaps: Vec<GnttabUnmapGrantRef> = maps
        .iter()
        .map(|map| GnttabUnmapGrantRef { handle: map.handle, host_addr: scratch.at(0), ..Default::default() })
        .collect();
    case("their end at that address", || grant(GNTTABOP_UNMAP_GRANT_REF, unmaps.as_mut_ptr() as u64, 4096));
    // Two entries are granted, since each can be mapped 65,535 times.
    if let Ok(other) = crate::ground::grant_access(me, scratch.pages.mfn(1), false) {
        let entries = [granted.number().raw(), other.number().raw()];
        case("70,000 handles", || {
            for n in 0..70_000 / 512 {
                let arg = GnttabMapGrantRef { r#ref: entries[n % 2], ..arg };
                maps[..512].fill(arg);
                grant(GNTTABOP_MAP_GRANT_REF, maps.as_mut_ptr() as u64, 512);
            }
            i64::from(maps[511].status)
        });
    }
    // The handles are kept, so both pages stay mapped writable.
    core::mem::forget(scratch);
}

/// The other calls: descriptors, the console, traps, vCPUs.
fn others() {
    let scratch = Scratch::new(14);
    let frames: Vec<u64> = (0..14).map(|n| scratch.mfn(n)).collect();
    for n in 0..14 {
        scratch.protect(n);
    }
    case("set_gdt of 14 pages", || call(__HYPERVISOR_SET_GDT, [frames.as_ptr() as u64, 14 * 512, 0, 0, 0]));
    case("set_gdt of none", || call(__HYPERVISOR_SET_GDT, [0; 5]));
    let scratch = Scratch::new(8 * 14);
    let frames: Vec<u64> = (0..8 * 14).map(|n| scratch.mfn(n)).collect();
    for n in 0..8 * 14 {
        scratch.protect(n);
    }
    let set_gdt = |n: usize| MulticallEntry {
        op: __HYPERVISOR_SET_GDT.into(),
        result: 0,
        args: [frames[14 * n..].as_ptr() as u64, 14 * 512, 0, 0, 0, 0],
    };
    let mut calls: Vec<MulticallEntry> = (0..8).map(set_gdt).collect();
    case("a multicall of 8 set_gdt of 14 pages", || {
        call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, 8, 0, 0, 0])
    });
    call(__HYPERVISOR_SET_GDT, [0; 5]);
    drop(scratch);
    let scratch = Scratch::new(14);
    case("set_ldt of 8,192 entries", || extended(MMUEXT_SET_LDT, scratch.page(0), 8192));
    case("set_ldt of none", || extended(MMUEXT_SET_LDT, 0, 0));
    let text = vec![b'x'; 60_000];
    case("60,000 bytes to the hypervisor's console", || {
        call(__HYPERVISOR_CONSOLE_IO, [0, text.len() as u64, text.as_ptr() as u64, 0, 0])
    });
    let lines = vec![b'\n'; 60_000];
    case("60,000 newlines to it", || {
        call(__HYPERVISOR_CONSOLE_IO, [0, lines.len() as u64, lines.as_ptr() as u64, 0, 0])
    });
    case("set_trap_table", || {
        let table = probe::trap_table();
        call(__HYPERVISOR_SET_TRAP_TABLE, [table.as_ptr() as u64, 0, 0, 0, 0])
    });
    case("tables of 255 gates in a multicall", || {
        let gate = TrapInfo { vector: 200, address: 0x1000, ..Default::default() };
        let mut table = vec![gate; 256];
        table[255] = TrapInfo::default();
        let args = [table.as_ptr() as u64, 0, 0, 0, 0, 0];
        let mut calls = vec![MulticallEntry { op: __HYPERVISOR_SET_TRAP_TABLE.into(), result: 0, args }; 64];
        call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, calls.len() as u64, 0, 0, 0])
    });
    case("a thousand CPUID", || {
        for leaf in 0..1000u32 {
            // SAFETY: the hypervisor emulates the instruction, which reads what the guest may know.
            unsafe {
                core::arch::asm!(
                    "push rbx", ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2", "pop rbx",
                    inout("eax") leaf => _, inout("ecx") leaf => _, out("edx") _
                );
            }
        }
        0
    });
    case("a thousand emulated instructions", || (0..1000).map(|_| base() as i64).sum::<i64>() & 1);
    case("initialise of vCPUs that are not there", || {
        let context = vec![0u8; 8192];
        (0..200)
            .map(|vcpu| call(__HYPERVISOR_VCPU_OP, [0, vcpu, context.as_ptr() as u64, 0, 0]))
            .min()
            .unwrap_or(0)
    });
}
