//! Block, from the other end: what a backend may expect of a frontend, and what a frontend must bear of a backend.
//!
//! The case is the backend; [`BlockFrontend`] is what the case tries: our own in this process, or, in a driver domain, the
//! stock ones of another kernel, by way of [`agent`].
//!
//! ABI: `xen/include/public/io/blkif.h`.

pub mod agent;
pub mod back;
pub mod connect;
pub mod hostile;
pub mod orders;
pub mod requests;
pub mod ring;

pub use crate::ends::{BlockFrontend, FrontError, Frontends, Later, Sum, content};
