use core::net::IpAddr;

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Ipv4Packet,
    Ipv6Packet, TcpPacket, UdpPacket,
};

use super::testing::{arp, ethernet, fix_ipv4, frame, icmp, ip, neighbour, station, tcp, udp, v4, v6};
use super::*;

/// Whether smoltcp finds every checksum of an Ethernet frame of IP right.
fn is_right(frame: &[u8]) -> bool {
    let frame = EthernetFrame::new_checked(frame).unwrap();
    let (source, destination, protocol, payload): (
        smoltcp::wire::IpAddress,
        smoltcp::wire::IpAddress,
        u8,
        _,
    );
    match frame.ethertype() {
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
            if !packet.verify_checksum() {
                return false;
            }
            (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
            (protocol, payload) = (packet.next_header().into(), packet.payload());
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
            (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
            (protocol, payload) = (packet.next_header().into(), packet.payload());
        }
        other => panic!("{other}"),
    }
    match (protocol, source, destination) {
        (protocol::TCP, ..) => {
            TcpPacket::new_checked(payload).unwrap().verify_checksum(&source, &destination)
        }
        (protocol::UDP, ..) => {
            UdpPacket::new_checked(payload).unwrap().verify_checksum(&source, &destination)
        }
        (protocol::ICMP, ..) => Icmpv4Packet::new_checked(payload).unwrap().verify_checksum(),
        (
            protocol::ICMPV6,
            smoltcp::wire::IpAddress::Ipv6(source),
            smoltcp::wire::IpAddress::Ipv6(destination),
        ) => Icmpv6Packet::new_checked(payload).unwrap().verify_checksum(&source, &destination),
        _ => true,
    }
}

fn of_stations(packet: &[u8]) -> Vec<u8> {
    frame(station(1), station(2), packet)
}

/// Parses a frame of which no more than `HEAD` bytes are seen.
fn parse(frame: &mut [u8]) -> Head<'_> {
    const HEAD: usize = 256;
    let len = frame.len();
    Head::parse(&mut frame[..len.min(HEAD)], len as u32).unwrap()
}

#[test]
fn layers_are_found() {
    let mut bytes = of_stations(&tcp((v4(1), 1000), (v4(2), 80), 0x12, &[7; 1000]));
    let head = parse(&mut bytes);
    assert_eq!((head.from(), head.to(), head.tag()), (station(1), station(2), None));
    assert_eq!((head.network(), head.transport()), (Network::Ipv4, Transport::Tcp));
    assert_eq!((head.ports(), head.transport_at()), (Some((1000, 80)), Some(34)));
    assert_eq!((head.transport_len(), head.fragment()), (1020, Fragment::Whole));
    let flags = head.tcp_flags().unwrap();
    assert!(flags.syn() && flags.ack() && !flags.fin() && !flags.rst());
    assert!(head.is_ipv4_sum_right() && !head.is_changed());
    assert_eq!(head.ipv4().unwrap().ttl, 64);
    assert!(head.ipv4().unwrap().dont_fragment);

    let mut bytes = of_stations(&udp((v6(1), 546), (v6(2), 547), b"abc"));
    let head = parse(&mut bytes);
    assert_eq!((head.network(), head.transport()), (Network::Ipv6, Transport::Udp));
    assert_eq!((head.ports(), head.transport_at()), (Some((546, 547)), Some(54)));
    assert_eq!((head.ipv6().unwrap().hop_limit, head.ipv6().unwrap().payload_len), (64, 11));
    assert_eq!((head.ipv4(), head.arp()), (None, None));

    let mut bytes = of_stations(&icmp(v4(1), v4(2), [8, 0], 0x1234_0001, b"ping"));
    let head = parse(&mut bytes);
    let flow = head.flow().unwrap();
    assert_eq!((flow.source_port, flow.destination_port, flow.protocol), (0x1234, 0x1234, 1));
    assert_eq!(flow.reversed().reversed(), flow);
    assert!(head.icmp().unwrap().is_query && head.quoted_flow().is_none());
}

#[test]
fn arp_is_as_smoltcp_sees() {
    let packet = arp(1, (station(1), v4(1)), (MacAddr([0; 6]), v4(2)));
    let mut bytes = ethernet(station(1), MacAddr::BROADCAST, ethertype::ARP, &packet);
    let repr = ArpRepr::parse(&ArpPacket::new_checked(&packet[..]).unwrap()).unwrap();
    let head = parse(&mut bytes);
    let ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } = repr
    else {
        panic!("{repr}")
    };
    let arp = head.arp().unwrap();
    assert_eq!((arp.operation, arp.sender_mac.0), (1, source_hardware_addr.0));
    assert_eq!((arp.sender, arp.target), (source_protocol_addr, target_protocol_addr));
    assert!(head.flow().is_none() && head.addresses().is_none());
    for (at, what) in [(15, "hardware"), (17, "protocol"), (18, "length"), (19, "length")] {
        let mut wrong = bytes.clone();
        wrong[at] ^= 3;
        assert_eq!(parse(&mut wrong).network(), Network::Malformed, "{what} at {at}");
    }
    bytes.truncate(41);
    assert_eq!(parse(&mut bytes).network(), Network::Malformed);
}

#[test]
fn tags_go_in_and_out() {
    let plain = of_stations(&udp((v4(1), 1), (v4(2), 2), b"x"));
    let mut buffer = plain.clone();
    buffer.resize(plain.len() + 4, 0);
    let len = tag::push(&mut buffer, plain.len(), 0x6005).unwrap();
    assert_eq!(len, buffer.len());
    let head = parse(&mut buffer);
    assert_eq!((head.tag(), head.ports()), (Some(0x6005), Some((1, 2))));
    assert_eq!((tag::vlan(0x6005), head.network_at()), (5, 18));
    assert_eq!(tag::push(&mut buffer, len, 1), None, "no room");
    assert_eq!(tag::pop(&mut buffer, len), Some(plain.len()));
    assert_eq!(buffer[..plain.len()], plain);
    assert_eq!(tag::pop(&mut buffer, plain.len()), None, "no tag");
    assert_eq!(tag::push(&mut buffer, 13, 1), None, "no header");
    // A second tag hides what follows, and so does one that is cut off.
    let mut twice = [&plain[..12], &[0x81, 0, 0, 1, 0x81, 0, 0, 2], &plain[12..]].concat();
    assert_eq!((parse(&mut twice).network(), parse(&mut twice).ethertype()), (Network::Other, 0x8100));
    let mut cut = [&plain[..12], &[0x81, 0, 0]].concat();
    assert_eq!((parse(&mut cut).tag(), parse(&mut cut).ethertype()), (None, 0x8100));
}

#[test]
fn lengths_that_lie_are_seen() {
    let good = of_stations(&tcp((v4(1), 1000), (v4(2), 80), 2, b"data"));
    let after = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        let head = parse(&mut bytes);
        (head.network(), head.transport())
    };
    let (bad_ip, bad_tcp) = ((Network::Malformed, Transport::None), (Network::Ipv4, Transport::Malformed));
    assert_eq!(after(14, 0x55), bad_ip, "version");
    assert_eq!(after(14, 0x44), bad_ip, "header length below 20");
    assert_eq!(after(14, 0x4f), bad_ip, "header longer than the packet");
    assert_eq!(after(17, 45), bad_ip, "longer than the frame");
    assert_eq!(after(17, 19), bad_ip, "shorter than its header");
    assert_eq!(after(17, 39), bad_tcp, "TCP cut off");
    assert_eq!(after(46, 0x40), bad_tcp, "TCP header length below 20");
    assert_eq!(after(46, 0x70), bad_tcp, "TCP header longer than the packet");
    assert_eq!(after(17, 44), (Network::Ipv4, Transport::Tcp));

    let good = of_stations(&udp((v6(1), 1), (v6(2), 2), b"data"));
    for (at, byte, want) in
        [(14, 0x40, Network::Malformed), (19, 13, Network::Malformed), (19, 12, Network::Ipv6)]
    {
        let mut bytes = good.clone();
        bytes[at] = byte;
        assert_eq!(parse(&mut bytes).network(), want, "{at} {byte}");
    }
    for (len, want) in [(7, Transport::Malformed), (8, Transport::Udp), (13, Transport::Malformed)] {
        let mut bytes = good.clone();
        bytes[14 + 40 + 5] = len;
        assert_eq!(parse(&mut bytes).transport(), want, "{len}");
    }
    assert!(Head::parse(&mut [0; 13], 13).is_none(), "no Ethernet header");
    assert!(Head::parse(&mut [0; 15], 14).is_none(), "a head longer than its frame");
}

#[test]
fn fragments_are_told_apart() {
    let mut bytes = of_stations(&udp((v4(1), 1), (v4(2), 2), &[0; 64]));
    for (flags, want, ports) in [
        ([0x20, 0], Fragment::First(0x1234), Some((1, 2))),
        ([0x20, 1], Fragment::Later(0x1234, 8), None),
        ([0x00, 9], Fragment::Later(0x1234, 72), None),
        ([0x40, 0], Fragment::Whole, Some((1, 2))),
    ] {
        bytes[20..22].copy_from_slice(&flags);
        let head = parse(&mut bytes);
        assert_eq!((head.fragment(), head.ports()), (want, ports), "{flags:?}");
        assert_eq!(head.flow().is_some(), ports.is_some());
    }
    bytes[20..22].copy_from_slice(&[0x1f, 0xff]);
    assert_eq!(parse(&mut bytes).network(), Network::Malformed, "ends behind 65,535");

    let inner = udp((v6(1), 1), (v6(2), 2), &[0; 64])[40..].to_vec();
    let options = [&[44, 0, 1, 4, 0, 0, 0, 0][..], &[17, 0, 0, 1, 0, 0, 0, 9], &inner].concat();
    let mut bytes = of_stations(&ip(v6(1), v6(2), 60, &options));
    let head = parse(&mut bytes);
    assert_eq!((head.fragment(), head.transport()), (Fragment::First(9), Transport::Udp));
    assert_eq!((head.transport_at(), head.ports()), (Some(14 + 56), Some((1, 2))));
    bytes[14 + 48 + 3] = 8;
    let head = parse(&mut bytes);
    assert_eq!((head.fragment(), head.protocol()), (Fragment::Later(9, 8), 17));
    assert_eq!((head.transport(), head.transport_at()), (Transport::Later, None));
    bytes[14 + 48 + 3] = 0;
    assert_eq!(parse(&mut bytes).fragment(), Fragment::Whole, "RFC 6946");
}

#[test]
fn chains_of_headers_end() {
    let chain =
        |n: usize| [vec![[60, 0, 1, 4, 0, 0, 0, 0]; n].concat(), vec![59, 0, 1, 4, 0, 0, 0, 0]].concat();
    let parsed = |payload: &[u8]| {
        let mut bytes = of_stations(&ip(v6(1), v6(2), 60, payload));
        let head = parse(&mut bytes);
        (head.network(), head.transport(), head.protocol())
    };
    assert_eq!(parsed(&chain(7)), (Network::Ipv6, Transport::Other, 59));
    assert_eq!(parsed(&chain(8)).0, Network::Malformed, "too many");
    assert_eq!(parsed(&[17, 2, 0, 0, 0, 0, 0, 0]).0, Network::Malformed, "behind the packet's end");
    assert_eq!(parsed(&[17, 0, 0]).0, Network::Malformed, "cut off");
    let mut beyond = [17, 30, 0, 0, 0, 0, 0, 0].to_vec();
    beyond.resize(300, 0);
    assert_eq!(parsed(&beyond).0, Network::Malformed, "behind the head's end");
    // ICMP of the other version is not ICMP.
    assert_eq!(parsed(&[1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]).1, Transport::Other);
}

#[test]
fn neighbours_are_read_whole_or_not() {
    let target = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    let body = [&target[..], &[1, 1], &station(1).0].concat();
    let mut bytes = of_stations(&neighbour(v6(1), v6(2), 135, &body));
    let head = parse(&mut bytes);
    let seen = head.neighbour().unwrap();
    assert_eq!((seen.kind, seen.source_link), (NeighbourKind::Solicitation, Some(station(1))));
    assert_eq!((IpAddr::V6(seen.target), seen.target_link), (v6(7), None));
    let read = |kind: u8, body: &[u8]| {
        let mut bytes = of_stations(&neighbour(v6(1), v6(2), kind, body));
        let head = parse(&mut bytes);
        assert!(head.neighbour_kind().is_some());
        head.neighbour()
    };
    let twice = [&body[..], &[1, 1], &station(2).0].concat();
    assert_eq!(read(135, &twice), None, "an option twice");
    let empty = [&target[..], &[3, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(read(135, &empty), None, "an option without length");
    let long = [&target[..], &[3, 2, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(read(135, &long), None, "an option behind the end");
    assert_eq!(read(136, &target[..8]), None, "no target");
    assert_eq!(read(135, &[&body[..], &[0; 4]].concat()), None, "half an option");
    let beyond = [&body[..], &[14, 31], &[0; 246]].concat();
    assert_eq!(read(135, &beyond), None, "behind the head's end");
    assert_eq!(read(137, &[0; 32]).unwrap().kind, NeighbourKind::Redirect);
    assert_eq!(read(134, &[0; 8]).unwrap().kind, NeighbourKind::RouterAdvertisement);
    bytes[14 + 7] = 64;
    assert_eq!(parse(&mut bytes).neighbour(), None, "from beyond a router");
}

#[test]
fn hops_are_counted_down() {
    for packet in [tcp((v4(1), 1), (v4(2), 2), 2, b""), tcp((v6(1), 1), (v6(2), 2), 2, b"")] {
        let mut bytes = of_stations(&packet);
        for left in (0..63).rev() {
            let mut head = parse(&mut bytes);
            assert!(head.pass_hop() && head.is_changed());
            assert_eq!(head.ipv4().map(|ip| ip.ttl).or(head.ipv6().map(|ip| ip.hop_limit)), Some(left + 1));
            assert!(is_right(head.bytes()));
        }
        let before = bytes.clone();
        assert!(!parse(&mut bytes).pass_hop());
        assert_eq!(bytes, before);
    }
}

#[test]
fn what_cannot_be_rewritten_stays() {
    let to = |ip, port| Endpoint { ip, port };
    let mut cases = vec![
        (of_stations(&tcp((v4(1), 1), (v4(2), 2), 2, b"")), to(v6(1), None)),
        (of_stations(&tcp((v6(1), 1), (v6(2), 2), 2, b"")), to(v4(1), Some(1))),
        (of_stations(&ip(v4(1), v4(2), 47, b"gre")), to(v4(9), Some(1))),
        (of_stations(&icmp(v4(1), v4(2), [3, 1], 0, &[0; 28])), to(v4(9), Some(1))),
        (of_stations(&ip(v4(1), v4(2), 6, b"short")), to(v4(9), None)),
        (ethernet(station(1), station(2), ethertype::ARP, &[0; 28]), to(v4(9), None)),
    ];
    for (bytes, to) in &mut cases {
        let before = bytes.clone();
        let mut head = parse(bytes);
        for side in [Side::Source, Side::Destination] {
            assert!(!head.rewrite(side, *to, false) && !head.rewrite_quoted(side, *to, false));
        }
        assert!(!head.is_changed());
        assert_eq!(*bytes, before);
    }
}

#[test]
fn udp_without_checksum_stays_without() {
    let mut bytes = of_stations(&udp((v4(1), 1), (v4(2), 2), b"x"));
    bytes[40..42].fill(0);
    assert!(parse(&mut bytes).rewrite(Side::Source, Endpoint { ip: v4(9), port: Some(5) }, false));
    assert_eq!(bytes[40..42], [0, 0]);
    // And a checksum that becomes zero is sent as its other form.
    let mut zero = of_stations(&udp((v4(1), 1), (v4(2), 2), b"xy"));
    let now = u16::from_be_bytes([zero[40], zero[41]]);
    let port = checksum::fold(u32::from(now) + 1);
    assert!(parse(&mut zero).rewrite(Side::Source, Endpoint { ip: v4(1), port: Some(port) }, false));
    assert_eq!(zero[40..42], [0xff, 0xff]);
    assert!(is_right(&zero));
}

#[test]
fn partial_sums_stay_sums_of_the_pseudo_header() {
    for (packet, sum_at, source) in [
        (tcp((v4(1), 1), (v4(2), 2), 2, b"abc"), 36, v4(77)),
        (udp((v6(1), 1), (v6(2), 2), b"abc"), 46, v6(77)),
    ] {
        let mut bytes = of_stations(&packet);
        let sum_at = 14 + sum_at;
        let head = parse(&mut bytes);
        let ((from, to), protocol, len) = (head.addresses().unwrap(), head.protocol(), head.transport_len());
        let sum = checksum::fold(checksum::pseudo(from, to, protocol, len));
        bytes[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        assert!(parse(&mut bytes).rewrite(Side::Source, Endpoint { ip: source, port: Some(999) }, true));
        let sum = checksum::fold(checksum::pseudo(source, to, protocol, len));
        assert_eq!(bytes[sum_at..sum_at + 2], sum.to_be_bytes());
        assert_eq!(parse(&mut bytes).ports().unwrap().0, 999);
    }
}

fn any_end() -> impl Strategy<Value = (u8, u16)> {
    (any::<u8>(), any::<u16>())
}

proptest! {
    /// Rewritten, a packet's checksums are right; rewritten back, the packet is as it was.
    #[test]
    fn rewriting_keeps_checksums(
        is_v4: bool, kind in 0..4u8, from in any_end(), to in any_end(), new in any_end(), to_source: bool,
        data in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let at = |n: u8| if is_v4 { v4(n) } else { v6(n.into()) };
        let (source, destination) = ((at(from.0), from.1), (at(to.0), to.1));
        let packet = match kind {
            0 => tcp(source, destination, 0x18, &data),
            1 => udp(source, destination, &data),
            2 => icmp(source.0, destination.0, [if is_v4 { 8 } else { 128 }, 0], u32::from(from.1) << 16, &data),
            _ => ip(source.0, destination.0, 99, &data),
        };
        let mut bytes = of_stations(&packet);
        prop_assert!(is_right(&bytes));
        let before = bytes.clone();
        let len = bytes.len() as u32;
        let plain = Layout::of_plain(&bytes, len);
        prop_assert!(plain.is_none() || plain == Layout::of_any(&bytes, len));
        prop_assert_eq!(plain.is_some(), is_v4 && kind < 2);
        let side = if to_source { Side::Source } else { Side::Destination };
        let flow = parse(&mut bytes).flow().unwrap();
        prop_assert_eq!(parse(&mut bytes).ends(), Some(flow.ends()));
        let old = if to_source { (flow.source, flow.source_port) } else { (flow.destination, flow.destination_port) };
        let port = |port| (kind < 3).then_some(port);
        let (there, back) = (Endpoint { ip: at(new.0), port: port(new.1) }, Endpoint { ip: old.0, port: port(old.1) });
        prop_assert!(parse(&mut bytes).rewrite(side, there, false));
        prop_assert!(is_right(&bytes));
        let flow = parse(&mut bytes).flow().unwrap();
        let now = if to_source { (flow.source, flow.source_port) } else { (flow.destination, flow.destination_port) };
        prop_assert_eq!(now, (at(new.0), port(new.1).unwrap_or(0)));
        prop_assert!(parse(&mut bytes).rewrite(side, back, false));
        // A sum of zero has two forms; the packet's first may be the other.
        prop_assert!(bytes == before || is_right(&before) && is_right(&bytes));
    }

    /// The packet in an error, and the error, stay right; however little of the packet is quoted.
    #[test]
    fn quoted_packets_are_rewritten(
        is_v4: bool, is_tcp: bool, from in any_end(), to in any_end(), new in any_end(), cut in 8..60usize,
    ) {
        let at = |n: u8| if is_v4 { v4(n) } else { v6(n.into()) };
        let (source, destination) = ((at(from.0), from.1), (at(to.0), to.1));
        let inner = if is_tcp { tcp(source, destination, 2, &[1; 30]) } else { udp(source, destination, &[1; 30]) };
        let header = if is_v4 { 20 } else { 40 };
        let quote = &inner[..(header + cut).min(inner.len())];
        let kind = if is_v4 { [3, 1] } else { [1, 0] };
        let mut bytes = of_stations(&icmp(at(9), source.0, kind, 0, quote));
        let quoted = parse(&mut bytes).quoted_flow().unwrap();
        prop_assert_eq!((quoted.source, quoted.source_port), source);
        prop_assert_eq!((quoted.destination, quoted.destination_port), destination);
        let endpoint = Endpoint { ip: at(new.0), port: Some(new.1) };
        prop_assert!(parse(&mut bytes).rewrite_quoted(Side::Source, endpoint, false));
        let receiver = Endpoint { ip: at(new.0), port: None };
        prop_assert!(parse(&mut bytes).rewrite(Side::Destination, receiver, false));
        prop_assert!(is_right(&bytes));
        let quoted = parse(&mut bytes).quoted_flow().unwrap();
        prop_assert_eq!((quoted.source, quoted.source_port), (at(new.0), new.1));
        let inner_at = 14 + header + 8;
        if quote.len() == inner.len() {
            prop_assert!(is_right(&of_stations(&bytes[inner_at..])), "the quoted packet is right");
        } else if is_v4 {
            prop_assert!(Ipv4Packet::new_unchecked(&bytes[inner_at..]).verify_checksum());
        }
    }

    /// Whatever the bytes, no look at them fails in another way than by `None`, and rewriting keeps the layout.
    #[test]
    fn any_bytes_are_read(
        mut bytes in proptest::collection::vec(any::<u8>(), 14..256), more in 0..2000u32, kind in 0..4u8,
    ) {
        let ethertypes = [ethertype::IPV4, ethertype::IPV6, ethertype::ARP, ethertype::VLAN];
        bytes[12..14].copy_from_slice(&ethertypes[usize::from(kind)].to_be_bytes());
        if let Some(byte) = bytes.get_mut(14) && kind < 2 {
            *byte = [0x45, 0x60][usize::from(kind)];
        }
        let len = bytes.len() as u32;
        let plain = Layout::of_plain(&bytes, len + more);
        prop_assert!(plain.is_none() || plain == Layout::of_any(&bytes, len + more));
        let mut head = Head::parse(&mut bytes, len + more).unwrap();
        let _ = (head.arp(), head.ipv4(), head.ipv6(), head.flow(), head.neighbour(), head.quoted_flow());
        let to = Endpoint { ip: v4(1), port: Some(1) };
        for side in [Side::Source, Side::Destination] {
            let _ = head.rewrite(side, to, false);
            let _ = head.rewrite_quoted(side, to, false);
        }
        let _ = head.pass_hop();
        let seen = (head.network(), head.transport(), head.fragment());
        let again = parse_with(&mut bytes, len + more);
        prop_assert_eq!(seen, again);
    }
}

fn parse_with(bytes: &mut [u8], frame_len: u32) -> (Network, Transport, Fragment) {
    let head = Head::parse(bytes, frame_len).unwrap();
    (head.network(), head.transport(), head.fragment())
}

#[test]
fn icmp_is_as_smoltcp_sees() {
    let mut bytes = of_stations(&icmp(v4(1), v4(2), [8, 0], 0x1234_0007, b"data"));
    let packet = Icmpv4Packet::new_checked(&bytes[34..]).unwrap();
    let repr = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).unwrap();
    assert!(matches!(repr, Icmpv4Repr::EchoRequest { ident: 0x1234, seq_no: 7, .. }));
    assert_eq!(parse(&mut bytes).icmp().unwrap().ident, 0x1234);
    bytes[14] = 0x46;
    fix_ipv4(&mut bytes[14..]);
    assert_eq!(parse(&mut bytes).transport_at(), Some(38));
}
