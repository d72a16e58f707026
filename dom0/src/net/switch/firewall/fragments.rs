//! Packets in fragments whose first fragment passed.
//!
//! A table of fixed size keeps a hash of addresses, protocol and number, with the switch's secret; the oldest of a bucket
//! gives way.

use alloc::boxed::Box;
use alloc::vec;
use core::net::IpAddr;

use super::Direction;
use crate::net::headers::{Fragment, Head};
use crate::net::switch::hash::Seed;

const WAYS: usize = 4;
const BUCKETS: usize = 16;

/// How long the fragments of a packet may follow each other, in seconds (RFC 8200 has 60, Linux takes 30).
const FRAGMENTS_S: u32 = 30;

/// Bytes of the table.
pub(super) const BYTES: usize = BUCKETS * size_of::<[Entry; WAYS]>();

#[derive(Clone, Copy)]
pub(super) struct Entry {
    hash: u64,
    seen_s: u32,
    is_used: bool,
}

const NOTHING: Entry = Entry { hash: 0, seen_s: 0, is_used: false };

pub(super) struct Fragments {
    buckets: Box<[[Entry; WAYS]]>,
    seed: Seed,
}

impl Fragments {
    pub(super) fn new(seed: Seed) -> Fragments {
        Fragments { buckets: vec![[NOTHING; WAYS]; BUCKETS].into(), seed }
    }

    /// The hash of the packet of which the frame is a fragment.
    fn hash(&self, direction: Direction, head: &Head<'_>) -> Option<u64> {
        let (Fragment::First(ident) | Fragment::Later(ident, _)) = head.fragment() else { return None };
        let (source, destination) = head.addresses()?;
        let bits = |ip| match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        // The first fragment of IPv6 may have further headers, whose last protocol the later ones do not name.
        let protocol = if source.is_ipv4() { head.protocol() } else { 0 };
        let rest = u64::from(ident) << 16 | u64::from(protocol) << 8 | u64::from(direction == Direction::In);
        let [source, destination] = [bits(source), bits(destination)];
        let hash = self.seed.hash((source >> 64) as u64, source as u64);
        let hash = self.seed.hash(hash ^ (destination >> 64) as u64, destination as u64);
        Some(self.seed.hash(hash, rest))
    }

    /// The first fragment of a packet passes.
    pub(super) fn pass(&mut self, direction: Direction, head: &Head<'_>, now_s: u32) {
        let Some(hash) = self.hash(direction, head) else { return };
        let bucket = &mut self.buckets[hash as usize % BUCKETS];
        let age = |entry: &Entry| if entry.is_used { now_s.wrapping_sub(entry.seen_s) } else { u32::MAX };
        let same = bucket.iter().position(|entry| entry.is_used && entry.hash == hash);
        let oldest = (0..WAYS).max_by_key(|at| age(&bucket[*at])).unwrap_or(0);
        bucket[same.unwrap_or(oldest)] = Entry { hash, seen_s: now_s, is_used: true };
    }

    /// Whether the packet's first fragment has passed.
    pub(super) fn passed(&self, direction: Direction, head: &Head<'_>, now_s: u32) -> bool {
        let Some(hash) = self.hash(direction, head) else { return false };
        let is_it = |entry: &Entry| {
            entry.is_used && entry.hash == hash && now_s.wrapping_sub(entry.seen_s) <= FRAGMENTS_S
        };
        self.buckets[hash as usize % BUCKETS].iter().any(is_it)
    }
}
