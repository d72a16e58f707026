//! What tests of cost count: each look at a path's bytes or at a node's permissions. No search and no scan does without.

use std::cell::Cell;

std::thread_local! {
    static LOOKS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Counts one.
pub(super) fn note() {
    LOOKS.set(LOOKS.get() + 1);
}

/// Counts bytes that are compared, or go into a hash.
pub(super) fn note_bytes(count: usize) {
    BYTES.set(BYTES.get() + count);
}

/// The bytes that this thread has counted.
pub(super) fn taken_bytes() -> usize {
    BYTES.get()
}

/// What this thread has counted.
pub(super) fn taken() -> usize {
    LOOKS.get()
}
