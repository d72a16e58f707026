//! Ethernet addresses, as the node `mac` of a network interface has one.

use core::fmt;
use core::net::Ipv6Addr;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Every station.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// Reads `00:16:3e:01:02:03`; must be one station's and not all zero.
    pub fn parse(text: &str) -> Option<MacAddr> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next()?;
            if !matches!(part.len(), 1 | 2) || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        let mac = MacAddr(bytes);
        (parts.next().is_none() && mac.is_station()).then_some(mac)
    }

    /// Whether one station can have the address: no group's, and not all zero.
    #[must_use]
    pub fn is_station(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }

    /// Whether the address is a group's, as broadcast is too.
    #[must_use]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether a bridge keeps frames to the address to itself: spanning tree, pause, LLDP and their like.
    #[must_use]
    pub fn is_reserved(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0, 0, last] if last < 0x10)
    }

    /// The address as a number of 48 bits.
    #[must_use]
    pub fn bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The link-local address that a station makes of its Ethernet address (RFC 4291, appendix A).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&[0xfe, 0x80]);
        octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        Ipv6Addr::from(octets)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn texts() {
        for (text, read) in [
            ("00:16:3e:0a:0b:0c", "00:16:3e:0a:0b:0c"),
            ("0:16:3E:A:b:ff", "00:16:3e:0a:0b:ff"),
            ("fe:ff:ff:ff:ff:ff", "fe:ff:ff:ff:ff:ff"),
        ] {
            assert_eq!(MacAddr::parse(text).map(|mac| mac.to_string()).as_deref(), Some(read), "{text}");
        }
        for text in [
            "",
            "00:16:3e:01:02",
            "00:16:3e:01:02:03:04",
            "00:16:3e:01:02:",
            "00:16:3e:01:02:100",
            "00:16:3e:01:02:+3",
            "00-16-3e-01-02-03",
            "01:16:3e:01:02:03",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(MacAddr::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_link_local_address_names_the_station() {
        assert_eq!(MacAddr([0, 0x16, 0x3e, 1, 2, 3]).link_local().to_string(), "fe80::216:3eff:fe01:203");
    }
}
