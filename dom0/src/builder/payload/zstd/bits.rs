//! A stream of bits that is read from the last byte to the first.

/// The bits below a position that falls.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    /// Bits that were not yet read; below zero when more were read than there are.
    left: i64,
}

impl<'a> Bits<'a> {
    /// Opens a stream: the highest set bit of the last byte marks the stream's end. `None`: there is no such
    /// bit.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let last = bytes.last()?.checked_ilog2()?;
        Some(Self { bytes, left: (bytes.len() as i64 - 1) * 8 + i64::from(last) })
    }

    /// Bits that were not yet read; below zero when more were read than there are.
    pub(super) fn left(self) -> i64 {
        self.left
    }

    /// The next `count` bits, at most 32; bits before the first byte are zero.
    #[inline]
    pub(super) fn peek(self, count: u32) -> u64 {
        let low = self.left - i64::from(count);
        let mask = (1 << count) - 1;
        if low >= 0 {
            return self.word(low as usize / 8) >> (low % 8) & mask;
        }
        if self.left <= 0 { 0 } else { self.word(0) << -low & mask }
    }

    /// Eight bytes from `at` on, as far as there are.
    #[inline]
    fn word(self, at: usize) -> u64 {
        if let Some(bytes) = self.bytes.get(at..).and_then(|rest| rest.first_chunk()) {
            return u64::from_le_bytes(*bytes);
        }
        let rest = self.bytes.get(at..).unwrap_or_default();
        rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
    }

    /// Skips bits.
    #[inline]
    pub(super) fn skip(&mut self, count: u32) {
        self.left -= i64::from(count);
    }

    /// Reads `count` bits, at most 32.
    #[inline]
    pub(super) fn read(&mut self, count: u32) -> u64 {
        let bits = self.peek(count);
        self.skip(count);
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_from_the_end_and_zeros_before_the_front() {
        // From the end: the mark, then 0b0000101, then 0xab, then nothing.
        let mut bits = Bits::new(&[0xab, 0x85]).unwrap();
        assert_eq!((bits.left(), bits.read(7), bits.read(4), bits.peek(4)), (15, 5, 0xa, 0xb));
        assert_eq!((bits.peek(8), bits.read(6), bits.left()), (0xb0, 0b101100, -2));
        assert_eq!(bits.read(32), 0);
        assert!(Bits::new(&[]).is_none() && Bits::new(&[1, 0]).is_none());
        let long = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1];
        let mut bits = Bits::new(&long).unwrap();
        assert_eq!((bits.read(32), bits.read(32), bits.read(16)), (0x0a09_0807, 0x0605_0403, 0x0201));
        assert_eq!(bits.left(), 0);
    }
}
