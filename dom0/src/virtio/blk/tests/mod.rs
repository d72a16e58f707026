//! The driver against a device in memory.

mod sharing;

use super::requests::{MAX_TABLES, SLOT_ENTRIES};
use super::*;
use crate::hw::fake::Arena;
use crate::virtio::TransportError;
use crate::virtio::fake::{FakeDevice, Limits};
use backends::Completion;
use proptest::prelude::*;
use ring_abi::types::{Maddr, PAGE_SIZE};

fn disk(limits: Limits) -> (Arena, FakeDevice, VirtioBlk<Arena>) {
    let arena = Arena::default();
    let device = FakeDevice::new(&arena, limits);
    let blk = VirtioBlk::new("vda".into(), device.transport(), arena.clone(), 0).unwrap();
    (arena, device, blk)
}

fn segment(arena: &Arena) -> Segment {
    Segment { maddr: Maddr::new(arena.pages(1).maddr(0)), len: PAGE_SIZE as u32 }
}

fn take(client: &Client) -> Vec<Completion> {
    let mut out = Vec::new();
    client.take(&mut out);
    out
}

#[test]
fn geometry_of_a_usual_disk() {
    let (_, _, blk) = disk(Limits::default());
    let geometry = blk.geometry();
    assert_eq!(geometry.sectors, 2048);
    assert_eq!(geometry.seg_max, 254);
    assert_eq!((geometry.sector_size, geometry.physical_sector_size), (512, 4096));
    assert!(geometry.flush && !geometry.read_only);
    assert_eq!(geometry.discard.map(|d| d.max_sectors), Some(64));
}

#[test]
fn small_segments_and_odd_limits() {
    let (_, _, blk) = disk(Limits { size_max: Some(1100), seg_max: 40, ..Limits::default() });
    assert_eq!(blk.geometry().seg_max, 10);
    let arena = Arena::default();
    for (limits, error) in [
        (Limits { size_max: Some(511), ..Limits::default() }, "segment size limit"),
        (Limits { seg_max: 0, ..Limits::default() }, "number of segments"),
        (Limits { blk_size: 513, ..Limits::default() }, "block size"),
        (Limits { blk_size: 8192, ..Limits::default() }, "block size"),
    ] {
        let device = FakeDevice::new(&arena, limits);
        let result = VirtioBlk::new("x".into(), device.transport(), arena.clone(), 0);
        assert_eq!(result.err(), Some(BlkError::BadGeometry(error)));
    }
}

#[test]
fn devices_that_are_not_for_us() {
    let arena = Arena::default();
    for (limits, error) in [
        (Limits { version_1: false, ..Limits::default() }, TransportError::Legacy),
        (Limits { insists: 1 << 33, ..Limits::default() }, TransportError::FeaturesRefused),
        (Limits { queue: 0, ..Limits::default() }, TransportError::NoQueue(0)),
        (Limits { vectors: 0, ..Limits::default() }, TransportError::VectorRefused),
        (Limits { resets: false, ..Limits::default() }, TransportError::ResetTimeout),
    ] {
        let device = FakeDevice::new(&arena, limits);
        let result = VirtioBlk::new("x".into(), device.transport(), arena.clone(), 0);
        assert_eq!(result.err(), Some(BlkError::Transport(error)));
    }
}

#[test]
fn write_flush_read_discard() {
    let (arena, device, blk) = disk(Limits::default());
    let client = Client::new(4);
    let (from, to) = (segment(&arena), segment(&arena));
    arena.fill(from.maddr.raw(), PAGE_SIZE, 0x5a);
    blk.submit(&client, 1, BlockOp::Write, 16, &[from]).unwrap();
    blk.kick();
    device.run();
    blk.service().unwrap();
    blk.submit(&client, 2, BlockOp::Flush, 0, &[]).unwrap();
    blk.submit(&client, 3, BlockOp::Read, 16, &[to]).unwrap();
    blk.submit(&client, 4, BlockOp::Discard { sectors: 8 }, 16, &[]).unwrap();
    blk.kick();
    device.run();
    blk.service().unwrap();
    let done = take(&client);
    assert_eq!(done.iter().map(|c| (c.tag, c.ok)).collect::<Vec<_>>(), [1, 2, 3, 4].map(|t| (t, true)));
    assert_eq!(arena.bytes(to.maddr.raw(), PAGE_SIZE), alloc::vec![0x5a; PAGE_SIZE]);
    assert_eq!(device.disk(16 * 512, PAGE_SIZE), alloc::vec![0; PAGE_SIZE]);
    assert_eq!((device.flushes(), blk.in_flight()), (1, 0));
}

#[test]
fn device_errors_reach_the_client() {
    let (arena, device, blk) = disk(Limits::default());
    let client = Client::new(2);
    blk.submit(&client, 9, BlockOp::Read, 2047, &[segment(&arena)]).unwrap();
    blk.kick();
    device.run();
    blk.service().unwrap();
    assert_eq!(take(&client), [Completion { tag: 9, ok: false }]);
}

#[test]
fn longest_request_takes_one_descriptor() {
    let (arena, device, blk) = disk(Limits::default());
    let client = Client::new(4);
    let segments: Vec<_> = (0..254).map(|_| segment(&arena)).collect();
    for tag in 0..MAX_TABLES as u32 {
        blk.submit(&client, tag, BlockOp::Read, 0, &segments).unwrap();
    }
    assert_eq!(blk.submit(&client, 99, BlockOp::Read, 0, &segments), Err(SubmitError::Full));
    assert_eq!(blk.submit(&client, 99, BlockOp::Read, 0, &segments[..11]), Ok(()));
    blk.kick();
    device.run();
    blk.service().unwrap();
    assert!(take(&client).iter().all(|c| c.ok));
    let expected = device.disk(253 * PAGE_SIZE, PAGE_SIZE);
    assert_eq!(arena.bytes(segments[253].maddr.raw(), PAGE_SIZE), expected);
}

/// The tags and outcomes of the ended operations, in the order of the tags.
fn ends(client: &Client) -> Vec<(u32, bool)> {
    let mut ends: Vec<_> = take(client).iter().map(|c| (c.tag, c.ok)).collect();
    ends.sort_unstable();
    ends
}

#[test]
fn what_goes_on_where_another_ends_is_one_request() {
    let (arena, device, blk) = disk(Limits::default());
    let client = Client::new(4);
    let segments: Vec<_> = (0..96).map(|_| segment(&arena)).collect();
    for (tag, part) in segments.chunks(32).enumerate() {
        blk.submit(&client, tag as u32, BlockOp::Read, 8 + 256 * tag as u64, part).unwrap();
    }
    assert_eq!(blk.in_flight(), 1);
    blk.kick();
    device.run();
    blk.service().unwrap();
    assert_eq!(ends(&client), [(0, true), (1, true), (2, true)]);
    assert_eq!((device.requests(), blk.in_flight()), (1, 0));
    for (index, segment) in segments.iter().enumerate() {
        let expected = device.disk(8 * 512 + index * PAGE_SIZE, PAGE_SIZE);
        assert_eq!(arena.bytes(segment.maddr.raw(), PAGE_SIZE), expected, "page {index}");
    }
}

#[test]
fn neighbours_in_memory_are_one_part() {
    // As long as may be; and with no part over three pages.
    for (size_max, parts) in [(None, 3), (Some(3 * PAGE_SIZE as u32), 4)] {
        let (arena, device, blk) = disk(Limits { size_max, ..Limits::default() });
        let client = Client::new(4);
        let row = arena.row(7);
        let page = |index: u64, len| Segment { maddr: Maddr::new(row + index * PAGE_SIZE as u64), len };
        // Five segments in a row, the last of them cut; one before these; one that lies after the page of the cut
        // segment.
        let lengths = [(1, 4096), (2, 4096), (3, 4096), (4, 4096), (5, 512), (0, 4096), (6, 4096)];
        let segments = lengths.map(|(index, len)| page(index, len));
        blk.submit(&client, 0, BlockOp::Read, 8, &segments).unwrap();
        blk.kick();
        device.run();
        blk.service().unwrap();
        assert_eq!(ends(&client), [(0, true)]);
        assert_eq!(device.parts(), parts);
        let mut sector = 8;
        for segment in segments {
            let expected = device.disk(sector * 512, segment.len as usize);
            assert_eq!(arena.bytes(segment.maddr.raw(), segment.len as usize), expected);
            sector += segment.len as usize / 512;
        }
    }
}

#[test]
fn nothing_else_joins() {
    let (arena, device, blk) = disk(Limits::default());
    let (client, other) = (Client::new(8), Client::new(1));
    let one = [segment(&arena)];
    let many: Vec<_> = (0..254).map(|_| segment(&arena)).collect();
    blk.submit(&client, 0, BlockOp::Read, 0, &one).unwrap();
    blk.submit(&client, 1, BlockOp::Read, 16, &one).unwrap(); // a gap
    blk.submit(&client, 2, BlockOp::Read, 8, &one).unwrap(); // back
    blk.submit(&client, 3, BlockOp::Write, 16, &one).unwrap(); // the other way
    blk.submit(&other, 4, BlockOp::Write, 24, &one).unwrap(); // somebody else
    blk.submit(&client, 5, BlockOp::Flush, 0, &[]).unwrap();
    blk.submit(&client, 6, BlockOp::Write, 32, &one).unwrap(); // behind a flush
    blk.submit(&client, 7, BlockOp::Write, 0, &many).unwrap();
    blk.submit(&client, 8, BlockOp::Write, 254 * 8, &one).unwrap(); // too long together
    assert_eq!(blk.in_flight(), 9);
    blk.kick();
    device.run();
    blk.service().unwrap();
    assert_eq!(ends(&client).len() + ends(&other).len(), 9);
    assert_eq!(device.requests(), 9);
    // Nor after a kick.
    blk.submit(&client, 0, BlockOp::Read, 0, &one).unwrap();
    blk.kick();
    blk.submit(&client, 1, BlockOp::Read, 8, &one).unwrap();
    blk.kick();
    device.run();
    assert_eq!(device.requests(), 11);
}

#[test]
fn of_a_joined_request_only_those_fail_that_do_alone() {
    // With 64 descriptors all writes are one request; with 8 or 4, the queue's size cuts the writes into several
    // requests.
    for queue in [64, 8, 4] {
        let (arena, device, blk) = disk(Limits { queue, seg_max: 64, ..Limits::default() });
        let client = Client::new(8);
        let pages: Vec<_> = (0..5).map(|_| segment(&arena)).collect();
        // The disk has 2048 sectors: the last two writes lie behind the disk's end.
        for (tag, page) in pages.iter().enumerate() {
            arena.fill(page.maddr.raw(), PAGE_SIZE, tag as u8 + 1);
            let submit = || blk.submit(&client, tag as u32, BlockOp::Write, 2024 + 8 * tag as u64, &[*page]);
            while submit() == Err(SubmitError::Full) {
                blk.kick();
                device.run();
                blk.service().unwrap();
            }
        }
        blk.kick();
        for _ in 0..6 {
            device.run();
            blk.service().unwrap();
        }
        assert_eq!(ends(&client), [(0, true), (1, true), (2, true), (3, false), (4, false)]);
        assert_eq!(blk.in_flight(), 0);
        for tag in 0..3 {
            assert_eq!(device.disk((2024 + 8 * tag) * 512, 1), [tag as u8 + 1]);
        }
    }
}

#[test]
fn requests_may_end_while_one_is_open() {
    let (arena, device, blk) = disk(Limits::default());
    let client = Client::new(4);
    blk.submit(&client, 0, BlockOp::Read, 0, &[segment(&arena)]).unwrap();
    blk.kick();
    device.run();
    blk.submit(&client, 1, BlockOp::Read, 64, &[segment(&arena)]).unwrap();
    blk.service().unwrap();
    blk.submit(&client, 2, BlockOp::Read, 128, &[segment(&arena)]).unwrap();
    blk.kick();
    device.run();
    blk.service().unwrap();
    assert_eq!(ends(&client), [(0, true), (1, true), (2, true)]);
}

#[test]
fn a_device_that_breaks_fails_what_it_was_not_given_too() {
    let (arena, device, blk) = disk(Limits::default());
    let client = Client::new(4);
    blk.submit(&client, 0, BlockOp::Write, 0, &[segment(&arena)]).unwrap();
    blk.kick();
    blk.submit(&client, 1, BlockOp::Write, 8, &[segment(&arena)]).unwrap();
    blk.submit(&client, 2, BlockOp::Write, 16, &[segment(&arena)]).unwrap();
    device.lie();
    assert!(blk.service().is_err());
    assert_eq!(ends(&client), [(0, false), (1, false), (2, false)]);
    assert_eq!(blk.submit(&client, 3, BlockOp::Write, 24, &[segment(&arena)]), Err(SubmitError::Failed));
    blk.kick();
}

#[test]
fn a_broken_device_is_reset_and_fails_all() {
    let (arena, device, blk) = disk(Limits::default());
    let client = Client::new(4);
    for tag in 0..3 {
        blk.submit(&client, tag, BlockOp::Write, 0, &[segment(&arena)]).unwrap();
    }
    blk.kick();
    device.lie();
    assert!(matches!(blk.service(), Err(BlkError::Queue(_))));
    assert!(device.was_reset());
    assert_eq!(take(&client).len(), 3);
    assert_eq!(blk.submit(&client, 3, BlockOp::Read, 0, &[segment(&arena)]), Err(SubmitError::Failed));
    assert!(blk.service().is_err());
}

#[test]
fn serial_number() {
    let (_, device, blk) = disk(Limits::default());
    let mut future = core::pin::pin!(blk.serial());
    let mut cx = core::task::Context::from_waker(core::task::Waker::noop());
    assert!(future.as_mut().poll(&mut cx).is_pending());
    device.run();
    blk.service().unwrap();
    assert_eq!(future.as_mut().poll(&mut cx), core::task::Poll::Ready(Some("scratch".into())));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Random requests, sizes and orders: each request ends once, and a read sees what was written.
    #[test]
    fn random_traffic(
        steps in proptest::collection::vec((0u8..4, 1usize..30, 0u64..200, any::<u8>()), 1..80),
        indirect in any::<bool>(),
        size_max in proptest::option::of(512u32..5000),
    ) {
        let (arena, device, blk) = disk(Limits { indirect, size_max, queue: 64, ..Limits::default() });
        let client = Client::new(4);
        let most = blk.geometry().seg_max;
        let mut expected = 0;
        let mut ended = 0;
        let mut end = 0;
        for (tag, (kind, count, sector, fill)) in steps.into_iter().enumerate() {
            if kind >= 2 {
                blk.kick();
                device.run();
                blk.service().unwrap();
                let done = take(&client);
                prop_assert!(done.iter().all(|c| c.ok));
                ended += done.len();
                continue;
            }
            let segments: Vec<_> = (0..count.min(most)).map(|_| segment(&arena)).collect();
            for segment in &segments {
                arena.fill(segment.maddr.raw(), PAGE_SIZE, fill);
            }
            let op = if kind == 0 { BlockOp::Read } else { BlockOp::Write };
            // Many requests begin where the request before ended.
            let sector = if fill % 2 == 0 && end < 1800 { end } else { sector };
            end = sector + 8 * segments.len() as u64;
            match blk.submit(&client, tag as u32, op, sector, &segments) {
                Ok(()) => expected += 1,
                Err(error) => prop_assert_eq!(error, SubmitError::Full),
            }
            if fill % 3 == 0 {
                blk.kick();
            }
        }
        blk.kick();
        device.run();
        blk.service().unwrap();
        ended += take(&client).len();
        prop_assert_eq!(ended, expected);
        prop_assert_eq!(blk.in_flight(), 0);
    }
}
