//! What each physical CPU has for itself: its stacks and, on top of the main one, its data.
//!
//! The area is 64 KiB and aligned to that, so that any stack pointer in it leads to the data: no segment register
//! is needed, and the guest's GS base can stay loaded while the hypervisor runs.
#![allow(unsafe_code)] // raw stacks, and data found through the stack pointer

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, offset_of, size_of};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use alloc::sync::Arc;

use microhv::domain::Current;
use microhv::domain::{Domain, Vcpu, VcpuRef};
use microhv::platform::CpuId;

use x86_64::VirtAddr;
use x86_64::structures::tss::TaskStateSegment;

use super::machine::{self, Cur};

/// Size and alignment of a CPU's area.
const AREA_BYTES: usize = 65536;
/// Bytes of each of the stacks for NMI, machine check, double fault and debug exceptions.
const IST_BYTES: usize = 4096;
/// The number of these stacks.
const IST_STACKS: usize = 4;
/// Bytes of the main stack.
const STACK_BYTES: usize = AREA_BYTES - IST_STACKS * IST_BYTES - 4096 - size_of::<Local>();

/// A CPU's own data.
#[repr(C, align(64))]
pub(crate) struct Local {
    /// One past the frame of the running vCPU that entry code fills: `Vcpu::entry_stack`.
    pub(crate) regs_top: AtomicU64,
    /// The guest's stack pointer, for the first instructions of SYSCALL.
    scratch: AtomicU64,
    /// The scheduler's word of work that waits on this CPU.
    pub(crate) pending: AtomicPtr<AtomicU32>,
    /// The vCPU that runs; null while idle. What `current` refers to, found with one load.
    vcpu: AtomicPtr<Vcpu>,
    /// The vCPU that runs; none while idle.
    current: UnsafeCell<Option<VcpuRef>>,
    /// The vCPU whose floating-point, debug and segment registers are loaded: the current, or while idle the last.
    pub(crate) loaded: UnsafeCell<Option<VcpuRef>>,
    /// TSC until which `work_pending` does not look at the local APIC again.
    pub(crate) poll_at: AtomicU64,
    /// An interrupt was seen waiting, and none was taken since.
    pub(crate) interrupt_waits: AtomicBool,
    /// Task state: the stacks that the CPU switches to. Zeros, which cost no room in the file, until `load_segments`.
    pub(crate) tss: UnsafeCell<MaybeUninit<TaskStateSegment>>,
}

/// A CPU's area: four stacks for the interruptions that nothing masks, a guard page, the main stack, the data.
///
/// The linker script aligns the area to its size, not the type: an input section with so large an alignment would
/// part the file's layout from memory's, which multiboot1's header needs equal.
#[repr(C, align(4096))]
pub(crate) struct Area {
    ist: UnsafeCell<[[u8; IST_BYTES]; IST_STACKS]>,
    pub(crate) guard: UnsafeCell<[u8; 4096]>,
    stack: UnsafeCell<[u8; STACK_BYTES]>,
    pub(crate) local: Local,
}

const _: () = assert!(size_of::<Area>() == AREA_BYTES);
const _: () = assert!(offset_of!(Area, guard).is_multiple_of(4096));
const _: () = assert!(offset_of!(Area, local) % 16 == 0);

/// Offset of [`Local`] in an area: also where the main stack begins.
const LOCAL_OFFSET: usize = offset_of!(Area, local);
/// Offsets that entry code uses.
pub(crate) const LOCAL_REGS_TOP: usize = LOCAL_OFFSET + offset_of!(Local, regs_top);
/// Likewise.
pub(crate) const LOCAL_SCRATCH: usize = LOCAL_OFFSET + offset_of!(Local, scratch);

// SAFETY: the cells are stacks, the TSS and the current vCPU, which only their own CPU uses; the rest are atomics.
unsafe impl Sync for Area {}

/// The boot CPU's area.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.cpu_area")]
pub(crate) static boot_cpu_area: Area = Area {
    ist: UnsafeCell::new([[0; IST_BYTES]; IST_STACKS]),
    guard: UnsafeCell::new([0; 4096]),
    stack: UnsafeCell::new([0; STACK_BYTES]),
    local: Local {
        regs_top: AtomicU64::new(0),
        scratch: AtomicU64::new(0),
        pending: AtomicPtr::new(core::ptr::null_mut()),
        vcpu: AtomicPtr::new(core::ptr::null_mut()),
        current: UnsafeCell::new(None),
        loaded: UnsafeCell::new(None),
        poll_at: AtomicU64::new(0),
        interrupt_waits: AtomicBool::new(false),
        tss: UnsafeCell::new(MaybeUninit::zeroed()),
    },
};

impl Area {
    /// Top of the main stack.
    pub(crate) fn stack_top(&self) -> u64 {
        (&raw const self.local) as u64
    }

    /// Top of stack `n` (0 NMI, 1 machine check, 2 double fault, 3 debug).
    pub(crate) fn ist_top(&self, n: usize) -> u64 {
        self.ist.get() as u64 + ((n + 1) * IST_BYTES) as u64
    }
}

impl Local {
    /// The vCPU that runs on this CPU.
    #[inline(always)]
    pub(crate) fn current(&self) -> Option<&VcpuRef> {
        // SAFETY: only this CPU reads and writes the cell, and `set_current` is not called while a reference is used.
        unsafe { (*self.current.get()).as_ref() }
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
        // SAFETY: the caller's duty; `vcpu` points into what `current` keeps alive.
        unsafe {
            let current = (*self.current.get()).as_ref().unwrap_unchecked();
            (current.domain(), &*self.vcpu.load(Ordering::Relaxed))
        }
    }

    /// Calls `act` with the current vCPU. There is one: a guest was just interrupted, or is about to go on.
    #[inline(always)]
    pub(crate) fn with_current<R>(&'static self, act: impl FnOnce(&mut Cur<'_>) -> R) -> R {
        debug_assert!(self.is_busy());
        // SAFETY: only called where a vCPU runs.
        let (domain, vcpu) = unsafe { self.current_unchecked() };
        // SAFETY: the frame of the vCPU that runs here is this CPU's alone, and callers do not nest.
        let regs = unsafe { &mut *vcpu.regs_ptr() };
        act(&mut Current { hv: machine::hypervisor(), domain, vcpu, regs })
    }

    /// Sets where this CPU pushes on an interruption of ring 3.
    ///
    /// # Safety
    /// `top` is 16-aligned and one past the words of a frame that lives until it is set again.
    #[inline]
    pub(crate) unsafe fn set_entry_stack(&self, top: u64) {
        // SAFETY: the TSS is this CPU's, and was filled at start-up; the processor only reads it. The address is the frame's.
        unsafe { (*self.tss.get()).assume_init_mut().privilege_stack_table[0] = VirtAddr::new_unsafe(top) };
        self.regs_top.store(top, Ordering::Relaxed);
    }

    /// Makes another vCPU, or none, the current one; the former.
    ///
    /// # Safety
    /// No reference from [`Local::current`] is used after.
    pub(crate) unsafe fn set_current(&self, vcpu: Option<VcpuRef>) -> Option<VcpuRef> {
        // SAFETY: the caller's duty.
        let former = unsafe { core::mem::replace(&mut *self.current.get(), vcpu) };
        let now = self.current().map_or(core::ptr::null(), |current| core::ptr::from_ref(current.vcpu()));
        self.vcpu.store(now.cast_mut(), Ordering::Relaxed);
        former
    }
}

/// The data of the CPU that this runs on. Only on a CPU's own stack, not on the boot stack.
#[inline(always)]
pub(crate) fn local() -> &'static Local {
    let stack: usize;
    // SAFETY: reading the stack pointer changes nothing.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) };
    let area = stack & !(AREA_BYTES - 1);
    // SAFETY: every stack that the hypervisor runs on after start-up lies in an aligned `Area`, which is never freed.
    unsafe { &*((area + LOCAL_OFFSET) as *const Local) }
}

/// This CPU.
#[inline(always)]
pub(crate) fn this_cpu() -> CpuId {
    CpuId::BOOT
}

unsafe extern "C" {
    fn restart_stack(stack: u64, function: extern "C" fn() -> !) -> !;
}

/// Goes on in `function` with an empty stack of this CPU.
pub(crate) fn on_empty_stack(function: extern "C" fn() -> !) -> ! {
    // SAFETY: nothing on the stack is used any more, since `function` does not return.
    unsafe { restart_stack(boot_cpu_area.stack_top(), function) }
}
