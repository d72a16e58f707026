//! The granter's side: entries shared with the guest, and what is pinned of them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use ring_abi::grant as abi;
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, GrantRef, Mfn};

use super::{Access, GrantError, UseKind};
use crate::sync::{Mutex, rank};

/// Entries in a frame of the table.
const ENTRIES_PER_FRAME: u32 = 4096 / 8;
/// How often the hypervisor tries to mark an entry that its domain changes meanwhile.
const ENTRY_TRIES: u32 = 5;

/// The granter's side, as mappings refer to it.
pub(crate) type Granted = Mutex<rank::GrantEntries, Entries>;

const READING: u32 = abi::GTF_READING as u32;
const WRITING: u32 = abi::GTF_WRITING as u32;
const READONLY: u32 = abi::GTF_READONLY as u32;
const TYPE_MASK: u32 = abi::GTF_TYPE_MASK as u32;
const PERMIT_ACCESS: u32 = abi::GTF_PERMIT_ACCESS as u32;
const SUB_PAGE: u32 = abi::GTF_SUB_PAGE as u32;
/// Uses of one kind at most.
const MAX_PINS: u16 = u16::MAX;

/// How often an entry is used, by kind and access, and what it was when the first use began.
#[derive(Clone, Copy, Debug)]
struct Active {
    /// Host read, host write, device read, device write: 16 bits each, in one word, which is 0 when there is none.
    pins: u64,
    grantee: DomId,
    frame: Mfn,
}

/// Where in [`Active::pins`] the uses of a kind are counted.
const fn pin_shift(kind: UseKind, access: Access) -> u32 {
    (match kind {
        UseKind::Host => 0,
        UseKind::Device => 32,
    }) + (match access {
        Access::Read => 0,
        Access::Write => 16,
    })
}

/// The bits of [`Active::pins`] that count uses for writing.
const WRITING_PINS: u64 = (MAX_PINS as u64) << 16 | (MAX_PINS as u64) << 48;

impl Active {
    const UNUSED: Self = Self { pins: 0, grantee: DomId::INVALID, frame: Mfn::INVALID };

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

/// Where an entry is: its frame's index, and its slot in the frame.
const fn place(gref: GrantRef) -> (usize, usize) {
    ((gref.raw() / ENTRIES_PER_FRAME) as usize, (gref.raw() % ENTRIES_PER_FRAME) as usize)
}

#[derive(Debug)]
struct Frame {
    /// `None` once the domain is being destroyed: pins may remain.
    shared: Option<(Mfn, SharedBytes<'static>)>,
    active: Box<[Active; ENTRIES_PER_FRAME as usize]>,
}

/// The entries of one domain.
#[derive(Debug)]
pub(crate) struct Entries {
    frames: Vec<Frame>,
    /// Frames that [`Entries::take_frame`] took.
    taken: usize,
}

impl Entries {
    pub(crate) const fn new() -> Self {
        Self { frames: Vec::new(), taken: 0 }
    }

    pub(crate) fn frame_count(&self) -> u32 {
        self.frames.len() as u32
    }

    /// Entries in use by anyone.
    #[cfg(test)]
    pub(crate) fn pinned(&self) -> u32 {
        self.frames.iter().flat_map(|frame| frame.active.iter()).filter(|active| active.is_pinned()).count()
            as u32
    }

    /// Bytes of the heap that [`Entries::add_frame`] takes.
    pub(crate) const FRAME_BYTES: usize = ENTRIES_PER_FRAME as usize * size_of::<Active>();

    /// Adds a frame; `false`: there is no memory for what is kept about its entries.
    pub(crate) fn add_frame(&mut self, mfn: Mfn, bytes: SharedBytes<'static>) -> bool {
        let mut active = Vec::new();
        if active.try_reserve_exact(ENTRIES_PER_FRAME as usize).is_err()
            || self.frames.try_reserve(1).is_err()
        {
            return false;
        }
        active.resize(ENTRIES_PER_FRAME as usize, Active::UNUSED);
        let Ok(active) = active.into_boxed_slice().try_into() else { return false };
        self.frames.push(Frame { shared: Some((mfn, bytes)), active });
        true
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn frame(&self, index: u32) -> Option<Mfn> {
        Some(self.frames.get(index as usize)?.shared.as_ref()?.0)
    }

    /// Frames from `first` on, into `to`: how many.
    pub(crate) fn frames_from(&self, first: u32, to: &mut [u64]) -> usize {
        let frames = self.frames.iter().skip(first as usize).map_while(|frame| frame.shared.as_ref());
        to.iter_mut().zip(frames).map(|(to, (mfn, _))| *to = mfn.raw()).count()
    }

    /// Takes the next of the frames from a domain that ends; what is pinned stays pinned.
    pub(crate) fn take_frame(&mut self) -> Option<Mfn> {
        let (mfn, _) = self.frames.get_mut(self.taken)?.shared.take()?;
        self.taken += 1;
        Some(mfn)
    }

    /// Frames for which the list has room.
    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.frames.capacity()
    }

    /// Frees what is kept of a frame of a domain that is dead. `false`: there is none.
    pub(crate) fn shrink(&mut self) -> bool {
        let freed = self.frames.pop().is_some();
        if !freed {
            self.frames = Vec::new(); // the room too: mappings may hold the table long
        }
        freed
    }

    /// Exchanges two entries that nobody uses.
    pub(crate) fn swap(&self, a: GrantRef, b: GrantRef) -> Result<(), GrantError> {
        let unused = |gref| {
            let (frame, slot) = place(gref);
            let frame = self.frames.get(frame).ok_or(GrantError::BadGrantRef)?;
            if frame.active[slot].is_pinned() {
                return Err(GrantError::Again);
            }
            let (_, bytes) = frame.shared.as_ref().ok_or(GrantError::BadGrantRef)?;
            bytes.slice(slot * 8, 8).ok_or(GrantError::BadGrantRef)
        };
        let (first, second) = (unused(a)?, unused(b)?);
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
    let wanted = PERMIT_ACCESS | u32::from(grantee.raw()) << 16;
    let (marks, looked_at) = match access {
        Access::Read => (READING, TYPE_MASK | SUB_PAGE | 0xffff_0000),
        Access::Write => (READING | WRITING, TYPE_MASK | SUB_PAGE | READONLY | 0xffff_0000),
    };
    let mut seen = bytes.load_u64(at);
    for _ in 0..ENTRY_TRIES {
        if seen as u32 & looked_at != wanted {
            return Err(GrantError::General);
        }
        match bytes.compare_exchange_u64(at, seen, seen | u64::from(marks)) {
            Ok(_) => return Ok(Mfn::new(seen >> 32)),
            Err(now) => seen = now,
        }
    }
    Err(GrantError::General)
}

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
    /// Pins entry `gref` for `grantee`, and gives its frame.
    ///
    /// # Errors
    /// `BadGrantRef`: no such entry. `General`: the entry does not permit it or keeps changing, or has too many uses.
    #[inline(always)]
    pub(crate) fn new(
        granted: &'a Arc<Granted>,
        gref: GrantRef,
        grantee: DomId,
        kind: UseKind,
        access: Access,
    ) -> Result<(Mfn, Self), GrantError> {
        let (frame, slot) = place(gref);
        let mut entries = granted.lock();
        let frame = entries.frames.get_mut(frame).ok_or(GrantError::BadGrantRef)?;
        let (_, bytes) = frame.shared.as_ref().ok_or(GrantError::BadGrantRef)?;
        let active = &mut frame.active[slot];
        let shift = pin_shift(kind, access);
        let first = !active.is_pinned();
        if !first && (active.grantee != grantee || active.count(shift) == MAX_PINS) {
            return Err(GrantError::General);
        }
        if first || access == Access::Write && !active.is_pinned_for_writing() {
            let marked = mark(bytes, slot * 8, grantee, access)?;
            if first {
                // A granter that changes the frame of an entry in use is answered with the one that was marked.
                (active.frame, active.grantee) = (marked, grantee);
            }
        }
        active.pins += 1 << shift;
        Ok((active.frame, Self { granted, gref, kind, access }))
    }

    /// Ends the use, as dropping does: the caller forgets the pin. The entry's marks go with the last of their kind. Of a
    /// granter that is dead, no record may be left.
    #[inline(always)]
    pub(crate) fn unpin(&self) {
        let (frame, slot) = place(self.gref);
        let mut entries = self.granted.lock();
        let Some(frame) = entries.frames.get_mut(frame) else { return };
        let active = &mut frame.active[slot];
        let shift = pin_shift(self.kind, self.access);
        let is_counted = active.count(shift) > 0;
        debug_assert!(is_counted, "a use that was not begun ends");
        if is_counted {
            active.pins -= 1 << shift;
        }
        let mut clear = 0;
        if self.access == Access::Write && !active.is_pinned_for_writing() {
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
    use super::*;

    #[test]
    fn uses_of_a_kind_end_at_their_limit_and_leave_the_other_kinds() {
        let page = ring_abi::shared::leaked_pages(1);
        let (me, gref) = (DomId::new(1), GrantRef::new(0));
        page.store_u64(0, u64::from(PERMIT_ACCESS | 1 << 16) | 7 << 32);
        let mut entries = Entries::new();
        assert!(entries.add_frame(Mfn::new(3), page));
        let granted = Arc::new(Mutex::new(entries));
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
        assert_eq!((granted.lock().pinned(), page.load_u64(0) as u32), (0, PERMIT_ACCESS | 1 << 16));
    }
}
