//! Uses of grants: the pin of an entry, and the references on its frame.

use ring_abi::types::{DomId, Mfn};

use super::state::{Access, GrantError, Granted, Use, unpin_grant};
use crate::Hypervisor;
use crate::domain::Domain;
use crate::platform::Platform;

impl<P: Platform> Hypervisor<P> {
    /// Begins a use of grant `gref` of `granter` by `grantee`: pins the entry and takes the references on its frame that
    /// the use owns.
    ///
    /// # Errors
    /// `BadGrantRef`, `General`, `BadPage`.
    #[inline(always)]
    pub fn begin_grant_use(
        &self,
        granter: &Domain,
        gref: u32,
        grantee: DomId,
        usage: Use,
        access: Access,
    ) -> Result<Mfn, GrantError> {
        let frame = granter.grants.entries.lock().pin(gref, grantee, usage, access)?;
        let held = match access {
            Access::Read => self.get_page(frame, granter).map(|page| page.into_raw()),
            Access::Write => self.get_page_writable(frame, granter).ok().map(|page| page.into_raw()),
        };
        if held.is_none() {
            unpin_grant(&granter.grants.entries, gref, usage, access);
            return Err(GrantError::BadPage);
        }
        Ok(frame)
    }

    /// Ends a use: gives the references back, then the pin.
    #[inline(always)]
    pub(in crate::gnttab) fn end_grant_use(
        &self,
        granted: &Granted,
        gref: u32,
        frame: Mfn,
        usage: Use,
        access: Access,
    ) {
        match access {
            Access::Read => self.put_page(frame),
            Access::Write => self.put_page_and_type(frame),
        }
        unpin_grant(granted, gref, usage, access);
    }
}
