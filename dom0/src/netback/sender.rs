//! The sending half of a connected vif: the rings by which the frontend sends, and the packets that wait.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use backends::net::{
    Copier, CopyOp, Disconnect, Flow, HEAD_BYTES, HEADS_PER_PAGE, HeadCopy, HeadsNow, Intake, MAX_HEADS,
    MAX_PARTS, Packet, Part, Place, Stage, Taken, TxBatch, TxId, TxQueue,
};
use pvrt::grant::{CopyPages, GrantMap, GrantPage};
use ring_abi::shared::{SharedBytes, SharedMemory};
use ring_abi::types::PAGE_SIZE;
use zerocopy::IntoBytes;

use super::MAX_QUEUES;
use super::copier::{Fetcher, Hypervisor};
use crate::net::headers::Network;
use crate::net::switch::{Ethernet, PortId};
use crate::net::{Head, MacAddr};
use crate::xenbus::Bell;

/// A vif's ring for what its frontend sends.
pub(super) type Transmitter = TxQueue<GrantMap, Bell>;

/// Most packets that wait until there is room where they go: half of those that a vif has under way, so that a receiver
/// which takes nothing does not keep its senders from others.
pub(super) const MAX_PARKED: usize = MAX_HEADS / 2;

/// What a receiver must know of a packet before the packet is its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameKind {
    /// The station or group that the packet is for.
    pub(super) to: MacAddr,
    pub(super) is_ipv6: bool,
    /// What the packet's hash is of; `None`: no receiver hashes, or the packet has nothing to hash.
    pub(super) flow: Option<Flow>,
}

impl FrameKind {
    /// `is_hashing`: some receiver hashes packets.
    pub(super) fn of(head: &Head<'_>, is_hashing: bool) -> Self {
        let flow = if is_hashing { head.hashed() } else { None };
        Self { to: head.to(), is_ipv6: head.network() == Network::Ipv6, flow }
    }
}

/// A packet's frame, beside where its bytes lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) kind: FrameKind,
    /// The queue that the packet came by.
    pub(super) from_queue: usize,
    /// The vif that the packet came by: what is in no head may be in pages that the vif's frontend lends.
    pub(super) lender: Option<PortId>,
    /// The packet's first bytes as they are in its head; none if they are not at hand.
    pub(super) head: &'a [u8],
}

/// A packet that waits until there is room where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parked {
    pub(super) queue: usize,
    pub(super) id: TxId,
    pub(super) to: PortId,
    /// Behind the port is a network card.
    pub(super) is_card: bool,
    pub(super) kind: FrameKind,
    /// When the packet is dropped.
    pub(super) until_ns: u64,
}

impl Parked {
    /// Packets of one queue to one receiver stay in order.
    pub(super) fn flow(&self) -> (usize, PortId) {
        (self.queue, self.to)
    }
}

/// The heads of one queue's packets.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    /// Of all queues.
    pub(super) bytes: SharedBytes<'a>,
    /// Where the queue's begin.
    first: usize,
}

impl Heads<'_> {
    /// Where the page begins that a packet's head is in.
    #[inline(always)]
    pub(super) fn page_at(&self, id: TxId) -> usize {
        self.first + id.head_at().0 * PAGE_SIZE
    }

    /// The Ethernet header of a packet with a head of `len` bytes. `None`: the header is not in the head as a whole.
    #[inline(always)]
    pub(super) fn ethernet(&self, id: TxId, len: u16) -> Option<Ethernet> {
        if usize::from(len) < size_of::<Ethernet>() {
            return None;
        }
        // Heads are apart by more than 16 bytes.
        let at = self.page_at(id) + id.head_at().1;
        let words = [self.bytes.load_u64(at), self.bytes.load_u64(at + 8)];
        words.as_bytes().first_chunk().copied()
    }
}

/// What one batch after the other of all vifs is taken by.
pub(super) struct Batch {
    pub(super) packets: TxBatch,
    /// Room for copies of heads.
    rest: Vec<CopyOp>,
}

impl Batch {
    /// Room for so many packets.
    pub(super) fn new(packets: usize) -> Self {
        Self { packets: TxBatch::with_capacity(packets), rest: Vec::with_capacity(2 * packets) }
    }
}

/// Copies heads from pages that the sender lends.
struct LentHeads<'a> {
    stage: &'a Stage<GrantPage>,
    /// The heads of all queues, and the queue's first page of these.
    heads: SharedBytes<'a>,
    first: usize,
}

impl HeadsNow for LentHeads<'_> {
    #[inline(always)]
    fn copy(&mut self, copy: &HeadCopy) -> bool {
        let Some(page) = self.stage.readable(copy.gref) else { return false };
        let (head_page, to) = copy.id.head_at();
        let to = (self.first + head_page) * PAGE_SIZE + to;
        // The bytes stay in the page: the queue has looked.
        page.shared().copy_to(copy.offset.into(), &self.heads, to, copy.len.into());
        true
    }
}

struct Queue {
    ring: Transmitter,
    /// Why the queue took no more.
    last: Taken,
    /// Packets that were taken and that the round had no time for.
    left: ArrayVec<TxId, MAX_HEADS>,
}

/// The sending half of a connected vif.
pub(super) struct Sender {
    pub(super) port: PortId,
    queues: ArrayVec<Queue, MAX_QUEUES>,
    /// The heads of all queues' packets.
    heads: CopyPages,
    /// Pages of heads of each queue.
    pages_each: usize,
    /// In the order in which the packets came.
    pub(super) parked: ArrayVec<Parked, MAX_PARKED>,
}

impl Sender {
    /// The half of `port` with rings that have an equal share of `heads` each, in order.
    pub(super) fn new(port: PortId, rings: Vec<Transmitter>, heads: CopyPages) -> Self {
        let queues: ArrayVec<_, MAX_QUEUES> =
            rings.into_iter().map(|ring| Queue { ring, last: Taken::Empty, left: ArrayVec::new() }).collect();
        let pages_each = heads.pages().count() / queues.len();
        Self { port, queues, heads, pages_each, parked: ArrayVec::new() }
    }

    /// Number of queues, at least one.
    pub(super) fn queues(&self) -> usize {
        self.queues.len()
    }

    #[inline(always)]
    pub(super) fn queue(&mut self, queue: usize) -> &mut Transmitter {
        &mut self.queues[queue].ring
    }

    /// A ring, to look at.
    #[inline(always)]
    pub(super) fn ring(&self, queue: usize) -> &Transmitter {
        &self.queues[queue].ring
    }

    /// Where a packet's head lies in the heads' pages.
    #[inline(always)]
    fn head_at(&self, queue: usize, id: TxId) -> usize {
        let (page, offset) = id.head_at();
        (queue * self.pages_each + page) * PAGE_SIZE + offset
    }

    /// A ring by which the frontend sends, and the heads of its packets.
    #[inline(always)]
    pub(super) fn ring_and_heads(&mut self, queue: usize) -> (&mut Transmitter, Heads<'_>) {
        let first = queue * self.pages_each * PAGE_SIZE;
        (&mut self.queues[queue].ring, Heads { bytes: self.heads.pages().bytes(), first })
    }

    pub(super) fn copy(&self) -> impl Copier {
        Hypervisor(&self.heads)
    }

    /// A packet, and what copies it to receivers.
    pub(super) fn packet_and_copier(&self, queue: usize, id: TxId) -> (Packet<'_>, impl Copier) {
        (self.queues[queue].ring.packet(id), self.copy())
    }

    /// Whether a packet, all of whose copies were tried, has a grant that is none: of the copies from `failed` the fault may be the
    /// receiver's as well, so the ends of each part are copied once more, to the packet's own head.
    #[cold]
    pub(super) fn is_at_fault(&self, queue: usize, id: TxId, failed: &[Place]) -> bool {
        let packet = self.ring(queue).packet(id);
        let Some((head, rest)) = packet.parts.split_first() else { return false };
        let is_of = |part: &Part, place: &Place| match (part.place, *place) {
            (Place::Grant { domain, gref, .. }, Place::Grant { domain: of, gref: other, .. }) => {
                (domain, gref) == (of, other)
            }
            _ => false,
        };
        let mut probes = ArrayVec::<CopyOp, { 2 * MAX_PARTS }>::new();
        for part in rest.iter().filter(|part| failed.iter().any(|place| is_of(part, place))) {
            probes.extend([0, part.len - 1].map(|at| CopyOp::new(part.place.after(at), head.place, 1)));
        }
        self.copy().copy(&mut probes);
        !probes.iter().all(CopyOp::ok)
    }

    /// Keeps packets for the next round.
    #[inline(never)]
    pub(super) fn leave(&mut self, queue: usize, ids: &[TxId]) {
        self.queues[queue].left.extend(ids.iter().copied());
    }

    /// Takes the packets that the last round left.
    #[inline]
    pub(super) fn take_left(&mut self, queue: usize) -> ArrayVec<TxId, MAX_HEADS> {
        // Mostly none are left, and an empty list is as large as a full one.
        let left = &mut self.queues[queue].left;
        if left.is_empty() { ArrayVec::new() } else { core::mem::take(left) }
    }

    /// Takes packets from a ring, and has their heads copied: from pages of `stage` without a hypercall.
    pub(super) fn take(
        &mut self,
        queue: usize,
        most: usize,
        (intake, stage): (&mut Intake, &Stage<GrantPage>),
        now_ns: u64,
        Batch { packets, rest }: &mut Batch,
    ) -> Result<Taken, Disconnect> {
        let Queue { ring, last, .. } = &mut self.queues[queue];
        let mut lent = LentHeads { stage, heads: self.heads.pages().bytes(), first: queue * self.pages_each };
        *last = ring.take_with(most, intake, now_ns, packets, &mut lent)?;
        ring.read_heads(packets, &mut Fetcher { heads: &self.heads, stage, rest });
        Ok(*last)
    }

    /// Reads the head of a packet into `bytes`; gives how many bytes there are.
    #[inline(always)]
    pub(super) fn read_head(&self, queue: usize, id: TxId, bytes: &mut [u8; HEAD_BYTES]) -> usize {
        let len = usize::from(self.queues[queue].ring.packet(id).head_len()).min(HEAD_BYTES);
        self.heads.pages().bytes().read(self.head_at(queue, id), &mut bytes[..len]);
        len
    }

    /// Writes a head that was rewritten back to where it is sent from.
    pub(super) fn write_head(&self, queue: usize, id: TxId, bytes: &[u8]) {
        self.heads.pages().bytes().write(self.head_at(queue, id), bytes);
    }

    /// Copies more of a packet whose headers go on behind its head. False: the bytes cannot be had.
    pub(super) fn extend_head(&mut self, queue: usize, id: TxId) -> bool {
        self.queues[queue].ring.extend_head(id, &mut Hypervisor(&self.heads))
    }

    /// Shows the frontend the answers so far. `true`: a queue that had no free head has one now, so that it may take more.
    pub(super) fn publish(&mut self) -> bool {
        let heads = (self.pages_each * HEADS_PER_PAGE).min(MAX_HEADS);
        let mut goes_on = false;
        for queue in &mut self.queues {
            queue.ring.publish();
            goes_on |= queue.last == Taken::NoHead && queue.ring.under_way() < heads;
        }
        goes_on
    }

    /// Packets that the frontend has sent, their bytes, and what was sent and is no packet.
    pub(super) fn sent(&self) -> (u64, u64, u64) {
        let stats = self.queues.iter().map(|queue| queue.ring.stats());
        stats.fold((0, 0, 0), |sum, stats| (sum.0 + stats.packets, sum.1 + stats.bytes, sum.2 + stats.errors))
    }

    /// Asks the frontend to notify of the next packet. `true`: packets wait already.
    ///
    /// # Errors
    /// The frontend ruined a ring.
    pub(super) fn arm(&mut self) -> Result<bool, Disconnect> {
        let mut waiting = false;
        // What waits in the other rings is known, and waits for something else.
        for queue in self.queues.iter_mut().filter(|queue| queue.last == Taken::Empty) {
            waiting |= queue.ring.arm()?;
        }
        Ok(waiting)
    }
}
