//! Packets that a card sends out of the guest's own pages.
//!
//! A long packet is not copied. The card reads the headers in the vif's head slot, where dom0 has read and perhaps
//! rewritten the headers, and the rest in the guest's frames, to which the guest's grants give the card access. The card may
//! read until it gives the packet back. So until then dom0 holds the grants and the head slot, and does not answer the
//! guest's slots. A vif's connection ends only when the card holds nothing of the vif's any more: a guest that dies leaves
//! its frames with the card until then, and for ever with a card that broke and does not reset. (I40)
//!
//! What pays: a packet that fits one of the card's buffers is cheaper to copy. Of what is longer dom0 would make segments, which
//! costs twice as much as to lend (docs/PERFORMANCE.md, "Packets to a network card").

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use backends::net::{Checksum, GsoKind, MAX_HEADS, MAX_PARTS, Offload, Packet, Part, Place, TxId};
use pvrt::grant::{DeviceGrant, GrantStatus, device_map, device_unmap};
use ring_abi::types::{DomId, GrantRef, Maddr, PAGE_SIZE};

use crate::net::Head;
use crate::net::headers::Transport;
use crate::net::switch::PortId;
use crate::net::wire::{ChecksumAt, Span, WireFeatures};

/// Packets longer than this are lent to the card.
pub(super) const LEND_OVER: usize = PAGE_SIZE;
/// Most packets that a card is lent.
pub(super) const LENT_MAX: usize = 64;
/// Most packets of one vif that a card is lent: half of what a vif has under way, so that the vif has heads left for
/// others.
pub(super) const LENT_OF_ONE: usize = MAX_HEADS / 2;

/// The grants of a packet.
pub(super) type Grants = ArrayVec<DeviceGrant, MAX_PARTS>;
/// The runs of bytes of a packet.
pub(super) type Spans = ArrayVec<Span, MAX_PARTS>;

/// Whether one more packet may be lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Yes, as the packet of this slot.
    Slot(usize),
    /// The vif has as many packets lent as it may.
    OwnFull,
    /// Others have all that the card is lent: dom0 copies, so that nobody waits for others' packets.
    AllFull,
}

/// A packet of a vif, until its slots are answered.
struct Lent {
    port: PortId,
    queue: usize,
    id: TxId,
    grants: Grants,
    /// The card has given the packet back, and the vif has not yet answered.
    is_back: bool,
}

/// The packets that one card is lent. The lists have their room from the start.
pub(super) struct Lending {
    slots: Vec<Option<Lent>>,
    /// Slots that are taken.
    taken: usize,
    /// Packets that the card has.
    out: usize,
    /// Grants of packets that came back, to be given back together.
    back: Vec<DeviceGrant>,
    /// Vifs whose packets came back and that have not been told.
    untold: Vec<PortId>,
    requests: Vec<(GrantRef, bool)>,
    mapped: Vec<Result<DeviceGrant, GrantStatus>>,
}

impl Lending {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..LENT_MAX).map(|_| None).collect(),
            taken: 0,
            out: 0,
            back: Vec::with_capacity(LENT_MAX * MAX_PARTS),
            untold: Vec::with_capacity(LENT_MAX),
            requests: Vec::with_capacity(MAX_PARTS),
            mapped: Vec::with_capacity(MAX_PARTS),
        }
    }

    /// Packets that the card has.
    pub(super) fn out(&self) -> usize {
        self.out
    }

    /// Whether the card has any packet that somebody waits for.
    pub(super) fn is_out(&self) -> bool {
        self.out > 0
    }

    /// Whether a packet of the vif behind `port` may be lent.
    pub(super) fn room(&self, port: PortId) -> Room {
        let own = self.slots.iter().flatten().filter(|lent| lent.port == port).count();
        if own >= LENT_OF_ONE {
            return Room::OwnFull;
        }
        self.slots.iter().position(Option::is_none).map_or(Room::AllFull, Room::Slot)
    }

    /// Takes access for the card to all of a packet, and gives the packet's bytes as the card reads them. `None`: a grant is not
    /// such that a device may use it, or the packet is not a vif's.
    pub(super) fn map(&mut self, packet: &Packet<'_>) -> Option<(Spans, Grants)> {
        let (head, rest) = packet.parts.split_first()?;
        let Place::Own { frame, offset } = head.place else { return None };
        let (mut spans, mut grants) = (Spans::new(), Grants::new());
        spans.push(span(frame.maddr(), offset, head));
        let mut owner = None;
        self.requests.clear();
        for part in rest {
            let Place::Grant { domain, gref, .. } = part.place else { return None };
            if *owner.get_or_insert(domain) != domain {
                return None;
            }
            // The card reads, and writes nothing.
            self.requests.push((gref, true));
        }
        self.mapped.clear();
        device_map(owner.unwrap_or(DomId::DOM0), &self.requests, &mut self.mapped);
        // What is mapped of a packet that is not mapped whole goes back with `grants`.
        grants.extend(self.mapped.drain(..).flatten());
        if grants.len() != rest.len() {
            device_unmap(grants);
            return None;
        }
        spans.extend(
            rest.iter().zip(&grants).map(|(part, grant)| span(grant.maddr(), part.place.offset(), part)),
        );
        Some((spans, grants))
    }

    /// The card has packet `id` of a vif from now on, as the packet in `slot`.
    pub(super) fn lend(&mut self, slot: usize, (port, queue, id): (PortId, usize, TxId), grants: Grants) {
        self.slots[slot] = Some(Lent { port, queue, id, grants, is_back: false });
        self.taken += 1;
        self.out += 1;
    }

    /// The card has given back the packet in `slot`.
    pub(super) fn returned(&mut self, slot: usize) {
        if let Some(lent) = self.slots.get_mut(slot).and_then(Option::as_mut)
            && !lent.is_back
        {
            lent.is_back = true;
            self.out -= 1;
            self.back.extend(lent.grants.drain(..));
            if !self.untold.contains(&lent.port) {
                self.untold.push(lent.port);
            }
        }
    }

    /// Gives back the grants of all packets that came back. The vifs answer their slots only after this.
    pub(super) fn give_back(&mut self) {
        if !self.back.is_empty() {
            device_unmap(self.back.drain(..));
        }
    }

    /// Takes a packet of a vif that came back.
    pub(super) fn take(&mut self, port: PortId) -> Option<(usize, TxId)> {
        let is_due =
            |lent: &Option<Lent>| lent.as_ref().is_some_and(|lent| lent.is_back && lent.port == port);
        let lent = self.slots.iter_mut().find(|lent| is_due(lent))?.take()?;
        self.taken -= 1;
        Some((lent.queue, lent.id))
    }

    /// Whether a packet of a vif is lent, or came back and was not taken.
    pub(super) fn has(&self, port: PortId) -> bool {
        // Mostly nothing is lent, and every batch of every vif asks.
        self.taken > 0 && self.slots.iter().flatten().any(|lent| lent.port == port)
    }

    /// A vif whose packets came back, and that has to be told.
    pub(super) fn untold(&mut self) -> Option<PortId> {
        self.untold.pop()
    }
}

fn span(frame: Maddr, offset: u16, part: &Part) -> Span {
    Span { maddr: Maddr::new(frame.raw() + u64::from(offset)), len: part.len.into() }
}

/// Whether a card does all that a packet's sender left to others.
pub(super) fn does(card: &WireFeatures, offload: &Offload) -> bool {
    let is_partial = offload.checksum == Checksum::Partial;
    match offload.gso.map(|gso| gso.kind) {
        None => !is_partial || card.checksum,
        // The segments need checksums.
        Some(GsoKind::TcpV4) => is_partial && card.tso4,
        Some(GsoKind::TcpV6) => is_partial && card.tso6,
    }
}

/// Where the checksum of a packet is, and how many bytes its headers have. `None`: the packet has no such checksum, or
/// no whole header.
pub(super) fn checksum_at(head: &mut [u8], packet_len: u32) -> Option<(ChecksumAt, u16)> {
    let head = Head::parse(head, packet_len)?;
    let start = head.transport_at()?;
    let (offset, headers) = match head.transport() {
        Transport::Tcp => (16, usize::from(*head.bytes().get(start + 12)? >> 4) * 4),
        Transport::Udp => (6, 8),
        _ => return None,
    };
    let is_whole = headers >= offset + 2 && start + headers <= head.bytes().len();
    is_whole.then_some((ChecksumAt { start: start as u16, offset: offset as u16 }, (start + headers) as u16))
}
