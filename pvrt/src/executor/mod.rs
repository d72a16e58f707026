//! The asynchronous executor: one vCPU, tasks woken by events and timers.
//!
//! A kernel runs with its event upcall masked: [`run`] polls the pending word between tasks and lets the hypervisor
//! unmask it only while blocked. So no code is ever interrupted, locks need no interrupt-safe variant, and an event
//! costs no upcall while there is work to do. A task must therefore return soon, or `yield_now().await`.

pub mod combine;
pub mod sync;
pub mod time;
mod utc;

#[cfg(not(freestanding))]
mod testing;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};
use crossbeam_queue::SegQueue;
use spin::Mutex;

pub use combine::{Either, join_all, select};
#[cfg(not(freestanding))]
pub use testing::block_on_test;

use crate::global::global;

/// Tasks polled between two looks at the event words and the clock.
#[cfg(freestanding)]
const BATCH: usize = 16;

/// Names a task in logs. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(u64);

type BoxedFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One spawned future. It is in the ready queue at most once.
struct Task {
    future: Mutex<Option<BoxedFuture>>,
    queued: AtomicBool,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            READY.with(|ready| ready.push(self));
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            READY.with(|ready| ready.push(self.clone()));
        }
    }
}

global! {
    static READY: SegQueue<Arc<Task>> = SegQueue::new();
}
global! {
    static NEXT_ID: AtomicU64 = AtomicU64::new(0);
}
global! {
    static LIVE: AtomicU64 = AtomicU64::new(0);
}

/// Starts a task; it is first polled when the executor next runs.
pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> TaskId {
    let id = NEXT_ID.with(|next| next.fetch_add(1, Ordering::Relaxed));
    LIVE.with(|live| live.fetch_add(1, Ordering::Relaxed));
    let task = Arc::new(Task { future: Mutex::new(Some(Box::pin(future))), queued: AtomicBool::new(true) });
    READY.with(|ready| ready.push(task));
    TaskId(id)
}

/// Starts a task and gives what awaits its result.
pub fn spawn_join<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> sync::Receiver<T> {
    let (sender, receiver) = sync::oneshot();
    spawn(async move {
        let value = future.await;
        // Nobody may be waiting any more: then the result is dropped.
        let _ = sender.send(value);
    });
    receiver
}

/// Tasks that have been spawned and have not ended.
pub fn live_tasks() -> u64 {
    LIVE.with(|live| live.load(Ordering::Relaxed))
}

/// Polls up to `limit` ready tasks; returns how many were polled.
fn run_ready(limit: usize) -> usize {
    for done in 0..limit {
        let Some(task) = READY.with(|ready| ready.pop()) else { return done };
        // Cleared before polling, so that a wake during the poll queues the task again.
        task.queued.store(false, Ordering::Release);
        // Out of the slot while it is polled: a future may drop what drops its own task.
        let Some(mut future) = task.future.lock().take() else { continue };
        let waker = Waker::from(task.clone());
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => *task.future.lock() = Some(future),
            Poll::Ready(()) => {
                drop(future);
                LIVE.with(|live| live.fetch_sub(1, Ordering::Relaxed));
            }
        }
    }
    limit
}

/// Runs tasks for ever, blocking the vCPU while none is ready.
#[cfg(freestanding)]
pub fn run() -> ! {
    loop {
        crate::event::poll();
        time::expire();
        if run_ready(BATCH) < BATCH && !crate::event::pending() {
            time::block();
        }
    }
}

/// Lets every other ready task run once.
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
