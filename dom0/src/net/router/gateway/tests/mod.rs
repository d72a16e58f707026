//! The gateway between guests with stacks of their own and a world with a DHCP server and a name server.

mod owners;
mod tcp;

use super::*;
use crate::net::headers::testing::station;
use crate::net::headers::{Head, checksum};
use crate::net::router::Reason;
use core::net::IpAddr;

const GUESTS: BridgeId = BridgeId::testing(0);
const UPLINK: BridgeId = BridgeId::testing(1);
const WIRE: PortId = PortId::testing(9);
const MILLISECOND: u64 = 1_000_000;

/// A station with a stack, on one of the networks.
struct Station {
    host: Box<Host>,
    mac: MacAddr,
    network: BridgeId,
    port: PortId,
    /// What the station got and its stack was not asked about: UDP payloads with source address and port.
    datagrams: Vec<(Ipv4Addr, u16, Vec<u8>)>,
}

/// Two networks, as bridges carry frames there.
struct World {
    now_ns: u64,
    gateway: Gateway,
    stations: Vec<Station>,
    /// The world's DHCP server.
    dhcp: dhcp::Server,
    dropped: Vec<Reason>,
}

fn inside(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, last)
}

fn outside(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, last)
}

fn pool(server: Ipv4Addr, first: Ipv4Addr, last: Ipv4Addr) -> dhcp::Pool {
    dhcp::Pool { server: Ipv4Cidr::new(server, 24), first, last, mtu: 1500, domain: DOMAIN.into() }
}

impl World {
    fn new() -> Self {
        let mut gateway = Gateway::new(Random::new(b"test"));
        let guests = Network {
            role: Role::Inside,
            mac: station(201),
            address: Some(Ipv4Cidr::new(inside(1), 24)),
            gateway: None,
            mtu: 1500,
        };
        let uplink =
            Network { role: Role::Uplink, mac: station(202), address: None, gateway: None, mtu: 1500 };
        gateway.add_network(0, GUESTS, guests, Some(pool(inside(1), inside(10), inside(99))));
        gateway.add_network(0, UPLINK, uplink, None);
        let dhcp = dhcp::Server::new(pool(outside(2), outside(15), outside(30)));
        let mut world = Self { now_ns: 0, gateway, stations: Vec::new(), dhcp, dropped: Vec::new() };
        let gateway = world.add(UPLINK, 99);
        world.stations[gateway].host.set_address(Some(Ipv4Cidr::new(outside(2), 24)), None);
        world
    }

    fn add(&mut self, network: BridgeId, number: u8) -> usize {
        let mac = station(number);
        let host = Host::new(self.now_ns, mac, 1500, u64::from(number) << 48 | 7);
        let port = if network == UPLINK { WIRE } else { PortId::testing(number.into()) };
        self.stations.push(Station { host, mac, network, port, datagrams: Vec::new() });
        self.stations.len() - 1
    }

    /// A guest with a name, which asks for its address.
    fn guest(&mut self, number: u8, name: &str) -> usize {
        let index = self.add(GUESTS, number);
        let port = self.stations[index].port;
        self.gateway
            .set_guest(port, Guest { name: name.into(), network: GUESTS, fixed: None })
            .expect("an address of its own");
        self.stations[index].host.ask_for_address();
        index
    }

    /// Carries a frame to the network's other stations, and to the gateway.
    fn carry(&mut self, network: BridgeId, port: PortId, frame: &[u8]) {
        let mut bytes = frame.to_vec();
        let len = bytes.len();
        let mut head = Head::parse(&mut bytes[..len.min(256)], len as u32).expect("a frame");
        let (to, from) = (head.to(), head.from());
        let own = self.gateway.router().network(network).expect("there").mac;
        if to == own || to.is_group() {
            let arrival = Arrival { network, port, head: &mut head, is_partial: false, segment: None };
            match self.gateway.input(self.now_ns, arrival) {
                Routed::Stack => self.gateway.deliver(self.now_ns, network, port, frame.to_vec(), false),
                Routed::Forward(network) => self.bring(network, &bytes),
                Routed::Drop(reason) => self.dropped.push(reason),
            }
        }
        if from != own {
            self.bring(network, frame);
        }
    }

    /// Gives the frame to the stations that it is for.
    fn bring(&mut self, network: BridgeId, frame: &[u8]) {
        let to = MacAddr(frame[..6].try_into().expect("six bytes"));
        let from = MacAddr(frame[6..12].try_into().expect("six bytes"));
        let mut replies = Vec::new();
        for station in self.stations.iter_mut().filter(|station| station.network == network) {
            if (station.mac == to || to.is_group()) && station.mac != from {
                if let Some(datagram) = Datagram::read(&mut frame.to_vec()) {
                    let payload = frame[datagram.payload.clone()].to_vec();
                    if network == UPLINK && datagram.destination_port == dhcp::SERVER_PORT {
                        let from = EthernetAddress(from.0);
                        let answer = self.dhcp.answer(self.now_ns, PortId::testing(0), from, &payload);
                        replies.extend(answer.map(|answer| {
                            let own = frames::UdpEnd {
                                mac: station.mac,
                                address: outside(2),
                                port: dhcp::SERVER_PORT,
                            };
                            let to = frames::UdpEnd {
                                mac: MacAddr(answer.mac.0),
                                address: answer.address.unwrap_or(Ipv4Addr::BROADCAST),
                                port: dhcp::CLIENT_PORT,
                            };
                            frames::udp(own, to, &answer.message)
                        }));
                        continue;
                    }
                    station.datagrams.push((datagram.source, datagram.source_port, payload));
                }
                station.host.receive(frame.to_vec());
            }
        }
        for reply in replies {
            self.carry(network, WIRE, &reply);
        }
    }

    /// Lets time pass, a millisecond at a step.
    fn pass(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds {
            self.now_ns += MILLISECOND;
            let mut frames = Vec::new();
            for station in &mut self.stations {
                if let Some(configuration) = station.host.poll(self.now_ns) {
                    station.host.set_address(configuration.address, configuration.gateway);
                }
                let (network, port) = (station.network, station.port);
                frames.extend(station.host.take_sent().map(|frame| (network, port, frame)));
            }
            for (network, port, frame) in frames {
                self.carry(network, port, &frame);
            }
            let (frames, next_ns) = self.gateway.poll(self.now_ns);
            assert!(
                next_ns > self.now_ns || !frames.is_empty() || next_ns == 0,
                "it would be called again at once"
            );
            for (network, frame) in frames {
                self.bring(network, &frame);
            }
        }
    }

    /// Pings; gives who answered within two seconds.
    fn ping(&mut self, station: usize, to: Ipv4Addr) -> Vec<IpAddr> {
        assert!(self.stations[station].host.ping(to, 5));
        self.pass(2000);
        self.stations[station].host.pongs().into_iter().map(|pong| pong.from).collect()
    }

    fn address(&self, station: usize) -> Option<Ipv4Addr> {
        let port = self.stations[station].port;
        let leases = self.gateway.dhcp(GUESTS).expect("there").leases(self.now_ns);
        leases.into_iter().find(|lease| lease.port == port).map(|lease| lease.address)
    }
}

#[test]
fn guests_and_uplink_get_addresses_and_reach_what_they_may() {
    let mut world = World::new();
    let (first, second) = (world.guest(20, "web"), world.guest(21, "other"));
    world.pass(3000);
    let uplink = world.gateway.router().network(UPLINK).expect("there").clone();
    assert_eq!((uplink.address, uplink.gateway), (Some(Ipv4Cidr::new(outside(15), 24)), Some(outside(2))));
    assert_eq!(world.gateway.names().servers(), [outside(2)]);
    let addresses = [world.address(first).expect("leased"), world.address(second).expect("leased")];
    assert_eq!(addresses.iter().filter(|address| [inside(10), inside(11)].contains(address)).count(), 2);
    // The gateway, the other guest, and the world, which sees the uplink alone.
    assert_eq!(world.ping(first, inside(1)), [IpAddr::V4(inside(1))]);
    assert_eq!(world.ping(first, addresses[1]), [IpAddr::V4(addresses[1])]);
    assert_eq!(world.ping(first, outside(2)), [IpAddr::V4(outside(2))]);
    let (flow, _, answered) = world.gateway.router().flows().list(world.now_ns).next().expect("translated");
    assert!(answered && flow.inside.address == addresses[0] && flow.outside.address == outside(15));
    // The control domain pings, too: a guest, the world, and itself not.
    for to in [addresses[1], outside(2)] {
        assert!(world.gateway.ping(to, 9));
        world.pass(2000);
        let pongs = world.gateway.pongs();
        assert_eq!(
            pongs.iter().map(|pong| (pong.from, pong.sequence)).collect::<Vec<_>>(),
            [(IpAddr::V4(to), 9)]
        );
    }
    assert_eq!(world.dropped, [], "the way to the world is known before it is needed");
}

/// A guest's UDP datagram.
fn datagram(world: &World, station: usize, to: (MacAddr, Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let address = world.address(station).expect("leased");
    let from = frames::UdpEnd { mac: world.stations[station].mac, address, port: 5000 };
    frames::udp(from, frames::UdpEnd { mac: to.0, address: to.1, port: to.2 }, payload)
}

/// A question for the address of a name.
fn question(id: u8, name: &str) -> Vec<u8> {
    let mut bytes = alloc::vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

#[test]
fn names_are_answered_here_or_by_the_worlds_server() {
    let mut world = World::new();
    let (first, second) = (world.guest(20, "Web"), world.guest(21, "other"));
    world.pass(3000);
    let gateway = (station(201), inside(1), dns::PORT);
    let ask = |world: &mut World, name: &str| {
        let frame = datagram(world, second, gateway, &question(7, name));
        let port = world.stations[second].port;
        world.stations[second].datagrams.clear();
        world.carry(GUESTS, port, &frame);
        world.pass(50);
        world.stations[second].datagrams.clone()
    };
    let [(from, 53, answer)] = &ask(&mut world, "web")[..] else { panic!("an answer") };
    assert_eq!((*from, &answer[..2]), (inside(1), &[0, 7][..]));
    assert!(answer.ends_with(&world.address(first).expect("leased").octets()));
    // A guest has no say in its name: what it calls itself is nobody's name.
    let [(_, 53, answer)] = &ask(&mut world, "nobody")[..] else { panic!("an answer") };
    assert_eq!(answer[3] & 15, 3);
    // The world's server is asked by the uplink, and its answer comes back.
    world.stations[0].datagrams.clear();
    assert!(ask(&mut world, "example.org").is_empty(), "nobody has answered yet");
    let (from, port, asked) = world.stations[0].datagrams.last().cloned().expect("a question");
    assert_eq!(
        (from, dns::ASKING_PORTS.contains(&port), &asked[2..]),
        (outside(15), true, &question(7, "example.org")[2..])
    );
    let mut answer = asked;
    answer[2] |= 0x80;
    answer.extend(b"the rest");
    let server = frames::UdpEnd { mac: station(99), address: outside(2), port: dns::PORT };
    let client = frames::UdpEnd { mac: station(202), address: outside(15), port };
    world.carry(UPLINK, WIRE, &frames::udp(server, client, &answer));
    world.pass(50);
    let [(from, 53, got)] = &world.stations[second].datagrams[..] else { panic!("the answer") };
    assert_eq!((*from, &got[..2], &got[2..]), (inside(1), &[0, 7][..], &answer[2..]));
    // Servers that an administrator names stay.
    world.gateway.set_name_servers(alloc::vec![outside(53)]);
    world.now_ns += 1_800_000 * MILLISECOND;
    world.pass(100);
    assert_eq!(world.gateway.names().servers(), [outside(53)]);
}

#[test]
fn a_forward_finds_its_guest_by_name() {
    let mut world = World::new();
    let forward = |guest: &str, port| Forward {
        protocol: crate::net::headers::protocol::UDP,
        port,
        guest: guest.into(),
        to: None,
        to_port: 99,
    };
    world.gateway.add_forward(0, forward("Web.INTERNAL", 8080)).expect("free");
    world.gateway.add_forward(0, forward("10.88.0.77", 8081)).expect("free");
    assert_eq!(world.gateway.router().forward(1).unwrap().to, Some(inside(77)));
    let guest = world.guest(20, "web");
    world.pass(3000);
    let leased = world.address(guest).expect("leased");
    assert_eq!(world.gateway.router().forward(0).unwrap().to, Some(leased));
    let knock = |world: &mut World, port| {
        let from = frames::UdpEnd { mac: station(99), address: outside(2), port: 7 };
        let to = frames::UdpEnd { mac: station(202), address: outside(15), port };
        world.stations[guest].datagrams.clear();
        world.carry(UPLINK, WIRE, &frames::udp(from, to, b"knock"));
        world.pass(5);
        world.stations[guest].datagrams.clone()
    };
    assert_eq!(knock(&mut world, 8080), [(outside(2), 7, b"knock".to_vec())]);
    assert!(knock(&mut world, 8079).is_empty());
    // The guest ends: its connections and its address go, and nobody gets what was for it.
    let port = world.stations[guest].port;
    assert!(world.gateway.router().flows().len() == 1);
    world.gateway.forget(world.now_ns, port);
    assert_eq!(world.address(guest), None);
    assert_eq!(
        world.gateway.router().neighbours().list(world.now_ns).filter(|known| known.3 == port).count(),
        0
    );
    world.pass(1);
    assert_eq!(
        world.gateway.router().forward(0).unwrap().to,
        None,
        "the next with that address is another guest"
    );
}

#[test]
fn nobody_speaks_from_an_address_that_is_anothers() {
    let mut world = World::new();
    let guest = world.guest(20, "web");
    let thief = world.guest(21, "thief");
    world.pass(3000);
    let fixed = Guest { name: "fixed".into(), network: GUESTS, fixed: Some(inside(200)) };
    world.gateway.set_guest(PortId::testing(22), fixed).expect("an address of its own");
    let leased = world.address(guest).expect("leased");
    let own = world.address(thief).expect("leased");
    // The router does not know the guest any more, so it would ask, and believe whoever answers first.
    world.now_ns += 400_000 * MILLISECOND;
    let packet = |index: usize, world: &World, source: Ipv4Addr| {
        let udp = crate::net::headers::testing::udp((source.into(), 7), (outside(2).into(), 9), b"");
        crate::net::headers::testing::frame(world.stations[index].mac, station(201), &udp)
    };
    let claim = |mac: MacAddr, source: Ipv4Addr| {
        let word =
            crate::net::headers::testing::arp(2, (mac, source.into()), (station(201), inside(1).into()));
        crate::net::headers::testing::ethernet(mac, station(201), 0x0806, &word)
    };
    let port = world.stations[thief].port;
    for address in [leased, inside(200)] {
        world.dropped.clear();
        world.carry(GUESTS, port, &claim(station(21), address));
        world.carry(GUESTS, port, &packet(thief, &world, address));
        assert_eq!(world.dropped, [Reason::Source; 2], "{address}");
        assert_eq!(world.gateway.router().neighbours().station(world.now_ns, GUESTS, address), None);
    }
    world.dropped.clear();
    world.carry(GUESTS, port, &claim(station(21), own));
    assert_eq!(world.gateway.router().neighbours().station(world.now_ns, GUESTS, own), Some(station(21)));
    // Another interface of the same domain may have the address.
    let second = PortId::testing(23);
    world
        .gateway
        .set_guest(second, Guest { name: "web".into(), network: GUESTS, fixed: None })
        .expect("an address of its own");
    world.carry(GUESTS, second, &claim(station(23), leased));
    assert!(world.dropped.is_empty());
}

#[test]
fn a_guest_with_an_address_of_its_own_is_found_too() {
    let mut world = World::new();
    let by_hand = world.add(GUESTS, 20);
    let fixed = world.add(GUESTS, 21);
    let port = |world: &World, index: usize| world.stations[index].port;
    let (first, second) = (port(&world, by_hand), port(&world, fixed));
    world
        .gateway
        .set_guest(first, Guest { name: "hand".into(), network: GUESTS, fixed: None })
        .expect("an address of its own");
    world
        .gateway
        .set_guest(second, Guest { name: "fixed".into(), network: GUESTS, fixed: Some(inside(200)) })
        .expect("an address of its own");
    for name in ["fixed", "FIXED", "fixed.internal", "Fixed.Internal."] {
        assert_eq!(world.gateway.address_of(0, name), Some(inside(200)), "{name}");
    }
    assert_eq!(world.gateway.address_of(0, "fixed.example"), None);
    assert_eq!(world.gateway.address_of(0, "hand"), None);
    world.stations[by_hand].host.set_address(Some(Ipv4Cidr::new(inside(150), 24)), Some(inside(1)));
    assert_eq!(world.ping(by_hand, inside(1)), [IpAddr::V4(inside(1))]);
    assert_eq!(world.gateway.address_of(world.now_ns, "HAND"), Some(inside(150)));
    world.stations[fixed].host.ask_for_address();
    world.pass(3000);
    assert_eq!(world.address(fixed), Some(inside(200)), "the server gives it, too");
}

#[test]
fn an_address_of_a_configuration_is_one_that_a_guest_can_have() {
    let mut world = World::new();
    let port = PortId::testing(7);
    let guest = |fixed| Guest { name: "web".into(), network: GUESTS, fixed: Some(fixed) };
    assert_eq!(
        world.gateway.set_guest(port, guest(inside(1))),
        Err("ip `10.88.0.1`: it is the gateway's own address".into())
    );
    // One of another network is nothing that a server here gives, or that a forward leads to.
    world.gateway.set_guest(port, guest(outside(77))).expect("the guest's business");
    assert_eq!(world.gateway.address_of(0, "web"), None);
    world.gateway.set_guest(port, guest(inside(77))).expect("free");
    assert_eq!(world.gateway.address_of(0, "web"), Some(inside(77)));
}

#[test]
fn checksums_are_completed() {
    let from = frames::UdpEnd { mac: station(1), address: inside(5), port: 1 };
    let to = frames::UdpEnd { mac: station(2), address: inside(6), port: 2 };
    for payload in [&b""[..], b"x", b"some more bytes"] {
        let whole = frames::udp(from, to, payload);
        let pseudo = checksum::fold(checksum::pseudo(
            inside(5).into(),
            inside(6).into(),
            17,
            8 + payload.len() as u32,
        ));
        let mut partial = whole.clone();
        partial[40..42].copy_from_slice(&pseudo.to_be_bytes());
        assert!(Datagram::read(&mut partial.clone()).is_none(), "not a right checksum yet");
        complete(&mut partial);
        assert_eq!(partial, whole);
    }
    for len in 0..50 {
        complete(&mut alloc::vec![0x45; len]);
    }
}
