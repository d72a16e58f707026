//! The 12 bytes before each packet, `struct virtio_net_hdr`.
//!
//! Source: VIRTIO 1.2, section 5.1.6.

use backends::net::{Checksum, Gso, GsoKind, Offload};

use super::features::{F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6};
use crate::net::wire::{ChecksumAt, Outgoing};

/// Bytes of the header, on a device of virtio 1.x.
pub(super) const HEADER_BYTES: usize = 12;
/// Double words of the header with the filling behind the header.
pub(super) const HEADER_WORDS: usize = 2;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// The header of a packet to send.
pub(super) fn encode(packet: &Outgoing<'_>) -> [u64; HEADER_WORDS] {
    let (mut flags, mut at) = (0, ChecksumAt { start: 0, offset: 0 });
    if let (Checksum::Partial, Some(place)) = (packet.offload.checksum, packet.checksum_at) {
        (flags, at) = (F_NEEDS_CSUM, place);
    }
    let (kind, size, header_len) = match packet.offload.gso {
        Some(Gso { kind: GsoKind::TcpV4, size }) => (GSO_TCPV4, size, packet.header_len),
        Some(Gso { kind: GsoKind::TcpV6, size }) => (GSO_TCPV6, size, packet.header_len),
        None => (GSO_NONE, 0, 0),
    };
    let first = u64::from(flags)
        | u64::from(kind) << 8
        | u64::from(header_len) << 16
        | u64::from(size) << 32
        | u64::from(at.start) << 48;
    [first, u64::from(at.offset)]
}

/// The header of a packet that came in: as the card wrote the header, nothing checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
    /// Number of buffers that the packet takes, if buffers may be joined.
    pub(super) buffers: u16,
}

impl Header {
    pub(super) fn decode(bytes: [u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            buffers: word(10),
        }
    }

    /// What the header says of a packet of `len` bytes, given the agreed `features`. `None`: the header says what the
    /// card has not agreed to say, or what is not so of any packet of that length.
    pub(super) fn offload(&self, len: u32, features: u64) -> Option<(Offload, Option<ChecksumAt>)> {
        let has = |feature: u64| features & feature != 0;
        let mut offload = Offload::default();
        let mut at = None;
        if self.flags & F_NEEDS_CSUM != 0 {
            let end = u32::from(self.csum_start) + u32::from(self.csum_offset) + 2;
            if !has(F_GUEST_CSUM) || end > len {
                return None;
            }
            offload.checksum = Checksum::Partial;
            at = Some(ChecksumAt { start: self.csum_start, offset: self.csum_offset });
        } else if self.flags & F_DATA_VALID != 0 && has(F_GUEST_CSUM) {
            offload.checksum = Checksum::Verified;
        }
        let kind = match self.gso_type {
            GSO_NONE => return Some((offload, at)),
            GSO_TCPV4 if has(F_GUEST_TSO4) => GsoKind::TcpV4,
            GSO_TCPV6 if has(F_GUEST_TSO6) => GsoKind::TcpV6,
            _ => return None,
        };
        if self.gso_size == 0 || at.is_none() {
            return None;
        }
        offload.gso = Some(Gso { kind, size: self.gso_size });
        Some((offload, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;

    fn header(flags: u8, gso_type: u8, gso_size: u16, csum: (u16, u16)) -> Header {
        Header { flags, gso_type, gso_size, csum_start: csum.0, csum_offset: csum.1, buffers: 1 }
    }

    #[test]
    fn what_is_sent_reads_as_the_same() {
        let at = Some(ChecksumAt { start: 34, offset: 16 });
        for (checksum, gso) in [
            (Checksum::Partial, Some(Gso { kind: GsoKind::TcpV4, size: 1448 })),
            (Checksum::Partial, Some(Gso { kind: GsoKind::TcpV6, size: u16::MAX })),
            (Checksum::Partial, None),
            (Checksum::Complete, None),
        ] {
            let offload = Offload { checksum, gso, hash: None };
            let partial = checksum == Checksum::Partial;
            let packet = Outgoing { offload: &offload, checksum_at: at, header_len: 66, spans: &[], flow: 0 };
            let words = encode(&packet);
            let bytes = [words[0].to_le_bytes(), words[1].to_le_bytes()].concat();
            assert_eq!(bytes[HEADER_BYTES..], [0; 4], "the filling");
            assert_eq!(u16::from_le_bytes([bytes[2], bytes[3]]), if gso.is_some() { 66 } else { 0 });
            let header = Header::decode(bytes[..HEADER_BYTES].try_into().unwrap());
            assert_eq!(header.offload(1500, ALL), Some((offload, at.filter(|_| partial))));
        }
    }

    #[test]
    fn headers_that_cannot_be() {
        let good = header(F_NEEDS_CSUM, GSO_TCPV4, 1448, (34, 16));
        assert!(good.offload(52, ALL).is_some());
        assert_eq!(good.offload(51, ALL), None, "the checksum lies behind the packet");
        assert_eq!(good.offload(52, F_GUEST_CSUM), None, "segments that were not agreed on");
        assert_eq!(good.offload(52, F_GUEST_TSO4), None, "a checksum that was not agreed on");
        for bad in [
            header(0, GSO_TCPV4, 1448, (34, 16)),
            header(F_DATA_VALID, GSO_TCPV4, 1448, (34, 16)),
            header(F_NEEDS_CSUM, GSO_TCPV4, 0, (34, 16)),
            header(F_NEEDS_CSUM, 2, 1448, (34, 16)),
            header(F_NEEDS_CSUM, 3, 1448, (34, 16)),
            header(F_NEEDS_CSUM, GSO_TCPV4 | 0x80, 1448, (34, 16)),
            header(F_NEEDS_CSUM, 0, 0, (u16::MAX, u16::MAX)),
        ] {
            assert_eq!(bad.offload(1500, ALL), None, "{bad:?}");
        }
        let valid = header(F_DATA_VALID, 0, 0, (0, 0));
        assert_eq!(valid.offload(60, ALL).unwrap().0.checksum, Checksum::Verified);
        assert_eq!(valid.offload(60, 0).unwrap().0.checksum, Checksum::Complete);
    }
}
