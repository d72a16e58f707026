#![forbid(unsafe_code)]
//! What `cargo xtask` does, as a library: the command line tool and the system tests build, pack and boot
//! the same images through the same code.

pub mod cargo;
pub mod image_check;
pub mod images;
pub mod paths;
