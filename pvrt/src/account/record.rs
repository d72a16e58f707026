//! The facts of each account, which counters keep.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};

/// No domain.
pub(super) const NOBODY: u32 = u32::MAX;

/// The facts of one account. Records are never freed: a new account takes the record of an account that is over.
#[derive(Debug)]
pub(crate) struct Record {
    /// The account's place in the executor's queues. 0 is the kernel's own account, which has no record.
    pub(super) index: usize,
    /// Bytes of objects that are charged to the account.
    pub(super) used: AtomicUsize,
    /// The most that `used` was since the peak was last counted anew.
    pub(super) peak: AtomicUsize,
    /// Bytes that the account was promised.
    pub(super) budget: AtomicUsize,
    /// Bytes that the account may use beyond its budget, as long as the kernel has them.
    pub(super) extra: AtomicUsize,
    /// Number of handles on the account, those of tasks included.
    pub(super) holders: AtomicUsize,
    /// Tasks that have not ended.
    pub(super) tasks: AtomicUsize,
    /// The domain by whose number the account is found, or [`NOBODY`].
    pub(super) domain: AtomicU32,
    /// The last domain that the account was for, or [`NOBODY`]; logs name this domain.
    pub(super) named: AtomicU32,
    pub(super) overdrawn: AtomicBool,
    /// Whether [`super::overdrawn`] has given the account out.
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

    /// Whether nothing refers to the account, and nothing is charged to the account.
    pub(super) fn is_over(&self) -> bool {
        self.holders.load(Relaxed) == 0 && self.used.load(Relaxed) == 0 && self.domain.load(Relaxed) == NOBODY
    }

    /// The number of bytes that the account may use.
    pub(super) fn limit(&self) -> usize {
        self.budget.load(Relaxed).saturating_add(self.extra.load(Relaxed))
    }

    /// Bytes that the account was promised and does not use. While the account may use more than its budget, this is
    /// the whole budget: nothing tells then which of the used bytes will be given back.
    pub(super) fn owed(&self) -> usize {
        if self.is_over() {
            return 0;
        }
        let used = if self.extra.load(Relaxed) > 0 { 0 } else { self.used.load(Relaxed) };
        self.budget.load(Relaxed).saturating_sub(used)
    }
}
