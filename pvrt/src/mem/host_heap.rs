//! The heap of host tests: the process's own heap, charged to accounts as an image's heap does.

use std::alloc::System;

use super::tail;
use alloc::alloc::{GlobalAlloc, Layout};

/// A test binary's global allocator, which charges each object to the current account of its thread's kernel:
///
/// ```ignore
/// #[global_allocator]
/// static HEAP: pvrt::host::Heap = pvrt::host::Heap;
/// ```
#[derive(Debug)]
pub struct Heap;

// SAFETY: the system's allocator gets each object's layout extended in the same way when the object comes and when the
// object goes.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > isize::MAX as usize / 2 {
            return core::ptr::null_mut();
        }
        let extended = tail::extended(layout);
        // SAFETY: the layout is the caller's, with the object's tail.
        let object = unsafe { System.alloc(extended) };
        if !object.is_null() {
            // SAFETY: the object was made with room for its tail.
            unsafe { tail::charge(object, layout, || tail::heap_bytes(extended)) };
        }
        object
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        let extended = tail::extended(layout);
        // SAFETY: charged so by `alloc`.
        unsafe { tail::refund(object, layout, || tail::heap_bytes(extended)) };
        // SAFETY: the caller's object, made with this layout.
        unsafe { System.dealloc(object, extended) };
    }
}
