//! What a domain holds of grants: its table, and its handles on the grants of other domains. Nothing here knows a domain.

mod active;
mod entries;
mod maptrack;
mod pin;
mod words;

use alloc::sync::Arc;

use ring_abi::types::{GrantRef, Mfn};

use crate::sync::Mutex;
pub(super) use entries::Entries;
use entries::Granted;
pub(crate) use entries::{FRAMES_PER_STATUS, Part, Version};
pub(super) use maptrack::{Handles, HeldHandle, Mapping, Maptrack, Uses};
pub(super) use pin::EntryPin;
pub(super) use words::{Marked, Shape};

/// What a grant is used for; each is pinned on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UseKind {
    /// A page-table entry, or a copy in progress.
    Host = 1,
    /// A device's DMA.
    Device = 2,
}

/// Reading, or writing too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Why a grant operation failed: `GNTST_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantError {
    /// The entry does not permit the use, is in use by another domain or too often, or keeps changing.
    General,
    /// The page table has no such entry, or maps something else there.
    NotMapped,
    /// No such domain.
    BadDomain,
    /// No such grant reference, or flags that make no sense.
    BadGrantRef,
    /// No such handle.
    BadHandle,
    /// No handle is left.
    NoDeviceSpace,
    /// Another domain's page is named by its frame.
    PermissionDenied,
    /// The frame is not the granter's, or in use as something else.
    BadPage,
    /// A copy crosses a page.
    BadCopyArg,
    /// The entry is in use now.
    Again,
    /// The entry lends something else than a page: a part of one, or what another domain lends.
    NotWhole,
}

/// Why a table does not grow, or change its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowError {
    /// More frames than the domain may have.
    Invalid,
    /// No memory that the domain may have.
    NoMemory,
    /// The domain is being destroyed.
    NoSuchDomain,
    /// Something else waits, and a part is done.
    Again,
    /// Entries are in use, or status words are mapped.
    Busy,
    /// The other version cannot say what an entry lends.
    Range,
}

/// The grant table of one domain, and its mappings of others' grants.
#[derive(Debug)]
pub struct GrantTable {
    /// A mapping holds this part alone of the granter, so that nothing else of a dead domain waits for those that still map
    /// its pages.
    pub(super) entries: Arc<Granted>,
    pub(super) maptrack: Handles,
}

/// The records of a domain that is dead, to be freed in pieces. No grant of it can be used anew, since its table's frames
/// are gone, and a use that ends needs no record.
#[derive(Debug)]
pub(crate) struct GrantRecords {
    maptrack: Maptrack,
    entries: Arc<Granted>,
}

impl GrantRecords {
    /// Frees a piece. `false`: no piece is left.
    pub(crate) fn shrink(&mut self) -> bool {
        self.maptrack.shrink() || self.entries.lock().shrink()
    }
}

/// What a grant table holds, for leak checks.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GrantFigures {
    /// Frames of the table.
    pub frames: u32,
    /// Own entries in use by anyone.
    pub pinned: u32,
    /// Handles on others' grants.
    pub handles: u32,
}

impl GrantTable {
    /// An empty table, with at most `max_maptrack_frames` of mappings.
    pub fn new(max_maptrack_frames: u32) -> Self {
        Self { entries: entries::granted(), maptrack: Mutex::new(Maptrack::new(max_maptrack_frames)) }
    }

    /// Exchanges two entries that nobody uses.
    ///
    /// # Errors
    /// `BadGrantRef`: no such entry; `Again`: in use.
    pub fn swap(&self, a: GrantRef, b: GrantRef) -> Result<(), GrantError> {
        self.entries.lock().swap(a, b)
    }

    /// Takes the records of a domain that is dead.
    pub(crate) fn take_records(&mut self) -> GrantRecords {
        let maptrack = core::mem::replace(self.maptrack.get_mut(), Maptrack::new(0));
        GrantRecords { maptrack, entries: self.entries.clone() }
    }

    /// Frames that the table has.
    pub fn frame_count(&self) -> u32 {
        self.entries.lock().frame_count()
    }

    /// The version of the table.
    pub(crate) fn version(&self) -> Version {
        self.entries.lock().version()
    }

    /// Frames of the table from `first` on, into `to`: how many.
    pub(crate) fn frames_from(&self, part: Part, first: u32, to: &mut [u64]) -> usize {
        self.entries.lock().frames_from(part, first, to)
    }

    /// What the table holds.
    #[cfg(test)]
    pub(crate) fn figures(&self) -> GrantFigures {
        let (frames, pinned) = {
            let entries = self.entries.lock();
            (entries.frame_count(), entries.pinned())
        };
        GrantFigures { frames, pinned, handles: self.maptrack.lock().in_use() }
    }

    /// Tells `visit` of each frame that a device may use through this domain's mappings, and whether for writing: a
    /// general reference is held for each, and one of type writable for writing.
    pub(crate) fn visit_device_frames(&self, mut visit: impl FnMut(Mfn, bool)) {
        for (frame, access) in self.maptrack.lock().frames(UseKind::Device) {
            visit(frame, access == Access::Write);
        }
    }

    /// Tells `visit` of each frame that is in use for writing by an entry in the `n`-th frame of the table. `false`: there is no such
    /// frame.
    pub(crate) fn visit_written(&self, n: usize, visit: impl FnMut(Mfn)) -> bool {
        self.entries.lock().visit_written(n, visit)
    }

    /// The first frame of status words, in version 2.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn status_frame(&self) -> Option<Mfn> {
        self.entries.lock().frame(Part::Status, 0)
    }

    /// Whether the domain holds a handle by which it mapped the frame with that access, as its owner still sees.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn may_remember(&self, frame: Mfn, writable: bool) -> bool {
        let maptrack = self.maptrack.lock();
        maptrack
            .frames(UseKind::Host)
            .any(|(mapped, access)| mapped == frame && (!writable || access == Access::Write))
    }
}
