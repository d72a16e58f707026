//! Copying between granted and own pages.

use core::ops::Range;

use ring_abi::grant::{GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GnttabCopy, GnttabCopyPtr};
use ring_abi::types::{DOMID_SELF, DomId, GrantRef, Maddr, Mfn};

use super::DomainCache;
use super::state::{Access, Entries, EntryPin, GrantError, Marked, Shape};
use super::uses::GrantUse;
use crate::Hypervisor;
use crate::domain::{Current, Domain};
use crate::mem::FrameRef;
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

/// One side of a run of copies: the caller's own frames, and frames that a domain has granted, by its locked entries.
struct Side<'a, P: Platform, const TYPED: bool> {
    me: DomId,
    granter: Option<(DomId, &'a Entries)>,
    /// The last of the caller's own frames that an operation named, held until an operation names another: small pieces of one
    /// page go in a row to and from granted pages.
    own: Option<FrameRef<'a, P, TYPED>>,
}

/// A granted frame for one operation: what holds the frame, and then the mark of the frame's entry, are given back when this is
/// dropped.
type Lent<'a, P, const TYPED: bool> = Option<(FrameRef<'a, P, TYPED>, Marked<'a>)>;

impl<'a, P: Platform, const TYPED: bool> Side<'a, P, TYPED> {
    /// The frame that an operation names, held by `get`, which gets the frame and the frame's owner.
    ///
    /// # Errors
    /// See [`Entries::mark`]; and what `get` says.
    #[inline(always)]
    fn frame(
        &mut self,
        side: &GnttabCopyPtr,
        is_granted: bool,
        lent: &mut Lent<'a, P, TYPED>,
        get: impl FnOnce(Mfn, DomId) -> Result<FrameRef<'a, P, TYPED>, GrantError>,
    ) -> Result<Mfn, GrantError> {
        if is_granted && let Some((granter, entries)) = self.granter {
            let access = if TYPED { Access::Write } else { Access::Read };
            let (frame, mark) = entries.mark(GrantRef::new(side.u as u32), self.me, access)?;
            *lent = Some((get(frame, granter)?, mark));
            return Ok(frame);
        }
        let frame = Mfn::new(side.u);
        if self.own.as_ref().is_none_or(|held| held.mfn() != frame) {
            self.own = Some(get(frame, self.me)?);
        }
        Ok(frame)
    }
}

/// Which operations make a run: they have one destination, and each source is the caller's own or one domain's.
#[derive(Clone, Copy)]
struct Alike {
    dest: u16,
    flags: u16,
    /// The domain that grants what is granted of the sources.
    lender: Option<u16>,
}

impl Alike {
    /// Those that are like the first of `ops`.
    #[inline(always)]
    fn to_first(ops: &[GnttabCopy], first: &GnttabCopy) -> Self {
        let lender = |op: &GnttabCopy| (op.flags & GNTCOPY_SOURCE_GREF != 0).then_some(op.source.domid);
        let (dest, flags) = (first.dest.domid, first.flags & !GNTCOPY_SOURCE_GREF);
        // Of a packet, the caller has rewritten the first piece and not the second.
        let second =
            || ops.get(1).filter(|op| op.dest.domid == dest && op.flags == first.flags | GNTCOPY_SOURCE_GREF);
        Self { dest, flags, lender: lender(first).or_else(|| lender(second()?)) }
    }

    #[inline(always)]
    fn has(&self, op: &GnttabCopy) -> bool {
        let is_granted = op.flags & GNTCOPY_SOURCE_GREF != 0;
        let is_of_source =
            if is_granted { self.lender == Some(op.source.domid) } else { op.source.domid == DOMID_SELF };
        is_of_source && op.dest.domid == self.dest && op.flags & !GNTCOPY_SOURCE_GREF == self.flags
    }
}

impl<P: Platform> Hypervisor<P> {
    /// `GNTTABOP_copy`: the first of `ops`, and those after it that are [`Alike`], in their order; each result is told before the
    /// next operation begins. How many were done.
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
        let mut alike = Alike::to_first(ops, first);
        let granters = match Self::granters(cur, cache, first, &mut alike) {
            Ok(granters) => granters,
            Err(error) => return tell(0, Err(error)).map(|()| 1),
        };
        let done = self.copy_run(cur, granters, ops, &alike, &mut tell)?;
        let Some(op) = ops.get(done).filter(|op| done == 0 || alike.has(op)) else { return Ok(done) };
        tell(done, self.copy_parts(cur, op)).map(|()| done + 1)
    }

    /// The granters of the two sides of a run that begins with `op`, where a side is granted.
    ///
    /// # Errors
    /// `PermissionDenied`: another domain's page is named by frame. `BadDomain`.
    #[inline(always)]
    fn granters<'a>(
        cur: &'a Current<'_, P>,
        cache: &'a mut CopyCache,
        op: &GnttabCopy,
        alike: &mut Alike,
    ) -> Result<[Option<&'a Domain>; 2], GrantError> {
        let (from_grant, to_grant) = (op.flags & GNTCOPY_SOURCE_GREF != 0, op.flags & GNTCOPY_DEST_GREF != 0);
        if !from_grant && op.source.domid != DOMID_SELF || !to_grant && op.dest.domid != DOMID_SELF {
            return Err(GrantError::PermissionDenied);
        }
        let source = match alike.lender.map(|lender| cache.source.get(cur, DomId::new(lender))) {
            Some(Ok(lender)) => Some(&**lender),
            Some(Err(error)) if from_grant => return Err(error),
            Some(Err(_)) => {
                alike.lender = None; // an operation behind this one will say so
                None
            }
            None => None,
        };
        let dest = if to_grant { Some(&**cache.dest.get(cur, DomId::new(op.dest.domid))?) } else { None };
        Ok([source, dest])
    }

    /// Copies as the first of `ops` and those that are `alike` say, until one takes [`Hypervisor::copy_parts`]: how many were
    /// done. The tables stay locked, so that no use is counted: entries are marked, and granted frames held, for one operation
    /// each.
    #[inline(always)]
    fn copy_run(
        &self,
        cur: &Current<'_, P>,
        [source, dest]: [Option<&Domain>; 2],
        ops: &[GnttabCopy],
        alike: &Alike,
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
        let of_dest = second.as_deref().or(entries);
        let mut source = Side {
            me,
            granter: source.zip(entries).map(|(domain, entries)| (domain.id, entries)),
            own: None,
        };
        let mut dest =
            Side { me, granter: dest.zip(of_dest).map(|(domain, entries)| (domain.id, entries)), own: None };
        for (n, op) in ops.iter().enumerate() {
            if n != 0 && !alike.has(op) {
                return Ok(n);
            }
            match self.copy_page(&mut source, &mut dest, op) {
                Err(GrantError::NotWhole) => return Ok(n),
                result => tell(n, result)?,
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
    fn copy_page<'a>(
        &'a self,
        source: &mut Side<'a, P, false>,
        dest: &mut Side<'a, P, true>,
        op: &GnttabCopy,
    ) -> Result<(), GrantError> {
        let (mut readable, mut writable) = (None, None);
        let (from_grant, to_grant) = (op.flags & GNTCOPY_SOURCE_GREF != 0, op.flags & GNTCOPY_DEST_GREF != 0);
        let from = source.frame(&op.source, from_grant, &mut readable, |frame, owner| {
            self.get_page_of(frame, owner).ok_or(GrantError::BadPage)
        })?;
        let to = dest.frame(&op.dest, to_grant, &mut writable, |frame, owner| {
            self.get_page_still_writable(frame, owner).ok_or(GrantError::NotWhole)
        })?;
        if !is_inside(&op.source, op.len, &PAGE) || !is_inside(&op.dest, op.len, &PAGE) {
            return Err(GrantError::BadCopyArg);
        }
        let len = usize::from(op.len);
        self.platform.copy_bytes(at(to, op.dest.offset), at(from, op.source.offset), len);
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

/// Whether a copy of `len` bytes stays within some bytes of a page on one side.
#[inline(always)]
fn is_inside(side: &GnttabCopyPtr, len: u16, bytes: &Range<u32>) -> bool {
    let start = u32::from(side.offset);
    bytes.start <= start && start + u32::from(len) <= bytes.end
}

fn at(frame: Mfn, offset: u16) -> Maddr {
    frame.maddr().add(offset.into())
}
