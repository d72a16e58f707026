//! Copying between granted and own pages.

use core::ops::Range;

use ring_abi::grant::{GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GnttabCopy, GnttabCopyPtr};
use ring_abi::types::{DOMID_SELF, DomId, GrantRef, Maddr, Mfn};

use super::DomainCache;
use super::state::{Access, EntryPin, GrantError, Shape, UseKind};
use super::uses::GrantUse;
use crate::Hypervisor;
use crate::domain::{Current, Domain};
use crate::platform::Platform;

const PAGE: Range<u32> = 0..4096;

/// The domains that a batch of copies names.
#[derive(Debug, Default)]
pub(crate) struct CopyCache {
    source: DomainCache,
    dest: DomainCache,
}

/// What is done with the frame of a side, of which some bytes may be used.
type WithBytes<'a> = dyn FnMut(Mfn, Range<u32>) -> Result<(), GrantError> + 'a;

impl<P: Platform> Hypervisor<P> {
    /// `GNTTABOP_copy`, one operation.
    ///
    /// # Errors
    /// `PermissionDenied`: another domain's page is named by frame. `BadDomain`, `BadGrantRef`, `General`, `BadPage`: see
    /// [`GrantError`]. `BadCopyArg`: a side crosses its page.
    #[inline]
    pub(crate) fn copy_grant(
        &self,
        cur: &Current<'_, P>,
        cache: &mut CopyCache,
        op: &GnttabCopy,
    ) -> Result<(), GrantError> {
        let source_granted = op.flags & GNTCOPY_SOURCE_GREF != 0;
        let dest_granted = op.flags & GNTCOPY_DEST_GREF != 0;
        if !source_granted && op.source.domid != DOMID_SELF || !dest_granted && op.dest.domid != DOMID_SELF {
            return Err(GrantError::PermissionDenied);
        }
        let copied =
            self.with_side(cur, &mut cache.source, &op.source, source_granted, Access::Read, |source| {
                self.with_side(cur, &mut cache.dest, &op.dest, dest_granted, Access::Write, |dest| {
                    if !is_inside(&op.source, op.len, &PAGE) || !is_inside(&op.dest, op.len, &PAGE) {
                        return Err(GrantError::BadCopyArg);
                    }
                    self.platform.copy_bytes(
                        at(dest, op.dest.offset),
                        at(source, op.source.offset),
                        usize::from(op.len),
                    );
                    Ok(())
                })
            });
        if copied == Err(GrantError::NotWhole) { self.copy_parts(cur, op) } else { copied }
    }

    /// Calls `then` with the frame of one side, which is held meanwhile.
    #[inline]
    fn with_side(
        &self,
        cur: &Current<'_, P>,
        cache: &mut DomainCache,
        side: &GnttabCopyPtr,
        granted: bool,
        access: Access,
        then: impl FnOnce(Mfn) -> Result<(), GrantError>,
    ) -> Result<(), GrantError> {
        if granted {
            let granter = cache.get(cur, DomId::new(side.domid))?;
            let gref = GrantRef::new(side.u as u32);
            let used = GrantUse::begin(self, granter, gref, cur.domain.id, UseKind::Host, access)?;
            let result = then(used.frame);
            used.end();
            return result;
        }
        let frame = Mfn::new(side.u);
        match access {
            Access::Read => {
                let held = self.get_page(frame, cur.domain).ok_or(GrantError::BadPage)?;
                then(held.mfn())
            }
            Access::Write => {
                let held = self.get_page_writable(frame, cur.domain).map_err(|_| GrantError::BadPage)?;
                then(held.mfn())
            }
        }
    }

    /// Does the same as [`Hypervisor::copy_grant`] where an entry of either side may be of version 2: a sub-page
    /// or a transitive grant.
    ///
    /// # Errors
    /// Those of [`Hypervisor::copy_grant`]; also `General` for bytes that an entry does not lend.
    #[cold]
    #[inline(never)]
    fn copy_parts(&self, cur: &Current<'_, P>, op: &GnttabCopy) -> Result<(), GrantError> {
        let (source_granted, dest_granted) =
            (op.flags & GNTCOPY_SOURCE_GREF != 0, op.flags & GNTCOPY_DEST_GREF != 0);
        self.with_part(cur, &op.source, source_granted, Access::Read, &mut |source, readable| {
            self.with_part(cur, &op.dest, dest_granted, Access::Write, &mut |dest, writable| {
                if !is_inside(&op.source, op.len, &PAGE) || !is_inside(&op.dest, op.len, &PAGE) {
                    return Err(GrantError::BadCopyArg);
                }
                if !is_inside(&op.source, op.len, &readable) || !is_inside(&op.dest, op.len, &writable) {
                    return Err(GrantError::General);
                }
                let len = usize::from(op.len);
                self.platform.copy_bytes(at(dest, op.dest.offset), at(source, op.source.offset), len);
                Ok(())
            })
        })
    }

    /// Calls `then` with the frame of one side, which is held meanwhile, and with what may be used of the frame.
    fn with_part(
        &self,
        cur: &Current<'_, P>,
        side: &GnttabCopyPtr,
        granted: bool,
        access: Access,
        then: &mut WithBytes<'_>,
    ) -> Result<(), GrantError> {
        let mut cache = DomainCache::default();
        if !granted {
            return self.with_side(cur, &mut cache, side, false, access, |frame| then(frame, PAGE));
        }
        let granter = cache.get(cur, DomId::new(side.domid))?;
        let (gref, me) = (GrantRef::new(side.u as u32), cur.domain.id);
        let (lent, shape, pin) = EntryPin::of_any_shape(&granter.grants.entries, gref, me, access)?;
        let Shape::Onwards(owner) = shape else { return self.with_bytes(granter, lent, shape, pin, then) };
        // The granter passes on what another domain lends to it: one step, so that the end is known, and in the granter's
        // name. The granter's own entry stays in use meanwhile. (I34)
        if owner == granter.id {
            return Err(GrantError::General);
        }
        let owner = self.domains.get(owner).ok_or(GrantError::General)?;
        let gref = GrantRef::new(lent.raw() as u32);
        let (lent, shape, inner) = EntryPin::of_any_shape(&owner.grants.entries, gref, granter.id, access)?;
        self.with_bytes(&owner, lent, shape, inner, then)
    }

    /// Calls `then` with a frame of `owner` that `pin` is a use of, and with what may be used of the frame.
    fn with_bytes(
        &self,
        owner: &Domain,
        frame: Mfn,
        shape: Shape,
        pin: EntryPin<'_>,
        then: &mut WithBytes<'_>,
    ) -> Result<(), GrantError> {
        let lent = match shape {
            Shape::Page => PAGE,
            Shape::Part { start, len } => u32::from(start)..u32::from(start) + u32::from(len),
            Shape::Onwards(_) => return Err(GrantError::General),
        };
        let used = GrantUse::hold(self, owner, frame, pin)?;
        then(used.frame, lent)
    }
}

/// Whether a copy of `len` bytes stays within some bytes of a page on one side.
#[inline(always)]
fn is_inside(side: &GnttabCopyPtr, len: u16, bytes: &Range<u32>) -> bool {
    let start = u32::from(side.offset);
    bytes.start <= start && start + u32::from(len) <= bytes.end
}

fn at(frame: Mfn, offset: u16) -> Maddr {
    frame.maddr().add(offset.into())
}
