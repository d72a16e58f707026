//! The kernel's lz4: the "legacy" frame, blocks of at most 8 MiB, each behind its compressed size.
//!
//! Formats: the LZ4 frame format, "Legacy frame", and the LZ4 block format. A block is decoded as it is read, through
//! a window of 64 KiB: some compressed kilobytes may stand for 8 MiB, which are never in memory as a whole.

use super::window::Window;
use super::{ByteSource, Format, PayloadError, STEP_WORK, Step, corrupt, truncated};

/// The most output of a block.
const BLOCK_BYTES: usize = 8 << 20;
/// How far back a match refers.
pub(super) const WINDOW_BYTES: u64 = 64 << 10;
/// Bytes of output that may wait before decoding pauses.
const MAX_WAITING: usize = 64 << 10;
/// Most bytes moved at once.
const PIECE_BYTES: usize = 32 << 10;
const MAGIC: u32 = u32::from_le_bytes([2, 0x21, 0x4c, 0x18]);
/// A nibble of this value is continued in the bytes that follow.
const LONG: u8 = 15;
const MIN_MATCH: usize = 4;

/// What comes next.
enum Next {
    /// A block, or the end.
    Block,
    /// A token, inside a block.
    Token,
    /// Literals, then the match whose length the token's low nibble begins.
    Literals(usize, u8),
    /// The rest of a match: how far back, how long.
    Match(usize, usize),
}

/// An lz4 stream.
pub(super) struct Lz4<'a> {
    input: &'a [u8],
    /// The unread part of the block; then the block's output so far.
    block: &'a [u8],
    given: usize,
    next: Next,
    window: Window,
    done: bool,
}

impl<'a> Lz4<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, PayloadError> {
        let input = bytes.get(4..).ok_or_else(|| truncated(Format::Lz4))?;
        let window = Window::new(WINDOW_BYTES);
        Ok(Self { input, block: &[], given: 0, next: Next::Block, window, done: false })
    }

    /// Opens the next block; false at the end.
    fn open_block(&mut self) -> Result<bool, PayloadError> {
        if self.input.is_empty() {
            return Ok(false);
        }
        let (size, rest) = self.input.split_first_chunk().ok_or_else(|| truncated(Format::Lz4))?;
        self.input = rest;
        let size = u32::from_le_bytes(*size);
        // A further frame may follow.
        if size != MAGIC {
            let block = rest.split_at_checked(size as usize).ok_or_else(|| truncated(Format::Lz4))?;
            (self.block, self.input) = block;
            self.given = 0;
            if !self.block.is_empty() {
                self.next = Next::Token;
            }
        }
        Ok(true)
    }

    fn byte(&mut self) -> Result<u8, PayloadError> {
        let (byte, rest) =
            self.block.split_first().ok_or_else(|| corrupt(Format::Lz4, "a block ends inside a sequence"))?;
        self.block = rest;
        Ok(*byte)
    }

    /// Reads the length that `nibble` begins.
    fn length(&mut self, nibble: u8) -> Result<usize, PayloadError> {
        let mut len = usize::from(nibble);
        let mut more = nibble == LONG;
        while more && len <= BLOCK_BYTES {
            let byte = self.byte()?;
            len += usize::from(byte);
            more = byte == u8::MAX;
        }
        Ok(len)
    }

    /// Checks that the block's limit allows `len` more bytes.
    fn check_room(&self, len: usize) -> Result<(), PayloadError> {
        if len > BLOCK_BYTES - self.given {
            return Err(corrupt(Format::Lz4, "a block holds more than 8 MiB"));
        }
        Ok(())
    }

    /// Does one piece of work; returns about how many instructions it took, `None` at the end.
    fn decode(&mut self) -> Result<Option<u64>, PayloadError> {
        let no_memory = |_| PayloadError::NoMemory(Format::Lz4);
        match self.next {
            Next::Block => {
                if !self.open_block()? {
                    return Ok(None);
                }
                Ok(Some(30))
            }
            Next::Token => {
                let token = self.byte()?;
                let len = self.length(token >> 4)?;
                self.check_room(len)?;
                self.next = Next::Literals(len, token & LONG);
                Ok(Some(30 + len as u64 / 32))
            }
            Next::Literals(0, nibble) => {
                if self.block.is_empty() {
                    self.next = Next::Block;
                    return Ok(Some(10));
                }
                let distance = usize::from(u16::from_le_bytes([self.byte()?, self.byte()?]));
                let len = self.length(nibble)? + MIN_MATCH;
                if distance == 0 || distance > self.given {
                    return Err(corrupt(Format::Lz4, "a match refers to what is not there"));
                }
                self.check_room(len)?;
                self.next = Next::Match(distance, len);
                Ok(Some(50 + len as u64 / 32))
            }
            Next::Literals(len, nibble) => {
                let now = len.min(PIECE_BYTES);
                let (literals, rest) = self
                    .block
                    .split_at_checked(now)
                    .ok_or_else(|| corrupt(Format::Lz4, "a block ends inside a sequence"))?;
                self.window.extend(literals).map_err(no_memory)?;
                self.block = rest;
                self.given += now;
                self.next = Next::Literals(len - now, nibble);
                Ok(Some(60 + now as u64 / 8))
            }
            Next::Match(distance, len) => {
                let now = len.min(PIECE_BYTES);
                self.window.repeat(distance, now).map_err(no_memory)?;
                self.given += now;
                self.next = if len > now { Next::Match(distance, len - now) } else { Next::Token };
                Ok(Some(100 + now as u64 / 8))
            }
        }
    }
}

impl ByteSource for Lz4<'_> {
    fn step(&mut self, to: &mut [u8]) -> Result<Step, PayloadError> {
        let mut work = 0;
        while !self.done && work < STEP_WORK && self.window.waiting() < MAX_WAITING {
            match self.decode()? {
                Some(took) => work += took,
                None => self.done = true,
            }
        }
        Ok(match self.window.take(to) {
            0 if self.done => Step::End,
            0 => Step::Busy,
            n => Step::Bytes(n),
        })
    }

    fn release(&mut self) -> bool {
        self.window.release()
    }
}
