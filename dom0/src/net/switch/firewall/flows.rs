//! Flows that go on: a table of fixed size.
//!
//! A flow lies in one of the eight places of its bucket. When they are all taken, a flow that is over gives way, or else the
//! one that was silent longest, of those first that nobody has answered: so what is sent to a guest from outside, and not
//! answered, makes no conversation be forgotten.

use alloc::boxed::Box;
use alloc::vec;
use core::net::IpAddr;

use super::Direction;
use crate::net::headers::{Flow, TcpFlags, protocol};
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
const DHCP: [(u16, u16); 2] = [(68, 67), (546, 547)];

fn words(ip: IpAddr) -> [u64; 2] {
    let bits = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

impl Key {
    /// The key of the flow of a packet that goes in that direction.
    #[inline]
    pub(super) fn of(direction: Direction, flow: &Flow) -> Key {
        let flow = if direction == Direction::Out { *flow } else { flow.reversed() };
        let ports = (flow.source_port, flow.destination_port);
        let (mut guest, mut peer) = (words(flow.source), words(flow.destination));
        // The question goes to all, from nowhere; the answer comes from one, to the address that it gives.
        if flow.protocol == protocol::UDP && DHCP.contains(&ports) {
            (guest, peer) = ([0; 2], [0; 2]);
        }
        Key { guest, peer, ports: u32::from(ports.0) << 16 | u32::from(ports.1), protocol: flow.protocol }
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
        let ends = self.seed.hash(key.guest[0] ^ key.peer[0].rotate_left(32), key.guest[1]);
        let rest = u64::from(key.ports) << 8 | u64::from(key.protocol);
        let hash = self.seed.hash(ends ^ key.peer[1], rest);
        &mut self.buckets[hash as usize % BUCKETS]
    }

    fn find(&mut self, key: &Key, now_s: u32) -> Option<&mut Entry> {
        let ports = key.ports;
        let found = |entry: &&mut Entry| entry.key.ports == ports && entry.key == *key;
        self.bucket(key).iter_mut().filter(found).find(|entry| entry.is_live(now_s))
    }

    /// Whether the flow goes on.
    pub(super) fn has(&mut self, key: &Key, now_s: u32) -> bool {
        self.find(key, now_s).is_some()
    }

    /// Whether the flow goes on; if so, a packet of the flow has gone in that direction.
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
