//! Joining: a read or write that begins where the open request ends on the disk becomes part of that request.

use alloc::sync::Arc;
use alloc::vec::Vec;

use backends::{Client, Segment, SubmitError};

use super::{InFlight, Inner, Member, Request, SECTOR, SLOT_ENTRIES, T_IN};
use crate::hw::DmaSource;
use crate::virtio::queue::Part;

/// A read or write that is not in the queue yet. A slot is reserved for this request, and [`Inner::parts`] has its
/// parts.
pub(super) struct Open {
    kind: u32,
    /// The sector behind the request's last sector.
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
            self.close_open(); // the request takes the queue's own descriptors, which the next request must not count as free
        }
        Ok(())
    }

    /// Puts the parts of `segments` into [`Inner::next`], and returns the number of bytes. Segments that follow each
    /// other in machine memory become one part, which saves the device a look at each page: domains have much of
    /// their memory in one piece.
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

    /// Whether the transfer of `member` begins where the open request ends, and fits. If the joined request needs a
    /// table, this function takes the table.
    fn may_join(&mut self, member: &Member, kind: u32) -> bool {
        let parts = self.parts.len() + member.parts;
        let Some(open) = &mut self.open else { return false };
        // Only requests of one client join: one domain's errors, delays and numbers of parts must not reach another
        // domain.
        let follows =
            open.kind == kind && open.end == member.sector && Arc::ptr_eq(&open.first.client, &member.client);
        if !follows || parts > self.seg_max || !has_room(&mut open.joined) {
            return false;
        }
        if open.table.is_some() || parts + 2 <= SLOT_ENTRIES {
            return true;
        }
        if !self.claims.is_empty() {
            return false; // free tables are kept for clients that were turned away
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

/// Makes room for one more member, where the vector has room for at most twice its members; `false`: there is no
/// memory.
fn has_room(joined: &mut Vec<Member>) -> bool {
    joined.len() < joined.capacity() || joined.try_reserve_exact(joined.len().max(1)).is_ok()
}
