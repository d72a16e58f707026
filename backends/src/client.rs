//! The mailbox through which a submitter of a block device learns of completions.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::sync::atomic::AtomicU32;
use core::task::{Context, Poll, Waker};

use spin::Mutex;

/// How one submitted operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The submitter's own tag.
    pub tag: u32,
    /// The device reported success.
    pub ok: bool,
}

/// A submitter's mailbox: completions, and the news that a full device has room again.
///
/// One lock guards the mailbox. The holder keeps the lock for a few instructions, wakes nobody and takes no other lock
/// meanwhile: this lock is the last in any order.
pub struct Client {
    state: Mutex<State>,
    /// What this client has in the device. The device keeps the numbers: a client submits to one device.
    pub share: Share,
}

/// What one client has in a device, so that the device can share itself out among its clients.
#[derive(Debug, Default)]
pub struct Share {
    /// Requests.
    pub requests: AtomicU32,
    /// Tables of descriptors for long requests, of which the device has fewest.
    pub tables: AtomicU32,
}

struct State {
    done: VecDeque<Completion>,
    room: bool,
    waker: Option<Waker>,
}

impl Client {
    /// An empty mailbox; `expected` completions fit without an allocation.
    pub fn new(expected: usize) -> Arc<Self> {
        let state = State { done: VecDeque::with_capacity(expected), room: false, waker: None };
        Arc::new(Self { state: Mutex::new(state), share: Share::default() })
    }

    /// The device calls this: the operation with `tag` has ended, and the device no longer uses the operation's memory.
    pub fn complete(&self, tag: u32, ok: bool) {
        let waker = {
            let mut state = self.state.lock();
            state.done.push_back(Completion { tag, ok });
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The device's call: after [`SubmitError::Full`](crate::SubmitError::Full), trying again may succeed.
    pub fn room(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.room = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Moves all completions so far to the end of `out`, and forgets the news that the device has room.
    pub fn take(&self, out: &mut Vec<Completion>) {
        let mut state = self.state.lock();
        out.extend(state.done.drain(..));
        state.room = false;
    }

    /// Ready when there is a completion or room; otherwise `cx` is woken then.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if !state.done.is_empty() || state.room {
            return Poll::Ready(());
        }
        match &mut state.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            slot => *slot = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits for a completion or for room.
    pub async fn ready(&self) {
        poll_fn(|cx| self.poll_ready(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_come_in_order_and_once() {
        let client = Client::new(0);
        client.complete(3, true);
        client.complete(u32::MAX, false);
        let mut out = Vec::new();
        client.take(&mut out);
        assert_eq!(out, [Completion { tag: 3, ok: true }, Completion { tag: u32::MAX, ok: false }]);
        client.take(&mut out);
        assert_eq!(out.len(), 2);
    }

    #[test]
    fn ready_after_completion_or_room_until_taken() {
        let client = Client::new(1);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(client.poll_ready(&mut cx).is_pending());
        client.room();
        assert!(client.poll_ready(&mut cx).is_ready());
        client.take(&mut Vec::new());
        assert!(client.poll_ready(&mut cx).is_pending());
        client.complete(0, true);
        assert!(client.poll_ready(&mut cx).is_ready());
    }
}
