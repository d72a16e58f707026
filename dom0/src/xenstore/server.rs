//! The server: connections, domains and watches around the store. The server knows no transport: by an [`Effect`] the
//! server says what its caller has to do outside. The module `deferred` has the work that requests leave.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::{Context, Poll, Waker};

use ring_abi::io::xs_wire::XsdSockmsg;

use super::connection::{ConnId, Connection, Failure};
use super::control::AccessLog;
use super::deferred::{Deferred, SCAN_WORK, STEP_WORK, kept_by};
use super::error::XsError;
use super::path::Path;
use super::perms::{Access, Actor, Perms, Want};
use super::quota::{CONNECTION_BYTES, Quotas};
use super::store::{NODE_WORK, Store};
use super::stream::Input;
use super::transaction::{Commit, Transaction};
use super::view::View;
use super::watch::{Watch, WatchIndex, trim};

/// Number of failures of one domain that the log tells.
const FAILURES_LOGGED: u8 = 4;

/// What the server's caller does outside the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Map the domain's ring page, bind the domain's event channel, and serve the connection by [`Server::exchange`].
    Introduced {
        /// The connection to serve.
        conn: ConnId,
        /// The domain.
        domid: u16,
        /// Machine frame of the domain's ring page.
        mfn: u64,
        /// The domain's port, which is unbound and meant for dom0.
        port: u32,
        /// The domain was introduced before: the caller lets the former ring and port go.
        again: bool,
    },
    /// Unmap the ring page and close the port; the connection is gone.
    Released {
        /// The connection that is gone.
        conn: ConnId,
        /// The domain.
        domid: u16,
    },
}

/// A change for which watches of a client within dom0 fire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The path that changed, relative to the client's home if the watch was relative.
    pub path: alloc::string::String,
    /// The watch's token.
    pub token: alloc::string::String,
}

/// A domain that was introduced.
pub(super) struct Domain {
    pub(super) conn: ConnId,
    pub(super) target: Option<u16>,
    pub(super) shut_down: bool,
    /// Number of failures of the domain's connection that were logged.
    pub(super) failures: u8,
}

/// xenstored without its rings.
pub struct Server {
    pub(super) store: Store,
    pub(super) quotas: Quotas,
    pub(super) connections: BTreeMap<ConnId, Connection>,
    pub(super) domains: BTreeMap<u16, Domain>,
    pub(super) watches: WatchIndex,
    last_conn: u32,
    /// Permissions of `@introduceDomain` and `@releaseDomain`.
    pub(super) special_perms: [Perms; 2],
    effects: VecDeque<Effect>,
    effects_waker: Option<Waker>,
    /// Work that the present request, or call, leaves.
    pub(super) deferred: VecDeque<Deferred>,
    /// Work that is left of earlier calls of clients within dom0, and of connections that are gone.
    pub(super) left: VecDeque<Deferred>,
    pub(super) left_waker: Option<Waker>,
    /// The number of the last [`Deferred::Mark`] that was left, and of the last that the server has reached.
    pub(super) marks: (u64, u64),
    /// [`STEP_WORK`]; tests make more steps.
    pub(super) step_work: usize,
    /// The commit that is under way, its connection, and the request that the server answers when the commit ends.
    pub(super) committing: Option<(Commit, ConnId, Option<XsdSockmsg>)>,
    pub(super) woken: Vec<Waker>,
    /// Which requests of domains the log shows.
    pub(super) access_log: AccessLog,
    /// A check of all nodes is under way.
    pub(super) is_checking: bool,
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
            deferred: VecDeque::new(),
            left: VecDeque::new(),
            left_waker: None,
            marks: (0, 0),
            step_work: STEP_WORK,
            committing: None,
            woken: Vec::new(),
            access_log: AccessLog::default(),
            is_checking: false,
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

    /// Closes a connection; the connection's watches and transactions go.
    pub fn disconnect(&mut self, conn: ConnId) {
        self.reset(conn);
        if let Some(mut connection) = self.connections.remove(&conn) {
            connection.kick(&mut self.woken);
            self.leave(&mut connection.left);
        }
    }

    /// The wakers that the caller wakes after the caller let the server's lock go: waking may drop a task, and with the
    /// task a client.
    pub(crate) fn take_woken(&mut self) -> Vec<Waker> {
        core::mem::take(&mut self.woken)
    }

    /// Takes the next thing to be done outside.
    pub fn take_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Like [`Server::take_effect`], for a task that waits for an effect.
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

    /// The domain behind a connection, and the domain that this domain serves.
    ///
    /// # Errors
    /// `EIO`: the connection has failed or is gone.
    pub(super) fn actor(&self, conn: ConnId) -> Result<Actor, XsError> {
        Ok(self.actor_of(self.serving(conn)?))
    }

    fn actor_of(&self, connection: &Connection) -> Actor {
        let target = self.domains.get(&connection.domid).and_then(|domain| domain.target);
        Actor { domid: connection.domid, target }
    }

    pub(super) fn dom0_only(&self, conn: ConnId) -> Result<(), XsError> {
        if self.actor(conn)?.privileged() { Ok(()) } else { Err(XsError::Acces) }
    }

    /// Runs an operation on nodes, within transaction `tx_id` if `tx_id` is not 0.
    ///
    /// # Errors
    /// - `ENOENT`: the connection has no such transaction.
    /// - Else the operation's error.
    pub(super) fn view<R>(
        &mut self,
        conn: ConnId,
        tx_id: u32,
        operate: impl FnOnce(&mut View<'_>) -> Result<R, XsError>,
    ) -> Result<R, XsError> {
        if self.committing.as_ref().is_some_and(|(commit, ..)| !commit.gives_way()) {
            self.finish_commit();
        }
        let actor = self.actor(conn)?;
        let connection = self.connections.get_mut(&conn).ok_or(XsError::Io)?;
        let mut transaction = match tx_id {
            0 => None,
            id => Some(connection.transactions.get_mut(&id).ok_or(XsError::NoEnt)?),
        };
        let before = transaction.as_ref().map_or(0, |transaction| transaction.bytes);
        let mut outcomes = Vec::new();
        let mut view = View {
            store: &mut self.store,
            transaction: transaction.as_deref_mut(),
            quotas: &self.quotas,
            actor,
            outcomes: &mut outcomes,
        };
        let result = operate(&mut view);
        let after = transaction.as_ref().map_or(0, |transaction| transaction.bytes);
        if after != before {
            self.store.charge(actor.domid, |account| {
                account.transaction_bytes = account.transaction_bytes - before + after;
            });
        }
        self.deferred.extend(outcomes.into_iter().map(Deferred::from));
        result
    }

    /// `XS_TRANSACTION_START`.
    ///
    /// # Errors
    /// - `ENOSPC`: the connection has as many open transactions as a domain may have.
    /// - `ENOMEM`: the domain's quota of memory is used up.
    pub(super) fn transaction_start(&mut self, conn: ConnId) -> Result<u32, XsError> {
        let actor = self.actor(conn)?;
        let limit = self.quotas.transactions;
        let connection = self.connections.get_mut(&conn).ok_or(XsError::Io)?;
        if !actor.privileged() && connection.transactions.len() >= limit {
            return Err(XsError::NoSpc);
        }
        let bytes = self.store.account(actor.domid).bytes() + Transaction::EMPTY_COST;
        if !actor.privileged() && bytes > self.quotas.memory_bytes {
            return Err(XsError::NoMem);
        }
        let id = connection.free_transaction_id();
        connection.transactions.insert(id, Transaction::new(actor.domid));
        self.store.charge(actor.domid, |account| account.transaction_bytes += Transaction::EMPTY_COST);
        Ok(id)
    }

    /// `XS_TRANSACTION_END`: the transaction is gone, whatever the answer.
    ///
    /// # Errors
    /// - `ENOENT`: the connection has no such transaction.
    /// - `EAGAIN`, with `commit`: something that the transaction read or wrote has changed.
    /// - `ENOSPC`, `ENOMEM`, with `commit`: a domain would own more than the domain may.
    pub(super) fn transaction_end(&mut self, conn: ConnId, tx_id: u32, commit: bool) -> Result<(), XsError> {
        self.finish_commit();
        match self.transaction_end_for(conn, tx_id, commit, None)? {
            Some(result) => result,
            None => Ok(()),
        }
    }

    /// Like [`Server::transaction_end`], but a commit that takes more than one step is answered later (`None`) if there
    /// is a `request` to answer.
    pub(super) fn transaction_end_for(
        &mut self,
        conn: ConnId,
        tx_id: u32,
        commit: bool,
        request: Option<XsdSockmsg>,
    ) -> Result<Option<Result<(), XsError>>, XsError> {
        let actor = self.actor(conn)?;
        let connection = self.connections.get_mut(&conn).ok_or(XsError::Io)?;
        let transaction = connection.transactions.remove(&tx_id).ok_or(XsError::NoEnt)?;
        if !commit {
            self.free(transaction);
            return Ok(Some(Ok(())));
        }
        self.committing = Some((Commit::new(transaction, actor), conn, request));
        let work = if request.is_some() { self.step_work } else { usize::MAX };
        Ok(self.commit_some(work).map(|(result, ..)| result))
    }

    fn free(&mut self, transaction: Transaction) {
        self.deferred.push_back(Deferred::Free(Vec::from([transaction])));
    }

    /// Goes on with the commit that is under way. If the commit ended, the result says how it ended, for which
    /// connection, and which request is to be answered.
    pub(super) fn commit_some(
        &mut self,
        work: usize,
    ) -> Option<(Result<(), XsError>, ConnId, Option<XsdSockmsg>)> {
        let (commit, ..) = self.committing.as_mut()?;
        let result = commit.step(&mut self.store, &self.quotas, work)?;
        let (mut commit, conn, request) = self.committing.take()?;
        self.deferred.extend(core::mem::take(&mut commit.outcomes).into_iter().map(Deferred::from));
        self.free(commit.into_transaction());
        Some((result, conn, request))
    }

    /// Ends the commit that is under way, for a caller that cannot wait for the commit.
    pub(super) fn finish_commit(&mut self) {
        self.settle_commit(usize::MAX);
    }

    /// `XS_WATCH`.
    ///
    /// # Errors
    /// - `EINVAL`: no node can have such a path.
    /// - `EEXIST`: the connection has the same watch already.
    /// - `E2BIG`: the domain has as many watches as a domain may have.
    /// - `ENOMEM`: the domain's quota of memory is used up.
    pub(super) fn watch(&mut self, conn: ConnId, path: &[u8], token: &[u8]) -> Result<(), XsError> {
        let actor = self.actor(conn)?;
        let relative_to = (!matches!(path.first(), Some(b'/' | b'@'))).then_some(actor.domid);
        let path = Path::resolve_watch(path, actor.domid)?;
        let watch = Watch { path, token: Arc::from(token), relative_to };
        let bytes = self.store.account(actor.domid).bytes();
        let connection = self.connections.get_mut(&conn).ok_or(XsError::Io)?;
        // Most of the connection's watches have other paths, and two numbers that differ tell so. At most one has the
        // same token and the same path.
        self.store.spend(0, connection.watches.len() * SCAN_WORK);
        if connection.watches.iter().any(|w| w.token == watch.token && w.path == watch.path) {
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
        self.deferred.push_back(Deferred::First(conn, watch));
        Ok(())
    }

    /// `XS_UNWATCH`: events of the watch that were not yet fetched are dropped.
    ///
    /// # Errors
    /// - `EINVAL`: no node can have such a path.
    /// - `ENOENT`: the connection has no such watch.
    pub(super) fn unwatch(&mut self, conn: ConnId, path: &[u8], token: &[u8]) -> Result<(), XsError> {
        let actor = self.actor(conn)?;
        let path = Path::resolve_watch(path, actor.domid)?;
        let connection = self.connections.get_mut(&conn).ok_or(XsError::Io)?;
        let at = connection.watches.iter().position(|w| *w.token == *token && w.path == path);
        let watch = connection.watches.remove(at.ok_or(XsError::NoEnt)?);
        trim(&mut connection.watches);
        // The queue is searched for each waiting event of the watch.
        let before = connection.output.events();
        connection.output.forget_watch(&watch);
        let scanned = before * SCAN_WORK + (before - connection.output.events()) * NODE_WORK;
        self.watches.remove(conn, &watch);
        self.store.charge(actor.domid, |account| account.watch_bytes -= watch.cost());
        self.store.spend(0, scanned);
        Ok(())
    }

    /// `XS_RESET_WATCHES`: drops all watches and transactions of a connection.
    pub(super) fn reset(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let watches = core::mem::take(&mut connection.watches);
        let transactions = core::mem::take(&mut connection.transactions);
        let bytes: usize = watches.iter().map(|watch| watch.path.key().len()).sum();
        self.store.spend(watches.len() + connection.output.events() / 4, bytes / 4);
        connection.output.forget_watches();
        for watch in &watches {
            self.watches.remove(conn, watch);
        }
        let watch_bytes: usize = watches.iter().map(|watch| watch.cost()).sum();
        self.store.charge(connection.domid, |account| account.watch_bytes -= watch_bytes);
        if let Some((_, owner, request)) = &mut self.committing
            && *owner == conn
        {
            // The client that asked gets no answer any more.
            *request = None;
            self.deferred.push_back(Deferred::Commit);
        }
        if !transactions.is_empty() {
            self.deferred.push_back(Deferred::Free(transactions.into_values().collect()));
        }
    }

    pub(super) fn may_read<'a>(&self, conn: ConnId, mut perms: impl Iterator<Item = &'a Perms>) -> bool {
        self.actor(conn).is_ok_and(|actor| perms.any(|perms| perms.allow(actor, Want::Read)))
    }

    /// Ends a connection's service; the domain stays introduced, and may be introduced again.
    pub(super) fn fail(&mut self, conn: ConnId, failure: Failure) {
        self.reset(conn);
        if let Some(connection) = self.connections.get_mut(&conn) {
            let domid = connection.domid;
            // A domain may come back and fail for ever: only the first few times are logged.
            if let Some(domain) = self.domains.get_mut(&domid)
                && domain.failures < FAILURES_LOGGED
            {
                domain.failures += 1;
                log::warn!("xenstored: d{domid}: disconnected: {failure}");
            }
            let (waker, mut left) = (connection.waker.take(), core::mem::take(&mut connection.left));
            *connection = Connection::new(domid, false);
            connection.failed = Some(failure);
            connection.waker = waker;
            connection.kick(&mut self.woken);
            // The connection has no turns any more, so its work is left for everybody.
            self.leave(&mut left);
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

    /// A count of the changes to what [`Server::kept_for`] gives for any domain.
    pub(crate) fn changes(&self) -> u64 {
        self.store.changes()
    }

    /// Bytes of heap for all that the server keeps for the domain of a connection: the domain's nodes, watches and
    /// transactions, messages that are not whole or wait to be fetched, and the work that is left. The sum is at most
    /// [`Quotas::most_kept`]. (I29)
    pub fn kept_for(&self, conn: ConnId) -> usize {
        let Some(connection) = self.connections.get(&conn) else { return 0 };
        let of_domain = self.store.account(connection.domid).bytes();
        of_domain + kept_by(connection) + Input::KEPT + CONNECTION_BYTES
    }
}
