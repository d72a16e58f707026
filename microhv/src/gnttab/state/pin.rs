//! Uses of entries, each a value that ends the use when it goes.

use alloc::sync::Arc;
use core::mem::ManuallyDrop;

use ring_abi::types::{DomId, GrantRef, Mfn};

use super::entries::{Entries, Granted};
use super::words::Shape;
use super::{Access, GrantError, UseKind};

/// The pin of one use of an entry.
#[derive(Debug)]
#[must_use = "the entry's use ends when this is dropped"]
pub(crate) struct EntryPin<'a> {
    pub(super) granted: &'a Arc<Granted>,
    pub(super) gref: GrantRef,
    pub(super) kind: UseKind,
    pub(crate) access: Access,
}

impl<'a> EntryPin<'a> {
    /// Pins entry `gref` for `grantee`, and returns its frame, which the entry lends as a whole.
    ///
    /// # Errors
    /// `BadGrantRef`: no such entry. `General`: the entry does not permit it or keeps changing, or has too many uses.
    /// `NotWhole`: the entry lends something else than a page.
    #[inline(always)]
    pub(crate) fn new(
        granted: &'a Arc<Granted>,
        gref: GrantRef,
        grantee: DomId,
        kind: UseKind,
        access: Access,
    ) -> Result<(Mfn, Self), GrantError> {
        let mut entries = granted.lock();
        if let Some((words, active, used)) = entries.narrow_entry(gref) {
            let words = words.ok_or(GrantError::BadGrantRef)?;
            let (frame, _) = active.pin(used, words, grantee, (kind, access), true)?;
            return Ok((frame, Self { granted, gref, kind, access }));
        }
        let (frame, _) = seldom(&mut entries, gref, grantee, (kind, access), true)?;
        Ok((frame, Self { granted, gref, kind, access }))
    }

    /// Pins entry `gref` for a copy by `grantee`, and returns its frame and what it lends of that.
    ///
    /// # Errors
    /// The errors of [`EntryPin::new`], but `NotWhole`.
    pub(crate) fn of_any_shape(
        granted: &'a Arc<Granted>,
        gref: GrantRef,
        grantee: DomId,
        access: Access,
    ) -> Result<(Mfn, Shape, Self), GrantError> {
        match Self::new(granted, gref, grantee, UseKind::Host, access) {
            Err(GrantError::NotWhole) => {}
            whole => return whole.map(|(frame, pin)| (frame, Shape::Page, pin)),
        }
        let kind = UseKind::Host;
        let (frame, shape) = seldom(&mut granted.lock(), gref, grantee, (kind, access), false)?;
        Ok((frame, shape, Self { granted, gref, kind, access }))
    }

    /// Ends the use, as drop does; the caller must forget the pin afterwards. The last use of a kind clears the
    /// entry's marks of that kind. A granter that is dead may have no record of the use any more.
    #[inline(always)]
    pub(crate) fn unpin(&self) {
        let mut entries = self.granted.lock();
        if let Some((words, active, used)) = entries.narrow_entry(self.gref) {
            active.unpin(used, words, self.kind, self.access);
        } else {
            unpin_wide(&mut entries, self.gref, self.kind, self.access);
        }
    }
}

/// Pins an entry of either version; with `whole`, one that lends a page. Entries of version 1 seldom come here.
#[cold]
#[inline(never)]
fn seldom(
    entries: &mut Entries,
    gref: GrantRef,
    grantee: DomId,
    how: (UseKind, Access),
    whole: bool,
) -> Result<(Mfn, Shape), GrantError> {
    let found = match entries.narrow_entry(gref) {
        None => entries.wide_entry(gref),
        found => found,
    };
    let (words, active, used) = found.ok_or(GrantError::BadGrantRef)?;
    active.pin(used, words.ok_or(GrantError::BadGrantRef)?, grantee, how, whole)
}

#[cold]
#[inline(never)]
fn unpin_wide(entries: &mut Entries, gref: GrantRef, kind: UseKind, access: Access) {
    if let Some((words, active, used)) = entries.wide_entry(gref) {
        active.unpin(used, words, kind, access);
    }
}

impl Drop for EntryPin<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let Self { granted, gref, kind, access } = *self;
        give_up(granted, gref, kind, access);
    }
}

/// Ends a use on a path that is seldom taken. By value, so that a pin stays in registers on the others.
#[inline(never)]
fn give_up(granted: &Arc<Granted>, gref: GrantRef, kind: UseKind, access: Access) {
    ManuallyDrop::new(EntryPin { granted, gref, kind, access }).unpin();
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use ring_abi::grant::GTF_PERMIT_ACCESS;
    use ring_abi::shared::leaked_pages;

    use super::super::active::MAX_PINS;
    use super::super::entries::{Part, Version, granted};
    use super::*;

    #[test]
    fn uses_of_a_kind_end_at_their_limit_and_leave_the_other_kinds() {
        for version in [Version::One, Version::Two] {
            let (page, status) = (leaked_pages(1), leaked_pages(1));
            let (me, gref) = (DomId::new(1), GrantRef::new(0));
            let entry = u64::from(GTF_PERMIT_ACCESS) | 1 << 16;
            page.store_u64(0, entry | 7 << 32);
            let granted = granted();
            {
                let mut entries = granted.lock();
                assert!(entries.add_frame(Part::Entries, (Mfn::new(3), page)));
                assert!(entries.add_frame(Part::Status, (Mfn::new(4), status)));
                if version == Version::Two {
                    entries.switch(version, |_| true).unwrap();
                }
            }
            let mut pins = Vec::new();
            let kinds =
                [UseKind::Host, UseKind::Device].map(|kind| [(kind, Access::Read), (kind, Access::Write)]);
            for &(kind, access) in kinds.as_flattened() {
                for _ in 0..MAX_PINS {
                    let (frame, pin) = EntryPin::new(&granted, gref, me, kind, access).unwrap();
                    assert_eq!(frame, Mfn::new(7));
                    pins.push(pin);
                }
                let refused = EntryPin::new(&granted, gref, me, kind, access).unwrap_err();
                assert_eq!(refused, GrantError::General, "one too many");
            }
            drop(pins);
            let flags = u64::from(page.load_u32(0)) | u64::from(status.load_u16(0));
            assert_eq!((granted.lock().pinned(), flags), (0, entry));
        }
    }
}
