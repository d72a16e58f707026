//! Frames that a guest or the wire may send: how their headers are read and rewritten, and where the switch lets them go.
//!
//! The judge of what passes is smoltcp: what a receiver would read from a frame is what must not be another's.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dom0::net::capture::Capture;
use dom0::net::headers::{Endpoint, Side, checksum};
use dom0::net::switch::{Action, BridgeId, PortConfig, PortId, Rule, Rules, Switch, Verdict, Vlans};
use dom0::net::switch::{Form, Guard, Tap, Target};
use dom0::net::{Head, MacAddr};
use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet,
    Ipv6Packet, NdiscRepr, RawHardwareAddress, TcpPacket, UdpPacket,
};

use crate::input::Input;

/// What dom0 sees of a frame, at most.
const HEAD: usize = 256;

/// Every look at a frame's headers, and every change.
pub(crate) fn headers(data: &[u8]) {
    let input = Input::new(data);
    let more = u32::from(input.u16() & 0x7ff);
    let (is_v6, partial, port) = (input.below(2) == 1, input.below(2) == 1, input.u16());
    let mut bytes = input.take(HEAD);
    let len = bytes.len() as u32 + more;
    let Some(mut head) = Head::parse(&mut bytes, len) else { return };
    let ip = if is_v6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let _ = (head.arp(), head.icmp(), head.tcp_flags(), head.neighbour(), head.tag());
    let was_right = head.is_ipv4_sum_right();
    for side in [Side::Source, Side::Destination] {
        for port in [None, Some(port)] {
            let (flow, quoted) = (head.flow(), head.quoted_flow());
            if head.rewrite(side, Endpoint { ip, port }, partial) {
                assert!(head.addresses().is_some_and(|(from, to)| [from, to].contains(&ip)));
                assert_eq!(head.flow().is_some(), flow.is_some());
            } else {
                assert_eq!(head.flow(), flow, "refused, and changed");
            }
            if head.rewrite_quoted(side, Endpoint { ip, port }, partial) {
                assert!(quoted.is_none_or(|quoted| {
                    head.quoted_flow().is_some_and(|now| now.protocol == quoted.protocol)
                }));
            }
        }
    }
    let _ = head.pass_hop();
    assert!(!was_right || head.is_ipv4_sum_right(), "the header's checksum was right");
    let network = head.network();
    assert_eq!(Head::parse(&mut bytes, len).map(|head| head.network()), Some(network));
    let half = bytes.len() / 2 & !1;
    assert_eq!(
        checksum::fold(checksum::sum(&bytes[..half]) + checksum::sum(&bytes[half..])),
        !checksum::of(&bytes)
    );
}

const fn station(n: u8) -> MacAddr {
    MacAddr([0, 0x16, 0x3e, 0, 0, n])
}

/// The ports of the switch: which bridge, and what stands there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Station 0, with 10.0.0.1 and 2001:db8::1.
    Guarded,
    /// A station that may be reached on TCP's port 80, and by answers.
    Walled,
    Isolated,
    Trunk,
    Free,
    Wire,
}

const KINDS: [(Kind, usize); 9] = [
    (Kind::Guarded, 0),
    (Kind::Walled, 0),
    (Kind::Isolated, 0),
    (Kind::Isolated, 0),
    (Kind::Trunk, 0),
    (Kind::Free, 0),
    (Kind::Wire, 0),
    (Kind::Free, 1),
    (Kind::Wire, 1),
];

const OWN: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 0, 0, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

struct Bench {
    switch: Switch,
    bridges: [BridgeId; 2],
    ports: Vec<PortId>,
    /// What the walled guest has asked by UDP: own address and port, the other's.
    asked: HashSet<(IpAddr, u16, IpAddr, u16)>,
    now_ns: u64,
    /// The last frame, and where it came in.
    last: Option<(usize, Vec<u8>)>,
}

fn add(switch: &mut Switch, bridges: [BridgeId; 2], n: usize) -> PortId {
    let (kind, bridge) = KINDS[n];
    let vif = PortConfig::vif(format!("vif{n}"), bridges[bridge], station(n as u8));
    let config = match kind {
        Kind::Guarded => PortConfig { guard: Guard::parse("10.0.0.1 2001:db8::1").ok(), ..vif },
        Kind::Walled => vif,
        Kind::Isolated => PortConfig { is_isolated: true, ..vif },
        Kind::Trunk => PortConfig { vlans: Vlans::parse(":5:6").unwrap_or(Vlans::All), ..vif },
        Kind::Free => PortConfig { mac: None, stations: 4, ..vif },
        Kind::Wire => {
            PortConfig { stations: 8, ..PortConfig::wire(format!("eth{n}"), bridges[bridge], 1500) }
        }
    };
    let port = switch.add_port(config).expect("room");
    if kind == Kind::Walled {
        let mut rules = Rules::new(Action::Drop, Action::Accept);
        assert!(rules.push(Rule::parse("in accept tcp port 80").expect("a rule")));
        switch.set_rules(port, Some(rules)).expect("a port");
    }
    port
}

impl Bench {
    fn new() -> Bench {
        let mut switch = Switch::new([1, 2]);
        let bridges = ["a", "b"].map(|name| switch.add_bridge(name).expect("a bridge"));
        let ports = (0..KINDS.len()).map(|n| add(&mut switch, bridges, n)).collect();
        Bench { switch, bridges, ports, asked: HashSet::new(), now_ns: 0, last: None }
    }

    fn send(&mut self, from: usize, frame: &[u8]) {
        let mut bytes = frame[..frame.len().min(HEAD)].to_vec();
        let Some(head) = Head::parse(&mut bytes, frame.len() as u32) else { return };
        if KINDS[from].0 == Kind::Walled
            && let Some(seen) = Seen::of(frame)
            && seen.is_udp
        {
            self.asked.insert((seen.from, seen.ports.0, seen.to, seen.ports.1));
        }
        let id = self.ports[from];
        let again = self.switch.again(self.now_ns, id, frame.first_chunk().expect("a header"));
        let again = again.filter(|again| again.takes(frame.len() as u32, false));
        let captured = self.captured();
        let verdict = self.switch.forward(self.now_ns, id, &head, false);
        let targets: Vec<Target> = match &verdict {
            Verdict::Drop(_) => Vec::new(),
            Verdict::One(target) => vec![*target],
            Verdict::Many(targets) => targets.iter(&self.switch).collect(),
        };
        self.check_tap(captured, id, &targets);
        if let Some(again) = again {
            let [target] = targets[..] else { panic!("{verdict:?} in place of one port") };
            assert!(target.port == again.to && target.form == Form::Untagged, "{verdict:?}");
            assert_eq!(again.is_ipv6, frame[12..14] == [0x86, 0xdd]);
        }
        if matches!(verdict, Verdict::Drop(_)) {
            return;
        }
        assert!(!targets.is_empty());
        let (kind, bridge) = KINDS[from];
        let vlans = |port| &self.switch.config(port).expect("a port").vlans;
        let vlan = vlans(id).ingress(&head).expect("a VLAN of the port's");
        for target in targets {
            assert_eq!(vlans(target.port).egress(vlan, &head), Some(target.form));
            let to = self.ports.iter().position(|port| *port == target.port).expect("a port that is there");
            assert!(to != from && KINDS[to].1 == bridge, "{from} -> {to}");
            assert!(!(kind == Kind::Isolated && KINDS[to].0 == Kind::Isolated));
            if KINDS[to].0 == Kind::Walled {
                self.check_walled(frame);
            }
        }
        if kind == Kind::Guarded {
            check_guarded(frame);
        }
        if !matches!(kind, Kind::Free | Kind::Wire) {
            assert_eq!(frame[6..12], station(from as u8).0, "a station of its own");
        }
    }

    /// Frames that the tap has seen.
    fn captured(&mut self) -> Option<u64> {
        self.switch.tap().map(|tap| tap.capture().packets())
    }

    /// The tap has seen the frame once, if it went by one of its ports.
    fn check_tap(&mut self, before: Option<u64>, from: PortId, targets: &[Target]) {
        let Some(before) = before else { return };
        let tap = self.switch.tap().expect("still there");
        let is_tapped = |port: PortId| tap.ports().is_empty() || tap.ports().contains(&port);
        let is_seen = is_tapped(from) || targets.iter().any(|target| is_tapped(target.port));
        assert_eq!(tap.capture().packets(), before + u64::from(is_seen));
    }

    /// Puts a port into other VLANs. A guest with a judge stays where frames have no tags.
    fn move_port(&mut self, n: usize, which: usize) {
        let places = match KINDS[n].0 {
            Kind::Wire => return,
            Kind::Guarded | Kind::Walled => ["", ".5", ".6", ""],
            _ => ["", ".5", ":5:6", ".5:6"],
        };
        let vlans = Vlans::parse(places[which]).expect("VLANs");
        self.switch.set_vlans(self.ports[n], vlans).expect("nobody else has the station");
    }

    /// Begins a capture at a port, or at all of them.
    fn set_tap(&mut self, port: Option<PortId>) {
        let capture = Capture::new(4096, 64).expect("memory");
        self.switch.set_tap(Some(Tap::new(capture, port.into_iter().collect(), 0)));
    }

    /// The walled guest gets nothing that its rules do not let in.
    fn check_walled(&self, frame: &[u8]) {
        let Some(seen) = Seen::of(frame) else { return };
        assert!(!seen.begins_tcp || seen.ports.1 == 80, "a connection to port {}", seen.ports.1);
        let is_lease = matches!(seen.ports, (67, 68) | (547, 546));
        let was_asked = self.asked.contains(&(seen.to, seen.ports.1, seen.from, seen.ports.0));
        assert!(!seen.is_udp || was_asked || is_lease, "nobody asked");
    }
}

/// What a receiver reads from an IP packet that is no fragment.
struct Seen {
    from: IpAddr,
    to: IpAddr,
    ports: (u16, u16),
    is_udp: bool,
    begins_tcp: bool,
}

/// The frame's protocol and payload, without a tag that has a priority alone.
fn untagged(frame: &[u8]) -> Option<(EthernetProtocol, &[u8])> {
    let outer = EthernetFrame::new_checked(frame).ok()?;
    match frame[14..] {
        [_, low, first, second, ref payload @ ..]
            if frame[12..14] == [0x81, 0] && low == 0 && frame[14] & 15 == 0 =>
        {
            Some((EthernetProtocol::from(u16::from_be_bytes([first, second])), payload))
        }
        _ => Some((outer.ethertype(), &frame[14..])),
    }
}

impl Seen {
    fn of(frame: &[u8]) -> Option<Seen> {
        let (from, to, protocol, payload): (IpAddr, IpAddr, IpProtocol, &[u8]);
        let (ethertype, packet) = untagged(frame)?;
        match ethertype {
            EthernetProtocol::Ipv4 => {
                let packet = Ipv4Packet::new_checked(packet).ok().filter(|packet| packet.version() == 4)?;
                if packet.more_frags() || packet.frag_offset() != 0 {
                    return None;
                }
                (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
                let header_len = usize::from(packet.header_len());
                let total_len = usize::from(packet.total_len());
                (protocol, payload) = (packet.next_header(), packet.into_inner().get(header_len..total_len)?);
            }
            EthernetProtocol::Ipv6 => {
                let packet = Ipv6Packet::new_checked(packet).ok().filter(|packet| packet.version() == 6)?;
                (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
                let total_len = packet.total_len();
                (protocol, payload) = (packet.next_header(), packet.into_inner().get(40..total_len)?);
            }
            _ => return None,
        }
        let (ports, begins_tcp) = match protocol {
            IpProtocol::Tcp => {
                let packet = TcpPacket::new_checked(payload).ok()?;
                ((packet.src_port(), packet.dst_port()), packet.syn() && !packet.ack())
            }
            IpProtocol::Udp => {
                let packet = UdpPacket::new_checked(payload).ok()?;
                ((packet.src_port(), packet.dst_port()), false)
            }
            _ => return None,
        };
        Some(Seen { from, to, ports, is_udp: protocol == IpProtocol::Udp, begins_tcp })
    }
}

fn is_own(link: RawHardwareAddress) -> bool {
    link.as_bytes() == station(0).0
}

/// The guarded guest speaks for nobody but itself.
fn check_guarded(frame: &[u8]) {
    let (ethertype, packet) = untagged(frame).expect("a frame");
    match ethertype {
        EthernetProtocol::Arp => {
            let repr = ArpPacket::new_checked(packet).and_then(|packet| ArpRepr::parse(&packet));
            if let Ok(ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, .. }) = repr {
                assert_eq!(source_hardware_addr.0, station(0).0);
                assert!(source_protocol_addr == OWN.0 || source_protocol_addr.is_unspecified());
            }
        }
        EthernetProtocol::Ipv4 => {
            let source = Ipv4Packet::new_unchecked(packet).src_addr();
            assert!(source == OWN.0 || source.is_unspecified(), "{source}");
        }
        EthernetProtocol::Ipv6 => {
            let own = |ip: Ipv6Addr| ip == OWN.1 || ip == station(0).link_local();
            let packet = Ipv6Packet::new_unchecked(packet);
            let (source, destination) = (packet.src_addr(), packet.dst_addr());
            assert!(own(source) || source.is_unspecified(), "{source}");
            if packet.next_header() != IpProtocol::Icmpv6 || packet.check_len().is_err() {
                return;
            }
            let mut unchecked = ChecksumCapabilities::ignored();
            unchecked.icmpv6 = Checksum::None;
            let Ok(icmp) = Icmpv6Packet::new_checked(packet.payload()) else { return };
            match Icmpv6Repr::parse(&source, &destination, &icmp, &unchecked) {
                Ok(Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { target_addr, lladdr, .. })) => {
                    assert!(own(target_addr) && lladdr.is_none_or(is_own), "{target_addr}");
                }
                Ok(Icmpv6Repr::Ndisc(
                    NdiscRepr::NeighborSolicit { lladdr, .. } | NdiscRepr::RouterSolicit { lladdr },
                )) => {
                    assert!(lladdr.is_none_or(is_own));
                }
                Ok(Icmpv6Repr::Ndisc(other)) => panic!("{other:?}"),
                _ => {}
            }
        }
        other => panic!("{other} passed"),
    }
}

/// One of the hosts' addresses.
fn address(input: &Input, is_v4: bool) -> Vec<u8> {
    let n = input.below(4) as u8;
    if is_v4 { vec![10, 0, 0, n] } else { [&OWN.1.octets()[..15], &[n]].concat() }
}

/// A frame of a common kind, for the rest as the input has it.
fn frame(input: &Input, from: usize) -> Vec<u8> {
    let source = if input.u8() & 7 == 7 { input.below(16) } else { from };
    let to = match input.below(16) {
        15 => MacAddr::BROADCAST,
        14 => MacAddr([0x33, 0x33, 0, 0, 0, 1]),
        n => station(n as u8),
    };
    let kind = input.below(8);
    let is_v4 = kind & 1 == 0;
    let payload = match kind {
        // TCP and UDP, in few ports.
        0..4 => {
            let [a, b] = [input.below(4) as u8 + 79, input.below(4) as u8 + 79];
            let rest = if kind < 2 {
                vec![0, 0, 0, 0, 0, 0, 0, 0, 0x50, input.u8(), 0, 0, 0, 0, 0, 0]
            } else {
                vec![0, 8, 0, 0]
            };
            [vec![0, a, 0, b], rest].concat()
        }
        // ICMP, and what neighbours say.
        4 | 5 => {
            let kind = if is_v4 { input.below(16) as u8 } else { 128 + input.below(16) as u8 };
            [vec![kind, 0, 0, 0, 0, 0, 0, 0], address(input, false), input.take(8)].concat()
        }
        6 => {
            let sender = [station(input.below(2) as u8).0.to_vec(), address(input, true)].concat();
            [vec![0, 1, 8, 0, 6, 4, 0, 1 + input.below(2) as u8], sender, vec![0; 6], address(input, true)]
                .concat()
        }
        _ => input.take(60),
    };
    let (ethertype, packet) = match kind {
        6 => ([8, 6], payload),
        7 => (input.u16().to_be_bytes(), payload),
        _ if is_v4 => {
            let protocol = [6, 0, 17, 0, 1][kind];
            let header = vec![0x45, 0, 0, 20 + payload.len() as u8, 0, 1, 0, 0, 64, protocol, 0, 0];
            ([8, 0], [header, address(input, true), address(input, true), payload].concat())
        }
        _ => {
            let protocol = [0, 6, 0, 17, 0, 58][kind];
            let header = vec![0x60, 0, 0, 0, 0, payload.len() as u8, protocol, 255];
            ([0x86, 0xdd], [header, address(input, false), address(input, false), payload].concat())
        }
    };
    let mut frame = [&to.0[..], &station(source as u8).0, &ethertype, &packet].concat();
    if input.u8() & 7 == 7 {
        frame.splice(12..12, [0x81, 0, 0, input.below(8) as u8]);
    }
    for _ in 0..input.u8() & 3 {
        let (at, byte) = (usize::from(input.u8()) % frame.len(), input.u8());
        frame[at] = byte;
    }
    if input.u8() & 15 == 15 {
        frame.resize(frame.len() + usize::from(input.u16() & 0x7ff), 0);
    }
    frame
}

/// Frames of all ports, while ports come and go.
pub(crate) fn switch(data: &[u8]) {
    let input = Input::new(data);
    let mut bench = Bench::new();
    while !input.is_empty() {
        let n = input.below(KINDS.len());
        match input.below(16) {
            0 => bench.now_ns += u64::from(input.u16()) * 100_000_000,
            1 => {
                assert!(bench.switch.remove_port(bench.ports[n]).is_some());
                bench.ports[n] = add(&mut bench.switch, bench.bridges, n);
            }
            2 => {
                let names = input.below(2) == 1;
                bench.switch.filter_groups(bench.ports[n], names);
                let _ = bench.switch.add_group(bench.ports[n], MacAddr([0x33, 0x33, 0, 0, 0, 1]));
            }
            3 => bench.move_port(n, input.below(4)),
            4 => match input.below(3) {
                0 => drop(bench.switch.set_tap(None)),
                1 => bench.set_tap(None),
                _ => bench.set_tap(Some(bench.ports[n])),
            },
            // The same header once more, and perhaps other bytes behind.
            5 | 6 => {
                let Some((from, mut frame)) = bench.last.take() else { continue };
                let at = 14 + usize::from(input.u8());
                let byte = input.u8();
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
                bench.send(from, &frame);
                bench.last = Some((from, frame));
            }
            _ => {
                let frame = frame(&input, n);
                bench.send(n, &frame);
                bench.last = Some((n, frame));
            }
        }
    }
    for n in bench.ports {
        let counters = bench.switch.remove_port(n).expect("a port");
        assert!(counters.in_packets <= data.len() as u64);
    }
    assert_eq!(bench.bridges.map(|bridge| bench.switch.stations(bridge, bench.now_ns).count()), [0, 0]);
}
