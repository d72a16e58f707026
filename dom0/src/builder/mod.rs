//! The domain builder: from a kernel file to a domain whose first instruction can run.
//!
//! [`image`] reads kernels (ELF, bzImage, compressed) as a stream, [`notes`] reads their notes, and [`layout`]
//! places everything in memory, all three without a hypervisor; [`build`] makes the domain.
#![forbid(unsafe_code)]

mod build;
mod domain;
mod frames;
pub mod image;
pub mod layout;
pub mod notes;
pub mod payload;

pub use build::{BuildError, Built, Request, Rings, SLACK_KIB, build};
pub use domain::{OwnedDomain, destroy};
