//! The way of packets from and to what is no vif: dom0's own stations, and network cards.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use backends::net::{Checksum, Copier, HEAD_BYTES, MAX_PARTS, Offload, Packet, Part, Place, TxId};
use ring_abi::types::PAGE_SIZE;

use super::card::{Handed, Unsent};
use super::fabric::{BATCH, Fabric};
use super::outside::{Missing, STACK_BYTES};
use super::sender::{Frame, FrameKind, Parked, Sender};
use super::tagging::changes_form;
use super::way::Sent;
use crate::net::Head;
use crate::net::router::Routed;
use crate::net::switch::port::PortKind;
use crate::net::switch::{BridgeId, PortId, Reason, Target, Targets, Verdict};
use crate::net::wire::Received;

/// So many receivers get a packet in small pieces out of its sender's pages.
const FEW_RECEIVERS: usize = 4;

/// How often the gateway is asked in a row whether it has more to send.
const FLUSHES: usize = 4;

/// Where a packet with one receiver goes.
pub(super) enum Onward {
    /// To a vif or a card.
    Target(Target),
    /// To dom0's own stack, on this network.
    Stack(BridgeId),
    /// Nowhere.
    Drop,
}

impl Fabric {
    /// Where a packet goes on whose receiver is `target`: what is for dom0's port may be for the router, which rewrites the head.
    pub(super) fn onward(
        &mut self,
        now_ns: u64,
        from: PortId,
        target: Target,
        head: &mut Head<'_>,
        offload: &Offload,
    ) -> Onward {
        if target.kind != PortKind::Local {
            return Onward::Target(target);
        }
        let Some(outside) = &mut self.outside else { return Onward::Drop };
        match outside.ask(now_ns, from, target.port, head, offload) {
            Some((network, Routed::Stack)) => Onward::Stack(network),
            Some((_, Routed::Forward(network))) => {
                let Some(own) = outside.local_on(network) else { return Onward::Drop };
                match self.switch.forward(now_ns, own, head, offload.gso.is_some()) {
                    Verdict::One(target) if target.kind != PortKind::Local => Onward::Target(target),
                    _ => Onward::Drop,
                }
            }
            Some((_, Routed::Drop(_))) | None => Onward::Drop,
        }
    }

    /// Sends a packet to several receivers. One that has no room does not get it. `copier`: of the packet's sender; `None`: the
    /// packet lies in dom0's own memory.
    ///
    /// # Errors
    /// Some receiver did not get the packet, whose bytes cannot be had.
    pub(super) fn send_many(
        &mut self,
        mut copier: Option<&mut dyn Copier>,
        packet: &Packet<'_>,
        (from, from_queue): (PortId, usize),
        targets: &Targets,
        head: &mut Head<'_>,
        now_ns: u64,
    ) -> Result<(), Missing> {
        let kind = FrameKind::of(head, self.way.is_hashing());
        let (mut result, mut for_stack) = (Ok(()), None);
        // Of a packet in many small pieces each receiver would cost as many copies.
        let pages = (packet.len as usize).div_ceil(PAGE_SIZE);
        let is_in_pieces = packet.parts.len() > pages + 1
            && self.outside.is_some()
            && targets.iter(&self.switch).nth(FEW_RECEIVERS).is_some();
        for target in targets.iter(&self.switch) {
            let Target { port, kind: kind_of_port, form } = target;
            // There may be as many receivers as ports.
            if self.way.is_long() {
                match (&mut copier, &self.outside) {
                    (Some(copier), _) => self.way.deliver(*copier),
                    (None, Some(outside)) => self.way.deliver(&mut outside.whole.copier()),
                    (None, None) => {}
                }
            }
            match kind_of_port {
                PortKind::Wire => self.copied.push(target),
                PortKind::Vif if is_in_pieces || changes_form(head, form) => self.copied.push(target),
                PortKind::Vif => {
                    let bytes = if head.is_changed() { &[] } else { head.bytes() };
                    let frame = Frame { kind, from_queue, lender: Some(from), head: bytes };
                    let reason = match self.finisher.send(&mut self.way, packet, port, &frame) {
                        Sent::NoRoom { .. } => Reason::NoRoom,
                        Sent::Dropped(reason) => reason,
                        Sent::Yes | Sent::Unwanted | Sent::Unfinished => continue,
                    };
                    self.lost.push((port, reason));
                }
                PortKind::Local => {
                    let Some(outside) = &mut self.outside else { continue };
                    // What is for all, or for a group, is routed to nobody.
                    if let Some((network, Routed::Stack)) =
                        outside.ask(now_ns, from, port, head, packet.offload)
                    {
                        for_stack = Some(network);
                    }
                }
            }
        }
        // dom0 is one station of a bridge.
        if let Some(network) = for_stack {
            result = self.take_own(now_ns, network, from, packet);
        }
        let mut copied = core::mem::take(&mut self.copied);
        let frame = Frame { kind, from_queue, lender: None, head: &[] };
        result = result.and(self.send_copied(packet, &mut copied, &frame));
        copied.clear();
        self.copied = copied;
        for (port, reason) in self.lost.drain(..) {
            self.switch.count_drop(port, reason);
        }
        result
    }

    /// Copies all of a packet. What the sender pays for, the round counts.
    ///
    /// # Errors
    /// A part cannot be had.
    pub(super) fn copy_whole(&mut self, packet: &Packet<'_>) -> Result<Vec<u8>, Missing> {
        let Some(outside) = &mut self.outside else { return Ok(Vec::new()) };
        let whole = outside.whole.copy(packet);
        self.way.count(outside.whole.copies());
        whole
    }

    /// Takes a packet for dom0's own stack: a copy.
    ///
    /// # Errors
    /// A part cannot be had.
    pub(super) fn take_own(
        &mut self,
        now_ns: u64,
        network: BridgeId,
        from: PortId,
        packet: &Packet<'_>,
    ) -> Result<(), Missing> {
        if packet.len as usize > STACK_BYTES {
            if let Some(own) = self.outside.as_ref().and_then(|outside| outside.local_on(network)) {
                self.switch.count_drop(own, Reason::TooBig);
            }
            return Ok(());
        }
        let is_partial = packet.offload.checksum == Checksum::Partial;
        let frame = self.copy_whole(packet)?;
        if let Some(outside) = &mut self.outside {
            outside.gateway.deliver(now_ns, network, from, frame, is_partial);
        }
        Ok(())
    }

    /// Sends a vif's packet by the card that it is for, and sees to the answer. `false`: there is no room yet.
    #[inline(never)]
    pub(super) fn is_sent_out(
        &mut self,
        sender: &mut Sender,
        &Parked { queue, id, to, .. }: &Parked,
    ) -> bool {
        let Some(card) = self.outside.as_mut().and_then(|outside| outside.card(to)) else {
            self.way.answer(queue, id); // the card is gone
            return true;
        };
        let mut bytes = [0; HEAD_BYTES];
        let len = sender.read_head(queue, id, &mut bytes);
        let packet = sender.ring(queue).packet(id);
        match card.send_ready(&packet, &mut bytes[..len], (sender.port, queue, id)) {
            Handed::Lent => return true,
            Handed::Copied => {}
            Handed::Unfinished if card.has_room(&packet) => {
                if self.send_out(&packet, to).is_err() {
                    self.refuse(sender, queue, id);
                    return true;
                }
            }
            Handed::Missing => {
                self.refuse(sender, queue, id);
                return true;
            }
            Handed::Unfinished | Handed::NoRoom => {
                card.wait(sender.port);
                return false;
            }
            Handed::OwnFull => return false,
            Handed::Lost(why) => self.count_unsent(to, why),
        }
        self.way.answer(queue, id);
        true
    }

    /// Answers the packets of a vif that cards are done with. Gives whether a card still reads any.
    pub(super) fn settle_lent(&mut self, sender: &mut Sender) -> bool {
        let Some(outside) = &mut self.outside else { return false };
        outside.answer(sender);
        let is_lent = outside.has_of(sender.port);
        self.tell();
        is_lent
    }

    /// Wakes the vifs for which a card has given something back.
    fn tell(&mut self) {
        let Some(outside) = &mut self.outside else { return };
        while let Some(port) = outside.untold() {
            self.way.wake(port);
        }
    }

    /// Answers a packet whose bytes cannot be had: its grants are none, or they are not as the sender says.
    pub(super) fn refuse(&mut self, sender: &mut Sender, queue: usize, id: TxId) {
        // Copies of what could be had may be on their way.
        self.way.settle(sender);
        self.switch.count_drop(sender.port, Reason::Malformed);
        sender.queue(queue).respond(id, false);
    }

    /// Sends a packet by a card: a copy, so that nothing of the sender's is under way.
    ///
    /// # Errors
    /// A part cannot be had.
    fn send_out(&mut self, packet: &Packet<'_>, card: PortId) -> Result<(), Missing> {
        let mut frame = self.copy_whole(packet)?;
        self.send_frame_out(&mut frame, packet.offload, card);
        if let Some(outside) = &mut self.outside {
            outside.whole.give_back(frame);
        }
        Ok(())
    }

    pub(super) fn send_frame_out(&mut self, frame: &mut [u8], offload: &Offload, port: PortId) {
        let Some(card) = self.outside.as_mut().and_then(|outside| outside.card(port)) else { return };
        if let Err(why) = card.send(frame, offload) {
            self.count_unsent(port, why);
        }
    }

    fn count_unsent(&mut self, card: PortId, why: Unsent) {
        let reason = match why {
            Unsent::Full => Reason::NoRoom,
            Unsent::Unfit => Reason::TooBig,
            Unsent::Broken => Reason::NoReceiver,
        };
        self.switch.count_drop(card, reason);
    }

    /// Carries what has come in by a card to where it goes. `true`: there may be more.
    pub(super) fn receive(&mut self, port: PortId, now_ns: u64) -> bool {
        let Some(outside) = &mut self.outside else { return false };
        let Some(card) = outside.card(port) else { return false };
        card.take_back();
        let wire = card.wire.clone();
        let mut held = core::mem::take(&mut outside.held);
        let mut count = 0;
        while count < BATCH
            && let Some(received) = wire.receive()
        {
            count += 1;
            self.arrive(port, &received, now_ns);
            held.push(received);
            if self.way.is_long() {
                self.deliver();
                held.clear();
            }
        }
        self.deliver();
        // The buffers go back to the card.
        held.clear();
        if let Some(outside) = &mut self.outside {
            outside.held = held;
        }
        self.finish(now_ns);
        count == BATCH
    }

    /// Does the copies of packets that lie in dom0's own memory.
    pub(super) fn deliver(&mut self) {
        if let Some(outside) = &self.outside {
            self.way.deliver(&mut outside.whole.copier());
        }
    }

    /// Sends a packet that came in by a card on its way.
    fn arrive(&mut self, port: PortId, received: &Received, now_ns: u64) {
        let mut bytes = [0; HEAD_BYTES];
        let len = received.read(0, &mut bytes);
        let Some(mut head) = Head::parse(&mut bytes[..len], received.len) else { return };
        let offload = received.offload;
        let parts: ArrayVec<Part, MAX_PARTS> = received
            .parts()
            .iter()
            .map(|part| Part { place: Place::Own { frame: part.frame, offset: part.offset }, len: part.len })
            .collect();
        let packet = Packet { len: received.len, offload: &offload, parts: &parts };
        match self.switch.forward(now_ns, port, &head, offload.gso.is_some()) {
            Verdict::Drop(_) => {}
            Verdict::One(target) => match self.onward(now_ns, port, target, &mut head, &offload) {
                Onward::Drop => {}
                // Nobody sends dom0 itself so much: the card joined packets, or lies.
                Onward::Stack(_) if received.len as usize > STACK_BYTES => {}
                Onward::Stack(network) => {
                    let mut frame = alloc::vec![0; received.len as usize];
                    received.read(0, &mut frame);
                    if let Some(outside) = &mut self.outside {
                        let is_partial = offload.checksum == Checksum::Partial;
                        outside.gateway.deliver(now_ns, network, port, frame, is_partial);
                    }
                }
                Onward::Target(target) => {
                    if head.is_changed() {
                        received.write(0, head.bytes());
                    }
                    let frame = Frame {
                        kind: FrameKind::of(&head, self.way.is_hashing()),
                        from_queue: 0,
                        lender: None,
                        head: head.bytes(),
                    };
                    let sent = if changes_form(&head, target.form) {
                        self.send_copied(&packet, &mut [target], &frame)
                    } else {
                        self.send_now(&packet, target, &frame)
                    };
                    self.count_missing(port, sent);
                }
            },
            Verdict::Many(targets) => {
                let sent = self.send_many(None, &packet, (port, 0), &targets, &mut head, now_ns);
                self.count_missing(port, sent);
            }
        }
    }

    /// Counts a packet that lies in dom0's own memory, and is longer than dom0 can copy.
    fn count_missing(&mut self, from: PortId, sent: Result<(), Missing>) {
        if sent.is_err() {
            self.switch.count_drop(from, Reason::TooBig);
        }
    }

    /// Sends a packet of dom0's own memory to one receiver, which gets it now or never.
    ///
    /// # Errors
    /// The packet is longer than dom0 can copy.
    fn send_now(&mut self, packet: &Packet<'_>, target: Target, frame: &Frame<'_>) -> Result<(), Missing> {
        if target.kind == PortKind::Wire {
            return self.send_out(packet, target.port);
        }
        self.send_to_vif(packet, target.port, frame);
        Ok(())
    }

    /// Sends a packet to a vif, which gets it now or never.
    pub(super) fn send_to_vif(&mut self, packet: &Packet<'_>, to: PortId, frame: &Frame<'_>) {
        let reason = match self.finisher.send(&mut self.way, packet, to, frame) {
            Sent::Yes | Sent::Unwanted | Sent::Unfinished => return,
            Sent::NoRoom { .. } => Reason::NoRoom,
            Sent::Dropped(reason) => reason,
        };
        self.switch.count_drop(to, reason);
    }

    /// Ends a batch, whose packets are at their receivers: what the gateway says to the batch is sent, and then each receiver is
    /// told once.
    pub(super) fn finish(&mut self, now_ns: u64) {
        if self.outside.as_ref().is_some_and(|outside| outside.is_stirred) {
            self.flush(now_ns);
        } else {
            self.show();
        }
    }

    /// Tells vifs and cards of what is there for them.
    fn show(&mut self) {
        self.way.publish();
        if let Some(outside) = &self.outside {
            outside.kick();
        }
        self.tell();
    }

    /// Has the gateway do what there is to do, and sends what it gives. Returns when the gateway must be asked again.
    pub(super) fn flush(&mut self, now_ns: u64) -> u64 {
        let mut next_ns = u64::MAX;
        for _ in 0..FLUSHES {
            let Some(outside) = &mut self.outside else { break };
            outside.is_stirred = false;
            let (frames, next) = outside.gateway.poll(now_ns);
            next_ns = next;
            if frames.is_empty() {
                break;
            }
            for (network, frame) in frames {
                self.send_own(network, frame, now_ns);
            }
            next_ns = now_ns;
        }
        self.show();
        // The task sleeps, and this may be sooner.
        if let Some(outside) = &self.outside
            && next_ns < outside.sleeps_until_ns
        {
            outside.task.notify_one();
        }
        next_ns
    }

    /// Sends a frame of dom0's own on a network.
    fn send_own(&mut self, network: BridgeId, mut frame: Vec<u8>, now_ns: u64) {
        let Some(own) = self.outside.as_ref().and_then(|outside| outside.local_on(network)) else { return };
        let len = frame.len() as u32;
        let parts = self.outside.as_ref().and_then(|outside| outside.whole.put(&frame));
        let Some(parts) = parts else { return self.switch.count_drop(own, Reason::TooBig) };
        let offload = Offload::default();
        let packet = Packet { len, offload: &offload, parts: &parts };
        let head_len = frame.len().min(HEAD_BYTES);
        let Some(mut head) = Head::parse(&mut frame[..head_len], len) else { return };
        let sent = match self.switch.forward(now_ns, own, &head, false) {
            Verdict::Drop(_) => Ok(()),
            Verdict::One(target) => {
                let kind = FrameKind::of(&head, self.way.is_hashing());
                self.send_now(
                    &packet,
                    target,
                    &Frame { kind, from_queue: 0, lender: None, head: head.bytes() },
                )
            }
            Verdict::Many(targets) => self.send_many(None, &packet, (own, 0), &targets, &mut head, now_ns),
        };
        self.count_missing(own, sent);
        // The next frame takes the same page.
        self.deliver();
    }
}
