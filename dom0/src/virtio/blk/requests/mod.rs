//! Requests on their way to the device and back: slots, descriptor tables, the queue.
//!
//! A frontend cuts a long read or write into many requests, and the device answers each request with an interrupt. So a
//! read or write stays *open* until the next kick: a request that begins where the open request ends on the disk joins
//! the open request, and the device sees a single request. When a joined request fails, each of its members goes to the
//! device again, alone: so only a member that fails by itself fails.
//!
//! When a disk is opened, the driver takes the pages for all the requests that the disk's queue can hold. What grows
//! later with the clients ([`client_bytes`]) may find no memory: then requests do not join, or one request fails.

mod joining;
mod sharing;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use backends::{Client, SubmitError};
use ring_abi::types::PAGE_SIZE;

use super::{BlkError, Running};
use crate::hw::{Dma, DmaSource};
use crate::virtio::queue::{DESCRIPTOR, Part, Queue, QueueError, descriptor};
use joining::Open;
use sharing::Claim;

pub(super) const T_IN: u32 = 0;
pub(super) const T_OUT: u32 = 1;
pub(super) const T_FLUSH: u32 = 4;
pub(super) const T_GET_ID: u32 = 8;
pub(super) const T_DISCARD: u32 = 11;

/// Bytes of a sector, as requests count.
const SECTOR: u64 = 512;

/// Bytes of a request's slot, and the offset of each thing in a slot.
const SLOT: usize = 256;
const SLOT_HEADER: usize = 0;
const SLOT_DISCARD: usize = 16;
const SLOT_STATUS: usize = 32;
const SLOT_TABLE: usize = 48;
/// Descriptors in a slot's own table: header, 11 segments, status.
pub(super) const SLOT_ENTRIES: usize = (SLOT - SLOT_TABLE) / DESCRIPTOR;
const SLOTS_PER_PAGE: usize = PAGE_SIZE / SLOT;

/// Descriptors in a table that fills a page.
pub(super) const TABLE_ENTRIES: usize = PAGE_SIZE / DESCRIPTOR;
/// Largest part, if the device has no wish of its own.
pub(super) const PART_MAX: u32 = 1 << 20;
/// Most tables that fill a page in one device. A request that needs a table waits when none is free.
pub(super) const MAX_TABLES: usize = 64;

/// Most bytes of heap that a client with `requests` requests under way, which have `segments` segments in all, makes a
/// disk keep: its members of joined requests, its ends that the driver has to tell, its claim, and its place among the
/// clients to be called. Where joined requests failed, the members with their parts come on top. A vector that grows
/// has up to twice the room that it needs.
pub const fn client_bytes(requests: usize, segments: usize) -> usize {
    let request = size_of::<Member>() + size_of::<End>() + size_of::<Again>() + 3 * size_of::<usize>();
    2 * (requests * request + size_of::<Claim>() + size_of::<Arc<Client>>()) + segments * size_of::<Part>()
}

/// The end of a request: its client, its tag, and whether it went well.
pub(super) type End = (Arc<Client>, u32, bool);

/// The status byte before the device writes the byte: no status has this value.
const STATUS_UNWRITTEN: u8 = 0xff;
const STATUS_OK: u8 = 0;

/// What a request's header says.
#[derive(Clone, Copy)]
pub(super) struct Request {
    /// `VIRTIO_BLK_T_*`.
    pub(super) kind: u32,
    pub(super) sector: u64,
    /// First sector and number of a discard, which is the request's data.
    pub(super) range: Option<(u64, u32)>,
}

/// What the driver knows of one operation that a client submitted, to tell the client of the operation's end.
pub(super) struct Member {
    client: Arc<Client>,
    tag: u32,
    /// The sector at which the operation begins.
    sector: u64,
    /// Number of parts of the operation.
    parts: usize,
}

/// A request that the device has.
pub(super) struct InFlight {
    first: Member,
    /// The operations that joined the first.
    joined: Vec<Member>,
    kind: u32,
    /// Index of the request's page-sized descriptor table, if the request has such a table.
    table: Option<u16>,
}

impl InFlight {
    /// All operations of this request.
    pub(super) fn members(self) -> impl Iterator<Item = Member> {
        [self.first].into_iter().chain(self.joined)
    }
}

/// A member of a joined request that failed. The member waits to go to the device alone.
struct Again {
    member: Member,
    kind: u32,
    parts: Vec<Part>,
}

/// The pages for all requests that a queue can hold.
pub(super) struct RequestPages<M> {
    slots: Vec<M>,
    tables: Vec<M>,
}

impl<M> RequestPages<M> {
    /// Takes the pages for a queue of `size` descriptors.
    ///
    /// # Errors
    /// [`BlkError::OutOfMemory`]: this kernel has too few free pages.
    pub(super) fn new<S: DmaSource<Memory = M>>(
        source: &S,
        size: u16,
        indirect: bool,
    ) -> Result<Self, BlkError> {
        let size = usize::from(size);
        let pages = |count: usize| {
            let pages: Option<Vec<M>> = (0..count).map(|_| source.allocate(1)).collect();
            pages.ok_or(BlkError::OutOfMemory)
        };
        let slots = pages(size.div_ceil(SLOTS_PER_PAGE))?;
        let tables = if indirect { pages(size.min(MAX_TABLES))? } else { Vec::new() };
        Ok(Self { slots, tables })
    }
}

pub(super) struct Inner<S: DmaSource> {
    pub(super) source: S,
    pub(super) queue: Queue<S::Memory>,
    /// Pages with the slots of all requests that the queue can hold.
    slots: Vec<S::Memory>,
    tables: Vec<S::Memory>,
    free_tables: Vec<u16>,
    /// By head of chain.
    pub(super) in_flight: Vec<Option<InFlight>>,
    /// Clients that were turned away; the first turned away is the first served.
    claims: Vec<Claim>,
    /// Clients of which the device has requests.
    holders: usize,
    /// Number of submitted operations whose clients were not told of the end: [`Inner::ended`] has room for all of
    /// these.
    untold: usize,
    /// Clients that are to be called; the vector has room for every client with a claim.
    pub(super) called: Vec<Arc<Client>>,
    /// The request that further operations may join.
    open: Option<Open>,
    /// Parts of the open request.
    parts: Vec<Part>,
    /// Parts of the transfer that is being submitted; kept between calls for the capacity.
    next: Vec<Part>,
    again: VecDeque<Again>,
    /// A descriptor table that is being made; kept between calls for the capacity.
    words: Vec<u64>,
    /// A chain that is being made, on a device without indirect descriptors; kept between calls for the capacity.
    chain: Vec<Part>,
    /// Ended operations whose clients must be called; kept between calls for the capacity.
    pub(super) ended: Vec<End>,
    pub(super) indirect: bool,
    /// Largest part, at most [`PART_MAX`]; a longer segment is cut into such parts.
    part_max: u32,
    /// Most parts of a request.
    pub(super) seg_max: usize,
    /// Why the disk works no more.
    pub(super) broken: Option<BlkError>,
}

impl<S: DmaSource> Inner<S> {
    pub(super) fn new(source: S, running: Running<S>) -> Self {
        let size = usize::from(running.queue.size());
        let RequestPages { slots, tables } = running.pages;
        let free_tables = (0..tables.len() as u16).rev().collect();
        let chain = if running.indirect { Vec::new() } else { Vec::with_capacity(size) };
        Self {
            source,
            queue: running.queue,
            slots,
            tables,
            free_tables,
            in_flight: (0..size).map(|_| None).collect(),
            claims: Vec::new(),
            holders: 0,
            untold: 0,
            called: Vec::new(),
            open: None,
            parts: Vec::with_capacity(TABLE_ENTRIES),
            next: Vec::with_capacity(TABLE_ENTRIES),
            again: VecDeque::new(),
            words: Vec::with_capacity(TABLE_ENTRIES * DESCRIPTOR / 8),
            chain,
            ended: Vec::new(),
            indirect: running.indirect,
            part_max: running.part_max,
            seg_max: running.geometry.seg_max,
            broken: None,
        }
    }

    /// Makes room to tell the end of one more operation, whenever the end comes.
    fn expect_end(&mut self) -> Result<(), SubmitError> {
        let wanted = self.untold + 1 - self.ended.len();
        self.ended.try_reserve(wanted).map_err(|_| SubmitError::Failed)
    }

    /// Notes that the clients of `ended` operations were told of the ends.
    pub(super) fn told(&mut self, ended: usize) {
        self.untold -= ended;
    }

    /// Number of requests that the device has or will have.
    pub(super) fn in_flight(&self) -> usize {
        self.queue.in_flight() + usize::from(self.open.is_some()) + self.again.len()
    }

    /// Takes one finished request. `false`: the device has finished no more.
    pub(super) fn take_finished(&mut self) -> Result<bool, QueueError> {
        let Some((head, _)) = self.queue.pop()? else { return Ok(false) };
        let slot = usize::from(head);
        let status = self.slots[slot / SLOTS_PER_PAGE].load8(slot % SLOTS_PER_PAGE * SLOT + SLOT_STATUS);
        let request = self.in_flight[slot].take().ok_or(QueueError::UnknownChain(head.into()))?;
        self.free_tables.extend(request.table);
        self.give_back(&request);
        let ok = status == STATUS_OK;
        if ok || request.joined.is_empty() {
            self.ended.extend(request.members().map(|member| (member.client, member.tag, ok)));
        } else {
            self.take_apart(slot, request);
        }
        Ok(true)
    }

    /// Has each member of a failed request go to the device again, alone. The parts of the members are still in the
    /// request's descriptor table, which only this driver writes. A member fails if there is no memory for the member's
    /// parts.
    fn take_apart(&mut self, slot: usize, request: InFlight) {
        let (kind, mut entry) = (request.kind, 1);
        let (table, base) = match request.table {
            Some(table) => (&self.tables[usize::from(table)], 0),
            None => (&self.slots[slot / SLOTS_PER_PAGE], slot % SLOTS_PER_PAGE * SLOT + SLOT_TABLE),
        };
        for member in request.members() {
            let entries = entry..entry + member.parts;
            entry = entries.end;
            let mut parts = Vec::new();
            if parts.try_reserve_exact(member.parts).is_err() || self.again.try_reserve(1).is_err() {
                self.ended.push((member.client, member.tag, false));
                continue;
            }
            parts.extend(entries.map(|entry| {
                let at = base + entry * DESCRIPTOR;
                let maddr = u64::from(table.load32(at)) | u64::from(table.load32(at + 4)) << 32;
                Part { maddr, len: table.load32(at + 8), device_writes: kind == T_IN }
            }));
            self.again.push_back(Again { member, kind, parts });
        }
    }

    /// Submits the members of failed joined requests again, each as a request of its own, as far as the queue has
    /// room. The result is whether the queue took a member.
    pub(super) fn submit_again(&mut self) -> bool {
        let mut any = false;
        while let Some(Again { member, kind, parts }) = self.again.pop_front() {
            self.close_open();
            let Ok((slot, table)) = self.reserve(parts.len() + 2) else {
                self.again.push_front(Again { member, kind, parts });
                break;
            };
            let request = Request { kind, sector: member.sector, range: None };
            let one = InFlight { first: member, joined: Vec::new(), kind, table };
            self.push(slot, request, &parts, one);
            any = true;
        }
        any
    }

    /// Gives back the memory that a failure took, once no member waits to go to the device again.
    pub(super) fn rest(&mut self) {
        if self.again.is_empty() && self.again.capacity() > 0 {
            self.again = VecDeque::new();
        }
    }

    /// Ends, as failed, the operations that were to go to the device again.
    pub(super) fn fail_again(&mut self) {
        let again = self.again.drain(..).map(|again| again.member);
        self.ended.extend(again.map(|member| (member.client, member.tag, false)));
    }

    /// Ends, as failed, the requests that the device had when the device was reset.
    pub(super) fn fail_sent(&mut self) {
        for head in 0..self.in_flight.len() {
            let Some(request) = self.in_flight[head].take() else { continue };
            self.give_back(&request);
            self.ended.extend(request.members().map(|member| (member.client, member.tag, false)));
        }
    }

    /// Finds the slot of the next request, and a table if `entries` descriptors need a table.
    fn reserve(&mut self, entries: usize) -> Result<(usize, Option<u16>), SubmitError> {
        if self.queue.free() == 0 {
            return Err(SubmitError::Full);
        }
        let slot = usize::from(self.queue.next_head());
        if !self.indirect {
            return if entries <= self.queue.free() { Ok((slot, None)) } else { Err(SubmitError::Full) };
        }
        if entries <= SLOT_ENTRIES {
            return Ok((slot, None));
        }
        let table = self.free_tables.pop().ok_or(SubmitError::Full)?;
        Ok((slot, Some(table)))
    }

    /// Submits a request that no other request joins.
    pub(super) fn submit_alone(
        &mut self,
        client: &Arc<Client>,
        tag: u32,
        request: Request,
        parts: &[Part],
    ) -> Result<(), SubmitError> {
        let entries = parts.len() + 2 + usize::from(request.range.is_some());
        self.expect_end()?;
        let (slot, table) = self.reserve_for(client, entries)?;
        let first = Member { client: client.clone(), tag, sector: request.sector, parts: parts.len() };
        let one = InFlight { first, joined: Vec::new(), kind: request.kind, table };
        self.push(slot, request, parts, one);
        self.untold += 1;
        Ok(())
    }

    /// Puts a request into the queue. `slot` belongs to the queue's next free descriptor.
    fn push(&mut self, slot: usize, request: Request, parts: &[Part], in_flight: InFlight) {
        let entries = parts.len() + 2 + usize::from(request.range.is_some());
        let memory = &self.slots[slot / SLOTS_PER_PAGE];
        let base = slot % SLOTS_PER_PAGE * SLOT;
        memory.store32(base + SLOT_HEADER, request.kind);
        memory.store32(base + SLOT_HEADER + 4, 0);
        memory.store64(base + SLOT_HEADER + 8, request.sector);
        let range = request.range.map(|(sector, sectors)| {
            memory.write(base + SLOT_DISCARD, &[sector, sectors.into()]);
            Part { maddr: memory.maddr(base + SLOT_DISCARD), len: 16, device_writes: false }
        });
        memory.store8(base + SLOT_STATUS, STATUS_UNWRITTEN);
        let header = Part { maddr: memory.maddr(base + SLOT_HEADER), len: 16, device_writes: false };
        let status = Part { maddr: memory.maddr(base + SLOT_STATUS), len: 1, device_writes: true };
        let head = if self.indirect {
            let mut words = core::mem::take(&mut self.words);
            words.clear();
            words.extend(descriptor(&header, Some(1)));
            let mut index = 1;
            for part in range.iter().chain(parts) {
                index += 1;
                words.extend(descriptor(part, Some(index)));
            }
            words.extend(descriptor(&status, None));
            let (memory, base) = match in_flight.table {
                Some(table) => (&self.tables[usize::from(table)], 0),
                None => (memory, base + SLOT_TABLE),
            };
            memory.write(base, &words);
            self.words = words;
            self.queue.push_indirect(memory.maddr(base), entries)
        } else {
            self.chain.clear();
            self.chain.extend([header].into_iter().chain(range).chain(parts.iter().copied()).chain([status]));
            self.queue.push(&self.chain)
        };
        let head = usize::from(head.expect("room was looked for"));
        debug_assert_eq!(head, slot);
        self.count(&in_flight);
        self.in_flight[head] = Some(in_flight);
    }
}
