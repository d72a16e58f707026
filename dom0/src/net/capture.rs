//! Packets for whoever looks at them with tcpdump or Wireshark: a ring of the latest, in the format of pcap files.
//!
//! Format: the classic one, version 2.4, with nanoseconds (magic number a1b23c4d), in the byte order of x86, link type
//! Ethernet; `draft-ietf-opsawg-pcap`. Of a packet that is longer than what dom0 sees of the packet, the record has the
//! whole length and the bytes that there are.

use alloc::collections::{TryReserveError, VecDeque};
use alloc::vec::Vec;

/// Bytes of a file's header.
pub const FILE_HEADER_BYTES: usize = 24;
/// Bytes of a record's header.
const RECORD_HEADER_BYTES: usize = 16;

/// Nanoseconds, in the writer's byte order.
const MAGIC: u32 = 0xa1b2_3c4d;
const ETHERNET: u32 = 1;

/// The latest packets, as records of a pcap file.
pub struct Capture {
    ring: VecDeque<u8>,
    ring_bytes: usize,
    snap_bytes: u32,
    packets: u64,
    missed: u64,
}

impl Capture {
    /// An empty ring that never takes more than `ring_bytes` of heap, all of them now. Of each packet the first `snap_bytes` bytes
    /// are kept at most.
    ///
    /// # Errors
    /// There is no such memory.
    pub fn new(ring_bytes: usize, snap_bytes: u32) -> Result<Capture, TryReserveError> {
        let mut ring = VecDeque::new();
        ring.try_reserve_exact(ring_bytes)?;
        Ok(Capture { ring, ring_bytes, snap_bytes, packets: 0, missed: 0 })
    }

    /// What a file begins with.
    #[must_use]
    pub fn file_header(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut header = [0; FILE_HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..6].copy_from_slice(&2u16.to_le_bytes());
        header[6..8].copy_from_slice(&4u16.to_le_bytes());
        header[16..20].copy_from_slice(&self.snap_bytes.to_le_bytes());
        header[20..].copy_from_slice(&ETHERNET.to_le_bytes());
        header
    }

    /// Takes a packet in, of which `head` is what is seen. `wall_ns`: the time since 1970. The oldest packets give way; a packet
    /// for which the ring is too small is missed at once.
    pub fn packet(&mut self, wall_ns: u64, head: &[u8], frame_len: u32) {
        self.packets += 1;
        let kept = head.len().min(self.snap_bytes as usize);
        let record_bytes = RECORD_HEADER_BYTES + kept;
        if record_bytes > self.ring_bytes {
            self.missed += 1;
            return;
        }
        while self.ring.len() + record_bytes > self.ring_bytes {
            let oldest = self.front_bytes();
            self.ring.drain(..oldest);
            self.missed += 1;
        }
        let (seconds, ns) = (wall_ns / 1_000_000_000, wall_ns % 1_000_000_000);
        for word in [seconds as u32, ns as u32, kept as u32, frame_len] {
            self.ring.extend(word.to_le_bytes());
        }
        self.ring.extend(&head[..kept]);
    }

    /// Bytes of the oldest record; 0 if there is none.
    fn front_bytes(&self) -> usize {
        let mut kept = [0; 4];
        for (place, at) in kept.iter_mut().zip(8..) {
            let Some(byte) = self.ring.get(at) else { return 0 };
            *place = *byte;
        }
        RECORD_HEADER_BYTES + u32::from_le_bytes(kept) as usize
    }

    /// Moves the oldest records to the end of `out`: as many whole ones as fit into `most_bytes`, and one in any case. Gives
    /// their bytes; 0 if there is none.
    pub fn take(&mut self, most_bytes: usize, out: &mut Vec<u8>) -> usize {
        let mut bytes = 0;
        loop {
            let record_bytes = self.front_bytes();
            if record_bytes == 0 || bytes != 0 && bytes + record_bytes > most_bytes {
                return bytes;
            }
            out.extend(self.ring.drain(..record_bytes));
            bytes += record_bytes;
        }
    }

    /// Packets that came in.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Packets of these that gave way before anybody took them.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The records of a file, as a reader finds them: time, length, bytes.
    fn records(mut bytes: &[u8]) -> Vec<(u64, u32, Vec<u8>)> {
        let mut found = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>() {
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
            assert!(word(4) < 1_000_000_000);
            let (data, rest) = rest.split_at(word(8) as usize);
            found.push((u64::from(word(0)) * 1_000_000_000 + u64::from(word(4)), word(12), data.to_vec()));
            bytes = rest;
        }
        assert!(bytes.is_empty());
        found
    }

    #[test]
    fn a_file_is_what_readers_expect() {
        let mut capture = Capture::new(1000, 96).unwrap();
        let header = capture.file_header();
        assert_eq!(header[..8], [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(header[8..], [0, 0, 0, 0, 0, 0, 0, 0, 96, 0, 0, 0, 1, 0, 0, 0]);
        capture.packet(1_764_486_000_123_456_789, &[7; 200], 1514);
        capture.packet(1_764_486_001_000_000_000, &[8; 60], 60);
        let mut out = Vec::new();
        assert_eq!(capture.take(usize::MAX, &mut out), 16 + 96 + 16 + 60);
        let want =
            [(1_764_486_000_123_456_789, 1514, vec![7; 96]), (1_764_486_001_000_000_000, 60, vec![8; 60])];
        assert_eq!(records(&out), want);
        assert_eq!((capture.take(usize::MAX, &mut out), capture.packets(), capture.missed()), (0, 2, 0));
    }

    #[test]
    fn the_oldest_give_way() {
        let mut capture = Capture::new(3 * (16 + 10), 100).unwrap();
        let capacity = capture.ring.capacity();
        for n in 0..1000u16 {
            capture.packet(n.into(), &[n as u8; 10], 10);
        }
        capture.packet(5, &[0; 80], 80);
        assert_eq!((capture.packets(), capture.missed(), capture.ring.capacity()), (1001, 998, capacity));
        let mut out = Vec::new();
        assert_eq!(capture.take(1, &mut out), 26, "one in any case");
        assert_eq!(capture.take(53, &mut out), 52);
        assert_eq!(records(&out).iter().map(|record| record.0).collect::<Vec<_>>(), [997, 998, 999]);
        let mut none = Capture::new(10, 100).unwrap();
        none.packet(0, &[], 60);
        assert_eq!((none.take(100, &mut out), none.missed()), (0, 1));
    }

    proptest! {
        /// What is taken is the latest of what came in, in order and whole; all others are counted.
        #[test]
        fn nothing_is_lost_uncounted(
            ring_bytes in 0..400usize, snap in 0..100u32,
            steps in proptest::collection::vec((any::<bool>(), 0..120usize), 1..100),
        ) {
            let mut capture = Capture::new(ring_bytes, snap).unwrap();
            let (mut sent, mut out) = (Vec::new(), Vec::new());
            for (takes, bytes) in steps {
                if takes {
                    capture.take(bytes, &mut out);
                } else {
                    let n = sent.len() as u64;
                    capture.packet(n, &vec![n as u8; bytes], bytes as u32);
                    sent.push((n, bytes as u32, vec![n as u8; bytes.min(snap as usize)]));
                }
                prop_assert!(capture.ring.len() <= ring_bytes);
            }
            capture.take(usize::MAX, &mut out);
            let seen = records(&out);
            prop_assert_eq!(seen.len() as u64 + capture.missed(), sent.len() as u64);
            prop_assert!(seen.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert!(seen.iter().all(|record| sent[record.0 as usize] == *record));
        }
    }
}
