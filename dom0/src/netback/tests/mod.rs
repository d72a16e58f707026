//! The whole backend over the host stand-in: toolstack and frontends in one program.

mod accounts;
mod control;
mod finished;
mod front;
mod places;
mod runs;
mod uplink;
mod wire;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::executor::{block_on_test, time};
use ring_abi::io::netif::{NETIF_RSP_OKAY, NETTXF_MORE_DATA};
use ring_abi::ring::REQ_PROD;

use self::front::*;
use crate::net::MacAddr;
use crate::net::headers::testing::ethernet;
use crate::net::switch::Reason;
use crate::xenstore::{Client, Nodes};

/// Long enough for all that is ready, and too short for a packet that waits to be dropped.
const MOMENT_NS: u64 = 1_000_000;

async fn moment() {
    time::sleep(MOMENT_NS).await;
}

/// A frame of a protocol that nobody looks into, with `len` bytes of payload.
fn frame(from: &Frontend, to: MacAddr, len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
    ethernet(from.mac(), to, 0x88b5, &payload)
}

#[test]
fn frames_go_from_one_guest_to_another_and_to_all() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        let mut three = Frontend::start(&client, 3).await;
        [&mut two, &mut three].into_iter().for_each(|guest| guest.queues[0].post(20));
        let direct: Vec<_> = [46, 100, 1000, 3000].map(|len| frame(&one, two.mac(), len)).into();
        for (id, frame) in direct.iter().enumerate() {
            one.queues[0].send(frame, id as u16);
        }
        let to_all = frame(&one, MacAddr::BROADCAST, 60);
        one.queues[0].send(&to_all, 9);
        moment().await;
        assert_eq!(one.queues[0].answers(), [0, 1, 2, 3, 9].map(|id| (id, NETIF_RSP_OKAY)));
        let got: Vec<_> = two.queues[0].received().into_iter().map(Result::unwrap).collect();
        assert_eq!(got, [&direct[..], core::slice::from_ref(&to_all)].concat());
        assert_eq!(three.queues[0].received(), [Ok(to_all)]);
        assert!(one.queues[0].received().is_empty(), "nobody hears himself");
        // And the other way.
        one.queues[0].post(1);
        let answer = frame(&two, one.mac(), 1500);
        two.queues[0].send(&answer, 0);
        moment().await;
        assert_eq!(one.queues[0].received(), [Ok(answer)]);
        assert_eq!((counters(&network, 1).in_packets, counters(&network, 2).out_packets), (5, 5));
    });
}

#[test]
fn a_packet_of_several_slots_arrives_whole() {
    let (client, _) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        two.queues[0].post(8);
        // The first slot's size is the whole packet's.
        let whole = frame(&one, two.mac(), 9000);
        let (first, rest) = whole.split_at(2000);
        let (second, third) = rest.split_at(4000);
        for (id, piece) in [first, second, third].into_iter().enumerate() {
            let size = if id == 0 { whole.len() } else { piece.len() };
            let flags = if id < 2 { NETTXF_MORE_DATA } else { 0 };
            one.queues[0].write_slot(piece, id as u16, flags, size as u16);
        }
        one.queues[0].ring();
        moment().await;
        assert_eq!(two.queues[0].received(), [Ok(whole)]);
        assert_eq!(one.queues[0].answers().len(), 3);
    });
}

#[test]
fn what_finds_no_room_waits_for_a_while_and_in_order() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        let mut three = Frontend::start(&client, 3).await;
        three.queues[0].post(4);
        let frames: Vec<_> = (0..3).map(|n| frame(&one, two.mac(), 100 + n)).collect();
        for (id, frame) in frames.iter().enumerate() {
            one.queues[0].send(frame, id as u16);
        }
        let other = frame(&one, three.mac(), 200);
        one.queues[0].send(&other, 9);
        moment().await;
        assert_eq!(three.queues[0].received(), [Ok(other)], "others are not kept waiting");
        assert_eq!(one.queues[0].answers(), [(9, NETIF_RSP_OKAY)], "their slots are kept");
        two.queues[0].post(2);
        moment().await;
        assert_eq!(two.queues[0].received(), [Ok(frames[0].clone()), Ok(frames[1].clone())]);
        assert_eq!(one.queues[0].answers().len(), 2);
        // The receiver takes no more: the third is dropped, at the receiver's cost.
        time::sleep(12 * MOMENT_NS).await;
        assert_eq!(one.queues[0].answers(), [(2, NETIF_RSP_OKAY)]);
        assert_eq!(drops(&network, 2, Reason::NoRoom), 1);
        two.queues[0].post(4);
        moment().await;
        assert!(two.queues[0].received().is_empty());
    });
}

#[test]
fn no_packet_overtakes_one_that_waits() {
    let (client, _) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        two.queues[0].post(1);
        let (long, short) = (frame(&one, two.mac(), 6000), frame(&one, two.mac(), 60));
        one.queues[0].write_slot(&long[..3000], 0, NETTXF_MORE_DATA, long.len() as u16);
        one.queues[0].write_slot(&long[3000..], 1, 0, 3014);
        one.queues[0].send(&short, 2);
        moment().await;
        // There is room for the second alone.
        assert!(two.queues[0].received().is_empty() && one.queues[0].answers().is_empty());
        two.queues[0].post(3);
        moment().await;
        assert_eq!(two.queues[0].received(), [Ok(long), Ok(short)]);
    });
}

#[test]
fn a_receiver_that_takes_nothing_costs_its_sender_half_of_what_is_under_way() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let two = Frontend::start(&client, 2).await;
        let mut three = Frontend::start(&client, 3).await;
        three.queues[0].post(20);
        let stuck = frame(&one, two.mac(), 60);
        (0..200).for_each(|id| one.queues[0].send(&stuck, id));
        moment().await;
        let other = frame(&one, three.mac(), 60);
        (200..220).for_each(|id| one.queues[0].send(&other, id));
        moment().await;
        assert_eq!(three.queues[0].received().len(), 20);
        assert_eq!(one.queues[0].answers().len(), 220 - 32);
        time::sleep(12 * MOMENT_NS).await;
        assert_eq!(one.queues[0].answers().len(), 32);
        assert_eq!(drops(&network, 2, Reason::NoRoom), 200);
    });
}

#[test]
fn a_ring_that_is_ruined_ends_its_own_connection_alone() {
    let (client, _) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        let mut three = Frontend::start(&client, 3).await;
        [&mut two, &mut three].into_iter().for_each(|guest| guest.queues[0].post(20));
        // The receiver's ring: the sender finds out, and the receiver pays.
        two.queues[0].pages[1].bytes().store_u32(REQ_PROD, 5000);
        let to_all = frame(&one, MacAddr::BROADCAST, 60);
        one.queues[0].send(&to_all, 1);
        back_state(&client, 2, "5").await;
        assert!(error(&client, 2).contains("ring overrun"), "{}", error(&client, 2));
        assert_eq!(one.queues[0].answers(), [(1, NETIF_RSP_OKAY)]);
        assert_eq!(three.queues[0].received(), [Ok(to_all.clone())]);
        // A sender's ring: what waited, and finds room in the same batch, arrives.
        let mut four = Frontend::start(&client, 4).await;
        let last = frame(&one, four.mac(), 60);
        one.queues[0].send(&last, 2);
        moment().await;
        one.queues[0].write_slot(&last, 3, NETTXF_MORE_DATA, last.len() as u16);
        one.queues[0].ring();
        four.queues[0].post(1);
        back_state(&client, 1, "5").await;
        assert!(error(&client, 1).contains("within a packet"), "{}", error(&client, 1));
        assert_eq!(four.queues[0].received(), [Ok(last)]);
        // The others go on, and so does one that comes again.
        client.write(&format!("{}/state", front(1)), "6").unwrap();
        back_state(&client, 1, "6").await;
        client.write(&format!("{}/state", front(1)), "1").unwrap();
        let mut one = Frontend::connect(&client, 1, 1, &[]).await;
        one.queues[0].send(&to_all, 1);
        moment().await;
        assert_eq!(three.queues[0].received(), [Ok(to_all)]);
    });
}

fn error(client: &Client, domain: u16) -> String {
    client.read_str(&format!("{}/error", back(domain))).unwrap_or_default()
}

#[test]
fn requests_that_are_no_packets_are_told_of_when_the_connection_ends() {
    let (client, _) = start();
    block_on_test(async {
        for (sends_bad, told) in [(true, "bad requests: 1"), (false, "")] {
            let domain = if sends_bad { 1 } else { 2 };
            let mut one = Frontend::start(&client, domain).await;
            let whole = frame(&one, MacAddr::BROADCAST, 60);
            one.queues[0].send(&whole, 1);
            if sends_bad {
                one.queues[0].send(&whole[..13], 2);
            }
            moment().await;
            one.queues[0].answers();
            client.write(&format!("{}/state", front(domain)), "6").unwrap();
            back_state(&client, domain, "6").await;
            assert_eq!(error(&client, domain), told);
        }
    });
}

#[test]
fn another_stations_address_is_nobodys_to_send_from() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        two.queues[0].post(2);
        let spoofed = ethernet(two.mac(), MacAddr::BROADCAST, 0x88b5, &[0; 46]);
        one.queues[0].send(&spoofed, 1);
        moment().await;
        assert_eq!(one.queues[0].answers(), [(1, NETIF_RSP_OKAY)], "a dropped packet is no fault");
        assert!(two.queues[0].received().is_empty());
        assert_eq!(drops(&network, 1, Reason::SpoofedMac), 1);
    });
}

#[test]
fn each_queue_has_rings_and_events_of_its_own() {
    let (client, _) = start();
    block_on_test(async {
        make_vif(&client, 1, &[]);
        make_vif(&client, 2, &[]);
        let mut one = Frontend::connect(&client, 1, 4, &[]).await;
        let mut two = Frontend::connect(&client, 2, 2, &[]).await;
        two.queues.iter_mut().for_each(|queue| queue.post(20));
        for round in 0..3 {
            for n in 0..4 {
                let frame = frame(&one, two.mac(), 60 + n);
                (0..15).for_each(|id| one.queues[n].send(&frame, round * 15 + id));
            }
            moment().await;
            // What does not fit waits in the queue that it is for.
            let got: Vec<usize> = two.queues.iter_mut().map(|queue| queue.received().len()).collect();
            assert_eq!(got, [20, 20]);
            two.queues.iter_mut().for_each(|queue| queue.post(20));
            moment().await;
            let got: Vec<usize> = two.queues.iter_mut().map(|queue| queue.received().len()).collect();
            assert_eq!(got, [10, 10]);
            two.queues.iter_mut().for_each(|queue| queue.post(10));
            assert!(one.queues.iter_mut().all(|queue| queue.answers().len() == 15));
        }
    });
}

#[test]
fn a_frontend_gets_the_groups_that_it_names() {
    let (client, _) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        make_vif(&client, 2, &[]);
        let mut two = Frontend::connect(&client, 2, 1, &[("request-multicast-control", "1")]).await;
        two.queues[0].post(4);
        let group = MacAddr([1, 0, 0x5e, 0, 0, 7]);
        for (id, to) in [group, MacAddr::BROADCAST].into_iter().enumerate() {
            let frame = frame(&one, to, 60);
            one.queues[0].send(&frame, id as u16);
        }
        moment().await;
        assert_eq!(two.queues[0].received().len(), 1, "the broadcast alone");
        two.queues[0].join(group);
        moment().await;
        let frame = frame(&one, group, 61);
        one.queues[0].send(&frame, 5);
        moment().await;
        assert_eq!(two.queues[0].received().len(), 1);
    });
}

#[test]
fn the_filter_of_groups_is_asked_for_at_any_time() {
    let (client, _) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        two.queues[0].post(20);
        let group = MacAddr([1, 0, 0x5e, 0, 0, 7]);
        let request = format!("{}/request-multicast-control", front(2));
        let mut number = 0;
        let mut reaches = async |asked: Option<&str>, wanted: usize| {
            match asked {
                Some(asked) => client.write(&request, asked).unwrap(),
                None => client.rm(&request).unwrap(),
            }
            moment().await;
            let frame = frame(&one, group, 60 + usize::from(number));
            one.queues[0].send(&frame, number);
            number += 1;
            moment().await;
            assert_eq!(two.queues[0].received().len(), wanted, "{asked:?}");
        };
        for (asked, wanted) in [
            (Some("0"), 1),
            (Some("1"), 0),
            (Some("0"), 1),
            (Some("7"), 0),
            (Some("no number"), 1),
            (Some("1"), 0),
            (None, 1),
        ] {
            reaches(asked, wanted).await;
        }
    });
}

#[test]
fn what_a_vif_sends_is_bounded_by_its_rate() {
    let (client, network) = start();
    block_on_test(async {
        make_vif(&client, 1, &[("rate", "100000,50000")]);
        let mut one = Frontend::connect(&client, 1, 1, &[]).await;
        let mut two = Frontend::start(&client, 2).await;
        let frame = frame(&one, two.mac(), 1986);
        let (begun, mut got) = (time::now_ns(), 0);
        two.queues[0].post(30);
        for id in 0..600 {
            one.queues[0].send(&frame, id);
            while one.queues[0].tx.free_requests() == 0 || id == 599 && got < 600 {
                moment().await;
                one.queues[0].answers();
                let new = two.queues[0].received().len();
                got += new;
                two.queues[0].post(new);
                if one.queues[0].tx.free_requests() > 0 && id < 599 {
                    break;
                }
            }
        }
        // 1.2 MB at 2 MB a second, of which the first 128 KiB may come at once.
        let took_ms = (time::now_ns() - begun) / 1_000_000;
        assert!((510..=610).contains(&took_ms), "{took_ms} ms");
        assert_eq!(drops(&network, 2, Reason::NoRoom), 0);
    });
}

#[test]
fn vifs_come_and_go_and_leave_nothing() {
    let (client, network) = start();
    block_on_test(async {
        let mut two = Frontend::start(&client, 2).await;
        for round in 0..5 {
            let mut one = Frontend::start(&client, 1).await;
            // Something waits at the moment of the end.
            let frame = frame(&one, two.mac(), 60);
            (0..40).for_each(|id| one.queues[0].send(&frame, id));
            moment().await;
            if round % 2 == 0 {
                client.rm(&front(1)).unwrap();
            } else {
                client.write(&format!("{}/state", front(1)), "6").unwrap();
                client.write(&format!("{}/online", back(1)), "0").unwrap();
            }
            back_state(&client, 1, "6").await;
            let _ = client.rm(&front(1));
            client.rm(&back(1)).unwrap();
            moment().await;
            let fabric = network.0.lock();
            let bridge = fabric.switch.find_bridge("xenbr0").unwrap();
            assert_eq!(fabric.switch.ports_of(bridge).count(), 1, "round {round}");
        }
        two.queues[0].post(1);
        moment().await;
        assert!(two.queues[0].received().is_empty(), "what waited went with its sender");
    });
}

#[test]
fn refusals_say_why() {
    let (client, _) = start();
    block_on_test(async {
        let _two = Frontend::start(&client, 2).await;
        for (more, why) in [
            (&[("bridge", "lan")][..], "bridge `lan`: no such bridge (there are xenbr0)"),
            (&[("mac", "01:00:00:00:00:00")], "no address of a station"),
            (&[("mac", "00:16:3e:00:00:02")], "is the address of vif2.0, on the same bridge"),
            (&[("vifname", "vif2.0")], "there is a `vif2.0` already"),
        ] {
            make_vif(&client, 1, more);
            back_state(&client, 1, "6").await;
            let error = client.read_str(&format!("{}/hotplug-error", back(1))).unwrap();
            assert!(error.contains(why), "{error}");
            client.rm(&back(1)).unwrap();
            client.rm(&front(1)).unwrap();
            moment().await;
        }
        // A frontend's bad parameters.
        make_vif(&client, 1, &[]);
        back_state(&client, 1, "2").await;
        for (name, value) in [("request-rx-copy", "1"), ("tx-ring-ref", "9999"), ("rx-ring-ref", "1")] {
            client.write(&format!("{}/{name}", front(1)), value).unwrap();
        }
        client.write(&format!("{}/event-channel", front(1)), "77").unwrap();
        client.write(&format!("{}/state", front(1)), "4").unwrap();
        back_state(&client, 1, "5").await;
        assert!(error(&client, 1).starts_with("binding port 77: "), "{}", error(&client, 1));
    });
}
