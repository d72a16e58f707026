//! What a sender left to others is done here, for a wire or a receiver that does not do it: checksums are completed, and long TCP
//! packets are cut into segments.
//!
//! Only headers pass through here. The caller has the packet's bytes, gives the sums of the parts, and puts each segment's
//! header in front of the segment's bytes.
//!
//! Source: RFC 9293 (TCP), RFC 791 and 8200 (lengths), RFC 6864 (the identifier of IPv4), RFC 3168 (CWR).

use alloc::vec::Vec;
use core::ops::Range;

use super::headers::{Head, Network, TAG_BYTES, Transport, checksum};

/// Most segments of one packet: as many as the longest packet has with the smallest segments that IP allows (RFC 879). With
/// fewer bytes in a segment, a guest would make dom0 do much for little.
pub const MAX_SEGMENTS: u32 = 128;
/// Bytes of the longest header that is cut: Ethernet with a tag, IPv4 with options, TCP with options.
pub const MAX_HEADER: usize = 14 + TAG_BYTES + 60 + 60;

/// Flags of TCP that the last segment alone has: FIN and PSH.
const LAST_FLAGS: u8 = 0x09;
/// A flag that the first segment alone has: CWR.
const FIRST_FLAG: u8 = 0x80;

/// The sum of a run of bytes, part by part, as a checksum of TCP or UDP counts the bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    folded: u16,
    is_odd: bool,
}

impl Sum {
    /// Takes the next bytes in, at most 64 KiB.
    pub fn add(&mut self, bytes: &[u8]) {
        let sum = checksum::fold(checksum::sum(bytes));
        // After an odd number of bytes, what follows stands in the words' other halves.
        let sum = if self.is_odd { sum.swap_bytes() } else { sum };
        self.folded = checksum::fold(u32::from(self.folded) + u32::from(sum));
        self.is_odd ^= !bytes.len().is_multiple_of(2);
    }
}

/// Where the checksum of a transport's header is, from the header's first byte on.
fn field(transport: Transport) -> Option<usize> {
    match transport {
        Transport::Tcp => Some(16),
        Transport::Udp => Some(6),
        _ => None,
    }
}

/// Completes the checksum of a whole packet, whose field holds the sum of the pseudo header alone. `rest` is the sum of what
/// follows the head, counted from an even place of the transport's bytes on: see [`rest_of`].
///
/// False: the packet has no such checksum, and nothing was changed.
pub fn complete_head(head: &mut [u8], frame_len: u32, rest: Sum) -> bool {
    let Some(parsed) = Head::parse(head, frame_len) else { return false };
    let (Some(at), Some(field)) = (parsed.transport_at(), field(parsed.transport())) else { return false };
    let is_udp = parsed.transport() == Transport::Udp;
    let end = (at + parsed.transport_len() as usize).min(head.len());
    if at + field + 2 > end {
        return false;
    }
    let sum = checksum::sum(&head[at..end]) + u32::from(rest.folded);
    let sum = !checksum::fold(sum);
    // Zero says that a datagram has no checksum.
    let sum = if is_udp && sum == 0 { 0xffff } else { sum };
    head[at + field..at + field + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Completes the checksum of a whole frame, as [`complete_head`] does.
pub fn complete(frame: &mut [u8]) -> bool {
    complete_head(frame, frame.len() as u32, Sum::default())
}

/// An empty sum for what follows the first `head_len` bytes of a packet whose transport's header begins at `at`.
#[must_use]
pub fn rest_of(head_len: usize, at: usize) -> Sum {
    Sum { folded: 0, is_odd: !(head_len - at).is_multiple_of(2) }
}

/// A TCP packet to be cut into segments.
pub struct Cut {
    header: [u8; MAX_HEADER],
    header_len: usize,
    network_at: usize,
    transport_at: usize,
    is_ipv6: bool,
    /// The pseudo header's sum without the length.
    pseudo: u32,
    payload: u32,
    size: u32,
}

impl Cut {
    /// A packet of which `head` has the headers, to be cut into segments of at most `size` bytes of payload. `None`: the packet
    /// is not TCP, its headers are not whole, or there would be too many segments.
    #[must_use]
    pub fn new(head: &Head<'_>, size: u16) -> Option<Cut> {
        if head.transport() != Transport::Tcp || size == 0 {
            return None;
        }
        let (source, destination) = head.addresses()?;
        let transport_at = head.transport_at()?;
        let tcp_len = usize::from(*head.bytes().get(transport_at + 12)? >> 4) * 4;
        let header_len = transport_at + tcp_len;
        let payload = head.transport_len().checked_sub(tcp_len as u32)?;
        if tcp_len < 20 || header_len > MAX_HEADER || payload.div_ceil(size.into()) > MAX_SEGMENTS {
            return None;
        }
        let mut header = [0; MAX_HEADER];
        header[..header_len].copy_from_slice(head.bytes().get(..header_len)?);
        Some(Cut {
            header,
            header_len,
            network_at: head.network_at(),
            transport_at,
            is_ipv6: head.network() == Network::Ipv6,
            pseudo: checksum::pseudo(source, destination, super::headers::protocol::TCP, 0),
            payload,
            size: size.into(),
        })
    }

    /// Number of segments, at least one.
    #[must_use]
    pub fn segments(&self) -> u32 {
        self.payload.div_ceil(self.size).max(1)
    }

    /// Bytes of each segment's header.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// The bytes of segment `n`, counted from the packet's first byte.
    #[must_use]
    pub fn bytes(&self, n: u32) -> Range<usize> {
        let end = self.payload.min((n + 1) * self.size) as usize;
        self.header_len + (n * self.size) as usize..self.header_len + end
    }

    /// Puts segment `n` of the whole frame `frame` into `into`.
    pub fn put(&self, n: u32, frame: &[u8], into: &mut Vec<u8>) {
        into.clear();
        let Some(bytes) = frame.get(self.bytes(n)) else { return };
        let mut sum = Sum::default();
        sum.add(bytes);
        into.extend_from_slice(&self.header(n, sum)[..self.header_len]);
        into.extend_from_slice(bytes);
    }

    /// The header of segment `n`, whose bytes have the sum `payload`.
    #[must_use]
    pub fn header(&self, n: u32, payload: Sum) -> [u8; MAX_HEADER] {
        let mut header = self.header;
        let tcp_len = self.header_len - self.transport_at;
        let transport_len = tcp_len + self.bytes(n).len();
        let (ip, tcp) =
            header[self.network_at..self.header_len].split_at_mut(self.transport_at - self.network_at);
        if self.is_ipv6 {
            let len = (ip.len() - 40 + transport_len) as u16;
            ip[4..6].copy_from_slice(&len.to_be_bytes());
        } else {
            let len = (ip.len() + transport_len) as u16;
            ip[2..4].copy_from_slice(&len.to_be_bytes());
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(n as u16);
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[10..12].fill(0);
            let sum = checksum::of(ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(n * self.size);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if n + 1 < self.segments() {
            tcp[13] &= !LAST_FLAGS;
        }
        if n > 0 {
            tcp[13] &= !FIRST_FLAG;
        }
        tcp[16..18].fill(0);
        let sum = checksum::sum(tcp) + self.pseudo + transport_len as u32 + u32::from(payload.folded);
        tcp[16..18].copy_from_slice(&(!checksum::fold(sum)).to_be_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::super::headers::testing::{self, station, v4, v6};
    use super::*;
    use core::net::IpAddr;
    use proptest::prelude::*;

    /// Whether all checksums of a whole frame are right.
    fn is_right(frame: &[u8]) -> bool {
        let mut bytes = frame.to_vec();
        let head = Head::parse(&mut bytes, frame.len() as u32).expect("a frame");
        let (source, destination) = head.addresses().expect("IP");
        let at = head.transport_at().expect("a transport");
        let end = at + head.transport_len() as usize;
        let pseudo = checksum::pseudo(source, destination, head.protocol(), head.transport_len());
        (head.network() == Network::Ipv6 || head.is_ipv4_sum_right())
            && checksum::fold(checksum::sum(&frame[at..end]) + pseudo) == 0xffff
    }

    fn frame(from: IpAddr, to: IpAddr, flags: u8, data: &[u8]) -> Vec<u8> {
        testing::frame(station(1), station(2), &testing::tcp((from, 1000), (to, 80), flags, data))
    }

    fn cut(frame: &[u8], size: u16) -> Option<Vec<Vec<u8>>> {
        let mut bytes = frame.to_vec();
        let cut = Cut::new(&Head::parse(&mut bytes, frame.len() as u32)?, size)?;
        let segment = |n| {
            let mut segment = Vec::new();
            cut.put(n, frame, &mut segment);
            segment
        };
        Some((0..cut.segments()).map(segment).collect())
    }

    #[test]
    fn segments_have_the_whole_payload_in_order() {
        for (from, to, ip_len) in [(v4(1), v4(2), 20), (v6(1), v6(2), 40)] {
            let data: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
            // CWR, ACK, PSH, FIN.
            let whole = frame(from, to, 0x99, &data);
            for size in [1460, 1, 9999, 10_000, 10_001, u16::MAX] {
                let size = if size == 1 { 97 } else { size };
                let all = cut(&whole, size).expect("TCP");
                let mut got: Vec<u8> = Vec::new();
                for (index, segment) in all.iter().enumerate() {
                    assert!(is_right(segment), "segment {index} of {size}");
                    let tcp = 14 + ip_len;
                    let sequence = u32::from_be_bytes(segment[tcp + 4..tcp + 8].try_into().expect("four"));
                    assert_eq!(sequence, 1 + got.len() as u32);
                    let last = index + 1 == all.len();
                    let expected = 0x10 | if last { 9 } else { 0 } | if index == 0 { 0x80 } else { 0 };
                    assert_eq!(segment[tcp + 13], expected, "segment {index} of {size}");
                    if ip_len == 20 {
                        assert_eq!(segment[18..20], (0x1234 + index as u16).to_be_bytes());
                    }
                    assert!(segment.len() <= tcp + 20 + usize::from(size));
                    got.extend(&segment[tcp + 20..]);
                }
                assert_eq!(got, data);
            }
        }
    }

    #[test]
    fn what_is_no_long_tcp_packet_is_not_cut() {
        let udp = testing::frame(station(1), station(2), &testing::udp((v4(1), 1), (v4(2), 2), b"x"));
        assert!(cut(&udp, 100).is_none());
        let whole = frame(v4(1), v4(2), 0x10, b"data");
        assert!(cut(&whole, 0).is_none());
        for len in 0..whole.len() - 4 {
            assert!(cut(&whole[..len], 100).is_none(), "{len}");
        }
        // Nothing but headers is one segment, and padding is no payload.
        let mut empty = frame(v4(1), v4(2), 0x10, b"");
        empty.extend([0; 6]);
        let all = cut(&empty, 100).expect("TCP");
        assert_eq!((all.len(), &all[0][..]), (1, &empty[..54]));
    }

    #[test]
    fn sums_are_completed() {
        for data in [&b""[..], b"odd", b"even"] {
            for whole in [
                frame(v4(1), v4(2), 0x10, data),
                frame(v6(1), v6(2), 0x10, data),
                testing::frame(station(1), station(2), &testing::udp((v4(1), 1), (v4(2), 2), data)),
            ] {
                let mut partial = whole.clone();
                let head = Head::parse(&mut partial, whole.len() as u32).expect("a frame");
                let (source, destination) = head.addresses().expect("IP");
                let at = head.transport_at().expect("a transport");
                let field = at + if head.transport() == Transport::Tcp { 16 } else { 6 };
                let pseudo = checksum::pseudo(source, destination, head.protocol(), head.transport_len());
                partial[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
                complete(&mut partial);
                assert_eq!(partial, whole);
            }
        }
    }

    #[test]
    fn what_is_no_tcp_or_too_much_is_not_cut() {
        let data = [0; 1290];
        let of_tcp = frame(v4(1), v4(2), 16, &data);
        let of_udp = testing::frame(station(1), station(2), &testing::udp((v4(1), 1), (v4(2), 2), &data));
        let cut = |frame: &[u8], head_len: usize, size| {
            let mut head = frame[..head_len].to_vec();
            Cut::new(&Head::parse(&mut head, frame.len() as u32).unwrap(), size).map(|cut| cut.segments())
        };
        assert_eq!(cut(&of_tcp, 128, 1289), Some(2));
        assert_eq!(cut(&of_tcp, 128, 11), Some(118));
        assert_eq!(cut(&of_tcp, 128, 10), None);
        assert_eq!(cut(&of_tcp, 128, 0), None);
        assert_eq!(cut(&of_tcp, 40, 1289), None);
        assert_eq!(cut(&of_udp, 128, 1289), None);
        let bare = frame(v4(1), v4(2), 16, &[]);
        assert_eq!(cut(&bare, bare.len(), 1448), Some(1));
    }

    #[test]
    fn a_checksum_is_completed_wherever_the_head_ends() {
        let data: Vec<u8> = (0..333u32).map(|n| (n * 5) as u8).collect();
        for packet in [
            testing::tcp((v4(1), 1), (v4(2), 2), 16, &data),
            testing::tcp((v6(1), 1), (v6(2), 2), 16, &data),
            testing::udp((v4(1), 1), (v4(2), 2), &data),
            testing::udp((v6(1), 1), (v6(2), 2), &data[..332]),
        ] {
            let whole = testing::frame(station(1), station(2), &packet);
            let mut bytes = whole.clone();
            let head = Head::parse(&mut bytes, whole.len() as u32).unwrap();
            let (at, (source, destination)) = (head.transport_at().unwrap(), head.addresses().unwrap());
            let sum = checksum::pseudo(source, destination, head.protocol(), head.transport_len());
            let field = at + if head.transport() == Transport::Tcp { 16 } else { 6 };
            let mut partial = whole.clone();
            partial[field..field + 2].copy_from_slice(&checksum::fold(sum).to_be_bytes());
            for head_len in [at + 20, at + 21, at + 100, whole.len()] {
                let mut done = partial.clone();
                let mut rest = rest_of(head_len, at);
                // In two parts, the first of an odd length.
                let (one, two) = partial[head_len..].split_at((whole.len() - head_len).min(31));
                rest.add(one);
                rest.add(two);
                assert!(complete_head(&mut done[..head_len], whole.len() as u32, rest));
                assert_eq!(done, whole, "{head_len}");
            }
            assert!(!complete_head(&mut partial[..30], whole.len() as u32, Sum::default()));
        }
    }

    proptest! {
        /// Any frame is cut or not, and segments have right sums.
        #[test]
        fn any_frame(changes in prop::collection::vec((0usize..200, any::<u8>()), 0..5), size in 0u16..300, cut_at in 0usize..220) {
            let mut bytes = frame(v4(1), v4(2), 0x19, &[7; 150]);
            for (at, with) in changes {
                let len = bytes.len();
                bytes[at % len] = with;
            }
            bytes.truncate(cut_at);
            for segment in cut(&bytes, size).unwrap_or_default() {
                prop_assert!(is_right(&segment));
            }
            complete(&mut bytes);
        }
    }
}
