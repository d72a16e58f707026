//! Work that requests leave, and how the server does the work in steps: telling watches, taking out removed subtrees,
//! forgetting dead domains, long commits.
//!
//! A connection does the work of its own last request before the server looks at the connection's next request. Work
//! whose connection is gone is for everybody: dom0's service task does this work.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::{Context, Poll};

use ring_abi::io::xs_wire::XENSTORE_ABS_PATH_MAX;

use super::burial::Sweep;
use super::connection::{ConnId, Connection};
use super::control::Checked;
use super::path::Path;
use super::price;
use super::request::OK;
use super::server::Server;
use super::store::{Change, NODE_WORK, Outcome};
use super::transaction::Transaction;
use super::watch::{Told, Watch};

/// Work that a request leaves. The server does the work in steps once the request's reply is queued, since the work may
/// be much.
pub(super) enum Deferred {
    /// Tell a change to the watches that were not yet told.
    Change(Change, Told),
    /// Tell the special watches what happened to a domain.
    Special(&'static str, Told),
    /// Give a new watch its first event.
    First(ConnId, Arc<Watch>),
    /// Take out the nodes below a node that was removed.
    Sweep(Sweep),
    /// Forget a dead domain, from the node after this path on.
    Forget(u16, Option<Path>),
    /// Free transactions that are over, and tell watches what a committed transaction changed.
    Free(Vec<Transaction>),
    /// End a commit whose connection is gone.
    Commit,
    /// Look at the nodes after this path.
    Check(Option<Path>, Checked),
    /// A mark: all work that was left before the mark is done.
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
    /// Bytes of heap for this work, beside the place in a queue and what is accounted for transactions.
    fn kept(&self) -> usize {
        match self {
            Deferred::Change(change, _) => price::text(&change.path),
            Deferred::Sweep(sweep) => {
                price::text(&sweep.top.path)
                    + price::object(sweep.open.capacity() * size_of::<(Path, bool)>())
            }
            Deferred::First(_, watch) => watch.cost(),
            Deferred::Forget(_, path) | Deferred::Check(path, _) => path.as_ref().map_or(0, price::text),
            Deferred::Free(transactions) => price::object(transactions.capacity() * size_of::<Transaction>()),
            Deferred::Special(..) | Deferred::Commit | Deferred::Mark(_) => 0,
        }
    }
}

/// Most bytes of heap for the work that a domain's request leaves: a few things, and the removal of `subtrees`
/// subtrees, one of which lists up to `nodes` nodes.
pub(super) const fn left_price(subtrees: usize, nodes: usize) -> usize {
    let queue = price::object(2 * (subtrees + DEFERRED_KEPT) * size_of::<Deferred>());
    let texts =
        (subtrees + DEFERRED_KEPT) * price::shared(64) + DEFERRED_KEPT * price::shared(XENSTORE_ABS_PATH_MAX);
    queue + texts + price::object(2 * nodes * size_of::<(Path, bool)>())
}

/// A buffer of so many deferred things is kept for the next request.
const DEFERRED_KEPT: usize = 8;

/// Bytes of heap for what waits on a connection.
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

/// Work, in bytes moved ([`Store::spend`]), after which the rest of the deferred work waits for the next turn.
pub(super) const STEP_WORK: usize = 2 * 1024;

/// The work, in bytes moved, that the server counts for each event that a search in a queue passes.
pub(super) const SCAN_WORK: usize = 4;

/// How many bytes of events stay when events have been merged, of `bytes` that events may take.
pub(super) const fn merged_bytes(bytes: usize) -> usize {
    bytes / 4 * 3
}

impl Server {
    /// Does a step of the commit that is under way, whichever connection the commit belongs to. The result is whether
    /// the commit is still under way.
    pub(super) fn settle_commit(&mut self, work: usize) -> bool {
        if self.committing.is_none() {
            return false;
        }
        // Work that the commit leaves belongs to the commit's connection.
        let others = core::mem::take(&mut self.deferred);
        if let Some((result, conn, request)) = self.commit_some(work) {
            if let Some(header) = request {
                self.answer(conn, header, result.map(|()| Vec::from(OK)));
            }
            let mut queue = core::mem::take(&mut self.deferred);
            let before = self.left.len();
            self.leave_for(Some(conn), &mut queue);
            // The commit's work goes to the front: a client that waits for the commit waits for this work, too.
            self.left.rotate_left(before);
        }
        self.deferred = others;
        self.committing.is_some()
    }

    /// Does the work that a call or a request left, as far as one step goes. The rest is left for connection `conn`,
    /// whose request this was and whose next request waits until then, or for [`Server::settle_some`].
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

    /// Leaves work for a connection's turns. A connection whose service has ended has no turns, so its work is left for
    /// everybody.
    fn leave_for(&mut self, conn: Option<ConnId>, queue: &mut VecDeque<Deferred>) {
        let connection = conn.and_then(|conn| self.connections.get_mut(&conn));
        match connection.filter(|connection| connection.failed.is_none()) {
            Some(connection) => connection.left.append(queue),
            None => self.leave(queue),
        }
    }

    /// Does the same as [`Server::flush_for`] for no connection.
    pub(super) fn flush(&mut self) {
        self.flush_for(None);
    }

    pub(super) fn leave(&mut self, queue: &mut VecDeque<Deferred>) {
        self.left.append(queue);
        if !self.left.is_empty() {
            self.woken.extend(self.left_waker.take());
        }
    }

    /// Does a step of the work that a connection's last request left. The result is whether more of this work is left.
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

    /// Does a step of the work that is left for everybody. The result is whether more of this work is left.
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

    /// Puts a mark behind the work that is left now; the result is for [`Server::settle_until`].
    pub(super) fn mark_left(&mut self) -> u64 {
        self.marks.0 += 1;
        self.leave(&mut VecDeque::from([Deferred::Mark(self.marks.0)]));
        self.marks.0
    }

    /// Does the same as [`Server::settle_some`]. Returns whether there is more before this mark.
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

    /// Like [`Server::settle_commit`], but puts the work that the commit leaves for everybody in front of `queue`.
    fn work_on_commit(&mut self, queue: &mut VecDeque<Deferred>) -> bool {
        let before = self.left.len();
        let is_more = self.settle_commit(1);
        let more = self.left.len() - before;
        self.left.drain(..more).rev().for_each(|left| queue.push_front(left));
        is_more
    }

    /// Does a piece of `deferred` and returns the rest. Work that comes before this rest goes to the front of `queue`.
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
                // One look at the permissions serves all watches that a connection has of this path.
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
            Deferred::Check(after, checked) => {
                let (path, checked) = self.check_next(after.as_ref(), checked)?;
                // All other work goes before: domains decide how many nodes there are.
                queue.push_back(Deferred::Check(Some(path), checked));
                None
            }
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
            // A client that changes nodes faster than others look must neither fill dom0's memory nor end another
            // client's connection. One event that says "look at all of it" stands for many. The merging makes so much
            // room that the next search in the queue comes only after many further events.
            let before = connection.output.events();
            connection.output.merge_events(merged_bytes(bytes));
            let merged = before - connection.output.events();
            self.store.spend(0, before * SCAN_WORK + merged * NODE_WORK);
        }
        connection.kick(&mut self.woken);
    }
}
