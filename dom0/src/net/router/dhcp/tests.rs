//! Stations that keep to the protocol, and others.

use super::*;
use proptest::prelude::*;

const A: PortId = PortId::testing(1);
const B: PortId = PortId::testing(2);
const SECOND: u64 = 1_000_000_000;

fn mac(number: u8) -> EthernetAddress {
    EthernetAddress([0, 0x16, 0x3e, 0, 0, number])
}

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, last)
}

fn server() -> Server {
    Server::new(Pool {
        server: Ipv4Cidr::new(ip(1), 24),
        first: ip(10),
        last: ip(15),
        mtu: 1500,
        domain: "internal".into(),
    })
}

/// What a station says; the rest is as in a usual message.
#[derive(Clone, Copy, Default)]
struct Says {
    client: Option<Ipv4Addr>,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    broadcast: bool,
    name: &'static str,
}

fn message(kind: Kind, mac: EthernetAddress, says: Says) -> Vec<u8> {
    let name = [DhcpOption { kind: OPTION_HOST_NAME, data: says.name.as_bytes() }];
    let repr = DhcpRepr {
        message_type: kind,
        transaction_id: 0x1234_5678,
        secs: 0,
        client_hardware_address: mac,
        client_ip: says.client.unwrap_or(Ipv4Addr::UNSPECIFIED),
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: says.broadcast,
        requested_ip: says.wanted,
        client_identifier: Some(mac),
        server_identifier: says.server,
        parameter_request_list: Some(&[1, 3, 6]),
        dns_servers: None,
        max_size: Some(1472),
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: if says.name.is_empty() { &[] } else { &name },
    };
    let mut bytes = alloc::vec![0; repr.buffer_len()];
    repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).expect("long enough");
    bytes
}

/// Kind and address of an answer.
fn read(answer: &Answer) -> (Kind, Ipv4Addr) {
    assert!(answer.message.len() >= BOOTP_BYTES);
    let packet = DhcpPacket::new_checked(&answer.message[..]).expect("whole");
    let repr = DhcpRepr::parse(&packet).expect("well-formed");
    assert_eq!((repr.transaction_id, repr.client_hardware_address), (0x1234_5678, answer.mac));
    assert_eq!(repr.server_identifier, Some(ip(1)));
    (repr.message_type, repr.your_ip)
}

/// Says `kind`, and gives kind and address of the answer.
fn say(
    server: &mut Server,
    now_ns: u64,
    port: PortId,
    number: u8,
    kind: Kind,
    says: Says,
) -> Option<(Kind, Ipv4Addr)> {
    server.answer(now_ns, port, mac(number), &message(kind, mac(number), says)).map(|answer| read(&answer))
}

/// The way to an address: discover, offer, request, acknowledgement.
fn join(server: &mut Server, now_ns: u64, port: PortId, number: u8) -> Option<Ipv4Addr> {
    let (kind, address) = say(server, now_ns, port, number, Kind::Discover, Says::default())?;
    assert_eq!(kind, Kind::Offer);
    let says = Says { wanted: Some(address), server: Some(ip(1)), ..Says::default() };
    assert_eq!(say(server, now_ns, port, number, Kind::Request, says), Some((Kind::Ack, address)));
    Some(address)
}

#[test]
fn a_station_gets_an_address_and_all_that_it_needs() {
    let mut server = server();
    let says = Says { name: "Web-1.example.org", ..Says::default() };
    let answer = server.answer(0, A, mac(1), &message(Kind::Discover, mac(1), says)).expect("an offer");
    assert_eq!((answer.mac, answer.address), (mac(1), Some(ip(10))));
    assert!(server.leases(0).is_empty(), "an offer is no lease");
    let says = Says { wanted: Some(ip(10)), server: Some(ip(1)), ..says };
    let answer = server.answer(0, A, mac(1), &message(Kind::Request, mac(1), says)).expect("a lease");
    let packet = DhcpPacket::new_checked(&answer.message[..]).expect("whole");
    let repr = DhcpRepr::parse(&packet).expect("well-formed");
    assert_eq!((repr.message_type, repr.your_ip, repr.router), (Kind::Ack, ip(10), Some(ip(1))));
    assert_eq!(repr.subnet_mask, Some(Ipv4Addr::new(255, 255, 255, 0)));
    assert_eq!(repr.lease_duration, Some(3600));
    assert_eq!(repr.dns_servers.as_deref(), Some(&[ip(1)][..]));
    let option = |kind| packet.options().find(|option| option.kind == kind).map(|option| option.data);
    assert_eq!(option(OPTION_MTU), Some(&1500u16.to_be_bytes()[..]));
    assert_eq!(option(OPTION_DOMAIN_NAME), Some(&b"internal"[..]));
    assert_eq!(option(OPTION_BROADCAST), Some(&[10, 88, 0, 255][..]));
    let [lease] = &server.leases(0)[..] else { panic!("one lease") };
    assert_eq!((lease.address, lease.port, lease.name.as_deref()), (ip(10), A, Some("web-1")));
    assert!(server.leases(3600 * SECOND).is_empty(), "an hour later it is over");
}

#[test]
fn answers_go_where_the_station_can_hear_them() {
    let mut server = server();
    let to = |server: &mut Server, kind, says| {
        server.answer(0, A, mac(1), &message(kind, mac(1), says)).expect("an answer").address
    };
    assert_eq!(to(&mut server, Kind::Discover, Says { broadcast: true, ..Says::default() }), None);
    assert_eq!(to(&mut server, Kind::Discover, Says::default()), Some(ip(10)));
    assert_eq!(
        to(&mut server, Kind::Request, Says { wanted: Some(ip(9)), ..Says::default() }),
        None,
        "a refusal"
    );
    let renews = Says { client: Some(ip(10)), ..Says::default() };
    assert_eq!(to(&mut server, Kind::Request, renews), Some(ip(10)));
    let other = Says { client: Some(ip(99)), ..Says::default() };
    assert_eq!(to(&mut server, Kind::Inform, other), Some(ip(99)));
}

#[test]
fn a_station_keeps_its_address() {
    let mut server = server();
    assert_eq!(join(&mut server, 0, A, 1), Some(ip(10)));
    assert_eq!(join(&mut server, 0, B, 2), Some(ip(11)));
    // The station starts again, renews, and comes back after a pause.
    assert_eq!(join(&mut server, SECOND, A, 1), Some(ip(10)));
    let renews = Says { client: Some(ip(10)), ..Says::default() };
    assert_eq!(say(&mut server, 1800 * SECOND, A, 1, Kind::Request, renews), Some((Kind::Ack, ip(10))));
    assert_eq!(server.leases(5000 * SECOND).len(), 1, "renewed, the other not");
    assert_eq!(join(&mut server, 90_000 * SECOND, A, 1), Some(ip(10)));
    // The station remembers the address from an earlier life of the server.
    let mut server = self::server();
    let remembers = Says { wanted: Some(ip(13)), ..Says::default() };
    assert_eq!(say(&mut server, 0, A, 1, Kind::Request, remembers), Some((Kind::Ack, ip(13))));
    assert_eq!(say(&mut server, 0, B, 2, Kind::Request, remembers).map(|answer| answer.0), Some(Kind::Nak));
}

#[test]
fn a_discover_does_not_shorten_a_lease() {
    let mut server = server();
    join(&mut server, 0, A, 1);
    say(&mut server, 10 * SECOND, A, 1, Kind::Discover, Says::default());
    assert_eq!(server.leases(3599 * SECOND).len(), 1);
}

#[test]
fn wrong_wishes_are_refused() {
    let mut server = server();
    for wanted in [ip(1), ip(9), ip(16), Ipv4Addr::new(10, 88, 1, 10), Ipv4Addr::BROADCAST] {
        let says = Says { wanted: Some(wanted), ..Says::default() };
        assert_eq!(say(&mut server, 0, A, 1, Kind::Request, says), Some((Kind::Nak, Ipv4Addr::UNSPECIFIED)));
        let says = Says { client: Some(wanted), ..Says::default() };
        assert_eq!(say(&mut server, 0, A, 1, Kind::Request, says), Some((Kind::Nak, Ipv4Addr::UNSPECIFIED)));
    }
    assert_eq!(
        say(&mut server, 0, A, 1, Kind::Request, Says::default()).map(|answer| answer.0),
        Some(Kind::Nak)
    );
    // Another server's offer was taken, and ours is free again.
    assert!(say(&mut server, 0, A, 1, Kind::Discover, Says::default()).is_some());
    let other = Says { wanted: Some(ip(10)), server: Some(ip(2)), ..Says::default() };
    assert_eq!(say(&mut server, 0, A, 1, Kind::Request, other), None);
    assert_eq!(join(&mut server, 0, B, 2), Some(ip(10)));
}

#[test]
fn nobody_takes_what_another_has() {
    let mut server = server();
    assert_eq!(join(&mut server, 0, A, 1), Some(ip(10)));
    // The same Ethernet address behind another port is another station.
    assert_eq!(join(&mut server, 0, B, 1), Some(ip(11)));
    for kind in [Kind::Release, Kind::Decline] {
        let says = Says { client: Some(ip(10)), wanted: Some(ip(10)), ..Says::default() };
        assert_eq!(say(&mut server, 0, B, 1, kind, says), None);
        assert_eq!(server.leases(0).len(), 2, "{kind:?}");
    }
    // A message in another station's name is none.
    assert_eq!(server.answer(0, B, mac(3), &message(Kind::Discover, mac(1), Says::default())), None);
    assert_eq!(server.counters().malformed, 1);
}

#[test]
fn no_port_takes_all_addresses() {
    let mut server = server();
    let taken = (0..100).filter(|number| join(&mut server, 0, A, *number).is_some()).count();
    assert_eq!(taken, ADDRESSES_PER_PORT);
    assert_eq!(server.counters().exhausted, 96);
    assert!(join(&mut server, 0, B, 200).is_some());
    // By declining what it gets a port gets no more than that either.
    let mut server = self::server();
    for number in 0..100 {
        let offer = say(&mut server, 0, A, number, Kind::Discover, Says::default());
        if let Some((_, address)) = offer {
            let says = Says { wanted: Some(address), server: Some(ip(1)), ..Says::default() };
            say(&mut server, 0, A, number, Kind::Decline, says);
        }
    }
    assert!(join(&mut server, 0, B, 200).is_some());
    // The addresses that were declined are given again later, and at once to nobody.
    assert_eq!(join(&mut server, 0, B, 201), Some(ip(15)));
    assert_eq!(join(&mut server, 0, B, 202), None);
    assert!(join(&mut server, 601 * SECOND, B, 202).is_some());
}

#[test]
fn an_address_of_a_configuration_is_its_ports_alone() {
    let mut server = server();
    server.fix(B, ip(10));
    server.fix(PortId::testing(3), ip(200));
    assert_eq!(join(&mut server, 0, A, 1), Some(ip(11)));
    let says = Says { wanted: Some(ip(10)), ..Says::default() };
    assert_eq!(say(&mut server, 0, A, 1, Kind::Request, says).map(|answer| answer.0), Some(Kind::Nak));
    assert_eq!(join(&mut server, 0, B, 2), Some(ip(10)));
    assert_eq!(join(&mut server, 0, B, 3), None, "one address, one station");
    assert_eq!(join(&mut server, 0, PortId::testing(3), 4), Some(ip(200)), "outside of the range too");
    server.forget(B);
    assert_eq!(join(&mut server, 0, PortId::testing(4), 5), Some(ip(10)));
    assert_eq!(server.leases(0).len(), 3);
}

#[test]
fn released_addresses_are_free_and_unused_ones_go_first() {
    let mut server = server();
    join(&mut server, 0, A, 1);
    let says = Says { client: Some(ip(10)), ..Says::default() };
    assert_eq!(say(&mut server, 0, A, 1, Kind::Release, says), None);
    assert!(server.leases(0).is_empty());
    assert_eq!(join(&mut server, 0, B, 2), Some(ip(10)));
    assert_eq!(join(&mut server, 0, A, 1), Some(ip(11)));
    // The first's time is over, but nobody has had the third.
    assert_eq!(join(&mut server, 7200 * SECOND, PortId::testing(3), 3), Some(ip(12)));
}

#[test]
fn names_are_labels() {
    for (name, expected) in [
        ("web", Some("web")),
        ("Deb-12.example.org", Some("deb-12")),
        ("", None),
        (".x", None),
        ("-x", None),
        ("a b", None),
        ("w\u{e4}b", None),
        ("x\n", None),
    ] {
        assert_eq!(label(name).as_deref(), expected, "{name:?}");
    }
    assert_eq!(label(&"x".repeat(63)).map(|name| name.len()), Some(63));
    assert_eq!(label(&"x".repeat(64)), None);
}

proptest! {
    /// Whatever the stations say, no address is two stations' at a time, none outside of the pool is given, and no port
    /// has more than its share.
    #[test]
    fn addresses_are_one_stations_each(
        steps in prop::collection::vec((0u8..6, 0u16..3, 0u8..8, 8u8..18, any::<bool>(), 0u64..900), 1..120),
    ) {
        let mut server = server();
        let mut now_ns = 0;
        // By address: port and station that were told that they have it, and until when.
        let mut told: BTreeMap<Ipv4Addr, (PortId, u8, u64)> = BTreeMap::new();
        for (kind, port, number, last, renews, pause) in steps {
            now_ns += pause * SECOND;
            let port = PortId::testing(port);
            let kinds = [Kind::Discover, Kind::Request, Kind::Request, Kind::Decline, Kind::Release, Kind::Inform];
            let kind = kinds[usize::from(kind)];
            let says = if renews && kind != Kind::Discover || kind == Kind::Release {
                Says { client: Some(ip(last)), ..Says::default() }
            } else {
                Says { wanted: Some(ip(last)), ..Says::default() }
            };
            let answer = say(&mut server, now_ns, port, number, kind, says);
            if matches!(kind, Kind::Release | Kind::Decline)
                && told.get(&ip(last)).is_some_and(|(of, by, _)| (*of, *by) == (port, number))
            {
                told.remove(&ip(last));
            }
            if kind == Kind::Request && let Some((Kind::Ack, address)) = answer {
                prop_assert!((ip(10)..=ip(15)).contains(&address));
                if let Some((of, by, until)) = told.get(&address) {
                    prop_assert!((*of, *by) == (port, number) || *until <= now_ns, "{address} twice");
                }
                told.insert(address, (port, number, now_ns + 3600 * SECOND));
            }
            for port in 0..3 {
                let has = server.taken.values().filter(|entry| entry.port == PortId::testing(port) && entry.until_ns > now_ns);
                prop_assert!(has.count() <= ADDRESSES_PER_PORT);
            }
        }
    }

    /// Any bytes are taken for what they are.
    #[test]
    fn any_message(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0usize..400, with in any::<u8>()) {
        let mut server = server();
        server.answer(0, A, mac(1), &bytes);
        let mut message = message(Kind::Request, mac(1), Says { wanted: Some(ip(10)), ..Says::default() });
        let at = at % message.len();
        message[at] = with;
        server.answer(0, A, mac(1), &message);
        server.answer(0, A, mac(1), &message[..at]);
    }
}
