//! Clocks and timers.
//!
//! Time is the hypervisor's system time: nanoseconds since the machine (or the domain) started, the same on every
//! vCPU. Sleeping tasks stand in one ordered map; the vCPU's singleshot timer is set only before the vCPU blocks.

use alloc::collections::BTreeMap;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};
use spin::Mutex;

use super::{Either, select};
use crate::account::Account;
use crate::global::global;

/// The sleeping tasks by deadline, then by order of arrival.
struct Timers {
    next: u64,
    sleeping: BTreeMap<(u64, u64), Waker>,
}

global! {
    /// A leaf lock: nothing is called while the lock is held.
    static TIMERS: Mutex<Timers> = Mutex::new(Timers { next: 0, sleeping: BTreeMap::new() });
}

global! {
    /// The TSC before which [`expire`] need not look: no deadline passes before.
    static NEXT_LOOK: AtomicU64 = AtomicU64::new(0);
}

/// The longest time for which [`expire`] does not look, should the clock's rate change.
const LONGEST_LOOK_NS: u64 = 1_000_000_000;

#[cfg(not(freestanding))]
global! {
    /// The virtual clock of this thread's tests.
    static VIRTUAL_NOW: core::cell::Cell<u64> = core::cell::Cell::new(1_000_000);
}

/// System time in nanoseconds.
#[cfg(freestanding)]
pub fn now_ns() -> u64 {
    crate::clock::system_ns()
}

/// Virtual time in nanoseconds.
#[cfg(not(freestanding))]
pub fn now_ns() -> u64 {
    VIRTUAL_NOW.with(|now| now.get())
}

pub use super::utc::Utc;

/// The processor's time stamp counter; on the host the virtual clock.
#[inline]
pub fn tsc() -> u64 {
    #[cfg(freestanding)]
    return crate::clock::tsc();
    #[cfg(not(freestanding))]
    now_ns()
}

/// Like [`tsc`], without the time in which other vCPUs had the CPU.
#[inline]
pub(crate) fn busy_ticks() -> u64 {
    #[cfg(freestanding)]
    return crate::clock::busy_ticks();
    #[cfg(not(freestanding))]
    now_ns()
}

/// Wall-clock time in nanoseconds since 1970; on the host the virtual clock counts from 2023-11-14.
pub fn wall_ns() -> u64 {
    wall_at(now_ns())
}

/// The wall-clock time at system time `now_ns`, for a caller who has read the clock already.
pub fn wall_at(now_ns: u64) -> u64 {
    #[cfg(freestanding)]
    let base = crate::clock::wall_base_ns();
    #[cfg(not(freestanding))]
    let base = 1_700_000_000_000_000_000u64;
    base.saturating_add(now_ns)
}

/// Moves the virtual clock to the next timer; false when no timer is set.
#[cfg(not(freestanding))]
pub(crate) fn advance_to_next() -> bool {
    let Some(deadline) = next_deadline() else { return false };
    VIRTUAL_NOW.with(|now| now.set(now.get().max(deadline)));
    true
}

/// The earliest deadline.
pub(crate) fn next_deadline() -> Option<u64> {
    TIMERS.with(|timers| timers.lock().sleeping.first_key_value().map(|((deadline, _), _)| *deadline))
}

/// Wakes the tasks whose deadline has passed.
pub(crate) fn expire() {
    // The clock costs a few tens of instructions, and some task always sleeps until some far moment: so the clock is
    // read only when the counter has come near the next deadline.
    let tick = tsc();
    if tick < NEXT_LOOK.with(|look| look.load(Ordering::Relaxed)) {
        return;
    }
    let now = now_ns();
    loop {
        let due = TIMERS.with(|timers| {
            let mut timers = timers.lock();
            match timers.sleeping.first_entry() {
                Some(entry) if entry.key().0 <= now => Ok(entry.remove()),
                Some(entry) => Err(entry.key().0 - now),
                None => Err(u64::MAX),
            }
        });
        match due {
            Ok(waker) => waker.wake(),
            Err(left) => {
                let look = tick.saturating_add(ticks_within(left.min(LONGEST_LOOK_NS)));
                return NEXT_LOOK.with(|next| next.store(look, Ordering::Relaxed));
            }
        }
    }
}

/// Has [`expire`] look at the clock when it runs next.
fn look_again() {
    NEXT_LOOK.with(|look| look.store(0, Ordering::Relaxed));
}

/// No more ticks of [`tsc`] than pass in `ns` nanoseconds, and less than a step of the clock's fewer.
fn ticks_within(ns: u64) -> u64 {
    #[cfg(freestanding)]
    return crate::clock::ticks_within(ns);
    #[cfg(not(freestanding))]
    ns
}

/// Blocks the vCPU until an event, with the timer set for the earliest deadline.
#[cfg(freestanding)]
pub(crate) fn block() {
    match next_deadline() {
        Some(deadline) => {
            if crate::clock::arm(deadline) {
                crate::hypercall::sched::block();
            } else {
                look_again();
            }
        }
        None => crate::hypercall::sched::block(),
    }
}

/// Has a timer interrupt come in `ns` nanoseconds: a long hypercall that is made now and that an interrupt may end,
/// ends about then. On the host there is no such interrupt.
pub fn interrupt_in(ns: u64) {
    #[cfg(freestanding)]
    crate::clock::arm(now_ns().saturating_add(ns));
    #[cfg(not(freestanding))]
    let _ = ns;
}

/// Ends at a deadline. Made by [`sleep`] and [`sleep_until`].
pub struct Sleep {
    deadline: u64,
    /// The map key while this sleeper stands in the map.
    key: Option<(u64, u64)>,
    /// Whether other tasks have had a turn.
    has_yielded: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        TIMERS.with(|timers| {
            let mut timers = timers.lock();
            match self.key {
                Some(key) => match timers.sleeping.get_mut(&key) {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => {
                        // `expire` took the entry: the time has come.
                        self.key = None;
                        return Poll::Ready(());
                    }
                },
                None => {
                    if now_ns() >= self.deadline {
                        // A loop that sleeps for no time would never give other tasks the vCPU.
                        if core::mem::replace(&mut self.has_yielded, true) {
                            return Poll::Ready(());
                        }
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    self.has_yielded = true;
                    let key = (self.deadline, timers.next);
                    timers.next += 1;
                    if timers.sleeping.first_key_value().is_none_or(|(first, _)| key < *first) {
                        look_again();
                    }
                    // The tree is charged to the kernel, whatever task sleeps.
                    Account::own().charge(|| timers.sleeping.insert(key, context.waker().clone()));
                    self.key = Some(key);
                }
            }
            Poll::Pending
        })
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let waker = TIMERS.with(|timers| timers.lock().sleeping.remove(&key));
            drop(waker);
        }
    }
}

/// Sleeps for `ns` nanoseconds. Other tasks have a turn even if `ns` is 0.
pub fn sleep(ns: u64) -> Sleep {
    sleep_until(now_ns().saturating_add(ns))
}

/// Sleeps until system time `deadline`, in nanoseconds.
pub fn sleep_until(deadline: u64) -> Sleep {
    Sleep { deadline, key: None, has_yielded: false }
}

/// The time given to [`timeout`] ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// Waits for `future`, at most `ns` nanoseconds.
///
/// # Errors
/// [`Elapsed`]: the time passed first, and the future was dropped unfinished.
pub async fn timeout<F: Future>(ns: u64, future: F) -> Result<F::Output, Elapsed> {
    match select(future, sleep(ns)).await {
        Either::Left(value) => Ok(value),
        Either::Right(()) => Err(Elapsed),
    }
}

#[cfg(test)]
mod tests {
    use super::super::block_on_test;
    use super::*;

    #[test]
    fn zero_and_past_deadlines_end_at_once() {
        let start = now_ns();
        block_on_test(sleep(0));
        block_on_test(sleep_until(0));
        assert_eq!(now_ns(), start);
    }

    #[test]
    fn a_loop_that_sleeps_for_no_time_lets_others_run() {
        use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
        let turns = alloc::sync::Arc::new(AtomicU32::new(0));
        let others = turns.clone();
        block_on_test(async move {
            super::super::spawn(async move {
                loop {
                    others.fetch_add(1, Relaxed);
                    super::super::yield_now().await;
                }
            });
            for _ in 0..10 {
                sleep(0).await;
            }
        });
        assert!(turns.load(Relaxed) >= 9, "{turns:?}");
    }

    #[test]
    fn a_dropped_sleep_leaves_no_timer() {
        block_on_test(async {
            assert_eq!(timeout(1_000_000, sleep(10)).await, Ok(()));
            assert_eq!(timeout(10, core::future::pending::<()>()).await, Err(Elapsed));
        });
        assert_eq!(next_deadline(), None);
    }

    #[test]
    fn a_sleep_is_due_though_a_later_one_was_looked_at() {
        block_on_test(async {
            // The executor looks, and finds nothing due for a long time.
            let late = super::super::spawn_join(sleep(10_000_000_000));
            super::super::yield_now().await;
            expire();
            let start = now_ns();
            sleep(5).await;
            assert_eq!(now_ns(), start + 5);
            // Nor is one missed that becomes due while others run.
            let soon = super::super::spawn_join(sleep(7));
            super::super::yield_now().await;
            VIRTUAL_NOW.with(|now| now.set(now.get() + 7));
            expire();
            assert_eq!((soon.await, now_ns()), (Ok(()), start + 12));
            assert_eq!((late.await, now_ns()), (Ok(()), start + 10_000_000_000));
        });
    }

    #[test]
    fn the_longest_sleep_saturates() {
        assert_eq!(sleep(u64::MAX).deadline, u64::MAX);
    }

    #[test]
    fn equal_deadlines_wake_in_order() {
        let order = alloc::sync::Arc::new(Mutex::new(alloc::vec::Vec::new()));
        block_on_test(async {
            let at = now_ns() + 5;
            let all = (0..3).map(|i| {
                let order = order.clone();
                super::super::spawn_join(async move {
                    sleep_until(at).await;
                    order.lock().push(i);
                })
            });
            for done in super::super::join_all(all).await {
                assert_eq!(done, Ok(()));
            }
        });
        assert_eq!(*order.lock(), [0, 1, 2]);
    }
}
