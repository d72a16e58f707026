//! The extra information of a packet that a frontend sends.

use ring_abi::io::netif::{
    NETTXF_CSUM_BLANK, NETTXF_DATA_VALIDATED, NetifTxRing, XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_EXTRA_TYPE_GSO, XEN_NETIF_EXTRA_TYPE_HASH, XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL,
};
use ring_abi::ring::{BackRing, RingPage};

use super::error::Disconnect;
use super::multicast::MacAddress;
use super::packet::{Checksum, Gso, GsoKind, Offload, PacketHash};

/// What the extra information of one packet says.
#[derive(Default)]
pub(super) struct Extras {
    /// Slots.
    pub(super) slots: u8,
    /// Bytes of a segment, and the protocol.
    gso: Option<(u16, u8)>,
    hash: Option<PacketHash>,
    /// Add or remove an address.
    pub(super) multicast: Option<(bool, MacAddress)>,
}

impl Extras {
    /// Reads the slots of extra information that stand behind a packet's first slot.
    ///
    /// # Errors
    /// [`Disconnect`]: the frontend ruined the ring.
    pub(super) fn read<P: RingPage>(ring: &mut BackRing<NetifTxRing, P>) -> Result<Self, Disconnect> {
        let mut extras = Self::default();
        loop {
            let extra = ring.next_in_batch()?.ok_or(Disconnect::Unfinished)?.as_extra();
            extras.slots += 1; // a ring has 256 slots, one of which is the packet's first
            match extra.r#type {
                XEN_NETIF_EXTRA_TYPE_GSO => {
                    let gso = extra.as_gso();
                    extras.gso = Some((gso.size, gso.gso_type));
                }
                XEN_NETIF_EXTRA_TYPE_MCAST_ADD => {
                    extras.multicast = Some((true, extra.as_mcast().addr));
                }
                // To add goes before to remove, in whatever order the two stand.
                XEN_NETIF_EXTRA_TYPE_MCAST_DEL if matches!(extras.multicast, Some((true, _))) => {}
                XEN_NETIF_EXTRA_TYPE_MCAST_DEL => {
                    extras.multicast = Some((false, extra.as_mcast().addr));
                }
                XEN_NETIF_EXTRA_TYPE_HASH => {
                    let hash = extra.as_hash();
                    let value = u32::from_le_bytes(hash.value);
                    extras.hash = Some(PacketHash { kind: hash.hash_type, value });
                }
                other => return Err(Disconnect::BadExtra(other)),
            }
            if extra.flags & XEN_NETIF_EXTRA_FLAG_MORE == 0 {
                return Ok(extras);
            }
        }
    }

    /// What the packet's sender left to others, by the flags of the packet's first slot and by the extra information.
    ///
    /// # Errors
    /// [`Disconnect`]: no frontend has a reason to ask for this.
    pub(super) fn offload(&self, flags: u16) -> Result<Offload, Disconnect> {
        let gso = match self.gso {
            None => None,
            Some((0, _)) => return Err(Disconnect::GsoWithoutSize),
            Some((size, number)) => {
                let kind = GsoKind::from_number(number).ok_or(Disconnect::BadGso(number))?;
                Some(Gso { kind, size })
            }
        };
        Ok(Offload { checksum: checksum(flags), gso, hash: self.hash })
    }
}

/// What the flags of a packet's first slot say of the checksum.
#[inline]
pub(super) const fn checksum(flags: u16) -> Checksum {
    if flags & NETTXF_CSUM_BLANK != 0 {
        Checksum::Partial
    } else if flags & NETTXF_DATA_VALIDATED != 0 {
        Checksum::Verified
    } else {
        Checksum::Complete
    }
}
