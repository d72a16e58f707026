//! Grant tables, version 1: what a domain lets others do with its pages.
//!
//! A grant has two sides. The *granter* writes an entry in a page that it shares with the hypervisor; while somebody uses
//! the grant, [`Active`] pins it: which frame it was when the use began, by whom, how often. The *mapper* holds a handle
//! for each mapping in its [`Maptrack`]. Every pin owns a general reference on the frame, and one of type writable
//! unless it is read-only, so that a granted page is neither freed nor made a page table while it is used. The references
//! of a host mapping belong to its page-table entry (see `mem::grant_pte`), those of a device mapping to the handle.
//!
//! Entry flags are changed by one compare-and-exchange over the whole entry, so that what was checked is what is marked; a granter that keeps changing its entry gets an error after [`ENTRY_TRIES`].
//!
//! Locks: `GrantTable::entries` and `GrantTable::maptrack` are never held together, nor two domains' at once, nor across
//! a change of page tables.
//!
//! ABI: `xen/include/public/grant_table.h`.

mod copy;
mod entries;
mod map;
mod maptrack;
#[cfg(test)]
mod tests;

use alloc::sync::Arc;

use crate::Hypervisor;
use crate::domain::Domain;
use crate::error::HypercallError;
use crate::platform::Platform;
use crate::sync::{Mutex, rank};
use entries::Entries;
use maptrack::Maptrack;
use ring_abi::grant as abi;
use ring_abi::types::Mfn;

pub(crate) use copy::CopyCache;
pub use entries::{Access, Use};
pub use map::DomainCache;
pub(crate) use map::{UNMAP_BATCH, UnmapBatch};

/// Entries in a frame of the table.
pub const ENTRIES_PER_FRAME: u32 = 4096 / 8;
/// Handles that one "maptrack frame" of the toolstack's limit stands for (a 16-byte record each in the reference).
const HANDLES_PER_FRAME: u32 = 4096 / 16;
/// How often the hypervisor tries to mark an entry that its domain changes meanwhile.
pub const ENTRY_TRIES: u32 = 5;

/// Why a grant operation failed: `GNTST_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantError {
    /// The entry does not say so, is in use otherwise, or the page table has no such entry.
    General,
    /// No such domain.
    BadDomain,
    /// No such grant reference, or flags that make no sense.
    BadGrantRef,
    /// No such handle.
    BadHandle,
    /// No handle is left.
    NoDeviceSpace,
    /// Only the own frames can be named by frame.
    PermissionDenied,
    /// The frame is not the granter's, or in use as something else.
    BadPage,
    /// A copy crosses a page.
    BadCopyArg,
    /// The entry is in use now.
    Again,
}

impl GrantError {
    /// The value of a `status` field.
    pub const fn status(self) -> i16 {
        match self {
            Self::General => abi::GNTST_GENERAL_ERROR,
            Self::BadDomain => abi::GNTST_BAD_DOMAIN,
            Self::BadGrantRef => abi::GNTST_BAD_GNTREF,
            Self::BadHandle => abi::GNTST_BAD_HANDLE,
            Self::NoDeviceSpace => abi::GNTST_NO_DEVICE_SPACE,
            Self::PermissionDenied => abi::GNTST_PERMISSION_DENIED,
            Self::BadPage => abi::GNTST_BAD_PAGE,
            Self::BadCopyArg => abi::GNTST_BAD_COPY_ARG,
            Self::Again => abi::GNTST_EAGAIN,
        }
    }
}

/// The `status` of an operation.
pub fn status_of<T>(result: &Result<T, GrantError>) -> i16 {
    match result {
        Ok(_) => abi::GNTST_OKAY,
        Err(error) => error.status(),
    }
}

/// The grant table of one domain, and its mappings of others' grants.
#[derive(Debug)]
pub struct GrantTable {
    /// A mapping holds this part alone of the granter, so that nothing else of a dead domain waits for those that still map
    /// its pages.
    entries: Arc<Granted>,
    maptrack: Mutex<rank::Maptrack, Maptrack>,
    max_frames: u32,
}

/// The granter's side, as mappings refer to it.
type Granted = Mutex<rank::GrantEntries, Entries>;

/// The records of a domain that is dead, to be freed in pieces. No grant of it can be used anew, since its table's frames
/// are gone, and a use that ends needs no record.
#[derive(Debug)]
pub(crate) struct GrantRecords {
    maptrack: Maptrack,
    entries: Arc<Granted>,
}

impl GrantRecords {
    /// Frees a piece. `false`: there is none.
    pub(crate) fn shrink(&mut self) -> bool {
        self.maptrack.shrink() || self.entries.lock().shrink()
    }
}

/// What a grant table holds, for debug keys and leak checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantFigures {
    /// Frames of the table.
    pub frames: u32,
    /// Own entries in use by anyone.
    pub pinned: u32,
    /// Handles on others' grants.
    pub handles: u32,
}

impl GrantTable {
    /// An empty table that may grow to `max_frames`, with at most `max_maptrack_frames` of mappings.
    pub fn new(max_frames: u32, max_maptrack_frames: u32) -> Self {
        Self {
            entries: Arc::new(Mutex::new(Entries::new())),
            maptrack: Mutex::new(Maptrack::new(max_maptrack_frames.saturating_mul(HANDLES_PER_FRAME))),
            max_frames,
        }
    }

    /// Exchanges two entries that nobody uses.
    ///
    /// # Errors
    /// `BadGrantRef`: no such entry; `General`: in use.
    pub fn swap(&self, a: u32, b: u32) -> Result<(), GrantError> {
        self.entries.lock().swap(a, b)
    }

    /// Takes the records of a domain that is dead.
    pub(crate) fn take_records(&mut self) -> GrantRecords {
        let maptrack = core::mem::replace(self.maptrack.get_mut(), Maptrack::new(0));
        GrantRecords { maptrack, entries: self.entries.clone() }
    }

    /// Frames that the table may have.
    pub const fn max_frames(&self) -> u32 {
        self.max_frames
    }

    /// Frames that the table has.
    pub fn frame_count(&self) -> u32 {
        self.entries.lock().frame_count()
    }

    /// What it holds.
    pub fn figures(&self) -> GrantFigures {
        let (frames, pinned) = {
            let entries = self.entries.lock();
            (entries.frame_count(), entries.pinned())
        };
        GrantFigures { frames, pinned, handles: self.maptrack.lock().in_use() }
    }
}

impl GrantTable {
    /// Tells `visit` of each frame that a device may use through this domain's mappings, and whether for writing: a
    /// general reference is held for each, and one of type writable for writing.
    pub(crate) fn visit_device_frames(&self, mut visit: impl FnMut(Mfn, bool)) {
        for (frame, access) in self.maptrack.lock().device_frames() {
            visit(frame, access == Access::Write);
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl GrantTable {
    /// Whether the domain holds a handle by which it mapped the frame with that access, as its owner still sees.
    pub(crate) fn may_remember(&self, frame: Mfn, writable: bool) -> bool {
        let maptrack = self.maptrack.lock();
        maptrack
            .host_frames()
            .any(|(mapped, access)| mapped == frame && (!writable || access == Access::Write))
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Lets the grant table of `domain` have at least `frames` frames.
    ///
    /// # Errors
    /// `Invalid`: more than it may have. `NoMemory`. `NoSuchDomain`: it is being destroyed. `Again`: something else waits,
    /// and the table has grown by a part.
    pub fn grow_grant_table(&self, domain: &Domain, frames: u32) -> Result<(), HypercallError> {
        if frames > domain.grants.max_frames {
            return Err(HypercallError::Invalid);
        }
        loop {
            if domain.grants.entries.lock().frame_count() >= frames {
                return Ok(());
            }
            if domain.is_dying() {
                return Err(HypercallError::NoSuchDomain);
            }
            if !self.may_spend(Entries::FRAME_BYTES) {
                return Err(HypercallError::NoMemory);
            }
            let mfn = self.alloc_zeroed().ok_or(HypercallError::NoMemory)?;
            self.share_with_guest(mfn, domain.id, false);
            if !domain.grants.entries.lock().add_frame(mfn, self.platform.shared(mfn)) {
                self.unshare(mfn);
                return Err(HypercallError::NoMemory);
            }
            if self.platform.work_pending() {
                return Err(HypercallError::Again);
            }
        }
    }

    /// Frame `index` of the grant table of `domain`, which grows to have it.
    ///
    /// # Errors
    /// As [`Hypervisor::grow_grant_table`].
    pub fn grant_table_frame(&self, domain: &Domain, index: u32) -> Result<Mfn, HypercallError> {
        self.grow_grant_table(domain, index.checked_add(1).ok_or(HypercallError::Invalid)?)?;
        domain.grants.entries.lock().frame(index).ok_or(HypercallError::Invalid)
    }

    /// Frames of the grant table of `domain` from `first` on, into `to`: how many.
    pub(crate) fn grant_table_frames(&self, domain: &Domain, first: u32, to: &mut [u64]) -> usize {
        domain.grants.entries.lock().frames_from(first, to)
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
