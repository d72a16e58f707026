//! Ports: what is known of each, and what was counted there.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use super::BridgeId;
use super::bridges::MAX_FIXED;
use super::firewall::{BYTES_PER_FIREWALL, Firewall};
use super::guard::{Guard, MAX_ADDRESSES};
use super::table::{ENTRY_BYTES, Learned, Station};
use super::vlan::{Form, Vlans};
use crate::net::{MacAddr, Prefix};

/// Most ports of all bridges.
pub const MAX_PORTS: usize = 512;

/// Most stations that a vif learns which may send from other addresses than its own.
pub const VIF_STATIONS: u16 = 32;
/// Most stations that a wire learns.
pub const WIRE_STATIONS: u16 = 2048;

/// Most groups that a vif can ask for (Linux has the same limit).
pub const MAX_GROUPS: usize = 64;

/// A port of the switch. The number of a port that was taken away never means another port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId {
    pub(super) index: u16,
    pub(super) generation: u32,
}

impl PortId {
    /// The port's place, below [`MAX_PORTS`]; a later port may have the same.
    #[must_use]
    pub fn index(self) -> usize {
        self.index.into()
    }

    /// A port of no switch.
    #[cfg(test)]
    pub(crate) const fn testing(index: u16) -> PortId {
        PortId { index, generation: 1 }
    }
}

/// What stands behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A guest's network interface.
    Vif,
    /// A network card.
    Wire,
    /// dom0's own router and IP stack.
    Local,
}

/// What a port is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// The port's name in dom0, such as `vif3.0`.
    pub name: String,
    /// What stands behind the port.
    pub kind: PortKind,
    /// The bridge that the port is of.
    pub bridge: BridgeId,
    /// The VLANs that the port is in.
    pub vlans: Vlans,
    /// The only station behind the port, if there is only one: a frame from another is dropped. `None`: the port learns.
    pub mac: Option<MacAddr>,
    /// The IP addresses that the station may send from, if they are limited. Only of a port with a station of its own.
    pub guard: Option<Guard>,
    /// Most stations that a port without a station of its own learns.
    pub stations: u16,
    /// Most bytes behind the Ethernet header and its tag that go out by the port, unless a frame is to be cut.
    pub mtu: u16,
    /// Whether the port and the bridge's other such ports do not reach each other.
    pub is_isolated: bool,
}

impl PortConfig {
    /// A vif: one station, untagged, any length.
    #[must_use]
    pub fn vif(name: String, bridge: BridgeId, mac: MacAddr) -> PortConfig {
        PortConfig {
            name,
            kind: PortKind::Vif,
            bridge,
            vlans: Vlans::Access(super::VlanId::UNTAGGED),
            mac: Some(mac),
            guard: None,
            stations: VIF_STATIONS,
            mtu: u16::MAX,
            is_isolated: false,
        }
    }

    /// A wire: any stations, all VLANs.
    #[must_use]
    pub fn wire(name: String, bridge: BridgeId, mtu: u16) -> PortConfig {
        let vif = PortConfig::vif(name, bridge, MacAddr([0; 6]));
        PortConfig { kind: PortKind::Wire, vlans: Vlans::All, mac: None, stations: WIRE_STATIONS, mtu, ..vif }
    }

    /// dom0's own end of a bridge.
    #[must_use]
    pub fn local(name: String, bridge: BridgeId, mac: MacAddr) -> PortConfig {
        PortConfig { kind: PortKind::Local, ..PortConfig::vif(name, bridge, mac) }
    }
}

macro_rules! reasons {
    ($( $(#[doc = $doc:literal])+ $reason:ident = $text:literal, )*) => {
        /// Why a frame was dropped. Each port counts each reason; a reason that a frame's receiver gives is counted at the
        /// receiver's port.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $( $(#[doc = $doc])+ $reason, )*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Reason] = &[$( Reason::$reason, )*];
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $( Reason::$reason => $text, )*
                })
            }
        }
    };
}

reasons! {
    /// The sender's address is a group's, or none.
    NoStation = "source is no station",
    /// The frame is for the next bridge itself.
    Reserved = "reserved address",
    /// The port does not take or does not get frames of the VLAN.
    Vlan = "VLAN",
    /// The sender's Ethernet address is not the vif's own.
    SpoofedMac = "spoofed MAC",
    /// The sender's Ethernet address is for good another port's.
    TakenMac = "MAC of another port",
    /// The protocol is neither IP nor ARP, and the vif may send those alone.
    NotIp = "neither IP nor ARP",
    /// A header is not whole or lies, and a rule would have to know it.
    Malformed = "malformed",
    /// The sender's IP address is not the vif's own.
    SpoofedIp = "spoofed IP",
    /// ARP tells of another's address.
    SpoofedArp = "spoofed ARP",
    /// Neighbour discovery tells of another's address.
    SpoofedNeighbour = "spoofed neighbour",
    /// A guest plays the network's router or DHCP server.
    RogueServer = "rogue router or DHCP server",
    /// A later fragment of a packet that was not let pass, or a first one without all its headers.
    Fragment = "fragment",
    /// A rule for what the vif sends.
    RuleOut = "rule, out",
    /// A rule for what the vif gets.
    RuleIn = "rule, in",
    /// Both ports are isolated.
    Isolated = "isolated ports",
    /// Longer than the receiver's port takes.
    TooBig = "too big",
    /// The station is behind the port where the frame came in.
    SamePort = "station is behind the same port",
    /// Nobody is there to get the frame.
    NoReceiver = "no receiver",
    /// The receiver did not take the frame in time.
    NoRoom = "no room at the receiver",
}

/// What was counted at a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Frames that came in by the port, dropped ones too.
    pub in_packets: u64,
    /// The bytes of these frames.
    pub in_bytes: u64,
    /// Frames that were to go out by the port.
    pub out_packets: u64,
    /// The bytes of these frames.
    pub out_bytes: u64,
    drops: [u64; Reason::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Counters { in_packets: 0, in_bytes: 0, out_packets: 0, out_bytes: 0, drops: [0; Reason::ALL.len()] }
    }
}

impl Counters {
    /// Frames dropped for that reason.
    #[must_use]
    pub fn drops(&self, reason: Reason) -> u64 {
        self.drops[reason as usize]
    }

    pub(super) fn drop(&mut self, reason: Reason) {
        self.drops[reason as usize] += 1;
    }
}

/// Where the last frame went that came in by a port for one station, untagged. Good for the same second, while no station
/// has come, gone or moved.
#[derive(Clone, Copy)]
pub(super) struct Recent {
    /// Receiver and sender, as they stand in the frame.
    pub(super) stations: [u8; 12],
    pub(super) changes: u64,
    pub(super) now_s: u32,
    pub(super) target: Target,
}

/// A port.
pub(super) struct Port {
    pub(super) recent: Option<Recent>,
    pub(super) config: PortConfig,
    pub(super) generation: u32,
    pub(super) counters: Counters,
    pub(super) learned: Learned,
    pub(super) firewall: Option<Box<Firewall>>,
    /// The groups that a vif has asked for, if the vif says which.
    pub(super) groups: Option<Groups>,
}

/// The groups that a vif has asked for. The list has its room from the start: a guest can ask at any time.
pub(super) struct Groups {
    named: [MacAddr; MAX_GROUPS],
    len: usize,
}

impl Groups {
    pub(super) const fn new() -> Groups {
        Groups { named: [MacAddr::BROADCAST; MAX_GROUPS], len: 0 }
    }

    fn contains(&self, group: MacAddr) -> bool {
        self.named[..self.len].contains(&group)
    }

    /// Adds a group. False: there is no room.
    pub(super) fn add(&mut self, group: MacAddr) -> bool {
        if self.contains(group) {
            return true;
        }
        let place = self.named.get_mut(self.len);
        let fits = place.is_some();
        if let Some(place) = place {
            *place = group;
            self.len += 1;
        }
        fits
    }

    pub(super) fn remove(&mut self, group: MacAddr) {
        if let Some(at) = self.named[..self.len].iter().position(|other| *other == group) {
            self.len -= 1;
            self.named[at] = self.named[self.len];
        }
    }
}

/// Most bytes of heap that a vif's port keeps with all that belongs to the port, whatever is sent. What the table of stations
/// needs is at most four entries for each station.
pub const BYTES_PER_PORT: usize = size_of::<Port>()
    + size_of::<Firewall>()
    + BYTES_PER_FIREWALL
    + (VIF_STATIONS as usize + MAX_FIXED) * (4 * ENTRY_BYTES + size_of::<Station>())
    + MAX_ADDRESSES * size_of::<Prefix>()
    + 512 // the VLANs of a trunk
    + 64; // names
const _: () = assert!(BYTES_PER_PORT <= 48 << 10);

impl Port {
    /// Whether a frame to a group is wanted.
    #[inline]
    pub(super) fn wants(&self, group: MacAddr) -> bool {
        match &self.groups {
            None => true,
            Some(groups) => group == MacAddr::BROADCAST || groups.contains(group),
        }
    }
}

/// A set of ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PortSet([u64; MAX_PORTS / 64]);

impl PortSet {
    pub(super) fn insert(&mut self, index: u16) {
        self.0[usize::from(index >> 6)] |= 1 << (index & 63);
    }

    pub(super) fn remove(&mut self, index: u16) {
        self.0[usize::from(index >> 6)] &= !(1 << (index & 63));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; MAX_PORTS / 64]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u16> + use<> {
        self.0.into_iter().zip(0..).flat_map(|(word, n): (u64, u16)| {
            let mut word = word;
            core::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros() as u16)?;
                word &= word - 1;
                Some(n * 64 + bit)
            })
        })
    }
}

/// One receiver of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The port.
    pub port: PortId,
    /// What stands behind the port.
    pub kind: PortKind,
    /// What the frame must look like.
    pub form: Form,
}

/// Several receivers of a frame.
#[derive(Clone, Copy, Default)]
pub(super) struct Receivers {
    pub(super) untagged: PortSet,
    pub(super) tagged: PortSet,
    pub(super) tci: u16,
    /// Another number for each frame.
    pub(super) serial: u64,
}

impl Receivers {
    /// The ports, those that get no tag first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, Form)> + use<> {
        let tagged = Form::Tagged(self.tci);
        let untagged = self.untagged.iter().map(|index| (index, Form::Untagged));
        untagged.chain(self.tagged.iter().map(move |index| (index, tagged)))
    }
}

/// Several receivers of a frame. The switch keeps them until the next frame has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    pub(super) serial: u64,
}

impl Targets {
    /// The receivers, those that get no tag first; without ports that were taken away meanwhile. `switch` is the one that gave
    /// the verdict. None at all, if since then another frame had several receivers.
    pub fn iter(&self, switch: &super::Switch) -> impl Iterator<Item = Target> {
        let are_these = switch.receivers.serial == self.serial;
        let receivers = are_these.then(|| switch.receivers.iter()).into_iter().flatten();
        receivers.filter_map(|(index, form)| switch.target(index, form))
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The frame goes nowhere; the reason is counted.
    Drop(Reason),
    /// One receiver.
    One(Target),
    /// Several.
    Many(Targets),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_ports() {
        let mut set = PortSet::default();
        assert!(set.is_empty());
        for index in [511, 0, 63, 64, 65] {
            set.insert(index);
        }
        set.remove(64);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 65, 511]);
        assert!(!set.is_empty());
    }

    #[test]
    fn reasons_have_a_counter_each() {
        let mut counters = Counters::default();
        for (n, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, n, "{reason}");
            (0..=n).for_each(|_| counters.drop(*reason));
        }
        let counts: Vec<u64> = Reason::ALL.iter().map(|reason| counters.drops(*reason)).collect();
        assert_eq!(counts, (1..=Reason::ALL.len() as u64).collect::<Vec<_>>());
    }
}
