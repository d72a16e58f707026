//! Frames for tests, with right lengths and checksums.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{MacAddr, checksum, ethertype, protocol};

/// A station's address for tests.
pub(crate) const fn station(n: u8) -> MacAddr {
    MacAddr([0x00, 0x16, 0x3e, 0, 0, n])
}

/// 10.0.0.n.
pub(crate) const fn v4(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, n))
}

/// 2001:db8::n.
pub(crate) const fn v6(n: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n))
}

/// An Ethernet frame.
pub(crate) fn ethernet(from: MacAddr, to: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), payload].concat()
}

/// An Ethernet frame of an IP packet.
pub(crate) fn frame(from: MacAddr, to: MacAddr, packet: &[u8]) -> Vec<u8> {
    let is_v4 = packet[0] >> 4 == 4;
    ethernet(from, to, if is_v4 { ethertype::IPV4 } else { ethertype::IPV6 }, packet)
}

/// An IP packet.
pub(crate) fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = (20 + payload.len() as u16).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            fix_ipv4(&mut header);
            [&header[..], payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = (payload.len() as u16).to_be_bytes();
            let header = [0x60, 0, 0, 0, high, low, protocol, 64];
            [&header[..], &source.octets(), &destination.octets(), payload].concat()
        }
        _ => panic!("two kinds of IP"),
    }
}

/// Puts the right checksum into the IPv4 header at the front.
pub(crate) fn fix_ipv4(packet: &mut [u8]) {
    let len = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum = checksum::of(&packet[..len]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Puts the right checksum at `at` into `bytes`, with the pseudo header's sum.
fn fix(bytes: &mut [u8], at: usize, pseudo: u32) {
    let sum = !checksum::fold(checksum::sum(bytes) + pseudo);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, bytes: &[u8]) -> u32 {
    checksum::pseudo(source, destination, protocol, bytes.len() as u32)
}

/// One end: address and port.
pub(crate) type End = (IpAddr, u16);

/// An IP packet of TCP.
pub(crate) fn tcp(source: End, destination: End, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = [&source.1.to_be_bytes()[..], &destination.1.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(data);
    let sum = pseudo(source.0, destination.0, protocol::TCP, &bytes);
    fix(&mut bytes, 16, sum);
    ip(source.0, destination.0, protocol::TCP, &bytes)
}

/// An IP packet of UDP.
pub(crate) fn udp(source: End, destination: End, data: &[u8]) -> Vec<u8> {
    let len = (8 + data.len() as u16).to_be_bytes();
    let mut bytes = [source.1.to_be_bytes(), destination.1.to_be_bytes(), len, [0; 2]].concat();
    bytes.extend(data);
    let sum = pseudo(source.0, destination.0, protocol::UDP, &bytes);
    fix(&mut bytes, 6, sum);
    ip(source.0, destination.0, protocol::UDP, &bytes)
}

/// An IP packet of ICMP: kind, code, the word behind the checksum, and the rest.
pub(crate) fn icmp(source: IpAddr, destination: IpAddr, kind: [u8; 2], word: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = [&kind[..], &[0; 2], &word.to_be_bytes(), data].concat();
    if source.is_ipv4() {
        fix(&mut bytes, 2, 0);
        return ip(source, destination, protocol::ICMP, &bytes);
    }
    let sum = pseudo(source, destination, protocol::ICMPV6, &bytes);
    fix(&mut bytes, 2, sum);
    ip(source, destination, protocol::ICMPV6, &bytes)
}

/// A message of neighbour discovery, straight from a neighbour.
pub(crate) fn neighbour(source: IpAddr, destination: IpAddr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = icmp(source, destination, [kind, 0], 0, body);
    packet[7] = 255;
    packet
}

/// An ARP packet: 1 a request, 2 a reply.
pub(crate) fn arp(operation: u16, sender: (MacAddr, IpAddr), target: (MacAddr, IpAddr)) -> Vec<u8> {
    let of = |ip| match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => panic!("ARP is IPv4's"),
    };
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend([&sender.0.0[..], &of(sender.1), &target.0.0, &of(target.1)].concat());
    packet
}
