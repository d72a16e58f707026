#![forbid(unsafe_code)]
//! What `cargo xtask` does, as a library: the command line tool and the system tests build, pack and boot
//! the same images through the same code.

use std::fmt;

pub mod backports;
pub mod bench;
pub mod bochs;
pub mod bundle;
pub mod cargo;
pub mod checks;
pub mod conformance;
pub mod cpio;
pub mod cpu_model;
pub mod debug;
pub mod deps;
pub mod disk_image;
pub mod fuzz;
pub mod guest;
pub mod image;
pub mod image_check;
pub mod images;
pub mod install;
pub mod iso;
pub mod lines;
pub mod lint;
pub mod machine;
pub mod network;
pub mod options;
pub mod outcome;
pub mod packages;
pub mod paths;
pub mod plugin;
pub mod qemu;
pub mod run;
pub mod session;
pub mod symbols;
pub mod tap;
mod terminal;
pub mod test;
pub mod xen;

/// The person asked for something impossible: exit status 2.
#[derive(Debug)]
pub struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Wrong usage, as an error.
pub fn usage(why: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage(why.into()))
}
