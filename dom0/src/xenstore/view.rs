//! The operations on nodes, with permissions and quotas, on the tree itself or within a transaction.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::error::XsError;
use super::path::Path;
use super::perms::{Actor, Perms, Want};
use super::quota::Quotas;
use super::store::{Change, Node, Store};
use super::transaction::Transaction;

/// The tree as one request sees it.
pub(crate) struct View<'a> {
    pub(crate) store: &'a mut Store,
    pub(crate) transaction: Option<&'a mut Transaction>,
    pub(crate) quotas: &'a Quotas,
    pub(crate) actor: Actor,
    /// Collects what watches are to be told of; a transaction's changes come when it commits.
    pub(crate) changes: &'a mut Vec<Change>,
}

impl View<'_> {
    /// `XS_READ`.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; within a transaction also `ENOSPC`, `ENOMEM`.
    pub(crate) fn read(&mut self, path: &Path) -> Result<Arc<[u8]>, XsError> {
        Ok(self.permitted(path, Want::Read)?.value)
    }

    /// `XS_DIRECTORY`: the children, in order, and the generation of their list.
    ///
    /// # Errors
    /// As [`View::read`].
    pub(crate) fn directory(&mut self, path: &Path) -> Result<(Vec<Path>, u64), XsError> {
        let node = self.permitted(path, Want::Read)?;
        let generation = node.generation.max(node.children_generation);
        let children = match &mut self.transaction {
            Some(transaction) => transaction.children(self.store, path),
            None => self.store.children(path),
        };
        // The pass over a transaction's own nodes counts too.
        let own = self.transaction.as_ref().map_or(0, |transaction| transaction.len());
        self.store.spend(children.len() + own, 0);
        Ok((children, generation))
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
                self.tell(path, false, Some(perms.clone()), Some(perms));
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
    /// `EINVAL`: the root. `ENOENT`: the parent is missing. `EACCES`.
    pub(crate) fn rm(&mut self, path: &Path) -> Result<(), XsError> {
        let parent = path.parent().ok_or(XsError::Inval)?;
        let node = match self.permitted(path, Want::Write) {
            Ok(node) => node,
            Err(XsError::NoEnt) => {
                return self.lookup(&parent)?.map(|_| ()).ok_or(XsError::NoEnt);
            }
            Err(error) => return Err(error),
        };
        let below = match &self.transaction {
            Some(transaction) => transaction.below(self.store, path),
            None => self.store.below(path),
        };
        self.store.spend(below.len(), 0);
        self.afford_entries(&below)?;
        for path in below.into_iter().rev() {
            let before = self.take(&path).map(|node| node.perms);
            self.tell(&path, true, before, None);
        }
        self.take(path);
        self.tell(path, false, Some(node.perms), None);
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
        self.tell(path, false, Some(before), Some(perms));
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

    /// The nearest node above `path` that exists.
    fn nearest_above(&mut self, path: &Path) -> Result<(Path, Node), XsError> {
        let mut at = path.parent().ok_or(XsError::NoEnt)?;
        while self.peek(&at).is_none() {
            self.store.spend(1, at.key().len());
            at = at.parent().ok_or(XsError::NoEnt)?;
        }
        let node = self.lookup(&at)?.ok_or(XsError::NoEnt)?;
        Ok((at, node))
    }

    /// Makes `path` and what is missing above it, with permissions inherited from above; an
    /// unprivileged domain owns what it makes.
    fn create(&mut self, path: &Path, value: Arc<[u8]>) -> Result<(), XsError> {
        let (above, node) = self.nearest_above(path)?;
        let perms =
            if self.actor.privileged() { node.perms } else { node.perms.with_owner(self.actor.domid) };
        let mut missing = Vec::from([path.clone()]);
        let mut bytes = value.len() + path.key().len();
        while let Some(parent) = missing[missing.len() - 1].parent()
            && parent != above
        {
            bytes += parent.key().len();
            missing.push(parent);
        }
        self.afford(missing.len(), bytes)?;
        self.afford_entries(&missing)?;
        while let Some(next) = missing.pop() {
            let value = if missing.is_empty() { value.clone() } else { self.store.empty_value() };
            let node = self.store.new_node(value, perms.clone());
            self.put(&next, node);
        }
        self.tell(path, false, None, Some(perms));
        Ok(())
    }

    /// May the actor own `nodes` more, of `bytes` more?
    fn afford(&self, nodes: usize, bytes: usize) -> Result<(), XsError> {
        if self.actor.privileged() {
            return Ok(());
        }
        let account = self.store.account(self.actor.domid);
        let more = self.transaction.as_ref().map_or(0, |transaction| transaction.owned(self.actor.domid));
        if nodes > 0 && account.nodes.saturating_add_signed(more) + nodes > self.quotas.nodes {
            return Err(XsError::NoSpc);
        }
        if bytes > 0 && account.bytes() + bytes > self.quotas.memory_bytes {
            return Err(XsError::NoMem);
        }
        Ok(())
    }

    /// May the transaction, if there is one, touch all of these?
    fn afford_entries(&self, paths: &[Path]) -> Result<(), XsError> {
        let Some(transaction) = &self.transaction else { return Ok(()) };
        if self.actor.privileged() {
            return Ok(());
        }
        let new = paths.iter().filter(|path| !transaction.knows(path)).count();
        if transaction.len() + new > self.quotas.transaction_nodes {
            return Err(XsError::NoSpc);
        }
        if new > 0 && self.store.account(self.actor.domid).bytes() > self.quotas.memory_bytes {
            return Err(XsError::NoMem);
        }
        Ok(())
    }

    fn peek(&self, path: &Path) -> Option<&Node> {
        match &self.transaction {
            Some(transaction) => transaction.peek(self.store, path),
            None => self.store.get(path),
        }
    }

    fn lookup(&mut self, path: &Path) -> Result<Option<Node>, XsError> {
        self.store.spend(1, path.key().len());
        self.afford_entries(core::slice::from_ref(path))?;
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

    fn take(&mut self, path: &Path) -> Option<Node> {
        match &mut self.transaction {
            Some(transaction) => {
                let node = transaction.get(self.store, path);
                transaction.note_listed(self.store, path);
                transaction.set(self.store, path, None);
                node
            }
            None => self.store.remove(path),
        }
    }

    fn tell(&mut self, path: &Path, exact: bool, before: Option<Perms>, after: Option<Perms>) {
        match &mut self.transaction {
            Some(transaction) => transaction.note_event(path, exact),
            None => self.changes.push(Change { path: path.clone(), exact, before, after }),
        }
    }
}
