//! The operations on nodes, with permissions and quotas, on the tree itself or within a transaction.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;

use super::error::XsError;
use super::path::{Path, Place, prefix_work};
use super::perms::{Actor, Perms, Want};
use super::quota::Quotas;
use super::store::{Change, Node, Outcome, Store, parts_cost, place_cost};
use super::transaction::Transaction;

/// The work, in bytes moved, for a child's place in a list.
const LISTED_WORK: usize = 16;

/// The nearest node above a path, with the length of that node's path.
type Above = (usize, Node);

/// The tree as one request sees the tree.
pub(crate) struct View<'a> {
    pub(crate) store: &'a mut Store,
    pub(crate) transaction: Option<&'a mut Transaction>,
    pub(crate) quotas: &'a Quotas,
    pub(crate) actor: Actor,
    /// Collects the changes for which watches must fire. The changes of a transaction come when the
    /// transaction commits.
    pub(crate) outcomes: &'a mut Vec<Outcome>,
}

impl View<'_> {
    /// `XS_READ`.
    ///
    /// # Errors
    /// - `ENOENT`: there is no such node, and the actor could read the nearest node above.
    /// - `EACCES`: the actor may not read the node, or the nearest node above a missing one.
    /// - `ENOSPC`, `ENOMEM`: the transaction may not touch one more node.
    pub(crate) fn read(&mut self, path: &Path) -> Result<Arc<[u8]>, XsError> {
        Ok(self.permitted(path, Want::Read)?.value)
    }

    /// `XS_DIRECTORY`: shows `each` the names of the children, in order, as long as `each` returns `true`. Gives the
    /// generation of the list of children.
    ///
    /// # Errors
    /// The errors of [`View::read`].
    pub(crate) fn list(&mut self, path: &Path, mut each: impl FnMut(&[u8]) -> bool) -> Result<u64, XsError> {
        let node = self.permitted(path, Want::Read)?;
        if let Some(transaction) = &mut self.transaction {
            transaction.note_listed(self.store, path);
        }
        let mut work = 0;
        let each_work = LISTED_WORK + prefix_work(path.key().len());
        let seen = |child: &Path| {
            work += each_work + child.name().len();
            each(child.name())
        };
        let hidden = Cell::new(0);
        match &self.transaction {
            Some(transaction) => transaction.children(self.store, path, &hidden).all(seen),
            None => self.store.children(path).all(seen),
        };
        self.store.spend(0, work + hidden.get() * each_work);
        Ok(node.generation.max(node.children_generation))
    }

    /// `XS_GET_PERMS`.
    ///
    /// # Errors
    /// The errors of [`View::read`].
    pub(crate) fn perms(&mut self, path: &Path) -> Result<Perms, XsError> {
        Ok(self.permitted(path, Want::Read)?.perms)
    }

    /// `XS_WRITE`: writes a node, and makes the node, and the nodes above it, where they are missing.
    ///
    /// # Errors
    /// - `EACCES`: the actor may not write the node, or the nearest node above a missing one.
    /// - `ENOSPC`: the value is too long, or a quota of nodes is used up.
    /// - `ENOMEM`: a quota of memory is used up.
    pub(crate) fn write(&mut self, path: &Path, value: &[u8]) -> Result<(), XsError> {
        if !self.actor.privileged() && value.len() > self.quotas.value_bytes {
            return Err(XsError::NoSpc);
        }
        match self.permitted_or_above(path, Want::Write)? {
            Ok(node) => {
                self.afford_change(path, &node, value.len(), &node.perms)?;
                let generation = self.store.next_generation();
                let perms = node.perms.clone();
                self.put(path, Node { value: Arc::from(value), generation, ..node });
                self.tell(path, Some(perms.clone()), Some(perms));
                Ok(())
            }
            Err(above) => self.create(path, above, Arc::from(value)),
        }
    }

    /// `XS_MKDIR`: makes an empty node if there is none.
    ///
    /// # Errors
    /// The errors of [`View::write`].
    pub(crate) fn mkdir(&mut self, path: &Path) -> Result<(), XsError> {
        match self.permitted_or_above(path, Want::Write)? {
            Ok(_) => Ok(()),
            Err(above) => {
                let empty = self.store.empty_value();
                self.create(path, above, empty)
            }
        }
    }

    /// `XS_RM`: removes a node and all below the node. A missing node is no error if the node above is there.
    ///
    /// # Errors
    /// - `EINVAL`: the path is the root.
    /// - `ENOENT`: the node is missing, and the node above, too.
    /// - `EACCES`: the actor may not write the node.
    /// - `ENOSPC`, `ENOMEM`: the transaction may not touch or remove one more node.
    pub(crate) fn rm(&mut self, path: &Path) -> Result<(), XsError> {
        let parent = path.parent().ok_or(XsError::Inval)?;
        match self.permitted(path, Want::Write) {
            Ok(_) => {}
            Err(XsError::NoEnt) => {
                return self.lookup(&parent)?.map(|_| ()).ok_or(XsError::NoEnt);
            }
            Err(error) => return Err(error),
        }
        match &mut self.transaction {
            Some(transaction) => {
                if !self.actor.privileged() && !transaction.has_room(self.quotas.transaction_subtrees) {
                    return Err(XsError::NoSpc);
                }
                transaction.remove(self.store, path);
            }
            None => self.outcomes.extend(self.store.remove(path)),
        }
        Ok(())
    }

    /// `XS_SET_PERMS`.
    ///
    /// # Errors
    /// - `ENOENT`: there is no such node.
    /// - `EACCES`: the actor does not own the node.
    /// - `EPERM`: an unprivileged owner gives the node away.
    /// - `ENOSPC`: there are too many entries.
    /// - `ENOMEM`: a quota of memory is used up.
    pub(crate) fn set_perms(&mut self, path: &Path, perms: Perms) -> Result<(), XsError> {
        let node = self.permitted(path, Want::Own)?;
        if !self.actor.privileged() {
            if perms.entries().len() > self.quotas.perms {
                return Err(XsError::NoSpc);
            }
            if perms.owner() != node.perms.owner() {
                return Err(XsError::Perm);
            }
            self.afford_change(path, &node, node.value.len(), &perms)?;
        }
        let generation = self.store.next_generation();
        let before = node.perms.clone();
        self.put(path, Node { perms: perms.clone(), generation, ..node });
        self.tell(path, Some(before), Some(perms));
        Ok(())
    }

    /// The node at `path`, if the actor may have `want` of the node. A missing node is `ENOENT` to an actor that could
    /// have had `want` of the nearest node above, and `EACCES` to any other.
    fn permitted(&mut self, path: &Path, want: Want) -> Result<Node, XsError> {
        match self.lookup(path)? {
            Some(node) if node.perms.allow(self.actor, want) => Ok(node),
            Some(_) => Err(XsError::Acces),
            None => self.permitted_above(path, want).and(Err(XsError::NoEnt)),
        }
    }

    /// Does the same as [`View::permitted`], but instead of `ENOENT` returns the nearest node above.
    fn permitted_or_above(&mut self, path: &Path, want: Want) -> Result<Result<Node, Above>, XsError> {
        match self.lookup(path)? {
            Some(node) if node.perms.allow(self.actor, want) => Ok(Ok(node)),
            Some(_) => Err(XsError::Acces),
            None => self.permitted_above(path, want).map(Err),
        }
    }

    #[inline(never)]
    fn permitted_above(&mut self, path: &Path, want: Want) -> Result<Above, XsError> {
        let above = self.nearest_above(path)?;
        if above.1.perms.allow(self.actor, want) { Ok(above) } else { Err(XsError::Acces) }
    }

    /// The nearest node above `path` that exists, with the length of that node's path.
    fn nearest_above(&mut self, path: &Path) -> Result<Above, XsError> {
        let mut asked = 0;
        let removed = self.transaction.as_ref().and_then(|tx| tx.end_of_removed(path));
        let end = path.nearest_above(|key| {
            asked += 1;
            match &self.transaction {
                Some(transaction) => transaction.peek(self.store, key, removed).is_some(),
                None => self.store.find(&key).is_some(),
            }
        });
        self.store.spend(asked, asked * path.key().len());
        let node = self.lookup(&path.until(end))?.ok_or(XsError::NoEnt)?;
        Ok((end, node))
    }

    /// Makes `path` and the missing nodes above `path`, with permissions inherited from above. An unprivileged domain
    /// owns what it makes.
    fn create(&mut self, path: &Path, (above, node): Above, value: Arc<[u8]>) -> Result<(), XsError> {
        if !self.actor.privileged() && path.levels() > self.quotas.levels {
            return Err(XsError::NoSpc);
        }
        let perms =
            if self.actor.privileged() { node.perms } else { node.perms.with_owner(self.actor.domid) };
        if !self.actor.privileged() {
            self.afford_nodes(path, above, value.len(), &perms)?;
        }
        let removed = self.transaction.as_ref().and_then(|tx| tx.end_of_removed(path));
        for key in path.keys_above().filter(|key| key.bytes.len() > above) {
            let last = key.bytes.len() == path.key().len();
            let value = if last { value.clone() } else { self.store.empty_value() };
            let node = self.store.new_node(value, perms.clone());
            let made = if last { path.clone() } else { Path::from(key) };
            match &mut self.transaction {
                Some(transaction) => {
                    self.store.spend(1, key.bytes.len());
                    transaction.make(&made, node, removed.is_some_and(|end| end < key.bytes.len()));
                }
                None => self.store.put(&made, node),
            }
        }
        self.tell(path, None, Some(perms));
        Ok(())
    }

    /// Whether the actor may make the nodes that are missing between the first `above` bytes of `path` and the whole of
    /// `path`, where the last node has a value of `value` bytes.
    fn afford_nodes(
        &mut self,
        path: &Path,
        above: usize,
        value: usize,
        perms: &Perms,
    ) -> Result<(), XsError> {
        let domid = self.actor.domid;
        let (mut nodes, mut entries, mut bytes, mut kept) = (0, 0, 0, 0);
        for key in path.keys_above().filter(|key| key.bytes.len() > above) {
            let value = if key.bytes.len() == path.key().len() { value } else { 0 };
            nodes += 1;
            bytes += place_cost(key.bytes.len(), perms) + parts_cost(value, perms);
            if let Some(transaction) = &self.transaction {
                let (price, is_new) = transaction.price_to_set(&key, value, perms);
                entries += usize::from(is_new);
                kept += price;
            }
        }
        self.store.spend(nodes, nodes * prefix_work(path.key().len()));
        let owned = self.store.account(domid).nodes;
        // The nodes below nodes that a transaction removed count until the transaction is committed, here as at the
        // commit.
        let more = self.transaction.as_ref().map_or(0, |tx| tx.owned(domid));
        let is_full = owned.saturating_add_signed(more) + nodes > self.quotas.nodes;
        if is_full || self.has_no_entries(entries) {
            return Err(XsError::NoSpc);
        }
        self.afford(domid, bytes, kept)
    }

    /// Whether the actor may change the node at `path`, which is there, to a value of `value` bytes and the permissions
    /// `perms`.
    fn afford_change(&self, path: &Path, old: &Node, value: usize, perms: &Perms) -> Result<(), XsError> {
        if self.actor.privileged() {
            return Ok(());
        }
        let new = place_cost(path.key().len(), perms) + parts_cost(value, perms);
        let kept = self.transaction.as_ref().map_or(0, |tx| tx.price_to_set(path, value, perms).0);
        self.afford(old.perms.owner(), new.saturating_sub(old.cost(path)), kept)
    }

    /// May `owner`'s nodes take `bytes` more, and the actor's transaction `kept` more? (I29)
    fn afford(&self, owner: u16, bytes: usize, kept: usize) -> Result<(), XsError> {
        let actor = self.actor.domid;
        let is_over = |domid: u16, more: usize| {
            let changed = self.transaction.as_ref().map_or(0, |tx| tx.owned_by(domid).bytes.max(0));
            let has = self.store.account(domid).bytes() + changed.unsigned_abs();
            more > 0 && has + more > self.quotas.memory_bytes
        };
        let own = if owner == actor { bytes } else { 0 };
        // There is no limit to what dom0 owns.
        if is_over(actor, own + kept) || (owner != actor && owner != 0 && is_over(owner, bytes)) {
            return Err(XsError::NoMem);
        }
        Ok(())
    }

    /// Whether the transaction, if there is one, has no room for `more` entries.
    fn has_no_entries(&self, more: usize) -> bool {
        self.transaction.as_ref().is_some_and(|tx| tx.len() + more > self.quotas.transaction_nodes)
    }

    /// Whether the transaction, if there is one, may touch this node, and keep what that takes.
    fn afford_entry(&self, place: &dyn Place) -> Result<(), XsError> {
        let Some(transaction) = &self.transaction else { return Ok(()) };
        if self.actor.privileged() {
            return Ok(());
        }
        let price = transaction.price(self.store, place);
        if self.has_no_entries(usize::from(price > 0)) {
            return Err(XsError::NoSpc);
        }
        self.afford(self.actor.domid, 0, price)
    }

    fn lookup(&mut self, path: &Path) -> Result<Option<Node>, XsError> {
        self.store.spend(1, path.key().len());
        self.afford_entry(path)?;
        Ok(match &mut self.transaction {
            Some(transaction) => transaction.get(self.store, path),
            None => self.store.get(path).cloned(),
        })
    }

    fn put(&mut self, path: &Path, node: Node) {
        match &mut self.transaction {
            Some(transaction) => transaction.set(self.store, path, Some(node)),
            None => self.store.put(path, node),
        }
    }

    fn tell(&mut self, path: &Path, before: Option<Perms>, after: Option<Perms>) {
        match &mut self.transaction {
            Some(transaction) => transaction.note_event(path),
            None => {
                let change = Change { path: path.clone(), exact: false, before, after };
                self.outcomes.push(Outcome::Change(change));
            }
        }
    }
}
