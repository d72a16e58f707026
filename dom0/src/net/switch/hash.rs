//! A hash with a secret: who sends packets cannot choose which of them meet in a table.

/// The secret.
#[derive(Clone, Copy)]
pub(super) struct Seed([u64; 2]);

impl Seed {
    pub(super) const fn new(secret: [u64; 2]) -> Seed {
        // A factor of zero would hash all to zero.
        Seed([secret[0] ^ 0x9e37_79b9_7f4a_7c15, secret[1] | 1])
    }

    /// The hash of two words.
    #[inline]
    pub(super) fn hash(self, first: u64, second: u64) -> u64 {
        fold(fold(first ^ self.0[0], self.0[1]) ^ second, 0xd6e8_feb8_6659_fd93)
    }
}

/// Both halves of a product.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}
