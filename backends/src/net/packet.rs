//! One packet under way: where its bytes lie, and what its sender left to others.

use ring_abi::grant::{GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTST_OKAY, GnttabCopy, GnttabCopyPtr};
pub use ring_abi::io::offload::{Checksum, Gso, GsoKind, Offload, PacketHash};
use ring_abi::types::{DomId, GrantRef, Mfn};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most bytes of a packet that the control domain itself sees: the packet's head. Every header that the control domain
/// reads or rewrites lies in the head, or the packet is dropped.
pub const HEAD_BYTES: usize = 256;

/// Bytes of an Ethernet header, the shortest packet that there is.
pub const MIN_PACKET: usize = 14;

/// Bytes of the longest packet. A length has 16 bits in the protocol, and the length counts the Ethernet header.
pub const MAX_PACKET: usize = 65_535;

/// Most slots that the pieces of one packet take on a transmit ring, extra information not counted: the first slot, and
/// as many more as Linux's xen-netback accepts. Frontends were written against xen-netback.
pub const MAX_SLOTS: usize = 1 + ring_abi::io::netif::XEN_NETIF_NR_SLOTS_MIN as usize;

/// Most parts of a packet: the head, and what is left of each slot.
pub const MAX_PARTS: usize = MAX_SLOTS + 1;

/// Where bytes lie that the hypervisor or a device shall read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a page that another domain granted.
    Grant {
        /// The domain that granted the page.
        domain: DomId,
        /// The grant.
        gref: GrantRef,
        /// First byte within the page.
        offset: u16,
    },
    /// In a page of the control domain's own.
    Own {
        /// The page's frame, as the hypercall for copies names the frame.
        frame: Mfn,
        /// First byte within the page.
        offset: u16,
    },
}

impl Place {
    /// The place `bytes` further on. The caller knows that the place stays in the page.
    #[must_use]
    pub const fn after(self, bytes: u16) -> Self {
        match self {
            Self::Grant { domain, gref, offset } => Self::Grant { domain, gref, offset: offset + bytes },
            Self::Own { frame, offset } => Self::Own { frame, offset: offset + bytes },
        }
    }

    /// How many bytes this place is behind `begin`, in the same page of the control domain's own. `None`: in another page, or
    /// before `begin`.
    #[must_use]
    pub fn bytes_behind(&self, begin: &Self) -> Option<usize> {
        match (self, begin) {
            (Self::Own { frame, offset }, Self::Own { frame: of_begin, offset: first })
                if frame == of_begin =>
            {
                offset.checked_sub(*first).map(usize::from)
            }
            _ => None,
        }
    }

    /// First byte within the page.
    #[must_use]
    pub const fn offset(self) -> u16 {
        match self {
            Self::Grant { offset, .. } | Self::Own { offset, .. } => offset,
        }
    }

    fn wire(self) -> GnttabCopyPtr {
        let (u, domid, offset) = match self {
            Self::Grant { domain, gref, offset } => (u64::from(gref.raw()), domain.raw(), offset),
            Self::Own { frame, offset } => (frame.raw(), DomId::SELF.raw(), offset),
        };
        GnttabCopyPtr { u, domid, offset, ..Default::default() }
    }

    fn of_wire(pointer: &GnttabCopyPtr, granted: bool) -> Self {
        let &GnttabCopyPtr { u, domid, offset, .. } = pointer;
        if granted {
            Self::Grant { domain: DomId::new(domid), gref: GrantRef::new(u as u32), offset }
        } else {
            Self::Own { frame: Mfn::new(u), offset }
        }
    }
}

/// A run of a packet's bytes that lies within one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first byte.
    pub place: Place,
    /// Number of bytes, at least 1.
    pub len: u16,
}

/// One packet under way. The place that the packet came from keeps the parts, so that a packet goes to many receivers at
/// the cost of a few words each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Bytes of all parts, [`MIN_PACKET`] to [`MAX_PACKET`].
    pub len: u32,
    /// What the packet's sender left to others.
    pub offload: &'a Offload,
    /// The bytes, at most [`MAX_PARTS`] parts. The first part is the head: bytes in the control domain's memory, which
    /// may have been rewritten.
    pub parts: &'a [Part],
}

impl Packet<'_> {
    /// Bytes of the head.
    #[must_use]
    pub fn head_len(&self) -> u16 {
        self.parts.first().map_or(0, |head| head.len)
    }
}

/// One copy for the hypervisor, in the form in which the hypervisor reads the copy.
///
/// ABI: `struct gnttab_copy`, `xen/include/public/grant_table.h`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CopyOp(GnttabCopy);

impl CopyOp {
    /// A copy of `len` bytes. Until the copy was done, [`Self::ok`] says no.
    #[must_use]
    pub fn new(source: Place, dest: Place, len: u16) -> Self {
        let flag = |place, flag| if matches!(place, Place::Grant { .. }) { flag } else { 0 };
        let flags = flag(source, GNTCOPY_SOURCE_GREF) | flag(dest, GNTCOPY_DEST_GREF);
        let (source, dest) = (source.wire(), dest.wire());
        Self(GnttabCopy { source, dest, len, flags, status: GNTST_OKAY + 1, ..Default::default() })
    }

    /// Where the bytes come from.
    #[must_use]
    pub fn source(&self) -> Place {
        Place::of_wire(&self.0.source, self.0.flags & GNTCOPY_SOURCE_GREF != 0)
    }

    /// Where the bytes go.
    #[must_use]
    pub fn dest(&self) -> Place {
        Place::of_wire(&self.0.dest, self.0.flags & GNTCOPY_DEST_GREF != 0)
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(&self) -> u16 {
        self.0.len
    }

    /// Whether there is nothing to copy.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Whether the copy was done.
    #[must_use]
    pub const fn ok(&self) -> bool {
        self.0.status == GNTST_OKAY
    }

    /// The copier's call: notes how the copy went, as `GNTST_*`.
    pub const fn set_status(&mut self, status: i16) {
        self.0.status = status;
    }
}

/// Copies between pages of two domains.
pub trait Copier {
    /// Does all of `ops` in order, by one hypercall, and notes in each how the copy went. A copy that fails does not keep
    /// the others from being done.
    fn copy(&mut self, ops: &mut [CopyOp]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_keep_their_places() {
        let granted = Place::Grant { domain: DomId::new(7), gref: GrantRef::new(u32::MAX), offset: 4095 };
        let own = Place::Own { frame: Mfn::new(u64::MAX), offset: 1 };
        for (source, dest) in [(granted, own), (own, granted), (granted, granted), (own, own)] {
            let mut op = CopyOp::new(source, dest, 9);
            assert_eq!((op.source(), op.dest(), op.len(), op.ok()), (source, dest, 9, false));
            op.set_status(GNTST_OKAY);
            assert!(op.ok());
        }
        assert_eq!(own.after(5).offset(), 6);
        assert_eq!((own.after(5).bytes_behind(&own), own.bytes_behind(&own.after(5))), (Some(5), None));
        assert_eq!((granted.bytes_behind(&granted), granted.bytes_behind(&own)), (None, None));
        assert_eq!(granted.after(0), granted);
    }

    #[test]
    fn a_copy_is_what_the_hypervisor_reads() {
        let op = CopyOp::new(
            Place::Grant { domain: DomId::new(3), gref: GrantRef::new(8), offset: 16 },
            Place::Own { frame: Mfn::new(0x1234), offset: 32 },
            64,
        );
        let wire = GnttabCopy::read_from_bytes(op.as_bytes()).unwrap();
        assert_eq!((wire.source.u, wire.source.domid, wire.source.offset), (8, 3, 16));
        assert_eq!((wire.dest.u, wire.dest.domid, wire.dest.offset), (0x1234, DomId::SELF.raw(), 32));
        assert_eq!((wire.len, wire.flags), (64, GNTCOPY_SOURCE_GREF));
    }
}
