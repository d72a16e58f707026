//! What is on its way: from a batch's packets to the queues of those who get them.

use alloc::sync::Arc;
use alloc::vec::Vec;

use backends::net::vif::Abilities;
use backends::net::{
    Checksum, Controlled, Copier, CopyOp, Disconnect, Intake, MAX_SLOTS, Offload, Packet, Place, Planned,
    Refused, Stage, TxId,
};
use pvrt::Account;
use pvrt::executor::sync::Notify;
use pvrt::grant::{GrantPage, unmap_pages};
use ring_abi::types::PAGE_SIZE;

use super::end::{End, Queue, Receiver, pair};
use super::lent::{Bytes, Lent};
use super::sender::{Frame, Sender};
use crate::net::segment::MAX_SEGMENTS;
use crate::net::switch::{Again, Ethernet, PortId, Reason};

/// Copies after which a list is done, however many packets are left of the batch.
const MOST_COPIES: usize = 256;
/// Copies that one packet may add for one receiver: of each segment, if the packet is cut, the header and the bytes, and
/// those cut where a page or a slot ends.
const COPIES_OF_PACKET: usize = 2 * MAX_SEGMENTS as usize + 2 * MAX_SLOTS;

/// A packet that is on its way to a queue.
struct Flight {
    to: usize,
    queue: usize,
    planned: Planned,
}

/// What became of a packet for one receiver.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The packet is on its way.
    Yes,
    /// The receiver does not want it.
    Unwanted,
    /// The receiver does not take it before it is finished.
    Unfinished,
    /// The receiver will not have it.
    Dropped(Reason),
    /// The receiver's queue has no room; the packet fits when so many requests wait.
    NoRoom { queue: usize, needed: u32 },
}

/// What stands behind the ports, and the lists of a batch.
pub(super) struct Way {
    /// By the ports' places.
    ends: Vec<Option<End>>,
    copies: Vec<CopyOp>,
    flights: Vec<Flight>,
    /// Packets that are answered when the copies are done.
    answers: Vec<(usize, TxId)>,
    /// Where bytes lie, until the answers, whose copies failed: by the fault of the sender or of a receiver.
    failed: Vec<Place>,
    /// Queues that took part in the batch.
    touched: Vec<(usize, usize)>,
    /// Copies of the round that are done.
    copied: usize,
    /// Copies of each round that has ended.
    #[cfg(test)]
    pub(super) copied_before: Vec<usize>,
    /// Some frontend has packets hashed.
    is_hashing: bool,
}

impl Way {
    pub(super) fn new() -> Self {
        Self {
            ends: Vec::new(),
            copies: Vec::with_capacity(MOST_COPIES + COPIES_OF_PACKET),
            flights: Vec::with_capacity(MOST_COPIES + MAX_SEGMENTS as usize),
            answers: Vec::with_capacity(MOST_COPIES),
            failed: Vec::with_capacity(MOST_COPIES + COPIES_OF_PACKET),
            touched: Vec::with_capacity(MOST_COPIES),
            copied: 0,
            #[cfg(test)]
            copied_before: Vec::new(),
            is_hashing: false,
        }
    }

    /// A frontend has connected: what its port gets goes to these rings from now on.
    pub(super) fn connect(
        &mut self,
        port: PortId,
        rings: Vec<Receiver>,
        intake: Intake,
        abilities: Abilities,
        task: Arc<Notify>,
    ) {
        let controlled = Controlled::new(rings.len());
        let queues = rings.into_iter().map(|ring| Queue { ring, is_touched: false }).collect();
        let waiting = Vec::new();
        let end = End { port, queues, intake, abilities, controlled, ruined: None, task, waiting };
        // The list is everybody's.
        Account::own().charge(|| {
            if self.ends.len() <= port.index() {
                self.ends.resize_with(port.index() + 1, || None);
            }
        });
        self.ends[port.index()] = Some(end);
    }

    /// The frontend is not connected any more; its rings go.
    pub(super) fn disconnect(&mut self, port: PortId) {
        self.roomy(port);
        if self.end(port).is_some()
            && let Some(mut end) = self.ends[port.index()].take()
        {
            unmap_pages(end.controlled.take_pages());
            self.note_hashing();
        }
    }

    /// The connection is about to end: from now on nobody sends to the frontend, and the frontend's pages go back but for those that
    /// its own packets are in. The task is still woken.
    pub(super) fn quiet(&mut self, port: PortId) {
        self.roomy(port);
        if let Some(end) = self.end(port) {
            end.queues.clear();
            unmap_pages(end.controlled.take_pages());
        }
    }

    /// What a frontend sets by its control ring.
    pub(super) fn controlled(&mut self, port: PortId) -> Option<&mut Controlled<GrantPage>> {
        Some(&mut self.end(port)?.controlled)
    }

    /// Number of pages that all frontends lend.
    pub(super) fn lent(&self) -> usize {
        self.ends.iter().flatten().map(|end| end.controlled.lent()).sum()
    }

    /// A frontend may have begun or ended to have packets hashed.
    pub(super) fn note_hashing(&mut self) {
        self.is_hashing = self.ends.iter().flatten().any(|end| end.controlled.hashing.is_on());
    }

    /// Whether some frontend has packets hashed.
    pub(super) fn is_hashing(&self) -> bool {
        self.is_hashing
    }

    /// A frontend asks for the filter of multicast packets, or no more.
    pub(super) fn ask_multicast(&mut self, port: PortId, asked: bool) {
        if let Some(end) = self.end(port) {
            end.intake.filter.ask(asked);
        }
    }

    /// There may be room at a port again: whoever waits for that looks.
    pub(super) fn roomy(&mut self, port: PortId) {
        let waiting = self.end(port).map(|end| core::mem::take(&mut end.waiting)).unwrap_or_default();
        for sender in waiting {
            self.wake(sender);
        }
    }

    /// Has the task of the vif behind `port` look again.
    pub(super) fn wake(&mut self, port: PortId) {
        if let Some(end) = self.end(port) {
            end.task.notify_one();
        }
    }

    fn end(&mut self, port: PortId) -> Option<&mut End> {
        self.ends.get_mut(port.index())?.as_mut().filter(|end| end.port == port)
    }

    /// Whether the receiver takes TCP that is not cut into segments, over the packet's protocol.
    pub(super) fn takes_gso(&mut self, to: PortId, packet: &Packet<'_>, is_ipv6: bool) -> bool {
        let offload = Offload { checksum: Checksum::Complete, ..*packet.offload };
        self.end(to).is_some_and(|end| end.abilities.take(&offload, is_ipv6))
    }

    /// How the frontend behind `port` ruined its rings, if a sender found that.
    pub(super) fn ruined(&mut self, port: PortId) -> Option<Disconnect> {
        self.end(port)?.ruined
    }

    /// What the vif's queues share on the way in, and the pages that the frontend lends for one queue.
    pub(super) fn intake(&mut self, port: PortId, queue: usize) -> Option<(&mut Intake, &Stage<GrantPage>)> {
        let end = self.end(port)?;
        Some((&mut end.intake, &end.controlled.stages[queue]))
    }

    /// Plans the copies of a packet for one receiver.
    pub(super) fn send(&mut self, packet: &Packet<'_>, to: PortId, frame: &Frame<'_>) -> Sent {
        let kind = &frame.kind;
        let (end, lender) = pair(&mut self.ends, to, frame.lender);
        let Some(end) = end.filter(|end| end.takes()) else {
            return Sent::Dropped(Reason::NoReceiver);
        };
        if !end.intake.filter.wants(kind.to.0) {
            return Sent::Unwanted;
        }
        if !end.abilities.take(packet.offload, kind.is_ipv6) {
            return Sent::Unfinished;
        }
        if !end.abilities.sg && packet.len as usize > PAGE_SIZE {
            return Sent::Dropped(Reason::TooBig);
        }
        let (queue, hash) = end.steer(packet.offload.hash, frame);
        // Of another's hash the receiver hears nothing.
        let offload;
        let packet = if packet.offload.hash == hash {
            packet
        } else {
            offload = Offload { hash, ..*packet.offload };
            &Packet { offload: &offload, ..*packet }
        };
        let Some(head) = packet.parts.first() else { return Sent::Dropped(Reason::Malformed) };
        let from = lender.map(|lender| &lender.controlled.stages[frame.from_queue]);
        // Behind its first part a packet goes on elsewhere.
        let bytes = &frame.head[..frame.head.len().min(head.len.into())];
        let head = Bytes::Own { place: head.place, bytes };
        let mut lent = Lent::new(from, &end.controlled.stages[queue], head);
        let planned = end.queues[queue].ring.plan_with(packet, &mut self.copies, &mut lent);
        self.copied += lent.done();
        match planned {
            Ok(planned) => {
                if !core::mem::replace(&mut end.queues[queue].is_touched, true) {
                    self.touched.push((to.index(), queue));
                }
                self.flights.push(Flight { to: to.index(), queue, planned });
                Sent::Yes
            }
            Err(Refused::NoRoom { needed }) => Sent::NoRoom { queue, needed },
            Err(Refused::Ruined(reason)) => {
                end.ruin(reason);
                Sent::Dropped(Reason::NoReceiver)
            }
        }
    }

    /// Plans the copies of packets from the front of `ids` on, as long as they have the Ethernet header `header`, go where `again`
    /// says, and are as their receiver takes them: how many, and their bytes. What lies in pages that both ends lend is copied at
    /// once. The packets are answered when their copies are done.
    #[inline(always)]
    pub(super) fn send_run(
        &mut self,
        sender: &mut Sender,
        from_queue: usize,
        ids: &[TxId],
        header: &Ethernet,
        again: &Again,
    ) -> (usize, u64) {
        let (Some(end), Some(own)) = pair(&mut self.ends, again.to, Some(sender.port)) else { return (0, 0) };
        // Packets that are hashed may go to different queues.
        if !end.takes() || end.controlled.hashing.is_on() {
            return (0, 0);
        }
        let queue = from_queue % end.queues.len();
        let (Queue { ring, is_touched }, abilities) = (&mut end.queues[queue], end.abilities);
        let (from, stage) = (&own.controlled.stages[from_queue], &end.controlled.stages[queue]);
        let (source, heads) = sender.ring_and_heads(from_queue);
        let (to, mut count, mut bytes) = (again.to.index(), 0, 0);
        for &id in ids {
            let packet = source.packet(id);
            if count != 0 && heads.ethernet(id, packet.head_len()).as_ref() != Some(header)
                || !again.takes(packet.len, packet.offload.gso.is_some())
                || !abilities.take(packet.offload, again.is_ipv6)
                || packet.offload.hash.is_some()
                || !abilities.sg && packet.len as usize > PAGE_SIZE
                || self.copies.len() >= MOST_COPIES
            {
                break;
            }
            let head = Bytes::Page { bytes: heads.bytes, page_at: heads.page_at(id) };
            let mut lent = Lent::new(Some(from), stage, head);
            // A receiver without room, or with a ring that is ruined, is found so again when the packet goes by itself.
            let Ok(planned) = ring.plan_with(&packet, &mut self.copies, &mut lent) else { break };
            self.copied += lent.done();
            bytes += u64::from(packet.len);
            count += 1;
            if planned.is_there() {
                ring.finish(planned, &self.copies);
                source.respond(id, true);
            } else {
                self.flights.push(Flight { to, queue, planned });
                self.answers.push((from_queue, id));
            }
        }
        if count != 0 && !core::mem::replace(is_touched, true) {
            self.touched.push((to, queue));
        }
        (count, bytes)
    }

    /// Has the sender woken when there is room for a packet that found none. `true`: there is room already.
    pub(super) fn wait_for_room(&mut self, from: PortId, to: PortId, queue: usize, needed: u32) -> bool {
        let Some(end) = self.end(to) else { return true };
        match end.queues[queue].ring.arm(needed) {
            Ok(true) => true,
            Ok(false) => {
                if !end.waiting.contains(&from) {
                    // At most as many as there are ports.
                    Account::own().charge(|| end.waiting.push(from));
                }
                false
            }
            Err(reason) => {
                end.ruin(reason);
                true
            }
        }
    }

    /// A packet of the batch's sender is answered when the copies so far are done.
    pub(super) fn answer(&mut self, queue: usize, id: TxId) {
        self.answers.push((queue, id));
    }

    /// A round of a sender begins.
    pub(super) fn begin_round(&mut self) {
        #[cfg(test)]
        self.copied_before.push(self.copied);
        self.copied = 0;
    }

    /// Copies of the round so far.
    #[inline(always)]
    pub(super) fn copies_of_round(&self) -> usize {
        self.copied + self.copies.len()
    }

    /// The round had so many copies made elsewhere.
    pub(super) fn count(&mut self, copies: usize) {
        self.copied += copies;
    }

    /// Does the copies so far if they are many.
    pub(super) fn settle_if_long(&mut self, sender: &mut Sender) {
        if self.is_long() {
            self.settle(sender);
        }
    }

    /// Whether the copies so far are so many that they shall be done.
    pub(super) fn is_long(&self) -> bool {
        self.copies.len() >= MOST_COPIES || self.flights.len() >= MOST_COPIES
    }

    /// Does the copies so far; the packets are at their receivers then, and are answered.
    pub(super) fn settle(&mut self, sender: &mut Sender) {
        self.deliver(&mut sender.copy());
        for (queue, id) in self.answers.drain(..) {
            let ok = self.failed.is_empty() || !sender.is_at_fault(queue, id, &self.failed);
            sender.queue(queue).respond(id, ok);
        }
        self.failed.clear();
    }

    /// Most copies and packets that were on their way at once, and copies that failed, by the room that the lists have.
    #[cfg(test)]
    pub(super) fn most(&self) -> [usize; 3] {
        [self.copies.capacity(), self.flights.capacity(), self.failed.capacity()]
    }

    /// Does the copies so far; the packets are at their receivers then.
    pub(super) fn deliver(&mut self, copier: &mut (impl Copier + ?Sized)) {
        copier.copy(&mut self.copies);
        let mut has_failed = false;
        for Flight { to, queue, planned } in self.flights.drain(..) {
            // An end is taken away between two batches alone.
            if let Some(end) = &mut self.ends[to] {
                has_failed |= !end.queues[queue].ring.finish(planned, &self.copies);
            }
        }
        if has_failed {
            let failed = self.copies.iter().filter(|op| !op.ok()).map(CopyOp::source);
            // The list is everybody's. The list has room for one delivery, and seldom are there two before the answers.
            Account::own().charge(|| self.failed.extend(failed));
        }
        self.copied += self.copies.len();
        self.copies.clear();
    }

    /// Shows each receiver what the batch brought.
    pub(super) fn publish(&mut self) {
        for (to, queue) in self.touched.drain(..) {
            if let Some(end) = &mut self.ends[to] {
                end.queues[queue].is_touched = false;
                end.queues[queue].ring.publish();
            }
        }
    }
}
