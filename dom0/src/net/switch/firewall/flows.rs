//! Flows that go on: a table of fixed size.
//!
//! A flow lies in one of the eight places of its bucket. When all eight are taken, a flow that is over gives way, or else the
//! one that was silent longest, of those first that nobody has answered: so what is sent to a guest from outside, and not
//! answered, makes no conversation be forgotten.

use alloc::boxed::Box;
use alloc::vec;

use super::Direction;
use crate::net::headers::{Ends, TcpFlags, protocol};
use crate::net::switch::hash::Seed;

/// Flows of one bucket.
const WAYS: usize = 8;
const BUCKETS: usize = 64;

/// Bytes of the table.
pub(super) const BYTES: usize = BUCKETS * size_of::<[Entry; WAYS]>();
const _: () = assert!(BYTES <= 24 << 10);

/// How long a flow is remembered that is silent, in seconds. RFC 5382, 4787 and 5508 have the least for each.
const UNANSWERED_S: u32 = 120;
const TCP_S: u32 = 7500;
const TCP_ENDS_S: u32 = 240;
const UDP_S: u32 = 300;
const ICMP_S: u32 = 60;
const OTHERS_S: u32 = 600;

/// Both ends of a flow: the guest's, and the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    guest: [u64; 2],
    peer: [u64; 2],
    ports: u32,
    protocol: u8,
}

/// Ports of DHCP's clients and servers.
const DHCP: [u32; 2] = [68 << 16 | 67, 546 << 16 | 547];

impl Key {
    /// The key of the flow of a packet that goes in that direction.
    #[inline]
    pub(super) fn of(direction: Direction, ends: Ends) -> Key {
        let Ends { source, destination, ports, protocol } = ends;
        let (guest, peer, ports) = match direction {
            Direction::Out => (source, destination, ports),
            Direction::In => (destination, source, ports.rotate_left(16)),
        };
        // The question goes to all, from nowhere; the answer comes from one, to the address that it gives.
        if protocol == protocol::UDP && DHCP.contains(&ports) {
            return Key { guest: [0; 2], peer: [0; 2], ports, protocol };
        }
        Key { guest, peer, ports, protocol }
    }
}

/// Packets went to the guest.
const WENT_IN: u8 = 1;
/// Packets went from the guest.
const WENT_OUT: u8 = 2;
/// One end gave the connection up, or has no more to send.
const ENDS: u8 = 4;

#[derive(Clone, Copy)]
pub(super) struct Entry {
    key: Key,
    /// [`WENT_IN`], [`WENT_OUT`], [`ENDS`]; 0: nothing is here.
    state: u8,
    seen_s: u32,
}

const NOTHING: Entry =
    Entry { key: Key { guest: [0; 2], peer: [0; 2], ports: 0, protocol: 0 }, state: 0, seen_s: 0 };

impl Entry {
    fn is_answered(&self) -> bool {
        self.state & (WENT_IN | WENT_OUT) == WENT_IN | WENT_OUT
    }

    /// Whether the flow goes on.
    fn is_live(&self, now_s: u32) -> bool {
        let limit_s = match self.key.protocol {
            _ if !self.is_answered() => UNANSWERED_S,
            protocol::TCP if self.state & ENDS != 0 => TCP_ENDS_S,
            protocol::TCP => TCP_S,
            protocol::UDP => UDP_S,
            protocol::ICMP | protocol::ICMPV6 => ICMP_S,
            _ => OTHERS_S,
        };
        self.state != 0 && now_s.wrapping_sub(self.seen_s) <= limit_s
    }
}

const fn went(direction: Direction) -> u8 {
    match direction {
        Direction::In => WENT_IN,
        Direction::Out => WENT_OUT,
    }
}

pub(super) struct Flows {
    buckets: Box<[[Entry; WAYS]]>,
    seed: Seed,
}

impl Flows {
    pub(super) fn new(seed: Seed) -> Flows {
        Flows { buckets: vec![[NOTHING; WAYS]; BUCKETS].into(), seed }
    }

    pub(super) fn count(&self, now_s: u32) -> usize {
        self.buckets.iter().flatten().filter(|entry| entry.is_live(now_s)).count()
    }

    #[inline]
    fn bucket(&mut self, key: &Key) -> &mut [Entry; WAYS] {
        // An address of IPv4 leaves room in its words.
        let first = key.guest[1] ^ u64::from(key.ports) << 32;
        let second = key.peer[1] ^ u64::from(key.protocol) << 56;
        let mut hash = self.seed.hash(first, second);
        if key.guest[0] | key.peer[0] != 0 {
            hash = self.seed.hash(hash ^ key.guest[0], key.peer[0]);
        }
        &mut self.buckets[hash as usize % BUCKETS]
    }

    #[inline]
    fn find(&mut self, key: &Key, now_s: u32) -> Option<&mut Entry> {
        let found = |entry: &&mut Entry| entry.key.ports == key.ports && entry.key == *key;
        self.bucket(key).iter_mut().find(found).filter(|entry| entry.is_live(now_s))
    }

    /// Whether the flow goes on.
    pub(super) fn has(&mut self, key: &Key, now_s: u32) -> bool {
        self.find(key, now_s).is_some()
    }

    /// Whether the flow goes on; if so, a packet of the flow has gone in that direction.
    #[inline]
    pub(super) fn goes_on(
        &mut self,
        key: &Key,
        direction: Direction,
        flags: Option<TcpFlags>,
        now_s: u32,
    ) -> bool {
        let Some(entry) = self.find(key, now_s) else { return false };
        entry.state |= went(direction);
        entry.seen_s = now_s;
        if flags.is_some_and(|flags| flags.fin() || flags.rst()) {
            entry.state |= ENDS;
        }
        true
    }

    /// A flow begins in that direction, perhaps anew.
    pub(super) fn begin(&mut self, key: Key, direction: Direction, now_s: u32) {
        let bucket = self.bucket(&key);
        let age = |entry: &Entry| now_s.wrapping_sub(entry.seen_s);
        let rank = |entry: &Entry| match entry.is_live(now_s) {
            _ if entry.key == key => 0,
            false => 1,
            true => 2 + u8::from(entry.is_answered()),
        };
        let place = bucket.iter_mut().min_by_key(|entry| (rank(entry), u32::MAX - age(entry)));
        if let Some(place) = place {
            // A connection begins from nothing; a query follows others.
            let others = if place.key == key && key.protocol != protocol::TCP { place.state } else { 0 };
            *place = Entry { key, state: others | went(direction), seen_s: now_s };
        }
    }
}
