//! Connections come, go, and keep apart.

use super::*;
use proptest::prelude::*;

const SYN: Option<TcpFlags> = Some(TcpFlags(2));
const ACK: Option<TcpFlags> = Some(TcpFlags(16));
const FIN: Option<TcpFlags> = Some(TcpFlags(17));
const RST: Option<TcpFlags> = Some(TcpFlags(4));
const UPLINK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const A: Owner = Owner::Port(PortId::testing(1));

fn end(last: u8, port: u16) -> End {
    End { address: Ipv4Addr::new(10, 88, 0, last), port }
}

fn far(port: u16) -> End {
    End { address: Ipv4Addr::new(93, 184, 216, 34), port }
}

fn flows() -> Flows {
    Flows::new(Random::new(b"test"))
}

#[test]
fn answers_find_the_guest_and_nobody_else_does() {
    let mut flows = flows();
    let flow = flows.outbound(0, A, (protocol::TCP, end(10, 4000), far(80)), SYN, UPLINK).expect("new");
    assert_eq!((flow.inside, flow.remote, flow.outside.address), (end(10, 4000), far(80), UPLINK));
    assert!(TRANSLATED_PORTS.contains(&flow.outside.port));
    assert_eq!(flows.inbound(1, protocol::TCP, far(80), flow.outside, ACK), Some(flow));
    let again = flows.outbound(2, A, (protocol::TCP, end(10, 4000), far(80)), ACK, UPLINK);
    assert_eq!(again, Ok(flow));
    for (protocol, remote, outside) in [
        (protocol::UDP, far(80), flow.outside),
        (protocol::TCP, far(81), flow.outside),
        (protocol::TCP, end(1, 80), flow.outside),
        (protocol::TCP, far(80), End { port: flow.outside.port ^ 1, ..flow.outside }),
    ] {
        assert_eq!(flows.inbound(3, protocol, remote, outside, ACK), None);
    }
    // Another guest with the same port gets another port outside.
    let other = flows.outbound(3, A, (protocol::TCP, end(11, 4000), far(80)), SYN, UPLINK).expect("new");
    assert_ne!(other.outside, flow.outside);
    assert_eq!(flows.len(), 2);
}

#[test]
fn only_what_begins_a_connection_makes_an_entry() {
    let mut flows = flows();
    for flags in [ACK, FIN, RST, Some(TcpFlags(18)), Some(TcpFlags(6)), None] {
        let refused = flows.outbound(0, A, (protocol::TCP, end(10, 1), far(80)), flags, UPLINK);
        assert_eq!(refused, Err(NoFlow::NotABeginning), "{flags:?}");
    }
    assert_eq!(flows.outbound(0, A, (47, end(10, 1), far(80)), None, UPLINK), Err(NoFlow::Protocol));
    assert!(flows.is_empty());
    for protocol in [protocol::UDP, protocol::ICMP] {
        flows.outbound(0, A, (protocol, end(10, 1), far(1)), None, UPLINK).expect("new");
    }
}

#[test]
fn entries_last_as_long_as_hosts_expect() {
    let open = |protocol, flags| {
        let mut flows = flows();
        let flow = flows.outbound(0, A, (protocol, end(10, 1), far(80)), flags, UPLINK).expect("new");
        (flows, flow)
    };
    let lasts = |flows: &mut Flows, flow: Flow, from: u64, time: u64| {
        let there = |now: u64| flows.list(now).any(|(other, ..)| other == flow);
        assert!(there(from + time - 1) && !there(from + time), "{}: not {time} ns", flow.protocol);
    };
    for (protocol, flags, answered) in
        [(protocol::TCP, SYN, TCP_NS), (protocol::UDP, None, UDP_NS), (protocol::ICMP, None, BRIEF_NS)]
    {
        let (mut flows, flow) = open(protocol, flags);
        lasts(&mut flows, flow, 0, BRIEF_NS);
        flows.inbound(5, protocol, far(80), flow.outside, flags.and(ACK)).expect("there");
        lasts(&mut flows, flow, 5, answered);
        assert_eq!(
            flows.inbound(5 + answered, protocol, far(80), flow.outside, flags.and(ACK)),
            None,
            "over"
        );
    }
    // A closed connection goes soon: when both have closed, or one has cut it off. Half closed, it lasts.
    let (mut flows, flow) = open(protocol::TCP, SYN);
    flows.inbound(1, protocol::TCP, far(80), flow.outside, ACK).expect("there");
    flows.inbound(2, protocol::TCP, far(80), flow.outside, FIN).expect("there");
    lasts(&mut flows, flow, 2, TCP_NS);
    flows.outbound(3, A, (protocol::TCP, end(10, 1), far(80)), FIN, UPLINK).expect("there");
    lasts(&mut flows, flow, 3, BRIEF_NS);
    // The same ends begin anew.
    flows.outbound(4, A, (protocol::TCP, end(10, 1), far(80)), SYN, UPLINK).expect("there");
    flows.inbound(5, protocol::TCP, far(80), flow.outside, ACK).expect("there");
    lasts(&mut flows, flow, 5, TCP_NS);
    flows.inbound(6, protocol::TCP, far(80), flow.outside, RST).expect("there");
    lasts(&mut flows, flow, 6, BRIEF_NS);
    flows.sweep(6 + BRIEF_NS);
    assert!(flows.is_empty() && flows.shares.is_empty() && flows.addresses.is_empty());
}

#[test]
fn a_flood_costs_its_owner_alone() {
    let mut flows = flows();
    let quiet = Owner::Port(PortId::testing(2));
    let kept = flows.outbound(0, quiet, (protocol::UDP, end(20, 1), far(53)), None, UPLINK).expect("new");
    let used = flows.outbound(0, A, (protocol::UDP, end(10, 1), far(53)), None, UPLINK).expect("new");
    for port in 0..5000 {
        flows.outbound(1, A, (protocol::UDP, end(10, 2), far(port)), None, UPLINK).expect("new");
        // What is in use is not the oldest.
        let again = flows.outbound(1, A, (protocol::UDP, end(10, 1), far(53)), None, UPLINK);
        assert_eq!(again, Ok(used));
    }
    assert_eq!(flows.len(), FLOWS_PER_OWNER + 1);
    assert_eq!(flows.evicted(), 5000 + 1 - FLOWS_PER_OWNER as u64);
    assert!(flows.inbound(1, protocol::UDP, far(53), kept.outside, None).is_some());
}

/// Owners with full shares are as many as the table has room for: whoever has less still gets more.
#[test]
fn who_has_most_gives_when_the_table_is_full() {
    let mut flows = flows();
    let quiet = Owner::Port(PortId::testing(2));
    let kept = flows.outbound(0, quiet, (protocol::UDP, end(20, 1), far(53)), None, UPLINK).expect("new");
    for owner in 3..12 {
        for port in 0..FLOWS_PER_OWNER as u16 {
            let owner = Owner::Port(PortId::testing(owner));
            let _ =
                flows.outbound(1, owner, (protocol::UDP, end(owner_byte(owner), 9), far(port)), None, UPLINK);
        }
    }
    assert_eq!(flows.len(), MAX_FLOWS);
    let late = Owner::Port(PortId::testing(99));
    let open = |flows: &mut Flows, port| {
        flows.outbound(1, late, (protocol::UDP, end(99, port), far(1)), None, UPLINK).expect("a fair share")
    };
    let first = open(&mut flows, 1);
    (2..1000).for_each(|port| _ = open(&mut flows, port));
    assert!(flows.inbound(1, protocol::UDP, far(53), kept.outside, None).is_some(), "who has least keeps");
    assert!(flows.inbound(1, protocol::UDP, far(1), first.outside, None).is_none(), "the oldest of its own");
    let counts: Vec<u32> =
        flows.shares.values().map(|share| share.count).filter(|count| *count > 1).collect();
    assert_eq!((flows.len(), counts.len()), (MAX_FLOWS, 10));
    assert!(counts.iter().all(|count| (408..=410).contains(count)), "{counts:?}");
    // What is over goes first.
    let evicted = flows.evicted();
    let later = 1 + BRIEF_NS;
    flows.outbound(later, late, (protocol::UDP, end(99, 1), far(2)), None, UPLINK).expect("room again");
    assert_eq!((flows.evicted(), flows.len()), (evicted, 2), "all but what was answered is over");
}

fn owner_byte(owner: Owner) -> u8 {
    match owner {
        Owner::Port(port) => port.index() as u8,
        Owner::Forward(number) => number as u8,
    }
}

/// A connection that rests outlives thousands that come and go, whichever side began them.
#[test]
fn what_is_over_goes_before_what_lives() {
    let mut flows = flows();
    let outside = End { address: UPLINK, port: 8080 };
    let by_forward = |port| Flow { protocol: protocol::TCP, inside: end(10, 80), remote: far(port), outside };
    let resting = by_forward(9);
    let out = |flows: &mut Flows, port, flags| {
        flows.outbound(1, A, (protocol::TCP, end(10, 80), far(port)), flags, UPLINK).expect("there")
    };
    flows.forward(0, 0, resting, SYN).expect("new");
    out(&mut flows, 9, Some(TcpFlags(18)));
    let own = flows.outbound(0, A, (protocol::TCP, end(11, 1), far(80)), SYN, UPLINK).expect("new");
    flows.inbound(0, protocol::TCP, far(80), own.outside, ACK).expect("there");
    for port in 1000..4000 {
        flows.forward(1, 0, by_forward(port), SYN).expect("new");
        if port % 3 > 0 {
            // Answered, and closed by both, or cut off. The others are floods of first packets.
            out(&mut flows, port, Some(TcpFlags(18)));
            out(&mut flows, port, if port % 3 == 1 { FIN } else { RST });
            flows.inbound(1, protocol::TCP, far(port), outside, FIN);
        }
        flows.outbound(1, A, (protocol::TCP, end(12, port), far(80)), SYN, UPLINK).expect("new");
    }
    assert_eq!(flows.inbound(2, protocol::TCP, far(9), outside, ACK), Some(resting));
    assert_eq!(flows.inbound(2, protocol::TCP, far(80), own.outside, ACK), Some(own));
    assert_eq!(flows.len(), 2 * FLOWS_PER_OWNER);
}

#[test]
fn a_forward_lets_the_world_begin() {
    let mut flows = flows();
    let outside = End { address: UPLINK, port: 8080 };
    let flow = Flow { protocol: protocol::TCP, inside: end(10, 80), remote: far(50_000), outside };
    assert_eq!(flows.forward(0, 0, flow, ACK), Err(NoFlow::NotABeginning));
    assert_eq!(flows.forward(0, 0, flow, SYN), Ok(flow));
    assert_eq!(flows.inbound(1, protocol::TCP, far(50_000), outside, ACK), Some(flow));
    assert!(flows.list(BRIEF_NS).next().is_some(), "from the second packet on");
    // The guest answers from its own port, and the answer leaves as the forward's.
    let answer = flows.outbound(2, A, (protocol::TCP, end(10, 80), far(50_000)), Some(TcpFlags(18)), UPLINK);
    assert_eq!(answer, Ok(flow));
    assert!(flows.list(2 + TCP_NS - 1).next().is_some());
    // A guest that speaks to the other end from that port already keeps its meaning.
    flows.outbound(3, A, (protocol::TCP, end(10, 80), far(50_001)), SYN, UPLINK).expect("new");
    let second = Flow { remote: far(50_001), ..flow };
    assert_eq!(flows.forward(3, 0, second, SYN), Err(NoFlow::Exhausted));
    flows.forget(Owner::Forward(0));
    assert_eq!(flows.len(), 1);
}

#[test]
fn errors_find_what_they_are_about() {
    let mut flows = flows();
    let flow = flows.outbound(0, A, (protocol::UDP, end(10, 1), far(53)), None, UPLINK).expect("new");
    // The world's error quotes what left; the guest's quotes what came.
    let left = (protocol::UDP, flow.outside, far(53));
    let came = (protocol::UDP, far(53), flow.inside);
    assert_eq!(flows.quoted(1, Direction::Out, left), Some(flow));
    assert_eq!(flows.quoted(1, Direction::In, came), Some(flow));
    assert_eq!(flows.quoted(1, Direction::Out, came), None);
    assert_eq!(flows.quoted(1, Direction::In, left), None);
    assert_eq!(flows.quoted(BRIEF_NS, Direction::Out, left), None);
}

#[test]
fn an_address_that_goes_to_another_takes_its_connections_along() {
    let mut flows = flows();
    for (guest, port) in [(10, 1), (10, 2), (11, 1), (9, u16::MAX)] {
        flows.outbound(0, A, (protocol::UDP, end(guest, port), far(53)), None, UPLINK).expect("new");
    }
    let outside = End { address: UPLINK, port: 8080 };
    let flow = Flow { protocol: protocol::TCP, inside: end(10, 80), remote: far(50_000), outside };
    flows.forward(0, 0, flow, SYN).expect("new");
    flows.forget_addresses(&[end(10, 0).address, end(12, 0).address]);
    let mut left: Vec<End> = flows.list(1).map(|(flow, ..)| flow.inside).collect();
    left.sort_unstable();
    assert_eq!(left, [end(9, u16::MAX), end(11, 1)]);
}

#[test]
fn a_new_address_of_the_uplink_begins_all_anew() {
    let mut flows = flows();
    let packet = (protocol::UDP, end(10, 1), far(53));
    let old = flows.outbound(0, A, packet, None, UPLINK).expect("new");
    let new = flows.outbound(1, A, packet, None, Ipv4Addr::new(10, 0, 2, 16)).expect("anew");
    assert_ne!(old.outside.address, new.outside.address);
    assert_eq!(flows.len(), 1);
}

proptest! {
    /// Against a plain list: the same packets find the same entries, keys stay unique, and all links are whole.
    #[test]
    fn the_table_is_what_a_list_would_be(
        steps in prop::collection::vec((0u8..8, 0u16..3, 0u16..6, 0u16..4, 0u64..40), 1..300),
    ) {
        let mut flows = flows();
        let mut now_ns = 0;
        let mut model: Vec<Flow> = Vec::new();
        for (step, owner, port, remote, pause) in steps {
            now_ns += pause * SECOND / 4;
            let protocol = if step & 1 == 0 { protocol::UDP } else { protocol::TCP };
            let flags = (protocol == protocol::TCP).then_some(TcpFlags([2, 16, 17, 4][usize::from(step >> 1)]));
            let owner = Owner::Port(PortId::testing(owner));
            let inside = end(owner_byte(owner), port);
            match flows.outbound(now_ns, owner, (protocol, inside, far(remote)), flags, UPLINK) {
                Ok(flow) => {
                    prop_assert_eq!((flow.protocol, flow.inside, flow.remote), (protocol, inside, far(remote)));
                    model.retain(|old| old.inside_key() != flow.inside_key());
                    model.push(flow);
                }
                Err(error) => prop_assert_eq!(error, NoFlow::NotABeginning),
            }
            if step == 6 {
                flows.sweep(now_ns);
            }
            if step == 7 {
                flows.forget(owner);
                model.retain(|flow| flow.inside.address != end(owner_byte(owner), 0).address);
            }
            let live: Vec<Flow> = flows.list(now_ns).map(|(flow, ..)| flow).collect();
            for (index, flow) in live.iter().enumerate() {
                prop_assert!(model.contains(flow));
                let twice = live[index + 1..].iter().any(|other| {
                    other.inside_key() == flow.inside_key() || other.outside_key() == flow.outside_key()
                });
                prop_assert!(!twice);
                let by = (flow.protocol, flow.outside, flow.remote);
                prop_assert_eq!(flows.quoted(now_ns, Direction::Out, by), Some(*flow));
            }
            let counted: u32 = flows.shares.values().map(|share| share.count).sum();
            prop_assert_eq!(counted as usize, flows.len());
            let found = [flows.from_inside.len(), flows.from_outside.len(), flows.addresses.len()];
            prop_assert_eq!(found, [flows.len(); 3]);
            for (owner, share) in &flows.shares {
                let mut seen = 0;
                for (list, lives) in share.lists.iter().zip([false, true]) {
                    let (mut at, mut before) = (list.oldest, NONE);
                    while let Some(entry) = flows.entry(at) {
                        prop_assert_eq!((entry.owner, entry.older, entry.lives), (*owner, before, lives));
                        (before, at, seen) = (at, entry.newer, seen + 1);
                    }
                    prop_assert_eq!(before, list.newest);
                }
                prop_assert_eq!(seen, share.count);
            }
        }
    }
}
