//! The server: connections, domains and watches around the store. It knows no transport: what it needs
//! done outside it says by [`Effect`]s.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::{Context, Poll, Waker};

use ring_abi::io::xs_wire::{XENSTORE_ABS_PATH_MAX, XsdSockmsg};

use super::burial::Sweep;
use super::connection::{ConnId, Connection, Failure};
use super::error::XsError;
use super::path::Path;
use super::perms::{Access, Actor, Perms, Want};
use super::price;
use super::quota::{CONNECTION_BYTES, DomainFigures, Figures, Quotas};
use super::request::OK;
use super::store::{Change, NODE_WORK, Outcome, Store};
use super::stream::Input;
use super::transaction::{Commit, Transaction};
use super::view::View;
use super::watch::{Told, Watch, WatchIndex, trim};

/// Failures of one domain that the log hears of.
const FAILURES_LOGGED: u8 = 4;

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

/// What is left to do once the reply of the request that caused it is queued: in steps, since it may be much.
pub(super) enum Deferred {
    /// Watches are to be told of a change, those that were not yet.
    Change(Change, Told),
    /// And of what happened to a domain.
    Special(&'static str, Told),
    First(ConnId, Arc<Watch>),
    /// Nodes below one that was removed are to be taken out.
    Sweep(Sweep),
    /// A dead domain is to be forgotten, from the node after this one on.
    Forget(u16, Option<Path>),
    /// Transactions that are over are to be freed, and watches told of what they changed.
    Free(Vec<Transaction>),
    /// A commit whose connection is gone is to be ended.
    Commit,
    /// What was left before this is done.
    Mark(u64),
}

impl From<Outcome> for Deferred {
    fn from(outcome: Outcome) -> Deferred {
        match outcome {
            Outcome::Change(change) => Deferred::Change(change, Told::default()),
            Outcome::Sweep(sweep) => Deferred::Sweep(sweep),
        }
    }
}

impl Deferred {
    /// What the heap takes for it, beside its place in a queue and what is accounted for transactions.
    fn kept(&self) -> usize {
        match self {
            Deferred::Change(change, _) => price::text(&change.path),
            Deferred::Sweep(sweep) => {
                price::text(&sweep.top.path)
                    + price::object(sweep.open.capacity() * size_of::<(Path, bool)>())
            }
            Deferred::First(_, watch) => watch.cost(),
            Deferred::Forget(_, path) => path.as_ref().map_or(0, price::text),
            Deferred::Free(transactions) => price::object(transactions.capacity() * size_of::<Transaction>()),
            Deferred::Special(..) | Deferred::Commit | Deferred::Mark(_) => 0,
        }
    }
}

/// What the heap takes at the most for what a domain's request leaves to be done: some things beside the removal of
/// `subtrees`, of which one lists up to `nodes`.
pub(super) const fn left_price(subtrees: usize, nodes: usize) -> usize {
    let queue = price::object(2 * (subtrees + DEFERRED_KEPT) * size_of::<Deferred>());
    let texts =
        (subtrees + DEFERRED_KEPT) * price::shared(64) + DEFERRED_KEPT * price::shared(XENSTORE_ABS_PATH_MAX);
    queue + texts + price::object(2 * nodes * size_of::<(Path, bool)>())
}

/// A buffer of so many deferred things is kept for the next request.
const DEFERRED_KEPT: usize = 8;

/// What the heap takes for what waits on a connection.
#[inline]
pub(super) fn kept_by(connection: &Connection) -> usize {
    if connection.left.is_empty() && connection.output.is_idle() { 0 } else { kept_by_busy(connection) }
}

#[cold]
#[inline(never)]
fn kept_by_busy(connection: &Connection) -> usize {
    let left = &connection.left;
    let queue = price::object(left.capacity() * size_of::<Deferred>());
    connection.output.kept() + queue + left.iter().map(Deferred::kept).sum::<usize>()
}

/// Work, in bytes moved ([`Store::spend`]), after which the rest of what is deferred waits for the next turn.
const STEP_WORK: usize = 2 * 1024;

/// Work that passing an event in a queue stands for.
const SCAN_WORK: usize = 4;

/// Of so many bytes that events may take, how many are left when events have been merged.
pub(super) const fn merged_bytes(bytes: usize) -> usize {
    bytes / 4 * 3
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
    /// What the present request, or call, leaves to be done.
    pub(super) deferred: VecDeque<Deferred>,
    /// What is left of earlier calls of clients within dom0, and of connections that are gone.
    pub(super) left: VecDeque<Deferred>,
    left_waker: Option<Waker>,
    /// The last [`Deferred::Mark`] that was left, and the last that was come to.
    marks: (u64, u64),
    /// [`STEP_WORK`]; tests make more steps.
    pub(super) step_work: usize,
    /// A commit under way, and the request that is to be answered then.
    pub(super) committing: Option<(Commit, ConnId, Option<XsdSockmsg>)>,
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
            deferred: VecDeque::new(),
            left: VecDeque::new(),
            left_waker: None,
            marks: (0, 0),
            step_work: STEP_WORK,
            committing: None,
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
            self.leave(&mut connection.left);
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
    /// `ENOSPC`: as many as may be are open. `ENOMEM`: a quota.
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
    /// `ENOENT`: no such transaction; with `commit` also `EAGAIN`, `ENOSPC`.
    pub(super) fn transaction_end(&mut self, conn: ConnId, tx_id: u32, commit: bool) -> Result<(), XsError> {
        self.finish_commit();
        match self.transaction_end_for(conn, tx_id, commit, None)? {
            Some(result) => result,
            None => Ok(()),
        }
    }

    /// As [`Server::transaction_end`]; a commit that takes more than one step is answered later (`None`), if `request` is
    /// what is to be answered.
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

    /// Goes on with the commit that is under way; how it ended, if it did, and for whom.
    fn commit_some(&mut self, work: usize) -> Option<(Result<(), XsError>, ConnId, Option<XsdSockmsg>)> {
        let (commit, ..) = self.committing.as_mut()?;
        let result = commit.step(&mut self.store, &self.quotas, work)?;
        let (mut commit, conn, request) = self.committing.take()?;
        self.deferred.extend(core::mem::take(&mut commit.outcomes).into_iter().map(Deferred::from));
        self.free(commit.into_transaction());
        Some((result, conn, request))
    }

    /// A step of the commit that is under way, whosever it is; is it still under way?
    pub(super) fn settle_commit(&mut self, work: usize) -> bool {
        if self.committing.is_none() {
            return false;
        }
        // What it leaves to be done is its connection's.
        let others = core::mem::take(&mut self.deferred);
        if let Some((result, conn, request)) = self.commit_some(work) {
            if let Some(header) = request {
                self.answer(conn, header, result.map(|()| Vec::from(OK)));
            }
            let mut queue = core::mem::take(&mut self.deferred);
            let before = self.left.len();
            self.leave_for(Some(conn), &mut queue);
            // In front: whoever waits for the commit waits for this too.
            self.left.rotate_left(before);
        }
        self.deferred = others;
        self.committing.is_some()
    }

    /// Who cannot wait for a commit that is under way ends it.
    pub(super) fn finish_commit(&mut self) {
        self.settle_commit(usize::MAX);
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
        // Most have other paths, which is a number that differs; the same token of the same path is the last of them.
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
    /// `EINVAL`: no such path can be. `ENOENT`: there is no such watch.
    pub(super) fn unwatch(&mut self, conn: ConnId, path: &[u8], token: &[u8]) -> Result<(), XsError> {
        let actor = self.actor(conn)?;
        let path = Path::resolve_watch(path, actor.domid)?;
        let connection = self.connections.get_mut(&conn).ok_or(XsError::Io)?;
        let at = connection.watches.iter().position(|w| *w.token == *token && w.path == path);
        let watch = connection.watches.remove(at.ok_or(XsError::NoEnt)?);
        trim(&mut connection.watches);
        // Each event of the watch that waits is searched for.
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
            // Whoever asked hears nothing more.
            *request = None;
            self.deferred.push_back(Deferred::Commit);
        }
        if !transactions.is_empty() {
            self.deferred.push_back(Deferred::Free(transactions.into_values().collect()));
        }
    }

    /// Does what a call or a request leaves to be done, as far as one step goes. The rest is left: for the connection whose
    /// request it was, which has no other looked at until then, or for [`Server::settle_some`].
    pub(super) fn flush_for(&mut self, conn: Option<ConnId>) {
        let replaced = self.store.take_replaced();
        self.deferred.extend(replaced.into_iter().map(|change| Deferred::Change(change, Told::default())));
        if self.deferred.is_empty() {
            return;
        }
        let mut queue = core::mem::take(&mut self.deferred);
        self.work_off(&mut queue);
        if queue.is_empty() {
            if queue.capacity() <= DEFERRED_KEPT {
                self.deferred = queue;
            }
            return;
        }
        self.leave_for(conn, &mut queue);
    }

    /// Leaves work for a connection's turns. One whose service has ended has none: then it is everybody's.
    fn leave_for(&mut self, conn: Option<ConnId>, queue: &mut VecDeque<Deferred>) {
        let connection = conn.and_then(|conn| self.connections.get_mut(&conn));
        match connection.filter(|connection| connection.failed.is_none()) {
            Some(connection) => connection.left.append(queue),
            None => self.leave(queue),
        }
    }

    /// As [`Server::flush_for`] nobody.
    pub(super) fn flush(&mut self) {
        self.flush_for(None);
    }

    fn leave(&mut self, queue: &mut VecDeque<Deferred>) {
        self.left.append(queue);
        if !self.left.is_empty() {
            self.woken.extend(self.left_waker.take());
        }
    }

    /// A step of what a connection's last request left to be done; is more of it left?
    pub(super) fn settle_connection(&mut self, conn: ConnId) -> bool {
        let Some(connection) = self.connections.get_mut(&conn) else { return false };
        if connection.left.is_empty() {
            return false;
        }
        let mut queue = core::mem::take(&mut connection.left);
        self.work_off(&mut queue);
        let Some(connection) = self.connections.get_mut(&conn) else { return false };
        queue.append(&mut connection.left);
        let is_more = !queue.is_empty();
        if is_more {
            connection.left = queue;
        }
        is_more
    }

    /// A step of what others left to be done; is more of it left?
    pub fn settle_some(&mut self) -> bool {
        let mut queue = core::mem::take(&mut self.left);
        self.work_off(&mut queue);
        queue.append(&mut self.left);
        let is_more = !queue.is_empty();
        if is_more {
            self.left = queue;
        }
        is_more
    }

    /// Marks the end of what is left now; a mark for [`Server::settle_until`].
    pub(super) fn mark_left(&mut self) -> u64 {
        self.marks.0 += 1;
        self.leave(&mut VecDeque::from([Deferred::Mark(self.marks.0)]));
        self.marks.0
    }

    /// As [`Server::settle_some`]; is there more before this mark?
    pub(super) fn settle_until(&mut self, mark: u64) -> bool {
        self.marks.1 < mark && {
            self.settle_some();
            self.marks.1 < mark
        }
    }

    /// Ready when something is left for [`Server::settle_some`].
    pub(super) fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.left.is_empty() {
            self.left_waker = Some(context.waker().clone());
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    fn work_off(&mut self, queue: &mut VecDeque<Deferred>) {
        let start = self.store.work();
        while self.store.work().wrapping_sub(start) < self.step_work
            && let Some(next) = queue.pop_front()
        {
            if let Some(rest) = self.work_on(next, queue) {
                queue.push_front(rest);
            }
        }
    }

    /// As [`Server::settle_commit`], but what the commit leaves for everybody is put in front of the queue.
    fn work_on_commit(&mut self, queue: &mut VecDeque<Deferred>) -> bool {
        let before = self.left.len();
        let is_more = self.settle_commit(1);
        let more = self.left.len() - before;
        self.left.drain(..more).rev().for_each(|left| queue.push_front(left));
        is_more
    }

    /// Does a piece; answers the rest of it. What comes before that rest is put in front of the queue.
    fn work_on(&mut self, deferred: Deferred, queue: &mut VecDeque<Deferred>) -> Option<Deferred> {
        match deferred {
            Deferred::First(conn, watch) => {
                let path = watch.path.clone();
                self.queue_event(conn, watch, path);
                None
            }
            Deferred::Change(change, mut told) => {
                self.store.spend(1, change.path.key().len());
                let (conn, watches) = self.watches.next(&change.path, change.exact, &mut told)?;
                // One look at the permissions for all watches that a connection has of this path.
                let seen = [&change.before, &change.after];
                if self.may_read(conn, seen.into_iter().flatten()) {
                    self.store.spend(watches.len(), 0);
                    for watch in Vec::from(watches) {
                        self.queue_event(conn, watch, change.path.clone());
                    }
                }
                Some(Deferred::Change(change, told))
            }
            Deferred::Special(name, mut told) => {
                let path = Path::special(name);
                let perms = self.special_slot(&path)?.clone();
                self.store.spend(1, 0);
                let (conn, watches) = self.watches.next(&path, false, &mut told)?;
                if self.may_read(conn, [&perms].into_iter()) {
                    self.store.spend(watches.len(), 0);
                    // A relative watch has no way to say this path.
                    let watches: Vec<_> =
                        watches.iter().filter(|watch| watch.relative_to.is_none()).cloned().collect();
                    for watch in watches {
                        self.queue_event(conn, watch, path.clone());
                    }
                }
                Some(Deferred::Special(name, told))
            }
            Deferred::Sweep(sweep) => match self.store.sweep(sweep) {
                Ok((rest, None)) => Some(Deferred::Sweep(rest)),
                Ok((rest, Some(change))) => {
                    queue.push_front(Deferred::Sweep(rest));
                    Some(Deferred::Change(change, Told::default()))
                }
                Err(top) => Some(Deferred::Change(top, Told::default())),
            },
            Deferred::Forget(domid, after) => {
                if self.work_on_commit(queue) {
                    return Some(Deferred::Forget(domid, after));
                }
                let (path, outcome) = self.store.forget_next(domid, after.as_ref())?;
                queue.push_front(Deferred::Forget(domid, Some(path)));
                outcome.map(Deferred::from)
            }
            Deferred::Commit => self.work_on_commit(queue).then_some(Deferred::Commit),
            Deferred::Mark(mark) => {
                self.marks.1 = mark;
                None
            }
            Deferred::Free(mut transactions) => {
                let last = transactions.last_mut()?;
                self.store.spend(1, 0);
                let Some(change) = last.free_some(&mut self.store) else {
                    transactions.pop();
                    return Some(Deferred::Free(transactions));
                };
                let rest = Deferred::Free(transactions);
                let Some(change) = change else { return Some(rest) };
                queue.push_front(rest);
                Some(Deferred::Change(change, Told::default()))
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
        connection.output.push_event(watch, path);
        let bytes =
            if connection.internal { self.quotas.client_event_bytes } else { self.quotas.event_bytes };
        if connection.output.event_bytes() > bytes {
            // A client that changes nodes faster than others look must neither fill dom0's memory nor end another's
            // connection. "Look at all of it" says as much. The room that this makes keeps the next search away for a while.
            let before = connection.output.events();
            connection.output.merge_events(merged_bytes(bytes));
            let merged = before - connection.output.events();
            self.store.spend(0, before * SCAN_WORK + merged * NODE_WORK);
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
            let (waker, mut left) = (connection.waker.take(), core::mem::take(&mut connection.left));
            *connection = Connection::new(domid, false);
            connection.failed = Some(failure);
            connection.waker = waker;
            connection.kick(&mut self.woken);
            // Nobody has a turn on its behalf any more.
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

    /// Counts the changes of what [`Server::kept_for`] gives for any domain.
    pub(crate) fn changes(&self) -> u64 {
        self.store.changes()
    }

    /// What the heap takes for what is kept for the domain of a connection: its nodes, watches and transactions, messages
    /// that are not whole or wait to be fetched, and what is left to be done. No more than [`Quotas::most_kept`]. (I29)
    pub fn kept_for(&self, conn: ConnId) -> usize {
        let Some(connection) = self.connections.get(&conn) else { return 0 };
        let of_domain = self.store.account(connection.domid).bytes();
        of_domain + kept_by(connection) + Input::KEPT + CONNECTION_BYTES
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
