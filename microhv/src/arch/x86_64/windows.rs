//! Descriptor windows: where the processor sees each vCPU's GDT and LDT, in L4 slot 260. The library's
//! [`DescriptorWindows`].
//!
//! A window has the guest's 14 GDT pages, ours, a hole, and 16 LDT pages. All domains share the slot's tables: windows
//! of different vCPUs have different addresses, so that a switch leaves nothing stale in the TLB.
#![allow(unsafe_code)] // descriptor-table registers, page-table frames from the heap

use core::ptr::NonNull;

use microhv::platform::{DescriptorPage, DescriptorWindow, DescriptorWindows};
use microhv::sync::{Mutex, rank};
use ring_abi::types::{Mfn, PAGE_SIZE};
use x86_64::instructions::tables::{lgdt, sgdt};

use super::descriptors::{GDT_LIMIT, GDT_OUR_OFFSET, GDT_PAGE, ldt_selector};
use super::machine::Machine;
use super::percpu::this_cpu;
use super::{cpu, paging, roots};

/// The page of a window's GDT that is ours; the pages before are the guest's.
const GDT_OUR_PAGE: usize = GDT_OUR_OFFSET as usize / PAGE_SIZE;

/// Loads the GDT and LDT of a window. The window's address is [`DescriptorWindow::place`].
pub(crate) fn load(window: &DescriptorWindow, ldt_entries: u16) {
    let base = window.place();
    roots::show_window(base);
    // SAFETY: the window's page 14 is our GDT page since `create_window`; the LDT descriptor is written before it is
    // loaded.
    unsafe {
        lgdt(&cpu::table_register(base, GDT_LIMIT));
        if ldt_entries == 0 {
            cpu::lldt(0);
        } else {
            let limit = u32::from(ldt_entries) * 8 - 1;
            let selector = ldt_selector(this_cpu());
            GDT_PAGE.set_system(selector, base + paging::WINDOW_LDT, limit, 0x82);
            cpu::lldt(selector);
        }
    }
}

/// Descriptor windows: which places are taken, a bit each.
const WINDOW_COUNT: usize = 8192;
static WINDOWS_USED: Mutex<rank::Windows, [u64; WINDOW_COUNT / 64]> = Mutex::new([0; WINDOW_COUNT / 64]);

/// A page of zeros, for pages of a GDT that the guest did not set.
#[repr(C, align(4096))]
struct ZeroPage([u8; PAGE_SIZE]);
static ZERO_PAGE: ZeroPage = ZeroPage([0; PAGE_SIZE]);

/// From one window to the next. Tables for guests map a level 1 table of windows as a whole, so there each has one for itself.
fn stride() -> u64 {
    if roots::are_on() { paging::WINDOW_TABLE_BYTES } else { paging::WINDOW_BYTES }
}

fn take_window() -> Option<u64> {
    let mut used = WINDOWS_USED.lock();
    let (word, bits) = used.iter_mut().enumerate().find(|(_, bits)| **bits != u64::MAX)?;
    let bit = bits.trailing_ones() as usize;
    let va = paging::WINDOWS + (word * 64 + bit) as u64 * stride();
    // The L1 table is never freed, since it also serves the windows around.
    let has_table = paging::has_window_table(va, || {
        let layout = core::alloc::Layout::new::<ZeroPage>();
        // SAFETY: the layout is not empty.
        let table = NonNull::new(unsafe { alloc::alloc::alloc_zeroed(layout) })?;
        Some(paging::machine_address(table.as_ptr() as u64))
    });
    *bits |= u64::from(has_table) << bit;
    has_table.then_some(va)
}

/// The byte of the window's LDT at which the processor would have stopped with `cr2`.
pub(crate) fn ldt_offset(window: &DescriptorWindow, cr2: u64) -> Option<u64> {
    const LDT_BYTES: u64 = 0x1_0000;
    cr2.checked_sub(window.place() + paging::WINDOW_LDT).filter(|offset| *offset < LDT_BYTES)
}

impl DescriptorWindows for Machine {
    fn create_window(&self, window: &DescriptorWindow) -> bool {
        let Some(base) = take_window() else { return false };
        let mut pages = [paging::machine_address((&raw const ZERO_PAGE) as u64); GDT_OUR_PAGE + 1];
        pages[GDT_OUR_PAGE] = paging::machine_address(GDT_PAGE.address());
        paging::set_window(base, &pages);
        window.replace(base);
        true
    }

    fn destroy_window(&self, window: &DescriptorWindow) {
        let base = window.replace(0);
        if base == 0 {
            return;
        }
        debug_assert_ne!(
            sgdt().base.as_u64(),
            base,
            "a CPU that has a vCPU's tables loaded keeps its domain"
        );
        paging::set_window(base, &[]);
        let place = ((base - paging::WINDOWS) / stride()) as usize;
        WINDOWS_USED.lock()[place / 64] &= !(1 << (place % 64));
    }

    /// Without a frame: zeros in the GDT, nothing in the LDT, whose pages are brought in by the first fault on them.
    fn set_descriptor_page(&self, window: &DescriptorWindow, page: DescriptorPage, frame: Option<Mfn>) {
        let zeros = paging::machine_address((&raw const ZERO_PAGE) as u64);
        let (table, n, none) = match page {
            DescriptorPage::Gdt(n) => (0, n, Some(zeros)),
            DescriptorPage::Ldt(n) => (paging::WINDOW_LDT, n, None),
        };
        let va = window.place() + table + u64::from(n) * PAGE_SIZE as u64;
        paging::set_window_page(va, frame.map(|mfn| mfn.maddr().raw()).or(none));
    }

    fn reload_descriptor_tables(&self, window: &DescriptorWindow, ldt_entries: u16) {
        if sgdt().base.as_u64() == window.place() {
            load(window, ldt_entries);
        }
    }
}
