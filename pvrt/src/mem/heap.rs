//! The heap: talc over pages of the kernel, grown when it runs out.

use super::tables;
use alloc::alloc::Layout;
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

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, PageSource> = TalcLock::new(PageSource);

/// Bytes and objects allocated now.
pub(super) fn usage() -> (usize, usize) {
    let heap = HEAP.lock();
    let counters = heap.counters();
    (counters.allocated_bytes, counters.allocation_count)
}
