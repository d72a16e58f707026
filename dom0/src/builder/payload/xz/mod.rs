//! xz: the XZ file format 1.2, one stream, with LZMA2 and the x86 filter.
//!
//! dom0 has its own decoder instead of a crate's for two reasons: decoding must be able to pause anywhere, and the
//! crate doubles its window in one step, which takes tens of milliseconds for a large window.

mod check;
mod header;
mod x86;

use alloc::boxed::Box;
use alloc::vec::Vec;

use check::Check;
use header::Header;
use x86::X86;

use super::gzip::CRC32;
use super::lzma::{Lzma, LzmaError, Range, SYMBOL_WORK};
use super::window::{NoMemory, Window};
use super::{ByteSource, Format, Limits, PayloadError, STEP_WORK, Step, corrupt, filled, truncated};

const STREAM_HEADER_BYTES: usize = 12;
const STREAM_FOOTER_BYTES: usize = 12;
/// The most blocks of a stream, since the index names each. Kernels have one.
const MAX_BLOCKS: usize = 64;
/// About how many instructions it takes to reset all probabilities: at most 12,288 of literals, and the others.
const RESET_WORK: u64 = 20_000;
/// Bytes decoded before they are filtered and put out.
const PIECE_BYTES: usize = 4 << 10;
/// Bytes of a chunk that is not compressed, copied at a time.
const COPY_BYTES: usize = 4 << 10;

/// What comes next.
enum Next<'a> {
    Block,
    Chunk,
    /// A chunk's symbols, and how many bytes of output are still to come.
    Symbols(Range<'a>, usize),
    /// A chunk that is not compressed.
    Copy(&'a [u8]),
    /// The block's padding and checksum, behind all of its output.
    BlockEnd,
    End,
}

/// A block, and the sizes that the index must state for it.
struct Block {
    header: Header,
    /// Input left at its start, and behind its header.
    start: usize,
    data: usize,
    /// How many bytes of its output were put out.
    given: u64,
    check: Check,
    filter: Option<X86>,
}

/// An xz stream.
pub(super) struct Xz<'a> {
    input: &'a [u8],
    check: u8,
    limits: Limits,
    next: Next<'a>,
    block: Option<Box<Block>>,
    /// For each block: its size without padding, and the size of its output.
    index: Vec<(u64, u64)>,
    lzma: Box<Lzma>,
    window: Window,
    window_reach: u64,
    /// Where the dictionary begins.
    dictionary: u64,
    needs_dictionary: bool,
    needs_properties: bool,
    /// Output that passes the filter: filtered up to `ready`, put out up to `given`.
    piece: Vec<u8>,
    ready: usize,
    given: usize,
}

fn short() -> PayloadError {
    truncated(Format::Xz)
}

fn bad(what: &str) -> PayloadError {
    corrupt(Format::Xz, what)
}

/// Reads a number in groups of seven bits.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Returns the bytes without the CRC32 at their end, if that is right.
fn without_sum(bytes: &[u8]) -> Option<&[u8]> {
    let (bytes, sum) = bytes.split_last_chunk()?;
    (CRC32.checksum(bytes) == u32::from_le_bytes(*sum)).then_some(bytes)
}

impl<'a> Xz<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: &Limits) -> Result<Self, PayloadError> {
        let (header, input) = bytes.split_at_checked(STREAM_HEADER_BYTES).ok_or_else(short)?;
        let flags = without_sum(&header[6..]).ok_or_else(|| bad("its header's checksum is wrong"))?;
        if flags[0] != 0 || flags[1] > 15 {
            return Err(bad("its header has a bit set that means nothing"));
        }
        let mut index = Vec::new();
        index.try_reserve_exact(MAX_BLOCKS).map_err(|_| PayloadError::NoMemory(Format::Xz))?;
        let mut piece = filled(2 * PIECE_BYTES, Format::Xz)?;
        piece.clear();
        let mut xz = Self {
            input,
            check: flags[1],
            limits: *limits,
            next: Next::Block,
            block: None,
            index,
            lzma: Box::new(Lzma::new().map_err(no_memory)?),
            window: Window::new(0),
            window_reach: 0,
            dictionary: 0,
            needs_dictionary: true,
            needs_properties: true,
            piece,
            ready: 0,
            given: 0,
        };
        // The first block is opened at once, so that a too large window is refused before any work.
        xz.open_block()?;
        Ok(xz)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], PayloadError> {
        let (now, rest) = self.input.split_at_checked(count).ok_or_else(short)?;
        self.input = rest;
        Ok(now)
    }

    fn open_block(&mut self) -> Result<(), PayloadError> {
        let start = self.input.len();
        let size = usize::from(*self.input.first().ok_or_else(short)?);
        if size == 0 {
            self.read_index()?;
            self.next = Next::End;
            return Ok(());
        }
        if self.index.len() == MAX_BLOCKS {
            return Err(bad("it has more than 64 blocks"));
        }
        let header = self.take((size + 1) * 4)?;
        let header = without_sum(header).ok_or_else(|| bad("a block header's checksum is wrong"))?;
        let header = Header::read(header)?;
        self.limits.check_window(Format::Xz, header.window)?;
        let reach = header.window.min(self.limits.output);
        if reach > self.window_reach {
            self.window.restart(reach);
            self.window_reach = reach;
        }
        self.block = Some(Box::new(Block {
            header,
            start,
            data: self.input.len(),
            given: 0,
            check: Check::new(self.check),
            filter: header.filter,
        }));
        (self.needs_dictionary, self.needs_properties) = (true, true);
        self.next = Next::Chunk;
        Ok(())
    }

    /// Reads a chunk's header; returns about how many instructions that took.
    fn chunk(&mut self) -> Result<u64, PayloadError> {
        const LZMA: u8 = 0x80;
        const WITH_STATE: u8 = 0xa0;
        const WITH_PROPERTIES: u8 = 0xc0;
        const WITH_DICTIONARY: u8 = 0xe0;
        let wrong = || bad("a chunk's header is malformed");
        let control = self.take(1)?[0];
        if control == 0 {
            self.next = Next::BlockEnd;
            return Ok(50);
        }
        if control >= WITH_DICTIONARY || control == 1 {
            self.needs_dictionary = false;
            self.needs_properties = true;
            self.dictionary = self.window.total();
        } else if self.needs_dictionary {
            return Err(wrong());
        }
        let size = self.take(2)?;
        let unpacked = usize::from(u16::from_be_bytes([size[0], size[1]])) + 1;
        if control < LZMA {
            if control > 2 {
                return Err(wrong());
            }
            self.next = Next::Copy(self.take(unpacked)?);
            return Ok(50);
        }
        let unpacked = unpacked + (usize::from(control & 0x1f) << 16);
        let size = self.take(2)?;
        let packed = usize::from(u16::from_be_bytes([size[0], size[1]])) + 1;
        let mut work = 100;
        if control >= WITH_PROPERTIES {
            let properties = self.take(1)?[0];
            if !self.lzma.set_properties(properties) {
                return Err(wrong());
            }
            self.needs_properties = false;
        } else if self.needs_properties {
            return Err(wrong());
        }
        if control >= WITH_STATE {
            self.lzma.reset();
            work = RESET_WORK;
        }
        let range = Range::new(self.take(packed)?).ok_or_else(wrong)?;
        self.next = Next::Symbols(range, unpacked);
        Ok(work)
    }

    /// Does one piece of work; returns about how many instructions it took.
    fn decode(&mut self) -> Result<u64, PayloadError> {
        match core::mem::replace(&mut self.next, Next::End) {
            Next::Block => {
                self.open_block()?;
                Ok(2000)
            }
            Next::Chunk => self.chunk(),
            Next::Symbols(mut range, left) => {
                let position = self.window.total() - self.dictionary;
                let len =
                    self.lzma.symbol(&mut range, &mut self.window, position, left).map_err(|error| {
                        match error {
                            LzmaError::Corrupt | LzmaError::EndMark => {
                                bad("a match refers to what is not there")
                            }
                            LzmaError::NoMemory => PayloadError::NoMemory(Format::Xz),
                        }
                    })?;
                if range.is_overrun() || len == left && !range.is_finished() {
                    return Err(bad("a chunk does not end where it should"));
                }
                self.next = if len == left { Next::Chunk } else { Next::Symbols(range, left - len) };
                Ok(SYMBOL_WORK)
            }
            Next::Copy(bytes) => {
                let (now, later) = bytes.split_at(bytes.len().min(COPY_BYTES));
                self.window.extend(now).map_err(no_memory)?;
                self.next = if later.is_empty() { Next::Chunk } else { Next::Copy(later) };
                Ok(100 + now.len() as u64 / 8)
            }
            Next::BlockEnd => {
                self.end_block()?;
                self.next = Next::Block;
                Ok(200)
            }
            Next::End => Ok(0),
        }
    }

    fn end_block(&mut self) -> Result<(), PayloadError> {
        let Some(block) = self.block.take() else { return Err(bad("a block ends that has not begun")) };
        let packed = block.data - self.input.len();
        let padding = self.take(packed.next_multiple_of(4) - packed)?;
        let Block { header, start, given, check, .. } = *block;
        let sizes = header.packed.is_none_or(|size| size == packed as u64)
            && header.unpacked.is_none_or(|size| size == given);
        if padding.iter().any(|&byte| byte != 0) || !sizes {
            return Err(bad("a block has another size than it states"));
        }
        let size = start - self.input.len() - padding.len() + check.bytes();
        self.index.push((size as u64, given));
        let stated = self.take(check.bytes())?;
        if !check.is(stated) {
            return Err(bad("a block's checksum is not the one it states"));
        }
        Ok(())
    }

    /// Checks the index against the blocks, and the footer against the index.
    fn read_index(&mut self) -> Result<(), PayloadError> {
        let wrong = || bad("its index is not that of its blocks");
        let mut rest = &self.input[1..];
        if number(&mut rest).ok_or_else(short)? != self.index.len() as u64 {
            return Err(wrong());
        }
        for block in &self.index {
            if (number(&mut rest).ok_or_else(short)?, number(&mut rest).ok_or_else(short)?) != *block {
                return Err(wrong());
            }
        }
        let used = self.input.len() - rest.len();
        let index = self.take(used.next_multiple_of(4) + 4)?;
        let size = (index.len() / 4 - 1) as u32;
        let padding = &without_sum(index).ok_or_else(wrong)?[used..];
        let footer = self.take(STREAM_FOOTER_BYTES)?;
        let sum = CRC32.checksum(&footer[4..10]).to_le_bytes();
        let want = [&sum[..], &size.to_le_bytes(), &[0, self.check], b"YZ"];
        if padding.iter().any(|&byte| byte != 0) || !footer.iter().eq(want.into_iter().flatten()) {
            return Err(bad("its end is malformed"));
        }
        Ok(())
    }

    /// Filters the decoded bytes, as far as that is possible yet.
    fn fill_piece(&mut self) {
        let Some(block) = &mut self.block else { return };
        let rest = self.piece.len() - self.ready;
        self.piece.copy_within(self.ready.., 0);
        self.piece.resize(2 * PIECE_BYTES, 0);
        let count = self.window.take(&mut self.piece[rest..rest + PIECE_BYTES]);
        self.piece.truncate(rest + count);
        let is_last = self.window.waiting() == 0 && matches!(self.next, Next::BlockEnd);
        self.ready = match &mut block.filter {
            Some(filter) => {
                let done = filter.filter(&mut self.piece);
                // The encoder leaves an instruction unchanged that the block's end cuts off.
                if is_last { self.piece.len() } else { done }
            }
            None => self.piece.len(),
        };
        self.given = 0;
        block.check.update(&self.piece[..self.ready]);
        block.given += self.ready as u64;
    }
}

fn no_memory(_: NoMemory) -> PayloadError {
    PayloadError::NoMemory(Format::Xz)
}

impl ByteSource for Xz<'_> {
    fn step(&mut self, to: &mut [u8]) -> Result<Step, PayloadError> {
        if self.given == self.ready {
            let mut work = 0;
            while work < STEP_WORK && self.window.waiting() < PIECE_BYTES {
                let is_held = self.window.waiting() > 0 || self.piece.len() > self.ready;
                match self.next {
                    Next::End => break,
                    // The checksum covers all output of the block, so all must be put out first.
                    Next::BlockEnd if is_held => break,
                    _ => work += self.decode()?,
                }
            }
            self.fill_piece();
        }
        let count = to.len().min(self.ready - self.given);
        to[..count].copy_from_slice(&self.piece[self.given..self.given + count]);
        self.given += count;
        Ok(match count {
            0 if matches!(self.next, Next::End) => Step::End,
            0 => Step::Busy,
            count => Step::Bytes(count),
        })
    }

    fn release(&mut self) -> bool {
        self.window.release()
    }
}

#[cfg(test)]
mod tests;
