//! What stands behind ports that are no vif: dom0 itself, and network cards.
//!
//! Here a packet is whole: its bytes are copied once into pages of dom0's. That is the way of what dom0 itself reads, and of
//! what a card gets that leaves checksums and segments to dom0.

use alloc::sync::Arc;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use backends::net::{Checksum, Copier, CopyOp, Offload, Packet, Part, Place};
use pvrt::grant::CopyPages;
use pvrt::mem::OutOfMemory;
use ring_abi::types::PAGE_SIZE;

use super::copier::Hypervisor;
use crate::net::segment::{Segments, complete};
use crate::net::switch::PortId;
use crate::net::wire::{Outgoing, Span, TransmitError, Wire};

/// Pages for one whole packet: the longest packet, 64 KiB.
const WHOLE_PAGES: usize = 16;
/// Pages of a card's transmit buffers.
const TRANSMIT_PAGES: usize = 128;
/// Bytes of an Ethernet header with a tag.
const LINK_BYTES: usize = 18;
/// Copies that one packet may take: each part is cut where a page of the copy ends.
const MAX_COPIES: usize = 48;

/// A packet that is copied whole.
pub(super) struct Whole {
    pages: CopyPages,
    ops: Vec<CopyOp>,
    bytes: Vec<u8>,
}

impl Whole {
    pub(super) fn new() -> Result<Self, OutOfMemory> {
        let pages = CopyPages::new(WHOLE_PAGES)?;
        Ok(Self { pages, ops: Vec::with_capacity(MAX_COPIES), bytes: Vec::new() })
    }

    /// Copies all of a packet, and gives the bytes. `None`: a part cannot be had, by the fault of whoever granted it.
    pub(super) fn copy(&mut self, packet: &Packet<'_>) -> Option<&mut Vec<u8>> {
        let len = packet.len as usize;
        if len > WHOLE_PAGES * PAGE_SIZE {
            return None;
        }
        self.ops.clear();
        let mut at = 0;
        for part in packet.parts {
            let mut done = 0;
            while done < usize::from(part.len) {
                let (page, offset) = (at / PAGE_SIZE, at % PAGE_SIZE);
                let piece = (usize::from(part.len) - done).min(PAGE_SIZE - offset);
                let to = Place::Own { frame: *self.pages.frames().get(page)?, offset: offset as u16 };
                self.ops.push(CopyOp::new(part.place.after(done as u16), to, piece as u16));
                done += piece;
                at += piece;
            }
        }
        Hypervisor(&self.pages).copy(&mut self.ops);
        if at != len || !self.ops.iter().all(CopyOp::ok) {
            return None;
        }
        self.bytes.clear();
        self.bytes.resize(len, 0);
        for (page, bytes) in self.bytes.chunks_mut(PAGE_SIZE).enumerate() {
            self.pages.pages().page(page).read(0, bytes);
        }
        Some(&mut self.bytes)
    }

    /// Puts a frame of dom0's own into the pages, from where the hypervisor copies it to a receiver. `None`: the frame is longer
    /// than a page.
    pub(super) fn put(&self, frame: &[u8]) -> Option<Part> {
        if frame.len() > PAGE_SIZE {
            return None;
        }
        self.pages.pages().page(0).write(0, frame);
        let place = Place::Own { frame: self.pages.frames()[0], offset: 0 };
        Some(Part { place, len: frame.len() as u16 })
    }
}

/// Why a packet did not leave by a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsent {
    /// The card has as many packets as it can.
    Full,
    /// The packet is longer than the wire takes, or is not what its sender says.
    Unfit,
    /// The card works no more.
    Broken,
}

/// A network card, as what stands behind a port.
pub(super) struct Card {
    pub(super) port: PortId,
    pub(super) wire: Arc<dyn Wire>,
    buffers: CopyPages,
    /// Pages of one buffer.
    each: usize,
    free: Vec<u32>,
    segment: Vec<u8>,
}

impl Card {
    /// Takes the card's transmit buffers.
    pub(super) fn new(port: PortId, wire: Arc<dyn Wire>) -> Result<Self, OutOfMemory> {
        let features = wire.features();
        let each = (usize::from(features.mtu) + LINK_BYTES).div_ceil(PAGE_SIZE);
        let count = (TRANSMIT_PAGES / each).clamp(1, features.slots.max(1));
        let buffers = CopyPages::new(count * each)?;
        let free = (0..count as u32).rev().collect();
        Ok(Self { port, wire, buffers, each, free, segment: Vec::new() })
    }

    /// Hands a whole frame to the card, with what its sender left to others done. The card sees the frame after
    /// [`Self::kick`].
    pub(super) fn send(&mut self, frame: &mut Vec<u8>, offload: &Offload) -> Result<(), Unsent> {
        self.take_back();
        if let Some(gso) = offload.gso {
            let Some(mut segments) = Segments::new(frame, gso.size) else { return Err(Unsent::Unfit) };
            if segments.count() > self.free.len() {
                return Err(Unsent::Full);
            }
            let mut segment = core::mem::take(&mut self.segment);
            let mut sent = Ok(());
            while sent.is_ok() && segments.next_into(&mut segment) {
                sent = self.transmit(&segment);
            }
            self.segment = segment;
            return sent;
        }
        if offload.checksum == Checksum::Partial {
            complete(frame);
        }
        self.transmit(frame)
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), Unsent> {
        if frame.len() > usize::from(self.wire.features().mtu) + LINK_BYTES {
            return Err(Unsent::Unfit);
        }
        let Some(token) = self.free.pop() else { return Err(Unsent::Full) };
        let first = token as usize * self.each;
        let mut spans = ArrayVec::<Span, 17>::new();
        for (index, bytes) in frame.chunks(PAGE_SIZE).enumerate() {
            self.buffers.pages().page(first + index).write(0, bytes);
            // A frame has as many pages as a buffer at most.
            let maddr = self.buffers.frames()[first + index].maddr();
            spans.push(Span { maddr, len: bytes.len() as u32 });
        }
        let outgoing = Outgoing {
            offload: &Offload::default(),
            checksum_at: None,
            header_len: 0,
            spans: &spans,
            flow: 0,
        };
        self.wire.transmit(token, &outgoing).map_err(|error| {
            self.free.push(token);
            match error {
                TransmitError::Full => Unsent::Full,
                TransmitError::Unfit(what) => {
                    log::error!("{}: {what}", self.wire.name());
                    Unsent::Unfit
                }
                TransmitError::Broken => Unsent::Broken,
            }
        })
    }

    /// Takes back the buffers of what the card has sent.
    pub(super) fn take_back(&mut self) {
        let mut sent = Vec::new();
        self.wire.transmitted(&mut sent);
        self.free.extend(sent.iter().map(|packet| packet.token));
    }

    /// Tells the card of all that was handed over.
    pub(super) fn kick(&self) {
        self.wire.kick();
    }
}
