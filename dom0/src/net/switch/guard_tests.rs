use core::net::IpAddr;

use proptest::prelude::*;

use super::guard::{Guard, GuardError, MAX_ADDRESSES};
use super::tests::Bench;
use super::*;
use crate::net::MacAddr;
use crate::net::headers::ethertype;
use crate::net::headers::testing::*;

/// A bench with a vif of station 1, 10.0.0.1 and 2001:db8::1, and a wire.
fn bench() -> (Bench, PortId) {
    let mut bench = Bench::new();
    let vif = PortConfig::vif("vif1.0".into(), bench.a, station(1));
    let guard = Some(Guard::parse("10.0.0.1 2001:db8::1").unwrap());
    let vif = bench.switch.add_port(PortConfig { guard, ..vif }).unwrap();
    bench.wire(bench.a);
    (bench, vif)
}

/// What becomes of frames that the vif sends, each told by a word: those for which another reason than `want` comes out.
fn hold(want: Option<Reason>, frames: &[(&str, Vec<u8>)]) {
    let (mut bench, vif) = bench();
    for (what, frame) in frames {
        let before = want.map(|reason| bench.drops(vif, reason));
        assert_eq!(bench.send(vif, frame).err(), want, "{what}");
        assert_eq!(want.map(|reason| bench.drops(vif, reason)), before.map(|n| n + 1), "{what}: not counted");
    }
}

fn sent(packet: &[u8]) -> Vec<u8> {
    frame(station(1), station(9), packet)
}

fn any_v4() -> IpAddr {
    IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED)
}

fn any_v6() -> IpAddr {
    IpAddr::V6(core::net::Ipv6Addr::UNSPECIFIED)
}

fn arp_frame(operation: u16, mac: u8, ip: IpAddr) -> Vec<u8> {
    let packet = arp(operation, (station(mac), ip), (MacAddr([0; 6]), v4(9)));
    ethernet(station(1), MacAddr::BROADCAST, ethertype::ARP, &packet)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

/// The body of a solicitation or advertisement: target, and a link option of that kind.
fn about(target: IpAddr, option: u8, link: u8) -> Vec<u8> {
    let option = if option == 0 { vec![] } else { [&[option, 1][..], &station(link).0].concat() };
    [octets(target), option].concat()
}

#[test]
fn own_addresses_pass() {
    let own = station(1).link_local().into();
    let mut fragment = udp((v4(1), 1), (v4(9), 2), &[0; 64]);
    fragment[6..8].copy_from_slice(&[0x20, 0]);
    let mut later = fragment.clone();
    later[6..8].copy_from_slice(&[0, 9]);
    hold(
        None,
        &[
            ("TCP", sent(&tcp((v4(1), 1), (v4(9), 80), 2, b""))),
            ("UDP of IPv6", sent(&udp((v6(1), 1), (v6(9), 53), b""))),
            ("link-local", sent(&udp((own, 546), (v6(9), 547), b""))),
            ("first fragment", sent(&fragment)),
            ("later fragment", sent(&later)),
            ("ARP request", arp_frame(1, 1, v4(1))),
            ("ARP reply", arp_frame(2, 1, v4(1))),
            ("ARP probe", arp_frame(1, 1, any_v4())),
            ("DHCP", sent(&udp((any_v4(), 68), (IpAddr::V4(core::net::Ipv4Addr::BROADCAST), 67), &[1; 240]))),
            ("DHCP, renewed", sent(&udp((v4(1), 68), (v4(9), 67), &[1; 240]))),
            ("solicitation", sent(&neighbour(v6(1), v6(9), 135, &about(v6(9), 1, 1)))),
            ("advertisement", sent(&neighbour(v6(1), v6(9), 136, &about(v6(1), 2, 1)))),
            ("of link-local", sent(&neighbour(own, v6(9), 136, &about(own, 2, 1)))),
            ("is it free?", sent(&neighbour(any_v6(), v6(9), 135, &about(v6(1), 0, 0)))),
            ("routers?", sent(&neighbour(any_v6(), v6(9), 133, b""))),
            ("groups", sent(&icmp(any_v6(), v6(9), [143, 0], 0, b""))),
        ],
    );
}

#[test]
fn others_ip_addresses_do_not() {
    let broadcast = IpAddr::V4(core::net::Ipv4Addr::BROADCAST);
    let mut fragment = udp((any_v4(), 68), (broadcast, 67), &[0; 64]);
    fragment[6] = 0x20;
    hold(
        Some(Reason::SpoofedIp),
        &[
            ("TCP", sent(&tcp((v4(2), 1), (v4(9), 80), 2, b""))),
            ("UDP of IPv6", sent(&udp((v6(2), 1), (v6(9), 53), b""))),
            ("another's link-local", sent(&udp((station(2).link_local().into(), 1), (v6(9), 2), b""))),
            ("no address", sent(&tcp((any_v4(), 68), (broadcast, 67), 2, b""))),
            ("DHCP to one", sent(&udp((any_v4(), 68), (v4(9), 67), b""))),
            ("DHCP from elsewhere", sent(&udp((any_v4(), 69), (broadcast, 67), b""))),
            ("DHCP in fragments", sent(&fragment)),
            ("no address of IPv6", sent(&udp((any_v6(), 1), (v6(9), 2), b""))),
            ("ping from nowhere", sent(&icmp(any_v6(), v6(9), [128, 0], 0, b""))),
            ("advertisement from nowhere", sent(&neighbour(any_v6(), v6(9), 136, &about(v6(1), 2, 1)))),
        ],
    );
}

#[test]
fn every_frame_is_checked() {
    let (mut bench, vif) = bench();
    bench.vif(bench.a, 9);
    let other = sent(&tcp((v4(2), 1), (v4(9), 80), 2, b""));
    for _ in 0..3 {
        assert_eq!(bench.send(vif, &sent(&tcp((v4(1), 1), (v4(9), 80), 2, b""))).err(), None);
        assert_eq!(bench.send(vif, &other), Err(Reason::SpoofedIp), "between the same stations");
    }
}

#[test]
fn nobody_speaks_for_others() {
    hold(
        Some(Reason::SpoofedArp),
        &[
            ("another's IP", arp_frame(2, 1, v4(2))),
            ("another's IP, asking", arp_frame(1, 1, v4(2))),
            ("another's station", arp_frame(2, 2, v4(1))),
            ("reply from nowhere", arp_frame(2, 1, any_v4())),
            ("probe of another station", arp_frame(1, 2, any_v4())),
            ("reverse ARP", arp_frame(4, 1, v4(1))),
        ],
    );
    hold(
        Some(Reason::SpoofedNeighbour),
        &[
            ("another's address", sent(&neighbour(v6(1), v6(9), 136, &about(v6(2), 2, 1)))),
            ("another's station", sent(&neighbour(v6(1), v6(9), 136, &about(v6(1), 2, 2)))),
            ("asking as another", sent(&neighbour(v6(1), v6(9), 135, &about(v6(9), 1, 2)))),
            ("wanting another's", sent(&neighbour(any_v6(), v6(9), 135, &about(v6(2), 0, 0)))),
            ("from nowhere with a station", sent(&neighbour(any_v6(), v6(9), 135, &about(v6(1), 1, 1)))),
            ("routers as another", sent(&neighbour(v6(1), v6(9), 133, &about(v6(1), 1, 2)[16..]))),
        ],
    );
    hold(
        Some(Reason::RogueServer),
        &[
            ("router", sent(&neighbour(v6(1), v6(9), 134, &[0; 8]))),
            ("redirect", sent(&neighbour(v6(1), v6(9), 137, &[0; 32]))),
            ("DHCP server", sent(&udp((v4(1), 67), (v4(9), 1000), b""))),
            ("to DHCP client", sent(&udp((v4(1), 1000), (v4(9), 68), b""))),
            ("DHCPv6 server", sent(&udp((v6(1), 547), (v6(9), 1000), b""))),
            ("to DHCPv6 client", sent(&udp((v6(1), 1000), (v6(9), 546), b""))),
        ],
    );
}

#[test]
fn what_cannot_be_seen_does_not_pass() {
    let good = tcp((v4(1), 1), (v4(9), 80), 2, &[0; 40]);
    let fragment = |flags: u8, offset: u8| {
        let mut packet = good.clone();
        packet[6..8].copy_from_slice(&[flags, offset]);
        sent(&packet)
    };
    let tiny = |flags: u8| {
        let mut packet = ip(v4(1), v4(9), 6, &good[20..28]);
        packet[6] = flags;
        sent(&packet)
    };
    let fragments = [
        ("first without its header", tiny(0x20)),
        ("over the header", fragment(0x20, 1)),
        ("over the header's end", fragment(0, 2)),
    ];
    hold(Some(Reason::Fragment), &fragments);
    hold(None, &[("behind the header", fragment(0, 3))]);
    let mut lies = good.clone();
    lies[3] = 200;
    let option = [&about(v6(1), 2, 1)[..], &[14, 40], &[0; 318]].concat();
    hold(
        Some(Reason::Malformed),
        &[
            ("no TCP header", tiny(0)),
            ("longer than the frame", sent(&lies)),
            (
                "half an ARP packet",
                ethernet(station(1), station(9), ethertype::ARP, &[0, 1, 8, 0, 6, 4, 0, 1]),
            ),
            ("options behind the head", sent(&neighbour(v6(1), v6(9), 136, &option))),
        ],
    );
    let inner = tcp((v4(2), 1), (v4(9), 80), 2, b"");
    hold(
        Some(Reason::NotIp),
        &[
            ("another protocol", ethernet(station(1), station(9), 0x88cc, &inner)),
            ("IEEE 802.3", ethernet(station(1), station(9), 40, &inner)),
        ],
    );
}

#[test]
fn lists_of_addresses() {
    let guard = Guard::parse(" 10.0.0.5/24  10.1.0.0/16 2001:db8::/64 ").unwrap();
    let texts: Vec<String> = guard.addresses().iter().map(|prefix| prefix.to_string()).collect();
    assert_eq!(texts, ["10.0.0.5", "10.1.0.0/16", "2001:db8::/64"]);
    assert_eq!(Guard::parse("10.0.0.5 x"), Err(GuardError::NoAddress("x")));
    assert_eq!(Guard::parse(""), Err(GuardError::Number));
    assert!(Guard::parse(&"10.0.0.5 ".repeat(MAX_ADDRESSES)).is_ok());
    let many = "10.0.0.5 ".repeat(MAX_ADDRESSES + 1);
    assert_eq!(Guard::parse(&many).unwrap_err().to_string(), "ip: expected 1 to 32 addresses");
    let mut bench = Bench::new();
    let vif = PortConfig::vif("vif1.0".into(), bench.a, station(1));
    let config = PortConfig { guard: Some(guard), mac: None, ..vif };
    assert!(matches!(bench.switch.add_port(config), Err(SwitchError::GuardWithoutMac(_))));
    let (mut bench, vif) = self::bench();
    let other = sent(&tcp((v4(2), 1), (v4(9), 80), 2, b""));
    assert_eq!(bench.send(vif, &other).err(), Some(Reason::SpoofedIp));
    bench.switch.set_guard(vif, Some(Guard::parse("10.0.0.2").unwrap())).unwrap();
    assert_eq!(bench.send(vif, &other).err(), None);
    bench.switch.remove_port(vif);
    assert_eq!(bench.switch.set_guard(vif, None), Err(SwitchError::NoPort));
}

#[test]
fn without_ipv6_there_is_no_link_local() {
    let mut bench = Bench::new();
    let vif = PortConfig::vif("vif1.0".into(), bench.a, station(1));
    let guard = Some(Guard::parse("10.0.0.1").unwrap());
    let vif = bench.switch.add_port(PortConfig { guard, ..vif }).unwrap();
    let own = station(1).link_local().into();
    assert_eq!(bench.send(vif, &sent(&udp((own, 1), (v6(9), 2), b""))), Err(Reason::SpoofedIp));
}

proptest! {
    /// Whatever bytes a vif sends, a frame that passes is ARP or IP, and names no address but the vif's own.
    #[test]
    fn what_passes_is_the_vifs_own(
        packet in 0..6u8, changes in proptest::collection::vec((14..90usize, any::<u8>()), 0..6),
    ) {
        let (mut bench, vif) = bench();
        let mut frame = match packet {
            0 => sent(&tcp((v4(1), 1), (v4(9), 80), 2, &[0; 60])),
            1 => sent(&udp((v6(1), 1), (v6(9), 80), &[0; 60])),
            2 => arp_frame(1, 1, v4(1)),
            3 => sent(&neighbour(v6(1), v6(9), 136, &about(v6(1), 2, 1))),
            4 => sent(&neighbour(v6(1), v6(9), 135, &about(v6(9), 1, 1))),
            _ => sent(&udp((any_v4(), 68), (IpAddr::V4(core::net::Ipv4Addr::BROADCAST), 67), &[1; 60])),
        };
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        if bench.send(vif, &frame).is_ok() {
            let len = frame.len() as u32;
            let head = Head::parse(&mut frame, len).unwrap();
            let own = |ip: IpAddr| {
                ip == v4(1) || ip == v6(1) || ip == IpAddr::V6(station(1).link_local()) || ip.is_unspecified()
            };
            let arp = head.arp();
            let source = head.addresses().map(|(source, _)| source);
            prop_assert!(arp.is_some() || source.is_some());
            prop_assert!(arp.is_none_or(|arp| arp.sender_mac == station(1) && own(arp.sender.into())));
            prop_assert!(source.is_none_or(own));
            if let Some(neighbour) = head.neighbour() {
                prop_assert!(neighbour.target_link.is_none_or(|link| link == station(1)));
                prop_assert!(neighbour.source_link.is_none_or(|link| link == station(1)));
            }
        }
    }
}
