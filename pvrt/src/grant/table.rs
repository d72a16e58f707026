//! This domain's grant table: entries, who may use them, and when they come back.

use alloc::vec::Vec;
use ring_abi::errno::Errno;
use ring_abi::grant::{
    GNTTAB_NR_RESERVED_ENTRIES, GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_WRITING, GrantEntryV1,
};
use ring_abi::shared::SharedMemory;
use ring_abi::types::{DomId, GrantRef, Mfn, PAGE_SIZE};
use spin::Mutex;

use crate::global::global;
use crate::hypercall::{Result, grant as call};
use crate::mem::{ForeignMap, Pages, map_foreign};

/// Entries in one frame of the table.
const PER_FRAME: usize = PAGE_SIZE / size_of::<GrantEntryV1>();
/// Offset of `domid` in an entry.
const DOMID: usize = core::mem::offset_of!(GrantEntryV1, domid);
/// Offset of `frame` in an entry.
const FRAME: usize = core::mem::offset_of!(GrantEntryV1, frame);

/// The table and its free entries.
struct Table {
    frames: Vec<ForeignMap>,
    free: Vec<u32>,
    /// Entries given up while the other side still used them.
    busy: Vec<u32>,
    /// Pages that must stay until their entries are no longer used.
    retired: Vec<(Pages, Vec<u32>)>,
}

global! {
    /// The grant table. Taken before the memory lock (a full table grows under it).
    static TABLE: Mutex<Table> =
        Mutex::new(Table { frames: Vec::new(), free: Vec::new(), busy: Vec::new(), retired: Vec::new() });
}

impl Table {
    /// Adds frames: as many as there are, at least one.
    fn grow(&mut self) -> Result<()> {
        let (_, max) = call::query_size()?;
        let have = self.frames.len();
        let want = (have * 2).clamp(1, max as usize);
        if want <= have {
            return Err(Errno::ENOSPC);
        }
        let mut list = alloc::vec![0u64; want];
        call::setup_table(&mut list)?;
        for (frame, mfn) in list.iter().enumerate().skip(have) {
            let map = map_foreign(DomId::SELF, &[Mfn::new(*mfn)], true).map_err(|error| error.errno)?;
            self.frames.push(map);
            let first = frame * PER_FRAME;
            let reserved = if frame == 0 { GNTTAB_NR_RESERVED_ENTRIES as usize } else { 0 };
            // The lowest is taken first.
            self.free.extend((first + reserved..first + PER_FRAME).rev().map(|entry| entry as u32));
        }
        Ok(())
    }

    fn take(&mut self) -> Result<u32> {
        if let Some(entry) = self.free.pop() {
            return Ok(entry);
        }
        self.reclaim();
        if self.free.is_empty() {
            self.grow()?;
        }
        self.free.pop().ok_or(Errno::ENOSPC)
    }

    /// The frame and offset of an entry.
    fn at(&self, entry: u32) -> (ring_abi::shared::SharedBytes<'_>, usize) {
        (self.frames[entry as usize / PER_FRAME].shared(), entry as usize % PER_FRAME * 8)
    }

    fn permit(&self, entry: u32, dom: DomId, frame: u32, readonly: bool) {
        let (bytes, at) = self.at(entry);
        bytes.store_u32(at + FRAME, frame);
        bytes.store_u16(at + DOMID, dom.raw());
        let flags = GTF_PERMIT_ACCESS | if readonly { GTF_READONLY } else { 0 };
        // Last: from here on the entry counts.
        bytes.store_u16(at, flags);
    }

    /// Ends access; false while the other side uses the frame.
    fn revoke(&self, entry: u32) -> bool {
        let (bytes, at) = self.at(entry);
        let mut flags = bytes.load_u16(at);
        loop {
            if flags & (GTF_READING | GTF_WRITING) != 0 {
                return false;
            }
            match bytes.compare_exchange_u16(at, flags, 0) {
                Ok(_) => return true,
                Err(now) => flags = now,
            }
        }
    }

    /// Takes an entry back, at once or when it is no longer used.
    fn give(&mut self, entry: u32) {
        if self.revoke(entry) {
            self.free.push(entry);
        } else {
            self.busy.push(entry);
        }
    }

    /// Looks again at what was in use when it was given up.
    fn reclaim(&mut self) {
        for entry in core::mem::take(&mut self.busy) {
            self.give(entry);
        }
        for (pages, entries) in core::mem::take(&mut self.retired) {
            self.retire(pages, entries);
        }
    }

    fn retire(&mut self, pages: Pages, entries: Vec<u32>) {
        let mut left = Vec::new();
        for entry in entries {
            if self.revoke(entry) {
                self.free.push(entry);
            } else {
                left.push(entry);
            }
        }
        if !left.is_empty() {
            self.retired.push((pages, left));
        }
    }
}

/// Access granted to another domain; ended on drop. If that domain still uses the frame then, the entry stays taken
/// until it no longer does; the frame must not be reused before: see [`retire`].
#[derive(Debug)]
pub struct GrantRefOwned(u32);

impl GrantRefOwned {
    /// The reference, as the other domain must know it.
    pub fn number(&self) -> GrantRef {
        GrantRef::new(self.0)
    }

    /// True while the other domain has the frame mapped.
    pub fn in_use(&self) -> bool {
        TABLE.with(|table| {
            let table = table.lock();
            let (bytes, at) = table.at(self.0);
            bytes.load_u16(at) & (GTF_READING | GTF_WRITING) != 0
        })
    }
}

impl Drop for GrantRefOwned {
    fn drop(&mut self) {
        TABLE.with(|table| table.lock().give(self.0));
    }
}

/// Gives `dom` access to one of this domain's frames.
///
/// # Errors
/// `ENOSPC`: the table is full. `EINVAL`: the frame number does not fit an entry.
pub fn grant_access(dom: DomId, mfn: Mfn, readonly: bool) -> Result<GrantRefOwned> {
    let frame = u32::try_from(mfn.raw()).map_err(|_| Errno::EINVAL)?;
    TABLE.with(|table| {
        let mut table = table.lock();
        let entry = table.take()?;
        table.permit(entry, dom, frame, readonly);
        Ok(GrantRefOwned(entry))
    })
}

/// Ends access to pages and frees them, both only once the other side no longer uses them.
pub fn retire(pages: Pages, grants: Vec<GrantRefOwned>) {
    let entries = grants
        .into_iter()
        .map(|grant| {
            let entry = grant.0;
            core::mem::forget(grant);
            entry
        })
        .collect();
    TABLE.with(|table| {
        let mut table = table.lock();
        table.reclaim();
        table.retire(pages, entries);
    });
}

/// How full the grant table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantUsage {
    /// Entries that grant access now.
    pub used: usize,
    /// Of those, entries given up here and still used by the other side.
    pub busy: usize,
}

/// How full the grant table is now.
pub fn usage() -> GrantUsage {
    TABLE.with(|table| {
        let mut table = table.lock();
        table.reclaim();
        let reserved = if table.frames.is_empty() { 0 } else { GNTTAB_NR_RESERVED_ENTRIES as usize };
        let retired: usize = table.retired.iter().map(|(_, entries)| entries.len()).sum();
        GrantUsage {
            used: table.frames.len() * PER_FRAME - reserved - table.free.len(),
            busy: table.busy.len() + retired,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::{device_map, device_unmap, map_grants};
    use super::*;

    const PEER: DomId = DomId::new(0);

    #[test]
    fn a_grant_is_an_entry_and_comes_back() {
        let page = Pages::zeroed(1).expect("a page");
        let grant = grant_access(PEER, page.mfn(0), true).expect("a grant");
        assert!(grant.number().raw() >= GNTTAB_NR_RESERVED_ENTRIES);
        assert_eq!(usage().used, 1);
        let first = grant.number();
        drop(grant);
        assert_eq!(usage().used, 0);
        assert_eq!(grant_access(PEER, page.mfn(0), true).expect("a grant").number(), first);
    }

    #[test]
    fn a_frame_beyond_the_entry_is_refused() {
        assert_eq!(grant_access(PEER, Mfn::new(1 << 32), false).err(), Some(Errno::EINVAL));
        assert!(grant_access(PEER, Mfn::new(u64::from(u32::MAX)), false).is_ok());
    }

    #[test]
    fn a_grant_in_use_comes_back_later() {
        let page = Pages::zeroed(1).expect("a page");
        let grant = grant_access(PEER, page.mfn(0), false).expect("a grant");
        let map = map_grants(DomId::new(1), &[grant.number()], true).expect("mapped");
        assert!(grant.in_use());
        drop(grant);
        assert_eq!(usage(), GrantUsage { used: 1, busy: 1 });
        drop(map);
        assert_eq!(usage(), GrantUsage::default());
    }

    #[test]
    fn retired_pages_wait_for_the_other_side() {
        // The table itself takes pages.
        drop(grant_access(PEER, Mfn::new(1), false));
        let before = crate::mem::usage().total_pages;
        let page = Pages::zeroed(1).expect("a page");
        let grant = grant_access(PEER, page.mfn(0), false).expect("a grant");
        let mut mapped = Vec::new();
        device_map(DomId::new(1), &[(grant.number(), false)], &mut mapped);
        let mapped: Vec<_> = mapped.into_iter().map(|m| m.expect("mapped")).collect();
        retire(page, alloc::vec![grant]);
        assert_eq!(crate::mem::usage().total_pages, before + 1);
        device_unmap(mapped);
        assert_eq!(usage(), GrantUsage::default());
        assert_eq!(crate::mem::usage().total_pages, before);
    }

    #[test]
    fn the_table_grows_to_its_limit() {
        let page = Pages::zeroed(1).expect("a page");
        let mut grants = Vec::new();
        let refused = loop {
            match grant_access(PEER, page.mfn(0), true) {
                Ok(grant) => grants.push(grant),
                Err(errno) => break errno,
            }
        };
        assert_eq!(refused, Errno::ENOSPC);
        let frames = crate::host::GRANT_FRAMES;
        assert_eq!(grants.len(), frames * PER_FRAME - GNTTAB_NR_RESERVED_ENTRIES as usize);
        drop(grants);
        assert_eq!(usage().used, 0);
    }
}
