//! Mapping and unmapping grants.

use alloc::sync::Arc;

use arrayvec::ArrayVec;
use ring_abi::grant::{
    GNTMAP_APPLICATION_MAP, GNTMAP_CONTAINS_PTE, GNTMAP_DEVICE_MAP, GNTMAP_GUEST_AVAIL_MASK, GNTMAP_HOST_MAP,
    GNTMAP_READONLY, GnttabMapGrantRef, GnttabUnmapGrantRef,
};
use ring_abi::types::{DOMID_SELF, DomId, GuestVa, Maddr, Mfn};

use super::state::{Access, GrantError, Granted, Mapping, Maptrack, Use, Uses, unpin_grant};
use crate::Hypervisor;
use crate::domain::Current;
use crate::domain::Domain;
use crate::frames::pte;
use crate::mem::GrantAddress;
use crate::platform::Platform;
use crate::sync::MutexGuard;

/// Unmaps that share one TLB flush.
pub(crate) const UNMAP_BATCH: usize = 32;

/// The domain that the last operation of a batch named: most batches name one.
#[derive(Debug, Default)]
pub struct DomainCache(Option<Arc<Domain>>);

impl DomainCache {
    /// Domain `raw`, where `DOMID_SELF` is the caller.
    ///
    /// # Errors
    /// `BadDomain`.
    #[inline]
    pub fn get<'a, P: Platform>(
        &'a mut self,
        cur: &'a Current<'_, P>,
        raw: u16,
    ) -> Result<&'a Arc<Domain>, GrantError> {
        let own = cur.domain;
        if raw == DOMID_SELF || raw == own.id.raw() {
            return Ok(own);
        }
        let id = DomId::new(raw);
        if self.0.as_ref().is_none_or(|domain| domain.id != id) {
            self.0 = Some(cur.hv.domains.get(id).ok_or(GrantError::BadDomain)?);
        }
        self.0.as_ref().ok_or(GrantError::BadDomain)
    }
}

/// What a map operation gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) handle: u32,
    pub(crate) machine_address: Maddr,
}

/// What the unmaps of one batch freed, to be given back after the TLB was flushed.
#[derive(Debug, Default)]
pub(crate) struct UnmapBatch {
    /// The mappings, each with the uses that ended.
    unmapped: ArrayVec<Mapping, UNMAP_BATCH>,
    /// One of these uses was a host's.
    owes_flush: bool,
}

impl<P: Platform> Hypervisor<P> {
    /// `GNTTABOP_map_grant_ref`, one operation.
    ///
    /// # Errors
    /// See `GNTST_*` in [`GrantError`].
    #[inline]
    pub(crate) fn map_grant(
        &self,
        cur: &Current<'_, P>,
        cache: &mut DomainCache,
        op: &GnttabMapGrantRef,
    ) -> Result<Mapped, GrantError> {
        let host = op.flags & GNTMAP_HOST_MAP != 0;
        let device = op.flags & GNTMAP_DEVICE_MAP != 0;
        let uses = Uses::new(host, device);
        if uses.are_none() {
            return Err(GrantError::BadGrantRef);
        }
        let granter = cache.get(cur, op.dom)?;
        let access = if op.flags & GNTMAP_READONLY != 0 { Access::Read } else { Access::Write };
        if !host {
            return self.map_for_device(cur, granter, op.r#ref, access);
        }
        let handle = self.reserve_handle(cur.domain)?;
        match self.begin_mapping(cur, granter, op, uses, access) {
            Ok(frame) => {
                let contains_pte = op.flags & GNTMAP_CONTAINS_PTE != 0;
                let granted = granter.grants.entries.clone();
                let mapping = Mapping { granted, gref: op.r#ref, frame, access, uses, contains_pte };
                cur.domain.grants.maptrack.lock().set(handle, mapping);
                Ok(Mapped { handle, machine_address: frame.maddr() })
            }
            Err(error) => {
                cur.domain.grants.maptrack.lock().release(handle);
                Err(error)
            }
        }
    }

    /// A mapping for a device alone, which changes no page table: back ends ask for one for each page that they move.
    #[inline]
    fn map_for_device(
        &self,
        cur: &Current<'_, P>,
        granter: &Arc<Domain>,
        gref: u32,
        access: Access,
    ) -> Result<Mapped, GrantError> {
        let frame = self.begin_grant_use(granter, gref, cur.domain.id, Use::Device, access)?;
        let granted = granter.grants.entries.clone();
        let mapping = Mapping { granted, gref, frame, access, uses: Uses::DEVICE, contains_pte: false };
        let handle = self.with_room(cur.domain).add(mapping);
        match handle {
            Ok(handle) => Ok(Mapped { handle, machine_address: frame.maddr() }),
            Err(error) => {
                self.end_grant_use(&granter.grants.entries, gref, frame, Use::Device, access);
                Err(error)
            }
        }
    }

    /// A handle of `domain`. The domain makes the hypervisor's memory grow, so that it has to do with what is left.
    #[inline]
    fn reserve_handle(&self, domain: &Domain) -> Result<u32, GrantError> {
        self.with_room(domain).reserve()
    }

    /// The handles of `domain`, locked, with room for one more if there is memory.
    #[inline]
    fn with_room<'a>(&self, domain: &'a Domain) -> MutexGuard<'a, Maptrack> {
        let mut maptrack = domain.grants.maptrack.lock();
        if let Some(bytes) = maptrack.wants_room()
            && self.may_spend(bytes)
        {
            maptrack.grow();
        }
        maptrack
    }

    /// Maps a grant into page tables, and begins the use of a device where `uses` have that too.
    #[inline]
    fn begin_mapping(
        &self,
        cur: &Current<'_, P>,
        granter: &Domain,
        op: &GnttabMapGrantRef,
        uses: Uses,
        access: Access,
    ) -> Result<Mfn, GrantError> {
        let (gref, me, granted) = (op.r#ref, cur.domain.id, &granter.grants.entries);
        let frame = self.begin_grant_use(granter, gref, me, Use::Host, access)?;
        // Its frame is the same, which the use by the host pinned.
        if uses.have(Uses::DEVICE)
            && let Err(error) = self.begin_grant_use(granter, gref, me, Use::Device, access)
        {
            self.give_up_mapping(granted, gref, frame, Uses::HOST, access);
            return Err(error);
        }
        let user = if op.flags & GNTMAP_APPLICATION_MAP != 0 { pte::US } else { 0 };
        // What the guest keeps in the entry for itself, in bits 16-18.
        let own = u64::from((op.flags & GNTMAP_GUEST_AVAIL_MASK) >> 16) << 9 & pte::GUEST_FLAGS;
        let at = address(op.host_addr, op.flags & GNTMAP_CONTAINS_PTE != 0);
        let read_only = access == Access::Read;
        if self.map_grant_frame(cur.domain, cur.vcpu, at, frame, read_only, user | own).is_err() {
            self.give_up_mapping(granted, gref, frame, uses, access);
            return Err(GrantError::General);
        }
        Ok(frame)
    }

    /// Ends a use of each kind in `uses`.
    #[inline(always)]
    fn end_grant_uses(&self, granted: &Granted, gref: u32, frame: Mfn, uses: Uses, access: Access) {
        if uses.have(Uses::HOST) {
            self.end_grant_use(granted, gref, frame, Use::Host, access);
        }
        if uses.have(Uses::DEVICE) {
            self.end_grant_use(granted, gref, frame, Use::Device, access);
        }
    }

    /// Ends the uses of a mapping that cannot be made.
    #[cold]
    #[inline(never)]
    fn give_up_mapping(&self, granted: &Granted, gref: u32, frame: Mfn, uses: Uses, access: Access) {
        self.end_grant_uses(granted, gref, frame, uses, access);
    }

    /// `GNTTABOP_unmap_grant_ref`, one operation. What it frees goes to `batch`, which has room for one more, and is
    /// given back by [`Hypervisor::finish_unmaps`]. With `replacement`, the entry of that address moves into the place
    /// of the mapping's (`GNTTABOP_unmap_and_replace`).
    ///
    /// # Errors
    /// `BadHandle`: no such mapping. `General`: the page-table entry or the machine address is another.
    #[inline(always)]
    pub(crate) fn unmap_grant(
        &self,
        cur: &Current<'_, P>,
        op: &GnttabUnmapGrantRef,
        replacement: Option<u64>,
        batch: &mut UnmapBatch,
    ) -> Result<(), GrantError> {
        if op.host_addr == 0 {
            // No page table changes, and nothing is to be flushed before the frame is given back.
            let taken = cur.domain.grants.maptrack.lock().take_for_device(op.handle, op.dev_bus_addr);
            if let Some(Mapping { granted, gref, frame, access, .. }) = taken {
                self.end_grant_use(&granted, gref, frame, Use::Device, access);
                return Ok(());
            }
        }
        let mut mapping = cur.domain.grants.maptrack.lock().take(op.handle)?;
        let ended = Uses::new(op.host_addr != 0, op.dev_bus_addr != 0).common(mapping.uses);
        let result = self.take_apart(cur, op, replacement, &mapping, ended);
        let mut maptrack = cur.domain.grants.maptrack.lock();
        if result.is_err() {
            maptrack.set(op.handle, mapping);
            return result;
        }
        if ended == mapping.uses {
            maptrack.release(op.handle);
        } else {
            maptrack.set(op.handle, Mapping { uses: mapping.uses.without(ended), ..mapping.clone() });
            mapping.uses = ended;
        }
        drop(maptrack);
        if !ended.are_none() {
            batch.owes_flush |= ended.have(Uses::HOST);
            batch.unmapped.push(mapping);
        }
        Ok(())
    }

    /// Checks that the uses of a mapping that the operation ends are those it names, and takes the page-table entry out.
    #[inline(always)]
    fn take_apart(
        &self,
        cur: &Current<'_, P>,
        op: &GnttabUnmapGrantRef,
        replacement: Option<u64>,
        mapping: &Mapping,
        ended: Uses,
    ) -> Result<(), GrantError> {
        if ended.have(Uses::DEVICE) && op.dev_bus_addr != mapping.frame.maddr().raw() {
            return Err(GrantError::General);
        }
        if !ended.have(Uses::HOST) {
            return Ok(());
        }
        let read_only = mapping.access == Access::Read;
        let at = address(op.host_addr, mapping.contains_pte);
        match replacement {
            None => self.unmap_grant_frame(cur.domain, cur.vcpu, at, mapping.frame, read_only),
            Some(_) if mapping.contains_pte => return Err(GrantError::General),
            Some(with) => {
                let with = GuestVa::new(with);
                self.replace_grant_frame(cur.domain, cur.vcpu, at, mapping.frame, read_only, with)
            }
        }
        .map_err(|_| GrantError::General)
    }

    /// Flushes the TLB for a batch of unmaps, then gives back what they held. (I9)
    #[inline(always)]
    pub(crate) fn finish_unmaps(&self, domain: &Domain, batch: &mut UnmapBatch) {
        if core::mem::take(&mut batch.owes_flush) {
            self.flush_grants(domain);
        }
        for Mapping { granted, gref, frame, access, uses, .. } in batch.unmapped.drain(..) {
            self.end_grant_uses(&granted, gref, frame, uses, access);
        }
    }

    /// Ends the grant mappings of a domain that is being destroyed, from handle `from` on; the handle to go on with, or
    /// `None` when all are done. The references of host mappings go with its page tables.
    pub fn release_grant_mappings(&self, domain: &Domain, from: u32) -> Option<u32> {
        let len = domain.grants.maptrack.lock().len();
        for handle in from..len {
            if handle > from && self.platform.work_pending() {
                return Some(handle);
            }
            let taken = domain.grants.maptrack.lock().take(handle);
            let Ok(mapping) = taken else { continue };
            if mapping.uses.have(Uses::HOST) {
                unpin_grant(&mapping.granted, mapping.gref, Use::Host, mapping.access);
            }
            if mapping.uses.have(Uses::DEVICE) {
                self.end_grant_use(
                    &mapping.granted,
                    mapping.gref,
                    mapping.frame,
                    Use::Device,
                    mapping.access,
                );
            }
            domain.grants.maptrack.lock().release(handle);
        }
        None
    }
}

fn address(host_addr: u64, contains_pte: bool) -> GrantAddress {
    if contains_pte {
        GrantAddress::Entry(Maddr::new(host_addr))
    } else {
        GrantAddress::Virtual(GuestVa::new(host_addr))
    }
}
