//! LZMA: decodes one symbol at a time.

use alloc::vec::Vec;

use super::range::{HALF, Range};
use crate::builder::payload::window::{NoMemory, Window};

const STATES: usize = 12;
/// From this state on the last symbol was a match.
const FIRST_MATCH_STATE: usize = 7;
const POSITIONS: usize = 16;
const LITERAL_PROBABILITIES: usize = 0x300;
/// The most context bits of a literal, from the position and from the byte before together.
const MAX_CONTEXT_BITS: u32 = 4;
const MIN_MATCH: usize = 2;
const DISTANCE_STATES: usize = 4;
const SLOT_BITS: u32 = 6;
const ALIGN_BITS: u32 = 4;
/// Slots below this are distances themselves; from `END_MODEL` on, the low bits come from one shared tree.
const FIRST_MODEL: u32 = 4;
const END_MODEL: u32 = 14;
const MODEL_PROBABILITIES: usize = 128;

/// Why a symbol cannot be decoded.
pub(in crate::builder::payload) enum LzmaError {
    /// A symbol refers back too far, or has more output than the chunk states.
    Corrupt,
    /// There is no memory for it.
    NoMemory,
    /// The symbol is the mark that ends a stream of unknown length.
    EndMark,
}

impl From<NoMemory> for LzmaError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// The probabilities of lengths.
#[derive(Clone)]
struct Lengths {
    choice: [u16; 2],
    low: [[u16; 8]; POSITIONS],
    middle: [[u16; 8]; POSITIONS],
    high: [u16; 256],
}

impl Lengths {
    const fn new() -> Self {
        let some = [[HALF; 8]; POSITIONS];
        Self { choice: [HALF; 2], low: some, middle: some, high: [HALF; 256] }
    }

    fn decode(&mut self, range: &mut Range<'_>, position: usize) -> usize {
        let [first, second] = &mut self.choice;
        MIN_MATCH
            + if !range.bit(first) {
                range.tree(&mut self.low[position], 3) as usize
            } else if !range.bit(second) {
                8 + range.tree(&mut self.middle[position], 3) as usize
            } else {
                16 + range.tree(&mut self.high, 8) as usize
            }
    }
}

/// All probabilities but those of literals.
#[derive(Clone)]
struct Probabilities {
    is_match: [[u16; POSITIONS]; STATES],
    is_repeat: [u16; STATES],
    /// Whether the repeated distance is not the last one; not the second last; not the third last.
    is_other: [[u16; STATES]; 3],
    is_long: [[u16; POSITIONS]; STATES],
    slots: [[u16; 1 << SLOT_BITS]; DISTANCE_STATES],
    model: [u16; MODEL_PROBABILITIES],
    align: [u16; 1 << ALIGN_BITS],
    match_lengths: Lengths,
    repeat_lengths: Lengths,
}

impl Probabilities {
    const START: Self = Self {
        is_match: [[HALF; POSITIONS]; STATES],
        is_repeat: [HALF; STATES],
        is_other: [[HALF; STATES]; 3],
        is_long: [[HALF; POSITIONS]; STATES],
        slots: [[HALF; 1 << SLOT_BITS]; DISTANCE_STATES],
        model: [HALF; MODEL_PROBABILITIES],
        align: [HALF; 1 << ALIGN_BITS],
        match_lengths: Lengths::new(),
        repeat_lengths: Lengths::new(),
    };
}

/// The state of a decoder.
pub(in crate::builder::payload) struct Lzma {
    probabilities: Probabilities,
    literals: Vec<u16>,
    state: usize,
    /// The last distances, less one.
    distances: [u32; 4],
    literal_context_bits: u32,
    literal_position_mask: u64,
    position_mask: u64,
}

impl Lzma {
    /// A decoder that has no properties yet.
    pub(in crate::builder::payload) fn new() -> Result<Self, NoMemory> {
        let mut literals = Vec::new();
        literals.try_reserve_exact(LITERAL_PROBABILITIES << MAX_CONTEXT_BITS).map_err(|_| NoMemory)?;
        Ok(Self {
            probabilities: Probabilities::START,
            literals,
            state: 0,
            distances: [0; 4],
            literal_context_bits: 0,
            literal_position_mask: 0,
            position_mask: 0,
        })
    }

    /// Takes properties from their byte; false: the byte is invalid.
    pub(in crate::builder::payload) fn set_properties(&mut self, byte: u8) -> bool {
        let (context, rest) = (u32::from(byte % 9), byte / 9);
        let (literal_position, position) = (u32::from(rest % 5), u32::from(rest / 5));
        if position > 4 || context + literal_position > MAX_CONTEXT_BITS {
            return false;
        }
        self.literal_context_bits = context;
        self.literal_position_mask = (1 << literal_position) - 1;
        self.position_mask = (1 << position) - 1;
        self.literals.clear();
        self.literals.resize(LITERAL_PROBABILITIES << (context + literal_position), HALF);
        true
    }

    /// Resets the state and all probabilities.
    pub(in crate::builder::payload) fn reset(&mut self) {
        self.probabilities.clone_from(&Probabilities::START);
        self.literals.fill(HALF);
        self.state = 0;
        self.distances = [0; 4];
    }

    /// Decodes a symbol at `position`, with at most `left` bytes of output; returns how many bytes it put
    /// out.
    pub(in crate::builder::payload) fn symbol(
        &mut self,
        range: &mut Range<'_>,
        window: &mut Window,
        position: u64,
        left: usize,
    ) -> Result<usize, LzmaError> {
        let at = (position & self.position_mask) as usize;
        let state = self.state;
        let p = &mut self.probabilities;
        if !range.bit(&mut p.is_match[state][at]) {
            let byte = self.literal(range, window, position);
            window.push(byte)?;
            return Ok(1);
        }
        let after_match = state >= FIRST_MATCH_STATE;
        let [first, second, third, fourth] = self.distances;
        let len = if range.bit(&mut p.is_repeat[state]) {
            if !range.bit(&mut p.is_other[0][state]) {
                if !range.bit(&mut p.is_long[state][at]) {
                    self.state = if after_match { 11 } else { 9 };
                    return self.copy(window, position, 1, left);
                }
            } else if !range.bit(&mut p.is_other[1][state]) {
                self.distances = [second, first, third, fourth];
            } else if !range.bit(&mut p.is_other[2][state]) {
                self.distances = [third, first, second, fourth];
            } else {
                self.distances = [fourth, first, second, third];
            }
            self.state = if after_match { 11 } else { 8 };
            p.repeat_lengths.decode(range, at)
        } else {
            self.state = if after_match { 10 } else { 7 };
            let len = p.match_lengths.decode(range, at);
            self.distances = [Self::distance(p, range, len), first, second, third];
            if self.distances[0] == u32::MAX {
                return Err(LzmaError::EndMark);
            }
            len
        };
        self.copy(window, position, len, left)
    }

    fn copy(&self, window: &mut Window, position: u64, len: usize, left: usize) -> Result<usize, LzmaError> {
        let distance = u64::from(self.distances[0]) + 1;
        if len > left || distance > position || !window.has(distance) {
            return Err(LzmaError::Corrupt);
        }
        window.repeat(distance as usize, len)?;
        Ok(len)
    }

    /// Decodes a distance, less one.
    fn distance(p: &mut Probabilities, range: &mut Range<'_>, len: usize) -> u32 {
        let slot = range.tree(&mut p.slots[(len - MIN_MATCH).min(DISTANCE_STATES - 1)], SLOT_BITS);
        if slot < FIRST_MODEL {
            return slot;
        }
        let bits = (slot >> 1) - 1;
        let high = (2 | slot & 1) << bits;
        if slot < END_MODEL {
            // The trees are stored one behind the other, and each counts from 1.
            return high + range.reverse_tree(&mut p.model[(high - slot) as usize..], bits);
        }
        let middle = range.direct(bits - ALIGN_BITS) << ALIGN_BITS;
        high + middle + range.reverse_tree(&mut p.align, ALIGN_BITS)
    }

    fn literal(&mut self, range: &mut Range<'_>, window: &Window, position: u64) -> u8 {
        // Output from before a reset does not count.
        let byte_at = |distance: u64| if distance <= position { window.byte(distance) } else { 0 };
        let context = (position & self.literal_position_mask) << self.literal_context_bits
            | u64::from(byte_at(1)) >> (8 - self.literal_context_bits);
        let start = LITERAL_PROBABILITIES * context as usize;
        let probabilities = &mut self.literals[start..start + LITERAL_PROBABILITIES];
        if self.state < FIRST_MATCH_STATE {
            self.state = self.state.saturating_sub(3);
            return range.tree(probabilities, 8) as u8;
        }
        self.state -= if self.state < 10 { 3 } else { 6 };
        // After a match, the byte at which the match stopped helps to predict this byte, which is different.
        let mut matched = usize::from(byte_at(u64::from(self.distances[0]) + 1));
        let (mut symbol, mut offset) = (1, 0x100);
        while symbol < 0x100 {
            matched <<= 1;
            let expected = matched & offset;
            let bit = range.bit(&mut probabilities[offset + expected + symbol]);
            symbol = symbol << 1 | usize::from(bit);
            offset &= if bit { expected } else { !expected };
        }
        symbol as u8
    }
}
