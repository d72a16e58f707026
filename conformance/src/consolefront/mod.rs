//! Console, from the other end: what a daemon may expect of a domain's frontend, and what the frontend must bear of a daemon.
//!
//! The case is the daemon; [`ConsoleFrontend`] is what the case tries.
//!
//! ABI: `xen/include/public/io/console.h`.

pub mod back;
pub mod hostile;
pub mod input;
pub mod output;

pub use crate::ends::ConsoleFrontend;
