//! Grants in memory, a disk that takes its time, and helpers of a frontend.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use super::*;
use ring_abi::ring::{BackRing, FrontRing};
use ring_abi::shared::{SharedBytes, leaked_pages};
use ring_abi::types::{GrantRef, Maddr, PAGE_SIZE};

pub(super) const SECTOR: usize = 512;

/// Frames by machine address, grants by reference, and what the back end holds of each.
#[derive(Default)]
pub(super) struct World {
    pub(super) frames: BTreeMap<u64, Vec<u8>>,
    /// gref -> (frame, read-only).
    pub(super) grants: BTreeMap<u32, (u64, bool)>,
    /// handle -> (frame, mapped read-only).
    pub(super) held: BTreeMap<u32, (u64, bool)>,
    pub(super) next_handle: u32,
    pub(super) map_calls: usize,
    pub(super) unmap_calls: usize,
    /// Frames asked for, and frames given back.
    pub(super) moved: (usize, usize),
    /// Pages copied.
    pub(super) reads: usize,
    /// Pages that the back end copied are overwritten at once.
    pub(super) lists_change: bool,
}

impl World {
    pub(super) fn grant(&mut self, readonly: bool) -> u32 {
        let gref = 8 + self.grants.len() as u32;
        // Frames that are neighbours to the guest are no neighbours in the machine.
        let frame = 0x1000 + u64::from(gref) * 7;
        self.frames.insert(frame, vec![0; PAGE_SIZE]);
        self.grants.insert(gref, (frame, readonly));
        gref
    }

    pub(super) fn page(&mut self, gref: u32) -> &mut Vec<u8> {
        let frame = self.grants[&gref].0;
        self.frames.get_mut(&frame).unwrap()
    }
}

pub(super) type SharedWorld = Rc<RefCell<World>>;

pub(super) struct TestGrants(pub(super) SharedWorld);

pub(super) struct Held {
    pub(super) handle: u32,
    pub(super) maddr: u64,
}

impl Grants for TestGrants {
    type Grant = Held;
    type Error = i16;

    fn map_device(&mut self, requests: &[(GrantRef, bool)], out: &mut Vec<Result<Held, i16>>) {
        let world = &mut *self.0.borrow_mut();
        world.map_calls += 1;
        world.moved.0 += requests.len();
        for (gref, device_reads) in requests {
            out.push(match world.grants.get(&gref.raw()) {
                Some(&(frame, readonly)) if *device_reads || !readonly => {
                    world.next_handle += 1;
                    world.held.insert(world.next_handle, (frame, *device_reads));
                    Ok(Held { handle: world.next_handle, maddr: frame << 12 })
                }
                _ => Err(-3),
            });
        }
    }

    fn maddr(grant: &Held) -> Maddr {
        Maddr::new(grant.maddr)
    }

    fn unmap_device(&mut self, held: &mut Vec<Held>) {
        let mut world = self.0.borrow_mut();
        world.unmap_calls += 1;
        world.moved.1 += held.len();
        for grant in held.drain(..) {
            assert!(world.held.remove(&grant.handle).is_some(), "given back twice");
        }
    }

    fn read(&mut self, reads: &[GrantRead], sink: &mut ReadSink<'_>) {
        let world = &mut *self.0.borrow_mut();
        world.reads += reads.len();
        for (index, read) in reads.iter().enumerate() {
            match world.grants.get(&read.gref.raw()) {
                Some(&(frame, _)) => sink(index, Some(&world.frames[&frame][..usize::from(read.len)])),
                None => sink(index, None),
            }
        }
        for read in if world.lists_change { reads } else { &[] } {
            if let Some(&(frame, _)) = world.grants.get(&read.gref.raw()) {
                world.frames.get_mut(&frame).unwrap().fill(0xff);
            }
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct Events(pub(super) Rc<Cell<usize>>);

impl Notifier for Events {
    fn notify(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

pub(super) struct Pending {
    pub(super) client: Arc<Client>,
    pub(super) tag: u32,
    pub(super) op: BlockOp,
    pub(super) sector: u64,
    pub(super) segments: Vec<Segment>,
}

/// A disk in memory. Operations wait in `queue` until the test lets them run, in any order.
pub(super) struct TestDisk {
    pub(super) world: SharedWorld,
    pub(super) bytes: RefCell<Vec<u8>>,
    pub(super) queue: RefCell<VecDeque<Pending>>,
    pub(super) log: RefCell<Vec<BlockOp>>,
    pub(super) room: Cell<usize>,
    pub(super) fail: Cell<bool>,
    pub(super) kicks: Cell<usize>,
    pub(super) geometry: Geometry,
}

impl TestDisk {
    pub(super) fn run(&self, index: usize) {
        let Pending { client, tag, op, sector, segments } = self.queue.borrow_mut().remove(index).unwrap();
        self.log.borrow_mut().push(op);
        let mut world = self.world.borrow_mut();
        let mut disk = self.bytes.borrow_mut();
        let mut at = sector as usize * SECTOR;
        for segment in &segments {
            let (frame, offset) = (segment.maddr.raw() >> 12, segment.maddr.raw() as usize % PAGE_SIZE);
            assert!(offset + segment.len as usize <= PAGE_SIZE, "a segment crosses its page");
            let writable = world.held.values().any(|&(held, ro)| held == frame && !ro);
            let held = world.held.values().any(|&(held, _)| held == frame);
            assert!(held, "DMA to a frame that is not held");
            let memory = &mut world.frames.get_mut(&frame).unwrap()[offset..offset + segment.len as usize];
            let disk = &mut disk[at..at + segment.len as usize];
            match op {
                BlockOp::Read => {
                    assert!(writable);
                    memory.copy_from_slice(disk);
                }
                _ => disk.copy_from_slice(memory),
            }
            at += segment.len as usize;
        }
        if let BlockOp::Discard { sectors } = op {
            disk[at..at + sectors as usize * SECTOR].fill(0);
        }
        client.complete(tag, !self.fail.get());
        client.room();
    }

    pub(super) fn run_all(&self) {
        while !self.queue.borrow().is_empty() {
            self.run(0);
        }
    }
}

impl BlockDevice for &TestDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(
        &self,
        client: &Arc<Client>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        if self.queue.borrow().len() >= self.room.get() {
            return Err(SubmitError::Full);
        }
        assert!(segments.len() <= self.geometry.seg_max);
        let (client, segments) = (client.clone(), segments.to_vec());
        self.queue.borrow_mut().push_back(Pending { client, tag, op, sector, segments });
        Ok(())
    }

    fn kick(&self) {
        self.kicks.set(self.kicks.get() + 1);
    }
}

pub(super) const DISK: Geometry = Geometry {
    sectors: 4096,
    sector_size: 512,
    physical_sector_size: 512,
    read_only: false,
    flush: true,
    discard: Some(DiscardLimits { granularity: 1, alignment: 0, max_sectors: 16 }),
    seg_max: 6,
};

pub(super) type Back<'a> = BlkBack<SharedBytes<'static>, TestGrants, Events, &'a TestDisk>;

/// Everything but the engine, which borrows it.
pub(super) struct Bench {
    pub(super) world: SharedWorld,
    pub(super) page: SharedBytes<'static>,
    pub(super) disk: TestDisk,
    pub(super) events: Events,
}

impl Bench {
    pub(super) fn new(geometry: Geometry) -> Self {
        let world = SharedWorld::default();
        let bytes = (0..geometry.sectors as usize * SECTOR).map(|i| (i / SECTOR * 31 + i) as u8).collect();
        let disk = TestDisk {
            world: world.clone(),
            bytes: RefCell::new(bytes),
            queue: RefCell::default(),
            log: RefCell::default(),
            room: Cell::new(1000),
            fail: Cell::new(false),
            kicks: Cell::new(0),
            geometry,
        };
        Self { world, page: leaked_pages(1), disk, events: Events::default() }
    }

    pub(super) fn start(&self) -> (FrontRing<BlkifRing, SharedBytes<'static>>, Back<'_>) {
        let front = FrontRing::new(self.page).unwrap();
        let ring = BackRing::new(self.page).unwrap();
        let back =
            BlkBack::new(ring, TestGrants(self.world.clone()), self.events.clone(), &self.disk).unwrap();
        (front, back)
    }

    pub(super) fn segments(&self, n: usize) -> Vec<BlkifRequestSegment> {
        (0..n)
            .map(|_| BlkifRequestSegment {
                gref: self.world.borrow_mut().grant(false),
                first_sect: 0,
                last_sect: 7,
                ..Default::default()
            })
            .collect()
    }

    pub(super) fn held(&self) -> usize {
        self.world.borrow().held.len()
    }

    /// Frames asked for, and frames given back, so far.
    pub(super) fn moved(&self) -> (usize, usize) {
        self.world.borrow().moved
    }
}

pub(super) fn direct(operation: u8, id: u64, sector: u64, segments: &[BlkifRequestSegment]) -> BlkifRequest {
    let mut request = BlkifRequest {
        operation,
        nr_segments: segments.len() as u8,
        id,
        sector_number: sector,
        ..Default::default()
    };
    request.seg[..segments.len()].copy_from_slice(segments);
    request
}

/// Polls and lets the disk run until nothing moves.
pub(super) fn settle(back: &mut Back<'_>, disk: &TestDisk) {
    loop {
        let next = back.poll().unwrap();
        if next == Next::Wait && disk.queue.borrow().is_empty() {
            return;
        }
        disk.run_all();
    }
}

pub(super) fn responses(front: &mut FrontRing<BlkifRing, SharedBytes<'static>>) -> Vec<(u64, u8, i16)> {
    let mut out = Vec::new();
    while let Some(response) = front.next_response().unwrap() {
        out.push((response.id, response.operation, response.status));
    }
    out
}
