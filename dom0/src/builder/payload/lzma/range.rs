//! The range decoder, which decodes bits by their probabilities.

/// Probabilities are out of 2^11; each begins at a half.
const PROBABILITY_BITS: u32 = 11;
pub(in crate::builder::payload) const HALF: u16 = 1 << (PROBABILITY_BITS - 1);
/// How fast probabilities adapt: a shift.
const MOVE_BITS: u16 = 5;
const TOP: u32 = 1 << 24;

/// A range decoder over the bytes of one chunk.
#[derive(Clone, Copy, Default)]
pub(in crate::builder::payload) struct Range<'a> {
    bytes: &'a [u8],
    range: u32,
    code: u32,
    /// The decoder needed more bytes than the chunk has.
    overrun: bool,
}

impl<'a> Range<'a> {
    /// Begins with a chunk's bytes; `None`: there are too few.
    pub(in crate::builder::payload) fn new(bytes: &'a [u8]) -> Option<Self> {
        let ([0, code @ ..], bytes) = bytes.split_first_chunk::<5>()? else { return None };
        Some(Self { bytes, range: u32::MAX, code: u32::from_be_bytes(*code), overrun: false })
    }

    /// Whether the decoder ended in the right state, with all bytes read.
    pub(in crate::builder::payload) fn is_finished(mut self) -> bool {
        self.normalize();
        self.bytes.is_empty() && self.code == 0 && !self.overrun
    }

    /// Whether the decoder needed more bytes than the chunk has.
    pub(in crate::builder::payload) fn is_overrun(&self) -> bool {
        self.overrun
    }

    #[inline]
    fn normalize(&mut self) {
        if self.range < TOP {
            let byte = match self.bytes.split_first() {
                Some((byte, rest)) => {
                    self.bytes = rest;
                    *byte
                }
                None => {
                    self.overrun = true;
                    0
                }
            };
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(byte);
        }
    }

    /// Decodes one bit.
    #[inline]
    pub(in crate::builder::payload) fn bit(&mut self, probability: &mut u16) -> bool {
        self.normalize();
        let bound = (self.range >> PROBABILITY_BITS) * u32::from(*probability);
        if self.code < bound {
            self.range = bound;
            *probability += ((1 << PROBABILITY_BITS) - *probability) >> MOVE_BITS;
            false
        } else {
            self.range -= bound;
            self.code -= bound;
            *probability -= *probability >> MOVE_BITS;
            true
        }
    }

    /// Decodes a number of `bits` bits, the highest first.
    #[inline]
    pub(in crate::builder::payload) fn tree(&mut self, probabilities: &mut [u16], bits: u32) -> u32 {
        let mut symbol = 1;
        for _ in 0..bits {
            symbol = symbol << 1 | usize::from(self.bit(&mut probabilities[symbol]));
        }
        symbol as u32 - (1 << bits)
    }

    /// Decodes a number of `bits` bits, the lowest first.
    pub(in crate::builder::payload) fn reverse_tree(&mut self, probabilities: &mut [u16], bits: u32) -> u32 {
        let (mut symbol, mut value) = (1, 0);
        for n in 0..bits {
            let bit = self.bit(&mut probabilities[symbol]);
            symbol = symbol << 1 | usize::from(bit);
            value |= u32::from(bit) << n;
        }
        value
    }

    /// Decodes a number of `bits` bits that are one or zero with equal probability.
    pub(in crate::builder::payload) fn direct(&mut self, bits: u32) -> u32 {
        let mut value = 0;
        for _ in 0..bits {
            self.normalize();
            self.range >>= 1;
            let bit = self.code >= self.range;
            if bit {
                self.code -= self.range;
            }
            value = value << 1 | u32::from(bit);
        }
        value
    }
}
