//! Subtrees that are gone for everybody while their nodes are still in the tree.
//!
//! Removing a node with a thousand below it takes milliseconds, and clients see it go in one step. So the topmost node is
//! taken out at once, and what lies below it is *buried*: whatever was there by then is hidden from all who look, by its
//! generation, which is older than the burial. What is made there afterwards is newer, and is seen. A [`Sweep`] takes
//! the buried nodes out in steps, while others are served. (I29)

use alloc::vec::Vec;

use super::path::{Key, Path, Place, at_or_above};
use super::store::Change;

/// What hides the nodes below one that was removed.
struct Burial {
    number: u64,
    top: Path,
    /// The generation when it was removed: older nodes are hidden.
    until: u64,
}

/// All burials whose nodes have not all been taken out.
#[derive(Default)]
pub(super) struct Burials {
    /// In order of their tops, of which one may be buried again.
    open: Vec<Burial>,
    last: u64,
}

impl Burials {
    /// Is there any?
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Hides what is below `top` and not newer than `until`.
    pub(super) fn bury(&mut self, top: Path, until: u64) -> u64 {
        self.last += 1;
        let at = self.open.partition_point(|burial| burial.top <= top);
        self.open.insert(at, Burial { number: self.last, top, until });
        self.last
    }

    /// Nothing is left of this one.
    pub(super) fn end(&mut self, number: u64) {
        self.open.retain(|burial| burial.number != number);
    }

    /// Nodes below `parent` up to this generation are hidden; 0: none is.
    pub(super) fn hidden_below(&self, parent: Key<'_>) -> u64 {
        self.hidden(parent, 0)
    }

    fn hidden(&self, key: Key<'_>, least: usize) -> u64 {
        let covers = at_or_above(&self.open, |burial| &burial.top, key);
        let counts = covers.filter(|burial| burial.top.place().bytes.len() + least <= key.bytes.len());
        counts.map(|burial| burial.until).max().unwrap_or(0)
    }

    /// A node at `key` up to this generation is hidden.
    #[cold]
    pub(super) fn hidden_at(&self, key: Key<'_>) -> u64 {
        self.hidden(key, 1)
    }
}

/// The work of taking buried nodes out of the tree. A sweep that is dropped unfinished leaves its nodes hidden in the tree.
#[must_use]
pub(crate) struct Sweep {
    pub(super) number: u64,
    pub(super) until: u64,
    /// Where to go on, the next last; and whether what is below was added already.
    pub(super) open: Vec<(Path, bool)>,
    /// The change of the topmost node, of which watches are told last.
    pub(super) top: Change,
}
