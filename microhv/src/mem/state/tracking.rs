//! What a domain keeps of its dirty tracking: the present generation, and how far a round has come.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use ring_abi::types::{DomId, VcpuId};

use crate::frames::info::TypeWord;
use crate::sync::{Mutex, rank};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Tracking begins: all is clean.
    Enable,
    /// What was written since the last round, and a new round.
    Clean,
    /// What was written since the last round.
    Peek,
    /// Tracking ends.
    Off,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::mem) enum Stage {
    /// The caller's bitmap is cleared.
    #[default]
    Clear,
    /// All frames become clean in the generation that comes.
    Prepare,
    /// The generations change.
    Turn,
    /// The tables are gone over.
    Tables,
    /// Frames that others may write at any time are dirty.
    Lent,
    /// The frames are walked.
    Frames,
    Done,
}

/// How far a round has come.
#[derive(Debug, Default)]
pub(in crate::mem) struct Round {
    /// Whose round this is, and of which kind; `None`: there is none.
    pub(in crate::mem) of: Option<(DomId, VcpuId, Op)>,
    pub(in crate::mem) stage: Stage,
    /// Where the stage goes on.
    pub(in crate::mem) at: u64,
    /// The flag of the generation that is reported.
    pub(in crate::mem) reported: u64,
    pub(in crate::mem) dirty: u32,
    /// The caller's bitmap could not be written: what is left is dirty in the present generation instead.
    pub(in crate::mem) failed: bool,
}

impl Round {
    /// Whether there is no round.
    pub(in crate::mem) const fn is_over(&self) -> bool {
        self.of.is_none()
    }

    /// A stage is over, and the next begins.
    pub(in crate::mem) const fn next(&mut self, stage: Stage) {
        (self.stage, self.at) = (stage, 0);
    }
}

/// What a domain keeps of its dirty tracking.
#[derive(Debug, Default)]
pub(crate) struct Tracking {
    /// The domain was tracked at some time. Entries that the guest copied then may come back later, so that the domain's entries are
    /// looked at until its end. Changed under the page-table lock.
    pub(in crate::mem) is_on: AtomicBool,
    /// The generation in which writes are marked now; 0: in none. Changed under the page-table lock.
    pub(in crate::mem) generation: AtomicU8,
    /// Faults at marked entries since the last round.
    pub(in crate::mem) faults: AtomicU32,
    /// How far a round has come.
    pub(in crate::mem) round: Mutex<rank::Round, Round>,
}

impl Tracking {
    /// Whether level 1 entries of the domain, or copies that the guest has of them, may be marked.
    #[inline(always)]
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Whether new tables are to be tracked.
    #[inline(always)]
    pub(in crate::mem) fn has_begun(&self) -> bool {
        self.generation.load(Ordering::Relaxed) != 0
    }

    /// The flag of the present generation, if there is one, and no round is in work.
    pub(in crate::mem) fn clean_at_rest(&self) -> Option<u64> {
        let is_at_rest = self.round.lock().is_over();
        (is_at_rest && self.has_begun()).then(|| self.clean())
    }

    /// The flag of the present generation; without one, both flags.
    pub(in crate::mem) fn clean(&self) -> u64 {
        let [first, second] = TypeWord::CLEAN_IN;
        match self.generation.load(Ordering::SeqCst) {
            0 => TypeWord::ANY_CLEAN,
            1 => first,
            _ => second,
        }
    }
}
