//! Instructions that have no Rust form: control registers, MSRs, ports, segment and table registers.
//!
//! Thin wrappers, each one instruction; each says who may call the wrapper when.
#![allow(unsafe_code)] // privileged instructions

use core::arch::asm;

use microhv::platform::CpuidResult;

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

macro_rules! control_register {
    ($read:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        #[inline]
        pub(crate) fn $read() -> u64 {
            let value;
            // SAFETY: reading a control register changes nothing.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    };
    ($read:ident, $write:ident, $name:literal) => {
        control_register!($read, $name);

        #[doc = concat!("Writes ", $name, ".")]
        ///
        /// # Safety
        /// The value keeps the hypervisor running: mapped, and with its protections on.
        #[inline]
        pub(crate) unsafe fn $write(value: u64) {
            // SAFETY: the caller's duty.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}

control_register!(cr0, set_cr0, "cr0");
control_register!(cr2, "cr2"); // the address of the last page fault
control_register!(cr3, set_cr3, "cr3");
control_register!(cr4, set_cr4, "cr4");
control_register!(dr0, set_dr0, "dr0");
control_register!(dr1, set_dr1, "dr1");
control_register!(dr2, set_dr2, "dr2");
control_register!(dr3, set_dr3, "dr3");
control_register!(dr6, set_dr6, "dr6");
control_register!(dr7, set_dr7, "dr7");

/// Reads debug register `index`: 0-3, 6, else 7.
pub(crate) fn debug_register(index: u8) -> u64 {
    match index {
        0 => dr0(),
        1 => dr1(),
        2 => dr2(),
        3 => dr3(),
        6 => dr6(),
        _ => dr7(),
    }
}

/// Writes debug register `index`: 0-3, 6, else 7.
///
/// # Safety
/// No breakpoint is in the hypervisor.
pub(crate) unsafe fn set_debug_register(index: u8, value: u64) {
    // SAFETY: the caller's duty.
    unsafe {
        match index {
            0 => set_dr0(value),
            1 => set_dr1(value),
            2 => set_dr2(value),
            3 => set_dr3(value),
            6 => set_dr6(value),
            _ => set_dr7(value),
        }
    }
}

/// Reads an MSR that is known to exist.
#[inline]
pub(crate) fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: callers pass the MSRs of this module, which exist on every x86_64 CPU, or one that CPUID says is there;
    // reading those changes nothing.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR that is known to exist.
///
/// # Safety
/// The value keeps the hypervisor running.
#[inline]
pub(crate) unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller's duty.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
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

/// Flushes one page of the TLB.
#[inline]
pub(crate) fn invlpg(va: u64) {
    // SAFETY: dropping a cached translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
}

/// Swaps the loaded GS base with the shadow one: guest kernel's and guest user's.
///
/// The hypervisor never uses GS.
#[inline]
pub(crate) fn swapgs() {
    // SAFETY: nothing in ring 0 depends on the GS base.
    unsafe { asm!("swapgs", options(nomem, nostack, preserves_flags)) };
}

macro_rules! port {
    ($read:ident, $write:ident, $value:ty, $register:tt) => {
        #[doc = concat!("Reads a port, by ", $register, ".")]
        #[inline]
        pub(crate) fn $read(port: u16) -> $value {
            let value;
            // SAFETY: ports do not alias Rust memory; what a device does is the caller's business.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                     options(nomem, nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("Writes a port, by ", $register, ".")]
        #[inline]
        pub(crate) fn $write(port: u16, value: $value) {
            // SAFETY: as in the read.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                     options(nomem, nostack, preserves_flags));
            }
        }
    };
}

port!(inb, outb, u8, "al");
port!(inw, outw, u16, "ax");
port!(inl, outl, u32, "eax");

/// Writes bytes to an I/O port, one after the other.
#[inline]
pub(crate) fn outsb(port: u16, bytes: &[u8]) {
    // SAFETY: as in `outb`; reads `bytes` only, upwards, since the direction flag is clear in Rust code.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port, inout("rcx") bytes.len() => _, inout("rsi") bytes.as_ptr() => _,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// What LGDT and LIDT take.
#[repr(C, packed)]
struct TableRegister {
    limit: u16,
    base: u64,
}

macro_rules! load_table {
    ($load:ident) => {
        #[doc = concat!("Loads a table register: ", stringify!($load), ".")]
        ///
        /// # Safety
        /// The table stays mapped there, and holds the hypervisor's selectors or gates.
        #[inline]
        pub(crate) unsafe fn $load(base: u64, limit: u16) {
            let register = TableRegister { limit, base };
            // SAFETY: the caller's duty.
            unsafe {
                asm!(concat!(stringify!($load), " [{}]"), in(reg) &raw const register,
                     options(readonly, nostack, preserves_flags));
            }
        }
    };
}

load_table!(lgdt);
load_table!(lidt);

/// The base in the GDT register.
pub(crate) fn gdt_base() -> u64 {
    let mut register = TableRegister { limit: 0, base: 0 };
    // SAFETY: stores ten bytes into our own structure.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut register, options(nostack, preserves_flags)) };
    register.base
}

macro_rules! load_selector {
    ($load:ident) => {
        #[doc = concat!("Loads a system segment register from a selector: ", stringify!($load), ".")]
        ///
        /// # Safety
        /// The selector is null (none) or names a valid descriptor of the right kind that stays valid.
        #[inline]
        pub(crate) unsafe fn $load(selector: u16) {
            // SAFETY: the caller's duty.
            unsafe {
                asm!(concat!(stringify!($load), " {:x}"), in(reg) selector, options(nostack, preserves_flags));
            }
        }
    };
}

load_selector!(lldt);
load_selector!(ltr);

/// Loads CS (by a far return) and the data segments with the hypervisor's selectors.
///
/// # Safety
/// The loaded GDT holds both selectors.
pub(crate) unsafe fn load_hypervisor_segments(code: u16, data: u16) {
    // SAFETY: the caller's duty; the far return lands on the next instruction.
    unsafe {
        asm!(
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ss, {data:e}",
            "mov ds, {null:e}",
            "mov es, {null:e}",
            "mov fs, {null:e}",
            "mov gs, {null:e}",
            code = in(reg) u64::from(code), data = in(reg) u32::from(data), null = in(reg) 0u32,
            scratch = out(reg) _,
        );
    }
}

/// The data segment selectors that are loaded: ds, es, fs, gs.
#[inline]
pub(crate) fn data_selectors() -> [u16; 4] {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reading segment registers changes nothing.
    unsafe {
        asm!("mov {0:x}, ds", "mov {1:x}, es", "mov {2:x}, fs", "mov {3:x}, gs",
             out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs, options(nomem, nostack, preserves_flags));
    }
    [ds, es, fs, gs]
}

/// Sleeps until an interrupt came and was served, then has interrupts off again.
#[inline]
pub(crate) fn sleep_until_interrupt() {
    // SAFETY: STI takes effect after the HLT has begun, so that no wake-up is lost; handlers save all registers.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Takes the interrupts that wait, then has them off again.
#[inline]
pub(crate) fn take_interrupts() {
    // SAFETY: `trap.S` saves all registers for the handlers. The one caller, `do_pending_work`, is on the CPU's own stack
    // and holds no lock that a handler takes, as before its sleep. STI takes effect after the next instruction.
    unsafe { asm!("sti", "nop", "cli") };
}

/// Stops this CPU for ever.
pub(crate) fn halt_for_ever() -> ! {
    loop {
        // SAFETY: interrupts are off: only an NMI wakes the CPU, which then sleeps again.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
