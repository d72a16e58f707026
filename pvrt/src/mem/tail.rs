//! What the heap keeps with each object: the account that it charged, in eight bytes behind the object's own.
//!
//! Behind, not before: the object keeps its alignment without padding, and the heap knows the size again when the object is
//! freed. A table beside the heap would cost a look-up for each object.

use alloc::alloc::Layout;

use crate::account::{self, Record};

/// Bytes behind each object.
const TAIL_BYTES: usize = size_of::<*const Record>();

/// What the heap's own word behind each object, and its unit, round an object up to.
const UNIT_BYTES: usize = 32;

/// The layout of an object with its tail.
#[inline]
pub(crate) fn extended(layout: Layout) -> Option<Layout> {
    let size = layout.size().checked_add(TAIL_BYTES)?;
    if size < 1 << 30 && layout.align() < 1 << 30 {
        // SAFETY: the alignment is a layout's, and the sum of both is far below the limit.
        return Some(unsafe { Layout::from_size_align_unchecked(size, layout.align()) });
    }
    Layout::from_size_align(size, layout.align()).ok()
}

/// Bytes that an object of this extended layout takes from the heap: its own, the heap's word, up to whole units.
#[inline]
pub(crate) fn heap_bytes(extended: Layout) -> usize {
    (extended.size() + size_of::<usize>() + UNIT_BYTES - 1) & !(UNIT_BYTES - 1)
}

/// Charges `bytes` for the new object at `object` to the current account, and remembers that.
///
/// # Safety
/// `object` has the size of `layout` and the tail behind it.
#[inline]
pub(crate) unsafe fn charge(object: *mut u8, layout: Layout, bytes: impl FnOnce() -> usize) {
    let record = account::take(bytes);
    // SAFETY: the caller's object has its tail there; it need not be aligned.
    unsafe { object.add(layout.size()).cast::<*const Record>().write_unaligned(record) };
}

/// Gives `bytes` back to the account that was charged for the object, which is about to be freed.
///
/// # Safety
/// The object was charged by [`charge`] with the same layout and bytes.
#[inline]
pub(crate) unsafe fn refund(object: *mut u8, layout: Layout, bytes: impl FnOnce() -> usize) {
    // SAFETY: `charge` wrote it, and the tail is nobody's but the heap's.
    let record = unsafe { object.add(layout.size()).cast::<*const Record>().read_unaligned() };
    // SAFETY: what `charge` got from the account.
    unsafe { account::refund(record, bytes) };
}
