//! Rounds of dirty tracking: what `XEN_DOMCTL_shadow_op` asks for, in pieces.
//!
//! A round makes the other generation the present one, goes over all level 1 tables, flushes, and walks the frames: what is dirty in
//! the former generation is reported, and is clean in it from then on. What is written meanwhile is marked in the new generation. The
//! caller reads what frames hold after the call, so a write that a report has counted is there.

use core::sync::atomic::Ordering;

use ring_abi::types::{GuestVa, Mfn, Pfn};
use zerocopy::IntoBytes;

use super::super::MemError;
use super::super::session::Mm;
pub use super::super::state::tracking::Op;
use super::super::state::tracking::{Round, Stage};
use crate::Hypervisor;
use crate::domain::{Current, Domain};
use crate::frames::info::{PageType, TypeWord, UseWord};
use crate::frames::regions::REGION_FRAMES;
use crate::platform::Platform;

/// Frames that are walked under one lock, and reported together.
const CHUNK: u64 = 64;
/// Bytes of the caller's bitmap that are cleared together.
const CLEARED: u64 = 512;

/// The caller's bitmap, a bit for each pfn.
#[derive(Clone, Copy, Debug)]
pub struct Bitmap {
    /// Where the bitmap is.
    pub at: GuestVa,
    /// How many bits it has.
    pub pages: u64,
}

/// What a round found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Faults at marked entries since the last round.
    pub faults: u32,
    /// Frames that were written.
    pub dirty: u32,
}

impl<P: Platform> Hypervisor<P> {
    /// Does what is asked for about `dom`, another domain than the caller's.
    ///
    /// # Errors
    /// `Restart`: something else waits, and the caller repeats the call. `Busy`: another call is at it. `Invalid`: tracking is on
    /// already, or is not on. `Fault`: the bitmap cannot be written; the next round reports what this one could not. `NoSuchDomain`.
    pub(crate) fn track(
        &self,
        cur: &Current<'_, P>,
        dom: &Domain,
        op: Op,
        bitmap: Option<Bitmap>,
    ) -> Result<Found, MemError> {
        let tracking = &dom.mm.tracking;
        let mut round = tracking.round.lock();
        let of = Some((cur.domain.id, cur.vcpu.id, op));
        if round.of != of {
            let (_, _, other) = round.of.unwrap_or((cur.domain.id, cur.vcpu.id, op));
            refuse(MemError::Busy, round.of.is_some() && (op != Op::Off || other == Op::Off))?;
            if op == Op::Off && !tracking.has_begun() {
                return Ok(Found::default());
            }
            let stage = self.begin_round(dom, op)?;
            *round = Round { of, stage, ..Round::default() };
        }
        while round.stage != Stage::Done {
            match self.advance(cur, dom, op, bitmap, &mut round) {
                Ok(()) => {}
                Err(MemError::Restart) => return Err(MemError::Restart),
                Err(error) => {
                    round.of = None;
                    return Err(error);
                }
            }
        }
        round.of = None;
        refuse(MemError::Fault, round.failed)?;
        let faults = match op {
            Op::Peek => tracking.faults.load(Ordering::Relaxed),
            _ => tracking.faults.swap(0, Ordering::Relaxed),
        };
        Ok(Found { faults, dirty: round.dirty })
    }

    fn begin_round(&self, dom: &Domain, op: Op) -> Result<Stage, MemError> {
        let mut mm = self.lock_tables(dom);
        mm.begin_alive()?;
        let tracking = &dom.mm.tracking;
        let generation = tracking.generation.load(Ordering::Relaxed);
        refuse(MemError::Invalid, (generation != 0) == (op == Op::Enable))?;
        match op {
            Op::Enable => {
                tracking.generation.store(1, Ordering::SeqCst);
                tracking.is_on.store(true, Ordering::SeqCst);
                Ok(Stage::Prepare)
            }
            Op::Clean | Op::Peek => Ok(Stage::Clear),
            Op::Off => {
                tracking.generation.store(0, Ordering::SeqCst);
                Ok(Stage::Tables)
            }
        }
    }

    fn advance(
        &self,
        cur: &Current<'_, P>,
        dom: &Domain,
        op: Op,
        bitmap: Option<Bitmap>,
        round: &mut Round,
    ) -> Result<(), MemError> {
        match round.stage {
            Stage::Clear => {
                if let Some(bitmap) = bitmap {
                    self.clear(cur, bitmap, &mut round.at)?;
                }
                round.reported = dom.mm.tracking.clean();
                round.next(if op == Op::Peek { Stage::Tables } else { Stage::Turn });
            }
            Stage::Prepare => {
                self.walk(dom, round, &mut |_, _, _| Ok(()))?;
                round.next(Stage::Turn);
            }
            Stage::Turn => {
                let _tables = self.lock_tables(dom);
                let generation = &dom.mm.tracking.generation;
                round.reported = dom.mm.tracking.clean();
                generation.store(3 - generation.load(Ordering::Relaxed), Ordering::SeqCst);
                round.next(Stage::Tables);
            }
            Stage::Tables => {
                self.go_over_tables(dom, op, round)?;
                round.next(match op {
                    Op::Off => Stage::Done,
                    Op::Enable => Stage::Frames,
                    Op::Clean | Op::Peek => Stage::Lent,
                });
            }
            Stage::Lent => {
                self.mark_lent(dom, round)?;
                round.next(Stage::Frames);
            }
            Stage::Frames => {
                self.walk(dom, round, &mut |first, dirty, round: &mut Round| {
                    self.report((cur, dom), op, bitmap, (first, dirty), round)
                })?;
                round.next(Stage::Done);
            }
            Stage::Done => {}
        }
        Ok(())
    }

    /// # Errors
    /// `Restart`, if something else waits.
    fn look(&self) -> Result<(), MemError> {
        refuse(MemError::Restart, self.platform.work_pending())
    }

    fn clear(&self, cur: &Current<'_, P>, bitmap: Bitmap, at: &mut u64) -> Result<(), MemError> {
        let bytes = bitmap.pages.div_ceil(8);
        while *at < bytes {
            let len = CLEARED.min(bytes - *at);
            cur.copy_to_guest(bitmap.at.wrapping_add(*at), &[0; CLEARED as usize][..len as usize])
                .map_err(|_| MemError::Fault)?;
            *at += len;
            self.look()?;
        }
        Ok(())
    }

    fn go_over_tables(&self, dom: &Domain, op: Op, round: &mut Round) -> Result<(), MemError> {
        let mut mm = self.lock_tables(dom);
        mm.begin_alive()?;
        while let Some(table) = mm.next_table(&mut round.at) {
            if let Some(table) = table {
                match (op, mm.is_tracked(table)) {
                    (Op::Off, true) => mm.end_tracking(table),
                    (Op::Off, false) => {}
                    (Op::Peek, true) => mm.pass(table, round.reported, true),
                    (_, true) => mm.pass(table, round.reported, false),
                    (_, false) => mm.begin_tracking(table),
                }
            }
            self.look()?;
        }
        Ok(())
    }

    /// Frames that the hypervisor or another domain may write at any time are dirty in each round.
    fn mark_lent(&self, dom: &Domain, round: &mut Round) -> Result<(), MemError> {
        let reported = round.reported;
        let mark = |mfn: Mfn| {
            if let Some(page) = self.get_page_of(mfn, dom.id) {
                self.frames.held(page.mfn()).clear_flags(reported);
            }
        };
        if round.at == 0 {
            dom.vcpus.iter().filter_map(|vcpu| vcpu.info_frame.get()).for_each(mark);
            dom.events.visit_fifo_frames(mark);
        }
        while dom.grants.visit_written(round.at as usize, mark) {
            round.at += 1;
            self.look()?;
        }
        Ok(())
    }

    /// Tells `visit` of the frames of the domain that are dirty in the generation that is reported, as bits of a chunk of frames.
    /// Such a frame is clean in it from then on, unless the round only looks.
    fn walk(
        &self,
        dom: &Domain,
        round: &mut Round,
        visit: &mut dyn FnMut(Mfn, u64, &mut Round) -> Result<(), MemError>,
    ) -> Result<(), MemError> {
        let only_looks = matches!(round.of, Some((_, _, Op::Peek)));
        let prepares = round.stage == Stage::Prepare;
        let flag = if prepares { TypeWord::CLEAN_IN[1] } else { round.reported };
        while let Some(region) = dom.mm.region_from((round.at / REGION_FRAMES) as u32) {
            let first = round.at.max(u64::from(region) * REGION_FRAMES) / CHUNK * CHUNK;
            let mut dirty = 0;
            {
                // Under the lock, the type words of page tables are stored to.
                let mut mm = self.lock_tables(dom);
                mm.begin_alive()?;
                for (n, info) in self.frames.slice(first, CHUNK).iter().enumerate() {
                    let kind = info.load_kind();
                    if kind.has(flag) && !(prepares && kind.has(TypeWord::COPIED)) {
                        continue;
                    }
                    let using = info.load_use();
                    if !using.is_owned_by(dom.id) || using.has(UseWord::LENT) {
                        continue;
                    }
                    // With a reference: the allocator keeps words of its own in the entries of free frames.
                    let Some(_page) = self.get_page_of(Mfn::new(first + n as u64), dom.id) else { continue };
                    dirty |= 1 << n;
                    if prepares {
                        // What was copied until now has no RW that the guest does not know.
                        info.clear_flags(TypeWord::COPIED);
                    }
                    if !only_looks {
                        info.set_flags(flag);
                    }
                }
            }
            round.at = first + CHUNK;
            visit(Mfn::new(first), dirty, round)?;
            self.look()?;
        }
        Ok(())
    }

    /// Sets the bits of dirty frames in the caller's bitmap.
    fn report(
        &self,
        (cur, dom): (&Current<'_, P>, &Domain),
        op: Op,
        bitmap: Option<Bitmap>,
        (first, dirty): (Mfn, u64),
        round: &mut Round,
    ) -> Result<(), MemError> {
        if op == Op::Enable || dirty == 0 {
            return Ok(());
        }
        let frames = (0..CHUNK).filter(|n| dirty >> n & 1 != 0).map(|n| first.add(n));
        if !round.failed {
            let pfns = frames.clone().map(|mfn| self.platform.m2p(mfn)).filter(|pfn| *pfn != Pfn::INVALID);
            round.dirty = round.dirty.saturating_add(pfns.clone().count() as u32);
            let Some(bitmap) = bitmap else { return Ok(()) };
            if set_bits(cur, bitmap, pfns).is_ok() {
                return Ok(());
            }
            if op == Op::Peek {
                return Err(MemError::Fault);
            }
            round.failed = true;
        }
        for mfn in frames {
            if let Some(page) = self.get_page_of(mfn, dom.id) {
                self.mark_dirty(self.frames.held(page.mfn()));
            }
        }
        Ok(())
    }
}

/// # Errors
/// `error`, if `wrong`.
fn refuse(error: MemError, wrong: bool) -> Result<(), MemError> {
    if wrong { Err(error) } else { Ok(()) }
}

/// Sets bits in the caller's bitmap, a word at a time.
fn set_bits<P: Platform>(
    cur: &Current<'_, P>,
    bitmap: Bitmap,
    pfns: impl Iterator<Item = Pfn>,
) -> Result<(), MemError> {
    let bytes = bitmap.pages.div_ceil(8);
    let set = |word: u64, bits: u64| {
        let at = bitmap.at.wrapping_add(word * 8);
        let len = (bytes - word * 8).min(8) as usize;
        let mut now = 0u64;
        cur.copy_from_guest(&mut now.as_mut_bytes()[..len], at).map_err(|_| MemError::Fault)?;
        now |= bits;
        cur.copy_to_guest(at, &now.as_bytes()[..len]).map_err(|_| MemError::Fault)
    };
    let (mut word, mut bits) = (0, 0);
    for pfn in pfns.map(Pfn::raw).filter(|pfn| *pfn < bitmap.pages) {
        if pfn / 64 != word && bits != 0 {
            set(word, bits)?;
            bits = 0;
        }
        word = pfn / 64;
        bits |= 1 << (pfn % 64);
    }
    if bits != 0 {
        set(word, bits)?;
    }
    Ok(())
}

impl<P: Platform> Mm<'_, P> {
    /// The next checked level 1 table of the domain from frame `at` on. `Some(None)`: there is none in a region, and time to look
    /// at what waits.
    fn next_table(&self, at: &mut u64) -> Option<Option<Mfn>> {
        let region = self.dom.mm.region_from((*at / REGION_FRAMES) as u32)?;
        let end = (u64::from(region) + 1) * REGION_FRAMES;
        let first = (*at).max(end - REGION_FRAMES);
        let is_table = |info: &crate::frames::FrameInfo| {
            info.load_kind().is_valid_table(PageType::L1) && info.load_use().is_owned_by(self.dom.id)
        };
        let found = self.hv.frames.slice(first, end - first).iter().position(is_table);
        *at = found.map_or(end, |n| first + n as u64 + 1);
        Some(found.map(|n| Mfn::new(first + n as u64)))
    }

    /// Searches for user entries of copied frames that have RW. `false`: something else waits.
    #[cold]
    #[inline(never)]
    pub(in crate::mem) fn revoke(&mut self) -> bool {
        while let Some(mut at) = self.tables.revoke_at {
            let Some(found) = self.next_table(&mut at) else {
                self.tables.end_revoke();
                break;
            };
            self.tables.revoke_at = Some(at);
            if let Some(table) = found {
                self.pass_copied(table);
            }
            if self.hv.platform.work_pending() {
                return false;
            }
        }
        true
    }
}
