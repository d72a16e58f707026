//! Host tests let an account go over its budget at an allocation of the test's choice.

use core::cell::Cell;
use core::sync::atomic::Ordering::Relaxed;

use super::Record;
use crate::global::global;

global! {
    /// Allocations that were charged to accounts.
    static COUNT: Cell<u64> = Cell::new(0);
}
global! {
    /// The number of the allocation that goes over the budget; 0: none.
    static AT: Cell<u64> = Cell::new(0);
}

/// Number of allocations of this thread's kernel so far that were charged to another account than the kernel's own.
pub fn charged_allocations() -> u64 {
    COUNT.with(|count| count.get())
}

/// Has the `nth` of these allocations, counted from the kernel's start, go over its account's budget; 0: none does.
pub fn overdraw_at(nth: u64) {
    AT.with(|at| at.set(nth));
}

/// Counts an allocation that is charged to `record`.
pub(super) fn count(record: &Record) {
    let nth = COUNT.with(|count| {
        count.set(count.get() + 1);
        count.get()
    });
    if AT.with(|at| at.get()) == nth {
        record.peak.store(usize::MAX, Relaxed);
    }
}
