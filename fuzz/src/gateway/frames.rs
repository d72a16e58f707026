//! Frames of guests and of the world, with right lengths and checksums.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dom0::net::MacAddr;
use dom0::net::headers::{checksum, ethertype, protocol};

/// One end: address and port.
pub(super) type End = (Ipv4Addr, u16);

pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;

/// An Ethernet frame. `macs`: from, to.
pub(super) fn ethernet(macs: (MacAddr, MacAddr), ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&macs.1.0[..], &macs.0.0, &ethertype.to_be_bytes(), payload].concat()
}

/// A frame with an IPv4 packet. `ends`: source, destination.
pub(super) fn ipv4(
    macs: (MacAddr, MacAddr),
    ends: (Ipv4Addr, Ipv4Addr),
    ttl: u8,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let [high, low] = (20 + payload.len() as u16).to_be_bytes();
    let mut header = vec![0x45, 0, high, low, 0, 1, 0x40, 0, ttl, protocol, 0, 0];
    header.extend(ends.0.octets());
    header.extend(ends.1.octets());
    let sum = checksum::of(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    ethernet(macs, ethertype::IPV4, &[header, payload.to_vec()].concat())
}

/// Puts the checksum at `at`, or the sum of the pseudo header alone if `is_partial`.
fn fix(bytes: &mut [u8], at: usize, pseudo: u32, is_partial: bool) {
    let sum =
        if is_partial { checksum::fold(pseudo) } else { !checksum::fold(checksum::sum(bytes) + pseudo) };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn pseudo(ends: (End, End), protocol: u8, bytes: &[u8]) -> u32 {
    checksum::pseudo(ends.0.0.into(), ends.1.0.into(), protocol, bytes.len() as u32)
}

/// The bytes of a TCP packet.
pub(super) fn tcp(ends: (End, End), flags: u8, data: &[u8], is_partial: bool) -> Vec<u8> {
    let mut bytes = [ends.0.1.to_be_bytes(), ends.1.1.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(data);
    let sum = pseudo(ends, protocol::TCP, &bytes);
    fix(&mut bytes, 16, sum, is_partial);
    bytes
}

/// The bytes of a UDP datagram.
pub(super) fn udp(ends: (End, End), data: &[u8], is_partial: bool) -> Vec<u8> {
    let len = (8 + data.len() as u16).to_be_bytes();
    let mut bytes = [ends.0.1.to_be_bytes(), ends.1.1.to_be_bytes(), len, [0; 2]].concat();
    bytes.extend(data);
    let sum = pseudo(ends, protocol::UDP, &bytes);
    fix(&mut bytes, 6, sum, is_partial);
    bytes
}

/// The bytes of an ICMP message: kind and code, the identifier and the next half, and the rest.
pub(super) fn icmp(kind: [u8; 2], ident: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = [&kind[..], &[0; 2], &ident.to_be_bytes(), &[0, 1], data].concat();
    fix(&mut bytes, 2, 0, false);
    bytes
}

/// A frame with a UDP datagram.
pub(super) fn datagram(macs: (MacAddr, MacAddr), ends: (End, End), data: &[u8]) -> Vec<u8> {
    ipv4(macs, (ends.0.0, ends.1.0), 64, protocol::UDP, &udp(ends, data, false))
}

/// An ARP packet in its frame: 1 a request, 2 a reply.
pub(super) fn arp(
    macs: (MacAddr, MacAddr),
    operation: u8,
    sender: (MacAddr, Ipv4Addr),
    target: Ipv4Addr,
) -> Vec<u8> {
    let packet =
        [&[0, 1, 8, 0, 6, 4, 0, operation][..], &sender.0.0, &sender.1.octets(), &macs.1.0, &target.octets()]
            .concat();
    ethernet(macs, ethertype::ARP, &packet)
}

/// An ICMPv6 message in its frame: kind, and what follows the checksum.
pub(super) fn icmpv6(macs: (MacAddr, MacAddr), ends: (Ipv6Addr, Ipv6Addr), kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = [&[kind, 0, 0, 0][..], body].concat();
    let pseudo =
        checksum::pseudo(IpAddr::V6(ends.0), IpAddr::V6(ends.1), protocol::ICMPV6, bytes.len() as u32);
    fix(&mut bytes, 2, pseudo, false);
    let [high, low] = (bytes.len() as u16).to_be_bytes();
    let header = [0x60, 0, 0, 0, high, low, protocol::ICMPV6, 255];
    let packet = [&header[..], &ends.0.octets(), &ends.1.octets(), &bytes].concat();
    ethernet(macs, ethertype::IPV6, &packet)
}

/// A DHCP message of a client. `asks`: the address that the client has, the one that it asks for, the server that it
/// means.
pub(super) fn dhcp(
    mac: MacAddr,
    kind: u8,
    asks: (Ipv4Addr, Option<Ipv4Addr>, Option<Ipv4Addr>),
    name: &[u8],
) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[4..8].copy_from_slice(&[1, 2, 3, 4]);
    message[12..16].copy_from_slice(&asks.0.octets());
    message[28..34].copy_from_slice(&mac.0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
    for (option, address) in [(50, asks.1), (54, asks.2)] {
        if let Some(address) = address {
            message.extend([option, 4]);
            message.extend(address.octets());
        }
    }
    if !name.is_empty() {
        message.extend([12, name.len() as u8]);
        message.extend(name);
    }
    message.push(255);
    message
}

/// A question for a name.
pub(super) fn question(id: u16, name: &str, kind: u8) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, kind, 0, 1]);
    message
}
