//! What the tests of every card's driver need.

use alloc::vec::Vec;

use backends::net::{Checksum, Offload};
use ring_abi::types::Maddr;

use super::{Outgoing, Received, Span, Wire};
use crate::hw::fake::Arena;

pub(crate) const PLAIN: Offload = Offload { checksum: Checksum::Complete, gso: None, hash: None };
pub(crate) const PARTIAL: Offload = Offload { checksum: Checksum::Partial, gso: None, hash: None };

/// A span with known bytes: `len` of them from `offset` on.
pub(crate) fn span(arena: &Arena, offset: usize, len: usize, seed: u8) -> Span {
    let maddr = arena.row(1) + offset as u64;
    arena.write(maddr, &(0..len).map(|at| seed.wrapping_add(at as u8)).collect::<Vec<u8>>());
    Span { maddr: Maddr::new(maddr), len: len as u32 }
}

/// A packet with nothing left to the card.
pub(crate) fn plain(spans: &[Span]) -> Outgoing<'_> {
    Outgoing { offload: &PLAIN, checksum_at: None, header_len: 0, spans, flow: 0 }
}

/// The packets that the card has done with, and whether each was sent.
pub(crate) fn transmitted(net: &impl Wire) -> Vec<(u32, bool)> {
    let mut out = Vec::new();
    net.transmitted(&mut out);
    out.iter().map(|sent| (sent.token, sent.sent)).collect()
}

/// All bytes of a packet. The packet has as many as it says.
pub(crate) fn whole(packet: &Received) -> Vec<u8> {
    let mut bytes = alloc::vec![0; packet.len as usize + 1];
    let there = packet.read(0, &mut bytes);
    assert_eq!(there, packet.len as usize);
    bytes.truncate(there);
    bytes
}
