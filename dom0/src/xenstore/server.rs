//! The server: connections, domains and watches around the store. It knows no transport: what it needs
//! done outside it says by [`Effect`]s.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::{Context, Poll, Waker};

use super::connection::{ConnId, Connection, Failure};
use super::error::XsError;
use super::path::Path;
use super::perms::{Access, Actor, Perms, Want};
use super::quota::{DomainFigures, Figures, Quotas};
use super::store::{Change, Store};
use super::transaction::Transaction;
use super::view::View;
use super::watch::{Watch, WatchIndex};

/// Failures of one domain that the log hears of.
const FAILURES_LOGGED: u8 = 4;
/// Bytes that a node takes in the tree and around its parts, beyond what the quotas count.
const NODE_PLACE: usize = 96;

/// What must be done outside the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Map the domain's ring page, bind its event channel, and serve the connection by
    /// [`Server::exchange`].
    Introduced {
        /// The connection to serve.
        conn: ConnId,
        /// The domain.
        domid: u16,
        /// Machine frame of its ring page.
        mfn: u64,
        /// Its port, unbound and meant for dom0.
        port: u32,
        /// It was introduced before: the former ring and port are to be let go.
        again: bool,
    },
    /// Unmap the ring page and close the port; the connection is gone.
    Released {
        /// The connection that was.
        conn: ConnId,
        /// The domain.
        domid: u16,
    },
}

/// A change that a client within dom0 hears of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// What changed, relative to the client's home if the watch was.
    pub path: alloc::string::String,
    /// The watch's token.
    pub token: alloc::string::String,
}

/// A domain that was introduced.
pub(super) struct Domain {
    pub(super) conn: ConnId,
    pub(super) target: Option<u16>,
    pub(super) shut_down: bool,
    /// Failures of its connection that were logged.
    pub(super) failures: u8,
}

/// What watches are told of, once the reply of the request that caused it is queued.
pub(super) enum Deferred {
    Change(Change),
    Special(&'static str),
    First(ConnId, Arc<Watch>),
}

/// xenstored without its rings.
pub struct Server {
    pub(super) store: Store,
    pub(super) quotas: Quotas,
    pub(super) connections: BTreeMap<ConnId, Connection>,
    pub(super) domains: BTreeMap<u16, Domain>,
    watches: WatchIndex,
    last_conn: u32,
    /// Permissions of `@introduceDomain` and `@releaseDomain`.
    pub(super) special_perms: [Perms; 2],
    effects: VecDeque<Effect>,
    effects_waker: Option<Waker>,
    pub(super) deferred: Vec<Deferred>,
    pub(super) woken: Vec<Waker>,
}

impl Server {
    /// A server with the root and nothing else.
    pub fn new(quotas: Quotas) -> Server {
        let closed = Perms::owned_by(0, Access::None);
        Server {
            store: Store::new(),
            quotas,
            connections: BTreeMap::new(),
            domains: BTreeMap::new(),
            watches: WatchIndex::default(),
            last_conn: 0,
            special_perms: [closed.clone(), closed],
            effects: VecDeque::new(),
            effects_waker: None,
            deferred: Vec::new(),
            woken: Vec::new(),
        }
    }

    /// Opens a connection for a client within dom0, with all rights.
    pub fn connect(&mut self) -> ConnId {
        self.open(0, true)
    }

    pub(super) fn open(&mut self, domid: u16, internal: bool) -> ConnId {
        self.last_conn += 1;
        let conn = ConnId(self.last_conn);
        self.connections.insert(conn, Connection::new(domid, internal));
        conn
    }

    /// Closes a connection; its watches and transactions go.
    pub fn disconnect(&mut self, conn: ConnId) {
        self.reset(conn);
        if let Some(mut connection) = self.connections.remove(&conn) {
            connection.kick(&mut self.woken);
        }
    }

    /// Wakers to be woken, after the server's lock is let go: waking may drop a task, and with it a client.
    pub(crate) fn take_woken(&mut self) -> Vec<Waker> {
        core::mem::take(&mut self.woken)
    }

    /// Takes the next thing to be done outside.
    pub fn take_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// As [`Server::take_effect`], for a task that waits for one.
    pub fn poll_effect(&mut self, context: &mut Context<'_>) -> Poll<Effect> {
        match self.take_effect() {
            Some(effect) => Poll::Ready(effect),
            None => {
                self.effects_waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
        self.woken.extend(self.effects_waker.take());
    }

    pub(super) fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// Who is behind a connection.
    ///
    /// # Errors
    /// `EIO`: nobody any more.
    pub(super) fn actor(&self, conn: ConnId) -> Result<Actor, XsError> {
        let connection = self.connections.get(&conn).filter(|c| c.failed.is_none()).ok_or(XsError::Io)?;
        Ok(self.actor_of(connection))
    }

    fn actor_of(&self, connection: &Connection) -> Actor {
        let target = self.domains.get(&connection.domid).and_then(|domain| domain.target);
        Actor { domid: connection.domid, target }
    }

    pub(super) fn dom0_only(&self, conn: ConnId) -> Result<(), XsError> {
        if self.actor(conn)?.privileged() { Ok(()) } else { Err(XsError::Acces) }
    }

    /// Runs an operation on nodes, within transaction `tx_id` if that is not 0.
    ///
    /// # Errors
    /// `ENOENT`: no such transaction; else the operation's.
    pub(super) fn view<R>(
        &mut self,
        conn: ConnId,
        tx_id: u32,
        operate: impl FnOnce(&mut View<'_>) -> Result<R, XsError>,
    ) -> Result<R, XsError> {
        let actor = self.actor(conn)?;
        let connection = self.connections.get_mut(&conn).ok_or(XsError::Io)?;
        let mut transaction = match tx_id {
            0 => None,
            id => Some(connection.transactions.get_mut(&id).ok_or(XsError::NoEnt)?),
        };
        let before = transaction.as_ref().map_or(0, |transaction| transaction.bytes);
        let mut changes = Vec::new();
        let mut view = View {
            store: &mut self.store,
            transaction: transaction.as_deref_mut(),
            quotas: &self.quotas,
            actor,
            changes: &mut changes,
        };
        let result = operate(&mut view);
        let after = transaction.as_ref().map_or(0, |transaction| transaction.bytes);
        if after != before {
            self.store.charge(actor.domid, |account| {
                account.transaction_bytes = account.transaction_bytes - before + after;
            });
        }
        self.deferred.extend(changes.into_iter().map(Deferred::Change));
        result
    }

    /// `XS_TRANSACTION_START`.
    ///
    /// # Errors
    /// `ENOSPC`: as many as may be are open.
    pub(super) fn transaction_start(&mut self, conn: ConnId) -> Result<u32, XsError> {
        let actor = self.actor(conn)?;
        let limit = self.quotas.transactions;
        let connection = self.connections.get_mut(&conn).ok_or(XsError::Io)?;
        if !actor.privileged() && connection.transactions.len() >= limit {
            return Err(XsError::NoSpc);
        }
        let id = connection.free_transaction_id();
        connection.transactions.insert(id, Transaction::default());
        Ok(id)
    }

    /// `XS_TRANSACTION_END`: the transaction is gone, whatever the answer.
    ///
    /// # Errors
    /// `ENOENT`: no such transaction; with `commit` also `EAGAIN`, `ENOSPC`.
    pub(super) fn transaction_end(&mut self, conn: ConnId, tx_id: u32, commit: bool) -> Result<(), XsError> {
        let actor = self.actor(conn)?;
        let connection = self.connections.get_mut(&conn).ok_or(XsError::Io)?;
        let transaction = connection.transactions.remove(&tx_id).ok_or(XsError::NoEnt)?;
        self.store.charge(actor.domid, |account| account.transaction_bytes -= transaction.bytes);
        if commit {
            let changes = transaction.commit(&mut self.store, actor, &self.quotas)?;
            self.deferred.extend(changes.into_iter().map(Deferred::Change));
        }
        Ok(())
    }

    /// `XS_WATCH`.
    ///
    /// # Errors
    /// `EINVAL`: no such path can be. `EEXIST`: the connection has the same. `E2BIG`, `ENOMEM`: a quota.
    pub(super) fn watch(&mut self, conn: ConnId, path: &[u8], token: &[u8]) -> Result<(), XsError> {
        let actor = self.actor(conn)?;
        let relative_to = (!matches!(path.first(), Some(b'/' | b'@'))).then_some(actor.domid);
        let path = Path::resolve_watch(path, actor.domid)?;
        let watch = Watch { path, token: Arc::from(token), relative_to };
        let bytes = self.store.account(actor.domid).bytes();
        let connection = self.connections.get_mut(&conn).ok_or(XsError::Io)?;
        if connection.watches.iter().any(|w| w.path == watch.path && w.token == watch.token) {
            return Err(XsError::Exist);
        }
        if !actor.privileged() && connection.watches.len() >= self.quotas.watches {
            return Err(XsError::TooBig);
        }
        if !actor.privileged() && bytes + watch.cost() > self.quotas.memory_bytes {
            return Err(XsError::NoMem);
        }
        let cost = watch.cost();
        let watch = Arc::new(watch);
        connection.watches.push(watch.clone());
        self.store.charge(actor.domid, |account| account.watch_bytes += cost);
        self.watches.add(conn, watch.clone());
        self.deferred.push(Deferred::First(conn, watch));
        Ok(())
    }

    /// `XS_UNWATCH`: events of the watch that were not yet fetched are dropped.
    ///
    /// # Errors
    /// `EINVAL`: no such path can be. `ENOENT`: there is no such watch.
    pub(super) fn unwatch(&mut self, conn: ConnId, path: &[u8], token: &[u8]) -> Result<(), XsError> {
        let actor = self.actor(conn)?;
        let path = Path::resolve_watch(path, actor.domid)?;
        let connection = self.connections.get_mut(&conn).ok_or(XsError::Io)?;
        let at = connection.watches.iter().position(|w| w.path == path && *w.token == *token);
        let watch = connection.watches.remove(at.ok_or(XsError::NoEnt)?);
        connection.output.forget_watch(&watch);
        self.watches.remove(conn, &watch);
        self.store.charge(actor.domid, |account| account.watch_bytes -= watch.cost());
        Ok(())
    }

    /// `XS_RESET_WATCHES`: drops all watches and transactions of a connection.
    pub(super) fn reset(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let watches = core::mem::take(&mut connection.watches);
        let transactions = core::mem::take(&mut connection.transactions);
        connection.output.forget_watches();
        for watch in &watches {
            self.watches.remove(conn, watch);
        }
        let watch_bytes: usize = watches.iter().map(|watch| watch.cost()).sum();
        let bytes: usize = transactions.values().map(|transaction| transaction.bytes).sum();
        self.store.charge(connection.domid, |account| {
            account.watch_bytes -= watch_bytes;
            account.transaction_bytes -= bytes;
        });
    }

    /// Tells watches of what has happened. Called after each request, when its reply is queued.
    pub(super) fn flush(&mut self) {
        for deferred in core::mem::take(&mut self.deferred) {
            match deferred {
                Deferred::First(conn, watch) => {
                    let path = watch.path.clone();
                    self.queue_event(conn, watch, path);
                }
                Deferred::Change(change) => {
                    self.store.spend(1, change.path.key().len());
                    for (conn, watch) in self.watches.matching(&change.path, change.exact) {
                        self.store.spend(1, change.path.key().len());
                        let seen = [&change.before, &change.after];
                        if self.may_read(conn, seen.into_iter().flatten()) {
                            self.queue_event(conn, watch, change.path.clone());
                        }
                    }
                }
                Deferred::Special(name) => {
                    let path = Path::special(name);
                    let Some(perms) = self.special_slot(&path).map(|perms| perms.clone()) else { continue };
                    for (conn, watch) in self.watches.matching(&path, false) {
                        // A relative watch has no way to say this path.
                        if watch.relative_to.is_none() && self.may_read(conn, [&perms].into_iter()) {
                            self.queue_event(conn, watch, path.clone());
                        }
                    }
                }
            }
        }
    }

    pub(super) fn may_read<'a>(&self, conn: ConnId, mut perms: impl Iterator<Item = &'a Perms>) -> bool {
        self.actor(conn).is_ok_and(|actor| perms.any(|perms| perms.allow(actor, Want::Read)))
    }

    fn queue_event(&mut self, conn: ConnId, watch: Arc<Watch>, path: Path) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if connection.failed.is_some() {
            return;
        }
        connection.output.push_event(watch.clone(), path);
        let over = connection.output.events() > self.quotas.events
            || connection.output.event_bytes() > self.quotas.event_bytes;
        if over && !connection.internal {
            return self.fail(conn, Failure::EventsNotFetched);
        }
        if over {
            // A client within dom0 is not ended; a domain that changes nodes faster than it looks must not fill
            // dom0's memory either. "Look at all of it" says as much.
            connection.output.merge_events(watch);
        }
        connection.kick(&mut self.woken);
    }

    /// Ends a connection's service; the domain stays introduced, and may be introduced again.
    pub(super) fn fail(&mut self, conn: ConnId, failure: Failure) {
        self.reset(conn);
        if let Some(connection) = self.connections.get_mut(&conn) {
            let domid = connection.domid;
            // It may come back and fail for ever: enough is enough.
            if let Some(domain) = self.domains.get_mut(&domid)
                && domain.failures < FAILURES_LOGGED
            {
                domain.failures += 1;
                log::warn!("xenstored: d{domid}: disconnected: {failure}");
            }
            let waker = connection.waker.take();
            *connection = Connection::new(domid, false);
            connection.failed = Some(failure);
            connection.waker = waker;
            connection.kick(&mut self.woken);
        }
    }

    /// Queues a reply.
    pub(super) fn reply(&mut self, conn: ConnId, message: super::stream::Message) {
        if let Some(connection) = self.connections.get_mut(&conn)
            && connection.failed.is_none()
        {
            connection.output.push_reply(message);
            connection.kick(&mut self.woken);
        }
    }

    /// Counts the changes of what [`Server::kept_for`] gives for any domain.
    pub(crate) fn changes(&self) -> u64 {
        self.store.changes()
    }

    /// Bytes that are kept for the domain of a connection: its nodes, watches and transactions as the quotas count them,
    /// and a node's place in the tree. Messages that wait to be fetched are bounded by quotas of their own.
    pub fn kept_for(&self, conn: ConnId) -> usize {
        let Some(connection) = self.connections.get(&conn) else { return 0 };
        let account = self.store.account(connection.domid);
        account.bytes() + account.nodes * NODE_PLACE
    }

    /// Counts what there is.
    pub fn figures(&self) -> Figures {
        let mut domains: BTreeMap<u16, DomainFigures> = BTreeMap::new();
        let blank =
            |domid| DomainFigures { domid, nodes: 0, watches: 0, transactions: 0, queued: 0, bytes: 0 };
        for (domid, account) in self.store.accounts() {
            let nodes = account.nodes;
            domains.insert(domid, DomainFigures { nodes, bytes: account.bytes(), ..blank(domid) });
        }
        for connection in self.connections.values() {
            let figures = domains.entry(connection.domid).or_insert_with(|| blank(connection.domid));
            figures.watches += connection.watches.len();
            figures.transactions += connection.transactions.len();
            figures.queued += connection.output.len();
        }
        Figures {
            nodes: self.store.len(),
            watches: self.watches.len(),
            transactions: self.connections.values().map(|c| c.transactions.len()).sum(),
            connections: self.connections.len(),
            introduced: self.domains.len(),
            bytes: domains.values().map(|figures| figures.bytes).sum(),
            domains: domains.into_values().collect(),
        }
    }
}
