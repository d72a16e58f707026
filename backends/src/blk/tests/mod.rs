//! Both ends in one process: a frontend (honest or not), grants in memory, a disk that takes its time.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use ring_abi::io::blkif::*;
use ring_abi::ring::{REQ_PROD, RingError};
use ring_abi::types::PAGE_SIZE;
use zerocopy::IntoBytes;

use super::*;
use crate::*;

mod barriers;
mod pieces;
mod world;

use world::*;

#[test]
fn write_then_read_with_odd_segments() {
    let bench = Bench::new(DISK);
    let (mut front, mut back) = bench.start();
    let mut segments = bench.segments(3);
    (segments[0].first_sect, segments[0].last_sect) = (3, 3);
    (segments[2].first_sect, segments[2].last_sect) = (6, 7);
    for (index, segment) in segments.iter().enumerate() {
        bench.world.borrow_mut().page(segment.gref).fill(index as u8 + 1);
    }
    front.push_request(&direct(BLKIF_OP_WRITE, 77, 100, &segments)).unwrap();
    assert!(front.publish_requests());
    settle(&mut back, &bench.disk);
    assert_eq!(responses(&mut front), [(77, BLKIF_OP_WRITE, BLKIF_RSP_OKAY)]);
    let disk = bench.disk.bytes.borrow();
    let expected: Vec<u8> = [vec![1; 512], vec![2; 4096], vec![3; 1024]].concat();
    assert_eq!(disk[100 * SECTOR..][..expected.len()], expected);
    drop(disk);

    let target = bench.segments(2);
    front.push_request(&direct(BLKIF_OP_READ, 78, 100, &target)).unwrap();
    let _ = front.publish_requests();
    settle(&mut back, &bench.disk);
    assert_eq!(responses(&mut front), [(78, BLKIF_OP_READ, BLKIF_RSP_OKAY)]);
    assert_eq!(bench.world.borrow_mut().page(target[0].gref)[..], expected[..4096]);
    assert_eq!(bench.held(), 0);
    assert_eq!(back.stats().read_bytes, 8192);
    assert_eq!(back.in_flight(), 0);
}

#[test]
fn one_batch_is_one_map_one_unmap_one_kick_one_event() {
    let bench = Bench::new(DISK);
    let (mut front, mut back) = bench.start();
    for id in 0..20 {
        let segments = bench.segments(2);
        front.push_request(&direct(BLKIF_OP_READ, id, id * 16, &segments)).unwrap();
    }
    let _ = front.publish_requests();
    assert_eq!(back.poll(), Ok(Next::Wait));
    assert_eq!((bench.world.borrow().map_calls, bench.disk.kicks.get()), (1, 1));
    assert_eq!(bench.held(), 40);
    bench.disk.run_all();
    assert_eq!(back.poll(), Ok(Next::Wait));
    assert_eq!((bench.world.borrow().unmap_calls, bench.events.0.get()), (1, 1));
    assert_eq!(responses(&mut front).len(), 20);
}

#[test]
fn completions_in_any_order_and_grants_until_then() {
    let bench = Bench::new(DISK);
    let (mut front, mut back) = bench.start();
    // The frontend's own tags, which are no numbers of ours.
    let ids = [u64::MAX, 1 << 40, 7];
    for id in ids {
        front.push_request(&direct(BLKIF_OP_READ, id, 0, &bench.segments(1))).unwrap();
    }
    let _ = front.publish_requests();
    assert_eq!(back.poll(), Ok(Next::Wait));
    for (index, id, left) in [(1, 1, 2), (1, 2, 1), (0, 0, 0)] {
        bench.disk.run(index);
        assert_eq!(back.poll(), Ok(Next::Wait));
        assert_eq!(responses(&mut front), [(ids[id], BLKIF_OP_READ, BLKIF_RSP_OKAY)]);
        assert_eq!(bench.held(), left);
    }
}

#[test]
fn indirect_of_the_most_segments_is_split_and_joined() {
    let bench = Bench::new(DISK);
    let (mut front, mut back) = bench.start();
    let segments = bench.segments(MAX_INDIRECT_SEGMENTS);
    let list = bench.world.borrow_mut().grant(true);
    bench.world.borrow_mut().page(list)[..segments.len() * 8].copy_from_slice(segments.as_bytes());
    let mut request = BlkifRequestIndirect {
        operation: BLKIF_OP_INDIRECT,
        indirect_op: BLKIF_OP_READ,
        nr_segments: segments.len() as u16,
        id: 5,
        sector_number: 8,
        ..Default::default()
    };
    request.indirect_grefs[0] = list;
    front.push_request(&BlkifRequest::from_indirect(&request)).unwrap();
    let _ = front.publish_requests();
    bench.disk.room.set(10); // fewer than the parts
    settle(&mut back, &bench.disk);
    assert_eq!(responses(&mut front), [(5, BLKIF_OP_READ, BLKIF_RSP_OKAY)]);
    assert_eq!(bench.disk.log.borrow().len(), MAX_INDIRECT_SEGMENTS.div_ceil(DISK.seg_max));
    for (index, segment) in segments.iter().enumerate() {
        let disk = bench.disk.bytes.borrow();
        let expected = &disk[(8 + index * 8) * SECTOR..][..PAGE_SIZE];
        assert_eq!(bench.world.borrow_mut().page(segment.gref), expected);
    }
    assert_eq!(bench.held(), 0);

    // The same with a list of segments that is not granted, and with a list that lies about a segment.
    request.indirect_grefs[0] = 4_000_000;
    front.push_request(&BlkifRequest::from_indirect(&request)).unwrap();
    request.indirect_grefs[0] = list;
    bench.world.borrow_mut().page(list)[8 * 200 + 5] = 8;
    front.push_request(&BlkifRequest::from_indirect(&request)).unwrap();
    let _ = front.publish_requests();
    settle(&mut back, &bench.disk);
    assert_eq!(responses(&mut front), [(5, BLKIF_OP_READ, BLKIF_RSP_ERROR); 2]);
    assert_eq!(bench.held(), 0);
}

#[test]
fn bad_requests_are_answered_and_the_rest_goes_on() {
    let bench = Bench::new(DISK);
    let (mut front, mut back) = bench.start();
    let good = bench.segments(2);
    let read_only = bench.world.borrow_mut().grant(true);
    let mut bad_gref = good.clone();
    bad_gref[1].gref = u32::MAX;
    let mut bad_sectors = good.clone();
    (bad_sectors[1].first_sect, bad_sectors[1].last_sect) = (5, 4);
    let mut unwritable = good.clone();
    unwritable[1].gref = read_only;
    let mut too_many = direct(BLKIF_OP_READ, 4, 0, &good);
    too_many.nr_segments = 12;
    let requests = [
        (direct(BLKIF_OP_READ, 0, 0, &bad_gref), BLKIF_RSP_ERROR),
        (direct(BLKIF_OP_READ, 1, 0, &bad_sectors), BLKIF_RSP_ERROR),
        (direct(BLKIF_OP_READ, 2, 0, &unwritable), BLKIF_RSP_ERROR),
        (direct(BLKIF_OP_WRITE, 3, 0, &unwritable), BLKIF_RSP_OKAY),
        (too_many, BLKIF_RSP_ERROR),
        (direct(BLKIF_OP_READ, 5, 4096 - 15, &good), BLKIF_RSP_ERROR),
        (direct(BLKIF_OP_READ, 6, 4096 - 16, &good), BLKIF_RSP_OKAY),
        (direct(BLKIF_OP_WRITE, 7, u64::MAX, &good), BLKIF_RSP_ERROR),
        (direct(99, 8, 0, &good), BLKIF_RSP_EOPNOTSUPP),
        (direct(BLKIF_OP_READ, 9, 0, &[]), BLKIF_RSP_ERROR),
    ];
    for (request, _) in &requests {
        front.push_request(request).unwrap();
    }
    let _ = front.publish_requests();
    settle(&mut back, &bench.disk);
    let mut got = responses(&mut front);
    got.sort_unstable();
    let expected: Vec<_> = requests.iter().map(|(r, status)| (r.id, r.operation, *status)).collect();
    assert_eq!(got, expected);
    assert_eq!(bench.held(), 0);
    assert_eq!(back.stats().errors, 8);
}

#[test]
fn a_request_changed_after_publication_is_served_as_it_was_taken() {
    let bench = Bench::new(DISK);
    let (mut front, mut back) = bench.start();
    let segments = bench.segments(1);
    front.push_request(&direct(BLKIF_OP_READ, 1, 8, &segments)).unwrap();
    let _ = front.publish_requests();
    assert_eq!(back.poll(), Ok(Next::Wait));
    bench.page.fill(64, PAGE_SIZE - 64, 0xff);
    bench.disk.run_all();
    assert_eq!(back.poll(), Ok(Next::Wait));
    assert_eq!(responses(&mut front), [(1, BLKIF_OP_READ, BLKIF_RSP_OKAY)]);
    let expected = bench.disk.bytes.borrow()[8 * SECTOR..][..PAGE_SIZE].to_vec();
    assert_eq!(*bench.world.borrow_mut().page(segments[0].gref), expected);
}

#[test]
fn overrun_disconnects_after_the_device_is_done() {
    let bench = Bench::new(DISK);
    let (mut front, mut back) = bench.start();
    for id in 0..3 {
        front.push_request(&direct(BLKIF_OP_WRITE, id, 0, &bench.segments(4))).unwrap();
    }
    let _ = front.publish_requests();
    bench.disk.room.set(2); // one of the three operations waits for room
    assert_eq!(back.poll(), Ok(Next::Wait));
    bench.page.store_u32(REQ_PROD, 36);
    bench.disk.run(0);
    bench.disk.room.set(1);
    let error = Disconnect::Ring(RingError::ProducerOverrun { prod: 36, cons: 3 });
    assert_eq!(
        loop {
            if let Err(error) = back.poll() {
                break error;
            }
            bench.disk.room.set(10);
        },
        error
    );
    back.close();
    assert_eq!(back.poll_closed(), Some(Next::Wait));
    assert!(bench.held() > 0, "frames under DMA are kept");
    bench.disk.run_all();
    assert_eq!(back.poll_closed(), None);
    assert_eq!(bench.held(), 0);
}

/// A notifier that looks at what the frontend can see at the moment of the notification.
struct Witness {
    world: SharedWorld,
    told: alloc::rc::Rc<core::cell::Cell<usize>>,
}

impl Notifier for Witness {
    fn notify(&mut self) {
        assert!(self.world.borrow().held.is_empty(), "answered with its frames still held");
        self.told.set(self.told.get() + 1);
    }
}

#[test]
fn an_answer_is_seen_only_when_its_frames_are_given_back() {
    let bench = Bench::new(DISK);
    let mut front = ring_abi::ring::FrontRing::<BlkifRing, _>::new(bench.page).unwrap();
    let ring = ring_abi::ring::BackRing::new(bench.page).unwrap();
    let told = alloc::rc::Rc::new(core::cell::Cell::new(0));
    let witness = Witness { world: bench.world.clone(), told: told.clone() };
    let mut back = BlkBack::new(ring, TestGrants(bench.world.clone()), witness, &bench.disk).unwrap();
    for id in 0..3 {
        front.push_request(&direct(BLKIF_OP_READ, id, 0, &bench.segments(3))).unwrap();
        let _ = front.publish_requests();
        let _ = back.poll().unwrap();
        bench.disk.run_all();
        let _ = back.poll().unwrap();
        assert_eq!(responses(&mut front).len(), 1);
        assert_eq!(front.arm_and_recheck(), Ok(false));
    }
    assert_eq!(told.get(), 3);
}

/// As many of the longest requests as the ring has slots: what one poll takes is bounded, what is under way is bounded,
/// and all requests are answered.
#[test]
fn a_flood_of_the_longest_requests_is_taken_piece_by_piece() {
    let bench = Bench::new(Geometry { seg_max: 254, ..DISK });
    let (mut front, mut back) = bench.start();
    let segments = bench.segments(MAX_INDIRECT_SEGMENTS);
    let list = bench.world.borrow_mut().grant(true);
    bench.world.borrow_mut().page(list)[..segments.len() * 8].copy_from_slice(segments.as_bytes());
    for id in 0..32 {
        let request = BlkifRequestIndirect {
            operation: BLKIF_OP_INDIRECT,
            indirect_op: BLKIF_OP_READ,
            nr_segments: segments.len() as u16,
            id,
            indirect_grefs: [list; 8],
            ..Default::default()
        };
        front.push_request(&BlkifRequest::from_indirect(&request)).unwrap();
    }
    let _ = front.publish_requests();
    let (mut most, mut step) = (0, 0);
    loop {
        let (before, reads) = (bench.held(), bench.world.borrow().reads);
        let next = back.poll().unwrap();
        assert!(bench.world.borrow().reads <= reads + 1, "more than one list in one poll");
        most = most.max(bench.held());
        step = step.max(bench.held().saturating_sub(before));
        if next == Next::Wait {
            if bench.disk.queue.borrow().is_empty() {
                break;
            }
            bench.disk.run(0);
        }
    }
    assert_eq!(most, MAX_SEGMENTS_IN_FLIGHT);
    assert_eq!(step, PIECE, "frames taken in one poll");
    assert_eq!(responses(&mut front).iter().filter(|response| response.2 == BLKIF_RSP_OKAY).count(), 32);
    assert_eq!((bench.held(), back.in_flight()), (0, 0));
}

#[test]
fn budget_lets_others_run() {
    let bench = Bench::new(Geometry { seg_max: 254, ..DISK });
    let (mut front, mut back) = bench.start();
    for id in 0..32 {
        front.push_request(&direct(BLKIF_OP_READ, id, 0, &bench.segments(11))).unwrap();
    }
    let _ = front.publish_requests();
    assert_eq!(back.poll(), Ok(Next::Again));
    assert!(bench.held() < 32 * 11);
    settle(&mut back, &bench.disk);
    assert_eq!(responses(&mut front).len(), 32);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the requests say and however the disk behaves: the engine answers each request once, memory and disk
    /// agree with a model, and nothing stays held.
    #[test]
    fn any_requests_any_order(
        steps in proptest::collection::vec(
            (0u8..8, 0u64..4100, 0usize..13, 0u8..9, 0u8..9, any::<u16>()), 1..120),
        room in 1usize..6,
        seg_max in 1usize..12,
    ) {
        let bench = Bench::new(Geometry { seg_max, ..DISK });
        bench.disk.room.set(room);
        let (mut front, mut back) = bench.start();
        let (mut sent, mut answered) = (Vec::new(), Vec::new());
        for (operation, sector, nr, first, last, order) in steps {
            if operation == 7 || front.free_requests() == 0 {
                let waiting = bench.disk.queue.borrow().len();
                if waiting > 0 {
                    bench.disk.run(usize::from(order) % waiting);
                }
            } else {
                let mut segments = bench.segments(nr.min(11));
                for segment in &mut segments {
                    (segment.first_sect, segment.last_sect) = (first, last);
                    if order == 3 {
                        segment.gref = u32::MAX;
                    }
                }
                let mut request = direct(operation, sent.len() as u64, sector, &segments);
                request.nr_segments = nr as u8;
                front.push_request(&request).unwrap();
                sent.push(request);
            }
            if order & 1 == 0 {
                let _ = front.publish_requests();
                let _ = back.poll().unwrap();
                answered.extend(responses(&mut front));
            }
        }
        let _ = front.publish_requests();
        settle(&mut back, &bench.disk);
        answered.extend(responses(&mut front));
        answered.sort_unstable();
        prop_assert_eq!(answered.len(), sent.len());
        for (index, (id, _, _)) in answered.iter().enumerate() {
            prop_assert_eq!(*id, index as u64);
        }
        prop_assert_eq!(bench.held(), 0);
        prop_assert_eq!(back.in_flight(), 0);
    }

    /// Garbage in the whole ring page: an answer or a disconnect, never a panic or a leak.
    #[test]
    fn garbage_ring(bytes in proptest::collection::vec(any::<u8>(), PAGE_SIZE), prod in 0u32..34) {
        let bench = Bench::new(DISK);
        let (_front, mut back) = bench.start();
        bench.page.write(64, &bytes[64..]);
        bench.page.store_u32(REQ_PROD, prod);
        for _ in 0..50 {
            if back.poll().is_err() {
                break;
            }
            bench.disk.run_all();
        }
        back.close();
        bench.disk.run_all();
        while let Some(next) = back.poll_closed() {
            prop_assert_eq!(next, Next::Again);
        }
        prop_assert_eq!(bench.held(), 0);
    }
}
