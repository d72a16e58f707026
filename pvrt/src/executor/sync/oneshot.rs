//! A channel for one value from one task to another.

use super::Closed;
use alloc::sync::Arc;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use spin::Mutex as Spin;

/// Makes a pair that carries one value.
pub fn oneshot<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Spin::new(OneshotState { value: None, waker: None, gone: false }));
    (Sender { shared: Some(shared.clone()) }, Receiver { shared })
}

struct OneshotState<T> {
    value: Option<T>,
    waker: Option<Waker>,
    /// The other end was dropped.
    gone: bool,
}

/// Sends the value of a [`oneshot`].
pub struct Sender<T> {
    /// `None` once sent.
    shared: Option<Arc<Spin<OneshotState<T>>>>,
}

impl<T> Sender<T> {
    /// Hands over the value.
    ///
    /// # Errors
    /// The value, when the receiver is gone.
    pub fn send(mut self, value: T) -> Result<(), T> {
        let Some(shared) = self.shared.take() else { return Err(value) };
        let waker = {
            let mut state = shared.lock();
            if state.gone {
                return Err(value);
            }
            state.value = Some(value);
            state.gone = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        let waker = {
            let mut state = shared.lock();
            state.gone = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Awaits the value of a [`oneshot`]; [`Closed`] when the sender was dropped unused.
pub struct Receiver<T> {
    shared: Arc<Spin<OneshotState<T>>>,
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, Closed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.shared.lock();
        if let Some(value) = state.value.take() {
            return Poll::Ready(Ok(value));
        }
        if state.gone {
            return Poll::Ready(Err(Closed));
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.gone = true;
        let waker = state.waker.take();
        drop(state);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::block_on_test;

    #[test]
    fn a_oneshot_carries_one_value_or_the_news() {
        let (sender, receiver) = oneshot();
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(block_on_test(receiver), Ok(1));
        let (sender, receiver) = oneshot::<u8>();
        drop(sender);
        assert_eq!(block_on_test(receiver), Err(Closed));
        let (sender, receiver) = oneshot();
        drop(receiver);
        assert_eq!(sender.send(2), Err(2));
    }
}
