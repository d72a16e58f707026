//! zstd: RFC 8878, one frame without a dictionary.
//!
//! dom0 has its own decoder instead of a crate's because decoding must be able to pause anywhere. A block of 128 KiB
//! can take ten million instructions, and a crate decodes a block as a whole, into memory whose allocation cannot
//! fail cleanly.

mod bits;
mod fse;
mod header;
mod huffman;
mod tables;
#[cfg(test)]
mod tests;
mod xxh64;

use alloc::vec::Vec;

use bits::Bits;
use fse::{Distribution, Table};
use header::Header;
use huffman::Code;
use tables::{KINDS, LITERAL_LENGTHS, MATCH_LENGTHS};
use xxh64::Xxh64;

use super::window::{NoMemory, Window};
use super::{ByteSource, Format, Limits, PayloadError, STEP_WORK, Step, corrupt, truncated};

const MAX_BLOCK_BYTES: usize = 128 << 10;
/// Bytes of output that may wait before decoding pauses. A single match adds up to a block.
const MAX_WAITING: usize = 64 << 10;
const _: () = assert!(MAX_WAITING + MAX_BLOCK_BYTES <= Window::MAX_WAITING);
/// About how many instructions a block costs beside its output, since its tables are built anew.
const BLOCK_WORK: u64 = 60_000;
/// About how many instructions a literal costs; then a sequence.
const LITERAL_WORK: u64 = 20;
const SEQUENCE_WORK: u64 = 250;
/// Literals decoded at a time.
const LITERALS: usize = 1024;

/// Huffman-coded literals under way.
struct Literals<'a> {
    /// The unread part of each stream, and how many literals it still has.
    streams: [(Bits<'a>, usize); 4],
    now: usize,
}

/// Sequences under way.
#[derive(Clone, Copy)]
struct Sequences<'a> {
    bits: Bits<'a>,
    left: usize,
    states: [usize; 3],
}

/// What comes next.
enum Next<'a> {
    Block,
    /// Bytes without compression.
    Raw(&'a [u8]),
    /// A byte, and how often it is repeated.
    Repeated(u8, usize),
    /// Literals, and the description of the sequences behind them.
    Literals(Literals<'a>, &'a [u8]),
    /// The description of the sequences.
    SequenceHeader(&'a [u8]),
    Sequences(Sequences<'a>),
    /// The literals behind the last sequence.
    Rest,
    Checksum,
    End,
}

/// A zstd stream.
pub(super) struct Zstd<'a> {
    input: &'a [u8],
    header: Header,
    next: Next<'a>,
    is_last: bool,
    window: Window,
    /// Where the block's output began.
    block_start: u64,
    /// The block's literals, and how many were used.
    literals: Vec<u8>,
    used: usize,
    code: Code,
    tables: [Table; 3],
    /// The last distances.
    history: [u32; 3],
    hash: Xxh64,
}

impl<'a> Zstd<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: &Limits) -> Result<Self, PayloadError> {
        let header = Header::read(bytes)?;
        limits.check_window(Format::Zstd, header.window)?;
        let mut literals = Vec::new();
        literals.try_reserve_exact(MAX_BLOCK_BYTES).map_err(|_| PayloadError::NoMemory(Format::Zstd))?;
        Ok(Self {
            input: &bytes[header.bytes..],
            header,
            next: Next::Block,
            is_last: false,
            window: Window::new(header.window.min(limits.output)),
            block_start: 0,
            literals,
            used: 0,
            code: Code::empty()?,
            tables: [Table::empty()?, Table::empty()?, Table::empty()?],
            history: [1, 4, 8],
            hash: Xxh64::new(),
        })
    }

    /// The most output of a block.
    fn max_block(&self) -> usize {
        MAX_BLOCK_BYTES.min(self.header.window as usize)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], PayloadError> {
        let (now, rest) = self.input.split_at_checked(count).ok_or_else(|| truncated(Format::Zstd))?;
        self.input = rest;
        Ok(now)
    }

    /// Does one piece of work; returns about how many instructions it took.
    fn decode(&mut self) -> Result<u64, PayloadError> {
        match core::mem::replace(&mut self.next, Next::End) {
            Next::Block => self.block(),
            Next::Raw(bytes) => {
                self.window.extend(bytes)?;
                self.next_block();
                Ok(bytes.len() as u64 / 8)
            }
            Next::Repeated(byte, count) => {
                self.window.fill(byte, count)?;
                self.next_block();
                Ok(count as u64 / 8)
            }
            Next::Literals(mut literals, rest) => {
                let work = self.decode_literals(&mut literals)?;
                let done = literals.now == literals.streams.len();
                self.next = if done { Next::SequenceHeader(rest) } else { Next::Literals(literals, rest) };
                Ok(work)
            }
            Next::SequenceHeader(bytes) => self.sequence_header(bytes),
            Next::Sequences(mut sequences) => {
                let work = self.sequence(&mut sequences)?;
                self.next = if sequences.left == 0 { Next::Rest } else { Next::Sequences(sequences) };
                Ok(work)
            }
            Next::Rest => {
                let rest = self.literals.len() - self.used;
                self.check_room(rest)?;
                self.window.extend(&self.literals[self.used..])?;
                self.next_block();
                Ok(rest as u64 / 8)
            }
            Next::Checksum => {
                let sum = self.take(4)?;
                // The checksum covers only taken output; all output has been taken before this.
                if sum != &self.hash.finish().to_le_bytes()[..4] {
                    return Err(corrupt(Format::Zstd, "its checksum is not the one it states"));
                }
                Ok(0)
            }
            Next::End => Ok(0),
        }
    }

    fn next_block(&mut self) {
        self.next = match (self.is_last, self.header.has_checksum) {
            (false, _) => Next::Block,
            (true, true) => Next::Checksum,
            (true, false) => Next::End,
        };
    }

    fn block(&mut self) -> Result<u64, PayloadError> {
        let header = self.take(3)?;
        let header = u32::from_le_bytes([header[0], header[1], header[2], 0]);
        let size = (header >> 3) as usize;
        self.is_last = header & 1 != 0;
        if size > self.max_block() {
            return Err(corrupt(Format::Zstd, "a block is too large"));
        }
        self.block_start = self.window.total();
        match header >> 1 & 3 {
            0 => self.next = Next::Raw(self.take(size)?),
            1 => self.next = Next::Repeated(self.take(1)?[0], size),
            2 => {
                let body = self.take(size)?;
                self.literals_header(body)?;
                return Ok(BLOCK_WORK);
            }
            _ => return Err(corrupt(Format::Zstd, "a block is of no known kind")),
        }
        Ok(100)
    }

    /// Reads the header of a block's literals.
    fn literals_header(&mut self, body: &'a [u8]) -> Result<(), PayloadError> {
        let bad = || corrupt(Format::Zstd, "its literals are malformed");
        (self.used, _) = (0, self.literals.clear());
        let mut word = [0; 8];
        let known = body.len().min(5);
        word[..known].copy_from_slice(&body[..known]);
        let word = u64::from_le_bytes(word);
        let (kind, form) = (word & 3, word >> 2 & 3);
        if kind < 2 {
            let (bytes, size) = match form {
                0 | 2 => (1, word >> 3 & 0x1f),
                1 => (2, word >> 4 & 0xfff),
                _ => (3, word >> 4 & 0xf_ffff),
            };
            let size = self.check_literals(size)?;
            let rest = body.get(bytes..).ok_or_else(bad)?;
            let (literals, rest) = rest.split_at_checked(if kind == 0 { size } else { 1 }).ok_or_else(bad)?;
            match kind {
                0 => self.literals.extend_from_slice(literals),
                _ => self.literals.resize(size, literals[0]),
            }
            self.next = Next::SequenceHeader(rest);
            return Ok(());
        }
        let (bytes, bits) = [(3, 10), (3, 10), (4, 14), (5, 18)][form as usize];
        let field = |n: u32| (word >> (4 + n * bits)) & ((1 << bits) - 1);
        let size = self.check_literals(field(0))?;
        let (coded, rest) =
            body.get(bytes..).and_then(|rest| rest.split_at_checked(field(1) as usize)).ok_or_else(bad)?;
        let mut streams = coded;
        if kind == 2 {
            let used = self.code.read(coded).ok_or_else(bad)?;
            streams = coded.get(used..).ok_or_else(bad)?;
        } else if !self.code.is_some() {
            return Err(bad());
        }
        let literals = if form == 0 {
            let none = Bits::new(&[1]).ok_or_else(bad)?;
            let one = Bits::new(streams).ok_or_else(bad)?;
            [(one, size), (none, 0), (none, 0), (none, 0)]
        } else {
            Self::four_streams(streams, size).ok_or_else(bad)?
        };
        self.next = Next::Literals(Literals { streams: literals, now: 0 }, rest);
        Ok(())
    }

    fn check_literals(&self, size: u64) -> Result<usize, PayloadError> {
        match size as usize {
            size if size <= self.max_block() => Ok(size),
            _ => Err(corrupt(Format::Zstd, "a block has too many literals")),
        }
    }

    fn four_streams(bytes: &'a [u8], size: usize) -> Option<[(Bits<'a>, usize); 4]> {
        let (jumps, mut rest) = bytes.split_first_chunk::<6>()?;
        let each = size.div_ceil(4);
        let last = size.checked_sub(3 * each)?;
        let mut streams = [(Bits::new(&[1])?, 0); 4];
        for (n, stream) in streams.iter_mut().enumerate() {
            let (now, count) = match jumps.get(2 * n..2 * n + 2) {
                Some(jump) => {
                    let (now, later) =
                        rest.split_at_checked(usize::from(jump[0]) | usize::from(jump[1]) << 8)?;
                    rest = later;
                    (now, each)
                }
                None => (rest, last),
            };
            *stream = (Bits::new(now)?, count);
        }
        Some(streams)
    }

    fn decode_literals(&mut self, literals: &mut Literals<'a>) -> Result<u64, PayloadError> {
        let (bits, left) = &mut literals.streams[literals.now];
        let count = LITERALS.min(*left);
        for _ in 0..count {
            self.literals.push(self.code.decode(bits));
        }
        *left -= count;
        if *left == 0 {
            if bits.left() != 0 {
                return Err(corrupt(Format::Zstd, "its literals do not end where they should"));
            }
            literals.now += 1;
        }
        Ok(count as u64 * LITERAL_WORK)
    }

    fn sequence_header(&mut self, bytes: &'a [u8]) -> Result<u64, PayloadError> {
        const MODES_END: u32 = 8;
        let bad = || corrupt(Format::Zstd, "its sequences are malformed");
        let byte = |at: usize| bytes.get(at).map(|&byte| usize::from(byte)).ok_or_else(bad);
        let (count, mut at) = match byte(0)? {
            0 if bytes.len() == 1 => {
                self.next = Next::Rest;
                return Ok(0);
            }
            0 => return Err(bad()),
            few @ ..128 => (few, 1),
            some @ ..255 => ((some - 128) << 8 | byte(1)?, 2),
            _ => ((byte(1)? | byte(2)? << 8) + 0x7f00, 3),
        };
        let modes = byte(at)?;
        at += 1;
        if modes & 3 != 0 || count == 0 {
            return Err(bad());
        }
        for (n, kind) in KINDS.iter().enumerate() {
            match modes >> (MODES_END - 2 * (n as u32 + 1)) & 3 {
                0 => {
                    self.tables[n].set(&Distribution::known(kind.known.0, kind.known.1));
                }
                1 => {
                    let symbol = byte(at)?;
                    if symbol >= kind.symbols {
                        return Err(bad());
                    }
                    at += 1;
                    self.tables[n].set_single(symbol as u8);
                }
                2 => {
                    let rest = bytes.get(at..).ok_or_else(bad)?;
                    let (distribution, used) =
                        Distribution::read(rest, kind.symbols, kind.max_log).ok_or_else(bad)?;
                    at += used;
                    if !self.tables[n].set(&distribution) {
                        return Err(bad());
                    }
                }
                // The tables of the former block stay in use.
                _ => {}
            }
        }
        let mut bits = bytes.get(at..).and_then(Bits::new).ok_or_else(bad)?;
        let mut states = [0; 3];
        for (state, table) in states.iter_mut().zip(&self.tables) {
            if !table.is_some() {
                return Err(bad());
            }
            *state = table.start(&mut bits);
        }
        self.next = Next::Sequences(Sequences { bits, left: count, states });
        Ok(BLOCK_WORK)
    }

    /// Decodes one sequence: literals, and a match.
    fn sequence(&mut self, sequences: &mut Sequences<'a>) -> Result<u64, PayloadError> {
        let bad = || corrupt(Format::Zstd, "its sequences are malformed");
        let [lengths, offsets, matches] = &self.tables;
        let Sequences { bits, left, states } = sequences;
        let offset_code = u32::from(offsets.symbol(states[1]));
        let (offset, of_bits) = (1u64 << (offset_code % 32), offset_code % 32);
        let offset = (offset + bits.read(of_bits)) as u32;
        let (base, extra) = *MATCH_LENGTHS.get(usize::from(matches.symbol(states[2]))).ok_or_else(bad)?;
        let match_len = base as usize + bits.read(extra) as usize;
        let (base, extra) = *LITERAL_LENGTHS.get(usize::from(lengths.symbol(states[0]))).ok_or_else(bad)?;
        let literal_len = base as usize + bits.read(extra) as usize;
        *left -= 1;
        if *left > 0 {
            states[0] = lengths.next(states[0], bits);
            states[2] = matches.next(states[2], bits);
            states[1] = offsets.next(states[1], bits);
        }
        if bits.left() < 0 || *left == 0 && bits.left() != 0 {
            return Err(corrupt(Format::Zstd, "its sequences do not end where they should"));
        }
        self.check_room(literal_len + match_len)?;
        let literals = self.literals.get(self.used..self.used + literal_len).ok_or_else(bad)?;
        self.window.extend(literals)?;
        self.used += literal_len;
        let distance = self.distance(offset, literal_len == 0);
        if !self.window.has(distance.into()) {
            return Err(corrupt(Format::Zstd, "a match refers to what is not there"));
        }
        self.window.repeat(distance as usize, match_len)?;
        Ok(SEQUENCE_WORK + (literal_len + match_len) as u64 / 8)
    }

    /// Checks that the block may put out `len` more bytes.
    fn check_room(&self, len: usize) -> Result<(), PayloadError> {
        if (self.window.total() - self.block_start) as usize + len > self.max_block() {
            return Err(corrupt(Format::Zstd, "a block holds more than it may"));
        }
        Ok(())
    }

    /// The distance for an offset value, which may refer to one of the last distances; 0 is invalid.
    fn distance(&mut self, offset: u32, no_literals: bool) -> u32 {
        let [first, second, third] = self.history;
        let (distance, history) = match offset + u32::from(no_literals && offset <= 3) {
            1 => return first,
            2 => (second, [second, first, third]),
            3 => (third, [third, first, second]),
            4 if no_literals && offset == 3 => (first - 1, [first - 1, first, second]),
            other => (other - 3, [other - 3, first, second]),
        };
        self.history = history;
        distance
    }
}

impl From<NoMemory> for PayloadError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory(Format::Zstd)
    }
}

impl ByteSource for Zstd<'_> {
    fn step(&mut self, to: &mut [u8]) -> Result<Step, PayloadError> {
        let mut work = 0;
        while work < STEP_WORK && self.window.waiting() < MAX_WAITING {
            match self.next {
                Next::End => break,
                // The checksum covers only taken output, so all must be taken first.
                Next::Checksum if self.window.waiting() > 0 => break,
                _ => work += self.decode()?,
            }
        }
        let n = self.window.take(to);
        if self.header.has_checksum {
            self.hash.update(&to[..n]);
        }
        Ok(match n {
            0 if matches!(self.next, Next::End) => Step::End,
            0 => Step::Busy,
            n => Step::Bytes(n),
        })
    }

    fn release(&mut self) -> bool {
        self.window.release()
    }
}
