//! The operations on nodes, with permissions and quotas, on the tree itself or within a transaction.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::error::XsError;
use super::path::{Key, Path, Place};
use super::perms::{Actor, Perms, Want};
use super::quota::Quotas;
use super::store::{Change, Node, Outcome, Store};
use super::transaction::Transaction;

/// Work that a child's place in a list stands for, in bytes moved.
const LISTED_WORK: usize = 16;

/// The tree as one request sees it.
pub(crate) struct View<'a> {
    pub(crate) store: &'a mut Store,
    pub(crate) transaction: Option<&'a mut Transaction>,
    pub(crate) quotas: &'a Quotas,
    pub(crate) actor: Actor,
    /// Collects what watches are to be told of; a transaction's changes come when it commits.
    pub(crate) outcomes: &'a mut Vec<Outcome>,
}

impl View<'_> {
    /// `XS_READ`.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; within a transaction also `ENOSPC`, `ENOMEM`.
    pub(crate) fn read(&mut self, path: &Path) -> Result<Arc<[u8]>, XsError> {
        Ok(self.permitted(path, Want::Read)?.value)
    }

    /// `XS_DIRECTORY`: tells `each` the children's names, in order, for as long as `each` says yes. Answers the
    /// generation of their list.
    ///
    /// # Errors
    /// As [`View::read`].
    pub(crate) fn list(&mut self, path: &Path, mut each: impl FnMut(&[u8]) -> bool) -> Result<u64, XsError> {
        let node = self.permitted(path, Want::Read)?;
        if let Some(transaction) = &mut self.transaction {
            transaction.note_listed(self.store, path);
        }
        let mut work = 0;
        let seen = |child: &Path| {
            work += LISTED_WORK + child.name().len();
            each(child.name())
        };
        match &self.transaction {
            Some(transaction) => transaction.children(self.store, path).all(seen),
            None => self.store.children(path).all(seen),
        };
        self.store.spend(0, work);
        Ok(node.generation.max(node.children_generation))
    }

    /// `XS_GET_PERMS`.
    ///
    /// # Errors
    /// As [`View::read`].
    pub(crate) fn perms(&mut self, path: &Path) -> Result<Perms, XsError> {
        Ok(self.permitted(path, Want::Read)?.perms)
    }

    /// `XS_WRITE`: writes a node, making it and those above it as needed.
    ///
    /// # Errors
    /// `EACCES`; `ENOSPC`, `ENOMEM`: a quota.
    pub(crate) fn write(&mut self, path: &Path, value: &[u8]) -> Result<(), XsError> {
        if !self.actor.privileged() && value.len() > self.quotas.value_bytes {
            return Err(XsError::NoSpc);
        }
        match self.permitted(path, Want::Write) {
            Ok(node) => {
                self.afford(0, value.len().saturating_sub(node.value.len()))?;
                let generation = self.store.next_generation();
                let perms = node.perms.clone();
                self.put(path, Node { value: Arc::from(value), generation, ..node });
                self.tell(path, Some(perms.clone()), Some(perms));
                Ok(())
            }
            Err(XsError::NoEnt) => self.create(path, Arc::from(value)),
            Err(error) => Err(error),
        }
    }

    /// `XS_MKDIR`: makes an empty node if there is none.
    ///
    /// # Errors
    /// As [`View::write`].
    pub(crate) fn mkdir(&mut self, path: &Path) -> Result<(), XsError> {
        match self.permitted(path, Want::Write) {
            Ok(_) => Ok(()),
            Err(XsError::NoEnt) => {
                let empty = self.store.empty_value();
                self.create(path, empty)
            }
            Err(error) => Err(error),
        }
    }

    /// `XS_RM`: removes a node and all below it. A missing node is no error if the one above is there.
    ///
    /// # Errors
    /// `EINVAL`: the root. `ENOENT`: the parent is missing. `EACCES`. Within a transaction also `ENOSPC`, `ENOMEM`.
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
                self.store.spend(transaction.len(), path.key().len());
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
    /// `ENOENT`; `EACCES`: not the owner; `EPERM`: an unprivileged owner gives the node away; `ENOSPC`:
    /// too many entries.
    pub(crate) fn set_perms(&mut self, path: &Path, perms: Perms) -> Result<(), XsError> {
        let node = self.permitted(path, Want::Own)?;
        if !self.actor.privileged() {
            if perms.entries().len() > self.quotas.perms {
                return Err(XsError::NoSpc);
            }
            if perms.owner() != node.perms.owner() {
                return Err(XsError::Perm);
            }
        }
        let generation = self.store.next_generation();
        let before = node.perms.clone();
        self.put(path, Node { perms: perms.clone(), generation, ..node });
        self.tell(path, Some(before), Some(perms));
        Ok(())
    }

    /// The node, if the actor may have `want` of it. A missing node is `ENOENT` only to who could have
    /// had `want` of the nearest node above, else `EACCES`.
    fn permitted(&mut self, path: &Path, want: Want) -> Result<Node, XsError> {
        match self.lookup(path)? {
            Some(node) if node.perms.allow(self.actor, want) => Ok(node),
            Some(_) => Err(XsError::Acces),
            None => {
                let (_, above) = self.nearest_above(path)?;
                Err(if above.perms.allow(self.actor, want) { XsError::NoEnt } else { XsError::Acces })
            }
        }
    }

    /// The nearest node above `path` that exists, and where its path ends in this one's.
    fn nearest_above(&mut self, path: &Path) -> Result<(usize, Node), XsError> {
        let mut asked = 0;
        let end = path.nearest_above(|key| {
            asked += 1;
            self.peek(&key).is_some()
        });
        self.store.spend(asked, asked * path.key().len());
        let node = self.lookup(&path.until(end))?.ok_or(XsError::NoEnt)?;
        Ok((end, node))
    }

    /// Makes `path` and what is missing above it, with permissions inherited from above; an
    /// unprivileged domain owns what it makes.
    fn create(&mut self, path: &Path, value: Arc<[u8]>) -> Result<(), XsError> {
        let (above, node) = self.nearest_above(path)?;
        if !self.actor.privileged() && path.levels() > self.quotas.levels {
            return Err(XsError::NoSpc);
        }
        let perms =
            if self.actor.privileged() { node.perms } else { node.perms.with_owner(self.actor.domid) };
        let (mut missing, mut bytes) = (0, value.len());
        for end in path.ends_after(above) {
            missing += 1;
            bytes += end;
        }
        self.afford(missing, bytes)?;
        let keys = path.keys_above().filter(|key| key.bytes.len() > above);
        let keys: Vec<Key<'_>> = if self.transaction.is_some() { keys.collect() } else { Vec::new() };
        self.afford_entries(keys.iter().map(|key| key as &dyn Place))?;
        for end in path.ends_after(above) {
            let last = end == path.key().len();
            let value = if last { value.clone() } else { self.store.empty_value() };
            let node = self.store.new_node(value, perms.clone());
            self.put(&path.until(end), node);
        }
        self.tell(path, None, Some(perms));
        Ok(())
    }

    /// May the actor own `nodes` more, of `bytes` more?
    fn afford(&self, nodes: usize, bytes: usize) -> Result<(), XsError> {
        if self.actor.privileged() {
            return Ok(());
        }
        let account = self.store.account(self.actor.domid);
        let domid = self.actor.domid;
        let is_over = |more: isize| account.nodes.saturating_add_signed(more) + nodes > self.quotas.nodes;
        let is_full = match &self.transaction {
            None => is_over(0),
            // Counting what was removed takes a search for each of the domain's nodes.
            Some(tx) => is_over(tx.owned(domid)) && is_over(tx.owned_exactly(self.store, domid)),
        };
        if nodes > 0 && is_full {
            return Err(XsError::NoSpc);
        }
        if bytes > 0 && account.bytes() + bytes > self.quotas.memory_bytes {
            return Err(XsError::NoMem);
        }
        Ok(())
    }

    /// May the transaction, if there is one, touch all of these, and keep what that takes?
    fn afford_entries<'p>(&self, places: impl Iterator<Item = &'p dyn Place>) -> Result<(), XsError> {
        let Some(transaction) = &self.transaction else { return Ok(()) };
        if self.actor.privileged() {
            return Ok(());
        }
        let (mut new, mut bytes) = (0, 0);
        for place in places {
            let price = transaction.price(self.store, place);
            new += usize::from(price > 0);
            bytes += price;
        }
        if transaction.len() + new > self.quotas.transaction_nodes {
            return Err(XsError::NoSpc);
        }
        if new > 0 && self.store.account(self.actor.domid).bytes() + bytes > self.quotas.memory_bytes {
            return Err(XsError::NoMem);
        }
        Ok(())
    }

    fn peek(&self, key: &dyn Place) -> Option<&Node> {
        match &self.transaction {
            Some(transaction) => transaction.peek(self.store, key),
            None => self.store.find(key),
        }
    }

    fn lookup(&mut self, path: &Path) -> Result<Option<Node>, XsError> {
        self.store.spend(1, path.key().len());
        self.afford_entries(core::iter::once(path as &dyn Place))?;
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
