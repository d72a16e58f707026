//! Cards with several pairs of queues.

use super::*;

const FIVE: CardLimits = CardLimits {
    offered: u64::MAX,
    mac: [2, 1, 2, 3, 4, 5],
    mtu: 1500,
    pairs: 5,
    queue: 256,
    vectors: 16,
    resets: true,
    restless: false,
};

/// The queues on which a packet of each of four flows goes out.
fn queues(arena: &Arena, card: &FakeCard, net: &Card) -> Vec<usize> {
    let spans = [span(arena, 0, 60, 0)];
    let mut queues = Vec::new();
    for flow in 4..8 {
        net.transmit(flow, Outgoing { flow, ..plain(&spans) }).unwrap();
        net.kick();
        let held = card.fetch().pop().unwrap();
        queues.push(held.queue);
        card.finish(held);
    }
    assert_eq!(transmitted(net).len(), 4);
    queues
}

#[test]
fn flows_are_shared_out_once_the_card_has_agreed() {
    let (arena, card, net) = card(FIVE);
    // Each queue has its own vector; the control queue, behind those of the pair that is not used, has the last.
    assert_eq!(card.vectors(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(arena.frames() <= CARD_PAGES, "{} pages", arena.frames());
    assert_eq!(net.features().slots, 256);
    assert_eq!(queues(&arena, &card, &net), [1, 1, 1, 1]);
    assert_eq!(card.answer(0), [4, 0, 4, 0]);
    assert!(card.interrupts());
    let _ = ready(&net);
    assert_eq!(queues(&arena, &card, &net), [1, 3, 5, 7]);
    for pair in 0..4 {
        assert!(card.deliver(pair, SILENT, &[pair as u8; 60]));
    }
    assert!(ready(&net));
    let mut from: Vec<u8> = core::iter::from_fn(|| net.receive()).map(|packet| whole(&packet)[0]).collect();
    from.sort_unstable();
    assert_eq!(from, [0, 1, 2, 3]);
    assert!(!ready(&net));
}

#[test]
fn a_card_that_refuses_more_pairs_goes_on_with_one() {
    let (arena, card, net) = card(FIVE);
    card.answer(1);
    let _ = ready(&net);
    assert_eq!(queues(&arena, &card, &net), [1, 1, 1, 1]);
}

#[test]
fn where_vectors_are_few_the_last_serves_many() {
    for (vectors, expected) in [(1, [0, 0, 0, 0, 0, 0, 0, 0, 0]), (4, [0, 1, 2, 3, 3, 3, 3, 3, 3])] {
        let (arena, card, net) = card(CardLimits { vectors, ..FIVE });
        assert_eq!(card.vectors(), expected);
        card.answer(0);
        let _ = ready(&net);
        assert_eq!(queues(&arena, &card, &net), [1, 3, 5, 7]);
        assert!(!ready(&net));
        card.deliver(3, SILENT, &[1; 60]);
        assert!(card.interrupts() && ready(&net));
        assert!(net.receive().is_some());
        card.set_link(false);
        assert!(card.interrupts() && ready(&net) && !net.link_up());
    }
}

#[test]
fn without_a_control_queue_there_is_one_pair() {
    let (_, card, net) = card(CardLimits { offered: !(1 << 17), ..FIVE });
    assert_eq!(card.vectors(), [0, 1]);
    assert_eq!(net.features().slots, 256);
}

#[test]
fn a_lie_in_the_control_queue_ends_the_card() {
    let (_, card, net) = card(FIVE);
    card.claim(10, &[(1, 1)]);
    assert!(ready(&net));
    assert!(!net.link_up());
}
