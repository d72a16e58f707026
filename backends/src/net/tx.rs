//! From a frontend's transmit ring to packets.
//!
//! The rules for what is a packet, what a fault of one packet is, and what ruins the ring, are those of Linux's
//! xen-netback.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use ring_abi::io::netif::{
    NETIF_RSP_ERROR, NETIF_RSP_NULL, NETIF_RSP_OKAY, NETTXF_EXTRA_INFO, NETTXF_MORE_DATA, NetifTxRequest,
    NetifTxResponse, NetifTxRing,
};
use ring_abi::ring::{BackRing, RingPage};
use ring_abi::types::{DomId, GrantRef, Mfn, PAGE_SIZE};

use super::entry::Entry;
use super::error::Disconnect;
use super::extras::{Extras, checksum};
use super::heads::{Heads, position};
use super::multicast::MulticastFilter;
use super::packet::{Copier, CopyOp, HEAD_BYTES, MAX_SLOTS, MIN_PACKET, Offload, Packet, Part, Place};
use super::rate::Credit;
use crate::traits::Notifier;

/// Names a packet that a queue has under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TxId(u8);

impl TxId {
    /// A number below [`MAX_HEADS`](super::MAX_HEADS) that no other packet of the queue has now.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Where the packet's head lies: the page among those that the queue was made with, and the first byte within the
    /// page.
    #[must_use]
    pub const fn head_at(self) -> (usize, usize) {
        position(self.index())
    }
}

/// Why [`TxQueue::take`] took no more.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// As many packets as the caller wanted: more may wait.
    More,
    /// The ring is empty.
    Empty,
    /// No head is free: the queue goes on after [`TxQueue::respond`].
    NoHead,
    /// The frontend has sent as much as it may, until then.
    NoCredit {
        /// Time at which there is credit again.
        until_ns: u64,
    },
}

/// A copy of a packet's head, as far as the first slot has the head, from a page of the frontend's to the head's place
/// ([`TxId::head_at`]).
#[derive(Clone, Copy, Debug)]
pub struct HeadCopy {
    /// The frontend's page.
    pub gref: GrantRef,
    /// First byte within the frontend's page.
    pub offset: u16,
    /// The packet.
    pub id: TxId,
    /// Number of bytes, which stay in the page.
    pub len: u16,
}

/// Copies what first slots have of heads at once.
pub trait HeadsNow {
    /// Does a copy; false: the copy is for the copier of [`TxQueue::read_heads`].
    fn copy(&mut self, copy: &HeadCopy) -> bool;
}

/// Leaves all copies to the copier.
struct Never;

impl HeadsNow for Never {
    #[inline(always)]
    fn copy(&mut self, _: &HeadCopy) -> bool {
        false
    }
}

/// What all queues of one vif share on the way in.
#[derive(Debug, Default)]
pub struct Intake {
    /// The multicast addresses that the frontend has asked for.
    pub filter: MulticastFilter,
    /// The bound on what the frontend sends.
    pub credit: Option<Credit>,
}

/// What a queue has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxStats {
    /// Packets taken whose heads could be read.
    pub packets: u64,
    /// Bytes of the packets.
    pub bytes: u64,
    /// Packets answered with an error.
    pub errors: u64,
}

/// The packets of one [`TxQueue::take`], and the copies of their heads. One batch serves all queues in turn.
#[derive(Default)]
pub struct TxBatch {
    ids: Vec<TxId>,
    /// The copies of each packet's head, in the order of `ids`.
    ops: Vec<CopyOp>,
}

impl TxBatch {
    /// An empty batch; as many packets fit without an allocation.
    #[must_use]
    pub fn with_capacity(packets: usize) -> Self {
        Self { ids: Vec::with_capacity(packets), ops: Vec::with_capacity(2 * packets) }
    }

    /// The packets whose heads are there, after [`TxQueue::read_heads`].
    #[must_use]
    pub fn ids(&self) -> &[TxId] {
        &self.ids
    }
}

/// Bytes that one queue with the most heads makes the queue's owner keep, the heads themselves not counted.
pub const TX_QUEUE_BYTES: usize = super::MAX_HEADS * (size_of::<Entry>() + size_of::<Mfn>());

/// One transmit ring.
pub struct TxQueue<P, N> {
    ring: BackRing<NetifTxRing, P>,
    notifier: N,
    domain: DomId,
    heads: Heads,
    entries: Vec<Entry>,
    free: ArrayVec<TxId, { super::MAX_HEADS }>,
    stats: TxStats,
}

impl<P: RingPage, N: Notifier> TxQueue<P, N> {
    /// Serves `ring` of `domain`. `heads` are pages of the owner's for the heads of packets, at least one.
    ///
    /// # Errors
    /// [`super::OutOfMemory`]: the heap has no room for an entry for each head.
    pub fn new(
        ring: BackRing<NetifTxRing, P>,
        notifier: N,
        domain: DomId,
        heads: Vec<Mfn>,
    ) -> Result<Self, super::OutOfMemory> {
        let heads = Heads::new(heads);
        let (mut entries, mut free) = (Vec::new(), ArrayVec::new());
        entries.try_reserve_exact(heads.count()).map_err(|_| super::OutOfMemory)?;
        entries.resize_with(heads.count(), Entry::default);
        free.extend((0..heads.count()).rev().map(|index| TxId(index as u8)));
        Ok(Self { ring, notifier, domain, heads, entries, free, stats: TxStats::default() })
    }

    /// Takes up to `max` packets from the ring. Afterwards the caller has the heads copied by [`Self::read_heads`].
    ///
    /// # Errors
    /// [`Disconnect`]: the frontend ruined the ring. The caller forgets the batch and ends the connection.
    pub fn take(
        &mut self,
        max: usize,
        intake: &mut Intake,
        now_ns: u64,
        batch: &mut TxBatch,
    ) -> Result<Taken, Disconnect> {
        self.take_with(max, intake, now_ns, batch, &mut Never)
    }

    /// Like [`Self::take`], and offers what each packet's first slot has of the head to `now`, which may copy that at once.
    ///
    /// # Errors
    /// As [`Self::take`] says.
    #[inline]
    pub fn take_with(
        &mut self,
        max: usize,
        intake: &mut Intake,
        now_ns: u64,
        batch: &mut TxBatch,
        now: &mut impl HeadsNow,
    ) -> Result<Taken, Disconnect> {
        batch.ids.clear();
        batch.ops.clear();
        for _ in 0..max {
            let Some(&id) = self.free.last() else { return Ok(Taken::NoHead) };
            let Some(waiting) = self.ring.peek_in_batch()? else { return Ok(Taken::Empty) };
            if let Some(credit) = &mut intake.credit
                && let Err(until_ns) = credit.charge(waiting.request().size.into(), now_ns)
            {
                return Ok(Taken::NoCredit { until_ns });
            }
            let first = waiting.take();
            // Most packets are one slot without anything that is special.
            if is_plain(&first) {
                self.read_plain(id, &first, &mut batch.ops, now);
            } else if !self.read_other(id, &first, intake, &mut batch.ops, now)? {
                continue;
            }
            self.free.pop();
            batch.ids.push(id);
        }
        Ok(Taken::More)
    }

    /// Puts a packet for which [`is_plain`] into the free entry `id`.
    #[inline]
    fn read_plain(
        &mut self,
        id: TxId,
        first: &NetifTxRequest,
        ops: &mut Vec<CopyOp>,
        now: &mut impl HeadsNow,
    ) {
        let offload = Offload { checksum: checksum(first.flags), ..Offload::default() };
        let slot = part(self.domain, first, first.size);
        let (head, len) = (self.heads.place(id.index()), slot.len.min(HEAD_BYTES as u16));
        let is_there = now.copy(&HeadCopy { gref: GrantRef::new(first.gref), offset: first.offset, id, len });
        if !is_there {
            ops.push(CopyOp::new(slot.place, head, len));
        }
        let entry = &mut self.entries[id.index()];
        entry.set_plain(first.id, slot, Part { place: head, len }, offload);
        entry.ops = u8::from(!is_there);
        self.count(first.size);
    }

    fn count(&mut self, size: u16) {
        self.stats.packets = self.stats.packets.wrapping_add(1);
        self.stats.bytes = self.stats.bytes.wrapping_add(size.into());
    }

    /// Reads a packet of many slots or with extra information. False: the packet is no packet, and is answered.
    #[inline(never)]
    fn read_other(
        &mut self,
        id: TxId,
        first: &NetifTxRequest,
        intake: &mut Intake,
        ops: &mut Vec<CopyOp>,
        now: &mut impl HeadsNow,
    ) -> Result<bool, Disconnect> {
        let extras = match first.flags & NETTXF_EXTRA_INFO {
            0 => Extras::default(),
            _ => Extras::read(&mut self.ring)?,
        };
        if let Some((add, address)) = extras.multicast {
            let ok = !add || intake.filter.add(address);
            if !add {
                intake.filter.remove(address);
            }
            answer(&mut self.ring, &[first.id], extras.slots, ok);
            return Ok(false);
        }
        self.read_packet(id, first, &extras, ops, now)
    }

    /// Reads the rest of the packet that begins with `first` into the free entry `id`. False: the packet was bad, and is
    /// answered.
    fn read_packet(
        &mut self,
        id: TxId,
        first: &NetifTxRequest,
        extras: &Extras,
        ops: &mut Vec<CopyOp>,
        now: &mut impl HeadsNow,
    ) -> Result<bool, Disconnect> {
        let entry = &mut self.entries[id.index()];
        entry.begin(first.id);
        // The first slot's size is the packet's; what the other slots do not have is the first slot's own.
        let mut own = Some(first.size);
        let mut flags = first.flags;
        while flags & NETTXF_MORE_DATA != 0 {
            if entry.ids.is_full() {
                return Err(Disconnect::TooManySlots);
            }
            let piece = self.ring.next_in_batch()?.ok_or(Disconnect::Unfinished)?;
            check_page(piece.offset, piece.size)?;
            flags = piece.flags;
            own = own.and_then(|own| own.checked_sub(piece.size));
            if !entry.add(piece.id, part(self.domain, &piece, piece.size)) {
                own = None;
            }
        }
        let Some(own) = own.filter(|&own| usize::from(own) >= MIN_PACKET) else {
            answer(&mut self.ring, &entry.ids, extras.slots, false);
            self.stats.errors += 1;
            return Ok(false);
        };
        check_page(first.offset, own)?;
        entry.offload = extras.offload(first.flags)?;
        (entry.len, entry.extras) = (first.size.into(), extras.slots);
        let len = own.min(HEAD_BYTES as u16);
        let is_there = now.copy(&HeadCopy { gref: GrantRef::new(first.gref), offset: first.offset, id, len });
        entry.end(part(self.domain, first, own), self.heads.place(id.index()), is_there, ops);
        self.count(first.size);
        Ok(true)
    }

    /// Has the heads of the batch's packets copied, by one hypercall. A packet whose head cannot be copied is answered
    /// with an error, and leaves the batch.
    pub fn read_heads(&mut self, batch: &mut TxBatch, copier: &mut impl Copier) {
        if batch.ops.is_empty() {
            return;
        }
        copier.copy(&mut batch.ops);
        if !batch.ops.iter().all(CopyOp::ok) {
            self.drop_failed(batch);
        }
    }

    #[inline(never)]
    fn drop_failed(&mut self, batch: &mut TxBatch) {
        let mut ops = batch.ops.iter();
        batch.ids.retain(|&id| {
            let entry = &self.entries[id.index()];
            // Each copy counts, whether or not the one before failed.
            let ok = ops.by_ref().take(entry.ops.into()).fold(true, |ok, op| ok & op.ok());
            if !ok {
                self.stats.packets -= 1;
                self.stats.bytes -= u64::from(entry.len);
                self.respond(id, false);
            }
            ok
        });
    }

    /// The packet `id`.
    #[must_use]
    #[inline]
    pub fn packet(&self, id: TxId) -> Packet<'_> {
        self.entries[id.index()].packet()
    }

    /// Makes the head of packet `id` longer, up to [`HEAD_BYTES`] or to the packet's end, for a packet whose headers go
    /// on in the second slot. False: the bytes cannot be copied, and the caller answers the packet with an error.
    pub fn extend_head(&mut self, id: TxId, copier: &mut impl Copier) -> bool {
        let mut ops = ArrayVec::<CopyOp, MAX_SLOTS>::new();
        self.entries[id.index()].lengthen(HEAD_BYTES as u16, |op| ops.push(op));
        if !ops.is_empty() {
            copier.copy(&mut ops);
        }
        ops.iter().all(CopyOp::ok)
    }

    /// Answers packet `id`: nobody uses the packet's bytes any more. `ok` says that the packet's own grants were good; a
    /// packet that is dropped on its way is no fault of the frontend's.
    #[inline(always)]
    pub fn respond(&mut self, id: TxId, ok: bool) {
        let entry = &mut self.entries[id.index()];
        assert!(entry.len != 0, "answered twice");
        entry.len = 0;
        if let (&[id], 0) = (&entry.ids[..], entry.extras) {
            let status = if ok { NETIF_RSP_OKAY } else { NETIF_RSP_ERROR };
            self.ring.push_response(&NetifTxResponse { id, status });
        } else {
            answer(&mut self.ring, &entry.ids, entry.extras, ok);
        }
        self.stats.errors += u64::from(!ok);
        self.free.push(id);
    }

    /// Shows the frontend the answers so far, and notifies the frontend if it asked for that.
    pub fn publish(&mut self) {
        if self.ring.publish_responses() {
            self.notifier.notify();
        }
    }

    /// Asks the frontend to notify of the next packet, then looks again. `true`: packets wait already.
    ///
    /// # Errors
    /// [`Disconnect`]: the frontend ruined the ring.
    pub fn arm(&mut self) -> Result<bool, Disconnect> {
        Ok(self.ring.arm_and_recheck()?)
    }

    /// Packets taken and not answered.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// What the queue has done so far.
    #[must_use]
    pub const fn stats(&self) -> TxStats {
        self.stats
    }
}

/// Whether a packet is one good slot.
#[inline]
fn is_plain(first: &NetifTxRequest) -> bool {
    let size = usize::from(first.size);
    first.flags & (NETTXF_EXTRA_INFO | NETTXF_MORE_DATA) == 0
        && size >= MIN_PACKET
        && usize::from(first.offset) + size <= PAGE_SIZE
}

/// Writes the answers to all slots of a packet.
#[inline(never)]
fn answer<P: RingPage>(ring: &mut BackRing<NetifTxRing, P>, ids: &[u16], extras: u8, ok: bool) {
    let status = if ok { NETIF_RSP_OKAY } else { NETIF_RSP_ERROR };
    ring.push_responses(ids.iter().map(|&id| NetifTxResponse { id, status }));
    // Extra information has no tag: an answer that says nothing gives the slot back.
    ring.push_responses((0..extras).map(|_| NetifTxResponse { id: 0, status: NETIF_RSP_NULL }));
}

/// The bytes of one slot.
#[inline]
fn part(domain: DomId, slot: &NetifTxRequest, len: u16) -> Part {
    let gref = GrantRef::new(slot.gref);
    Part { place: Place::Grant { domain, gref, offset: slot.offset }, len }
}

fn check_page(offset: u16, size: u16) -> Result<(), Disconnect> {
    if usize::from(offset) + usize::from(size) > PAGE_SIZE {
        return Err(Disconnect::CrossesPage { offset, size });
    }
    Ok(())
}
