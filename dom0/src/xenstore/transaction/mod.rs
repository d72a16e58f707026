//! Transactions: what a transaction read, and what it is to write. The module `commit` writes.
//!
//! A transaction keeps a copy of each node that the transaction touches. To make a child depends on the parent being
//! there, and not on the parent's other children. To remove a node removes whatever is below the node when the
//! transaction commits: the commit depends on the removed node alone, and costs the same whatever is below.

mod commit;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::Bound;

pub(crate) use commit::Commit;

use super::path::{self, Key, Path, Place};
use super::perms::Perms;
use super::price;
use super::quota::Quotas;
use super::store::{Change, Node, Store, parts_cost};

/// The bytes of an entry's place in the entry's transaction.
const ENTRY_PLACE: usize = price::mapped::<Path, Entry>();
/// The bytes of the place for another owner among the owners whose nodes a transaction changes.
const OWNER_PLACE: usize = price::mapped::<u16, Owned>();
/// Most subtrees that a transaction of a domain removes: [`Quotas::transaction_subtrees`].
const SUBTREES: usize = Quotas::XEN.transaction_subtrees;
/// Bytes that a transaction takes before the transaction touches anything: its place, the first leaves of its maps, and
/// the list of what it removes.
const EMPTY_COST: usize = price::listed::<Transaction>()
    + price::mapped::<u32, Transaction>()
    + price::leaf::<Path, Entry>()
    + price::leaf::<u16, Owned>()
    + price::object(2 * SUBTREES * size_of::<Path>());

/// The work, in bytes moved, for passing an entry.
const PASSED_WORK: usize = 16;

/// One node as a transaction sees it.
struct Entry {
    /// The node when the transaction first touched it; `None` if the node was not there.
    base: Option<Node>,
    /// The node as the transaction left it; `None` if the transaction removed it or found none.
    now: Option<Node>,
    /// Whether the transaction wrote, made or removed the node.
    dirty: bool,
    /// Generation of the node's list of children when the transaction first read the list.
    listed: Option<u64>,
    /// Watches must fire on commit.
    event: bool,
    /// Bytes of heap for the entry.
    cost: usize,
    /// The entry lies below a node that the transaction removed before: what the tree has at this path does not matter.
    free: bool,
}

/// Bytes of heap for an entry that was only read.
fn entry_cost(key: &dyn Place, base: Option<&Node>) -> usize {
    ENTRY_PLACE + price::shared(key.place().bytes.len()) + base.map_or(0, Node::parts_cost)
}

impl Entry {
    /// Puts a node, for which the heap takes `written` bytes, or takes the node away.
    fn write(
        &mut self,
        path: &Path,
        node: Option<Node>,
        written: usize,
        owned: &mut BTreeMap<u16, Owned>,
        bytes: &mut usize,
    ) {
        let of = |node: &Node| (node.perms.owner(), node.cost(path));
        for (node, sign) in [(&self.now, -1), (&node, 1)] {
            let Some((owner, bytes)) = node.as_ref().map(of) else { continue };
            let owned = owned.entry(owner).or_default();
            owned.nodes += sign;
            owned.bytes += sign * bytes as isize;
        }
        *bytes -= self.cost;
        self.cost = entry_cost(path, self.base.as_ref()) + written;
        *bytes += self.cost;
        self.now = node;
        self.dirty = true;
    }
}

/// The entry of a path. A new entry begins with what `first` gives: the node that is there, and whether the entry is
/// free.
fn touch<'a>(
    entries: &'a mut BTreeMap<Path, Entry>,
    bytes: &mut usize,
    path: &Path,
    first: impl FnOnce() -> (Option<Node>, bool),
) -> &'a mut Entry {
    entries.entry(path.clone()).or_insert_with(|| {
        let (base, free) = first();
        let cost = entry_cost(path, base.as_ref());
        *bytes += cost;
        Entry { now: base.clone(), base, dirty: false, listed: None, event: false, cost, free }
    })
}

/// Whether the path `key` is below one of the paths `tops`, which are in order.
fn is_below_one(tops: &[Path], key: Key<'_>) -> bool {
    path::at_or_above(tops, |top| top, key).any(|top| top.key().len() < key.bytes.len())
}

/// What a transaction does to the nodes of one domain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Owned {
    /// Nodes made less nodes removed.
    pub(crate) nodes: isize,
    /// Bytes that the commit adds to what is accounted for the domain's nodes.
    pub(crate) bytes: isize,
}

/// An open transaction.
pub(crate) struct Transaction {
    /// The domain that began the transaction.
    pub(super) domid: u16,
    /// The transaction was committed: watches fire for what the transaction wrote.
    is_committed: bool,
    entries: BTreeMap<Path, Entry>,
    /// Nodes that the transaction removed with all below them, in order. No node in this list is below another.
    removed: Vec<Path>,
    /// By owner.
    owned: BTreeMap<u16, Owned>,
    /// Bytes of heap for the whole transaction. These bytes are accounted to the transaction's domain until the
    /// transaction is freed.
    pub(crate) bytes: usize,
}

impl Transaction {
    /// A transaction of domain `domid` that has touched nothing.
    pub(crate) fn new(domid: u16) -> Transaction {
        Transaction {
            domid,
            is_committed: false,
            entries: BTreeMap::new(),
            removed: Vec::new(),
            owned: BTreeMap::new(),
            bytes: EMPTY_COST,
        }
    }

    /// Bytes that a new transaction costs.
    pub(crate) const EMPTY_COST: usize = EMPTY_COST;

    /// What the transaction does to the nodes of `domid`, beyond what the tree has.
    pub(crate) fn owned_by(&self, domid: u16) -> Owned {
        self.owned.get(&domid).copied().unwrap_or_default()
    }

    /// Nodes of `domid` that exist for this transaction beyond those in the tree.
    pub(crate) fn owned(&self, domid: u16) -> isize {
        self.owned_by(domid).nodes
    }

    /// Takes apart one entry of a transaction that is over. The result is the change for which watches must fire, if
    /// the transaction was committed. `None`: there is no further entry, and nothing more is accounted for the
    /// transaction.
    pub(crate) fn free_some(&mut self, store: &mut Store) -> Option<Option<Change>> {
        let Some((path, entry)) = self.entries.pop_first() else {
            store.charge(self.domid, |account| account.transaction_bytes -= self.bytes);
            return None;
        };
        self.bytes -= entry.cost;
        store.charge(self.domid, |account| account.transaction_bytes -= entry.cost);
        let (before, after) = (entry.base.map(|node| node.perms), entry.now.map(|node| node.perms));
        let is_told = self.is_committed && entry.event;
        Some(is_told.then_some(Change { path, exact: false, before, after }))
    }

    /// Number of nodes touched.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Has `path` been touched?
    pub(crate) fn knows(&self, key: &dyn Place) -> bool {
        self.entries.contains_key(key)
    }

    /// Bytes that touching `key` would add to the account; 0 if `key` was touched before.
    pub(crate) fn price(&self, store: &Store, key: &dyn Place) -> usize {
        if self.knows(key) { 0 } else { entry_cost(key, self.below_entries(store, key)) }
    }

    /// Bytes that writing a node with this value and these permissions would add to the account, where the transaction
    /// has seen the node or there is none. The flag says whether the write would add an entry.
    pub(crate) fn price_to_set(&self, key: &dyn Place, value: usize, perms: &Perms) -> (usize, bool) {
        let entry = self.entries.get(key);
        let (base, had) = entry.map_or((None, 0), |entry| (entry.base.as_ref(), entry.cost));
        ((entry_cost(key, base) + self.written_cost(value, perms)).saturating_sub(had), entry.is_none())
    }

    /// Bytes of heap for a node that is written into an entry.
    fn written_cost(&self, value: usize, perms: &Perms) -> usize {
        parts_cost(value, perms) + if perms.owner() == self.domid { 0 } else { OWNER_PLACE }
    }

    /// The node at `key`, without making the commit depend on the node. `removed` is [`Transaction::end_of_removed`] of
    /// this path, or of a path below it.
    pub(crate) fn peek<'a>(
        &'a self,
        store: &'a Store,
        key: Key<'_>,
        removed: Option<usize>,
    ) -> Option<&'a Node> {
        match self.entries.get(&key as &dyn Place) {
            Some(entry) => entry.now.as_ref(),
            None if removed.is_some_and(|end| end < key.bytes.len()) => None,
            None => store.find(&key),
        }
    }

    /// The node in the tree, unless the transaction removed a node above.
    fn below_entries<'a>(&self, store: &'a Store, key: &dyn Place) -> Option<&'a Node> {
        if self.is_free(key) { None } else { store.find(key) }
    }

    /// Whether `key` is below a node that the transaction removed.
    fn is_free(&self, key: &dyn Place) -> bool {
        is_below_one(&self.removed, key.place())
    }

    /// Where the path of the node ends that the transaction removed with all below it, if there is such a node at or
    /// above `path`.
    pub(crate) fn end_of_removed(&self, path: &Path) -> Option<usize> {
        path::at_or_above(&self.removed, |top| top, path.place()).next().map(|top| top.key().len())
    }

    /// Whether the transaction removed this very node, with all below the node.
    fn is_removed(&self, path: &Path) -> bool {
        self.removed.binary_search(path).is_ok()
    }

    fn entry(&mut self, store: &Store, path: &Path) -> &mut Entry {
        let removed = &self.removed;
        touch(&mut self.entries, &mut self.bytes, path, || {
            let free = is_below_one(removed, path.place());
            (if free { None } else { store.get(path).cloned() }, free)
        })
    }

    /// The node at `path`; the commit will depend on the node.
    pub(crate) fn get(&mut self, store: &Store, path: &Path) -> Option<Node> {
        self.entry(store, path).now.clone()
    }

    /// Puts a node, or takes the node away.
    pub(crate) fn set(&mut self, store: &Store, path: &Path, node: Option<Node>) {
        let written = node.as_ref().map_or(0, |node| self.written_cost(node.value.len(), &node.perms));
        self.entry(store, path);
        if let Some(entry) = self.entries.get_mut(path) {
            entry.write(path, node, written, &mut self.owned, &mut self.bytes);
        }
    }

    /// Puts a node where there is none. `free`: the path lies below a removed node.
    pub(crate) fn make(&mut self, path: &Path, node: Node, free: bool) {
        let written = self.written_cost(node.value.len(), &node.perms);
        let entry = touch(&mut self.entries, &mut self.bytes, path, || (None, free));
        entry.write(path, Some(node), written, &mut self.owned, &mut self.bytes);
    }

    /// Notes that watches must fire for the node at `path`.
    pub(crate) fn note_event(&mut self, path: &Path) {
        if let Some(entry) = self.entries.get_mut(path) {
            entry.event = true;
        }
    }

    /// The children as this transaction sees them, in order: one pass over the tree's children and the transaction's
    /// own. `hidden` counts the children that the pass looks at and does not give.
    pub(crate) fn children<'a>(
        &'a self,
        store: &'a Store,
        parent: &'a Path,
        hidden: &'a Cell<usize>,
    ) -> impl Iterator<Item = &'a Path> {
        let is_removed = self.is_removed(parent) || self.is_free(parent);
        let mut all = store.children(parent).take_while(move |_| !is_removed).peekable();
        let mut own = path::children(&self.entries, parent).peekable();
        core::iter::from_fn(move || {
            loop {
                let Some((touched, entry)) = own.peek() else { return all.next() };
                match all.peek() {
                    Some(path) if *path < *touched => return all.next(),
                    // The transaction's word counts.
                    Some(path) if *path == *touched => {
                        hidden.update(|count| count + 1);
                        all.next();
                    }
                    _ => {}
                }
                let (path, there) = (*touched, entry.now.is_some());
                own.next();
                if there {
                    return Some(path);
                }
                hidden.update(|count| count + 1);
            }
        })
    }

    /// Removes `top`, which is there, and all below `top`.
    pub(crate) fn remove(&mut self, store: &mut Store, top: &Path) {
        let (mut passed, mut gone) = (self.removed.len(), 0);
        let first = top.place().first_below();
        for (path, entry) in
            self.entries.range_mut::<dyn Place, _>((Bound::Included(&first as &dyn Place), Bound::Unbounded))
        {
            passed += 1;
            if entry.now.is_some() && path.place().is_below(top) {
                gone += 1;
                entry.write(path, None, 0, &mut self.owned, &mut self.bytes);
            }
        }
        let len = top.key().len();
        store.spend(1 + gone, len + passed * (PASSED_WORK + path::prefix_work(len)));
        self.set(store, top, None);
        if self.is_free(top) {
            return;
        }
        let Err(at) = self.removed.binary_search(top) else { return };
        if store.children(top).next().is_some() {
            self.removed.insert(at, top.clone());
        } else {
            // Then there must be none at the commit either.
            self.note_listed(store, top);
        }
        self.removed.retain(|other| !other.place().is_below(top));
    }

    /// Whether the transaction may remove one more node that has other nodes below it.
    pub(crate) fn has_room(&self, limit: usize) -> bool {
        self.removed.len() < limit
    }

    /// Makes the commit depend on the list of children of `parent`.
    pub(crate) fn note_listed(&mut self, store: &Store, parent: &Path) {
        let is_removed = self.is_removed(parent);
        let entry = self.entry(store, parent);
        if entry.listed.is_none() && !entry.free && !is_removed {
            entry.listed = store.get(parent).map(|node| node.children_generation);
        }
    }
}
