//! A connected vif, as what stands behind a port.

use alloc::sync::Arc;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use backends::net::vif::Abilities;
use backends::net::{Controlled, Disconnect, Intake, PacketHash, RxQueue};
use pvrt::executor::sync::Notify;
use pvrt::grant::{GrantMap, GrantPage};

use super::MAX_QUEUES;
use super::sender::Frame;
use crate::net::switch::PortId;
use crate::xenbus::Bell;

/// A vif's ring for what its frontend receives.
pub(super) type Receiver = RxQueue<GrantMap, Bell>;

/// A connected vif, as what stands behind a port.
pub(super) struct End {
    pub(super) port: PortId,
    pub(super) queues: ArrayVec<Queue, MAX_QUEUES>,
    pub(super) intake: Intake,
    pub(super) abilities: Abilities,
    /// What the frontend set by its control ring.
    pub(super) controlled: Controlled<GrantPage>,
    /// The frontend ruined a ring, as a sender found. Nothing goes to the frontend any more.
    pub(super) ruined: Option<Disconnect>,
    /// Wakes the vif's own task.
    pub(super) task: Arc<Notify>,
    /// Senders that wait until there is room here.
    pub(super) waiting: Vec<PortId>,
}

pub(super) struct Queue {
    pub(super) ring: Receiver,
    /// The queue took part in the batch.
    pub(super) is_touched: bool,
}

/// The receiver behind a port, and the sender, if the packet is a vif's and the vif is connected.
#[inline(always)]
pub(super) fn pair(
    ends: &mut [Option<End>],
    to: PortId,
    from: Option<PortId>,
) -> (Option<&mut End>, Option<&End>) {
    let is_at = |end: &&mut End| end.port == to;
    let Some(from) = from.filter(|from| *from != to && from.index().max(to.index()) < ends.len()) else {
        return (ends.get_mut(to.index()).and_then(Option::as_mut).filter(is_at), None);
    };
    match ends.get_disjoint_mut([to.index(), from.index()]) {
        Ok([end, own]) => (end.as_mut().filter(is_at), own.as_ref().filter(|own| own.port == from)),
        // A new port in a former port's place.
        Err(_) => (None, None),
    }
}

impl End {
    /// Whether anything may go to the frontend.
    pub(super) fn takes(&self) -> bool {
        self.ruined.is_none() && !self.queues.is_empty()
    }

    /// The queue that a packet goes to, and the hash that the frontend is told.
    pub(super) fn steer(
        &self,
        from_sender: Option<PacketHash>,
        frame: &Frame<'_>,
    ) -> (usize, Option<PacketHash>) {
        let (hashing, queues) = (&self.controlled.hashing, self.queues.len());
        if !hashing.is_on() {
            // The sender's word tells its flows apart, and is good for nothing else.
            let number = from_sender.map_or(frame.from_queue, |hash| hash.value as usize);
            return (number % queues, None);
        }
        let hash = frame.kind.flow.and_then(|flow| hashing.hash(&flow));
        (hashing.queue(hash, queues), hash)
    }

    pub(super) fn ruin(&mut self, reason: Disconnect) {
        self.ruined = Some(reason);
        self.task.notify_one();
    }
}
