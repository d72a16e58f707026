//! Uses of grants: the pin of an entry, and the references on its frame.

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
    /// `BadGrantRef`, `General`, `BadPage`.
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
        match access {
            Access::Read => hv.get_page(frame, granter).map(|page| page.into_raw()),
            Access::Write => hv.get_page_writable(frame, granter).ok().map(|page| page.into_raw()),
        }
        .ok_or(GrantError::BadPage)?;
        Ok(Self { hv, frame, pin })
    }

    /// The use of a kind that a mapping kept, if it did: it ends now.
    #[inline(always)]
    pub(super) fn kept_by(hv: &'a Hypervisor<P>, mapping: &'a Mapping, kind: UseKind) -> Option<Self> {
        Some(Self { hv, frame: mapping.frame, pin: mapping.pin(kind)? })
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
        match self.pin.access {
            Access::Read => self.hv.put_page(self.frame),
            Access::Write => self.hv.put_page_and_type(self.frame),
        }
    }
}
