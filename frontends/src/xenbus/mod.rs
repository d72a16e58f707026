//! The xenstore client, and the directories of devices that stand on the client.

mod client;
mod device;
mod wire;

#[cfg(test)]
pub(crate) mod testing;

pub use client::{Nodes, Transaction, Watch, Xenstore};
pub use device::Device;

use alloc::string::String;
use core::fmt;
use ring_abi::errno::Errno;

/// Why a request to xenstore failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// xenstored's answer, `ENOENT` and the like.
    Refused(Errno),
    /// The connection broke: the ring or a message was nonsense.
    Broken,
    /// The request is longer than a message can be, or holds a NUL.
    BadRequest,
    /// The node at this path holds something else than its name promises.
    BadValue(String),
}

impl StoreError {
    /// Whether the error says that there is no such node.
    pub fn is_missing(&self) -> bool {
        *self == Self::Refused(Errno::ENOENT)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(errno) => write!(f, "xenstore: {errno}"),
            Self::Broken => write!(f, "xenstore: connection broken"),
            Self::BadRequest => write!(f, "xenstore: request too long, or with a NUL"),
            Self::BadValue(path) => write!(f, "xenstore: {path}: bad value"),
        }
    }
}

impl core::error::Error for StoreError {}

/// The result of a request to xenstore.
pub type Result<T> = core::result::Result<T, StoreError>;
