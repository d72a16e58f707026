//! Floating-point and vector state, switched eagerly with the vCPU: XSAVE where the CPU has it, FXSAVE where not.
#![allow(unsafe_code)] // state-saving instructions

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use microhv::domain::FpuArea;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::xcontrol::XCr0;

use super::cpu::cpuid;

/// The state components that are switched: XCR0. 0 without XSAVE.
static COMPONENTS: AtomicU64 = AtomicU64::new(0);
/// Whether what [`restore`] loads may leave the pointers of the last error as they are, where the loaded state has no error.
static POINTERS_STAY: AtomicBool = AtomicBool::new(false);

/// Turns floating point on for the guests of this CPU.
pub(crate) fn init() {
    let has_xsave = cpuid(1, 0).ecx & 1 << 26 != 0;
    // SAFETY: adds features only; the hypervisor itself uses no such instruction.
    unsafe {
        Cr0::update(|cr0| {
            cr0.insert(Cr0Flags::MONITOR_COPROCESSOR | Cr0Flags::NUMERIC_ERROR);
            cr0.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
        });
        Cr4::update(|cr4| {
            cr4.insert(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE);
            cr4.set(Cr4Flags::OSXSAVE, has_xsave);
        });
    }
    if !has_xsave {
        return;
    }
    let leaf = cpuid(0xd, 0);
    let supported = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    // x87, SSE, AVX, and AVX-512 if the area has room (the size in EBX is that of the components in XCR0).
    for components in [supported & 0xe7, supported & 7, 3] {
        set_xcr0(components);
        if cpuid(0xd, 0).ebx as usize <= FpuArea::BYTES {
            COMPONENTS.store(components, Ordering::Relaxed);
            return;
        }
    }
}

/// What a new vCPU has in XCR0, as on Xen: x87 and SSE, whatever its domain may set.
const XCR0_AT_FIRST: u64 = 3;

/// From now on pointers of floating-point errors are overwritten before a vCPU's state is loaded.
pub(crate) fn overwrite_pointers() {
    POINTERS_STAY.store(true, Ordering::Relaxed);
}

/// Sets XCR0. The value is one of [`components`], or was checked against them; there is XSAVE.
pub(crate) fn set_xcr0(value: u64) {
    // SAFETY: CR4.OSXSAVE is on, and the value holds x87 (bit 0) and only supported components.
    unsafe { XCr0::write_raw(value) };
}

/// The state components that guests may use; 0 without XSAVE.
pub(crate) fn components() -> u64 {
    COMPONENTS.load(Ordering::Relaxed)
}

/// Saves this CPU's state into a vCPU's area.
#[inline(never)]
pub(crate) fn save(area: &FpuArea) {
    let at = area.as_ptr();
    let components = COMPONENTS.load(Ordering::Relaxed);
    if components != 0 {
        // SAFETY: within the area, which is this CPU's now; XSAVE does not write there.
        unsafe { at.add(FpuArea::SOFTWARE_OFFSET).cast::<u64>().write(XCr0::read_raw()) };
        set_xcr0(components);
    }
    // SAFETY: the area is 64-aligned and holds the components that `init` chose; only this CPU uses it now.
    unsafe {
        if components == 0 {
            asm!("fxsave64 [{}]", in(reg) at, options(nostack));
        } else {
            asm!("xsave64 [{}]", in(reg) at, in("eax") components as u32, in("edx") (components >> 32) as u32,
                 options(nostack));
        }
    }
}

/// A number to load.
static ZERO: u32 = 0;

/// Loads a vCPU's state.
#[inline(never)]
pub(crate) fn restore(area: &FpuArea) {
    let at = area.as_ptr();
    let components = COMPONENTS.load(Ordering::Relaxed);
    if components != 0 {
        set_xcr0(components);
    }
    if POINTERS_STAY.load(Ordering::Relaxed) {
        // SAFETY: no error is pending and the register stack is empty when the number is loaded, so nothing faults; all of the
        // state is replaced below. CR0.TS is clear: `init` or `save` cleared that.
        unsafe { asm!("fnclex", "emms", "fild dword ptr [{}]", in(reg) &raw const ZERO, options(nostack)) };
    }
    // SAFETY: as in `save`; the area was written by `save` or by its constructor, and holds no reserved bit.
    unsafe {
        if components == 0 {
            asm!("fxrstor64 [{}]", in(reg) at, options(nostack, readonly));
        } else {
            asm!("xrstor64 [{}]", in(reg) at, in("eax") components as u32, in("edx") (components >> 32) as u32,
                 options(nostack, readonly));
            match at.add(FpuArea::SOFTWARE_OFFSET).cast::<u64>().read() {
                0 => set_xcr0(XCR0_AT_FIRST), // the vCPU never ran
                own => set_xcr0(own),
            }
        }
    }
}

/// Sets or clears CR0.TS: while TS is set, the guest's next floating-point instruction traps.
pub(crate) fn set_task_switched(on: bool) {
    const TASK_SWITCHED: u64 = Cr0Flags::TASK_SWITCHED.bits();
    let cr0 = Cr0::read_raw();
    let wanted = if on { cr0 | TASK_SWITCHED } else { cr0 & !TASK_SWITCHED };
    if wanted != cr0 {
        // SAFETY: the hypervisor uses no floating point.
        unsafe { Cr0::write_raw(wanted) };
    }
}
