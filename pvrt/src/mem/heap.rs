//! The heap: talc over pages of the kernel, grown when it runs out.

use super::{OutOfMemory, Pages, tables};
use alloc::alloc::{GlobalAlloc, Layout};
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicUsize, Ordering};
use ring_abi::types::PAGE_SIZE;
use talc::TalcLock;
use talc::base::{Talc, binning::Binning};
use talc::source::Source;

/// Pages taken at least when the heap grows: 128 KiB.
const GROW_PAGES: usize = 32;

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
        let (va, count) = tables::take_pages(count)
            .map(|va| (va, count))
            .or_else(|| tables::take_pages(needed).map(|va| (va, needed)))
            .or_else(|| tables::grow(count).map(|(va, _)| (va, count)))
            .ok_or(())?;
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
// object is follows from its layout alone.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_large(&layout) {
            // SAFETY: the caller's layout, passed on.
            return unsafe { self.0.alloc(layout) };
        }
        match Pages::alloc(layout.size().div_ceil(PAGE_SIZE)) {
            Ok(pages) => {
                LARGE_USED.fetch_add(pages.len(), Ordering::Relaxed);
                LARGE_OBJECTS.fetch_add(1, Ordering::Relaxed);
                ManuallyDrop::new(pages).va() as *mut u8
            }
            Err(OutOfMemory) => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        if !is_large(&layout) {
            // SAFETY: the caller's object and layout, passed on.
            return unsafe { self.0.dealloc(object, layout) };
        }
        let pages = Pages::adopt(object as usize, layout.size().div_ceil(PAGE_SIZE));
        LARGE_USED.fetch_sub(pages.len(), Ordering::Relaxed);
        LARGE_OBJECTS.fetch_sub(1, Ordering::Relaxed);
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
