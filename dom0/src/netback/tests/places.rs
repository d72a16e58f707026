//! Where a vif is, which packets pass there, and at which rate.

use alloc::vec;

use core::net::Ipv4Addr;

use super::super::Network;
use super::*;
use crate::net::switch::PortId;

/// The same frame with a tag.
fn tagged(frame: &[u8], vlan: u8) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, vlan], &frame[12..]].concat()
}

#[test]
fn a_frame_gets_the_tag_that_its_receiver_knows() {
    let (client, network) = start();
    block_on_test(async {
        network.set_up(Vec::new());
        for (domain, place) in [
            (1, &[("vlan", "10")][..]),
            (2, &[("bridge", "xenbr0:10:20")]),
            (3, &[("bridge", "xenbr0.10")]),
            (4, &[]),
        ] {
            make_vif(&client, domain, place);
        }
        let mut one = Frontend::connect(&client, 1, 1, &[]).await;
        let mut two = Frontend::connect(&client, 2, 1, &[]).await;
        let mut three = Frontend::connect(&client, 3, 1, &[]).await;
        let mut four = Frontend::connect(&client, 4, 1, &[]).await;
        [&mut one, &mut two, &mut three, &mut four].into_iter().for_each(|guest| guest.queues[0].post(20));
        let to_all = frame(&one, MacAddr::BROADCAST, 300);
        one.queues[0].send(&to_all, 1);
        moment().await;
        assert_eq!(two.queues[0].received(), [Ok(tagged(&to_all, 10))]);
        assert_eq!(three.queues[0].received(), [Ok(to_all)]);
        assert!(four.queues[0].received().is_empty(), "another network");
        // To one receiver, by its tag, of several pages; and back.
        let long = frame(&two, one.mac(), 9000);
        let whole = tagged(&long, 10);
        let (first, rest) = whole.split_at(4000);
        let (second, third) = rest.split_at(4000);
        for (id, piece) in [first, second, third].into_iter().enumerate() {
            let size = if id == 0 { whole.len() } else { piece.len() };
            let flags = if id < 2 { NETTXF_MORE_DATA } else { 0 };
            two.queues[0].write_slot(piece, id as u16, flags, size as u16);
        }
        two.queues[0].ring();
        let direct = frame(&one, two.mac(), 64);
        one.queues[0].send(&direct, 2);
        moment().await;
        assert_eq!(one.queues[0].received(), [Ok(long)]);
        assert_eq!(two.queues[0].received(), [Ok(tagged(&direct, 10))]);
        // What has no tag, or another's, goes nowhere.
        for (id, frame) in
            [frame(&two, one.mac(), 60), tagged(&frame(&two, one.mac(), 60), 20)].iter().enumerate()
        {
            two.queues[0].send(frame, id as u16);
        }
        moment().await;
        assert!(one.queues[0].received().is_empty());
        assert_eq!((drops(&network, 2, Reason::Vlan), drops(&network, 2, Reason::NoReceiver)), (1, 1));
        // The port moves.
        network.set_vlans("vif4.0", ".10").unwrap();
        one.queues[0].send(&direct, 3);
        let to_four = frame(&one, four.mac(), 60);
        one.queues[0].send(&to_four, 4);
        moment().await;
        assert_eq!(four.queues[0].received(), [Ok(to_four)]);
        for (port, text, why) in [
            ("vif4.0", "x", "VLAN `x`: expected"),
            ("vif9.0", ".1", "`vif9.0`: no port"),
            ("xenbr0.dom0", ".1", "xenbr0.dom0: that is no guest's interface"),
        ] {
            assert!(network.set_vlans(port, text).unwrap_err().starts_with(why), "{port} {text}");
        }
    });
}

#[test]
fn the_gateway_hears_of_a_port_that_moves() {
    let (client, network) = start();
    block_on_test(async {
        network.set_up(Vec::new());
        make_vif(&client, 1, &[("vlan", "10"), ("ip", "10.88.0.77")]);
        make_vif(&client, 2, &[("vlan", "10"), ("ip", "10.88.0.1")]);
        back_state(&client, 1, "2").await;
        back_state(&client, 2, "2").await;
        let known = || {
            let fabric = network.0.lock();
            let port = fabric.switch.find_port("vif1.0").unwrap();
            let gateway = &fabric.outside.as_ref().unwrap().gateway;
            let fixed = gateway.guest(port).unwrap().fixed;
            let owner = gateway.dhcp(fabric.switch.find_bridge("xenbr0").unwrap()).unwrap().other_owner(
                time::now_ns(),
                PortId::testing(99),
                Ipv4Addr::new(10, 88, 0, 77),
            );
            assert_eq!(owner, fixed.map(|_| port));
            fixed
        };
        assert_eq!(known(), None, "another network");
        for (place, fixed) in [("untagged", 77), (".10", 0), (":10", 0), ("untagged", 77)] {
            network.set_vlans("vif1.0", place).unwrap();
            assert_eq!(known().map_or(0, |fixed| fixed.octets()[3]), fixed, "{place}");
        }
        let refused = network.set_vlans("vif2.0", "untagged").unwrap_err();
        assert_eq!(refused, "ip `10.88.0.1`: it is the gateway's own address");
        let fabric = network.0.lock();
        let port = fabric.switch.find_port("vif2.0").unwrap();
        assert_eq!(fabric.switch.config(port).unwrap().vlans.to_string(), ".10", "nothing is changed");
    });
}

#[test]
fn a_packet_that_gets_a_tag_goes_to_the_queue_of_its_sender() {
    let (client, network) = start();
    block_on_test(async {
        network.set_up(Vec::new());
        make_vif(&client, 1, &[("vlan", "10")]);
        make_vif(&client, 2, &[("bridge", "xenbr0:10")]);
        let mut one = Frontend::connect(&client, 1, 2, &[]).await;
        let mut two = Frontend::connect(&client, 2, 2, &[]).await;
        two.queues.iter_mut().for_each(|queue| queue.post(4));
        for to in [two.mac(), MacAddr::BROADCAST] {
            let frames = [70, 80].map(|len| frame(&one, to, len));
            frames.iter().zip(&mut one.queues).for_each(|(frame, queue)| queue.send(frame, 1));
            moment().await;
            for (queue, frame) in two.queues.iter_mut().zip(&frames) {
                assert_eq!(queue.received(), [Ok(tagged(frame, 10))]);
            }
        }
    });
}

#[test]
fn rules_are_the_configurations_and_the_administrators() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        make_vif(&client, 2, &[("rules", "in accept udp port 7; in drop")]);
        let mut two = Frontend::connect(&client, 2, 1, &[]).await;
        two.queues[0].post(20);
        let frame = frame(&one, two.mac(), 60);
        let mut gets = async |id: u16| {
            one.queues[0].send(&frame, id);
            moment().await;
            two.queues[0].received().len()
        };
        assert_eq!(gets(1).await, 0, "neither IP nor ARP");
        assert_eq!(network.show_rules(None).unwrap(), network.show_rules(Some("vif2.0")).unwrap());
        let shown = |network: &Network| network.show_rules(None).unwrap().split_off(1);
        assert_eq!(shown(&network), ["   1  in accept udp port 7", "   2  in drop"]);
        network.add_rule("vif2.0", Some(1), "out drop tcp").unwrap();
        network.add_rule("vif2.0", None, "in accept icmp").unwrap();
        assert_eq!(shown(&network).len(), 4);
        assert!(shown(&network)[0].ends_with("out drop tcp"));
        network.remove_rule("vif2.0", Some(3)).unwrap();
        assert!(shown(&network)[2].ends_with("in accept icmp"));
        assert_eq!(gets(2).await, 1, "nothing that comes in is refused");
        for (place, why) in [(Some(0), "none at 0"), (Some(4), "has 3 rules, and none at 4")] {
            assert!(network.remove_rule("vif2.0", place).unwrap_err().ends_with(why), "{place:?}");
        }
        assert!(network.add_rule("vif2.0", Some(9), "in drop").unwrap_err().ends_with("from 1 to 4"));
        assert!(network.add_rule("vif2.0", None, "in").unwrap_err().starts_with("`in`: a rule begins"));
        network.remove_rule("vif2.0", None).unwrap();
        assert_eq!(network.show_rules(None), Ok(vec![]));
        assert_eq!(network.remove_rule("vif2.0", Some(1)), Err("vif2.0 has no rules".into()));
        for _ in 0..64 {
            network.add_rule("vif2.0", None, "in drop").unwrap();
        }
        assert_eq!(
            network.add_rule("vif2.0", None, "in drop"),
            Err("vif2.0 has 64 rules, and no more can be".into())
        );
    });
}

/// Bytes a second that a vif of that `rate` sends, once what an interval gives at once and the first burst are gone.
fn sent_at(rate: &'static str, expected: u64) -> u64 {
    let (client, _) = start();
    block_on_test(async {
        make_vif(&client, 1, &[("rate", rate)]);
        let mut one = Frontend::connect(&client, 1, 1, &[]).await;
        let mut two = Frontend::start(&client, 2).await;
        let frame = frame(&one, two.mac(), 1486);
        two.queues[0].post(30);
        let (mut id, mut sent, mut begun) = (0u16, 0, None);
        loop {
            while one.queues[0].tx.free_requests() > 0 {
                one.queues[0].send(&frame, id);
                id = id.wrapping_add(1);
            }
            time::sleep(200_000).await;
            // What the receiver has no room for has been sent, too.
            sent += (one.queues[0].answers().len() * frame.len()) as u64;
            let new = two.queues[0].received().len();
            two.queues[0].post(new);
            let now_ns = time::now_ns();
            match begun {
                None if sent > expected / 4 => begun = Some((now_ns, sent)),
                Some((begun_ns, before)) if now_ns - begun_ns > 2_000_000_000 => {
                    return (sent - before) * 1_000_000_000 / (now_ns - begun_ns);
                }
                _ => {}
            }
        }
    })
}

#[test]
fn a_rate_is_kept_within_five_percent() {
    for (rate, expected) in
        [("10000,5000", 2_000_000), ("62500,50000", 1_250_000), ("200000,20000", 10_000_000)]
    {
        // Each on a machine of its own.
        let sent = std::thread::spawn(move || sent_at(rate, expected)).join().unwrap();
        let percent = sent * 100 / expected;
        assert!((95..=105).contains(&percent), "{rate}: {sent} bytes a second, {percent} %");
    }
}
