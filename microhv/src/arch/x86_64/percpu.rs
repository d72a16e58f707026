//! What each physical CPU has for itself: its stacks and, on top of the main one, its data.
//!
//! The area is 64 KiB and aligned to that, so that any stack pointer in it leads to the data: no segment register
//! is needed, and the guest's GS base can stay loaded while the hypervisor runs. The areas lie in a row at `cpu_areas`, so
//! the address says the CPU's number too.
#![allow(unsafe_code)] // raw stacks, and data found through the stack pointer

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use alloc::sync::Arc;

use microhv::domain::Current;
use microhv::domain::{Domain, Vcpu, VcpuRef};
use microhv::platform::{CpuId, CpuSet, MAX_CPUS};
use microhv::sync::{FlushOrders, FlushState};

use ring_abi::guest_context::CpuUserRegs;

use super::descriptors;
use super::entry_page::{EntryPage, OwnTables};
use super::machine::{self, Cur, Hv};

/// Size and alignment of a CPU's area.
pub(crate) const AREA_BYTES: usize = 65536;
/// Bytes of each of the stacks for NMI, machine check, double fault and debug exceptions.
const IST_BYTES: usize = 4096;
/// The number of these stacks.
const IST_STACKS: usize = 4;
/// Bytes of the main stack.
const STACK_BYTES: usize = AREA_BYTES - IST_STACKS * IST_BYTES - 2 * 4096 - size_of::<Local>();

/// A CPU's own data.
#[repr(C, align(64))]
pub(crate) struct Local {
    /// The scheduler's word of work that waits on this CPU.
    pending: AtomicPtr<AtomicU32>,
    /// The vCPU that runs; null while idle. What `loaded` refers to, found with one load.
    vcpu: AtomicPtr<Vcpu>,
    /// The vCPU whose tables, floating-point, debug and segment registers are loaded: the one that runs, or while idle the
    /// last, or none.
    loaded: UnsafeCell<Option<VcpuRef>>,
    /// This CPU as a set.
    bit: AtomicU64,
    /// The flushes that others ask of this CPU.
    pub(crate) flushes: FlushState,
    /// Another CPU asks for the state that this CPU keeps of a vCPU while idle.
    pub(crate) asked_to_let_go: AtomicBool,
    /// The CPU is to leave those that are up as soon as the CPU has nothing to run, and to stop while this is set.
    pub(crate) is_to_park: AtomicBool,
    /// TSC until which `work_pending` does not look at the local APIC again.
    pub(crate) poll_at: AtomicU64,
    /// An interrupt was seen waiting, and none was taken since.
    pub(crate) interrupt_waits: AtomicBool,
    /// This CPU has ended a piece for CPUs that wait for locks, and has not given way to them yet.
    pub(crate) gives_way: AtomicBool,
    /// The page tables that guests run on here, where those are not the guests'.
    pub(crate) own: OwnTables,
}

/// A CPU's area: four stacks for the interruptions that nothing masks, a guard page, the main stack, the data, the entry page.
#[repr(C, align(4096))]
pub(crate) struct Area {
    ist: UnsafeCell<[[u8; IST_BYTES]; IST_STACKS]>,
    guard: UnsafeCell<[u8; 4096]>,
    stack: UnsafeCell<[u8; STACK_BYTES]>,
    local: Local,
    entry: EntryPage,
}

const _: () = assert!(size_of::<Area>() == AREA_BYTES);
const _: () = assert!(offset_of!(Area, guard).is_multiple_of(4096));
const _: () = assert!(offset_of!(Area, local) % 16 == 0);

/// Offset of [`Local`] in an area: also where the main stack begins.
pub(crate) const LOCAL_OFFSET: usize = offset_of!(Area, local);
/// Where the guard page begins in an area.
pub(crate) const GUARD_OFFSET: usize = offset_of!(Area, guard);
/// Where the entry page begins in an area: its end.
pub(crate) const ENTRY_PAGE: usize = offset_of!(Area, entry);
/// Where the interrupt stacks end, which begin the area.
pub(crate) const IST_END: usize = GUARD_OFFSET;
/// Offsets that entry code uses: in an area.
pub(crate) const FRAME: usize = ENTRY_PAGE + offset_of!(EntryPage, frame);
/// Likewise: where the processor's pushes begin on an interruption of ring 3.
pub(crate) const FRAME_TOP: usize = FRAME + offset_of!(CpuUserRegs, es);
/// Likewise.
pub(crate) const ENTRY_HYPERVISOR: usize = ENTRY_PAGE + offset_of!(EntryPage, hypervisor);
/// From the top of the main stack to the frame.
pub(crate) const FRAME_FROM_STACK: usize = FRAME - LOCAL_OFFSET;
/// From the top of the main stack.
pub(crate) const OWN_EXIT: usize = offset_of!(Local, own.copies.exit);
/// Likewise.
pub(crate) const PENDING: usize = offset_of!(Local, pending);
/// Likewise.
pub(crate) const VCPU: usize = offset_of!(Local, vcpu);
/// From the frame.
pub(crate) const STACK_FROM_FRAME: usize = offset_of!(EntryPage, stack) - offset_of!(EntryPage, frame);
/// Likewise.
pub(crate) const FULL_FROM_FRAME: usize = offset_of!(EntryPage, full) - offset_of!(EntryPage, frame);

// SAFETY: the cells are stacks, the TSS, the frame and the current vCPU, which only their own CPU uses (a report reads another CPU's frame
// as integers); the rest are atomics.
unsafe impl Sync for Area {}

/// The boot CPU's area: until the final tables are loaded, at its place in the image, and then only in its row.
static BOOT_AREA: Area = Area {
    ist: UnsafeCell::new([[0; IST_BYTES]; IST_STACKS]),
    guard: UnsafeCell::new([0; 4096]),
    stack: UnsafeCell::new([0; STACK_BYTES]),
    local: Local::new(),
    entry: EntryPage::new(),
};

unsafe extern "C" {
    /// The first CPU's area: an address that the linker script gives.
    static cpu_areas: [u8; AREA_BYTES * MAX_CPUS];
    fn restart_stack(stack: u64, function: extern "C" fn() -> !) -> !;
}

/// Where all areas lie.
pub(crate) fn areas() -> core::ops::Range<u64> {
    let start = (&raw const cpu_areas) as u64;
    start..start + (AREA_BYTES * MAX_CPUS) as u64
}

/// Where the area of `cpu` lies once the area is mapped.
pub(crate) fn area_address(cpu: CpuId) -> u64 {
    areas().start + (cpu.index() * AREA_BYTES) as u64
}

/// The area of the CPU that this runs on, at its place in the row.
pub(crate) fn this_area() -> NonNull<Area> {
    NonNull::new(area_address(this_cpu()) as *mut Area).unwrap_or(NonNull::dangling())
}

/// Where the boot CPU's area lies in the image.
pub(crate) fn boot_area() -> NonNull<Area> {
    NonNull::from(&BOOT_AREA)
}

/// The flushes that CPUs order of each other.
pub(crate) static FLUSH_ORDERS: FlushOrders = FlushOrders::new();

/// The data of another CPU that is up.
pub(crate) fn local_of(cpu: CpuId) -> Option<&'static Local> {
    online().contains(cpu).then(|| local_once_up(cpu)).flatten()
}

/// The data of a CPU that may not have come up yet.
///
/// # Safety
/// The area of `cpu` is mapped, and its data were made.
pub(crate) unsafe fn local_at(cpu: CpuId) -> &'static Local {
    // SAFETY: the caller's duty; what others use of `Local` are atomics.
    unsafe { &*((area_address(cpu) as usize + LOCAL_OFFSET) as *const Local) }
}

/// The data of another CPU that came up once, and may be parked.
pub(crate) fn local_once_up(cpu: CpuId) -> Option<&'static Local> {
    let at = (area_address(cpu) as usize + LOCAL_OFFSET) as *const Local;
    let came_up = CpuSet::from_bits(CAME_UP.load(Ordering::Acquire)).contains(cpu);
    // SAFETY: the area of a CPU that came up was filled before, and stays; what others use of `Local` are atomics.
    came_up.then(|| unsafe { &*at })
}

/// The CPUs that came up, a bit each.
static CAME_UP: AtomicU64 = AtomicU64::new(0);

/// The CPUs that are up, a bit each.
static ONLINE: AtomicU64 = AtomicU64::new(0);

/// The CPUs that are up.
#[inline]
pub(crate) fn online() -> CpuSet {
    CpuSet::from_bits(ONLINE.load(Ordering::Acquire))
}

/// Takes `cpu`, which did not come up in time, out of the CPUs that are up.
pub(crate) fn forget(cpu: CpuId) {
    for set in [&ONLINE, &CAME_UP] {
        set.fetch_and(!CpuSet::only(cpu).bits(), Ordering::AcqRel);
    }
}

impl Area {
    /// Makes the data of an area whose memory is zeros, for a CPU that is started next.
    ///
    /// # Safety
    /// `area` is mapped, and nobody uses the area.
    pub(crate) unsafe fn begin(area: NonNull<Self>) {
        // SAFETY: the caller's duty.
        unsafe { (&raw mut (*area.as_ptr()).local).write(Local::new()) };
    }

    /// Loads the descriptor tables and entries of `cpu`, which this runs on and whose area this is.
    ///
    /// # Safety
    /// At the CPU's start; the area is mapped, and stays.
    pub(crate) unsafe fn load_tables(area: NonNull<Self>, cpu: CpuId) {
        let stack = area.as_ptr() as u64 + FRAME_TOP as u64;
        // The stacks for NMI, machine check, double fault and debug exceptions begin the area.
        let ist = [1, 2, 3, 4].map(|n| area.as_ptr() as u64 + (n * IST_BYTES) as u64);
        // SAFETY: the caller's duty; no reference to the TSS exists at the CPU's start.
        unsafe {
            let entry = &(*area.as_ptr()).entry;
            entry.stack.store(area.as_ptr() as u64 + LOCAL_OFFSET as u64, Ordering::Relaxed);
            let tss = entry.tss.get().cast();
            descriptors::load_segments(cpu, tss, stack, ist);
            descriptors::load_entries(cpu, stack);
        }
    }
}

/// The entry page of a CPU whose area is mapped.
///
/// # Safety
/// The area of `cpu` is mapped.
pub(crate) unsafe fn entry_page(cpu: CpuId) -> &'static EntryPage {
    // SAFETY: the caller's duty; what is used of the page by reference are atomics.
    unsafe { &*((area_address(cpu) as usize + ENTRY_PAGE) as *const EntryPage) }
}

/// Whether guests run on page tables of the hypervisor's own: set at start-up.
pub(crate) static HAS_OWN_TABLES: AtomicBool = AtomicBool::new(false);

/// Whether the TLB tells those tables from the guests' by process-context identifiers, 1 and up: set at start-up.
pub(crate) static USES_CONTEXTS: AtomicBool = AtomicBool::new(false);

/// Has all CPUs forget their copies of the level 4 table at `l4`. Whether CPUs run guests on copies.
#[inline]
pub(crate) fn forget_copies(l4: u64) -> bool {
    let is_on = HAS_OWN_TABLES.load(Ordering::Relaxed);
    if is_on {
        let came_up = CpuSet::from_bits(CAME_UP.load(Ordering::Acquire));
        came_up.iter().filter_map(local_once_up).for_each(|local| local.own.copies.forget(l4));
    }
    is_on
}

impl Local {
    const fn new() -> Self {
        Self {
            pending: AtomicPtr::new(core::ptr::null_mut()),
            vcpu: AtomicPtr::new(core::ptr::null_mut()),
            loaded: UnsafeCell::new(None),
            bit: AtomicU64::new(0),
            flushes: FlushState::new(),
            asked_to_let_go: AtomicBool::new(false),
            is_to_park: AtomicBool::new(false),
            poll_at: AtomicU64::new(0),
            interrupt_waits: AtomicBool::new(false),
            gives_way: AtomicBool::new(false),
            own: OwnTables::new(),
        }
    }

    /// Makes this CPU, whose data these are, one of those that are up: it may have work from now on.
    pub(crate) fn begin(&self, hv: &'static Hv) {
        // The way out reads the scheduler's pending word each time.
        let pending = hv.sched.pending(this_cpu());
        self.pending.store(core::ptr::from_ref(pending).cast_mut(), Ordering::Relaxed);
        self.bit.store(CpuSet::only(this_cpu()).bits(), Ordering::Relaxed);
        CAME_UP.fetch_or(self.bit(), Ordering::AcqRel);
        self.set_up(true);
    }

    /// Makes this CPU one of those that are up, or not. A full barrier: flushes that others order are asked of this CPU, or were
    /// ordered before.
    pub(crate) fn set_up(&self, is_up: bool) {
        if is_up {
            ONLINE.fetch_or(self.bit(), Ordering::SeqCst);
        } else {
            ONLINE.fetch_and(!self.bit(), Ordering::SeqCst);
        }
    }

    /// This CPU's bit in a set.
    #[inline(always)]
    pub(crate) fn bit(&self) -> u64 {
        self.bit.load(Ordering::Relaxed)
    }

    /// The scheduler's word of work that waits on this CPU.
    #[inline(always)]
    pub(crate) fn pending(&self) -> &'static AtomicU32 {
        // SAFETY: `begin` set the word before the first guest ran here, to one that is there for ever.
        unsafe { &*self.pending.load(Ordering::Relaxed) }
    }

    /// Flushes this CPU's TLB by `flush`, on this CPU, and tells those who wait for that.
    #[inline(always)]
    pub(crate) fn flush_by(&self, flush: impl FnOnce()) {
        self.flushes.flush(&FLUSH_ORDERS, flush);
    }

    /// Flushes this CPU's TLB by `flush`, on this CPU, if another CPU asked for that. Returns whether one did.
    #[inline(always)]
    pub(crate) fn flush_if_asked(&self, flush: impl FnOnce()) -> bool {
        let is_asked = self.flushes.is_asked();
        if is_asked {
            self.flushes.serve(&FLUSH_ORDERS, flush);
        }
        is_asked
    }

    /// The registers of the vCPU that is loaded.
    #[inline(always)]
    pub(crate) fn frame(&self) -> *mut CpuUserRegs {
        // Of the area, and not of these data, behind which the frame lies.
        core::ptr::with_exposed_provenance_mut(
            core::ptr::from_ref(self).addr().wrapping_add(FRAME_FROM_STACK),
        )
    }

    /// Top of this CPU's main stack, which ends where its data begin.
    #[inline(always)]
    pub(crate) fn stack_top(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }

    /// The vCPU that runs on this CPU.
    #[inline(always)]
    pub(crate) fn current(&self) -> Option<&VcpuRef> {
        if self.is_busy() { self.loaded() } else { None }
    }

    /// The vCPU whose registers this CPU has.
    #[inline(always)]
    pub(crate) fn loaded(&self) -> Option<&VcpuRef> {
        // SAFETY: only this CPU reads and writes the cell, and `replace_loaded` is not called while a reference is used.
        unsafe { (*self.loaded.get()).as_ref() }
    }

    /// Whether a vCPU runs on this CPU.
    #[inline(always)]
    pub(crate) fn is_busy(&self) -> bool {
        !self.vcpu.load(Ordering::Relaxed).is_null()
    }

    /// The vCPU that runs on this CPU and its domain, without a look whether there is one.
    ///
    /// # Safety
    /// A vCPU runs on this CPU.
    #[inline(always)]
    pub(crate) unsafe fn current_unchecked(&self) -> (&Arc<Domain>, &Vcpu) {
        // SAFETY: the caller's duty; `vcpu` points into what `loaded` keeps alive.
        unsafe {
            let current = self.loaded().unwrap_unchecked();
            (current.domain(), &*self.vcpu.load(Ordering::Relaxed))
        }
    }

    /// Calls `act` with the current vCPU. There is one: a guest was just interrupted, or is about to go on.
    #[inline(always)]
    pub(crate) fn with_current<R>(&'static self, act: impl FnOnce(&mut Cur<'_>) -> R) -> R {
        debug_assert!(self.is_busy());
        // SAFETY: only called where a vCPU runs.
        let (domain, vcpu) = unsafe { self.current_unchecked() };
        // SAFETY: the frame is this CPU's alone, and callers do not nest.
        let regs = unsafe { &mut *self.frame() };
        act(&mut Current { hv: machine::hypervisor(), domain, vcpu, regs })
    }

    /// Makes another vCPU, or none, the one whose registers this CPU has; the former. A vCPU runs from then on.
    ///
    /// # Safety
    /// No reference from [`Local::loaded`] or [`Local::current`] is used after.
    pub(crate) unsafe fn replace_loaded(&self, vcpu: Option<VcpuRef>) -> Option<VcpuRef> {
        // SAFETY: the caller's duty.
        let former = unsafe { core::mem::replace(&mut *self.loaded.get(), vcpu) };
        self.set_running(true);
        former
    }

    /// Says whether the loaded vCPU runs, or this CPU is idle.
    pub(crate) fn set_running(&self, runs: bool) {
        let vcpu = self
            .loaded()
            .filter(|_| runs)
            .map_or(core::ptr::null(), |loaded| core::ptr::from_ref(loaded.vcpu()));
        self.vcpu.store(vcpu.cast_mut(), Ordering::Relaxed);
    }
}

#[inline(always)]
fn stack_pointer() -> usize {
    let stack: usize;
    // SAFETY: reading the stack pointer changes nothing.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) };
    stack
}

/// The data of the CPU that this runs on. Only on a CPU's own stack, not on the boot stack.
#[inline(always)]
pub(crate) fn local() -> &'static Local {
    let area = stack_pointer() & !(AREA_BYTES - 1);
    // SAFETY: every stack that the hypervisor runs on after start-up lies in an aligned `Area`, which is never freed.
    unsafe { &*((area + LOCAL_OFFSET) as *const Local) }
}

/// This CPU. The areas are aligned to their number, and so the stack pointer's bits say which area it is in.
#[inline(always)]
pub(crate) fn this_cpu() -> CpuId {
    CpuId::new((stack_pointer() / AREA_BYTES % MAX_CPUS) as u32).unwrap_or(CpuId::BOOT)
}

/// Goes on in `function` with an empty stack of `cpu`, which this runs on.
pub(crate) fn begin_on_stack(cpu: CpuId, function: extern "C" fn() -> !) -> ! {
    // SAFETY: nothing on the stack is used any more, since `function` does not return.
    unsafe { restart_stack(area_address(cpu) + LOCAL_OFFSET as u64, function) }
}

/// Goes on in `function` with an empty stack of this CPU.
pub(crate) fn on_empty_stack(function: extern "C" fn() -> !) -> ! {
    begin_on_stack(this_cpu(), function)
}
