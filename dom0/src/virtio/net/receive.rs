//! Receive buffers, and the queues that the buffers go through.
//!
//! A buffer is a page of dom0's. Each buffer is with the card, with a packet ([`Received`]), or free; a packet that is
//! dropped makes its buffers free, and the next refill gives the free ones to the card.

use alloc::sync::Arc;
use alloc::vec::Vec;

use backends::net::{MAX_PACKET, MIN_PACKET};
use ring_abi::types::{Maddr, Mfn, PAGE_SIZE};
use spin::Mutex;

use super::NetError;
use super::header::{HEADER_BYTES, Header};
use crate::net::wire::{MAX_RECEIVED_PARTS, ReceiveBuffers, Received, ReceivedPart, ReceivedParts};
use crate::virtio::queue::{Part, Queue};
use crate::virtio::transport::Doorbell;
use crate::virtio::{Dma, DmaSource};

/// All receive buffers of a card, whatever the number of its queues.
pub(super) struct Buffers<M> {
    pages: Vec<M>,
    frames: Vec<Mfn>,
    /// Those that came back from packets. The list has room for all.
    free: Mutex<Vec<u16>>,
}

impl<M: Dma> Buffers<M> {
    /// Takes `count` pages; all are free.
    pub(super) fn new<S: DmaSource<Memory = M>>(source: &S, count: usize) -> Option<Self> {
        let pages = (0..count).map(|_| source.allocate(1)).collect::<Option<Vec<M>>>()?;
        let frames = pages.iter().map(|page| Maddr::new(page.maddr(0)).mfn()).collect();
        Some(Self { pages, frames, free: Mutex::new((0..count as u16).collect()) })
    }

    /// Number of buffers.
    pub(super) fn count(&self) -> usize {
        self.pages.len()
    }

    /// Takes the list of free buffers and leaves `empty` in its place.
    pub(super) fn take_free(&self, empty: Vec<u16>) -> Vec<u16> {
        core::mem::replace(&mut *self.free.lock(), empty)
    }

    fn free(&self, buffers: impl Iterator<Item = u16>) {
        self.free.lock().extend(buffers);
    }
}

impl<M: Dma> ReceiveBuffers for Buffers<M> {
    fn read(&self, buffer: u16, offset: usize, out: &mut [u8]) {
        self.pages[usize::from(buffer)].read_bytes(offset, out);
    }

    fn write(&self, buffer: u16, offset: usize, bytes: &[u8]) {
        self.pages[usize::from(buffer)].write_bytes(offset, bytes);
    }

    fn give_back(&self, parts: &[ReceivedPart]) {
        self.free(parts.iter().map(|part| part.buffer));
    }
}

/// What came of a look at the queue.
#[allow(clippy::large_enum_variant)] // looked at where it is returned, and kept nowhere
pub(super) enum Taken {
    Nothing,
    /// A packet of which the card said what cannot be.
    Malformed,
    Packet(Received),
}

/// One receive queue.
pub(super) struct ReceiveQueue<M> {
    pub(super) queue: Queue<M>,
    pub(super) doorbell: Doorbell,
    /// By head of chain: the buffer.
    buffers: Vec<u16>,
}

impl<M: Dma + 'static> ReceiveQueue<M> {
    pub(super) fn new(queue: Queue<M>, doorbell: Doorbell) -> Self {
        let buffers = alloc::vec![0; queue.size().into()];
        Self { queue, doorbell, buffers }
    }

    /// Gives the card a free buffer. `false`: the queue has no room for the buffer.
    pub(super) fn add(&mut self, buffer: u16, all: &Buffers<M>) -> bool {
        let maddr = all.frames[usize::from(buffer)].maddr().raw();
        let part = Part { maddr, len: PAGE_SIZE as u32, device_writes: true };
        let Some(head) = self.queue.push(&[part]) else { return false };
        self.buffers[usize::from(head)] = buffer;
        true
    }

    /// Takes the next buffer that the card has filled, and the number of bytes that the card claims to have written.
    fn pop(&mut self) -> Result<Option<(u16, usize)>, NetError> {
        let Some((head, written)) = self.queue.pop().map_err(NetError::Queue)? else { return Ok(None) };
        let written = written as usize;
        if written > PAGE_SIZE {
            return Err(NetError::BadBuffer("it wrote more than a buffer holds"));
        }
        Ok(Some((self.buffers[usize::from(head)], written)))
    }

    /// Takes the next packet. `merged`: the card may join buffers.
    ///
    /// # Errors
    /// [`NetError`] says which rule the card broke: the driver must reset the card.
    pub(super) fn take(
        &mut self,
        all: &Arc<Buffers<M>>,
        merged: bool,
        features: u64,
    ) -> Result<Taken, NetError> {
        let Some((first, written)) = self.pop()? else { return Ok(Taken::Nothing) };
        if written < HEADER_BYTES {
            all.free([first].into_iter());
            return Ok(Taken::Malformed);
        }
        let mut bytes = [0; HEADER_BYTES];
        all.read(first, 0, &mut bytes);
        let header = Header::decode(bytes);
        let count = if merged { usize::from(header.buffers) } else { 1 };
        if !(1..=MAX_RECEIVED_PARTS).contains(&count) {
            return Err(NetError::BadBuffer("it joined more buffers than a packet needs, or none"));
        }
        let part = |buffer: u16, offset: usize, len: usize| ReceivedPart {
            frame: all.frames[usize::from(buffer)],
            buffer,
            offset: offset as u16,
            len: len as u16,
        };
        let mut parts = ReceivedParts::new();
        // A part without bytes, if the card wrote the header alone, ends below: no packet is so short.
        parts.push(part(first, HEADER_BYTES, written - HEADER_BYTES));
        let (mut len, mut last) = (written - HEADER_BYTES, written);
        while parts.len() < count {
            if last != PAGE_SIZE {
                return Err(NetError::BadBuffer(UNFILLED));
            }
            let (buffer, written) = self.pop()?.ok_or(NetError::BadBuffer("it shows a part of a packet"))?;
            if written == 0 {
                return Err(NetError::BadBuffer(UNFILLED));
            }
            parts.push(part(buffer, 0, written));
            (len, last) = (len + written, written);
        }
        let fits = (MIN_PACKET..=MAX_PACKET).contains(&len);
        Ok(match header.offload(len as u32, features).filter(|_| fits) {
            Some((offload, at)) => Taken::Packet(Received::new(offload, at, parts, all.clone())),
            None => {
                all.give_back(&parts);
                Taken::Malformed
            }
        })
    }
}

/// Which rule the card broke when a buffer of a joined packet has room left.
const UNFILLED: &str = "it joined a buffer that it did not fill";
