//! What a domain holds of memory: counts of what it owns, and the state of its page tables. Nothing here knows a domain.

pub(crate) mod tracking;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use ring_abi::memory::E820Entry;
use ring_abi::types::Mfn;

use self::tracking::Tracking;
use crate::frames::regions::{REGION_FRAMES, Regions};
use crate::sync::{Mutex, rank};

/// Most tables and most pages that a session keeps until the flush that it owes. Then the session pays early.
const GONE_TABLES: usize = 8;
const GONE_PAGES: usize = 32;

/// Most interrupted tables. An operation that gives a table back leaves one table of each level from 4 to 1. No
/// operation gives back more than two tables before it looks whether one was left (`Mm::is_interrupted`), but for those that
/// were kept until a flush: of these the others are left as they are, one note each. Tables of the lowest level are finished
/// first, so that their number does not grow (`Mm::drain`).
/// One more stands for a search of `Mm::revoke`.
const DEFERRED: usize = 8 + GONE_TABLES + 1;

/// What the page-table lock of a domain guards beside the tables themselves.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// Tables whose invalidation was interrupted. Each of these tables is partial, so the table holds its own two
    /// references. Every operation that gives tables back first finishes these tables.
    pub(super) deferred: ArrayVec<Mfn, DEFERRED>,
    /// Tables whose entry is gone from their parent, and to which CPUs may still know the way: each holds the two references
    /// of that entry until the flush. There is none between sessions.
    pub(super) gone_tables: ArrayVec<Mfn, GONE_TABLES>,
    /// Others' pages whose entry for writing is gone, likewise.
    pub(super) gone_pages: ArrayVec<Mfn, GONE_PAGES>,
    /// Pages of LDTs in the windows of the domain's vCPUs.
    pub(super) ldt_pages: u32,
    /// Where the search for entries goes on that are to lose RW, since the guest copied them (`Mm::revoke`).
    pub(super) revoke_at: Option<u64>,
}

impl Tables {
    /// In `deferred`: `revoke_at` says what is left.
    const REVOKE: Mfn = Mfn::INVALID;

    /// The search of `Mm::revoke` is to begin anew, before the next operation.
    pub(super) fn begin_revoke(&mut self) {
        // A list that is full has the next operation finish what is left all the same.
        if self.revoke_at.replace(0).is_none() && !self.deferred.is_full() {
            self.deferred.push(Self::REVOKE);
        }
    }

    /// The search is over.
    pub(super) fn end_revoke(&mut self) {
        self.revoke_at = None;
        self.deferred.retain(|mfn| *mfn != Self::REVOKE);
    }
}

/// What a call of a domain has in work: extents that the domain will get and that have no owner yet, and frames that
/// the domain gave in exchange and that no longer have an owner.
#[derive(Debug, Default)]
pub(super) struct Cleaning {
    /// Not released yet.
    pub(super) given: Vec<Mfn>,
    pub(super) order: u8,
    pub(super) address_bits: u8,
    pub(super) extents: Vec<Mfn>,
    /// Number of zeroed frames, counted over all extents in their order.
    pub(super) zeroed: u64,
    /// The extents are for no call any more, and not released yet.
    pub(super) unwanted: bool,
}

/// Which frames a domain owns, as counts per region.
#[derive(Debug, Default)]
struct Pages {
    regions: Regions,
    /// Teardown has begun: nothing is added.
    closed: bool,
}

/// The memory of one domain. A new domain has no memory and may have none.
#[derive(Debug, Default)]
pub struct DomainMm {
    /// Held by whatever reads or changes the types or entries of the domain's page tables.
    pub(super) tables: Mutex<rank::PageTables, Tables>,
    pages: Mutex<rank::OwnedPages, Pages>,
    total: AtomicU64,
    max: AtomicU64,
    /// Number of pages that the domain claimed and does not own yet; counted in `FrameTable::claimed`.
    pub(super) claim: Mutex<rank::Claim, u64>,
    /// Extents that the domain is to get and of which a part is zeroed.
    pub(super) cleaning: Mutex<rank::Cleaning, Cleaning>,
    /// The memory map that the toolstack gave the domain (`XENMEM_set_memory_map`).
    pub(crate) memory_map: Mutex<rank::MemoryMap, Vec<E820Entry>>,
    /// Which frames were written.
    pub(crate) tracking: Tracking,
    /// Where teardown goes on: the region.
    pub(crate) teardown_at: AtomicU32,
}

impl DomainMm {
    /// Number of pages that the domain owns.
    pub fn tot_pages(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Number of pages that the domain may own.
    pub fn max_pages(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }

    /// Sets how many pages the domain may own. Pages that the domain owns beyond stay.
    pub fn set_max_pages(&self, pages: u64) {
        self.max.store(pages, Ordering::Relaxed);
    }

    /// Counts `count` frames from each of `extents` on as owned, unless that were more than it may own (where that is
    /// `limited`) or its teardown has begun, and runs `assign` for each while no teardown can begin.
    pub(super) fn add(
        &self,
        extents: &[Mfn],
        count: u64,
        limited: bool,
        mut assign: impl FnMut(Mfn),
    ) -> bool {
        let mut pages = self.pages.lock();
        let total = self.total.load(Ordering::Relaxed) + extents.len() as u64 * count;
        if pages.closed || (limited && total > self.max_pages()) {
            return false;
        }
        self.total.store(total, Ordering::Relaxed);
        // Frames that follow each other mostly lie in one region.
        let mut region = extents.first().map_or(0, |first| first.raw() / REGION_FRAMES);
        let mut here = 0;
        for mfn in extents.iter().flat_map(|first| (0..count).map(|n| first.add(n))) {
            let its = mfn.raw() / REGION_FRAMES;
            if its != region {
                pages.regions.add(region as u32, here);
                (region, here) = (its, 0);
            }
            here += 1;
            assign(mfn);
        }
        pages.regions.add(region as u32, here);
        true
    }

    pub(super) fn remove(&self, mfn: Mfn) {
        let mut pages = self.pages.lock();
        if pages.regions.remove((mfn.raw() / REGION_FRAMES) as u32) {
            self.total.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Nothing may be added any more.
    pub(crate) fn close(&self) {
        self.pages.lock().closed = true;
    }

    /// The first region from `from` on in which the domain owns frames.
    pub(crate) fn region_from(&self, from: u32) -> Option<u32> {
        self.pages.lock().regions.first_from(from)
    }
}
