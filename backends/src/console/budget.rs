//! How much may be printed: a token bucket.

/// Bytes that may be spent: `burst` bytes at once, and then one byte in each `byte_ns` nanoseconds.
///
/// The bucket stores the time up to which bytes are paid for. This time runs ahead of the clock by the burst at most.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    byte_ns: u64,
    burst: u64,
    paid_ns: u64,
}

impl Bucket {
    /// A full bucket: `burst` bytes may be spent at once, then one byte in each `byte_ns`.
    pub const fn new(byte_ns: u64, burst: u64) -> Self {
        Self { byte_ns, burst, paid_ns: 0 }
    }

    /// The time from which on `bytes` may be spent, at most the burst. For more bytes this is the time of the burst.
    pub const fn ready_at(&self, bytes: u64) -> u64 {
        (self.paid_ns + bytes * self.byte_ns).saturating_sub(self.burst * self.byte_ns)
    }

    /// Spends `bytes` at `now_ns`. More than there are are owed.
    pub fn spend(&mut self, now_ns: u64, bytes: u64) {
        self.paid_ns = self.paid_ns.max(now_ns) + bytes * self.byte_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = Bucket::new(10, 100);
        assert_eq!(bucket.ready_at(100), 0);
        bucket.spend(1000, 100);
        assert_eq!((bucket.ready_at(1), bucket.ready_at(100)), (1010, 2000));
        bucket.spend(1010, 1);
        assert_eq!(bucket.ready_at(1), 1020);
        // Owed and repaid.
        bucket.spend(1010, 50);
        assert_eq!(bucket.ready_at(1), 1520);
        // Silence does not add up beyond the burst.
        bucket.spend(1_000_000, 100);
        assert_eq!(bucket.ready_at(1), 1_000_010);
    }

    proptest! {
        /// Whatever the moment at which a stretch of time begins: the bytes spent in the stretch are no more than the
        /// burst and what the rate gives in the stretch.
        #[test]
        fn never_more_than_the_rate_and_a_burst(
            byte_ns in 1u64..50,
            burst in 1u64..200,
            wishes in proptest::collection::vec((0u64..400, 1u64..200), 1..60),
        ) {
            let (mut bucket, mut now) = (Bucket::new(byte_ns, burst), 5);
            let mut spent: Vec<(u64, u64)> = Vec::new();
            for (pause, bytes) in wishes {
                let bytes = bytes.min(burst);
                now = (now + pause).max(bucket.ready_at(bytes));
                bucket.spend(now, bytes);
                spent.push((now, bytes));
            }
            for (first, (start, _)) in spent.iter().enumerate() {
                let mut sum = 0;
                for (end, bytes) in &spent[first..] {
                    sum += bytes;
                    prop_assert!(sum <= burst + (end - start) / byte_ns);
                }
            }
        }
    }
}
