//! Mapping and unmapping grants.

use alloc::sync::Arc;

use arrayvec::ArrayVec;
use ring_abi::grant::{
    GNTMAP_APPLICATION_MAP, GNTMAP_CONTAINS_PTE, GNTMAP_DEVICE_MAP, GNTMAP_GUEST_AVAIL_MASK, GNTMAP_HOST_MAP,
    GNTMAP_READONLY, GnttabMapGrantRef, GnttabUnmapGrantRef,
};
use ring_abi::types::{DomId, GrantHandle, GrantRef, GuestVa, Maddr};

use super::state::{Access, GrantError, HeldHandle, Mapping, Maptrack, UseKind, Uses};
use super::uses::GrantUse;
use crate::Hypervisor;
use crate::domain::{Current, Domain, Vcpu};
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
    /// Domain `id`, where `DOMID_SELF` is the caller.
    ///
    /// # Errors
    /// `BadDomain`.
    #[inline]
    pub fn get<'a, P: Platform>(
        &'a mut self,
        cur: &'a Current<'_, P>,
        id: DomId,
    ) -> Result<&'a Arc<Domain>, GrantError> {
        let own = cur.domain;
        if id == DomId::SELF || id == own.id {
            return Ok(own);
        }
        if self.0.as_ref().is_none_or(|domain| domain.id != id) {
            self.0 = Some(cur.hv.domains.get(id).ok_or(GrantError::BadDomain)?);
        }
        self.0.as_ref().ok_or(GrantError::BadDomain)
    }
}

impl<P: Platform> Hypervisor<P> {
    /// `GNTTABOP_map_grant_ref`, one operation: the handle, and the machine address of the frame.
    ///
    /// # Errors
    /// See `GNTST_*` in [`GrantError`].
    #[inline]
    pub(crate) fn map_grant(
        &self,
        cur: &Current<'_, P>,
        cache: &mut DomainCache,
        op: &GnttabMapGrantRef,
    ) -> Result<(GrantHandle, Maddr), GrantError> {
        let wanted = Uses::new(op.flags & GNTMAP_HOST_MAP != 0, op.flags & GNTMAP_DEVICE_MAP != 0);
        if wanted == Uses::NONE {
            return Err(GrantError::BadGrantRef);
        }
        let granter = cache.get(cur, DomId::new(op.dom))?;
        let access = if op.flags & GNTMAP_READONLY != 0 { Access::Read } else { Access::Write };
        let (gref, me) = (GrantRef::new(op.r#ref), cur.domain.id);
        if !wanted.have(UseKind::Host) {
            // No page table changes: back ends ask for such a mapping for each page that they move.
            let used = GrantUse::begin(self, granter, gref, me, UseKind::Device, access)?;
            let mut maptrack = self.with_room(cur.domain);
            let (handle, machine_address) = (maptrack.reserve()?, used.frame.maddr());
            maptrack.set(handle, used.keep(None, false));
            return Ok((handle, machine_address));
        }
        let held = HeldHandle {
            handles: &cur.domain.grants.maptrack,
            handle: self.with_room(cur.domain).reserve()?,
        };
        let used = GrantUse::begin(self, granter, gref, me, UseKind::Host, access)?;
        let devices = if wanted.have(UseKind::Device) {
            Some(GrantUse::begin(self, granter, gref, me, UseKind::Device, access)?)
        } else {
            None
        };
        let user = if op.flags & GNTMAP_APPLICATION_MAP != 0 { pte::US } else { 0 };
        // The bits 16-18 of the flags are the guest's own bits of the entry.
        let own = u64::from((op.flags & GNTMAP_GUEST_AVAIL_MASK) >> 16) << 9 & pte::GUEST_FLAGS;
        let contains_pte = op.flags & GNTMAP_CONTAINS_PTE != 0;
        let (at, read_only) = (address(op.host_addr, contains_pte), access == Access::Read);
        let frame = used.frame;
        if self.map_grant_frame(cur.domain, cur.vcpu, at, frame, read_only, user | own).is_err() {
            devices.into_iter().for_each(GrantUse::end);
            return Err(GrantError::NotMapped);
        }
        let handle = held.complete(used.keep(devices, contains_pte));
        Ok((handle, frame.maddr()))
    }

    /// The handles of `domain`, locked, with room for one more if there is memory. The domain makes the hypervisor's memory
    /// grow, so that it has to do with what is left.
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

    /// Ends the grant mappings of a domain that is being destroyed, from handle `from` on; the handle to go on with, or
    /// `None` when all are done. The references of host mappings go with its page tables.
    pub fn release_grant_mappings(&self, domain: &Domain, from: u32) -> Option<u32> {
        let maptrack = &domain.grants.maptrack;
        let len = maptrack.lock().len();
        for next in from..len {
            if next > from && self.platform.work_pending() {
                return Some(next);
            }
            let Ok((_held, mapping)) = HeldHandle::take(maptrack, GrantHandle::new(next)) else { continue };
            drop(mapping.pin(UseKind::Host));
            GrantUse::end_kept(self, &mapping, UseKind::Device);
        }
        None
    }
}

/// What the unmaps of one batch freed. Dropping the batch flushes the TLB, then gives these frames back. (I9)
#[derive(Debug)]
#[must_use = "frames are given back when the batch is dropped"]
pub(crate) struct UnmapBatch<'a, P: Platform> {
    hv: &'a Hypervisor<P>,
    domain: &'a Domain,
    /// The mappings, each with the uses that ended.
    unmapped: ArrayVec<Mapping, UNMAP_BATCH>,
    /// One of these uses was a host mapping, so a TLB flush is owed.
    owes_flush: bool,
}

impl<'a, P: Platform> UnmapBatch<'a, P> {
    /// An empty batch of unmaps by `domain`.
    #[inline(always)]
    pub(crate) fn new(hv: &'a Hypervisor<P>, domain: &'a Domain) -> Self {
        Self { hv, domain, unmapped: ArrayVec::new_const(), owes_flush: false }
    }

    /// `GNTTABOP_unmap_grant_ref`, one operation of [`UNMAP_BATCH`] at most; `vcpu` runs here. With `replacement`, the entry of
    /// that address moves into the place of the mapping's (`GNTTABOP_unmap_and_replace`).
    ///
    /// # Errors
    /// `BadHandle`: no such mapping. `General`: the machine address is another. `NotMapped`.
    #[inline(always)]
    pub(crate) fn unmap(
        &mut self,
        vcpu: &Vcpu,
        op: &GnttabUnmapGrantRef,
        replacement: Option<u64>,
    ) -> Result<(), GrantError> {
        let (maptrack, handle) = (&self.domain.grants.maptrack, GrantHandle::new(op.handle));
        if op.host_addr == 0 {
            // No page table changes, and nothing is to be flushed before the frame is given back.
            let taken = maptrack.lock().take_for_device(handle, op.dev_bus_addr);
            if let Some(mapping) = taken {
                GrantUse::end_kept(self.hv, &mapping, UseKind::Device);
                return Ok(());
            }
        }
        let (held, mut mapping) = HeldHandle::take(maptrack, handle)?;
        let ended = Uses::new(op.host_addr != 0, op.dev_bus_addr != 0).common(mapping.uses);
        if let Err(error) = self.take_apart(vcpu, op, replacement, &mapping, ended) {
            held.complete(mapping);
            return Err(error);
        }
        if ended == mapping.uses {
            held.release();
        } else {
            let mut left = mapping.clone();
            left.uses = left.uses.without(ended);
            held.complete(left);
            mapping.uses = ended;
        }
        if ended != Uses::NONE {
            self.owes_flush |= ended.have(UseKind::Host);
            self.unmapped.push(mapping);
        }
        Ok(())
    }

    /// Flushes the TLB for the batch, then gives back what the mappings held, as dropping does: the caller forgets the batch.
    #[inline(always)]
    pub(crate) fn finish(&mut self) {
        if self.owes_flush {
            self.hv.flush_grants(self.domain);
        }
        for mapping in self.unmapped.drain(..) {
            GrantUse::end_kept(self.hv, &mapping, UseKind::Host);
            GrantUse::end_kept(self.hv, &mapping, UseKind::Device);
        }
    }

    /// Checks that the uses of a mapping that the operation ends are those it names, and takes the page-table entry out.
    #[inline(always)]
    fn take_apart(
        &self,
        vcpu: &Vcpu,
        op: &GnttabUnmapGrantRef,
        replacement: Option<u64>,
        mapping: &Mapping,
        ended: Uses,
    ) -> Result<(), GrantError> {
        let &Mapping { frame, access, contains_pte, .. } = mapping;
        if ended.have(UseKind::Device) && op.dev_bus_addr != frame.maddr().raw() {
            return Err(GrantError::General);
        }
        if !ended.have(UseKind::Host) {
            return Ok(());
        }
        let (at, read_only) = (address(op.host_addr, contains_pte), access == Access::Read);
        match replacement {
            None => self.hv.unmap_grant_frame(self.domain, vcpu, at, frame, read_only),
            Some(_) if contains_pte => return Err(GrantError::General),
            Some(with) => {
                self.hv.replace_grant_frame(self.domain, vcpu, at, frame, read_only, GuestVa::new(with))
            }
        }
        .map_err(|_| GrantError::NotMapped)
    }
}

impl<P: Platform> Drop for UnmapBatch<'_, P> {
    #[cold]
    fn drop(&mut self) {
        self.finish();
    }
}

fn address(host_addr: u64, contains_pte: bool) -> GrantAddress {
    if contains_pte {
        GrantAddress::Entry(Maddr::new(host_addr))
    } else {
        GrantAddress::Virtual(GuestVa::new(host_addr))
    }
}
