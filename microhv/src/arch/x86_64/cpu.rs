//! Instructions that have no Rust form, and that the crate `x86_64` does not say, or says for a narrower use.
//!
//! Thin wrappers, each one instruction; each says who may call the wrapper when.
#![allow(unsafe_code)] // privileged instructions

use core::arch::asm;

use microhv::platform::CpuidResult;
use x86_64::VirtAddr;
use x86_64::instructions::port::{PortRead, PortWrite};
use x86_64::instructions::{self, interrupts, tables::lidt};
use x86_64::registers::model_specific::Msr;
use x86_64::structures::DescriptorTablePointer;

/// MSR numbers.
pub(crate) mod msr {
    pub(crate) const APIC_BASE: u32 = 0x1b;
    pub(crate) const SYSENTER_CS: u32 = 0x174;
    pub(crate) const SYSENTER_ESP: u32 = 0x175;
    pub(crate) const SYSENTER_EIP: u32 = 0x176;
    pub(crate) const PAT: u32 = 0x277;
    pub(crate) const EFER: u32 = 0xc000_0080;
    pub(crate) const STAR: u32 = 0xc000_0081;
    pub(crate) const LSTAR: u32 = 0xc000_0082;
    pub(crate) const CSTAR: u32 = 0xc000_0083;
    pub(crate) const FMASK: u32 = 0xc000_0084;
    pub(crate) const FS_BASE: u32 = 0xc000_0100;
    pub(crate) const GS_BASE: u32 = 0xc000_0101;
    pub(crate) const SHADOW_GS_BASE: u32 = 0xc000_0102;
}

/// What CR3 holds.
#[inline]
pub(crate) fn cr3() -> u64 {
    let value;
    // SAFETY: reading a control register changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Loads CR3.
///
/// # Safety
/// The tables there map the hypervisor.
#[inline]
pub(crate) unsafe fn set_cr3(value: u64) {
    // SAFETY: the caller's duty.
    unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Sets the status of debug exceptions.
pub(crate) fn set_dr6(value: u64) {
    // SAFETY: the status register enables nothing.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Reads an MSR that is known to exist.
#[inline]
pub(crate) fn read_msr(msr: u32) -> u64 {
    // SAFETY: callers pass the MSRs of this module, which exist on every x86_64 CPU, or one that CPUID says is there;
    // reading those changes nothing.
    unsafe { Msr::new(msr).read() }
}

/// Writes an MSR that is known to exist.
///
/// # Safety
/// The value keeps the hypervisor running.
#[inline]
pub(crate) unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller's duty.
    unsafe { Msr::new(msr).write(value) };
}

/// What the CPU answers to `cpuid`.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
}

/// The time-stamp counter.
#[inline]
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: reading the counter changes nothing.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The time-stamp counter, read after all that the code read before.
pub(crate) fn rdtsc_after_reads() -> u64 {
    // SAFETY: both change nothing.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// Flushes one page of the TLB.
#[inline]
pub(crate) fn invlpg(va: u64) {
    // SAFETY: dropping a cached translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
}

/// Reads a port of the width of `T`.
#[inline]
pub(crate) fn port_in<T: PortRead>(port: u16) -> T {
    // SAFETY: ports do not alias Rust memory; what a device does is the caller's business.
    unsafe { T::read_from_port(port) }
}

/// Writes a port of the width of `T`.
#[inline]
pub(crate) fn port_out<T: PortWrite>(port: u16, value: T) {
    // SAFETY: as in `port_in`.
    unsafe { T::write_to_port(port, value) };
}

/// Writes bytes to an I/O port, one after the other.
#[inline]
pub(crate) fn outsb(port: u16, bytes: &[u8]) {
    // SAFETY: as in `port_in`; reads `bytes` only, upwards, since the direction flag is clear in Rust code.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port, inout("rcx") bytes.len() => _, inout("rsi") bytes.as_ptr() => _,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// What LGDT and LIDT take: a table at `base`, which is canonical.
#[inline]
pub(crate) fn table_register(base: u64, limit: u16) -> DescriptorTablePointer {
    DescriptorTablePointer { limit, base: VirtAddr::new_truncate(base) }
}

/// Loads the LDT register.
///
/// # Safety
/// The selector is null (none) or names a descriptor of an LDT that stays valid.
#[inline]
pub(crate) unsafe fn lldt(selector: u16) {
    // SAFETY: the caller's duty.
    unsafe { asm!("lldt {:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

/// Takes the interrupts that wait, then has them off again.
///
/// The callers are on the CPU's own stack and hold no lock that a handler takes. `trap.S` saves all registers.
#[inline]
pub(crate) fn take_interrupts() {
    interrupts::enable();
    interrupts::disable();
}

/// Writes what the caches hold to memory: a reset may drop them.
pub(crate) fn write_back_caches() {
    // SAFETY: memory stays what the program sees of it.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}

/// Resets the machine by an exception that nothing can handle, as the last resort.
pub(crate) fn triple_fault() {
    // SAFETY: the machine ends here.
    unsafe {
        lidt(&table_register(0, 0));
        asm!("ud2", options(nomem, nostack));
    }
}

/// Sleeps until an interrupt that may be taken: with interrupts off, an NMI.
pub(crate) fn halt() {
    instructions::hlt();
}

/// Stops this CPU for ever: interrupts are off, and after an NMI the CPU sleeps again.
pub(crate) fn halt_for_ever() -> ! {
    loop {
        interrupts::disable();
        instructions::hlt();
    }
}
