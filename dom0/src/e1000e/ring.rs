//! The two rings of descriptors.
//!
//! A ring fills a page. The card writes to a descriptor that it is done with, and the driver reads of it the `DD` bit and,
//! of one that a packet came in by, the length, the status and the errors, once each. All else the driver keeps itself.
//!
//! Source: the datasheet, sections 7.1.4 and 7.2.

use alloc::collections::VecDeque;
use alloc::sync::Arc;

use backends::net::{Checksum, MIN_PACKET};
use ring_abi::types::PAGE_SIZE;

use super::E1000eError;
use crate::hw::Dma;
use crate::net::wire::{ChecksumAt, Outgoing};

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
/// Descriptors of a ring.
pub(super) const RING: usize = PAGE_SIZE / DESCRIPTOR;

/// Receive status.
const RX_DD: u8 = 1;
const RX_EOP: u8 = 1 << 1;
const RX_IXSM: u8 = 1 << 2;
const RX_UDPCS: u8 = 1 << 4;
const RX_TCPCS: u8 = 1 << 5;
/// Receive errors: of the frame, and of the checksum of TCP or UDP.
const RX_FRAME_ERRORS: u8 = 1 | 1 << 1 | 1 << 2 | 1 << 4 | 1 << 7;
const RX_TCPE: u8 = 1 << 5;

/// Transmit commands and types, where the second double word of a descriptor has them.
const TX_EOP: u64 = 1 << 24;
const TX_IFCS: u64 = 1 << 25;
const TX_RS: u64 = 1 << 27;
const TX_DEXT: u64 = 1 << 29;
const TX_DATA: u64 = 1 << 20;
const TX_TXSM: u64 = 1 << 41;
const TX_DD: u8 = 1;

/// The receive ring: a buffer of one page for each descriptor but one, since a full ring is an empty one to the card.
pub(super) struct ReceiveRing<M> {
    memory: Arc<M>,
    /// By descriptor: the buffer.
    buffers: [u16; RING],
    /// The next descriptor that the card is done with, and the next that gets a buffer.
    next: usize,
    tail: usize,
}

/// A packet that came in.
pub(super) struct Filled {
    pub(super) buffer: u16,
    pub(super) len: usize,
    pub(super) checksum: Checksum,
    /// Nobody gets the packet: the frame has errors, or is too short.
    pub(super) good: bool,
}

impl<M: Dma> ReceiveRing<M> {
    pub(super) fn new(memory: M) -> Self {
        Self { memory: Arc::new(memory), buffers: [0; RING], next: 0, tail: 0 }
    }

    pub(super) fn maddr(&self) -> u64 {
        self.memory.maddr(0)
    }

    /// Gives the card the buffer at machine address `maddr`. `false`: the ring is full.
    pub(super) fn add(&mut self, buffer: u16, maddr: u64) -> bool {
        let after = (self.tail + 1) % RING;
        if after == self.next {
            return false;
        }
        self.memory.write(self.tail * DESCRIPTOR, &[maddr, 0]);
        self.buffers[self.tail] = buffer;
        self.tail = after;
        true
    }

    /// The descriptor up to which the card may go.
    pub(super) fn tail(&self) -> u32 {
        self.tail as u32
    }

    /// Whether the card is done with the next buffer.
    pub(super) fn is_ready(&self) -> bool {
        self.next != self.tail && self.memory.load8(self.next * DESCRIPTOR + 12) & RX_DD != 0
    }

    /// Takes the next buffer that the card is done with.
    ///
    /// # Errors
    /// [`E1000eError::BadDescriptor`]: what the card wrote cannot be.
    pub(super) fn take(&mut self) -> Result<Option<Filled>, E1000eError> {
        if self.next == self.tail {
            return Ok(None);
        }
        let at = self.next * DESCRIPTOR;
        let status = self.memory.load8(at + 12);
        if status & RX_DD == 0 {
            return Ok(None);
        }
        let len = usize::from(self.memory.load16(at + 8));
        let errors = self.memory.load8(at + 13);
        if len > PAGE_SIZE || status & RX_EOP == 0 {
            return Err(E1000eError::BadDescriptor("a packet is longer than its buffer"));
        }
        let buffer = self.buffers[self.next];
        self.next = (self.next + 1) % RING;
        let looked = status & RX_IXSM == 0 && status & (RX_TCPCS | RX_UDPCS) != 0;
        let checksum = if looked && errors & RX_TCPE == 0 { Checksum::Verified } else { Checksum::Complete };
        let good = errors & RX_FRAME_ERRORS == 0 && len >= MIN_PACKET;
        Ok(Some(Filled { buffer, len, checksum, good }))
    }
}

/// A packet that the card has.
#[derive(Clone, Copy)]
struct Sending {
    token: u32,
    /// The descriptor behind the packet's last.
    end: usize,
}

/// The transmit ring.
pub(super) struct TransmitRing<M> {
    memory: Arc<M>,
    /// The packets that the card has, the oldest first; the ring has room for as many as descriptors.
    sending: VecDeque<Sending>,
    /// The first descriptor that the card has, and the next free one.
    next: usize,
    tail: usize,
}

impl<M: Dma> TransmitRing<M> {
    pub(super) fn new(memory: M) -> Self {
        Self { memory: Arc::new(memory), sending: VecDeque::with_capacity(RING), next: 0, tail: 0 }
    }

    pub(super) fn maddr(&self) -> u64 {
        self.memory.maddr(0)
    }

    pub(super) fn tail(&self) -> u32 {
        self.tail as u32
    }

    fn free(&self) -> usize {
        (self.next + RING - self.tail - 1) % RING
    }

    fn push(&mut self, words: [u64; 2]) {
        self.memory.write(self.tail * DESCRIPTOR, &words);
        self.tail = (self.tail + 1) % RING;
    }

    /// Puts a packet that the card can send into the ring. `false`: the ring has no room now.
    pub(super) fn send(&mut self, token: u32, packet: &Outgoing<'_>) -> bool {
        let partial = packet.offload.checksum == Checksum::Partial;
        if self.free() < packet.spans.len() + usize::from(partial) {
            return false;
        }
        let mut options = 0;
        if let (true, Some(ChecksumAt { start, offset })) = (partial, packet.checksum_at) {
            // A context: where the sum begins and where the sum goes, up to the packet's end.
            self.push([u64::from(start) << 32 | u64::from(start + offset) << 40, TX_DEXT]);
            options = TX_TXSM;
        }
        let last = packet.spans.len() - 1;
        for (index, span) in packet.spans.iter().enumerate() {
            let end = if index == last { TX_EOP | TX_RS } else { 0 };
            let word = u64::from(span.len) | TX_DATA | TX_DEXT | TX_IFCS | options | end;
            self.push([span.maddr.raw(), word]);
        }
        self.sending.push_back(Sending { token, end: self.tail });
        true
    }

    /// Whether the card has sent the oldest packet.
    pub(super) fn is_ready(&self) -> bool {
        self.sending.front().is_some_and(|packet| {
            let last = (packet.end + RING - 1) % RING;
            self.memory.load8(last * DESCRIPTOR + 12) & TX_DD != 0
        })
    }

    /// Takes the oldest packet, if the card has sent it: the packet's token.
    pub(super) fn take(&mut self) -> Option<u32> {
        if !self.is_ready() {
            return None;
        }
        let packet = self.sending.pop_front()?;
        self.next = packet.end;
        Some(packet.token)
    }

    /// Takes the tokens of all packets that the card has: the card was reset.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = u32> + '_ {
        self.sending.drain(..).map(|packet| packet.token)
    }
}

/// All buffers that the ring takes.
pub(super) const BUFFERS: usize = RING - 1;

impl<M> ReceiveRing<M> {
    /// Has the ring's memory stay as it is for ever.
    pub(super) fn leak(&self) {
        core::mem::forget(self.memory.clone());
    }
}

impl<M> TransmitRing<M> {
    /// Has the ring's memory stay as it is for ever.
    pub(super) fn leak(&self) {
        core::mem::forget(self.memory.clone());
    }
}
