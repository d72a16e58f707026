//! What is wrong with a stream, and where.

use alloc::string::String;
use core::fmt;

use crate::format::record_name;

/// A place in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In `xl`'s header or in the configuration behind it.
    Header,
    /// In a record of libxl's.
    Libxl {
        /// Counted from 0.
        number: u32,
    },
    /// In the headers of libxc's stream.
    ImageHeader,
    /// In a record of libxc's.
    Record {
        /// Counted from 0.
        number: u32,
        /// The record's type, once it was read.
        kind: Option<u32>,
    },
}

/// Why a stream was not read to its end, or not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamError {
    /// Which record.
    pub place: Place,
    /// The byte of the stream where the record begins.
    pub offset: u64,
    /// What is wrong, in words.
    pub what: String,
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Header => f.write_str("header")?,
            Place::Libxl { number } => write!(f, "libxl record {number}")?,
            Place::ImageHeader => f.write_str("image header")?,
            Place::Record { number, kind: Some(kind) } => {
                write!(f, "record {number} ({})", record_name(kind))?;
            }
            Place::Record { number, kind: None } => write!(f, "record {number}")?,
        }
        write!(f, " at byte {}: {}", self.offset, self.what)
    }
}
