//! Flow hashes, and the queue that a flow's packets go to, as a frontend asks for them on the control ring.
//!
//! ABI: the section "Hash types" of `xen/include/public/io/netif.h`.

use ring_abi::io::netif::{
    XEN_NETIF_CTRL_HASH_ALGORITHM_NONE, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
    XEN_NETIF_CTRL_HASH_TYPE_IPV4, XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP, XEN_NETIF_CTRL_HASH_TYPE_IPV6,
    XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP,
};

use super::packet::PacketHash;

/// Bytes of the longest key.
pub const MAX_HASH_KEY: usize = 40;

/// Entries of the largest table of queues.
pub const MAX_HASH_MAPPING: usize = 128;

/// Every kind of hash.
pub(super) const ALL_KINDS: u32 = XEN_NETIF_CTRL_HASH_TYPE_IPV4
    | XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP
    | XEN_NETIF_CTRL_HASH_TYPE_IPV6
    | XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP;

/// What a packet's headers say of the flow that the packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// IPv4: source and destination address; and the ports, source first, if the packet is TCP and no fragment.
    V4([u8; 8], Option<[u8; 4]>),
    /// IPv6, in the same way.
    V6([u8; 32], Option<[u8; 4]>),
}

/// How one vif hashes the packets that the vif's frontend receives.
#[derive(Debug)]
pub struct Hashing {
    toeplitz: bool,
    kinds: u32,
    key: [u8; MAX_HASH_KEY],
    /// Entries of `mapping` in use; 0: the hash itself gives the queue.
    size: usize,
    mapping: [u16; MAX_HASH_MAPPING],
}

impl Default for Hashing {
    fn default() -> Self {
        Self { toeplitz: false, kinds: 0, key: [0; MAX_HASH_KEY], size: 0, mapping: [0; MAX_HASH_MAPPING] }
    }
}

/// Why a setting was refused: no part of the setting was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Invalid;

impl Hashing {
    /// Whether packets are hashed now: only then is a packet's [`Flow`] of use.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.toeplitz && self.kinds != 0
    }

    pub(super) const fn has_algorithm(&self) -> bool {
        self.toeplitz
    }

    pub(super) const fn set_algorithm(&mut self, algorithm: u32) -> Result<(), Invalid> {
        self.toeplitz = match algorithm {
            XEN_NETIF_CTRL_HASH_ALGORITHM_NONE => false,
            XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ => true,
            _ => return Err(Invalid),
        };
        Ok(())
    }

    pub(super) const fn set_kinds(&mut self, kinds: u32) -> Result<(), Invalid> {
        if !self.toeplitz || kinds & !ALL_KINDS != 0 {
            return Err(Invalid);
        }
        self.kinds = kinds;
        Ok(())
    }

    /// Sets a key of at most [`MAX_HASH_KEY`] bytes; zeros follow.
    pub(super) fn set_key(&mut self, key: &[u8]) {
        self.key = [0; MAX_HASH_KEY];
        self.key[..key.len()].copy_from_slice(key);
    }

    pub(super) fn set_size(&mut self, size: u32) -> Result<(), Invalid> {
        let size = usize::try_from(size).map_err(|_| Invalid)?;
        self.mapping.get_mut(..size).ok_or(Invalid)?.fill(0);
        self.size = size;
        Ok(())
    }

    /// The entries from `offset` on that a list of `count` sets, if they are all in the table.
    pub(super) fn entries(&mut self, offset: u32, count: u32) -> Result<&mut [u16], Invalid> {
        let end = offset.checked_add(count).ok_or(Invalid)?;
        let table = self.mapping.get_mut(..self.size).ok_or(Invalid)?;
        table.get_mut(offset as usize..end as usize).ok_or(Invalid)
    }

    /// The hash of a packet of `flow`; `None` if the frontend has not asked for hashes of such packets.
    #[must_use]
    pub fn hash(&self, flow: &Flow) -> Option<PacketHash> {
        if !self.toeplitz {
            return None;
        }
        let (addresses, ports, kinds): (&[u8], _, _) = match flow {
            Flow::V4(addresses, ports) => {
                (addresses, ports, [XEN_NETIF_CTRL_HASH_TYPE_IPV4, XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP])
            }
            Flow::V6(addresses, ports) => {
                (addresses, ports, [XEN_NETIF_CTRL_HASH_TYPE_IPV6, XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP])
            }
        };
        let (kind, ports) = match ports {
            Some(ports) if self.kinds & kinds[1] != 0 => (kinds[1], &ports[..]),
            _ if self.kinds & kinds[0] != 0 => (kinds[0], &[][..]),
            _ => return None,
        };
        let value = toeplitz(&self.key, addresses.iter().chain(ports));
        Some(PacketHash { kind: kind.trailing_zeros() as u8, value })
    }

    /// The queue, of `queues`, that a packet with `hash` goes to. A packet without a hash counts as one of hash 0.
    #[must_use]
    pub fn queue(&self, hash: Option<PacketHash>, queues: usize) -> usize {
        let value = hash.map_or(0, |hash| hash.value as usize);
        match self.size {
            0 => value % queues.max(1),
            // A table that was set for more queues than there are now is no way to a queue that does not exist.
            size => usize::from(self.mapping[value % size]) % queues.max(1),
        }
    }
}

/// The Toeplitz hash: for each bit of `bytes` that is set, the 32 bits of the key that begin at the bit's place.
fn toeplitz<'a>(key: &[u8; MAX_HASH_KEY], bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let mut hash = 0;
    // 64 bits of the key, of which the highest 32 belong to the next bit.
    let mut window = u64::from_be_bytes([key[0], key[1], key[2], key[3], key[4], 0, 0, 0]);
    for (at, byte) in bytes.enumerate() {
        for bit in (0..8).rev() {
            if byte >> bit & 1 != 0 {
                hash ^= (window >> 32) as u32;
            }
            window <<= 1;
        }
        // Five bytes of the window were in use, and the first has gone.
        window |= u64::from(key.get(at + 5).copied().unwrap_or(0)) << 24;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and the flows with which makers of network cards verify their hashes.
    const KEY: [u8; MAX_HASH_KEY] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn hashing(kinds: u32) -> Hashing {
        let mut hashing = Hashing::default();
        hashing.set_algorithm(1).unwrap();
        hashing.set_kinds(kinds).unwrap();
        hashing.set_key(&KEY);
        hashing
    }

    #[test]
    fn published_values() {
        // 66.9.149.187:2794 to 161.142.100.80:1766, and 199.92.111.2:14230 to 65.69.140.83:4739.
        let flows = [
            ([66, 9, 149, 187, 161, 142, 100, 80], 2794u16, 1766u16, 0x323e_8fc2, 0x51cc_c178),
            ([199, 92, 111, 2, 65, 69, 140, 83], 14230, 4739, 0xd718_262a, 0xc626_b0ea),
        ];
        for (addresses, source, target, without, with) in flows {
            let [a, b] = source.to_be_bytes();
            let [c, d] = target.to_be_bytes();
            let flow = Flow::V4(addresses, Some([a, b, c, d]));
            let hash = |kinds| hashing(kinds).hash(&flow);
            assert_eq!(hash(3), Some(PacketHash { kind: 1, value: with }));
            assert_eq!(hash(1), Some(PacketHash { kind: 0, value: without }));
            assert_eq!(hash(12), None);
            let plain = Flow::V4(addresses, None);
            assert_eq!(hashing(3).hash(&plain), Some(PacketHash { kind: 0, value: without }));
            assert_eq!(hashing(2).hash(&plain), None, "no TCP");
        }
        // 3ffe:2501:200:1fff::7 port 2794 to 3ffe:2501:200:3::1 port 1766.
        let mut addresses = [0; 32];
        addresses[..8].copy_from_slice(&[0x3f, 0xfe, 0x25, 0x01, 0x02, 0x00, 0x1f, 0xff]);
        addresses[15] = 7;
        addresses[16..24].copy_from_slice(&[0x3f, 0xfe, 0x25, 0x01, 0x02, 0x00, 0x00, 0x03]);
        addresses[31] = 1;
        let flow = Flow::V6(addresses, Some([0x0a, 0xea, 0x06, 0xe6]));
        assert_eq!(hashing(15).hash(&flow), Some(PacketHash { kind: 3, value: 0x4020_7d3d }));
        assert_eq!(hashing(7).hash(&flow), Some(PacketHash { kind: 2, value: 0x2cc1_8cd5 }));
    }

    #[test]
    fn keys_end_in_zeros_and_a_new_key_leaves_nothing_of_the_old() {
        let mut hashing = hashing(1);
        hashing.set_key(&[]);
        let flow = Flow::V4([255; 8], None);
        assert_eq!(hashing.hash(&flow).unwrap().value, 0);
        hashing.set_key(&[0x80]);
        // Only the first bit of the flow, and the 31 before the key's bit would be, meet a bit of the key.
        assert_eq!(hashing.hash(&Flow::V4([0x80, 0, 0, 0, 0, 0, 0, 0], None)).unwrap().value, 1 << 31);
        assert_eq!(hashing.hash(&Flow::V4([0x40, 0, 0, 0, 0, 0, 0, 0], None)).unwrap().value, 0);
    }

    #[test]
    fn tables_of_queues() {
        let mut hashing = hashing(1);
        let hash = |value| Some(PacketHash { kind: 0, value });
        assert_eq!((hashing.queue(hash(7), 4), hashing.queue(None, 4), hashing.queue(hash(7), 0)), (3, 0, 0));
        assert_eq!(hashing.set_size(129), Err(Invalid));
        assert_eq!(hashing.set_size(u32::MAX), Err(Invalid));
        hashing.set_size(3).unwrap();
        hashing.entries(0, 3).unwrap().copy_from_slice(&[2, 1, 9]);
        assert_eq!([0, 1, 2, 3].map(|value| hashing.queue(hash(value), 4)), [2, 1, 1, 2]);
        // XSA-270: a list that begins or ends behind the table, or whose end wraps.
        for (offset, count) in [(3, 1), (0, 4), (2, 2), (u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX)] {
            assert_eq!(hashing.entries(offset, count), Err(Invalid), "{offset} {count}");
        }
        assert_eq!(hashing.entries(3, 0), Ok(&mut [][..]));
        hashing.set_size(128).unwrap();
        assert!(hashing.entries(0, 128).unwrap().iter().all(|queue| *queue == 0), "a new table is empty");
    }

    #[test]
    fn settings_that_do_not_exist() {
        let mut hashing = Hashing::default();
        assert_eq!(hashing.set_kinds(1), Err(Invalid), "no algorithm");
        assert_eq!(hashing.set_algorithm(2), Err(Invalid));
        hashing.set_algorithm(1).unwrap();
        assert_eq!(hashing.set_kinds(16), Err(Invalid));
        assert!(!hashing.is_on());
        hashing.set_kinds(15).unwrap();
        assert!(hashing.is_on());
        hashing.set_algorithm(0).unwrap();
        assert_eq!(hashing.hash(&Flow::V4([1; 8], None)), None);
    }
}
