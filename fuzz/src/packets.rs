//! What is done to whole packets: they are cut into segments, their checksums are completed, and they are captured.

use dom0::net::Head;
use dom0::net::capture::{Capture, FILE_HEADER_BYTES};
use dom0::net::headers::{Transport, checksum};
use dom0::net::segment::{Cut, MAX_SEGMENTS, Sum, complete, complete_head, rest_of};
use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use crate::input::Input;

/// What dom0 sees of a packet, at most.
const HEAD: usize = 256;

/// A packet of TCP or UDP over IPv4 or IPv6, mostly sane, and with the sum of the pseudo header alone.
fn packet(input: &Input) -> Vec<u8> {
    let (is_v4, is_tcp) = (input.below(2) == 0, input.below(4) != 0);
    let options = input.below(4) * 4;
    let data: Vec<u8> = (0..input.u16() & 0x3fff).map(|n| (n.wrapping_mul(31) >> 3) as u8).collect();
    let mut transport = vec![0, 80, 0x30, 0x39];
    if is_tcp {
        transport.extend(input.u32().to_be_bytes());
        transport.extend([0, 0, 0, 9, 0x50 + (options as u8 / 4) * 16, input.u8(), 1, 0, 0, 0, 0, 0]);
        transport.extend(vec![1; options]);
    } else {
        transport.extend((8 + data.len() as u16).to_be_bytes());
        transport.extend([0; 2]);
    }
    transport.extend(&data);
    let (number, field) = if is_tcp { (6, 16) } else { (17, 6) };
    let mut header = if is_v4 {
        let words = input.below(3) as u8;
        let total = 20 + u16::from(words) * 4 + transport.len() as u16;
        let [high, low] = total.to_be_bytes();
        let mut header = vec![0x45 + words, 0, high, low, input.u8(), 255, 0x40, 0, 64, number, 0, 0];
        header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        header.extend(vec![1; usize::from(words) * 4]);
        let sum = checksum::of(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        header
    } else {
        let [high, low] = (transport.len() as u16).to_be_bytes();
        let mut header = vec![0x60, 0, 0, 0, high, low, number, 64];
        header.extend([0xfe; 32]);
        header
    };
    let addresses = if is_v4 { 12..20 } else { 8..40 };
    let pseudo = checksum::sum(&header[addresses]) + u32::from(number) + transport.len() as u32;
    transport[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    let mut frame = [0, 0x16, 0x3e, 0, 0, 2, 0, 0x16, 0x3e, 0, 0, 1].to_vec();
    if input.below(4) == 0 {
        frame.extend([0x81, 0, 0, 5]);
    }
    frame.extend(if is_v4 { [8, 0] } else { [0x86, 0xdd] });
    frame.append(&mut header);
    frame.extend(transport);
    for _ in 0..input.u8().saturating_sub(0xf8) {
        let (at, byte) = (usize::from(input.u8()) % frame.len(), input.u8());
        frame[at] = byte;
    }
    frame.extend(vec![0; input.below(8)]);
    frame
}

/// The bytes of TCP's or UDP's payload and all that a receiver checks; `None`: smoltcp reads no such packet in the frame.
fn read(frame: &[u8], is_tcp: bool) -> Option<(bool, u32, Vec<u8>)> {
    let at = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    let ip = frame.get(at..)?;
    let (source, destination, bytes, mut is_right) = if ip.first()? >> 4 == 4 {
        let packet = Ipv4Packet::new_checked(ip).ok()?;
        (
            packet.src_addr().into(),
            packet.dst_addr().into(),
            packet.payload().to_vec(),
            packet.verify_checksum(),
        )
    } else {
        let packet = Ipv6Packet::new_checked(ip).ok()?;
        (packet.src_addr().into(), packet.dst_addr().into(), packet.payload().to_vec(), true)
    };
    if is_tcp {
        let tcp = TcpPacket::new_checked(&bytes[..]).ok()?;
        is_right &= tcp.verify_checksum(&source, &destination);
        Some((is_right, tcp.seq_number().0 as u32, tcp.payload().to_vec()))
    } else {
        let udp = UdpPacket::new_checked(&bytes[..]).ok()?;
        is_right &= udp.verify_checksum(&source, &destination);
        Some((is_right, 0, udp.payload().to_vec()))
    }
}

/// Segments that a receiver puts together are the packet; a completed checksum is right, however the packet lies in memory.
pub(crate) fn segment(data: &[u8]) {
    let input = Input::new(data);
    let frame = packet(&input);
    let len = frame.len();
    let mut head = frame[..len.min(HEAD)].to_vec();
    let Some(parsed) = Head::parse(&mut head, len as u32) else { return };
    let (transport, at) = (parsed.transport(), parsed.transport_at());
    let transport_len = parsed.transport_len() as usize;
    if let Some(cut) = Cut::new(&parsed, input.u16()) {
        assert!((1..=MAX_SEGMENTS).contains(&cut.segments()));
        let (mut joined, mut segment) = (Vec::new(), Vec::new());
        let whole = read(&frame, true);
        let is_plain = parsed.fragment() == dom0::net::headers::Fragment::Whole;
        for n in 0..cut.segments() {
            cut.put(n, &frame, &mut segment);
            assert_eq!(segment.len(), cut.header_len() + cut.bytes(n).len());
            let Some((_, first, _)) = &whole else { continue };
            let (is_right, sequence, payload) = read(&segment, true).expect("a segment is a packet");
            assert!(is_right || !is_plain, "segment {n} has a wrong checksum");
            assert_eq!(sequence, first.wrapping_add(joined.len() as u32));
            joined.extend(payload);
        }
        assert!(whole.is_none_or(|(.., payload)| payload == joined), "the segments are not the packet");
    }
    // In one piece; and with a head of any length, the rest in pieces.
    let mut one = frame.clone();
    let done = complete(&mut one);
    // Headers that go on behind a head are found in the whole frame alone.
    let Some(at) = at else { return assert!(len > HEAD || !done && one == frame) };
    let head_len = len.min(at + 20 + usize::from(input.u8()));
    let mut rest = rest_of(head_len, at);
    let mut from = head_len;
    let end = len.min((at + transport_len).max(head_len));
    while from < end {
        let piece = (1 + usize::from(input.u8()) * 8).min(end - from);
        rest.add(&frame[from..from + piece]);
        from += piece;
    }
    let mut other = frame.clone();
    if complete_head(&mut other[..head_len], len as u32, rest) {
        assert!(done && other == one, "the parts of a packet make another sum");
    } else {
        assert_eq!(other, frame, "refused, and changed");
    }
    // The sum of the pseudo header was in the field unless the input has spoilt it.
    let is_tcp = transport == Transport::Tcp;
    if done && is_sane(&frame, at, is_tcp) {
        let (is_right, ..) = read(&one, is_tcp).expect("a whole packet");
        assert!(is_right, "completed, and wrong");
    }
    let mut sum = Sum::default();
    sum.add(&[]);
    assert!(!complete_head(&mut [], 0, sum));
}

/// Whether the checksum's field has the sum of the pseudo header that a receiver would take, and the IPv4 header is right.
fn is_sane(frame: &[u8], at: usize, is_tcp: bool) -> bool {
    let mut head = frame[..frame.len().min(HEAD)].to_vec();
    let Some(parsed) = Head::parse(&mut head, frame.len() as u32) else { return false };
    let Some((source, destination)) = parsed.addresses() else { return false };
    let pseudo = checksum::pseudo(source, destination, parsed.protocol(), parsed.transport_len());
    let field = at + if is_tcp { 16 } else { 6 };
    let is_right = source.is_ipv6() || parsed.is_ipv4_sum_right();
    let is_whole = parsed.fragment() == dom0::net::headers::Fragment::Whole;
    is_right
        && is_whole
        && frame[field..field + 2] == checksum::fold(pseudo).to_be_bytes()
        && read(frame, is_tcp).is_some()
}

/// A file of the latest packets: whole records in order, and every packet is in them or counted.
pub(crate) fn capture(data: &[u8]) {
    let input = Input::new(data);
    let (room, snap) = (usize::from(input.u16() & 0xfff), u32::from(input.u8()));
    let mut capture = Capture::new(room, snap).expect("memory");
    let mut file = capture.file_header().to_vec();
    assert_eq!(file.len(), FILE_HEADER_BYTES);
    let mut sent: Vec<(u32, Vec<u8>)> = Vec::new();
    while !input.is_empty() {
        if input.u8() & 3 == 0 {
            let (before, most) = (file.len(), usize::from(input.u16() & 0x7ff));
            let taken = capture.take(most, &mut file);
            assert_eq!(file.len() - before, taken);
        } else {
            let head = vec![sent.len() as u8; usize::from(input.u8())];
            let len = head.len() as u32 + u32::from(input.u16());
            capture.packet(sent.len() as u64 * 1_000_000_001, &head, len);
            sent.push((len, head[..head.len().min(snap as usize)].to_vec()));
        }
    }
    while capture.take(usize::MAX, &mut file) != 0 {}
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
    let (mut at, mut seen, mut last) = (FILE_HEADER_BYTES, 0, None);
    while at < file.len() {
        let (number, kept) = (word(at), word(at + 8) as usize);
        assert_eq!(number, word(at + 4), "a second and a nanosecond for each packet");
        assert!(last < Some(number), "out of order");
        let (len, bytes) = &sent[number as usize];
        assert_eq!((word(at + 12), &file[at + 16..at + 16 + kept]), (*len, &bytes[..]));
        (at, seen, last) = (at + 16 + kept, seen + 1, Some(number));
    }
    assert_eq!((capture.packets(), capture.missed() + seen), (sent.len() as u64, sent.len() as u64));
}
