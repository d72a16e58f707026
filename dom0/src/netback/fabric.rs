//! What ties all vifs together: the switch, and the way of a batch from one vif's rings to others'.
//!
//! All of it is one value behind one lock, which a vif's task holds for a batch and never over a wait. A batch goes
//! through in one go: heads are copied, each packet's receivers are found, all copies to the receivers are one list, and
//! then each ring that took part is shown what came, with one event at most. So nothing of a frontend's is under way
//! between two batches but what is *parked*: packets whose receiver had no room. The slots of parked packets stay unanswered.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use backends::net::{Disconnect, HEAD_BYTES, Taken, TxId};
use pvrt::Account;
use pvrt::grant::CopyPages;

use super::finisher::Finisher;
use super::outside::{Missing, Outside};
use super::passage::Onward;
use super::sender::{Batch, Frame, FrameKind, MAX_PARKED, Parked, Sender};
use super::tagging::changes_form;
use super::way::{Sent, Way};
use crate::net::Head;
use crate::net::headers::{Network, Transport};
use crate::net::switch::port::{MAX_PORTS, PortKind};
use crate::net::switch::{PortId, Reason, Switch, Target, Verdict};

/// Packets of one batch.
pub(super) const BATCH: usize = 32;
/// Copies after which a round ends, and what is left of its batch waits for the next: the lock is everybody's. A copy is of 4 KiB
/// at most. The round's last packet may go beyond: for many receivers by a few copies for each, since the switch takes no long
/// packet for many, and one in small pieces is copied whole first.
const COPIES_OF_ROUND: usize = 1024;
/// How long a packet waits for room at its receiver.
const PARKED_NS: u64 = 10_000_000;

/// What a batch's sender does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Next {
    /// There is more to do at once.
    pub(super) again: bool,
    /// There is something to do at that time.
    pub(super) at_ns: Option<u64>,
}

impl Next {
    fn at(&mut self, at_ns: u64) {
        self.at_ns = Some(self.at_ns.map_or(at_ns, |before| before.min(at_ns)));
    }
}

/// The switch, and what is on its way.
pub(super) struct Fabric {
    pub(super) switch: Switch,
    pub(super) way: Way,
    /// dom0's own place on the bridges, and the cards; `None`: there was no memory for that at dom0's start.
    pub(super) outside: Option<Outside>,
    batch: Batch,
    /// Packets of the batch that somebody did not get: who, and why.
    pub(super) lost: Vec<(PortId, Reason)>,
    /// Receivers of a packet that get it out of a copy of dom0's.
    pub(super) copied: Vec<Target>,
    pub(super) finisher: Finisher,
    /// The page by which control requests read and write pages of a frontend's.
    pub(super) control_page: CopyPages,
}

impl Fabric {
    pub(super) fn new(switch: Switch, finisher: Finisher, control_page: CopyPages) -> Self {
        let (batch, lost) = (Batch::new(BATCH), Vec::with_capacity(MAX_PORTS));
        let copied = Vec::with_capacity(MAX_PORTS);
        Self { switch, way: Way::new(), outside: None, batch, lost, copied, finisher, control_page }
    }

    /// Carries a batch of a vif's packets to where they go.
    ///
    /// What a batch makes the fabric keep is everybody's, such as lists that grew, and what the gateway says is not all for this
    /// sender. None of it is charged to the sender: an account that goes over its budget loses its domain.
    ///
    /// # Errors
    /// The frontend ruined a ring.
    pub(super) fn round(&mut self, sender: &mut Sender, now_ns: u64) -> Result<Next, Disconnect> {
        Account::own().charge(|| self.carry(sender, now_ns))
    }

    fn carry(&mut self, sender: &mut Sender, now_ns: u64) -> Result<Next, Disconnect> {
        if let Some(reason) = self.way.ruined(sender.port) {
            return Err(reason);
        }
        let mut next = Next::default();
        if let Some(outside) = &mut self.outside {
            outside.answer(sender);
        }
        self.way.begin_round();
        self.retry(sender, now_ns, &mut next);
        let taken = (0..sender.queues()).try_for_each(|queue| self.take(sender, queue, now_ns, &mut next));
        // Whatever this frontend did, what is on its way to others arrives.
        self.way.settle(sender);
        self.finish(now_ns);
        next.again |= sender.publish();
        sender.parked.iter().for_each(|parked| next.at(parked.until_ns));
        taken.map(|()| next)
    }

    /// Takes packets from one of the sender's rings, and sends each on its way.
    fn take(
        &mut self,
        sender: &mut Sender,
        queue: usize,
        now_ns: u64,
        next: &mut Next,
    ) -> Result<(), Disconnect> {
        let left = sender.take_left(queue);
        if !left.is_empty() {
            next.again = true;
            self.forward_all(sender, queue, &left, now_ns, next);
            return Ok(());
        }
        let Some((intake, stage)) = self.way.intake(sender.port, queue) else { return Ok(()) };
        let most = BATCH / sender.queues();
        match sender.take(queue, most, (intake, stage), now_ns, &mut self.batch)? {
            Taken::More => next.again = true,
            Taken::NoCredit { until_ns } => next.at(until_ns),
            Taken::NoHead | Taken::Empty => {}
        }
        let batch = core::mem::take(&mut self.batch.packets);
        self.forward_all(sender, queue, batch.ids(), now_ns, next);
        self.batch.packets = batch;
        Ok(())
    }

    /// Sends packets on their way, as many as one round may.
    #[inline]
    fn forward_all(
        &mut self,
        sender: &mut Sender,
        queue: usize,
        mut ids: &[TxId],
        now_ns: u64,
        next: &mut Next,
    ) {
        // The bytes of one packet after the other.
        let mut bytes = [0; HEAD_BYTES];
        while let Some((&id, rest)) = ids.split_first() {
            ids = match self.send_run(sender, queue, ids, now_ns) {
                0 => {
                    self.forward(sender, queue, id, &mut bytes, now_ns, next);
                    rest
                }
                count => &ids[count..],
            };
            self.way.settle_if_long(sender);
            if self.way.copies_of_round() >= COPIES_OF_ROUND && !ids.is_empty() {
                sender.leave(queue, ids);
                next.again = true;
                break;
            }
        }
    }

    /// Sends a packet on its way, by what its head says. `bytes` is room for the head.
    #[inline(always)]
    fn forward(
        &mut self,
        sender: &mut Sender,
        queue: usize,
        id: TxId,
        bytes: &mut [u8; HEAD_BYTES],
        now_ns: u64,
        next: &mut Next,
    ) {
        let packet = sender.queue(queue).packet(id);
        let (packet_len, is_gso) = (packet.len, packet.offload.gso.is_some());
        let mut len = sender.read_head(queue, id, bytes);
        if is_cut_short(&mut bytes[..len], packet_len) {
            if !sender.extend_head(queue, id) {
                return self.refuse(sender, queue, id);
            }
            len = sender.read_head(queue, id, bytes);
        }
        // A packet without an Ethernet header does not get as far as here.
        let Some(mut head) = Head::parse(&mut bytes[..len], packet_len) else {
            return self.way.answer(queue, id);
        };
        match self.switch.forward(now_ns, sender.port, &head, is_gso) {
            Verdict::Drop(_) => self.way.answer(queue, id),
            Verdict::One(mut target) => {
                if target.kind == PortKind::Local {
                    let offload = *sender.queue(queue).packet(id).offload;
                    target = match self.onward(now_ns, sender.port, target, &mut head, &offload) {
                        Onward::Target(target) => target,
                        Onward::Drop => return self.way.answer(queue, id),
                        Onward::Stack(network) => {
                            let packet = sender.ring(queue).packet(id);
                            let taken = self.take_own(now_ns, network, sender.port, &packet);
                            return self.settle_copied(sender, queue, id, taken);
                        }
                    };
                    if head.is_changed() {
                        sender.write_head(queue, id, head.bytes());
                    }
                }
                let (to, is_card) = (target.port, target.kind == PortKind::Wire);
                let kind = FrameKind::of(&head, self.way.is_hashing());
                if changes_form(&head, target.form) {
                    let frame = Frame { kind, from_queue: queue, lender: None, head: &[] };
                    let packet = sender.ring(queue).packet(id);
                    let sent = self.send_copied(&packet, &mut [target], &frame);
                    return self.settle_copied(sender, queue, id, sent);
                }
                let until_ns = now_ns.saturating_add(PARKED_NS);
                self.send_one(sender, Parked { queue, id, to, is_card, kind, until_ns }, head.bytes(), next);
            }
            Verdict::Many(targets) => {
                let from = (sender.port, queue);
                let (packet, mut copier) = sender.packet_and_copier(queue, id);
                let sent = self.send_many(Some(&mut copier), &packet, from, &targets, &mut head, now_ns);
                drop((packet, copier));
                self.way.settle_if_long(sender);
                self.settle_copied(sender, queue, id, sent);
            }
        }
    }

    /// Answers a packet that was to be copied whole, perhaps among other things.
    fn settle_copied(&mut self, sender: &mut Sender, queue: usize, id: TxId, copied: Result<(), Missing>) {
        match copied {
            Ok(()) => self.way.answer(queue, id),
            Err(Missing) => self.refuse(sender, queue, id),
        }
    }

    /// Sends a packet that has one receiver; if there is no room, the packet waits.
    #[inline(always)]
    fn send_one(&mut self, sender: &mut Sender, packet: Parked, head: &[u8], next: &mut Next) {
        let waits = sender.parked.iter().any(|parked| parked.flow() == packet.flow())
            || !self.is_sent(sender, &packet, head, next);
        if waits && sender.parked.try_push(packet).is_err() {
            self.drop(&packet);
        }
    }

    /// Sends a packet, or drops it; `false`: there is no room yet. `head`: the bytes of the packet's head, if they are at
    /// hand.
    #[inline(always)]
    fn is_sent(&mut self, sender: &mut Sender, packet: &Parked, head: &[u8], next: &mut Next) -> bool {
        let &Parked { queue, id, to, kind, .. } = packet;
        if packet.is_card {
            return self.is_sent_out(sender, packet);
        }
        let frame = Frame { kind, from_queue: queue, lender: Some(sender.port), head };
        match self.finisher.send(&mut self.way, &sender.queue(queue).packet(id), to, &frame) {
            Sent::NoRoom { queue, needed } => {
                next.again |= self.way.wait_for_room(sender.port, to, queue, needed);
                return false;
            }
            Sent::Dropped(reason) => self.switch.count_drop(to, reason),
            Sent::Yes | Sent::Unwanted | Sent::Unfinished => {}
        }
        self.way.answer(queue, id);
        true
    }

    /// Drops a packet whose receiver had no room.
    fn drop(&mut self, packet: &Parked) {
        self.switch.count_drop(packet.to, Reason::NoRoom);
        self.way.answer(packet.queue, packet.id);
    }

    /// Whether a packet waits for a card that has as many of the sender's own as it may: then the sender's ring fills, and the
    /// sender waits, as for a card of its own. To drop packets would slow TCP down, and help nobody else.
    fn is_slow_card(&mut self, from: PortId, packet: &Parked) -> bool {
        let card =
            self.outside.as_mut().filter(|_| packet.is_card).and_then(|outside| outside.card(packet.to));
        card.is_some_and(|card| card.is_full_of(from))
    }

    /// Looks again at the packets that wait. Time that the lock took is no receiver's fault: a packet is dropped only if there
    /// still is no room.
    fn retry(&mut self, sender: &mut Sender, now_ns: u64, next: &mut Next) {
        let mut full = ArrayVec::<_, MAX_PARKED>::new();
        let mut bytes = [0; HEAD_BYTES];
        for mut packet in core::mem::take(&mut sender.parked) {
            let len = sender.read_head(packet.queue, packet.id, &mut bytes);
            if full.contains(&packet.flow()) || !self.is_sent(sender, &packet, &bytes[..len], next) {
                if now_ns >= packet.until_ns && self.is_slow_card(sender.port, &packet) {
                    packet.until_ns = now_ns.saturating_add(PARKED_NS);
                }
                if now_ns >= packet.until_ns {
                    self.drop(&packet);
                } else {
                    full.push(packet.flow());
                    sender.parked.push(packet);
                }
            }
            self.way.settle_if_long(sender);
        }
    }
}

/// Whether the headers of a packet go on behind its head.
fn is_cut_short(head: &mut [u8], packet_len: u32) -> bool {
    if head.len() == HEAD_BYTES || head.len() as u32 >= packet_len {
        return false;
    }
    Head::parse(head, packet_len)
        .is_none_or(|head| head.network() == Network::Malformed || head.transport() == Transport::Malformed)
}
