//! The switch: bridges, and which port a frame goes to.
//!
//! A frame comes in by a port, is in one VLAN of the port's bridge, and goes to the port behind which its receiver is, to
//! all ports if it is for a group, or to those that may have unknown stations behind them. Two bridges share nothing (I42).
//!
//! - [`port`]: ports, their counters, verdicts;
//! - [`vlan`]: tags and VLANs;
//! - [`firewall`]: rules of a vif, and flows that go on;
//! - [`guard`]: a vif sends from its own addresses alone;
//! - `table`: which station is behind which port;
//! - `bridges`: bridges and ports come and go;
//! - `again`: frames that go where the last one went;
//! - `changes`: ports move to other VLANs;
//! - `tap`: frames are captured;
//! - `hash`: the tables' hash, with a secret.
//!
//! A vif has one station, its own, unless it was told otherwise: nobody takes the vif's address over, frames to
//! unknown stations never go to the vif, and it learns nothing. A frame costs no allocation.

mod again;
mod bridges;
mod changes;
pub mod firewall;
pub mod guard;
#[cfg(test)]
mod guard_tests;
mod hash;
pub mod port;
mod table;
mod tap;
#[cfg(test)]
mod tests;
pub mod vlan;

pub use again::{Again, Ethernet};
pub use bridges::{BridgeId, MAX_BRIDGES, StationView, SwitchError};
pub use changes::PlaceError;
pub use firewall::{Action, Direction, Rule, Rules};
pub use guard::Guard;
pub use port::{BYTES_PER_PORT, Counters, PortConfig, PortId, PortKind, Reason, Target, Targets, Verdict};
pub use tap::Tap;
pub use vlan::{Form, VlanId, Vlans};

use alloc::boxed::Box;
use alloc::vec::Vec;

use self::bridges::Bridge;
use self::hash::Seed;
use self::port::{Port, Receivers, Recent};
use self::table::{MacTable, Segment, Station};
use super::headers::{Head, Network};

/// All bridges, and their ports.
pub struct Switch {
    ports: Vec<Option<Box<Port>>>,
    bridges: Vec<Option<Bridge>>,
    table: MacTable,
    seed: Seed,
    /// Of the frame that was forwarded last, if they are several.
    receivers: Receivers,
    /// The next port's generation.
    generation: u32,
    /// The capture that goes on, if one does.
    tap: Option<Box<Tap>>,
}

/// Most bytes behind the Ethernet header of a frame for a group: of the longest that wires take.
const MOST_FOR_GROUP: u32 = 9216;

/// A frame on its way through a bridge.
#[derive(Clone, Copy)]
struct Passage {
    from: u16,
    is_isolated: bool,
    vlan: VlanId,
    is_gso: bool,
    now_s: u32,
}

impl Switch {
    /// A switch without bridges. `secret` is what its tables' order depends on: nobody who sends frames may know it.
    #[must_use]
    pub fn new(secret: [u64; 2]) -> Switch {
        let seed = Seed::new(secret);
        let table = MacTable::new(seed);
        Switch {
            ports: Vec::new(),
            bridges: Vec::new(),
            table,
            seed,
            receivers: Receivers::default(),
            generation: 0,
            tap: None,
        }
    }

    /// Decides what becomes of a frame that came in by the port `from`, and counts the frame. `is_gso`: the frame is to be cut
    /// where the wire begins, and may be longer than a port takes.
    #[inline(always)]
    pub fn forward(&mut self, now_ns: u64, from: PortId, head: &Head<'_>, is_gso: bool) -> Verdict {
        let verdict = match self.decide(now_ns, from, head, is_gso) {
            Ok(verdict) => verdict,
            Err((at, reason)) => self.dropped(at, reason),
        };
        if self.tap.is_some() {
            self.capture(now_ns, from, head, &verdict);
        }
        verdict
    }

    #[cold]
    #[inline(never)]
    fn dropped(&mut self, at: u16, reason: Reason) -> Verdict {
        if let Some(port) = self.port_at(at) {
            port.counters.drop(reason);
        }
        Verdict::Drop(reason)
    }

    /// Notes that a frame which was to go out by the port was dropped behind the switch.
    pub fn count_drop(&mut self, port: PortId, reason: Reason) {
        if let Some(port) = self.port_mut(port) {
            port.counters.drop(reason);
        }
    }

    /// The verdict; or the port where the drop is to be counted, and why.
    #[inline(always)]
    fn decide(
        &mut self,
        now_ns: u64,
        from: PortId,
        head: &Head<'_>,
        is_gso: bool,
    ) -> Result<Verdict, (u16, Reason)> {
        let now_s = (now_ns / 1_000_000_000) as u32;
        let at = from.index;
        let slot = self.ports.get_mut(usize::from(at)).and_then(Option::as_deref_mut);
        let Some(port) = slot.filter(|port| port.generation == from.generation) else {
            // The port was taken away: there is nowhere to count.
            return Err((u16::MAX, Reason::NoReceiver));
        };
        port.counters.in_packets += 1;
        port.counters.in_bytes += u64::from(head.frame_len());
        if let Some(recent) = port.recent
            && recent.now_s == now_s
            && recent.changes == self.table.changes()
            && is_plain(head)
            && head.bytes().first_chunk() == Some(&recent.stations)
        {
            port.lets_out(head, now_s).map_err(|reason| (at, reason))?;
            let target = recent.target;
            return self.deliver(target, head, is_gso, now_s).map(|()| Verdict::One(target));
        }
        self.look_up(now_s, at, head, is_gso)
    }

    /// As [`Switch::decide`] for a frame that the port does not know to be like its last.
    #[inline(never)]
    fn look_up(
        &mut self,
        now_s: u32,
        at: u16,
        head: &Head<'_>,
        is_gso: bool,
    ) -> Result<Verdict, (u16, Reason)> {
        let slot = self.ports.get_mut(usize::from(at)).and_then(Option::as_deref_mut);
        let port = slot.ok_or((at, Reason::NoReceiver))?;
        let (source, to) = (head.from(), head.to());
        if !source.is_station() {
            return Err((at, Reason::NoStation));
        }
        if to.is_reserved() {
            return Err((at, Reason::Reserved));
        }
        let vlan = port.config.vlans.ingress(head).ok_or((at, Reason::Vlan))?;
        let segment = port.config.bridge.segment(vlan);
        match port.config.mac {
            Some(own) if own != source => return Err((at, Reason::SpoofedMac)),
            Some(_) => {}
            None => {
                let station = Station { mac: source, segment };
                let learned = self.table.learn(station, at, &mut port.learned, now_s);
                learned.map_err(|_| (at, Reason::TakenMac))?;
            }
        }
        port.lets_out(head, now_s).map_err(|reason| (at, reason))?;
        let bridge = port.config.bridge;
        let passage = Passage { from: at, is_isolated: port.config.is_isolated, vlan, is_gso, now_s };
        if to.is_group() {
            return self.flood(passage, bridge, head, true);
        }
        let target = match self.table.port_of(Station { mac: to, segment }, now_s) {
            Some(port) if port == at => return Err((at, Reason::SamePort)),
            Some(port) => self.pass(passage, port, head)?,
            None => return self.flood(passage, bridge, head, false),
        };
        let changes = self.table.changes();
        if is_plain(head)
            && let Some(&stations) = head.bytes().first_chunk()
            && let Some(port) = self.port_at(at)
        {
            port.recent = Some(Recent { stations, changes, now_s, target });
        }
        Ok(Verdict::One(target))
    }

    /// Lets a frame go out by a port, if the port may get the frame.
    fn pass(&mut self, passage: Passage, to: u16, head: &Head<'_>) -> Result<Target, (u16, Reason)> {
        let slot = self.ports.get_mut(usize::from(to)).and_then(Option::as_deref_mut);
        let port = slot.ok_or((passage.from, Reason::NoReceiver))?;
        let form = port.config.vlans.egress(passage.vlan, head).ok_or((to, Reason::Vlan))?;
        if passage.is_isolated && port.config.is_isolated {
            return Err((to, Reason::Isolated));
        }
        let id = PortId { index: to, generation: port.generation };
        let target = Target { port: id, kind: port.config.kind, form };
        self.deliver(target, head, passage.is_gso, passage.now_s).map(|()| target)
    }

    /// Lets a frame go out by a port that is in the frame's network.
    #[inline(always)]
    fn deliver(
        &mut self,
        target: Target,
        head: &Head<'_>,
        is_gso: bool,
        now_s: u32,
    ) -> Result<(), (u16, Reason)> {
        let to = target.port.index;
        let slot = self.ports.get_mut(usize::from(to)).and_then(Option::as_deref_mut);
        let port = slot.ok_or((to, Reason::NoReceiver))?;
        let bytes = head.frame_len() - head.network_at() as u32;
        if bytes > port.config.mtu.into() && !is_gso {
            return Err((to, Reason::TooBig));
        }
        if let Some(firewall) = &mut port.firewall {
            firewall.check(Direction::In, head, now_s).map_err(|reason| (to, reason))?;
        }
        port.counters.out_packets += 1;
        port.counters.out_bytes += u64::from(head.frame_len());
        Ok(())
    }

    /// Lets a frame go out by all ports that may have a receiver behind them.
    fn flood(
        &mut self,
        passage: Passage,
        bridge: BridgeId,
        head: &Head<'_>,
        is_group: bool,
    ) -> Result<Verdict, (u16, Reason)> {
        let nobody = (passage.from, Reason::NoReceiver);
        // A packet for a group is copied for every port: 64 KiB for each would be no packet, but an attack. TCP has no groups.
        let bytes = head.frame_len() - head.network_at() as u32;
        if is_group && (passage.is_gso || bytes > MOST_FOR_GROUP) {
            return Err((passage.from, Reason::TooBig));
        }
        let members = self.bridge(bridge).ok_or(nobody)?.ports;
        let serial = self.receivers.serial + 1;
        let mut receivers = Receivers { serial, ..Receivers::default() };
        for to in members.iter().filter(|to| *to != passage.from) {
            let Some(port) = self.port_at(to) else { continue };
            // A port of which the only station is known gets no frame to an unknown one.
            let is_for_port = if is_group { port.wants(head.to()) } else { port.config.mac.is_none() };
            if !is_for_port || port.config.vlans.egress(passage.vlan, head).is_none() {
                continue;
            }
            match self.pass(passage, to, head) {
                Ok(Target { form: Form::Untagged, .. }) => receivers.untagged.insert(to),
                Ok(Target { form: Form::Tagged(tci), .. }) => {
                    receivers.tci = tci;
                    receivers.tagged.insert(to);
                }
                Err((at, reason)) => {
                    if let Some(port) = self.port_at(at) {
                        port.counters.drop(reason);
                    }
                }
            }
        }
        if receivers.untagged.is_empty() && receivers.tagged.is_empty() {
            return Err(nobody);
        }
        self.receivers = receivers;
        Ok(Verdict::Many(Targets { serial }))
    }

    #[inline]
    fn port_at(&mut self, index: u16) -> Option<&mut Port> {
        self.ports.get_mut(usize::from(index))?.as_deref_mut()
    }

    /// The port, unless it was taken away.
    fn port(&self, id: PortId) -> Option<&Port> {
        let port = self.ports.get(usize::from(id.index))?.as_deref()?;
        (port.generation == id.generation).then_some(port)
    }

    fn port_mut(&mut self, id: PortId) -> Option<&mut Port> {
        self.port_at(id.index).filter(|port| port.generation == id.generation)
    }
}

/// Whether a frame has no tag of any kind, and is for all that its addresses tell like the last with the same ones.
#[inline]
fn is_plain(head: &Head<'_>) -> bool {
    // What has a tag that is not ours is another protocol.
    head.tag().is_none() && head.network() != Network::Other
}

impl Port {
    /// Lets a frame pass that the port's own station sends.
    #[inline]
    fn lets_out(&mut self, head: &Head<'_>, now_s: u32) -> Result<(), Reason> {
        if self.config.guard.is_none() && self.firewall.is_none() {
            return Ok(());
        }
        self.check_out(head, now_s)
    }

    #[inline(never)]
    fn check_out(&mut self, head: &Head<'_>, now_s: u32) -> Result<(), Reason> {
        if let (Some(guard), Some(own)) = (&self.config.guard, self.config.mac) {
            guard.check(own, head)?;
        }
        match &mut self.firewall {
            Some(firewall) => firewall.check(Direction::Out, head, now_s),
            None => Ok(()),
        }
    }
}

impl BridgeId {
    #[inline]
    fn segment(self, vlan: VlanId) -> Segment {
        Segment(u32::from(self.0) << 12 | u32::from(vlan.number()))
    }
}
