//! What stands behind ports that are no vif: dom0 itself, and network cards.
//!
//! Here a packet is whole: its bytes are copied once into pages of dom0's. That is the way of what dom0 itself reads, and of
//! what a card gets that leaves checksums and segments to dom0. What else a card gets: `card`.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use arrayvec::ArrayVec;
use backends::net::{Checksum, Copier, CopyOp, Offload, Packet, Part, Place};
use pvrt::executor::sync::Notify;
use pvrt::grant::CopyPages;
use pvrt::mem::OutOfMemory;
use ring_abi::types::{Mfn, PAGE_SIZE};

use super::card::Card;
use super::copier::Hypervisor;
use super::sender::Sender;
use crate::net::Head;
use crate::net::router::{Arrival, Gateway, Guest, Routed};
use crate::net::switch::{BridgeId, PortId};
use crate::net::wire::Received;

/// Pages for one whole packet: the longest packet, 64 KiB.
const WHOLE_PAGES: usize = 16;
/// Copies that one packet may take: each part is cut where a page of the copy ends.
pub(super) const MAX_COPIES: usize = 48;

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
    /// The addresses that configurations give to vifs, wherever the vifs are now.
    configured: Vec<(PortId, Ipv4Addr)>,
    /// The gateway may have something to send.
    pub(super) is_stirred: bool,
    /// Wakes the gateway's task, which sleeps until then.
    pub(super) task: Arc<Notify>,
    pub(super) sleeps_until_ns: u64,
}

impl Outside {
    /// `task` wakes the gateway's task.
    pub(super) fn new(gateway: Gateway, task: Arc<Notify>) -> Result<Self, OutOfMemory> {
        Ok(Self {
            gateway,
            whole: Whole::new()?,
            cards: Vec::new(),
            locals: Vec::new(),
            held: Vec::new(),
            configured: Vec::new(),
            is_stirred: false,
            task,
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

    /// A card, to look at.
    pub(super) fn find_card(&self, port: PortId) -> Option<&Card> {
        self.cards.iter().find(|card| card.port == port)
    }

    /// Tells all cards of what was handed over.
    pub(super) fn kick(&self) {
        self.cards.iter().for_each(Card::kick);
    }

    /// Answers the slots of a vif's packets that a card is done with.
    pub(super) fn answer(&mut self, sender: &mut Sender) {
        self.cards.iter_mut().for_each(|card| card.answer(sender));
    }

    /// Whether a card has a packet of the vif behind `port`.
    pub(super) fn has_of(&self, port: PortId) -> bool {
        self.cards.iter().any(|card| card.has_of(port))
    }

    /// A vif that has to look again since a card gave something back.
    pub(super) fn untold(&mut self) -> Option<PortId> {
        self.cards.iter_mut().find_map(Card::untold)
    }

    /// Tells the gateway whose interface is behind `port`. `is_near`: the interface is in the gateway's VLAN; elsewhere its address
    /// is the guest's business.
    ///
    /// # Errors
    /// As [`Gateway::set_guest`].
    pub(super) fn introduce(&mut self, port: PortId, guest: Guest, is_near: bool) -> Result<(), String> {
        let fixed = guest.fixed;
        self.gateway.set_guest(port, Guest { fixed: fixed.filter(|_| is_near), ..guest })?;
        self.configured.retain(|(other, _)| *other != port);
        self.configured.extend(fixed.map(|fixed| (port, fixed)));
        self.task.notify_one();
        Ok(())
    }

    /// The guest behind `port`, with the address that the configuration gives.
    pub(super) fn guest(&self, port: PortId) -> Option<Guest> {
        let fixed = self.configured.iter().find(|(at, _)| *at == port).map(|(_, fixed)| *fixed);
        Some(Guest { fixed, ..self.gateway.guest(port)?.clone() })
    }

    /// The vif behind `port` is gone.
    pub(super) fn forget(&mut self, now_ns: u64, port: PortId) {
        self.configured.retain(|(other, _)| *other != port);
        self.gateway.forget(now_ns, port);
        self.task.notify_one();
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
}

/// Bytes of the headers of IP and transport, of a packet with a TCP header.
fn headers(head: &Head<'_>) -> u16 {
    let length = head.transport_at().and_then(|at| {
        let tcp = usize::from(head.bytes().get(at + 12)? >> 4) * 4;
        Some(at - head.network_at() + tcp)
    });
    length.unwrap_or(0) as u16
}

/// Lists the copies of all of a packet to pages that begin at `frames`. `None`: the packet does not fit, or is not as long as
/// it says.
pub(super) fn list_copies(packet: &Packet<'_>, frames: &[Mfn], ops: &mut Vec<CopyOp>) -> Option<()> {
    let mut at = 0;
    for part in packet.parts {
        let mut done = 0;
        while done < usize::from(part.len) {
            let (page, offset) = (at / PAGE_SIZE, at % PAGE_SIZE);
            let piece = (usize::from(part.len) - done).min(PAGE_SIZE - offset);
            let to = Place::Own { frame: *frames.get(page)?, offset: offset as u16 };
            ops.push(CopyOp::new(part.place.after(done as u16), to, piece as u16));
            done += piece;
            at += piece;
        }
    }
    (at == packet.len as usize).then_some(())
}

/// A packet's bytes cannot be had, by the fault of whoever granted them: the packet is answered as none.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missing;

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

    /// Copies all of a packet, and takes the bytes, which [`Self::give_back`] gets when they are used.
    ///
    /// # Errors
    /// A part cannot be had.
    pub(super) fn copy(&mut self, packet: &Packet<'_>) -> Result<Vec<u8>, Missing> {
        let len = packet.len as usize;
        self.ops.clear();
        // What is longer than the pages does not fit.
        list_copies(packet, self.pages.frames(), &mut self.ops).ok_or(Missing)?;
        Hypervisor(&self.pages).copy(&mut self.ops);
        if !self.ops.iter().all(CopyOp::ok) {
            return Err(Missing);
        }
        let mut whole = core::mem::take(&mut self.bytes);
        whole.clear();
        whole.resize(len, 0);
        for (page, bytes) in whole.chunks_mut(PAGE_SIZE).enumerate() {
            self.pages.pages().page(page).read(0, bytes);
        }
        Ok(whole)
    }

    /// Copies of the last packet.
    pub(super) fn copies(&self) -> usize {
        self.ops.len()
    }

    /// Takes the room of the bytes back, for the next packet.
    pub(super) fn give_back(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    /// Puts a frame of dom0's own into the pages, from where the hypervisor copies the frame to a receiver. `None`: the frame is
    /// longer than the pages.
    pub(super) fn put(&self, frame: &[u8]) -> Option<ArrayVec<Part, WHOLE_PAGES>> {
        if frame.len() > WHOLE_PAGES * PAGE_SIZE {
            return None;
        }
        let pages = frame.chunks(PAGE_SIZE).zip(self.pages.frames()).enumerate();
        let put = |(page, (bytes, frame)): (usize, (&[u8], &Mfn))| {
            self.pages.pages().page(page).write(0, bytes);
            Part { place: Place::Own { frame: *frame, offset: 0 }, len: bytes.len() as u16 }
        };
        Some(pages.map(put).collect())
    }
}
