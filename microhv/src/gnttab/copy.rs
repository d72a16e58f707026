//! Copying between granted and own pages.

use ring_abi::grant::{GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GnttabCopy, GnttabCopyPtr};
use ring_abi::types::{DOMID_SELF, DomId, GrantRef, Maddr, Mfn};

use super::DomainCache;
use super::state::{Access, GrantError, UseKind};
use super::uses::GrantUse;
use crate::Hypervisor;
use crate::domain::Current;
use crate::platform::Platform;

const PAGE: u32 = 4096;

/// The domains that a batch of copies names.
#[derive(Debug, Default)]
pub(crate) struct CopyCache {
    source: DomainCache,
    dest: DomainCache,
}

impl<P: Platform> Hypervisor<P> {
    /// `GNTTABOP_copy`, one operation.
    ///
    /// # Errors
    /// `BadCopyArg`: a side crosses its page. `PermissionDenied`: another domain's page is named by frame. `BadDomain`,
    /// `BadGrantRef`, `General`, `BadPage`: see [`GrantError`].
    #[inline]
    pub(crate) fn copy_grant(
        &self,
        cur: &Current<'_, P>,
        cache: &mut CopyCache,
        op: &GnttabCopy,
    ) -> Result<(), GrantError> {
        let inside = |side: &GnttabCopyPtr| u32::from(side.offset) + u32::from(op.len) <= PAGE;
        if !inside(&op.source) || !inside(&op.dest) {
            return Err(GrantError::BadCopyArg);
        }
        let source_granted = op.flags & GNTCOPY_SOURCE_GREF != 0;
        let dest_granted = op.flags & GNTCOPY_DEST_GREF != 0;
        if !source_granted && op.source.domid != DOMID_SELF || !dest_granted && op.dest.domid != DOMID_SELF {
            return Err(GrantError::PermissionDenied);
        }
        self.with_side(cur, &mut cache.source, &op.source, source_granted, Access::Read, |source| {
            self.with_side(cur, &mut cache.dest, &op.dest, dest_granted, Access::Write, |dest| {
                self.platform.copy_bytes(
                    at(dest, op.dest.offset),
                    at(source, op.source.offset),
                    usize::from(op.len),
                );
                Ok(())
            })
        })
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
}

fn at(frame: Mfn, offset: u16) -> Maddr {
    frame.maddr().add(offset.into())
}
