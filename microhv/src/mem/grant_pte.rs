//! Page-table entries of mapped grants.
//!
//! The references that a grant mapping holds on its frame belong to the entry while the entry is there. The grant code
//! takes the references, hands them over with [`Hypervisor::map_grant_frame`], and owns them again after
//! [`Hypervisor::unmap_grant_frame`]. A guest that overwrites the entry drops the references, and the guest's handle
//! then names a mapping that is no more.

use core::sync::atomic::Ordering;

use ring_abi::types::{GuestVa, Maddr, Mfn};

use super::MemError;
use super::session::Mm;
use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::frames::pte::{self, Pte};
use crate::platform::Platform;

/// Where a grant is mapped: the caller's `host_addr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantAddress {
    /// A virtual address under the caller's loaded tables.
    Virtual(GuestVa),
    /// The machine address of an entry (`GNTMAP_contains_pte`).
    Entry(Maddr),
}

/// The bits of a grant mapping's entry, beside the frame.
fn entry_of(frame: Mfn, read_only: bool, flags: u64) -> Pte {
    let access = if read_only { 0 } else { pte::RW };
    Pte::new(frame.maddr().raw() | pte::P | pte::A | pte::D | access | flags)
}

impl<P: Platform> Mm<'_, P> {
    #[inline(always)]
    fn find_grant_entry(&self, base: Option<Mfn>, address: GrantAddress) -> Result<(Mfn, usize), MemError> {
        match address {
            GrantAddress::Virtual(va) => self.find_leaf(base.ok_or(MemError::Invalid)?, va),
            GrantAddress::Entry(at) => {
                let table = at.mfn();
                if !at.raw().is_multiple_of(8) || self.table_level(table) != Some(1) {
                    return Err(MemError::Invalid);
                }
                Ok((table, at.offset() / 8))
            }
        }
    }

    /// Like [`Mm::find_grant_entry`], for an entry that maps `frame` with this access.
    #[inline(always)]
    fn find_mapped(
        &self,
        base: Option<Mfn>,
        address: GrantAddress,
        frame: Mfn,
        read_only: bool,
    ) -> Result<(Mfn, usize), MemError> {
        const SAME: u64 = pte::FRAME | pte::P | pte::RW;
        let (table, slot) = self.find_grant_entry(base, address)?;
        let is_it = |entry: Pte| (entry.raw() ^ entry_of(frame, read_only, 0).raw()) & SAME == 0;
        let entry = self.entry(table, slot);
        if !(is_it(entry) || self.is_tracked(table) && is_it(entry.unmarked())) {
            return Err(MemError::Invalid);
        }
        Ok((table, slot))
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Maps `frame` into `dom`, whose `vcpu` runs here. The caller holds a general reference on `frame` and, unless
    /// `read_only`, one of type writable. On success the entry owns these references, and what was mapped there is
    /// given back.
    ///
    /// `flags` are further bits of the entry: [`pte::US`] (`GNTMAP_application_map`), [`pte::GUEST_FLAGS`].
    ///
    /// # Errors
    /// `Invalid`: the caller has no level 1 entry there.
    pub fn map_grant_frame(
        &self,
        dom: &Domain,
        vcpu: &Vcpu,
        address: GrantAddress,
        frame: Mfn,
        read_only: bool,
        flags: u64,
    ) -> Result<(), MemError> {
        let mut mm = self.lock_tables(dom);
        let (table, slot) = mm.find_grant_entry(vcpu.cr3_kernel.get(), address)?;
        let new = entry_of(frame, read_only, flags & (pte::US | pte::GUEST_FLAGS)).stored(1);
        let old = Pte::new(self.platform.table(table)[slot].swap(new.raw(), Ordering::AcqRel));
        if mm.is_of_tracked() {
            mm.mark(table);
            if !read_only {
                mm.mark(frame); // the domain's own, it may be
            }
        }
        if old.is_present() {
            mm.others_are_clean = false;
            let old = if mm.is_tracked(table) { mm.left(old) } else { old };
            mm.put_leaf(old);
        }
        Ok(())
    }

    /// Takes the entry of a grant mapping away, if the entry maps `frame` with this access. On success the references
    /// of the entry become the caller's. The caller gives them back **after** a flush: [`Hypervisor::flush_grants`].
    ///
    /// # Errors
    /// `Invalid`: there is no such entry.
    pub fn unmap_grant_frame(
        &self,
        dom: &Domain,
        vcpu: &Vcpu,
        address: GrantAddress,
        frame: Mfn,
        read_only: bool,
    ) -> Result<(), MemError> {
        let mm = self.lock_tables(dom);
        let (table, slot) = mm.find_mapped(vcpu.cr3_kernel.get(), address, frame, read_only)?;
        self.platform.table(table)[slot].store(0, Ordering::Release);
        mm.mark(table);
        Ok(())
    }

    /// Like [`Hypervisor::unmap_grant_frame`], but moves the entry of virtual address `with` into the freed place, as
    /// `GNTTABOP_unmap_and_replace` does.
    ///
    /// # Errors
    /// `Invalid`: there is no such entry, there is none at `with`, or `with` is the address of the same entry.
    #[inline(never)]
    pub fn replace_grant_frame(
        &self,
        dom: &Domain,
        vcpu: &Vcpu,
        address: GrantAddress,
        frame: Mfn,
        read_only: bool,
        with: GuestVa,
    ) -> Result<(), MemError> {
        let mm = self.lock_tables(dom);
        let base = vcpu.cr3_kernel.get();
        let (table, slot) = mm.find_mapped(base, address, frame, read_only)?;
        let (from, from_slot) = mm.find_leaf(base.ok_or(MemError::Invalid)?, with)?;
        if (from, from_slot) == (table, slot) {
            return Err(MemError::Invalid);
        }
        let moved = self.platform.table(from)[from_slot].swap(0, Ordering::AcqRel);
        let moved = if mm.is_tracked(from) { mm.left(Pte::new(moved)) } else { Pte::new(moved) };
        self.platform.table(table)[slot].store(moved.raw(), Ordering::Release);
        let is_writable = moved.is_present() && moved.has(pte::RW);
        [Some(from), Some(table), is_writable.then(|| moved.frame())]
            .into_iter()
            .flatten()
            .for_each(|mfn| mm.mark(mfn));
        Ok(())
    }

    /// Flushes the translations that [`Hypervisor::unmap_grant_frame`] left in TLBs of the domain; one call serves for
    /// many entries.
    pub fn flush_grants(&self, dom: &Domain) {
        self.flush_domain(dom);
    }
}
