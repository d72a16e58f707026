//! Ranges of IP addresses that share their first bits.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All addresses with the same first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The first address.
    ip: IpAddr,
    /// How many bits are the same.
    len: u8,
}

/// What is wrong with a text that shall be a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixError {
    /// No address, or no number of bits that the address could have.
    NoPrefix,
    /// The address, behind whose first bits there are others: the text names one address of the range, not the range.
    MoreBits(IpAddr),
}

/// A number with the first `len` of `bits` bits set.
const fn mask(bits: u32, len: u8) -> u128 {
    match len {
        0 => 0,
        len => u128::MAX << (bits - len as u32) & u128::MAX >> (128 - bits),
    }
}

impl Prefix {
    /// The range in which `ip` is the only address.
    #[must_use]
    pub const fn only(ip: IpAddr) -> Prefix {
        Prefix { ip, len: if ip.is_ipv4() { 32 } else { 128 } }
    }

    /// The range of the addresses that have the first `len` bits of `ip`. `None`: an address has fewer bits.
    #[must_use]
    pub fn around(ip: IpAddr, len: u8) -> Option<Prefix> {
        let ip = match ip {
            IpAddr::V4(ip) if len <= 32 => {
                IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask(32, len) as u32))
            }
            IpAddr::V6(ip) if len <= 128 => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask(128, len))),
            _ => return None,
        };
        Some(Prefix { ip, len })
    }

    /// Reads an address, or one with a number of bits behind a slash.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Prefix, PrefixError> {
        let Some((ip, len)) = text.split_once('/') else {
            return text.parse().map(Prefix::only).map_err(|_| PrefixError::NoPrefix);
        };
        let ip = ip.parse().map_err(|_| PrefixError::NoPrefix)?;
        let len = if len.starts_with('+') { None } else { len.parse().ok() };
        let prefix = len.and_then(|len| Prefix::around(ip, len)).ok_or(PrefixError::NoPrefix)?;
        if prefix.ip == ip { Ok(prefix) } else { Err(PrefixError::MoreBits(ip)) }
    }

    /// Whether the address is one of the range.
    #[must_use]
    #[inline]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let len = u32::from(self.len);
        // A shift by all bits leaves nothing that could differ.
        match (self.ip, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                (own.to_bits() ^ ip.to_bits()).checked_shr(32 - len).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                (own.to_bits() ^ ip.to_bits()).checked_shr(128 - len).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether the addresses are IPv4's.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.ip.is_ipv4()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip.fmt(f)?;
        if *self == Prefix::only(self.ip) { Ok(()) } else { write!(f, "/{}", self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for text in
            ["10.0.0.0/8", "0.0.0.0/0", "10.1.2.3", "::/0", "2001:db8::/33", "2001:db8::1", "10.0.0.2/31"]
        {
            assert_eq!(Prefix::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Prefix::parse("10.0.0.1/32"), Prefix::parse("10.0.0.1"));
        for text in ["", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "a/8", "10.0.0.0/8/8"]
        {
            assert_eq!(Prefix::parse(text), Err(PrefixError::NoPrefix), "{text}");
        }
        let one = "10.0.0.1".parse().unwrap();
        assert_eq!(Prefix::parse("10.0.0.1/24"), Err(PrefixError::MoreBits(one)));
    }

    #[test]
    fn ranges() {
        let contains = |prefix: &str, ip: &str| Prefix::parse(prefix).unwrap().contains(ip.parse().unwrap());
        assert!(contains("10.0.0.0/8", "10.255.255.255") && !contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("10.0.0.2/31", "10.0.0.3") && !contains("10.0.0.2/31", "10.0.0.4"));
        assert!(contains("10.0.0.1", "10.0.0.1") && !contains("10.0.0.1", "10.0.0.0"));
        assert!(contains("0.0.0.0/0", "255.1.1.1") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("::/0", "ffff::1") && !contains("::/0", "1.1.1.1"));
        assert!(
            contains("2001:db8::/33", "2001:db8:7fff::1") && !contains("2001:db8::/33", "2001:db8:8000::")
        );
        assert!(contains("::1", "::1") && !contains("::1", "::3"));
    }
}
