//! The block backend's engine against a hostile frontend and a disk with moods.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use backends::blk::{BlkBack, Next};
use backends::{
    BlockDevice, BlockOp, Client, DiscardLimits, Geometry, GrantRead, Grants, Notifier, ReadSink, Segment,
    SubmitError,
};
use ring_abi::io::blkif::BlkifRing;
use ring_abi::ring::{BackRing, REQ_PROD, RingProtocol, SLOTS};
use ring_abi::types::{GrantRef, Maddr};

use crate::input::Input;
use crate::page::HostilePage;

/// References below this are granted.
const GRANTED: u32 = 64;

/// Frames held, by handle: the frame, and whether the device only reads it.
#[derive(Default)]
struct Held {
    frames: BTreeMap<u32, (u64, bool)>,
    next: u32,
}

#[derive(Clone)]
struct FuzzGrants {
    held: Rc<RefCell<Held>>,
    input: Input,
}

struct Frame {
    handle: u32,
    maddr: u64,
}

impl Grants for FuzzGrants {
    type Grant = Frame;
    type Error = i16;

    fn map_device(&mut self, requests: &[(GrantRef, bool)], out: &mut Vec<Result<Frame, i16>>) {
        let held = &mut *self.held.borrow_mut();
        for &(gref, reads) in requests {
            if gref.raw() >= GRANTED {
                out.push(Err(-3));
                continue;
            }
            // Frames that are neighbours to the guest are not so in the machine.
            let frame = 0x100 + u64::from(gref.raw()) * 7;
            held.next += 1;
            held.frames.insert(held.next, (frame, reads));
            out.push(Ok(Frame { handle: held.next, maddr: frame << 12 }));
        }
    }

    fn maddr(grant: &Frame) -> Maddr {
        Maddr::new(grant.maddr)
    }

    fn unmap_device(&mut self, frames: &mut Vec<Frame>) {
        let mut held = self.held.borrow_mut();
        for frame in frames.drain(..) {
            assert!(held.frames.remove(&frame.handle).is_some(), "given back twice");
        }
    }

    fn read(&mut self, reads: &[GrantRead], sink: &mut ReadSink<'_>) {
        for (index, read) in reads.iter().enumerate() {
            assert!(read.len <= 4096);
            let mut bytes = self.input.take(usize::from(read.len).min(64));
            bytes.resize(read.len.into(), 0);
            sink(index, (read.gref.raw() < GRANTED).then_some(bytes.as_slice()));
        }
    }
}

struct Ignored;

impl Notifier for Ignored {
    fn notify(&mut self) {}
}

struct Operation {
    client: Arc<Client>,
    tag: u32,
    frames: Vec<u64>,
    reads_memory: bool,
}

/// A disk that keeps nothing and checks what it is asked.
struct Disk {
    held: Rc<RefCell<Held>>,
    geometry: Geometry,
    queue: RefCell<VecDeque<Operation>>,
    input: Input,
}

impl BlockDevice for &Disk {
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
        match self.input.u8() & 15 {
            0 => return Err(SubmitError::Full),
            1 => return Err(SubmitError::Failed),
            _ => {}
        }
        assert!(segments.len() <= self.geometry.seg_max);
        let bytes: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
        let sectors = match op {
            BlockOp::Discard { sectors } => sectors,
            _ => bytes / 512,
        };
        let end = sector.checked_add(sectors).expect("no wrap");
        assert!(end <= self.geometry.sectors, "beyond the disk");
        if self.geometry.read_only {
            assert_eq!(op, BlockOp::Read);
        }
        let reads_memory = op == BlockOp::Write;
        for segment in segments {
            let offset = segment.maddr.raw() % 4096;
            assert!(
                segment.len > 0 && segment.len.is_multiple_of(512) && offset + u64::from(segment.len) <= 4096
            );
        }
        let frames = segments.iter().map(|segment| segment.maddr.raw() >> 12).collect();
        let operation = Operation { client: client.clone(), tag, frames, reads_memory };
        self.check(&operation);
        self.queue.borrow_mut().push_back(operation);
        Ok(())
    }

    fn kick(&self) {}
}

impl Disk {
    /// The frames of an operation must be held while the device has it.
    fn check(&self, operation: &Operation) {
        let held = self.held.borrow();
        for frame in &operation.frames {
            let fits = |&(of, reads): &(u64, bool)| of == *frame && (operation.reads_memory || !reads);
            assert!(held.frames.values().any(fits), "DMA to a frame that is not held");
        }
    }

    fn complete(&self, index: usize, ok: bool) {
        let Some(operation) = self.queue.borrow_mut().remove(index) else { return };
        self.check(&operation);
        operation.client.complete(operation.tag, ok);
        operation.client.room();
    }
}

/// Requests of any bytes, on a ring that changes between any two looks, over a disk that answers in any order: DMA only
/// to frames that are held, within the disk; no more answers than requests; nothing left behind at the end.
pub(crate) fn run(data: &[u8]) {
    let input = Input::new(data);
    let kind = input.u8();
    let sector_size = if kind & 1 == 0 { 512 } else { 4096 };
    let geometry = Geometry {
        sectors: 4096,
        sector_size,
        physical_sector_size: 4096,
        read_only: kind & 2 != 0,
        flush: kind & 4 == 0,
        discard: (kind & 8 == 0).then_some(DiscardLimits { granularity: 1, alignment: 0, max_sectors: 16 }),
        seg_max: 1 + usize::from(kind >> 4),
    };
    let held = Rc::new(RefCell::new(Held::default()));
    let disk = Disk { held: held.clone(), geometry, queue: RefCell::default(), input: input.clone() };
    let page = HostilePage::new(4096, &input);
    let ring = BackRing::<BlkifRing, _>::new(page.clone()).expect("a page");
    let size = ring.size() as usize;
    let grants = FuzzGrants { held: held.clone(), input: input.clone() };
    let mut back = BlkBack::new(ring, grants, Ignored, &disk).expect("the host has memory");
    let mut asked = 0u32;
    while !input.is_empty() {
        match input.below(4) {
            0 => {
                // One request, as a frontend that keeps to the ring would give it.
                let slot = SLOTS + asked as usize % size * BlkifRing::SLOT_BYTES;
                let request = input.take(input.below(BlkifRing::SLOT_BYTES + 1));
                page.set(slot, &request);
                asked = asked.wrapping_add(1);
                page.set(REQ_PROD, &asked.to_le_bytes());
            }
            1 => disk.complete(input.below(8), input.u8() & 3 != 0),
            _ => {
                if back.poll().is_err() {
                    break;
                }
            }
        }
        assert!(back.in_flight() <= size);
        let stats = back.stats();
        assert!(stats.errors <= stats.requests);
    }
    back.close();
    while let Some(next) = back.poll_closed() {
        if next == Next::Wait {
            assert!(!disk.queue.borrow().is_empty(), "it waits for what nobody has");
            disk.complete(0, true);
        }
    }
    assert!(disk.queue.borrow().is_empty() && held.borrow().frames.is_empty(), "something was left behind");
}
