//! Grant tables, version 1: what a domain lets others do with its pages.
//!
//! A grant has two sides. The *granter* writes an entry in a page that it shares with the hypervisor; while somebody uses
//! the grant, an `Active` record pins it: which frame it was when the use began, by whom, how often. The *mapper* holds a handle
//! for each mapping in its `Maptrack`. Every pin owns a general reference on the frame, and one of type writable
//! unless it is read-only, so that a granted page is neither freed nor made a page table while it is used. The references
//! of a host mapping belong to its page-table entry (see `mem::grant_pte`), those of a device mapping to the handle.
//!
//! Entry flags are changed by one compare-and-exchange over the whole entry, so that what was checked is what is marked; while
//! a granter keeps changing its entry, uses of it fail.
//!
//! Locks: `GrantTable::entries` and `GrantTable::maptrack` are never held together, nor two domains' at once, nor across
//! a change of page tables.
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

use crate::Hypervisor;
use crate::domain::Domain;
use crate::platform::Platform;
use state::Entries;

pub(crate) use copy::CopyCache;
pub use map::DomainCache;
pub(crate) use map::{UNMAP_BATCH, UnmapBatch};

/// Why a table does not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowError {
    /// More frames than the domain may have.
    Invalid,
    /// No memory that the domain may have.
    NoMemory,
    /// The domain is being destroyed.
    NoSuchDomain,
    /// Something else waits, and the table has grown by a part.
    Again,
}

impl<P: Platform> Hypervisor<P> {
    /// Lets the grant table of `domain` have at least `frames` frames.
    ///
    /// # Errors
    /// See [`GrowError`].
    pub fn grow_grant_table(&self, domain: &Domain, frames: u32) -> Result<(), GrowError> {
        if frames > domain.config.max_grant_frames {
            return Err(GrowError::Invalid);
        }
        loop {
            if domain.grants.entries.lock().frame_count() >= frames {
                return Ok(());
            }
            if domain.is_dying() {
                return Err(GrowError::NoSuchDomain);
            }
            if !self.may_spend(Entries::FRAME_BYTES) {
                return Err(GrowError::NoMemory);
            }
            let mfn = self.alloc_zeroed().ok_or(GrowError::NoMemory)?;
            self.share_with_guest(mfn, domain.id, false);
            if !domain.grants.entries.lock().add_frame(mfn, self.platform.shared(mfn)) {
                self.unshare(mfn);
                return Err(GrowError::NoMemory);
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
        domain.grants.entries.lock().frame(index).ok_or(GrowError::Invalid)
    }

    /// Takes the table's frames back from a domain that is being destroyed. Grants that others still use stay pinned.
    /// `false`: something else waits, and some are left.
    pub fn release_grant_table(&self, domain: &Domain) -> bool {
        loop {
            let taken = domain.grants.entries.lock().take_frame();
            let Some(mfn) = taken else { return true };
            self.unshare(mfn);
            if self.platform.work_pending() {
                return false;
            }
        }
    }
}
