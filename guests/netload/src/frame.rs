//! The packets: IPv4 with a number, and a pattern that the receiver checks.

use alloc::vec::Vec;

use frontends::netfront::{Checksum, Gso, GsoKind, Offload, header_checksum, set_partial};

/// Bytes of the headers of Ethernet and IPv4, and of UDP or TCP.
const IP_AT: usize = 14;
const TRANSPORT_AT: usize = IP_AT + 20;
const UDP_PAYLOAD_AT: usize = TRANSPORT_AT + 8;
const TCP_PAYLOAD_AT: usize = TRANSPORT_AT + 20;
/// The port of both ends.
const PORT: [u8; 2] = 9u16.to_be_bytes();
/// What the payload begins with.
const MAGIC: [u8; 4] = *b"load";
/// Bytes of the magic, the kind and the number.
const LABEL_BYTES: usize = 4 + 4 + 8;
/// The shortest packet.
pub const SHORTEST: usize = UDP_PAYLOAD_AT + LABEL_BYTES;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Load, with its number.
    Load(u64),
    /// The receiver shall begin to send.
    Begin,
    /// The receiver shall stop.
    End,
}

impl Kind {
    fn words(self) -> ([u8; 4], u64) {
        match self {
            Self::Load(number) => (*b"data", number),
            Self::Begin => (*b"goon", 0),
            Self::End => (*b"stop", 0),
        }
    }

    fn of(label: &[u8; LABEL_BYTES]) -> Option<Self> {
        let (magic, rest) = label.split_first_chunk::<4>()?;
        let (kind, number) = rest.split_first_chunk::<4>()?;
        let number = u64::from_le_bytes(number.try_into().ok()?);
        if *magic != MAGIC {
            return None;
        }
        let kinds = [Self::Load(number), Self::Begin, Self::End];
        kinds.into_iter().find(|known| known.words().0 == *kind)
    }
}

/// Makes the packets of a station, one after the other in the same bytes.
pub struct Packets {
    bytes: Vec<u8>,
    label_at: usize,
    /// What the sender leaves to others.
    pub offload: Offload,
}

impl Packets {
    /// Packets of `len` bytes, to be cut into segments of `segment` bytes if there is a number. `None`: the packets would be
    /// shorter than [`SHORTEST`], or longer than IPv4 allows.
    pub fn new(from: [u8; 6], to: [u8; 6], len: usize, segment: Option<u16>) -> Option<Self> {
        let label_at = if segment.is_some() { TCP_PAYLOAD_AT } else { UDP_PAYLOAD_AT };
        if len < label_at + LABEL_BYTES {
            return None;
        }
        let total = u16::try_from(len - IP_AT).ok()?;
        let mut bytes = Vec::with_capacity(len);
        bytes.extend(to.into_iter().chain(from).chain([8, 0]));
        bytes.extend([0x45, 0]);
        bytes.extend(total.to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, if segment.is_some() { 6 } else { 17 }, 0, 0]);
        // 10.88.0.0/24, as dom0 has it: the number of the host is the last of its Ethernet address.
        bytes.extend([10, 88, 0, from[5], 10, 88, 0, to[5]]);
        let sum = header_checksum(&bytes[IP_AT..TRANSPORT_AT]);
        bytes[IP_AT + 10..IP_AT + 12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(PORT.into_iter().chain(PORT));
        match segment {
            // Numbers of bytes, five words, an acknowledgement, a window; checksum and urgent pointer.
            Some(_) => bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]),
            None => {
                bytes.extend((total - 20).to_be_bytes());
                bytes.extend([0, 0]); // no checksum
            }
        }
        bytes.extend(MAGIC);
        bytes.extend((bytes.len()..len).map(pattern));
        let mut offload = Offload::default();
        if let Some(size) = segment {
            set_partial(&mut bytes);
            offload = Offload {
                checksum: Checksum::Partial,
                gso: Some(Gso { kind: GsoKind::TcpV4, size }),
                ..Offload::default()
            };
        }
        Some(Self { bytes, label_at, offload })
    }

    /// The packet for `kind`.
    pub fn get(&mut self, kind: Kind) -> &[u8] {
        let (word, number) = kind.words();
        let label = &mut self.bytes[self.label_at + 4..self.label_at + LABEL_BYTES];
        label[..4].copy_from_slice(&word);
        label[4..].copy_from_slice(&number.to_le_bytes());
        &self.bytes
    }
}

fn pattern(at: usize) -> u8 {
    (at ^ at >> 8) as u8
}

/// How often all bytes of a packet are looked at: of every so many packets one.
const WHOLE_EVERY: u64 = 16;

/// What was seen of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Packets of the load.
    pub packets: u64,
    /// Numbers that were left out.
    pub lost: u64,
    /// Numbers that came late or twice.
    pub late: u64,
    /// Packets with bytes that nobody sent.
    pub damaged: u64,
    next: u64,
    /// What a packet's bytes are behind its label.
    expected: Vec<u8>,
}

impl Seen {
    /// Nothing yet, of a load of packets of `len` bytes.
    pub fn new(len: usize) -> Self {
        Self { expected: (0..len).map(pattern).collect(), ..Self::default() }
    }

    /// Looks at a packet of which [`label`] has given the number.
    pub fn look(&mut self, packet: &[u8], number: u64) {
        self.packets += 1;
        match number.checked_sub(self.next) {
            Some(skipped) => {
                self.lost += skipped;
                self.next = number + 1;
            }
            None => self.late += 1,
        }
        let label_at = if packet[IP_AT + 9] == 6 { TCP_PAYLOAD_AT } else { UDP_PAYLOAD_AT };
        let (behind, last) = (label_at + LABEL_BYTES, packet.len() - 1);
        let from = if number.is_multiple_of(WHOLE_EVERY) { behind } else { last.max(behind) };
        let is_sound = packet.len() == self.expected.len() && packet[from..] == self.expected[from..];
        self.damaged += u64::from(!is_sound);
    }
}

/// What a packet is for, if this guest's other end has sent it.
pub fn label(packet: &[u8]) -> Option<Kind> {
    if packet.get(12..15)? != [8, 0, 0x45] {
        return None;
    }
    let at = if *packet.get(IP_AT + 9)? == 6 { TCP_PAYLOAD_AT } else { UDP_PAYLOAD_AT };
    Kind::of(packet.get(at..at + LABEL_BYTES)?.try_into().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: [u8; 6] = [0, 0x16, 0x3e, 0x7f, 0, 1];
    const TO: [u8; 6] = [0, 0x16, 0x3e, 0x7f, 0, 2];

    #[test]
    fn a_packet_says_what_it_is_for() {
        for (len, segment) in [(SHORTEST, None), (64, None), (1514, None), (65_535, Some(1448))] {
            let mut packets = Packets::new(FROM, TO, len, segment).expect("sound");
            for kind in [Kind::Load(0), Kind::Load(u64::MAX), Kind::Begin, Kind::End] {
                let packet = packets.get(kind);
                assert_eq!((packet.len(), label(packet)), (len, Some(kind)));
                assert_eq!(header_checksum(&packet[IP_AT..TRANSPORT_AT]), 0);
            }
            assert_eq!(packets.offload.gso.map(|gso| gso.size), segment);
        }
        for (len, segment) in [(SHORTEST - 1, None), (TCP_PAYLOAD_AT, Some(1)), (65_550, None)] {
            assert!(Packets::new(FROM, TO, len, segment).is_none());
        }
        assert_eq!(label(&[0; 64]), None);
        assert_eq!(label(&[]), None);
    }

    #[test]
    fn what_is_lost_late_or_damaged_is_counted() {
        let mut packets = Packets::new(FROM, TO, 100, None).expect("sound");
        let mut seen = Seen::new(100);
        for number in [0, 1, 4, 3, 5] {
            seen.look(packets.get(Kind::Load(number)), number);
        }
        assert_eq!((seen.packets, seen.lost, seen.late, seen.damaged), (5, 2, 1, 0));
        for (number, at) in [(16, 70), (17, 99), (17, 70)] {
            let mut packet = packets.get(Kind::Load(number)).to_vec();
            packet[at] ^= 1;
            seen.look(&packet, number);
        }
        assert_eq!(seen.damaged, 2, "all bytes of every sixteenth, the last byte of the others");
        seen.look(&packets.get(Kind::Load(18))[..99], 18);
        assert_eq!(seen.damaged, 3, "the length");
    }
}
