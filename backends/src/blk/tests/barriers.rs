//! Barriers: what a barrier waits for, and which failures of other requests a barrier survives.

use super::*;

#[test]
fn flush_barrier_and_discard() {
    let bench = Bench::new(DISK);
    let (mut front, mut back) = bench.start();
    front.push_request(&direct(BLKIF_OP_WRITE, 1, 0, &bench.segments(1))).unwrap();
    front.push_request(&direct(BLKIF_OP_WRITE_BARRIER, 2, 8, &bench.segments(1))).unwrap();
    front.push_request(&direct(BLKIF_OP_READ, 3, 0, &bench.segments(1))).unwrap();
    let _ = front.publish_requests();
    assert_eq!(back.poll(), Ok(Next::Wait));
    assert_eq!(bench.disk.queue.borrow().len(), 1, "the barrier waits, and what follows waits for it");
    let mut order = Vec::new();
    while order.len() < 3 {
        bench.disk.run(0);
        while back.poll().unwrap() == Next::Again {}
        order.extend(responses(&mut front).iter().map(|r| r.0));
    }
    assert_eq!(order, [1, 2, 3]);
    use BlockOp::{Discard, Flush, Read, Write};
    assert_eq!(*bench.disk.log.borrow(), [Write, Flush, Write, Flush, Read]);

    bench.disk.log.borrow_mut().clear();
    front.push_request(&direct(BLKIF_OP_FLUSH_DISKCACHE, 4, 0, &[])).unwrap();
    let discard = BlkifRequestDiscard {
        operation: BLKIF_OP_DISCARD,
        id: 5,
        sector_number: 40,
        nr_sectors: 40,
        ..Default::default()
    };
    front.push_request(&BlkifRequest::from_discard(&discard)).unwrap();
    let _ = front.publish_requests();
    settle(&mut back, &bench.disk);
    let done = responses(&mut front);
    assert_eq!(done.iter().map(|r| (r.0, r.2)).collect::<Vec<_>>(), [(4, 0), (5, 0)]);
    let sixteen = Discard { sectors: 16 };
    assert_eq!(*bench.disk.log.borrow(), [Flush, sixteen, sixteen, Discard { sectors: 8 }]);
    assert!(bench.disk.bytes.borrow()[40 * SECTOR..80 * SECTOR].iter().all(|b| *b == 0));
}

/// A barrier runs however the request before the barrier ends, also where that request ends in the very poll that takes
/// both.
#[test]
fn a_barrier_runs_whatever_becomes_of_the_request_before_it() {
    let indirect = |operation, gref| {
        let request = BlkifRequestIndirect {
            operation: BLKIF_OP_INDIRECT,
            indirect_op: operation,
            nr_segments: 2,
            id: 1,
            indirect_grefs: [gref; 8],
            ..Default::default()
        };
        BlkifRequest::from_indirect(&request)
    };
    let bad = BlkifRequestSegment { gref: u32::MAX, last_sect: 7, ..Default::default() };
    let crooked = BlkifRequestSegment { first_sect: 9, ..Default::default() };
    for fail in [false, true] {
        let bench = Bench::new(DISK);
        let zeros = bench.world.borrow_mut().grant(false);
        let befores = [
            indirect(BLKIF_OP_READ, u32::MAX),
            indirect(BLKIF_OP_WRITE, zeros),
            direct(BLKIF_OP_READ, 1, 0, &[bad]),
            direct(BLKIF_OP_READ, 1, 0, &[crooked]),
            direct(BLKIF_OP_READ, 1, DISK.sectors, &bench.segments(1)),
            direct(BLKIF_OP_WRITE, 1, 0, &bench.segments(9)),
            direct(77, 1, 0, &bench.segments(1)),
        ];
        for (index, before) in befores.iter().enumerate() {
            let (mut front, mut back) = bench.start();
            bench.disk.fail.set(fail);
            front.push_request(before).unwrap();
            front.push_request(&direct(BLKIF_OP_WRITE_BARRIER, 2, 0, &bench.segments(1))).unwrap();
            front.push_request(&direct(BLKIF_OP_READ, 3, 0, &bench.segments(1))).unwrap();
            let _ = front.publish_requests();
            settle(&mut back, &bench.disk);
            let mut answered: Vec<u64> = responses(&mut front).iter().map(|response| response.0).collect();
            answered.sort_unstable();
            assert_eq!(answered, [1, 2, 3], "request {index}, failing: {fail}");
            assert_eq!((bench.held(), back.in_flight()), (0, 0));
        }
    }
}

#[test]
fn failing_disk_and_close_with_a_barrier_held() {
    let bench = Bench::new(DISK);
    let (mut front, mut back) = bench.start();
    bench.disk.fail.set(true);
    front.push_request(&direct(BLKIF_OP_WRITE_BARRIER, 1, 0, &bench.segments(9))).unwrap();
    let _ = front.publish_requests();
    settle(&mut back, &bench.disk);
    assert_eq!(responses(&mut front), [(1, BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_ERROR)]);
    front.push_request(&direct(BLKIF_OP_READ, 2, 0, &bench.segments(9))).unwrap();
    front.push_request(&direct(BLKIF_OP_WRITE_BARRIER, 3, 0, &bench.segments(9))).unwrap();
    let _ = front.publish_requests();
    bench.disk.room.set(1);
    let _ = back.poll().unwrap();
    back.close();
    assert_eq!(back.poll_closed(), Some(Next::Wait));
    bench.disk.run_all();
    assert_eq!(back.poll_closed(), None);
    assert_eq!((bench.held(), back.in_flight()), (0, 0));
    assert!(responses(&mut front).is_empty());
}
