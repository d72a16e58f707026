//! From the ring to the device: the engine takes and checks requests, copies indirect pages, takes frames and starts
//! operations.

use alloc::vec::Vec;
use core::mem::take;

use ring_abi::io::blkif::BlkifRequestSegment;
use ring_abi::ring::{RingError, RingPage};
use ring_abi::types::{GrantRef, Maddr};
use zerocopy::FromBytes;

use super::{
    BUDGET_INDIRECT, BUDGET_REQUESTS, BUDGET_SEGMENTS, BlkBack, Fetching, PIECE, Starting, response,
};
use crate::blk::request::{Body, Decoded, Work, decode, decode_segment, in_range};
use crate::traits::{BlockDevice, GrantRead, Grants, Notifier, SECTOR_SIZE, Segment};

impl<P: RingPage, G: Grants, N: Notifier, D: BlockDevice> BlkBack<P, G, N, D> {
    /// Takes requests from the ring. `true`: the budget ended before the ring did.
    pub(super) fn fetch(&mut self) -> Result<bool, RingError> {
        let mut taken = 0;
        let before = self.segments;
        let outcome = loop {
            if !self.accepting() {
                break Ok(false);
            }
            if taken == BUDGET_REQUESTS
                || self.segments - before >= BUDGET_SEGMENTS
                || self.reads.len() == BUDGET_INDIRECT
            {
                break Ok(true);
            }
            if self.free.is_empty() {
                // Every ring slot is in flight: a frontend that keeps the ring's rules has published no further
                // request.
                break Ok(false);
            }
            match self.ring.next_request() {
                Ok(Some(request)) => {
                    taken += 1;
                    let decoded = decode(&request, &self.geometry);
                    self.accept(&decoded);
                }
                Ok(None) => break Ok(false),
                Err(error) => break Err(error),
            }
        };
        self.fetch_indirect();
        outcome
    }

    fn accept(&mut self, decoded: &Decoded) {
        let &Decoded { id, operation, ref body } = decoded;
        match *body {
            Body::Refused(status) => self.responses.push(response(id, operation, status)),
            Body::Direct { work, sector, nr, ref seg } => {
                let slot = self.begin(id, operation, work, sector, nr);
                self.add_segments(slot, &seg[..nr]);
            }
            Body::Indirect { work, sector, nr, gref } => {
                let slot = self.begin(id, operation, work, sector, nr);
                let len = (nr * size_of::<BlkifRequestSegment>()) as u16;
                self.reads.push(GrantRead { gref, len });
                self.fetching.push(Fetching { slot, nr });
            }
        }
    }

    fn begin(&mut self, id: u64, operation: u8, work: Work, sector: u64, nr: usize) -> usize {
        let slot = self.free.pop().expect("looked at before the request was taken");
        self.slots[slot].begin(id, operation, work, sector, nr);
        self.segments += nr;
        slot
    }

    /// Checks `segments`, which belong to the request in slot `index`, and asks for the frames of the segments. A bad
    /// segment fails the request.
    fn add_segments(&mut self, index: usize, segments: &[BlkifRequestSegment]) {
        let slot = &mut self.slots[index];
        let first = self.maps.len();
        let readonly = slot.work != Work::Read;
        // Where memory is missing, this request fails, and no other frontend notices.
        if !slot.has_room() || self.maps.try_reserve(segments.len()).is_err() {
            slot.fail();
        }
        let segments = if slot.failed() { &[] } else { segments };
        for segment in segments {
            let Some((offset, len)) = decode_segment(segment) else {
                slot.fail();
                break;
            };
            slot.segments.push(Segment { maddr: Maddr::new(u64::from(offset)), len });
            self.maps.push((GrantRef::new(segment.gref), readonly));
        }
        let sectors = slot.bytes() / u64::from(SECTOR_SIZE);
        if !slot.segments.is_empty() && !in_range(slot.sector, sectors, &self.geometry) {
            slot.fail();
        }
        if slot.failed() {
            self.maps.truncate(first);
        }
        let missing = self.maps.len() - first;
        self.starting.push(Starting { slot: index, missing });
        if let Work::Write { drain: true, .. } = self.slots[index].work {
            self.barrier = Some(index);
        }
    }

    /// Copies the indirect pages into private memory, all in one batch, and takes the segments that the pages list.
    fn fetch_indirect(&mut self) {
        if self.reads.is_empty() {
            return;
        }
        let mut copies: Vec<BlkifRequestSegment> = Vec::new();
        let mut ranges = Vec::with_capacity(self.reads.len());
        let fetching = take(&mut self.fetching);
        self.grants.read(&self.reads, &mut |index, bytes| {
            let first = copies.len();
            if let (Some(bytes), Some(fetch)) = (bytes, fetching.get(index)) {
                copies.extend(
                    bytes
                        .chunks_exact(size_of::<BlkifRequestSegment>())
                        .take(fetch.nr)
                        .filter_map(|chunk| BlkifRequestSegment::read_from_bytes(chunk).ok()),
                );
            }
            ranges.push(first..copies.len());
        });
        for (index, fetch) in fetching.iter().enumerate() {
            match ranges.get(index) {
                Some(range) if range.len() == fetch.nr => {
                    self.add_segments(fetch.slot, &copies[range.clone()]);
                }
                _ => {
                    self.slots[fetch.slot].fail();
                    self.starting.push(Starting { slot: fetch.slot, missing: 0 });
                }
            }
        }
        self.fetching = fetching;
        self.fetching.clear();
        self.reads.clear();
    }

    /// Takes the next frames that the starting requests asked for, in one batch, and hands the device each request
    /// whose frames are all taken.
    pub(super) fn start(&mut self) {
        let piece = &self.maps[self.taken..self.maps.len().min(self.taken + PIECE)];
        if !piece.is_empty() {
            self.grants.map_device(piece, &mut self.mapped);
            assert_eq!(self.mapped.len(), piece.len(), "one result per grant");
            self.taken += piece.len();
        }
        let mut mapped = take(&mut self.mapped);
        let mut results = mapped.drain(..);
        while let Some(&Starting { slot, missing }) = self.starting.get(self.started) {
            let target = &mut self.slots[slot];
            let first = target.grants.len();
            let count = missing.min(results.len());
            for segment in &mut target.segments[first..first + count] {
                if let Some(Ok(grant)) = results.next() {
                    segment.maddr = Maddr::new(G::maddr(&grant).raw() + segment.maddr.raw());
                    target.grants.push(grant);
                }
            }
            if target.grants.len() != first + count {
                target.fail();
                self.taken += missing - count; // the rest is not wanted any more
            } else if count < missing {
                self.starting[self.started].missing -= count;
                break;
            }
            self.started += 1;
            if self.barrier == Some(slot) && !self.slots[slot].failed() {
                self.held = true;
                self.run_barrier(); // else the end of the last other request runs the barrier
                continue;
            }
            self.advance(slot);
        }
        drop(results);
        self.mapped = mapped;
        if self.started == self.starting.len() {
            self.starting.clear();
            self.maps.clear();
            (self.started, self.taken) = (0, 0);
        }
    }
}
