//! Many packets: of many connections, and of any bytes.

use super::*;
use alloc::string::String;
use proptest::prelude::*;

/// An answer or a word to all in ARP, by the station with that number.
fn arp(last: u8, to: MacAddr, operation: u8) -> Vec<u8> {
    let mut packet = alloc::vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(station(last).0);
    packet.extend(outside(last).octets());
    packet.extend([0; 6]);
    packet.extend(outside(15).octets());
    testing::ethernet(station(last), to, ethertype::ARP, &packet)
}

#[test]
fn a_busy_uplink_hides_neither_the_way_to_the_world_nor_a_station() {
    let mut router = router();
    let syn = |to| from_guest(&testing::tcp((v4(guest(GUEST)), 4000), (v4(to), 80), SYN, b""));
    // What others there say to each other.
    for last in 20..90 {
        send(&mut router, UPLINK, &arp(last, MacAddr::BROADCAST, 1));
    }
    assert_eq!(send(&mut router, GUESTS, &syn(WORLD)).0, Routed::Forward(UPLINK));
    assert_eq!(router.neighbours().list(1).count(), 2, "nobody asked for them");
    // And those that guests ask for.
    for last in 20..90 {
        assert_eq!(send(&mut router, GUESTS, &syn(outside(last))).0, Routed::Drop(Reason::Resolving));
        send(&mut router, UPLINK, &arp(last, own(UPLINK), 2));
        assert_eq!(send(&mut router, GUESTS, &syn(outside(last))).0, Routed::Forward(UPLINK));
    }
    assert_eq!(send(&mut router, GUESTS, &syn(WORLD)).0, Routed::Forward(UPLINK));
    assert_eq!(send(&mut router, GUESTS, &syn(outside(20))).0, Routed::Forward(UPLINK));
}

/// A router whose port 8080 leads to a guest's port 80.
fn router_with_forward() -> Router {
    let mut router = router();
    let forward = Forward {
        protocol: protocol::TCP,
        port: 8080,
        guest: "x".to_string(),
        to: Some(guest(GUEST)),
        to_port: 80,
    };
    router.add_forward(forward).expect("free");
    router
}

/// The world has no address of the guests', of the router's, and none that is no station's.
#[test]
fn nobody_comes_by_a_forward_in_a_guests_name() {
    let mut router = router_with_forward();
    let syn = |from| from_world(&testing::tcp((v4(from), 50_000), (v4(outside(15)), 8080), SYN, b""));
    for from in [
        guest(21),
        guest(GUEST),
        guest(1),
        Ipv4Addr::new(10, 89, 0, 20),
        outside(15),
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::UNSPECIFIED,
    ] {
        assert_eq!(send(&mut router, UPLINK, &syn(from)).0, Routed::Drop(Reason::Source), "{from}");
    }
    assert!(router.flows().is_empty());
    for from in [WORLD, outside(2)] {
        assert_eq!(send(&mut router, UPLINK, &syn(from)).0, Routed::Forward(GUESTS), "{from}");
    }
}

/// A server behind a forward, with fifty clients at a time that come and go: no packet of a connection that lives is lost.
#[test]
fn a_busy_forward_loses_nothing() {
    let mut router = router_with_forward();
    let mut running: alloc::collections::VecDeque<(u16, u8)> = alloc::collections::VecDeque::new();
    let mut next = 10_000u16;
    for _ in 0..20_000 {
        if running.len() < 50 {
            running.push_back((next, 0));
            next += 1;
        }
        let Some((port, step)) = running.pop_front() else { break };
        let (client, outer, inner) =
            ((v4(outside(2)), port), (v4(outside(15)), 8080), (v4(guest(GUEST)), 80));
        // SYN; SYN and ACK; ACK; request; answer; FIN; FIN; ACK.
        let (inward, flags) = [
            (true, 2),
            (false, 18),
            (true, 16),
            (true, 24),
            (false, 24),
            (false, 17),
            (true, 17),
            (false, 16),
        ][usize::from(step)];
        let (network, frame) = if inward {
            (UPLINK, from_world(&testing::tcp(client, outer, flags, b"x")))
        } else {
            (GUESTS, from_guest(&testing::tcp(inner, client, flags, b"y")))
        };
        let (routed, _) = send(&mut router, network, &frame);
        assert!(matches!(routed, Routed::Forward(_)), "{routed:?} at step {step} of client {port}");
        if step < 7 {
            running.push_back((port, step + 1));
        }
    }
    assert!(next > 12_000, "many clients: {next}");
}

proptest! {
    /// Whatever arrives, the router neither panics nor sends on what is not for it; what goes on has right checksums of IP.
    #[test]
    fn any_frame(
        inside in any::<bool>(),
        kind in 0u8..4,
        changes in prop::collection::vec((0usize..120, any::<u8>()), 0..6),
        cut in 14usize..200,
    ) {
        let mut router = router();
        router.add_forward(Forward {
            protocol: protocol::TCP, port: 80, guest: String::new(), to: Some(guest(GUEST)), to_port: 8080,
        }).expect("free");
        let (from, to) = if inside { (guest(GUEST), WORLD) } else { (WORLD, outside(15)) };
        let packet = match kind {
            0 => testing::tcp((v4(from), 1000), (v4(to), 80), SYN, &[1; 90]),
            1 => testing::udp((v4(from), 1000), (v4(to), 80), &[2; 90]),
            2 => icmp(v4(from), v4(to), &[8, 0, 0, 0, 0, 7, 0, 1, 5, 5]),
            _ => icmp(v4(from), v4(to), &[3, 1, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0]),
        };
        let mut frame = if inside { from_guest(&packet) } else { from_world(&packet) };
        for (at, with) in changes {
            let len = frame.len();
            frame[at % len] = with;
        }
        frame.truncate(cut);
        let (network, own_mac) = if inside { (GUESTS, own(GUESTS)) } else { (UPLINK, own(UPLINK)) };
        let (routed, after) = send(&mut router, network, &frame);
        if let Routed::Forward(to) = routed {
            prop_assert_eq!(&frame[..6], &own_mac.0[..]);
            prop_assert_ne!(to, network);
            let mut bytes = after.clone();
            let len = bytes.len();
            let head = Head::parse(&mut bytes[..len.min(256)], len as u32).expect("a frame");
            prop_assert!(head.is_ipv4_sum_right());
            prop_assert_eq!(head.from(), own(to));
        }
    }
}
