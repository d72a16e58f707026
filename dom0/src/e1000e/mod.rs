//! The driver of Intel's 82574 network card (`e1000e`), behind the same trait as virtio's.
//!
//! The card completes checksums and checks those that come in. The card could cut segments, too, but wants other headers
//! for that than all others do, and the driver rewrites no packet: so senders cut segments themselves. A packet is at
//! most 1,518 bytes long with a VLAN tag, so that each packet that comes in has a buffer of its own.
//!
//! As with virtio's cards, what the driver takes is fixed ([`CARD_PAGES`]), a card that breaks a rule is reset and out of
//! use, and the memory of a card that does not reset is never used again. (I40)
//!
//! Source: Intel 82574 GbE Controller Family Datasheet, revision 3.4.
#![forbid(unsafe_code)]

mod registers;
mod ring;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Poll};

use backends::net::{Checksum, MIN_PACKET};
use ring_abi::types::PAGE_SIZE;
use spin::Mutex;

use self::registers::*;
use self::ring::{BUFFERS, RING, ReceiveRing, TransmitRing};
use crate::hw::{Buffers, Dma, DmaSource, Interrupt, Registers};
use crate::net::wire::{
    Outgoing, ReceiveBuffers, Received, ReceivedPart, TransmitError, Transmitted, Wire, WireFeatures,
};

/// Bytes of the card's registers that the driver uses.
pub const REGISTER_BYTES: usize = LENGTH;

/// PCI vendor id of Intel.
pub const VENDOR: u16 = 0x8086;
/// PCI device id of the card.
pub const DEVICE: u16 = 0x10d3;

/// Interrupt vectors that the card gets: one for each ring, one for all else.
pub const VECTORS: u16 = 3;
/// Most pages that a card gets: receive buffers and two rings.
pub const CARD_PAGES: usize = BUFFERS + 2;

const MTU: u16 = 1500;
/// Bytes of Ethernet header and VLAN tag.
const LINK_BYTES: usize = 18;
/// Most spans of a packet: the ring has room for several such packets.
const MAX_SPANS: usize = 30;
/// Largest offset of a checksum from the packet's first byte.
const MAX_CHECKSUM_OFFSET: usize = 255;

/// Reads of a register before a reset counts as failed.
const RESET_POLLS: usize = 1_000_000;
/// Causes of which the card tells.
const CAUSES: u32 = CAUSE_RXQ0 | CAUSE_TXQ0 | CAUSE_OTHER | CAUSE_LSC;

/// Why a network card cannot be used, or ceased to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum E1000eError {
    /// The card does not leave reset.
    ResetTimeout,
    /// No memory for the rings and buffers.
    OutOfMemory,
    /// No interrupt for the card.
    NoInterrupt,
    /// The card's address is no station's.
    BadAddress,
    /// What the card wrote to a descriptor cannot be.
    BadDescriptor(&'static str),
}

impl fmt::Display for E1000eError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ResetTimeout => write!(f, "the device does not leave reset"),
            Self::OutOfMemory => write!(f, "no memory for its rings and buffers"),
            Self::NoInterrupt => write!(f, "no MSI-X interrupt"),
            Self::BadAddress => write!(f, "its registers give a bad Ethernet address"),
            Self::BadDescriptor(what) => write!(f, "it broke a ring: {what}"),
        }
    }
}

/// An 82574 network card.
///
/// The lock is held for one call of [`Wire`]'s methods. No method calls another of these, nor a waker.
pub struct E1000e<M, I> {
    name: String,
    registers: Box<dyn Registers>,
    mac: [u8; 6],
    buffers: Arc<Buffers<M>>,
    inner: Mutex<Inner<M>>,
    link: AtomicBool,
    malformed: AtomicU64,
    // Behind `inner`, whose rings the interrupts belong to.
    interrupts: Vec<I>,
}

struct Inner<M> {
    receive: ReceiveRing<M>,
    transmit: TransmitRing<M>,
    /// The tails that the card was told.
    told: [u32; 2],
    /// Buffers that packets took since the last refill.
    taken: usize,
    /// A list of buffers, kept between refills for its capacity.
    spare: Vec<u16>,
    /// Packets that were not sent since the card broke. The list has room for all that the card can have.
    unsent: Vec<Transmitted>,
    broken: bool,
    /// The task that leads the packets has not heard yet that the card broke or that the link changed.
    news: bool,
    /// The card did not reset when it broke.
    stuck: bool,
}

/// Stops the card: when this function returns `true`, the card touches no memory and interrupts nobody any more.
fn reset(registers: &dyn Registers) -> bool {
    registers.write32(IMC, u32::MAX);
    registers.write32(RCTL, 0);
    registers.write32(TCTL, 0);
    registers.write32(CTRL, registers.read32(CTRL) | CTRL_RST);
    let over = (0..RESET_POLLS).any(|_| {
        core::hint::spin_loop();
        registers.read32(CTRL) & CTRL_RST == 0
    });
    registers.write32(IMC, u32::MAX);
    over
}

impl<M: Dma + 'static, I: Interrupt> E1000e<M, I> {
    /// Brings the card up. `name` is for the log; `bind` gives the interrupt of an MSI-X vector, from 0 on, and may refuse
    /// any but the first.
    ///
    /// # Errors
    /// [`E1000eError`] says what is wrong with the card, or what is missing.
    pub fn new<S: DmaSource<Memory = M>>(
        name: String,
        registers: Box<dyn Registers>,
        source: &S,
        bind: impl FnMut(u16) -> Option<I>,
    ) -> Result<Self, E1000eError> {
        if !reset(&*registers) {
            return Err(E1000eError::ResetTimeout);
        }
        let (low, high) = (registers.read32(RAL0).to_le_bytes(), registers.read32(RAH0).to_le_bytes());
        let mac = [low[0], low[1], low[2], low[3], high[0], high[1]];
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(E1000eError::BadAddress);
        }
        let interrupts: Vec<I> = (0..VECTORS).map_while(bind).collect();
        if interrupts.is_empty() {
            return Err(E1000eError::NoInterrupt);
        }
        let page = || source.allocate(1).ok_or(E1000eError::OutOfMemory);
        let inner = Inner {
            receive: ReceiveRing::new(page()?),
            transmit: TransmitRing::new(page()?),
            told: [0; 2],
            taken: 0,
            spare: Vec::with_capacity(BUFFERS),
            unsent: Vec::with_capacity(RING),
            broken: false,
            news: false,
            stuck: false,
        };
        let buffers = Arc::new(Buffers::new(source, BUFFERS).ok_or(E1000eError::OutOfMemory)?);
        let (inner, link, malformed) = (Mutex::new(inner), AtomicBool::new(false), AtomicU64::new(0));
        // From here on, dropping the card resets it.
        let card = Self { name, registers, mac, buffers, inner, link, malformed, interrupts };
        card.start();
        Ok(card)
    }

    fn start(&self) {
        let mut inner = self.inner.lock();
        let write = |register: usize, value: u32| self.registers.write32(register, value);
        for word in 0..MTA_WORDS {
            write(MTA + 4 * word, 0);
        }
        for (ring, maddr) in [(RECEIVE_RING, inner.receive.maddr()), (TRANSMIT_RING, inner.transmit.maddr())]
        {
            write(ring + RING_BASE, maddr as u32);
            write(ring + RING_BASE + 4, (maddr >> 32) as u32);
            write(ring + RING_BYTES, PAGE_SIZE as u32);
            write(ring + RING_HEAD, 0);
            write(ring + RING_TAIL, 0);
        }
        let last = self.interrupts.len() as u32 - 1;
        let routes = (0..).zip(IVAR_SHIFTS).map(|(vector, shift)| (last.min(vector) | IVAR_VALID) << shift);
        write(IVAR, routes.sum());
        write(EIAC, CAUSE_RXQ0 | CAUSE_TXQ0 | CAUSE_OTHER);
        write(TXDCTL, TXDCTL_VALUE);
        write(TCTL, TCTL_EN | TCTL_PSP | TCTL_COLLISION);
        write(RXCSUM, RXCSUM_TUOFLD);
        write(RCTL, RCTL_EN | RCTL_UPE | RCTL_MPE | RCTL_BAM | RCTL_BSIZE_4096 | RCTL_SECRC);
        write(CTRL, self.registers.read32(CTRL) | CTRL_SLU);
        self.refill(&mut inner);
        self.link.store(self.reads_link(), Ordering::Relaxed);
    }

    fn reads_link(&self) -> bool {
        self.registers.read32(STATUS) & STATUS_LU != 0
    }

    /// Gives the card all free buffers.
    fn refill(&self, inner: &mut Inner<M>) {
        inner.taken = 0;
        let mut free = self.buffers.take_free(core::mem::take(&mut inner.spare));
        while let Some(&buffer) = free.last()
            && inner.receive.add(buffer, self.buffers.frame(buffer).maddr().raw())
        {
            free.pop();
        }
        debug_assert!(free.is_empty(), "the ring has room for all buffers");
        inner.spare = free;
        self.tell(&mut inner.told[0], RECEIVE_RING, inner.receive.tail());
    }

    /// Tells the card how far a ring goes, if the ring goes farther than the card was told.
    fn tell(&self, told: &mut u32, ring: usize, tail: u32) {
        if *told != tail {
            *told = tail;
            // The card reads descriptors that were written before this register.
            core::sync::atomic::fence(Ordering::SeqCst);
            self.registers.write32(ring + RING_TAIL, tail);
        }
    }

    /// Resets the card, and notes what the card had to send as unsent. If the reset fails, these packets never come back
    /// and their memory stays lent: the card may still read that memory.
    fn give_up(&self, inner: &mut Inner<M>, error: E1000eError) {
        log::error!("{}: {error}; it is out of use", self.name);
        inner.broken = true;
        inner.news = true;
        self.link.store(false, Ordering::Relaxed);
        if !reset(&*self.registers) {
            inner.stuck = true;
            log::error!("{}: it does not reset; the memory it was given stays with it", self.name);
            return;
        }
        inner.unsent.extend(inner.transmit.take_all().map(|token| Transmitted { token, sent: false }));
    }
}

/// Looks whether the card can send a packet.
fn check(packet: &Outgoing<'_>) -> Result<(), TransmitError> {
    let need = |good: bool, what| if good { Ok(()) } else { Err(TransmitError::Unfit(what)) };
    let mut len = 0;
    for span in packet.spans {
        let end = span.maddr.offset() + span.len as usize;
        need(span.len > 0 && end <= PAGE_SIZE, "a span is empty or crosses a page")?;
        len += span.len as usize;
    }
    need(packet.spans.len() <= MAX_SPANS, "it has too many spans")?;
    need((MIN_PACKET..=usize::from(MTU) + LINK_BYTES).contains(&len), "its length")?;
    need(packet.offload.gso.is_none(), "it is to be cut into segments")?;
    if packet.offload.checksum == Checksum::Partial {
        let at = packet.checksum_at.ok_or(TransmitError::Unfit("nothing says where its checksum is"))?;
        let sum = usize::from(at.start) + usize::from(at.offset);
        need(sum + 2 <= len, "its checksum lies behind the packet")?;
        need(sum <= MAX_CHECKSUM_OFFSET, "its checksum lies too far behind its beginning")?;
    }
    Ok(())
}

impl<M: Dma + 'static, I: Interrupt + Send + Sync> Wire for E1000e<M, I> {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> WireFeatures {
        WireFeatures {
            mac: self.mac,
            mtu: MTU,
            checksum: true,
            tso4: false,
            tso6: false,
            max_spans: MAX_SPANS,
            slots: RING - 1,
        }
    }

    fn link_up(&self) -> bool {
        self.link.load(Ordering::Relaxed)
    }

    fn transmit(&self, token: u32, packet: Outgoing<'_>) -> Result<(), TransmitError> {
        check(&packet)?;
        let mut inner = self.inner.lock();
        if inner.broken {
            return Err(TransmitError::Broken);
        }
        if inner.transmit.send(token, &packet) { Ok(()) } else { Err(TransmitError::Full) }
    }

    fn kick(&self) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if !inner.broken {
            self.tell(&mut inner.told[1], TRANSMIT_RING, inner.transmit.tail());
        }
    }

    fn transmitted(&self, out: &mut Vec<Transmitted>) {
        let mut inner = self.inner.lock();
        if !inner.broken {
            while let Some(token) = inner.transmit.take() {
                out.push(Transmitted { token, sent: true });
            }
        }
        out.append(&mut inner.unsent);
    }

    fn receive(&self) -> Option<Received> {
        let mut inner = self.inner.lock();
        if !inner.broken && inner.taken >= BUFFERS / 4 {
            self.refill(&mut inner);
        }
        while !inner.broken {
            match inner.receive.take() {
                Ok(None) => break,
                Ok(Some(filled)) => {
                    inner.taken += 1;
                    let frame = self.buffers.frame(filled.buffer);
                    let part =
                        ReceivedPart { frame, buffer: filled.buffer, offset: 0, len: filled.len as u16 };
                    if filled.good {
                        let offload =
                            backends::net::Offload { checksum: filled.checksum, ..Default::default() };
                        let parts = [part].into_iter().collect();
                        return Some(Received::new(offload, None, parts, self.buffers.clone()));
                    }
                    self.buffers.give_back(&[part]);
                    self.malformed.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => self.give_up(&mut inner, error),
            }
        }
        None
    }

    fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut changed = false;
        // Where vectors are few, the last one tells of changes and of other things, too.
        let last = self.interrupts.len() - 1;
        for (index, interrupt) in self.interrupts.iter().enumerate() {
            // The call that takes an interrupt does not ask for the next.
            while interrupt.poll_next(context).is_ready() {
                changed |= index == last;
            }
        }
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if !inner.broken {
            if changed {
                let link = self.reads_link();
                inner.news |= self.link.swap(link, Ordering::Relaxed) != link;
            }
            self.refill(inner);
            self.tell(&mut inner.told[1], TRANSMIT_RING, inner.transmit.tail());
            // Sending an interrupt's message ends the wish for the next. A cause that came meanwhile is told at once.
            self.registers.write32(IMS, CAUSES);
            if inner.receive.is_ready() || inner.transmit.is_ready() {
                return Poll::Ready(());
            }
        }
        if core::mem::take(&mut inner.news) || !inner.unsent.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl<M, I> Drop for E1000e<M, I> {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        if inner.stuck || !reset(&*self.registers) {
            // The card may use the memory still: nobody else gets it.
            core::mem::forget(self.buffers.clone());
            inner.receive.leak();
            inner.transmit.leak();
        }
    }
}
