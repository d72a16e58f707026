//! Requests against a device that a test leads by hand.

mod sharing;

use alloc::vec::Vec;

use backends::Completion;
use ring_abi::types::{Maddr, PAGE_SIZE};

use super::*;

/// A command that the device has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Command {
    slot: u16,
    op: BlockOp,
    sector: u64,
    parts: Vec<Part>,
}

/// A device that takes commands of at most `most` parts, and as many as `room`.
#[derive(Default)]
struct Device {
    most: usize,
    room: usize,
    has: Vec<Command>,
    unfit: Option<u64>,
    ended: Vec<(u16, bool)>,
    rung: usize,
}

impl Hardware for Device {
    type Error = u8;

    fn continues(&self, last: &Part, _: &Part) -> bool {
        last.len.is_multiple_of(4096)
    }

    fn start(&mut self, slot: u16, run: Run<'_>) -> Start {
        assert!(self.has.iter().all(|command| command.slot != slot), "a slot has one command");
        if self.unfit == Some(run.sector) {
            return Start::Unfit;
        }
        if self.has.len() == self.room {
            return Start::Busy;
        }
        let parts: Vec<Part> = run.parts.iter().take(self.most).copied().collect();
        let taken = parts.len();
        self.has.push(Command { slot, op: run.op, sector: run.sector, parts });
        Start::Taken(taken)
    }

    fn ring(&mut self) {
        self.rung += 1;
    }

    fn finished(&mut self) -> Result<Option<(u16, bool)>, u8> {
        Ok(if self.ended.is_empty() { None } else { Some(self.ended.remove(0)) })
    }
}

type Queue = BlockQueue<Device>;

fn queue(slots: u16, most: usize) -> Queue {
    let geometry = Geometry { sectors: 1 << 20, seg_max: 16, ..crate::blkdev::tests::Silent.geometry() };
    let limits = Limits { slots, parts: 16, part_bytes: 8192, bytes: 1 << 17 };
    BlockQueue::new(geometry, limits, Device { most, room: usize::MAX, ..Device::default() })
}

/// Pages that are no neighbours.
fn pages(first: u64, count: u64) -> Vec<Segment> {
    let page = |index| Segment { maddr: Maddr::new((first + 2 * index) << 12), len: PAGE_SIZE as u32 };
    (0..count).map(page).collect()
}

fn read(queue: &Queue, client: &Arc<Client>, tag: u32, sector: u64, count: u64) -> Result<(), SubmitError> {
    queue.submit(client, tag, BlockOp::Read, sector, &pages(0x100 * u64::from(tag + 1), count))
}

/// The device ends all its commands; `good` says how, by sector. The result is their sectors and numbers of parts.
fn end_all(queue: &Queue, good: impl Fn(u64) -> bool) -> Vec<(u64, usize)> {
    let shape = queue.with(|device| {
        let had = core::mem::take(&mut device.has);
        device.ended.extend(had.iter().map(|command| (command.slot, good(command.sector))));
        had.iter().map(|command| (command.sector, command.parts.len())).collect()
    });
    queue.service().unwrap();
    shape
}

fn ends(client: &Client) -> Vec<(u32, bool)> {
    let mut out = Vec::new();
    client.take(&mut out);
    out.iter().map(|&Completion { tag, ok }| (tag, ok)).collect()
}

#[test]
fn a_request_is_as_many_commands_as_the_device_needs() {
    let (queue, client) = (queue(4, 3), Client::new(1));
    read(&queue, &client, 7, 80, 8).unwrap();
    assert_eq!(queue.with(|device| device.has.len()), 0, "not before the kick");
    queue.kick();
    assert_eq!(end_all(&queue, |_| true), [(80, 3)]);
    assert_eq!(ends(&client), []);
    assert_eq!(end_all(&queue, |_| true), [(104, 3)]);
    assert_eq!(end_all(&queue, |_| true), [(128, 2)]);
    assert_eq!((ends(&client), queue.in_flight()), (alloc::vec![(7, true)], 0));
    // The first that fails ends all.
    read(&queue, &client, 8, 80, 8).unwrap();
    queue.kick();
    end_all(&queue, |_| true);
    end_all(&queue, |_| false);
    assert_eq!((ends(&client), queue.in_flight()), (alloc::vec![(8, false)], 0));
}

#[test]
fn what_joins_and_what_does_not() {
    let queue = queue(8, 16);
    let (client, other) = (Client::new(8), Client::new(8));
    read(&queue, &client, 0, 80, 4).unwrap();
    read(&queue, &client, 1, 112, 4).unwrap();
    read(&queue, &client, 2, 144, 9).unwrap(); // more parts than a request has
    read(&queue, &other, 3, 216, 1).unwrap();
    queue.submit(&other, 4, BlockOp::Write, 224, &pages(8, 1)).unwrap();
    queue.submit(&other, 5, BlockOp::Flush, 0, &[]).unwrap();
    queue.submit(&other, 6, BlockOp::Discard { sectors: 8 }, 8, &[]).unwrap();
    let neighbours = [1u64, 2, 3].map(|page| Segment { maddr: Maddr::new(page << 12), len: 4096 });
    queue.submit(&other, 7, BlockOp::Read, 0, &neighbours).unwrap(); // two pages are one part
    queue.kick();
    assert_eq!(queue.with(|device| device.rung), 1);
    let shape = end_all(&queue, |_| true);
    assert_eq!(shape, [(80, 8), (144, 9), (216, 1), (224, 1), (0, 0), (8, 0), (0, 2)]);
    assert_eq!(ends(&client), [(0, true), (1, true), (2, true)]);
    assert_eq!(ends(&other).len(), 5);
}

#[test]
fn too_many_segments_are_refused() {
    let (queue, client) = (queue(4, 16), Client::new(1));
    assert_eq!(read(&queue, &client, 0, 0, 17), Err(SubmitError::Failed));
    assert_eq!(read(&queue, &client, 1, 0, 16), Ok(()));
}

/// Of a joined request that fails, each member is done alone, by several commands where it must be.
#[test]
fn members_of_a_failed_request_are_done_alone() {
    let (queue, client) = (queue(4, 3), Client::new(1));
    for (tag, sector, count) in [(0, 80, 4), (1, 112, 2), (2, 128, 5)] {
        read(&queue, &client, tag, sector, count).unwrap();
    }
    queue.kick();
    assert_eq!(queue.in_flight(), 1);
    let good = |sector| sector != 112;
    assert_eq!(end_all(&queue, good), [(80, 3)]);
    assert_eq!(end_all(&queue, |_| false), [(104, 3)]);
    for (sector, parts) in [(80, 3), (104, 1), (112, 2), (128, 3), (152, 2)] {
        assert_eq!(end_all(&queue, good), [(sector, parts)]);
    }
    assert_eq!((ends(&client), queue.in_flight()), (alloc::vec![(0, true), (1, false), (2, true)], 0));
}

#[test]
fn what_the_device_cannot_do_fails_at_once() {
    let (queue, client) = (queue(4, 3), Client::new(1));
    queue.with(|device| device.unfit = Some(88));
    read(&queue, &client, 0, 80, 1).unwrap();
    read(&queue, &client, 1, 88, 1).unwrap();
    read(&queue, &client, 2, 800, 1).unwrap();
    queue.kick();
    // The first two are one request, whose first command fails.
    end_all(&queue, |sector| sector != 80);
    end_all(&queue, |_| true);
    assert_eq!(ends(&client), [(2, true), (0, true), (1, false)]);
    read(&queue, &client, 3, 88, 1).unwrap();
    queue.kick();
    assert_eq!((ends(&client), queue.in_flight()), (alloc::vec![(3, false)], 0));
}

#[test]
fn a_busy_device_gets_the_rest_later() {
    let (queue, client) = (queue(8, 16), Client::new(1));
    queue.with(|device| device.room = 2);
    for tag in 0..5 {
        read(&queue, &client, tag, 100 * u64::from(tag), 1).unwrap();
    }
    queue.kick();
    assert_eq!(end_all(&queue, |_| true), [(0, 1), (100, 1)]);
    assert_eq!(end_all(&queue, |_| true), [(200, 1), (300, 1)]);
    assert_eq!(end_all(&queue, |_| true), [(400, 1)]);
    assert_eq!(ends(&client).len(), 5);
}

/// A reset device gets its commands again, in their order; a request that was there at three resets fails.
#[test]
fn after_a_reset_commands_come_again_but_not_for_ever() {
    let (queue, client) = (queue(8, 3), Client::new(1));
    read(&queue, &client, 0, 0, 4).unwrap();
    read(&queue, &client, 1, 800, 1).unwrap();
    queue.kick();
    end_all(&queue, |sector| sector == 0);
    assert_eq!(ends(&client), [(1, false)]);
    read(&queue, &client, 2, 400, 1).unwrap();
    queue.kick();
    for _ in 0..2 {
        let had = queue.with(|device| core::mem::take(&mut device.has));
        assert_eq!(had.len(), 2);
        queue.replay();
        assert_eq!(ends(&client), []);
    }
    // The first request goes on where it was.
    let sectors = queue.with(|device| device.has.iter().map(|command| command.sector).collect::<Vec<_>>());
    assert!(sectors.contains(&24) && sectors.contains(&400));
    queue.with(|device| device.has.clear());
    queue.replay();
    assert_eq!((ends(&client).len(), queue.in_flight()), (2, 0));
    assert_eq!(queue.with(|device| device.has.len()), 0);
}

#[test]
fn a_disk_that_is_given_up_fails_all_once() {
    let (queue, client) = (queue(8, 16), Client::new(1));
    read(&queue, &client, 0, 0, 1).unwrap();
    queue.kick();
    read(&queue, &client, 1, 800, 1).unwrap();
    read(&queue, &client, 2, 808, 1).unwrap();
    queue.close();
    assert_eq!(read(&queue, &client, 3, 0, 1), Err(SubmitError::Failed));
    assert_eq!(ends(&client), [], "the device may still use their memory");
    queue.fail();
    let mut all = ends(&client);
    all.sort_unstable();
    assert_eq!((all, queue.in_flight()), (alloc::vec![(0, false), (1, false), (2, false)], 0));
    queue.fail();
    queue.kick();
    assert_eq!(ends(&client), []);
}
