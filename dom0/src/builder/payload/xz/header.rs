//! A block's header.

use super::x86::X86;
use super::{bad, number};
use crate::builder::payload::PayloadError;

/// The fields of a block's header.
#[derive(Clone, Copy, Default)]
pub(super) struct Header {
    pub(super) packed: Option<u64>,
    pub(super) unpacked: Option<u64>,
    pub(super) window: u64,
    pub(super) filter: Option<X86>,
}

impl Header {
    /// Reads a header, without its checksum.
    pub(super) fn read(header: &[u8]) -> Result<Self, PayloadError> {
        const X86_FILTER: u64 = 4;
        const LZMA2: u64 = 0x21;
        const PACKED_SIZE: u8 = 0x40;
        const UNPACKED_SIZE: u8 = 0x80;
        const RESERVED: u8 = 0x3c;
        let malformed = || bad("a block's header is malformed");
        let mut read = Self::default();
        let mut rest = header.get(1..).ok_or_else(malformed)?;
        let (flags, after) = rest.split_first().ok_or_else(malformed)?;
        rest = after;
        if flags & RESERVED != 0 {
            return Err(malformed());
        }
        if flags & PACKED_SIZE != 0 {
            read.packed = Some(number(&mut rest).ok_or_else(malformed)?);
        }
        if flags & UNPACKED_SIZE != 0 {
            read.unpacked = Some(number(&mut rest).ok_or_else(malformed)?);
        }
        let filters = flags & 3;
        for n in 0..=filters {
            let id = number(&mut rest).ok_or_else(malformed)?;
            let size = number(&mut rest).ok_or_else(malformed)?;
            let size = usize::try_from(size).map_err(|_| malformed())?;
            let (properties, after) = rest.split_at_checked(size).ok_or_else(malformed)?;
            rest = after;
            match (id, properties) {
                (X86_FILTER, []) if n < filters && read.filter.is_none() => read.filter = Some(X86::new(0)),
                (X86_FILTER, start) if n < filters && read.filter.is_none() => {
                    let start = start.try_into().map_err(|_| malformed())?;
                    read.filter = Some(X86::new(u32::from_le_bytes(start)));
                }
                (LZMA2, [bits @ 0..40]) if n == filters => {
                    read.window = u64::from(2 | bits & 1) << (bits / 2 + 11);
                }
                (LZMA2, [40]) if n == filters => read.window = u64::from(u32::MAX),
                _ => return Err(bad("it uses a filter that is not known here")),
            }
        }
        if rest.iter().any(|&byte| byte != 0) { Err(malformed()) } else { Ok(read) }
    }
}
