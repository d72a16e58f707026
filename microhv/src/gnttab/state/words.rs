//! The words of one entry, in either format. The entry's domain may write the words at any time: the hypervisor reads
//! each word once, then checks, marks and uses what was read. (I9)
//!
//! ABI: `struct grant_entry_v1`, `union grant_entry_v2`, `grant_status_t`, `xen/include/public/grant_table.h`.

use core::sync::atomic::{AtomicU16, Ordering};

use ring_abi::grant as abi;
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, Mfn};

use super::{Access, GrantError};
use crate::sync::words::{AtomicU64, shared};

/// How often the hypervisor tries to mark an entry of version 1 that its domain changes meanwhile.
const ENTRY_TRIES: u32 = 5;

pub(super) const READING: u32 = abi::GTF_READING as u32;
pub(super) const WRITING: u32 = abi::GTF_WRITING as u32;
const MARKS: u32 = READING | WRITING;
const READONLY: u32 = abi::GTF_READONLY as u32;
const TYPE_MASK: u32 = abi::GTF_TYPE_MASK as u32;
const PERMIT_ACCESS: u32 = abi::GTF_PERMIT_ACCESS as u32;
const TRANSITIVE: u32 = abi::GTF_TRANSITIVE as u32;
const SUB_PAGE: u32 = abi::GTF_SUB_PAGE as u32;
const DOMID_MASK: u32 = 0xffff_0000;

/// What an entry lends of the frame that stands in the entry. (I34)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All of the page.
    Page,
    /// `len` bytes from `start` on, to copies alone. The bytes may lie beyond the page.
    Part { start: u16, len: u16 },
    /// What this domain lends to the entry's, to copies alone: in the frame's place stands the reference.
    Onwards(DomId),
}

/// Where the words of an entry are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Words<'a> {
    /// Flags, grantee and frame in 8 bytes, marks among the flags.
    One { entry: &'a SharedBytes<'static>, at: usize },
    /// Flags and grantee, then what is lent, in 16 bytes; marks in a status word elsewhere.
    Two { entry: &'a SharedBytes<'static>, at: usize, status: &'a SharedBytes<'static>, status_at: usize },
}

/// Marks that are taken away when this is dropped.
#[derive(Debug)]
#[must_use = "the marks go when this is dropped"]
pub(crate) struct Marked<'a> {
    /// The flags of version 1, the status of version 2.
    word: Option<&'a AtomicU16>,
    marks: u16,
}

impl<'a> Marked<'a> {
    pub(crate) const NOTHING: Self = Self { word: None, marks: 0 };

    /// The marks of the entry that `words` are.
    pub(super) fn new(words: Words<'a>, marks: u32) -> Self {
        let word = match words {
            Words::One { entry, at } => entry.word_u64(at).1,
            Words::Two { status, status_at, .. } => status.word_u16(status_at),
        };
        Self { word: Some(word), marks: marks as u16 }
    }

    /// Marks an entry of version 1 that nobody uses, as [`Words::mark`] does.
    ///
    /// # Errors
    /// `General`.
    #[inline(always)]
    pub(super) fn narrow(
        entry: &'a SharedBytes<'static>,
        at: usize,
        grantee: DomId,
        access: Access,
    ) -> Result<(Mfn, Self), GrantError> {
        let (entry, flags) = entry.word_u64(at);
        let how = marks_of(access, true);
        let frame = mark_one(shared(entry), grantee, how)?;
        Ok((frame, Self { word: Some(flags), marks: how.0 as u16 }))
    }
}

impl Drop for Marked<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(word) = self.word {
            word.fetch_and(!self.marks, Ordering::SeqCst);
        }
    }
}

/// The marks of an access, and which bits of flags and grantee decide whether the access is permitted. Without `part`, the
/// flag for a part of a page does not.
#[inline(always)]
pub(super) const fn marks_of(access: Access, part: bool) -> (u32, u32) {
    let looked_at = TYPE_MASK | DOMID_MASK | if part { SUB_PAGE } else { 0 };
    match access {
        Access::Read => (READING, looked_at),
        Access::Write => (READING | WRITING, looked_at | READONLY),
    }
}

impl Words<'_> {
    /// Marks the entry as read, and written, by `grantee`, if it permits that, and returns what it lends. `held`: the
    /// marks that other uses keep there, whatever becomes of this one.
    ///
    /// # Errors
    /// `General`: the entry does not permit that, or keeps changing. `NotWhole`: the entry lends no page, and
    /// `whole` asks for one.
    #[inline(always)]
    pub(super) fn mark(
        &self,
        grantee: DomId,
        access: Access,
        whole: bool,
        held: u32,
    ) -> Result<(Mfn, Shape), GrantError> {
        match *self {
            Self::One { entry, at } => {
                let how = marks_of(access, whole);
                mark_one(shared(entry.word_u64(at).0), grantee, how).map(|frame| (frame, Shape::Page))
            }
            Self::Two { .. } => self.mark_two(grantee, access, whole, held),
        }
    }

    /// Takes marks away.
    #[inline(always)]
    pub(super) fn unmark(&self, marks: u32) {
        match *self {
            Self::One { entry, at } => _ = entry.and_u32(at, !marks),
            Self::Two { status, status_at, .. } => _ = status.and_u16(status_at, !marks as u16),
        }
    }

    /// Of version 2. A granter ends a grant by clearing the header and then looking at the status, so here the status is
    /// marked before the header is looked at for good, and what is lent is read only then.
    #[cold]
    fn mark_two(
        &self,
        grantee: DomId,
        access: Access,
        whole: bool,
        held: u32,
    ) -> Result<(Mfn, Shape), GrantError> {
        let &Self::Two { entry, at, status, status_at } = self else { return Err(GrantError::General) };
        let (marks, looked_at) = marks_of(access, true);
        let header = entry.load_u32(at) & looked_at;
        let (kind, shape) = (header & TYPE_MASK, header & (TYPE_MASK | SUB_PAGE));
        if !matches!(kind, PERMIT_ACCESS | TRANSITIVE)
            || header & !(TYPE_MASK | SUB_PAGE) != grantee_bits(grantee)
        {
            return Err(GrantError::General);
        }
        if whole && shape != PERMIT_ACCESS {
            return Err(GrantError::NotWhole);
        }
        status.or_u16(status_at, marks as u16); // a full barrier
        if entry.load_u32(at) & looked_at != header {
            self.unmark(marks & !held);
            return Err(GrantError::General);
        }
        Ok(if kind == TRANSITIVE {
            let dom = DomId::new(entry.load_u16(at + 4));
            (Mfn::new(entry.load_u32(at + 8).into()), Shape::Onwards(dom))
        } else {
            let part = entry.load_u32(at + 4);
            let (start, len) = (part as u16, (part >> 16) as u16);
            let shape = if shape == PERMIT_ACCESS { Shape::Page } else { Shape::Part { start, len } };
            (Mfn::new(entry.load_u64(at + 8)), shape)
        })
    }

    /// Exchanges two entries of one format that nobody uses.
    pub(super) fn swap(&self, other: &Self) {
        let exchange = |a: &SharedBytes, a_at: usize, b: &SharedBytes, b_at: usize| {
            let value = a.load_u64(a_at);
            a.store_u64(a_at, b.load_u64(b_at));
            b.store_u64(b_at, value);
        };
        match (*self, *other) {
            (Self::One { entry: a, at: a_at }, Self::One { entry: b, at: b_at }) => {
                exchange(a, a_at, b, b_at)
            }
            (
                Self::Two { entry: a, at: a_at, status: s, status_at: s_at },
                Self::Two { entry: b, at: b_at, status: t, status_at: t_at },
            ) => {
                exchange(a, a_at, b, b_at);
                exchange(a, a_at + 8, b, b_at + 8);
                let marks = s.load_u16(s_at);
                s.store_u16(s_at, t.load_u16(t_at));
                t.store_u16(t_at, marks);
            }
            _ => unreachable!("all entries of a table are of one format"),
        }
    }

    /// The entry in version 1's form, without marks, so that the other version's entry can be made of it. `None`: version 1 cannot say it.
    pub(super) fn as_one(&self) -> Option<u64> {
        match *self {
            Self::One { entry, at } => Some(entry.load_u64(at) & !u64::from(MARKS)),
            Self::Two { entry, at, .. } => {
                let header = entry.load_u32(at);
                let frame = entry.load_u64(at + 8);
                match header & TYPE_MASK {
                    PERMIT_ACCESS => (frame >> 32 == 0).then_some(u64::from(header & !MARKS) | frame << 32),
                    TRANSITIVE => None,
                    _ => Some(0),
                }
            }
        }
    }

    /// Makes the entry what [`Words::as_one`] gave, with `marks`. The entry's bytes are 0.
    pub(super) fn put(&self, one: u64, marks: u32) {
        match *self {
            Self::One { entry, at } => entry.store_u64(at, one | u64::from(marks)),
            Self::Two { entry, at, status, status_at } => {
                status.store_u16(status_at, marks as u16);
                entry.store_u64(at + 8, one >> 32);
                entry.store_u32(at, one as u32);
            }
        }
    }
}

const fn grantee_bits(grantee: DomId) -> u32 {
    (grantee.raw() as u32) << 16
}

/// Of version 1. One exchange covers flags, domain and frame: they are seen as they were together. The flag of version 2 for
/// a part keeps the page from being mapped, and says nothing to a copy.
#[inline]
fn mark_one(entry: &AtomicU64, grantee: DomId, how: (u32, u32)) -> Result<Mfn, GrantError> {
    let (wanted, (marks, looked_at)) = (PERMIT_ACCESS | grantee_bits(grantee), how);
    let mut seen = entry.load(Ordering::Acquire);
    for _ in 0..ENTRY_TRIES {
        let differs = seen as u32 & looked_at ^ wanted;
        if differs != 0 {
            return Err(if differs == SUB_PAGE { GrantError::NotWhole } else { GrantError::General });
        }
        let marked = seen | u64::from(marks);
        match entry.compare_exchange(seen, marked, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return Ok(Mfn::new(seen >> 32)),
            Err(now) => seen = now,
        }
    }
    Err(GrantError::General)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: DomId = DomId::new(1);

    /// An entry whose status word is its own grantee: marking the one changes the other, as a guest might at that moment.
    fn changing() -> (SharedBytes<'static>, u32) {
        let page = ring_abi::shared::leaked_pages(1);
        let header = PERMIT_ACCESS | grantee_bits(ME);
        page.store_u32(0, header);
        page.store_u64(8, 7);
        (page, header)
    }

    #[test]
    fn a_header_that_changes_as_the_status_is_marked_grants_nothing() {
        let (page, header) = changing();
        let words = Words::Two { entry: &page, at: 0, status: &page, status_at: 2 };
        for access in [Access::Read, Access::Write] {
            assert_eq!(words.mark(ME, access, true, 0), Err(GrantError::General));
            assert_eq!(page.load_u32(0), header, "and the marks are gone");
        }
        // What other uses hold stays.
        assert_eq!(words.mark(ME, Access::Write, true, READING), Err(GrantError::General));
        assert_eq!(page.load_u32(0), header | READING << 16);
    }

    #[test]
    fn all_bits_of_an_entry_of_version_2_count() {
        let (page, status) = (ring_abi::shared::leaked_pages(1), ring_abi::shared::leaked_pages(1));
        let words = Words::Two { entry: &page, at: 16, status: &status, status_at: 2 };
        page.store_u64(24, 0xffff_0123_4567_89ab);
        for (flags, shape) in [
            (PERMIT_ACCESS, Shape::Page),
            (PERMIT_ACCESS | SUB_PAGE, Shape::Part { start: 0x1111, len: 0x2222 }),
        ] {
            page.store_u64(16, u64::from(flags | grantee_bits(ME)) | 0x2222_1111 << 32);
            let frame = Mfn::new(0xffff_0123_4567_89ab);
            assert_eq!(words.mark(ME, Access::Read, false, 0), Ok((frame, shape)));
        }
        page.store_u64(16, u64::from(TRANSITIVE | grantee_bits(ME)) | 0x2222_1111 << 32);
        let passed_on = (Mfn::new(0x4567_89ab), Shape::Onwards(DomId::new(0x1111)));
        assert_eq!(words.mark(ME, Access::Read, false, 0), Ok(passed_on));
        assert_eq!((status.load_u64(0), page.load_u64(0)), (u64::from(READING) << 16, 0));
        assert_eq!(words.mark(ME, Access::Read, true, 0), Err(GrantError::NotWhole));
        assert_eq!(words.mark(DomId::new(2), Access::Read, false, 0), Err(GrantError::General));
    }
}

#[cfg(test)]
#[cfg(loom)]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    const ME: DomId = DomId::new(1);
    const ENTRY: u64 = 7 << 32 | (grantee_bits(ME) | PERMIT_ACCESS) as u64;

    /// Ends a grant as its granter does, by one compare-exchange that sees no use.
    fn end(entry: &AtomicU64) -> bool {
        let seen = entry.load(Ordering::Relaxed);
        let is_unused = seen & u64::from(MARKS) == 0;
        is_unused && entry.compare_exchange(seen, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    #[test]
    fn a_grant_is_ended_or_in_use() {
        for access in [Access::Read, Access::Write] {
            loom::model(move || {
                let entry = Arc::new(AtomicU64::new(ENTRY));
                let granter = {
                    let entry = Arc::clone(&entry);
                    thread::spawn(move || end(&entry))
                };
                let frame = mark_one(&entry, ME, marks_of(access, true));
                let is_ended = granter.join().unwrap();
                assert!(is_ended ^ frame.is_ok(), "{frame:?}");
            });
        }
    }

    /// The granter lends another frame by the same entry: what is marked is what is used.
    #[test]
    fn the_frame_that_is_used_is_the_one_that_was_marked() {
        const OTHER: u64 = 9 << 32 | ENTRY & 0xffff_ffff;
        loom::model(|| {
            let entry = Arc::new(AtomicU64::new(ENTRY));
            let granter = {
                let entry = Arc::clone(&entry);
                thread::spawn(move || {
                    if end(&entry) {
                        entry.store(OTHER, Ordering::Release);
                    }
                })
            };
            let frame = mark_one(&entry, ME, marks_of(Access::Write, true));
            granter.join().unwrap();
            if let Ok(frame) = frame {
                let now = entry.load(Ordering::Relaxed);
                assert_eq!((now >> 32, now as u32 & MARKS), (frame.raw(), MARKS));
            }
        });
    }
}
