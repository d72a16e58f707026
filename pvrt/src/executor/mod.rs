//! The asynchronous executor: one vCPU, tasks woken by events and timers.
//!
//! A kernel runs with its event upcall masked. Between tasks, [`run`] looks at the pending word, and [`run`] lets the
//! hypervisor unmask the upcall only while the vCPU is blocked. So no code is ever interrupted, locks need no
//! interrupt-safe variant, and an event costs no upcall while there is work to do. A task must therefore return soon,
//! or call `yield_now().await`.
//!
//! Every task belongs to an account ([`crate::account`]), which is the current one while the task is polled. Accounts
//! share time by what their polls cost, not by the number of tasks: see `drr`.

pub mod combine;
mod drr;
pub mod sync;
pub mod time;
mod utc;

#[cfg(not(freestanding))]
mod testing;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use core::future::Future;
use core::panic::Location;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};
use spin::Mutex;

pub use combine::{Either, join_all, select};
#[cfg(not(freestanding))]
pub use testing::block_on_test;

use crate::account::{self, Account, POLL_BYTES};
use crate::global::global;
use drr::Drr;

/// Tasks polled at most between two looks at the event words and the clock.
#[cfg(freestanding)]
const BATCH: usize = 16;
/// Ticks after which the executor looks at events and timers at any rate: a woken task must not wait for sixteen long
/// polls.
#[cfg(freestanding)]
const BATCH_TICKS: u64 = 50_000;

/// Names a task in logs. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(u64);

type BoxedFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One spawned future. A task is in the ready queue at most once.
struct Task {
    future: Mutex<Option<BoxedFuture>>,
    queued: AtomicBool,
    account: Account,
    /// The place in the source where the task was spawned.
    origin: &'static Location<'static>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            READY.with(|ready| ready.lock().push(self.account.index(), self));
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            READY.with(|ready| ready.lock().push(self.account.index(), self.clone()));
        }
    }
}

global! {
    /// A leaf lock: no task is polled or dropped while it is held.
    static READY: Mutex<Drr<Arc<Task>>> = Mutex::new(Drr::new());
}
global! {
    static NEXT_ID: AtomicU64 = AtomicU64::new(0);
}
global! {
    static LIVE: AtomicU64 = AtomicU64::new(0);
}
global! {
    /// Ticks that no poll may take; 0: polls are not watched.
    static POLL_LIMIT: AtomicU64 = AtomicU64::new(0);
}

/// Starts a task of the current account. The executor first polls the task when the executor next runs.
#[track_caller]
pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> TaskId {
    spawn_for(&Account::current(), future)
}

/// Starts a task of `account`: the account is charged for what the task allocates, and for the task's time.
#[track_caller]
pub fn spawn_for(account: &Account, future: impl Future<Output = ()> + Send + 'static) -> TaskId {
    let id = NEXT_ID.with(|next| next.fetch_add(1, Ordering::Relaxed));
    start(account, Location::caller(), future);
    TaskId(id)
}

fn start(
    account: &Account,
    origin: &'static Location<'static>,
    future: impl Future<Output = ()> + Send + 'static,
) -> Arc<Task> {
    LIVE.with(|live| live.fetch_add(1, Ordering::Relaxed));
    account.charge(|| {
        let tasks = account.count_task(true);
        let task = Arc::new(Task {
            future: Mutex::new(Some(Box::pin(future))),
            queued: AtomicBool::new(true),
            account: account.clone(),
            origin,
        });
        READY.with(|ready| {
            let mut ready = ready.lock();
            // The queues are charged to the kernel's own account: a place in a queue is eight bytes, beside a task's
            // hundreds.
            Account::own().charge(|| ready.reserve(account.index(), tasks));
            ready.push(account.index(), task.clone());
        });
        task
    })
}

/// A task of this account has ended.
fn count_end(account: &Account) {
    LIVE.with(|live| live.fetch_sub(1, Ordering::Relaxed));
    account.count_task(false);
}

/// Starts a task of the current account, and returns the receiver that awaits the task's result.
#[track_caller]
pub fn spawn_join<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> sync::Receiver<T> {
    let (sender, receiver) = sync::oneshot();
    spawn(async move {
        let value = future.await;
        // The receiver may be gone: then the result is dropped.
        let _ = sender.send(value);
    });
    receiver
}

/// Runs `future` as a task of `account` and waits for the task's result. If the caller drops this future, the task is
/// dropped, too.
#[track_caller]
pub fn run_for<T: Send + 'static>(
    account: &Account,
    future: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> + Send {
    let (sender, receiver) = sync::oneshot();
    let task = start(account, Location::caller(), async move {
        let value = future.await;
        // The receiver lives as long as this task: a receiver that is dropped drops the task.
        let _ = sender.send(value);
    });
    let ending = Ending(task);
    async move {
        let _ending = ending;
        match receiver.await {
            Ok(value) => value,
            // The task ends by sending, or because `_ending` is dropped together with this future.
            Err(sync::Closed) => core::future::pending().await,
        }
    }
}

/// Drops a task's future when this value is dropped, whether the future has ended or not.
struct Ending(Arc<Task>);

impl Drop for Ending {
    fn drop(&mut self) {
        let future = self.0.future.lock().take();
        if let Some(future) = future {
            self.0.account.charge(|| drop(future));
            count_end(&self.0.account);
        }
    }
}

/// Number of tasks that were spawned and have not ended.
pub fn live_tasks() -> u64 {
    LIVE.with(|live| live.load(Ordering::Relaxed))
}

/// Has the executor report every poll that takes more than `ticks` of the time stamp counter, or allocates more than
/// [`POLL_BYTES`]. Time in which other vCPUs had the CPU does not count. With 0 nothing is watched.
pub fn set_poll_limit(ticks: u64) {
    #[cfg(freestanding)]
    if ticks > 0 {
        crate::clock::watch_steal();
    }
    POLL_LIMIT.with(|limit| limit.store(ticks, Ordering::Relaxed));
}

/// Runs no task of an account any more.
pub(crate) fn freeze_account(index: usize) {
    READY.with(|ready| ready.lock().freeze(index));
}

/// Runs the tasks of an account again.
pub(crate) fn thaw_account(index: usize) {
    READY.with(|ready| ready.lock().thaw(index));
}

/// Notes that an account is over. Another account will have its place.
pub(crate) fn forget_account(index: usize) {
    READY.with(|ready| ready.lock().forget(index));
}

/// Ready tasks for which an account's queue has memory.
#[cfg(test)]
pub(crate) fn room_of_account(index: usize) -> usize {
    READY.with(|ready| ready.lock().room(index))
}

/// Polls up to `limit` ready tasks, and no more after `ticks`; returns how many were polled.
fn run_ready(limit: usize, ticks: u64) -> usize {
    let begun = time::tsc();
    let (mut before, mut polled) = (begun, None);
    for done in 0..limit {
        let next = READY.with(|ready| {
            let mut ready = ready.lock();
            if let Some((account, cost)) = polled.take() {
                ready.charge(account, cost);
            }
            if before.wrapping_sub(begun) > ticks { Some(None) } else { ready.next().map(Some) }
        });
        let Some(next) = next else { return done };
        let Some((account, task)) = next else { return limit };
        poll(&task);
        let now = time::tsc();
        polled = Some((account, now.wrapping_sub(before)));
        before = now;
    }
    if let Some((account, cost)) = polled {
        READY.with(|ready| ready.lock().charge(account, cost));
    }
    limit
}

/// Polls a task in the name of its account.
#[inline]
fn poll(task: &Arc<Task>) {
    // The flag is cleared before the poll, so that a wake during the poll queues the task again.
    task.queued.store(false, Ordering::Release);
    // The future is out of its slot during the poll: a future may drop something that drops the future's own task.
    let Some(mut future) = task.future.lock().take() else { return };
    let limit = POLL_LIMIT.with(|limit| limit.load(Ordering::Relaxed));
    let watch = (limit > 0).then(|| Watch::begin(&task.account));
    let scope = account::Scope::enter(&task.account);
    let waker = Waker::from(task.clone());
    match future.as_mut().poll(&mut Context::from_waker(&waker)) {
        Poll::Pending => *task.future.lock() = Some(future),
        Poll::Ready(()) => {
            drop(future);
            count_end(&task.account);
        }
    }
    drop(waker);
    drop(scope);
    if let Some(watch) = watch {
        watch.end(task, limit);
    }
    task.account.check();
}

/// The cost of a poll, where polls are watched.
struct Watch {
    begun: u64,
    memory: (usize, usize),
}

impl Watch {
    fn begin(account: &Account) -> Self {
        Self { memory: account.begin_poll(), begun: time::busy_ticks() }
    }

    #[cold]
    fn end(self, task: &Task, limit: u64) {
        // The stolen time is known in nanoseconds, so the difference can come out below zero.
        let ticks = (time::busy_ticks().wrapping_sub(self.begun) as i64).max(0) as u64;
        let bytes = task.account.end_poll(self.memory);
        if ticks > limit {
            log::error!("poll: {}: {}: {ticks} ticks", task.account, task.origin);
        }
        if bytes > POLL_BYTES {
            log::error!("poll: {}: {}: {bytes} bytes", task.account, task.origin);
        }
    }
}

/// Runs tasks for ever, blocking the vCPU while none is ready.
#[cfg(freestanding)]
pub fn run() -> ! {
    loop {
        crate::event::poll();
        time::expire();
        if run_ready(BATCH, BATCH_TICKS) < BATCH && !crate::event::pending() {
            time::block();
        }
    }
}

/// Lets the other ready tasks of the current account run once; and tasks of other accounts, too, when the account has
/// used up its turn.
pub async fn yield_now() {
    let mut yielded = false;
    core::future::poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits until every task that is ready now, of whatever account, has run once.
pub async fn settle() {
    let ready = READY.with(|ready| ready.lock().ready_now());
    while !READY.with(|queues| queues.lock().have_run(&ready)) {
        READY.with(|queues| queues.lock().pass());
        yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn tasks_interleave_at_yield() {
        let trace = Arc::new(Mutex::new(Vec::new()));
        for name in 0..2u32 {
            let trace = trace.clone();
            spawn(async move {
                for step in 0..3u32 {
                    trace.lock().push((step, name));
                    yield_now().await;
                }
            });
        }
        block_on_test(async {
            while live_tasks() > 1 {
                yield_now().await;
            }
        });
        assert_eq!(*trace.lock(), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]);
    }

    #[test]
    fn join_gives_the_result() {
        let value = block_on_test(async { spawn_join(async { 7 }).await });
        assert_eq!(value, Ok(7));
    }

    #[test]
    fn a_task_woken_twice_runs_once() {
        let polls = Arc::new(AtomicU64::new(0));
        let seen = polls.clone();
        block_on_test(async move {
            spawn(core::future::poll_fn(move |context| {
                context.waker().wake_by_ref();
                context.waker().wake_by_ref();
                if seen.fetch_add(1, Ordering::Relaxed) == 1 { Poll::Ready(()) } else { Poll::Pending }
            }));
            for _ in 0..5 {
                yield_now().await;
            }
        });
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }
}
