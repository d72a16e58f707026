#![forbid(unsafe_code)]
//! What system tests stand on: machines that boot the real images in QEMU through the code of `cargo xtask
//! run`, and scratch files for their disks and configurations.

pub mod kinds;
pub mod linux;
pub mod machine;
pub mod scratch;

pub use machine::{Live, Machine, Run, emulator};
pub use scratch::Scratch;
