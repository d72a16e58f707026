//! What a packet's sender left to others: the same for both ends of a network device.
//!
//! ABI: the flags and the extra information of `xen/include/public/io/netif.h`.

use super::netif::{XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6};

/// What is known of the checksum of a packet's TCP or UDP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The packet has one, or needs none; nobody has looked whether the checksum is right.
    #[default]
    Complete,
    /// The packet has one, and the checksum is known to be right. Or the packet never left memory, and the checksum is
    /// not there.
    Verified,
    /// The field holds the sum of the pseudo header alone: a receiver that needs the checksum must complete the sum. The
    /// packet has not left this machine, so nothing can have damaged it.
    Partial,
}

/// The protocol of the packet that is to be cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
}

impl GsoKind {
    /// The number on the ring, `XEN_NETIF_GSO_TYPE_*`.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::TcpV4 => XEN_NETIF_GSO_TYPE_TCPV4,
            Self::TcpV6 => XEN_NETIF_GSO_TYPE_TCPV6,
        }
    }

    /// The protocol of a number on the ring; `None`: there is no such protocol.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            XEN_NETIF_GSO_TYPE_TCPV4 => Some(Self::TcpV4),
            XEN_NETIF_GSO_TYPE_TCPV6 => Some(Self::TcpV6),
            _ => None,
        }
    }
}

/// A packet that is longer than the wire takes, to be cut where the wire begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// The protocol.
    pub kind: GsoKind,
    /// Most bytes of payload in a segment, at least 1.
    pub size: u16,
}

/// A flow's hash, as somebody computed the hash who is not to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHash {
    /// `_XEN_NETIF_CTRL_HASH_TYPE_*`: the number of the bit, as extra information has the type.
    pub kind: u8,
    /// The hash.
    pub value: u32,
}

/// What a packet's sender left to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum of the transport header.
    pub checksum: Checksum,
    /// The packet is to be cut into segments.
    pub gso: Option<Gso>,
    /// The flow's hash.
    pub hash: Option<PacketHash>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_protocols() {
        for kind in [GsoKind::TcpV4, GsoKind::TcpV6] {
            assert_eq!(GsoKind::from_number(kind.number()), Some(kind));
        }
        assert_eq!([0, 3, 255].map(GsoKind::from_number), [None; 3]);
    }
}
