//! Cards that break the rules: each ends itself, and nothing else.

use super::*;

/// Has a card with four packets to send and a packet that came in tell a lie, and looks that the card is out of use and
/// that each packet comes back once.
fn ends_itself(name: &str, lie: impl Fn(&FakeCard)) {
    let (arena, card, net) = card(CardLimits::default());
    let spans = [span(&arena, 0, 60, 0)];
    for token in 0..6 {
        net.transmit(token, plain(&spans)).unwrap();
    }
    net.kick();
    let mut held = card.fetch();
    card.finish(held.remove(1));
    card.finish(held.remove(2));
    assert!(card.deliver(0, SILENT, &[5; 60]));
    let kept = net.receive().unwrap();
    let mut tokens = transmitted(&net);
    assert!(!ready(&net), "{name}: nothing is left to do");
    lie(&card);
    assert!(card.interrupts() && ready(&net), "{name}: the task has to hear of it");
    while net.receive().is_some() {}
    tokens.extend(transmitted(&net));
    tokens.extend(transmitted(&net));
    let _ = ready(&net);
    assert!(!ready(&net), "{name}: once");
    tokens.sort_unstable();
    let sent = [(0, false), (1, true), (2, false), (3, true), (4, false), (5, false)];
    assert_eq!(tokens, sent, "{name}");
    assert!(!net.link_up() && card.resets() == 2, "{name}");
    assert_eq!(net.transmit(9, plain(&spans)), Err(TransmitError::Broken));
    net.kick();
    assert!(net.receive().is_none() && transmitted(&net).is_empty());
    assert_eq!(whole(&kept), [5; 60], "{name}");
    drop(kept);
    drop(net);
    assert_eq!(arena.dropped(), CARD_PAGES - 15, "{name}: all pages of one pair came back");
}

#[test]
fn lies_in_the_used_ring() {
    ends_itself("more sent than there was", |card| card.claim(1, &[(0, 0); 200]));
    ends_itself("a chain that is no chain", |card| card.claim(1, &[(256, 0); 4]));
    ends_itself("a chain far away", |card| card.claim(1, &[(u32::MAX, 0); 4]));
    ends_itself("a packet sent twice", |card| card.claim(1, &[(1, 0); 4]));
    ends_itself("a packet that was never queued", |card| card.claim(1, &[(77, 0); 4]));
    ends_itself("a buffer that a packet has", |card| card.claim(0, &[(0, 100)]));
    ends_itself("more buffers than there are", |card| card.claim(0, &[(1, 100); 300]));
}

#[test]
fn lies_about_buffers() {
    let full = [1; 4096];
    let joined = |count: u16| [&[0; 10][..], &count.to_le_bytes(), &[1; 4084]].concat();
    ends_itself("more than a buffer holds", |card| assert!(card.fill(0, &[(&joined(1), 4097)])));
    ends_itself("far more", |card| assert!(card.fill(0, &[(&joined(1), u32::MAX as usize)])));
    ends_itself("no buffer", |card| assert!(card.fill(0, &[(&joined(0), 100)])));
    ends_itself("too many buffers", |card| assert!(card.fill(0, &[(&joined(19), 4096)])));
    ends_itself("too many buffers, all of them full", |card| {
        let mut fill = [(&full[..], 4096); 19];
        let first = joined(19);
        fill[0].0 = &first;
        assert!(card.fill(0, &fill));
    });
    ends_itself("all buffers", |card| assert!(card.fill(0, &[(&joined(u16::MAX), 4096)])));
    ends_itself("a part of a packet", |card| assert!(card.fill(0, &[(&joined(2), 4096)])));
    ends_itself("a buffer with room left", |card| {
        assert!(card.fill(0, &[(&joined(2), 4095), (&full, 4096)]));
    });
    ends_itself("a header and no more", |card| {
        assert!(card.fill(0, &[(&joined(2), 12), (&full, 4096)]));
    });
    ends_itself("a buffer in the middle with room left", |card| {
        assert!(card.fill(0, &[(&joined(3), 4096), (&full, 1), (&full, 4096)]));
    });
    ends_itself("a last buffer without a byte", |card| {
        assert!(card.fill(0, &[(&joined(2), 4096), (&full, 0)]));
    });
}

#[test]
fn a_card_that_asks_for_a_reset_gets_one() {
    ends_itself("needs a reset", |card| card.need_reset());
}

#[test]
fn what_a_card_says_of_a_packet_is_checked_and_the_card_goes_on() {
    let (_, card, net) = card(CardLimits::default());
    let header = |flags: u8, kind: u8, size: u16, start: u16, offset: u16| {
        let mut header = SILENT;
        (header[0], header[1]) = (flags, kind);
        header[4..6].copy_from_slice(&size.to_le_bytes());
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        header
    };
    let bad = [
        header(1, 0, 0, 54, 5),
        header(1, 0, 0, u16::MAX, u16::MAX),
        header(0, 1, 1448, 34, 16),
        header(1, 1, 0, 34, 16),
        header(1, 3, 1448, 34, 6),
        header(1, 0x81, 1448, 34, 16),
        header(1, 0xff, 1448, 34, 16),
    ];
    for (index, header) in bad.into_iter().enumerate() {
        assert!(card.deliver(0, header, &[5; 60]));
        assert!(net.receive().is_none());
        assert_eq!(net.malformed(), index as u64 + 1);
    }
    assert!(card.deliver(0, header(1, 0, 0, 42, 16), &[5; 60]));
    let received = net.receive().unwrap();
    assert_eq!(received.offload, PARTIAL);
    assert!(net.link_up());
}

#[test]
fn what_a_card_may_still_use_is_nobody_elses() {
    let (arena, card, net) = card(CardLimits::default());
    net.transmit(1, plain(&[span(&arena, 0, 60, 0)])).unwrap();
    net.kick();
    card.refuse_resets();
    card.claim(1, &[(99, 0)]);
    assert!(transmitted(&net).is_empty(), "the packet stays lent");
    assert!(ready(&net) && transmitted(&net).is_empty());
    drop(net);
    assert_eq!(arena.dropped(), 0);
    // A card in good order that does not reset is no different.
    let (arena, card, net) = self::card(CardLimits::default());
    card.refuse_resets();
    drop(net);
    assert_eq!(arena.dropped(), 0);
}
