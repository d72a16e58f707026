//! What a sender left to others is done here, for a wire or a receiver that does not do it: checksums are completed, and long TCP
//! packets are cut into segments.
//!
//! Source: RFC 9293 (TCP), RFC 791 and 8200 (lengths), RFC 6864 (the identifier of IPv4).

use alloc::vec::Vec;

use super::headers::{Head, Network, Transport, checksum};

/// Bytes of an IPv4 header up to its end where there are no options: of the identifier, the length and the checksum.
const V4_LENGTH: usize = 2;
const V4_IDENT: usize = 4;
const V4_SUM: usize = 10;
const V6_LENGTH: usize = 4;
const V6_HEADER: usize = 40;
const TCP_SEQUENCE: usize = 4;
const TCP_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const TCP_SUM: usize = 16;
/// Flags that mean the end of the data, so that the last segment alone has them: FIN and PSH.
const LAST_ONLY: u8 = 0x09;
/// CWR tells of the past, so that the first segment alone has it (RFC 3168).
const FIRST_ONLY: u8 = 0x80;

/// Completes the checksum of a transport header that holds the sum of the pseudo header alone.
pub fn complete(frame: &mut [u8]) {
    let len = frame.len() as u32;
    let Some(head) = Head::parse(frame, len) else { return };
    let Some(at) = head.transport_at() else { return };
    let (transport, end) = (head.transport(), at + head.transport_len() as usize);
    let field = match transport {
        Transport::Tcp => at + TCP_SUM,
        Transport::Udp => at + 6,
        _ => return,
    };
    let Some(bytes) = frame.get(at..end) else { return };
    let sum = match checksum::of(bytes) {
        0 if transport == Transport::Udp => 0xffff,
        sum => sum,
    };
    put(frame, field, sum.to_be_bytes());
}

fn put<const N: usize>(frame: &mut [u8], at: usize, bytes: [u8; N]) {
    if let Some(place) = frame.get_mut(at..at + N) {
        place.copy_from_slice(&bytes);
    }
}

/// A long TCP packet, and how it is cut.
pub struct Segments<'a> {
    frame: &'a [u8],
    network: Network,
    network_at: usize,
    transport_at: usize,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of headers and payload, without what Ethernet adds at the end.
    end: usize,
    /// Most bytes of payload in a segment.
    size: usize,
    next: usize,
    sequence: u32,
    ident: u16,
    flags: u8,
}

impl<'a> Segments<'a> {
    /// Cuts a whole frame into segments with at most `size` bytes of payload each. `None`: the frame is no whole TCP packet, or
    /// the size is 0.
    pub fn new(frame: &'a mut [u8], size: u16) -> Option<Self> {
        let len = frame.len() as u32;
        let head = Head::parse(frame, len)?;
        let (network, network_at) = (head.network(), head.network_at());
        if head.transport() != Transport::Tcp || size == 0 {
            return None;
        }
        let transport_at = head.transport_at()?;
        let end = transport_at + head.transport_len() as usize;
        let frame: &'a [u8] = frame;
        let header = frame.get(transport_at..transport_at + 20)?;
        let headers = transport_at + usize::from(header[TCP_OFFSET] >> 4) * 4;
        let sequence = u32::from_be_bytes(header[TCP_SEQUENCE..TCP_SEQUENCE + 4].try_into().ok()?);
        let ident = match network {
            Network::Ipv4 => {
                let at = network_at + V4_IDENT;
                u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?)
            }
            _ => 0,
        };
        (headers <= end && end <= frame.len()).then_some(Self {
            frame,
            network,
            network_at,
            transport_at,
            headers,
            end,
            size: size.into(),
            next: headers,
            sequence,
            ident,
            flags: header[TCP_FLAGS],
        })
    }

    /// Number of segments; one without payload is one.
    pub fn count(&self) -> usize {
        (self.end - self.headers).div_ceil(self.size).max(1)
    }

    /// Puts the next segment into `into`, whole and with its checksums. `false`: there was none left.
    pub fn next_into(&mut self, into: &mut Vec<u8>) -> bool {
        let is_first = self.next == self.headers;
        if self.next >= self.end && !(is_first && self.headers == self.end && self.size != 0) {
            return false;
        }
        let to = self.end.min(self.next + self.size);
        into.clear();
        into.extend_from_slice(&self.frame[..self.headers]);
        into.extend_from_slice(&self.frame[self.next..to]);
        let at = self.network_at;
        let packet_len = into.len() - at;
        match self.network {
            Network::Ipv4 => {
                put(into, at + V4_LENGTH, (packet_len as u16).to_be_bytes());
                put(into, at + V4_IDENT, self.ident.to_be_bytes());
                put(into, at + V4_SUM, [0; 2]);
                let sum = checksum::of(&into[at..self.transport_at]);
                put(into, at + V4_SUM, sum.to_be_bytes());
            }
            _ => put(into, at + V6_LENGTH, ((packet_len - V6_HEADER) as u16).to_be_bytes()),
        }
        let tcp = self.transport_at;
        put(into, tcp + TCP_SEQUENCE, self.sequence.to_be_bytes());
        let mut flags = self.flags;
        if to < self.end {
            flags &= !LAST_ONLY;
        }
        if !is_first {
            flags &= !FIRST_ONLY;
        }
        put(into, tcp + TCP_FLAGS, [flags]);
        self.finish_sum(into);
        self.sequence = self.sequence.wrapping_add((to - self.next) as u32);
        self.ident = self.ident.wrapping_add(1);
        // A packet without payload is one segment, and then there is none left.
        if to == self.next {
            self.size = 0;
        }
        self.next = to;
        true
    }

    /// Puts the sum of the pseudo header for the segment's own length into the field, and completes it.
    fn finish_sum(&self, segment: &mut [u8]) {
        let len = segment.len() as u32;
        let field = self.transport_at + TCP_SUM;
        let Some(head) = Head::parse(segment, len) else { return };
        let Some((source, destination)) = head.addresses() else { return };
        let pseudo = checksum::pseudo(source, destination, head.protocol(), head.transport_len());
        put(segment, field, checksum::fold(pseudo).to_be_bytes());
        complete(segment);
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
        let mut segments = Segments::new(&mut bytes, size)?;
        let count = segments.count();
        let (mut all, mut segment) = (Vec::new(), Vec::new());
        while segments.next_into(&mut segment) {
            all.push(segment.clone());
        }
        assert_eq!(all.len(), count);
        Some(all)
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
                put(&mut partial, field, checksum::fold(pseudo).to_be_bytes());
                complete(&mut partial);
                assert_eq!(partial, whole);
            }
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
