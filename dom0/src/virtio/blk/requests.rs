//! Requests on their way to the device and back: slots, descriptor tables, the queue.

use alloc::sync::Arc;
use alloc::vec::Vec;

use backends::{Client, SubmitError};
use ring_abi::types::PAGE_SIZE;

use super::BlkError;
use crate::virtio::queue::{DESCRIPTOR, Part, Queue, QueueError, write_descriptor};
use crate::virtio::{Dma, DmaSource};

pub(super) const T_IN: u32 = 0;
pub(super) const T_OUT: u32 = 1;
pub(super) const T_FLUSH: u32 = 4;
pub(super) const T_GET_ID: u32 = 8;
pub(super) const T_DISCARD: u32 = 11;

/// Bytes of a request's slot, and what is where in it.
const SLOT: usize = 256;
const SLOT_HEADER: usize = 0;
const SLOT_DISCARD: usize = 16;
const SLOT_STATUS: usize = 32;
const SLOT_TABLE: usize = 48;
/// Descriptors in a slot's own table: header, 11 segments, status.
const SLOT_ENTRIES: usize = (SLOT - SLOT_TABLE) / DESCRIPTOR;
const SLOTS_PER_PAGE: usize = PAGE_SIZE / SLOT;

/// Descriptors in a table that fills a page.
pub(super) const TABLE_ENTRIES: usize = PAGE_SIZE / DESCRIPTOR;
/// Most such tables of a device; requests beyond wait.
pub(super) const MAX_TABLES: usize = 64;

/// The status byte before the device writes it; no defined status.
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

/// A request that the device has.
pub(super) struct InFlight {
    pub(super) client: Arc<Client>,
    pub(super) tag: u32,
    /// Index of its page-sized descriptor table.
    pub(super) table: Option<u16>,
}

pub(super) struct Inner<S: DmaSource> {
    pub(super) source: S,
    pub(super) queue: Queue<S::Memory>,
    pub(super) slots: Vec<S::Memory>,
    pub(super) tables: Vec<S::Memory>,
    pub(super) free_tables: Vec<u16>,
    /// By head of chain.
    pub(super) in_flight: Vec<Option<InFlight>>,
    /// Clients that were turned away.
    pub(super) waiting: Vec<Arc<Client>>,
    /// Parts of the request being built; kept for its capacity.
    pub(super) parts: Vec<Part>,
    /// Ended requests, on their way to their clients; kept for its capacity.
    pub(super) ended: Vec<(Arc<Client>, u32, bool)>,
    pub(super) indirect: bool,
    /// Largest part; a segment is cut to it.
    pub(super) size_max: u32,
    /// Why it works no more.
    pub(super) broken: Option<BlkError>,
}

impl<S: DmaSource> Inner<S> {
    /// Takes one finished request, if there is one.
    pub(super) fn take_finished(&mut self) -> Result<bool, QueueError> {
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

    pub(super) fn submit_parts(
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
