//! What tasks meet at: [`Notify`], [`Channel`], [`Mutex`], [`oneshot`].
//!
//! The spin locks inside are leaf locks: held for a few instructions, never while a waker or user code runs.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::ops::{Deref, DerefMut};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use spin::Mutex as Spin;

/// Wakes waiting tasks; a notification nobody waits for is kept, once, for the next to wait.
#[derive(Default)]
pub struct Notify {
    state: Spin<NotifyState>,
}

#[derive(Default)]
struct NotifyState {
    permit: bool,
    next: u64,
    waiting: VecDeque<(u64, Waker)>,
    /// Waiters that were notified and have not yet been polled.
    notified: Vec<u64>,
}

impl Notify {
    /// No permit, nobody waiting.
    pub const fn new() -> Self {
        let state = NotifyState { permit: false, next: 0, waiting: VecDeque::new(), notified: Vec::new() };
        Self { state: Spin::new(state) }
    }

    /// Wakes the task that has waited longest, or lets the next one that waits pass at once.
    pub fn notify_one(&self) {
        let waker = {
            let mut state = self.state.lock();
            match state.waiting.pop_front() {
                Some((id, waker)) => {
                    state.notified.push(id);
                    Some(waker)
                }
                None => {
                    state.permit = true;
                    None
                }
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes every task that waits now; leaves no permit.
    pub fn notify_all(&self) {
        let woken = {
            let mut state = self.state.lock();
            let woken = core::mem::take(&mut state.waiting);
            state.notified.extend(woken.iter().map(|(id, _)| *id));
            woken
        };
        for (_, waker) in woken {
            waker.wake();
        }
    }

    /// Waits for a notification.
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, id: None }
    }
}

/// The future of [`Notify::notified`].
pub struct Notified<'a> {
    notify: &'a Notify,
    id: Option<u64>,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.notify.state.lock();
        match self.id {
            None => {
                if core::mem::take(&mut state.permit) {
                    return Poll::Ready(());
                }
                let id = state.next;
                state.next += 1;
                state.waiting.push_back((id, context.waker().clone()));
                drop(state);
                self.id = Some(id);
            }
            Some(id) => {
                if let Some(at) = state.notified.iter().position(|other| *other == id) {
                    state.notified.swap_remove(at);
                    drop(state);
                    self.id = None;
                    return Poll::Ready(());
                }
                if let Some((_, waker)) = state.waiting.iter_mut().find(|(other, _)| *other == id) {
                    waker.clone_from(context.waker());
                }
            }
        }
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut state = self.notify.state.lock();
        if let Some(at) = state.notified.iter().position(|other| *other == id) {
            // It was woken and goes away unpolled: the notification belongs to another.
            state.notified.swap_remove(at);
            drop(state);
            self.notify.notify_one();
        } else if let Some(at) = state.waiting.iter().position(|(other, _)| *other == id) {
            let waker = state.waiting.remove(at);
            drop(state);
            drop(waker);
        }
    }
}

/// A bounded queue between tasks, any number on either side; shared by reference or `Arc`.
pub struct Channel<T> {
    state: Spin<ChannelState<T>>,
    capacity: usize,
    items: Notify,
    space: Notify,
}

struct ChannelState<T> {
    queue: VecDeque<T>,
    closed: bool,
}

/// The channel or oneshot was closed by the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl<T> Channel<T> {
    /// A channel that holds at most `capacity` values (at least one).
    pub const fn new(capacity: usize) -> Self {
        let state = ChannelState { queue: VecDeque::new(), closed: false };
        let capacity = if capacity == 0 { 1 } else { capacity };
        Self { state: Spin::new(state), capacity, items: Notify::new(), space: Notify::new() }
    }

    /// A channel that is never full.
    pub const fn unbounded() -> Self {
        Self::new(usize::MAX)
    }

    /// Adds a value unless the channel is full or closed.
    ///
    /// # Errors
    /// The value, when it was not taken.
    pub fn try_send(&self, value: T) -> Result<(), T> {
        {
            let mut state = self.state.lock();
            if state.closed || state.queue.len() >= self.capacity {
                return Err(value);
            }
            state.queue.push_back(value);
        }
        self.items.notify_one();
        Ok(())
    }

    /// Adds a value, waiting for space.
    ///
    /// # Errors
    /// [`Closed`]: the value was dropped.
    pub async fn send(&self, mut value: T) -> Result<(), Closed> {
        loop {
            match self.try_send(value) {
                Ok(()) => return Ok(()),
                Err(back) => value = back,
            }
            if self.is_closed() {
                return Err(Closed);
            }
            self.space.notified().await;
        }
    }

    /// Takes the oldest value, if there is one.
    pub fn try_recv(&self) -> Option<T> {
        let (value, more) = {
            let mut state = self.state.lock();
            let value = state.queue.pop_front()?;
            (value, !state.queue.is_empty())
        };
        self.space.notify_one();
        if more {
            // Permits do not add up: pass the word on to another receiver.
            self.items.notify_one();
        }
        Some(value)
    }

    /// Takes the oldest value, waiting for one; `None` once the channel is closed and empty.
    pub async fn recv(&self) -> Option<T> {
        loop {
            if let Some(value) = self.try_recv() {
                return Some(value);
            }
            if self.is_closed() {
                return None;
            }
            self.items.notified().await;
        }
    }

    /// Refuses further values; what is queued can still be received.
    pub fn close(&self) {
        self.state.lock().closed = true;
        for side in [&self.items, &self.space] {
            side.notify_all();
            side.notify_one();
        }
    }

    /// True after [`close`](Self::close).
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Values in the queue.
    pub fn len(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// True when nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A lock that may be held across `await`.
pub struct Mutex<T> {
    value: Spin<T>,
    freed: Notify,
}

impl<T> Mutex<T> {
    /// An unlocked lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { value: Spin::new(value), freed: Notify::new() }
    }

    /// Locks at once or not at all.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = self.value.try_lock()?;
        Some(MutexGuard { guard: Some(guard), freed: &self.freed })
    }

    /// Waits until the lock is free and takes it.
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            self.freed.notified().await;
        }
    }
}

/// Holds a [`Mutex`].
pub struct MutexGuard<'a, T> {
    /// `Some` until dropped.
    guard: Option<spin::MutexGuard<'a, T>>,
    freed: &'a Notify,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_deref().expect("held until dropped")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_deref_mut().expect("held until dropped")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // Free first, then wake: the woken task must find the lock free.
        self.guard = None;
        self.freed.notify_one();
    }
}

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
    use super::super::{block_on_test, join_all, spawn, spawn_join, time, yield_now};
    use super::*;

    #[test]
    fn a_notification_is_kept_once() {
        let notify = Notify::new();
        notify.notify_one();
        notify.notify_one();
        block_on_test(async {
            notify.notified().await;
            assert_eq!(time::timeout(5, notify.notified()).await, Err(time::Elapsed));
        });
    }

    #[test]
    fn a_dropped_waiter_passes_its_notification_on() {
        let notify = Arc::new(Notify::new());
        block_on_test(async {
            let mut first = core::pin::pin!(Some(notify.notified()));
            core::future::poll_fn(|context| {
                let pending = first.as_mut().as_pin_mut().map(|f| f.poll(context).is_pending());
                assert_eq!(pending, Some(true));
                Poll::Ready(())
            })
            .await;
            let other = notify.clone();
            let second = spawn_join(async move { other.notified().await });
            yield_now().await;
            notify.notify_one();
            first.set(None);
            assert_eq!(second.await, Ok(()));
        });
    }

    #[test]
    fn notify_all_wakes_all_and_keeps_nothing() {
        let notify = Arc::new(Notify::new());
        block_on_test(async {
            let waiting: Vec<_> = (0..3)
                .map(|_| {
                    let notify = notify.clone();
                    spawn_join(async move { notify.notified().await })
                })
                .collect();
            time::sleep(1).await;
            notify.notify_all();
            assert_eq!(join_all(waiting).await, [Ok(()); 3]);
            assert!(time::timeout(5, notify.notified()).await.is_err());
        });
    }

    #[test]
    fn a_full_channel_holds_the_sender() {
        let channel = Arc::new(Channel::new(2));
        let other = channel.clone();
        spawn(async move {
            for i in 0..10 {
                assert_eq!(other.send(i).await, Ok(()));
            }
            other.close();
        });
        block_on_test(async {
            time::sleep(1).await;
            assert_eq!(channel.len(), 2);
            let mut got = Vec::new();
            while let Some(i) = channel.recv().await {
                got.push(i);
            }
            assert_eq!(got, (0..10).collect::<Vec<_>>());
            assert_eq!(channel.send(1).await, Err(Closed));
        });
    }

    #[test]
    fn close_wakes_every_receiver() {
        let channel = Arc::new(Channel::<u8>::unbounded());
        block_on_test(async {
            let waiting: Vec<_> = (0..3)
                .map(|_| {
                    let channel = channel.clone();
                    spawn_join(async move { channel.recv().await })
                })
                .collect();
            time::sleep(1).await;
            channel.close();
            assert_eq!(join_all(waiting).await, [Ok(None); 3]);
        });
    }

    #[test]
    fn the_lock_is_held_across_await() {
        let lock = Arc::new(Mutex::new(0u32));
        block_on_test(async {
            let all: Vec<_> = (0..4)
                .map(|_| {
                    let lock = lock.clone();
                    spawn_join(async move {
                        let mut guard = lock.lock().await;
                        let before = *guard;
                        yield_now().await;
                        *guard = before + 1;
                    })
                })
                .collect();
            join_all(all).await;
            assert_eq!(*lock.lock().await, 4);
        });
    }

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
