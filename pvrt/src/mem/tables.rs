//! The image's page tables. This module takes over the builder's tables, maps the rest of memory, and runs the window
//! region.
//!
//! Every table is read through the linear map; changes go through `mmu_update` in batches. ABI:
//! `xen/include/public/xen.h`.

use super::bitmap::Bitmap;
use super::window::{self, WINDOW_PAGES, WINDOW_VA};
use super::{MapError, Origin, Usage};
use crate::hypercall::mmu::{mmu_update, pte, update_va_mapping};
use ring_abi::errno::Errno;
use ring_abi::mmu::MmuUpdate;
use ring_abi::start_info::StartInfo;
use ring_abi::types::{DomId, Mfn, PAGE_SIZE, Pfn};
use spin::Mutex;

/// Where pseudo-physical page 0 is mapped.
pub(crate) const LINEAR_VA: usize = 0xffff_ffff_8000_0000;
/// Number of pages that the linear map can hold: one L2 table's reach, 1 GiB.
pub(crate) const LINEAR_PAGES: usize = 512 * 512;
/// The read-only machine-to-physical table.
const M2P_VA: usize = 0xffff_8000_0000_0000;
/// Bits of a writable page's entry.
pub(super) const RW_PAGE: u64 = pte::P | pte::RW | pte::A | pte::D;
/// Bits of a read-only page's entry.
pub(super) const RO_PAGE: u64 = pte::P | pte::A;
/// Bits of an entry that points to a table.
pub(super) const TABLE: u64 = pte::P | pte::RW | pte::US | pte::A | pte::D;
/// Number of updates that go into one hypercall.
pub(super) const BATCH: usize = 128;

/// What the kernel knows of its memory. One leaf lock guards this state, and hypercalls are made while the lock is
/// held.
pub(super) struct State {
    pub(super) free: Bitmap<{ LINEAR_PAGES / 64 }>,
    /// The builder's list: machine frame of each page at start.
    p2m: usize,
    nr_pages: usize,
    /// The L2 table of the linear map.
    linear_l2: usize,
    pub(super) window: window::Window,
    pub(super) grown_pages: usize,
    /// Number of free pages that are promised to the heap, for what accounts have claimed.
    promised: usize,
}

pub(super) static STATE: Mutex<State> = Mutex::new(State {
    free: Bitmap::new(),
    p2m: 0,
    nr_pages: 0,
    linear_l2: 0,
    window: window::Window::new(),
    grown_pages: 0,
    promised: 0,
});

/// Reads entry `index` of the table at `va`.
pub(super) fn entry(va: usize, index: usize) -> u64 {
    debug_assert!(index < 512);
    // SAFETY: `va` is a table page in the linear map, and tables stay mapped. The hypervisor may set bits in the entry.
    unsafe { ((va + index * 8) as *const u64).read_volatile() }
}

/// The linear address of the table an entry points to.
fn table_va(entry: u64) -> usize {
    let mfn = (entry & pte::FRAME) as usize / PAGE_SIZE;
    LINEAR_VA + pfn_of(mfn) * PAGE_SIZE
}

/// The pseudo-physical page of one of this domain's machine frames.
pub(crate) fn pfn_of(mfn: usize) -> usize {
    // SAFETY: the hypervisor maps the M2P read-only; frames of this domain have an entry.
    unsafe { ((M2P_VA + mfn * 8) as *const u64).read_volatile() as usize }
}

/// Whether `mfn` is what the builder gave this domain as page `pfn`.
pub(crate) fn was_given(pfn: u64, mfn: u64) -> bool {
    let state = STATE.lock();
    pfn < state.nr_pages as u64 && state.mfn_of_pfn(pfn as usize) == mfn
}

/// What the machine-to-physical table says of a frame, anybody's, up to the machine's last, `maximum_ram_page`.
pub(super) fn m2p(mfn: Mfn) -> u64 {
    pfn_of(mfn.raw() as usize) as u64
}

impl State {
    fn mfn_of_pfn(&self, pfn: usize) -> u64 {
        assert!(pfn < self.nr_pages, "page {pfn:#x} is beyond the domain's memory");
        // SAFETY: the builder's list has an entry for each page, and nobody changes it.
        unsafe { ((self.p2m + pfn * 8) as *const u64).read() }
    }

    /// Machine address of the L1 entry for linear page `pfn`. The L1 table must exist.
    fn linear_entry_maddr(&self, pfn: usize) -> u64 {
        (entry(self.linear_l2, pfn / 512) & pte::FRAME) + (pfn % 512 * 8) as u64
    }

    /// The updates that turn page `pfn` from plain memory into a read-only page and then put the page as a table into
    /// the entry at machine address `parent`, an entry of an L2 or L3 table.
    pub(super) fn table_updates(&self, pfn: usize, parent: u64) -> [MmuUpdate; 2] {
        let frame = self.mfn_of_pfn(pfn) << 12;
        [
            MmuUpdate { ptr: self.linear_entry_maddr(pfn), val: frame | RO_PAGE },
            MmuUpdate { ptr: parent, val: frame | TABLE },
        ]
    }

    /// Takes a page and fills it with zeros, for a table.
    pub(super) fn take_table(&mut self) -> Option<usize> {
        let pfn = self.free.take(1)?;
        // SAFETY: a free page of the linear map, taken for this.
        unsafe { ((LINEAR_VA + pfn * PAGE_SIZE) as *mut u8).write_bytes(0, PAGE_SIZE) };
        Some(pfn)
    }

    /// Maps the pages from `mapped` on, which the builder left out.
    fn extend_linear(&mut self, mut mapped: usize, end: usize, ramdisk: (usize, usize)) {
        let l2_maddr = self.mfn_of_pfn((self.linear_l2 - LINEAR_VA) / PAGE_SIZE) << 12;
        while mapped < end {
            let mut updates = [MmuUpdate::default(); BATCH];
            let mut count = 0;
            let from = mapped;
            if !mapped.is_multiple_of(512) {
                // These pages are the rest of a table that the builder began.
                let stop = end.min(mapped.next_multiple_of(512)).min(mapped + BATCH);
                for pfn in mapped..stop {
                    let val = self.mfn_of_pfn(pfn) << 12 | RW_PAGE;
                    updates[count] = MmuUpdate { ptr: self.linear_entry_maddr(pfn), val };
                    count += 1;
                }
                mapped = stop;
            } else {
                while mapped < end && count < BATCH {
                    let Some(table) = self.free.take(1) else { break };
                    for slot in 0..512 {
                        let pfn = mapped + slot;
                        let val = if pfn < end { self.mfn_of_pfn(pfn) << 12 | RW_PAGE } else { 0 };
                        let at = (LINEAR_VA + table * PAGE_SIZE + slot * 8) as *mut u64;
                        // SAFETY: a free page of the linear map, taken for this table.
                        unsafe { at.write(val) };
                    }
                    let parent = l2_maddr + (mapped / 512 * 8) as u64;
                    updates[count..count + 2].copy_from_slice(&self.table_updates(table, parent));
                    count += 2;
                    mapped = end.min(mapped + 512);
                }
                assert!(count > 0, "no page left for page tables");
            }
            // SAFETY: only free pages become tables, and only unmapped addresses become mapped.
            unsafe { mmu_update(&updates[..count], DomId::SELF) }.expect("mapping own memory");
            self.release_except(from, mapped, ramdisk);
        }
    }

    /// Frees pages `from..to` but for a reserved range.
    fn release_except(&mut self, from: usize, to: usize, (start, end): (usize, usize)) {
        let (start, end) = (start.clamp(from, to), end.clamp(from, to));
        if start >= end {
            self.free.release(from, to);
        } else {
            self.free.release(from, start);
            self.free.release(end, to);
        }
    }
}

/// What the builder occupied of this kernel's memory.
pub(crate) struct Occupied {
    /// First page behind everything the builder mapped and filled.
    pub(crate) first_free: usize,
    /// Pages of the ramdisk, `start..end`, wherever they lie.
    pub(crate) ramdisk: (usize, usize),
}

/// Takes over the builder's tables and maps all memory.
pub(crate) fn init(info: &StartInfo, occupied: &Occupied) {
    let mut state = STATE.lock();
    state.p2m = info.mfn_list as usize;
    state.nr_pages = info.nr_pages as usize;
    let l4 = info.pt_base as usize;
    let l3_entry = entry(l4, 511);
    let l3 = table_va(l3_entry);
    state.linear_l2 = table_va(entry(l3, 510));

    let end = state.nr_pages.min(LINEAR_PAGES);
    let mapped = mapped_pages(state.linear_l2).min(end);
    state.release_except(occupied.first_free.min(mapped), mapped, occupied.ramdisk);

    let l3_slot = (l3_entry & pte::FRAME) + 511 * 8;
    let table = state.take_table().expect("a page for the window's table");
    let updates = state.table_updates(table, l3_slot);
    // SAFETY: the page was free, and nothing was mapped below the slot.
    unsafe { mmu_update(&updates, DomId::SELF) }.expect("linking the window's table");
    let l2_mfn = state.mfn_of_pfn(table);
    let nr_pages = state.nr_pages;
    state.window.init(LINEAR_VA + table * PAGE_SIZE, l2_mfn, nr_pages);

    state.extend_linear(mapped, end, occupied.ramdisk);
}

/// Number of pages, from page 0 on, that the builder mapped.
fn mapped_pages(l2: usize) -> usize {
    let Some(last) = (0..512).take_while(|slot| entry(l2, *slot) & pte::P != 0).last() else { return 0 };
    let l1 = table_va(entry(l2, last));
    let present = (0..512).take_while(|slot| entry(l1, *slot) & pte::P != 0).count();
    last * 512 + present
}

/// Unmaps the page at `va` for good: a guard.
pub(crate) fn unmap_guard(va: u64) {
    // SAFETY: the page is reserved as a guard: no object lives in it.
    if let Err(errno) = unsafe { update_va_mapping(va, 0, ring_abi::mmu::UVMF_INVLPG) } {
        log::warn!("no stack guard: {errno}");
    }
}

/// Takes pages that were promised to no account.
pub(super) fn take_pages(count: usize) -> Option<usize> {
    let mut state = STATE.lock();
    if state.free.free_pages() < count.checked_add(state.promised)? {
        return None;
    }
    state.free.take(count).map(|pfn| LINEAR_VA + pfn * PAGE_SIZE)
}

/// Takes pages whether or not they were promised, for an account to which they were promised.
pub(super) fn take_promised(count: usize) -> Option<usize> {
    let mut state = STATE.lock();
    let pfn = state.free.take(count)?;
    state.promised = state.promised.saturating_sub(count);
    Some(LINEAR_VA + pfn * PAGE_SIZE)
}

/// Promises `count` of the free pages to the heap, in place of the former promise. If there are fewer, this function
/// changes nothing and gives the number that is missing.
pub(super) fn promise(count: usize) -> Option<usize> {
    let mut state = STATE.lock();
    let missing = count.saturating_sub(state.free.free_pages());
    if missing > 0 {
        return Some(missing);
    }
    state.promised = count;
    None
}

pub(super) fn give_pages(va: usize, count: usize) {
    let pfn = (va - LINEAR_VA) / PAGE_SIZE;
    STATE.lock().free.release(pfn, pfn + count);
}

pub(super) fn linear_pfn(va: usize) -> Pfn {
    Pfn::new(((va - LINEAR_VA) / PAGE_SIZE) as u64)
}

pub(super) fn mfn_of(va: usize) -> Mfn {
    let state = STATE.lock();
    if va >= WINDOW_VA {
        assert!(va < WINDOW_VA + WINDOW_PAGES * PAGE_SIZE);
        Mfn::new((state.window.entry(va) & pte::FRAME) >> 12)
    } else {
        assert!(va >= LINEAR_VA, "address {va:#x} is outside the kernel's memory");
        Mfn::new(state.mfn_of_pfn((va - LINEAR_VA) / PAGE_SIZE))
    }
}

pub(super) fn take_window(count: usize) -> Option<usize> {
    window::take(&mut STATE.lock(), count)
}

pub(super) fn free_window(va: usize, count: usize) {
    STATE.lock().window.give(va, count);
}

pub(super) fn map_frames(
    owner: DomId,
    frames: impl Iterator<Item = Mfn>,
    count: usize,
    writable: bool,
    uncached: bool,
) -> Result<usize, MapError> {
    let mut state = STATE.lock();
    let va = window::take(&mut state, count).ok_or(MapError { index: 0, errno: Errno::ENOMEM })?;
    let bits = if writable { RW_PAGE } else { RO_PAGE } | if uncached { pte::PCD | pte::PWT } else { 0 };
    if let Err(error) = window::map(&state, va, frames.map(|mfn| mfn.raw() << 12 | bits | pte::NX), owner) {
        window::unmap(&state, va, error.index);
        state.window.give(va, count);
        return Err(error);
    }
    Ok(va)
}

pub(super) fn unmap_frames(va: usize, count: usize) {
    let mut state = STATE.lock();
    window::unmap(&state, va, count);
    state.window.give(va, count);
}

pub(super) fn grow(count: usize) -> Option<(usize, Origin)> {
    let mut state = STATE.lock();
    let (va, first) = window::grow(&mut state, count)?;
    Some((va, Origin::Grown(first)))
}

/// Where the pages at `va` came from.
pub(super) fn origin_of(va: usize) -> Origin {
    if va < WINDOW_VA {
        return Origin::Start;
    }
    // The hypervisor learnt the number when this kernel took the page, and has kept the number.
    Origin::Grown(pfn_of(mfn_of(va).raw() as usize) as u64)
}

pub(super) fn shrink(va: usize, count: usize, first: u64) {
    window::shrink(&mut STATE.lock(), va, count, first);
}

pub(super) fn secure(bytes: usize) -> Result<(), usize> {
    super::heap::secure(bytes)
}

pub(super) fn usage() -> Usage {
    let (heap_bytes, heap_objects) = super::heap::usage();
    let state = STATE.lock();
    Usage {
        total_pages: state.nr_pages + state.grown_pages,
        free_pages: state.free.free_pages(),
        grown_pages: state.grown_pages,
        window_pages: state.window.used(),
        heap_bytes,
        heap_objects,
    }
}
