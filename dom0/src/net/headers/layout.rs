//! Where the headers of a frame lie.

use super::{ETHERNET_BYTES, TAG_BYTES, array, ethertype, protocol};

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A whole ARP packet of Ethernet and IPv4.
    Arp,
    /// IPv4, its header whole and in accord with the frame's length.
    Ipv4,
    /// IPv6, its headers whole and in accord with the frame's length.
    Ipv6,
    /// Another protocol, or a second tag.
    Other,
    /// ARP or IP by its number, but the header is not whole within the head, or its lengths are wrong.
    Malformed,
}

/// What an IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Not an IP packet.
    None,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP of IPv4.
    Icmp,
    /// ICMP of IPv6.
    Icmpv6,
    /// Another protocol.
    Other,
    /// A later part of a packet in fragments: there is no transport header in it.
    Later,
    /// The header is not whole within the head, or its lengths are wrong.
    Malformed,
}

/// Whether an IP packet is a fragment of a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// A whole packet.
    Whole,
    /// The first fragment of the packet of this number.
    First(u32),
    /// A later one: the number of the packet, and at what byte the fragment begins.
    Later(u32, u16),
}

/// Where an IP packet's headers lie, or a packet's of another protocol, whose `at` alone means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IpLayout {
    pub(super) at: u16,
    pub(super) transport_at: u16,
    pub(super) transport_len: u32,
    pub(super) network: Network,
    pub(super) transport: Transport,
    pub(super) protocol: u8,
    pub(super) fragment: Fragment,
}

/// Where a frame's headers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) frame_len: u32,
    pub(super) tag: Option<u16>,
    pub(super) ethertype: u16,
    pub(super) ip: IpLayout,
}

/// Most extension headers of IPv6 that are gone through. Of each kind there is one in a packet that makes sense, and of
/// destination options two.
const MAX_EXTENSIONS: usize = 8;

impl Layout {
    /// The most common frames of all, for short: IPv4 without options, whole, with TCP or UDP, untagged.
    #[inline(always)]
    pub(super) fn of_plain(bytes: &[u8], frame_len: u32) -> Option<Layout> {
        let head: &[u8; 42] = bytes.first_chunk()?;
        let total_len = u32::from(u16::from_be_bytes([head[16], head[17]]));
        let fragment = u16::from_be_bytes([head[20], head[21]]) & 0xbfff;
        let transport_len = total_len.wrapping_sub(20);
        // Ethernet's type, the version and length of IPv4's header, and the protocol.
        let transport = match u32::from_be_bytes([head[12], head[13], head[14], head[23]]) {
            0x0800_4506 => {
                let tcp: &[u8; 54] = bytes.first_chunk()?;
                let is_whole = (20..=transport_len).contains(&(u32::from(tcp[46] >> 4) * 4));
                if is_whole { Transport::Tcp } else { return None }
            }
            0x0800_4511 => {
                let udp_len = u32::from(u16::from_be_bytes([head[38], head[39]]));
                if (8..=transport_len).contains(&udp_len) { Transport::Udp } else { return None }
            }
            _ => return None,
        };
        let is_plain = fragment == 0 && total_len >= 20 && total_len + ETHERNET_BYTES as u32 <= frame_len;
        if !is_plain || bytes.len() > frame_len as usize {
            return None;
        }
        let ip = IpLayout {
            at: 14,
            transport_at: 34,
            transport_len,
            network: Network::Ipv4,
            transport,
            protocol: head[23],
            fragment: Fragment::Whole,
        };
        Some(Layout { frame_len, tag: None, ethertype: ethertype::IPV4, ip })
    }

    /// Any frame.
    #[inline(never)]
    pub(super) fn of_any(bytes: &[u8], frame_len: u32) -> Option<Layout> {
        // Offsets are kept in 16 bits.
        if bytes.len() > frame_len as usize || bytes.len() > usize::from(u16::MAX) {
            return None;
        }
        let mut ethertype = u16::from_be_bytes(array(bytes, ETHERNET_BYTES - 2)?);
        let (mut at, mut tag) = (ETHERNET_BYTES, None);
        // A tag that is cut off stays the frame's protocol, so that no rule takes the frame for an untagged one's.
        if ethertype == ethertype::VLAN
            && let Some([high, low, next @ ..]) = array::<TAG_BYTES>(bytes, at)
        {
            tag = Some(u16::from_be_bytes([high, low]));
            ethertype = u16::from_be_bytes(next);
            at += TAG_BYTES;
        }
        let room = frame_len - at as u32;
        let found = match ethertype {
            ethertype::IPV4 => IpLayout::ipv4(bytes, at, room, false),
            ethertype::IPV6 => IpLayout::ipv6(bytes, at, room, false),
            ethertype::ARP => is_arp(bytes, at).then_some(IpLayout::without(at, Network::Arp)),
            _ => Some(IpLayout::without(at, Network::Other)),
        };
        let ip = found.unwrap_or(IpLayout::without(at, Network::Malformed));
        Some(Layout { frame_len, tag, ethertype, ip })
    }
}

/// Whether an ARP packet of Ethernet and IPv4 lies at `at`, whole.
fn is_arp(bytes: &[u8], at: usize) -> bool {
    let Some(packet) = array::<28>(bytes, at) else { return false };
    packet[..6] == [0, 1, 8, 0, 6, 4]
}

impl IpLayout {
    const fn without(at: usize, network: Network) -> IpLayout {
        IpLayout {
            at: at as u16,
            transport_at: 0,
            transport_len: 0,
            network,
            transport: Transport::None,
            protocol: 0,
            fragment: Fragment::Whole,
        }
    }

    /// Finds the headers of the IPv4 packet at `at`, which has `room` bytes of frame. Of a packet that is `quoted` in an
    /// error the rest may be missing.
    pub(super) fn ipv4(bytes: &[u8], at: usize, room: u32, quoted: bool) -> Option<IpLayout> {
        let header: [u8; 20] = array(bytes, at)?;
        let header_len = usize::from(header[0] & 15) * 4;
        let total_len = u32::from(u16::from_be_bytes([header[2], header[3]]));
        let is_whole = header[0] >> 4 == 4 && header_len >= 20 && at + header_len <= bytes.len();
        if !is_whole || total_len < header_len as u32 || total_len > room && !quoted {
            return None;
        }
        let ident = u32::from(u16::from_be_bytes([header[4], header[5]]));
        let [high, low] = [header[6], header[7]];
        let begins = (u32::from(high & 0x1f) << 8 | u32::from(low)) * 8;
        let fragment = match (begins, high & 0x20) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First(ident),
            _ => Fragment::Later(ident, begins as u16),
        };
        let transport_len = total_len - header_len as u32;
        // A fragment that ends behind the longest packet.
        if begins + transport_len > 65535 {
            return None;
        }
        let mut ip = IpLayout {
            at: at as u16,
            transport_at: (at + header_len) as u16,
            transport_len,
            network: Network::Ipv4,
            transport: Transport::Other,
            protocol: header[9],
            fragment,
        };
        ip.transport = ip.find_transport(bytes, quoted);
        Some(ip)
    }

    /// Finds the headers of the IPv6 packet at `at`, as [`IpLayout::ipv4`] does.
    pub(super) fn ipv6(bytes: &[u8], at: usize, room: u32, quoted: bool) -> Option<IpLayout> {
        let header: [u8; 40] = array(bytes, at)?;
        let payload_len = u32::from(u16::from_be_bytes([header[4], header[5]]));
        if header[0] >> 4 != 6 || payload_len + 40 > room && !quoted {
            return None;
        }
        let end = at + 40 + payload_len as usize;
        let mut ip = IpLayout {
            at: at as u16,
            transport_at: (at + 40) as u16,
            transport_len: payload_len,
            network: Network::Ipv6,
            transport: Transport::Other,
            protocol: header[6],
            fragment: Fragment::Whole,
        };
        let mut next_at = at + 40;
        for _ in 0..=MAX_EXTENSIONS {
            // Hop-by-hop, routing, fragment, authentication, destination, mobility, HIP, shim6.
            if !matches!(ip.protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
                ip.transport = ip.find_transport(bytes, quoted);
                return Some(ip);
            }
            let extension: [u8; 8] = array(bytes, next_at)?;
            let extension_len = match ip.protocol {
                44 => 8,
                51 => (usize::from(extension[1]) + 2) * 4,
                _ => (usize::from(extension[1]) + 1) * 8,
            };
            if ip.protocol == 44 {
                if ip.fragment != Fragment::Whole {
                    return None;
                }
                ip.fragment = fragment_of(extension);
            }
            next_at += extension_len;
            if next_at > end || next_at > bytes.len() {
                return None;
            }
            ip.protocol = extension[0];
            ip.transport_at = next_at as u16;
            ip.transport_len = (end - next_at) as u32;
            if let Fragment::Later(_, begins) = ip.fragment {
                ip.transport = Transport::Later;
                return (u32::from(begins) + ip.transport_len <= 65535).then_some(ip);
            }
        }
        None
    }

    /// What the packet carries, its header checked.
    fn find_transport(&self, bytes: &[u8], quoted: bool) -> Transport {
        if let Fragment::Later(..) = self.fragment {
            return Transport::Later;
        }
        let (transport, mut shortest) = match (self.protocol, self.network) {
            (protocol::TCP, _) => (Transport::Tcp, 20),
            (protocol::UDP, _) => (Transport::Udp, 8),
            (protocol::ICMP, Network::Ipv4) => (Transport::Icmp, 8),
            (protocol::ICMPV6, Network::Ipv6) => (Transport::Icmpv6, 8),
            _ => return Transport::Other,
        };
        if quoted {
            shortest = 8;
        }
        let at = usize::from(self.transport_at);
        if self.transport_len < shortest || at + shortest as usize > bytes.len() {
            return Transport::Malformed;
        }
        let fits = match transport {
            _ if quoted => true,
            Transport::Tcp => (20..=self.transport_len).contains(&(u32::from(bytes[at + 12] >> 4) * 4)),
            Transport::Udp => {
                let len = u32::from(u16::from_be_bytes([bytes[at + 4], bytes[at + 5]]));
                len >= 8 && (len <= self.transport_len || self.fragment != Fragment::Whole)
            }
            _ => true,
        };
        if fits { transport } else { Transport::Malformed }
    }
}

/// What a fragment header of IPv6 says. A fragment that is a whole packet by itself (RFC 6946) is one.
fn fragment_of(header: [u8; 8]) -> Fragment {
    let [_, _, high, low, ident @ ..] = header;
    let ident = u32::from_be_bytes(ident);
    let begins = u16::from_be_bytes([high, low]) & !7;
    match (begins, low & 1) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First(ident),
        _ => Fragment::Later(ident, begins),
    }
}
