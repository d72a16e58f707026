//! The heap: talc over pages of the kernel. The heap takes more pages when it runs out. Each object is charged to an
//! account.

use super::{Pages, tables, tail};
use crate::account::{self, Account, Supply, supplies};
use alloc::alloc::{GlobalAlloc, Layout};
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicUsize, Ordering};
use ring_abi::types::PAGE_SIZE;
use talc::TalcLock;
use talc::base::{Talc, binning::Binning};
use talc::source::Source;

/// Pages taken at least when the heap grows: 128 KiB.
const GROW_PAGES: usize = 32;
/// Pages taken from the hypervisor at a time for a claim: 1 MiB.
const SECURE_PAGES: usize = 256;

/// Feeds the heap from the page allocator.
#[derive(Debug)]
struct PageSource;

// SAFETY: `acquire` reaches the page allocator only, which allocates nothing on this heap.
unsafe impl Source for PageSource {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        // The bytes are for the object at its alignment, and for the heap's own bookkeeping.
        let bytes =
            layout.size().checked_add(layout.align()).and_then(|n| n.checked_add(PAGE_SIZE)).ok_or(())?;
        let needed = bytes.div_ceil(PAGE_SIZE);
        let count = needed.max(GROW_PAGES);
        let some = |take: fn(usize) -> Option<usize>| {
            [count, needed].into_iter().find_map(|count| Some((take(count)?, count)))
        };
        let from = |supply: &Supply| match supply {
            Supply::Free => some(tables::take_pages),
            Supply::Hypervisor => tables::grow(count).map(|(va, _)| (va, count)),
            Supply::Promised => some(tables::take_promised),
        };
        let (va, count) = supplies(layout.size()).iter().find_map(from).ok_or(())?;
        // SAFETY: the pages were taken for the heap and are never given back.
        unsafe { talc.claim(va as *mut u8, count * PAGE_SIZE) }.map(|_| ()).ok_or(())
    }
}

/// Size from which on an object gets pages of its own, which go back when the object does: 256 KiB. Such objects are
/// the decompressors' windows and the lists of large domains, which are too large to stay with the heap for ever.
const LARGE_BYTES: usize = 256 << 10;

static LARGE_USED: AtomicUsize = AtomicUsize::new(0);
static LARGE_OBJECTS: AtomicUsize = AtomicUsize::new(0);

/// The heap: talc for small objects, whole pages for large ones.
struct Heap(TalcLock<spin::Mutex<()>, PageSource>);

/// Whether the object has pages of its own.
fn is_large(layout: &Layout) -> bool {
    layout.size() >= LARGE_BYTES
}

/// Takes pages for one object alone, charged to the current account. An alignment of more than a page is not to be had.
#[cold]
fn alloc_large(layout: Layout) -> *mut u8 {
    if layout.size() > isize::MAX as usize / 2 || layout.align() > PAGE_SIZE {
        return core::ptr::null_mut();
    }
    let count = tail::extended(layout).size().div_ceil(PAGE_SIZE);
    // The pages are charged with the object.
    let pages = Account::own().charge(|| Pages::alloc(count)).ok();
    // Pages promised to other accounts are not for an allocation beyond a budget: that allocation must be able to fail.
    let is_promised = |account: Account| account == Account::own() || account.was_promised(count * PAGE_SIZE);
    let promised = || is_promised(Account::current()).then(|| Pages::promised(count)).flatten();
    let Some(pages) = pages.or_else(promised) else { return core::ptr::null_mut() };
    LARGE_USED.fetch_add(pages.len(), Ordering::Relaxed);
    LARGE_OBJECTS.fetch_add(1, Ordering::Relaxed);
    let pages = ManuallyDrop::new(pages);
    let object = pages.va() as *mut u8;
    // SAFETY: the object was made with room for its tail.
    unsafe { tail::charge(object, layout, || pages.len()) };
    object
}

/// Gives back the pages that [`alloc_large`] took.
///
/// # Safety
/// [`alloc_large`] gave the object for this layout, and nobody uses the object any more.
#[cold]
unsafe fn dealloc_large(object: *mut u8, layout: Layout) {
    let count = tail::extended(layout).size().div_ceil(PAGE_SIZE);
    // SAFETY: charged so by `alloc_large`.
    unsafe { tail::refund(object, layout, || count * PAGE_SIZE) };
    let pages = Pages::adopt(object as usize, count);
    LARGE_USED.fetch_sub(pages.len(), Ordering::Relaxed);
    LARGE_OBJECTS.fetch_sub(1, Ordering::Relaxed);
}

// SAFETY: an object is one of talc's own blocks, or a run of pages that nothing else has until the object is freed.
// Which of the two follows from the object's layout alone. Behind each object is room for its tail.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(&layout) {
            return alloc_large(layout);
        }
        let extended = tail::extended(layout);
        // SAFETY: the layout is the caller's, with the object's tail.
        let object = unsafe { self.0.alloc(extended) };
        if !object.is_null() {
            // SAFETY: the object was made with room for its tail.
            unsafe { tail::charge(object, layout, || tail::heap_bytes(extended)) };
        }
        object
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        if is_large(&layout) {
            // SAFETY: `alloc_large` made the object, as the object's layout says.
            return unsafe { dealloc_large(object, layout) };
        }
        let extended = tail::extended(layout);
        // SAFETY: charged so by `alloc`.
        unsafe { tail::refund(object, layout, || tail::heap_bytes(extended)) };
        // SAFETY: the caller's object, made with this layout.
        unsafe { self.0.dealloc(object, extended) };
    }

    // One function for all: otherwise each buffer that grows would have a copy of this code.
    #[inline(never)]
    unsafe fn realloc(&self, object: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size goes with the alignment.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if is_large(&layout) || is_large(&new) {
            // SAFETY: the new size is not 0: the caller promises that.
            let moved = unsafe { self.alloc(new) };
            if !moved.is_null() {
                // SAFETY: both objects are live, apart from each other, and as long as their layouts say.
                unsafe { moved.copy_from_nonoverlapping(object, layout.size().min(new_size)) };
                // SAFETY: the caller's object, which has moved.
                unsafe { self.dealloc(object, layout) };
            }
            return moved;
        }
        let (extended, new_extended) = (tail::extended(layout), tail::extended(new));
        // SAFETY: the object was made with its tail.
        let record = unsafe { tail::read(object, layout) };
        // SAFETY: the caller's object, made with this layout.
        let moved = unsafe { self.0.realloc(object, extended, new_extended.size()) };
        if !moved.is_null() {
            // SAFETY: `record` is what `charge` got from the account when it charged the object.
            unsafe { account::refund(record, || tail::heap_bytes(extended)) };
            // SAFETY: the object has room for its tail at its new size.
            unsafe { tail::charge(moved, new, || tail::heap_bytes(new_extended)) };
        }
        moved
    }
}

#[global_allocator]
static HEAP: Heap = Heap(TalcLock::new(PageSource));

/// Bytes and objects allocated now.
pub(super) fn usage() -> (usize, usize) {
    let heap = HEAP.0.lock();
    let counters = heap.counters();
    (
        counters.allocated_bytes + LARGE_USED.load(Ordering::Relaxed),
        counters.allocation_count + LARGE_OBJECTS.load(Ordering::Relaxed),
    )
}

/// Makes sure that `bytes` more can be allocated. The bytes come from what the heap has free, from pages of the kernel
/// that are promised to the heap from now on, and from pages of the hypervisor, which stay with the heap.
///
/// # Errors
/// The number of bytes that are missing.
pub(super) fn secure(bytes: usize) -> Result<(), usize> {
    let wanted = || bytes.saturating_sub(HEAP.0.lock().counters().available_bytes).div_ceil(PAGE_SIZE);
    let mut pages = wanted();
    while let Some(missing) = tables::promise(pages) {
        let count = missing.min(SECURE_PAGES);
        let Some((va, _)) = tables::grow(count) else { return Err(missing * PAGE_SIZE) };
        // SAFETY: the pages were taken for the heap and are never given back.
        let claimed = unsafe { HEAP.0.lock().claim(va as *mut u8, count * PAGE_SIZE) };
        if claimed.is_none() {
            return Err(missing * PAGE_SIZE);
        }
        pages = wanted();
    }
    Ok(())
}
