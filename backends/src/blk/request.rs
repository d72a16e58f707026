//! What one block request asks, checked against the disk. The input is a private copy of the request, and the output is
//! a decision.

use ring_abi::io::blkif::{
    BLKIF_MAX_SEGMENTS_PER_REQUEST, BLKIF_OP_DISCARD, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_INDIRECT,
    BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR,
    BlkifRequest, BlkifRequestDiscard, BlkifRequestIndirect, BlkifRequestSegment,
};
use ring_abi::types::{GrantRef, PAGE_SIZE};

use crate::traits::{Geometry, SECTOR_SIZE};

/// Most segments of an indirect request, as `feature-max-indirect-segments` says: the segments fit one indirect page.
pub const MAX_INDIRECT_SEGMENTS: usize = 256;

/// Highest sector number within a page.
const LAST_SECTOR: u8 = (PAGE_SIZE as u32 / SECTOR_SIZE - 1) as u8;

/// What the device does with the request's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Disk to the segments.
    Read,
    /// Segments to the disk. `flush` makes this write and all earlier writes durable; `drain` also keeps this write
    /// apart from every other request of the ring.
    Write {
        /// `BLKIF_OP_FLUSH_DISKCACHE` or a barrier.
        flush: bool,
        /// `BLKIF_OP_WRITE_BARRIER`.
        drain: bool,
    },
    /// `nr_sectors` sectors are no longer needed. No segments.
    Discard {
        /// Number of 512-byte sectors.
        sectors: u64,
    },
}

/// A request's checked content.
#[derive(Clone, Copy, Debug)]
pub enum Body {
    /// Up to 11 segments in the request itself. 0 only for flushes and discards.
    Direct {
        /// What to do.
        work: Work,
        /// First sector, 512-byte units.
        sector: u64,
        /// Used entries of `seg`.
        nr: usize,
        /// The segments, not checked yet.
        seg: [BlkifRequestSegment; BLKIF_MAX_SEGMENTS_PER_REQUEST],
    },
    /// Up to [`MAX_INDIRECT_SEGMENTS`] segments in a page of the frontend's.
    Indirect {
        /// What to do.
        work: Work,
        /// First sector, 512-byte units.
        sector: u64,
        /// Number of segments, 1 to [`MAX_INDIRECT_SEGMENTS`].
        nr: usize,
        /// The page that lists the segments.
        gref: GrantRef,
    },
    /// To be answered with this status, `BLKIF_RSP_*`, and nothing else.
    Refused(i16),
}

/// A decoded request: what the response repeats, and what the back end does.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    /// The frontend's tag.
    pub id: u64,
    /// The operation that the response repeats. For an indirect request this is the inner operation, which Linux's
    /// blkfront expects.
    pub operation: u8,
    /// The content.
    pub body: Body,
}

/// Decodes `request` for a disk of `geometry`. The segments and the sector range are checked later, once the segments
/// are known.
///
/// Where the operation is unknown, or the disk was announced without the operation, the body is `Refused` with
/// `BLKIF_RSP_EOPNOTSUPP`.
pub fn decode(request: &BlkifRequest, geometry: &Geometry) -> Decoded {
    match request.operation {
        BLKIF_OP_INDIRECT => decode_indirect(&request.as_indirect(), geometry),
        BLKIF_OP_DISCARD => decode_discard(&request.as_discard(), geometry),
        operation => {
            let nr = usize::from(request.nr_segments);
            let body = match work_of(operation, geometry) {
                Err(status) => Body::Refused(status),
                Ok(work) => {
                    let empty_allowed = matches!(work, Work::Write { flush: true, .. });
                    if nr > BLKIF_MAX_SEGMENTS_PER_REQUEST || (nr == 0 && !empty_allowed) {
                        Body::Refused(BLKIF_RSP_ERROR)
                    } else {
                        Body::Direct { work, sector: request.sector_number, nr, seg: request.seg }
                    }
                }
            };
            Decoded { id: request.id, operation, body }
        }
    }
}

fn decode_indirect(request: &BlkifRequestIndirect, geometry: &Geometry) -> Decoded {
    let nr = usize::from(request.nr_segments);
    let body = match work_of(request.indirect_op, geometry) {
        Err(status) => Body::Refused(status),
        // Only plain transfers may be indirect.
        Ok(Work::Write { flush: true, .. }) => Body::Refused(BLKIF_RSP_ERROR),
        Ok(_) if nr == 0 || nr > MAX_INDIRECT_SEGMENTS => Body::Refused(BLKIF_RSP_ERROR),
        Ok(work) => Body::Indirect {
            work,
            sector: request.sector_number,
            nr,
            gref: GrantRef::new(request.indirect_grefs[0]),
        },
    };
    Decoded { id: request.id, operation: request.indirect_op, body }
}

fn decode_discard(request: &BlkifRequestDiscard, geometry: &Geometry) -> Decoded {
    let (sector, sectors) = (request.sector_number, request.nr_sectors);
    let body = if geometry.discard.is_none() || request.flag != 0 {
        // Secure discard is not announced; ignoring the flag would leave the data readable.
        Body::Refused(BLKIF_RSP_EOPNOTSUPP)
    } else if geometry.read_only || sectors == 0 || !in_range(sector, sectors, geometry) {
        Body::Refused(BLKIF_RSP_ERROR)
    } else {
        let seg = [BlkifRequestSegment::default(); BLKIF_MAX_SEGMENTS_PER_REQUEST];
        Body::Direct { work: Work::Discard { sectors }, sector, nr: 0, seg }
    };
    Decoded { id: request.id, operation: request.operation, body }
}

fn work_of(operation: u8, geometry: &Geometry) -> Result<Work, i16> {
    let work = match operation {
        BLKIF_OP_READ => return Ok(Work::Read),
        BLKIF_OP_WRITE => Work::Write { flush: false, drain: false },
        BLKIF_OP_FLUSH_DISKCACHE if geometry.flush => Work::Write { flush: true, drain: false },
        BLKIF_OP_WRITE_BARRIER if geometry.flush => Work::Write { flush: true, drain: true },
        _ => return Err(BLKIF_RSP_EOPNOTSUPP),
    };
    if geometry.read_only { Err(BLKIF_RSP_ERROR) } else { Ok(work) }
}

/// Offset and length in bytes of a segment within its page; `None` if `seg` describes no part of a page.
pub fn decode_segment(seg: &BlkifRequestSegment) -> Option<(u32, u32)> {
    if seg.first_sect > seg.last_sect || seg.last_sect > LAST_SECTOR {
        return None;
    }
    let sectors = u32::from(seg.last_sect - seg.first_sect) + 1;
    Some((u32::from(seg.first_sect) * SECTOR_SIZE, sectors * SECTOR_SIZE))
}

/// Whether the `sectors` sectors from `sector` on lie on the disk and are whole logical blocks of the disk.
pub(super) fn in_range(sector: u64, sectors: u64, geometry: &Geometry) -> bool {
    let block = u64::from(geometry.sector_size / SECTOR_SIZE).max(1);
    sector.checked_add(sectors).is_some_and(|end| end <= geometry.sectors)
        && sector.is_multiple_of(block)
        && sectors.is_multiple_of(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traits::DiscardLimits;

    const DISK: Geometry = Geometry {
        sectors: 1000,
        sector_size: 512,
        physical_sector_size: 4096,
        read_only: false,
        flush: true,
        discard: Some(DiscardLimits { granularity: 8, alignment: 0, max_sectors: 100 }),
        seg_max: 4,
    };

    fn request(operation: u8, nr_segments: u8) -> BlkifRequest {
        BlkifRequest { operation, nr_segments, id: u64::MAX, sector_number: 9, ..Default::default() }
    }

    fn refused(request: &BlkifRequest, disk: &Geometry) -> Option<i16> {
        let decoded = decode(request, disk);
        assert_eq!(decoded.id, request.id);
        match decoded.body {
            Body::Refused(status) => Some(status),
            _ => None,
        }
    }

    #[test]
    fn segment_counts_zero_max_and_one_more() {
        assert_eq!(refused(&request(BLKIF_OP_READ, 0), &DISK), Some(BLKIF_RSP_ERROR));
        assert_eq!(refused(&request(BLKIF_OP_READ, 1), &DISK), None);
        assert_eq!(refused(&request(BLKIF_OP_READ, 11), &DISK), None);
        assert_eq!(refused(&request(BLKIF_OP_READ, 12), &DISK), Some(BLKIF_RSP_ERROR));
        assert_eq!(refused(&request(BLKIF_OP_WRITE, 255), &DISK), Some(BLKIF_RSP_ERROR));
        assert_eq!(refused(&request(BLKIF_OP_FLUSH_DISKCACHE, 0), &DISK), None);
        assert_eq!(refused(&request(BLKIF_OP_WRITE_BARRIER, 0), &DISK), None);
    }

    #[test]
    fn unknown_and_unannounced_operations() {
        for operation in (4..=255).filter(|op| ![5, 6].contains(op)) {
            assert_eq!(refused(&request(operation, 1), &DISK), Some(BLKIF_RSP_EOPNOTSUPP));
        }
        let plain = Geometry { flush: false, discard: None, ..DISK };
        for operation in [BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_WRITE_BARRIER, BLKIF_OP_DISCARD] {
            assert_eq!(refused(&request(operation, 1), &plain), Some(BLKIF_RSP_EOPNOTSUPP));
        }
    }

    #[test]
    fn read_only_refuses_all_that_writes() {
        let disk = Geometry { read_only: true, ..DISK };
        for operation in [BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_WRITE_BARRIER, BLKIF_OP_DISCARD]
        {
            // For a discard the second byte is a flag.
            let nr_segments = u8::from(operation != BLKIF_OP_DISCARD);
            assert_eq!(
                refused(&request(operation, nr_segments), &disk),
                Some(BLKIF_RSP_ERROR),
                "{operation}"
            );
        }
        assert_eq!(refused(&request(BLKIF_OP_READ, 1), &disk), None);
    }

    #[test]
    fn segments_inclusive_within_the_page() {
        let seg = |first_sect, last_sect| {
            decode_segment(&BlkifRequestSegment { first_sect, last_sect, ..Default::default() })
        };
        assert_eq!(seg(0, 0), Some((0, 512)));
        assert_eq!(seg(0, 7), Some((0, 4096)));
        assert_eq!(seg(7, 7), Some((3584, 512)));
        assert_eq!(seg(0, 8), None);
        assert_eq!(seg(3, 2), None);
        assert_eq!(seg(255, 255), None);
    }

    #[test]
    fn ranges_at_the_end_and_past_wrap() {
        assert!(in_range(0, 1000, &DISK));
        assert!(in_range(999, 1, &DISK));
        assert!(!in_range(999, 2, &DISK));
        assert!(!in_range(1000, 1, &DISK));
        assert!(!in_range(u64::MAX, 1, &DISK));
        assert!(!in_range(u64::MAX, u64::MAX, &DISK));
        let big_blocks = Geometry { sector_size: 4096, ..DISK };
        assert!(in_range(8, 16, &big_blocks));
        assert!(!in_range(4, 8, &big_blocks));
        assert!(!in_range(8, 4, &big_blocks));
    }

    #[test]
    fn indirect_counts_and_inner_operations() {
        let make = |indirect_op, nr_segments| {
            let inner = BlkifRequestIndirect {
                operation: BLKIF_OP_INDIRECT,
                indirect_op,
                nr_segments,
                id: 7,
                ..Default::default()
            };
            let decoded = decode(&BlkifRequest::from_indirect(&inner), &DISK);
            assert_eq!((decoded.id, decoded.operation), (7, indirect_op));
            match decoded.body {
                Body::Refused(status) => Err(status),
                Body::Indirect { nr, .. } => Ok(nr),
                Body::Direct { .. } => panic!("indirect became direct"),
            }
        };
        assert_eq!(make(BLKIF_OP_READ, 0), Err(BLKIF_RSP_ERROR));
        assert_eq!(make(BLKIF_OP_READ, 256), Ok(256));
        assert_eq!(make(BLKIF_OP_WRITE, 257), Err(BLKIF_RSP_ERROR));
        assert_eq!(make(BLKIF_OP_WRITE, u16::MAX), Err(BLKIF_RSP_ERROR));
        assert_eq!(make(BLKIF_OP_INDIRECT, 1), Err(BLKIF_RSP_EOPNOTSUPP));
        assert_eq!(make(BLKIF_OP_FLUSH_DISKCACHE, 1), Err(BLKIF_RSP_ERROR));
    }

    #[test]
    fn discards_checked_whole() {
        let make = |flag, sector_number, nr_sectors| {
            let inner = BlkifRequestDiscard {
                operation: BLKIF_OP_DISCARD,
                flag,
                sector_number,
                nr_sectors,
                ..Default::default()
            };
            match decode(&BlkifRequest::from_discard(&inner), &DISK).body {
                Body::Refused(status) => Err(status),
                Body::Direct { work: Work::Discard { sectors }, nr: 0, .. } => Ok(sectors),
                _ => panic!("a discard became something else"),
            }
        };
        assert_eq!(make(0, 0, 1000), Ok(1000));
        assert_eq!(make(0, 0, 0), Err(BLKIF_RSP_ERROR));
        assert_eq!(make(0, 1, 1000), Err(BLKIF_RSP_ERROR));
        assert_eq!(make(0, u64::MAX, 2), Err(BLKIF_RSP_ERROR));
        assert_eq!(make(1, 0, 8), Err(BLKIF_RSP_EOPNOTSUPP));
    }
}
