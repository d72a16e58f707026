//! The tree of nodes: one ordered map, and each domain's account.
//!
//! The map is flat, not nested: a path of 3 KiB may have 1,500 parts, and no recursion here may go as deep as a guest
//! says. The map's order keeps the children of a node together ([`Path`]), so that listing the children costs one
//! search and a step for each child.

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Bound;

use super::burial::{Burials, Sweep};
use super::path::{self, Path, Place};
use super::perms::{Access, Perms};
use super::price;
use super::quota::Account;

/// The work, in bytes moved, that the store counts for a look at one node.
pub(super) const NODE_WORK: usize = 64;

/// A node's place in the tree.
const NODE_PLACE: usize = price::mapped::<Path, Node>();
/// The place of an entry of a node's permissions in the index of named domains.
const NAMED_PLACE: usize = price::mapped::<(u16, Path), ()>();

/// A node. Cloning shares the value and the permissions.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Any bytes.
    pub(crate) value: Arc<[u8]>,
    /// The domains that may read or write the node.
    pub(crate) perms: Perms,
    /// A number that changes when the node is made or its value or permissions are written. No number comes back.
    pub(crate) generation: u64,
    /// A number that changes, in the same way, when the list of the node's children changes.
    pub(crate) children_generation: u64,
}

impl Node {
    /// Bytes of heap for the node in the tree.
    pub(super) fn cost(&self, path: &Path) -> usize {
        place_cost(path.key().len(), &self.perms) + self.parts_cost()
    }

    /// Bytes of heap for the node's value and permissions.
    pub(super) fn parts_cost(&self) -> usize {
        parts_cost(self.value.len(), &self.perms)
    }
}

/// Bytes of heap for a node's value and permissions.
pub(super) fn parts_cost(value: usize, perms: &Perms) -> usize {
    price::shared(value) + price::shared(size_of_val(perms.entries()))
}

/// Bytes of heap for a node in the tree, beside the node's value and permissions.
pub(super) fn place_cost(path: usize, perms: &Perms) -> usize {
    NODE_PLACE + price::shared(path) + perms.entries().len() * NAMED_PLACE
}

/// A change for which watches may fire.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// The node.
    pub(crate) path: Path,
    /// Only watches of this very path fire: the node went together with a node above it.
    pub(crate) exact: bool,
    /// Permissions before the change; `None` if the node was not there.
    pub(crate) before: Option<Perms>,
    /// Permissions after the change; `None` if the node is gone.
    pub(crate) after: Option<Perms>,
}

/// What a request leaves: a change to tell to watches, or work.
pub(crate) enum Outcome {
    /// A change.
    Change(Change),
    /// Nodes below a removed node are still to be taken out.
    Sweep(Sweep),
}

/// All nodes.
pub(crate) struct Store {
    nodes: BTreeMap<Path, Node>,
    /// Hides some of `nodes`.
    burials: Burials,
    /// Removals of hidden nodes in whose place new nodes were made.
    replaced: Vec<Change>,
    /// Domains that the permissions of a node name, as the owner or in an exception, with the node's path. Entries for
    /// dom0 are left out.
    named: BTreeSet<(u16, Path)>,
    accounts: BTreeMap<u16, Account>,
    generation: u64,
    work: usize,
    /// Changes of `accounts`.
    changes: u64,
    empty: Arc<[u8]>,
}

impl Store {
    /// A tree with the root alone, which dom0 owns and which is closed to others.
    pub(crate) fn new() -> Store {
        let mut store = Store {
            nodes: BTreeMap::new(),
            burials: Burials::default(),
            replaced: Vec::new(),
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

    /// The value of a node that is made on the way to another node.
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

    /// The last generation that was given out. While this number stays, what clients see stays.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// A generation that no node had before.
    pub(crate) fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// Makes a node with a generation of its own, not yet in the tree.
    pub(crate) fn new_node(&mut self, value: Arc<[u8]>, perms: Perms) -> Node {
        let generation = self.next_generation();
        Node { value, perms, generation, children_generation: generation }
    }

    /// The node at `path`.
    pub(crate) fn get(&self, path: &Path) -> Option<&Node> {
        self.nodes.get(path).filter(|node| self.is_seen(path, node))
    }

    /// The node at a path of which the caller need not own the bytes.
    pub(crate) fn find(&self, key: &dyn Place) -> Option<&Node> {
        self.nodes.get(key).filter(|node| self.is_seen(key, node))
    }

    /// Whether clients see the node.
    #[inline]
    fn is_seen(&self, key: &dyn Place, node: &Node) -> bool {
        self.burials.is_empty() || node.generation > self.burials.hidden_at(key.place())
    }

    /// Number of nodes, hidden nodes included.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All nodes in order.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.nodes.iter()
    }

    /// Puts a node in the place of an old node, or where there is no node. The caller has made sure of the node above.
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
                if !self.is_seen(path, &old) {
                    self.touch_parent(path);
                    let before = Some(old.perms);
                    self.replaced.push(Change { path: path.clone(), exact: true, before, after: None });
                }
            }
            None => {
                self.name(path, &perms, true);
                self.touch_parent(path);
            }
        }
    }

    /// Adds the domains that the permissions of the node at `path` name to the index, or takes them out of the index.
    fn name(&mut self, path: &Path, perms: &Perms, named: bool) {
        self.spend(0, perms.entries().len() * NODE_WORK / 4);
        for perm in perms.entries().iter().filter(|perm| perm.domid != 0) {
            let entry = (perm.domid, path.clone());
            if named {
                self.named.insert(entry);
            } else {
                self.named.remove(&entry);
            }
        }
    }

    /// Takes a node out at once, and leaves the nodes below to a sweep. The result is what to tell and what to do.
    pub(crate) fn remove(&mut self, path: &Path) -> Option<Outcome> {
        self.get(path)?;
        let old = self.take(path)?;
        self.touch_parent(path);
        let top = Change { path: path.clone(), exact: false, before: Some(old.perms), after: None };
        if path::children(&self.nodes, path).next().is_none() {
            return Some(Outcome::Change(top));
        }
        let until = self.next_generation();
        let number = self.burials.bury(path.clone(), until);
        Some(Outcome::Sweep(Sweep { number, until, open: Vec::from([(path.clone(), false)]), top }))
    }

    /// Takes out one buried node, the lowest first, or lists the children of a node. `Err`: the sweep is over; the
    /// value is the change of the topmost node.
    pub(crate) fn sweep(&mut self, mut sweep: Sweep) -> Result<(Sweep, Option<Change>), Change> {
        let Some((path, is_open)) = sweep.open.pop() else {
            self.burials.end(sweep.number);
            return Err(sweep.top);
        };
        if !is_open {
            sweep.open.push((path.clone(), true));
            let from = sweep.open.len();
            // Below a newer node, which stays, there may be buried nodes, too.
            sweep.open.extend(path::children(&self.nodes, &path).map(|(child, _)| (child.clone(), false)));
            let each = NODE_WORK / 4 + path::prefix_work(path.key().len());
            self.spend(1, (sweep.open.len() - from) * each);
            return Ok((sweep, None));
        }
        let is_buried = |node: &Node| node.generation <= sweep.until;
        if path == sweep.top.path || !self.nodes.get(&path).is_some_and(is_buried) {
            return Ok((sweep, None));
        }
        let before = self.take(&path).map(|node| node.perms);
        Ok((sweep, Some(Change { path, exact: true, before, after: None })))
    }

    /// Takes a node out that is in the tree, hidden or not.
    fn take(&mut self, path: &Path) -> Option<Node> {
        self.spend(2, path.key().len());
        let old = self.nodes.remove(path)?;
        self.name(path, &old.perms, false);
        self.credit(path, &old);
        Some(old)
    }

    /// Takes the removals of hidden nodes that were replaced, for which watches must fire.
    #[inline]
    pub(crate) fn take_replaced(&mut self) -> Vec<Change> {
        core::mem::take(&mut self.replaced)
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
        let hidden = if self.burials.is_empty() { 0 } else { self.burials.hidden_below(parent.place()) };
        let seen = move |(path, node): (&'a Path, &'a Node)| (node.generation > hidden).then_some(path);
        path::children(&self.nodes, parent).filter_map(seen)
    }

    /// Counts the changes of all domains' figures; never 0.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// The figures of what `domid` has.
    pub(crate) fn account(&self, domid: u16) -> Account {
        self.accounts.get(&domid).copied().unwrap_or_default()
    }

    /// Notes that what is kept for a domain changed, beside what the domain's account says.
    pub(crate) fn note_change(&mut self) {
        self.changes += 1;
    }

    /// Changes the figures of what `domid` has beside nodes.
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

    /// The account of each domain that has something.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = (u16, Account)> {
        self.accounts.iter().map(|(&domid, &account)| (domid, account))
    }

    /// Does one step of forgetting a dead domain: looks at the first node after `after` that names the domain. A node
    /// that the domain owns goes, with all below the node. From another domain's node the permission goes. A later
    /// domain of the same number must inherit neither. `None`: no further node names the domain.
    pub(crate) fn forget_next(
        &mut self,
        domid: u16,
        after: Option<&Path>,
    ) -> Option<(Path, Option<Outcome>)> {
        let from = match after {
            Some(path) => Bound::Excluded((domid, path.clone())),
            None => Bound::Included((domid, Path::root())),
        };
        let next = self.named.range((from, Bound::Unbounded)).next();
        let path = next.filter(|(named, _)| *named == domid)?.1.clone();
        self.spend(1, path.key().len());
        // A hidden node is being swept.
        let Some(perms) = self.get(&path).map(|node| node.perms.clone()) else { return Some((path, None)) };
        if perms.owner() == domid && !path.is_root() {
            let outcome = self.remove(&path);
            return Some((path, outcome));
        }
        let owned = if perms.owner() == domid { perms.with_owner(0) } else { perms };
        let without = owned.without(domid).unwrap_or(owned);
        self.rewrite_perms(&path, without);
        Some((path, None))
    }

    /// Looks at the first node after `after`: the node, and what is wrong about it. What is buried is not looked at: above
    /// it nothing is left.
    pub(crate) fn check_next(&mut self, after: Option<&Path>) -> Option<(Path, Option<&'static str>)> {
        let from = after.map_or(Bound::Unbounded, |path| Bound::Excluded(path.clone()));
        let (path, node) = self.nodes.range((from, Bound::Unbounded)).next()?;
        let above = path.parent_key();
        let named = |domid| domid == 0 || self.named.contains(&(domid, path.clone()));
        let fault = if !self.is_seen(path, node) {
            None
        } else if above.is_some_and(|above| self.find(&above).is_none()) {
            Some("the node above is not there")
        } else if !node.perms.entries().iter().all(|perm| named(perm.domid)) {
            Some("the index of domains has it not")
        } else if self.account(node.perms.owner()).nodes == 0 {
            Some("its owner's account has no node")
        } else {
            None
        };
        let (path, looks) = (path.clone(), 3 + node.perms.entries().len());
        self.spend(looks, path.key().len());
        Some((path, fault))
    }

    /// Takes a node out of the index of domains.
    #[cfg(test)]
    pub(super) fn unname(&mut self, path: &Path) {
        let perms = self.get(path).unwrap().perms.clone();
        self.name(path, &perms, false);
    }

    fn rewrite_perms(&mut self, path: &Path, perms: Perms) {
        let generation = self.next_generation();
        if let Some(node) = self.nodes.get(path).cloned() {
            self.put(path, Node { perms, generation, ..node });
        }
    }
}
