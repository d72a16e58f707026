//! Accounts: memory that the kernel keeps, and time that the kernel spends, for each domain.
//!
//! A kernel that serves other domains has an account for each of them, beside the kernel's own. An account has a budget
//! of heap bytes, which the kernel claims before anything is charged ([`Account::claim`]): from then on the kernel
//! holds so much memory for the account. While a task runs ([`spawn_for`](crate::executor::spawn_for)), the task's
//! account is the current one; within [`Account::charge`] the current account is the account given there. All that is
//! allocated is charged to the current account: the bytes that the heap really gives. The heap remembers with each
//! object the account that the heap charged. That account gets the bytes back, whatever task frees the object. So an
//! account lasts until its last object is freed, and a domain number that comes again does not lead to the account of
//! the number's former holder.
//!
//! An allocation does not fail at the budget: a budget is what the kernel promised to have. An allocation over the
//! budget is served from the kernel's reserve, and the account is then *overdrawn*: the executor runs the account's
//! tasks no more until the task that waits in [`overdrawn`] has stopped the account's owner. Code that a peer can make
//! allocate asks [`Account::headroom`] first, and refuses in the protocol's own words.
#![allow(unsafe_code)] // the heap keeps accounts by their address

mod charge;
mod figures;
mod record;
#[cfg(not(freestanding))]
mod testing;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::sync::atomic::Ordering::Relaxed;
use core::task::{Poll, Waker};

use ring_abi::types::DomId;
use spin::Mutex;

use crate::executor;
use crate::global::global;
use crate::mem;

pub use charge::Charge;
use charge::current_record;
pub(crate) use charge::{Scope, refund, take};
use figures::figures;
pub use figures::{Figures, all, places};
use record::NOBODY;
pub(crate) use record::Record;

/// Bytes that claims leave to the kernel itself: 2 MiB. The reserve is for one poll of each of some overdrawn accounts,
/// and for the end of the accounts' owners.
pub const RESERVE_BYTES: usize = 2 << 20;

/// Most bytes that one poll may allocate beyond what the poll frees: 256 KiB. `poll-limit` reports a poll that
/// allocates more. The reserve is eight times as large.
pub const POLL_BYTES: usize = 256 << 10;

global! {
    /// All records, by their index less one. This is a leaf lock, except that the heap's lock may be taken inside.
    static RECORDS: Mutex<Vec<&'static Record>> = Mutex::new(Vec::new());
}
global! {
    /// The task in [`overdrawn`]. A leaf lock.
    static WAITER: Mutex<Option<Waker>> = Mutex::new(None);
}

/// A handle on an account. All clones stand for one account.
pub struct Account(Option<&'static Record>);

/// The kernel has not the memory that a claim asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Number of bytes that the caller asked for.
    pub wanted: usize,
    /// Number of these bytes that the kernel cannot have.
    pub missing: usize,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wanted, missing) = (self.wanted.div_ceil(1024), self.missing.div_ceil(1024));
        write!(f, "dom0 needs {wanted} KiB for it and lacks {missing} KiB of them")
    }
}

impl Clone for Account {
    fn clone(&self) -> Self {
        if let Some(record) = self.0 {
            record.holders.fetch_add(1, Relaxed);
        }
        Self(self.0)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(record) = self.0
            && record.holders.fetch_sub(1, Relaxed) == 1
            && record.is_over()
        {
            // Of an account that is over the kernel keeps the place alone. If objects are left, the next claim does this.
            executor::forget_account(record.index);
        }
    }
}

impl PartialEq for Account {
    fn eq(&self, other: &Self) -> bool {
        self.index() == other.index()
    }
}

impl Eq for Account {}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Account({self})")
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.domain()) {
            (None, _) => f.write_str("dom0"),
            (Some(_), None) => f.write_str("a domain that is being made"),
            (Some(_), Some(domain)) => write!(f, "d{domain}"),
        }
    }
}

impl Account {
    /// The kernel's own account, which has no budget: the kernel counts on the memory that no account
    /// claimed.
    pub const fn own() -> Self {
        Self(None)
    }

    /// The account that is charged now.
    pub fn current() -> Self {
        // SAFETY: records are never freed.
        Self(unsafe { current_record().as_ref() }).clone_held()
    }

    /// Whether the kernel's own account is charged now.
    pub fn is_own_current() -> bool {
        current_record().is_null()
    }

    /// The account of domain `id`; the kernel's own if there is none.
    pub fn of(id: DomId) -> Self {
        let wanted = u32::from(id.raw());
        let found = RECORDS.with(|records| {
            records.lock().iter().find(|record| record.domain.load(Relaxed) == wanted).copied()
        });
        Self(found).clone_held()
    }

    /// Counts a handle that was made from a record.
    fn clone_held(self) -> Self {
        let held = self.clone();
        core::mem::forget(self);
        held
    }

    /// Claims `budget` bytes for a new account, of no domain yet. (I24)
    ///
    /// # Errors
    /// [`Shortage`]: the kernel has not so much beside its other promises and the reserve, and the hypervisor does not
    /// give the rest.
    pub fn claim(budget: usize) -> Result<Self, Shortage> {
        let (records, promised) = RECORDS.with(|records| {
            let records = records.lock();
            (records.len(), records.iter().map(|record| record.owed()).sum::<usize>())
        });
        mem::secure(promised.saturating_add(budget).saturating_add(RESERVE_BYTES))
            .map_err(|missing| Shortage { wanted: budget, missing: missing.min(budget) })?;
        let over = RECORDS.with(|records| records.lock().iter().find(|record| record.is_over()).copied());
        let record = over.unwrap_or_else(|| {
            Account::own().charge(|| {
                let record: &'static Record = Box::leak(Box::new(Record::new(records + 1)));
                RECORDS.with(|all| all.lock().push(record));
                record
            })
        });
        executor::forget_account(record.index);
        record.peak.store(0, Relaxed);
        record.budget.store(budget, Relaxed);
        record.extra.store(0, Relaxed);
        record.named.store(NOBODY, Relaxed);
        record.overdrawn.store(false, Relaxed);
        record.reported.store(false, Relaxed);
        Ok(Self(Some(record)).clone_held())
    }

    /// Makes this the account of domain `id`. A former domain of that number is over, and the former domain's account
    /// retires.
    pub fn assign(&self, id: DomId) {
        let Some(record) = self.0 else { return };
        Self::of(id).retire();
        record.domain.store(id.raw().into(), Relaxed);
        record.named.store(id.raw().into(), Relaxed);
    }

    /// The account's domain is over: the domain's number no longer leads to the account. The account lasts until its
    /// last task has ended and its last object is freed; then its budget is the kernel's again.
    pub fn retire(&self) {
        if let Some(record) = self.0 {
            record.domain.store(NOBODY, Relaxed);
        }
    }

    /// Changes how much is promised to the account: a smaller budget holds at once, a larger one if the kernel can have
    /// the memory. With a smaller budget the account's peak is counted anew.
    ///
    /// # Errors
    /// [`Shortage`]: the kernel cannot have so much memory, and nothing was changed.
    pub fn set_budget(&self, budget: usize) -> Result<(), Shortage> {
        let Some(record) = self.0 else { return Ok(()) };
        let before = record.budget.swap(budget, Relaxed);
        if budget < before {
            // Bytes that the account once used were within the larger budget, and do not count against the smaller one.
            record.peak.store(record.used.load(Relaxed), Relaxed);
        }
        if budget <= before {
            return Ok(());
        }
        let promised =
            RECORDS.with(|records| records.lock().iter().map(|record| record.owed()).sum::<usize>());
        mem::secure(promised.saturating_add(RESERVE_BYTES)).map_err(|missing| {
            record.budget.store(before, Relaxed);
            Shortage { wanted: budget - before, missing: missing.min(budget - before) }
        })
    }

    /// Promises the account `by` bytes more.
    ///
    /// # Errors
    /// The errors of [`set_budget`](Self::set_budget).
    pub fn raise_budget(&self, by: usize) -> Result<(), Shortage> {
        self.set_budget(self.budget().saturating_add(by))
    }

    /// Takes `by` bytes off the account's budget.
    pub fn lower_budget(&self, by: usize) {
        let lower = self.set_budget(self.budget().saturating_sub(by));
        debug_assert!(lower.is_ok(), "less is always to be had");
    }

    fn budget(&self) -> usize {
        self.0.map_or(0, |record| record.budget.load(Relaxed))
    }

    /// Lets the account use `extra` bytes beyond its budget for a while. No memory is promised for these bytes, so
    /// the code that needs them must be able to fail. The account's peak is counted anew from now on.
    pub fn allow(&self, extra: usize) {
        let Some(record) = self.0 else { return };
        record.extra.store(extra, Relaxed);
        record.peak.store(record.used.load(Relaxed), Relaxed);
        self.check();
    }

    /// Holds bytes for the account that the heap does not count: none at first. See [`Charge::resize`].
    pub fn hold(&self) -> Charge {
        self.charge(|| Charge::take(0))
    }

    /// Runs `operate` with this account as the current one.
    pub fn charge<R>(&self, operate: impl FnOnce() -> R) -> R {
        let scope = Scope::enter(self);
        let result = operate();
        drop(scope);
        self.check();
        result
    }

    /// Does the same as [`charge`](Self::charge) for all polls of a future.
    pub async fn charge_future<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| self.charge(|| future.as_mut().poll(context))).await
    }

    /// Bytes that may still be charged to the account: none if the account is overdrawn, `usize::MAX` for the kernel
    /// itself.
    pub fn headroom(&self) -> usize {
        match self.0 {
            None => usize::MAX,
            Some(record) if record.overdrawn.load(Relaxed) => 0,
            Some(record) => record.limit().saturating_sub(record.used.load(Relaxed)),
        }
    }

    /// Whether `bytes` more fit what the account was promised. Bytes that are merely allowed do not count, and neither
    /// do the kernel's own.
    #[cfg(any(freestanding, test))]
    pub(crate) fn was_promised(&self, bytes: usize) -> bool {
        self.0.is_some_and(|record| {
            record.used.load(Relaxed).saturating_add(bytes) <= record.budget.load(Relaxed)
        })
    }

    /// Whether the account has ever gone over its budget.
    pub fn is_overdrawn(&self) -> bool {
        self.0.is_some_and(|record| record.overdrawn.load(Relaxed))
    }

    /// The domain that the account is or was for.
    pub fn domain(&self) -> Option<DomId> {
        let named = self.0?.named.load(Relaxed);
        u16::try_from(named).ok().map(DomId::new)
    }

    /// The account's figures; `None` for the kernel's own account.
    pub fn figures(&self) -> Option<Figures> {
        self.0.map(figures)
    }

    /// Runs the tasks of an overdrawn account again: the task that waited in [`overdrawn`] has stopped the owner.
    pub fn thaw(&self) {
        executor::thaw_account(self.index());
    }

    /// The account's place in the executor's queues.
    #[inline]
    pub(crate) fn index(&self) -> usize {
        self.0.map_or(0, |record| record.index)
    }

    /// Counts a task that begins or ends. The result is the number of tasks afterwards.
    pub(crate) fn count_task(&self, begins: bool) -> usize {
        let Some(record) = self.0 else { return executor::live_tasks() as usize };
        if begins { record.tasks.fetch_add(1, Relaxed) + 1 } else { record.tasks.fetch_sub(1, Relaxed) - 1 }
    }

    /// Notices whether the account went over its budget since the last look.
    #[inline]
    pub(crate) fn check(&self) {
        if let Some(record) = self.0
            && record.peak.load(Relaxed) > record.limit()
        {
            overdraw(record);
        }
    }

    /// Begins to measure what a poll allocates. The result is the bytes in use, for [`end_poll`](Self::end_poll).
    pub(crate) fn begin_poll(&self) -> (usize, usize) {
        let Some(record) = self.0 else { return (0, 0) };
        let used = record.used.load(Relaxed);
        (used, record.peak.swap(used, Relaxed))
    }

    /// The most that was allocated since [`begin_poll`](Self::begin_poll) gave `begun`. Bytes that an allowance is for
    /// do not count.
    pub(crate) fn end_poll(&self, begun: (usize, usize)) -> usize {
        let Some(record) = self.0 else { return 0 };
        let peak = record.peak.fetch_max(begun.1, Relaxed);
        if record.extra.load(Relaxed) > 0 { 0 } else { peak.saturating_sub(begun.0) }
    }
}

/// Marks an account as overdrawn, once.
#[cold]
fn overdraw(record: &'static Record) {
    if record.overdrawn.swap(true, Relaxed) {
        return;
    }
    executor::freeze_account(record.index);
    let account = Account(Some(record)).clone_held();
    let (used, budget) = (record.peak.load(Relaxed), record.limit());
    Account::own().charge(|| {
        log::error!("{account}: dom0 keeps {used} bytes for it, and {budget} are its budget: it is ended");
        if let Some(waker) = WAITER.with(|waiter| waiter.lock().take()) {
            waker.wake();
        }
    });
}

/// Where the heap may take pages from.
#[cfg(any(freestanding, test))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Supply {
    /// The kernel's free pages that no account was promised.
    Free,
    /// The hypervisor.
    Hypervisor,
    /// The pages that accounts were promised, and the reserve.
    Promised,
}

/// Where the heap takes pages for an object of `bytes` bytes that is charged to the current account. Promised pages are
/// for accounts whose budget the object fits. The kernel itself, and an account beyond its budget, get promised pages
/// only when nothing else is left: if such an object cannot be had, the kernel ends. (I24)
#[cfg(any(freestanding, test))]
pub(crate) fn supplies(bytes: usize) -> &'static [Supply] {
    if Account::current().was_promised(bytes) {
        &[Supply::Promised, Supply::Hypervisor]
    } else {
        &[Supply::Free, Supply::Hypervisor, Supply::Promised]
    }
}

/// Waits for an account that was overdrawn. The account's tasks do not run until [`Account::thaw`]. One task may wait
/// at a time.
pub async fn overdrawn() -> Account {
    poll_fn(|context| {
        let before = WAITER.with(|waiter| waiter.lock().replace(context.waker().clone()));
        drop(before);
        let found = RECORDS.with(|records| {
            let unreported =
                |record: &&&Record| record.overdrawn.load(Relaxed) && !record.reported.swap(true, Relaxed);
            records.lock().iter().find(unreported).copied()
        });
        found.map_or(Poll::Pending, |record| Poll::Ready(Account(Some(record)).clone_held()))
    })
    .await
}

#[cfg(not(freestanding))]
pub use testing::{charged_allocations, overdraw_at};
