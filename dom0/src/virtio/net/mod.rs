//! The driver of network cards: packets by scatter lists of machine addresses, and receive buffers of a page each.
//!
//! A card has pairs of a receive queue and a transmit queue. The driver's memory is the same whatever the number of
//! pairs is: [`CARD_PAGES`] at most. Nothing of the driver runs by itself: the task that leads the card's packets calls
//! [`Wire`]'s methods, and the interrupts wake that task.
//!
//! A card that breaks a rule is reset and out of use: what it had to send comes back unsent, and nothing else happens.
//! If the card does not even reset, then it may go on with the memory that it was given; so that memory is never used
//! again. (I40)
//!
//! Source: VIRTIO 1.2, section 5.1.

mod control;
mod features;
mod header;
mod receive;
mod rings;
#[cfg(test)]
mod tests;
mod transmit;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Poll};

use backends::net::MAX_PACKET;
use ring_abi::types::PAGE_SIZE;
use spin::Mutex;

use self::features::{F_CSUM, F_HOST_TSO4, F_HOST_TSO6, F_MRG_RXBUF};
use self::header::HEADER_BYTES;
use self::receive::Taken;
use self::rings::Rings;
use self::transmit::{TransmitQueue, check};
use super::queue::{QUEUE_PAGES, QueueError};
use super::transport::{F_INDIRECT_DESC, Transport, TransportError};
use crate::hw::{Buffers, Dma, DmaSource, Interrupt};
use crate::net::wire::{Outgoing, Received, TransmitError, Transmitted, Wire, WireFeatures};

/// Most pairs of queues that the driver uses. One thread serves all; more pairs let the card's own threads share work.
const MAX_PAIRS: usize = 4;
/// Receive buffers of a card, shared out to its pairs.
const RECEIVE_BUFFERS: usize = 256;
/// Descriptors of all transmit queues of a card.
const TRANSMIT_SLOTS: usize = 256;

/// Most interrupt vectors that a card gets: one for each queue, one for all else.
pub const MAX_VECTORS: usize = 2 * MAX_PAIRS + 1;
/// Most pages that a card gets: receive buffers, transmit slots, queues, and the control queue with its command.
pub const CARD_PAGES: usize =
    RECEIVE_BUFFERS + transmit::slot_pages(TRANSMIT_SLOTS) + 2 * MAX_PAIRS * QUEUE_PAGES + (QUEUE_PAGES + 1);

/// Bytes of Ethernet header and VLAN tag.
const LINK_BYTES: usize = 18;

/// Why a network card cannot be used, or ceased to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetError {
    /// The transport's reason.
    Transport(TransportError),
    /// No memory for the queues and buffers.
    OutOfMemory,
    /// No interrupt for the card.
    NoInterrupt,
    /// The card's registers say what no card can be.
    BadRegisters(&'static str),
    /// The card broke the rules of a queue.
    Queue(QueueError),
    /// The card broke the rules of receive buffers.
    BadBuffer(&'static str),
    /// The card asked to be reset.
    NeedsReset,
}

impl From<TransportError> for NetError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::OutOfMemory => write!(f, "no memory for its queues and buffers"),
            Self::NoInterrupt => write!(f, "no MSI-X interrupt"),
            Self::BadRegisters(what) => write!(f, "its registers give a bad {what}"),
            Self::Queue(error) => write!(f, "it broke a queue: {error}"),
            Self::BadBuffer(what) => write!(f, "it broke its receive buffers: {what}"),
            Self::NeedsReset => write!(f, "it asked to be reset"),
        }
    }
}

/// A virtio network card.
///
/// The lock is held for one call of [`Wire`]'s methods. No method calls another of these, nor a waker.
pub struct VirtioNet<M, I> {
    name: String,
    transport: Transport,
    agreed: u64,
    features: WireFeatures,
    buffers: Arc<Buffers<M>>,
    inner: Mutex<Inner<M>>,
    link: AtomicBool,
    malformed: AtomicU64,
    // Behind `inner`, whose queues the interrupts belong to.
    interrupts: Vec<I>,
}

struct Inner<M> {
    rings: Rings<M>,
    /// The pair at which the next look for a packet begins.
    next_pair: usize,
    /// Buffers that packets took since the last refill.
    taken: usize,
    /// Packets that the card has no more and of which the caller has not heard. The list has room for all that the card
    /// can have.
    over: Vec<Transmitted>,
    /// The caller wants to hear at once of packets that were sent.
    soon: bool,
    /// Why the card works no more.
    broken: Option<NetError>,
    /// The task that leads the packets has not heard yet that the card broke or that the link changed.
    news: bool,
    /// The card did not reset when it broke.
    stuck: bool,
}

impl<M: Dma + 'static, I: Interrupt> VirtioNet<M, I> {
    /// Brings the card up. `name` is for the log; `mac` serves a card that has no address; `bind` gives the interrupt of
    /// an MSI-X vector, from 0 on, and may refuse any but the first.
    ///
    /// # Errors
    /// [`NetError`] says what is wrong with the card, or what is missing. No card uses memory of this kernel that anything
    /// else will have.
    pub fn new<S: DmaSource<Memory = M>>(
        name: String,
        transport: Transport,
        source: &S,
        mac: [u8; 6],
        mut bind: impl FnMut(u16) -> Option<I>,
    ) -> Result<Self, NetError> {
        let agreed = transport.negotiate_by(features::choose)?;
        let prepared = Self::prepare(&transport, agreed, source, mac, &mut bind);
        // No queue is enabled yet.
        let (buffers, rings, features, interrupts) = prepared.inspect_err(|_| transport.fail())?;
        let inner = Inner {
            over: Vec::with_capacity(features.slots),
            soon: false,
            rings,
            next_pair: 0,
            taken: 0,
            broken: None,
            news: false,
            stuck: false,
        };
        let (inner, link, malformed) = (Mutex::new(inner), AtomicBool::new(false), AtomicU64::new(0));
        let buffers = Arc::new(buffers);
        // From here on, dropping the card resets it.
        let card = Self { name, transport, agreed, features, buffers, inner, link, malformed, interrupts };
        card.start().inspect_err(|_| card.transport.fail())?;
        Ok(card)
    }

    /// Reads what the card is like, and takes all memory and interrupts that the card needs.
    #[allow(clippy::type_complexity)] // the parts of one structure
    fn prepare<S: DmaSource<Memory = M>>(
        transport: &Transport,
        agreed: u64,
        source: &S,
        mac: [u8; 6],
        bind: &mut dyn FnMut(u16) -> Option<I>,
    ) -> Result<(Buffers<M>, Rings<M>, WireFeatures, Vec<I>), NetError> {
        let has = |feature: u64| agreed & feature != 0;
        let indirect = has(F_INDIRECT_DESC);
        let room = if has(F_MRG_RXBUF) { MAX_PACKET } else { PAGE_SIZE - HEADER_BYTES };
        let registers = features::read(transport, agreed, (room - LINK_BYTES) as u16)?;
        let pairs = usize::from(registers.pairs).min(MAX_PAIRS);
        let interrupts: Vec<I> = (0..2 * pairs as u16 + 1).map_while(bind).collect();
        if interrupts.is_empty() {
            return Err(NetError::NoInterrupt);
        }
        let rings = Rings::new(transport, source, agreed, (registers.pairs, pairs))?;
        let buffers = Buffers::new(source, rings.buffers()).ok_or(NetError::OutOfMemory)?;
        let sizes = rings.pairs.iter().map(|pair| pair.transmit.queue.size());
        let smallest = sizes.clone().min().unwrap_or(0);
        let features = WireFeatures {
            mac: registers.mac.unwrap_or(mac),
            mtu: registers.mtu,
            checksum: has(F_CSUM),
            tso4: has(F_HOST_TSO4),
            tso6: has(F_HOST_TSO6),
            max_spans: TransmitQueue::<M>::max_spans(smallest, indirect),
            slots: sizes.map(usize::from).sum(),
        };
        Ok((buffers, rings, features, interrupts))
    }

    /// Enables the queues, gives the card its receive buffers and starts the card.
    fn start(&self) -> Result<(), NetError> {
        let mut inner = self.inner.lock();
        inner.rings.enable(&self.transport, self.interrupts.len())?;
        self.transport.start();
        self.refill(&mut inner);
        inner.rings.ask_for_pairs(&self.transport);
        self.link.store(features::link_up(&self.transport, self.agreed), Ordering::Relaxed);
        Ok(())
    }

    /// Gives the card all free buffers.
    fn refill(&self, inner: &mut Inner<M>) {
        inner.taken = 0;
        if inner.broken.is_some() {
            return;
        }
        inner.rings.refill(&self.transport, &self.buffers);
    }

    /// Resets the card, and notes what the card had to send as unsent. If the reset fails, these packets never come back
    /// and their memory stays lent: the card may still read that memory.
    fn give_up(&self, inner: &mut Inner<M>, error: NetError) {
        log::error!("{}: {error}; it is out of use", self.name);
        inner.broken = Some(error);
        inner.news = true;
        self.link.store(false, Ordering::Relaxed);
        if self.transport.reset().is_err() {
            inner.stuck = true;
            log::error!("{}: it does not reset; the memory it was given stays with it", self.name);
            return;
        }
        for pair in &mut inner.rings.pairs {
            let unsent = pair.transmit.take_all().map(|token| Transmitted { token, sent: false });
            inner.over.extend(unsent);
        }
    }

    /// Takes the interrupts that came, and has the next ones wake the task of `context`. The result is whether the card's
    /// registers may have changed.
    fn take_interrupts(&self, context: &mut Context<'_>) -> bool {
        let mut changed = false;
        // Where vectors are few, the last one tells of changes and of other things, too.
        let last = self.interrupts.len() - 1;
        for (index, interrupt) in self.interrupts.iter().enumerate() {
            // The call that takes an interrupt does not ask for the next.
            while interrupt.poll_next(context).is_ready() {
                changed |= index == last;
            }
        }
        changed
    }

    /// Looks what has changed in the card's registers.
    fn look_at_registers(&self, inner: &mut Inner<M>) {
        if self.transport.needs_reset() {
            self.give_up(inner, NetError::NeedsReset);
            return;
        }
        let link = features::link_up(&self.transport, self.agreed);
        inner.news |= self.link.swap(link, Ordering::Relaxed) != link;
        if let Err(error) = inner.rings.take_answer() {
            self.give_up(inner, error);
        }
    }
}

impl<M: Dma + 'static, I: Interrupt + Send + Sync> Wire for VirtioNet<M, I> {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> WireFeatures {
        self.features
    }

    fn link_up(&self) -> bool {
        self.link.load(Ordering::Relaxed)
    }

    fn transmit(&self, token: u32, packet: Outgoing<'_>) -> Result<(), TransmitError> {
        check(&packet, &self.features)?;
        let mut inner = self.inner.lock();
        if inner.broken.is_some() {
            return Err(TransmitError::Broken);
        }
        let pair = packet.flow as usize % inner.rings.in_use;
        let queued = inner.rings.pairs[pair].transmit.push(token, &packet);
        if queued { Ok(()) } else { Err(TransmitError::Full) }
    }

    fn kick(&self) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if inner.broken.is_none()
            && inner.soon
            && let Err(error) = inner.rings.arm_sent(&mut inner.over)
        {
            self.give_up(inner, error);
        }
        if inner.broken.is_none() {
            inner.rings.publish(&self.transport);
        }
    }

    fn hasten(&self, soon: bool) {
        self.inner.lock().soon = soon;
    }

    fn transmitted(&self, out: &mut Vec<Transmitted>) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        // What was noted came back before what is there now.
        out.append(&mut inner.over);
        if inner.broken.is_none()
            && let Err(error) = inner.rings.take_sent(out)
        {
            self.give_up(inner, error);
            out.append(&mut inner.over);
        }
    }

    fn receive(&self) -> Option<Received> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let merged = self.agreed & F_MRG_RXBUF != 0;
        if inner.taken >= self.buffers.count() / 4 {
            self.refill(inner);
        }
        let pairs = inner.rings.pairs.len();
        let mut empty = 0;
        while empty < pairs && inner.broken.is_none() {
            let pair = &mut inner.rings.pairs[inner.next_pair];
            match pair.receive.take(&self.buffers, merged, self.agreed) {
                Ok(Taken::Packet(packet)) => {
                    inner.taken += packet.parts().len();
                    return Some(packet);
                }
                Ok(Taken::Malformed) => {
                    self.malformed.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Taken::Nothing) => {
                    empty += 1;
                    inner.next_pair = (inner.next_pair + 1) % pairs;
                }
                Err(error) => self.give_up(inner, error),
            }
        }
        None
    }

    fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        let changed = self.take_interrupts(context);
        let mut inner = self.inner.lock();
        if inner.broken.is_none() && changed {
            self.look_at_registers(&mut inner);
        }
        if inner.broken.is_none() {
            self.refill(&mut inner);
            inner.rings.publish(&self.transport);
            let soon = inner.soon;
            if inner.rings.arm(soon) {
                return Poll::Ready(());
            }
        }
        if core::mem::take(&mut inner.news) || !inner.over.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl<M, I> Drop for VirtioNet<M, I> {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        if inner.stuck || self.transport.reset().is_err() {
            // The card may use the memory still: nobody else gets it.
            core::mem::forget(self.buffers.clone());
            inner.rings.leak();
        }
    }
}
