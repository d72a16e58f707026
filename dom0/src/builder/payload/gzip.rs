//! gzip: RFC 1952, one member.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::{ByteSource, Format, PayloadError, Step, corrupt, filled, truncated};

/// How far back deflate refers.
pub(super) const DEFLATE_WINDOW_BYTES: usize = 32 << 10;
/// Compressed bytes in one step. A block with nothing but the description of its codes has about ten bytes, and
/// costs thousands of instructions.
const FEED_BYTES: usize = 512;

/// A gzip stream.
pub(super) struct Gzip<'a> {
    input: &'a [u8],
    state: Box<DecompressorOxide>,
    /// The last output, as a ring.
    window: Vec<u8>,
    /// The part of the window that was not taken yet.
    ready: Range<usize>,
    crc: crc::Digest<'static, u32, crc::Table<16>>,
    len: u32,
    done: bool,
}

pub(super) static CRC32: crc::Crc<u32, crc::Table<16>> =
    crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISO_HDLC);

impl<'a> Gzip<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, PayloadError> {
        let input = body(bytes).ok_or_else(|| truncated(Format::Gzip))?;
        let window = filled(DEFLATE_WINDOW_BYTES, Format::Gzip)?;
        Ok(Self {
            input,
            state: Box::default(),
            window,
            ready: 0..0,
            crc: CRC32.digest(),
            len: 0,
            done: false,
        })
    }

    /// Fills the window further, from where the last output ended.
    fn inflate(&mut self) -> Result<(), PayloadError> {
        let start = self.ready.end % DEFLATE_WINDOW_BYTES;
        let (now, later) = self.input.split_at(self.input.len().min(FEED_BYTES));
        let flags = if later.is_empty() { 0 } else { TINFL_FLAG_HAS_MORE_INPUT };
        let (status, consumed, written) = decompress(&mut self.state, now, &mut self.window, start, flags);
        self.input = &self.input[consumed..];
        self.ready = start..start + written;
        self.crc.update(&self.window[self.ready.clone()]);
        self.len = self.len.wrapping_add(written as u32);
        match status {
            TINFLStatus::Done => {
                self.done = true;
                self.check_trailer()
            }
            TINFLStatus::HasMoreOutput if written > 0 => Ok(()),
            TINFLStatus::NeedsMoreInput if consumed > 0 && !later.is_empty() => Ok(()),
            TINFLStatus::NeedsMoreInput | TINFLStatus::FailedCannotMakeProgress => {
                Err(truncated(Format::Gzip))
            }
            _ => Err(corrupt(Format::Gzip, "its deflate data is damaged")),
        }
    }

    fn check_trailer(&mut self) -> Result<(), PayloadError> {
        let word = |at: usize| Some(u32::from_le_bytes(self.input.get(at..at + 4)?.try_into().ok()?));
        let (Some(crc), Some(len)) = (word(0), word(4)) else {
            return Err(truncated(Format::Gzip));
        };
        if len != self.len {
            return Err(corrupt(Format::Gzip, "its length is not the one it states"));
        }
        if crc != self.crc.clone().finalize() {
            return Err(corrupt(Format::Gzip, "its checksum is not the one it states"));
        }
        Ok(())
    }
}

/// Skips the gzip header, and returns the bytes behind it.
fn body(bytes: &[u8]) -> Option<&[u8]> {
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const HEADER_CRC: u8 = 2;
    /// A name or a comment is no longer than this.
    const MAX_TEXT: usize = 64 << 10;
    let flags = *bytes.get(3)?;
    let mut rest = bytes.get(10..)?;
    if flags & EXTRA != 0 {
        let len = usize::from(u16::from_le_bytes(rest.get(..2)?.try_into().ok()?));
        rest = rest.get(2 + len..)?;
    }
    for flag in [NAME, COMMENT] {
        if flags & flag != 0 {
            let end = rest.iter().take(MAX_TEXT).position(|&byte| byte == 0)?;
            rest = rest.get(end + 1..)?;
        }
    }
    if flags & HEADER_CRC != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

impl ByteSource for Gzip<'_> {
    fn step(&mut self, to: &mut [u8]) -> Result<Step, PayloadError> {
        if self.ready.is_empty() {
            if self.done {
                return Ok(Step::End);
            }
            self.inflate()?;
            if self.ready.is_empty() {
                return Ok(Step::Busy);
            }
        }
        let n = to.len().min(self.ready.len());
        to[..n].copy_from_slice(&self.window[self.ready.start..self.ready.start + n]);
        self.ready.start += n;
        Ok(Step::Bytes(n))
    }
}
