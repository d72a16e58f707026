//! The headers at the front of a frame: Ethernet, one VLAN tag, ARP, IPv4, IPv6, TCP, UDP and ICMP, in place.
//!
//! [`Head::parse`] takes a packet's first bytes and its length, and finds the headers; a header that lies about a length, or
//! is not whole within the head, makes its layer [`Network::Malformed`] or [`Transport::Malformed`]. A switch may forward
//! such a frame; a rule that would have to know the header must not let the frame pass.
//!
//! - `layout`: where the headers lie, found once;
//! - `fields`: what the headers say;
//! - `neighbour`: neighbour discovery with its options;
//! - `rewrite`: addresses, ports and hop counts are changed, and checksums with them (RFC 1624);
//! - `quoted`: the packet that an ICMP error quotes;
//! - [`checksum`]: sums, whole and by difference;
//! - [`tag`]: a VLAN tag is put in and taken out.
//!
//! Views of smoltcp's refuse a buffer that is shorter than the packet, which most heads are; tests hold what is here
//! against smoltcp.
//!
//! Formats: IEEE 802.3 and 802.1Q, RFC 826 (ARP), 791 (IPv4), 8200 (IPv6), 9293 (TCP), 768 (UDP), 792 and 4443 (ICMP),
//! 4861 (neighbour discovery).

pub mod checksum;
mod fields;
mod layout;
mod neighbour;
mod quoted;
mod rewrite;
pub mod tag;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use fields::{Arp, Ends, Flow, Icmp, Ipv4, Ipv6, TcpFlags};
pub use layout::{Fragment, Network, Transport};
pub use neighbour::{Neighbour, NeighbourKind};
pub use rewrite::{Endpoint, Side};

use layout::Layout;

use super::mac::MacAddr;

/// Bytes of an Ethernet header without a tag.
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of a VLAN tag.
pub const TAG_BYTES: usize = 4;

/// Numbers of the protocols above Ethernet.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// A VLAN tag of IEEE 802.1Q.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// Numbers of the protocols above IP.
pub mod protocol {
    /// ICMP, of IPv4 alone.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP of IPv6.
    pub const ICMPV6: u8 = 58;
}

/// A frame's first bytes, with its headers found.
pub struct Head<'a> {
    bytes: &'a mut [u8],
    layout: Layout,
    changed: bool,
}

impl<'a> Head<'a> {
    /// Finds the headers in `bytes`, the first bytes of a frame of `frame_len` bytes. `None`: there is no whole Ethernet
    /// header, or the head is longer than its frame.
    #[inline]
    pub fn parse(bytes: &'a mut [u8], frame_len: u32) -> Option<Head<'a>> {
        match Layout::of_plain(bytes, frame_len) {
            Some(layout) => Some(Head { bytes, layout, changed: false }),
            None => Layout::of_any(bytes, frame_len).map(|layout| Head { bytes, layout, changed: false }),
        }
    }

    /// The bytes as they are now.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Length of the whole frame, in bytes.
    #[must_use]
    pub fn frame_len(&self) -> u32 {
        self.layout.frame_len
    }

    /// Whether a byte was changed since the head was parsed.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Where the frame is sent to.
    #[must_use]
    pub fn to(&self) -> MacAddr {
        self.mac(0)
    }

    /// The station that the frame says it comes from.
    #[must_use]
    pub fn from(&self) -> MacAddr {
        self.mac(6)
    }

    fn mac(&self, at: usize) -> MacAddr {
        // `parse` found a whole Ethernet header.
        MacAddr(self.array(at).unwrap_or_default())
    }

    /// The tag's control information (priority, drop eligible, VLAN number), if the frame is tagged.
    #[must_use]
    pub fn tag(&self) -> Option<u16> {
        self.layout.tag
    }

    /// The protocol of what follows the Ethernet header and the tag. A number below 1536 is a length of IEEE 802.3.
    #[must_use]
    pub fn ethertype(&self) -> u16 {
        self.layout.ethertype
    }

    /// What follows the Ethernet header and the tag.
    #[must_use]
    pub fn network(&self) -> Network {
        self.layout.ip.network
    }

    /// What follows the IP header and its options or extension headers.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.layout.ip.transport
    }

    /// The last protocol of the chain of IP headers; 0 where there is no IP header.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.layout.ip.protocol
    }

    /// Whether the packet is part of a larger one.
    #[must_use]
    pub fn fragment(&self) -> Fragment {
        self.layout.ip.fragment
    }

    /// Where the network header begins.
    #[must_use]
    pub fn network_at(&self) -> usize {
        usize::from(self.layout.ip.at)
    }

    /// Where the transport's header begins, in a packet which has one: virtio's `csum_start`.
    #[must_use]
    pub fn transport_at(&self) -> Option<usize> {
        let has_one = !matches!(self.transport(), Transport::None | Transport::Later | Transport::Malformed);
        has_one.then_some(usize::from(self.layout.ip.transport_at))
    }

    /// Bytes of transport header and payload in this packet, as the IP header tells.
    #[must_use]
    pub fn transport_len(&self) -> u32 {
        self.layout.ip.transport_len
    }

    /// `N` bytes of the head from `at` on.
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        array(self.bytes, at)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_be_bytes)
    }
}

/// `N` bytes from `at` on.
#[inline]
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
