//! How an entry is used. These counts are the hypervisor's own: no word of the entry tells how often it is used, or what it
//! lent when its first use began. (I9)

use ring_abi::types::{DomId, Mfn};

use super::words::{Marked, READING, Shape, WRITING, Words, marks_of};
use super::{Access, GrantError, UseKind};

/// Uses of one kind at most.
pub(super) const MAX_PINS: u16 = u16::MAX;

/// How often an entry is used, by kind and access, and what it was when the first use began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Active {
    /// Host read, host write, device read, device write: 16 bits each, in one word, which is 0 when there is none.
    pins: u64,
    frame: Mfn,
    grantee: DomId,
    /// A page when there is no use: version 1 lends nothing else, and does not set it.
    shape: Shape,
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
    pub(super) const UNUSED: Self =
        Self { pins: 0, frame: Mfn::INVALID, grantee: DomId::INVALID, shape: Shape::Page };

    pub(super) const fn is_pinned(&self) -> bool {
        self.pins != 0
    }

    /// The frame that somebody may write.
    pub(super) fn written(&self) -> Option<Mfn> {
        self.is_pinned_for_writing().then_some(self.frame)
    }

    const fn is_pinned_for_writing(&self) -> bool {
        self.pins & WRITING_PINS != 0
    }

    const fn count(&self, shift: u32) -> u16 {
        (self.pins >> shift) as u16
    }

    pub(super) const fn lends_page(&self) -> bool {
        matches!(self.shape, Shape::Page)
    }

    /// The marks that the uses keep in the entry.
    pub(super) const fn marks(&self) -> u32 {
        (if self.is_pinned() { READING } else { 0 })
            | (if self.is_pinned_for_writing() { WRITING } else { 0 })
    }

    /// Marks the entry for a use by `grantee` that ends under the lock under which it began: a use that is not counted. Gives the
    /// page that the entry lends: other uses keep their marks, and what the entry was when the first began.
    ///
    /// # Errors
    /// As [`Active::pin`].
    pub(super) fn mark<'a>(
        &self,
        words: Words<'a>,
        grantee: DomId,
        access: Access,
    ) -> Result<(Mfn, Marked<'a>), GrantError> {
        let held = self.marks();
        let marks = marks_of(access, true).0 & !held;
        if !self.is_pinned() {
            let (frame, _) = words.mark(grantee, access, true, held)?;
            return Ok((frame, Marked::new(words, marks)));
        }
        if self.grantee != grantee {
            return Err(GrantError::General);
        }
        if !self.lends_page() {
            return Err(GrantError::NotWhole);
        }
        if marks == 0 {
            return Ok((self.frame, Marked::NOTHING));
        }
        words.mark(grantee, access, true, held)?;
        Ok((self.frame, Marked::new(words, marks)))
    }

    /// Counts a use by `grantee`, and gives what the entry lends; `used` counts entries in use. `whole`: a page, or nothing.
    ///
    /// # Errors
    /// `General`: the entry does not permit it or keeps changing, or has too many uses. `NotWhole`.
    #[inline(always)]
    pub(super) fn pin(
        &mut self,
        used: &mut u32,
        words: Words<'_>,
        grantee: DomId,
        (kind, access): (UseKind, Access),
        whole: bool,
    ) -> Result<(Mfn, Shape), GrantError> {
        let shift = pin_shift(kind, access);
        let first = !self.is_pinned();
        if !first && (self.grantee != grantee || self.count(shift) == MAX_PINS) {
            return Err(GrantError::General);
        }
        let is_wide = matches!(words, Words::Two { .. });
        if is_wide && whole && !self.lends_page() {
            return Err(GrantError::NotWhole);
        }
        if first || access == Access::Write && !self.is_pinned_for_writing() {
            let (frame, shape) = words.mark(grantee, access, whole, self.marks())?;
            if first {
                // If a granter changes the frame of an entry in use, later uses get the frame of the first use.
                (self.frame, self.grantee) = (frame, grantee);
                if is_wide {
                    self.shape = shape;
                }
                *used = used.wrapping_add(1); // no more than entries
            }
        }
        self.pins = self.pins.wrapping_add(1 << shift); // below `MAX_PINS`, as was looked at
        Ok((self.frame, if is_wide { self.shape } else { Shape::Page }))
    }

    /// Ends a use, and takes the entry's marks away with the last of their kind.
    #[inline(always)]
    pub(super) fn unpin(&mut self, used: &mut u32, words: Option<Words<'_>>, kind: UseKind, access: Access) {
        let shift = pin_shift(kind, access);
        let is_counted = self.count(shift) > 0;
        debug_assert!(is_counted, "a use that was not begun ends");
        if !is_counted {
            return;
        }
        self.pins = self.pins.wrapping_sub(1 << shift);
        let mut clear = 0;
        if access == Access::Write && !self.is_pinned_for_writing() {
            clear |= WRITING;
        }
        if !self.is_pinned() {
            clear |= READING;
            *used = used.wrapping_sub(1);
            if matches!(words, Some(Words::Two { .. })) {
                self.shape = Shape::Page;
            }
        }
        if clear != 0
            && let Some(words) = words
        {
            words.unmark(clear);
        }
    }
}
