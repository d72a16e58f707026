//! A packet that a queue has under way.

use alloc::vec::Vec;

use arrayvec::ArrayVec;

use super::packet::{CopyOp, HEAD_BYTES, MAX_PARTS, MAX_SLOTS, Offload, Packet, Part, Place};

/// A packet of more slots than this is no mistake: the frontend is hostile.
pub(super) const FATAL_SLOTS: usize = MAX_SLOTS + 2;

/// A first slot with this many bytes makes the head alone: Ethernet, IPv4 and TCP fit. Linux's netfront puts all headers
/// into the first slot and nothing else, so that the head costs one copy. Where headers go on in the next slot, the
/// owner asks for more ([`TxQueue::extend_head`](super::TxQueue::extend_head)).
const ENOUGH: u16 = 54;

/// The place of the first slot's bytes in a packet's list of parts: they become the head, and a part behind the head.
const FIRST: [Part; 2] =
    [Part { place: Place::Own { frame: ring_abi::types::Mfn::new(0), offset: 0 }, len: 0 }; 2];

/// A packet under way, or a free place for one.
#[derive(Default)]
pub(super) struct Entry {
    /// Bytes of the packet; 0: the entry is free.
    pub(super) len: u32,
    pub(super) offload: Offload,
    /// From `start` on: the head, and what is left of each slot.
    parts: ArrayVec<Part, MAX_PARTS>,
    start: usize,
    /// The frontend's tags of the slots.
    pub(super) ids: ArrayVec<u16, FATAL_SLOTS>,
    /// Slots of extra information.
    pub(super) extras: u8,
    /// Copies of the head in the batch.
    pub(super) ops: u8,
}

impl Entry {
    /// Makes the entry a packet of one slot with the tag `id`, and with the head `head`.
    #[inline(always)]
    pub(super) fn set_plain(&mut self, id: u16, slot: Part, head: Part, offload: Offload) {
        (self.len, self.offload, self.extras) = (slot.len.into(), offload, 0);
        self.parts.clear();
        self.parts.push(head);
        if head.len < slot.len {
            self.parts.push(Part { place: slot.place.after(head.len), len: slot.len - head.len });
        }
        self.start = 0;
        self.ids.clear();
        self.ids.push(id);
    }

    /// Begins a packet whose first slot has the tag `id`.
    pub(super) fn begin(&mut self, id: u16) {
        self.ids.clear();
        self.ids.push(id);
        self.parts.clear();
        self.parts.extend(FIRST);
    }

    /// Adds a slot behind the first. False: the packet has more slots than a packet may have.
    pub(super) fn add(&mut self, id: u16, slot: Part) -> bool {
        self.ids.push(id);
        (slot.len == 0 || self.parts.try_push(slot).is_ok()) && self.ids.len() <= MAX_SLOTS
    }

    /// Ends a packet, now that what belongs to the first slot is known: `ops` copies the head to `head`, but for what the first
    /// slot has of the head if that `is_there`.
    pub(super) fn end(&mut self, first: Part, head: Place, is_there: bool, ops: &mut Vec<CopyOp>) {
        let len = first.len.min(HEAD_BYTES as u16);
        if !is_there {
            ops.push(CopyOp::new(first.place, head, len));
        }
        self.ops = u8::from(!is_there);
        let head = Part { place: head, len };
        self.start = usize::from(len == first.len);
        self.parts[self.start] = head;
        if len < first.len {
            self.parts[1] = Part { place: first.place.after(len), len: first.len - len };
        } else if len < ENOUGH && self.parts.len() > 2 {
            let before = ops.len();
            self.lengthen(ENOUGH, |op| ops.push(op));
            self.ops += (ops.len() - before) as u8;
        }
    }

    /// Makes the head longer, slot by slot, until the head has `enough` bytes, its place is full, or the packet ends.
    /// `copy` gets each copy for that.
    pub(super) fn lengthen(&mut self, enough: u16, mut copy: impl FnMut(CopyOp)) {
        let mut parts = ArrayVec::<Part, MAX_PARTS>::new();
        let mut head = self.parts[self.start];
        parts.push(head);
        for part in &self.parts[self.start + 1..] {
            let room = if head.len >= enough { 0 } else { HEAD_BYTES as u16 - head.len };
            let len = part.len.min(room);
            if len > 0 {
                copy(CopyOp::new(part.place, head.place.after(head.len), len));
                head.len += len;
            }
            if len < part.len {
                parts.push(Part { place: part.place.after(len), len: part.len - len });
            }
        }
        parts[0] = head;
        (self.parts, self.start) = (parts, 0);
    }

    /// The packet.
    #[inline]
    pub(super) fn packet(&self) -> Packet<'_> {
        Packet { len: self.len, offload: &self.offload, parts: &self.parts[self.start..] }
    }
}
