//! Waking waiting tasks.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use spin::Mutex as Spin;

use crate::account::Account;

/// Wakes waiting tasks; a notification for which no task waits is kept, once, for the next task that waits.
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
    /// No permit, and no waiting task.
    pub const fn new() -> Self {
        let state = NotifyState { permit: false, next: 0, waiting: VecDeque::new(), notified: Vec::new() };
        Self { state: Spin::new(state) }
    }

    /// Wakes the task that has waited longest. If no task waits, the next task that waits passes at once.
    pub fn notify_one(&self) {
        let waker = {
            let mut state = self.state.lock();
            match state.waiting.pop_front() {
                Some((id, waker)) => {
                    Account::own().charge(|| state.notified.push(id));
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

    /// Wakes every task that waits now. A task that waits later is not let pass.
    pub fn notify_all(&self) {
        let woken = {
            let mut state = self.state.lock();
            let woken = core::mem::take(&mut state.waiting);
            Account::own().charge(|| state.notified.extend(woken.iter().map(|(id, _)| *id)));
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
                // The list is the kernel's own: many may wait, of any account.
                Account::own().charge(|| state.waiting.push_back((id, context.waker().clone())));
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
                // Most often one task waits, and is polled for something else that it waits for.
                let place = match state.waiting.front() {
                    Some((first, _)) if *first == id => state.waiting.front_mut(),
                    _ => state.waiting.iter_mut().find(|(other, _)| *other == id),
                };
                if let Some((_, waker)) = place {
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
            // This waiter was woken and goes away unpolled: the notification belongs to another.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{block_on_test, join_all, spawn_join, time, yield_now};
    use alloc::sync::Arc;

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
}
