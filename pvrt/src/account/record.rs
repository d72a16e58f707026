//! The facts of accounts.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};

/// No domain.
pub(super) const NOBODY: u32 = u32::MAX;

/// The facts of one account. Records are never freed: a new account takes one that is over.
#[derive(Debug)]
pub(crate) struct Record {
    /// Its place in the executor's queues; 0 is the kernel's own account, which has no record.
    pub(super) index: usize,
    /// Bytes of objects that are charged to it.
    pub(super) used: AtomicUsize,
    /// The most that `used` was since it was last counted anew.
    pub(super) peak: AtomicUsize,
    /// Bytes that it was promised.
    pub(super) budget: AtomicUsize,
    /// Bytes that it may use beyond, as long as the kernel has them.
    pub(super) extra: AtomicUsize,
    /// Handles on it: those of tasks too.
    pub(super) holders: AtomicUsize,
    /// Tasks that have not ended.
    pub(super) tasks: AtomicUsize,
    /// The domain that it is found by, or [`NOBODY`].
    pub(super) domain: AtomicU32,
    /// The last domain that it was for, or [`NOBODY`]: for logs.
    pub(super) named: AtomicU32,
    pub(super) overdrawn: AtomicBool,
    /// [`super::overdrawn`] has given it out.
    pub(super) reported: AtomicBool,
}

impl Record {
    pub(super) const fn new(index: usize) -> Self {
        Self {
            index,
            used: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            budget: AtomicUsize::new(0),
            extra: AtomicUsize::new(0),
            holders: AtomicUsize::new(0),
            tasks: AtomicUsize::new(0),
            domain: AtomicU32::new(NOBODY),
            named: AtomicU32::new(NOBODY),
            overdrawn: AtomicBool::new(false),
            reported: AtomicBool::new(false),
        }
    }

    /// Nothing refers to it, and nothing is charged to it.
    pub(super) fn is_over(&self) -> bool {
        self.holders.load(Relaxed) == 0 && self.used.load(Relaxed) == 0 && self.domain.load(Relaxed) == NOBODY
    }

    /// What it may use.
    pub(super) fn limit(&self) -> usize {
        self.budget.load(Relaxed).saturating_add(self.extra.load(Relaxed))
    }

    /// Bytes that it was promised and does not use: all of its budget while it may use more, since nothing tells then whether
    /// what it uses is of the budget or will be given back.
    pub(super) fn owed(&self) -> usize {
        if self.is_over() {
            return 0;
        }
        let used = if self.extra.load(Relaxed) > 0 { 0 } else { self.used.load(Relaxed) };
        self.budget.load(Relaxed).saturating_sub(used)
    }
}
