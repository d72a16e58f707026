//! Headers are rewritten in place, and their checksums by the difference.

use core::net::IpAddr;

use super::checksum::Difference;
use super::layout::{IpLayout, Network, Transport};
use super::{Head, MacAddr, array, fields};

/// Which end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The sender.
    Source,
    /// The receiver.
    Destination,
}

impl Side {
    /// The other end.
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::Source => Side::Destination,
            Side::Destination => Side::Source,
        }
    }
}

/// What an end becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The port, or the identifier of an ICMP query; `None`: as before.
    pub port: Option<u16>,
}

impl Head<'_> {
    /// Sets the station that the frame is sent to.
    pub fn set_to(&mut self, mac: MacAddr) {
        self.set_mac(0, mac);
    }

    /// Sets the station that the frame says it comes from.
    pub fn set_from(&mut self, mac: MacAddr) {
        self.set_mac(6, mac);
    }

    fn set_mac(&mut self, at: usize, mac: MacAddr) {
        self.bytes[at..at + 6].copy_from_slice(&mac.0);
        self.changed = true;
    }

    /// Takes one from the packet's count of hops. False: the packet has no hop left, or is no IP packet; it is as it was.
    #[must_use]
    pub fn pass_hop(&mut self) -> bool {
        let at = self.network_at();
        let count_at = match self.network() {
            Network::Ipv4 => at + 8,
            Network::Ipv6 => at + 7,
            _ => return false,
        };
        let count = self.bytes[count_at];
        if count <= 1 {
            return false;
        }
        if self.network() == Network::Ipv4 {
            let mut difference = Difference::default();
            let protocol = self.bytes[at + 9];
            difference.word(u16::from_be_bytes([count, protocol]), u16::from_be_bytes([count - 1, protocol]));
            correct(self.bytes, at + 10, difference);
        }
        self.bytes[count_at] = count - 1;
        self.changed = true;
        true
    }

    /// Makes one end of the packet's flow another, and corrects the checksums of IP and transport. `is_partial`: the
    /// transport's checksum field holds the sum of the pseudo header alone, and a device or the receiver does the rest.
    ///
    /// False, and all is as it was: the packet is not of the address's kind of IP; a port is given, and the packet has none;
    /// or its transport header is malformed. Of a later fragment the address alone can change. Of protocols other than TCP,
    /// UDP and ICMP a checksum over addresses is not known, and stays.
    #[must_use]
    pub fn rewrite(&mut self, side: Side, to: Endpoint, is_partial: bool) -> bool {
        let done = replace(self.bytes, &self.layout.ip, side, to, is_partial).is_some();
        self.changed |= done;
        done
    }
}

/// Corrects the checksum at `at`, and gives the difference that this makes to a sum over the checksum's field.
pub(super) fn correct(bytes: &mut [u8], at: usize, difference: Difference) -> Difference {
    let mut own = Difference::default();
    if let Some(old) = array(bytes, at).map(u16::from_be_bytes) {
        let new = difference.checksum(old);
        own.word(old, new);
        bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
    }
    own
}

/// Puts `new` at `at`, and adds to `differences`.
fn put(bytes: &mut [u8], at: usize, new: &[u8], differences: [&mut Difference; 2]) {
    let place = &mut bytes[at..at + new.len()];
    for difference in differences {
        difference.bytes(place, new);
    }
    place.copy_from_slice(new);
}

/// [`Head::rewrite`] for the packet that lies at `ip`. Gives the difference that this makes to a sum over the packet.
pub(super) fn replace(
    bytes: &mut [u8],
    ip: &IpLayout,
    side: Side,
    to: Endpoint,
    is_partial: bool,
) -> Option<Difference> {
    let (at, transport_at) = (usize::from(ip.at), usize::from(ip.transport_at));
    let (of_v4, of_v6, of_port) = match side {
        Side::Source => (12, 8, 0),
        Side::Destination => (16, 24, 2),
    };
    let port_at = match ip.transport {
        Transport::Tcp | Transport::Udp => Some(transport_at + of_port),
        Transport::Icmp | Transport::Icmpv6 => {
            fields::icmp(bytes, ip).filter(|icmp| icmp.is_query).map(|_| transport_at + 4)
        }
        Transport::Malformed => return None,
        _ => None,
    };
    let port = match (to.port, port_at) {
        (Some(port), Some(at)) => Some((at, port.to_be_bytes())),
        (Some(_), None) => return None,
        (None, _) => None,
    };
    // What is under the transport's checksum, and all.
    let (mut summed, mut all) = (Difference::default(), Difference::default());
    let mut header = Difference::default();
    match (to.ip, ip.network) {
        (IpAddr::V4(new), Network::Ipv4) => {
            put(bytes, at + of_v4, &new.octets(), [&mut header, &mut all]);
            all.add(correct(bytes, at + 10, header));
        }
        (IpAddr::V6(new), Network::Ipv6) => {
            put(bytes, at + of_v6, &new.octets(), [&mut header, &mut all]);
        }
        _ => return None,
    }
    // ICMP of IPv4 is the one without a pseudo header.
    if ip.transport != Transport::Icmp {
        summed.add(header);
    }
    if let Some((at, port)) = port {
        // A partial sum is of the pseudo header alone.
        let mut none = Difference::default();
        put(bytes, at, &port, [if is_partial { &mut none } else { &mut summed }, &mut all]);
    }
    let sum_at = match ip.transport {
        Transport::Tcp => 16,
        Transport::Udp => 6,
        Transport::Icmp | Transport::Icmpv6 => 2,
        _ => return Some(all),
    };
    // The end of a packet that an error quotes may be missing.
    let sum_at = transport_at + sum_at;
    let Some(old) = array(bytes, sum_at).map(u16::from_be_bytes) else { return Some(all) };
    let is_udp = ip.transport == Transport::Udp;
    let new = match (is_partial, old) {
        (true, _) => summed.sum(old),
        // UDP without a checksum.
        (false, 0) if is_udp => 0,
        (false, _) => match summed.checksum(old) {
            0 if is_udp => 0xffff,
            new => new,
        },
    };
    put(bytes, sum_at, &new.to_be_bytes(), [&mut Difference::default(), &mut all]);
    Some(all)
}
