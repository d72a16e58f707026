//! What a domain holds of grants: its table, and its handles on the grants of other domains. Nothing here knows a domain.

mod entries;
mod maptrack;

use alloc::sync::Arc;

use ring_abi::types::Mfn;

use crate::sync::{Mutex, rank};
pub use entries::{Access, Use};
pub(super) use entries::{Entries, unpin_grant};
pub(super) use maptrack::{Mapping, Maptrack, Uses};

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

/// The grant table of one domain, and its mappings of others' grants.
#[derive(Debug)]
pub struct GrantTable {
    /// A mapping holds this part alone of the granter, so that nothing else of a dead domain waits for those that still map
    /// its pages.
    pub(super) entries: Arc<Granted>,
    pub(super) maptrack: Mutex<rank::Maptrack, Maptrack>,
    pub(super) max_frames: u32,
}

/// The granter's side, as mappings refer to it.
pub(super) type Granted = Mutex<rank::GrantEntries, Entries>;

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
