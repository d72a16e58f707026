//! Machine memory: who owns each frame, how a frame may be used, and the page tables made of frames.
//!
//! A guest holds machine addresses and writes its own page tables, but only through this room: a frame that is a page
//! table is nowhere mapped for writing, and each entry is checked before a processor can see it. For that each frame
//! has a *type* with a count of the uses that rely on the type, and a general count that keeps the frame from being
//! freed.
//!
//! - [`state`]: what a domain holds
//! - [`pages`]: ownership, references, each domain's count
//! - `clean`: zeroing the frames that a domain is to get; `claims`: what is promised
//! - [`session`], `validate`, [`entries`]: page tables: the session, checking whole tables, changing entries
//! - [`base`]: the tables a vCPU runs on
//! - [`descriptors`]: GDT and LDT pages
//! - [`grant_pte`]: entries of mapped grants
//! - [`dirty`]: which frames were written
//! - [`teardown`]: taking everything from a dying domain
//! - `check`: the invariants, for tests and debug keys
//!
//! References go strictly down: from a vCPU, a pin or an entry of level n + 1 to a table of level n, from level 1 to a
//! page. (I8)

#![forbid(unsafe_code)]

pub mod base;
pub(crate) mod check;
mod claims;
mod clean;
pub mod descriptors;
pub mod dirty;
pub mod entries;
pub mod grant_pte;
pub mod pages;
pub mod session;
pub mod state;
pub mod teardown;
#[cfg(test)]
mod tests;
mod validate;

pub use entries::Update;
pub use grant_pte::GrantAddress;
pub use pages::{PageRef, TypedRef};
pub use session::FrameOwner;
pub use teardown::Progress;

/// Why an operation on memory did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemError {
    /// Something else is waiting for the CPU: nothing is lost, repeat the operation.
    Restart,
    /// The entry to be replaced is not what the caller expected.
    Mismatch,
    /// The domain has no such frame, table or address, or may not have the entry.
    Invalid,
    /// The frame is another domain's, or belongs to a device to which the domain has no right.
    NotPermitted,
    /// The frame is in use as something else.
    Busy,
    /// There is no memory, or not so much for the domain.
    NoMemory,
    /// The domain is being destroyed.
    NoSuchDomain,
    /// The caller's buffer cannot be read or written.
    Fault,
}
