//! All queues of a card.

use alloc::vec::Vec;

use backends::net::MAX_PARTS;

use super::control::Control;
use super::features::F_MQ;
use super::receive::ReceiveQueue;
use super::transmit::TransmitQueue;
use super::{NetError, RECEIVE_BUFFERS, TRANSMIT_SLOTS};
use crate::hw::{Buffers, Dma, DmaSource};
use crate::net::wire::Transmitted;
use crate::virtio::queue::{QUEUE_PAGES, Queue};
use crate::virtio::transport::{F_EVENT_IDX, F_INDIRECT_DESC, Transport};

/// A receive queue and a transmit queue.
pub(super) struct Pair<M> {
    pub(super) receive: ReceiveQueue<M>,
    pub(super) transmit: TransmitQueue<M>,
}

/// The queues of a card.
pub(super) struct Rings<M> {
    pub(super) pairs: Vec<Pair<M>>,
    /// How many of the pairs take packets to send: one, until the card has agreed to more.
    pub(super) in_use: usize,
    /// Of a card with several pairs; the first field is the number of the queue.
    control: Option<(u16, Control<M>)>,
    /// A list of buffers, kept between refills for its capacity.
    spare: Vec<u16>,
}

/// Largest power of two that is no larger than `number`, which is not 0.
fn power_of_two(number: u16) -> u16 {
    1 << number.ilog2()
}

impl<M: Dma + 'static> Rings<M> {
    /// Takes the memory of the queues. Of the first number of pairs, which the card has, the second number is used.
    ///
    /// # Errors
    /// - [`NetError::Transport`]: the card lacks a queue or a doorbell.
    /// - [`NetError::OutOfMemory`].
    pub(super) fn new<S: DmaSource<Memory = M>>(
        transport: &Transport,
        source: &S,
        agreed: u64,
        (there, used): (u16, usize),
    ) -> Result<Self, NetError> {
        let has = |feature: u64| agreed & feature != 0;
        let queue = |index: u16, most: usize| {
            let size = power_of_two(transport.queue_size(index)?.min(most as u16));
            let memory = source.allocate(QUEUE_PAGES).ok_or(NetError::OutOfMemory)?;
            Ok::<_, NetError>((Queue::new(memory, size, has(F_EVENT_IDX)), transport.doorbell(index)?))
        };
        let mut pairs = Vec::with_capacity(used);
        for pair in 0..used as u16 {
            let (receive, bell) = queue(2 * pair, RECEIVE_BUFFERS / used)?;
            let receive = ReceiveQueue::new(receive, bell);
            let (transmit, bell) = queue(2 * pair + 1, TRANSMIT_SLOTS / used)?;
            let indirect = has(F_INDIRECT_DESC);
            if TransmitQueue::<M>::max_spans(transmit.size(), indirect) < MAX_PARTS {
                return Err(NetError::BadRegisters("size of a transmit queue"));
            }
            let transmit = TransmitQueue::new(source, transmit, bell, indirect);
            pairs.push(Pair { receive, transmit: transmit.ok_or(NetError::OutOfMemory)? });
        }
        let control = if has(F_MQ) && used > 1 {
            // The control queue comes behind all pairs that the card has.
            let index = 2 * there;
            let (queue, bell) = queue(index, 2)?;
            let page = source.allocate(1).ok_or(NetError::OutOfMemory)?;
            Some((index, Control::new(queue, bell, page)))
        } else {
            None
        };
        let mut rings = Self { pairs, in_use: 1, control, spare: Vec::new() };
        rings.spare.reserve_exact(rings.buffers());
        Ok(rings)
    }

    /// Number of buffers that fit the receive queues.
    pub(super) fn buffers(&self) -> usize {
        self.pairs.iter().map(|pair| usize::from(pair.receive.queue.size())).sum()
    }

    /// Enables all queues. The card has `vectors` interrupt vectors; the queues beyond them share the last.
    ///
    /// # Errors
    /// [`NetError::Transport`]: the card has no room for a vector.
    pub(super) fn enable(&self, transport: &Transport, vectors: usize) -> Result<(), NetError> {
        let last = vectors as u16 - 1;
        let enable = |index: u16, queue: &Queue<M>, vector: u16| {
            transport.enable_queue(index, queue.size(), queue.addresses(), vector.min(last)).map(|_| ())
        };
        for (pair, index) in self.pairs.iter().zip((0..).step_by(2)) {
            enable(index, &pair.receive.queue, index)?;
            enable(index + 1, &pair.transmit.queue, index + 1)?;
        }
        if let Some((index, control)) = &self.control {
            enable(*index, &control.queue, last)?;
        }
        Ok(transport.config_vector(last)?)
    }

    /// Asks the card to use all pairs, if there are several.
    pub(super) fn ask_for_pairs(&mut self, transport: &Transport) {
        let pairs = self.pairs.len() as u16;
        if let Some((_, control)) = &mut self.control
            && control.ask(pairs)
        {
            transport.notify(&control.doorbell);
        }
    }

    /// Looks whether the card has agreed to use all pairs.
    ///
    /// # Errors
    /// [`NetError::Queue`]: the card broke the control queue's rules.
    pub(super) fn take_answer(&mut self) -> Result<(), NetError> {
        if let Some((_, control)) = &mut self.control
            && control.answer()? == Some(true)
        {
            self.in_use = self.pairs.len();
        }
        Ok(())
    }

    /// Gives all free buffers to the queues that have room for them.
    pub(super) fn refill(&mut self, transport: &Transport, all: &Buffers<M>) {
        let mut free = all.take_free(core::mem::take(&mut self.spare));
        for pair in &mut self.pairs {
            while let Some(&buffer) = free.last()
                && pair.receive.add(buffer, all)
            {
                free.pop();
            }
            if pair.receive.queue.publish() {
                transport.notify(&pair.receive.doorbell);
            }
        }
        debug_assert!(free.is_empty(), "the queues have room for all buffers");
        self.spare = free;
    }

    /// Tells the card of all packets to send.
    pub(super) fn publish(&mut self, transport: &Transport) {
        for pair in &mut self.pairs {
            if pair.transmit.queue.publish() {
                transport.notify(&pair.transmit.doorbell);
            }
        }
    }

    /// Appends the packets that the card has sent.
    ///
    /// # Errors
    /// [`NetError::Queue`]: the card broke a queue's rules. What is appended was sent all the same.
    pub(super) fn take_sent(&mut self, out: &mut Vec<Transmitted>) -> Result<(), NetError> {
        for pair in &mut self.pairs {
            while let Some(token) = pair.transmit.pop().map_err(NetError::Queue)? {
                out.push(Transmitted { token, sent: true });
            }
        }
        Ok(())
    }

    /// Takes the packets that the card has sent, and asks for an interrupt with the next. Asked before a packet is published,
    /// the card tells of that packet.
    ///
    /// # Errors
    /// The errors of [`Self::take_sent`].
    pub(super) fn arm_sent(&mut self, out: &mut Vec<Transmitted>) -> Result<(), NetError> {
        loop {
            self.take_sent(out)?;
            // Each queue is asked.
            let there =
                self.pairs.iter_mut().filter_map(|pair| pair.transmit.queue.arm().then_some(())).count();
            if there == 0 {
                return Ok(());
            }
        }
    }

    /// Asks for interrupts: with the next packet that was sent if the caller wants that `soon`. `true`: something is there
    /// already.
    pub(super) fn arm(&mut self, soon: bool) -> bool {
        let mut there = false;
        for pair in &mut self.pairs {
            there |= pair.receive.queue.arm();
            let sent = &mut pair.transmit.queue;
            there |= if soon { sent.arm() } else { sent.arm_for_most() };
        }
        if let Some((_, control)) = &mut self.control {
            // Nobody waits for the answer, and an interrupt tells of it.
            let _ = control.queue.arm();
        }
        there
    }
}

impl<M> Rings<M> {
    /// Has the memory of all queues stay as it is for ever.
    pub(super) fn leak(&mut self) {
        core::mem::forget(core::mem::take(&mut self.pairs));
        core::mem::forget(self.control.take());
    }
}
