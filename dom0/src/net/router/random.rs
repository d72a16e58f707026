//! Numbers that a stranger does not guess: identifiers and ports.

use sha2::{Digest, Sha256};

/// A stream of numbers from a seed: SHA-256 of the seed and a counter, so that no number tells the next one.
pub struct Random {
    seed: [u8; 32],
    counter: u64,
}

impl Random {
    /// A stream. `seed` should hold what an outsider does not know, such as the time stamp counter at several moments.
    pub fn new(seed: &[u8]) -> Self {
        Self { seed: Sha256::digest(seed).into(), counter: 0 }
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.counter += 1;
        let digest: [u8; 32] =
            Sha256::new().chain_update(self.seed).chain_update(self.counter.to_le_bytes()).finalize().into();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        u64::from_le_bytes(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_different_seeds_differ_and_do_not_repeat() {
        let take = |seed: &[u8]| {
            let mut random = Random::new(seed);
            core::iter::repeat_with(move || random.draw()).take(1000).collect::<alloc::vec::Vec<_>>()
        };
        let (mut first, other) = (take(b"a"), take(b"b"));
        assert_eq!(first, take(b"a"));
        assert_ne!(first, other);
        first.extend(other);
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 2000);
        // Each bit is set about as often as not.
        for bit in 0..64 {
            let set = first.iter().filter(|number| *number >> bit & 1 == 1).count();
            assert!((850..1150).contains(&set), "bit {bit}: {set}");
        }
    }
}
