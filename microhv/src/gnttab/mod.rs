//! Grant tables: what a domain lets others do with its pages.
//!
//! A grant has two sides. The *granter* writes an entry in a page that it shares with the hypervisor; while a domain
//! uses the grant, an `Active` record pins it: which frame it was when the use began, by whom, how often. The
//! *mapper* holds a handle for each mapping in its `Maptrack`. Every pin owns a general reference on the frame, and
//! one of type writable unless it is read-only, so that a granted page is neither freed nor made a page table while
//! it is used. The references of a host mapping belong to its page-table entry (see `mem::grant_pte`), those of a
//! device mapping to the handle.
//!
//! An entry has one of two formats, its table's *version* (`state::words`). What was checked is what is marked, and while a
//! granter keeps changing its entry, uses of it fail. Entries of version 2 can lend a part of a page, or what another domain
//! lends: to copies alone.
//!
//! Locks: `GrantTable::entries` and `GrantTable::maptrack` are never held together, nor across a change of page tables. A
//! few copies of a batch hold two domains' entries, taken in the order of their ids.
//!
//! ABI: `xen/include/public/grant_table.h`.

mod copy;
mod map;
pub mod state;
#[cfg(test)]
mod tests;
mod uses;

#[cfg(any(test, feature = "testing"))]
use ring_abi::types::Mfn;
use ring_abi::types::Pfn;

use crate::Hypervisor;
use crate::domain::Domain;
use crate::platform::Platform;
use state::{Entries, Version};

pub(crate) use copy::CopyCache;
pub use map::DomainCache;
pub(crate) use map::{UNMAP_BATCH, UnmapBatch};
pub use state::GrowError;

impl<P: Platform> Hypervisor<P> {
    /// Lets the grant table of `domain` have at least `frames` frames, and frames of status words for them if its version
    /// has those.
    ///
    /// # Errors
    /// See [`GrowError`].
    pub fn grow_grant_table(&self, domain: &Domain, frames: u32) -> Result<(), GrowError> {
        self.grow_for_version(domain, frames, Version::One)
    }

    /// Does the same as [`Hypervisor::grow_grant_table`] for a table that changes to `version`.
    fn grow_for_version(&self, domain: &Domain, frames: u32, version: Version) -> Result<(), GrowError> {
        if frames > domain.config.max_grant_frames {
            return Err(GrowError::Invalid);
        }
        loop {
            let missing = domain.grants.entries.lock().missing(frames, version);
            let Some(part) = missing else { return Ok(()) };
            if domain.is_dying() {
                return Err(GrowError::NoSuchDomain);
            }
            if !self.may_spend(Entries::FRAME_BYTES) {
                return Err(GrowError::NoMemory);
            }
            let mfn = self.alloc_zeroed().ok_or(GrowError::NoMemory)?;
            self.share_with_guest(mfn, domain.id, false);
            let mut entries = domain.grants.entries.lock();
            // Another vCPU's call may have added the frame, or ended the domain.
            let is_wanted = !domain.is_dying() && entries.missing(frames, version) == Some(part);
            let is_added = is_wanted && entries.add_frame(part, (mfn, self.platform.shared(mfn)));
            drop(entries);
            if !is_added {
                self.unshare(mfn);
            }
            if is_wanted && !is_added {
                return Err(GrowError::NoMemory);
            }
            if self.platform.work_pending() {
                return Err(GrowError::Again);
            }
        }
    }

    /// Makes `version` the one of the grant table of `domain`.
    ///
    /// # Errors
    /// See [`GrowError`]. `Again`: the same call goes on.
    pub(crate) fn set_grant_version(&self, domain: &Domain, version: Version) -> Result<(), GrowError> {
        let entries = &domain.grants.entries;
        self.finish_grant_version(domain)?;
        if entries.lock().version() != version {
            if !entries.lock().is_idle() {
                return Err(GrowError::Busy);
            }
            self.grow_for_version(domain, 0, version)?;
            entries.lock().switch(version, |status| {
                let mut frames = status.iter().map(|(mfn, _)| self.frames.held(*mfn));
                let mapped = frames.position(|frame| !frame.steal_lent(domain.id));
                let taken = mapped.map(|taken| &status[..taken]);
                for (mfn, _) in taken.into_iter().flatten() {
                    self.frames.held(*mfn).lend_again(domain.id);
                }
                taken.is_none()
            })?;
        }
        self.finish_grant_version(domain)
    }

    /// Does what a change of version left to be done: frees frames, and empties others. `Again`: something else waits.
    fn finish_grant_version(&self, domain: &Domain) -> Result<(), GrowError> {
        loop {
            let piece = domain.grants.entries.lock().finish_some();
            let Some(freed) = piece else { return Ok(()) };
            if let Some(mfn) = freed {
                self.platform.set_m2p(mfn, Pfn::INVALID);
                self.frames.release(mfn, 0);
            }
            if self.platform.work_pending() {
                return Err(GrowError::Again);
            }
        }
    }

    /// Frame `index` of the grant table of `domain`, which grows to have it.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn grant_table_frame(&self, domain: &Domain, index: u32) -> Result<Mfn, GrowError> {
        self.grow_grant_table(domain, index.checked_add(1).ok_or(GrowError::Invalid)?)?;
        domain.grants.entries.lock().frame(state::Part::Entries, index).ok_or(GrowError::Invalid)
    }

    /// Takes the table's frames back from a domain that is being destroyed. Grants that others still use stay pinned.
    /// `false`: something else waits, and some are left.
    pub fn release_grant_table(&self, domain: &Domain) -> bool {
        loop {
            let taken = domain.grants.entries.lock().take_frame();
            match taken {
                Some((mfn, true)) => self.unshare(mfn),
                Some((mfn, false)) => {
                    self.platform.set_m2p(mfn, Pfn::INVALID);
                    self.frames.release(mfn, 0);
                }
                None => return true,
            }
            if self.platform.work_pending() {
                return false;
            }
        }
    }
}
