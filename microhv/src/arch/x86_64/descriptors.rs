//! GDT, TSS and IDT: static, filled in place.
//!
//! The GDT register of a running vCPU points to its window in L4 slot 260: pages 0-13 are the guest's, page 14 is
//! [`GDT_PAGE`]. Until the first vCPU runs, the register points so that page 14 falls on the static itself.
#![allow(unsafe_code)] // tables that the processor reads

use core::cell::UnsafeCell;
use core::mem::size_of;

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
const TSS_SELECTOR: u16 = 0xe040;
/// Selector of the running vCPU's LDT.
pub(crate) const LDT_SELECTOR: u16 = 0xe050;

/// Our page of the GDT.
#[repr(C, align(4096))]
pub(crate) struct GdtPage(UnsafeCell<[u64; 512]>);

// SAFETY: written at start-up and, for the LDT slot, by the CPU whose page it is.
unsafe impl Sync for GdtPage {}

/// The boot CPU's page of the GDT.
pub(crate) static GDT_PAGE: GdtPage = GdtPage(UnsafeCell::new([0; 512]));

impl GdtPage {
    /// Where the page lies in the image.
    pub(crate) fn address(&self) -> u64 {
        self.0.get() as u64
    }

    fn set(&self, selector: u16, value: u64) {
        let index = (u64::from(selector) - GDT_OUR_OFFSET) as usize / 8;
        // SAFETY: the index is below 512 for our selectors, and only this CPU writes its page.
        unsafe { (*self.0.get())[index] = value };
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

/// Fills the GDT page and the TSS of a CPU, and loads them with the segment registers. The stacks are the main one, and
/// those for NMI, machine check, double fault and debug exceptions.
///
/// # Safety
/// Once per CPU, at its start.
pub(crate) unsafe fn load_segments(page: &GdtPage, tss: *mut TaskStateSegment, stack: u64, ist: [u64; 4]) {
    page.set(HYPERVISOR_CS, 0x00af_9b00_0000_ffff);
    page.set(HYPERVISOR_DS, 0x00cf_9300_0000_ffff);
    page.set(0xe020, 0x00cf_fb00_0000_ffff); // FLAT_USER_CS32 (with RPL 3: 0xe023)
    page.set(0xe028, 0x00cf_f300_0000_ffff); // FLAT_USER_DS (0xe02b)
    page.set(0xe030, 0x00af_fb00_0000_ffff); // FLAT_USER_CS64 (0xe033)
    page.set_system(TSS_SELECTOR, tss as u64, size_of::<TaskStateSegment>() as u32 - 1, 0x89);
    // SAFETY: start-up: no other reference to this CPU's TSS exists; the GDT holds the selectors.
    unsafe {
        // Without an I/O bitmap: ring 3 has no port of its own.
        tss.write(TaskStateSegment::new());
        for (n, top) in ist.into_iter().enumerate() {
            (*tss).interrupt_stack_table[n] = VirtAddr::new(top);
        }
        (*tss).privilege_stack_table[0] = VirtAddr::new(stack);
        lgdt(&cpu::table_register(page.address().wrapping_sub(GDT_OUR_OFFSET), GDT_LIMIT));
        CS::set_reg(SegmentSelector(HYPERVISOR_CS));
        SS::set_reg(SegmentSelector(HYPERVISOR_DS));
        DS::set_reg(SegmentSelector::NULL);
        ES::set_reg(SegmentSelector::NULL);
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        cpu::lldt(0);
        load_tss(SegmentSelector(TSS_SELECTOR));
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
    fn syscall_entry();
    fn syscall32_entry();
    fn sysenter_entry();
}

/// Bytes between the entry stubs of `trap.S`.
const STUB_BYTES: u64 = 16;

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

/// Loads the IDT and the SYSCALL and SYSENTER entries of this CPU. Without a stack for it there is no SYSENTER.
///
/// # Safety
/// After [`fill_idt`] and [`load_segments`].
pub(crate) unsafe fn load_entries(sysenter_stack: Option<u64>) {
    // CF, TF, IF, DF, IOPL, NT, RF, AC are cleared by SYSCALL.
    const FMASK: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 3 << 12 | 1 << 14 | 1 << 16 | 1 << 18;
    // SAFETY: the entries exist for the whole run; STAR names descriptors of our GDT page.
    unsafe {
        lidt(&cpu::table_register(IDT.0.get() as u64, (size_of::<Idt>() - 1) as u16));
        cpu::write_msr(msr::STAR, 0xe023 << 48 | u64::from(HYPERVISOR_CS) << 32);
        cpu::write_msr(msr::LSTAR, syscall_entry as *const () as u64);
        cpu::write_msr(msr::CSTAR, syscall32_entry as *const () as u64);
        cpu::write_msr(msr::FMASK, FMASK);
        if let Some(stack) = sysenter_stack {
            cpu::write_msr(msr::SYSENTER_CS, u64::from(HYPERVISOR_CS));
            cpu::write_msr(msr::SYSENTER_ESP, stack);
            cpu::write_msr(msr::SYSENTER_EIP, sysenter_entry as *const () as u64);
        }
    }
}
