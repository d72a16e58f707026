//! Checksums: of an IPv4 header, and those that somebody else completes.

use super::ETHERNET_HEADER;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Puts the sum over the pseudo header into the checksum field of a TCP or UDP packet, as
/// [`Checksum::Partial`](super::Checksum::Partial) asks. `false`: the packet has no such field (another protocol, a
/// fragment, an IPv6 packet with extension headers, or not a whole header), and nothing was changed.
///
/// Source: RFC 9293, section 3.1; RFC 768; RFC 8200, section 8.1.
pub fn set_partial(frame: &mut [u8]) -> bool {
    let Some((protocol, transport, sum)) = pseudo_header(frame) else { return false };
    let field = match protocol {
        TCP => transport + 16,
        UDP => transport + 6,
        _ => return false,
    };
    match frame.get_mut(field..field + 2) {
        Some(bytes) => bytes.copy_from_slice(&sum.to_be_bytes()),
        None => return false,
    }
    true
}

/// The transport protocol, where its header begins, and the sum over the pseudo header.
fn pseudo_header(frame: &[u8]) -> Option<(u8, usize, u16)> {
    let ip = frame.get(ETHERNET_HEADER..)?;
    let half = |at: usize| Some(u16::from_be_bytes(ip.get(at..at + 2)?.try_into().ok()?));
    match frame.get(12..14)?.try_into().ok()? {
        ETHERTYPE_IPV4 => {
            let header = usize::from(ip.first()? & 0xf) * 4;
            // More fragments follow, or this is not the first one: the sum would be over the whole packet.
            if header < 20 || half(6)? & 0x3fff != 0 {
                return None;
            }
            let protocol = *ip.get(9)?;
            let len = half(2)?.checked_sub(header as u16)?;
            Some((protocol, ETHERNET_HEADER + header, fold(sum(ip.get(12..20)?), protocol, len.into())))
        }
        ETHERTYPE_IPV6 => {
            let protocol = *ip.get(6)?;
            Some((protocol, ETHERNET_HEADER + 40, fold(sum(ip.get(8..40)?), protocol, half(4)?.into())))
        }
        _ => None,
    }
}

/// The sum of the big-endian half words of `bytes`, an even number of bytes.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

/// Adds protocol and length to the sum over the addresses, in ones' complement.
fn fold(addresses: u32, protocol: u8, len: u32) -> u16 {
    carried(addresses + u32::from(protocol) + len)
}

/// A sum of at most 65,536 half words, in ones' complement.
fn carried(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The checksum of an IPv4 header whose checksum field is zero; 0 of a header with a sound checksum.
///
/// Source: RFC 791, section 3.1.
pub fn header_checksum(header: &[u8]) -> u16 {
    !carried(sum(header))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// The ones' complement sum over everything, as a receiver adds it up.
    fn full(bytes: &[u8], start: u32) -> u16 {
        let padded: Vec<u8> = bytes.iter().copied().chain((bytes.len() % 2 == 1).then_some(0)).collect();
        let mut total = start + sum(&padded);
        while total >> 16 != 0 {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = alloc::vec![0; 12];
        frame.extend(ETHERTYPE_IPV4);
        let len = (20 + payload.len()) as u16;
        frame.extend([0x45, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 192, 168, 255, 254]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn completing_the_sum_gives_a_checksum_that_a_receiver_accepts() {
        for protocol in [TCP, UDP] {
            let field = if protocol == TCP { 16 } else { 6 };
            let payload: Vec<u8> = (0..41u8).map(|i| i.wrapping_mul(37)).collect();
            let mut v6 = alloc::vec![0; 12];
            v6.extend(ETHERTYPE_IPV6);
            v6.extend([0x60, 0, 0, 0, 0, 41, protocol, 64]);
            v6.extend((0..32u8).map(|i| 0xff - i));
            v6.extend(&payload);
            for (mut frame, at) in [(ipv4(protocol, &payload), 34), (v6, 54)] {
                let pseudo = pseudo_header(&frame).expect("a whole packet").2;
                assert!(set_partial(&mut frame));
                // A device completes the sum from the transport header on, with the partial sum in the field.
                let complete = !full(&frame[at..], 0);
                frame[at + field..at + field + 2].copy_from_slice(&complete.to_be_bytes());
                assert_eq!(full(&frame[at..], pseudo.into()), 0xffff, "protocol {protocol} at {at}");
            }
        }
    }

    #[test]
    fn a_header_with_its_checksum_has_none_left() {
        let mut header = ipv4(TCP, &[0; 100])[ETHERNET_HEADER..ETHERNET_HEADER + 20].to_vec();
        let checksum = header_checksum(&header);
        assert_eq!(checksum, !full(&header, 0));
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(header_checksum(&header), 0);
        // An example of the field: 192.168.0.1 to 192.168.0.199, UDP.
        let known =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(header_checksum(&known), 0xb861);
    }

    #[test]
    fn packets_without_the_field_stay_as_they_are() {
        let mut fragment = ipv4(TCP, &[0; 20]);
        fragment[ETHERNET_HEADER + 6] = 0x20;
        let mut later = ipv4(UDP, &[0; 20]);
        later[ETHERNET_HEADER + 7] = 3;
        let mut short_header = ipv4(TCP, &[0; 20]);
        short_header[ETHERNET_HEADER] = 0x44;
        let mut arp = ipv4(TCP, &[0; 20]);
        arp[13] = 6;
        for frame in [fragment, later, short_header, arp, ipv4(1, &[0; 20]), ipv4(TCP, &[0; 17])] {
            let mut changed = frame.clone();
            assert!(!set_partial(&mut changed));
            assert_eq!(changed, frame);
        }
        for len in 0..ipv4(TCP, &[0; 18]).len() {
            assert!(!set_partial(&mut ipv4(TCP, &[0; 18])[..len]), "{len}");
        }
    }
}
