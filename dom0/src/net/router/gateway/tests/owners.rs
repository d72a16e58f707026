//! Whose an address, a name and a connection are, when guests come and go.

use super::*;
use crate::net::headers::testing::{arp, ethernet};

/// Guest `number` says by ARP that it has `address`.
fn claim(world: &mut World, number: u8, address: Ipv4Addr) {
    let mac = station(number);
    let word = arp(2, (mac, address.into()), (station(201), inside(1).into()));
    world.carry(GUESTS, PortId::testing(number.into()), &ethernet(mac, station(201), 0x0806, &word));
}

/// A guest that asks for no address.
fn silent(world: &mut World, number: u8, name: &str, fixed: Option<Ipv4Addr>) -> usize {
    let index = world.add(GUESTS, number);
    let port = world.stations[index].port;
    let guest = Guest { name: name.into(), network: GUESTS, fixed };
    world.gateway.set_guest(port, guest).expect("an address of its own");
    index
}

fn forward_to(world: &mut World, guest: &str) {
    let protocol = crate::net::headers::protocol::UDP;
    let forward = Forward { protocol, port: 8080, guest: guest.into(), to: None, to_port: 99 };
    world.gateway.add_forward(world.now_ns, forward).expect("free");
}

/// What each station gets of a datagram from the world to the forwarded port.
fn knock(world: &mut World) -> Vec<usize> {
    let from = frames::UdpEnd { mac: station(99), address: outside(2), port: 7 };
    let to = frames::UdpEnd { mac: station(202), address: outside(15), port: 8080 };
    world.stations.iter_mut().for_each(|station| station.datagrams.clear());
    world.carry(UPLINK, WIRE, &frames::udp(from, to, b"knock"));
    world.pass(5);
    (0..world.stations.len()).filter(|at| !world.stations[*at].datagrams.is_empty()).collect()
}

#[test]
fn a_lease_counts_more_than_what_others_have_said_before() {
    let mut world = World::new();
    silent(&mut world, 20, "thief", None);
    for last in 10..16 {
        claim(&mut world, 20, inside(last));
    }
    assert_eq!(world.gateway.router().neighbours().station(0, GUESTS, inside(10)), Some(station(20)));
    let guest = world.guest(21, "web");
    world.pass(3000);
    let leased = world.address(guest).expect("leased");
    assert!((10..16).contains(&leased.octets()[3]), "one of those");
    assert_eq!(world.gateway.router().neighbours().station(world.now_ns, GUESTS, leased), Some(station(21)));
    assert_eq!(world.ping(guest, outside(2)), [IpAddr::V4(outside(2))]);
    // And so does what a configuration says.
    claim(&mut world, 20, inside(200));
    silent(&mut world, 22, "fixed", Some(inside(200)));
    assert_eq!(world.gateway.router().neighbours().station(world.now_ns, GUESTS, inside(200)), None);
}

#[test]
fn connections_of_an_address_end_when_somebody_else_gets_the_address() {
    let mut world = World::new();
    let first = silent(&mut world, 20, "thief", None);
    world.pass(3000);
    claim(&mut world, 20, inside(10));
    let udp = crate::net::headers::testing::udp((inside(10).into(), 7), (outside(2).into(), 9), b"");
    let frame = crate::net::headers::testing::frame(station(20), station(201), &udp);
    world.carry(GUESTS, world.stations[first].port, &frame);
    assert_eq!(world.gateway.router().flows().len(), 1);
    let guest = world.guest(21, "web");
    world.pass(3000);
    assert_eq!(world.address(guest), Some(inside(10)));
    assert!(world.gateway.router().flows().is_empty(), "its answers would go to the other guest");
    // A guest that asks for what it has keeps its connections.
    assert_eq!(world.ping(guest, outside(2)), [IpAddr::V4(outside(2))]);
    world.stations[guest].host.ask_for_address();
    world.pass(3000);
    assert_eq!((world.address(guest), world.gateway.router().flows().len()), (Some(inside(10)), 1));
    // So does one that asks for what its configuration gives it.
    let fixed = silent(&mut world, 22, "fixed", Some(inside(200)));
    world.stations[fixed].host.set_address(Some(Ipv4Cidr::new(inside(200), 24)), Some(inside(1)));
    assert_eq!(world.ping(fixed, outside(2)), [IpAddr::V4(outside(2))]);
    world.stations[fixed].host.ask_for_address();
    world.pass(3000);
    let flows = world.gateway.router().flows().list(world.now_ns);
    assert_eq!(flows.filter(|(flow, ..)| flow.inside.address == inside(200)).count(), 1);
}

#[test]
fn a_lease_that_was_over_is_begun_anew() {
    let mut world = World::new();
    let guest = world.guest(21, "web");
    silent(&mut world, 20, "thief", None);
    world.pass(3000);
    let leased = world.address(guest).expect("leased");
    // Two hours: nobody has the address, so that anybody may speak from there.
    world.now_ns += 7_200_000 * MILLISECOND;
    claim(&mut world, 20, leased);
    let mac = EthernetAddress(station(21).0);
    assert_eq!(world.gateway.router().neighbours().station(world.now_ns, GUESTS, leased), Some(station(20)));
    world.pass(3000);
    let server = world.gateway.dhcp(GUESTS).expect("there");
    assert_eq!(server.address_of(world.now_ns, PortId::testing(21), mac), Some(leased), "asked for again");
    assert_eq!(world.gateway.router().neighbours().station(world.now_ns, GUESTS, leased), Some(station(21)));
}

#[test]
fn forwarded_connections_end_though_the_address_was_anothers_before() {
    let mut world = World::new();
    let first = world.guest(21, "web");
    let next = silent(&mut world, 20, "next", None);
    world.pass(3000);
    let leased = world.address(first).expect("leased");
    // Two hours: the lease is over.
    world.now_ns += 7_200_000 * MILLISECOND;
    claim(&mut world, 20, leased);
    forward_to(&mut world, "next");
    let from = frames::UdpEnd { mac: station(99), address: outside(2), port: 7 };
    let to = frames::UdpEnd { mac: station(202), address: outside(15), port: 8080 };
    world.carry(UPLINK, WIRE, &frames::udp(from, to, b"knock"));
    assert_eq!(world.gateway.router().flows().len(), 1);
    let port = world.stations[next].port;
    world.gateway.forget(world.now_ns, port);
    assert!(world.gateway.router().flows().is_empty());
}

#[test]
fn forwarded_connections_end_with_their_guest() {
    let mut world = World::new();
    forward_to(&mut world, "web");
    let guest = world.guest(20, "web");
    world.pass(3000);
    assert_eq!(knock(&mut world), [guest]);
    let leased = world.address(guest);
    let port = world.stations[guest].port;
    world.gateway.forget(world.now_ns, port);
    world.stations.remove(guest);
    assert!(world.gateway.router().flows().is_empty());
    let next = world.guest(21, "db");
    world.pass(3000);
    assert_eq!(world.address(next), leased, "the same address");
    assert!(knock(&mut world).is_empty(), "what is for a guest that has ended");
}

#[test]
fn a_forward_follows_a_name_at_once() {
    let mut world = World::new();
    forward_to(&mut world, "web");
    let guest = silent(&mut world, 20, "web", Some(inside(70)));
    world.pass(3000);
    claim(&mut world, 20, inside(70));
    assert_eq!(knock(&mut world), [guest]);
    world.gateway.rename("web", "old");
    world.pass(1);
    assert_eq!(world.gateway.address_of(0, "old"), Some(inside(70)));
    assert_eq!(world.gateway.router().forwards().next().unwrap().to, None, "nobody has the name");
    silent(&mut world, 21, "web", Some(inside(71)));
    world.pass(1);
    assert_eq!(world.gateway.router().forwards().next().unwrap().to, Some(inside(71)));
}

#[test]
fn an_answer_about_a_name_is_for_the_guest_that_asked() {
    let mut world = World::new();
    let first = silent(&mut world, 20, "web", None);
    world.pass(3000);
    claim(&mut world, 20, inside(50));
    let ask = frames::UdpEnd { mac: station(20), address: inside(50), port: 5000 };
    let gateway = frames::UdpEnd { mac: station(201), address: inside(1), port: dns::PORT };
    let question = frames::udp(ask, gateway, &question(7, "example.org"));
    world.carry(GUESTS, world.stations[first].port, &question);
    world.pass(50);
    let (_, port, mut answer) = world.stations[0].datagrams.last().cloned().expect("a question");
    // Meanwhile the address becomes another guest's.
    let second = silent(&mut world, 21, "db", Some(inside(50)));
    claim(&mut world, 21, inside(50));
    answer[2] |= 0x80;
    let server = frames::UdpEnd { mac: station(99), address: outside(2), port: dns::PORT };
    let client = frames::UdpEnd { mac: station(202), address: outside(15), port };
    world.carry(UPLINK, WIRE, &frames::udp(server, client, &answer));
    world.pass(50);
    assert_eq!(world.gateway.names().counters().answered, 1);
    assert!(world.stations[second].datagrams.is_empty(), "another guest asked");
}
