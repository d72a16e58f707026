//! What a guest sees of traps: bounce frames, callbacks, `iret`.
//!
//! A guest kernel runs in ring 3 like its user mode. What the processor would do on a native machine (switch the
//! stack, push a frame, load the handler) is done here on the saved registers, after the page tables and GS base of
//! kernel mode were loaded. Frames, from low to high addresses:
//!
//! | | |
//! | --- | --- |
//! | exception, event, syscall | rcx, r11, \[error\], rip, cs and mask, rflags, rsp, ss |
//! | failsafe | rcx, r11, ds, es, fs, gs, rip, cs and mask, rflags, rsp, ss |
//! | `iret` takes | rax, r11, rcx, flags, rip, cs, rflags, rsp, ss |
//!
//! "cs and mask" is one word: cs in the low 32 bits, the saved upcall mask in bits 32-39.
//!
//! ABI: `struct iret_context`, `xen/include/public/arch-x86/xen-x86_64.h`; `xen/include/public/callback.h`.
#![forbid(unsafe_code)]

mod bounce;
mod interrupt;
mod iret;
mod mode;

pub use bounce::{
    deliver_event, deliver_exception, deliver_failsafe, deliver_nmi, deliver_plain, device_not_available,
    page_fault, retired,
};
pub use interrupt::{int1, int80, software_interrupt, syscall, syscall32, sysenter};
pub(crate) use iret::USER_FLAGS;
pub use iret::iret;
pub use mode::{leave_user_mode, loaded_l4};

/// In `CpuUserRegs::entry_vector`: SYSRET may return to the guest. The code that stores this value made sure that rcx and
/// r11 need not be kept, and that cs and ss are the flat selectors, which SYSRET loads.
pub const ENTRY_SYSCALL: u32 = u32::MAX;

/// An entry of the guest's trap table: an exception, or the interrupt of an `int` instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrapVector(pub u8);

/// Exceptions that are more than bounced.
#[allow(missing_docs)] // the names of the processor's manuals
impl TrapVector {
    pub const DEBUG: Self = Self(1);
    pub const NMI: Self = Self(2);
    pub const UNDEFINED: Self = Self(6);
    pub const NO_DEVICE: Self = Self(7);
    pub const PROTECTION: Self = Self(13);
    pub const PAGE_FAULT: Self = Self(14);
}

/// Flag bits of rflags that matter here.
pub mod flags {
    /// Trap flag.
    pub const TF: u64 = 1 << 8;
    /// Interrupt flag.
    pub const IF: u64 = 1 << 9;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume flag.
    pub const RF: u64 = 1 << 16;
    /// Virtual 8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check.
    pub const AC: u64 = 1 << 18;
}

/// The guest kernel's code selector, as frames of kernel mode show it with RPL 0.
pub(crate) const KERNEL_CS: u16 = 0xe033;
/// The guest kernel's stack selector.
const KERNEL_SS: u16 = 0xe02b;

#[cfg(test)]
mod tests;
