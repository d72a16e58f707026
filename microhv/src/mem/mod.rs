//! Machine memory: who owns each frame, what it may be used as, and the page tables made of it.
//!
//! A guest holds machine addresses and writes its own page tables, but only through here: a frame that is a page
//! table is nowhere mapped for writing, and each entry is checked before a processor can see it. For that each frame
//! has a *type* with a count of the uses that rely on it, and a general count that keeps it from being freed.
//!
//! - [`state`]: what a domain holds
//! - [`pages`]: ownership, references, each domain's count
//! - `clean`: zeroing the frames that a domain is to get; `claims`: what is promised
//! - [`session`], `validate`, [`entries`]: page tables: the session, checking whole tables, changing entries
//! - [`base`]: the tables a vCPU runs on
//! - [`descriptors`]: GDT and LDT pages
//! - [`grant_pte`]: entries of mapped grants
//! - [`teardown`]: taking everything from a dying domain
//! - `check`: the invariants, for tests and a debug key
//!
//! References go strictly down: from a vCPU, a pin or an entry of level n + 1 to a table of level n, from level 1 to
//! a page. The one exception, a table as an entry of another of its level, is one deep and read-only.

#![forbid(unsafe_code)]

pub mod base;
pub mod check;
mod claims;
mod clean;
pub mod descriptors;
pub(crate) mod dump;
pub mod entries;
pub mod grant_pte;
pub mod pages;
pub mod session;
pub mod state;
pub mod teardown;
#[cfg(test)]
mod tests;
mod validate;

pub use entries::{Update, UpdateError};
pub use grant_pte::GrantAddress;
pub use pages::{PageRef, TypedRef};
pub use session::{FrameOwner, TableError};
pub use teardown::Progress;
