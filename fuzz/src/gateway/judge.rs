//! What may leave the gateway, read with smoltcp: a receiver reads packets in the same way.

use std::net::Ipv4Addr;

use dom0::net::MacAddr;
use dom0::net::headers::protocol;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv6Packet, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket, UdpPacket,
};

use super::frames::End;

/// What a receiver reads from an IPv4 packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) protocol: u8,
    pub(super) source: End,
    pub(super) destination: End,
    pub(super) ttl: u8,
    pub(super) total_len: u16,
    /// The packet is an ICMP error.
    pub(super) is_error: bool,
    /// All checksums are right.
    pub(super) is_right: bool,
    /// The header's checksum is.
    pub(super) is_header_right: bool,
}

impl Seen {
    /// `None`: the frame has no IPv4 packet, or not a whole one.
    pub(super) fn of(frame: &[u8]) -> Option<Seen> {
        let outer = EthernetFrame::new_checked(frame).ok()?;
        if outer.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let packet = Ipv4Packet::new_checked(outer.payload()).ok()?;
        let (source, destination) = (packet.src_addr(), packet.dst_addr());
        let bytes = packet.payload();
        let number = u8::from(packet.next_header());
        let (mut ports, mut is_error, mut is_right) = ((0, 0), false, true);
        match packet.next_header() {
            _ if packet.more_frags() || packet.frag_offset() != 0 => is_right = false,
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(bytes).ok()?;
                ports = (tcp.src_port(), tcp.dst_port());
                is_right = tcp.verify_checksum(&source.into(), &destination.into());
            }
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(bytes).ok()?;
                ports = (udp.src_port(), udp.dst_port());
                is_right = udp.verify_checksum(&source.into(), &destination.into());
            }
            IpProtocol::Icmp => {
                let icmp = Icmpv4Packet::new_checked(bytes).ok()?;
                is_right = icmp.verify_checksum();
                // RFC 792: echo, timestamp, information; and RFC 950.
                is_error = matches!(bytes[0], 3 | 4 | 5 | 11 | 12);
                if matches!(bytes[0], 0 | 8 | 13..=18) {
                    let ident = u16::from_be_bytes([bytes[4], bytes[5]]);
                    ports = (ident, ident);
                }
            }
            _ => {}
        }
        Some(Seen {
            protocol: number,
            source: (source, ports.0),
            destination: (destination, ports.1),
            ttl: packet.hop_limit(),
            total_len: packet.total_len(),
            is_error,
            is_right: is_right && packet.verify_checksum(),
            is_header_right: packet.verify_checksum(),
        })
    }

    /// What finds the connection of a packet on its way to the uplink: protocol, port of the uplink, the other end.
    pub(super) fn key_from(&self, is_outgoing: bool) -> Key {
        let (near, far) =
            if is_outgoing { (self.source, self.destination) } else { (self.destination, self.source) };
        let far = if self.protocol == protocol::ICMP { (far.0, 0) } else { far };
        (self.protocol, near.1, far)
    }
}

/// Protocol, port of the uplink's, the other end.
pub(super) type Key = (u8, u16, End);

/// Whom a frame of the gateway's own is for: the station, and if the frame is a UDP datagram its ends and the payload.
pub(super) type Own<'a> = (MacAddr, Option<(End, End, &'a [u8])>);

/// A frame that the gateway itself made is right in all its layers, and fits the network.
pub(super) fn check_own(frame: &[u8], own: MacAddr, mtu: u16) -> Own<'_> {
    assert!(frame.len() <= usize::from(mtu) + 14, "{} bytes for an MTU of {mtu}", frame.len());
    let outer = EthernetFrame::new_checked(frame).expect("a whole frame");
    assert_eq!(outer.src_addr().0, own.0, "from a station that is not dom0's");
    let to = MacAddr(outer.dst_addr().0);
    match outer.ethertype() {
        EthernetProtocol::Ipv4 => {
            let seen = Seen::of(frame).expect("a whole packet");
            assert!(seen.is_right, "a wrong checksum: {seen:?}");
            let payload = (seen.protocol == protocol::UDP).then(|| {
                (seen.source, seen.destination, &frame[14 + 20 + 8..14 + usize::from(seen.total_len)])
            });
            (to, payload)
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(outer.payload()).expect("a whole packet");
            if packet.next_header() == IpProtocol::Icmpv6 {
                let icmp = Icmpv6Packet::new_checked(packet.payload()).expect("a whole message");
                assert!(icmp.verify_checksum(&packet.src_addr(), &packet.dst_addr()), "a wrong checksum");
            }
            (to, None)
        }
        EthernetProtocol::Arp => (to, None),
        other => panic!("a frame of protocol {other}"),
    }
}

/// Whether `address` is one of the network 10.`second`.0.0/24 or the like.
pub(super) fn is_in(address: Ipv4Addr, network: [u8; 3]) -> bool {
    address.octets()[..3] == network
}
