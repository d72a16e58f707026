//! A bit for each page of a guest.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

const WIDTH: u64 = u64::BITS as u64;

/// A set of pseudo-physical frames.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// None of `count` frames.
    pub(super) fn none(count: u64) -> Result<Self, String> {
        let words = count.div_ceil(WIDTH) as usize;
        let mut bits = Vec::new();
        bits.try_reserve_exact(words).map_err(|_| format!("no memory for {count} bits"))?;
        bits.resize(words, 0);
        Ok(Self(bits))
    }

    /// The words, for the hypervisor.
    pub(super) fn words(&mut self) -> &mut [u64] {
        &mut self.0
    }

    /// What there is no room for is not in the set.
    pub(super) fn insert(&mut self, frame: u64) {
        if let Some(word) = self.0.get_mut((frame / WIDTH) as usize) {
            *word |= 1 << (frame % WIDTH);
        }
    }

    pub(super) fn remove(&mut self, frame: u64) {
        if let Some(word) = self.0.get_mut((frame / WIDTH) as usize) {
            *word &= !(1 << (frame % WIDTH));
        }
    }

    pub(super) fn has(&self, frame: u64) -> bool {
        self.0.get((frame / WIDTH) as usize).is_some_and(|word| word >> (frame % WIDTH) & 1 != 0)
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The first frame of the set from `from` on.
    pub(super) fn next(&self, from: u64) -> Option<u64> {
        let index = (from / WIDTH) as usize;
        let first = *self.0.get(index)? & u64::MAX << (from % WIDTH);
        let rest = self.0[index + 1..].iter().copied();
        let (at, word) = core::iter::once(first).chain(rest).enumerate().find(|(_, word)| *word != 0)?;
        Some((index + at) as u64 * WIDTH + u64::from(word.trailing_zeros()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it() {
        let mut bits = Bits::none(200).unwrap();
        assert_eq!((bits.count(), bits.next(0)), (0, None));
        for frame in [0, 63, 64, 199, 1000] {
            bits.insert(frame);
        }
        let mut other = Bits::none(200).unwrap();
        other.insert(100);
        bits.add(&other);
        bits.remove(63);
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(frame) = bits.next(from) {
            assert!(bits.has(frame));
            found.push(frame);
            from = frame + 1;
        }
        assert_eq!(found, [0, 64, 100, 199]);
        assert_eq!(bits.count(), 4);
        assert!(!bits.has(63) && !bits.has(1000) && bits.next(5000).is_none());
    }
}
