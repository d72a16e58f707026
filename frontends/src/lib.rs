#![cfg_attr(freestanding, no_std)]
#![forbid(unsafe_code)]
//! Frontends for a Rust PV kernel: the xenstore client, block devices, consoles, shutdown requests.
//!
//! Everything is asynchronous and runs on `pvrt`'s executor. A backend is not trusted with more than its own data:
//! what it writes to a ring or to xenstore is checked, and nonsense ends the connection.

extern crate alloc;

pub mod blkfront;
pub mod console;
pub mod control;
pub mod xenbus;
