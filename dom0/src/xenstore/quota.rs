//! Limits on what one unprivileged domain may take, and the figures that are compared with the limits.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use ring_abi::io::xs_wire::XENSTORE_ABS_PATH_MAX;

use super::connection::{ConnId, Connection};
use super::deferred;
use super::price;
use super::server::{Domain, Server};
use super::stream::{self, Input};

/// Limits per domain; dom0 has none. [`Quotas::XEN`] has the numbers of Xen 4.17.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    /// Nodes owned. Beyond: `ENOSPC`. When a transaction removes a node, the nodes below count until the transaction is
    /// committed and the nodes have been taken out; Xen counts these nodes as gone at once.
    pub nodes: usize,
    /// Parts of the path of a node that is made. Beyond: `ENOSPC`. Xen limits a path's bytes alone, which lets one
    /// request make 1,000 nodes whose paths are 1,000 bytes long on average.
    pub levels: usize,
    /// Bytes of one node's value. Beyond: `ENOSPC`.
    pub value_bytes: usize,
    /// Entries of one node's permissions. Beyond: `ENOSPC`.
    pub perms: usize,
    /// Watches. Beyond: `E2BIG`.
    pub watches: usize,
    /// Transactions open at a time. Beyond: `ENOSPC`.
    pub transactions: usize,
    /// Nodes that one transaction may touch. Beyond: `ENOSPC`.
    pub transaction_nodes: usize,
    /// Nodes with other nodes below them that one transaction may remove. Beyond: `ENOSPC`. Xen counts the nodes below
    /// instead.
    pub transaction_subtrees: usize,
    /// Replies not yet fetched. The server looks at no further request until the domain has fetched replies.
    pub outstanding: usize,
    /// Bytes of heap for watch events not yet fetched. Beyond, the events of the watch that has most become one event.
    pub event_bytes: usize,
    /// Bytes of heap for events that wait for a client within dom0. Beyond, the events of the watch that has most
    /// become one event.
    pub client_event_bytes: usize,
    /// Bytes of heap for nodes, transactions and watches together. Beyond: `ENOMEM`.
    pub memory_bytes: usize,
}

// One event of each watch must fit well within the events that may wait.
const _: () = {
    let Quotas { watches, event_bytes, .. } = Quotas::XEN;
    assert!(watches * stream::EVENT_PLACE <= deferred::merged_bytes(event_bytes));
};

impl Quotas {
    /// Xen's numbers, with two exceptions. The limit of memory is 1 MiB, where Xen allows 2.5 MiB. What waits to be
    /// fetched has limits of its own, where Xen counts it as memory.
    pub const XEN: Quotas = Quotas {
        nodes: 1000,
        levels: 64,
        value_bytes: 2048,
        perms: 5,
        watches: 128,
        transactions: 10,
        transaction_nodes: 1024,
        transaction_subtrees: 64,
        outstanding: 20,
        event_bytes: 160 * 1024,
        client_event_bytes: 16 * 1024,
        memory_bytes: 1024 * 1024,
    };

    /// Most bytes of heap that the store keeps for one domain: the domain's nodes with their permissions, its watches
    /// and its transactions; what waits to be fetched; the work that its last request left. A domain's budget has room
    /// for so much, and [`Server::kept_for`](super::Server::kept_for) says how much is taken. (I29)
    ///
    /// Nodes that dom0 makes for a domain count, and go beyond `memory_bytes` if the domain has filled `memory_bytes`.
    pub const fn most_kept(&self) -> usize {
        let events = self.event_bytes + stream::event_price(XENSTORE_ABS_PATH_MAX);
        let messages = events + stream::replies_price(self.outstanding) + Input::KEPT;
        let left = deferred::left_price(self.transaction_subtrees, self.nodes);
        self.memory_bytes + messages + left + CONNECTION_BYTES
    }

    /// Most bytes of heap that the store keeps for a client within dom0, with the events of changes that domains make.
    pub const fn most_for_client(&self) -> usize {
        self.client_event_bytes + stream::event_price(XENSTORE_ABS_PATH_MAX) + CONNECTION_BYTES
    }
}

/// Bytes of heap for a connection that rests: the connection's place in the list of connections, its introduction, and
/// its first watches.
pub(super) const CONNECTION_BYTES: usize = price::mapped::<ConnId, Connection>()
    + price::mapped::<u16, Domain>()
    + price::mapped::<u16, Account>()
    + 1024;

/// What one domain has at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Nodes owned.
    pub(crate) nodes: usize,
    /// Bytes of heap for these nodes.
    pub(crate) node_bytes: usize,
    /// Bytes of heap for transactions: open transactions, and transactions that are over and not yet freed.
    pub(crate) transaction_bytes: usize,
    /// Bytes of heap for watches.
    pub(crate) watch_bytes: usize,
}

impl Account {
    /// All bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.node_bytes + self.transaction_bytes + self.watch_bytes
    }
}

/// One domain's part of the [`Figures`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainFigures {
    /// The domain.
    pub domid: u16,
    /// Number of nodes that the domain owns.
    pub nodes: usize,
    /// Number of watches that the domain has, over all its connections.
    pub watches: usize,
    /// Number of transactions that the domain has open.
    pub transactions: usize,
    /// Number of replies and events that the domain has not fetched.
    pub queued: usize,
    /// Bytes of the domain's nodes, transactions and watches.
    pub bytes: usize,
}

/// What the store holds. `xl info` shows these figures, and a test finds leaks by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// All nodes, the root counted.
    pub nodes: usize,
    /// All watches.
    pub watches: usize,
    /// All open transactions.
    pub transactions: usize,
    /// All connections, dom0's inner ones too.
    pub connections: usize,
    /// Domains that have been introduced and not released.
    pub introduced: usize,
    /// Bytes of nodes, transactions and watches.
    pub bytes: usize,
    /// A record for each domain that has anything, in the order of the domains' numbers.
    pub domains: Vec<DomainFigures>,
}

impl Server {
    /// Counts what the store holds.
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
