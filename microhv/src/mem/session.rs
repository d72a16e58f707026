//! A session on one domain's page tables: the lock, table references, and the work that the session owes afterwards.

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::Mfn;

use super::MemError;
use super::pages::{PageRef, TypedRef};
use super::state::Tables;
use crate::Hypervisor;
use crate::domain::Current;
use crate::domain::Domain;
use crate::frames::info::{FlushOwed, PageType, TypeWord};
use crate::nospec;
use crate::platform::{Platform, Settled};
use crate::return_stack;
use crate::sync::{MutexGuard, may_come_between};

/// The owner whose frames new level 1 entries may name.
#[derive(Clone, Copy, Debug)]
pub enum FrameOwner<'a> {
    /// The domain's own memory, and devices to which the domain has rights.
    Domain(&'a Domain),
    /// `DOMID_IO`: devices to which this domain, the caller, has rights.
    Devices(&'a Domain),
    /// `DOMID_XEN`: frames that the hypervisor lends to privileged domains.
    Hypervisor,
}

/// In [`Mm::state`]: this CPU may know something that has changed.
const OWES_FLUSH: u8 = 1;
/// The domain is tracked, or was.
pub(super) const TRACKED: u8 = 2;

/// The page tables of one domain, locked.
///
/// What CPUs may still know of entries that are gone is flushed when the session ends, and before the session reaches
/// anything by a guest's address ([`Mm::settle`]): one flush for all entries until then, of the CPUs that have tables of the
/// domain loaded. What those entries referred to is given back after that.
#[derive(Debug)]
#[must_use = "dropped, the session ends"]
pub struct Mm<'a, P: Platform> {
    pub(crate) hv: &'a Hypervisor<P>,
    pub(super) dom: &'a Domain,
    pub(super) tables: MutexGuard<'a, Tables>,
    /// [`OWES_FLUSH`], [`TRACKED`]: one look tells that an update needs neither a flush first nor dirty tracking.
    pub(super) state: u8,
    /// Other CPUs may, too.
    owes_others: bool,
    /// The other CPUs were flushed in this session, and no entry was taken out since.
    pub(super) others_are_clean: bool,
    /// No vCPU of the domain has a page of an LDT in its window, since the session took the pages out; no page comes in
    /// meanwhile.
    pub(super) has_dropped_ldts: bool,
}

impl<P: Platform> Drop for Mm<'_, P> {
    fn drop(&mut self) {
        self.settle();
    }
}

impl<P: Platform> Hypervisor<P> {
    #[inline(always)]
    fn session<'a>(&'a self, dom: &'a Domain, tables: MutexGuard<'a, Tables>) -> Mm<'a, P> {
        let (owes_others, others_are_clean, has_dropped_ldts) = (false, false, false);
        let state = if dom.mm.tracking.is_on() { TRACKED } else { 0 };
        Mm { hv: self, dom, tables, state, owes_others, others_are_clean, has_dropped_ldts }
    }

    /// Locks a domain's page tables for changes that take no table references.
    #[inline]
    pub(in crate::mem) fn lock_tables<'a>(&'a self, dom: &'a Domain) -> Mm<'a, P> {
        self.session(dom, dom.mm.tables.lock())
    }
}

impl<P: Platform> Current<'_, P> {
    /// Locks a domain's page tables. Until the session ends, only the session reaches guest memory.
    #[inline(always)]
    pub(crate) fn tables<'b>(&'b mut self, dom: &'b Domain) -> Mm<'b, P> {
        self.hv.lock_tables(dom)
    }

    /// Locks the own domain's page tables, and leaves the registers to the caller: registers are no guest memory.
    #[inline(always)]
    pub(crate) fn own_tables(&mut self) -> (Mm<'_, P>, &mut CpuUserRegs) {
        (self.hv.lock_tables(self.domain), self.regs)
    }
}

impl<'a, P: Platform> Mm<'a, P> {
    /// Finishes what was interrupted. `false`: there is more than there is time for now.
    #[inline]
    pub(crate) fn finish_deferred(&mut self) -> bool {
        self.settle();
        self.tables.deferred.is_empty() || self.drain()
    }

    /// Like [`Mm::begin`], for what a dying domain gets no more: the domain's teardown may have been there already.
    /// (I50)
    ///
    /// # Errors
    /// `Restart`: there is more to finish than there is time for now. `NoSuchDomain`: the domain is dying.
    pub(crate) fn begin_alive(&mut self) -> Result<(), MemError> {
        self.begin()?;
        if self.dom.is_dying() { Err(MemError::NoSuchDomain) } else { Ok(()) }
    }

    /// Like [`Mm::finish_deferred`], at the start of an operation that gives tables back. This is no way to open a
    /// session: a session that `Result` gave out would be copied in each call.
    ///
    /// # Errors
    /// `Restart`: there is more to finish than there is time for now.
    #[inline]
    pub(crate) fn begin(&mut self) -> Result<(), MemError> {
        if self.finish_deferred() { Ok(()) } else { Err(MemError::Restart) }
    }

    /// Does the flush that is owed: the platform copies from and to guests for what this gives.
    #[inline(always)]
    pub(crate) fn settle(&mut self) -> Settled<'_> {
        if self.owes_flush() {
            self.pay();
        }
        Settled::new()
    }

    /// Flushes, then gives back what was kept until the flush. (I51)
    #[cold]
    #[inline(never)]
    fn pay(&mut self) {
        // A table that is given back may map others' pages, for which the next flush is owed; it brings no table that is kept.
        while self.owes_flush() {
            self.flush_pages();
            for mfn in core::mem::take(&mut self.tables.gone_tables) {
                if self.is_interrupted() || self.hv.platform.work_pending() {
                    self.leave_table(mfn);
                } else {
                    self.put_table(mfn);
                }
            }
        }
    }

    /// Flushes, and gives back others' pages that were kept until the flush.
    fn flush_pages(&mut self) {
        self.state &= !OWES_FLUSH;
        if core::mem::take(&mut self.owes_others) {
            self.hv.flush_domain(self.dom);
            self.others_are_clean = true;
        } else {
            self.hv.platform.flush_tlb_local();
        }
        while let Some(mfn) = self.tables.gone_pages.pop() {
            self.hv.put_page_and_type(mfn);
        }
    }

    /// Keeps a table until the flush whose entry is gone from its parent: a CPU may still walk there, and what the table names
    /// must not become something else meanwhile. (I51)
    #[inline(never)]
    pub(super) fn forget_table(&mut self, mfn: Mfn) {
        self.tables.gone_tables.push(mfn);
        self.owe_flush();
        if self.tables.gone_tables.is_full() {
            self.pay();
        }
    }

    /// Keeps another's page until the flush whose entry for writing is gone: the page's owner may make it a page table next, and
    /// then flushes the owner's CPUs, not this domain's. (I51)
    #[cold]
    #[inline(never)]
    pub(super) fn forget_page(&mut self, mfn: Mfn) {
        self.tables.gone_pages.push(mfn);
        self.owe_flush();
        if self.tables.gone_pages.is_full() {
            self.flush_pages();
        }
    }

    /// Whether a flush is owed.
    #[inline(always)]
    pub(super) const fn owes_flush(&self) -> bool {
        self.state & OWES_FLUSH != 0
    }

    /// Whether the session has left work for later, since an interrupt waits: the session is to end.
    pub(crate) fn is_interrupted(&self) -> bool {
        !self.tables.deferred.is_empty()
    }

    /// Notes that CPUs may know something of the domain's tables that has changed.
    #[inline]
    pub(crate) fn owe_flush(&mut self) {
        self.state |= OWES_FLUSH;
        (self.owes_others, self.others_are_clean) = (true, false);
    }

    /// A frame of the domain's has got another type than CPUs may know it by. Other CPUs are flushed now, since the caller looks
    /// at the frame next, or maps the frame; this CPU, which uses no guest's address meanwhile, later.
    #[cold]
    #[inline(never)]
    pub(super) fn forget_type(&mut self) {
        self.state |= OWES_FLUSH;
        if !self.others_are_clean {
            self.hv.flush_others(self.dom);
            (self.owes_others, self.others_are_clean) = (false, true);
        }
    }

    /// Takes a reference of type writable on a page of `owner`.
    ///
    /// # Errors
    /// `Busy`: the page is in use as something else.
    #[inline(always)]
    pub(super) fn get_writable(
        &mut self,
        page: PageRef<'a, P>,
        owner: FrameOwner<'_>,
    ) -> Result<TypedRef<'a, P>, MemError> {
        let (page, flush) = page.writable()?;
        match owner {
            FrameOwner::Domain(dom) if flush.0 && dom.id != self.dom.id => self.hv.flush_domain(dom),
            _ => self.owe(flush),
        }
        Ok(page)
    }

    /// Takes over a flush that a frame's new type owes.
    pub(super) fn owe(&mut self, flush: FlushOwed) {
        if flush.0 {
            self.forget_type();
        }
    }

    /// Takes a type and a general reference on a page table of `level`. If the table is not checked yet, this checks
    /// the table.
    ///
    /// # Errors
    /// `Restart`: the check took long. `Invalid`: the frame is not the domain's, is in use as something else, or has
    /// entries that the domain may not have.
    #[inline(always)]
    pub(crate) fn get_table(&mut self, mfn: Mfn, level: u8) -> Result<(), MemError> {
        let wanted = PageType::table(level);
        if let Some(info) = self.hv.frames.info(mfn)
            && info.load_kind().is_valid_table(wanted)
            && let Some(page) = self.hv.get_page(mfn, self.dom)
        {
            if !info.get_table(wanted) {
                return Err(MemError::Invalid);
            }
            page.into_raw();
            return Ok(());
        }
        self.get_new_table(mfn, level)
    }

    /// Like [`Mm::get_table`], for a frame that is not such a table yet.
    #[inline(never)]
    fn get_new_table(&mut self, mfn: Mfn, level: u8) -> Result<(), MemError> {
        let _filled = return_stack::fill_at_end(); // tables name tables
        let page = self.hv.get_page(mfn, self.dom).ok_or(MemError::Invalid)?;
        let info = self.hv.frames.held(mfn);
        let wanted = PageType::table(level);
        loop {
            let now = info.load_kind();
            if now.count() == 0 {
                // The new type is visible before the flush and the first look at an entry: no new writable
                // reference, then no CPU that remembers an old one.
                let Some(flush) = info.replace_kind(now, TypeWord::new(wanted, 1)) else { continue };
                self.owe(flush);
                page.into_raw();
                return self.validate(mfn, level, 0);
            }
            if now.page_type() != wanted || !now.has(TypeWord::PARTIAL) {
                return Err(MemError::Invalid); // without the mark, being validated further up: it would contain itself
            }
            // Takes over the references that the partial state holds; the general one from above is given back.
            self.tables.deferred.retain(|deferred| *deferred != mfn);
            info.set_kind(TypeWord(now.0 & !TypeWord::PARTIAL));
            drop(page);
            return self.validate(mfn, level, now.progress());
        }
    }

    /// Gives a type and a general reference on a page table back. The last reference invalidates the table; what takes
    /// too long is deferred.
    #[inline]
    pub(crate) fn put_table(&mut self, mfn: Mfn) {
        nospec::barrier(); // the entry that named the table may not have been present, where a CPU guesses
        let info = self.hv.frames.held(mfn);
        let now = info.load_kind();
        debug_assert!(now.page_type().level() > 0 && now.count() > 0 && now.has(TypeWord::VALIDATED));
        if now.count() > 1 {
            info.put_type();
            self.hv.put_page(mfn);
        } else {
            self.put_last(mfn, now);
        }
    }

    #[inline(never)]
    fn put_last(&mut self, mfn: Mfn, now: TypeWord) {
        let _filled = return_stack::fill_at_end(); // tables name tables
        self.hv.frames.held(mfn).set_kind(TypeWord(now.0 & !TypeWord::VALIDATED));
        self.invalidate(mfn, now.page_type().level(), 512);
    }

    /// Gives a type and a general reference on a page table back. If these are the last references, the table is left for later.
    fn leave_table(&mut self, mfn: Mfn) {
        let info = self.hv.frames.held(mfn);
        let now = info.load_kind();
        if now.count() > 1 {
            return self.put_table(mfn);
        }
        info.set_kind(TypeWord(now.0 & !TypeWord::VALIDATED));
        self.invalidate_later(mfn, 512);
    }

    /// Makes a table partial, with `progress` entries that hold references. The caller's two references become the
    /// partial state's own.
    pub(super) fn make_partial(&mut self, mfn: Mfn, progress: usize) {
        let info = self.hv.frames.held(mfn);
        let now = info.load_kind();
        debug_assert_eq!(now.count(), 1);
        info.set_kind(TypeWord(now.0 | TypeWord::PARTIAL).with_progress(progress));
    }

    /// Takes a partial table whose validation was given up, to invalidate the table.
    pub(crate) fn take_partial(&mut self, mfn: Mfn) {
        if !self.tables.deferred.contains(&mfn) {
            self.tables.deferred.push(mfn);
        }
    }

    fn take_lowest_deferred(&mut self) -> Option<Mfn> {
        let level = |mfn: &Mfn| self.hv.frames.held(*mfn).load_kind().page_type().level();
        let (lowest, _) = self.tables.deferred.iter().enumerate().min_by_key(|(_, mfn)| level(mfn))?;
        Some(self.tables.deferred.swap_remove(lowest))
    }

    /// Finishes interrupted invalidations. `false`: there is more to do than now is time for.
    pub(crate) fn drain(&mut self) -> bool {
        if self.tables.revoke_at.is_some() && !self.revoke() {
            return false;
        }
        while let Some(mfn) = self.take_lowest_deferred() {
            let info = self.hv.frames.held(mfn);
            let now = info.load_kind();
            info.set_kind(TypeWord(now.0 & !TypeWord::PARTIAL));
            self.invalidate(mfn, now.page_type().level(), now.progress());
            if !self.tables.deferred.is_empty() && self.hv.platform.work_pending() {
                return false;
            }
        }
        true
    }

    /// Pins a page table.
    ///
    /// # Errors
    /// `Restart`: the check took long. `Invalid`: as of [`Mm::get_table`], or the table is pinned already.
    pub(crate) fn pin(&mut self, mfn: Mfn, level: u8) -> Result<(), MemError> {
        self.get_table(mfn, level)?;
        let info = self.hv.frames.held(mfn);
        let now = info.load_kind();
        if now.has(TypeWord::PINNED) {
            self.put_table(mfn);
            return Err(MemError::Invalid);
        }
        info.set_kind(TypeWord(now.0 | TypeWord::PINNED));
        self.mark(mfn); // a copy of the page has to be pinned, too
        Ok(())
    }

    /// Unpins a page table.
    ///
    /// # Errors
    /// `Invalid`: the table is not the domain's, or not pinned.
    pub(crate) fn unpin(&mut self, mfn: Mfn) -> Result<(), MemError> {
        // With a reference: another CPU may give the frame back otherwise, and then the allocator keeps a word of its own there.
        let page = self.hv.get_page(mfn, self.dom).ok_or(MemError::Invalid)?;
        let info = self.hv.frames.held(page.mfn());
        may_come_between();
        let now = info.load_kind();
        if now.page_type().level() == 0 || !now.has(TypeWord::PINNED) {
            return Err(MemError::Invalid);
        }
        info.set_kind(TypeWord(now.0 & !TypeWord::PINNED));
        self.mark(mfn);
        self.put_table(mfn);
        Ok(())
    }

    /// The level of a frame if the frame is the domain's page table, checked as a whole. No CPU guesses that: the caller reads
    /// the table.
    pub(crate) fn table_level(&self, mfn: Mfn) -> Option<u8> {
        let info = self.hv.frames.info(mfn).filter(|info| info.load_use().is_owned_by(self.dom.id))?;
        let kind = info.load_kind();
        let level = kind.page_type().level();
        // "Validated" implies a count. The allocator's word for a free block never says so.
        if level == 0 || !kind.has(TypeWord::VALIDATED) {
            return None;
        }
        nospec::barrier();
        Some(level)
    }
}

/// Whole operations for callers outside of a session.
impl<P: Platform> Hypervisor<P> {
    /// Finishes what was interrupted on a domain's page tables. `false`: there is more than there is time for now.
    #[inline]
    pub(crate) fn finish_deferred(&self, dom: &Domain) -> bool {
        let tables = dom.mm.tables.lock();
        tables.deferred.is_empty() || self.drain_locked(dom, tables)
    }

    /// Apart, so that a look at a list that is empty makes no session.
    #[cold]
    #[inline(never)]
    fn drain_locked(&self, dom: &Domain, tables: MutexGuard<'_, Tables>) -> bool {
        self.session(dom, tables).drain()
    }

    /// Pins a page table of a domain.
    ///
    /// # Errors
    /// `Restart`: the check took long. `Invalid`: the frame is not the domain's, is in use as something else, has
    /// entries that the domain may not have, or is pinned already.
    pub fn pin_table(&self, dom: &Domain, mfn: Mfn, level: u8) -> Result<(), MemError> {
        let mut mm = self.lock_tables(dom);
        mm.begin_alive()?;
        mm.pin(mfn, level)
    }

    /// Unpins a page table of a domain.
    ///
    /// # Errors
    /// `Restart`: there is more to finish than there is time for now. `Invalid`: the frame is not the domain's, or not
    /// pinned.
    pub fn unpin_table(&self, dom: &Domain, mfn: Mfn) -> Result<(), MemError> {
        let mut mm = self.lock_tables(dom);
        mm.begin()?;
        mm.unpin(mfn)
    }
}
