//! Long requests, whose frames are taken and given back over several polls.

use super::*;

/// A frontend's list of segments, and the request that names it.
fn long(
    bench: &Bench,
    operation: u8,
    id: u64,
    sector: u64,
    segments: &[BlkifRequestSegment],
) -> BlkifRequest {
    let mut world = bench.world.borrow_mut();
    let list = world.grant(true);
    world.page(list)[..segments.len() * 8].copy_from_slice(segments.as_bytes());
    BlkifRequest::from_indirect(&BlkifRequestIndirect {
        operation: BLKIF_OP_INDIRECT,
        indirect_op: operation,
        nr_segments: segments.len() as u16,
        id,
        sector_number: sector,
        indirect_grefs: [list; 8],
        ..Default::default()
    })
}

/// Polls once; neither way more than a piece may go.
fn poll(bench: &Bench, back: &mut Back<'_>) -> Next {
    let before = bench.moved();
    let next = back.poll().unwrap();
    let after = bench.moved();
    assert!(
        after.0 - before.0 <= PIECE && after.1 - before.1 <= PIECE,
        "{before:?} to {after:?} in one poll"
    );
    next
}

/// Polls, and lets the disk run when the engine waits, until nothing moves.
fn settle(bench: &Bench, back: &mut Back<'_>) {
    loop {
        if poll(bench, back) == Next::Wait {
            if bench.disk.queue.borrow().is_empty() {
                return;
            }
            bench.disk.run(0);
        }
    }
}

/// Waits for the end of a closed connection, the disk answering when the engine waits.
fn settle_closed(bench: &Bench, back: &mut Back<'_>) {
    loop {
        let before = bench.moved();
        let next = back.poll_closed();
        let after = bench.moved();
        assert!(after.0 == before.0 && after.1 - before.1 <= PIECE, "{before:?} to {after:?} in one poll");
        match next {
            None => break,
            Some(Next::Again) => assert!(after.1 > before.1),
            Some(Next::Wait) => bench.disk.run(0),
        }
    }
    assert!(bench.disk.queue.borrow().is_empty());
    assert_eq!((bench.held(), back.in_flight()), (0, 0));
}

const WIDE: Geometry = Geometry { seg_max: 254, ..DISK };

#[test]
fn a_long_request_begins_when_it_has_all_frames_and_is_answered_when_all_are_back() {
    let bench = Bench::new(WIDE);
    let (mut front, mut back) = bench.start();
    let segments = bench.segments(MAX_INDIRECT_SEGMENTS);
    front.push_request(&long(&bench, BLKIF_OP_READ, 1, 0, &segments)).unwrap();
    front.push_request(&direct(BLKIF_OP_READ, 2, 0, &bench.segments(1))).unwrap();
    let _ = front.publish_requests();
    for pieces in 1..=4 {
        assert!(bench.disk.queue.borrow().is_empty());
        assert_eq!(poll(&bench, &mut back), Next::Again);
        assert_eq!(bench.held(), pieces * PIECE);
    }
    assert_eq!(bench.disk.queue.borrow().len(), 2, "of 254 segments, and of the last two");
    assert_eq!(poll(&bench, &mut back), Next::Wait);
    assert_eq!(bench.disk.queue.borrow().len(), 3, "what is behind it begins after it");
    bench.disk.run(0);
    bench.disk.run(0);
    for pieces in (1..4).rev() {
        assert_eq!(poll(&bench, &mut back), Next::Again);
        assert_eq!(bench.held(), pieces * PIECE + 1);
        assert_eq!(responses(&mut front), []);
    }
    assert_eq!(poll(&bench, &mut back), Next::Wait);
    assert_eq!(bench.held(), 1);
    assert_eq!(responses(&mut front), [(1, BLKIF_OP_READ, BLKIF_RSP_OKAY)]);
    settle(&bench, &mut back);
    assert_eq!(responses(&mut front), [(2, BLKIF_OP_READ, BLKIF_RSP_OKAY)]);
    assert_eq!(bench.held(), 0);
}

/// The engine does not take the rest of a failed request's frames, and the next request gets the frames that the next
/// request asked for.
#[test]
fn a_frame_that_fails_amid_pieces_fails_its_request_alone() {
    for at in [0, 60, 61, 100, 124, 125, 199] {
        let bench = Bench::new(WIDE);
        let (mut front, mut back) = bench.start();
        let mut segments = bench.segments(200);
        segments[at].gref = u32::MAX;
        let (direct_pages, long_pages) = (bench.segments(3), bench.segments(70));
        front.push_request(&long(&bench, BLKIF_OP_READ, 1, 0, &segments)).unwrap();
        front.push_request(&direct(BLKIF_OP_READ, 2, 40, &direct_pages)).unwrap();
        front.push_request(&long(&bench, BLKIF_OP_READ, 3, 80, &long_pages)).unwrap();
        let _ = front.publish_requests();
        settle(&bench, &mut back);
        let expected = [(1, BLKIF_RSP_ERROR), (2, BLKIF_RSP_OKAY), (3, BLKIF_RSP_OKAY)];
        let mut answered = responses(&mut front);
        answered.sort_unstable();
        assert_eq!(answered.iter().map(|answer| (answer.0, answer.2)).collect::<Vec<_>>(), expected, "{at}");
        // The frames of one batch are taken together, the direct request's frames first.
        let pieces = ((3 + at) / PIECE + 1) * PIECE;
        assert_eq!(bench.moved().0, pieces + 70.min(3 + 200 + 70 - pieces), "{at}");
        for (sector, pages) in [(40, &direct_pages), (80, &long_pages)] {
            for (index, page) in pages.iter().enumerate() {
                let disk = &bench.disk.bytes.borrow()[(sector + index * 8) * SECTOR..][..PAGE_SIZE];
                assert_eq!(bench.world.borrow_mut().page(page.gref), disk, "{at}: {index} of {sector}");
            }
        }
        assert_eq!((bench.held(), back.in_flight()), (0, 0));
    }
}

#[test]
fn grants_that_end_and_lists_that_change_between_pieces() {
    let bench = Bench::new(WIDE);
    let (mut front, mut back) = bench.start();
    let segments = bench.segments(MAX_INDIRECT_SEGMENTS);
    let request = long(&bench, BLKIF_OP_READ, 1, 0, &segments);
    front.push_request(&request).unwrap();
    let _ = front.publish_requests();
    assert_eq!(poll(&bench, &mut back), Next::Again);
    let list = request.as_indirect().indirect_grefs[0];
    bench.world.borrow_mut().page(list).fill(0xff);
    settle(&bench, &mut back);
    assert_eq!(responses(&mut front), [(1, BLKIF_OP_READ, BLKIF_RSP_OKAY)]);
    let last = bench.disk.bytes.borrow()[255 * PAGE_SIZE..][..PAGE_SIZE].to_vec();
    assert_eq!(*bench.world.borrow_mut().page(segments[255].gref), last);

    front.push_request(&long(&bench, BLKIF_OP_READ, 2, 0, &segments)).unwrap();
    let _ = front.publish_requests();
    assert_eq!(poll(&bench, &mut back), Next::Again);
    bench.world.borrow_mut().grants.remove(&segments[200].gref);
    settle(&bench, &mut back);
    assert_eq!(responses(&mut front), [(2, BLKIF_OP_READ, BLKIF_RSP_ERROR)]);
    assert_eq!((bench.held(), back.in_flight()), (0, 0));
}

#[test]
fn a_connection_that_closes_amid_pieces_leaves_nothing() {
    for polls in 0..8 {
        let bench = Bench::new(WIDE);
        let (mut front, mut back) = bench.start();
        front.push_request(&long(&bench, BLKIF_OP_WRITE, 1, 0, &bench.segments(200))).unwrap();
        front.push_request(&long(&bench, BLKIF_OP_READ, 2, 0, &bench.segments(100))).unwrap();
        front.push_request(&direct(BLKIF_OP_WRITE_BARRIER, 3, 0, &bench.segments(11))).unwrap();
        let _ = front.publish_requests();
        for _ in 0..polls {
            if poll(&bench, &mut back) == Next::Wait {
                bench.disk.run_all();
            }
        }
        let begun = bench.disk.queue.borrow().len();
        back.close();
        assert_eq!(bench.disk.queue.borrow().len(), begun, "nothing begins at the end");
        settle_closed(&bench, &mut back);
    }
}

/// The barrier's own frames are of two pieces.
#[test]
fn a_barrier_waits_for_a_request_in_pieces_and_is_waited_for() {
    let bench = Bench::new(WIDE);
    let (mut front, mut back) = bench.start();
    front.push_request(&long(&bench, BLKIF_OP_WRITE, 1, 0, &bench.segments(PIECE * 2 - 5))).unwrap();
    front.push_request(&direct(BLKIF_OP_WRITE_BARRIER, 2, 8, &bench.segments(11))).unwrap();
    front.push_request(&long(&bench, BLKIF_OP_READ, 3, 0, &bench.segments(70))).unwrap();
    let _ = front.publish_requests();
    let mut answered = Vec::new();
    let mut waiting = Vec::new();
    loop {
        let next = poll(&bench, &mut back);
        answered.extend(responses(&mut front).iter().map(|answer| answer.0));
        if next == Next::Wait {
            waiting.push(bench.disk.queue.borrow().len());
            if waiting.last() == Some(&0) {
                break;
            }
            bench.disk.run(0);
        }
    }
    use BlockOp::{Flush, Read, Write};
    assert_eq!(*bench.disk.log.borrow(), [Write, Flush, Write, Flush, Read]);
    assert_eq!((answered.as_slice(), waiting.as_slice()), (&[1, 2, 3][..], &[1, 1, 1, 1, 1, 0][..]));
    assert_eq!((bench.held(), back.in_flight()), (0, 0));
}

/// What the property test asks for.
#[derive(Clone, Debug)]
struct Ask {
    operation: u8,
    segments: usize,
    /// The index of a segment whose grant does not exist.
    bad: Option<usize>,
    polls: usize,
    runs: usize,
}

fn ask() -> impl Strategy<Value = Ask> {
    let operation = prop_oneof![
        4 => Just(BLKIF_OP_READ),
        3 => Just(BLKIF_OP_WRITE),
        1 => Just(BLKIF_OP_WRITE_BARRIER),
    ];
    let segments = prop_oneof![2 => 1..=11usize, 3 => 12..=MAX_INDIRECT_SEGMENTS];
    let bad = prop_oneof![3 => Just(None), 1 => (0..MAX_INDIRECT_SEGMENTS).prop_map(Some)];
    (operation, segments, bad, 0..6usize, 0..4usize).prop_map(|(operation, segments, bad, polls, runs)| {
        let segments = if operation == BLKIF_OP_WRITE_BARRIER { 1 + segments % 11 } else { segments };
        Ask { operation, segments, bad: bad.map(|at| at % segments).filter(|_| polls % 2 == 0), polls, runs }
    })
}

/// Number of sectors that belong to one request of the property test alone: each of its segments is one sector.
const OWN: usize = MAX_INDIRECT_SEGMENTS;
const MOST_ASKS: usize = 16;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Requests of any length, some with a bad frame, over a disk that is slow and often full. The frontend changes its
    /// lists once the engine has copied the lists. The engine answers each request once and rightly, and moves the
    /// right bytes. No poll takes or gives back more than a piece, barriers keep their place, and nothing is left, even
    /// if the connection is closed in the middle.
    #[test]
    fn any_lengths_in_pieces(
        asks in proptest::collection::vec(ask(), 1..MOST_ASKS),
        room in 1usize..5,
        seg_max in 1usize..100,
        close in proptest::option::of(0..MOST_ASKS),
    ) {
        let bench = Bench::new(Geometry { seg_max, ..DISK });
        bench.disk.room.set(room);
        bench.world.borrow_mut().lists_change = true;
        let (mut front, mut back) = bench.start();
        let before = bench.disk.bytes.borrow().clone();
        let (mut sent, mut answered) = (Vec::new(), Vec::new());
        for (id, ask) in asks.iter().enumerate() {
            let mut segments = bench.segments(ask.segments);
            for (index, segment) in segments.iter_mut().enumerate() {
                let sector = (index % 8) as u8;
                (segment.first_sect, segment.last_sect) = (sector, sector);
                bench.world.borrow_mut().page(segment.gref).fill(id as u8 ^ index as u8 ^ 0x55);
                if ask.bad == Some(index) {
                    segment.gref = u32::MAX;
                }
            }
            let sector = (id * OWN) as u64;
            let request = if ask.segments <= 11 {
                direct(ask.operation, id as u64, sector, &segments)
            } else {
                long(&bench, ask.operation, id as u64, sector, &segments)
            };
            front.push_request(&request).unwrap();
            sent.push(segments);
            let _ = front.publish_requests();
            for _ in 0..ask.polls {
                _ = poll(&bench, &mut back);
            }
            if close == Some(id) {
                back.close();
                settle_closed(&bench, &mut back);
                return Ok(());
            }
            answered.extend(responses(&mut front));
            for _ in 0..ask.runs {
                let waiting = bench.disk.queue.borrow().len();
                if waiting > 0 {
                    bench.disk.run(ask.polls % waiting);
                }
            }
        }
        settle(&bench, &mut back);
        answered.extend(responses(&mut front));
        prop_assert_eq!((bench.held(), back.in_flight()), (0, 0));
        // A barrier that succeeds is answered after all requests before the barrier, and before all requests behind the
        // barrier.
        for (place, &answer) in answered.iter().enumerate() {
            if let (id, BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_OKAY) = answer {
                prop_assert!(answered[..place].iter().all(|other| other.0 < id));
                prop_assert!(answered[place + 1..].iter().all(|other| other.0 > id));
            }
        }
        answered.sort_unstable();
        prop_assert_eq!(answered.len(), asks.len());
        let after = bench.disk.bytes.borrow();
        for (id, ask) in asks.iter().enumerate() {
            let status = if ask.bad.is_some() { BLKIF_RSP_ERROR } else { BLKIF_RSP_OKAY };
            prop_assert_eq!(answered[id], (id as u64, ask.operation, status));
            for (index, segment) in sent[id].iter().enumerate() {
                let at = (id * OWN + index) * SECTOR;
                let (old, new) = (&before[at..at + SECTOR], &after[at..at + SECTOR]);
                let mine = [id as u8 ^ index as u8 ^ 0x55; SECTOR];
                let wrote = ask.operation != BLKIF_OP_READ && ask.bad.is_none();
                prop_assert_eq!(new, if wrote { &mine } else { old });
                if ask.operation == BLKIF_OP_READ && ask.bad != Some(index) {
                    let world = &mut *bench.world.borrow_mut();
                    let page = world.page(segment.gref);
                    let offset = usize::from(segment.first_sect) * SECTOR;
                    let got = &page[offset..offset + SECTOR];
                    prop_assert_eq!(got, if ask.bad.is_none() { old } else { &mine });
                }
            }
        }
    }
}
