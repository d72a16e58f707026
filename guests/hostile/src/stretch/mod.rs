//! What keeps the hypervisor busy for longest, for a count of the instructions between two moments at which it takes
//! interrupts (`cargo xtask bench stretch`). Not one of these calls is refused: each must be cut in pieces.
//!
//! A timer of this guest's fires all the time, so that the end of one piece and the next request to stop are never far
//! apart. Prints `stretch: NAME` for each, between marks 300 and 301.
#![allow(unsafe_code)] // the entry of an event upcall; page tables of its own

mod control;
mod herd;
mod last;
mod short;
mod timers;

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use pvrt::marker::mark;
use pvrt::mem::Pages;
use pvrt::space::*;
use pvrt::{println, probe};
use ring_abi::callback::{CALLBACKOP_REGISTER, CALLBACKTYPE_EVENT, CallbackRegister};
use ring_abi::evtchn::*;
use ring_abi::grant::*;
use ring_abi::guest_context::TrapInfo;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::mmu::*;
use ring_abi::shared_info::{
    EVTCHN_PENDING_OFFSET, PENDING_SEL_OFFSET, UPCALL_MASK_OFFSET, UPCALL_PENDING_OFFSET,
};
use ring_abi::types::{DOMID_SELF, PAGE_SIZE};

use pvrt::hypercall::mmu::pte;

use crate::memory::reservation;

const SELF: u64 = DOMID_SELF as u64;
const TABLE: u64 = pte::P | pte::RW | pte::US | pte::A | pte::D;
/// The timer fires after so many nanoseconds, of which an emulator that counts takes one an instruction: this and up to
/// as many again.
const TICK_NS: u64 = 8_000;
/// The first of some slots of level 2 of the window's that nothing uses.
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
    // Never at one distance from the last: what is hit is anything.
    let count = TICKS.fetch_add(1, Ordering::Relaxed);
    let spread = count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let at = pvrt::time::now_ns() + TICK_NS + spread % TICK_NS;
    call(__HYPERVISOR_SET_TIMER_OP, [at, 0, 0, 0, 0]);
}

/// Runs what `case` asks for of this module: whether that is anything.
pub(crate) async fn run(case: Option<&str>) -> bool {
    match case {
        Some("stretch") => ticking(of_any_guest),
        Some("stretch-control") => ticking(control::run),
        Some("stretch-herd") => herd::run().await,
        Some("stretch-herd-beside") => herd::beside().await,
        _ => return false,
    }
    true
}

/// Does `act` with upcalls that come here.
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

/// What any guest may do.
fn of_any_guest() {
    trees();
    batches();
    grants();
    memory();
    events();
    others();
    short::run();
    timers::run();
    // Takes memory that does not come back.
    last::run();
}

/// One case: `act`, with the timer firing.
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

/// A tree of tables: an L4, an L3, L2s and L1s that are all full.
struct Tree {
    pages: Pages,
    l1: usize,
    l2: usize,
}

impl Tree {
    /// One of some `count` tables, of which each maps the frame of page 0 as often as it can.
    fn new(count: usize) -> Option<Self> {
        let l2 = count.div_ceil(512);
        let pages = Pages::zeroed(count + l2 + 3).ok()?;
        let tree = Self { pages, l1: count, l2 };
        let data = tree.frame(0) << 12 | RW | pte::US;
        for n in 0..count {
            for slot in 0..512 {
                tree.set(tree.l1_at(n), slot, data);
            }
        }
        for n in 0..count {
            tree.set(tree.l2_at(n / 512), n % 512, tree.frame(tree.l1_at(n)) << 12 | TABLE);
        }
        for n in 0..l2 {
            tree.set(tree.l3(), n, tree.frame(tree.l2_at(n)) << 12 | TABLE);
        }
        for n in 1..tree.pages.count() {
            if map(tree.at(n), tree.frame(n) << 12 | RO) != 0 {
                return None;
            }
        }
        Some(tree)
    }

    fn l1_at(&self, n: usize) -> usize {
        1 + n
    }

    fn l2_at(&self, n: usize) -> usize {
        1 + self.l1 + n
    }

    fn l3(&self) -> usize {
        1 + self.l1 + self.l2
    }

    /// A table of level 4 with the kernel's entries, when it is asked for.
    fn l4(&self) -> usize {
        2 + self.l1 + self.l2
    }

    fn frame(&self, n: usize) -> u64 {
        self.pages.mfn(n).raw()
    }

    fn at(&self, n: usize) -> u64 {
        (self.pages.va() + n * PAGE_SIZE) as u64
    }

    fn set(&self, n: usize, slot: usize, value: u64) {
        probe::write(self.at(n) + slot as u64 * 8, value);
    }

    /// Makes the L4 one that this kernel can run on, with the L3 in it.
    fn with_kernel(&self) -> u64 {
        let l4 = self.l4();
        map(self.at(l4), self.frame(l4) << 12 | RW);
        for slot in (0..256).chain(272..512) {
            self.set(l4, slot, entry(base(), slot));
        }
        self.set(l4, 300, self.frame(self.l3()) << 12 | TABLE);
        map(self.at(l4), self.frame(l4) << 12 | RO);
        self.frame(l4)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for n in 1..self.pages.count() {
            map(self.at(n), self.frame(n) << 12 | RW);
        }
    }
}

/// Tables that this guest has memory for: a quarter of what it has.
fn tables_of_memory() -> usize {
    let pages = op(__HYPERVISOR_MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut { DOMID_SELF });
    (pages.max(0) as usize / 4).clamp(64, 16 * 1024)
}

/// Trees that become valid, and cease to be.
fn trees() {
    let Some(tree) = Tree::new(tables_of_memory()) else { return println!("stretch: no memory for trees") };
    let l3 = tree.frame(tree.l3());
    case(&format!("pin of {} tables", tree.l1), || extended(MMUEXT_PIN_L3_TABLE, l3, 0));
    case("unpin of them", || extended(MMUEXT_UNPIN_TABLE, l3, 0));
    let slot = (base() << 12) + 300 * 8;
    case("an entry of level 4 to them", || update(slot, l3 << 12 | TABLE));
    case("the entry cleared", || update(slot, 0));
    let l2 = tree.frame(tree.l2_at(0));
    case("pin of one full L2", || extended(MMUEXT_PIN_L2_TABLE, l2, 0));
    case("unpin of it", || extended(MMUEXT_UNPIN_TABLE, l2, 0));
    let old = base();
    let l4 = tree.with_kernel();
    case("new_baseptr to them", || extended(MMUEXT_NEW_BASEPTR, l4, 0));
    case("new_baseptr away from them", || extended(MMUEXT_NEW_BASEPTR, old, 0));
    case("new_user_baseptr to them", || extended(MMUEXT_NEW_USER_BASEPTR, l4, 0));
    case("new_user_baseptr to none", || extended(MMUEXT_NEW_USER_BASEPTR, 0, 0));
    let each: Vec<MmuextOp> = [MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE]
        .into_iter()
        .flat_map(|cmd| (0..tree.l1.min(4096)).map(move |n| (cmd, n)))
        .map(|(cmd, n)| MmuextOp { cmd, arg1: tree.frame(tree.l1_at(n)), ..MmuextOp::default() })
        .collect();
    case("pins and unpins of all L1s in one list", || {
        call(__HYPERVISOR_MMUEXT_OP, [each.as_ptr() as u64, each.len() as u64, 0, SELF, 0])
    });
    lists_of_tables(&tree);
    tree_of_bad_end(&tree);
}

/// Full L1s put into an L2 and taken out, by lists so short that they do not look.
fn lists_of_tables(tree: &Tree) {
    const LISTS: usize = 16;
    const EACH: usize = 8;
    let scratch = Scratch::new(1);
    let l2 = tables(scratch.at(0))[2] << 12;
    let requests: Vec<MmuUpdate> = (0..LISTS * EACH)
        .map(|n| {
            let ptr = l2 + (FREE_SLOT + n as u64 / 2 % 4) * 8;
            let val = if n % 2 == 0 { tree.frame(tree.l1_at(n / 2)) << 12 | TABLE } else { 0 };
            MmuUpdate { ptr, val }
        })
        .collect();
    let mut calls: Vec<MulticallEntry> = requests
        .chunks(EACH)
        .map(|list| MulticallEntry {
            op: __HYPERVISOR_MMU_UPDATE.into(),
            result: 0,
            args: [list.as_ptr() as u64, EACH as u64, 0, SELF, 0, 0],
        })
        .collect();
    case("a multicall of 16 mmu_update of 8 entries of level 2", || {
        call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, LISTS as u64, 0, 0, 0])
    });
}

/// All that was taken comes back at the last entry.
fn tree_of_bad_end(tree: &Tree) {
    let last = tree.l1_at(tree.l1 - 1);
    map(tree.at(last), tree.frame(last) << 12 | RW);
    tree.set(last, 511, 0x1_0000_0000_0007);
    map(tree.at(last), tree.frame(last) << 12 | RO);
    case("pin of tables whose last is bad", || extended(MMUEXT_PIN_L3_TABLE, tree.frame(tree.l3()), 0));
}

/// The longest lists.
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

/// Grant operations at their longest.
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
    // Two entries, since each can be used 65,535 times.
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
    // The handles are kept, and with them the use of both pages for writing.
    core::mem::forget(scratch);
}

/// Memory given back, taken, and exchanged, in small and large extents.
fn memory() {
    const COUNT: usize = 2048;
    let Ok(pages) = Pages::zeroed(COUNT) else { return println!("stretch: no memory to give back") };
    let mut frames: Vec<u64> = (0..COUNT).map(|n| pages.mfn(n).raw()).collect();
    let numbers: Vec<u64> = (0..COUNT).map(|n| pages.pfn(n).raw()).collect();
    for n in 0..COUNT {
        map((pages.va() + n * PAGE_SIZE) as u64, 0);
    }
    // What is mapped no more is nobody's that this kernel knows.
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

/// Event channels, as many as there can be.
fn events() {
    let event = |command: u32, arg: u64| call(__HYPERVISOR_EVENT_CHANNEL_OP, [command.into(), arg, 0, 0, 0]);
    let alloc = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: DOMID_SELF, ..Default::default() };
    let mut ports = vec![alloc; 4096];
    let start = ports.as_mut_ptr() as u64;
    let mut calls: Vec<MulticallEntry> = (0..4096)
        .map(|n| MulticallEntry {
            op: __HYPERVISOR_EVENT_CHANNEL_OP.into(),
            result: 0,
            args: [
                EVTCHNOP_ALLOC_UNBOUND.into(),
                start + n * size_of::<EvtchnAllocUnbound>() as u64,
                0,
                0,
                0,
                0,
            ],
        })
        .collect();
    case("4,096 ports", || call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, 4096, 0, 0, 0]));
    let opened: Vec<u32> =
        ports.iter().zip(&calls).filter(|(_, call)| call.result == 0).map(|(port, _)| port.port).collect();
    let mut closes: Vec<EvtchnClose> = opened.iter().map(|port| EvtchnClose { port: *port }).collect();
    let start = closes.as_mut_ptr() as u64;
    let half = closes.len() / 2;
    let mut calls: Vec<MulticallEntry> = (0..half as u64)
        .map(|n| MulticallEntry {
            op: __HYPERVISOR_EVENT_CHANNEL_OP.into(),
            result: 0,
            args: [EVTCHNOP_CLOSE.into(), start + n * size_of::<EvtchnClose>() as u64, 0, 0, 0, 0],
        })
        .collect();
    case("half of them closed", || {
        call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, half as u64, 0, 0, 0])
    });
    // All are taken again but the last, and the first is closed, opened, and another sought.
    let mut first = EvtchnClose { port: 1 };
    let mut other = alloc;
    let call_of = |command: u32, arg: u64| MulticallEntry {
        op: __HYPERVISOR_EVENT_CHANNEL_OP.into(),
        result: 0,
        args: [command.into(), arg, 0, 0, 0, 0],
    };
    while event(EVTCHNOP_ALLOC_UNBOUND, (&raw mut other) as u64) == 0 {
        first.port = other.port;
    }
    let (close, open) = ((&raw mut first) as u64, (&raw mut other) as u64);
    let mut calls: Vec<MulticallEntry> = (0..512)
        .flat_map(|_| {
            [(EVTCHNOP_CLOSE, close), (EVTCHNOP_ALLOC_UNBOUND, open), (EVTCHNOP_ALLOC_UNBOUND, open)]
        })
        .map(|(command, arg)| call_of(command, arg))
        .collect();
    case("ports sought where none is free", || {
        call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, calls.len() as u64, 0, 0, 0])
    });
    for close in &mut closes[half..] {
        event(EVTCHNOP_CLOSE, (&raw mut *close) as u64);
    }
}

/// What is left: descriptors, the console, traps, vCPUs.
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
            // SAFETY: emulated: reads what the guest may know.
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
