//! A frame's header.

use crate::builder::payload::{Format, PayloadError, corrupt, truncated};

/// The fields of a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// How far back matches refer.
    pub(super) window: u64,
    /// A checksum stands at the end.
    pub(super) has_checksum: bool,
    /// Bytes of the header itself.
    pub(super) bytes: usize,
}

impl Header {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, PayloadError> {
        const SINGLE_SEGMENT: u8 = 0x20;
        const RESERVED: u8 = 0x08;
        const CHECKSUM: u8 = 0x04;
        let short = || truncated(Format::Zstd);
        let descriptor = *bytes.get(4).ok_or_else(short)?;
        if descriptor & RESERVED != 0 {
            return Err(corrupt(Format::Zstd, "its header has a bit set that means nothing"));
        }
        let mut at = 5;
        let mut field = |len: usize| -> Result<u64, PayloadError> {
            let bytes = bytes.get(at..at + len).ok_or_else(short)?;
            at += len;
            Ok(bytes.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
        };
        let single = descriptor & SINGLE_SEGMENT != 0;
        let mut window = 0;
        if !single {
            let code = field(1)?;
            let base = 1u64 << (10 + (code >> 3));
            window = base + base / 8 * (code & 7);
        }
        if field([0, 1, 2, 4][usize::from(descriptor & 3)])? != 0 {
            return Err(corrupt(Format::Zstd, "it wants a dictionary"));
        }
        let size = match descriptor >> 6 {
            0 => field(usize::from(single))?,
            1 => field(2)? + 256,
            2 => field(4)?,
            _ => field(8)?,
        };
        if single {
            window = size;
        }
        Ok(Self { window, has_checksum: descriptor & CHECKSUM != 0, bytes: at })
    }
}
