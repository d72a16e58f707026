//! The things at which tasks meet: [`Notify`], [`Channel`], [`Mutex`], [`oneshot`].
//!
//! The spin locks inside are leaf locks: held for a few instructions, never while a waker or user code runs.

mod channel;
mod mutex;
mod notify;
mod oneshot;

pub use channel::Channel;
pub use mutex::{Mutex, MutexGuard};
pub use notify::{Notified, Notify};
pub use oneshot::{Receiver, Sender, oneshot};

/// The channel or oneshot was closed by the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;
