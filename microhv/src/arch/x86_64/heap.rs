//! The hypervisor's heap: grows by runs of frames, and never shrinks.
#![allow(unsafe_code)] // the global allocator

use alloc::vec::Vec;
use core::alloc::Layout;
use core::sync::atomic::{AtomicU64, Ordering};

use microhv::boot::memory_map::Range;
use microhv::return_stack;
use microhv::sync::{HeapLock, Mutex, rank};
use ring_abi::types::Mfn;
use talc::TalcLock;
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;

use super::machine::{Hv, hypervisor_if_up};
use super::paging;

/// Frames that the heap takes at a time, at least: 128 KiB.
const GROW_FRAMES: u64 = 32;

/// Bytes taken for the heap.
static HEAP_BYTES: AtomicU64 = AtomicU64::new(0);

/// RAM for the heap until there is a frame table, and when the frame table has none to give.
static EARLY_HEAP: Mutex<rank::EarlyHeap, Range> = Mutex::new(Range { start: 0, end: 0 });
/// Bytes of that.
pub(crate) const EARLY_HEAP_BYTES: u64 = 512 << 10;

/// Gives the heap its memory for the time until the frame table exists: [`EARLY_HEAP_BYTES`] from `start` on.
pub(crate) fn begin(start: u64) {
    *EARLY_HEAP.lock() = Range::sized(start, EARLY_HEAP_BYTES);
}

/// Memory for the heap, before and after the frame table exists.
fn take_frames(frames: u64) -> Option<u64> {
    if let Some(hv) = hypervisor_if_up() {
        let order = frames.next_power_of_two().trailing_zeros() as u8;
        if let Some(mfn) = hv.alloc_frames(order, 0) {
            return Some(mfn.maddr().raw());
        }
    }
    let mut early = EARLY_HEAP.lock();
    let start = early.start;
    let end = start.checked_add(frames * 4096).filter(|&end| end <= early.end)?;
    early.start = end;
    Some(start)
}

/// Gives what the heap did not need early to the frame table, but for one piece: domains may come to own all the rest,
/// and the hypervisor then still has that piece for itself.
pub(crate) fn return_early(hv: &Hv) {
    let mut early = EARLY_HEAP.lock();
    let end = early.end.saturating_sub(GROW_FRAMES * 4096).max(early.start);
    hv.frames.add_free(Mfn::new(early.start / 4096), Mfn::new(end / 4096));
    early.start = end;
}

/// Where more memory comes from.
#[derive(Debug)]
struct Frames;

// SAFETY: `acquire` claims whole frames that the frame allocator gave away for ever; neither it nor what it calls
// allocates from the heap.
unsafe impl Source for Frames {
    #[cold]
    #[inline(never)]
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        let _filled = return_stack::fill_at_end();
        let least = ((layout.size() + layout.align() + 4096) as u64).div_ceil(4096);
        let several = least.max(GROW_FRAMES);
        let take = |frames| take_frames(frames).map(|start| (start, frames));
        let (start, frames) = take(several).or_else(|| take(least)).ok_or(())?;
        // SAFETY: the frames are RAM of the direct map, the heap's alone from now on.
        let claimed = unsafe { talc.claim(paging::direct(start) as *mut u8, (frames * 4096) as usize) };
        HEAP_BYTES.fetch_add(frames * 4096, Ordering::Relaxed);
        claimed.map(|_| ()).ok_or(())
    }
}

#[global_allocator]
static HEAP: TalcLock<HeapLock, Frames> = TalcLock::new(Frames);

/// Pieces that stay free for what calls allocate while they run, and cannot fail: vCPU contexts, lists of frames.
const KEPT_PIECES: usize = 2;
/// Bytes of each: no such allocation is larger.
const KEPT_BYTES: usize = 32 << 10;

/// Whether the heap can give a piece of `bytes` and then still has its kept pieces. All are taken and given back: nothing
/// else tells, since the heap may be able to grow by what is asked for, or not.
pub(crate) fn has_room(bytes: usize) -> bool {
    let mut pieces = [const { Vec::<u128>::new() }; KEPT_PIECES + 1];
    let sizes = [KEPT_BYTES; KEPT_PIECES].into_iter().chain([bytes]);
    let mut wanted = pieces.iter_mut().zip(sizes);
    wanted.all(|(piece, bytes)| piece.try_reserve_exact(bytes.div_ceil(size_of::<u128>())).is_ok())
}

/// Bytes of the heap that are in use, and bytes that it has taken from the frame allocator.
pub(crate) fn used_and_all() -> (u64, u64) {
    (HEAP.lock().counters().allocated_bytes as u64, HEAP_BYTES.load(Ordering::Relaxed))
}
