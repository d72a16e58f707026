//! GDT, TSS and IDT: static, filled in place.
//!
//! The GDT register of a CPU that runs a vCPU points to the vCPU's window in L4 slot 260: pages 0-13 are the guest's, page 14
//! is [`GDT_PAGE`], which all CPUs share. Each CPU has selectors of its own there for its TSS and for the LDT that it has
//! loaded, so a vCPU that moves to another CPU takes nothing with it. Until the first vCPU runs, the register points so that
//! page 14 falls on the static itself.
#![allow(unsafe_code)] // tables that the processor reads

use core::cell::UnsafeCell;
use core::mem::size_of;
use core::sync::atomic::{AtomicU64, Ordering};

use microhv::platform::{CpuId, MAX_CPUS};
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::{lgdt, lidt, load_tss};
use x86_64::registers::segmentation::SegmentSelector;
use x86_64::structures::tss::TaskStateSegment;

use super::cpu::{self, msr};

/// Offset of our page in every GDT: 14 pages are the guest's.
pub(crate) const GDT_OUR_OFFSET: u64 = 14 * 4096;
/// Limit of every GDT: our page is the last.
pub(crate) const GDT_LIMIT: u16 = (15 * 4096 - 1) as u16;

/// The hypervisor's code selector.
pub(crate) const HYPERVISOR_CS: u16 = 0xe008;
/// The hypervisor's data selector.
pub(crate) const HYPERVISOR_DS: u16 = 0xe010;
/// The first CPU's TSS selector. Each CPU has two descriptors of 16 bytes from there on: of its TSS, and of its LDT.
const FIRST_TSS: u16 = 0xe040;
const _: () = assert!(FIRST_TSS as u64 + 32 * MAX_CPUS as u64 <= GDT_OUR_OFFSET + 4096);

fn tss_selector(cpu: CpuId) -> u16 {
    FIRST_TSS + 32 * cpu.index() as u16
}

/// Selector of the LDT of the vCPU that runs on `cpu`.
pub(crate) fn ldt_selector(cpu: CpuId) -> u16 {
    tss_selector(cpu) + 16
}

/// Our page of the GDT.
#[repr(C, align(4096))]
pub(crate) struct GdtPage([AtomicU64; 512]);

/// The page of every CPU's GDT.
pub(crate) static GDT_PAGE: GdtPage = GdtPage([const { AtomicU64::new(0) }; 512]);

impl GdtPage {
    /// Where the page lies in the image.
    pub(crate) fn address(&self) -> u64 {
        (&raw const self.0) as u64
    }

    fn set(&self, selector: u16, value: u64) {
        self.0[(u64::from(selector) - GDT_OUR_OFFSET) as usize / 8].store(value, Ordering::Relaxed);
    }

    /// Sets a descriptor of 16 bytes: of a TSS, or of the LDT that `lldt` then loads.
    pub(crate) fn set_system(&self, selector: u16, base: u64, limit: u32, kind: u64) {
        let low = u64::from(limit & 0xffff)
            | (base & 0xff_ffff) << 16
            | kind << 40
            | u64::from(limit >> 16 & 0xf) << 48
            | (base >> 24 & 0xff) << 56;
        self.set(selector, low);
        self.set(selector + 8, base >> 32);
    }
}

/// Fills the descriptors that all CPUs share.
pub(crate) fn fill_gdt() {
    GDT_PAGE.set(HYPERVISOR_CS, 0x00af_9b00_0000_ffff);
    GDT_PAGE.set(HYPERVISOR_DS, 0x00cf_9300_0000_ffff);
    GDT_PAGE.set(0xe020, 0x00cf_fb00_0000_ffff); // FLAT_USER_CS32 (with RPL 3: 0xe023)
    GDT_PAGE.set(0xe028, 0x00cf_f300_0000_ffff); // FLAT_USER_DS (0xe02b)
    GDT_PAGE.set(0xe030, 0x00af_fb00_0000_ffff); // FLAT_USER_CS64 (0xe033)
}

/// Fills the TSS of a CPU and its descriptor, and loads the GDT with the segment registers. The stacks are that for interruptions of
/// ring 3, and those for NMI, machine check, double fault and debug exceptions.
///
/// # Safety
/// At the CPU's start, on `cpu` itself, after [`fill_gdt`].
pub(crate) unsafe fn load_segments(cpu: CpuId, tss: *mut TaskStateSegment, stack: u64, ist: [u64; 4]) {
    GDT_PAGE.set_system(tss_selector(cpu), tss as u64, size_of::<TaskStateSegment>() as u32 - 1, 0x89);
    // SAFETY: start-up: no other reference to this CPU's TSS exists; the GDT holds the selectors.
    unsafe {
        // Without an I/O bitmap: ring 3 has no port of its own.
        tss.write(TaskStateSegment::new());
        for (n, top) in ist.into_iter().enumerate() {
            (*tss).interrupt_stack_table[n] = VirtAddr::new(top);
        }
        (*tss).privilege_stack_table[0] = VirtAddr::new(stack);
        lgdt(&cpu::table_register(GDT_PAGE.address().wrapping_sub(GDT_OUR_OFFSET), GDT_LIMIT));
        CS::set_reg(SegmentSelector(HYPERVISOR_CS));
        SS::set_reg(SegmentSelector(HYPERVISOR_DS));
        DS::set_reg(SegmentSelector::NULL);
        ES::set_reg(SegmentSelector::NULL);
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        cpu::lldt(0);
        load_tss(SegmentSelector(tss_selector(cpu)));
    }
}

/// Loads the GDT that no vCPU has, and no LDT: this CPU leaves the descriptor tables of the vCPU that it had loaded.
pub(crate) fn leave_window() {
    // SAFETY: page 14 of this GDT is the page with our descriptors, and the CPU uses no others until it loads a vCPU.
    unsafe {
        lgdt(&cpu::table_register(GDT_PAGE.address().wrapping_sub(GDT_OUR_OFFSET), GDT_LIMIT));
        cpu::lldt(0);
    }
}

#[repr(C, align(4096))]
struct Idt(UnsafeCell<[[u64; 2]; 256]>);

// SAFETY: written at start-up only.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

unsafe extern "C" {
    static vector_stubs: u8;
    fn debug_stub();
    fn nmi_stub();
    fn machine_check_stub();
    fn double_fault_stub();
    fn syscall_entry_00();
    fn syscall32_entry_00();
    fn sysenter_entry();
    fn own_syscall_entry_00();
    fn own_syscall32_entry_00();
    fn own_sysenter_entry();
}

/// Bytes between the entry stubs of `trap.S`.
const STUB_BYTES: u64 = 16;
/// Bytes between the entries of two CPUs in `syscall.S`. The boot CPU's come last.
const CPU_STUB_BYTES: u64 = 32;

/// Fills the IDT.
///
/// # Safety
/// Once, at start-up.
pub(crate) unsafe fn fill_idt() {
    // SAFETY: start-up: no other reference exists.
    let idt = unsafe { &mut *IDT.0.get() };
    for (vector, gate) in idt.iter_mut().enumerate() {
        let (target, ist) = match vector {
            1 => (debug_stub as *const () as u64, 4),
            2 => (nmi_stub as *const () as u64, 1),
            8 => (double_fault_stub as *const () as u64, 3),
            18 => (machine_check_stub as *const () as u64, 2),
            _ => ((&raw const vector_stubs) as u64 + STUB_BYTES * vector as u64, 0u64),
        };
        // `int3`, `into` and `int 0x80` are the guest's to use; any other `int n` raises #GP, which the
        // hypervisor decodes.
        let dpl = if matches!(vector, 3 | 4 | 0x80) { 3u64 } else { 0 };
        gate[0] = target & 0xffff
            | u64::from(HYPERVISOR_CS) << 16
            | ist << 32
            | (0x8e | dpl << 5) << 40
            | (target >> 16 & 0xffff) << 48;
        gate[1] = target >> 32;
    }
}

/// Whether the CPU knows SYSENTER.
fn has_sysenter() -> bool {
    cpu::cpuid(1, 0).edx & 1 << 11 != 0
}

/// Loads the IDT and the SYSCALL and SYSENTER entries of `cpu`, whose stack for interruptions of ring 3 is SYSENTER's too.
///
/// # Safety
/// On `cpu` itself, after [`fill_idt`] and [`load_segments`].
pub(crate) unsafe fn load_entries(cpu: CpuId, stack: u64) {
    // TF, IF, DF, IOPL, NT, RF, AC are cleared by SYSCALL.
    const FMASK: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 3 << 12 | 1 << 14 | 1 << 16 | 1 << 18;
    let entry_of =
        |first: unsafe extern "C" fn()| first as *const () as u64 - CPU_STUB_BYTES * cpu.index() as u64;
    // SAFETY: the entries exist for the whole run; STAR names descriptors of our GDT page.
    unsafe {
        lidt(&cpu::table_register(IDT.0.get() as u64, (size_of::<Idt>() - 1) as u16));
        cpu::write_msr(msr::STAR, 0xe023 << 48 | u64::from(HYPERVISOR_CS) << 32);
        cpu::write_msr(msr::LSTAR, entry_of(syscall_entry_00));
        cpu::write_msr(msr::CSTAR, entry_of(syscall32_entry_00));
        cpu::write_msr(msr::FMASK, FMASK);
        if has_sysenter() {
            cpu::write_msr(msr::SYSENTER_CS, u64::from(HYPERVISOR_CS));
            cpu::write_msr(msr::SYSENTER_ESP, stack);
            cpu::write_msr(msr::SYSENTER_EIP, sysenter_entry as *const () as u64);
        }
    }
}

/// Loads the entries of `cpu` that load the hypervisor's page tables first.
///
/// # Safety
/// On `cpu` itself, after [`load_entries`]; the tables for guests are made.
pub(crate) unsafe fn load_own_entries(cpu: CpuId) {
    let entry_of =
        |first: unsafe extern "C" fn()| first as *const () as u64 - CPU_STUB_BYTES * cpu.index() as u64;
    // SAFETY: the entries exist for the whole run.
    unsafe {
        cpu::write_msr(msr::LSTAR, entry_of(own_syscall_entry_00));
        cpu::write_msr(msr::CSTAR, entry_of(own_syscall32_entry_00));
        if has_sysenter() {
            cpu::write_msr(msr::SYSENTER_EIP, own_sysenter_entry as *const () as u64);
        }
    }
}

/// The address of the IDT, which is a page.
pub(crate) fn idt_address() -> u64 {
    IDT.0.get() as u64
}
