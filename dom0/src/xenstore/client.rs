//! The store for dom0's own use: one shared server, and clients that call it.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::str::FromStr;
use core::task::Poll;

use pvrt::Account;
use pvrt::account::Charge;
use pvrt::yield_now;
use spin::Mutex;

use super::connection::{ConnId, Failure};
use super::error::XsError;
use super::path::Path;
use super::perms::Perms;
use super::quota::{Figures, Quotas};
use super::serve::{Exchange, Ring};
use super::server::{Effect, Server, WatchEvent};

/// A handle on the one server; all clones lead to the same server.
///
/// The lock is held for one operation and never across an `await`. Wakers are woken after the lock was let go.
#[derive(Clone)]
pub struct Xenstore(Arc<Mutex<Server>>);

impl Xenstore {
    /// A new, empty store.
    pub fn new(quotas: Quotas) -> Xenstore {
        Xenstore(Arc::new(Mutex::new(Server::new(quotas))))
    }

    /// A store that leaves as much work as possible for later steps.
    #[cfg(test)]
    pub(super) fn reluctant() -> Xenstore {
        let mut server = Server::new(Quotas::XEN);
        server.step_work = 1;
        Xenstore(Arc::new(Mutex::new(server)))
    }

    /// A step of [`Xenstore::settled`]; is there more?
    #[cfg(test)]
    pub(super) fn settle_some(&self) -> bool {
        self.with(Server::settle_some)
    }

    /// Runs `operate` on the server, and charges the store's memory to dom0, whichever client makes the store grow. A
    /// domain's part of the memory is held by the task that serves the domain's ring.
    fn with<R>(&self, operate: impl FnOnce(&mut Server) -> R) -> R {
        Account::own().charge(|| self.operate(operate))
    }

    fn operate<R>(&self, operate: impl FnOnce(&mut Server) -> R) -> R {
        let mut server = self.0.lock();
        let result = operate(&mut server);
        server.flush();
        let woken = server.take_woken();
        drop(server);
        for waker in woken {
            waker.wake();
        }
        result
    }

    /// A new client with all of dom0's rights. The events that may wait for the client are charged to the current
    /// account: a client that acts for a domain listens to that domain's nodes.
    pub fn client(&self) -> Client {
        let mut held = Account::current().hold();
        let conn = self.with(|server| {
            held.resize(server.quotas().most_for_client());
            server.connect()
        });
        Client { conn, store: self.clone(), _held: held }
    }

    /// Waits for an effect, which the caller carries out outside the server. The task that serves rings calls this, and
    /// no other.
    pub async fn next_effect(&self) -> Effect {
        poll_fn(|context| self.with(|server| server.poll_effect(context))).await
    }

    /// A round of a domain's ring; see [`Server::exchange`].
    ///
    /// # Errors
    /// The errors of [`Server::exchange`].
    pub fn exchange(&self, conn: ConnId, ring: &mut impl Ring) -> Result<Exchange, Failure> {
        self.with(|server| server.exchange(conn, ring))
    }

    /// Like [`Xenstore::exchange`]; `held` then holds what the store keeps for the domain.
    ///
    /// # Errors
    /// The errors of [`Server::exchange`].
    pub fn exchange_held(
        &self,
        conn: ConnId,
        ring: &mut impl Ring,
        held: &mut Held,
    ) -> Result<Exchange, Failure> {
        self.with(|server| {
            let result = server.exchange(conn, ring);
            let changes = server.changes();
            if core::mem::replace(&mut held.changes, changes) != changes {
                held.charge.resize(server.kept_for(conn));
            }
            result
        })
    }

    /// Waits until there is something new for [`Xenstore::exchange`] to send, or the connection failed.
    pub async fn output_ready(&self, conn: ConnId) {
        poll_fn(|context| self.with(|server| server.poll_output(conn, context))).await;
    }

    /// See [`Server::reconnect`].
    pub fn reconnect(&self, conn: ConnId) {
        self.with(|server| server.reconnect(conn));
    }

    /// See [`Server::domain_shut_down`].
    pub fn domain_shut_down(&self, domid: u16) {
        self.with(|server| server.domain_shut_down(domid));
    }

    /// See [`Server::domain_destroyed`].
    pub fn domain_destroyed(&self, domid: u16) {
        self.with(|server| server.domain_destroyed(domid));
    }

    /// Does the work that calls within dom0, deaths of domains and ended connections leave, for ever. One task runs
    /// this function.
    pub async fn settle(self) {
        loop {
            poll_fn(|context| self.with(|server| server.poll_left(context))).await;
            // Some work lets all other work pass, so a mark behind the work would not tell that a step is over.
            if self.with(Server::settle_some) {
                yield_now().await;
            }
        }
    }

    /// Returns when all work is done that was left at the time of the call. Work that others leave meanwhile is not
    /// waited for.
    pub async fn settled(&self) {
        let mark = self.with(Server::mark_left);
        while self.with(|server| server.settle_until(mark)) {
            yield_now().await;
        }
    }

    /// Counts what the store holds.
    pub fn figures(&self) -> Figures {
        self.with(|server| server.figures())
    }
}

/// What the store keeps for a domain, charged to the account of the task that serves the domain's ring.
pub struct Held {
    charge: Charge,
    /// The number of changes, of all domains' figures, that `charge` includes.
    changes: u64,
}

impl Held {
    /// Nothing yet, for the current account.
    pub fn for_current() -> Held {
        Held { charge: Account::current().hold(), changes: 0 }
    }
}

/// The operations on nodes, by a [`Client`] directly or within a [`Transaction`] of the client. Paths are absolute, or
/// relative to `/local/domain/0`.
pub trait Nodes {
    /// Whom to ask, and within which transaction: 0 for none.
    #[doc(hidden)]
    fn scope(&self) -> (&Client, u32);

    /// The value of a node.
    ///
    /// # Errors
    /// - `ENOENT`: there is no such node.
    /// - `EINVAL`: no node can have such a path.
    fn read(&self, path: &str) -> Result<Vec<u8>, XsError> {
        let (client, tx_id) = self.scope();
        let path = Path::resolve(path.as_bytes(), 0)?;
        client.call(|server| server.view(client.conn, tx_id, |view| view.read(&path))).map(|v| Vec::from(&*v))
    }

    /// The value of a node as text.
    ///
    /// # Errors
    /// The errors of [`Nodes::read`]; and `EINVAL` if the value is not UTF-8.
    fn read_str(&self, path: &str) -> Result<String, XsError> {
        String::from_utf8(self.read(path)?).map_err(|_| XsError::Inval)
    }

    /// The value of a node as a number, or as whatever else can be read from text.
    ///
    /// # Errors
    /// The errors of [`Nodes::read_str`]; and `EINVAL` if the text is no such value.
    fn read_as<T: FromStr>(&self, path: &str) -> Result<T, XsError> {
        self.read_str(path)?.trim().parse().map_err(|_| XsError::Inval)
    }

    /// Is there such a node?
    fn exists(&self, path: &str) -> bool {
        self.read(path).is_ok()
    }

    /// Writes a node. The store makes the node, and the nodes above it, where they are missing.
    ///
    /// # Errors
    /// `EINVAL`: no node can have such a path.
    fn write(&self, path: &str, value: impl AsRef<[u8]>) -> Result<(), XsError> {
        let (client, tx_id) = self.scope();
        let path = Path::resolve(path.as_bytes(), 0)?;
        client.call(|server| server.view(client.conn, tx_id, |view| view.write(&path, value.as_ref())))
    }

    /// Makes an empty node, and the missing nodes above it, if the node does not exist.
    ///
    /// # Errors
    /// `EINVAL`: no node can have such a path.
    fn mkdir(&self, path: &str) -> Result<(), XsError> {
        let (client, tx_id) = self.scope();
        let path = Path::resolve(path.as_bytes(), 0)?;
        client.call(|server| server.view(client.conn, tx_id, |view| view.mkdir(&path)))
    }

    /// Removes a node and all below the node. A node that is missing already is no error.
    ///
    /// # Errors
    /// - `EINVAL`: no node can have such a path, or the path is the root.
    /// - `ENOENT`: the node above is missing, too.
    fn rm(&self, path: &str) -> Result<(), XsError> {
        let (client, tx_id) = self.scope();
        let path = Path::resolve(path.as_bytes(), 0)?;
        client.call(|server| server.view(client.conn, tx_id, |view| view.rm(&path)))
    }

    /// Names of the nodes right below a node, in order.
    ///
    /// # Errors
    /// The errors of [`Nodes::read`].
    fn directory(&self, path: &str) -> Result<Vec<String>, XsError> {
        let (client, tx_id) = self.scope();
        let path = Path::resolve(path.as_bytes(), 0)?;
        let mut names = Vec::new();
        client.call(|server| {
            server.view(client.conn, tx_id, |view| {
                view.list(&path, |name| {
                    names.push(String::from_utf8_lossy(name).into_owned());
                    true
                })
            })
        })?;
        Ok(names)
    }

    /// The permissions of a node.
    ///
    /// # Errors
    /// The errors of [`Nodes::read`].
    fn perms(&self, path: &str) -> Result<Perms, XsError> {
        let (client, tx_id) = self.scope();
        let path = Path::resolve(path.as_bytes(), 0)?;
        client.call(|server| server.view(client.conn, tx_id, |view| view.perms(&path)))
    }

    /// Sets the permissions of a node. The nodes below keep their permissions.
    ///
    /// # Errors
    /// The errors of [`Nodes::read`].
    fn set_perms(&self, path: &str, perms: Perms) -> Result<(), XsError> {
        let (client, tx_id) = self.scope();
        let path = Path::resolve(path.as_bytes(), 0)?;
        client.call(|server| server.view(client.conn, tx_id, |view| view.set_perms(&path, perms)))
    }
}

/// A client within dom0. Dropping the client drops the client's watches and their events.
pub struct Client {
    store: Xenstore,
    conn: ConnId,
    /// The most bytes of events that wait for this client, held for its account.
    _held: Charge,
}

impl Client {
    fn call<R>(&self, operate: impl FnOnce(&mut Server) -> R) -> R {
        self.store.with(operate)
    }

    /// Asks something of the daemon itself, in words: `XS_CONTROL`.
    ///
    /// # Errors
    /// `EINVAL`: there is no such command, or it takes other arguments.
    pub fn control(&self, words: &[&str]) -> Result<Vec<u8>, XsError> {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
        self.call(|server| server.control(self.conn, &payload))
    }

    /// The store whose client this is.
    pub fn store(&self) -> &Xenstore {
        &self.store
    }

    /// Starts a transaction.
    ///
    /// # Errors
    /// `EIO`: the connection failed, which a client within dom0 never does.
    pub fn transaction(&self) -> Result<Transaction<'_>, XsError> {
        let id = self.call(|server| server.transaction_start(self.conn))?;
        Ok(Transaction { client: self, id, open: true })
    }

    /// Runs `body` in a transaction and commits the transaction; runs `body` again while the commit conflicts with
    /// changes of others.
    ///
    /// # Errors
    /// The first error of `body`, or an error of the commit other than `EAGAIN`.
    pub fn atomically<R>(
        &self,
        mut body: impl FnMut(&Transaction<'_>) -> Result<R, XsError>,
    ) -> Result<R, XsError> {
        loop {
            let transaction = self.transaction()?;
            let result = body(&transaction)?;
            match transaction.commit() {
                Ok(()) => return Ok(result),
                Err(XsError::Again) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Watches a path and all below the path, or `@introduceDomain` or `@releaseDomain`. The first event comes at once.
    ///
    /// # Errors
    /// - `EINVAL`: no node can have such a path.
    /// - `EEXIST`: this client has the same watch already.
    pub fn watch(&self, path: &str, token: &str) -> Result<(), XsError> {
        self.call(|server| server.watch(self.conn, path.as_bytes(), token.as_bytes()))
    }

    /// Ends a watch. Events of the watch that were not yet taken are dropped.
    ///
    /// # Errors
    /// - `EINVAL`: no node can have such a path.
    /// - `ENOENT`: this client has no such watch.
    pub fn unwatch(&self, path: &str, token: &str) -> Result<(), XsError> {
        self.call(|server| server.unwatch(self.conn, path.as_bytes(), token.as_bytes()))
    }

    /// Waits for the next event of this client's watches. One task may wait at a time.
    pub async fn next_event(&self) -> WatchEvent {
        poll_fn(|context| self.poll_event(context)).await
    }

    /// Does the same as [`Client::next_event`], as a poll.
    pub fn poll_event(&self, context: &mut core::task::Context<'_>) -> Poll<WatchEvent> {
        self.call(|server| server.poll_event(self.conn, context))
    }

    /// Takes the next event if there is one.
    pub fn try_event(&self) -> Option<WatchEvent> {
        self.call(|server| server.take_event(self.conn))
    }

    /// Has the server serve a domain: see [`Effect::Introduced`].
    ///
    /// # Errors
    /// `EINVAL`: `domid` is dom0's or no domain's, or `port` is 0.
    pub fn introduce(&self, domid: u16, mfn: u64, port: u32) -> Result<(), XsError> {
        self.call(|server| server.introduce(self.conn, domid, mfn, port))
    }

    /// Has the server let a domain go, with the nodes that the domain owns.
    ///
    /// # Errors
    /// `ENOENT`: the domain is not introduced.
    pub fn release(&self, domid: u16) -> Result<(), XsError> {
        self.call(|server| server.release(self.conn, domid))
    }
}

impl Nodes for Client {
    fn scope(&self) -> (&Client, u32) {
        (self, 0)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.store.with(|server| server.disconnect(self.conn));
    }
}

/// A transaction of a [`Client`]; dropping the transaction discards what it wrote.
pub struct Transaction<'a> {
    client: &'a Client,
    id: u32,
    open: bool,
}

impl Transaction<'_> {
    /// Makes what the transaction wrote real: all of it, or nothing.
    ///
    /// # Errors
    /// `EAGAIN`: the transaction conflicts with changes of others; the caller starts again.
    pub fn commit(mut self) -> Result<(), XsError> {
        self.open = false;
        self.client.call(|server| server.transaction_end(self.client.conn, self.id, true))
    }
}

impl Nodes for Transaction<'_> {
    fn scope(&self) -> (&Client, u32) {
        (self.client, self.id)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open {
            // No error is possible here: the transaction exists.
            let _ = self.client.call(|server| server.transaction_end(self.client.conn, self.id, false));
        }
    }
}
