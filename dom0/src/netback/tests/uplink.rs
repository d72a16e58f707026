//! Packets from guests to a network card.

use alloc::sync::Arc;

use backends::net::{Checksum, Gso, GsoKind};
use ring_abi::io::netif::{
    NETIF_RSP_ERROR, NETIF_RSP_NULL, NETTXF_CSUM_BLANK, NetifTxRequest, XEN_NETIF_GSO_TYPE_TCPV4,
};

use super::super::Network;
use super::super::lending::{LENT_MAX, LENT_OF_ONE};
use super::finished::{payload, tcp_frames_to};
use super::wire::{ABLE, HandWire, Told};
use super::*;
use crate::net::headers::testing::{station, v4};
use crate::net::wire::{ChecksumAt, WireFeatures};

/// A station behind the card.
const REMOTE: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x99]);
/// Bytes of payload of a long packet: four slots with the one of extra information.
const LONG: usize = 9001;

/// A network with a card, and guests on the card's bridge. The switch knows where the remote station is.
async fn uplink(features: WireFeatures, guests: u16) -> (Client, Arc<Network>, Arc<HandWire>, Vec<Frontend>) {
    let (client, network) = start();
    let card = HandWire::new(features);
    network.set_up(alloc::vec![card.clone() as Arc<_>]);
    let mut all = Vec::new();
    for domain in 1..=guests {
        make_vif(&client, domain, &[("bridge", "eth0")]);
        all.push(Frontend::connect(&client, domain, 1, &[]).await);
    }
    card.hear(&ethernet(REMOTE, station(1), 0x88b5, &[0; 46]));
    moment().await;
    flush(&card).await;
    (client, network, card, all)
}

/// Has the card send all, and forgets what it sent: what dom0 itself says.
async fn flush(card: &HandWire) {
    card.let_go(card.held());
    card.frames();
    moment().await;
}

/// A long packet of a guest that leaves the checksum and the segments to others; and the same packet whole.
fn long(guest: &Frontend) -> (Vec<u8>, Vec<u8>) {
    tcp_frames_to(guest.mac(), REMOTE, (v4(1), v4(9)), LONG)
}

/// Packets of a port that were dropped for that reason.
fn dropped(network: &Network, port: &str, reason: Reason) -> u64 {
    let fabric = network.0.lock();
    let port = fabric.switch.find_port(port).unwrap();
    fabric.switch.counters(port).unwrap().drops(reason)
}

fn send_long(guest: &mut Frontend) {
    let (_, partial) = long(guest);
    guest.queues[0].send_unfinished(&partial, 1000, XEN_NETIF_GSO_TYPE_TCPV4);
}

const PARTIAL_TCP: Option<ChecksumAt> = Some(ChecksumAt { start: 34, offset: 16 });

#[test]
fn a_long_packet_is_sent_out_of_the_guests_own_pages() {
    block_on_test(async {
        let (_, network, card, mut guests) = uplink(ABLE, 1).await;
        let one = &mut guests[0];
        let (_, mut partial) = long(one);
        send_long(one);
        moment().await;
        assert_eq!((card.held(), card.is_soon()), (1, true));
        assert!(one.queues[0].answers().is_empty() && one.queues[0].is_lent());
        // The card reads what is in the guest's page when it reads; the headers are dom0's copy.
        one.queues[0].scribble(2, 77, 0xee);
        partial[6000 + 77] = 0xee;
        one.queues[0].scribble(0, 20, 0xee);
        card.let_go(1);
        moment().await;
        let (frame, told) = card.frames().pop().unwrap();
        assert_eq!(frame, partial);
        let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1000 });
        let offload = backends::net::Offload { checksum: Checksum::Partial, gso, hash: None };
        assert_eq!(told, Told { offload, checksum_at: PARTIAL_TCP, header_len: 54 });
        assert!(!one.queues[0].is_lent(), "answered before the grants were given back");
        let answers = one.queues[0].answers();
        assert_eq!(answers.iter().filter(|(_, status)| *status == NETIF_RSP_OKAY).count(), 3);
        assert_eq!(answers.iter().filter(|(_, status)| *status == NETIF_RSP_NULL).count(), 1);
        let lines = network.show_bridges();
        let card_line = lines.iter().find(|line| line.contains("eth0.card")).unwrap();
        assert!(card_line.contains("; sent: 1 lent, 0 copied, "), "{card_line}");
        // Nobody waits any more.
        let short = frame_to_remote(one, 60);
        one.queues[0].send(&short, 9);
        moment().await;
        assert!(
            !card.is_soon() && network.show_bridges().iter().any(|line| line.contains("1 lent, 1 copied"))
        );
    });
}

fn frame_to_remote(guest: &Frontend, len: usize) -> Vec<u8> {
    frame(guest, REMOTE, len)
}

#[test]
fn a_short_packet_is_copied_and_answered_at_once() {
    block_on_test(async {
        let (_, _, card, mut guests) = uplink(ABLE, 1).await;
        let one = &mut guests[0];
        let frames = [46, 200, 242, 243, 1000, 1486].map(|len| frame_to_remote(one, len));
        for (id, frame) in frames.iter().enumerate() {
            one.queues[0].send(frame, id as u16);
        }
        // A checksum is left to a card that does it.
        let (_, partial) = tcp_frames_to(one.mac(), REMOTE, (v4(1), v4(9)), 700);
        one.queues[0].write_slot(&partial, 6, NETTXF_CSUM_BLANK, partial.len() as u16);
        one.queues[0].ring();
        moment().await;
        assert_eq!(one.queues[0].answers(), [0, 1, 2, 3, 4, 5, 6].map(|id| (id, NETIF_RSP_OKAY)));
        assert!(!one.queues[0].is_lent() && !card.is_soon());
        (0..7).for_each(|id| one.queues[0].scribble(id, 30, 0xee));
        card.let_go(7);
        let sent = card.frames();
        let bytes: Vec<_> = sent.iter().map(|(frame, _)| frame.clone()).collect();
        assert_eq!(bytes, [&frames[..], &[partial]].concat());
        assert!(sent[..6].iter().all(|(_, told)| told.checksum_at.is_none()));
        assert_eq!(sent[6].1.checksum_at, PARTIAL_TCP);
    });
}

#[test]
fn a_packet_of_a_page_is_copied_and_cut_by_the_card() {
    block_on_test(async {
        let (_, _, card, mut guests) = uplink(ABLE, 1).await;
        let one = &mut guests[0];
        let (_, partial) = tcp_frames_to(one.mac(), REMOTE, (v4(1), v4(9)), 3000);
        one.queues[0].send_unfinished(&partial, 1000, XEN_NETIF_GSO_TYPE_TCPV4);
        moment().await;
        assert_eq!((one.queues[0].answers().len(), one.queues[0].is_lent()), (3, false));
        card.let_go(1);
        let (frame, told) = card.frames().pop().unwrap();
        let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1000 });
        let offload = backends::net::Offload { checksum: Checksum::Partial, gso, hash: None };
        assert_eq!((frame, told), (partial, Told { offload, checksum_at: PARTIAL_TCP, header_len: 54 }));
    });
}

#[test]
fn what_a_card_does_not_do_dom0_does() {
    block_on_test(async {
        let plain = WireFeatures { checksum: false, tso4: false, tso6: false, ..ABLE };
        let (_, network, card, mut guests) = uplink(plain, 1).await;
        let one = &mut guests[0];
        let (whole, _) = long(one);
        send_long(one);
        moment().await;
        assert_eq!((one.queues[0].answers().len(), one.queues[0].is_lent()), (4, false));
        card.let_go(10);
        let segments = card.frames();
        let data: Vec<u8> = segments.iter().flat_map(|(frame, _)| payload(frame)).collect();
        assert_eq!(data, payload(&whole));
        let (whole, partial) = tcp_frames_to(one.mac(), REMOTE, (v4(1), v4(9)), 700);
        one.queues[0].write_slot(&partial, 6, NETTXF_CSUM_BLANK, partial.len() as u16);
        one.queues[0].ring();
        moment().await;
        card.let_go(1);
        assert_eq!(card.frames()[0].0, whole);
        // Longer than the wire, and not to be cut.
        let huge = frame_to_remote(one, 3000);
        one.queues[0].send(&huge, 7);
        moment().await;
        assert_eq!(card.held(), 0);
        assert!(
            network.show_bridges().iter().any(|line| line.contains("eth0.card") && line.contains("dropped"))
        );
    });
}

/// Some cards stop for good at segments that are longer than their wire takes.
#[test]
fn a_card_gets_no_segments_that_are_longer_than_the_wire_takes() {
    block_on_test(async {
        let (_, _, card, mut guests) = uplink(ABLE, 1).await;
        let one = &mut guests[0];
        let (_, partial) = long(one);
        // A wire takes 1,500 bytes, 40 of which are headers, and four more for a frame without a tag.
        for (size, is_sent) in [(1460, true), (1465, false), (u16::MAX, false)] {
            one.queues[0].send_unfinished(&partial, size, XEN_NETIF_GSO_TYPE_TCPV4);
            moment().await;
            assert_eq!(card.held(), usize::from(is_sent), "{size}");
            flush(&card).await;
            assert_eq!((one.queues[0].answers().len(), one.queues[0].is_lent()), (4, false));
        }
    });
}

#[test]
fn a_vif_is_lent_a_part_of_the_card_and_others_have_room() {
    block_on_test(async {
        let (_, _, card, mut guests) = uplink(ABLE, 2).await;
        (0..LENT_OF_ONE + 4).for_each(|_| send_long(&mut guests[0]));
        send_long(&mut guests[1]);
        moment().await;
        assert_eq!(card.held(), LENT_OF_ONE + 1);
        // What waits goes on when the card gives some back.
        card.let_go(3);
        moment().await;
        assert_eq!(guests[0].queues[0].answers().len(), 3 * 4);
        assert_eq!(card.held(), LENT_OF_ONE + 1);
        card.let_go(LENT_OF_ONE + 1);
        moment().await;
        card.let_go(1);
        moment().await;
        assert_eq!((card.held(), card.frames().len()), (0, LENT_OF_ONE + 5));
        assert_eq!(guests[0].queues[0].answers().len(), (LENT_OF_ONE + 1) * 4);
        assert_eq!(guests[1].queues[0].answers().len(), 4);
        assert!(guests.iter().all(|guest| !guest.queues[0].is_lent()));
    });
}

#[test]
fn a_slow_card_fills_the_ring_of_its_sender_and_loses_nothing() {
    block_on_test(async {
        let (_, network, card, mut guests) = uplink(ABLE, 1).await;
        let all = LENT_OF_ONE + 20;
        (0..all).for_each(|_| send_long(&mut guests[0]));
        time::sleep(100 * MOMENT_NS).await;
        assert!(guests[0].queues[0].answers().is_empty());
        let mut sent = 0;
        while sent < all {
            time::sleep(20 * MOMENT_NS).await;
            let before = card.held();
            assert!(before > 0, "{sent} of {all}");
            card.let_go(1);
            let long = card.frames().iter().filter(|(frame, _)| frame.len() > LONG).count();
            sent += long;
        }
        moment().await;
        assert_eq!(guests[0].queues[0].answers().len(), all * 4);
        assert_eq!(dropped(&network, "eth0.card", Reason::NoRoom), 0);
    });
}

#[test]
fn nobody_waits_for_what_others_have_lent_the_card() {
    block_on_test(async {
        let (_, _, card, mut guests) = uplink(WireFeatures { slots: 256, ..ABLE }, 3).await;
        for guest in &mut guests[..2] {
            (0..LENT_OF_ONE).for_each(|_| send_long(guest));
        }
        moment().await;
        assert_eq!(card.held(), LENT_MAX);
        let (whole, _) = long(&guests[2]);
        send_long(&mut guests[2]);
        moment().await;
        assert_eq!((guests[2].queues[0].answers().len(), guests[2].queues[0].is_lent()), (4, false));
        card.let_go(card.held());
        let segments = card.frames();
        let data: Vec<u8> = segments[LENT_MAX..].iter().flat_map(|(frame, _)| payload(frame)).collect();
        assert_eq!(data, payload(&whole));
        moment().await;
        assert!(guests[..2].iter_mut().all(|guest| guest.queues[0].answers().len() == LENT_OF_ONE * 4));
    });
}

#[test]
fn whoever_finds_what_came_back_tells_its_sender() {
    block_on_test(async {
        let (_, _, card, mut guests) = uplink(ABLE, 2).await;
        let short = frame_to_remote(&guests[1], 60);
        send_long(&mut guests[0]);
        moment().await;
        // Another vif's batch finds it, and a task of dom0's own that asks for an address again and again.
        card.let_go_silently(1);
        send_long(&mut guests[1]);
        moment().await;
        card.let_go_silently(1);
        guests[1].queues[0].send(&short, 9);
        moment().await;
        assert_eq!(guests[0].queues[0].answers().len(), 4);
        assert_eq!(guests[1].queues[0].answers().len(), 5);
        send_long(&mut guests[0]);
        moment().await;
        card.let_go_silently(card.held());
        time::sleep(100_000 * MOMENT_NS).await;
        assert!(card.held() > 0, "dom0 asked");
        assert_eq!(guests[0].queues[0].answers().len(), 4);
    });
}

#[test]
fn a_vif_that_goes_waits_for_the_card() {
    block_on_test(async {
        let (client, network, card, mut guests) = uplink(ABLE, 2).await;
        send_long(&mut guests[0]);
        moment().await;
        client.rm(&front(1)).unwrap();
        time::sleep(5_000 * MOMENT_NS).await;
        let state = client.read_str(&format!("{}/state", back(1))).unwrap();
        assert_ne!(state, "6", "the card still reads");
        assert!(guests[0].queues[0].is_lent());
        let rings = [guests[0].queues[0].tx.page().in_use(), guests[0].queues[0].rx.page().in_use()];
        assert_eq!(rings, [true, false], "nobody sends to a guest that goes");
        let short = frame(&guests[1], guests[0].mac(), 60);
        guests[1].queues[0].send(&short, 9);
        moment().await;
        assert_eq!(guests[1].queues[0].answers(), [(9, NETIF_RSP_OKAY)]);
        assert_eq!(dropped(&network, "vif1.0", Reason::NoReceiver), 1);
        // The others go on meanwhile.
        send_long(&mut guests[1]);
        moment().await;
        let (_, partial) = long(&guests[0]);
        flush_until(&card, 2).await;
        assert_eq!(card.frames()[0].0, partial, "the head was there as long as the card had it");
        back_state(&client, 1, "6").await;
        assert!(!guests[0].queues[0].is_lent());
        assert_eq!(guests[1].queues[0].answers().len(), 4);
    });
}

/// Has the card send what it has, which is at least so many packets: dom0 may have said something meanwhile.
async fn flush_until(card: &HandWire, least: usize) {
    assert!(card.held() >= least);
    card.let_go(card.held());
    moment().await;
}

/// A guest, and a card that broke with a long packet of the guest's, and was reset if it `resets`.
async fn broken(resets: bool) -> (Client, Arc<Network>, Frontend) {
    let (client, network, card, mut guests) = uplink(ABLE, 1).await;
    send_long(&mut guests[0]);
    moment().await;
    card.fail(resets);
    moment().await;
    (client, network, guests.remove(0))
}

#[test]
fn a_card_that_breaks_and_resets_gives_back_what_it_had() {
    block_on_test(async {
        let (client, network, mut guest) = broken(true).await;
        assert_eq!((guest.queues[0].answers().len(), guest.queues[0].is_lent()), (4, false));
        // From then on packets are lost, and counted.
        send_long(&mut guest);
        moment().await;
        assert_eq!((guest.queues[0].answers().len(), guest.queues[0].is_lent()), (4, false));
        assert!(
            network.show_bridges().iter().any(|line| line.contains("eth0.card") && line.contains("dropped"))
        );
        client.rm(&front(1)).unwrap();
        back_state(&client, 1, "6").await;
    });
}

#[test]
fn a_card_that_does_not_reset_keeps_the_pages_that_it_had() {
    block_on_test(async {
        let (client, _, mut guest) = broken(false).await;
        client.rm(&front(1)).unwrap();
        time::sleep(100_000 * MOMENT_NS).await;
        assert!(guest.queues[0].is_lent() && guest.queues[0].answers().is_empty());
        assert_ne!(client.read_str(&format!("{}/state", back(1))).unwrap(), "6");
    });
}

#[test]
fn a_bad_grant_of_a_long_packet_costs_its_sender_alone() {
    block_on_test(async {
        let (_, network, card, mut guests) = uplink(ABLE, 1).await;
        let one = &mut guests[0];
        let (_, partial) = long(one);
        one.queues[0].send_badly(&partial, 1000);
        moment().await;
        assert_eq!((card.held(), one.queues[0].is_lent()), (0, false));
        let statuses = |answers: Vec<(u16, i16)>| answers.into_iter().map(|(_, status)| status);
        let mut refused: Vec<_> = statuses(one.queues[0].answers()).collect();
        refused.sort_unstable();
        assert_eq!(refused, [NETIF_RSP_ERROR, NETIF_RSP_ERROR, NETIF_RSP_NULL]);
        assert_eq!(dropped(&network, "vif1.0", Reason::Malformed), 1);
        // So is a short one that is copied for the card.
        let short = frame_to_remote(one, 1000);
        one.queues[0].write_slot(&short[..600], 0, NETTXF_MORE_DATA, short.len() as u16);
        let size = (short.len() - 600) as u16;
        one.queues[0]
            .tx
            .push_request(&NetifTxRequest { gref: u32::MAX, offset: 0, flags: 0, id: 1, size })
            .unwrap();
        one.queues[0].ring();
        moment().await;
        assert!(statuses(one.queues[0].answers()).eq([NETIF_RSP_ERROR; 2]));
        assert_eq!(dropped(&network, "vif1.0", Reason::Malformed), 2);
        assert_eq!(dropped(&network, "eth0.card", Reason::TooBig), 0);
        // And one for all, which others get as far as it can be had.
        let mut to_all = frame(one, MacAddr::BROADCAST, 1000);
        to_all.truncate(600);
        one.queues[0].write_slot(&to_all, 0, NETTXF_MORE_DATA, 1014);
        one.queues[0]
            .tx
            .push_request(&NetifTxRequest { gref: u32::MAX, offset: 0, flags: 0, id: 1, size })
            .unwrap();
        one.queues[0].ring();
        moment().await;
        assert!(statuses(one.queues[0].answers()).eq([NETIF_RSP_ERROR; 2]));
        assert_eq!(card.held(), 0);
        send_long(one);
        moment().await;
        assert_eq!(card.held(), 1);
        card.let_go(1);
        moment().await;
        assert_eq!(one.queues[0].answers().len(), 4);
    });
}
