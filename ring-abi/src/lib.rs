#![cfg_attr(freestanding, no_std)]
//! See Cargo.toml.
