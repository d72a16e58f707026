//! What the heap keeps with each object: the account that the heap charged, in eight bytes behind the object's own.
//!
//! The bytes lie behind the object, not before: so the object keeps its alignment without padding, and the heap knows
//! the size again when the object is freed. A table beside the heap would cost a look-up for each object.

use alloc::alloc::Layout;

use crate::account::{self, Record};

/// Bytes behind each object.
const TAIL_BYTES: usize = size_of::<*const Record>();

/// The heap's unit: an object, with the heap's own word behind it, is rounded up to a multiple of this size.
const UNIT_BYTES: usize = 32;

/// The layout of an object with its tail. The object is smaller than half of what a layout can be.
#[inline]
pub(crate) fn extended(layout: Layout) -> Layout {
    debug_assert!(layout.size() <= isize::MAX as usize / 2);
    // SAFETY: the alignment is a layout's own, and the size is far below the size at which a layout is too large.
    unsafe { Layout::from_size_align_unchecked(layout.size().wrapping_add(TAIL_BYTES), layout.align()) }
}

/// Bytes that an object of this extended layout takes from the heap: the object's own and the heap's word, rounded up
/// to whole units.
#[inline]
pub(crate) fn heap_bytes(extended: Layout) -> usize {
    extended.size().wrapping_add(size_of::<usize>() + UNIT_BYTES - 1) & !(UNIT_BYTES - 1)
}

/// Charges `bytes` for the new object at `object` to the current account, and notes the account in the object's tail.
/// (I23)
///
/// # Safety
/// `object` has the size of `layout` and the tail behind it.
#[inline]
pub(crate) unsafe fn charge(object: *mut u8, layout: Layout, bytes: impl FnOnce() -> usize) {
    let record = account::take(bytes);
    // SAFETY: the caller's object has its tail there, which need not be aligned.
    unsafe { object.add(layout.size()).cast::<*const Record>().write_unaligned(record) };
}

/// Reads the tail of an object.
///
/// # Safety
/// The object was charged by [`charge`] with the same layout.
#[inline]
pub(crate) unsafe fn read(object: *mut u8, layout: Layout) -> *const Record {
    // SAFETY: `charge` wrote the tail, and only the heap uses the tail.
    unsafe { object.add(layout.size()).cast::<*const Record>().read_unaligned() }
}

/// Gives `bytes` back to the account that was charged for the object, which is about to be freed, or to move.
///
/// # Safety
/// The object was charged by [`charge`] with the same layout and bytes.
#[inline]
pub(crate) unsafe fn refund(object: *mut u8, layout: Layout, bytes: impl FnOnce() -> usize) {
    // SAFETY: the caller's object has its tail.
    let record = unsafe { read(object, layout) };
    // SAFETY: `record` is what `charge` got from the account.
    unsafe { account::refund(record, bytes) };
}
