#![cfg_attr(freestanding, no_std)]
//! See Cargo.toml.
extern crate alloc;

pub mod blkback;
pub mod blkdev;
pub mod builder;
pub mod bundle;
pub mod commands;
pub mod config;
pub mod consoled;
pub mod pci;
pub mod shell;
pub mod start;
pub mod toolstack;
pub mod virtio;
pub mod xenstore;
