//! What stands behind ports that are no vif: dom0 itself, and network cards.
//!
//! Here a packet is whole: its bytes are copied once into pages of dom0's. That is the way of what dom0 itself reads, and of
//! what a card gets that leaves checksums and segments to dom0.

use alloc::sync::Arc;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use backends::net::{Checksum, Copier, CopyOp, Offload, Packet, Part, Place};
use pvrt::Account;
use pvrt::executor::sync::Notify;
use pvrt::grant::CopyPages;
use pvrt::mem::OutOfMemory;
use ring_abi::types::{Mfn, PAGE_SIZE};

use super::copier::Hypervisor;
use crate::net::Head;
use crate::net::router::{Arrival, Gateway, Routed};
use crate::net::segment::{Cut, complete};
use crate::net::switch::{BridgeId, PortId};
use crate::net::wire::{Outgoing, Received, Span, TransmitError, Wire};

/// Pages for one whole packet: the longest packet, 64 KiB.
const WHOLE_PAGES: usize = 16;
/// Pages of a card's transmit buffers.
const TRANSMIT_PAGES: usize = 192;
/// Bytes of an Ethernet header with a tag.
const LINK_BYTES: usize = 18;
/// Copies that one packet may take: each part is cut where a page of the copy ends.
const MAX_COPIES: usize = 48;

/// Longest frame that dom0's own stack takes; its networks' frames are shorter by far.
pub(super) const STACK_BYTES: usize = PAGE_SIZE;

/// dom0's own place on bridges, and the network cards.
pub(super) struct Outside {
    pub(super) gateway: Gateway,
    pub(super) whole: Whole,
    cards: Vec<Card>,
    /// dom0's port on each bridge that dom0 is a station of.
    locals: Vec<(BridgeId, PortId)>,
    /// Received packets whose bytes are on their way.
    pub(super) held: Vec<Received>,
    /// The gateway may have something to send.
    pub(super) is_stirred: bool,
    /// Wakes the gateway's task, which sleeps until then.
    pub(super) task: Arc<Notify>,
    pub(super) sleeps_until_ns: u64,
}

impl Outside {
    pub(super) fn new(gateway: Gateway) -> Result<Self, OutOfMemory> {
        Ok(Self {
            gateway,
            whole: Whole::new()?,
            cards: Vec::new(),
            locals: Vec::new(),
            held: Vec::new(),
            is_stirred: false,
            task: Arc::new(Notify::new()),
            sleeps_until_ns: 0,
        })
    }

    /// dom0 is a station of `bridge` by `port`.
    pub(super) fn add_local(&mut self, bridge: BridgeId, port: PortId) {
        self.locals.push((bridge, port));
    }

    pub(super) fn add_card(&mut self, card: Card) {
        self.cards.push(card);
    }

    /// dom0's port on a bridge.
    pub(super) fn local_on(&self, bridge: BridgeId) -> Option<PortId> {
        self.locals.iter().find(|(on, _)| *on == bridge).map(|(_, port)| *port)
    }

    fn bridge_of(&self, local: PortId) -> Option<BridgeId> {
        self.locals.iter().find(|(_, port)| *port == local).map(|(bridge, _)| *bridge)
    }

    pub(super) fn card(&mut self, port: PortId) -> Option<&mut Card> {
        self.cards.iter_mut().find(|card| card.port == port)
    }

    /// Tells all cards of what was handed over.
    pub(super) fn kick(&self) {
        self.cards.iter().for_each(|card| card.wire.kick());
    }

    /// What the gateway says to a packet that came to dom0's port `local` from behind port `from`; and on which network.
    pub(super) fn ask(
        &mut self,
        now_ns: u64,
        from: PortId,
        local: PortId,
        head: &mut Head<'_>,
        offload: &Offload,
    ) -> Option<(BridgeId, Routed)> {
        let network = self.bridge_of(local)?;
        let is_partial = offload.checksum == Checksum::Partial;
        let segment = offload.gso.map(|gso| gso.size.saturating_add(headers(head)));
        let routed = self.gateway.input(now_ns, Arrival { network, port: from, head, is_partial, segment });
        self.is_stirred |= routed == Routed::Stack || self.gateway.has_outgoing();
        Some((network, routed))
    }

    /// Takes a packet for dom0's own stack: a copy.
    pub(super) fn take(&mut self, now_ns: u64, network: BridgeId, from: PortId, packet: &Packet<'_>) {
        if packet.len as usize > STACK_BYTES {
            return;
        }
        let is_partial = packet.offload.checksum == Checksum::Partial;
        if let Some(frame) = self.whole.copy(packet) {
            let frame = frame.clone();
            self.gateway.deliver(now_ns, network, from, frame, is_partial);
        }
    }
}

/// Bytes of the headers of IP and transport, of a packet with a TCP header.
fn headers(head: &Head<'_>) -> u16 {
    let length = head.transport_at().and_then(|at| {
        let tcp = usize::from(head.bytes().get(at + 12)? >> 4) * 4;
        Some(at - head.network_at() + tcp)
    });
    length.unwrap_or(0) as u16
}

/// A packet that is copied whole.
pub(super) struct Whole {
    pages: CopyPages,
    ops: Vec<CopyOp>,
    bytes: Vec<u8>,
}

impl Whole {
    /// The hypervisor, which copies to these pages and from any of dom0's.
    pub(super) fn copier(&self) -> impl Copier {
        Hypervisor(&self.pages)
    }

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

    /// Takes the room of the bytes back, for the next packet.
    pub(super) fn give_back(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    /// Puts a frame of dom0's own into the pages, from where the hypervisor copies the frame to a receiver. What is longer than
    /// the pages is left out.
    pub(super) fn put(&self, frame: &[u8]) -> ArrayVec<Part, WHOLE_PAGES> {
        let pages = frame.chunks(PAGE_SIZE).zip(self.pages.frames()).enumerate();
        let put = |(page, (bytes, frame)): (usize, (&[u8], &Mfn))| {
            self.pages.pages().page(page).write(0, bytes);
            Part { place: Place::Own { frame: *frame, offset: 0 }, len: bytes.len() as u16 }
        };
        pages.map(put).collect()
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
    /// Vifs whose packets wait until there is room here.
    waiting: Vec<PortId>,
}

impl Card {
    /// Takes the card's transmit buffers.
    pub(super) fn new(port: PortId, wire: Arc<dyn Wire>) -> Result<Self, OutOfMemory> {
        let features = wire.features();
        let each = (usize::from(features.mtu) + LINK_BYTES).div_ceil(PAGE_SIZE);
        let count = (TRANSMIT_PAGES / each).clamp(1, features.slots.max(1));
        let buffers = CopyPages::new(count * each)?;
        let free = (0..count as u32).rev().collect();
        Ok(Self { port, wire, buffers, each, free, segment: Vec::new(), waiting: Vec::new() })
    }

    /// Whether the card takes the packet now. What the card never has room for it takes, too, and loses.
    pub(super) fn has_room(&mut self, packet: &Packet<'_>) -> bool {
        let frames =
            packet.offload.gso.map_or(1, |gso| packet.len as usize / usize::from(gso.size.max(1)) + 1);
        let all = self.buffers.frames().len() / self.each;
        if self.free.len() < frames {
            self.take_back();
        }
        self.free.len() >= frames || frames > all
    }

    /// Has the vif behind `port` woken when there is room.
    pub(super) fn wait(&mut self, port: PortId) {
        if !self.waiting.contains(&port) {
            // At most as many as there are ports.
            Account::own().charge(|| self.waiting.push(port));
        }
    }

    /// Takes those that wait, if there is room again.
    pub(super) fn roomy(&mut self) -> Vec<PortId> {
        self.take_back();
        if self.free.is_empty() { Vec::new() } else { core::mem::take(&mut self.waiting) }
    }

    /// Hands a whole frame to the card, with what its sender left to others done. The card sees the frame after
    /// [`Outside::kick`].
    pub(super) fn send(&mut self, frame: &mut [u8], offload: &Offload) -> Result<(), Unsent> {
        self.take_back();
        let frame_len = frame.len() as u32;
        if let Some(gso) = offload.gso {
            let cut = Head::parse(frame, frame_len).and_then(|head| Cut::new(&head, gso.size));
            let Some(cut) = cut else { return Err(Unsent::Unfit) };
            if cut.segments() as usize > self.free.len() {
                return Err(Unsent::Full);
            }
            let mut segment = core::mem::take(&mut self.segment);
            let sent = (0..cut.segments()).try_for_each(|n| {
                cut.put(n, frame, &mut segment);
                self.transmit(&segment)
            });
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
        self.wire.transmit(token, outgoing).map_err(|error| {
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
}
