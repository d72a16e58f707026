#![cfg_attr(freestanding, no_std)]
#![forbid(unsafe_code)]
//! Frontends for a Rust PV kernel: the xenstore client, block devices, network interfaces, consoles, shutdown requests.
//!
//! Everything is asynchronous and runs on `pvrt`'s executor. A frontend trusts a backend with the backend's own data
//! alone: the frontend checks what a backend writes to a ring or to xenstore, and nonsense ends the connection.

extern crate alloc;

pub mod blkfront;
pub mod console;
pub mod control;
pub mod netfront;
pub mod xenbus;
