//! Four pairings do the same, one step at a time, and must agree in every answer and every byte.

use std::collections::VecDeque;
use std::fmt::Debug;

use ring_abi::io::blkif::BlkifRing;
use ring_abi::io::netif::{NetifCtrlRing, NetifRxRing, NetifTxRing};
use ring_abi::ring::{REQ_PROD, RSP_PROD, RingError, SLOTS};
use ring_abi::shared::{SharedBytes, leaked_pages};

use crate::peer::{self, Back, Front, Kind, Maker, PAIRINGS, Words};
use crate::random::Random;

/// One pairing and its ring.
struct World<P: Kind> {
    page: SharedBytes<'static>,
    front: Box<dyn Front<P>>,
    back: Box<dyn Back<P>>,
}

/// What one step may be answered; messages as bytes.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Bool(bool),
    Message(Option<Vec<u8>>),
    Nothing,
}

fn message<T: zerocopy::IntoBytes + zerocopy::Immutable>(message: Result<Option<T>, RingError>) -> Answer {
    Answer::Message(message.expect("no end lies").map(|message| message.as_bytes().to_vec()))
}

fn same<T: PartialEq + Debug>(answers: Vec<T>, what: &str) -> T {
    let mut answers = answers.into_iter();
    let ours = answers.next().expect("four worlds");
    for (answer, makers) in answers.zip(&PAIRINGS[1..]) {
        assert_eq!(answer, ours, "{what}: {makers:?} (front, back) against ours");
    }
    ours
}

/// Runs `steps` random steps on a ring in `bytes` bytes whose indices start at `start`.
fn run<P: Kind>(bytes: usize, start: u32, steps: usize, seed: u64) {
    let mut random = Random::new(seed);
    let mut worlds: Vec<World<P>> = PAIRINGS
        .iter()
        .map(|&(front, back)| {
            let page = leaked_pages(bytes.div_ceil(4096)).slice(0, bytes).expect("inside");
            // What lay in the page before: the frontend must clear its head.
            page.fill(0, SLOTS.min(bytes), 0xa5);
            World { page, front: peer::front(front, page, start), back: peer::back(back, page) }
        })
        .collect();
    let size = same(worlds.iter().map(|world| world.front.size()).collect(), "size");
    assert_eq!(size, same(worlds.iter().map(|world| world.back.size()).collect(), "size"));
    let mut asked: VecDeque<Vec<u8>> = VecDeque::new();
    let mut answered: VecDeque<Vec<u8>> = VecDeque::new();
    let mut in_flight = 0u32;

    for step in 0..steps {
        let action = random.below(8);
        let request: P::Request = random.message();
        let response: P::Response = random.message();
        if action == 4 && in_flight == 0 {
            continue;
        }
        let answers = worlds
            .iter_mut()
            .map(|World { front, back, .. }| match action {
                0 | 1 => Answer::Bool(front.push(&request)),
                2 => Answer::Bool(front.publish()),
                3 => message(back.next()),
                4 => {
                    back.push(&response);
                    Answer::Nothing
                }
                5 => Answer::Bool(back.publish()),
                6 => message(front.next()),
                _ if step % 2 == 0 => Answer::Bool(front.arm().expect("no end lies")),
                _ => Answer::Bool(back.arm().expect("no end lies")),
            })
            .collect();
        let answer = same(answers, &format!("seed {seed}, step {step}, action {action}"));

        // What all agree on must also be right: first in, first out, nothing lost.
        use zerocopy::IntoBytes;
        match (action, answer) {
            (0 | 1, Answer::Bool(true)) => asked.push_back(request.as_bytes().to_vec()),
            (3, Answer::Message(Some(got))) => {
                assert_eq!(Some(got), asked.pop_front(), "seed {seed}, step {step}");
                in_flight += 1;
            }
            (4, _) => {
                answered.push_back(response.as_bytes().to_vec());
                in_flight -= 1;
            }
            (6, Answer::Message(Some(got))) => {
                assert_eq!(Some(got), answered.pop_front(), "seed {seed}, step {step}");
            }
            _ => {}
        }
        let room = same(worlds.iter().map(|world| world.front.room()).collect(), "room");
        assert_eq!(same(worlds.iter().map(|world| world.back.in_flight()).collect(), "in flight"), in_flight);
        assert!(room <= size && in_flight <= size - room);

        let compared = if step % 64 == 0 { bytes } else { SLOTS };
        let pages = worlds.iter().map(|world| {
            let mut page = vec![0; compared];
            world.page.read(0, &mut page);
            page
        });
        same(pages.collect(), &format!("page, seed {seed}, step {step}, action {action}"));
    }
}

/// Near the wrap, at it, and anywhere.
fn starts(seed: u64) -> [u32; 4] {
    [0, u32::MAX - 700, u32::MAX, Random::new(seed).next() as u32]
}

fn all_starts<P: Kind>(bytes: usize, steps: usize) {
    for (round, start) in starts(bytes as u64).into_iter().enumerate() {
        run::<P>(bytes, start, steps, (bytes * 10 + round) as u64);
    }
}

#[test]
fn one_slot() {
    all_starts::<Words>(SLOTS + 4, 60_000);
}

#[test]
fn two_slots_and_a_rest_too_short_for_a_third() {
    all_starts::<Words>(SLOTS + 11, 60_000);
}

#[test]
fn four_slots() {
    all_starts::<Words>(SLOTS + 16, 60_000);
}

#[test]
fn block_ring() {
    all_starts::<BlkifRing>(4096, 40_000);
    all_starts::<BlkifRing>(3 * 4096, 10_000);
}

#[test]
fn network_rings() {
    all_starts::<NetifTxRing>(4096, 40_000);
    all_starts::<NetifRxRing>(4096, 40_000);
    all_starts::<NetifCtrlRing>(4096, 40_000);
}

#[test]
fn as_many_slots_for_every_length() {
    for bytes in (SLOTS + 112..20 * 4096).step_by(52) {
        let page = leaked_pages(20).slice(0, bytes).expect("inside");
        let ours = peer::front::<BlkifRing>(Maker::Ours, page, 0).size();
        assert_eq!(ours, peer::front::<BlkifRing>(Maker::Macros, page, 0).size(), "{bytes}");
        assert_eq!(ours, peer::back::<BlkifRing>(Maker::Macros, page).size(), "{bytes}");
    }
}

/// Ours is never the more trusting end: the macros' own check of a peer's index lets it go back to what was taken
/// already, and lets a backend answer what was not asked. Where ours takes a request, the macros take the same one.
#[test]
fn an_index_that_the_macros_refuse_is_refused() {
    let mut random = Random::new(7);
    let (mut refused, mut taken) = (0, 0);
    for round in 0..20_000u32 {
        let start = if round % 2 == 0 { u32::MAX - round % 9 } else { random.next() as u32 };
        let pages: Vec<SharedBytes<'static>> = (0..2).map(|_| leaked_ring()).collect();
        let mut backs: Vec<_> = [Maker::Ours, Maker::Macros]
            .into_iter()
            .zip(&pages)
            .map(|(maker, page)| {
                let mut front = peer::front::<Words>(maker, *page, start);
                let mut back = peer::back::<Words>(maker, *page);
                (0..3).for_each(|_| assert!(front.push(&1)));
                let _ = front.publish();
                (0..round % 4).for_each(|_| assert!(back.next().expect("honest").is_some()));
                (0..(round % 4).min(2)).for_each(|_| back.push(&2));
                let _ = back.publish();
                (front, back)
            })
            .collect();
        let lie = start.wrapping_add(random.below(12)).wrapping_sub(3);
        let (req, rsp) = (random.below(2) == 0, random.below(2) == 0);
        for page in &pages {
            if req {
                page.store_u32(REQ_PROD, lie);
            }
            if rsp {
                page.store_u32(RSP_PROD, lie);
            }
        }
        let of_requests: Vec<_> = backs.iter_mut().map(|(_, back)| back.next().ok()).collect();
        let of_responses: Vec<_> = backs.iter_mut().map(|(front, _)| front.next().ok()).collect();
        assert!(of_requests[0].is_none() || of_requests[0] == of_requests[1], "round {round}");
        assert!(of_responses[0].is_none() || of_responses[0] == of_responses[1], "round {round}");
        refused += u32::from(of_requests[0].is_none());
        taken += u32::from(of_requests[0].is_some());
    }
    assert!(refused > 1000 && taken > 1000, "{refused} {taken}");
}

/// A ring of four words; pages are used again, since they are never freed.
fn leaked_ring() -> SharedBytes<'static> {
    use std::cell::RefCell;
    thread_local!(static PAGES: RefCell<(Vec<SharedBytes<'static>>, usize)> = const { RefCell::new((Vec::new(), 0)) });
    PAGES.with_borrow_mut(|(pages, next)| {
        if pages.len() < 2 {
            pages.push(leaked_pages(1).slice(0, SLOTS + 16).expect("inside"));
        }
        *next += 1;
        pages[*next % pages.len()]
    })
}
