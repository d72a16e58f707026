//! The granter's side: frames of entries that are shared with the guest, and what is pinned of them.
//!
//! A change of version is one step under the lock: the first frame, with the reserved entries that may be in use, is made
//! anew, and the others wait to be emptied one by one. Until then their entries are no entries. (I35)

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::grant::GNTTAB_NR_RESERVED_ENTRIES;
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, GrantRef, Mfn};

use super::active::Active;
use super::words::{Marked, Words};
use super::{Access, GrantError, GrowError};
use crate::nospec::At;
use crate::sync::{Mutex, rank};

/// Entries in a frame of the table, in version 1; in version 2 half as many.
pub(super) const ENTRIES_PER_FRAME: u32 = 4096 / 8;
/// Entries of version 2 in a frame.
const WIDE_PER_FRAME: u32 = 4096 / 16;
/// Status words of version 2 in a frame.
const STATUS_PER_FRAME: u32 = 4096 / 2;
/// Frames of entries for which a frame of status words is enough.
pub(crate) const FRAMES_PER_STATUS: u32 = STATUS_PER_FRAME / WIDE_PER_FRAME;

/// The granter's side, as mappings refer to it.
pub(crate) type Granted = Mutex<rank::GrantEntries, Entries>;

/// A frame that is shared with the guest.
type SharedFrame = (Mfn, SharedBytes<'static>);

/// The format of a table's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// 8 bytes.
    One = 1,
    /// 16 bytes, and a status word.
    Two = 2,
}

/// What the frames of a table hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Entries.
    Entries,
    /// Status words of version 2.
    Status,
}

/// Where an entry is: its frame's index, and its slot in the frame.
const fn place(gref: GrantRef, per_frame: u32) -> (usize, usize) {
    ((gref.raw() / per_frame) as usize, (gref.raw() % per_frame) as usize)
}

#[derive(Debug)]
struct Frame {
    shared: Shared,
    active: Box<[Active; ENTRIES_PER_FRAME as usize]>,
}

/// The guest's side of a frame.
#[derive(Debug)]
enum Shared {
    /// None once the domain is being destroyed: pins may remain.
    Gone,
    /// What stands there is of the other version.
    Unclean(SharedFrame),
    Ready(SharedFrame),
}

impl Shared {
    const fn frame(&self) -> Option<&SharedFrame> {
        match self {
            Self::Gone => None,
            Self::Unclean(frame) | Self::Ready(frame) => Some(frame),
        }
    }

    #[inline(always)]
    const fn ready(&self) -> Option<&SharedBytes<'static>> {
        if let Self::Ready((_, bytes)) = self { Some(bytes) } else { None }
    }
}

/// An entry: its words, if there are any, its uses, and the count of entries in use.
pub(super) type Found<'a> = (Option<Words<'a>>, &'a mut Active, &'a mut u32);

/// The entries of one domain.
#[derive(Debug)]
pub(crate) struct Entries {
    /// The frames under version 1. There are none under version 2, so that version 1 pays for the other by no look of its own.
    narrow: Vec<Frame>,
    /// The frames under version 2.
    wide: Vec<Frame>,
    version: Version,
    /// Frames of status words, enough for all entries under version 2.
    status: Vec<SharedFrame>,
    /// Such frames that no longer have an owner and must be freed.
    retired: Vec<SharedFrame>,
    /// Entries in use by anyone.
    used: u32,
    /// Frames that are clean, of those that a change of version left.
    cleaned: usize,
    /// Frames that [`Entries::take_frame`] took.
    taken: usize,
}

impl Entries {
    pub(crate) const fn new() -> Self {
        Self {
            narrow: Vec::new(),
            wide: Vec::new(),
            version: Version::One,
            status: Vec::new(),
            retired: Vec::new(),
            used: 0,
            cleaned: 0,
            taken: 0,
        }
    }

    pub(crate) const fn version(&self) -> Version {
        self.version
    }

    const fn frames(&self) -> &Vec<Frame> {
        match self.version {
            Version::One => &self.narrow,
            Version::Two => &self.wide,
        }
    }

    const fn frames_mut(&mut self) -> &mut Vec<Frame> {
        match self.version {
            Version::One => &mut self.narrow,
            Version::Two => &mut self.wide,
        }
    }

    pub(crate) fn frame_count(&self) -> u32 {
        self.frames().len() as u32
    }

    /// Entries in use by anyone.
    #[cfg(test)]
    pub(crate) fn pinned(&self) -> u32 {
        let frames = self.narrow.iter().chain(&self.wide);
        let pinned = frames.flat_map(|frame| frame.active.iter()).filter(|active| active.is_pinned()).count();
        assert_eq!(pinned, self.used as usize, "entries in use");
        self.used
    }

    /// Frames of the hypervisor's memory that the table has.
    #[cfg(test)]
    pub(crate) fn all_frames(&self) -> usize {
        self.frames().len() + self.status.len() + self.retired.len()
    }

    /// Bytes of the heap that [`Entries::add_frame`] takes.
    pub(crate) const FRAME_BYTES: usize = ENTRIES_PER_FRAME as usize * size_of::<Active>();

    /// What the table lacks to have `frames` frames, and to be of `version`.
    pub(crate) fn missing(&self, frames: u32, version: Version) -> Option<Part> {
        let status = frames.max(self.frame_count()).div_ceil(FRAMES_PER_STATUS);
        if version.max(self.version) == Version::Two && self.status.len() < status as usize {
            return Some(Part::Status);
        }
        (self.frame_count() < frames).then_some(Part::Entries)
    }

    /// Adds an empty frame; `false`: there is no memory for what is kept about its entries.
    pub(crate) fn add_frame(&mut self, part: Part, frame: SharedFrame) -> bool {
        if part == Part::Status {
            let has_room = self.status.try_reserve(1).is_ok();
            self.status.extend(has_room.then_some(frame));
            return has_room;
        }
        let mut active = Vec::new();
        if active.try_reserve_exact(ENTRIES_PER_FRAME as usize).is_err()
            || self.frames_mut().try_reserve(1).is_err()
        {
            return false;
        }
        active.resize(ENTRIES_PER_FRAME as usize, Active::UNUSED);
        let Ok(active) = active.into_boxed_slice().try_into() else { return false };
        self.frames_mut().push(Frame { shared: Shared::Ready(frame), active });
        true
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn frame(&self, part: Part, index: u32) -> Option<Mfn> {
        let mut frame = [0];
        (self.frames_from(part, index, &mut frame) == 1).then_some(Mfn::new(frame[0]))
    }

    /// Frames from `first` on, into `to`: how many.
    pub(crate) fn frames_from(&self, part: Part, first: u32, to: &mut [u64]) -> usize {
        let write = |(to, (mfn, _)): (&mut u64, &SharedFrame)| *to = mfn.raw();
        let (first, to) = (first as usize, to.iter_mut());
        match part {
            Part::Entries => to
                .zip(self.frames().iter().skip(first).map_while(|frame| frame.shared.frame()))
                .map(write)
                .count(),
            Part::Status if self.version == Version::One => 0,
            Part::Status => to.zip(self.status.iter().skip(first)).map(write).count(),
        }
    }

    /// Takes the next of the frames from a domain that ends; what is pinned stays pinned. `false` with it: the frame
    /// has no owner now.
    pub(crate) fn take_frame(&mut self) -> Option<(Mfn, bool)> {
        let taken = self.taken;
        if let Some(frame) = self.frames_mut().at_mut(taken) {
            let shared = core::mem::replace(&mut frame.shared, Shared::Gone);
            self.taken += 1;
            return shared.frame().map(|(mfn, _)| (*mfn, true));
        }
        let lent = self.status.pop().map(|(mfn, _)| (mfn, true));
        lent.or_else(|| self.retired.pop().map(|(mfn, _)| (mfn, false)))
    }

    /// Frames for which the lists have room.
    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.narrow.capacity() + self.wide.capacity() + self.status.capacity()
    }

    /// Frees what is kept of a frame of a domain that is dead. `false`: there is none.
    pub(crate) fn shrink(&mut self) -> bool {
        let freed = self.frames_mut().pop().is_some();
        if !freed {
            *self = Self::new(); // the room too: mappings may hold the table long
        }
        freed
    }

    /// An entry of version 1, if that is the table's, and its frame is there.
    #[inline(always)]
    pub(super) fn narrow_entry(&mut self, gref: GrantRef) -> Option<Found<'_>> {
        let (frame, slot) = place(gref, ENTRIES_PER_FRAME);
        let Frame { shared, active } = self.narrow.at_mut(frame)?;
        let words = shared.ready().map(|entry| Words::One { entry, at: slot * 8 });
        Some((words, &mut active[slot], &mut self.used))
    }

    /// Tells `visit` of the frames that entries in the `n`-th frame let somebody write now. `false`: there is no such frame.
    pub(super) fn visit_written(&self, n: usize, visit: impl FnMut(Mfn)) -> bool {
        let Some(frame) = self.narrow.at(n).or_else(|| self.wide.at(n)) else { return false };
        frame.active.iter().filter_map(Active::written).for_each(visit);
        true
    }

    /// An entry of version 2, if that is the table's, and its frame is there.
    #[cold]
    pub(super) fn wide_entry(&mut self, gref: GrantRef) -> Option<Found<'_>> {
        let (frame, slot) = place(gref, WIDE_PER_FRAME);
        let Frame { shared, active } = self.wide.at_mut(frame)?;
        let words = wide_words(shared, &self.status, gref);
        Some((words, &mut active[slot], &mut self.used))
    }

    /// Marks an entry for a use by `grantee` that ends before the lock is given back, and gives the page that the entry lends.
    ///
    /// # Errors
    /// As `EntryPin::new`.
    #[inline(always)]
    pub(crate) fn mark(
        &self,
        gref: GrantRef,
        grantee: DomId,
        access: Access,
    ) -> Result<(Mfn, Marked<'_>), GrantError> {
        let (frame, slot) = place(gref, ENTRIES_PER_FRAME);
        if let Some(Frame { shared: Shared::Ready((_, entry)), active }) = self.narrow.at(frame)
            && !active[slot].is_pinned()
        {
            return Marked::narrow(entry, slot * 8, grantee, access);
        }
        let (frame, marked) = self.mark_any(gref, grantee, access)?; // taken apart: what is above stays in registers
        Ok((frame, marked))
    }

    /// As [`Entries::mark`], whatever the version and the uses.
    #[inline(never)]
    fn mark_any(
        &self,
        gref: GrantRef,
        grantee: DomId,
        access: Access,
    ) -> Result<(Mfn, Marked<'_>), GrantError> {
        let (words, active) = self.entry(gref).ok_or(GrantError::BadGrantRef)?;
        active.mark(words, grantee, access)
    }

    /// The words of an entry, in the version in force, and its uses.
    fn entry(&self, gref: GrantRef) -> Option<(Words<'_>, &Active)> {
        let per_frame = if self.version == Version::One { ENTRIES_PER_FRAME } else { WIDE_PER_FRAME };
        let (frame, slot) = place(gref, per_frame);
        let frame = self.frames().at(frame)?;
        let words = match self.version {
            Version::One => frame.shared.ready().map(|entry| Words::One { entry, at: slot * 8 }),
            Version::Two => wide_words(&frame.shared, &self.status, gref),
        };
        Some((words?, &frame.active[slot]))
    }

    /// Exchanges two entries that nobody uses.
    pub(crate) fn swap(&self, a: GrantRef, b: GrantRef) -> Result<(), GrantError> {
        let [a, b] = [a, b].map(|gref| self.entry(gref).ok_or(GrantError::BadGrantRef));
        let ((first, first_use), (second, second_use)) = (a?, b?);
        if first_use.is_pinned() || second_use.is_pinned() {
            return Err(GrantError::Again);
        }
        first.swap(&second);
        Ok(())
    }

    /// Whether no entry is in use but reserved ones, which the control domain may keep mapped.
    pub(crate) fn is_idle(&self) -> bool {
        let reserved = (0..GNTTAB_NR_RESERVED_ENTRIES).filter_map(|gref| self.entry(GrantRef::new(gref)));
        self.used as usize == reserved.filter(|(_, active)| active.is_pinned() && active.lends_page()).count()
    }

    /// Makes `to` the version of the table. Reserved entries stay; `take_back` takes the frames of status
    /// words from the domain, if no domain maps one.
    ///
    /// # Errors
    /// `Busy`: an entry is in use, or status words are mapped. `Range`: version 1 cannot say what a reserved entry lends.
    /// `Again`: the table grew meanwhile. `NoSuchDomain`: the table is gone.
    pub(crate) fn switch(
        &mut self,
        to: Version,
        take_back: impl FnOnce(&[SharedFrame]) -> bool,
    ) -> Result<(), GrowError> {
        if self.version == to {
            return Ok(()); // another vCPU's call made the change meanwhile
        }
        if !self.is_idle() {
            return Err(GrowError::Busy);
        }
        // Frames of status words that another vCPU's change left must be freed first, which the repeated call
        // does.
        if self.missing(0, to).is_some() || !self.retired.is_empty() {
            return Err(GrowError::Again);
        }
        let mut kept = [0; GNTTAB_NR_RESERVED_ENTRIES as usize];
        for (gref, kept) in (0..).map(GrantRef::new).zip(&mut kept) {
            let (words, _) = self.entry(gref).ok_or(GrowError::NoSuchDomain)?;
            *kept = words.as_one().ok_or(GrowError::Range)?;
        }
        if to == Version::One {
            if !take_back(&self.status) {
                return Err(GrowError::Busy);
            }
            self.retired = core::mem::take(&mut self.status);
        }
        core::mem::swap(&mut self.narrow, &mut self.wide);
        self.version = to;
        self.cleaned = 0;
        for Frame { shared, .. } in self.frames_mut() {
            if let &mut Shared::Ready(frame) = shared {
                *shared = Shared::Unclean(frame);
            }
        }
        self.clean_next();
        for (gref, kept) in (0..).map(GrantRef::new).zip(kept) {
            if let Some((words, active)) = self.entry(gref) {
                words.put(kept, active.marks());
            }
        }
        Ok(())
    }

    /// Empties the next frame that a change of version left. `false`: there is none.
    fn clean_next(&mut self) -> bool {
        let next = self.cleaned;
        let Some(Frame { shared, .. }) = self.frames_mut().at_mut(next) else { return false };
        if let &mut Shared::Unclean((mfn, bytes)) = shared {
            bytes.fill(0, bytes.len(), 0);
            *shared = Shared::Ready((mfn, bytes));
        }
        self.cleaned += 1;
        true
    }

    /// A piece of what a change of version left: a frame to be freed, or one that was emptied. `None`: nothing is left.
    pub(crate) fn finish_some(&mut self) -> Option<Option<Mfn>> {
        let retired = self.retired.pop().map(|(mfn, _)| mfn);
        (retired.is_some() || self.clean_next()).then_some(retired)
    }
}

fn wide_words<'a>(shared: &'a Shared, status: &'a [SharedFrame], gref: GrantRef) -> Option<Words<'a>> {
    let (_, at) = place(gref, WIDE_PER_FRAME);
    let (status_frame, status_at) = place(gref, STATUS_PER_FRAME);
    let (_, status) = status.at(status_frame)?;
    Some(Words::Two { entry: shared.ready()?, at: at * 16, status, status_at: status_at * 2 })
}

/// A table as mappings refer to it.
pub(super) fn granted() -> Arc<Granted> {
    Arc::new(Mutex::new(Entries::new()))
}
