//! LZMA: the decoder of symbols, which xz uses too, and the format of `.lzma` files, a header and one run of
//! symbols.
//!
//! Format: as liblzma's `lzma_alone`: a byte of properties, the dictionary's size, and the output's; a size of all
//! ones means that an end mark ends the stream. There is no checksum: a corrupt file shows only in that the decoder
//! does not end where the file ends.

mod range;
mod symbols;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;

pub(super) use range::Range;
pub(super) use symbols::{Lzma, LzmaError};

use super::window::{NoMemory, Window};
use super::{ByteSource, Format, Limits, PayloadError, STEP_WORK, Step, corrupt, truncated};

/// About how many instructions a symbol takes that puts out one byte, the cheapest symbol. A match of two bytes
/// takes about forty bits.
pub(super) const SYMBOL_WORK: u64 = 500;

const HEADER_BYTES: usize = 13;
/// The least size of a dictionary: a smaller one counts as this.
const LEAST_DICTIONARY: u64 = 4 << 10;
/// Bytes of output that may wait before decoding pauses.
const MAX_WAITING: usize = 4 << 10;
/// The most output of a symbol.
const LONGEST: usize = 273;

/// An LZMA file.
pub(super) struct LzmaAlone<'a> {
    range: Range<'a>,
    lzma: Box<Lzma>,
    window: Window,
    /// Bytes of output still to come; `None`: up to the end mark.
    left: Option<u64>,
    done: bool,
}

fn bad(what: &str) -> PayloadError {
    corrupt(Format::Lzma, what)
}

fn no_memory(_: NoMemory) -> PayloadError {
    PayloadError::NoMemory(Format::Lzma)
}

impl<'a> LzmaAlone<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: &Limits) -> Result<Self, PayloadError> {
        let short = || truncated(Format::Lzma);
        let (&[properties, a, b, c, d, ref size @ ..], data): (&[u8; HEADER_BYTES], _) =
            bytes.split_first_chunk().ok_or_else(short)?;
        let dictionary = u64::from(u32::from_le_bytes([a, b, c, d])).max(LEAST_DICTIONARY);
        limits.check_window(Format::Lzma, dictionary)?;
        let size = u64::from_le_bytes(*size);
        let mut lzma = Box::new(Lzma::new().map_err(no_memory)?);
        if !lzma.set_properties(properties) {
            return Err(bad("its header is malformed"));
        }
        lzma.reset();
        if data.len() < 5 {
            return Err(short());
        }
        Ok(Self {
            range: Range::new(data).ok_or_else(|| bad("its first byte is not zero"))?,
            lzma,
            window: Window::new(dictionary.min(limits.output)),
            left: (size != u64::MAX).then_some(size),
            done: size == 0,
        })
    }

    /// Decodes a symbol.
    fn decode(&mut self) -> Result<(), PayloadError> {
        let left = self.left.map_or(LONGEST, |left| left.min(LONGEST as u64) as usize);
        let position = self.window.total();
        let symbol = self.lzma.symbol(&mut self.range, &mut self.window, position, left);
        if self.range.is_overrun() {
            return Err(truncated(Format::Lzma));
        }
        match symbol {
            Ok(len) => {
                if let Some(left) = &mut self.left {
                    *left = left.checked_sub(len as u64).ok_or_else(|| bad("it is longer than it states"))?;
                }
                // An end mark may follow even if the size was stated.
                self.done = self.left == Some(0) && self.range.is_finished();
                Ok(())
            }
            Err(LzmaError::EndMark) if !self.range.is_finished() => Err(bad("it ends before its file does")),
            Err(LzmaError::EndMark) if self.left.is_none_or(|left| left == 0) => {
                self.done = true;
                Ok(())
            }
            Err(LzmaError::EndMark) => Err(bad("it is shorter than it states")),
            Err(LzmaError::Corrupt) if self.left == Some(0) => Err(bad("it is longer than it states")),
            Err(LzmaError::Corrupt) => Err(bad("a match refers to what is not there")),
            Err(LzmaError::NoMemory) => Err(PayloadError::NoMemory(Format::Lzma)),
        }
    }
}

impl ByteSource for LzmaAlone<'_> {
    fn step(&mut self, to: &mut [u8]) -> Result<Step, PayloadError> {
        let mut work = 0;
        while !self.done && work < STEP_WORK && self.window.waiting() < MAX_WAITING {
            self.decode()?;
            work += SYMBOL_WORK;
        }
        Ok(match self.window.take(to) {
            0 if self.done => Step::End,
            0 => Step::Busy,
            count => Step::Bytes(count),
        })
    }

    fn release(&mut self) -> bool {
        self.window.release()
    }
}
