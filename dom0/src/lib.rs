#![cfg_attr(freestanding, no_std)]
//! See Cargo.toml.
extern crate alloc;

pub mod xenstore;
