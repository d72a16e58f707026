//! Subtrees that are gone for every client while their nodes are still in the tree.
//!
//! To remove a node with a thousand nodes below it takes milliseconds, and clients see the subtree go in one step. So
//! the store takes out the topmost node at once and *buries* what lies below. A buried node is hidden from every client
//! by its generation, which is older than the burial; a node that is made there afterwards is newer, and clients see
//! the new node. A [`Sweep`] takes the buried nodes out in steps, while the server serves others. (I29)

use alloc::vec::Vec;

use super::path::{Key, Path, Place, at_or_above};
use super::store::Change;

/// What hides the nodes below a node that was removed.
struct Burial {
    number: u64,
    top: Path,
    /// The generation when the node was removed: the burial hides older nodes.
    until: u64,
}

/// All burials with nodes that have not been taken out.
#[derive(Default)]
pub(super) struct Burials {
    /// In the order of the burials' topmost paths; a path may be buried twice.
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

    /// Forgets burial `number`, whose nodes are all taken out.
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
    /// Nodes at which the sweep goes on, the next one last. The flag says whether the sweep has added the node's
    /// children already.
    pub(super) open: Vec<(Path, bool)>,
    /// The change of the topmost node, for which watches fire last.
    pub(super) top: Change,
}
