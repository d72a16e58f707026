//! Pages on the host. The pages come from the process's heap and have machine frame numbers of their own.

use super::{MapError, Origin, Usage};
use crate::account::Account;
use crate::global::global;
use alloc::alloc::{Layout, alloc, dealloc};
use alloc::collections::BTreeMap;
use ring_abi::errno::Errno;
use ring_abi::types::{DomId, Mfn, PAGE_SIZE, Pfn};
use spin::Mutex;

/// The first machine frame number that is given out: a number that no page has by accident.
const FIRST_MFN: u64 = 0x1_0000;

/// The runs of pages that this thread's kernel holds.
struct Runs {
    next: u64,
    /// By address: number of pages and first frame.
    by_va: BTreeMap<usize, (usize, u64)>,
    /// By first frame: address and number of pages.
    by_mfn: BTreeMap<u64, (usize, usize)>,
}

global! {
    static RUNS: Mutex<Runs> = Mutex::new(Runs { next: FIRST_MFN, by_va: BTreeMap::new(), by_mfn: BTreeMap::new() });
}

fn layout(count: usize) -> Option<Layout> {
    if count == 0 {
        return None;
    }
    Layout::from_size_align(count.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()
}

pub(super) fn take_pages(count: usize) -> Option<usize> {
    // The account that gets the pages is charged for them, as in an image.
    Account::own().charge(|| take_run(count))
}

fn take_run(count: usize) -> Option<usize> {
    let layout = layout(count)?;
    // SAFETY: the layout is not empty.
    let va = unsafe { alloc(layout) } as usize;
    if va == 0 {
        return None;
    }
    RUNS.with(|runs| {
        let mut runs = runs.lock();
        let first = runs.next;
        // A gap after each run: an overrun is noticed.
        runs.next += count as u64 + 1;
        runs.by_va.insert(va, (count, first));
        runs.by_mfn.insert(first, (va, count));
    });
    Some(va)
}

pub(super) fn give_pages(va: usize, count: usize) {
    RUNS.with(|runs| {
        let mut runs = runs.lock();
        if let Some((_, first)) = runs.by_va.remove(&va) {
            runs.by_mfn.remove(&first);
        }
    });
    let layout = layout(count).expect("as it was taken");
    // SAFETY: taken with the same layout by `take_pages`.
    unsafe { dealloc(va as *mut u8, layout) };
}

pub(super) fn grow(count: usize) -> Option<(usize, Origin)> {
    take_pages(count).map(|va| (va, Origin::Start))
}

pub(super) fn shrink(va: usize, count: usize, _first: u64) {
    give_pages(va, count);
}

pub(super) fn mfn_of(va: usize) -> Mfn {
    RUNS.with(|runs| {
        let runs = runs.lock();
        match runs.by_va.range(..=va).next_back() {
            Some((start, (count, first))) if va < start + count * PAGE_SIZE => {
                Mfn::new(first + ((va - start) / PAGE_SIZE) as u64)
            }
            _ => panic!("address {va:#x} is outside the kernel's pages"),
        }
    })
}

pub(super) fn linear_pfn(va: usize) -> Pfn {
    Pfn::new(mfn_of(va).raw())
}

/// The address of machine address `maddr`, if it lies in a page this thread's kernel holds.
pub(crate) fn va_of_maddr(maddr: u64) -> Option<usize> {
    let mfn = maddr / PAGE_SIZE as u64;
    RUNS.with(|runs| {
        let runs = runs.lock();
        let (first, (va, count)) = runs.by_mfn.range(..=mfn).next_back()?;
        let index = (mfn - first) as usize;
        (index < *count).then_some(va + index * PAGE_SIZE + maddr as usize % PAGE_SIZE)
    })
}

/// The frames' own addresses. The frames must follow one another.
pub(super) fn map_frames(
    _owner: DomId,
    frames: impl Iterator<Item = Mfn>,
    _count: usize,
    _writable: bool,
    _uncached: bool,
) -> Result<usize, MapError> {
    let mut first = None;
    for (index, mfn) in frames.enumerate() {
        let error = MapError { index, errno: Errno::EINVAL };
        let va = va_of_maddr(mfn.maddr().raw()).ok_or(error)?;
        if va != *first.get_or_insert(va) + index * PAGE_SIZE {
            return Err(error);
        }
    }
    first.ok_or(MapError { index: 0, errno: Errno::EINVAL })
}

/// There is no such table on the host.
pub(super) fn m2p(_mfn: Mfn) -> u64 {
    u64::MAX
}

pub(super) fn unmap_frames(_va: usize, _count: usize) {}

pub(super) fn free_window(_va: usize, _count: usize) {}

global! {
    /// Bytes that can be promised to all accounts together.
    static MEMORY: core::cell::Cell<usize> = core::cell::Cell::new(usize::MAX);
}

/// Sets how many bytes accounts can be promised in all, the kernel's reserve included.
pub(crate) fn set_memory(bytes: usize) {
    MEMORY.with(|memory| memory.set(bytes));
}

pub(super) fn secure(bytes: usize) -> Result<(), usize> {
    match bytes.saturating_sub(MEMORY.with(|memory| memory.get())) {
        0 => Ok(()),
        missing => Err(missing),
    }
}

pub(super) fn usage() -> Usage {
    let total_pages = RUNS.with(|runs| runs.lock().by_va.values().map(|(count, _)| count).sum());
    Usage { total_pages, ..Usage::default() }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use ring_abi::errno::Errno;
    use ring_abi::types::DomId;

    #[test]
    fn pages_are_owned_zeroed_and_counted() {
        let before = usage().total_pages;
        let pages = Pages::zeroed(3).expect("the host has memory");
        assert_eq!(usage().total_pages, before + 3);
        assert_eq!(pages.mfn(2).raw(), pages.mfn(0).raw() + 2);
        assert_eq!(mfn_of(pages.va()), pages.mfn(0));
        let mut out = [1u8; 16];
        pages.page(2).read(PAGE_SIZE - 16, &mut out);
        assert_eq!(out, [0; 16]);
        release(pages);
        assert_eq!(usage().total_pages, before);
    }

    #[test]
    fn no_page_and_too_many_pages_fail() {
        assert_eq!(Pages::alloc(0).err(), Some(OutOfMemory));
        assert_eq!(Pages::alloc(usize::MAX).err(), Some(OutOfMemory));
    }

    #[test]
    #[should_panic(expected = "index < self.count")]
    fn one_page_too_far() {
        let pages = Pages::alloc(1).expect("the host has memory");
        pages.mfn(1);
    }

    #[test]
    fn frames_map_where_they_are() {
        let pages = Pages::zeroed(2).expect("the host has memory");
        let map = map_foreign(DomId::new(3), &[pages.mfn(0), pages.mfn(1)], true).expect("consecutive");
        assert_eq!(map.va(), pages.va());
        let error = map_foreign(DomId::new(3), &[pages.mfn(1), pages.mfn(0)], true).err();
        assert_eq!(error, Some(MapError { index: 1, errno: Errno::EINVAL }));
        assert!(map_foreign(DomId::new(3), &[], true).is_err());
    }
}
