//! Bridges and ports come and go, and are shown.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::Switch;
use super::firewall::{Firewall, Rules};
use super::guard::Guard;
use super::port::{Counters, Groups, MAX_PORTS, Port, PortConfig, PortId, PortSet, Target};
use super::table::{Learned, Segment, Station};
use super::vlan::{Form, VlanId};
use crate::net::MacAddr;

/// Most bridges.
pub const MAX_BRIDGES: usize = 64;
/// Longest name of a bridge, in bytes: what Linux allows an interface.
const NAME_BYTES: usize = 15;
/// Most VLANs of a port that has one station: the station is fixed in each.
pub(super) const MAX_FIXED: usize = 64;

/// A bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BridgeId(pub(super) u16);

impl BridgeId {
    /// A bridge of no switch.
    #[cfg(test)]
    pub(crate) const fn testing(number: u16) -> BridgeId {
        BridgeId(number)
    }
}

pub(super) struct Bridge {
    name: String,
    pub(super) ports: PortSet,
}

/// What keeps a bridge or port from being made or taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwitchError {
    /// The name is empty, too long, or has other characters than letters, digits, `-`, `_` and `.`.
    BadName(String),
    /// There is a bridge, or a port, of that name.
    NameTaken(String),
    /// There are as many bridges as there can be.
    TooManyBridges,
    /// There are as many ports as there can be.
    TooManyPorts,
    /// There is no such bridge.
    NoBridge,
    /// There is no such port.
    NoPort,
    /// The bridge still has ports.
    InUse(String),
    /// The address is no station's.
    NoStation(MacAddr),
    /// Another port of the bridge, in the same VLAN, has the address.
    MacTaken(MacAddr, String),
    /// The port may have many stations, and shall send from few IP addresses.
    GuardWithoutMac(String),
    /// One station, in more VLANs than can be kept of it.
    TooManyVlans(String),
}

impl fmt::Display for SwitchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SwitchError::BadName(name) => {
                write!(f, "`{name}`: a name has 1 to {NAME_BYTES} letters, digits, `-`, `_` and `.`")
            }
            SwitchError::NameTaken(name) => write!(f, "there is a `{name}` already"),
            SwitchError::TooManyBridges => write!(f, "there are {MAX_BRIDGES} bridges, and no more can be"),
            SwitchError::TooManyPorts => write!(f, "there are {MAX_PORTS} ports, and no more can be"),
            SwitchError::NoBridge => f.write_str("the bridge is gone"),
            SwitchError::NoPort => f.write_str("the port is gone"),
            SwitchError::InUse(port) => write!(f, "the bridge still has the port {port}"),
            SwitchError::NoStation(mac) => write!(f, "{mac} is no address of a station"),
            SwitchError::MacTaken(mac, port) => {
                write!(f, "{mac} is the address of {port}, on the same bridge")
            }
            SwitchError::GuardWithoutMac(port) => {
                write!(f, "{port}: IP addresses are checked only where the Ethernet address is")
            }
            SwitchError::TooManyVlans(port) => {
                write!(f, "{port}: a port with one address can be in {MAX_FIXED} VLANs at most")
            }
        }
    }
}

/// What is known of a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StationView {
    /// The station's address.
    pub mac: MacAddr,
    /// The VLAN that the station is in.
    pub vlan: VlanId,
    /// The port behind which the station is.
    pub port: PortId,
    /// Since when nothing was heard of the station, in seconds; `None`: the station is the port's own.
    pub age_s: Option<u32>,
}

/// The bridge's or port's name, if it can be one.
fn checked(name: &str) -> Result<String, SwitchError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = (1..=NAME_BYTES).contains(&name.len()) && name.chars().all(is_plain);
    if fits { Ok(name.to_owned()) } else { Err(SwitchError::BadName(name.to_owned())) }
}

impl Switch {
    /// Makes a bridge.
    ///
    /// # Errors
    /// The name is none or taken, or there are too many bridges.
    pub fn add_bridge(&mut self, name: &str) -> Result<BridgeId, SwitchError> {
        let name = checked(name)?;
        if self.find_bridge(&name).is_some() {
            return Err(SwitchError::NameTaken(name));
        }
        let free = self.bridges.iter().position(Option::is_none).unwrap_or(self.bridges.len());
        if free == MAX_BRIDGES {
            return Err(SwitchError::TooManyBridges);
        }
        let bridge = Some(Bridge { name, ports: PortSet::default() });
        match self.bridges.get_mut(free) {
            Some(slot) => *slot = bridge,
            None => self.bridges.push(bridge),
        }
        Ok(BridgeId(free as u16))
    }

    /// Takes a bridge away that has no ports.
    ///
    /// # Errors
    /// The bridge has ports, or there is none.
    pub fn remove_bridge(&mut self, id: BridgeId) -> Result<(), SwitchError> {
        let ports = self.bridge(id).ok_or(SwitchError::NoBridge)?.ports;
        if let Some(port) = ports.iter().find_map(|index| self.ports[usize::from(index)].as_deref()) {
            return Err(SwitchError::InUse(port.config.name.clone()));
        }
        self.bridges[usize::from(id.0)] = None;
        Ok(())
    }

    /// The bridge of that name.
    #[must_use]
    pub fn find_bridge(&self, name: &str) -> Option<BridgeId> {
        self.bridges().find_map(|(id, found)| (found == name).then_some(id))
    }

    /// All bridges with their names.
    pub fn bridges(&self) -> impl Iterator<Item = (BridgeId, &str)> {
        let bridges = self.bridges.iter().zip(0..);
        bridges.filter_map(|(bridge, n)| bridge.as_ref().map(|bridge| (BridgeId(n), bridge.name.as_str())))
    }

    pub(super) fn bridge(&self, id: BridgeId) -> Option<&Bridge> {
        self.bridges.get(usize::from(id.0))?.as_ref()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = PortId> {
        let ports = self.ports.iter().zip(0..);
        ports.filter_map(|(port, index)| {
            port.as_ref().map(|port| PortId { index, generation: port.generation })
        })
    }

    /// All ports of a bridge.
    pub fn ports_of(&self, bridge: BridgeId) -> impl Iterator<Item = PortId> {
        self.ids().filter(move |id| self.config(*id).is_some_and(|config| config.bridge == bridge))
    }

    /// What the port is.
    #[must_use]
    pub fn config(&self, id: PortId) -> Option<&PortConfig> {
        self.port(id).map(|port| &port.config)
    }

    /// What was counted at the port.
    #[must_use]
    pub fn counters(&self, id: PortId) -> Option<&Counters> {
        self.port(id).map(|port| &port.counters)
    }

    pub(super) fn target(&self, index: u16, form: Form) -> Option<Target> {
        let port = self.ports.get(usize::from(index))?.as_deref()?;
        Some(Target { port: PortId { index, generation: port.generation }, kind: port.config.kind, form })
    }

    /// The stations that are known on a bridge, in no order.
    pub fn stations(&self, bridge: BridgeId, now_ns: u64) -> impl Iterator<Item = StationView> {
        let now_s = (now_ns / 1_000_000_000) as u32;
        let of_bridge = move |segment: Segment| u32::from(bridge.0) == segment.0 >> 12;
        let known = self.table.all().filter(move |(station, _)| of_bridge(station.segment));
        known.filter_map(move |(station, known)| {
            let port = self.target(known.port, Form::Untagged)?.port;
            let age_s = (!known.is_fixed).then(|| now_s.wrapping_sub(known.seen_s));
            let vlan = VlanId::new((station.segment.0 & 0xfff) as u16)?;
            Some(StationView { mac: station.mac, vlan, port, age_s })
        })
    }

    /// The fixed stations of a port of that kind.
    pub(super) fn fixed(config: &PortConfig) -> Result<Vec<Station>, SwitchError> {
        let Some(mac) = config.mac else {
            let is_guarded = config.guard.is_some();
            return if is_guarded {
                Err(SwitchError::GuardWithoutMac(config.name.clone()))
            } else {
                Ok(Vec::new())
            };
        };
        if !mac.is_station() {
            return Err(SwitchError::NoStation(mac));
        }
        let vlans = config.vlans.list().filter(|vlans| vlans.len() <= MAX_FIXED);
        let vlans = vlans.ok_or_else(|| SwitchError::TooManyVlans(config.name.clone()))?;
        let station = |vlan| Station { mac, segment: config.bridge.segment(vlan) };
        Ok(vlans.into_iter().map(station).collect())
    }

    /// Stations that the table must have room for on account of a port.
    pub(super) fn room_for(port: &Port) -> usize {
        let fixed = Self::fixed(&port.config).map_or(0, |fixed| fixed.len());
        fixed + port.learned.budget()
    }

    /// Makes a port.
    ///
    /// # Errors
    /// Another port has the name, or the address; or there are too many.
    pub fn add_port(&mut self, config: PortConfig) -> Result<PortId, SwitchError> {
        if self.bridge(config.bridge).is_none() {
            return Err(SwitchError::NoBridge);
        }
        let mut configs = self.ports.iter().flatten().map(|port| &port.config);
        if configs.any(|other| other.name == config.name) {
            return Err(SwitchError::NameTaken(config.name));
        }
        let fixed = Self::fixed(&config)?;
        let free = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        if free == MAX_PORTS {
            return Err(SwitchError::TooManyPorts);
        }
        let index = free as u16;
        let learned = Learned::with_budget(if config.mac.is_some() { 0 } else { config.stations });
        let others: usize = self.ports.iter().flatten().map(|port| Self::room_for(port)).sum();
        self.table.reserve(others + fixed.len() + learned.budget());
        for (n, station) in fixed.iter().enumerate() {
            if self.table.fix(*station, index).is_err() {
                fixed[..n].iter().for_each(|station| self.table.unfix(*station, index));
                return Err(SwitchError::MacTaken(station.mac, self.owner_of(*station)));
            }
        }
        let generation = self.generation;
        self.generation += 1;
        if let Some(bridge) = self.bridges.get_mut(usize::from(config.bridge.0)).and_then(Option::as_mut) {
            bridge.ports.insert(index);
        }
        let counters = Counters::default();
        let port = Port { recent: None, config, generation, counters, learned, firewall: None, groups: None };
        let port = Some(Box::new(port));
        match self.ports.get_mut(free) {
            Some(slot) => *slot = port,
            None => self.ports.push(port),
        }
        Ok(PortId { index, generation })
    }

    /// Takes a port away, with all that was known by it. Gives what was counted.
    pub fn remove_port(&mut self, id: PortId) -> Option<Counters> {
        self.port(id)?;
        let mut port = self.ports[usize::from(id.index)].take()?;
        self.table.forget(id.index, &mut port.learned);
        // The next port in this place gets nothing that was for this one.
        self.receivers.untagged.remove(id.index);
        self.receivers.tagged.remove(id.index);
        for station in Self::fixed(&port.config).unwrap_or_default() {
            self.table.unfix(station, id.index);
        }
        let bridge = self.bridges.get_mut(usize::from(port.config.bridge.0))?.as_mut()?;
        bridge.ports.remove(id.index);
        Some(port.counters)
    }

    /// Says from which IP addresses a port's station may send; `None`: from any.
    ///
    /// # Errors
    /// The port is gone, or has no station of its own.
    pub fn set_guard(&mut self, id: PortId, guard: Option<Guard>) -> Result<(), SwitchError> {
        let port = self.port_mut(id).ok_or(SwitchError::NoPort)?;
        if port.config.mac.is_none() && guard.is_some() {
            return Err(SwitchError::GuardWithoutMac(port.config.name.clone()));
        }
        port.config.guard = guard;
        Ok(())
    }

    /// Gives a port rules, or takes them away. What went on by rules of before has to pass by these.
    ///
    /// # Errors
    /// The port is gone.
    pub fn set_rules(&mut self, id: PortId, rules: Option<Rules>) -> Result<(), SwitchError> {
        let seed = self.seed;
        let port = self.port_mut(id).ok_or(SwitchError::NoPort)?;
        port.firewall = rules.map(|rules| Box::new(Firewall::new(rules, seed)));
        Ok(())
    }

    /// The rules of a port that has any.
    #[must_use]
    pub fn rules(&self, id: PortId) -> Option<&Rules> {
        self.port(id)?.firewall.as_deref().map(Firewall::rules)
    }

    /// How many flows go on that a port's firewall remembers.
    #[must_use]
    pub fn flows(&self, id: PortId, now_ns: u64) -> usize {
        let firewall = self.port(id).and_then(|port| port.firewall.as_deref());
        firewall.map_or(0, |firewall| firewall.flows((now_ns / 1_000_000_000) as u32))
    }

    /// Says whether a vif names the groups that it wants (`request-multicast-control`). When the vif begins, there are none.
    pub fn filter_groups(&mut self, id: PortId, filters: bool) {
        if let Some(port) = self.port_mut(id) {
            port.groups = if filters { port.groups.take().or(Some(Groups::new())) } else { None };
        }
    }

    /// A vif wants frames to a group. False: the address is no group's, the vif names none, or has named too many.
    #[must_use]
    pub fn add_group(&mut self, id: PortId, group: MacAddr) -> bool {
        let Some(groups) = self.port_mut(id).and_then(|port| port.groups.as_mut()) else { return false };
        group.is_group() && groups.add(group)
    }

    /// A vif wants no more frames to a group.
    pub fn remove_group(&mut self, id: PortId, group: MacAddr) {
        if let Some(groups) = self.port_mut(id).and_then(|port| port.groups.as_mut()) {
            groups.remove(group);
        }
    }
}
