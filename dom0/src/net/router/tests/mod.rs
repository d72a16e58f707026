//! Packets between two guests' networks, an uplink and the world.

mod many;

use super::*;
use crate::net::headers::testing::{self, station};
use crate::net::headers::{Head, Transport, checksum, ethertype, protocol};
use alloc::string::ToString;

const GUESTS: BridgeId = BridgeId::testing(0);
const OTHERS: BridgeId = BridgeId::testing(1);
const UPLINK: BridgeId = BridgeId::testing(2);
const GUEST_PORT: PortId = PortId::testing(5);
const WIRE: PortId = PortId::testing(9);
const GUEST: u8 = 20;
const SYN: u8 = 2;
const ACK: u8 = 16;

fn guest(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, last)
}

fn outside(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, last)
}

const WORLD: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);

/// The router's station on each network.
fn own(network: BridgeId) -> MacAddr {
    station(
        200 + [GUESTS, OTHERS, UPLINK].iter().position(|other| *other == network).expect("one of three")
            as u8,
    )
}

fn router() -> Router {
    let mut router = Router::new(Random::new(b"test"));
    let network = |role, id, address, gateway| Network {
        role,
        mac: own(id),
        address: Some(Ipv4Cidr::new(address, 24)),
        gateway,
        mtu: 1500,
    };
    router.set_network(GUESTS, network(Role::Inside, GUESTS, guest(1), None));
    router.set_network(OTHERS, network(Role::Inside, OTHERS, Ipv4Addr::new(10, 89, 0, 1), None));
    router.set_network(UPLINK, network(Role::Uplink, UPLINK, outside(15), Some(outside(2))));
    router.learn(0, UPLINK, WIRE, outside(2), station(99));
    router.learn(0, GUESTS, GUEST_PORT, guest(GUEST), station(GUEST));
    router
}

/// What the router says of a frame, and the frame afterwards.
fn send(router: &mut Router, network: BridgeId, frame: &[u8]) -> (Routed, Vec<u8>) {
    send_partial(router, network, frame, false, None)
}

fn send_partial(
    router: &mut Router,
    network: BridgeId,
    frame: &[u8],
    is_partial: bool,
    segment: Option<u16>,
) -> (Routed, Vec<u8>) {
    let mut bytes = frame.to_vec();
    let len = bytes.len();
    let head_len = len.min(256);
    let mut head = Head::parse(&mut bytes[..head_len], len as u32).expect("a frame");
    let port = if network == UPLINK { WIRE } else { GUEST_PORT };
    let arrival = Arrival { network, port, head: &mut head, is_partial, segment };
    (router.input(1, arrival), bytes)
}

/// A guest's frame to its gateway.
fn from_guest(packet: &[u8]) -> Vec<u8> {
    testing::frame(station(GUEST), own(GUESTS), packet)
}

fn from_world(packet: &[u8]) -> Vec<u8> {
    testing::frame(station(99), own(UPLINK), packet)
}

fn v4(address: Ipv4Addr) -> IpAddr {
    IpAddr::V4(address)
}

/// An IPv4 packet of ICMP, with `message` from the type on; the checksum is filled in.
fn icmp(source: IpAddr, destination: IpAddr, message: &[u8]) -> Vec<u8> {
    let [kind, code, _, _, word @ ..] = message else { panic!("a whole header") };
    let (word, data) = word.split_first_chunk::<4>().expect("a whole header");
    testing::icmp(source, destination, [*kind, *code], u32::from_be_bytes(*word), data)
}

/// Checks IP's and the transport's checksum of a whole frame; gives the flow and the count of hops.
fn check(frame: &[u8]) -> (crate::net::headers::Flow, u8) {
    let mut bytes = frame.to_vec();
    let len = bytes.len() as u32;
    let head = Head::parse(&mut bytes, len).expect("a frame");
    assert!(head.is_ipv4_sum_right(), "IPv4's checksum");
    let at = head.transport_at().expect("a transport");
    let end = at + head.transport_len() as usize;
    let (source, destination) = head.addresses().expect("IP");
    let pseudo = match head.transport() {
        Transport::Icmp => 0,
        _ => checksum::pseudo(source, destination, head.protocol(), head.transport_len()),
    };
    assert_eq!(checksum::fold(checksum::sum(&frame[at..end]) + pseudo), 0xffff, "the transport's checksum");
    (head.flow().expect("a flow"), head.ipv4().expect("IPv4").ttl)
}

#[test]
fn a_guests_connection_goes_out_translated_and_its_answers_come_back() {
    let mut router = router();
    for (packet, back) in [
        (
            testing::tcp((v4(guest(GUEST)), 4000), (v4(WORLD), 80), SYN, b""),
            &(|source, to| testing::tcp(source, to, SYN | ACK, b""))
                as &dyn Fn(testing::End, testing::End) -> Vec<u8>,
        ),
        (testing::udp((v4(guest(GUEST)), 4000), (v4(WORLD), 53), b"question"), &|source, to| {
            testing::udp(source, to, b"the answer")
        }),
    ] {
        let (routed, frame) = send(&mut router, GUESTS, &from_guest(&packet));
        assert_eq!(routed, Routed::Forward(UPLINK));
        assert_eq!((&frame[..6], &frame[6..12]), (&station(99).0[..], &own(UPLINK).0[..]));
        let (flow, ttl) = check(&frame);
        assert_eq!((flow.source, flow.destination, ttl), (v4(outside(15)), v4(WORLD), 63));
        assert!(flows::TRANSLATED_PORTS.contains(&flow.source_port));
        let answer = back((v4(WORLD), flow.destination_port), (v4(outside(15)), flow.source_port));
        let (routed, frame) = send(&mut router, UPLINK, &from_world(&answer));
        assert_eq!(routed, Routed::Forward(GUESTS));
        assert_eq!((&frame[..6], &frame[6..12]), (&station(GUEST).0[..], &own(GUESTS).0[..]));
        let (flow, ttl) = check(&frame);
        assert_eq!((flow.destination, flow.destination_port, ttl), (v4(guest(GUEST)), 4000, 63));
    }
    assert_eq!(router.forwarded(), 4);
    assert!(router.take_outgoing().is_empty());
}

#[test]
fn pings_keep_apart_by_their_identifiers() {
    let mut router = router();
    let ping = icmp(v4(guest(GUEST)), v4(WORLD), &[8, 0, 0, 0, 0, 7, 0, 1, b'x']);
    let (routed, frame) = send(&mut router, GUESTS, &from_guest(&ping));
    assert_eq!(routed, Routed::Forward(UPLINK));
    let (flow, _) = check(&frame);
    let [high, low] = flow.source_port.to_be_bytes();
    let pong = icmp(v4(WORLD), v4(outside(15)), &[0, 0, 0, 0, high, low, 0, 1, b'x']);
    let (routed, frame) = send(&mut router, UPLINK, &from_world(&pong));
    assert_eq!(routed, Routed::Forward(GUESTS));
    let (flow, _) = check(&frame);
    assert_eq!((flow.destination, flow.destination_port), (v4(guest(GUEST)), 7));
}

#[test]
fn partial_checksums_stay_partial() {
    let mut router = router();
    let mut packet = testing::tcp((v4(guest(GUEST)), 4000), (v4(WORLD), 80), SYN, &[3; 500]);
    let len = packet.len() as u32 - 20;
    let pseudo = |from, to| checksum::fold(checksum::pseudo(v4(from), v4(to), protocol::TCP, len));
    packet[36..38].copy_from_slice(&pseudo(guest(GUEST), WORLD).to_be_bytes());
    let (routed, frame) = send_partial(&mut router, GUESTS, &from_guest(&packet), true, None);
    assert_eq!(routed, Routed::Forward(UPLINK));
    assert_eq!(frame[14 + 36..14 + 38], pseudo(outside(15), WORLD).to_be_bytes());
}

#[test]
fn a_forward_brings_the_world_to_a_guest() {
    let mut router = router();
    let forward =
        Forward { protocol: protocol::TCP, port: 8080, guest: "web".to_string(), to: None, to_port: 80 };
    assert_eq!(router.add_forward(forward.clone()), Ok(0));
    assert!(router.add_forward(forward.clone()).is_err(), "twice");
    for (port, to_port) in [(0, 80), (1, 0), (32_768, 80), (65_535, 80)] {
        assert!(router.add_forward(Forward { port, to_port, ..forward.clone() }).is_err(), "{port}");
    }
    let syn = from_world(&testing::tcp((v4(WORLD), 50_000), (v4(outside(15)), 8080), SYN, b""));
    assert_eq!(send(&mut router, UPLINK, &syn).0, Routed::Stack, "the guest is not there yet");
    router.resolve_forwards(|name| (name == "web").then_some(guest(GUEST)));
    let (routed, frame) = send(&mut router, UPLINK, &syn);
    assert_eq!(routed, Routed::Forward(GUESTS));
    let (flow, _) = check(&frame);
    assert_eq!((flow.source, flow.source_port), (v4(WORLD), 50_000));
    assert_eq!((flow.destination, flow.destination_port), (v4(guest(GUEST)), 80));
    let answer = testing::tcp((v4(guest(GUEST)), 80), (v4(WORLD), 50_000), SYN | ACK, b"");
    let (routed, frame) = send(&mut router, GUESTS, &from_guest(&answer));
    assert_eq!(routed, Routed::Forward(UPLINK));
    let (flow, _) = check(&frame);
    assert_eq!((flow.source, flow.source_port), (v4(outside(15)), 8080));
    // A packet in the middle of a connection that nobody knows begins none.
    let ack = from_world(&testing::tcp((v4(WORLD), 50_001), (v4(outside(15)), 8080), ACK, b""));
    assert_eq!(send(&mut router, UPLINK, &ack).0, Routed::Drop(Reason::NoConnection));
    let udp = from_world(&testing::udp((v4(WORLD), 50_001), (v4(outside(15)), 8080), b""));
    assert_eq!(send(&mut router, UPLINK, &udp).0, Routed::Drop(Reason::Closed), "TCP alone");
    // Without the forward the port is closed, and connections by the forward are over.
    assert!(!router.remove_forward(protocol::UDP, 8080) && !router.remove_forward(protocol::TCP, 8081));
    assert!(router.remove_forward(protocol::TCP, 8080) && router.flows().is_empty());
    assert_eq!(send(&mut router, UPLINK, &syn).0, Routed::Stack);
    assert_eq!(router.add_forward(Forward { port: 8081, ..forward }), Ok(0), "its place is free");
}

#[test]
fn what_must_not_leave_does_not() {
    let mut router = router();
    let syn = |from, to| testing::tcp((v4(from), 4000), (v4(to), 80), SYN, b"");
    for (from, to, reason) in [
        // A sender that is not of this network, or pretends to be the gateway.
        (Ipv4Addr::new(1, 2, 3, 4), WORLD, Reason::Source),
        (Ipv4Addr::new(10, 89, 0, 20), WORLD, Reason::Source),
        (guest(1), WORLD, Reason::Source),
        // Another network of guests, and its gateway.
        (guest(GUEST), Ipv4Addr::new(10, 89, 0, 20), Reason::Unreachable),
        (guest(GUEST), Ipv4Addr::new(10, 89, 0, 1), Reason::Unreachable),
        (guest(GUEST), Ipv4Addr::new(127, 0, 0, 1), Reason::Unreachable),
        (guest(GUEST), Ipv4Addr::new(224, 0, 0, 1), Reason::Unreachable),
        (guest(GUEST), Ipv4Addr::new(169, 254, 169, 254), Reason::Unreachable),
        (guest(GUEST), Ipv4Addr::new(0, 0, 0, 1), Reason::Unreachable),
        (guest(GUEST), Ipv4Addr::BROADCAST, Reason::Unreachable),
    ] {
        assert_eq!(
            send(&mut router, GUESTS, &from_guest(&syn(from, to))).0,
            Routed::Drop(reason),
            "{from} {to}"
        );
    }
    let mut wrong = from_guest(&syn(guest(GUEST), WORLD));
    wrong[14 + 10] ^= 1;
    assert_eq!(send(&mut router, GUESTS, &wrong).0, Routed::Drop(Reason::Malformed));
    let mut fragment = syn(guest(GUEST), WORLD);
    fragment[6] = 0x20;
    testing::fix_ipv4(&mut fragment);
    assert_eq!(send(&mut router, GUESTS, &from_guest(&fragment)).0, Routed::Drop(Reason::Fragment));
    let gre = testing::ip(v4(guest(GUEST)), v4(WORLD), 47, &[0; 20]);
    assert_eq!(send(&mut router, GUESTS, &from_guest(&gre)).0, Routed::Drop(Reason::Protocol));
    let reset = testing::tcp((v4(guest(GUEST)), 4000), (v4(WORLD), 80), 4, b"");
    assert_eq!(send(&mut router, GUESTS, &from_guest(&reset)).0, Routed::Drop(Reason::NoConnection));
    // From the world: what is not for the uplink's address, and what nobody asked for.
    let stray = from_world(&testing::tcp((v4(WORLD), 80), (v4(guest(GUEST)), 4000), SYN, b""));
    assert_eq!(send(&mut router, UPLINK, &stray).0, Routed::Drop(Reason::Unreachable));
    let knock = from_world(&testing::tcp((v4(WORLD), 80), (v4(outside(15)), 40_000), SYN, b""));
    assert_eq!(send(&mut router, UPLINK, &knock).0, Routed::Stack);
    assert!(router.flows().is_empty());
    assert_eq!(router.dropped(Reason::Source), 3);
    assert_eq!(router.forwarded(), 0);
}

#[test]
fn what_is_for_the_control_domain_gets_there() {
    let mut router = router();
    let to_gateway = testing::udp((v4(guest(GUEST)), 4000), (v4(guest(1)), 53), b"");
    assert_eq!(send(&mut router, GUESTS, &from_guest(&to_gateway)).0, Routed::Stack);
    let broadcast = testing::frame(station(GUEST), MacAddr::BROADCAST, &to_gateway);
    assert_eq!(send(&mut router, GUESTS, &broadcast).0, Routed::Stack);
    let v6 = testing::udp((testing::v6(1), 1), (testing::v6(2), 2), b"");
    assert_eq!(send(&mut router, GUESTS, &from_guest(&v6)).0, Routed::Stack);
    let other = testing::ethernet(station(GUEST), own(GUESTS), 0x88cc, &[0; 50]);
    assert_eq!(send(&mut router, GUESTS, &other).0, Routed::Stack);
}

#[test]
fn datagrams_for_no_service_of_the_control_domains_go_no_further() {
    let mut router = router();
    let to_gateway = |port| testing::udp((v4(guest(GUEST)), 4000), (v4(guest(1)), port), b"flood");
    let closed = to_gateway(9);
    assert_eq!(send(&mut router, GUESTS, &from_guest(&closed)).0, Routed::Drop(Reason::Closed));
    assert_eq!(errors(&mut router), [(3, 3, [&[0; 4], &closed[..28]].concat())]);
    for _ in 0..1000 {
        assert_eq!(send(&mut router, GUESTS, &from_guest(&closed)).0, Routed::Drop(Reason::Closed));
    }
    assert_eq!(errors(&mut router).len(), 20 - 1, "twenty in a second");
    for served in [dhcp::SERVER_PORT, dns::PORT] {
        assert_eq!(send(&mut router, GUESTS, &from_guest(&to_gateway(served))).0, Routed::Stack);
    }
    let to_uplink = |port| testing::udp((v4(WORLD), 53), (v4(outside(15)), port), b"flood");
    for served in [dhcp::CLIENT_PORT, dns::ASKING_PORTS.start, dns::ASKING_PORTS.end - 1] {
        assert_eq!(send(&mut router, UPLINK, &from_world(&to_uplink(served))).0, Routed::Stack);
    }
    for closed in [9, dns::ASKING_PORTS.end] {
        assert_eq!(
            send(&mut router, UPLINK, &from_world(&to_uplink(closed))).0,
            Routed::Drop(Reason::Closed)
        );
    }
    // TCP is answered by the stack itself.
    let tcp = testing::tcp((v4(guest(GUEST)), 4000), (v4(guest(1)), 9), SYN, b"");
    assert_eq!(send(&mut router, GUESTS, &from_guest(&tcp)).0, Routed::Stack);
}

/// The ICMP errors that wait to be sent: type, code and what lies behind the checksum.
fn errors(router: &mut Router) -> Vec<(u8, u8, Vec<u8>)> {
    let of = |(network, frame): (BridgeId, Vec<u8>)| {
        assert_eq!((network, &frame[..6]), (GUESTS, &station(GUEST).0[..]));
        let len = frame.len() as u32;
        let mut bytes = frame.clone();
        let head = Head::parse(&mut bytes, len).expect("a frame");
        assert_eq!(head.addresses(), Some((v4(guest(1)), v4(guest(GUEST)))));
        assert!(head.is_ipv4_sum_right());
        let at = head.transport_at().expect("ICMP");
        let end = at + head.transport_len() as usize;
        assert_eq!(checksum::of(&frame[at..end]), 0);
        (frame[at], frame[at + 1], frame[at + 4..end].to_vec())
    };
    router.take_outgoing().into_iter().map(of).collect()
}

#[test]
fn senders_hear_why_and_not_too_often() {
    let mut router = router();
    let mut old = testing::tcp((v4(guest(GUEST)), 4000), (v4(WORLD), 80), SYN, b"");
    old[8] = 1;
    testing::fix_ipv4(&mut old);
    let quoted = &old[..28];
    assert_eq!(send(&mut router, GUESTS, &from_guest(&old)).0, Routed::Drop(Reason::HopLimit));
    assert_eq!(errors(&mut router), [(11, 0, [&[0; 4], quoted].concat())]);
    let long = testing::udp((v4(guest(GUEST)), 4000), (v4(WORLD), 80), &[0; 1473]);
    assert_eq!(send(&mut router, GUESTS, &from_guest(&long)).0, Routed::Drop(Reason::TooLong));
    assert_eq!(errors(&mut router), [(3, 4, [&[0, 0, 0x05, 0xdc], &long[..28]].concat())]);
    // What is cut into segments is as long as its segments.
    let many = testing::tcp((v4(guest(GUEST)), 4000), (v4(WORLD), 80), SYN, &[0; 5000]);
    let sent = |router: &mut Router, segment| {
        send_partial(router, GUESTS, &from_guest(&many), false, Some(segment)).0
    };
    assert_eq!(sent(&mut router, 1500), Routed::Forward(UPLINK));
    assert_eq!(sent(&mut router, 1501), Routed::Drop(Reason::TooLong));
    errors(&mut router);
    let other = testing::tcp((v4(guest(GUEST)), 4000), (v4(Ipv4Addr::new(10, 89, 0, 5)), 80), SYN, b"");
    for _ in 0..1000 {
        send(&mut router, GUESTS, &from_guest(&other));
    }
    let told = errors(&mut router);
    assert_eq!(told.len(), 20 - 3, "twenty in a second");
    assert!(told.iter().all(|error| (error.0, error.1) == (3, 13)));
    // Nobody is told about an error, or about what came from no one station.
    let error = icmp(v4(guest(GUEST)), v4(Ipv4Addr::new(10, 89, 0, 5)), &[3, 3, 0, 0, 0, 0, 0, 0]);
    let mut router = self::router();
    send(&mut router, GUESTS, &from_guest(&error));
    assert!(errors(&mut router).is_empty());
}

#[test]
fn errors_from_the_world_reach_whom_they_are_about() {
    let mut router = router();
    let packet = testing::udp((v4(guest(GUEST)), 4000), (v4(WORLD), 53), b"question");
    let (_, left) = send(&mut router, GUESTS, &from_guest(&packet));
    // A router on the way quotes what it got.
    let message = [&[3, 1, 0, 0, 0, 0, 0, 0][..], &left[14..14 + 28]].concat();
    let error = icmp(v4(Ipv4Addr::new(8, 8, 8, 8)), v4(outside(15)), &message);
    let (routed, frame) = send(&mut router, UPLINK, &from_world(&error));
    assert_eq!(routed, Routed::Forward(GUESTS));
    let len = frame.len() as u32;
    let mut bytes = frame.clone();
    let head = Head::parse(&mut bytes, len).expect("a frame");
    assert_eq!(head.addresses(), Some((v4(Ipv4Addr::new(8, 8, 8, 8)), v4(guest(GUEST)))));
    let quoted = head.quoted_flow().expect("quoted");
    assert_eq!((quoted.source, quoted.source_port), (v4(guest(GUEST)), 4000));
    let at = head.transport_at().expect("ICMP");
    assert_eq!(checksum::of(&frame[at..at + head.transport_len() as usize]), 0);
    // About what nobody sent: the control domain's own stack may know.
    let mut strange = message.clone();
    strange[8 + 20] ^= 1;
    let error = icmp(v4(Ipv4Addr::new(8, 8, 8, 8)), v4(outside(15)), &strange);
    assert_eq!(send(&mut router, UPLINK, &from_world(&error)).0, Routed::Stack);
    // The guest's own errors go out in the uplink's name.
    let (flow, _) = check(&left);
    let answer = testing::udp((v4(WORLD), 53), (v4(outside(15)), flow.source_port), b"answer");
    let (_, came) = send(&mut router, UPLINK, &from_world(&answer));
    let message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &came[14..14 + 28]].concat();
    let told = icmp(v4(guest(GUEST)), v4(WORLD), &message);
    let (routed, frame) = send(&mut router, GUESTS, &from_guest(&told));
    assert_eq!(routed, Routed::Forward(UPLINK));
    let mut bytes = frame.clone();
    let head = Head::parse(&mut bytes, frame.len() as u32).expect("a frame");
    assert_eq!(head.addresses(), Some((v4(outside(15)), v4(WORLD))));
    let quoted = head.quoted_flow().expect("quoted");
    assert_eq!((quoted.destination, quoted.destination_port), (v4(outside(15)), flow.source_port));
    // The uplink gets another address: nothing leaves in the name of the former one.
    let mut moved = router.network(UPLINK).expect("there").clone();
    moved.address = Some(Ipv4Cidr::new(outside(16), 24));
    router.set_network(UPLINK, moved);
    assert_eq!(send(&mut router, GUESTS, &from_guest(&told)).0, Routed::Drop(Reason::NoConnection));
}

#[test]
fn unknown_stations_are_asked_for_and_learned() {
    let mut router = router();
    let to_neighbour = testing::tcp((v4(guest(GUEST)), 4000), (v4(outside(77)), 80), SYN, b"");
    let frame = from_guest(&to_neighbour);
    assert_eq!(send(&mut router, GUESTS, &frame).0, Routed::Drop(Reason::Resolving));
    assert_eq!(send(&mut router, GUESTS, &frame).0, Routed::Drop(Reason::Resolving));
    let [(network, request)] = &router.take_outgoing()[..] else { panic!("one question") };
    assert_eq!((*network, &request[..6]), (UPLINK, &[0xff; 6][..]));
    let mut bytes = request.clone();
    let arp = Head::parse(&mut bytes, request.len() as u32).and_then(|head| head.arp()).expect("ARP");
    assert_eq!((arp.operation, arp.sender, arp.sender_mac), (1, outside(15), own(UPLINK)));
    assert_eq!(arp.target, outside(77));
    let reply = |sender: Ipv4Addr, mac: MacAddr, from: MacAddr| {
        let mut packet = alloc::vec![0, 1, 8, 0, 6, 4, 0, 2];
        packet.extend(mac.0);
        packet.extend(sender.octets());
        packet.extend(own(UPLINK).0);
        packet.extend(outside(15).octets());
        testing::ethernet(from, own(UPLINK), ethertype::ARP, &packet)
    };
    // A reply in another station's name, about an address elsewhere, or about the router's own, teaches nothing.
    for (sender, mac, from) in [
        (outside(77), station(77), station(78)),
        (WORLD, station(77), station(77)),
        (outside(15), station(77), station(77)),
        (outside(77), MacAddr::BROADCAST, MacAddr::BROADCAST),
    ] {
        assert_eq!(send(&mut router, UPLINK, &reply(sender, mac, from)).0, Routed::Stack);
    }
    assert_eq!(send(&mut router, GUESTS, &frame).0, Routed::Drop(Reason::Resolving));
    send(&mut router, UPLINK, &reply(outside(77), station(77), station(77)));
    let (routed, sent) = send(&mut router, GUESTS, &frame);
    assert_eq!((routed, &sent[..6]), (Routed::Forward(UPLINK), &station(77).0[..]));
    // Without an address of the uplink's nothing leaves, and its own stack may get one.
    let mut without = router.network(UPLINK).expect("there").clone();
    without.address = None;
    router.set_network(UPLINK, without);
    assert_eq!(send(&mut router, GUESTS, &frame).0, Routed::Drop(Reason::Unreachable));
    let offer = testing::udp((v4(outside(2)), 67), (v4(outside(15)), 68), b"");
    assert_eq!(send(&mut router, UPLINK, &from_world(&offer)).0, Routed::Stack);
}
