//! Which task runs next: deficit round-robin between accounts, by cost. (I25)
//!
//! Each account has a queue of its ready tasks, in order of arrival. The accounts with ready tasks stand in a ring. The
//! account in front runs its tasks until the cost of their polls has used up the account's credit. The account then
//! gets a quantum of new credit and goes to the back. A poll is charged after the poll ran, so an account can get into
//! debt: such an account sits out as many rounds as its debt lasts. Debt lasts only while others want the time: an
//! account alone in the ring runs at once, and an idle moment of the whole kernel voids all debts.
//!
//! An account that becomes ready with credit left does not wait for the ring's turns. Such an account is *fresh* and
//! runs next, in order of arrival among the fresh ones, until its credit is used up. Only then does the account go to
//! the back of the ring. So an account that waits much, as a domain with some reads of its disk under way does, waits
//! for one poll of an account that does not wait. Such an account still has no more than its quantum in each round: new
//! credit comes from the ring alone.
//!
//! M. Shreedhar, G. Varghese: Efficient Fair Queueing using Deficit Round-Robin (1995).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Ticks of the time stamp counter that a guest's account may use in one turn: 250 µs where the counter counts at 1
/// GHz.
pub(super) const QUANTUM: i64 = 250_000;
/// How many guests' quanta the kernel's own account gets in a turn: the kernel drives the disks and ends domains for
/// all.
pub(super) const OWN_WEIGHT: i64 = 4;
/// The least number of ticks that a poll is charged: tasks that wake each other for ever use up their turn even where
/// the clock stands still.
const LEAST_COST: i64 = 500;
/// The most that an account can owe, in quanta. A poll's ticks count even where the hypervisor gave the CPU to another
/// vCPU in the middle of the poll, and that is no fault of the account's.
const DEBT_QUANTA: i64 = 16;

/// One account's ready tasks.
struct Queue<T> {
    ready: VecDeque<T>,
    /// Ticks that the account may still use. A number below zero is a debt.
    credit: i64,
    /// Whether the account stands in the ring or is fresh. Such an account has ready tasks, or its last task is being
    /// polled and may be ready again.
    in_ring: bool,
    /// Whether the account's tasks must not run.
    frozen: bool,
    /// The idle epoch in which `credit` was last true.
    epoch: u64,
    /// Number of tasks that ever became ready.
    pushed: u64,
}

impl<T> Queue<T> {
    const fn new() -> Self {
        Self { ready: VecDeque::new(), credit: 0, in_ring: false, frozen: false, epoch: 0, pushed: 0 }
    }
}

/// The queues of all accounts, by number; 0 is the kernel's own.
pub(super) struct Drr<T> {
    queues: Vec<Queue<T>>,
    /// The accounts that have ready tasks and wait for their turn.
    ring: VecDeque<usize>,
    /// Accounts that have ready tasks and became ready with credit left: these go first.
    fresh: VecDeque<usize>,
    /// Counts the times when nothing was ready.
    epoch: u64,
}

/// Ticks that account number `account` gets for each turn.
fn quantum(account: usize) -> i64 {
    if account == 0 { QUANTUM * OWN_WEIGHT } else { QUANTUM }
}

impl<T> Drr<T> {
    /// Nothing ready.
    pub(super) const fn new() -> Self {
        Self { queues: Vec::new(), ring: VecDeque::new(), fresh: VecDeque::new(), epoch: 0 }
    }

    /// Makes room for `tasks` ready tasks of `account`: a task is in a queue once at most, so waking allocates nothing.
    pub(super) fn reserve(&mut self, account: usize, tasks: usize) {
        if self.queues.len() <= account {
            self.queues.resize_with(account + 1, Queue::new);
        }
        let ready = &mut self.queues[account].ready;
        ready.reserve(tasks.saturating_sub(ready.len()));
        self.ring.reserve(self.queues.len() - self.ring.len());
        self.fresh.reserve(self.queues.len() - self.fresh.len());
    }

    /// Puts a task behind the other tasks of its account. There must be room: see [`Drr::reserve`].
    #[inline]
    pub(super) fn push(&mut self, account: usize, task: T) {
        let queue = &mut self.queues[account];
        queue.ready.push_back(task);
        queue.pushed += 1;
        if !queue.in_ring && !queue.frozen {
            self.enter(account);
        }
    }

    fn enter(&mut self, account: usize) {
        let queue = &mut self.queues[account];
        queue.in_ring = true;
        if queue.epoch != self.epoch {
            queue.epoch = self.epoch;
            queue.credit = quantum(account);
        }
        if queue.credit > 0 {
            self.fresh.push_back(account);
        } else {
            // The account is treated like an account whose credit ends while it is ready.
            queue.credit += quantum(account);
            self.ring.push_back(account);
        }
    }

    /// Takes the task that runs next. Where no task is ready, all debts become void: no account lacked the time.
    #[inline]
    pub(super) fn next(&mut self) -> Option<(usize, T)> {
        loop {
            let (account, is_fresh) = match (self.fresh.front(), self.ring.front()) {
                (Some(&account), _) => (account, true),
                (None, Some(&account)) => (account, false),
                (None, None) => {
                    self.epoch += 1;
                    return None;
                }
            };
            let queue = &mut self.queues[account];
            if queue.ready.is_empty() {
                // The account stayed in front while its last task was polled: if that task had become ready at once,
                // the turn would have gone on.
                queue.in_ring = false;
                _ = if is_fresh { self.fresh.pop_front() } else { self.ring.pop_front() };
                continue;
            }
            if queue.credit > 0 {
                return queue.ready.pop_front().map(|task| (account, task));
            }
            queue.credit = if self.fresh.len() + self.ring.len() == 1 {
                // No other account has ready tasks.
                quantum(account)
            } else {
                queue.credit + quantum(account)
            };
            if is_fresh {
                self.fresh.pop_front();
                self.ring.push_back(account);
            } else {
                self.ring.rotate_left(1);
            }
        }
    }

    /// Charges a poll of a task of `account`, in ticks.
    #[inline]
    pub(super) fn charge(&mut self, account: usize, ticks: u64) {
        let queue = &mut self.queues[account];
        let cost = i64::try_from(ticks).unwrap_or(i64::MAX).max(LEAST_COST);
        queue.credit = queue.credit.saturating_sub(cost).max(-DEBT_QUANTA * QUANTUM);
    }

    /// Ends the turn of the account in front. The account keeps its credit for its next turn.
    pub(super) fn pass(&mut self) {
        if let Some(account) = self.fresh.pop_front() {
            self.ring.push_back(account);
        } else if self.ring.len() > 1 {
            self.ring.rotate_left(1);
        }
    }

    /// A record of the tasks that are ready now; [`Drr::have_run`] tells by the record whether they all have run.
    pub(super) fn ready_now(&self) -> Vec<(usize, u64)> {
        let ready = |(_, queue): &(usize, &Queue<T>)| !queue.ready.is_empty() && !queue.frozen;
        self.queues.iter().enumerate().filter(ready).map(|(account, queue)| (account, queue.pushed)).collect()
    }

    /// Whether the tasks of a [`Drr::ready_now`] have been taken.
    pub(super) fn have_run(&self, ready: &[(usize, u64)]) -> bool {
        ready.iter().all(|(account, pushed)| {
            let taken = |queue: &Queue<T>| queue.pushed - queue.ready.len() as u64;
            self.queues.get(*account).is_none_or(|queue| queue.frozen || taken(queue) >= *pushed)
        })
    }

    /// Runs no task of `account` until [`Drr::thaw`]; its tasks can become ready meanwhile.
    pub(super) fn freeze(&mut self, account: usize) {
        let Some(queue) = self.queues.get_mut(account) else { return };
        queue.frozen = true;
        if core::mem::take(&mut queue.in_ring) {
            self.remove(account);
        }
    }

    /// Takes an account out of the ring, or from among the fresh.
    fn remove(&mut self, account: usize) {
        self.ring.retain(|other| *other != account);
        self.fresh.retain(|other| *other != account);
    }

    /// Ends [`Drr::freeze`].
    pub(super) fn thaw(&mut self, account: usize) {
        let Some(queue) = self.queues.get_mut(account) else { return };
        if core::mem::take(&mut queue.frozen) && !queue.ready.is_empty() {
            self.enter(account);
        }
    }

    #[cfg(test)]
    pub(super) fn room(&self, account: usize) -> usize {
        self.queues.get(account).map_or(0, |queue| queue.ready.capacity())
    }

    /// Gives back the memory of the queue of an account that is over.
    pub(super) fn forget(&mut self, account: usize) {
        if let Some(queue) = self.queues.get_mut(account) {
            debug_assert!(queue.ready.is_empty());
            // A caller of [`Drr::have_run`] may wait for tasks that this account made ready: so the count goes on under
            // the next account.
            *queue = Queue { pushed: queue.pushed, ..Queue::new() };
            self.remove(account);
        }
    }
}

#[cfg(test)]
mod tests;
