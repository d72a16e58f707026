//! The driver against a card in memory.

mod card;

use alloc::collections::{BTreeMap, VecDeque};

use backends::net::{Gso, GsoKind, Offload};
use proptest::prelude::*;

use self::card::FakeCard;
use super::*;
use crate::hw::fake::{Arena, FakeDma, FakeInterrupt, ready};
use crate::net::wire::testing::{PARTIAL, PLAIN, plain, span, transmitted, whole};
use crate::net::wire::{ChecksumAt, Span};

type Card = E1000e<FakeDma, FakeInterrupt>;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

fn bring_up(arena: &Arena, mac: [u8; 6], vectors: u16) -> (FakeCard, Result<Card, E1000eError>) {
    let card = FakeCard::new(arena, mac);
    let bind = |vector| (vector < vectors).then(|| card.interrupt(vector));
    let net = E1000e::new("eth0".into(), card.registers(), arena, bind);
    (card, net)
}

fn card() -> (Arena, FakeCard, Card) {
    let arena = Arena::default();
    let (card, net) = bring_up(&arena, MAC, VECTORS);
    (arena, card, net.unwrap())
}

#[test]
fn a_card_comes_up_and_goes() {
    let (arena, card, net) = card();
    let features = net.features();
    assert_eq!((net.name(), features.mac, features.mtu, net.link_up()), ("eth0", MAC, 1500, true));
    assert!(features.checksum && !features.tso4 && !features.tso6 && !ready(&net));
    assert_eq!((arena.frames(), card.register(IVAR)), (CARD_PAGES, 0xa0908));
    drop(net);
    assert_eq!((arena.dropped(), card.register(RCTL)), (CARD_PAGES, 0));
}

#[test]
fn cards_that_are_not_for_us() {
    for (mac, vectors, error) in [
        ([0; 6], 3, E1000eError::BadAddress),
        ([1, 0, 0, 0, 0, 0], 3, E1000eError::BadAddress),
        (MAC, 0, E1000eError::NoInterrupt),
    ] {
        let arena = Arena::default();
        assert_eq!(bring_up(&arena, mac, vectors).1.err(), Some(error));
        assert_eq!(arena.dropped(), arena.frames());
    }
    for pages in [0, 1, 2, CARD_PAGES - 1] {
        let arena = Arena::default();
        arena.limit(pages);
        assert_eq!(bring_up(&arena, MAC, 3).1.err(), Some(E1000eError::OutOfMemory));
        assert_eq!(arena.dropped(), arena.frames());
    }
    let arena = Arena::default();
    let card = FakeCard::new(&arena, MAC);
    card.refuse_resets();
    let net = Card::new("eth0".into(), card.registers(), &arena, |vector| Some(card.interrupt(vector)));
    assert_eq!(net.err(), Some(E1000eError::ResetTimeout));
}

#[test]
fn packets_go_out_and_come_back_once() {
    let (arena, card, net) = card();
    let spans = [span(&arena, 100, 54, 1), span(&arena, 4000, 96, 50)];
    let checksum_at = Some(ChecksumAt { start: 34, offset: 16 });
    net.transmit(7, Outgoing { offload: &PARTIAL, checksum_at, ..plain(&spans) }).unwrap();
    net.transmit(8, plain(&spans[..1])).unwrap();
    assert!(card.send(9).is_empty(), "before the kick");
    net.kick();
    assert!(!ready(&net) && transmitted(&net).is_empty());
    let sent = card.send(1).pop().unwrap();
    let bytes = spans.iter().flat_map(|span| arena.bytes(span.maddr.raw(), span.len as usize));
    assert_eq!((sent.bytes, sent.checksum), (bytes.collect(), Some((34, 50))));
    assert!(card.interrupts() && ready(&net));
    assert_eq!(transmitted(&net), [(7, true)]);
    assert_eq!(card.send(9).pop().unwrap().checksum, None);
    assert!(ready(&net));
    assert_eq!(transmitted(&net), [(8, true)]);
    assert!(!ready(&net) && transmitted(&net).is_empty());
}

#[test]
fn packets_that_the_card_cannot_send() {
    let (arena, _, net) = card();
    let good = span(&arena, 0, 60, 0);
    let at = |start, offset| Some(ChecksumAt { start, offset });
    let spans = [good, Span { len: 400, ..good }];
    let partial = |checksum_at| Outgoing { offload: &PARTIAL, checksum_at, ..plain(&spans) };
    let gso = Offload { gso: Some(Gso { kind: GsoKind::TcpV4, size: 1448 }), ..PARTIAL };
    for (packet, what) in [
        (plain(&[]), "its length"),
        (plain(&[Span { len: 13, ..good }]), "its length"),
        (plain(&[Span { len: 1519, ..good }]), "its length"),
        (plain(&[Span { len: 0, ..good }]), "a span is empty or crosses a page"),
        (plain(&[Span { len: 4097, ..good }]), "a span is empty or crosses a page"),
        (plain(&[Span { len: 40, ..good }; 31]), "it has too many spans"),
        (Outgoing { offload: &gso, ..partial(at(34, 16)) }, "it is to be cut into segments"),
        (partial(None), "nothing says where its checksum is"),
        (partial(at(459, 0)), "its checksum lies behind the packet"),
        (partial(at(240, 16)), "its checksum lies too far behind its beginning"),
    ] {
        assert_eq!(net.transmit(1, packet), Err(TransmitError::Unfit(what)), "{packet:?}");
    }
    assert_eq!(net.transmit(1, partial(at(239, 16))), Ok(()));
    assert_eq!(net.transmit(2, plain(&[Span { len: 1518, ..good }])), Ok(()));
}

#[test]
fn what_the_card_says_of_a_packet() {
    let (_, card, net) = card();
    for (status, errors, checksum) in [
        (3, 0, Some(Checksum::Complete)),
        (3 | 1 << 5, 0, Some(Checksum::Verified)),
        (3 | 1 << 4, 0, Some(Checksum::Verified)),
        (3 | 1 << 5 | 1 << 2, 0, Some(Checksum::Complete)),
        (3 | 1 << 5, 1 << 5, Some(Checksum::Complete)),
        (3 | 1 << 5, 1 << 6, Some(Checksum::Verified)),
        (3, 1, None),
        (3, 1 << 7, None),
    ] {
        assert!(card.fill(&[5; 60], 60, status, errors));
        let packet = net.receive();
        assert_eq!(packet.map(|packet| packet.offload.checksum), checksum, "{status:#x} {errors:#x}");
    }
    assert_eq!(net.malformed(), 2);
    assert!(card.deliver(&[5; 13]) && net.receive().is_none() && net.malformed() == 3);
    // None of their buffers is lost.
    for _ in 0..1000 {
        assert!(!ready(&net) && card.deliver(&[7; 60]) && card.interrupts() && ready(&net));
        assert_eq!(whole(&net.receive().unwrap()), [7; 60]);
    }
    card.set_link(false);
    assert!(ready(&net) && !net.link_up() && !ready(&net));
}

#[test]
fn a_card_that_lies_ends_itself() {
    for (claimed, status) in [(4097, 3), (65_535, 3), (60, 1)] {
        let (arena, card, net) = card();
        let spans = [span(&arena, 0, 60, 0)];
        for token in 0..4 {
            net.transmit(token, plain(&spans)).unwrap();
        }
        net.kick();
        card.send(1);
        assert_eq!(transmitted(&net), [(0, true)]);
        assert!(card.deliver(&[5; 60]));
        let kept = net.receive().unwrap();
        assert!(card.fill(&[6; 60], claimed, status, 0) && ready(&net));
        assert!(net.receive().is_none() && !net.link_up() && card.register(RCTL) == 0);
        assert!(ready(&net));
        assert_eq!(transmitted(&net), [(1, false), (2, false), (3, false)]);
        assert!(transmitted(&net).is_empty() && !ready(&net));
        assert_eq!(net.transmit(9, plain(&spans)), Err(TransmitError::Broken));
        net.kick();
        drop(net);
        assert_eq!(whole(&kept), [5; 60]);
        drop(kept);
        assert_eq!(arena.dropped(), CARD_PAGES);
    }
}

#[test]
fn what_a_card_may_still_use_is_nobody_elses() {
    for breaks in [true, false] {
        let (arena, card, net) = card();
        net.transmit(1, plain(&[span(&arena, 0, 60, 0)])).unwrap();
        net.kick();
        card.refuse_resets();
        if breaks {
            card.fill(&[6; 60], 5000, 3, 0);
            assert!(net.receive().is_none());
        }
        assert!(transmitted(&net).is_empty(), "the packet stays lent");
        drop(net);
        assert_eq!(arena.dropped(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Every packet goes out with its bytes and comes back once; every packet that comes in is seen once, in order.
    #[test]
    fn random_traffic(steps in proptest::collection::vec((0u8..7, 1usize..30, any::<bool>()), 1..300)) {
        let (arena, card, net) = card();
        let (mut out, mut sent) = (BTreeMap::new(), VecDeque::new());
        let (mut coming, mut packets) = (VecDeque::new(), Vec::new());
        for (token, (kind, amount, partial)) in (0u32..).zip(steps) {
            match kind {
                0 => {
                    let spans: Vec<Span> = (0..amount).map(|at| span(&arena, at, 20, token as u8)).collect();
                    let checksum_at = Some(ChecksumAt { start: 0, offset: amount as u16 });
                    let offload = if partial { &PARTIAL } else { &PLAIN };
                    match net.transmit(token, Outgoing { offload, checksum_at, ..plain(&spans) }) {
                        Ok(()) => {
                            let bytes = spans.iter().flat_map(|span| arena.bytes(span.maddr.raw(), 20));
                            out.insert(token, (bytes.collect::<Vec<u8>>(), partial.then_some((0, amount as u8))));
                            sent.push_back(token);
                        }
                        Err(error) => prop_assert_eq!(error, TransmitError::Full),
                    }
                }
                1 => net.kick(),
                2 => for packet in card.send(amount) {
                    let token = sent.pop_front().unwrap();
                    prop_assert_eq!(&out[&token], &(packet.bytes, packet.checksum));
                },
                3 => {
                    let bytes = alloc::vec![token as u8; 14 + 50 * amount];
                    if card.deliver(&bytes) {
                        coming.push_back(bytes);
                    }
                }
                4 => {
                    let packet = net.receive();
                    prop_assert_eq!(packet.as_ref().map(whole), coming.pop_front());
                    packets.extend(packet);
                }
                5 => packets.clear(),
                _ => while ready(&net) {
                    for (token, was_sent) in transmitted(&net) {
                        prop_assert!(was_sent && out.remove(&token).is_some() && !sent.contains(&token));
                    }
                    while let Some(packet) = net.receive() {
                        prop_assert_eq!(Some(whole(&packet)), coming.pop_front());
                    }
                },
            }
            if kind == 6 && card.deliver(&[1; 14]) {
                prop_assert!(card.interrupts(), "nobody wakes the task");
                coming.push_back(alloc::vec![1; 14]);
            }
        }
        net.kick();
        let rest = card.send(usize::MAX).len();
        prop_assert_eq!(rest, sent.len());
        for (token, _) in transmitted(&net) {
            out.remove(&token);
        }
        prop_assert!(out.is_empty());
    }
}
