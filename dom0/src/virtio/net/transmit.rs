//! Packets on their way out: a slot for each, and the queue.
//!
//! A slot holds the packet's header and, behind the header, the descriptors of header and spans: 512 bytes of the
//! driver's own pages, for each descriptor of the queue. The packet is named by the queue's descriptor with which the
//! packet begins. Of the caller the driver keeps the token alone.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use backends::net::{Checksum, GsoKind, MAX_PACKET, MIN_PACKET};
use ring_abi::types::PAGE_SIZE;

use super::header::{HEADER_BYTES, HEADER_WORDS, encode};
use crate::hw::{Dma, DmaSource};
use crate::net::wire::{Outgoing, Span, TransmitError, WireFeatures};
use crate::virtio::queue::{DESCRIPTOR, Part, Queue, QueueError, descriptor};
use crate::virtio::transport::Doorbell;

/// Bytes of a slot.
const SLOT: usize = 512;
const SLOTS_PER_PAGE: usize = PAGE_SIZE / SLOT;
/// Where the descriptors begin in a slot.
const SLOT_TABLE: usize = HEADER_WORDS * 8;
/// Descriptors in a slot.
const SLOT_ENTRIES: usize = (SLOT - SLOT_TABLE) / DESCRIPTOR;
/// Most spans of a packet: the header takes a descriptor too.
pub(super) const MAX_SPANS: usize = SLOT_ENTRIES - 1;

/// Bytes of an Ethernet header with a VLAN tag, which no MTU counts.
const LINK_BYTES: usize = 18;

/// Pages of the slots of `queue` descriptors.
pub(super) const fn slot_pages(queue: usize) -> usize {
    queue.div_ceil(SLOTS_PER_PAGE)
}

/// Looks whether the card can send a packet.
///
/// # Errors
/// [`TransmitError::Unfit`] says what the card cannot do, or which limit the packet exceeds.
pub(super) fn check(packet: &Outgoing<'_>, card: &WireFeatures) -> Result<(), TransmitError> {
    let need = |good: bool, what| if good { Ok(()) } else { Err(TransmitError::Unfit(what)) };
    let mut len = 0;
    for span in packet.spans {
        let end = span.maddr.offset() + span.len as usize;
        need(span.len > 0 && end <= PAGE_SIZE, "a span is empty or crosses a page")?;
        len += span.len as usize;
    }
    need(packet.spans.len() <= card.max_spans, "it has too many spans")?;
    let most = if packet.offload.gso.is_some() { MAX_PACKET } else { usize::from(card.mtu) + LINK_BYTES };
    need((MIN_PACKET..=most).contains(&len), "its length")?;
    if packet.offload.checksum == Checksum::Partial {
        need(card.checksum, "its checksum is not complete")?;
        let at = packet.checksum_at.ok_or(TransmitError::Unfit("nothing says where its checksum is"))?;
        let end = usize::from(at.start) + usize::from(at.offset) + 2;
        need(end <= len, "its checksum lies behind the packet")?;
    }
    if let Some(gso) = packet.offload.gso {
        let can = match gso.kind {
            GsoKind::TcpV4 => card.tso4,
            GsoKind::TcpV6 => card.tso6,
        };
        need(can, "it is to be cut into segments")?;
        need(packet.offload.checksum == Checksum::Partial, "its segments would have no checksum")?;
        let header = usize::from(packet.header_len);
        need(gso.size > 0 && (MIN_PACKET..len).contains(&header), "its segments have no size or no header")?;
    }
    Ok(())
}

/// One transmit queue.
pub(super) struct TransmitQueue<M> {
    pub(super) queue: Queue<M>,
    pub(super) doorbell: Doorbell,
    slots: Vec<M>,
    /// By head of chain: the token of the packet that the card has.
    tokens: Vec<Option<u32>>,
    indirect: bool,
    /// A chain that is being made, on a device without indirect descriptors; kept between calls for the capacity.
    chain: Vec<Part>,
}

impl<M: Dma> TransmitQueue<M> {
    /// Takes the pages for the slots.
    pub(super) fn new<S: DmaSource<Memory = M>>(
        source: &S,
        queue: Queue<M>,
        doorbell: Doorbell,
        indirect: bool,
    ) -> Option<Self> {
        let size = usize::from(queue.size());
        let slots = (0..slot_pages(size)).map(|_| source.allocate(1)).collect::<Option<_>>()?;
        let tokens = alloc::vec![None; size];
        Some(Self { queue, doorbell, slots, tokens, indirect, chain: Vec::with_capacity(SLOT_ENTRIES) })
    }

    /// Most spans of a packet in a queue of `size` descriptors.
    pub(super) fn max_spans(size: u16, indirect: bool) -> usize {
        if indirect { MAX_SPANS } else { MAX_SPANS.min(usize::from(size) - 1) }
    }

    /// Puts a packet that [`check`] found good into the queue. `false`: the queue has no room now.
    pub(super) fn push(&mut self, token: u32, packet: &Outgoing<'_>) -> bool {
        let needed = if self.indirect { 1 } else { 1 + packet.spans.len() };
        if self.queue.free() < needed {
            return false;
        }
        let slot = usize::from(self.queue.next_head());
        let page = &self.slots[slot / SLOTS_PER_PAGE];
        let offset = slot % SLOTS_PER_PAGE * SLOT;
        let maddr = page.maddr(offset);
        let header = Part { maddr, len: HEADER_BYTES as u32, device_writes: false };
        let part = |span: &Span| Part { maddr: span.maddr.raw(), len: span.len, device_writes: false };
        let parts = core::iter::once(header).chain(packet.spans.iter().map(part));
        let head = if self.indirect {
            let entries = 1 + packet.spans.len();
            let mut words: ArrayVec<[u64; HEADER_WORDS], { 1 + SLOT_ENTRIES }> = ArrayVec::new();
            words.push(encode(packet));
            for (next, part) in (1..).zip(parts) {
                words.push(descriptor(&part, (usize::from(next) < entries).then_some(next)));
            }
            page.write(offset, words.as_flattened());
            self.queue.push_indirect(maddr + SLOT_TABLE as u64, entries)
        } else {
            page.write(offset, &encode(packet));
            self.chain.clear();
            self.chain.extend(parts);
            self.queue.push(&self.chain)
        };
        if let Some(head) = head {
            self.tokens[usize::from(head)] = Some(token);
        }
        head.is_some()
    }

    /// Takes a packet that the card has sent: the packet's token.
    ///
    /// # Errors
    /// [`QueueError`]: the card broke its queue's rules.
    pub(super) fn pop(&mut self) -> Result<Option<u32>, QueueError> {
        let Some((head, _)) = self.queue.pop()? else { return Ok(None) };
        self.tokens[usize::from(head)].take().map(Some).ok_or(QueueError::UnknownChain(head.into()))
    }

    /// Takes the tokens of all packets that the card has: the card was reset.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = u32> + '_ {
        self.tokens.iter_mut().filter_map(Option::take)
    }
}
