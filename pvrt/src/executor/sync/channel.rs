//! A queue between tasks.

use super::{Closed, Notify};
use alloc::collections::VecDeque;
use spin::Mutex as Spin;

use crate::account::Account;

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

impl<T> Channel<T> {
    /// A channel that holds at most `capacity` values (at least one).
    pub const fn new(capacity: usize) -> Self {
        let state = ChannelState { queue: VecDeque::new(), closed: false };
        let capacity = if capacity == 0 { 1 } else { capacity };
        Self { state: Spin::new(state), capacity, items: Notify::new(), space: Notify::new() }
    }

    /// Adds a value unless the channel is full or closed.
    ///
    /// # Errors
    /// The value, when the channel did not take the value.
    pub fn try_send(&self, value: T) -> Result<(), T> {
        {
            let mut state = self.state.lock();
            if state.closed || state.queue.len() >= self.capacity {
                return Err(value);
            }
            // The queue is charged to the kernel, whatever task sends.
            Account::own().charge(|| state.queue.push_back(value));
        }
        self.items.notify_one();
        Ok(())
    }

    /// Adds a value, waiting for space.
    ///
    /// # Errors
    /// [`Closed`]: the channel was closed, and the value was dropped.
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
            // A `Notify` keeps only one permit, so this receiver wakes another one.
            self.items.notify_one();
        }
        Some(value)
    }

    /// Takes the oldest value, waiting for a value; `None` once the channel is closed and empty.
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

    /// Closes the channel: the channel takes no further values, and tasks can still receive the queued ones.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{block_on_test, join_all, spawn, spawn_join, time};
    use alloc::sync::Arc;
    use alloc::vec::Vec;

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
        let channel = Arc::new(Channel::<u8>::new(4));
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
}
