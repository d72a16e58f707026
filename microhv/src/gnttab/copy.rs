//! Copying between granted and own pages.

use core::ops::Range;

use ring_abi::grant::{GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GnttabCopy, GnttabCopyPtr};
use ring_abi::types::{DOMID_SELF, DomId, GrantRef, Maddr, Mfn};

use super::DomainCache;
use super::state::{Access, Entries, EntryPin, GrantError, Marked, Shape};
use super::uses::GrantUse;
use crate::Hypervisor;
use crate::domain::{Current, Domain};
use crate::nospec;
use crate::platform::{GuestFault, Platform};
use crate::sync::lock_pair;

const PAGE: Range<u32> = 0..4096;

/// The domains that a batch of copies names.
#[derive(Debug, Default)]
pub(crate) struct CopyCache {
    source: DomainCache,
    dest: DomainCache,
}

/// What is done with the frame of a side, of which some bytes may be used.
type WithBytes<'a> = dyn FnMut(Mfn, Range<u32>) -> Result<(), GrantError> + 'a;

/// One side of a run of copies: whose frames, and the locked entries that lend them, if they are granted.
struct Side<'a> {
    owner: DomId,
    entries: Option<&'a Entries>,
}

impl<'a> Side<'a> {
    /// The frame that an operation names, whose entry is marked until the mark is dropped.
    ///
    /// # Errors
    /// See [`Entries::mark`].
    #[inline(always)]
    fn frame(
        &self,
        side: &GnttabCopyPtr,
        me: DomId,
        access: Access,
    ) -> Result<(Mfn, Marked<'a>), GrantError> {
        match self.entries {
            Some(entries) => entries.mark(GrantRef::new(side.u as u32), me, access),
            None => Ok((Mfn::new(side.u), Marked::NOTHING)),
        }
    }
}

impl<P: Platform> Hypervisor<P> {
    /// `GNTTABOP_copy`: the first of `ops`, and those after it that name the same domains in the same way, in their order;
    /// each result is told before the next operation begins. How many were done.
    ///
    /// # Errors
    /// What `tell` says: the operations after that one were not done.
    #[inline(always)]
    pub(crate) fn copy_grants(
        &self,
        cur: &Current<'_, P>,
        cache: &mut CopyCache,
        ops: &[GnttabCopy],
        mut tell: impl FnMut(usize, Result<(), GrantError>) -> Result<(), GuestFault>,
    ) -> Result<usize, GuestFault> {
        let Some(first) = ops.first() else { return Ok(0) };
        let granters = match Self::granters(cur, cache, first) {
            Ok(granters) => granters,
            Err(error) => return tell(0, Err(error)).map(|()| 1),
        };
        let done = self.copy_run(cur, granters, ops, &mut tell)?;
        let Some(op) = ops.get(done).filter(|op| done == 0 || is_alike(first, op)) else { return Ok(done) };
        tell(done, self.copy_parts(cur, op)).map(|()| done + 1)
    }

    /// The granters of the two sides of an operation, where a side is granted.
    ///
    /// # Errors
    /// `PermissionDenied`: another domain's page is named by frame. `BadDomain`.
    #[inline(always)]
    fn granters<'a>(
        cur: &'a Current<'_, P>,
        cache: &'a mut CopyCache,
        op: &GnttabCopy,
    ) -> Result<[Option<&'a Domain>; 2], GrantError> {
        let (from_grant, to_grant) = (op.flags & GNTCOPY_SOURCE_GREF != 0, op.flags & GNTCOPY_DEST_GREF != 0);
        if !from_grant && op.source.domid != DOMID_SELF || !to_grant && op.dest.domid != DOMID_SELF {
            return Err(GrantError::PermissionDenied);
        }
        let source =
            if from_grant { Some(&**cache.source.get(cur, DomId::new(op.source.domid))?) } else { None };
        let dest = if to_grant { Some(&**cache.dest.get(cur, DomId::new(op.dest.domid))?) } else { None };
        Ok([source, dest])
    }

    /// Copies as the first of `ops` and those that are like it say, until one takes [`Hypervisor::copy_parts`]: how many were
    /// done. The tables stay locked, so that no use is counted: entries are marked, and frames held, for one operation each.
    #[inline(always)]
    fn copy_run(
        &self,
        cur: &Current<'_, P>,
        [source, dest]: [Option<&Domain>; 2],
        ops: &[GnttabCopy],
        tell: &mut impl FnMut(usize, Result<(), GrantError>) -> Result<(), GuestFault>,
    ) -> Result<usize, GuestFault> {
        let me = cur.domain.id;
        let (first, second) = match (source, dest) {
            (Some(source), Some(dest)) => {
                let (first, second) = lock_pair(
                    (source.id.raw(), &*source.grants.entries),
                    (dest.id.raw(), &*dest.grants.entries),
                );
                (Some(first), second)
            }
            (Some(only), None) | (None, Some(only)) => (Some(only.grants.entries.lock()), None),
            (None, None) => (None, None),
        };
        let entries = first.as_deref();
        let source = Side {
            owner: source.map_or(me, |domain| domain.id),
            entries: entries.filter(|_| source.is_some()),
        };
        let dest = Side {
            owner: dest.map_or(me, |domain| domain.id),
            entries: second.as_deref().or(entries).filter(|_| dest.is_some()),
        };
        for (n, op) in ops.iter().enumerate() {
            match self.copy_page(me, &source, &dest, op) {
                // Apart from errors, of which each would have to be looked for.
                Ok(()) => tell(n, Ok(()))?,
                Err(GrantError::NotWhole) => return Ok(n),
                Err(error) => tell(n, Err(error))?,
            }
            if ops.get(n + 1).is_some_and(|next| !is_alike(op, next)) {
                return Ok(n + 1);
            }
        }
        Ok(ops.len())
    }

    /// One operation between whole pages whose frames need no flush.
    ///
    /// # Errors
    /// `NotWhole`: [`Hypervisor::copy_parts`] has to look. `BadGrantRef`, `General`, `BadPage`: see [`GrantError`].
    /// `BadCopyArg`: a side crosses its page.
    #[inline(always)]
    fn copy_page(
        &self,
        me: DomId,
        source: &Side<'_>,
        dest: &Side<'_>,
        op: &GnttabCopy,
    ) -> Result<(), GrantError> {
        let (from, _marked) = source.frame(&op.source, me, Access::Read)?;
        let from = self.get_page_of(from, source.owner).ok_or(GrantError::BadPage)?;
        let (to, _marked) = dest.frame(&op.dest, me, Access::Write)?;
        let to = self.get_page_still_writable(to, dest.owner).ok_or(GrantError::NotWhole)?;
        if !is_inside(&op.source, op.len, &PAGE) || !is_inside(&op.dest, op.len, &PAGE) {
            return Err(GrantError::BadCopyArg);
        }
        nospec::barrier(); // neither other frames nor others' parts are read or written ahead
        let len = usize::from(op.len);
        self.platform.copy_bytes(at(to.mfn(), op.dest.offset), at(from.mfn(), op.source.offset), len);
        Ok(())
    }

    /// One operation, whatever the sides are: an entry may lend a part of a page, or what another domain lends.
    ///
    /// # Errors
    /// `BadDomain`, `BadGrantRef`, `BadPage`, `BadCopyArg`: see [`GrantError`]. `General`: bytes that are not lent, too.
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
                nospec::barrier(); // as in `copy_page`
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
        if !granted {
            let (frame, owner) = (Mfn::new(side.u), cur.domain);
            return match access {
                Access::Read => {
                    let held = self.get_page(frame, owner).ok_or(GrantError::BadPage)?;
                    then(held.mfn(), PAGE)
                }
                Access::Write => {
                    let held = self.get_page_writable(frame, owner).map_err(|_| GrantError::BadPage)?;
                    then(held.mfn(), PAGE)
                }
            };
        }
        let mut cache = DomainCache::default();
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

/// Whether both operations name the same domains in the same way.
#[inline(always)]
fn is_alike(a: &GnttabCopy, b: &GnttabCopy) -> bool {
    (a.source.domid, a.dest.domid, a.flags) == (b.source.domid, b.dest.domid, b.flags)
}

/// Whether a copy of `len` bytes stays within some bytes of a page on one side.
#[inline(always)]
fn is_inside(side: &GnttabCopyPtr, len: u16, bytes: &Range<u32>) -> bool {
    let start = u32::from(side.offset);
    bytes.start <= start && start + u32::from(len) <= bytes.end
}

/// A byte of a frame that the frame table has, so that the address does not wrap.
fn at(frame: Mfn, offset: u16) -> Maddr {
    Maddr::new(frame.maddr().raw().wrapping_add(offset.into()))
}
