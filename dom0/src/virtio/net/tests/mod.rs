//! The driver against a card in memory.

mod lies;
mod random;
mod several;
mod wild;

use backends::net::{Checksum, Gso, GsoKind, MAX_PARTS, Offload};
use ring_abi::types::Maddr;

use super::features::{F_GUEST_CSUM, F_MQ};
use super::*;
use crate::hw::fake::{Arena, FakeDma, FakeInterrupt, ready};
use crate::net::wire::testing::{PARTIAL, plain, span, transmitted, whole};
use crate::net::wire::{ChecksumAt, MAX_RECEIVED_PARTS, Span};
use crate::virtio::fake::{CardLimits, FakeCard, Held};
use crate::virtio::transport::F_EVENT_IDX;

type Card = VirtioNet<FakeDma, FakeInterrupt>;

/// A header that says nothing of the packet.
const SILENT: [u8; 10] = [0; 10];

fn bring_up(arena: &Arena, limits: CardLimits) -> (FakeCard, Result<Card, NetError>) {
    let card = FakeCard::new(arena, limits);
    let bind = |vector| card.interrupt(vector);
    let net = VirtioNet::new("eth0".into(), card.transport(), arena, [2, 0, 0, 0, 0, 9], bind);
    (card, net)
}

fn card(limits: CardLimits) -> (Arena, FakeCard, Card) {
    let arena = Arena::default();
    let (card, net) = bring_up(&arena, limits);
    (arena, card, net.unwrap())
}

#[test]
fn what_a_usual_card_can_do() {
    let (arena, card, net) = card(CardLimits::default());
    let expected = WireFeatures {
        mac: [2, 1, 2, 3, 4, 5],
        mtu: 9000,
        checksum: true,
        tso4: true,
        tso6: true,
        max_spans: 30,
        slots: 256,
    };
    assert_eq!((net.name(), net.features(), net.link_up()), ("eth0", expected, true));
    assert_eq!(card.features() & F_MQ, F_MQ);
    assert_eq!(card.vectors(), [0, 1]);
    assert!(arena.frames() <= CARD_PAGES, "{} pages", arena.frames());
    assert!(!ready(&net));
    drop(net);
    assert_eq!((card.resets(), arena.dropped()), (2, arena.frames()));
}

#[test]
fn a_card_that_offers_nothing_serves_too() {
    let (arena, card, net) =
        card(CardLimits { offered: 1 << 32, mtu: 0, mac: [1; 6], ..CardLimits::default() });
    let features = net.features();
    assert_eq!((features.mac, features.mtu, features.slots), ([2, 0, 0, 0, 0, 9], 1500, 256));
    assert!(!features.checksum && !features.tso4 && !features.tso6 && net.link_up());
    let spans: Vec<Span> = (0..MAX_PARTS).map(|at| span(&arena, 0, 40, at as u8)).collect();
    net.transmit(7, plain(&spans)).unwrap();
    net.kick();
    let held = card.fetch().pop().unwrap();
    assert_eq!(held.bytes.len(), 40 * MAX_PARTS);
    card.finish(held);
    assert_eq!(transmitted(&net), [(7, true)]);
    // The buffer that is not joined with others takes what it can.
    let packet: Vec<u8> = (0..4084).map(|at| at as u8).collect();
    assert!(card.fill(0, &[(&[&[0; 12], &packet[..]].concat(), 4096)]));
    assert_eq!(whole(&net.receive().unwrap()), packet);
    // Nothing was agreed on checksums.
    assert!(card.fill(0, &[(&[1; 100], 100)]));
    assert!(net.receive().is_none() && net.malformed() == 1);
}

#[test]
fn cards_that_are_not_for_us() {
    let all = CardLimits::default();
    let direct = !(1 << 28);
    for (limits, error) in [
        (CardLimits { offered: !(1 << 32), ..all }, TransportError::Legacy.into()),
        (CardLimits { queue: 0, ..all }, TransportError::NoQueue(0).into()),
        (CardLimits { vectors: 0, ..all }, NetError::NoInterrupt),
        (CardLimits { resets: false, ..all }, TransportError::ResetTimeout.into()),
        (CardLimits { mac: [1, 0, 0, 0, 0, 0], ..all }, NetError::BadRegisters("Ethernet address")),
        (CardLimits { mac: [0; 6], ..all }, NetError::BadRegisters("Ethernet address")),
        (CardLimits { mtu: 67, ..all }, NetError::BadRegisters("MTU")),
        (CardLimits { pairs: 0, ..all }, NetError::BadRegisters("number of queue pairs")),
        (CardLimits { pairs: 0x8001, ..all }, NetError::BadRegisters("number of queue pairs")),
        (
            CardLimits { offered: direct, queue: 16, ..all },
            NetError::BadRegisters("size of a transmit queue"),
        ),
    ] {
        let arena = Arena::default();
        let (card, net) = bring_up(&arena, limits);
        assert_eq!(net.err(), Some(error));
        assert_eq!((arena.dropped(), card.vectors().len()), (arena.frames(), 0));
    }
    for pages in [0, 3, 40, 291] {
        let arena = Arena::default();
        arena.limit(pages);
        assert_eq!(bring_up(&arena, all).1.err(), Some(NetError::OutOfMemory), "{pages} pages");
        assert_eq!(arena.dropped(), arena.frames());
    }
}

#[test]
fn a_card_whose_registers_never_hold_still_is_read_to_an_end() {
    let (_, _, net) = card(CardLimits { restless: true, ..CardLimits::default() });
    assert_eq!(net.features().mtu, 9000);
}

#[test]
fn a_packet_goes_out_with_its_header() {
    for indirect in [true, false] {
        let offered = if indirect { !0 } else { !(1 << 28) };
        let (arena, card, net) = card(CardLimits { offered, ..CardLimits::default() });
        let spans = [span(&arena, 100, 54, 1), span(&arena, 0, 4096, 50), span(&arena, 4095, 1, 9)];
        let offload = Offload { gso: Some(Gso { kind: GsoKind::TcpV6, size: 1440 }), ..PARTIAL };
        let checksum_at = Some(ChecksumAt { start: 34, offset: 16 });
        let packet = Outgoing { offload: &offload, checksum_at, header_len: 54, spans: &spans, flow: 0 };
        net.transmit(u32::MAX, packet).unwrap();
        assert!(card.fetch().is_empty(), "before the kick");
        net.kick();
        let held = card.fetch().pop().unwrap();
        assert_eq!(held.header, [1, 4, 54, 0, 0xa0, 5, 34, 0, 16, 0, 0, 0]);
        let bytes = spans.iter().flat_map(|span| arena.bytes(span.maddr.raw(), span.len as usize));
        assert_eq!(held.bytes, bytes.collect::<Vec<u8>>());
        assert!(transmitted(&net).is_empty());
        assert!(!ready(&net));
        card.finish(held);
        assert!(ready(&net));
        assert_eq!(transmitted(&net), [(u32::MAX, true)]);
        assert!(transmitted(&net).is_empty() && !ready(&net));
    }
}

#[test]
fn packets_that_the_card_cannot_send() {
    let no_tso6 = CardLimits { offered: !(1 << 12), mtu: 1500, ..CardLimits::default() };
    let (arena, card, net) = card(no_tso6);
    let good = span(&arena, 0, 60, 0);
    let long = |len: usize| {
        (0..len.div_ceil(4096))
            .map(|at| {
                let len = (len - 4096 * at).min(4096) as u32;
                Span { maddr: Maddr::new(arena.row(1)), len }
            })
            .collect::<Vec<Span>>()
    };
    let at = |start, offset| Some(ChecksumAt { start, offset });
    let gso = |kind, size| Offload { gso: Some(Gso { kind, size }), ..PARTIAL };
    let unchecked = Offload { checksum: Checksum::Complete, ..gso(GsoKind::TcpV4, 1448) };
    let spans = [good];
    let (v6, no_size) = (gso(GsoKind::TcpV6, 1448), gso(GsoKind::TcpV4, 0));
    let fits =
        Outgoing { offload: &PARTIAL, checksum_at: at(42, 16), header_len: 54, spans: &spans, flow: 0 };
    let with = |offload| Outgoing { offload, ..fits };
    let v4 = gso(GsoKind::TcpV4, 1448);
    for (packet, what) in [
        (plain(&[]), "its length"),
        (plain(&[Span { len: 13, ..good }]), "its length"),
        (plain(&long(1519)), "its length"),
        (Outgoing { spans: &long(65_536), ..with(&v4) }, "its length"),
        (plain(&[Span { len: 0, ..good }, good]), "a span is empty or crosses a page"),
        (plain(&[Span { len: 4097, ..good }]), "a span is empty or crosses a page"),
        (plain(&[Span { len: u32::MAX, ..good }]), "a span is empty or crosses a page"),
        (
            plain(&[span(&arena, 4000, 96, 0), Span { maddr: Maddr::new(good.maddr.raw() + 4090), len: 7 }]),
            "a span is empty or crosses a page",
        ),
        (plain(&[Span { len: 40, ..good }; 31]), "it has too many spans"),
        (Outgoing { checksum_at: None, ..fits }, "nothing says where its checksum is"),
        (Outgoing { checksum_at: at(43, 16), ..fits }, "its checksum lies behind the packet"),
        (Outgoing { checksum_at: at(u16::MAX, u16::MAX), ..fits }, "its checksum lies behind the packet"),
        (with(&v6), "it is to be cut into segments"),
        (with(&unchecked), "its segments would have no checksum"),
        (with(&no_size), "its segments have no size or no header"),
        (Outgoing { header_len: 60, ..with(&v4) }, "its segments have no size or no header"),
        (Outgoing { header_len: 13, ..with(&v4) }, "its segments have no size or no header"),
    ] {
        assert_eq!(net.transmit(1, packet), Err(TransmitError::Unfit(what)), "{packet:?}");
    }
    net.kick();
    assert!(card.fetch().is_empty());
    for packet in [fits, with(&v4), plain(&long(1518)), Outgoing { spans: &long(65_535), ..with(&v4) }] {
        assert_eq!(net.transmit(1, packet), Ok(()), "{packet:?}");
    }
    let (_, _, without) = self::card(CardLimits { offered: !1, ..CardLimits::default() });
    let refused = Err(TransmitError::Unfit("its checksum is not complete"));
    assert_eq!(without.transmit(1, fits), refused);
}

#[test]
fn the_card_takes_as_many_as_it_said_and_not_one_more() {
    let (arena, card, net) = card(CardLimits { queue: 64, ..CardLimits::default() });
    let spans = [span(&arena, 0, 60, 0), span(&arena, 0, 60, 0)];
    assert_eq!(net.features().slots, 64);
    for round in 0..3 {
        for token in 0..64 {
            net.transmit(token, plain(&spans)).unwrap();
        }
        assert_eq!(net.transmit(99, plain(&spans)), Err(TransmitError::Full));
        net.kick();
        let mut held = card.fetch();
        // Now in order, now backwards.
        if round == 1 {
            held.reverse();
        }
        held.into_iter().for_each(|held| card.finish(held));
        let mut tokens = transmitted(&net);
        tokens.sort_unstable();
        assert_eq!(tokens, (0..64).map(|token| (token, true)).collect::<Vec<_>>());
    }
}

#[test]
fn a_packet_comes_in_and_its_buffers_go_back() {
    let (_, card, net) = card(CardLimits::default());
    assert!(net.receive().is_none());
    let most = 65_535;
    let mut header = SILENT;
    header[0] = 1;
    header[1] = 1;
    header[4..10].copy_from_slice(&[0xa8, 5, 34, 0, 16, 0]);
    let packet: Vec<u8> = (0..most).map(|at| (at * 7 / 5) as u8).collect();
    // The card has 256 buffers: enough for fifteen such packets, and the next ones wait for buffers that come back.
    let mut kept = Vec::new();
    for round in 0..40 {
        while card.deliver(0, header, &packet) {}
        assert!(ready(&net), "round {round}");
        let received = net.receive().unwrap();
        assert_eq!(whole(&received), packet);
        assert_eq!(received.parts().len(), 17);
        assert_eq!(received.offload.gso, Some(Gso { kind: GsoKind::TcpV4, size: 1448 }));
        assert_eq!(received.checksum_at, Some(ChecksumAt { start: 34, offset: 16 }));
        kept.push(received);
        if kept.len() == 10 {
            kept.clear();
        }
    }
    // What is written to a packet stays in it.
    assert_eq!(kept.len(), 0);
    let received = net.receive().unwrap();
    received.write(4083, &[1, 2, 3]);
    assert_eq!(whole(&received)[4082..4087], [packet[4082], 1, 2, 3, packet[4086]]);
    // Packets outlive the card's driver.
    drop(net);
    assert_eq!(whole(&received)[0], packet[0]);
}

#[test]
fn the_shortest_and_what_is_too_short_or_too_long() {
    let (_, card, net) = card(CardLimits::default());
    for (len, good) in
        [(0, false), (1, false), (13, false), (14, true), (15, true), (65_536, false), (73_716, false)]
    {
        let before = net.malformed();
        assert!(card.deliver(0, SILENT, &alloc::vec![3; len]));
        assert_eq!(net.receive().map(|packet| packet.len), good.then_some(len as u32));
        assert_eq!(net.malformed() - before, u64::from(!good), "{len} bytes");
    }
    assert!(card.fill(0, &[(&[], 0)]) && card.fill(0, &[(&[], 11)]));
    assert!(net.receive().is_none());
    assert_eq!(net.malformed(), 7);
    // None of their buffers is lost.
    for _ in 0..1000 {
        assert!(net.receive().is_none() && !ready(&net));
        assert!(card.deliver(0, SILENT, &[7; 13]) && card.deliver(0, SILENT, &[7; 60]));
        assert!(ready(&net));
        assert_eq!(whole(&net.receive().unwrap()), [7; 60]);
    }
}

#[test]
fn an_interrupt_tells_of_packets_of_the_link_and_of_nothing_twice() {
    let (arena, card, net) = card(CardLimits::default());
    assert!(!ready(&net));
    card.deliver(0, SILENT, &[7; 60]);
    assert!(card.interrupts() && ready(&net));
    card.deliver(0, SILENT, &[7; 60]);
    assert!(!card.interrupts(), "the driver has not looked yet");
    while net.receive().is_some() {}
    assert!(!ready(&net));
    card.set_link(false);
    assert!(card.interrupts() && ready(&net) && !net.link_up());
    assert!(!ready(&net));
    card.set_link(true);
    assert!(ready(&net) && net.link_up());
    // One interrupt for most of eight packets.
    for token in 0..8 {
        net.transmit(token, plain(&[span(&arena, 0, 60, 0)])).unwrap();
    }
    net.kick();
    assert!(!ready(&net));
    for (index, held) in card.fetch().into_iter().enumerate() {
        card.finish(held);
        assert_eq!(card.interrupts(), index >= 5);
    }
    assert!(ready(&net));
    assert_eq!(transmitted(&net).len(), 8);
}

#[test]
fn whoever_waits_for_a_packets_memory_hears_at_once() {
    let (arena, card, net) = card(CardLimits::default());
    let send = |tokens: core::ops::Range<u32>| {
        tokens.for_each(|token| net.transmit(token, plain(&[span(&arena, 0, 60, 0)])).unwrap());
    };
    assert!(!ready(&net));
    // Some are sent by the time at which the caller is in a hurry, and nobody has heard.
    send(0..8);
    net.kick();
    assert!(!ready(&net));
    let mut held = card.fetch();
    card.finish(held.remove(0));
    assert!(!card.interrupts());
    net.hasten(true);
    send(8..10);
    net.kick();
    assert_eq!(transmitted(&net), [(0, true)]);
    card.finish(held.remove(0));
    assert!(card.interrupts() && ready(&net));
    assert_eq!(transmitted(&net), [(1, true)]);
    // The driver asks again, without a further kick.
    assert!(!ready(&net));
    card.finish(held.remove(0));
    assert!(card.interrupts() && ready(&net));
    assert_eq!(transmitted(&net), [(2, true)]);
    // What came back while packets were handed over is told, too.
    assert!(!ready(&net));
    card.finish(held.remove(0));
    assert!(card.interrupts());
    net.kick();
    assert!(ready(&net));
    assert_eq!(transmitted(&net), [(3, true)]);
    net.hasten(false);
    net.kick();
    assert!(!ready(&net));
    card.finish(held.remove(0));
    assert!(!card.interrupts());
}

#[test]
fn features_in_use_are_those_that_were_agreed_on() {
    let (_, card, _net) = card(CardLimits { offered: !F_GUEST_CSUM, ..CardLimits::default() });
    let features = card.features();
    assert_eq!(features & (F_GUEST_CSUM | 1 << 7 | 1 << 8), 0);
    assert_ne!(features & F_EVENT_IDX & !(1 << 34), 0);
    assert_eq!(MAX_RECEIVED_PARTS, 18);
}
