//! Checksums of a block's output.

use crate::builder::payload::gzip::CRC32;

static CRC64: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_XZ);

/// The checksum of a block's output.
pub(super) enum Check {
    Crc32(crc::Digest<'static, u32, crc::Table<16>>),
    Crc64(crc::Digest<'static, u64>),
    /// No checksum, or of a kind that is not checked: its size in bytes.
    Other(usize),
}

impl Check {
    pub(super) fn new(kind: u8) -> Self {
        match kind & 15 {
            1 => Self::Crc32(CRC32.digest()),
            4 => Self::Crc64(CRC64.digest()),
            0 => Self::Other(0),
            kind => Self::Other(4 << ((kind - 1) / 3)),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc32(digest) => digest.update(bytes),
            Self::Crc64(digest) => digest.update(bytes),
            Self::Other(_) => {}
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Crc32(_) => 4,
            Self::Crc64(_) => 8,
            Self::Other(bytes) => *bytes,
        }
    }

    pub(super) fn is(self, stated: &[u8]) -> bool {
        match self {
            Self::Crc32(digest) => stated == digest.finalize().to_le_bytes(),
            Self::Crc64(digest) => stated == digest.finalize().to_le_bytes(),
            Self::Other(_) => true,
        }
    }
}
