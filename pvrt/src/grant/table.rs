//! This domain's grant table: entries, the domains that may use them, and when entries come back.
#![allow(unsafe_code)] // a frame that its caller looks after is granted by a promise

use alloc::vec::Vec;

use super::entry::Entry;
use super::granted::Kept;
use ring_abi::errno::Errno;
use ring_abi::grant::{
    GNTTAB_NR_RESERVED_ENTRIES, GTF_PERMIT_ACCESS, GTF_READONLY, GrantEntryV1, GrantEntryV2,
};
use ring_abi::shared::SharedMemory;
use ring_abi::types::{DomId, GrantRef, Mfn, PAGE_SIZE};
use spin::Mutex;

use crate::global::global;
use crate::hypercall::{Result, grant as call};
use crate::mem::{ForeignMap, map_foreign};

/// The table and its free entries.
struct Table {
    frames: Vec<ForeignMap>,
    /// Of version 2.
    wide: bool,
    /// Frames of status words.
    status: Vec<ForeignMap>,
    free: Vec<u32>,
    /// Entries given up while the other side still used them.
    busy: Vec<u32>,
    /// Memory that must stay until its entries are no longer used.
    retired: Vec<(Kept, Vec<u32>)>,
}

global! {
    /// The grant table. Taken before the memory lock (a full table grows under it).
    static TABLE: Mutex<Table> =
        Mutex::new(Table {
            frames: Vec::new(),
            wide: false,
            status: Vec::new(),
            free: Vec::new(),
            busy: Vec::new(),
            retired: Vec::new(),
        });
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
        for mfn in list.iter().skip(have) {
            let map = map_foreign(DomId::SELF, &[Mfn::new(*mfn)], true).map_err(|error| error.errno)?;
            self.frames.push(map);
            if self.wide {
                self.map_status()?;
            }
            self.all_free(self.frames.len() - 1);
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

    /// Entries in a frame.
    fn per_frame(&self) -> usize {
        if self.wide { PAGE_SIZE / size_of::<GrantEntryV2>() } else { PAGE_SIZE / size_of::<GrantEntryV1>() }
    }

    fn entry(&self, entry: u32) -> Entry<'_> {
        let (entry, per_frame) = (entry as usize, self.per_frame());
        let status = self.wide.then(|| {
            let at = entry * size_of::<u16>();
            (self.status[at / PAGE_SIZE].shared(), at % PAGE_SIZE)
        });
        let at = entry % per_frame * (PAGE_SIZE / per_frame);
        Entry { bytes: self.frames[entry / per_frame].shared(), at, status }
    }

    /// Ends access; false while the other side uses the frame.
    fn revoke(&self, entry: u32) -> bool {
        self.entry(entry).revoke()
    }

    /// The entries from frame `first` on are free; the lowest is taken first.
    fn all_free(&mut self, first: usize) {
        let (per_frame, frames) = (self.per_frame(), self.frames.len());
        let first = (first * per_frame).max(GNTTAB_NR_RESERVED_ENTRIES as usize);
        self.free.extend((first..frames * per_frame).rev().map(|entry| entry as u32));
    }

    /// Maps the frames of status words that there are, if there are any.
    fn map_status(&mut self) -> Result<()> {
        let wanted = if self.wide {
            (self.frames.len() * self.per_frame() * size_of::<u16>()).div_ceil(PAGE_SIZE)
        } else {
            0
        };
        let mut list = alloc::vec![0u64; wanted];
        call::status_frames(&mut list[..wanted])?;
        for mfn in &list[self.status.len()..] {
            self.status.push(map_foreign(DomId::SELF, &[Mfn::new(*mfn)], true).map_err(|error| error.errno)?);
        }
        Ok(())
    }

    /// Entries that are not free, but reserved ones.
    fn used(&self) -> usize {
        let reserved = if self.frames.is_empty() { 0 } else { GNTTAB_NR_RESERVED_ENTRIES as usize };
        self.frames.len() * self.per_frame() - reserved - self.free.len()
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
        for (memory, entries) in core::mem::take(&mut self.retired) {
            self.retire(memory, entries);
        }
    }

    /// Ends access by `entries`; those that the other side still uses are left over.
    fn end(&mut self, entries: &mut Vec<u32>) {
        let mut left = 0;
        for index in 0..entries.len() {
            let entry = entries[index];
            if self.revoke(entry) {
                self.free.push(entry);
            } else {
                entries[left] = entry;
                left += 1;
            }
        }
        entries.truncate(left);
    }

    fn retire(&mut self, memory: Kept, mut entries: Vec<u32>) {
        self.end(&mut entries);
        if !entries.is_empty() {
            self.retired.push((memory, entries));
        }
    }
}

/// Access to a frame whose memory its owner looks after; ended on drop. If the other domain still uses the frame then, the
/// entry stays taken until it no longer does. Memory of this kernel is lent by [`Granted`](super::Granted) instead.
#[derive(Debug)]
pub struct GrantRefOwned(u32);

impl GrantRefOwned {
    /// The reference, as the other domain must know it.
    pub fn number(&self) -> GrantRef {
        GrantRef::new(self.0)
    }

    /// Whether the other domain had the frame mapped a moment ago. That domain may map the frame again at once: nothing
    /// follows from a no.
    pub fn in_use(&self) -> bool {
        any_in_use(&[self.0])
    }

    /// Ends the access.
    ///
    /// # Errors
    /// The other domain uses the frame still.
    pub fn end(self) -> core::result::Result<(), Self> {
        let mut entries = Vec::from([self.0]);
        end(&mut entries);
        if entries.is_empty() {
            core::mem::forget(self); // the entry is free
            Ok(())
        } else {
            Err(self)
        }
    }
}

impl Drop for GrantRefOwned {
    fn drop(&mut self) {
        TABLE.with(|table| table.lock().give(self.0));
    }
}

/// Gives `dom` access to a frame.
///
/// # Errors
/// `ENOSPC`: the table is full. `EINVAL`: the frame number does not fit an entry.
///
/// # Safety
/// The frame is not memory of this kernel, or stays memory that is used as shared bytes alone, until the other domain
/// has let go of the frame after the grant's end.
pub unsafe fn grant_access(dom: DomId, mfn: Mfn, readonly: bool) -> Result<GrantRefOwned> {
    permit(dom, mfn, readonly).map(GrantRefOwned)
}

/// Takes an entry for `dom` and a frame.
pub(super) fn permit(dom: DomId, mfn: Mfn, readonly: bool) -> Result<u32> {
    let flags = GTF_PERMIT_ACCESS | if readonly { GTF_READONLY } else { 0 };
    TABLE.with(|table| {
        let mut table = table.lock();
        if !table.wide && u32::try_from(mfn.raw()).is_err() {
            return Err(Errno::EINVAL);
        }
        let entry = table.take()?;
        table.entry(entry).permit(dom, mfn, flags);
        Ok(entry)
    })
}

/// Makes `version`, 1 or 2, the one of this kernel's table, which grants nothing just now but by reserved entries.
///
/// # Errors
/// `EBUSY`: grants are in use. `ENOSYS`: the hypervisor, or this domain's, knows version 1 alone. `EINVAL`: another version.
pub fn set_version(version: u32) -> Result<()> {
    TABLE.with(|table| {
        let mut table = table.lock();
        table.reclaim();
        if table.used() > 0 {
            return Err(Errno::EBUSY);
        }
        if table.frames.is_empty() {
            table.grow()?;
        }
        // While status words are mapped, version 1 is refused.
        table.status.clear();
        let result = call::set_version(version);
        table.wide = call::get_version()? == 2;
        table.free.clear();
        table.all_free(0);
        table.map_status()?;
        result
    })
}

/// Ends access by `entries`; those that the other side still uses are left over.
pub(super) fn end(entries: &mut Vec<u32>) {
    TABLE.with(|table| table.lock().end(entries));
}

/// Ends access by `entries` and drops the memory behind them, once the other side no longer uses it.
pub(super) fn retire(memory: Kept, entries: Vec<u32>) {
    TABLE.with(|table| {
        let mut table = table.lock();
        table.reclaim();
        table.retire(memory, entries);
    });
}

/// Whether the other side uses a frame of `entries` just now.
pub(super) fn any_in_use(entries: &[u32]) -> bool {
    TABLE.with(|table| {
        let table = table.lock();
        entries.iter().any(|entry| table.entry(*entry).in_use())
    })
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
        let retired: usize = table.retired.iter().map(|(_, entries)| entries.len()).sum();
        GrantUsage { used: table.used(), busy: table.busy.len() + retired }
    })
}

#[cfg(test)]
mod tests {
    use super::super::entry::revoke;
    use super::super::map_grants;
    use super::*;
    use crate::mem::Pages;
    use core::cell::Cell;
    use ring_abi::grant::GTF_WRITING;

    const PEER: DomId = DomId::new(0);

    fn page() -> Pages {
        Pages::zeroed(1).expect("a page")
    }

    fn bare(mfn: u64) -> Result<GrantRefOwned> {
        // SAFETY: in these tests nobody else uses the frame.
        unsafe { grant_access(PEER, Mfn::new(mfn), true) }
    }

    #[test]
    fn a_grant_is_an_entry_and_comes_back() {
        let grant = bare(1).expect("a grant");
        assert!(grant.number().raw() >= GNTTAB_NR_RESERVED_ENTRIES);
        assert_eq!(usage().used, 1);
        let first = grant.number();
        drop(grant);
        assert_eq!(usage().used, 0);
        assert_eq!(bare(1).expect("a grant").number(), first);
    }

    #[test]
    fn a_frame_beyond_the_entry_is_refused() {
        assert_eq!(bare(1 << 32).err(), Some(Errno::EINVAL));
        assert!(bare(u64::from(u32::MAX)).is_ok());
    }

    #[test]
    fn a_grant_in_use_comes_back_later() {
        let page = page();
        // SAFETY: the page outlives the mapping below.
        let grant = unsafe { grant_access(PEER, page.mfn(0), false) }.expect("a grant");
        let map = map_grants(DomId::new(1), &[grant.number()], true).expect("mapped");
        assert!(grant.in_use());
        drop(grant);
        assert_eq!(usage(), GrantUsage { used: 1, busy: 1 });
        drop(map);
        assert_eq!(usage(), GrantUsage::default());
    }

    /// A hostile peer maps the page at the worst moment: after the look, or as the end is tried for the second time.
    #[test]
    fn a_peer_that_maps_in_between_keeps_its_page() {
        for peer_comes_at in 0..4 {
            let flags = Cell::new(GTF_PERMIT_ACCESS);
            let tries = Cell::new(0);
            let ended = revoke(flags.get(), |old| {
                tries.set(tries.get() + 1);
                if peer_comes_at == tries.get() {
                    flags.set(flags.get() | GTF_WRITING);
                } else if tries.get() < 3 {
                    // Something else changes, and the end is tried again.
                    flags.set(flags.get() ^ GTF_READONLY);
                }
                if flags.get() == old { Ok(flags.replace(0)) } else { Err(flags.get()) }
            });
            let mapped = flags.get() & GTF_WRITING != 0;
            assert_eq!(ended, !mapped, "the peer comes at {peer_comes_at}");
            assert_eq!(mapped, (1..4).contains(&peer_comes_at));
        }
    }

    #[test]
    fn the_table_grows_to_its_limit() {
        let mut grants = Vec::new();
        let refused = loop {
            match bare(1) {
                Ok(grant) => grants.push(grant),
                Err(errno) => break errno,
            }
        };
        assert_eq!(refused, Errno::ENOSPC);
        let frames = crate::host::GRANT_FRAMES;
        assert_eq!(
            grants.len(),
            frames * PAGE_SIZE / size_of::<GrantEntryV1>() - GNTTAB_NR_RESERVED_ENTRIES as usize
        );
        drop(grants);
        assert_eq!(usage().used, 0);
    }
}
