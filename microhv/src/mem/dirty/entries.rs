//! Level 1 entries of a tracked domain.
//!
//! A kernel's entry ([`pte::GUEST_KERNEL`]) tells by D that it was written through; a pass over the tables clears D. Of a user's entry D
//! is the guest's own: such an entry loses RW and gains [`pte::MARK`] while its frame is clean in the present generation. A marked
//! entry keeps its reference of type writable.

use core::sync::atomic::{AtomicU64, Ordering};

use ring_abi::types::Mfn;

use super::super::session::{FrameOwner, Mm};
use super::super::{MemError, Update};
use crate::frames::info::{FrameInfo, TypeWord};
use crate::frames::pte::{self, A, D, GUEST_KERNEL, MARK, P, Pte, RW};
use crate::platform::{GROUP, Platform};

/// Changes an entry that processors may change meanwhile. The entry as it was.
fn change(cell: &AtomicU64, new: impl Fn(u64) -> u64) -> Pte {
    let changed = cell.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| Some(new(now)));
    Pte::new(changed.unwrap_or_default())
}

impl<P: Platform> Mm<'_, P> {
    /// Goes over a table that was not tracked: what it has of [`MARK`] is the guest's.
    #[cold]
    #[inline(never)]
    pub(in crate::mem) fn begin_tracking(&mut self, table: Mfn) {
        let begins = self.dom.mm.tracking.has_begun();
        for cell in self.hv.platform.table(table) {
            let entry = Pte::load(cell);
            if !entry.is_present() {
                continue;
            }
            if entry.has(MARK) {
                change(cell, |now| now & !MARK);
                self.note_copy(entry);
            }
            if !entry.has(RW) || !begins {
                continue;
            }
            if entry.has(GUEST_KERNEL) {
                // Only the guest's word says that it was written through, or this domain's tracking has just begun.
                change(cell, |now| now & !D);
                self.owe_flush();
            } else if let Some(info) = self.own_frame(entry.frame()) {
                if info.load_kind().has(TypeWord::COPIED) {
                    self.mark_frame(entry.frame());
                } else {
                    protect(cell, info, self.dom.mm.tracking.clean());
                }
                self.owe_flush();
            }
        }
        if begins {
            self.hv.frames.held(table).set_flags(TypeWord::TRACKED);
        }
    }

    /// Makes a table what it would be without tracking: nobody walks it any more, or tracking ends.
    #[cold]
    #[inline(never)]
    pub(in crate::mem) fn end_tracking(&mut self, table: Mfn) {
        for cell in self.hv.platform.table(table) {
            let entry = Pte::load(cell);
            if entry.is_present() && entry.has(MARK) {
                self.end_mark(cell, entry);
            } else if entry.is_written_by_kernel() {
                self.mark_frame(entry.frame());
            }
        }
        self.hv.frames.held(table).clear_flags(TypeWord::TRACKED);
    }

    /// A marked entry has RW, as its guest knows, or has none if the guest may have a copy.
    fn end_mark(&self, cell: &AtomicU64, entry: Pte) {
        match self.own_frame(entry.frame()) {
            Some(info) if info.load_kind().has(TypeWord::COPIED) => {
                change(cell, |now| now & !MARK);
                info.put_type();
            }
            _ => {
                change(cell, |now| Pte::new(now).unmarked().raw());
            }
        }
    }

    /// Goes over a table in a round: what the kernel wrote gets the flags `dirty` cleared. With `only_look` nothing else
    /// changes.
    pub(super) fn pass(&mut self, table: Mfn, dirty: u64, only_look: bool) {
        for cells in self.hv.platform.table(table).as_chunks::<GROUP>().0 {
            // Most groups of entries have no RW at all.
            let any = cells.iter().fold(0, |any, cell| any | cell.load(Ordering::Relaxed));
            if any & RW != 0 {
                self.pass_group(cells, dirty, only_look);
            }
        }
    }

    #[inline(always)]
    fn pass_group(&mut self, cells: &[AtomicU64; GROUP], dirty: u64, only_look: bool) {
        let clean = self.dom.mm.tracking.clean();
        for cell in cells {
            let raw = cell.load(Ordering::Relaxed);
            // A kernel's entry through which nothing was written, or no RW.
            if raw & (D | GUEST_KERNEL) == GUEST_KERNEL || raw & (P | RW) != P | RW {
                continue;
            }
            let entry = Pte::new(raw);
            let Some(info) = self.own_frame(entry.frame()) else { continue };
            if entry.has(GUEST_KERNEL) {
                info.clear_flags(dirty);
                if only_look {
                    continue;
                }
                cell.fetch_and(!D, Ordering::AcqRel);
            } else if only_look || !info.load_kind().has(clean) {
                continue;
            } else if info.load_kind().has(TypeWord::COPIED) {
                cell.fetch_and(!RW, Ordering::AcqRel);
                info.put_type();
            } else {
                protect(cell, info, clean);
            }
            self.owe_flush();
        }
    }

    /// Takes RW from a table's user entries of frames that the guest copied entries of.
    pub(super) fn pass_copied(&mut self, table: Mfn) {
        for cell in self.hv.platform.table(table) {
            let entry = Pte::load(cell);
            if !entry.is_present() || !entry.has(RW) || entry.has(GUEST_KERNEL) {
                continue;
            }
            let Some(info) = self.own_frame(entry.frame()) else { continue };
            if info.load_kind().has(TypeWord::COPIED) {
                cell.fetch_and(!RW, Ordering::AcqRel);
                info.put_type();
                self.owe_flush();
            }
        }
    }

    /// The guest wrote an entry that has [`MARK`], so it copied an entry that it took for read-only: its copy-on-write logic is
    /// right about the frame from now on, and the hypervisor gives no entry of it RW back. If RW was given back since the copy, the
    /// entry that has it is searched for.
    #[cold]
    fn note_copy(&mut self, entry: Pte) {
        let Some(page) = self.hv.get_page(entry.frame(), self.dom) else { return };
        let Some(info) = self.own_frame(page.mfn()) else { return };
        let before = info.set_flags(TypeWord::COPIED);
        let tracking = &self.dom.mm.tracking;
        let may_be_written = !tracking.has_begun() || !before.has(tracking.clean());
        if may_be_written && !before.has(TypeWord::COPIED) {
            self.tables.begin_revoke();
        }
    }

    /// What an entry stood for that was just taken out of a tracked table. What the kernel wrote through it is marked.
    pub(in crate::mem) fn left(&self, entry: Pte) -> Pte {
        if entry.is_written_by_kernel() {
            self.mark_frame(entry.frame());
        }
        entry.unmarked()
    }

    /// [`Mm::update_leaf`] where a domain is tracked.
    #[cold]
    #[inline(never)]
    pub(in crate::mem) fn update_tracked_leaf(
        &mut self,
        table: Mfn,
        slot: usize,
        new: Pte,
        owner: FrameOwner<'_>,
        update: Update,
    ) -> Result<(), MemError> {
        let old = self.expected(table, slot, update)?;
        let is_tracked = self.is_tracked(table);
        let held = if is_tracked { old.unmarked() } else { old };
        // A kernel that changes a marked entry in its place has no copy of it.
        let is_in_place = old.has(MARK) && (old.raw() ^ new.raw()) & pte::FRAME == 0;
        let is_copy = new.is_present() && new.has(MARK) && !(is_tracked && is_in_place);
        let new = Pte::new(new.raw() & if new.is_present() { !MARK } else { u64::MAX });
        let keeps = new.is_present() && held.is_present() && held.differs_harmlessly(new);
        let taken = if keeps {
            new
        } else if new.is_present() {
            self.get_leaf(new, owner)?
        } else if self.hv.frames.may_be_absent(new) {
            new
        } else {
            return Err(MemError::Invalid);
        };
        let stored = match taken {
            absent if !absent.is_present() => absent,
            plain if !is_tracked => plain.stored(1),
            entry => self.tracked(entry.stored(1)),
        };
        let gone = self.replace(table, slot, stored, update).inspect_err(|_| {
            if !keeps && taken.is_present() {
                self.put_leaf(taken);
            }
        })?;
        if is_copy {
            self.note_copy(new);
        }
        self.mark_frame(table);
        if gone.is_present() {
            let gone = if is_tracked { self.left(gone) } else { gone };
            if !keeps {
                self.others_are_clean = false;
                self.put_leaf(gone);
            }
        }
        Ok(())
    }

    /// A new entry as a tracked table is to have it.
    fn tracked(&mut self, entry: Pte) -> Pte {
        if !entry.has(RW) {
            return entry;
        }
        if entry.has(GUEST_KERNEL) {
            return Pte::new(entry.raw() & !D);
        }
        let Some(info) = self.own_frame(entry.frame()) else { return entry };
        let kind = info.load_kind();
        if !kind.has(self.dom.mm.tracking.clean()) {
            entry
        } else if kind.has(TypeWord::COPIED) {
            self.mark_frame(entry.frame());
            entry
        } else {
            Pte::new(entry.raw() & !RW | MARK)
        }
    }

    /// Puts `new` into a slot. What was there to the last, with the bits that processors set.
    fn replace(&self, table: Mfn, slot: usize, new: Pte, update: Update) -> Result<Pte, MemError> {
        let cell = &self.hv.platform.table(table)[slot];
        match update {
            Update::Plain => Ok(Pte::new(cell.swap(new.raw(), Ordering::AcqRel))),
            Update::PreserveAccessedDirty => {
                let kept = if new.has(GUEST_KERNEL) { A } else { A | D };
                Ok(change(cell, |now| new.raw() | now & kept))
            }
            Update::CompareExchange(expected) => {
                let (expected, new) = (expected.raw(), new.raw());
                let seen = cell.compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire);
                seen.map(Pte::new).map_err(|_| MemError::Mismatch)
            }
        }
    }
}

/// Takes RW from a user's entry if its frame is clean: the next write is a fault.
fn protect(cell: &AtomicU64, info: &FrameInfo, clean: u64) {
    if info.load_kind().has(clean) {
        change(cell, |now| now & !pte::RW | MARK);
    }
}
