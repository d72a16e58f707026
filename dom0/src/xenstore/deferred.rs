//! What requests leave to be done, and its doing in steps: watches to tell, removed subtrees to take out, dead domains to
//! forget, long commits.
//!
//! A connection does what its own last request left before its next one is looked at. What has no connection any more is
//! everybody's: dom0's service task does it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::{Context, Poll};

use ring_abi::io::xs_wire::XENSTORE_ABS_PATH_MAX;

use super::burial::Sweep;
use super::connection::{ConnId, Connection};
use super::path::Path;
use super::price;
use super::request::OK;
use super::server::Server;
use super::store::{Change, NODE_WORK, Outcome};
use super::transaction::Transaction;
use super::watch::{Told, Watch};

/// Work that a request leaves: done in steps once the request's reply is queued, since it may be much.
pub(super) enum Deferred {
    /// Watches that were not told of a change yet are to be told.
    Change(Change, Told),
    /// Special watches are to be told what happened to a domain.
    Special(&'static str, Told),
    /// A new watch is to have its first event.
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
pub(super) const STEP_WORK: usize = 2 * 1024;

/// Work that passing an event in a queue stands for.
pub(super) const SCAN_WORK: usize = 4;

/// Of so many bytes that events may take, how many are left when events have been merged.
pub(super) const fn merged_bytes(bytes: usize) -> usize {
    bytes / 4 * 3
}

impl Server {
    /// Does a step of the commit that is under way, whichever connection's it is; is it still under way?
    pub(super) fn settle_commit(&mut self, work: usize) -> bool {
        if self.committing.is_none() {
            return false;
        }
        // What the commit leaves to be done is its connection's.
        let others = core::mem::take(&mut self.deferred);
        if let Some((result, conn, request)) = self.commit_some(work) {
            if let Some(header) = request {
                self.answer(conn, header, result.map(|()| Vec::from(OK)));
            }
            let mut queue = core::mem::take(&mut self.deferred);
            let before = self.left.len();
            self.leave_for(Some(conn), &mut queue);
            // In front: a client that waits for the commit waits for this too.
            self.left.rotate_left(before);
        }
        self.deferred = others;
        self.committing.is_some()
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

    /// Leaves work for a connection's turns. A connection whose service has ended has no turns: its work is everybody's.
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

    pub(super) fn leave(&mut self, queue: &mut VecDeque<Deferred>) {
        self.left.append(queue);
        if !self.left.is_empty() {
            self.woken.extend(self.left_waker.take());
        }
    }

    /// Does a step of what a connection's last request left to be done; is more of it left?
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

    /// Does a step of what others left to be done; is more of it left?
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
}
