//! The domain builder: from a kernel file to a domain whose first instruction can run.
//!
//! [`image`] reads kernels (ELF, bzImage, compressed) as a stream, [`notes`] reads their notes, and [`layout`]
//! places everything in memory, all three without a hypervisor; [`build`] makes the domain. [`restore`] makes one from a stream into
//! which a running domain was saved.
#![forbid(unsafe_code)]

mod build;
mod domain;
mod error;
mod frames;
pub mod image;
pub mod layout;
pub mod notes;
pub mod payload;
mod policy;
mod restore;

pub use build::{Built, Request, Rings, SLACK_KIB, build};
pub use domain::{OwnedDomain, destroy};
pub use error::BuildError;
pub use restore::{Restored, most_frames, restore};
