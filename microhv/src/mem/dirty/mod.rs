//! Dirty tracking: which frames of a domain were written in a round, without memory of its own (docs/DIRTY.md).
//!
//! - here: what is kept, and marks of single frames
//! - [`entries`]: level 1 entries of a tracked domain
//! - [`faults`]: the first write through an entry that lost RW
//! - [`rounds`]: what the toolstack asks for
//!
//! Two generations take turns as the present one. A frame's type word has a flag for each that says "not written", so that what a
//! new frame has says "written". A round makes the other generation the present one, then reports what is dirty in the former.

pub(super) mod entries;
pub mod faults;
pub mod rounds;

use ring_abi::types::Mfn;

use super::session::{self, Mm};
use crate::Hypervisor;
use crate::frames::info::{FrameInfo, TypeWord, UseWord};
use crate::platform::Platform;

impl<P: Platform> Hypervisor<P> {
    /// A frame was written that had a flag of [`TypeWord::ANY_CLEAN`] thereafter. The caller holds a reference on the frame. Each
    /// reference of type writable that is not a guest's entry comes here when it is given back, so no writer needs a call of its own.
    #[cold]
    #[inline(never)]
    pub(crate) fn mark_dirty(&self, info: &FrameInfo) {
        let Some(owner) = info.owner().and_then(|id| self.domains.get(id)) else { return };
        // A round that begins between may be past the frame already: then the frame is dirty in the new generation, too.
        loop {
            let clean = owner.mm.tracking.clean();
            info.clear_flags(clean);
            if owner.mm.tracking.clean() == clean {
                return;
            }
        }
    }
}

impl<'a, P: Platform> Mm<'a, P> {
    /// Whether an update is more than the change of an entry: a flush is owed, or the domain is tracked.
    #[inline(always)]
    pub(in crate::mem) const fn is_special(&self) -> bool {
        self.state != 0
    }

    /// Whether level 1 tables of the domain, or copies that the guest has of their entries, may have marks.
    #[inline(always)]
    pub(crate) const fn is_of_tracked(&self) -> bool {
        self.state & session::TRACKED != 0
    }

    /// The hypervisor changes a table of the domain's for the guest, to which the caller holds a reference.
    #[inline(always)]
    pub(super) fn mark(&self, mfn: Mfn) {
        if self.is_of_tracked() {
            self.mark_frame(mfn);
        }
    }

    /// The frame, on which there is a reference, is dirty from now on.
    #[cold]
    #[inline(never)]
    fn mark_frame(&self, mfn: Mfn) {
        match self.own_frame(mfn) {
            Some(info) => info.clear_flags(self.dom.mm.tracking.clean()),
            None => self.hv.frames.info(mfn).into_iter().for_each(|info| self.hv.mark_dirty(info)),
        }
    }

    /// The frame, if the frame is the domain's own, and not the hypervisor's that is lent to the domain: only such frames are
    /// reported.
    fn own_frame(&self, mfn: Mfn) -> Option<&'a FrameInfo> {
        let info = self.hv.frames.info(mfn)?;
        let using = info.load_use();
        (using.is_owned_by(self.dom.id) && !using.has(UseWord::LENT)).then_some(info)
    }

    /// Whether dirty tracking has been over the entries of a level 1 table.
    #[inline(always)]
    pub(super) fn is_tracked(&self, table: Mfn) -> bool {
        self.is_of_tracked() && self.hv.frames.held(table).load_kind().has(TypeWord::TRACKED)
    }
}
