//! Numbers without a pattern, the same on every run.

/// xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// A message of random bytes.
    pub(crate) fn message<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&mut self) -> T {
        let mut message = T::new_zeroed();
        for byte in message.as_mut_bytes() {
            *byte = self.next() as u8;
        }
        message
    }
}
