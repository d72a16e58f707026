//! The domain builder: from a kernel file to a domain whose first instruction can run.
//!
//! [`image`] reads kernels (ELF, bzImage, compressed) as a stream, [`notes`] what they ask for, [`layout`] decides
//! what lies where, all without a hypervisor; [`build`] makes the domain.
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
