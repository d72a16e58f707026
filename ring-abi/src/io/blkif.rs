//! The block protocol: 32 slots of 112 bytes in a one-page ring.

use crate::layout::{constants, wire};

constants! { "io/blkif.h";
    BLKIF_OP_READ: u8 = 0 => "BLKIF_OP_READ";
    BLKIF_OP_WRITE: u8 = 1 => "BLKIF_OP_WRITE";
    BLKIF_OP_WRITE_BARRIER: u8 = 2 => "BLKIF_OP_WRITE_BARRIER";
    BLKIF_OP_FLUSH_DISKCACHE: u8 = 3 => "BLKIF_OP_FLUSH_DISKCACHE";
    BLKIF_OP_RESERVED_1: u8 = 4 => "BLKIF_OP_RESERVED_1";
    BLKIF_OP_DISCARD: u8 = 5 => "BLKIF_OP_DISCARD";
    BLKIF_OP_INDIRECT: u8 = 6 => "BLKIF_OP_INDIRECT";
    BLKIF_MAX_SEGMENTS_PER_REQUEST: usize = 11 => "BLKIF_MAX_SEGMENTS_PER_REQUEST";
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: usize = 8 => "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST";
    BLKIF_DISCARD_SECURE: u8 = 1 => "BLKIF_DISCARD_SECURE";
    BLKIF_RSP_EOPNOTSUPP: i16 = -2 => "BLKIF_RSP_EOPNOTSUPP";
    BLKIF_RSP_ERROR: i16 = -1 => "BLKIF_RSP_ERROR";
    BLKIF_RSP_OKAY: i16 = 0 => "BLKIF_RSP_OKAY";
    VDISK_CDROM: u32 = 1 => "VDISK_CDROM";
    VDISK_REMOVABLE: u32 = 2 => "VDISK_REMOVABLE";
    VDISK_READONLY: u32 = 4 => "VDISK_READONLY";
}

/// Bytes of a sector as requests count sectors, whatever the disk's own sector size.
pub const SECTOR_SIZE: usize = 512;
/// Segments described by one indirect page.
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = crate::types::PAGE_SIZE / size_of::<BlkifRequestSegment>();

wire! { "io/blkif.h";
    /// One segment: a run of sectors within a granted page.
    struct BlkifRequestSegment = "struct blkif_request_segment", 8 {
        0x0 gref: u32,
        /// First sector, 0 to 7.
        0x4 first_sect: u8,
        /// Last sector, inclusive.
        0x5 last_sect: u8,
        0x6 _pad0: u16 = "",
    }

    /// Direct request: read, write, barrier or flush.
    struct BlkifRequest = "struct blkif_request", 112 {
        /// `BLKIF_OP_*`. Any byte may arrive: decode this byte, never transmute it.
        0x00 operation: u8,
        /// Used entries of `seg`. The peer may claim more than there are.
        0x01 nr_segments: u8,
        /// Virtual device number; not used by backends.
        0x02 handle: u16,
        0x04 _pad0: u32 = "",
        /// The frontend's own tag, echoed in the response.
        0x08 id: u64,
        /// First sector, in units of 512 bytes.
        0x10 sector_number: u64,
        0x18 seg: [BlkifRequestSegment; BLKIF_MAX_SEGMENTS_PER_REQUEST],
    }

    /// `BLKIF_OP_DISCARD`.
    struct BlkifRequestDiscard = "struct blkif_request_discard", 32 {
        0x00 operation: u8,
        /// `BLKIF_DISCARD_SECURE`.
        0x01 flag: u8,
        0x02 handle: u16,
        0x04 _pad0: u32 = "",
        0x08 id: u64,
        0x10 sector_number: u64,
        0x18 nr_sectors: u64,
    }

    /// `BLKIF_OP_INDIRECT`: segments are listed in granted pages, 512 in each.
    struct BlkifRequestIndirect = "struct blkif_request_indirect", 64 {
        0x00 operation: u8,
        /// Operation wanted: read or write.
        0x01 indirect_op: u8,
        0x02 nr_segments: u16,
        0x04 _pad0: u32 = "",
        0x08 id: u64,
        0x10 sector_number: u64,
        0x18 handle: u16,
        0x1a _pad1: u16 = "",
        /// Pages of [`BlkifRequestSegment`].
        0x1c indirect_grefs: [u32; BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST],
        0x3c _pad2: u32 = "",
    }

    /// A response, which takes a whole slot.
    struct BlkifResponse = "struct blkif_response", 16 {
        /// Tag of the request.
        0x0 id: u64,
        /// Operation of the request.
        0x8 operation: u8,
        0x9 _pad0: u8 = "",
        /// `BLKIF_RSP_*`.
        0xa status: i16,
        0xc _pad1: u32 = "",
    }
}

impl BlkifRequest {
    /// The slot read as a discard request.
    #[must_use]
    pub fn as_discard(&self) -> BlkifRequestDiscard {
        crate::payload::front(self)
    }

    /// A slot that holds a discard request.
    #[must_use]
    pub fn from_discard(request: &BlkifRequestDiscard) -> Self {
        crate::payload::widen(request)
    }

    /// A slot that holds an indirect request.
    #[must_use]
    pub fn from_indirect(request: &BlkifRequestIndirect) -> Self {
        crate::payload::widen(request)
    }

    /// The slot read as an indirect request.
    #[must_use]
    pub fn as_indirect(&self) -> BlkifRequestIndirect {
        crate::payload::front(self)
    }
}

/// The block ring.
#[derive(Clone, Copy, Debug)]
pub struct BlkifRing;

impl crate::ring::RingProtocol for BlkifRing {
    type Request = BlkifRequest;
    type Response = BlkifResponse;
}

/// Geometry of the ring.
pub mod ring {
    use super::BlkifRing;
    use crate::layout::constants;
    use crate::ring::{RingProtocol, slots};

    constants! { "io/blkif.h";
        /// Bytes of a slot.
        SLOT_BYTES: usize = BlkifRing::SLOT_BYTES => "sizeof(union blkif_sring_entry)";
        /// Slots of a one-page ring.
        SLOTS_1: u32 = slots::<BlkifRing>(4096) => "__CONST_RING_SIZE(blkif, 4096)";
        /// Slots of a two-page ring.
        SLOTS_2: u32 = slots::<BlkifRing>(8192) => "__CONST_RING_SIZE(blkif, 8192)";
        /// Slots of a four-page ring.
        SLOTS_4: u32 = slots::<BlkifRing>(16384) => "__CONST_RING_SIZE(blkif, 16384)";
        /// Slots of an eight-page ring.
        SLOTS_8: u32 = slots::<BlkifRing>(32768) => "__CONST_RING_SIZE(blkif, 32768)";
        /// Slots of a sixteen-page ring.
        SLOTS_16: u32 = slots::<BlkifRing>(65536) => "__CONST_RING_SIZE(blkif, 65536)";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_requests_share_the_slot() {
        let discard = BlkifRequestDiscard {
            operation: BLKIF_OP_DISCARD,
            flag: BLKIF_DISCARD_SECURE,
            id: 9,
            sector_number: 10,
            nr_sectors: u64::MAX,
            ..Default::default()
        };
        let slot = BlkifRequest::from_discard(&discard);
        assert_eq!((slot.operation, slot.nr_segments, slot.id, slot.sector_number), (5, 1, 9, 10));
        assert_eq!(slot.as_discard(), discard);

        let mut indirect =
            BlkifRequestIndirect { indirect_op: BLKIF_OP_WRITE, nr_segments: 256, ..Default::default() };
        indirect.indirect_grefs = [7; 8];
        assert_eq!(BlkifRequest::from_indirect(&indirect).as_indirect(), indirect);
    }
}
