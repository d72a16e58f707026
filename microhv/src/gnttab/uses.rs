//! Uses of grants: the pin of an entry, and the references on its frame.

use core::mem::ManuallyDrop;

use ring_abi::types::{DomId, GrantRef, Mfn};

use super::state::{Access, EntryPin, GrantError, Mapping, UseKind};
use crate::Hypervisor;
use crate::domain::Domain;
use crate::platform::Platform;

/// A use of a grant, which pins the entry and owns references on its frame: a general one, and one of type writable unless
/// the use only reads. (I9)
#[derive(Debug)]
#[must_use = "the use ends when this is dropped"]
pub(super) struct GrantUse<'a, P: Platform> {
    hv: &'a Hypervisor<P>,
    /// The one of the entry when its first use began.
    pub(super) frame: Mfn,
    /// Ends after the references are given back.
    pin: EntryPin<'a>,
}

impl<'a, P: Platform> GrantUse<'a, P> {
    /// Begins a use of grant `gref` of `granter` by `grantee`.
    ///
    /// # Errors
    /// `BadGrantRef`, `General`, `BadPage`, `NotWhole`.
    #[inline(always)]
    pub(super) fn begin(
        hv: &'a Hypervisor<P>,
        granter: &'a Domain,
        gref: GrantRef,
        grantee: DomId,
        kind: UseKind,
        access: Access,
    ) -> Result<Self, GrantError> {
        let (frame, pin) = EntryPin::new(&granter.grants.entries, gref, grantee, kind, access)?;
        Self::hold(hv, granter, frame, pin)
    }

    /// Makes the use that `pin` stands for, and takes its reference on the granter's frame.
    ///
    /// # Errors
    /// `BadPage`.
    #[inline(always)]
    pub(super) fn hold(
        hv: &'a Hypervisor<P>,
        granter: &Domain,
        frame: Mfn,
        pin: EntryPin<'a>,
    ) -> Result<Self, GrantError> {
        match pin.access {
            Access::Read => hv.get_page(frame, granter).map(|page| page.into_raw()),
            Access::Write => hv.get_page_writable(frame, granter).ok().map(|page| page.into_raw()),
        }
        .ok_or(GrantError::BadPage)?;
        Ok(Self { hv, frame, pin })
    }

    /// Ends the use of a kind that a mapping kept, if the mapping did.
    #[inline(always)]
    pub(super) fn end_kept(hv: &'a Hypervisor<P>, mapping: &'a Mapping, kind: UseKind) {
        if let Some(pin) = mapping.pin(kind) {
            Self { hv, frame: mapping.frame, pin }.end();
        }
    }

    /// Ends the use, as dropping does: here for the paths that are often taken.
    #[inline(always)]
    pub(super) fn end(self) {
        let this = ManuallyDrop::new(self);
        match this.pin.access {
            Access::Read => this.hv.put_page(this.frame),
            Access::Write => this.hv.put_page_and_type(this.frame),
        }
        this.pin.unpin();
    }

    /// The mapping that owns this use from now on, and `other`, which is of the same entry.
    #[inline(always)]
    pub(super) fn keep(self, other: Option<Self>, contains_pte: bool) -> Mapping {
        let mapping = Mapping::new(self.frame, &self.pin, other.is_some(), contains_pte);
        core::mem::forget((self, other));
        mapping
    }
}

impl<P: Platform> Drop for GrantUse<'_, P> {
    #[inline(always)]
    fn drop(&mut self) {
        give_up(self.hv, self.frame, self.pin.access);
    }
}

/// Gives references back on a path that is seldom taken. By value, so that a use stays in registers on the others.
#[inline(never)]
fn give_up<P: Platform>(hv: &Hypervisor<P>, frame: Mfn, access: Access) {
    match access {
        Access::Read => hv.put_page(frame),
        Access::Write => hv.put_page_and_type(frame),
    }
}
