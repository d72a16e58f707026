//! Waiting for several futures at once.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::Poll;

/// Which of two futures ended first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The result of the first future.
    Left(A),
    /// The result of the second future.
    Right(B),
}

/// Waits for the first of two futures to end and drops the other future. If both are ready, `a` comes first.
pub async fn select<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|context| {
        if let Poll::Ready(value) = a.as_mut().poll(context) {
            return Poll::Ready(Either::Left(value));
        }
        b.as_mut().poll(context).map(Either::Right)
    })
    .await
}

/// One future of [`join_all`]: the future while it runs, then its result.
enum Slot<F: Future> {
    Running(Pin<Box<F>>),
    Done(F::Output),
}

/// Waits for all futures; the results are in the order given.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut slots: Vec<Slot<F>> = futures.into_iter().map(|f| Slot::Running(Box::pin(f))).collect();
    poll_fn(|context| {
        let mut running = 0;
        for slot in &mut slots {
            if let Slot::Running(future) = slot {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *slot = Slot::Done(value),
                    Poll::Pending => running += 1,
                }
            }
        }
        if running == 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    slots
        .into_iter()
        .filter_map(|slot| match slot {
            Slot::Done(value) => Some(value),
            Slot::Running(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{block_on_test, time, yield_now};
    use super::*;

    #[test]
    fn select_takes_the_sooner() {
        let got = block_on_test(select(time::sleep(20), time::sleep(10)));
        assert_eq!(got, Either::Right(()));
        assert_eq!(block_on_test(select(async { 1 }, async { 2 })), Either::Left(1));
    }

    #[test]
    fn join_all_keeps_the_order() {
        let got = block_on_test(join_all((0..4u64).map(|i| async move {
            time::sleep(100 - i * 10).await;
            yield_now().await;
            i
        })));
        assert_eq!(got, [0, 1, 2, 3]);
        assert!(block_on_test(join_all(Vec::<core::future::Ready<u8>>::new())).is_empty());
    }
}
