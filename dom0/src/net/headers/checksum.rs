//! The checksum of IP, TCP, UDP and ICMP (RFC 1071), whole and by difference (RFC 1624).

use core::net::IpAddr;

/// The sum of `bytes` as words of 16 bits, not folded; a last odd byte is a word's high half. At most 64 KiB.
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |byte| u32::from(*byte) << 8);
    words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum::<u32>() + last
}

/// A sum in 16 bits, each carry added again.
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The checksum of `bytes`, in which the checksum's own field counts as zero.
#[must_use]
pub fn of(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// The sum of the pseudo header which TCP, UDP and ICMPv6 put before their own bytes, not folded.
#[must_use]
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: u32) -> u32 {
    let of = |ip| match ip {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    };
    of(source) + of(destination) + u32::from(protocol) + (len >> 16) + (len & 0xffff)
}

/// What has changed under a checksum.
#[derive(Clone, Copy, Default)]
pub struct Difference(u32);

impl Difference {
    /// A word, at an even place, was `old` and becomes `new`. At most 32,000 words may change.
    pub fn word(&mut self, old: u16, new: u16) {
        self.0 += u32::from(!old) + u32::from(new);
    }

    /// Bytes, from an even place on and an even number, were `old` and become `new`.
    pub fn bytes(&mut self, old: &[u8], new: &[u8]) {
        for (old, new) in old.as_chunks::<2>().0.iter().zip(new.as_chunks::<2>().0) {
            self.word(u16::from_be_bytes(*old), u16::from_be_bytes(*new));
        }
    }

    /// Takes `other` in.
    pub fn add(&mut self, other: Difference) {
        self.0 += u32::from(fold(other.0));
    }

    /// The checksum that was `old`.
    #[must_use]
    pub fn checksum(self, old: u16) -> u16 {
        !self.sum(!old)
    }

    /// The sum that was `old`, as a field holds of a checksum that a device completes.
    #[must_use]
    pub fn sum(self, old: u16) -> u16 {
        fold(u32::from(fold(self.0)) + u32::from(old))
    }
}
