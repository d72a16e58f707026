use core::net::IpAddr;

use proptest::prelude::*;

use crate::net::headers::testing::*;
use crate::net::switch::tests::Bench;
use crate::net::switch::{PortConfig, PortId, Reason, SwitchError};
use crate::net::{Head, MacAddr};

use super::rules::{Action, MAX_RULES, Rule, RuleError, Rules};

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const FIN: u8 = 0x11;
const S: u64 = 1_000_000_000;

/// A guest of station 1, 10.0.0.1 and 2001:db8::1, with rules; station 9 is behind the wire.
struct Walled {
    bench: Bench,
    guest: PortId,
    wire: PortId,
}

fn rules(defaults: (Action, Action), texts: &[&str]) -> Rules {
    let mut rules = Rules::new(defaults.0, defaults.1);
    for text in texts {
        assert!(rules.push(Rule::parse(text).unwrap()));
    }
    rules
}

impl Walled {
    fn new(default_in: Action, default_out: Action, texts: &[&str]) -> Walled {
        let mut bench = Bench::new();
        let vif = PortConfig::vif("vif1.0".into(), bench.a, station(1));
        let guest = bench.switch.add_port(vif).unwrap();
        let wire = bench.wire(bench.a);
        bench.switch.set_rules(guest, Some(rules((default_in, default_out), texts))).unwrap();
        Walled { bench, guest, wire }
    }

    fn sends(&mut self, packet: &[u8]) -> Result<(), Reason> {
        self.bench.send(self.guest, &frame(station(1), station(9), packet)).map(drop)
    }

    fn gets(&mut self, packet: &[u8]) -> Result<(), Reason> {
        self.bench.send(self.wire, &frame(station(9), station(1), packet)).map(drop)
    }

    fn later(&mut self, seconds: u64) {
        self.bench.now_ns += seconds * S;
    }
}

use Action::{Accept, Drop};

#[test]
fn the_first_rule_that_fits_decides() {
    let texts =
        ["in drop tcp from 10.0.0.66 port 80", "in accept tcp port 80-81", "in accept icmp", "out drop udp"];
    let mut walled = Walled::new(Drop, Accept, &texts);
    let to = |from: u8, port: u16| tcp((v4(from), 1000), (v4(1), port), SYN, b"");
    assert_eq!(walled.gets(&to(9, 80)), Ok(()));
    assert_eq!(walled.gets(&to(9, 81)), Ok(()));
    assert_eq!(walled.gets(&to(9, 82)), Err(Reason::RuleIn));
    assert_eq!(walled.gets(&to(66, 80)), Err(Reason::RuleIn));
    assert_eq!(walled.gets(&to(66, 81)), Ok(()));
    assert_eq!(walled.gets(&udp((v4(9), 80), (v4(1), 80), b"")), Err(Reason::RuleIn));
    assert_eq!(walled.gets(&icmp(v4(9), v4(1), [8, 0], 1, b"")), Ok(()));
    assert_eq!(walled.gets(&icmp(v6(9), v6(1), [128, 0], 1, b"")), Ok(()), "of IPv6, too");
    assert_eq!(walled.sends(&udp((v4(1), 1), (v4(9), 53), b"")), Err(Reason::RuleOut));
    assert_eq!(walled.sends(&tcp((v4(1), 1), (v4(9), 53), SYN, b"")), Ok(()));
    let (guest, wire) = (walled.guest, walled.wire);
    assert_eq!((walled.bench.drops(guest, Reason::RuleIn), walled.bench.drops(wire, Reason::RuleIn)), (3, 0));
    assert_eq!(walled.bench.drops(guest, Reason::RuleOut), 1);
}

#[test]
fn answers_pass_and_nothing_else() {
    for at in [v4, |n: u8| v6(n.into())] {
        let mut walled = Walled::new(Drop, Accept, &[]);
        let (own, peer) = ((at(1), 40000), (at(9), 443));
        let answer = tcp(peer, own, SYN_ACK, b"");
        assert_eq!(walled.gets(&answer), Err(Reason::RuleIn));
        assert_eq!(walled.sends(&tcp(own, peer, SYN, b"")), Ok(()));
        assert_eq!(walled.gets(&answer), Ok(()));
        assert_eq!(walled.sends(&tcp(own, peer, ACK, b"get")), Ok(()));
        assert_eq!(walled.gets(&tcp(peer, own, ACK, b"page")), Ok(()));
        for (what, packet) in [
            ("another port", tcp((at(9), 444), own, ACK, b"")),
            ("another peer", tcp((at(8), 443), own, ACK, b"")),
            ("another port of the guest's", tcp(peer, (at(1), 40001), ACK, b"")),
            ("another protocol", udp(peer, own, b"")),
            ("a connection from outside", tcp(peer, own, SYN, b"")),
        ] {
            assert_eq!(walled.gets(&packet), Err(Reason::RuleIn), "{what}");
        }
        assert_eq!(walled.bench.switch.flows(walled.guest, walled.bench.now_ns), 1);
    }
}

#[test]
fn answers_of_the_guest_pass() {
    let mut walled = Walled::new(Drop, Drop, &["in accept tcp port 22"]);
    let (own, peer) = ((v4(1), 22), (v4(9), 5000));
    assert_eq!(walled.sends(&tcp(own, peer, SYN_ACK, b"")), Err(Reason::RuleOut));
    assert_eq!(walled.gets(&tcp(peer, own, SYN, b"")), Ok(()));
    assert_eq!(walled.sends(&tcp(own, peer, SYN_ACK, b"")), Ok(()));
    assert_eq!(walled.sends(&tcp(own, peer, SYN, b"")), Err(Reason::RuleOut));
    assert_eq!(walled.sends(&tcp((v4(1), 22), (v4(9), 5001), ACK, b"")), Err(Reason::RuleOut));
}

#[test]
fn pings_are_asked_by_one_side() {
    let mut walled = Walled::new(Drop, Accept, &[]);
    assert_eq!(walled.sends(&icmp(v4(1), v4(9), [8, 0], 7 << 16, b"")), Ok(()));
    assert_eq!(walled.gets(&icmp(v4(9), v4(1), [0, 0], 7 << 16, b"")), Ok(()));
    assert_eq!(walled.gets(&icmp(v4(9), v4(1), [0, 0], 8 << 16, b"")), Err(Reason::RuleIn));
    assert_eq!(walled.gets(&icmp(v4(9), v4(1), [8, 0], 7 << 16, b"")), Err(Reason::RuleIn), "asks");
    // An error that the guest sends has no answer.
    assert_eq!(walled.sends(&icmp(v4(1), v4(9), [3, 3], 0, &[0; 28])), Ok(()));
    assert_eq!(walled.gets(&icmp(v4(9), v4(1), [3, 3], 0, &[0; 28])), Err(Reason::RuleIn));
}

#[test]
fn errors_pass_about_flows_that_go_on() {
    for (at, kind, redirect) in [(v4 as fn(u8) -> IpAddr, 3, [5, 1]), (|n: u8| v6(n.into()), 2, [137, 0])] {
        let mut walled = Walled::new(Drop, Accept, &[]);
        let sent = tcp((at(1), 40000), (at(9), 443), SYN, &[0; 60]);
        let error = |kind: [u8; 2], to: u8, quoted: &[u8]| icmp(at(200), at(to), kind, 1400, &quoted[..60]);
        assert_eq!(walled.gets(&error([kind, 0], 1, &sent)), Err(Reason::RuleIn));
        walled.sends(&sent).unwrap();
        assert_eq!(walled.gets(&error([kind, 0], 1, &sent)), Ok(()), "a router on the way");
        assert_eq!(walled.gets(&error(redirect, 1, &sent)), Err(Reason::RuleIn), "names another router");
        let other = tcp((at(1), 40000), (at(9), 444), SYN, &[0; 60]);
        assert_eq!(walled.gets(&error([kind, 0], 1, &other)), Err(Reason::RuleIn), "another flow");
        assert_eq!(walled.gets(&error([kind, 0], 2, &sent)), Err(Reason::RuleIn), "for another");
        let back = tcp((at(9), 443), (at(1), 40000), ACK, &[0; 60]);
        assert_eq!(walled.gets(&error([kind, 0], 9, &back)), Err(Reason::RuleIn), "the other way");
    }
}

#[test]
fn flows_end() {
    let mut walled = Walled::new(Drop, Accept, &[]);
    let (own, peer) = ((v4(1), 40000), (v4(9), 443));
    walled.sends(&tcp(own, peer, SYN, b"")).unwrap();
    walled.later(121);
    assert_eq!(walled.gets(&tcp(peer, own, SYN_ACK, b"")), Err(Reason::RuleIn), "not answered in time");
    walled.sends(&tcp(own, peer, SYN, b"")).unwrap();
    walled.gets(&tcp(peer, own, SYN_ACK, b"")).unwrap();
    walled.later(7500);
    assert_eq!(walled.gets(&tcp(peer, own, ACK, b"")), Ok(()), "two hours");
    walled.gets(&tcp(peer, own, FIN, b"")).unwrap();
    walled.later(240);
    assert_eq!(walled.gets(&tcp(peer, own, FIN, b"")), Ok(()));
    walled.later(241);
    assert_eq!(walled.gets(&tcp(peer, own, FIN, b"")), Err(Reason::RuleIn), "over");
    let (query, answer) = (udp((v4(1), 5000), (v4(9), 53), b""), udp((v4(9), 53), (v4(1), 5000), b""));
    walled.sends(&query).unwrap();
    walled.gets(&answer).unwrap();
    walled.later(301);
    assert_eq!(walled.gets(&answer), Err(Reason::RuleIn));
    assert_eq!(walled.bench.switch.flows(walled.guest, walled.bench.now_ns), 0);
}

#[test]
fn a_flood_from_outside_forgets_no_conversation() {
    let mut walled = Walled::new(Drop, Drop, &["in accept tcp port 80", "out accept tcp port 443"]);
    let flow = |n: u16| ((v4(1), 40000 + n), (v4(9), 443));
    for n in 0..20 {
        let (own, peer) = flow(n);
        walled.sends(&tcp(own, peer, SYN, b"")).unwrap();
        walled.gets(&tcp(peer, own, SYN_ACK, b"")).unwrap();
        walled.sends(&tcp(own, peer, ACK, b"")).unwrap();
    }
    for n in 0..20_000u16 {
        walled.gets(&tcp((v4((n % 200) as u8), n), (v4(1), 80), SYN, b"")).unwrap();
    }
    for n in 0..20 {
        let (own, peer) = flow(n);
        assert_eq!(walled.gets(&tcp(peer, own, ACK, b"")), Ok(()), "{n}");
    }
    assert_eq!(walled.bench.switch.flows(walled.guest, walled.bench.now_ns), 512, "the table is full");
}

#[test]
fn the_oldest_flow_gives_way() {
    let mut walled = Walled::new(Drop, Accept, &[]);
    let flow = |n: u16| ((v4(1), n), (v4(9), 443));
    for n in 0..4000 {
        let (own, peer) = flow(n);
        walled.later(u64::from(n % 40 == 0));
        walled.sends(&tcp(own, peer, SYN, b"")).unwrap();
    }
    let passes = |walled: &mut Walled, n| {
        let (own, peer) = flow(n);
        walled.gets(&tcp(peer, own, SYN_ACK, b"")).is_ok()
    };
    assert!((3800..4000).all(|n| passes(&mut walled, n)), "the latest are there");
    assert!(!(0..1000).any(|n| passes(&mut walled, n)), "the oldest are not");
}

/// A fragment of an IPv4 packet with that number: flags and offset as in the header.
fn fragment(packet: &[u8], number: u8, flags: u8, offset: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[5] = number;
    packet[6..8].copy_from_slice(&[flags, offset]);
    fix_ipv4(&mut packet);
    packet
}

#[test]
fn later_fragments_follow_the_first() {
    let mut walled = Walled::new(Drop, Accept, &["in accept udp port 53"]);
    let (good, bad) = (udp((v4(9), 1), (v4(1), 53), &[0; 64]), udp((v4(9), 1), (v4(1), 54), &[0; 64]));
    let later = |number| fragment(&good, number, 0, 9);
    assert_eq!(walled.gets(&later(1)), Err(Reason::Fragment), "before the first");
    assert_eq!(walled.gets(&fragment(&good, 1, 0x20, 0)), Ok(()));
    assert_eq!(walled.gets(&later(1)), Ok(()));
    assert_eq!(walled.gets(&later(2)), Err(Reason::Fragment), "of another packet");
    assert_eq!(walled.gets(&fragment(&bad, 3, 0x20, 0)), Err(Reason::RuleIn));
    assert_eq!(walled.gets(&later(3)), Err(Reason::Fragment), "of one that was refused");
    let elsewhere = fragment(&udp((v4(8), 1), (v4(1), 53), &[0; 64]), 1, 0, 9);
    assert_eq!(walled.gets(&elsewhere), Err(Reason::Fragment), "of another sender's");
    walled.later(31);
    assert_eq!(walled.gets(&later(1)), Err(Reason::Fragment), "late");
    let tiny = fragment(&ip(v4(9), v4(1), 17, &good[20..24]), 4, 0x20, 0);
    assert_eq!(walled.gets(&tiny), Err(Reason::Fragment), "without ports");
    assert_eq!(
        walled.sends(&fragment(&udp((v4(1), 1), (v4(9), 2), &[0; 64]), 1, 0, 9)),
        Ok(()),
        "nothing is refused"
    );
}

#[test]
fn the_network_itself_passes() {
    let mut walled = Walled::new(Drop, Drop, &[]);
    let guest = walled.guest;
    let request = arp(1, (station(1), v4(1)), (MacAddr([0; 6]), v4(9)));
    let request = ethernet(station(1), MacAddr::BROADCAST, 0x0806, &request);
    assert!(walled.bench.send(guest, &request).is_ok());
    let target = [0; 16];
    assert_eq!(walled.sends(&neighbour(v6(1), v6(9), 135, &target)), Ok(()));
    assert_eq!(walled.gets(&neighbour(v6(9), v6(1), 136, &target)), Ok(()));
    assert_eq!(walled.sends(&icmp(v6(1), v6(9), [143, 0], 0, b"")), Ok(()));
    assert_eq!(walled.gets(&neighbour(v6(9), v6(1), 137, &[0; 32])), Err(Reason::RuleIn), "redirect");
    let far = icmp(v6(9), v6(1), [136, 0], 0, &target);
    assert_eq!(walled.gets(&far), Err(Reason::RuleIn), "from beyond a router");
    assert_eq!(walled.gets(&icmp(v6(9), v6(1), [128, 0], 0, b"")), Err(Reason::RuleIn));
    // Whatever hides an IP packet does not pass.
    let hidden = tcp((v4(1), 1), (v4(9), 80), SYN, b"");
    for (ethertype, want) in
        [(0x88cc, Reason::NotIp), (0x86dd, Reason::Malformed), (0x0806, Reason::Malformed)]
    {
        let frame = ethernet(station(1), station(9), ethertype, &hidden);
        assert_eq!(walled.bench.send(guest, &frame), Err(want), "{ethertype:#x}");
    }
}

#[test]
fn leases_are_answered() {
    let mut walled = Walled::new(Drop, Accept, &[]);
    let offer = udp((v4(200), 67), (v4(1), 68), &[0; 240]);
    assert_eq!(walled.gets(&offer), Err(Reason::RuleIn), "nobody asked");
    let nowhere = IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED);
    let all = IpAddr::V4(core::net::Ipv4Addr::BROADCAST);
    walled.sends(&udp((nowhere, 68), (all, 67), &[0; 240])).unwrap();
    assert_eq!(walled.gets(&offer), Ok(()));
    assert_eq!(walled.gets(&udp((v4(200), 66), (v4(1), 68), b"")), Err(Reason::RuleIn));
}

#[test]
fn new_rules_hold_for_what_goes_on() {
    let mut walled = Walled::new(Drop, Accept, &[]);
    let (own, peer) = ((v4(1), 40000), (v4(9), 443));
    walled.sends(&tcp(own, peer, SYN, b"")).unwrap();
    walled.gets(&tcp(peer, own, SYN_ACK, b"")).unwrap();
    let guest = walled.guest;
    walled.bench.switch.set_rules(guest, Some(rules((Drop, Drop), &[]))).unwrap();
    assert_eq!(walled.gets(&tcp(peer, own, ACK, b"")), Err(Reason::RuleIn));
    assert_eq!(walled.sends(&tcp(own, peer, ACK, b"")), Err(Reason::RuleOut));
    assert_eq!(walled.bench.switch.rules(guest).unwrap().rules(), []);
    walled.bench.switch.set_rules(guest, None).unwrap();
    assert_eq!(walled.gets(&tcp(peer, own, ACK, b"")), Ok(()));
    assert!(walled.bench.switch.rules(guest).is_none());
    walled.bench.switch.remove_port(guest);
    assert_eq!(walled.bench.switch.set_rules(guest, None), Err(SwitchError::NoPort));
}

#[test]
fn rules_are_read_and_written() {
    for text in [
        "in accept",
        "out drop tcp from 10.0.0.0/8 to 10.1.0.5 port 80-90",
        "in drop udp port 53",
        "out accept icmp to 2001:db8::/32",
        "in accept 47 from 0.0.0.0/0",
    ] {
        assert_eq!(Rule::parse(text).unwrap().to_string(), text);
    }
    assert_eq!(Rule::parse("in accept 6 port 80").unwrap().to_string(), "in accept tcp port 80");
    for (text, want) in [
        ("", RuleError::NoStart),
        ("in", RuleError::NoStart),
        ("accept in", RuleError::NoStart),
        ("in accept tcp udp", RuleError::Word("udp")),
        ("in accept sctp", RuleError::Word("sctp")),
        ("in accept 256", RuleError::Word("256")),
        ("in accept +6", RuleError::Word("+6")),
        ("in accept from 10.0.0.1 from 10.0.0.2", RuleError::Word("from")),
        ("in accept from", RuleError::Value("from", "")),
        ("in accept to x", RuleError::Value("to", "x")),
        ("in accept from 10.0.0.1/8", RuleError::MoreBits("10.0.0.1/8")),
        ("in accept port 80", RuleError::Ports),
        ("in accept icmp port 80", RuleError::Ports),
        ("in accept tcp port 90-80", RuleError::Value("port", "90-80")),
        ("in accept tcp port +80", RuleError::Value("port", "+80")),
        ("in accept tcp port 65536", RuleError::Value("port", "65536")),
        ("in accept from 10.0.0.1 to ::1", RuleError::Kinds),
    ] {
        assert_eq!(Rule::parse(text), Err(want), "{text}");
    }
    assert_eq!(
        Rules::read("in accept tcp port 80; in drop;"),
        Ok(rules((Accept, Accept), &["in accept tcp port 80", "in drop"]))
    );
    assert_eq!(Rules::read(" ; "), Ok(Rules::new(Accept, Accept)));
    assert!(Rules::read("in accept; in").unwrap_err().starts_with("rule `in`: a rule begins with"));
    assert!(Rules::read(&"in drop;".repeat(65)).unwrap_err().ends_with("at most 64"));
    let mut rules = Rules::new(Accept, Accept);
    let rule = Rule::parse("in drop").unwrap();
    assert!(
        rules.insert(0, rule) && rules.insert(1, Rule::parse("out drop").unwrap()) && !rules.insert(3, rule)
    );
    assert_eq!(
        rules.rules().iter().map(|rule| rule.to_string()).collect::<Vec<_>>(),
        ["in drop", "out drop"]
    );
    let mut rules = Rules::new(Accept, Accept);
    assert_eq!((0..100).filter(|_| rules.push(rule)).count(), MAX_RULES);
    assert_eq!((rules.remove(MAX_RULES), rules.remove(0)), (None, Some(rule)));
}

proptest! {
    /// With everything refused but what one rule names, what passes is what the rule names, an answer, or neighbours' talk.
    #[test]
    fn what_passes_was_asked_for(
        steps in proptest::collection::vec((any::<bool>(), 0..3u8, 1..4u16, 1..4u16, 0..5usize), 1..80),
    ) {
        let mut walled = Walled::new(Drop, Drop, &["out accept tcp port 2", "in accept udp port 3"]);
        let mut begun = std::collections::HashSet::new();
        for (is_out, protocol, own, peer, flags) in steps {
            let (guest, other) = ((v4(1), own), (v4(9), peer));
            let (from, to) = if is_out { (guest, other) } else { (other, guest) };
            let flags = [SYN, SYN_ACK, ACK, FIN, 4][flags];
            let packet = match protocol {
                0 => tcp(from, to, flags, b""),
                1 => udp(from, to, b""),
                _ => icmp(from.0, to.0, [0, 0], u32::from(own) << 16, b""),
            };
            let passed = if is_out { walled.sends(&packet) } else { walled.gets(&packet) }.is_ok();
            let by_rule = is_out && protocol == 0 && peer == 2 || !is_out && protocol == 1 && own == 3;
            let is_answer = protocol < 2 && begun.contains(&(protocol, own, peer)) && !(protocol == 0 && flags == SYN);
            prop_assert_eq!(passed, by_rule || is_answer);
            if by_rule {
                begun.insert((protocol, own, peer));
            }
        }
    }

    /// Whatever bytes come, the firewall answers.
    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 40..120), kind in 0..3u8) {
        let mut walled = Walled::new(Drop, Drop, &["out accept", "in accept tcp"]);
        let ethertype = [0x0800, 0x86dd, 0x0806][usize::from(kind)];
        let mut bytes = bytes;
        bytes[0] = [0x45, 0x60, 0][usize::from(kind)];
        bytes[2..6].fill(0);
        bytes[3] = 40;
        let mut frame = ethernet(station(1), station(9), ethertype, &bytes);
        let sent = walled.bench.send(walled.guest, &frame);
        let len = frame.len() as u32;
        let head = Head::parse(&mut frame, len).unwrap();
        prop_assert!(sent.is_err() || head.flow().is_some() || head.arp().is_some());
    }
}
