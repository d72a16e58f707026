//! The block driver: scatter lists of machine addresses in, completions out.
//!
//! Each request has a slot of 256 bytes in the driver's own pages: header, status byte, and a descriptor table that
//! is long enough for a direct blkif request; longer ones take a whole page for their table. So, with indirect
//! descriptors, every request costs the queue one descriptor. Without them (an unusual device) parts go into the
//! queue itself.
//!
//! Source: VIRTIO 1.2, section 5.2.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;

use backends::{BlockDevice, BlockOp, Client, DiscardLimits, Geometry, Segment, SubmitError};
use spin::Mutex;

use super::queue::{DESCRIPTOR, MAX_QUEUE_SIZE, Part, QUEUE_PAGES, Queue, QueueError, write_descriptor};
use super::transport::{Doorbell, F_EVENT_IDX, F_INDIRECT_DESC, Transport, TransportError};
use super::{Dma, DmaSource};

const SECTOR: u32 = 512;
const PAGE: usize = 4096;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;

/// Bytes of the answer to `VIRTIO_BLK_T_GET_ID`.
const ID_BYTES: u32 = 20;

/// Offsets in the device's registers.
mod config {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SIZE_MAX: usize = 8;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLK_SIZE: usize = 20;
    pub(super) const PHYSICAL_BLOCK_EXP: usize = 24;
    pub(super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(super) const DISCARD_SECTOR_ALIGNMENT: usize = 44;
}

/// Bytes of a request's slot, and what is where in it.
const SLOT: usize = 256;
const SLOT_HEADER: usize = 0;
const SLOT_DISCARD: usize = 16;
const SLOT_STATUS: usize = 32;
const SLOT_TABLE: usize = 48;
/// Descriptors in a slot's own table: header, 11 segments, status.
const SLOT_ENTRIES: usize = (SLOT - SLOT_TABLE) / DESCRIPTOR;
const SLOTS_PER_PAGE: usize = PAGE / SLOT;

/// Descriptors in a table that fills a page.
const TABLE_ENTRIES: usize = PAGE / DESCRIPTOR;
/// Most such tables of a device; requests beyond wait.
const MAX_TABLES: usize = 64;

/// The status byte before the device writes it; no defined status.
const STATUS_UNWRITTEN: u8 = 0xff;
const STATUS_OK: u8 = 0;

/// Why a disk cannot be used, or ceased to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkError {
    /// The transport's reason.
    Transport(TransportError),
    /// No memory for the queue.
    OutOfMemory,
    /// Its registers say what no disk can be.
    BadGeometry(&'static str),
    /// It broke the queue's rules.
    Queue(QueueError),
    /// It asked to be reset.
    NeedsReset,
}

impl From<TransportError> for BlkError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl fmt::Display for BlkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::OutOfMemory => write!(f, "no memory for its queue"),
            Self::BadGeometry(what) => write!(f, "its registers give a bad {what}"),
            Self::Queue(error) => write!(f, "it broke its queue: {error:?}"),
            Self::NeedsReset => write!(f, "it asked to be reset"),
        }
    }
}

/// What a request's header says.
#[derive(Clone, Copy)]
struct Request {
    /// `VIRTIO_BLK_T_*`.
    kind: u32,
    sector: u64,
    /// First sector and number of a discard, which is the request's data.
    range: Option<(u64, u32)>,
}

/// A request that the device has.
struct InFlight {
    client: Arc<Client>,
    tag: u32,
    /// Index of its page-sized descriptor table.
    table: Option<u16>,
}

struct Inner<S: DmaSource> {
    source: S,
    queue: Queue<S::Memory>,
    slots: Vec<S::Memory>,
    tables: Vec<S::Memory>,
    free_tables: Vec<u16>,
    /// By head of chain.
    in_flight: Vec<Option<InFlight>>,
    /// Clients that were turned away.
    waiting: Vec<Arc<Client>>,
    /// Parts of the request being built; kept for its capacity.
    parts: Vec<Part>,
    /// Ended requests, on their way to their clients; kept for its capacity.
    ended: Vec<(Arc<Client>, u32, bool)>,
    indirect: bool,
    /// Largest part; a segment is cut to it.
    size_max: u32,
    /// Why it works no more.
    broken: Option<BlkError>,
}

/// A virtio disk. Shared by all who use it; one task runs [`Self::serve`].
///
/// The lock is held while a request is put into the queue or taken from it, never while a client is told: it comes
/// before a [`Client`]'s.
pub struct VirtioBlk<S: DmaSource> {
    name: String,
    transport: Transport,
    doorbell: Doorbell,
    geometry: Geometry,
    inner: Mutex<Inner<S>>,
}

/// A device that was brought up.
struct Running<S: DmaSource> {
    queue: Queue<S::Memory>,
    doorbell: Doorbell,
    geometry: Geometry,
    indirect: bool,
    size_max: u32,
}

/// What wakes the driver: the device's interrupt.
pub trait Interrupt {
    /// Waits for the next; one that came since the last wait ends it at once.
    fn wait(&self) -> impl Future<Output = ()> + Send;
}

impl<S: DmaSource> VirtioBlk<S> {
    /// Brings the device up with its queue's interrupt at MSI-X vector `vector`. `name` is for the log.
    ///
    /// # Errors
    /// [`BlkError`]; the device was reset and uses no memory.
    pub fn new(name: String, transport: Transport, source: S, vector: u16) -> Result<Self, BlkError> {
        Self::bring_up(&transport, &source, vector)
            .inspect_err(|_| {
                transport.fail();
                // One that does not even reset had no queue enabled yet, or has it in memory that is not reused.
                let _ = transport.reset();
            })
            .map(|Running { queue, doorbell, geometry, indirect, size_max }| {
                let size = usize::from(queue.size());
                let inner = Inner {
                    source,
                    queue,
                    slots: Vec::new(),
                    tables: Vec::new(),
                    free_tables: Vec::new(),
                    in_flight: (0..size).map(|_| None).collect(),
                    waiting: Vec::new(),
                    parts: Vec::with_capacity(TABLE_ENTRIES),
                    ended: Vec::new(),
                    indirect,
                    size_max,
                    broken: None,
                };
                Self { name, transport, doorbell, geometry, inner: Mutex::new(inner) }
            })
    }

    fn bring_up(transport: &Transport, source: &S, vector: u16) -> Result<Running<S>, BlkError> {
        let wanted = F_SIZE_MAX
            | F_SEG_MAX
            | F_RO
            | F_BLK_SIZE
            | F_FLUSH
            | F_TOPOLOGY
            | F_DISCARD
            | F_INDIRECT_DESC
            | F_EVENT_IDX;
        let features = transport.negotiate(wanted)?;
        let most = transport.queue_size(0)?.min(MAX_QUEUE_SIZE);
        let size = 1 << most.ilog2();
        let (geometry, size_max) = read_geometry(transport, features, size)?;
        let memory = source.allocate(QUEUE_PAGES).ok_or(BlkError::OutOfMemory)?;
        let queue = Queue::new(memory, size, features & F_EVENT_IDX != 0);
        let doorbell = transport.enable_queue(0, size, queue.addresses(), vector)?;
        transport.start();
        let indirect = features & F_INDIRECT_DESC != 0;
        Ok(Running { queue, doorbell, geometry, indirect, size_max })
    }

    /// What it is called in the log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Requests that the device has.
    pub fn in_flight(&self) -> usize {
        self.inner.lock().queue.in_flight()
    }

    /// Asks the device for its serial number; `None` if it has none. [`Self::serve`] must be running.
    pub async fn serial(&self) -> Option<String> {
        let memory = {
            let inner = self.inner.lock();
            inner.source.allocate(1)?
        };
        let client = Client::new(1);
        loop {
            let part = [Part { maddr: memory.maddr(0), len: ID_BYTES, device_writes: true }];
            let request = Request { kind: T_GET_ID, sector: 0, range: None };
            let submitted = self.inner.lock().submit_parts(&client, 0, request, &part);
            match submitted {
                Ok(()) => break,
                Err(SubmitError::Full) => {
                    client.ready().await;
                    client.take(&mut Vec::new());
                }
                Err(SubmitError::Failed) => return None,
            }
        }
        self.kick();
        client.ready().await;
        let mut done = Vec::new();
        client.take(&mut done);
        if !done.first()?.ok {
            return None;
        }
        let bytes: Vec<u8> =
            (0..ID_BYTES as usize).map(|at| memory.load8(at)).take_while(|byte| *byte != 0).collect();
        let text = String::from_utf8_lossy(&bytes).trim().into();
        Some(text).filter(|text: &String| !text.is_empty())
    }

    /// Handles the device's interrupts until it breaks; then every request has failed and none is accepted.
    pub async fn serve(&self, interrupt: impl Interrupt) -> BlkError {
        loop {
            match self.service() {
                Ok(()) => interrupt.wait().await,
                Err(error) => {
                    log::error!("{}: {error}; it is out of use", self.name);
                    return error;
                }
            }
        }
    }

    /// Hands out all that the device has finished and asks for the next interrupt.
    ///
    /// # Errors
    /// [`BlkError`]: the device was reset, and all its requests failed.
    pub fn service(&self) -> Result<(), BlkError> {
        let mut inner = self.inner.lock();
        if let Some(error) = inner.broken {
            return Err(error);
        }
        let mut outcome = Ok(());
        loop {
            match inner.take_finished() {
                Ok(true) => {}
                Ok(false) if inner.queue.arm() => {}
                Ok(false) => break,
                Err(error) => {
                    outcome = Err(BlkError::Queue(error));
                    break;
                }
            }
        }
        if outcome.is_ok() && inner.ended.is_empty() && self.transport.needs_reset() {
            outcome = Err(BlkError::NeedsReset);
        }
        if let Err(error) = outcome {
            self.give_up(&mut inner, error);
        }
        let mut ended = core::mem::take(&mut inner.ended);
        let waiting = if ended.is_empty() { Vec::new() } else { core::mem::take(&mut inner.waiting) };
        drop(inner);
        for (client, tag, ok) in ended.drain(..) {
            client.complete(tag, ok);
        }
        for client in waiting {
            client.room();
        }
        self.inner.lock().ended = ended;
        outcome
    }

    /// Resets the device and fails all it had. Memory is given back only if the reset succeeded: else the device
    /// may still write to it.
    fn give_up(&self, inner: &mut Inner<S>, error: BlkError) {
        inner.broken = Some(error);
        if self.transport.reset().is_err() {
            log::error!("{}: it does not reset; the memory it was given stays with it", self.name);
            return;
        }
        for index in 0..inner.in_flight.len() {
            if let Some(InFlight { client, tag, .. }) = inner.in_flight[index].take() {
                inner.ended.push((client, tag, false));
            }
        }
    }
}

impl<S: DmaSource> Inner<S> {
    /// Takes one finished request, if there is one.
    fn take_finished(&mut self) -> Result<bool, QueueError> {
        let Some((head, _)) = self.queue.pop()? else { return Ok(false) };
        let slot = usize::from(head);
        let status = self.slots[slot / SLOTS_PER_PAGE].load8(slot % SLOTS_PER_PAGE * SLOT + SLOT_STATUS);
        let request = self.in_flight[slot].take().ok_or(QueueError::UnknownChain(head.into()))?;
        self.free_tables.extend(request.table);
        self.ended.push((request.client, request.tag, status == STATUS_OK));
        Ok(true)
    }

    /// Makes sure of memory for the slot of the next request, and of a table if `entries` need one.
    fn reserve(&mut self, entries: usize) -> Result<(usize, Option<u16>), SubmitError> {
        if self.queue.free() == 0 {
            return Err(SubmitError::Full);
        }
        let slot = usize::from(self.queue.next_head());
        while self.slots.len() <= slot / SLOTS_PER_PAGE {
            self.slots.push(self.source.allocate(1).ok_or(SubmitError::Full)?);
        }
        if !self.indirect {
            return if entries <= self.queue.free() { Ok((slot, None)) } else { Err(SubmitError::Full) };
        }
        if entries <= SLOT_ENTRIES {
            return Ok((slot, None));
        }
        if let Some(table) = self.free_tables.pop() {
            return Ok((slot, Some(table)));
        }
        if self.tables.len() == MAX_TABLES {
            return Err(SubmitError::Full);
        }
        self.tables.push(self.source.allocate(1).ok_or(SubmitError::Full)?);
        Ok((slot, Some(self.tables.len() as u16 - 1)))
    }

    fn submit_parts(
        &mut self,
        client: &Arc<Client>,
        tag: u32,
        request: Request,
        parts: &[Part],
    ) -> Result<(), SubmitError> {
        if self.broken.is_some() {
            return Err(SubmitError::Failed);
        }
        let entries = parts.len() + 2 + usize::from(request.range.is_some());
        let (slot, table) = match self.reserve(entries) {
            Ok(reserved) => reserved,
            Err(error) => {
                if !self.waiting.iter().any(|other| Arc::ptr_eq(other, client)) {
                    self.waiting.push(client.clone());
                }
                return Err(error);
            }
        };
        let memory = &self.slots[slot / SLOTS_PER_PAGE];
        let base = slot % SLOTS_PER_PAGE * SLOT;
        memory.store32(base + SLOT_HEADER, request.kind);
        memory.store32(base + SLOT_HEADER + 4, 0);
        memory.store64(base + SLOT_HEADER + 8, request.sector);
        let range = request.range.map(|(sector, sectors)| {
            memory.store64(base + SLOT_DISCARD, sector);
            memory.store64(base + SLOT_DISCARD + 8, sectors.into());
            Part { maddr: memory.maddr(base + SLOT_DISCARD), len: 16, device_writes: false }
        });
        memory.store8(base + SLOT_STATUS, STATUS_UNWRITTEN);
        let header = Part { maddr: memory.maddr(base + SLOT_HEADER), len: 16, device_writes: false };
        let status = Part { maddr: memory.maddr(base + SLOT_STATUS), len: 1, device_writes: true };
        let all = [header].into_iter().chain(range).chain(parts.iter().copied()).chain([status]);
        let head = if self.indirect {
            let (memory, base) = match table {
                Some(table) => (&self.tables[usize::from(table)], 0),
                None => (memory, base + SLOT_TABLE),
            };
            for (index, part) in all.enumerate() {
                let next = (index + 1 < entries).then_some(index as u16 + 1);
                write_descriptor(memory, base + index * DESCRIPTOR, &part, next);
            }
            self.queue.push_indirect(memory.maddr(base), entries)
        } else {
            let chain: Vec<Part> = all.collect();
            self.queue.push(&chain)
        };
        let head = usize::from(head.expect("room was looked for"));
        debug_assert_eq!(head, slot);
        self.in_flight[head] = Some(InFlight { client: client.clone(), tag, table });
        Ok(())
    }
}

impl<S: DmaSource> BlockDevice for VirtioBlk<S> {
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
        let mut inner = self.inner.lock();
        let request = match op {
            BlockOp::Read => Request { kind: T_IN, sector, range: None },
            BlockOp::Write => Request { kind: T_OUT, sector, range: None },
            BlockOp::Flush => Request { kind: T_FLUSH, sector: 0, range: None },
            BlockOp::Discard { sectors } => {
                let sectors = u32::try_from(sectors).map_err(|_| SubmitError::Failed)?;
                Request { kind: T_DISCARD, sector: 0, range: Some((sector, sectors)) }
            }
        };
        let device_writes = op == BlockOp::Read;
        let mut parts = core::mem::take(&mut inner.parts);
        parts.clear();
        for segment in segments {
            let (mut maddr, mut left) = (segment.maddr.raw(), segment.len);
            while left > 0 {
                let len = left.min(inner.size_max);
                parts.push(Part { maddr, len, device_writes });
                maddr += u64::from(len);
                left -= len;
            }
        }
        let result = inner.submit_parts(client, tag, request, &parts);
        inner.parts = parts;
        result
    }

    fn kick(&self) {
        if self.inner.lock().queue.publish() {
            self.transport.notify(&self.doorbell);
        }
    }
}

/// Reads what kind of disk it is. Also gives the size of the largest part.
fn read_geometry(transport: &Transport, features: u64, queue: u16) -> Result<(Geometry, u32), BlkError> {
    let has = |feature: u64| features & feature != 0;
    transport.read_device(|device| {
        let sector_size = if has(F_BLK_SIZE) { device.read32(config::BLK_SIZE) } else { SECTOR };
        if !sector_size.is_power_of_two() || !(SECTOR..=PAGE as u32).contains(&sector_size) {
            return Err(BlkError::BadGeometry("block size"));
        }
        let exponent = if has(F_TOPOLOGY) { device.read8(config::PHYSICAL_BLOCK_EXP) } else { 0 };
        let physical_sector_size = sector_size
            .checked_shl(exponent.into())
            .filter(|size| *size >= sector_size)
            .unwrap_or(sector_size);
        // Whole sectors, so that a cut segment stays one.
        let size_max = if has(F_SIZE_MAX) { device.read32(config::SIZE_MAX) } else { u32::MAX };
        let size_max = (size_max.min(PAGE as u32) / SECTOR) * SECTOR;
        if size_max == 0 {
            return Err(BlkError::BadGeometry("segment size limit"));
        }
        let pieces = (PAGE as u32).div_ceil(size_max) as usize;
        // Header and status take a descriptor each, and a chain is no longer than the queue.
        let fit = usize::from(queue).min(TABLE_ENTRIES).saturating_sub(2);
        let seg_max = if has(F_SEG_MAX) { device.read32(config::SEG_MAX) as usize } else { 1 };
        let seg_max = seg_max.min(fit) / pieces;
        if seg_max == 0 {
            return Err(BlkError::BadGeometry("number of segments"));
        }
        let max_discard = device.read32(config::MAX_DISCARD_SECTORS);
        let discard = (has(F_DISCARD) && max_discard > 0).then(|| DiscardLimits {
            granularity: device.read32(config::DISCARD_SECTOR_ALIGNMENT).max(sector_size / SECTOR),
            alignment: 0,
            max_sectors: max_discard,
        });
        let geometry = Geometry {
            sectors: device.read64(config::CAPACITY),
            sector_size,
            physical_sector_size,
            read_only: has(F_RO),
            flush: has(F_FLUSH),
            discard,
            seg_max,
        };
        Ok((geometry, size_max))
    })
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Arena, FakeDevice, Limits};
    use super::*;
    use backends::Completion;
    use proptest::prelude::*;
    use ring_abi::types::Maddr;

    fn disk(limits: Limits) -> (Arena, FakeDevice, VirtioBlk<Arena>) {
        let arena = Arena::default();
        let device = FakeDevice::new(&arena, limits);
        let blk = VirtioBlk::new("vda".into(), device.transport(), arena.clone(), 0).unwrap();
        (arena, device, blk)
    }

    fn segment(arena: &Arena) -> Segment {
        Segment { maddr: Maddr::new(arena.pages(1).maddr(0)), len: PAGE as u32 }
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
        arena.fill(from.maddr.raw(), PAGE, 0x5a);
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
        assert_eq!(arena.bytes(to.maddr.raw(), PAGE), alloc::vec![0x5a; PAGE]);
        assert_eq!(device.disk(16 * 512, PAGE), alloc::vec![0; PAGE]);
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
            assert_eq!(
                blk.submit(&other, 0, BlockOp::Discard { sectors: 1 }, 0, &[]),
                Err(SubmitError::Full)
            );
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
        let expected = device.disk(253 * PAGE, PAGE);
        assert_eq!(arena.bytes(segments[253].maddr.raw(), PAGE), expected);
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
                    arena.fill(segment.maddr.raw(), PAGE, fill);
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
}
