use proptest::prelude::*;

use super::table::AGEING_S;
use super::*;
use crate::net::MacAddr;
use crate::net::headers::testing::{self as frames, station, tcp, v4};

/// A second.
const S: u64 = 1_000_000_000;

/// A switch with the bridges `a` and `b`.
pub(super) struct Bench {
    pub(super) switch: Switch,
    pub(super) a: BridgeId,
    pub(super) b: BridgeId,
    pub(super) now_ns: u64,
}

impl Bench {
    pub(super) fn new() -> Bench {
        let mut switch = Switch::new([3, 5]);
        let [a, b] = ["a", "b"].map(|name| switch.add_bridge(name).unwrap());
        Bench { switch, a, b, now_ns: S }
    }

    /// A vif of station `n`.
    pub(super) fn vif(&mut self, bridge: BridgeId, n: u8) -> PortId {
        self.switch.add_port(PortConfig::vif(format!("vif{n}.0"), bridge, station(n))).unwrap()
    }

    pub(super) fn wire(&mut self, bridge: BridgeId) -> PortId {
        let name = format!("eth{}", bridge.0);
        self.switch.add_port(PortConfig::wire(name, bridge, 1500)).unwrap()
    }

    /// What becomes of a frame: its receivers, or why it was dropped.
    pub(super) fn send(&mut self, from: PortId, frame: &[u8]) -> Result<Vec<Target>, Reason> {
        let mut bytes = frame[..frame.len().min(256)].to_vec();
        let head = Head::parse(&mut bytes, frame.len() as u32).unwrap();
        match self.switch.forward(self.now_ns, from, &head, false) {
            Verdict::Drop(reason) => Err(reason),
            Verdict::One(target) => Ok(vec![target]),
            Verdict::Many(targets) => Ok(targets.iter(&self.switch).collect()),
        }
    }

    pub(super) fn ports(&mut self, from: PortId, frame: &[u8]) -> Result<Vec<PortId>, Reason> {
        Ok(self.send(from, frame)?.into_iter().map(|target| target.port).collect())
    }

    pub(super) fn drops(&self, port: PortId, reason: Reason) -> u64 {
        self.switch.counters(port).unwrap().drops(reason)
    }
}

pub(super) fn between(from: u8, to: MacAddr) -> Vec<u8> {
    frames::frame(station(from), to, &tcp((v4(from), 1000), (v4(200), 80), 2, b"data"))
}

pub(super) fn vlan(number: u16) -> VlanId {
    VlanId::new(number).unwrap()
}

fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    let [high, low] = tci.to_be_bytes();
    [&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat()
}

#[test]
fn known_stations_are_reached_alone() {
    let mut bench = Bench::new();
    let (one, two, three) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2), bench.vif(bench.a, 3));
    let wire = bench.wire(bench.a);
    let frame = between(1, station(2));
    assert_eq!(
        bench.send(one, &frame),
        Ok(vec![Target { port: two, kind: PortKind::Vif, form: Form::Untagged }])
    );
    assert_eq!(
        bench.ports(one, &between(1, station(9))),
        Ok(vec![wire]),
        "unknown: vifs have one station each"
    );
    assert_eq!(bench.ports(one, &between(1, MacAddr::BROADCAST)), Ok(vec![two, three, wire]));
    assert_eq!(bench.ports(one, &between(1, station(1))), Err(Reason::SamePort));
    let (one, two) = (bench.switch.counters(one).unwrap(), bench.switch.counters(two).unwrap());
    assert_eq!((one.in_packets, one.out_packets, one.drops(Reason::SamePort)), (4, 0, 1));
    assert_eq!((two.in_packets, two.out_packets), (0, 2));
    assert_eq!((one.in_bytes, two.out_bytes), (4 * frame.len() as u64, 2 * frame.len() as u64));
}

#[test]
fn wires_are_learned_and_forgotten() {
    let mut bench = Bench::new();
    let (one, two) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2));
    let (wire, other) = (bench.wire(bench.a), bench.wire(bench.b));
    let free = PortConfig { mac: None, ..PortConfig::vif("vif4.0".into(), bench.a, station(4)) };
    let free = bench.switch.add_port(free).unwrap();
    assert_eq!(bench.ports(one, &between(1, station(100))), Ok(vec![wire, free]), "unknown");
    assert_eq!(bench.ports(wire, &between(100, station(1))), Ok(vec![one]));
    assert_eq!(bench.ports(one, &between(1, station(100))), Ok(vec![wire]), "learned");
    assert_eq!(bench.ports(free, &between(100, station(2))), Ok(vec![two]), "the station moves");
    assert_eq!(bench.ports(one, &between(1, station(100))), Ok(vec![free]));
    bench.now_ns += u64::from(AGEING_S + 1) * S;
    assert_eq!(bench.ports(one, &between(1, station(100))), Ok(vec![wire, free]), "forgotten");
    // A station of a vif's own is nobody else's.
    assert_eq!(bench.ports(wire, &between(1, station(2))), Err(Reason::TakenMac));
    assert_eq!(bench.drops(wire, Reason::TakenMac), 1);
    assert_eq!(
        bench.ports(other, &between(1, station(2))),
        Err(Reason::NoReceiver),
        "another bridge has its own"
    );
}

#[test]
fn senders_are_stations_and_the_own() {
    let mut bench = Bench::new();
    let (one, two) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2));
    let wire = bench.wire(bench.a);
    assert_eq!(bench.ports(one, &between(3, station(2))), Err(Reason::SpoofedMac));
    assert_eq!(bench.ports(one, &between(2, station(2))), Err(Reason::SpoofedMac));
    assert_eq!(bench.drops(one, Reason::SpoofedMac), 2);
    let from = |mac: MacAddr| frames::frame(mac, station(2), &tcp((v4(1), 1), (v4(2), 2), 2, b""));
    for mac in [MacAddr([0; 6]), MacAddr([1, 0, 0, 0, 0, 0]), MacAddr::BROADCAST] {
        assert_eq!(bench.ports(wire, &from(mac)), Err(Reason::NoStation), "{mac}");
    }
    let pause = between(1, MacAddr([1, 0x80, 0xc2, 0, 0, 1]));
    assert_eq!(bench.ports(one, &pause), Err(Reason::Reserved));
    assert_eq!(bench.switch.counters(two).unwrap().out_packets, 0);
}

#[test]
fn bridges_never_meet() {
    let mut bench = Bench::new();
    let (one, two) = (bench.vif(bench.a, 1), bench.vif(bench.b, 2));
    assert_eq!(bench.ports(one, &between(1, station(2))), Err(Reason::NoReceiver));
    assert_eq!(bench.ports(one, &between(1, MacAddr::BROADCAST)), Err(Reason::NoReceiver));
    let wire = bench.wire(bench.b);
    assert_eq!(bench.ports(two, &between(2, station(1))), Ok(vec![wire]));
    // The same station may be on both.
    let twin = PortConfig::vif("vif9.0".into(), bench.b, station(1));
    let twin = bench.switch.add_port(twin).unwrap();
    assert_eq!(bench.ports(two, &between(2, station(1))), Ok(vec![twin]));
}

#[test]
fn isolated_ports_reach_others_alone() {
    let mut bench = Bench::new();
    let [one, two] = [1, 2].map(|n| {
        let vif = PortConfig::vif(format!("vif{n}.0"), bench.a, station(n));
        bench.switch.add_port(PortConfig { is_isolated: true, ..vif }).unwrap()
    });
    let three = bench.vif(bench.a, 3);
    assert_eq!(bench.ports(one, &between(1, station(2))), Err(Reason::Isolated));
    assert_eq!(bench.ports(one, &between(1, MacAddr::BROADCAST)), Ok(vec![three]));
    assert_eq!(bench.drops(two, Reason::Isolated), 2);
    assert_eq!(bench.ports(one, &between(1, station(3))), Ok(vec![three]));
    assert_eq!(bench.ports(three, &between(3, station(1))), Ok(vec![one]));
}

#[test]
fn vlans_are_networks_of_their_own() {
    let mut bench = Bench::new();
    let mut vif = |n: u8, text: &str| {
        let vif = PortConfig::vif(format!("vif{n}.0"), bench.a, station(n));
        bench.switch.add_port(PortConfig { vlans: Vlans::parse(text).unwrap(), ..vif }).unwrap()
    };
    let (one, two, other, trunk) = (vif(1, ".10"), vif(2, ".10"), vif(3, ".20"), vif(4, ".20:10"));
    let wire = bench.wire(bench.a);
    assert_eq!(bench.ports(one, &between(1, station(2))), Ok(vec![two]));
    assert_eq!(bench.ports(one, &between(1, station(3))), Ok(vec![wire]), "unknown in VLAN 10");
    let all = bench.send(one, &between(1, MacAddr::BROADCAST)).unwrap();
    let forms: Vec<_> = all.iter().map(|target| (target.port, target.form)).collect();
    assert_eq!(forms, [(two, Form::Untagged), (trunk, Form::Tagged(10)), (wire, Form::Tagged(10))]);
    let back = tagged(&between(4, station(1)), 0x600a);
    assert_eq!(bench.send(trunk, &back).unwrap()[0].form, Form::Untagged);
    assert_eq!(bench.ports(trunk, &between(4, station(3))), Ok(vec![other]), "untagged is VLAN 20");
    assert_eq!(bench.ports(trunk, &tagged(&back, 10)), Err(Reason::Vlan), "another tag behind the tag");
    assert_eq!(bench.ports(trunk, &tagged(&between(4, station(1)), 30)), Err(Reason::Vlan));
    assert_eq!(bench.ports(one, &tagged(&between(1, station(2)), 10)), Err(Reason::Vlan), "no tags here");
    let from_wire = tagged(&between(100, MacAddr::BROADCAST), 20);
    assert_eq!(bench.ports(wire, &from_wire), Ok(vec![other, trunk]));
    assert_eq!(bench.ports(wire, &between(100, MacAddr::BROADCAST)), Err(Reason::NoReceiver), "no VLAN");
}

#[test]
fn groups_go_where_they_are_wanted() {
    let mut bench = Bench::new();
    let (one, two, three) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2), bench.vif(bench.a, 3));
    let group = |n: u8| MacAddr([0x33, 0x33, 0, 0, 0, n]);
    assert!(!bench.switch.add_group(two, group(1)), "names none");
    bench.switch.filter_groups(two, true);
    assert_eq!(bench.ports(one, &between(1, group(1))), Ok(vec![three]));
    assert!(bench.switch.add_group(two, group(1)) && bench.switch.add_group(two, group(1)));
    assert_eq!(bench.ports(one, &between(1, group(1))), Ok(vec![two, three]));
    assert_eq!(bench.ports(one, &between(1, group(2))), Ok(vec![three]));
    assert_eq!(bench.ports(one, &between(1, MacAddr::BROADCAST)), Ok(vec![two, three]));
    assert!(!bench.switch.add_group(two, station(7)), "no group");
    let named = (2..200).filter(|n| bench.switch.add_group(two, group(*n))).count();
    assert_eq!(named, port::MAX_GROUPS - 1);
    bench.switch.remove_group(two, group(1));
    assert_eq!(bench.ports(one, &between(1, group(1))), Ok(vec![three]));
    bench.switch.filter_groups(two, false);
    assert_eq!(bench.ports(one, &between(1, group(1))), Ok(vec![two, three]));
}

#[test]
fn long_frames_stop_at_the_wire() {
    let mut bench = Bench::new();
    let (one, wire) = (bench.vif(bench.a, 1), bench.wire(bench.a));
    let long = |bytes: usize| {
        frames::frame(station(1), station(9), &tcp((v4(1), 1), (v4(2), 2), 2, &vec![0; bytes - 40]))
    };
    assert_eq!(bench.ports(one, &long(1500)), Ok(vec![wire]));
    bench.ports(wire, &between(9, station(1))).unwrap();
    assert_eq!(bench.ports(one, &long(1501)), Err(Reason::TooBig));
    assert_eq!(bench.drops(wire, Reason::TooBig), 1);
    let mut bytes = long(9000)[..256].to_vec();
    let head = Head::parse(&mut bytes, 9014).unwrap();
    assert!(matches!(bench.switch.forward(S, one, &head, true), Verdict::One(_)), "to be cut");
}

#[test]
fn what_is_for_all_is_no_longer_than_wires_take() {
    let mut bench = Bench::new();
    let (one, two) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2));
    let mut send = |to, bytes: u32, is_gso| {
        let mut start = between(1, to);
        let head = Head::parse(&mut start, bytes + 14).unwrap();
        bench.switch.forward(S, one, &head, is_gso)
    };
    let most = MOST_FOR_GROUP;
    assert!(matches!(send(MacAddr::BROADCAST, most, false), Verdict::Many(_)));
    assert_eq!(send(MacAddr::BROADCAST, most + 1, false), Verdict::Drop(Reason::TooBig));
    assert_eq!(send(MacAddr::BROADCAST, 1500, true), Verdict::Drop(Reason::TooBig));
    assert!(matches!(send(station(2), 65_000, true), Verdict::One(_)));
    assert_eq!((bench.drops(one, Reason::TooBig), bench.drops(two, Reason::TooBig)), (2, 0));
}

#[test]
fn ports_that_are_gone_mean_no_other() {
    let mut bench = Bench::new();
    let (one, two) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2));
    bench.ports(one, &between(1, station(2))).unwrap();
    let flood = {
        let mut bytes = between(1, MacAddr::BROADCAST);
        let len = bytes.len() as u32;
        bench.switch.forward(S, one, &Head::parse(&mut bytes, len).unwrap(), false)
    };
    let Verdict::Many(targets) = flood else { panic!("{flood:?}") };
    assert_eq!(targets.iter(&bench.switch).map(|target| target.port).collect::<Vec<_>>(), [two]);
    let counted = bench.switch.remove_port(two).unwrap();
    assert_eq!(counted.out_packets, 2);
    assert_eq!(bench.switch.remove_port(two), None);
    let three = bench.vif(bench.a, 3);
    assert_eq!((three.index(), three == two), (two.index(), false));
    assert_eq!(targets.iter(&bench.switch).count(), 0);
    assert_eq!(bench.ports(three, &between(3, MacAddr::BROADCAST)), Ok(vec![one]));
    assert_eq!(targets.iter(&bench.switch).count(), 0, "another frame's");
    assert_eq!(bench.ports(two, &between(2, station(1))), Err(Reason::NoReceiver));
    assert_eq!(bench.ports(one, &between(1, station(2))), Err(Reason::NoReceiver), "forgotten");
    bench.switch.count_drop(two, Reason::NoRoom);
    assert_eq!(bench.drops(three, Reason::NoRoom), 0);
    assert!(bench.switch.config(two).is_none() && bench.switch.counters(two).is_none());
}

#[test]
fn what_is_wrong_is_named() {
    let mut bench = Bench::new();
    bench.vif(bench.a, 1);
    let mut add = |config| bench.switch.add_port(config).unwrap_err().to_string();
    let vif = |n: u8| PortConfig::vif(format!("vif{n}.0"), bench.a, station(n));
    assert_eq!(add(vif(1)), "there is a `vif1.0` already");
    assert_eq!(
        add(PortConfig { mac: Some(station(1)), ..vif(2) }),
        "00:16:3e:00:00:01 is the address of vif1.0, on the same bridge"
    );
    assert!(add(PortConfig { mac: Some(MacAddr::BROADCAST), ..vif(2) }).contains("no address of a station"));
    assert!(add(PortConfig { vlans: Vlans::All, ..vif(2) }).contains("64 VLANs at most"));
    assert_eq!(add(PortConfig { bridge: BridgeId(9), ..vif(2) }), "the bridge is gone");
    for name in ["", "sixteen-letters-", "a b", "a/b"] {
        assert!(bench.switch.add_bridge(name).unwrap_err().to_string().contains("1 to 15"), "{name}");
    }
    assert!(bench.switch.add_bridge("a").is_err());
    let error = bench.switch.remove_bridge(bench.a).unwrap_err().to_string();
    assert_eq!(error, "the bridge still has the port vif1.0");
    bench.switch.remove_bridge(bench.b).unwrap();
    assert_eq!(bench.switch.find_bridge("b"), None);
    let made = (0..100).filter(|n| bench.switch.add_bridge(&format!("br{n}")).is_ok()).count();
    assert_eq!(made, MAX_BRIDGES - 1);
}

#[test]
fn ports_and_stations_are_listed() {
    let mut bench = Bench::new();
    let (one, wire) = (bench.vif(bench.a, 1), bench.wire(bench.a));
    bench.vif(bench.b, 2);
    bench.ports(wire, &tagged(&between(100, MacAddr::BROADCAST), 5)).unwrap_err();
    bench.now_ns += 7 * S;
    assert_eq!(bench.switch.ports_of(bench.a).collect::<Vec<_>>(), [one, wire]);
    let mut known: Vec<_> = bench.switch.stations(bench.a, bench.now_ns).collect();
    known.sort_by_key(|station| station.mac);
    let own = StationView { mac: station(1), vlan: VlanId::UNTAGGED, port: one, age_s: None };
    assert_eq!(known, [own, StationView { mac: station(100), vlan: vlan(5), port: wire, age_s: Some(7) }]);
}

proptest! {
    /// Whatever is sent, a frame stays on its bridge and in its VLAN, comes back to no sender, and reaches no two ports that
    /// are isolated; what came in is what was dropped for a reason of the sender's, or went out.
    #[test]
    fn frames_stay_where_they_belong(
        kinds in proptest::collection::vec((any::<bool>(), 0..4u8, any::<bool>(), any::<bool>()), 2..12),
        sends in proptest::collection::vec((0..12usize, 0..14u8, 0..14u8, 0..4u16), 1..60),
    ) {
        let mut bench = Bench::new();
        let texts = ["", ".1", ".2:1", ":1:2"];
        let ports: Vec<PortId> = kinds.iter().zip(1..).map(|((is_a, vlans, is_isolated, is_free), n)| {
            let bridge = if *is_a { bench.a } else { bench.b };
            let vif = PortConfig::vif(format!("vif{n}.0"), bridge, station(n));
            let vlans = Vlans::parse(texts[usize::from(*vlans)]).unwrap();
            let mac = (!is_free).then(|| station(n));
            bench.switch.add_port(PortConfig { vlans, mac, is_isolated: *is_isolated, ..vif }).unwrap()
        }).collect();
        for (from, source, to, tag) in sends {
            let from = ports[from % ports.len()];
            let to = if to == 13 { MacAddr::BROADCAST } else { station(to) };
            let mut frame = between(source, to);
            if tag != 0 {
                frame = tagged(&frame, tag);
            }
            let sender = bench.switch.config(from).unwrap().clone();
            let result = bench.send(from, &frame);
            let Ok(targets) = result else { continue };
            prop_assert!(!targets.is_empty());
            prop_assert!(sender.mac.is_none_or(|mac| mac == station(source)));
            let mut bytes = frame.clone();
            let head = Head::parse(&mut bytes, frame.len() as u32).unwrap();
            let vlan = sender.vlans.ingress(&head).unwrap();
            for target in targets {
                let receiver = bench.switch.config(target.port).unwrap();
                prop_assert!(target.port != from && receiver.bridge == sender.bridge);
                prop_assert!(!(receiver.is_isolated && sender.is_isolated));
                prop_assert_eq!(receiver.vlans.egress(vlan, &head), Some(target.form));
                prop_assert!(receiver.mac.is_none_or(|mac| to.is_group() || mac == to));
            }
        }
    }
}
