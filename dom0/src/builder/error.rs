//! Why a domain could not be built.

use alloc::string::String;
use core::fmt;

use migration::StreamError;
use ring_abi::errno::Errno;

use super::image::ImageError;
use super::layout::LayoutError;
use super::payload::PayloadError;

/// Why a domain could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The kernel file cannot be loaded.
    Kernel(String, ImageError),
    /// The ramdisk file cannot be loaded.
    Ramdisk(String, String),
    /// The domain cannot be laid out.
    Layout(LayoutError),
    /// The configuration asks for something impossible.
    Config(String),
    /// The machine has too little memory: MiB asked for, MiB free.
    Memory(u64, u64),
    /// The hypervisor refused: what the builder was doing.
    Refused(&'static str, Errno),
    /// A mapping failed: of what, and why.
    Map(&'static str, String),
    /// The stream from which the domain is restored.
    Stream(StreamError),
    /// The saved domain makes no whole one: in words.
    Saved(String),
}

impl BuildError {
    /// Whether only memory is missing, which may be free later.
    pub fn is_shortage(&self) -> bool {
        matches!(
            self,
            Self::Memory(..)
                | Self::Refused(_, Errno::ENOMEM)
                | Self::Kernel(_, ImageError::Payload(PayloadError::NoMemory(_)))
        )
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(file, error) => write!(f, "kernel {file}: {error}"),
            Self::Ramdisk(file, error) => write!(f, "ramdisk {file}: {error}"),
            Self::Layout(error) => write!(f, "{error}"),
            Self::Config(text) | Self::Saved(text) => write!(f, "{text}"),
            Self::Stream(error) => write!(f, "{error}"),
            Self::Memory(asked, free) => {
                write!(f, "memory: {asked} MiB are asked for and {free} MiB are free")
            }
            Self::Refused(what, errno) => write!(f, "{what}: {errno}"),
            Self::Map(what, why) => write!(f, "{what}: {why}"),
        }
    }
}
