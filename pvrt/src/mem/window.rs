//! The window region: addresses for mappings that come and go, and for memory gained after start.

use super::MapError;
use super::bitmap::Bitmap;
use super::tables::{BATCH, LINEAR_VA, RW_PAGE, State, entry};
use crate::hypercall::memory::{decrease_reservation, populate_physmap};
use crate::hypercall::mmu::{mmu_update, pte};
use crate::hypercall::multicall;
use ring_abi::hypercall::{__HYPERVISOR_MMU_UPDATE, __HYPERVISOR_MMUEXT_OP, MulticallEntry};
use ring_abi::mmu::{MMUEXT_TLB_FLUSH_LOCAL, MmuUpdate, MmuextOp};
use ring_abi::types::{DomId, PAGE_SIZE};

/// First address of the region: the L3 entry behind the linear map's.
pub(super) const WINDOW_VA: usize = 0xffff_ffff_c000_0000;
/// Pages of the region: 512 MiB.
pub(super) const WINDOW_PAGES: usize = 128 * 1024;
/// Number of L1 tables below the window region.
const L1_TABLES: usize = WINDOW_PAGES / 512;

/// Which window addresses are free, and the tables of the window region.
pub(super) struct Window {
    free: Bitmap<{ WINDOW_PAGES / 64 }>,
    /// The region's L2 table: linear address and machine frame.
    l2: usize,
    l2_mfn: u64,
    /// Linear address of each L1 table; 0 until made. Tables stay.
    l1: [usize; L1_TABLES],
    /// Pseudo-physical numbers for memory gained after start, counted from `grown_base`.
    grown: Bitmap<{ WINDOW_PAGES / 64 }>,
    grown_base: usize,
}

impl Window {
    pub(super) const fn new() -> Self {
        Self {
            free: Bitmap::new(),
            l2: 0,
            l2_mfn: 0,
            l1: [0; L1_TABLES],
            grown: Bitmap::new(),
            grown_base: 0,
        }
    }

    pub(super) fn init(&mut self, l2: usize, l2_mfn: u64, nr_pages: usize) {
        self.l2 = l2;
        self.l2_mfn = l2_mfn;
        self.grown_base = nr_pages;
        self.free.release(0, WINDOW_PAGES);
        self.grown.release(0, WINDOW_PAGES);
    }

    pub(super) fn used(&self) -> usize {
        WINDOW_PAGES - self.free.free_pages()
    }

    /// The L1 entry of a window address whose table exists.
    pub(super) fn entry(&self, va: usize) -> u64 {
        let page = (va - WINDOW_VA) / PAGE_SIZE;
        let table = self.l1[page / 512];
        assert!(table != 0, "window address {va:#x} has no table");
        entry(table, page % 512)
    }

    /// Machine address of the L1 entry of a window address.
    fn entry_maddr(&self, va: usize) -> u64 {
        let page = (va - WINDOW_VA) / PAGE_SIZE;
        (entry(self.l2, page / 512) & pte::FRAME) + (page % 512 * 8) as u64
    }

    pub(super) fn give(&mut self, va: usize, count: usize) {
        let page = (va - WINDOW_VA) / PAGE_SIZE;
        self.free.release(page, page + count);
    }
}

/// Addresses that have page tables and map nothing, for callers that make their own mappings. The addresses are given
/// back on drop; nothing may be mapped there then.
#[derive(Debug)]
pub struct WindowPages {
    va: usize,
    count: usize,
}

impl WindowPages {
    /// Takes `count` pages of addresses; `None` when the region or the memory for tables is used up.
    pub fn take(count: usize) -> Option<Self> {
        super::take_window(count).map(|va| Self { va, count })
    }

    /// Address of the first byte.
    pub fn va(&self) -> usize {
        self.va
    }
}

impl Drop for WindowPages {
    fn drop(&mut self) {
        super::free_window(self.va, self.count);
    }
}

/// Takes `count` pages of addresses, and makes the L1 tables that the addresses lack.
pub(super) fn take(state: &mut State, count: usize) -> Option<usize> {
    let page = state.window.free.take(count)?;
    for slot in page / 512..(page + count).div_ceil(512) {
        if state.window.l1[slot] != 0 {
            continue;
        }
        let Some(table) = state.take_table() else {
            state.window.free.release(page, page + count);
            return None;
        };
        let updates = state.table_updates(table, (state.window.l2_mfn << 12) + (slot * 8) as u64);
        // SAFETY: the page was free, and nothing was mapped below the slot.
        unsafe { mmu_update(&updates, DomId::SELF) }.expect("linking a window table");
        state.window.l1[slot] = LINEAR_VA + table * PAGE_SIZE;
    }
    Some(WINDOW_VA + page * PAGE_SIZE)
}

/// Sets the entries from `va` on to `entries`. The entries' frames belong to `owner`.
pub(super) fn map(
    state: &State,
    va: usize,
    entries: impl Iterator<Item = u64>,
    owner: DomId,
) -> Result<(), MapError> {
    let mut entries = entries.enumerate().peekable();
    while let Some(&(first, _)) = entries.peek() {
        let mut updates = [MmuUpdate::default(); BATCH];
        let mut count = 0;
        while count < BATCH
            && let Some((index, val)) = entries.next()
        {
            updates[count] = MmuUpdate { ptr: state.window.entry_maddr(va + index * PAGE_SIZE), val };
            count += 1;
        }
        // SAFETY: only window addresses taken by the caller become mapped.
        unsafe { mmu_update(&updates[..count], owner) }
            .map_err(|(done, errno)| MapError { index: first + done, errno })?;
    }
    Ok(())
}

/// Clears the entries from `va` on and flushes the TLB, with one trap for each `BATCH` pages.
pub(super) fn unmap(state: &State, va: usize, count: usize) {
    let mut at = 0;
    while at < count {
        let mut updates = [MmuUpdate::default(); BATCH];
        let step = BATCH.min(count - at);
        for (i, update) in updates[..step].iter_mut().enumerate() {
            *update = MmuUpdate { ptr: state.window.entry_maddr(va + (at + i) * PAGE_SIZE), val: 0 };
        }
        at += step;
        let flush = MmuextOp { cmd: MMUEXT_TLB_FLUSH_LOCAL, ..MmuextOp::default() };
        let owner = u64::from(DomId::SELF.raw());
        let update_list = (&raw const updates) as u64;
        let mut calls = [
            call(__HYPERVISOR_MMU_UPDATE, [update_list, step as u64, 0, owner, 0, 0]),
            call(__HYPERVISOR_MMUEXT_OP, [(&raw const flush) as u64, 1, 0, owner, 0, 0]),
        ];
        // One flush, after the last entries, is enough.
        let calls = if at < count { &mut calls[..1] } else { &mut calls[..] };
        // SAFETY: the caller owned the mappings and gives them up; the lists live until the call returns.
        let result = unsafe { multicall(calls) };
        if result.is_err() || calls.iter().any(|entry| entry.result as i64 != 0) {
            let answer = calls.first().map_or(0, |entry| entry.result as i64);
            log::error!("unmapping {count} pages at {va:#x}: the hypervisor answered {answer}");
        }
    }
}

fn call(number: u32, args: [u64; 6]) -> MulticallEntry {
    MulticallEntry { op: u64::from(number), result: 0, args }
}

/// Takes `count` frames from the hypervisor and maps them; returns the address and the first pseudo-physical
/// number.
pub(super) fn grow(state: &mut State, count: usize) -> Option<(usize, u64)> {
    let first = state.window.grown.take(count)?;
    let base = (state.window.grown_base + first) as u64;
    let Some(va) = take(state, count) else {
        state.window.grown.release(first, first + count);
        return None;
    };
    let mut done = 0;
    while done < count {
        let mut frames = [0u64; BATCH];
        let step = BATCH.min(count - done);
        for (i, frame) in frames[..step].iter_mut().enumerate() {
            *frame = base + (done + i) as u64;
        }
        let got = populate_physmap(DomId::SELF, &mut frames[..step], 0).unwrap_or(0).min(step);
        let entries = frames[..got].iter().map(|mfn| mfn << 12 | RW_PAGE);
        let mapped = map(state, va + done * PAGE_SIZE, entries, DomId::SELF);
        done += got;
        if got < step || mapped.is_err() {
            give_back(state, va, done);
            state.window.give(va, count);
            state.window.grown.release(first, first + count);
            return None;
        }
    }
    state.grown_pages += count;
    Some((va, base))
}

/// Undoes [`grow`].
pub(super) fn shrink(state: &mut State, va: usize, count: usize, first: u64) {
    give_back(state, va, count);
    state.window.give(va, count);
    let first = first as usize - state.window.grown_base;
    state.window.grown.release(first, first + count);
    state.grown_pages -= count;
}

/// Unmaps the frames at `va` and gives them to the hypervisor.
fn give_back(state: &State, va: usize, count: usize) {
    let mut done = 0;
    while done < count {
        let step = BATCH.min(count - done);
        let mut frames = [0u64; BATCH];
        for (i, frame) in frames[..step].iter_mut().enumerate() {
            *frame = (state.window.entry(va + (done + i) * PAGE_SIZE) & pte::FRAME) >> 12;
        }
        unmap(state, va + done * PAGE_SIZE, step);
        match decrease_reservation(DomId::SELF, &mut frames[..step], 0) {
            Ok(taken) if taken == step => {}
            Ok(taken) => log::error!("giving back {step} pages at {va:#x}: {taken} were taken"),
            Err(errno) => log::error!("giving back {step} pages at {va:#x}: {errno}"),
        }
        done += step;
    }
}
