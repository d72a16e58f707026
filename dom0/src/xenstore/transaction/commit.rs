//! Commits: a commit checks whether what a transaction read still stands, and then writes what the transaction wrote,
//! in steps.
//!
//! A commit compares the generation of each node that the transaction touched with the generation in the tree: only a
//! change to something that the transaction read or wrote is a conflict.

use alloc::vec::Vec;
use core::ops::Bound;

use super::{Owned, Transaction};
use crate::xenstore::error::XsError;
use crate::xenstore::path::{Path, Place};
use crate::xenstore::perms::Actor;
use crate::xenstore::quota::Quotas;
use crate::xenstore::store::{Node, Outcome, Store};

/// How often a commit begins its check anew because others changed the tree meanwhile.
const MOST_AGAIN: usize = 4;

/// How far a step of a commit came.
enum Step {
    /// To this entry.
    Until(Option<Path>),
    /// Something that the transaction read has changed.
    Conflict,
    Done,
}

/// The lower bound of the entries after `path`; without a path, of all entries.
fn behind(path: Option<&Path>) -> Bound<&dyn Place> {
    path.map_or(Bound::Unbounded, |path| Bound::Excluded(path as &dyn Place))
}

/// A commit that is under way. The commit first looks at everything that the transaction read, then writes everything.
/// While the commit writes, no other client has the tree, so that others see one step. Clients that wait do the
/// commit's steps.
pub(crate) struct Commit {
    pub(in crate::xenstore) transaction: Transaction,
    actor: Actor,
    /// The last entry that the commit has checked, or written.
    at: Option<Path>,
    is_checked: bool,
    /// Number of removed subtrees that the commit has taken out; the commit takes out all before it writes an entry.
    taken_out: usize,
    /// The store's generation when the check began, and how often the check began anew.
    checked_at: Option<u64>,
    again: usize,
    /// Work for afterwards, beside telling watches of the entries.
    pub(crate) outcomes: Vec<Outcome>,
}

impl Commit {
    pub(crate) fn new(transaction: Transaction, actor: Actor) -> Commit {
        Commit {
            transaction,
            actor,
            at: None,
            is_checked: false,
            taken_out: 0,
            checked_at: None,
            again: 0,
            outcomes: Vec::new(),
        }
    }

    /// Whether another client may have the tree now. Another client may a few times, while the commit has written
    /// nothing: the commit then checks again.
    pub(crate) fn gives_way(&self) -> bool {
        !self.is_checked && self.again < MOST_AGAIN
    }

    /// Goes on with the commit for `work` bytes moved. `Some` says how the commit ended.
    ///
    /// # Errors
    /// - `EAGAIN`: something that the transaction read or wrote has changed.
    /// - `ENOSPC`, `ENOMEM`: a domain would own more than the domain may.
    ///
    /// After an error nothing was written.
    pub(crate) fn step(
        &mut self,
        store: &mut Store,
        quotas: &Quotas,
        work: usize,
    ) -> Option<Result<(), XsError>> {
        let start = store.work();
        if !self.is_checked && self.checked_at.replace(store.generation()) != Some(store.generation()) {
            self.again += usize::from(self.at.take().is_some());
        }
        while store.work().wrapping_sub(start) < work {
            let rest = work - store.work().wrapping_sub(start);
            let at = self.at.as_ref();
            if self.is_checked
                && let Some(top) = self.transaction.removed.get(self.taken_out)
            {
                self.taken_out += 1;
                self.outcomes.extend(store.remove(top));
                continue;
            }
            let step = if self.is_checked {
                self.transaction.apply_some(store, at, rest, &mut self.outcomes)
            } else {
                self.transaction.check_some(store, at, rest)
            };
            match step {
                Step::Until(at) => self.at = at,
                Step::Conflict => return Some(Err(XsError::Again)),
                Step::Done if self.is_checked => return Some(Ok(())),
                Step::Done => match self.transaction.admit(store, self.actor, quotas) {
                    Ok(()) => (self.is_checked, self.at) = (true, None),
                    Err(error) => return Some(Err(error)),
                },
            }
        }
        None
    }

    /// The transaction, for whose entries watches must fire before the entries are freed.
    pub(crate) fn into_transaction(self) -> Transaction {
        self.transaction
    }
}

impl Transaction {
    /// Checks the entries after `after`, for `work` bytes moved. The result says how far the check came, or that
    /// something has changed.
    fn check_some(&self, store: &mut Store, after: Option<&Path>, work: usize) -> Step {
        let start = store.work();
        let mut last: Option<&Path> = None;
        for (path, entry) in self.entries.range::<dyn Place, _>((behind(after), Bound::Unbounded)) {
            if store.work().wrapping_sub(start) >= work {
                return Step::Until(last.cloned());
            }
            store.spend(1, path.key().len());
            let node = store.get(path);
            let same = node.map(|n| n.generation) == entry.base.as_ref().map(|n| n.generation);
            let listed = entry.listed.is_none_or(|g| node.is_some_and(|n| n.children_generation == g));
            if !(entry.free || same && listed) {
                return Step::Conflict;
            }
            last = Some(path);
        }
        Step::Done
    }

    /// Whether the transaction may be written; if not, a domain would own more than the domain may. The nodes below
    /// removed nodes go in steps, and count until they are gone.
    fn admit(&self, store: &Store, actor: Actor, quotas: &Quotas) -> Result<(), XsError> {
        if actor.privileged() {
            return Ok(());
        }
        let (nodes, more) = (store.account(actor.domid).nodes, self.owned(actor.domid));
        if more > 0 && nodes.saturating_add_signed(more) > quotas.nodes {
            return Err(XsError::NoSpc);
        }
        let is_full = |(&owner, owned): (&u16, &Owned)| {
            let bytes = store.account(owner).bytes();
            owner != 0 && owned.bytes > 0 && bytes + owned.bytes.unsigned_abs() > quotas.memory_bytes
        };
        if self.owned.iter().any(is_full) { Err(XsError::NoMem) } else { Ok(()) }
    }

    /// Writes the entries after `after` into the tree, for `work` bytes moved, and notes in each entry whether
    /// watches must fire. The watches fire when the entries are freed.
    fn apply_some(
        &mut self,
        store: &mut Store,
        after: Option<&Path>,
        work: usize,
        outcomes: &mut Vec<Outcome>,
    ) -> Step {
        let start = store.work();
        let mut last: Option<&Path> = None;
        for (path, entry) in self.entries.range_mut::<dyn Place, _>((behind(after), Bound::Unbounded)) {
            if store.work().wrapping_sub(start) >= work {
                return Step::Until(last.cloned());
            }
            last = Some(path);
            if !entry.dirty {
                store.spend(1, 0);
                continue;
            }
            let Some(node) = &entry.now else {
                // The node is gone already if it lay below another removed node.
                let outcome = store.remove(path);
                entry.event = matches!(outcome, Some(Outcome::Change(_)));
                outcomes.extend(outcome.filter(|outcome| matches!(outcome, Outcome::Sweep(_))));
                continue;
            };
            // The node gets a new generation: the old generation was given out before others committed.
            let generation = store.next_generation();
            let children_generation = store.get(path).map_or(generation, |old| old.children_generation);
            store.put(path, Node { generation, children_generation, ..node.clone() });
        }
        self.is_committed = true;
        Step::Done
    }
}
