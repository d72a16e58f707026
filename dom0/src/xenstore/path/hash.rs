//! Hashes of paths and parts of paths, eight bytes at a time, with a seed that guests do not know.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where each hash begins: see [`set_hash_seed`].
static SEED: AtomicU64 = AtomicU64::new(0x243f_6a88_85a3_08d3);

/// Sets the number with which each hash begins. Guests do not know the number: otherwise they could look for many paths
/// with one hash. The caller sets the number before there is any path.
pub fn set_hash_seed(seed: u64) {
    SEED.store(seed, Relaxed);
}

pub(super) fn seed() -> u64 {
    SEED.load(Relaxed)
}

/// Goes on with a hash by eight bytes.
pub(super) fn mix(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15;
    product as u64 ^ (product >> 64) as u64
}

/// The eight bytes from `at` on; beyond the end, zeros.
fn word_at(bytes: &[u8], at: usize) -> u64 {
    let word =
        |from: usize| bytes.get(from..from + 8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
    if let Some(word) = word(at) {
        return word;
    }
    match bytes.len().checked_sub(8).and_then(word) {
        Some(last) => last >> (8 * (at + 8 - bytes.len())),
        None => bytes[at..].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
    }
}

/// Whether the bytes are the same. The comparison takes eight bytes at a time, for long paths that are the same: dom0's
/// image has only a comparison of single bytes.
pub(super) fn is_same(one: &[u8], other: &[u8]) -> bool {
    let ((words, rest), (other_words, other_rest)) = (one.as_chunks::<8>(), other.as_chunks::<8>());
    let number = |word: &[u8; 8]| u64::from_le_bytes(*word);
    words.len() == other_words.len()
        && words.iter().zip(other_words).all(|(word, other)| number(word) == number(other))
        && rest == other_rest
}

/// The hash of the first `end` bytes.
pub(super) fn hash_of(bytes: &[u8], end: usize) -> u64 {
    #[cfg(test)]
    super::super::looks::note_bytes(end);
    let (words, rest) = bytes[..end].as_chunks::<8>();
    let hash = words.iter().fold(seed(), |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let last = if rest.is_empty() { 0 } else { low(word_at(bytes, end - rest.len()), rest.len()) };
    mix(hash, last)
}

/// The first `count` bytes of a word, at most seven.
fn low(word: u64, count: usize) -> u64 {
    word & ((1 << (8 * count)) - 1)
}

/// Where a path's slashes are, and the hash of what is before each slash: one pass finds all, eight bytes at a time.
pub(super) struct Cuts<'a> {
    bytes: &'a [u8],
    /// The offset of `word`. `hash` is the hash of the bytes before `word`.
    at: usize,
    hash: u64,
    word: u64,
    /// The top bit of each byte of `word` that is a slash and was not yet given out.
    slashes: u64,
}

impl<'a> Cuts<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Cuts<'a> {
        #[cfg(test)]
        super::super::looks::note_bytes(bytes.len());
        let mut cuts = Cuts { bytes, at: 0, hash: seed(), word: 0, slashes: 0 };
        cuts.load();
        cuts
    }

    fn load(&mut self) {
        const TOPS: u64 = u64::from_le_bytes([0x80; 8]);
        const ONES: u64 = u64::from_le_bytes([1; 8]);
        let count = self.bytes.len() - self.at;
        self.word = if count == 0 { 0 } else { word_at(self.bytes, self.at) };
        // No byte of a path has its top bit set, so the subtraction borrows nothing from the next byte.
        let zeros = !((self.word | TOPS) - ONES) & TOPS;
        self.slashes = if count < 8 { low(zeros, count) } else { zeros };
    }
}

impl Iterator for Cuts<'_> {
    type Item = (usize, u32);

    fn next(&mut self) -> Option<(usize, u32)> {
        while self.slashes == 0 {
            if self.bytes.len() - self.at <= 8 {
                return None;
            }
            self.hash = mix(self.hash, self.word);
            self.at += 8;
            self.load();
        }
        let count = self.slashes.trailing_zeros() as usize / 8;
        self.slashes &= self.slashes - 1;
        Some((self.at + count, mix(self.hash, low(self.word, count)) as u32))
    }
}
