//! The queues that receive buffers go through.

use alloc::sync::Arc;
use alloc::vec::Vec;

use backends::net::{MAX_PACKET, MIN_PACKET};
use ring_abi::types::PAGE_SIZE;

use super::NetError;
use super::header::{HEADER_BYTES, Header};
use crate::hw::{Buffers, Dma};
use crate::net::wire::{MAX_RECEIVED_PARTS, ReceiveBuffers, Received, ReceivedPart, ReceivedParts};
use crate::virtio::queue::{Part, Queue};
use crate::virtio::transport::Doorbell;

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
        let maddr = all.frame(buffer).maddr().raw();
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
            frame: all.frame(buffer),
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
