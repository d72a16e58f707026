//! The tree of nodes: one ordered map, and each domain's account.
//!
//! Flat, not nested: a path of 3 KiB may have 1,500 parts, and nothing here may recurse on a guest's word. The map's order
//! keeps the children of a node together ([`Path`]), so that listing them costs one search and a step for each.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Bound;

use super::path::{self, Path, Place};
use super::perms::{Access, Perms};
use super::quota::Account;

/// What a node costs beyond its value and path, for accounts.
const NODE_OVERHEAD: usize = 128;

/// Work that looking at one node stands for, in bytes moved.
pub(super) const NODE_WORK: usize = 64;

/// What an entry of a node's permissions costs: itself, and its place in the index of who is named where.
const PERM_COST: usize = 80;

/// A node. Cloning shares the value and the permissions.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Any bytes.
    pub(crate) value: Arc<[u8]>,
    /// Who may do what.
    pub(crate) perms: Perms,
    /// Changes, and never comes back, when the node is made or its value or permissions are written.
    pub(crate) generation: u64,
    /// The same for the list of its children.
    pub(crate) children_generation: u64,
}

impl Node {
    pub(super) fn cost(&self, path: &Path) -> usize {
        NODE_OVERHEAD + path.key().len() + self.value.len() + self.perms.entries().len() * PERM_COST
    }
}

/// A change that watches may be told of.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// The node.
    pub(crate) path: Path,
    /// Only watches of this very path hear of it: the node went with one above it.
    pub(crate) exact: bool,
    /// Permissions before; `None` if it was not there.
    pub(crate) before: Option<Perms>,
    /// Permissions after; `None` if it is gone.
    pub(crate) after: Option<Perms>,
}

/// All nodes.
pub(crate) struct Store {
    nodes: BTreeMap<Path, Node>,
    /// The nodes whose permissions name a domain, as their owner or as an exception; those of dom0 are not kept.
    named: BTreeSet<(u16, Path)>,
    accounts: BTreeMap<u16, Account>,
    generation: u64,
    work: usize,
    /// Changes of `accounts`.
    changes: u64,
    empty: Arc<[u8]>,
}

impl Store {
    /// The root alone, dom0's and closed to others.
    pub(crate) fn new() -> Store {
        let mut store = Store {
            nodes: BTreeMap::new(),
            named: BTreeSet::new(),
            accounts: BTreeMap::new(),
            generation: 0,
            work: 0,
            changes: 1,
            empty: Arc::from(&[][..]),
        };
        let root = store.new_node(store.empty.clone(), Perms::owned_by(0, Access::None));
        store.put(&Path::root(), root);
        store
    }

    /// The value of nodes that are made on the way to another.
    pub(crate) fn empty_value(&self) -> Arc<[u8]> {
        self.empty.clone()
    }

    /// Notes that `nodes` were looked at and `bytes` moved. (I29)
    pub(super) fn spend(&mut self, nodes: usize, bytes: usize) {
        self.work = self.work.wrapping_add(nodes.saturating_mul(NODE_WORK).saturating_add(bytes));
    }

    /// All work done so far, in bytes moved; wraps around.
    pub(super) fn work(&self) -> usize {
        self.work
    }

    /// A generation that no node had before.
    pub(crate) fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// A node with a generation of its own, not yet in the tree.
    pub(crate) fn new_node(&mut self, value: Arc<[u8]>, perms: Perms) -> Node {
        let generation = self.next_generation();
        Node { value, perms, generation, children_generation: generation }
    }

    /// The node at `path`.
    pub(crate) fn get(&self, path: &Path) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// The node at a path that nobody need own.
    pub(crate) fn find(&self, key: &dyn Place) -> Option<&Node> {
        self.nodes.get(key)
    }

    /// Number of nodes.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All nodes in order.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.nodes.iter()
    }

    /// Puts a node where there is one or is none. Whoever calls has seen to the node above.
    pub(crate) fn put(&mut self, path: &Path, node: Node) {
        self.spend(1, path.key().len() + node.value.len());
        self.changes += 1;
        let account = self.accounts.entry(node.perms.owner()).or_default();
        account.nodes += 1;
        account.node_bytes += node.cost(path);
        let perms = node.perms.clone();
        match self.nodes.insert(path.clone(), node) {
            Some(old) => {
                if old.perms != perms {
                    self.name(path, &old.perms, false);
                    self.name(path, &perms, true);
                }
                self.credit(path, &old);
            }
            None => {
                self.name(path, &perms, true);
                self.touch_parent(path);
            }
        }
    }

    /// Notes whom the permissions of the node at `path` name, or forgets it.
    fn name(&mut self, path: &Path, perms: &Perms, named: bool) {
        for perm in perms.entries().iter().filter(|perm| perm.domid != 0) {
            let entry = (perm.domid, path.clone());
            if named {
                self.named.insert(entry);
            } else {
                self.named.remove(&entry);
            }
        }
    }

    /// Takes a node out. Whoever calls takes out all below it too.
    pub(crate) fn remove(&mut self, path: &Path) -> Option<Node> {
        self.spend(1, path.key().len());
        let old = self.nodes.remove(path)?;
        self.name(path, &old.perms, false);
        self.credit(path, &old);
        self.touch_parent(path);
        Some(old)
    }

    fn credit(&mut self, path: &Path, old: &Node) {
        let owner = old.perms.owner();
        self.changes += 1;
        let account = self.accounts.entry(owner).or_default();
        account.nodes -= 1;
        account.node_bytes -= old.cost(path);
        self.forget_if_empty(owner);
    }

    fn touch_parent(&mut self, path: &Path) {
        let generation = self.next_generation();
        if let Some(parent) = path.parent_key()
            && let Some(node) = self.nodes.get_mut(&parent as &dyn Place)
        {
            node.children_generation = generation;
        }
    }

    /// The paths right below `parent`, in order.
    pub(crate) fn children<'a>(&'a self, parent: &'a Path) -> impl Iterator<Item = &'a Path> {
        path::children(&self.nodes, parent).map(|(path, _)| path)
    }

    /// All paths below `top`, each after the one above it; `top` is not among them.
    pub(crate) fn below(&self, top: &Path) -> Vec<Path> {
        path::walk(top, usize::MAX, |path| self.children(path).cloned().collect())
    }

    /// Counts the changes of all domains' figures; never 0.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// What `domid` has.
    pub(crate) fn account(&self, domid: u16) -> Account {
        self.accounts.get(&domid).copied().unwrap_or_default()
    }

    /// Changes what `domid` has beside nodes.
    pub(crate) fn charge(&mut self, domid: u16, change: impl FnOnce(&mut Account)) {
        self.changes += 1;
        change(self.accounts.entry(domid).or_default());
        self.forget_if_empty(domid);
    }

    fn forget_if_empty(&mut self, domid: u16) {
        if self.accounts.get(&domid) == Some(&Account::default()) {
            self.accounts.remove(&domid);
        }
    }

    /// Each domain that has something.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = (u16, Account)> {
        self.accounts.iter().map(|(&domid, &account)| (domid, account))
    }

    /// Removes a dead domain's nodes with all below them, and every permission granted to it: a later
    /// domain of the same number must not inherit them.
    pub(crate) fn forget_domain(&mut self, domid: u16) -> Vec<Change> {
        let named = self.named_by(domid);
        self.spend(named.len(), 0);
        let owned =
            named.into_iter().filter(|path| self.get(path).is_some_and(|node| node.perms.owner() == domid));
        let owned: Vec<Path> = owned.collect();
        let mut changes = Vec::new();
        for path in owned {
            if path.is_root() {
                if let Some(root) = self.nodes.get(&path).cloned() {
                    self.rewrite_perms(&path, root.perms.with_owner(0));
                }
                continue;
            }
            // One above it may have taken it along.
            if self.nodes.contains_key(&path) {
                self.remove_subtree(&path, &mut changes);
            }
        }
        // What is left names the domain beside its owner.
        let named = self.named_by(domid).into_iter();
        let named = named.filter_map(|path| Some((path.clone(), self.get(&path)?.perms.without(domid)?)));
        let named: Vec<(Path, Perms)> = named.collect();
        for (path, perms) in named {
            self.rewrite_perms(&path, perms);
        }
        changes
    }

    /// The nodes whose permissions name `domid`.
    fn named_by(&self, domid: u16) -> Vec<Path> {
        let from = Bound::Included((domid, Path::root()));
        let run = self.named.range((from, Bound::Unbounded)).take_while(|(named, _)| *named == domid);
        run.map(|(_, path)| path.clone()).collect()
    }

    fn rewrite_perms(&mut self, path: &Path, perms: Perms) {
        let generation = self.next_generation();
        if let Some(node) = self.nodes.get(path).cloned() {
            self.put(path, Node { perms, generation, ..node });
        }
    }

    fn remove_subtree(&mut self, top: &Path, changes: &mut Vec<Change>) {
        for path in self.below(top).into_iter().rev() {
            let before = self.remove(&path).map(|node| node.perms);
            changes.push(Change { path, exact: true, before, after: None });
        }
        let before = self.remove(top).map(|node| node.perms);
        changes.push(Change { path: top.clone(), exact: false, before, after: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        Path::absolute(text.as_bytes()).unwrap()
    }

    fn put(store: &mut Store, text: &str, owner: u16) {
        let node = store.new_node(Arc::from(&b"v"[..]), Perms::owned_by(owner, Access::None));
        store.put(&path(text), node);
    }

    #[test]
    fn lists_children_and_subtrees_in_order() {
        let mut store = Store::new();
        for text in ["/a", "/a/b", "/a/b/c", "/a/b/c/d", "/a/b-c", "/a/b0", "/b", "/a-b"] {
            put(&mut store, text, 0);
        }
        let children = |path: &Path| store.children(path).cloned().collect::<Vec<_>>();
        let texts = |paths: Vec<Path>| paths.iter().map(|p| p.to_string()).collect::<Vec<_>>();
        assert_eq!(texts(children(&Path::root())), ["/a", "/a-b", "/b"]);
        assert_eq!(texts(children(&path("/a"))), ["/a/b", "/a/b-c", "/a/b0"]);
        assert_eq!(texts(store.below(&path("/a"))), ["/a/b", "/a/b/c", "/a/b/c/d", "/a/b-c", "/a/b0"]);
        assert!(children(&path("/b")).is_empty());
        assert_eq!(store.below(&Path::root()).len(), 8);
    }

    #[test]
    fn accounts_balance() {
        let mut store = Store::new();
        put(&mut store, "/a", 3);
        put(&mut store, "/a/b", 3);
        put(&mut store, "/a/b", 4);
        assert_eq!(store.account(3).nodes, 1);
        assert_eq!(store.account(4).nodes, 1);
        store.remove(&path("/a/b"));
        store.remove(&path("/a"));
        assert_eq!(store.account(3), Account::default());
        assert_eq!(store.accounts().count(), 1, "dom0 alone, for the root");
    }

    #[test]
    fn a_dead_domain_leaves_nothing() {
        let mut store = Store::new();
        put(&mut store, "/d", 0);
        put(&mut store, "/d/own", 5);
        put(&mut store, "/d/own/dom0s", 0);
        put(&mut store, "/d/other", 6);
        let node = store.new_node(Arc::from(&b""[..]), Perms::shared_with(0, 5));
        store.put(&path("/d/shared"), node);
        let changes = store.forget_domain(5);
        assert_eq!(changes.len(), 2);
        assert_eq!(store.len(), 4);
        assert_eq!(store.get(&path("/d/shared")).unwrap().perms.entries().len(), 1);
        assert_eq!(store.account(5), Account::default());
    }

    #[test]
    fn the_root_outlives_its_owner() {
        let mut store = Store::new();
        put(&mut store, "/", 5);
        store.forget_domain(5);
        assert_eq!(store.get(&Path::root()).unwrap().perms.owner(), 0);
    }
}
