//! The heap: talc over pages of the kernel, grown when it runs out. Each object is charged to an account.

use super::{Pages, tables, tail};
use crate::account::Account;
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
        // Room for the object at its alignment, and for the heap's own bookkeeping.
        let bytes =
            layout.size().checked_add(layout.align()).and_then(|n| n.checked_add(PAGE_SIZE)).ok_or(())?;
        let needed = bytes.div_ceil(PAGE_SIZE);
        let count = needed.max(GROW_PAGES);
        let free = || [count, needed].into_iter().find_map(|n| Some((tables::take_pages(n)?, n)));
        let promised = || [count, needed].into_iter().find_map(|n| Some((tables::take_promised(n)?, n)));
        let grown = || tables::grow(count).map(|(va, _)| (va, count));
        // What was promised to accounts is for them first, and for the kernel itself when nothing else is left.
        let taken = if Account::is_own_current() {
            free().or_else(grown).or_else(promised)
        } else {
            promised().or_else(grown)
        };
        let (va, count) = taken.ok_or(())?;
        // SAFETY: the pages were taken for the heap and are never given back.
        unsafe { talc.claim(va as *mut u8, count * PAGE_SIZE) }.map(|_| ()).ok_or(())
    }
}

/// Objects from this size on get pages of their own, which go back when the object does: 256 KiB. They are the
/// decompressors' windows and the lists of large domains, too large to stay with the heap for ever.
const LARGE_BYTES: usize = 256 << 10;

static LARGE_USED: AtomicUsize = AtomicUsize::new(0);
static LARGE_OBJECTS: AtomicUsize = AtomicUsize::new(0);

/// The heap: talc for small objects, whole pages for large ones.
struct Heap(TalcLock<spin::Mutex<()>, PageSource>);

/// Is it an object with pages of its own?
fn is_large(layout: &Layout) -> bool {
    layout.size() >= LARGE_BYTES && layout.align() <= PAGE_SIZE
}

// SAFETY: either talc's own blocks, or page runs that nothing else has until they are given back; which of them an
// object is follows from its layout alone. Behind each object is room for its tail.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(extended) = tail::extended(layout) else { return core::ptr::null_mut() };
        if is_large(&layout) {
            let count = extended.size().div_ceil(PAGE_SIZE);
            // The pages are charged below, with the object.
            let pages = Account::own().charge(|| Pages::alloc(count)).ok();
            let Some(pages) = pages.or_else(|| Pages::promised(count)) else { return core::ptr::null_mut() };
            LARGE_USED.fetch_add(pages.len(), Ordering::Relaxed);
            LARGE_OBJECTS.fetch_add(1, Ordering::Relaxed);
            let pages = ManuallyDrop::new(pages);
            let object = pages.va() as *mut u8;
            // SAFETY: the object was made with room for its tail.
            unsafe { tail::charge(object, layout, || pages.len()) };
            return object;
        }
        // SAFETY: the caller's layout, with its tail.
        let object = unsafe { self.0.alloc(extended) };
        if !object.is_null() {
            // SAFETY: the object was made with room for its tail.
            unsafe { tail::charge(object, layout, || tail::heap_bytes(extended)) };
        }
        object
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        let Some(extended) = tail::extended(layout) else { return };
        if is_large(&layout) {
            let count = extended.size().div_ceil(PAGE_SIZE);
            // SAFETY: charged so by `alloc`.
            unsafe { tail::refund(object, layout, || count * PAGE_SIZE) };
            let pages = Pages::adopt(object as usize, count);
            LARGE_USED.fetch_sub(pages.len(), Ordering::Relaxed);
            LARGE_OBJECTS.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        // SAFETY: charged so by `alloc`.
        unsafe { tail::refund(object, layout, || tail::heap_bytes(extended)) };
        // SAFETY: the caller's object, made with this layout.
        unsafe { self.0.dealloc(object, extended) };
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

/// Sees to it that `bytes` more can be allocated: by what the heap has free, by pages of the kernel that are promised to
/// it from now on, and by pages from the hypervisor, which stay with the heap.
///
/// # Errors
/// The bytes that are missing.
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
