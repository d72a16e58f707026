//! Changing one entry of a checked page table, and finding the entry of an address.

use core::sync::atomic::Ordering;

use ring_abi::types::{GuestVa, Mfn};

use super::MemError;
use super::session::{FrameOwner, Mm};
use crate::frames::info::PageType;
use crate::frames::pte::{self, Pte};
use crate::nospec;
use crate::platform::Platform;

/// How a new entry replaces the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// Whatever was there.
    Plain,
    /// Accessed and dirty bits that the processor has set stay.
    PreserveAccessedDirty,
    /// Only if the entry is exactly this.
    CompareExchange(Pte),
}

impl<P: Platform> Mm<'_, P> {
    /// Puts `new` into a table's slot. `old` is what the caller saw there.
    #[inline]
    fn exchange(&self, table: Mfn, slot: usize, old: Pte, new: Pte, update: Update) -> Result<(), MemError> {
        let cell = &self.hv.platform.table(table)[slot];
        match update {
            Update::Plain => {
                // The page-table lock is held: only the processor's A and D bits may differ from `old`.
                cell.store(new.raw(), Ordering::Release);
                Ok(())
            }
            Update::PreserveAccessedDirty => {
                let mut seen = old.raw();
                loop {
                    let merged = new.raw() | seen & (pte::A | pte::D);
                    match cell.compare_exchange(seen, merged, Ordering::AcqRel, Ordering::Acquire) {
                        Ok(_) => return Ok(()),
                        Err(now) => seen = now,
                    }
                }
            }
            Update::CompareExchange(expected) => {
                let (expected, new) = (expected.raw(), new.raw());
                let seen = cell.compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire);
                seen.map(|_| ()).map_err(|_| MemError::Mismatch)
            }
        }
    }

    #[inline]
    pub(super) fn expected(&self, table: Mfn, slot: usize, update: Update) -> Result<Pte, MemError> {
        let old = self.entry(table, slot);
        match update {
            Update::CompareExchange(expected) if expected != old => Err(MemError::Mismatch),
            _ => Ok(old),
        }
    }

    /// Replaces an entry of `table`, the domain's checked level 1 table, by `new`, which names a frame of `owner`.
    ///
    /// # Errors
    /// The same as of `get_leaf`; `Invalid` too: `new` is not present and names memory, on a CPU with L1TF; and `Mismatch`: the
    /// entry is not what the caller saw.
    #[inline(always)]
    pub(crate) fn update_leaf(
        &mut self,
        table: Mfn,
        slot: usize,
        new: Pte,
        owner: FrameOwner<'_>,
        update: Update,
    ) -> Result<(), MemError> {
        if self.is_of_tracked() {
            self.update_tracked_leaf(table, slot, new, owner, update)
        } else {
            self.update_plain_leaf(table, slot, new, owner, update)
        }
    }

    /// [`Mm::update_leaf`] where no entry of the domain's is marked.
    #[inline(always)]
    fn update_plain_leaf(
        &mut self,
        table: Mfn,
        slot: usize,
        new: Pte,
        owner: FrameOwner<'_>,
        update: Update,
    ) -> Result<(), MemError> {
        let old = self.expected(table, slot, update)?;
        if !new.is_present() {
            if !self.hv.frames.may_be_absent(new) {
                return Err(MemError::Invalid);
            }
            self.exchange(table, slot, old, new, update)?;
        } else if old.is_present() && old.differs_harmlessly(new) {
            return self.exchange(table, slot, old, new.stored(1), update);
        } else {
            let taken = self.get_leaf(new, owner)?;
            let done = self.exchange(table, slot, old, taken.stored(1), update);
            done.inspect_err(|_| self.put_leaf(taken))?;
        }
        if old.is_present() {
            self.others_are_clean = false;
            self.put_leaf(old);
        }
        Ok(())
    }

    /// Replaces an entry of `table`, the domain's checked table of level 2-4, by `new`. (I6)
    ///
    /// # Errors
    /// `Invalid`: the slot is the hypervisor's, or as of `get_table`, or as of `update_leaf`. `Restart`: more is to be finished than there is
    /// time for. `Mismatch`: the entry is not what the caller saw.
    #[inline(never)]
    pub(crate) fn update_upper(
        &mut self,
        table: Mfn,
        level: u8,
        slot: usize,
        new: Pte,
        update: Update,
    ) -> Result<(), MemError> {
        if level == 4 && pte::is_hypervisor_slot(slot) {
            return Err(MemError::Invalid);
        }
        self.mark(table);
        let old = self.expected(table, slot, update)?;
        let was_present = old.is_present();
        if !new.is_present() {
            if !self.hv.frames.may_be_absent(new) {
                return Err(MemError::Invalid);
            }
            self.exchange(table, slot, old, new, update)?;
        } else if was_present && old.differs_harmlessly(new) && new.is_allowed(level) {
            self.exchange(table, slot, old, new.stored(level), update)?;
            self.forget_copies(table, level);
            return Ok(());
        } else {
            self.get_child(level, new)?;
            let done = self.exchange(table, slot, old, new.stored(level), update);
            done.inspect_err(|_| self.put_table(new.frame()))?;
        }
        self.forget_copies(table, level);
        if was_present {
            // Paging-structure caches may hold the old entry (XSA-286). Not before it is gone, or a CPU could take it in
            // again; and before the table that it names can become something else.
            self.forget_table(old.frame());
        }
        Ok(())
    }

    /// An entry of `table` has changed: CPUs that run guests on copies of a level 4 table are to make new ones. Ahead of the flush
    /// that gets them out of their guests.
    fn forget_copies(&mut self, table: Mfn, level: u8) {
        if level == 4 && self.hv.platform.root_changed(table) {
            self.owe_flush();
        }
    }

    /// Replaces the entry at byte `offset` of `mfn`, a frame of the session's domain. If the frame is a page table, the
    /// entry is checked; else it is simply written. `false`: the entry is replaced, and before the next entry there is
    /// work on the tables to finish, or something else waits.
    ///
    /// # Errors
    /// `Invalid`: the frame is not the domain's. `Busy`: the frame's use forbids writing. `Restart`: more is to be finished
    /// than there is time for. Else the same as of the table's kind.
    #[inline]
    pub(crate) fn update_entry(
        &mut self,
        mfn: Mfn,
        offset: u64,
        new: Pte,
        owner: FrameOwner<'_>,
        update: Update,
    ) -> Result<bool, MemError> {
        let slot = (offset / 8) as usize & 511;
        if self.is_special() {
            self.update_amid_others(mfn, slot, new, owner, update)
        } else {
            self.try_update::<true>(mfn, slot, new, owner, update)
        }
    }

    /// Replaces an entry while tables that left their parents may be kept until the flush: these are tables no more, unless they
    /// are used elsewhere, and an entry that is refused for their sake is tried again after the flush.
    #[cold]
    #[inline(never)]
    fn update_amid_others(
        &mut self,
        mfn: Mfn,
        slot: usize,
        new: Pte,
        owner: FrameOwner<'_>,
        update: Update,
    ) -> Result<bool, MemError> {
        if self.tables.gone_tables.contains(&mfn) {
            self.settle();
        }
        let done = self.try_update::<false>(mfn, slot, new, owner, update);
        if !matches!(done, Err(refused) if refused != MemError::Restart) || self.tables.gone_tables.is_empty()
        {
            return done;
        }
        self.settle();
        if self.is_interrupted() {
            return Err(MemError::Restart);
        }
        self.try_update::<false>(mfn, slot, new, owner, update)
    }

    #[inline(always)]
    fn try_update<const IS_PLAIN: bool>(
        &mut self,
        mfn: Mfn,
        slot: usize,
        new: Pte,
        owner: FrameOwner<'_>,
        update: Update,
    ) -> Result<bool, MemError> {
        match self.table_level(mfn) {
            Some(1) if IS_PLAIN => self.update_plain_leaf(mfn, slot, new, owner, update).map(|()| true),
            Some(1) => self.update_leaf(mfn, slot, new, owner, update).map(|()| true),
            Some(level) => {
                self.update_upper(mfn, level, slot, new, update)?;
                // The entry may have validated or released a whole table, and a short list has no check for
                // pending work of its own.
                Ok(!self.is_interrupted() && !self.hv.platform.work_pending())
            }
            None => self.update_page(mfn, slot, new, update).map(|()| true),
        }
    }

    /// Replaces a word of `mfn`, a frame of the domain's that is no page table.
    #[inline(never)]
    fn update_page(&mut self, mfn: Mfn, slot: usize, new: Pte, update: Update) -> Result<(), MemError> {
        let page = self.hv.get_page(mfn, self.dom).ok_or(MemError::Invalid)?;
        let page = self.get_writable(page, FrameOwner::Domain(self.dom))?;
        // The frame was a table until now, and CPUs may still use it as one until the flush, so it must not
        // hold unchecked entries before.
        self.settle();
        self.exchange(page.mfn(), slot, Pte::NONE, new, update)
    }

    /// The level 1 table of the session's domain in which the tables under `base` map `va`, and the slot.
    ///
    /// # Errors
    /// `Invalid`: the address is the hypervisor's, or there is no such table.
    #[inline]
    pub(crate) fn find_leaf(&self, base: Mfn, va: GuestVa) -> Result<(Mfn, usize), MemError> {
        if !pte::is_guest_address(va) {
            return Err(MemError::Invalid);
        }
        let mut table = base;
        for level in [4, 3, 2] {
            let entry = self.entry(table, pte::index(va.raw(), level));
            if !entry.is_present() {
                return Err(MemError::Invalid);
            }
            table = entry.frame();
            if level != 2 {
                // An entry that is not present holds what the guest likes: a CPU that guesses that it is present would read
                // anybody's memory as a table, and go on to what is named there.
                nospec::barrier();
            }
        }
        // A validated table's entries name validated tables (I7). The check turns a mistake in that into a
        // refusal.
        let is_leaf_table =
            self.hv.frames.info(table).is_some_and(|info| info.load_kind().is_valid_table(PageType::L1));
        if !is_leaf_table {
            return Err(MemError::Invalid);
        }
        nospec::barrier(); // the same of the last entry: the caller reads the table
        Ok((table, pte::index(va.raw(), 1)))
    }

    /// The entry in a slot of a table.
    pub(crate) fn entry(&self, table: Mfn, slot: usize) -> Pte {
        Pte::load(&self.hv.platform.table(table)[slot])
    }
}
