//! The driver against a device in memory.

use super::requests::MAX_TABLES;
use super::*;
use crate::virtio::TransportError;
use crate::virtio::fake::{Arena, FakeDevice, Limits};
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
fn a_full_queue_turns_away_and_calls_back() {
    for indirect in [true, false] {
        let (arena, device, blk) = disk(Limits { queue: 16, indirect, ..Limits::default() });
        let (client, other) = (Client::new(2), Client::new(2));
        let segments = [segment(&arena)];
        let mut taken = 0;
        while blk.submit(&client, taken, BlockOp::Read, 0, &segments).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, if indirect { 16 } else { 5 });
        assert_eq!(blk.submit(&other, 0, BlockOp::Read, 0, &segments), Err(SubmitError::Full));
        assert_eq!(blk.submit(&other, 0, BlockOp::Discard { sectors: 1 }, 0, &[]), Err(SubmitError::Full));
        blk.kick();
        device.run();
        blk.service().unwrap();
        let mut cx = core::task::Context::from_waker(core::task::Waker::noop());
        assert!(other.poll_ready(&mut cx).is_ready());
        assert_eq!(take(&client).len(), taken as usize);
        assert!(blk.submit(&other, 0, BlockOp::Read, 0, &segments).is_ok());
    }
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

    /// Random requests, sizes and orders: each ends once, and reads see what was written.
    #[test]
    fn random_traffic(
        steps in proptest::collection::vec((0u8..3, 1usize..30, 0u64..200, any::<u8>()), 1..80),
        indirect in any::<bool>(),
        size_max in proptest::option::of(512u32..5000),
    ) {
        let (arena, device, blk) = disk(Limits { indirect, size_max, queue: 64, ..Limits::default() });
        let client = Client::new(4);
        let most = blk.geometry().seg_max;
        let mut expected = 0;
        let mut ended = 0;
        for (tag, (kind, count, sector, fill)) in steps.into_iter().enumerate() {
            if kind == 2 {
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
            match blk.submit(&client, tag as u32, op, sector, &segments) {
                Ok(()) => expected += 1,
                Err(error) => prop_assert_eq!(error, SubmitError::Full),
            }
            blk.kick();
        }
        device.run();
        blk.service().unwrap();
        ended += take(&client).len();
        prop_assert_eq!(ended, expected);
        prop_assert_eq!(blk.in_flight(), 0);
    }
}
