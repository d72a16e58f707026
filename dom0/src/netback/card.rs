//! A network card, as what stands behind a port of the switch.
//!
//! A packet of a vif leaves in one of three ways. What the card can finish itself, and fits one of the card's transmit buffers,
//! the hypervisor copies there, and the vif's slots are answered at once. What is longer is lent ([`super::lending`]). For
//! all else dom0 copies the packet whole, and does what the sender left to others.

use alloc::sync::Arc;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use backends::net::{Checksum, Copier, CopyOp, Offload, Packet, TxId};
use pvrt::Account;
use pvrt::grant::{CopyPages, device_unmap};
use pvrt::mem::OutOfMemory;
use ring_abi::types::PAGE_SIZE;

use super::copier::Hypervisor;
use super::lending::{LEND_OVER, Lending, Room, checksum_at, does};
use super::outside::{MAX_COPIES, list_copies};
use super::sender::Sender;
use crate::net::Head;
use crate::net::segment::{Cut, complete};
use crate::net::switch::PortId;
use crate::net::wire::{ChecksumAt, Outgoing, Span, TransmitError, Transmitted, Wire, WireFeatures};

/// Pages of a card's transmit buffers.
const TRANSMIT_PAGES: usize = 192;
/// Bytes of an Ethernet header with a tag.
const LINK_BYTES: usize = 18;

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

/// What became of a vif's packet.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handed {
    /// The card has a copy: the vif answers.
    Copied,
    /// The card has the packet itself: the vif answers when the card gives it back.
    Lent,
    /// There is no room now.
    NoRoom,
    /// The card has as many packets of the vif as it may have; the vif is woken when one comes back.
    OwnFull,
    /// dom0 has work to do on the packet.
    Unfinished,
    /// The packet is lost.
    Lost(Unsent),
    /// The packet's bytes cannot be had, by the fault of whoever granted them.
    Missing,
}

/// How packets left by a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ways {
    /// The card read them in a guest's pages.
    pub(super) lent: u64,
    /// The hypervisor copied them to the card's buffers.
    pub(super) copied: u64,
    /// dom0 put them into the card's buffers: its own, and what it finished.
    pub(super) finished: u64,
}

/// A network card, as what stands behind a port.
pub(super) struct Card {
    pub(super) port: PortId,
    pub(super) wire: Arc<dyn Wire>,
    features: WireFeatures,
    buffers: CopyPages,
    /// Pages of one buffer.
    each: usize,
    /// Number of buffers. The tokens from there on name what is lent.
    count: usize,
    free: Vec<u32>,
    lending: Lending,
    ops: Vec<CopyOp>,
    sent: Vec<Transmitted>,
    segment: Vec<u8>,
    pub(super) ways: Ways,
    /// Vifs whose packets wait until there is room here.
    waiting: Vec<PortId>,
    /// Something came back since those who wait were told.
    has_more: bool,
}

impl Card {
    /// Takes the card's transmit buffers.
    pub(super) fn new(port: PortId, wire: Arc<dyn Wire>) -> Result<Self, OutOfMemory> {
        let features = wire.features();
        let each = (usize::from(features.mtu) + LINK_BYTES).div_ceil(PAGE_SIZE);
        let count = (TRANSMIT_PAGES / each).clamp(1, features.slots.max(1));
        Ok(Self {
            port,
            wire,
            features,
            buffers: CopyPages::new(count * each)?,
            each,
            count,
            free: (0..count as u32).rev().collect(),
            lending: Lending::new(),
            ops: Vec::with_capacity(MAX_COPIES),
            sent: Vec::with_capacity(features.slots),
            segment: Vec::new(),
            ways: Ways::default(),
            waiting: Vec::new(),
            has_more: false,
        })
    }

    /// Whether the card takes a packet that dom0 finishes. What the card never has room for it takes, too, and loses.
    pub(super) fn has_room(&mut self, packet: &Packet<'_>) -> bool {
        let frames =
            packet.offload.gso.map_or(1, |gso| packet.len as usize / usize::from(gso.size.max(1)) + 1);
        if self.free.len() < frames {
            self.take_back();
        }
        self.free.len() >= frames || frames > self.count
    }

    /// Has the vif behind `port` woken when there is room.
    pub(super) fn wait(&mut self, port: PortId) {
        if !self.waiting.contains(&port) {
            // At most as many as there are ports.
            Account::own().charge(|| self.waiting.push(port));
        }
    }

    /// Hands packet `id` of a vif to the card, if there is nothing for dom0 to do on the packet. `head` is what dom0 has read
    /// of the packet. The card sees the packet after [`Self::kick`].
    pub(super) fn send_ready(
        &mut self,
        packet: &Packet<'_>,
        head: &mut [u8],
        (port, queue, id): (PortId, usize, TxId),
    ) -> Handed {
        let len = packet.len as usize;
        let is_cut = packet.offload.gso.is_some();
        let most = usize::from(self.features.mtu) + LINK_BYTES;
        if !does(&self.features, packet.offload) || (!is_cut && len > most) {
            return Handed::Unfinished;
        }
        let places = match packet.offload.checksum {
            Checksum::Partial => match checksum_at(head, packet.len) {
                Some((at, headers)) => (Some(at), headers),
                None => return Handed::Unfinished,
            },
            _ => (None, 0),
        };
        let segment = packet.offload.gso.map_or(0, |gso| usize::from(places.1) + usize::from(gso.size));
        if segment > most {
            return Handed::Unfinished; // where the segments are made, they are found too long
        }
        if len > LEND_OVER && packet.parts.len() <= self.features.max_spans {
            let room = self.lending_room(port);
            if room == Room::OwnFull {
                return Handed::OwnFull;
            }
            // Access for a packet that the card does not take would be taken for nothing.
            if !self.takes_more() {
                return Handed::NoRoom;
            }
            if let Room::Slot(slot) = room
                && let Some((spans, grants)) = self.lending.map(packet)
            {
                let sent = self.hand_over((self.count + slot) as u32, packet.offload, places, &spans);
                return match sent {
                    Ok(()) => {
                        self.lending.lend(slot, (port, queue, id), grants);
                        self.ways.lent += 1;
                        Handed::Lent
                    }
                    Err(why) => {
                        device_unmap(grants);
                        why
                    }
                };
            }
        }
        if len > self.each * PAGE_SIZE {
            return Handed::Unfinished;
        }
        self.send_copy(packet, head, places)
    }

    /// Whether the card has as many packets of the vif behind `port` as it may have.
    pub(super) fn is_full_of(&self, port: PortId) -> bool {
        self.lending.room(port) == Room::OwnFull
    }

    /// Whether the card takes one more packet, as far as the card's features say.
    fn takes_more(&mut self) -> bool {
        let out = |card: &Self| card.count - card.free.len() + card.lending.out();
        if out(self) >= self.features.slots {
            self.take_back();
        }
        out(self) < self.features.slots
    }

    fn lending_room(&mut self, port: PortId) -> Room {
        let room = self.lending.room(port);
        if room != Room::AllFull {
            return room;
        }
        self.take_back();
        self.lending.room(port)
    }

    /// Has the hypervisor copy a packet into a buffer, and hands the buffer over.
    fn send_copy(&mut self, packet: &Packet<'_>, head: &[u8], places: (Option<ChecksumAt>, u16)) -> Handed {
        if self.free.is_empty() {
            self.take_back();
        }
        let Some(token) = self.free.pop() else { return Handed::NoRoom };
        let first = token as usize * self.each;
        let frames = &self.buffers.frames()[first..first + self.each];
        if head.len() == packet.len as usize {
            // Shorter than a call of the hypervisor's.
            self.buffers.pages().page(first).write(0, head);
        } else {
            self.ops.clear();
            let is_whole = list_copies(packet, frames, &mut self.ops).is_some();
            Hypervisor(&self.buffers).copy(&mut self.ops);
            if !is_whole || !self.ops.iter().all(CopyOp::ok) {
                self.free.push(token);
                return Handed::Missing;
            }
        }
        let spans = spans(frames.iter().map(|frame| frame.maddr()), packet.len as usize);
        match self.hand_over(token, packet.offload, places, &spans) {
            Ok(()) => {
                self.ways.copied += 1;
                Handed::Copied
            }
            Err(why) => {
                self.free.push(token);
                why
            }
        }
    }

    fn hand_over(
        &self,
        token: u32,
        offload: &Offload,
        (checksum_at, header_len): (Option<ChecksumAt>, u16),
        spans: &[Span],
    ) -> Result<(), Handed> {
        self.wire.transmit(token, Outgoing { offload, checksum_at, header_len, spans, flow: 0 }).map_err(
            |error| {
                match error {
                    TransmitError::Full => Handed::NoRoom,
                    // Such as headers of a length that this card does not know.
                    TransmitError::Unfit(_) => Handed::Unfinished,
                    TransmitError::Broken => Handed::Lost(Unsent::Broken),
                }
            },
        )
    }

    /// Hands a whole frame to the card, with what its sender left to others done. The card sees the frame after
    /// [`Self::kick`].
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
        if frame.len() > usize::from(self.features.mtu) + LINK_BYTES {
            return Err(Unsent::Unfit);
        }
        let Some(token) = self.free.pop() else { return Err(Unsent::Full) };
        let first = token as usize * self.each;
        // A frame has as many pages as a buffer at most.
        for (index, bytes) in frame.chunks(PAGE_SIZE).enumerate() {
            self.buffers.pages().page(first + index).write(0, bytes);
        }
        let frames = self.buffers.frames()[first..first + self.each].iter();
        let spans = spans(frames.map(|frame| frame.maddr()), frame.len());
        let outgoing = Outgoing {
            offload: &Offload::default(),
            checksum_at: None,
            header_len: 0,
            spans: &spans,
            flow: 0,
        };
        let sent = self.wire.transmit(token, outgoing);
        self.ways.finished += u64::from(sent.is_ok());
        sent.map_err(|error| {
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

    /// Tells the card of what was handed over. A card that has packets of vifs tells of the next that it is done with.
    pub(super) fn kick(&self) {
        self.wire.hasten(self.lending.is_out());
        self.wire.kick();
    }

    /// Takes back what the card is done with: buffers, and packets whose grants are given back all together.
    pub(super) fn take_back(&mut self) {
        let mut sent = core::mem::take(&mut self.sent);
        self.wire.transmitted(&mut sent);
        self.has_more |= !sent.is_empty();
        for packet in sent.drain(..) {
            match (packet.token as usize).checked_sub(self.count) {
                None => self.free.push(packet.token),
                Some(slot) => self.lending.returned(slot),
            }
        }
        self.sent = sent;
        self.lending.give_back();
    }

    /// Answers the slots of a vif's packets that the card is done with. A packet that a broken card did not send is no fault of
    /// the frontend's.
    pub(super) fn answer(&mut self, sender: &mut Sender) {
        if self.lending.has(sender.port) {
            self.take_back();
            while let Some((queue, id)) = self.lending.take(sender.port) {
                sender.queue(queue).respond(id, true);
            }
        }
    }

    /// Whether the card has a packet of the vif behind `port`.
    pub(super) fn has_of(&self, port: PortId) -> bool {
        self.lending.has(port)
    }

    /// A vif that has to look again: the card is done with a packet of the vif's, or has room. The caller of
    /// [`Self::take_back`] asks this, since the card tells nobody else of what came back.
    pub(super) fn untold(&mut self) -> Option<PortId> {
        if let Some(port) = self.lending.untold() {
            return Some(port);
        }
        if self.has_more
            && let Some(port) = self.waiting.pop()
        {
            return Some(port);
        }
        self.has_more = false;
        None
    }
}

/// The first `len` bytes of some pages.
fn spans(pages: impl Iterator<Item = ring_abi::types::Maddr>, len: usize) -> ArrayVec<Span, 17> {
    let ends = (0..len).step_by(PAGE_SIZE);
    pages.zip(ends).map(|(maddr, at)| Span { maddr, len: (len - at).min(PAGE_SIZE) as u32 }).collect()
}
