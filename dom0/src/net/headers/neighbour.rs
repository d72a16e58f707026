//! Neighbour discovery: what IPv6 has in ARP's place, and how hosts find routers.

use core::net::Ipv6Addr;

use super::layout::{Fragment, Transport};
use super::{Head, MacAddr, array};

/// The kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourKind {
    /// A host asks for routers.
    RouterSolicitation,
    /// A router says that it is one, and what the network's addresses are.
    RouterAdvertisement,
    /// Which station has an address?
    Solicitation,
    /// The station has the address.
    Advertisement,
    /// A router names a better first hop.
    Redirect,
}

/// A message of neighbour discovery, each option of which was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The kind of message.
    pub kind: NeighbourKind,
    /// The address that the message is about; unspecified in messages of and for routers.
    pub target: Ipv6Addr,
    /// The sender's Ethernet address, as an option tells.
    pub source_link: Option<MacAddr>,
    /// The target's Ethernet address, as an option tells.
    pub target_link: Option<MacAddr>,
}

impl Head<'_> {
    /// The kind of message, if the packet is one of neighbour discovery by its number.
    #[must_use]
    pub fn neighbour_kind(&self) -> Option<NeighbourKind> {
        if self.transport() != Transport::Icmpv6 {
            return None;
        }
        Some(match self.bytes.get(self.transport_at()?)? {
            133 => NeighbourKind::RouterSolicitation,
            134 => NeighbourKind::RouterAdvertisement,
            135 => NeighbourKind::Solicitation,
            136 => NeighbourKind::Advertisement,
            137 => NeighbourKind::Redirect,
            _ => return None,
        })
    }

    /// The message of neighbour discovery. `None`: the packet is none; or it is a fragment (RFC 6980 forbids those), did not
    /// come straight from a neighbour, is not whole within the head, or has an option twice or of a wrong length.
    #[must_use]
    pub fn neighbour(&self) -> Option<Neighbour> {
        let kind = self.neighbour_kind()?;
        let (fixed, has_target) = match kind {
            NeighbourKind::RouterSolicitation => (8, false),
            NeighbourKind::RouterAdvertisement => (16, false),
            NeighbourKind::Solicitation | NeighbourKind::Advertisement => (24, true),
            NeighbourKind::Redirect => (40, true),
        };
        let at = self.transport_at()?;
        let message = self.bytes.get(at..at + self.transport_len() as usize)?;
        let from_neighbour = self.ipv6()?.hop_limit == 255 && message.get(1) == Some(&0);
        if self.fragment() != Fragment::Whole || !from_neighbour {
            return None;
        }
        let target: [u8; 16] = if has_target { array(message, 8)? } else { [0; 16] };
        let mut neighbour =
            Neighbour { kind, target: Ipv6Addr::from(target), source_link: None, target_link: None };
        let mut options = message.get(fixed..)?;
        while let [kind, units, ..] = *options {
            let len = usize::from(units) * 8;
            if len == 0 {
                return None;
            }
            let option = options.get(..len)?;
            let link = match kind {
                1 => Some(&mut neighbour.source_link),
                2 => Some(&mut neighbour.target_link),
                _ => None,
            };
            if let Some(link) = link
                && (len != 8 || link.replace(MacAddr(array(option, 2)?)).is_some())
            {
                return None;
            }
            options = &options[len..];
        }
        options.is_empty().then_some(neighbour)
    }
}
