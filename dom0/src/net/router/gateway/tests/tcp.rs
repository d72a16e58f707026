//! The control domain's own connections, and its own address at the uplink.

use core::net::SocketAddrV4;

use smoltcp::socket::tcp::State;

use super::*;
use crate::net::router::{Forward, TcpError};

const PORT: u16 = 8002;

/// Whether a station gets a connection to an address of the gateway's.
fn is_connected(world: &mut World, station: usize, to: Ipv4Addr, from: u16) -> bool {
    let socket = world.stations[station].host.connect(SocketAddrV4::new(to, PORT), from).unwrap();
    world.pass(5000);
    let is_connected = world.stations[station].host.connection(socket).state() == State::Established;
    world.stations[station].host.let_go(socket);
    world.pass(10);
    is_connected
}

#[test]
fn the_world_reaches_a_port_that_listens_and_guests_do_not() {
    let mut world = World::new();
    let guest = world.guest(20, "web");
    world.pass(3000);
    let server = world.gateway.listen(PORT).unwrap();
    assert_eq!(world.gateway.listen(PORT), Err(TcpError::PortTaken));
    let forward = Forward { protocol: 6, port: PORT, guest: "web".into(), to: None, to_port: 80 };
    assert_eq!(
        world.gateway.add_forward(world.now_ns, forward.clone()),
        Err("dom0 has a connection at the port")
    );
    assert!(!is_connected(&mut world, guest, inside(1), 20000));
    assert!(!is_connected(&mut world, guest, outside(15), 20001));
    assert_eq!(world.gateway.connection(server).unwrap().state(), State::Listen);
    // The first of the stations is the world's.
    assert!(is_connected(&mut world, 0, outside(15), 20002));
    world.gateway.let_go(server);
    world.pass(10);
    world.gateway.add_forward(world.now_ns, forward).unwrap();
    assert_eq!(world.gateway.listen(PORT), Err(TcpError::PortTaken));
}

#[test]
fn the_control_domain_connects_by_the_network_that_has_the_address() {
    let mut world = World::new();
    let guest = world.guest(20, "web");
    world.pass(3000);
    let address = world.address(guest).unwrap();
    for (station, to) in [(0, outside(2)), (guest, address)] {
        let server = world.stations[station].host.listen(PORT).unwrap();
        let client = world.gateway.connect(SocketAddrV4::new(to, PORT)).unwrap();
        world.pass(100);
        assert_eq!(world.gateway.connection(client).unwrap().state(), State::Established);
        world.gateway.let_go(client);
        world.pass(10);
        assert_eq!(world.stations[station].host.connection(server).state(), State::Closed);
    }
    for nowhere in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST, inside(1), outside(15)] {
        assert_eq!(
            world.gateway.connect(SocketAddrV4::new(nowhere, PORT)),
            Err(TcpError::NoWay),
            "{nowhere}"
        );
    }
}

#[test]
fn the_administrator_gives_the_uplink_an_address() {
    let mut world = World::new();
    let cidr = |address: Ipv4Addr, bits| Ipv4Cidr::new(address, bits);
    let now_ns = world.now_ns;
    for (address, gateway, what) in [
        (cidr(Ipv4Addr::BROADCAST, 24), None, "no address that a station can have"),
        (cidr(outside(7), 0), None, "no address that a station can have"),
        (cidr(outside(7), 24), Some(outside(7)), "no other station of"),
        (cidr(outside(7), 24), Some(inside(1)), "no other station of"),
        (cidr(inside(7), 24), None, "the guests' network has such addresses"),
        (cidr(Ipv4Addr::new(10, 1, 1, 1), 8), None, "the guests' network has such addresses"),
    ] {
        let error = world.gateway.set_uplink(now_ns, address, gateway).unwrap_err();
        assert!(error.contains(what), "{error}");
    }
    world.gateway.set_uplink(now_ns, cidr(outside(7), 24), Some(outside(2))).unwrap();
    world.pass(3000);
    // The DHCP server is not asked, and its word would not count.
    let uplink = world.gateway.router().network(UPLINK).unwrap();
    assert_eq!((uplink.address, uplink.gateway), (Some(cidr(outside(7), 24)), Some(outside(2))));
    assert!(world.stations[0].host.ping(outside(7), 5));
    world.pass(100);
    assert_eq!(world.stations[0].host.pongs().len(), 1);
}
