//! What the headers say.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use backends::net::Flow as HashedFlow;

use super::layout::{Fragment, IpLayout, Network, Transport};
use super::{Head, MacAddr, array};

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1: a request, 2: a reply.
    pub operation: u16,
    /// The sender's Ethernet address.
    pub sender_mac: MacAddr,
    /// The sender's address.
    pub sender: Ipv4Addr,
    /// The target's Ethernet address; of a request it means nothing.
    pub target_mac: MacAddr,
    /// The address that is asked for.
    pub target: Ipv4Addr,
}

/// An IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// The sender's address.
    pub source: Ipv4Addr,
    /// The receiver's address.
    pub destination: Ipv4Addr,
    /// How many routers the packet may still pass.
    pub ttl: u8,
    /// Bytes of the header with its options.
    pub header_len: u8,
    /// Bytes of header and payload.
    pub total_len: u16,
    /// Whether no router may cut the packet into fragments.
    pub dont_fragment: bool,
}

/// An IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// The sender's address.
    pub source: Ipv6Addr,
    /// The receiver's address.
    pub destination: Ipv6Addr,
    /// How many routers the packet may still pass.
    pub hop_limit: u8,
    /// Bytes behind this header, extension headers among them.
    pub payload_len: u16,
}

/// The first words of an ICMP message of either version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// The kind of message.
    pub kind: u8,
    /// What kind of that kind.
    pub code: u8,
    /// The identifier, of a message which [`Icmp::is_query`].
    pub ident: u16,
    /// Whether the message asks, or answers: echo and timestamp; an identifier tells such flows apart.
    pub is_query: bool,
    /// Whether the message reports an error, and quotes the packet that led to the report.
    pub is_error: bool,
}

/// Flags of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// The sender has no more to send.
    #[must_use]
    pub fn fin(self) -> bool {
        self.0 & 1 != 0
    }

    /// A connection begins.
    #[must_use]
    pub fn syn(self) -> bool {
        self.0 & 2 != 0
    }

    /// The connection is given up.
    #[must_use]
    pub fn rst(self) -> bool {
        self.0 & 4 != 0
    }

    /// The acknowledgement number counts.
    #[must_use]
    pub fn ack(self) -> bool {
        self.0 & 16 != 0
    }
}

/// Both ends of a conversation, as one of its packets names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address.
    pub destination: IpAddr,
    /// Number of the protocol.
    pub protocol: u8,
    /// The sender's port; the identifier of an ICMP query; 0 where the protocol has no ports.
    pub source_port: u16,
    /// The receiver's port; the identifier of an ICMP query; 0 where the protocol has no ports.
    pub destination_port: u16,
}

impl Flow {
    /// The flow as answers name it.
    #[must_use]
    pub fn reversed(self) -> Flow {
        Flow {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// Both ends of a conversation in few words, for tables: IPv4 addresses as IPv6 has them mapped (RFC 4291).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The sender's address.
    pub source: [u64; 2],
    /// The receiver's address.
    pub destination: [u64; 2],
    /// The sender's port in the high half, the receiver's in the low; as [`Flow`] has them.
    pub ports: u32,
    /// Number of the protocol.
    pub protocol: u8,
}

const fn mapped(ip: [u8; 4]) -> [u64; 2] {
    [0, 0xffff << 32 | u32::from_be_bytes(ip) as u64]
}

fn halves(ip: [u8; 16]) -> [u64; 2] {
    let bits = u128::from_be_bytes(ip);
    [(bits >> 64) as u64, bits as u64]
}

impl Flow {
    /// The flow in few words.
    #[must_use]
    pub fn ends(&self) -> Ends {
        let words = |ip| match ip {
            IpAddr::V4(ip) => mapped(ip.octets()),
            IpAddr::V6(ip) => halves(ip.octets()),
        };
        Ends {
            source: words(self.source),
            destination: words(self.destination),
            ports: u32::from(self.source_port) << 16 | u32::from(self.destination_port),
            protocol: self.protocol,
        }
    }
}

impl Head<'_> {
    /// [`Head::flow`] in few words.
    #[must_use]
    #[inline]
    pub fn ends(&self) -> Option<Ends> {
        if self.network() != Network::Ipv4 || !matches!(self.transport(), Transport::Tcp | Transport::Udp) {
            return self.flow().map(|flow| flow.ends());
        }
        let [a, b, c, d, e, f, g, h] = self.array(self.network_at() + 12)?;
        Some(Ends {
            source: mapped([a, b, c, d]),
            destination: mapped([e, f, g, h]),
            ports: u32::from_be_bytes(self.array(usize::from(self.layout.ip.transport_at))?),
            protocol: self.protocol(),
        })
    }

    /// What a flow's hash is of, as a network frontend asks for hashes: the addresses, and the ports of TCP that is not in
    /// fragments. `None`: not IP.
    #[must_use]
    pub fn hashed(&self) -> Option<HashedFlow> {
        let at = self.network_at();
        let has_ports = self.transport() == Transport::Tcp && self.fragment() == Fragment::Whole;
        let ports = if has_ports { self.array(usize::from(self.layout.ip.transport_at)) } else { None };
        match self.network() {
            Network::Ipv4 => Some(HashedFlow::V4(self.array(at + 12)?, ports)),
            Network::Ipv6 => Some(HashedFlow::V6(self.array(at + 8)?, ports)),
            _ => None,
        }
    }

    /// The ARP packet, if there is one.
    #[must_use]
    pub fn arp(&self) -> Option<Arp> {
        if self.network() != Network::Arp {
            return None;
        }
        let at = self.network_at();
        Some(Arp {
            operation: self.u16(at + 6)?,
            sender_mac: MacAddr(self.array(at + 8)?),
            sender: Ipv4Addr::from(self.array::<4>(at + 14)?),
            target_mac: MacAddr(self.array(at + 18)?),
            target: Ipv4Addr::from(self.array::<4>(at + 24)?),
        })
    }

    /// The IPv4 header, if there is one.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4> {
        if self.network() != Network::Ipv4 {
            return None;
        }
        let header: [u8; 20] = self.array(self.network_at())?;
        Some(Ipv4 {
            source: Ipv4Addr::from(array::<4>(&header, 12)?),
            destination: Ipv4Addr::from(array::<4>(&header, 16)?),
            ttl: header[8],
            header_len: (header[0] & 15) * 4,
            total_len: u16::from_be_bytes([header[2], header[3]]),
            dont_fragment: header[6] & 0x40 != 0,
        })
    }

    /// Whether the checksum of the IPv4 header is right.
    #[must_use]
    pub fn is_ipv4_sum_right(&self) -> bool {
        let Some(header) = self.ipv4() else { return false };
        let at = self.network_at();
        let bytes = self.bytes.get(at..at + usize::from(header.header_len));
        bytes.is_some_and(|bytes| super::checksum::of(bytes) == 0)
    }

    /// The IPv6 header, if there is one.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6> {
        if self.network() != Network::Ipv6 {
            return None;
        }
        let header: [u8; 40] = self.array(self.network_at())?;
        Some(Ipv6 {
            source: Ipv6Addr::from(array::<16>(&header, 8)?),
            destination: Ipv6Addr::from(array::<16>(&header, 24)?),
            hop_limit: header[7],
            payload_len: u16::from_be_bytes([header[4], header[5]]),
        })
    }

    /// The sender's and the receiver's address, of an IP packet.
    #[must_use]
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        addresses(self.bytes, &self.layout.ip)
    }

    /// The sender's and the receiver's port, of TCP and UDP.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        if !matches!(self.transport(), Transport::Tcp | Transport::Udp) {
            return None;
        }
        let at = self.transport_at()?;
        Some((self.u16(at)?, self.u16(at + 2)?))
    }

    /// The flags, of TCP.
    #[must_use]
    pub fn tcp_flags(&self) -> Option<TcpFlags> {
        if self.transport() != Transport::Tcp {
            return None;
        }
        self.bytes.get(self.transport_at()? + 13).map(|flags| TcpFlags(*flags))
    }

    /// The message's first words, of ICMP of either version.
    #[must_use]
    pub fn icmp(&self) -> Option<Icmp> {
        icmp(self.bytes, &self.layout.ip)
    }

    /// Both ends of the packet's conversation. `None`: no IP packet, a later fragment, or a malformed transport header.
    #[must_use]
    pub fn flow(&self) -> Option<Flow> {
        flow(self.bytes, &self.layout.ip)
    }
}

pub(super) fn addresses(bytes: &[u8], ip: &IpLayout) -> Option<(IpAddr, IpAddr)> {
    let at = usize::from(ip.at);
    match ip.network {
        Network::Ipv4 => {
            let [source, destination] = [array::<4>(bytes, at + 12)?, array::<4>(bytes, at + 16)?];
            Some((IpAddr::V4(source.into()), IpAddr::V4(destination.into())))
        }
        Network::Ipv6 => {
            let [source, destination] = [array::<16>(bytes, at + 8)?, array::<16>(bytes, at + 24)?];
            Some((IpAddr::V6(source.into()), IpAddr::V6(destination.into())))
        }
        _ => None,
    }
}

pub(super) fn icmp(bytes: &[u8], ip: &IpLayout) -> Option<Icmp> {
    let [kind, code, _, _, high, low] = array(bytes, usize::from(ip.transport_at))?;
    let (is_query, is_error) = match ip.transport {
        Transport::Icmp => {
            (matches!(kind, 0 | 8 | 13 | 14 | 15 | 16 | 17 | 18), matches!(kind, 3 | 4 | 5 | 11 | 12))
        }
        Transport::Icmpv6 => (matches!(kind, 128 | 129), matches!(kind, 1..=4)),
        _ => return None,
    };
    Some(Icmp { kind, code, ident: u16::from_be_bytes([high, low]), is_query, is_error })
}

pub(super) fn flow(bytes: &[u8], ip: &IpLayout) -> Option<Flow> {
    let (source, destination) = addresses(bytes, ip)?;
    let (source_port, destination_port) = match ip.transport {
        Transport::Tcp | Transport::Udp => {
            let [a, b, c, d] = array(bytes, usize::from(ip.transport_at))?;
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        }
        Transport::Icmp | Transport::Icmpv6 => {
            let icmp = icmp(bytes, ip)?;
            let ident = if icmp.is_query { icmp.ident } else { 0 };
            (ident, ident)
        }
        Transport::Other => (0, 0),
        Transport::None | Transport::Later | Transport::Malformed => return None,
    };
    Some(Flow { source, destination, protocol: ip.protocol, source_port, destination_port })
}
