//! The life of one accepted request: which device operations are still to be issued, and which operations the device
//! has.

use alloc::vec::Vec;

use ring_abi::io::blkif::BLKIF_MAX_SEGMENTS_PER_REQUEST;

use super::request::Work;
use crate::traits::{BlockOp, Geometry, SECTOR_SIZE, Segment};

/// The steps of a request, in order. A request passes over the steps that the request does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    FlushBefore,
    Data,
    FlushAfter,
    Done,
}

/// One accepted request and the frames that the request holds. The vectors keep room for a direct request from one
/// request to the next.
#[derive(Debug)]
pub(super) struct Slot<H> {
    pub(super) id: u64,
    pub(super) operation: u8,
    pub(super) work: Work,
    pub(super) sector: u64,
    /// Segments that the request says it has.
    pub(super) nr: usize,
    /// Frames held for the device: one for each segment, once the segment's frame is mapped.
    pub(super) grants: Vec<H>,
    /// Until the frames are mapped, addresses are offsets within the page.
    pub(super) segments: Vec<Segment>,
    step: Step,
    /// Number of segments (for a discard: of sectors) that the present step has issued; a flush counts as 1.
    issued: u64,
    /// Device operations out.
    outstanding: u32,
    failed: bool,
}

/// The next device operation of a slot.
pub(super) struct Issue<'a> {
    pub(super) op: BlockOp,
    pub(super) sector: u64,
    pub(super) segments: &'a [Segment],
    /// Segments (for a discard: sectors) of this operation; [`Slot::issued`] learns the number when the device took the
    /// operation.
    amount: u64,
    sectors: u64,
}

impl Issue<'_> {
    /// What the caller passes to [`Slot::issued`] once the device has taken the operation.
    pub(super) fn receipt(&self) -> Receipt {
        Receipt { amount: self.amount, sectors: self.sectors }
    }
}

/// How far an issued operation brings the operation's slot.
#[must_use]
#[derive(Clone, Copy)]
pub(super) struct Receipt {
    amount: u64,
    sectors: u64,
}

impl<H> Slot<H> {
    pub(super) fn new() -> Self {
        Self {
            id: 0,
            operation: 0,
            work: Work::Read,
            sector: 0,
            nr: 0,
            grants: Vec::new(),
            segments: Vec::new(),
            step: Step::Done,
            issued: 0,
            outstanding: 0,
            failed: false,
        }
    }

    /// Takes a new request; segments are added next.
    pub(super) fn begin(&mut self, id: u64, operation: u8, work: Work, sector: u64, nr: usize) {
        debug_assert!(self.grants.is_empty() && self.outstanding == 0);
        self.segments.clear();
        (self.id, self.operation, self.work, self.sector, self.nr) = (id, operation, work, sector, nr);
        (self.issued, self.failed) = (0, false);
        self.step = match work {
            Work::Write { flush: true, .. } => Step::FlushBefore,
            _ => Step::Data,
        };
    }

    /// Makes room for the request's segments and frames; `false`: there is no memory.
    pub(super) fn has_room(&mut self) -> bool {
        let nr = self.nr.max(BLKIF_MAX_SEGMENTS_PER_REQUEST);
        self.segments.try_reserve_exact(nr).is_ok() && self.grants.try_reserve_exact(nr).is_ok()
    }

    /// Called when the request is over: gives back the room that only an indirect request needs.
    pub(super) fn trim(&mut self) {
        if self.segments.capacity() > BLKIF_MAX_SEGMENTS_PER_REQUEST {
            (self.segments, self.grants) = (Vec::new(), Vec::new());
        }
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Whether all is issued and returned, or a failure leaves nothing to wait for.
    pub(super) fn is_finished(&self) -> bool {
        self.outstanding == 0 && (self.failed || self.step == Step::Done)
    }

    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Nothing more is issued; the request is an error.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    /// The next operation for the device. `None`: nothing is left to issue, or the slot must wait for an operation that
    /// the device has.
    pub(super) fn next_issue(&self, geometry: &Geometry) -> Option<Issue<'_>> {
        if self.failed {
            return None;
        }
        match self.step {
            Step::FlushBefore | Step::FlushAfter if self.issued == 0 => {
                Some(Issue { op: BlockOp::Flush, sector: 0, segments: &[], amount: 1, sectors: 0 })
            }
            Step::Data => self.next_data(geometry),
            _ => None,
        }
    }

    fn next_data(&self, geometry: &Geometry) -> Option<Issue<'_>> {
        if let Work::Discard { sectors } = self.work {
            let most = geometry.discard.map_or(1, |limits| u64::from(limits.max_sectors.max(1)));
            let amount = (sectors - self.issued).min(most);
            let op = BlockOp::Discard { sectors: amount };
            return (amount > 0).then_some(Issue {
                op,
                sector: self.sector,
                segments: &[],
                amount,
                sectors: amount,
            });
        }
        let rest = &self.segments[self.issued as usize..];
        if rest.is_empty() {
            return None;
        }
        let segments = &rest[..self.chunk(rest, geometry)];
        let bytes: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
        let op = if self.work == Work::Read { BlockOp::Read } else { BlockOp::Write };
        let (amount, sectors) = (segments.len() as u64, bytes / u64::from(SECTOR_SIZE));
        Some(Issue { op, sector: self.sector, segments, amount, sectors })
    }

    /// How many segments of `rest` one device operation takes: as many as the device can take, cut at a logical block.
    fn chunk(&self, rest: &[Segment], geometry: &Geometry) -> usize {
        if rest.len() <= geometry.seg_max {
            return rest.len();
        }
        let (mut bytes, mut whole) = (0u64, 0);
        for (index, segment) in rest[..geometry.seg_max.max(1)].iter().enumerate() {
            bytes += u64::from(segment.len);
            if bytes.is_multiple_of(u64::from(geometry.sector_size)) {
                whole = index + 1;
            }
        }
        // No block border lies within reach: the device gets the longest operation that the device accepts, and answers
        // with an error.
        if whole == 0 { geometry.seg_max.max(1) } else { whole }
    }

    /// The device took the last [`Self::next_issue`].
    pub(super) fn issued(&mut self, receipt: Receipt) {
        self.issued += receipt.amount;
        self.sector += receipt.sectors;
        self.outstanding += 1;
    }

    /// Notes that the device returned one operation. The slot may have more to issue afterwards.
    pub(super) fn returned(&mut self, ok: bool) {
        self.outstanding = self.outstanding.checked_sub(1).expect("one completion per operation");
        self.failed |= !ok;
    }

    /// Goes on to the next step if everything of the present step is issued and has returned.
    pub(super) fn settle(&mut self) {
        let all_issued = match (self.step, self.work) {
            (Step::Done, _) => return,
            (Step::FlushBefore | Step::FlushAfter, _) => self.issued == 1,
            (Step::Data, Work::Discard { sectors }) => self.issued == sectors,
            (Step::Data, _) => self.issued == self.segments.len() as u64,
        };
        if self.failed || !all_issued || self.outstanding != 0 {
            return;
        }
        self.issued = 0;
        self.step = match (self.step, self.work) {
            (Step::FlushBefore, _) if self.segments.is_empty() => Step::Done,
            (Step::FlushBefore, _) => Step::Data,
            (Step::Data, Work::Write { flush: true, .. }) => Step::FlushAfter,
            _ => Step::Done,
        };
    }
}
