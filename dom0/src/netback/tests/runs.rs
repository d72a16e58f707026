//! Packets that are alike, in a row, and between them others.

use ring_abi::io::netif::{NETIF_RSP_ERROR, NetifRxRequest, NetifTxRequest};

use super::*;

/// A frame of a protocol that the switch knows, so that frames of the same stations are alike.
fn alike(from: &Frontend, to: MacAddr, len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
    ethernet(from.mac(), to, 0x0800, &payload)
}

#[test]
fn runs_and_others_arrive_in_order_and_are_counted() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        let mut three = Frontend::start(&client, 3).await;
        [&mut two, &mut three].into_iter().for_each(|guest| guest.queues[0].post(30));
        let (to_two, to_three) = (two.mac(), three.mac());
        let stations = [2, 2, 2, 3, 2, 3, 3, 3, 2, 2];
        let frames: Vec<_> = stations
            .into_iter()
            .zip([50, 60, 1000, 70, 3000, 80, 90, 46, 100, 110])
            .map(|(to, len)| (to, alike(&one, if to == 2 { to_two } else { to_three }, len)))
            .collect();
        for (id, (_, frame)) in frames.iter().enumerate() {
            one.queues[0].write_slot(frame, id as u16, 0, frame.len() as u16);
        }
        // A packet of several slots amid a run, and one whose grant is no good.
        let long = alike(&one, to_two, 5000);
        one.queues[0].write_slot(&long[..2000], 10, NETTXF_MORE_DATA, long.len() as u16);
        one.queues[0].write_slot(&long[2000..], 11, 0, (long.len() - 2000) as u16);
        one.queues[0].ring();
        moment().await;
        let of =
            |to| frames.iter().filter(move |(station, _)| *station == to).map(|(_, frame)| Ok(frame.clone()));
        assert_eq!(two.queues[0].received(), of(2).chain([Ok(long.clone())]).collect::<Vec<_>>());
        assert_eq!(three.queues[0].received(), of(3).collect::<Vec<_>>());
        assert_eq!(one.queues[0].answers(), (0..12).map(|id| (id, NETIF_RSP_OKAY)).collect::<Vec<_>>());
        let bytes = |to| of(to).map(|frame| frame.unwrap().len() as u64).sum::<u64>();
        let [from_one, to_two, to_three] = [1, 2, 3].map(|domain| counters(&network, domain));
        assert_eq!((from_one.in_packets, to_two.out_packets, to_three.out_packets), (11, 7, 4));
        assert_eq!(to_three.out_bytes, bytes(3));
        assert_eq!(to_two.out_bytes, bytes(2) + long.len() as u64);
        assert_eq!(from_one.in_bytes, to_two.out_bytes + to_three.out_bytes);
    });
}

#[test]
fn a_run_that_finds_no_room_waits_and_nothing_overtakes() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        two.queues[0].post(3);
        let frames: Vec<_> = (0..8).map(|n| alike(&one, two.mac(), 100 + n)).collect();
        for (id, frame) in frames.iter().enumerate() {
            one.queues[0].write_slot(frame, id as u16, 0, frame.len() as u16);
        }
        one.queues[0].ring();
        moment().await;
        let expected =
            |range: core::ops::Range<usize>| -> Vec<_> { frames[range].iter().cloned().map(Ok).collect() };
        assert_eq!(two.queues[0].received(), expected(0..3));
        assert_eq!(one.queues[0].answers().len(), 3);
        let last = alike(&one, two.mac(), 200);
        one.queues[0].send(&last, 8);
        two.queues[0].post(3);
        moment().await;
        assert_eq!(two.queues[0].received(), expected(3..6));
        two.queues[0].post(5);
        moment().await;
        assert_eq!(two.queues[0].received(), [expected(6..8), vec![Ok(last)]].concat());
        assert_eq!(one.queues[0].answers().len(), 6);
        assert_eq!(counters(&network, 2).out_packets, 9);
    });
}

#[test]
fn a_run_is_what_its_sender_may_send() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        let three = Frontend::start(&client, 3).await;
        two.queues[0].post(3);
        let good = alike(&one, two.mac(), 60);
        let spoofed = alike(&three, two.mac(), 60);
        for (id, frame) in [&good, &good, &spoofed, &good, &spoofed].into_iter().enumerate() {
            one.queues[0].write_slot(frame, id as u16, 0, frame.len() as u16);
        }
        one.queues[0].ring();
        moment().await;
        assert_eq!(two.queues[0].received().len(), 3);
        assert_eq!(drops(&network, 1, Reason::SpoofedMac), 2);
        // A receiver whose ring is ruined amid a run ends; the sender goes on.
        two.queues[0].pages[1].bytes().store_u32(REQ_PROD, 5000);
        (5..8).for_each(|id| one.queues[0].write_slot(&good, id, 0, good.len() as u16));
        one.queues[0].ring();
        back_state(&client, 2, "5").await;
        assert_eq!(one.queues[0].answers().len(), 8);
    });
}

#[test]
fn packets_to_all_take_several_rounds() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut others = receivers(&client, 25).await;
        // A head and the rest for each receiver.
        let packets: Vec<_> = (0..20).map(|n| frame(&one, MacAddr::BROADCAST, 1000 + n)).collect();
        for (id, packet) in packets.iter().enumerate() {
            one.queues[0].write_slot(packet, id as u16, 0, packet.len() as u16);
        }
        one.queues[0].ring();
        moment().await;
        for other in &mut others {
            let received: Vec<_> = other.queues[0].received().into_iter().map(Result::unwrap).collect();
            assert_eq!(received, packets);
        }
        assert_eq!(one.queues[0].answers().len(), packets.len());
        let rounds = network.0.lock().way.copied_before.clone();
        let most = rounds.into_iter().max();
        assert!(most.is_some_and(|most| (1024..1024 + 2 * 38).contains(&most)), "{most:?} copies");
    });
}

#[test]
fn a_packet_in_small_pieces_for_many_costs_no_more_than_a_whole_one() {
    let (client, network) = start();
    block_on_test(async {
        network.set_up(Vec::new());
        let mut one = Frontend::start(&client, 1).await;
        let mut others = Vec::new();
        for domain in 2..40 {
            let mut other = Frontend::start(&client, domain).await;
            other.queues[0].post(2);
            others.push(other);
        }
        let packet = frame(&one, MacAddr::BROADCAST, 400);
        let pieces = packet.chunks(26).count();
        for (id, piece) in packet.chunks(26).enumerate() {
            let size = if id == 0 { packet.len() } else { piece.len() };
            let flags = if id + 1 < pieces { NETTXF_MORE_DATA } else { 0 };
            one.queues[0].write_slot(piece, id as u16, flags, size as u16);
        }
        one.queues[0].ring();
        moment().await;
        for other in &mut others {
            assert_eq!(other.queues[0].received(), [Ok(packet.clone())]);
        }
        assert_eq!(one.queues[0].answers().len(), pieces);
        let most = network.0.lock().way.copied_before.iter().copied().max();
        // Once whole for the others, perhaps once for dom0, and once for each.
        assert!(most.is_some_and(|most| most <= 38 + 2 * 20), "{most:?} copies");
    });
}

#[test]
fn a_copy_that_fails_is_told_to_whose_grant_it_was() {
    let (client, network) = start();
    let before = network.0.lock().way.most();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        let sound = frame(&one, two.mac(), 3000);
        let send = |one: &mut Frontend, gref: Option<u32>, id: u16| {
            let (first, rest) = sound.split_at(1000);
            one.queues[0].write_slot(first, id, NETTXF_MORE_DATA, sound.len() as u16);
            match gref {
                None => one.queues[0].write_slot(rest, id + 1, 0, rest.len() as u16),
                Some(gref) => {
                    let (size, id) = (rest.len() as u16, id + 1);
                    let request = NetifTxRequest { gref, offset: 0, flags: 0, id, size };
                    one.queues[0].tx.push_request(&request).unwrap();
                }
            }
        };
        // The sender's second page is none of its own; one that is sound goes by the same list.
        two.queues[0].post(2);
        send(&mut one, Some(u32::MAX), 0);
        send(&mut one, None, 2);
        one.queues[0].ring();
        moment().await;
        let (bad, good) = (NETIF_RSP_ERROR, NETIF_RSP_OKAY);
        assert_eq!(one.queues[0].answers(), [(0, bad), (1, bad), (2, good), (3, good)]);
        assert_eq!(two.queues[0].received(), [Err(bad), Ok(sound.clone())]);
        // A receiver's page is none of its own: the sender has done nothing wrong.
        let request = NetifRxRequest { id: 0, pad: 0, gref: u32::MAX };
        two.queues[0].rx.push_request(&request).unwrap();
        two.queues[0].post(1);
        send(&mut one, None, 4);
        send(&mut one, None, 6);
        one.queues[0].ring();
        moment().await;
        assert_eq!(one.queues[0].answers(), [4, 5, 6, 7].map(|id| (id, good)));
        assert_eq!(two.queues[0].received(), [Err(bad), Ok(sound)]);
    });
    assert_eq!(network.0.lock().way.most(), before, "no list of dom0's grew while a guest paid");
}
