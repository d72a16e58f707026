//! Transactions: what was read, what is to be written, and whether it may be.
//!
//! A transaction keeps a copy of each node it touches. Committing compares the generation of every one of
//! them with the tree's: only a change to something read or written here is a conflict. Making a
//! child depends on the parent being there, not on its other children. Removing a node removes what will be below it when the
//! transaction commits: the commit depends on the node alone, and costs the same whatever is below.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Bound;

use super::error::XsError;
use super::path::{self, Path, Place};
use super::perms::Actor;
use super::quota::Quotas;
use super::store::{Change, Node, Outcome, Store};

/// What an entry costs beyond its path and values, for accounts.
const ENTRY_OVERHEAD: usize = 256;

/// Removed subtrees whose nodes are counted: each takes a look at all nodes of a domain.
const COUNTED_SUBTREES: usize = 16;

/// One node as a transaction sees it.
struct Entry {
    /// As it was when first touched; `None` if it was not there.
    base: Option<Node>,
    /// As the transaction left it.
    now: Option<Node>,
    /// Was it written, made or removed?
    dirty: bool,
    /// Generation of the list of children when that was first read.
    listed: Option<u64>,
    /// Watches are to be told on commit.
    event: bool,
    /// Bytes accounted.
    cost: usize,
    /// It lies below a node that the transaction removed before: what is there in the tree does not matter.
    free: bool,
}

fn entry_cost(key: &dyn Place, base: Option<&Node>) -> usize {
    ENTRY_OVERHEAD + key.place().bytes.len() + base.map_or(0, |node| node.value.len())
}

/// An open transaction.
#[derive(Default)]
pub(crate) struct Transaction {
    entries: BTreeMap<Path, Entry>,
    /// Nodes that were removed with all below them; none is below another.
    removed: Vec<Path>,
    /// Nodes made less nodes removed, by owner.
    owned: BTreeMap<u16, isize>,
    /// Bytes accounted to the domain whose transaction this is.
    pub(crate) bytes: usize,
}

impl Transaction {
    /// Nodes of `domid` that exist for this transaction beyond those in the tree.
    pub(crate) fn owned(&self, domid: u16) -> isize {
        self.owned.get(&domid).copied().unwrap_or(0)
    }

    /// Frees one of its entries, when it is over; was there one?
    pub(crate) fn free_some(&mut self) -> bool {
        self.entries.pop_first().is_some()
    }

    /// Number of nodes touched.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Has `path` been touched?
    pub(crate) fn knows(&self, key: &dyn Place) -> bool {
        self.entries.contains_key(key)
    }

    /// Bytes that touching `key` would be accounted; nothing if it was touched before.
    pub(crate) fn price(&self, store: &Store, key: &dyn Place) -> usize {
        if self.knows(key) { 0 } else { entry_cost(key, self.below_entries(store, key)) }
    }

    /// The node, without making the commit depend on it.
    pub(crate) fn peek<'a>(&'a self, store: &'a Store, key: &dyn Place) -> Option<&'a Node> {
        match self.entries.get(key) {
            Some(entry) => entry.now.as_ref(),
            None => self.below_entries(store, key),
        }
    }

    /// The node in the tree, unless the transaction removed one above it.
    fn below_entries<'a>(&self, store: &'a Store, key: &dyn Place) -> Option<&'a Node> {
        if self.is_free(key) { None } else { store.find(key) }
    }

    /// Is this below a node that the transaction removed?
    fn is_free(&self, key: &dyn Place) -> bool {
        self.removed.iter().any(|top| key.place().is_below(top))
    }

    fn entry(&mut self, store: &Store, path: &Path) -> &mut Entry {
        let free = self.is_free(path);
        let bytes = &mut self.bytes;
        self.entries.entry(path.clone()).or_insert_with(|| {
            let base = if free { None } else { store.get(path).cloned() };
            let cost = entry_cost(path, base.as_ref());
            *bytes += cost;
            Entry { now: base.clone(), base, dirty: false, listed: None, event: false, cost, free }
        })
    }

    /// The node; the commit will depend on it.
    pub(crate) fn get(&mut self, store: &Store, path: &Path) -> Option<Node> {
        self.entry(store, path).now.clone()
    }

    /// Puts a node, or takes it away.
    pub(crate) fn set(&mut self, store: &Store, path: &Path, node: Option<Node>) {
        let entry = self.entry(store, path);
        let old_owner = entry.now.as_ref().map(|node| node.perms.owner());
        let new_owner = node.as_ref().map(|node| node.perms.owner());
        let base = entry.base.as_ref().map_or(0, |node| node.value.len());
        let now = node.as_ref().map_or(0, |node| node.value.len());
        let old_cost = entry.cost;
        entry.cost = ENTRY_OVERHEAD + path.key().len() + base + now;
        let new_cost = entry.cost;
        entry.now = node;
        entry.dirty = true;
        self.bytes = self.bytes - old_cost + new_cost;
        if let Some(owner) = old_owner {
            *self.owned.entry(owner).or_default() -= 1;
        }
        if let Some(owner) = new_owner {
            *self.owned.entry(owner).or_default() += 1;
        }
    }

    /// Notes that watches are to be told.
    pub(crate) fn note_event(&mut self, path: &Path) {
        if let Some(entry) = self.entries.get_mut(path) {
            entry.event = true;
        }
    }

    /// The children as this transaction sees them, in order: one pass over the tree's and its own.
    pub(crate) fn children<'a>(
        &'a self,
        store: &'a Store,
        parent: &'a Path,
    ) -> impl Iterator<Item = &'a Path> {
        let is_removed = self.removed.contains(parent) || self.is_free(parent);
        let mut all = store.children(parent).take_while(move |_| !is_removed).peekable();
        let mut own = path::children(&self.entries, parent).peekable();
        core::iter::from_fn(move || {
            loop {
                let Some((touched, entry)) = own.peek() else { return all.next() };
                match all.peek() {
                    Some(path) if *path < *touched => return all.next(),
                    // The transaction's word counts.
                    Some(path) if *path == *touched => drop(all.next()),
                    _ => {}
                }
                let (path, there) = (*touched, entry.now.is_some());
                own.next();
                if there {
                    return Some(path);
                }
            }
        })
    }

    /// Removes `top`, which is there, and all below it.
    pub(crate) fn remove(&mut self, store: &Store, top: &Path) {
        let own =
            self.entries.iter().filter(|(path, entry)| entry.now.is_some() && path.place().is_below(top));
        let own: Vec<Path> = own.map(|(path, _)| path.clone()).collect();
        for path in &own {
            self.set(store, path, None);
        }
        self.set(store, top, None);
        if self.is_free(top) || self.removed.contains(top) {
            return;
        }
        self.removed.retain(|other| !other.place().is_below(top));
        if store.children(top).next().is_some() {
            self.removed.push(top.clone());
        } else {
            // Then there must be none at the commit either.
            self.note_listed(store, top);
        }
    }

    /// May one more node be removed that has others below it?
    pub(crate) fn has_room(&self, limit: usize) -> bool {
        self.removed.len() < limit
    }

    /// As [`Transaction::owned`], and the nodes below those that were removed are counted as gone, unless these are many.
    pub(crate) fn owned_exactly(&self, store: &Store, domid: u16) -> isize {
        if self.removed.len() > COUNTED_SUBTREES {
            return self.owned(domid);
        }
        let below: usize = self.removed.iter().map(|top| store.owned_below(domid, top)).sum();
        let is_own = |entry: &Entry| entry.base.as_ref().is_some_and(|node| node.perms.owner() == domid);
        let counted =
            self.entries.iter().filter(|(path, entry)| is_own(entry) && self.is_free(*path)).count();
        self.owned(domid) - below.saturating_sub(counted) as isize
    }

    /// Makes the commit depend on the list of children of `parent`.
    pub(crate) fn note_listed(&mut self, store: &Store, parent: &Path) {
        let is_removed = self.removed.contains(parent);
        let entry = self.entry(store, parent);
        if entry.listed.is_none() && !entry.free && !is_removed {
            entry.listed = store.get(parent).map(|node| node.children_generation);
        }
    }

    /// Looks at the first entry after `after`: its path, and whether what was read there still stands. `None`: there is no
    /// further entry.
    fn check_next(&self, store: &Store, after: Option<&Path>) -> Option<(Path, bool)> {
        let next = match after {
            Some(path) => {
                let from = Bound::Excluded(path as &dyn Place);
                self.entries.range::<dyn Place, _>((from, Bound::Unbounded)).next()
            }
            None => self.entries.first_key_value(),
        };
        let (path, entry) = next?;
        let node = store.get(path);
        let same = node.map(|n| n.generation) == entry.base.as_ref().map(|n| n.generation);
        let listed = entry.listed.is_none_or(|g| node.is_some_and(|n| n.children_generation == g));
        Some((path.clone(), entry.free || same && listed))
    }

    /// Takes out what was removed, unless the domain would then own more nodes than it may.
    fn admit(&self, store: &mut Store, actor: Actor, quotas: &Quotas) -> Result<Vec<Outcome>, XsError> {
        let nodes = store.account(actor.domid).nodes;
        let is_over = |more: isize| more > 0 && nodes.saturating_add_signed(more) > quotas.nodes;
        if !actor.privileged()
            && is_over(self.owned(actor.domid))
            && is_over(self.owned_exactly(store, actor.domid))
        {
            return Err(XsError::NoSpc);
        }
        Ok(self.removed.iter().filter_map(|top| store.remove(top)).collect())
    }

    /// Writes the next entry into the tree; what comes of it. `None`: there is no further entry.
    fn apply_next(&mut self, store: &mut Store) -> Option<Option<Outcome>> {
        let (path, entry) = self.entries.pop_first()?;
        if !entry.dirty {
            store.spend(1, 0);
            return Some(None);
        }
        let Some(node) = entry.now else {
            // Gone already, if it lay below another that was removed.
            return Some(store.remove(&path));
        };
        let before = entry.base.map(|node| node.perms);
        let after = Some(node.perms.clone());
        // A new generation: the one it got was handed out before others committed.
        let generation = store.next_generation();
        let children_generation = store.get(&path).map_or(generation, |old| old.children_generation);
        store.put(&path, Node { generation, children_generation, ..node });
        let change = Change { path, exact: false, before, after };
        Some(entry.event.then_some(Outcome::Change(change)))
    }
}

/// A commit under way: it looks at everything that was read, then writes everything. Until it is over nobody else has
/// the tree, so that it is one step to whoever looks; those who wait do its steps.
pub(crate) struct Commit {
    transaction: Transaction,
    actor: Actor,
    /// The last entry that was looked at.
    checked: Option<Path>,
    is_checked: bool,
    /// What watches are to be told of, and what is to be done afterwards.
    pub(crate) outcomes: Vec<Outcome>,
}

impl Commit {
    pub(crate) fn new(transaction: Transaction, actor: Actor) -> Commit {
        Commit { transaction, actor, checked: None, is_checked: false, outcomes: Vec::new() }
    }

    /// Goes on with it for so much work; how it ended, if it did.
    ///
    /// # Errors
    /// `EAGAIN`: something that was read or written has changed. `ENOSPC`: the domain would own more nodes than it may.
    /// Nothing was written then.
    pub(crate) fn step(
        &mut self,
        store: &mut Store,
        quotas: &Quotas,
        work: usize,
    ) -> Option<Result<(), XsError>> {
        let start = store.work();
        while store.work().wrapping_sub(start) < work {
            if self.is_checked {
                match self.transaction.apply_next(store) {
                    Some(outcome) => self.outcomes.extend(outcome),
                    None => return Some(Ok(())),
                }
                continue;
            }
            match self.transaction.check_next(store, self.checked.as_ref()) {
                Some((path, true)) => {
                    store.spend(1, path.key().len());
                    self.checked = Some(path);
                }
                Some((_, false)) => return Some(Err(XsError::Again)),
                None => match self.transaction.admit(store, self.actor, quotas) {
                    Ok(outcomes) => (self.outcomes, self.is_checked) = (outcomes, true),
                    Err(error) => return Some(Err(error)),
                },
            }
        }
        None
    }

    /// What is to be freed.
    pub(crate) fn into_transaction(self) -> Transaction {
        self.transaction
    }
}
