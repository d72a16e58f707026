#![cfg_attr(freestanding, no_std)]
#![forbid(unsafe_code)]
//! The guest `web`: HTTP/1.1 over `smoltcp` over netfront.
//!
//! - [`http`] reads requests and writes the heads of responses;
//! - [`content`] says what a path gives: the page, the figures, bytes for measurements;
//! - [`server`] holds the connections;
//! - [`client`] asks another such guest for bytes: a load that checks itself;
//! - [`device`] gives `smoltcp` the network interface;
//! - [`address`] is how the guest gets its addresses.

extern crate alloc;

pub mod address;
pub mod client;
pub mod content;
pub mod device;
pub mod http;
pub mod server;
