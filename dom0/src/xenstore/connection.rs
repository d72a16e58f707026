//! One client of the server.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::task::Waker;

use ring_abi::io::xs_wire::{XENSTORE_ERROR_COMM, XENSTORE_ERROR_PROTO, XENSTORE_ERROR_RINGIDX};

use super::deferred::Deferred;
use super::stream::{Input, Output};
use super::transaction::Transaction;
use super::watch::Watch;

/// A connection of the server: a domain's ring, or a client within dom0. Never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub(crate) u32);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {}", self.0)
    }
}

/// Why a connection serves no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A header announced a payload of more than 4096 bytes.
    PayloadTooLong(u32),
    /// The ring's indices are impossible.
    RingIndex,
    /// The connection was released, or never was.
    Gone,
}

impl Failure {
    /// The value that the server writes into the ring page's `error` field.
    ///
    /// ABI: `XENSTORE_ERROR_*`, `xen/include/public/io/xs_wire.h`.
    pub fn ring_error(self) -> u32 {
        match self {
            Failure::Gone => XENSTORE_ERROR_COMM,
            Failure::RingIndex => XENSTORE_ERROR_RINGIDX,
            Failure::PayloadTooLong(_) => XENSTORE_ERROR_PROTO,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::PayloadTooLong(len) => write!(f, "a payload of {len} bytes was announced"),
            Failure::RingIndex => f.write_str("the ring's indices are impossible"),
            Failure::Gone => f.write_str("the connection was released"),
        }
    }
}

impl core::error::Error for Failure {}

/// A client's state.
pub(crate) struct Connection {
    pub(crate) domid: u16,
    /// Whether this is a client within dom0, which gets no messages.
    pub(crate) internal: bool,
    pub(crate) transactions: BTreeMap<u32, Transaction>,
    pub(crate) last_transaction: u32,
    pub(crate) watches: Vec<Arc<Watch>>,
    pub(crate) input: Input,
    pub(crate) output: Output,
    /// Work that the connection's last request left. The server does this work before the connection's next request.
    pub(crate) left: VecDeque<Deferred>,
    pub(crate) failed: Option<Failure>,
    /// Bytes of heap for what waits in this connection, when these bytes were last counted.
    pub(crate) counted: usize,
    /// Something was queued, or the connection failed, since the connection's task last looked.
    pub(crate) kicked: bool,
    pub(crate) waker: Option<Waker>,
}

impl Connection {
    pub(crate) fn new(domid: u16, internal: bool) -> Connection {
        Connection {
            domid,
            internal,
            transactions: BTreeMap::new(),
            last_transaction: 0,
            watches: Vec::new(),
            input: Input::default(),
            output: Output::default(),
            left: VecDeque::new(),
            failed: None,
            counted: 0,
            kicked: false,
            waker: None,
        }
    }

    /// A transaction id that is not 0 and that no open transaction has.
    pub(crate) fn free_transaction_id(&mut self) -> u32 {
        loop {
            self.last_transaction = self.last_transaction.wrapping_add(1);
            if self.last_transaction != 0 && !self.transactions.contains_key(&self.last_transaction) {
                return self.last_transaction;
            }
        }
    }

    /// Has the task that serves this connection, or waits for events of it, look again.
    pub(crate) fn kick(&mut self, woken: &mut Vec<Waker>) {
        self.kicked = true;
        woken.extend(self.waker.take());
    }
}
