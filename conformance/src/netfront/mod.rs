//! Network, from the other end: what a backend may expect of a frontend, and what a frontend must bear of a backend.
//!
//! The case is the backend; [`NetFrontend`] is what the case tries.
//!
//! ABI: `xen/include/public/io/netif.h`.

pub mod back;
pub mod connect;
pub mod hostile;
pub mod receive;
pub mod transmit;

pub use crate::ends::{FrontError, Frontends, Later, NetFrontend, Offload};
