//! Ethernet frames that cases send, and what cases read in those that come.

use alloc::vec;
use alloc::vec::Vec;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes in front of a TCP packet's payload over IPv4.
pub const TCP4_HEADERS: usize = ETHERNET + 20 + 20;
/// Bytes in front of a TCP packet's payload over IPv6.
pub const TCP6_HEADERS: usize = ETHERNET + 40 + 20;
/// Bytes in front of a UDP packet's payload over IPv4.
pub const UDP4_HEADERS: usize = ETHERNET + 20 + 8;
/// Bytes in front of a UDP packet's payload over IPv6.
pub const UDP6_HEADERS: usize = ETHERNET + 40 + 8;

/// The type of frames that no protocol has: for local experiments (IEEE 802).
const EXPERIMENTAL: u16 = 0x88b5;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// From 192.0.2.1 to 192.0.2.2, which are addresses for examples.
const ADDRESSES_4: [u8; 8] = [192, 0, 2, 1, 192, 0, 2, 2];

/// The bytes of a payload, which differ from seed to seed and from place to place.
pub fn payload(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(5) ^ (at >> 8) as u8 ^ seed).collect()
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame
}

/// A frame of `len` bytes, its header included, of a type that nobody looks into.
pub fn plain(to: Mac, from: Mac, len: usize, seed: u8) -> Vec<u8> {
    let mut frame = ethernet(to, from, EXPERIMENTAL);
    frame.extend(payload(len.saturating_sub(ETHERNET), seed));
    frame.truncate(len);
    frame
}

/// Which transport over which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// IPv6, not IPv4.
    pub v6: bool,
    /// TCP, not UDP.
    pub tcp: bool,
}

impl Kind {
    /// Bytes in front of the payload.
    pub const fn headers(self) -> usize {
        match (self.v6, self.tcp) {
            (false, false) => UDP4_HEADERS,
            (false, true) => TCP4_HEADERS,
            (true, false) => UDP6_HEADERS,
            (true, true) => TCP6_HEADERS,
        }
    }

    const fn transport(self) -> usize {
        ETHERNET + if self.v6 { 40 } else { 20 }
    }

    const fn checksum(self) -> usize {
        self.transport() + if self.tcp { 16 } else { 6 }
    }

    const fn number(self) -> u8 {
        if self.tcp { TCP } else { UDP }
    }
}

/// A frame with `len` bytes of payload, the transport checksum complete or, if `blank`, the pseudo header's alone.
pub fn transport(kind: Kind, to: Mac, from: Mac, len: usize, seed: u8, blank: bool) -> Vec<u8> {
    transport_of(1, kind, to, from, len, seed, blank)
}

/// The same of flow `flow`: the last byte of the source address.
pub fn transport_of(flow: u8, kind: Kind, to: Mac, from: Mac, len: usize, seed: u8, blank: bool) -> Vec<u8> {
    let segment = kind.headers() - kind.transport() + len;
    let mut frame = ethernet(to, from, if kind.v6 { IPV6 } else { IPV4 });
    if kind.v6 {
        frame.extend_from_slice(&[0x60, 0, 0, 0]);
        frame.extend_from_slice(&(segment as u16).to_be_bytes());
        frame.extend_from_slice(&[kind.number(), 64]);
        for end in [flow, 2] {
            // 2001:db8::1 and ::2 are addresses for examples.
            frame.extend_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, end]);
        }
    } else {
        let at = frame.len();
        frame.extend_from_slice(&[0x45, 0]);
        frame.extend_from_slice(&((20 + segment) as u16).to_be_bytes());
        frame.extend_from_slice(&[0, seed, 0x40, 0, 64, kind.number(), 0, 0]);
        let [a, b, c, _, to @ ..] = ADDRESSES_4;
        frame.extend_from_slice(&[a, b, c, flow]);
        frame.extend_from_slice(&to);
        let sum = !fold(sum(&frame[at..]));
        frame[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
    }
    frame.extend_from_slice(&[0x90, 0x01, 0x90, 0x02]); // ports
    if kind.tcp {
        frame.extend_from_slice(&[0, 0, 1, 0, 0, 0, 2, 0, 0x50, 0x10, 0x20, 0, 0, 0, 0, 0]);
    } else {
        frame.extend_from_slice(&(segment as u16).to_be_bytes());
        frame.extend_from_slice(&[0, 0]);
    }
    frame.extend(payload(len, seed));
    let value = if blank { fold(pseudo(kind, &frame)) } else { complete(kind, &frame) };
    frame[kind.checksum()..kind.checksum() + 2].copy_from_slice(&value.to_be_bytes());
    frame
}

/// A packet over IPv4 as the first part of a larger one.
pub fn first_fragment(mut frame: Vec<u8>) -> Vec<u8> {
    frame[ETHERNET + 6] = 0x20;
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let sum = !fold(sum(&frame[ETHERNET..ETHERNET + 20]));
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// What the hash of a packet made by [`transport_of`] is over: the addresses, and the ports if they count.
pub fn hashed(kind: Kind, frame: &[u8], ports: bool) -> &[u8] {
    let (begin, addresses) = if kind.v6 { (ETHERNET + 8, 32) } else { (ETHERNET + 12, 8) };
    &frame[begin..begin + addresses + if ports { 4 } else { 0 }]
}

/// The sum of 16-bit words in network order.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

fn pseudo(kind: Kind, frame: &[u8]) -> u32 {
    let at = kind.transport();
    let addresses = if kind.v6 { &frame[at - 32..at] } else { &frame[at - 8..at] };
    sum(addresses) + u32::from(kind.number()) + (frame.len() - at) as u32
}

/// The whole checksum, as the field is to hold it; what the field holds does not matter.
fn complete(kind: Kind, frame: &[u8]) -> u16 {
    let mut segment = frame[kind.transport()..].to_vec();
    let field = kind.checksum() - kind.transport();
    segment[field..field + 2].fill(0);
    let value = !fold(pseudo(kind, frame) + u32::from(fold(sum(&segment))));
    if value == 0 && !kind.tcp { 0xffff } else { value }
}

/// What a frame's checksum field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The complete checksum.
    Complete,
    /// The pseudo header's sum.
    Blank,
    /// Neither.
    Wrong,
}

/// Looks at the checksum of a frame made by [`transport`].
pub fn field(kind: Kind, frame: &[u8]) -> Field {
    let Some(&[high, low]) = frame.get(kind.checksum()..kind.checksum() + 2).and_then(|f| f.first_chunk())
    else {
        return Field::Wrong;
    };
    match u16::from_be_bytes([high, low]) {
        value if value == complete(kind, frame) => Field::Complete,
        value if value == fold(pseudo(kind, frame)) => Field::Blank,
        _ => Field::Wrong,
    }
}

/// The frame with its checksum field zero, to compare frames of which one was completed on its way.
pub fn without_checksum(kind: Kind, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame.len() >= kind.checksum() + 2 {
        frame[kind.checksum()..kind.checksum() + 2].fill(0);
    }
    frame
}

/// A frame with its header alone, and `extra` zeros.
pub fn header_and(to: Mac, from: Mac, extra: usize) -> Vec<u8> {
    let mut frame = ethernet(to, from, EXPERIMENTAL);
    frame.extend(vec![0; extra]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_told_apart() {
        for kind in [(false, false), (false, true), (true, false), (true, true)] {
            let kind = Kind { v6: kind.0, tcp: kind.1 };
            for len in [0, 1, 2, 99] {
                let blank = transport(kind, [2; 6], [6; 6], len, 3, true);
                let whole = transport(kind, [2; 6], [6; 6], len, 3, false);
                assert_eq!((field(kind, &blank), field(kind, &whole)), (Field::Blank, Field::Complete));
                assert_eq!(without_checksum(kind, &blank), without_checksum(kind, &whole));
                assert_eq!(whole.len(), kind.headers() + len);
                // The rule of the protocol: with its checksum, everything sums up to all ones.
                let at = kind.transport();
                assert_eq!(fold(pseudo(kind, &whole) + sum(&whole[at..])), 0xffff);
            }
            assert_eq!(field(kind, &[0; 20]), Field::Wrong);
        }
    }
}
