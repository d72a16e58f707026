//! The granter's side: entries shared with the guest, and what is pinned of them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ring_abi::grant as abi;
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, Mfn};

use super::{ENTRIES_PER_FRAME, ENTRY_TRIES, GrantError, Granted};
/// What a grant is used for; each is pinned on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A page-table entry, or a copy in progress.
    Host,
    /// A device's DMA.
    Device,
}

/// Reading, or writing too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
}

const READING: u32 = abi::GTF_READING as u32;
const WRITING: u32 = abi::GTF_WRITING as u32;
const READONLY: u32 = abi::GTF_READONLY as u32;
const TYPE_MASK: u32 = abi::GTF_TYPE_MASK as u32;
const PERMIT_ACCESS: u32 = abi::GTF_PERMIT_ACCESS as u32;
const SUB_PAGE: u32 = abi::GTF_SUB_PAGE as u32;
/// Uses of one kind at most.
const MAX_PINS: u16 = u16::MAX;

/// How often an entry is used, by kind and access, and what it was when the first use began.
#[derive(Clone, Copy, Debug, Default)]
struct Active {
    /// Host read, host write, device read, device write: 16 bits each, in one word, which is 0 when there is none.
    pins: u64,
    domid: u16,
    frame: u64,
}

/// Where in [`Active::pins`] the uses of a kind are counted.
const fn pin_shift(usage: Use, access: Access) -> u32 {
    (match usage {
        Use::Host => 0,
        Use::Device => 32,
    }) + (match access {
        Access::Read => 0,
        Access::Write => 16,
    })
}

/// The bits of [`Active::pins`] that count uses for writing.
const WRITING_PINS: u64 = (MAX_PINS as u64) << 16 | (MAX_PINS as u64) << 48;

impl Active {
    const fn is_pinned(&self) -> bool {
        self.pins != 0
    }

    const fn is_pinned_for_writing(&self) -> bool {
        self.pins & WRITING_PINS != 0
    }

    const fn count(&self, shift: u32) -> u16 {
        (self.pins >> shift) as u16
    }
}

#[derive(Debug)]
struct Frame {
    /// Gone once the domain is being destroyed, when pins may remain.
    shared: Option<(Mfn, SharedBytes<'static>)>,
    active: Box<[Active; ENTRIES_PER_FRAME as usize]>,
}

/// The entries of one domain. Guarded by `GrantTable::entries`.
#[derive(Debug)]
pub(in crate::gnttab) struct Entries {
    frames: Vec<Frame>,
    /// Frames that [`Entries::take_frame`] took.
    taken: usize,
}

impl Entries {
    pub(in crate::gnttab) const fn new() -> Self {
        Self { frames: Vec::new(), taken: 0 }
    }

    pub(in crate::gnttab) fn frame_count(&self) -> u32 {
        self.frames.len() as u32
    }

    pub(in crate::gnttab) fn pinned(&self) -> u32 {
        self.frames.iter().flat_map(|frame| frame.active.iter()).filter(|active| active.is_pinned()).count()
            as u32
    }

    /// Bytes of the heap that [`Entries::add_frame`] takes.
    pub(in crate::gnttab) const FRAME_BYTES: usize = ENTRIES_PER_FRAME as usize * size_of::<Active>();

    /// Adds a frame; `false`: there is no memory for what is kept about its entries.
    pub(in crate::gnttab) fn add_frame(&mut self, mfn: Mfn, bytes: SharedBytes<'static>) -> bool {
        let mut active = Vec::new();
        if active.try_reserve_exact(ENTRIES_PER_FRAME as usize).is_err()
            || self.frames.try_reserve(1).is_err()
        {
            return false;
        }
        active.resize(ENTRIES_PER_FRAME as usize, Active::default());
        let Ok(active) = active.into_boxed_slice().try_into() else { return false };
        self.frames.push(Frame { shared: Some((mfn, bytes)), active });
        true
    }

    pub(in crate::gnttab) fn frame(&self, index: u32) -> Option<Mfn> {
        Some(self.frames.get(index as usize)?.shared.as_ref()?.0)
    }

    /// Frames from `first` on, into `to`: how many.
    pub(in crate::gnttab) fn frames_from(&self, first: u32, to: &mut [u64]) -> usize {
        let frames = self.frames.iter().skip(first as usize).map_while(|frame| frame.shared.as_ref());
        to.iter_mut().zip(frames).map(|(to, (mfn, _))| *to = mfn.raw()).count()
    }

    /// Takes the next of the frames from a domain that ends; what is pinned stays pinned.
    pub(in crate::gnttab) fn take_frame(&mut self) -> Option<Mfn> {
        let (mfn, _) = self.frames.get_mut(self.taken)?.shared.take()?;
        self.taken += 1;
        Some(mfn)
    }

    /// Places of the list that it has.
    #[cfg(test)]
    pub(in crate::gnttab) fn room(&self) -> usize {
        self.frames.capacity()
    }

    /// Frees what is kept of a frame of a domain that is dead. `false`: there is none.
    pub(in crate::gnttab) fn shrink(&mut self) -> bool {
        let freed = self.frames.pop().is_some();
        if !freed {
            self.frames = Vec::new(); // the room too: mappings may hold the table long
        }
        freed
    }

    /// Pins entry `gref` for `grantee`, and gives its frame. `copy` allows grants of a part of a page.
    ///
    /// # Errors
    /// `BadGrantRef`: no such entry. `General`: the entry does not permit it or keeps changing, or has too many uses.
    #[inline(always)]
    pub(in crate::gnttab) fn pin(
        &mut self,
        gref: u32,
        grantee: DomId,
        usage: Use,
        access: Access,
    ) -> Result<Mfn, GrantError> {
        let frame =
            self.frames.get_mut((gref / ENTRIES_PER_FRAME) as usize).ok_or(GrantError::BadGrantRef)?;
        let slot = (gref % ENTRIES_PER_FRAME) as usize;
        let (_, bytes) = frame.shared.as_ref().ok_or(GrantError::BadGrantRef)?;
        let active = &mut frame.active[slot];
        let shift = pin_shift(usage, access);
        let first = !active.is_pinned();
        if !first && (active.domid != grantee.raw() || active.count(shift) == MAX_PINS) {
            return Err(GrantError::General);
        }
        if first || access == Access::Write && !active.is_pinned_for_writing() {
            let marked = mark(bytes, slot * 8, grantee, access)?;
            if first {
                // A granter that changes the frame of an entry in use is answered with the one that was marked.
                (active.frame, active.domid) = (marked.raw(), grantee.raw());
            }
        }
        active.pins += 1 << shift;
        Ok(Mfn::new(active.frame))
    }

    /// Ends one use; the entry's marks go with the last of their kind.
    #[inline(always)]
    pub(in crate::gnttab) fn unpin(&mut self, gref: u32, usage: Use, access: Access) {
        let slot = (gref % ENTRIES_PER_FRAME) as usize;
        let Some(frame) = self.frames.get_mut((gref / ENTRIES_PER_FRAME) as usize) else { return };
        let active = &mut frame.active[slot];
        let shift = pin_shift(usage, access);
        let is_counted = active.count(shift) > 0;
        debug_assert!(is_counted, "a use that was not begun ends");
        if is_counted {
            active.pins -= 1 << shift;
        }
        let mut clear = 0;
        if access == Access::Write && !active.is_pinned_for_writing() {
            clear |= WRITING;
        }
        if !active.is_pinned() {
            clear |= READING;
        }
        if clear != 0
            && let Some((_, bytes)) = &frame.shared
        {
            bytes.and_u32(slot * 8, !clear);
        }
    }

    /// Exchanges two entries that nobody uses.
    pub(in crate::gnttab) fn swap(&mut self, a: u32, b: u32) -> Result<(), GrantError> {
        let place = |entries: &Self, gref: u32| {
            let frame =
                entries.frames.get((gref / ENTRIES_PER_FRAME) as usize).ok_or(GrantError::BadGrantRef)?;
            let slot = (gref % ENTRIES_PER_FRAME) as usize;
            if frame.active[slot].is_pinned() {
                return Err(GrantError::Again);
            }
            let (_, bytes) = frame.shared.as_ref().ok_or(GrantError::BadGrantRef)?;
            bytes.slice(slot * 8, 8).ok_or(GrantError::BadGrantRef)
        };
        let (first, second) = (place(self, a)?, place(self, b)?);
        let value = first.load_u64(0);
        first.store_u64(0, second.load_u64(0));
        second.store_u64(0, value);
        Ok(())
    }
}

/// Marks the entry at byte `at` as read, and written, by `grantee`, if it permits that, and gives its frame.
///
/// One exchange covers flags, domain and frame: they are seen as they were together.
#[inline]
fn mark(bytes: &SharedBytes, at: usize, grantee: DomId, access: Access) -> Result<Mfn, GrantError> {
    let marks = match access {
        Access::Read => READING,
        Access::Write => READING | WRITING,
    };
    let wanted = PERMIT_ACCESS | u32::from(grantee.raw()) << 16;
    let refused = match access {
        Access::Read => TYPE_MASK | SUB_PAGE | 0xffff_0000,
        Access::Write => TYPE_MASK | SUB_PAGE | READONLY | 0xffff_0000,
    };
    let mut seen = bytes.load_u64(at);
    for _ in 0..ENTRY_TRIES {
        if seen as u32 & refused != wanted {
            return Err(GrantError::General);
        }
        match bytes.compare_exchange_u64(at, seen, seen | u64::from(marks)) {
            Ok(_) => return Ok(Mfn::new(seen >> 32)),
            Err(now) => seen = now,
        }
    }
    Err(GrantError::General)
}

/// Ends a use whose references belong to somebody else. Of a granter that is dead, there may be no record left.
#[inline(always)]
pub(in crate::gnttab) fn unpin_grant(granted: &Granted, gref: u32, usage: Use, access: Access) {
    granted.lock().unpin(gref, usage, access);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_of_a_kind_end_at_their_limit_and_leave_the_other_kinds() {
        let page = ring_abi::shared::leaked_pages(1);
        let me = DomId::new(1);
        page.store_u64(0, u64::from(PERMIT_ACCESS | 1 << 16) | 7 << 32);
        let mut entries = Entries::new();
        assert!(entries.add_frame(Mfn::new(3), page));
        let kinds = [Use::Host, Use::Device].map(|usage| [(usage, Access::Read), (usage, Access::Write)]);
        for &(usage, access) in kinds.as_flattened() {
            for _ in 0..MAX_PINS {
                assert_eq!(entries.pin(0, me, usage, access), Ok(Mfn::new(7)));
            }
            assert_eq!(entries.pin(0, me, usage, access), Err(GrantError::General), "one too many");
        }
        for &(usage, access) in kinds.as_flattened() {
            (0..MAX_PINS).for_each(|_| entries.unpin(0, usage, access));
        }
        assert_eq!((entries.pinned(), page.load_u64(0) as u32), (0, PERMIT_ACCESS | 1 << 16));
    }
}
