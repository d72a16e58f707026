//! A vif sends from its own addresses alone (I41): IP, and what ARP and neighbour discovery tell others about addresses.
//!
//! What no check can see is dropped: other protocols than IP and ARP, headers that are not whole or lie, the first fragment
//! of a packet without all headers (RFC 7112), and a later fragment that begins within a TCP header (RFC 1858). A guest is
//! no router and no DHCP server of its network.
//!
//! A guest that has no address yet may send what gets it one: DHCP, an ARP probe, and from the unspecified address of IPv6
//! the messages that RFC 4861, 4862 and 3590 send from there.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Reason;
use crate::net::MacAddr;
use crate::net::headers::{Fragment, Head, NeighbourKind, Network, Transport, protocol};
use crate::net::prefix::{Prefix, PrefixError};

/// Most ranges of addresses of one vif.
pub const MAX_ADDRESSES: usize = 32;

/// Ports of DHCP's servers and clients, of both versions.
const DHCP_SERVERS: [u16; 2] = [67, 547];
const DHCP_CLIENTS: [u16; 2] = [68, 546];

/// The addresses that a vif may send from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    addresses: Vec<Prefix>,
}

/// What is wrong with a list of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardError<'a> {
    /// The word is no address.
    NoAddress(&'a str),
    /// There are more than [`MAX_ADDRESSES`], or none.
    Number,
}

impl core::fmt::Display for GuardError<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            GuardError::NoAddress(word) => {
                write!(f, "ip `{word}`: expected addresses such as 10.0.0.5 or 2001:db8::/64")
            }
            GuardError::Number => write!(f, "ip: expected 1 to {MAX_ADDRESSES} addresses"),
        }
    }
}

impl Guard {
    /// Reads addresses and ranges of such, with spaces between. An address with the length of its network, as in
    /// `10.0.0.5/24`, means the address, not the network.
    ///
    /// # Errors
    /// What is wrong with the list.
    pub fn parse(text: &str) -> Result<Guard, GuardError<'_>> {
        let read = |word| match Prefix::parse(word) {
            Ok(prefix) => Ok(prefix),
            Err(PrefixError::MoreBits(ip)) => Ok(Prefix::only(ip)),
            Err(PrefixError::NoPrefix) => Err(GuardError::NoAddress(word)),
        };
        let words = text.split_ascii_whitespace().take(MAX_ADDRESSES + 1);
        let addresses = words.map(read).collect::<Result<Vec<_>, _>>()?;
        if (1..=MAX_ADDRESSES).contains(&addresses.len()) {
            Ok(Guard { addresses })
        } else {
            Err(GuardError::Number)
        }
    }

    /// The addresses.
    #[must_use]
    pub fn addresses(&self) -> &[Prefix] {
        &self.addresses
    }

    #[inline]
    fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|prefix| prefix.contains(ip))
    }

    /// Whether the address is the vif's. A vif that has any address of IPv6 has the link-local one of its Ethernet address, too.
    fn owns_v6(&self, mac: MacAddr, ip: Ipv6Addr) -> bool {
        let has_v6 = || self.addresses.iter().any(|prefix| !prefix.is_ipv4());
        self.owns(IpAddr::V6(ip)) || ip == mac.link_local() && has_v6()
    }

    /// Lets a frame pass that the vif of the address `mac` sends; the frame's source is known to be that address.
    ///
    /// # Errors
    /// Why the frame is dropped.
    #[inline]
    pub(super) fn check(&self, mac: MacAddr, head: &Head<'_>) -> Result<(), Reason> {
        match head.network() {
            Network::Ipv4 => self.check_ipv4(head),
            Network::Ipv6 => self.check_ipv6(mac, head),
            Network::Arp => self.check_arp(mac, head),
            Network::Other => Err(Reason::NotIp),
            Network::Malformed => Err(Reason::Malformed),
        }
    }

    fn check_arp(&self, mac: MacAddr, head: &Head<'_>) -> Result<(), Reason> {
        let arp = head.arp().ok_or(Reason::Malformed)?;
        let is_probe = arp.operation == 1 && arp.sender.is_unspecified();
        let is_own = arp.sender_mac == mac && (is_probe || self.owns(IpAddr::V4(arp.sender)));
        if is_own && matches!(arp.operation, 1 | 2) { Ok(()) } else { Err(Reason::SpoofedArp) }
    }

    #[inline]
    fn check_ipv4(&self, head: &Head<'_>) -> Result<(), Reason> {
        let header = head.ipv4().ok_or(Reason::Malformed)?;
        if !self.owns(IpAddr::V4(header.source)) {
            let asks_dhcp = header.source.is_unspecified()
                && header.destination == Ipv4Addr::BROADCAST
                && head.fragment() == Fragment::Whole
                && head.transport() == Transport::Udp
                && head.ports() == Some((68, 67));
            return if asks_dhcp { Ok(()) } else { Err(Reason::SpoofedIp) };
        }
        check_transport(head)
    }

    fn check_ipv6(&self, mac: MacAddr, head: &Head<'_>) -> Result<(), Reason> {
        let source = head.ipv6().ok_or(Reason::Malformed)?.source;
        if source.is_unspecified() {
            // A guest asks whether an address is free, which routers there are, and says which groups are wanted.
            let kind = head.icmp().map(|icmp| icmp.kind);
            if head.transport() != Transport::Icmpv6 || !matches!(kind, Some(131 | 132 | 133 | 135 | 143)) {
                return Err(Reason::SpoofedIp);
            }
        } else if !self.owns_v6(mac, source) {
            return Err(Reason::SpoofedIp);
        }
        check_transport(head)?;
        if head.neighbour_kind().is_none() {
            return Ok(());
        }
        let neighbour = head.neighbour().ok_or(Reason::Malformed)?;
        let is_own = |link: Option<MacAddr>| link.is_none_or(|link| link == mac);
        let is_good = match neighbour.kind {
            NeighbourKind::RouterAdvertisement | NeighbourKind::Redirect => return Err(Reason::RogueServer),
            NeighbourKind::RouterSolicitation => is_own(neighbour.source_link),
            // From nowhere, the message asks whether an address is free that the vif wants: others take note.
            NeighbourKind::Solicitation if source.is_unspecified() => {
                neighbour.source_link.is_none() && self.owns_v6(mac, neighbour.target)
            }
            NeighbourKind::Solicitation => is_own(neighbour.source_link),
            NeighbourKind::Advertisement => {
                is_own(neighbour.target_link) && self.owns_v6(mac, neighbour.target)
            }
        };
        if is_good { Ok(()) } else { Err(Reason::SpoofedNeighbour) }
    }
}

/// Lets an IP packet pass whose transport header can be judged.
///
/// # Errors
/// The header is not whole, or in pieces; or the packet is a DHCP server's.
#[inline]
fn check_transport(head: &Head<'_>) -> Result<(), Reason> {
    is_whole(head)?;
    let plays_server = |(from, to)| DHCP_SERVERS.contains(&from) || DHCP_CLIENTS.contains(&to);
    if head.transport() == Transport::Udp && head.ports().is_some_and(plays_server) {
        return Err(Reason::RogueServer);
    }
    Ok(())
}

/// Lets an IP packet pass of which no header can come together from fragments in another way than was seen.
///
/// # Errors
/// The transport header is not whole, or a fragment may change the header.
#[inline]
pub(super) fn is_whole(head: &Head<'_>) -> Result<(), Reason> {
    match (head.transport(), head.fragment()) {
        (Transport::Malformed, Fragment::First(_)) => Err(Reason::Fragment),
        (Transport::Malformed, _) => Err(Reason::Malformed),
        (_, Fragment::Later(_, begins)) if head.protocol() == protocol::TCP && begins < 20 => {
            Err(Reason::Fragment)
        }
        _ => Ok(()),
    }
}
