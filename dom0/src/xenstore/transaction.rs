//! Transactions: what was read, what is to be written, and whether it may be.
//!
//! A transaction keeps a copy of each node it touches. Committing compares the generation of every one of
//! them with the tree's: only a change to something read or written here is a conflict. Making a
//! child depends on the parent being there, not on its other children.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::error::XsError;
use super::path::{self, Path, Place};
use super::perms::Actor;
use super::quota::Quotas;
use super::store::{Change, Node, Store};

/// What an entry costs beyond its path and values, for accounts.
const ENTRY_OVERHEAD: usize = 256;

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
    /// The event to fire on commit: `Some(exact)`.
    event: Option<bool>,
    /// Bytes accounted.
    cost: usize,
}

fn entry_cost(key: &dyn Place, base: Option<&Node>) -> usize {
    ENTRY_OVERHEAD + key.place().bytes.len() + base.map_or(0, |node| node.value.len())
}

/// An open transaction.
#[derive(Default)]
pub(crate) struct Transaction {
    entries: BTreeMap<Path, Entry>,
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
        if self.knows(key) { 0 } else { entry_cost(key, store.find(key)) }
    }

    /// The node, without making the commit depend on it.
    pub(crate) fn peek<'a>(&'a self, store: &'a Store, key: &dyn Place) -> Option<&'a Node> {
        match self.entries.get(key) {
            Some(entry) => entry.now.as_ref(),
            None => store.find(key),
        }
    }

    fn entry(&mut self, store: &Store, path: &Path) -> &mut Entry {
        let bytes = &mut self.bytes;
        self.entries.entry(path.clone()).or_insert_with(|| {
            let base = store.get(path).cloned();
            let cost = entry_cost(path, base.as_ref());
            *bytes += cost;
            Entry { now: base.clone(), base, dirty: false, listed: None, event: None, cost }
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

    /// Notes an event; one for the node itself outweighs one that came from above.
    pub(crate) fn note_event(&mut self, path: &Path, exact: bool) {
        if let Some(entry) = self.entries.get_mut(path) {
            entry.event = Some(entry.event.unwrap_or(true) && exact);
        }
    }

    /// The children as this transaction sees them, in order: one pass over the tree's and its own.
    pub(crate) fn children<'a>(
        &'a self,
        store: &'a Store,
        parent: &'a Path,
    ) -> impl Iterator<Item = &'a Path> {
        let mut all = store.children(parent).peekable();
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

    /// Up to `limit` paths below `top` as this transaction sees them; the commit depends on nothing more.
    pub(crate) fn below(&self, store: &Store, top: &Path, limit: usize) -> Vec<Path> {
        path::walk(top, limit, |path| self.children(store, path).cloned().collect())
    }

    /// Makes the commit depend on the list of children of `parent`.
    pub(crate) fn note_listed(&mut self, store: &Store, parent: &Path) {
        let entry = self.entry(store, parent);
        if entry.listed.is_none() {
            entry.listed = store.get(parent).map(|node| node.children_generation);
        }
    }

    /// Does everything that was read still stand?
    fn holds(&self, store: &Store) -> bool {
        self.entries.iter().all(|(path, entry)| {
            let node = store.get(path);
            let same = node.map(|n| n.generation) == entry.base.as_ref().map(|n| n.generation);
            let listed = entry.listed.is_none_or(|g| node.is_some_and(|n| n.children_generation == g));
            same && listed
        })
    }

    /// Writes everything into the tree, or nothing. Answers the changes to tell of.
    ///
    /// # Errors
    /// `EAGAIN`: something that was read or written has changed. `ENOSPC`: the domain would own more
    /// nodes than it may.
    pub(crate) fn commit(
        self,
        store: &mut Store,
        actor: Actor,
        quotas: &Quotas,
    ) -> Result<Vec<Change>, XsError> {
        store.spend(self.entries.len(), self.bytes);
        if !self.holds(store) {
            return Err(XsError::Again);
        }
        let more = self.owned(actor.domid);
        if !actor.privileged()
            && more > 0
            && store.account(actor.domid).nodes.saturating_add_signed(more) > quotas.nodes
        {
            return Err(XsError::NoSpc);
        }
        let mut changes = Vec::new();
        for (path, entry) in self.entries {
            if !entry.dirty {
                continue;
            }
            let before = entry.base.map(|node| node.perms);
            let after = entry.now.as_ref().map(|node| node.perms.clone());
            match entry.now {
                Some(node) => {
                    // A new generation: the one it got was handed out before others committed.
                    let generation = store.next_generation();
                    let children_generation =
                        store.get(&path).map_or(generation, |old| old.children_generation);
                    store.put(&path, Node { generation, children_generation, ..node });
                }
                None => drop(store.remove(&path)),
            }
            // Made and removed again within: nobody need know.
            if let Some(exact) = entry.event
                && (before.is_some() || after.is_some())
            {
                changes.push(Change { path, exact, before, after });
            }
        }
        Ok(changes)
    }
}
