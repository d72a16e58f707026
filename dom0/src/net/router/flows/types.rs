//! What a connection is.

use core::net::Ipv4Addr;

use super::{Key, PortId};
use crate::net::headers::{TcpFlags, protocol};

/// One end of a flow: address, and port or identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// The address.
    pub address: Ipv4Addr,
    /// The port, or the identifier of an ICMP query.
    pub port: u16,
}

/// Whose share an entry belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Connections that a guest began.
    Port(PortId),
    /// Connections that came by the forward with this number.
    Forward(u16),
}

/// A connection as both sides see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// TCP, UDP or ICMP.
    pub protocol: u8,
    /// The guest.
    pub inside: End,
    /// The other end.
    pub remote: End,
    /// What the other end takes for the guest: an address of the uplink's.
    pub outside: End,
}

impl Flow {
    pub(super) fn inside_key(&self) -> Key {
        Key { protocol: self.protocol, near: self.inside, far: self.remote }
    }

    pub(super) fn outside_key(&self) -> Key {
        Key { protocol: self.protocol, near: self.outside, far: self.remote }
    }
}

/// Why there is no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoFlow {
    /// No flow of this protocol is translated.
    Protocol,
    /// The packet belongs to no connection, and is not one that begins one.
    NotABeginning,
    /// All ports toward this other end are taken, or the table is full.
    Exhausted,
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the guest.
    Out,
    /// From the other end.
    In,
}

/// The other end as keys have it. An ICMP query has one identifier, which is the near end's.
pub(super) fn far_end(protocol: u8, end: End) -> End {
    if protocol == protocol::ICMP { End { port: 0, ..end } } else { end }
}

/// Whether a packet may begin a connection.
pub(super) fn begins(protocol: u8, flags: Option<TcpFlags>) -> Result<(), NoFlow> {
    match (protocol, flags) {
        (protocol::TCP, Some(flags)) if flags.syn() && !flags.ack() && !flags.rst() => Ok(()),
        (protocol::TCP, _) => Err(NoFlow::NotABeginning),
        (protocol::UDP | protocol::ICMP, _) => Ok(()),
        _ => Err(NoFlow::Protocol),
    }
}
