//! Joining: a read or write that begins where the open request ends on the disk becomes part of that request.

use alloc::sync::Arc;
use alloc::vec::Vec;

use backends::{Client, Segment, SubmitError};

use super::{InFlight, Inner, Member, Request, SECTOR, SLOT_ENTRIES, T_IN};
use crate::virtio::DmaSource;
use crate::virtio::queue::Part;

/// A read or write that is not in the queue yet. A slot is reserved for it; its parts are [`Inner::parts`].
pub(super) struct Open {
    kind: u32,
    /// The sector behind its last.
    end: u64,
    slot: usize,
    table: Option<u16>,
    first: Member,
    joined: Vec<Member>,
}

impl<S: DmaSource> Inner<S> {
    /// Submits a read or write of `segments` from `sector` on.
    pub(in crate::virtio::blk) fn submit_transfer(
        &mut self,
        client: &Arc<Client>,
        tag: u32,
        kind: u32,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        self.expect_end()?;
        let bytes = self.set_next(kind == T_IN, segments);
        let (parts, sectors) = (self.next.len(), bytes / SECTOR);
        let member = Member { client: client.clone(), tag, sector, parts };
        if self.may_join(&member, kind)
            && let Some(open) = &mut self.open
        {
            open.joined.push(member);
            open.end += sectors;
        } else {
            let (slot, table) = self.reserve_for(client, parts + 2)?;
            let end = sector + sectors;
            self.open = Some(Open { kind, end, slot, table, first: member, joined: Vec::new() });
        }
        self.parts.append(&mut self.next);
        self.untold += 1;
        if !self.indirect {
            self.close_open(); // it takes descriptors of the queue itself
        }
        Ok(())
    }

    /// Makes [`Inner::next`] the parts of `segments`, and gives their bytes. Segments that follow each other in machine
    /// memory are one part, which saves the device a look at each page: domains have much of their memory in one piece.
    fn set_next(&mut self, device_writes: bool, segments: &[Segment]) -> u64 {
        self.next.clear();
        let mut bytes = 0;
        for segment in segments {
            let (mut maddr, mut left) = (segment.maddr.raw(), segment.len);
            bytes += u64::from(left);
            if let Some(last) = self.next.last_mut()
                && last.maddr + u64::from(last.len) == maddr
                && last.len + left <= self.part_max
            {
                last.len += left;
                continue;
            }
            while left > 0 {
                let len = left.min(self.part_max);
                self.next.push(Part { maddr, len, device_writes });
                maddr += u64::from(len);
                left -= len;
            }
        }
        bytes
    }

    /// Whether a transfer goes on where the open request ends, and fits. A table for both is found then.
    fn may_join(&mut self, member: &Member, kind: u32) -> bool {
        let parts = self.parts.len() + member.parts;
        let Some(open) = &mut self.open else { return false };
        // One domain's errors, delays and numbers of parts are no other's business.
        let follows =
            open.kind == kind && open.end == member.sector && Arc::ptr_eq(&open.first.client, &member.client);
        if !follows || parts > self.seg_max || !has_room(&mut open.joined) {
            return false;
        }
        if open.table.is_some() || parts + 2 <= SLOT_ENTRIES {
            return true;
        }
        if !self.claims.is_empty() {
            return false; // tables are kept for clients that were turned away
        }
        open.table = self.free_tables.pop();
        open.table.is_some()
    }

    /// Puts the open request into the queue.
    pub(in crate::virtio::blk) fn close_open(&mut self) {
        let Some(Open { kind, slot, table, first, joined, .. }) = self.open.take() else { return };
        let request = Request { kind, sector: first.sector, range: None };
        let mut parts = core::mem::take(&mut self.parts);
        self.push(slot, request, &parts, InFlight { first, joined, kind, table });
        parts.clear();
        self.parts = parts;
    }
}

/// Makes sure of room for one member more, with at most twice the room for those there are; false: there is no memory.
fn has_room(joined: &mut Vec<Member>) -> bool {
    joined.len() < joined.capacity() || joined.try_reserve_exact(joined.len().max(1)).is_ok()
}
