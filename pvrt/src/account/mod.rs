//! Accounts: memory that the kernel keeps, and time that it spends, for each domain.
//!
//! A kernel that serves others has an account for each of them, beside its own. An account has a budget of heap bytes,
//! which is claimed before anything is charged ([`Account::claim`]): the kernel then holds that much memory for it.
//! While a task runs ([`spawn_for`](crate::executor::spawn_for)), or within [`Account::charge`], its account is the
//! current one, and all that is allocated is charged to it: the bytes that the heap really gives. The heap remembers
//! with each object the account that it charged; that account gets the bytes back, whatever task frees the object. So
//! an account lasts until its last object is freed, and a domain number that comes again does not lead to the account
//! of its former holder.
//!
//! A budget is no limit that an allocation fails at: it is what the kernel promised to have. An allocation over it is
//! served from the kernel's reserve, and the account is then *overdrawn*: the executor runs its tasks no more until the
//! task that waits in [`overdrawn`] has stopped the account's owner. What a peer can make grow asks
//! [`Account::headroom`] first, and refuses in the protocol's own words.
#![allow(unsafe_code)] // the heap keeps accounts by their address

mod charge;
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
use record::NOBODY;
pub(crate) use record::Record;

/// What claims leave to the kernel itself, in bytes: 2 MiB. One poll of each of some overdrawn accounts, and the end of
/// their owners, live on it.
pub const RESERVE_BYTES: usize = 2 << 20;

/// What one poll may allocate at most beyond what it frees, in bytes: 256 KiB. `poll-limit` reports those that do more.
/// The reserve is eight times as much.
pub const POLL_BYTES: usize = 256 << 10;

global! {
    /// All records, by their index less one. A leaf lock, but for the heap's.
    static RECORDS: Mutex<Vec<&'static Record>> = Mutex::new(Vec::new());
}
global! {
    /// The task in [`overdrawn`]. A leaf lock.
    static WAITER: Mutex<Option<Waker>> = Mutex::new(None);
}

/// A handle on an account; clones are the same one.
pub struct Account(Option<&'static Record>);

/// The kernel has not the memory that a claim asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Bytes that were asked for.
    pub wanted: usize,
    /// Of them, bytes that cannot be had.
    pub missing: usize,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wanted, missing) = (self.wanted.div_ceil(1024), self.missing.div_ceil(1024));
        write!(f, "dom0 needs {wanted} KiB for it and lacks {missing} KiB of them")
    }
}

/// What is known of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// The domain that it is or was for.
    pub domain: Option<DomId>,
    /// Its domain is there: not merely objects of it.
    pub open: bool,
    /// Bytes that were promised to it.
    pub budget: usize,
    /// Bytes that it uses.
    pub used: usize,
    /// The most that it used since its budget last became smaller, or its allowance changed.
    pub peak: usize,
    /// Tasks that belong to it.
    pub tasks: usize,
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
        if let Some(record) = self.0 {
            record.holders.fetch_sub(1, Relaxed);
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
    /// The kernel's own account, which has no budget: the kernel counts on the memory that nobody claimed.
    pub const fn own() -> Self {
        Self(None)
    }

    /// The account that is charged now.
    pub fn current() -> Self {
        // SAFETY: records are never freed.
        Self(unsafe { current_record().as_ref() }).clone_held()
    }

    /// Is the kernel's own account the one that is charged now?
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
    /// [`Shortage`]: with what others were promised, and the reserve, the kernel has not so much, nor the hypervisor.
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

    /// Makes it the account of domain `id`. A former domain of that number is over, and its account retires.
    pub fn assign(&self, id: DomId) {
        let Some(record) = self.0 else { return };
        Self::of(id).retire();
        record.domain.store(id.raw().into(), Relaxed);
        record.named.store(id.raw().into(), Relaxed);
    }

    /// The account's domain is over: nobody finds the account by the domain's number any more. The account lasts until
    /// its last task has ended and its last object is freed; then its budget is the kernel's again.
    pub fn retire(&self) {
        if let Some(record) = self.0 {
            record.domain.store(NOBODY, Relaxed);
        }
    }

    /// Changes what is promised to it: to less at once, to more if that can be had. With less, its peak is counted anew.
    ///
    /// # Errors
    /// [`Shortage`]: nothing was changed.
    pub fn set_budget(&self, budget: usize) -> Result<(), Shortage> {
        let Some(record) = self.0 else { return Ok(()) };
        let before = record.budget.swap(budget, Relaxed);
        if budget < before {
            // What it once used was within the larger budget, and is not held against the smaller one.
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

    /// Promises it `by` bytes more.
    ///
    /// # Errors
    /// As [`set_budget`](Self::set_budget).
    pub fn raise_budget(&self, by: usize) -> Result<(), Shortage> {
        self.set_budget(self.budget().saturating_add(by))
    }

    /// Takes `by` bytes off what it was promised.
    pub fn lower_budget(&self, by: usize) {
        let lower = self.set_budget(self.budget().saturating_sub(by));
        debug_assert!(lower.is_ok(), "less is always to be had");
    }

    fn budget(&self) -> usize {
        self.0.map_or(0, |record| record.budget.load(Relaxed))
    }

    /// Lets it use `extra` bytes beyond its budget for a while: nobody promised them, so what needs them must be able to
    /// fail. Its peak is counted anew from now on.
    pub fn allow(&self, extra: usize) {
        let Some(record) = self.0 else { return };
        record.extra.store(extra, Relaxed);
        record.peak.store(record.used.load(Relaxed), Relaxed);
        self.check();
    }

    /// Holds bytes for it that the heap does not count: none at first. See [`Charge::resize`].
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

    /// As [`charge`](Self::charge), for all polls of a future.
    pub async fn charge_future<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| self.charge(|| future.as_mut().poll(context))).await
    }

    /// Bytes that may still be charged to it: none if it is overdrawn, `usize::MAX` for the kernel itself.
    pub fn headroom(&self) -> usize {
        match self.0 {
            None => usize::MAX,
            Some(record) if record.overdrawn.load(Relaxed) => 0,
            Some(record) => record.limit().saturating_sub(record.used.load(Relaxed)),
        }
    }

    /// Whether `bytes` more are among those that it was promised, as opposed to merely allowed, or to the kernel's own.
    #[cfg(any(freestanding, test))]
    pub(crate) fn was_promised(&self, bytes: usize) -> bool {
        self.0.is_some_and(|record| {
            record.used.load(Relaxed).saturating_add(bytes) <= record.budget.load(Relaxed)
        })
    }

    /// Whether it has gone over its budget, ever.
    pub fn is_overdrawn(&self) -> bool {
        self.0.is_some_and(|record| record.overdrawn.load(Relaxed))
    }

    /// The domain that it is or was for.
    pub fn domain(&self) -> Option<DomId> {
        let named = self.0?.named.load(Relaxed);
        u16::try_from(named).ok().map(DomId::new)
    }

    /// Its figures; `None` for the kernel's own.
    pub fn figures(&self) -> Option<Figures> {
        self.0.map(figures)
    }

    /// Runs the tasks of an overdrawn account again: the task that waited in [`overdrawn`] has stopped the owner.
    pub fn thaw(&self) {
        executor::thaw_account(self.index());
    }

    /// Its place in the executor's queues.
    #[inline]
    pub(crate) fn index(&self) -> usize {
        self.0.map_or(0, |record| record.index)
    }

    /// Counts a task that begins or ends; gives the number of those there are then.
    pub(crate) fn count_task(&self, begins: bool) -> usize {
        let Some(record) = self.0 else { return executor::live_tasks() as usize };
        if begins { record.tasks.fetch_add(1, Relaxed) + 1 } else { record.tasks.fetch_sub(1, Relaxed) - 1 }
    }

    /// Sees whether it went over its budget since it was looked at last.
    #[inline]
    pub(crate) fn check(&self) {
        if let Some(record) = self.0
            && record.peak.load(Relaxed) > record.limit()
        {
            overdraw(record);
        }
    }

    /// Begins to measure what is allocated: the bytes in use.
    pub(crate) fn begin_poll(&self) -> (usize, usize) {
        let Some(record) = self.0 else { return (0, 0) };
        let used = record.used.load(Relaxed);
        (used, record.peak.swap(used, Relaxed))
    }

    /// The most that was allocated since [`begin_poll`](Self::begin_poll) gave `begun`; what an allowance is for does not
    /// count.
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
    /// The kernel's free pages that nobody was promised.
    Free,
    /// The hypervisor.
    Hypervisor,
    /// The pages that accounts were promised, and the reserve.
    Promised,
}

/// Where the heap takes pages from, for an object of `bytes` that is charged to the current account. What was promised to
/// accounts is for those whose budget the object fits. To others, the kernel itself and an account beyond its budget, it
/// goes when nothing else is left: an object that cannot be had is the kernel's end. (I24)
#[cfg(any(freestanding, test))]
pub(crate) fn supplies(bytes: usize) -> &'static [Supply] {
    if Account::current().was_promised(bytes) {
        &[Supply::Promised, Supply::Hypervisor]
    } else {
        &[Supply::Free, Supply::Hypervisor, Supply::Promised]
    }
}

/// Waits for an account that was overdrawn. Its tasks do not run until [`Account::thaw`]. For one task at a time.
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

/// The figures of all accounts but the kernel's own that have a domain, bytes or tasks.
pub fn all() -> Vec<Figures> {
    let records = RECORDS.with(|records| records.lock().clone());
    records
        .into_iter()
        .map(figures)
        .filter(|figures| figures.open || figures.used > 0 || figures.tasks > 0)
        .collect()
}

fn figures(record: &'static Record) -> Figures {
    Figures {
        domain: u16::try_from(record.named.load(Relaxed)).ok().map(DomId::new),
        open: record.domain.load(Relaxed) != NOBODY,
        budget: record.budget.load(Relaxed),
        used: record.used.load(Relaxed),
        peak: record.peak.load(Relaxed),
        tasks: record.tasks.load(Relaxed),
    }
}

#[cfg(not(freestanding))]
pub use testing::{charged_allocations, overdraw_at};
