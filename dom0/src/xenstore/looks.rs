//! Counters for tests of cost: each look at a path's bytes or at a node's permissions counts. Every search and every
//! scan needs such looks.

use std::cell::Cell;

std::thread_local! {
    static LOOKS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Counts one look.
pub(super) fn note() {
    LOOKS.set(LOOKS.get() + 1);
}

/// Counts bytes that are compared, or that go into a hash.
pub(super) fn note_bytes(count: usize) {
    BYTES.set(BYTES.get() + count);
}

/// Number of bytes that this thread has counted.
pub(super) fn taken_bytes() -> usize {
    BYTES.get()
}

/// Number of looks that this thread has counted.
pub(super) fn taken() -> usize {
    LOOKS.get()
}
