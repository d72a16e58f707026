//! xz: the XZ file format 1.2, one stream, with the x86 BCJ filter.
//!
//! The crate's decoder stops after as many bytes as it is asked for, but not inside what puts out none: its stream is
//! walked beforehand, and refused where its parts are so small that most of the work is beginning them.

use super::{ByteSource, Format, Limits, PayloadError, Step, corrupt, filled, truncated};
use lzma_rust2::Read as _;

/// Bytes decoded in one step: each costs up to some 300 instructions.
const STEP_BYTES: usize = 2 << 10;
/// Chunks that may be shorter than [`SHORT_CHUNK_BYTES`] in one stream, and blocks: what begins a chunk may fill tables of
/// 12,288 probabilities. Encoders make chunks of 64 KiB, and blocks of a megabyte; only the last is shorter.
const MAX_SHORT_CHUNKS: u64 = 16;
const SHORT_CHUNK_BYTES: u64 = 4 << 10;
const MAX_BLOCKS: u64 = 64;
const HEADER_BYTES: usize = 12;
/// What the decoder takes besides its window: a chunk, and probabilities.
const BUFFER_BYTES: usize = 192 << 10;

/// What a walk over a stream finds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Walk {
    /// The largest dictionary.
    window: u64,
    blocks: u64,
    chunks: u64,
    short_chunks: u64,
}

/// The bytes of an xz file, one after the other.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (now, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(now)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// A number in groups of seven bits.
    fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

/// Walks over a stream's blocks and chunks without decoding them. `None`: it ends too early, or is none; the decoder
/// says how.
fn walk(bytes: &[u8]) -> Option<Walk> {
    let mut walk = Walk::default();
    let mut rest = Bytes(bytes);
    let check_bytes = [0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64];
    let check_bytes = check_bytes[usize::from(*rest.take(HEADER_BYTES)?.get(7)? & 15)];
    loop {
        let size = rest.byte()?;
        if size == 0 {
            // The index: a record for each block.
            return (rest.number()? == walk.blocks).then_some(walk);
        }
        let window = window(rest.take((usize::from(size) + 1) * 4 - 1)?)?;
        walk.window = walk.window.max(window);
        walk.blocks += 1;
        let before = rest.0.len();
        loop {
            let control = rest.byte()?;
            if control == 0 {
                break;
            }
            let size = rest.take(2)?;
            let mut unpacked = u64::from(u16::from_be_bytes([size[0], size[1]])) + 1;
            let mut packed = unpacked;
            if control >= 0x80 {
                unpacked += u64::from(control & 0x1f) << 16;
                let size = rest.take(2)?;
                packed = u64::from(u16::from_be_bytes([size[0], size[1]])) + 1;
            }
            if control >= 0xc0 {
                rest.byte()?;
            }
            rest.take(packed as usize)?;
            walk.chunks += 1;
            walk.short_chunks += u64::from(unpacked < SHORT_CHUNK_BYTES);
            if walk.is_too_fine() {
                return Some(walk);
            }
        }
        let padding = (before - rest.0.len()).next_multiple_of(4) - (before - rest.0.len());
        rest.take(padding + check_bytes)?;
        if walk.is_too_fine() {
            return Some(walk);
        }
    }
}

impl Walk {
    fn is_too_fine(&self) -> bool {
        self.blocks > MAX_BLOCKS || self.short_chunks > MAX_SHORT_CHUNKS
    }
}

/// The dictionary that a block's header, behind its size, asks for.
fn window(header: &[u8]) -> Option<u64> {
    const LZMA2: u64 = 0x21;
    let mut rest = Bytes(header);
    let flags = rest.byte()?;
    for present in [0x40, 0x80] {
        if flags & present != 0 {
            rest.number()?;
        }
    }
    for _ in 0..=flags & 3 {
        let (id, size) = (rest.number()?, rest.number()?);
        let properties = rest.take(usize::try_from(size).ok()?)?;
        if id == LZMA2 {
            let bits = u32::from(properties.first()? & 0x3f);
            return Some(match bits {
                40.. => u64::from(u32::MAX),
                bits => u64::from(2 | bits & 1) << (bits / 2 + 11),
            });
        }
    }
    None
}

/// A slice as the decoder reads it.
struct Slice<'a>(&'a [u8]);

impl lzma_rust2::Read for Slice<'_> {
    fn read(&mut self, to: &mut [u8]) -> lzma_rust2::Result<usize> {
        let (now, rest) = self.0.split_at(to.len().min(self.0.len()));
        to[..now.len()].copy_from_slice(now);
        self.0 = rest;
        Ok(now.len())
    }
}

/// An xz stream.
pub(super) struct Xz<'a>(lzma_rust2::XzReader<Slice<'a>>);

impl<'a> Xz<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: &Limits) -> Result<Self, PayloadError> {
        let walk = walk(bytes).ok_or_else(|| truncated(Format::Xz))?;
        limits.check_window(Format::Xz, walk.window)?;
        if walk.is_too_fine() {
            return Err(corrupt(Format::Xz, "it is cut into too many small parts"));
        }
        // The crate takes its buffers without asking: with their like in hand before, it finds them.
        drop(filled(BUFFER_BYTES, Format::Xz)?);
        let limit_kib = u32::try_from(limits.memory / 1024).unwrap_or(u32::MAX);
        Ok(Self(lzma_rust2::XzReader::new_mem_limit(Slice(bytes), false, limit_kib)))
    }
}

impl ByteSource for Xz<'_> {
    fn step(&mut self, to: &mut [u8]) -> Result<Step, PayloadError> {
        let len = to.len().min(STEP_BYTES);
        match self.0.read(&mut to[..len]) {
            Ok(0) => Ok(Step::End),
            Ok(n) => Ok(Step::Bytes(n)),
            Err(lzma_rust2::Error::Eof) => Err(truncated(Format::Xz)),
            Err(lzma_rust2::Error::OutOfMemory(_)) => Err(PayloadError::NoMemory(Format::Xz)),
            Err(other) => Err(corrupt(Format::Xz, alloc::format!("{other:?}"))),
        }
    }
}
