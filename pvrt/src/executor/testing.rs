//! The deterministic executor of host tests: time is virtual, and a deadlock fails at once.

use super::{Ending, run_ready, start, time};
use crate::account::Account;
use alloc::sync::Arc;
use core::future::Future;
use core::panic::Location;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

/// The main future's waker, which remembers that the future was woken.
struct MainWoken(AtomicBool);

impl alloc::task::Wake for MainWoken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs `future` and every spawned task on this thread until `future` ends. When nothing is ready the clock jumps to
/// the next timer.
///
/// # Panics
/// When nothing is ready and no timer is set: the future can never end.
pub fn block_on_test<T>(future: impl Future<Output = T>) -> T {
    let woken = Arc::new(MainWoken(AtomicBool::new(true)));
    let waker = Waker::from(woken.clone());
    let mut future = pin!(future);
    // The main future counts as a task for as long as it runs.
    let _counted = Ending(start(&Account::own(), Location::caller(), core::future::pending()));
    loop {
        if woken.0.swap(false, Ordering::AcqRel)
            && let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker))
        {
            return value;
        }
        time::expire();
        if run_ready(1, u64::MAX) == 0 && !woken.0.load(Ordering::Acquire) {
            assert!(time::advance_to_next(), "deadlock: no task is ready and no timer is set");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_deadlock_is_noticed() {
        block_on_test(core::future::pending::<()>());
    }

    #[test]
    fn time_is_virtual() {
        let start = time::now_ns();
        block_on_test(time::sleep(3_600_000_000_000));
        assert_eq!(time::now_ns() - start, 3_600_000_000_000);
    }
}
