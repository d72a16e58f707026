//! What the router is told, and what the router answers.

use alloc::string::String;
use core::fmt;
use core::net::Ipv4Addr;

use smoltcp::wire::Ipv4Cidr;

use crate::net::headers::Head;
use crate::net::mac::MacAddr;
use crate::net::switch::{BridgeId, PortId};

/// What a network is to the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Guests, whose addresses mean nothing outside.
    Inside,
    /// The way to the world.
    Uplink,
}

/// A network, as the router is a station of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// What the network is.
    pub role: Role,
    /// The router's station.
    pub mac: MacAddr,
    /// The router's address and the network's prefix; an uplink has none before a server has answered.
    pub address: Option<Ipv4Cidr>,
    /// Where packets beyond the network go.
    pub gateway: Option<Ipv4Addr>,
    /// Most bytes of an IP packet.
    pub mtu: u16,
}

/// Connections to a port of the uplink's go to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP, by number.
    pub protocol: u8,
    /// The port at the uplink.
    pub port: u16,
    /// The guest's name or address, as the administrator gave it.
    pub guest: String,
    /// The guest's address, once the address is known.
    pub to: Option<Ipv4Addr>,
    /// The guest's port.
    pub to_port: u16,
}

/// Why a packet went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The headers are not whole, lie about lengths, or have a wrong checksum.
    Malformed,
    /// The sender's address is not one of its network.
    Source,
    /// No network has its receiver, or the receiver's network is not to be reached.
    Unreachable,
    /// The packet has passed too many routers.
    HopLimit,
    /// The packet is longer than the next network takes.
    TooLong,
    /// A fragment, of which the router does not know the connection.
    Fragment,
    /// The protocol is not translated.
    Protocol,
    /// The packet belongs to no connection.
    NoConnection,
    /// The table of connections has no room for another.
    Exhausted,
    /// The next station's Ethernet address is not known yet; the network was asked.
    Resolving,
    /// The control domain has no service at the datagram's port.
    Closed,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: &[Reason] = &[
        Self::Malformed,
        Self::Source,
        Self::Unreachable,
        Self::HopLimit,
        Self::TooLong,
        Self::Fragment,
        Self::Protocol,
        Self::NoConnection,
        Self::Exhausted,
        Self::Resolving,
        Self::Closed,
    ];
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed",
            Self::Source => "source is not of the network",
            Self::Unreachable => "receiver is not to be reached",
            Self::HopLimit => "too many hops",
            Self::TooLong => "longer than the next network takes",
            Self::Fragment => "fragment",
            Self::Protocol => "protocol is not translated",
            Self::NoConnection => "no connection",
            Self::Exhausted => "no room for another connection",
            Self::Resolving => "station is not known yet",
            Self::Closed => "no service of dom0's at the port",
        })
    }
}

/// Number of [`Reason`]s.
pub const REASONS: usize = Reason::ALL.len();

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// The packet is dropped.
    Drop(Reason),
    /// The packet leaves by this network, to the station that its head says now.
    Forward(BridgeId),
    /// The packet is for the control domain's own stack.
    Stack,
}

/// A packet with what is known of it beside its head.
pub struct Arrival<'a, 'h> {
    /// The network on which the packet came.
    pub network: BridgeId,
    /// The port of the switch behind which the sender is.
    pub port: PortId,
    /// The head.
    pub head: &'a mut Head<'h>,
    /// The transport's checksum holds the sum of the pseudo header alone.
    pub is_partial: bool,
    /// The packet is to be cut into segments of so many bytes at most, headers included.
    pub segment: Option<u16>,
}
