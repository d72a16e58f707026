//! Page tables for guests on a CPU with Meltdown, which lets a guest read ahead whatever its page tables map: of the hypervisor's they
//! map only what the ways in and out need, and what the guest may read or uses itself.
//!
//! | slot | what |
//! | --- | --- |
//! | 256 | the M2P |
//! | 260 | the descriptor window of the vCPU that is loaded, and no other |
//! | 261 | entry code and its constants, the IDT; of this CPU's area the interrupt stacks and the entry page |
//!
//! Each CPU has tables of its own, two of level 4, whose other slots are copies of a guest's (`RootCopies`). The ways in and out
//! are those of other CPUs once more, with loads of CR3 (names that begin with `own_`); `speculation.rs` has the common ones lead there. Global pages are off, since they would stay in the TLB.
#![allow(unsafe_code)] // page tables, and what assembly calls

use alloc::alloc::alloc_zeroed;
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use microhv::frames::copies::COPIES;
use microhv::frames::pte::{
    FRAME, G, HYPERVISOR_FIRST_SLOT as FIRST, HYPERVISOR_LAST_SLOT as LAST, P, index,
};
use microhv::platform::CpuId;
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::cpu::{self, cpuid};
use super::descriptors;
use super::entry_page::{KEEP, OwnTables};
use super::paging::{self, TABLE, WINDOWS, hypervisor_l4, table, table_of};
use super::percpu::{self, AREA_BYTES, ENTRY_PAGE, HAS_OWN_TABLES, IST_END, USES_CONTEXTS, this_cpu};

const PAGE: u64 = 4096;

unsafe extern "C" {
    static __entry_text_start: u8;
    static __entry_text_end: u8;
    static __entry_rodata_start: u8;
    static __entry_rodata_end: u8;
}

/// Whether guests run on such tables.
#[inline(always)]
pub(crate) fn are_on() -> bool {
    HAS_OWN_TABLES.load(Ordering::Relaxed)
}

/// Has guests run on such tables: on the boot CPU, before other CPUs start.
pub(crate) fn begin() {
    HAS_OWN_TABLES.store(true, Ordering::Relaxed);
    // Identifiers are of use with the instruction that flushes by them.
    let has_contexts = cpuid(1, 0).ecx & 1 << 17 != 0 && cpuid(7, 0).ebx & 1 << 10 != 0;
    USES_CONTEXTS.store(has_contexts, Ordering::Relaxed);
    let contexts = if has_contexts { ", with process-context identifiers" } else { "" };
    log::info!("guests run on page tables of the hypervisor's own{contexts}");
    prepare(CpuId::BOOT).expect("memory for page tables");
}

/// A table of zeros; its machine address.
fn new_table() -> Option<u64> {
    let layout = Layout::from_size_align(PAGE as usize, PAGE as usize).ok()?;
    // SAFETY: the layout is not empty.
    let at = NonNull::new(unsafe { alloc_zeroed(layout) })?;
    Some(paging::machine_address(at.as_ptr() as u64))
}

/// The slot of `level` for `va` in the tables under `root`. Tables on the way that are absent are made.
fn slot(root: u64, va: u64, level: u8) -> Option<&'static AtomicU64> {
    let mut at = root;
    for step in (level + 1..=4).rev() {
        let entry = &table(at)[index(va, step)];
        if entry.load(Ordering::Relaxed) & P == 0 {
            entry.store(new_table()? | TABLE, Ordering::Relaxed);
        }
        at = entry.load(Ordering::Relaxed) & FRAME;
    }
    Some(&table(at)[index(va, level)])
}

/// Makes the tables of a CPU whose area is mapped, if such tables are wanted; `None`: there is no memory.
pub(crate) fn prepare(cpu: CpuId) -> Option<()> {
    if !are_on() {
        return Some(());
    }
    // SAFETY: the area is mapped, and its data were made.
    let (entry, own) = unsafe { (percpu::entry_page(cpu), &percpu::local_at(cpu).own) };
    entry.hypervisor.store(hypervisor_l4(), Ordering::Relaxed);
    let first = new_table()?;
    let area = percpu::area_address(cpu);
    let ends = |start: *const u8, end: *const u8| start as u64..end as u64;
    let idt = descriptors::idt_address();
    for range in [
        ends(&raw const __entry_text_start, &raw const __entry_text_end),
        ends(&raw const __entry_rodata_start, &raw const __entry_rodata_end),
        idt..idt + PAGE,
        area..area + IST_END as u64,
        area + ENTRY_PAGE as u64..area + AREA_BYTES as u64,
    ] {
        for va in range.step_by(PAGE as usize) {
            let entry = table_of(va, 1, || None)?[index(va, 1)].load(Ordering::Relaxed);
            slot(first, va, 1)?.store(entry & !G, Ordering::Relaxed);
        }
    }
    table(first)[FIRST].store(table(hypervisor_l4())[FIRST].load(Ordering::Relaxed), Ordering::Relaxed);
    slot(first, WINDOWS, 2)?;
    let windows = slot(first, WINDOWS, 3)?.load(Ordering::Relaxed);
    own.window_table.store(windows & FRAME, Ordering::Relaxed);
    own.window.store(WINDOWS, Ordering::Relaxed);
    let keep = if USES_CONTEXTS.load(Ordering::Relaxed) { KEEP } else { 0 };
    own.keep.store(keep, Ordering::Relaxed);
    for (number, place) in (1..).zip(&own.tables) {
        let copy = if number == 1 { first } else { new_table()? };
        for (to, from) in table(copy)[FIRST..=LAST].iter().zip(&table(first)[FIRST..=LAST]) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        place.store(if keep == 0 { copy } else { copy | number | keep }, Ordering::Relaxed);
    }
    Some(())
}

/// Has this CPU's guests run on such tables, if these are wanted.
pub(crate) fn set_up() {
    if are_on() {
        // SAFETY: nothing depends on global pages, and turning them off drops those of the TLB; CR3 holds a page's address alone;
        // this CPU's area is mapped, and its tables were made.
        unsafe {
            Cr4::update(|cr4| {
                cr4.remove(Cr4Flags::PAGE_GLOBAL);
                cr4.set(Cr4Flags::PCID, USES_CONTEXTS.load(Ordering::Relaxed));
            });
            descriptors::load_own_entries(this_cpu());
        }
    }
}

/// Has the tables show the descriptor window at `va`, and no other.
#[inline]
pub(crate) fn show_window(va: u64) {
    if are_on() {
        replace_window(&percpu::local().own, va);
    }
}

#[cold]
#[inline(never)]
fn replace_window(own: &OwnTables, va: u64) {
    let (windows, first) =
        (own.window_table.load(Ordering::Relaxed), own.tables[0].load(Ordering::Relaxed) & FRAME);
    // The CPU has one table of level 2 for its windows, whose place in that of level 3 goes with the window.
    let upper = table(first)[index(WINDOWS, 4)].load(Ordering::Relaxed) & FRAME;
    let former = own.window.swap(va, Ordering::Relaxed);
    table(windows)[index(former, 2)].store(0, Ordering::Relaxed);
    table(upper)[index(former, 3)].store(0, Ordering::Relaxed);
    let Some(of_all) = table_of(va, 2, || None) else { return };
    table(windows)[index(va, 2)].store(of_all[index(va, 2)].load(Ordering::Relaxed), Ordering::Relaxed);
    table(upper)[index(va, 3)].store(windows | TABLE, Ordering::Release);
}

/// What CR3 is to be for the guest on the level 4 table that is loaded: a copy of that, which is made if this CPU has none.
#[unsafe(no_mangle)]
extern "C" fn renew_root() -> u64 {
    let own = &percpu::local().own;
    let l4 = cpu::cr3();
    // SAFETY: this CPU's area is mapped.
    let entry = unsafe { percpu::entry_page(this_cpu()) };
    entry.full.store(l4 | own.keep.load(Ordering::Relaxed), Ordering::Relaxed);
    let known = own.copies.find(l4);
    let place = known.unwrap_or_else(|| {
        own.copies.renew(l4, |place| {
            let (from, to) = (table(l4), table(own.tables[place % COPIES].load(Ordering::Relaxed) & FRAME));
            for slots in [0..FIRST, LAST + 1..512] {
                for (to, from) in to[slots.clone()].iter().zip(&from[slots]) {
                    to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
                }
            }
        })
    });
    let cr3 = own.tables[place % COPIES].load(Ordering::Relaxed);
    own.copies.remember(l4, place, cr3);
    // What the TLB has of a copy that was at this place is flushed.
    if known.is_some() { cr3 } else { cr3 & !KEEP }
}
