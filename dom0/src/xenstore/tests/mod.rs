//! The server as its clients see the server.

mod charges;
mod clients;
mod cost;
mod domains;
mod limits;
mod memory;
mod model;
mod steps;
mod storm;

use std::collections::VecDeque;

use ring_abi::io::xs_wire::{self as wire, XsdSockmsg};
use zerocopy::{FromBytes, IntoBytes};

use super::*;

/// The clients' own tag: any 32 bits.
const REQUEST_ID: u32 = 0xfedc_ba98;

/// A server with domains 1.. introduced, spoken to in whole messages.
pub(super) struct Bed {
    pub(super) server: Server,
    pub(super) dom0: ConnId,
    rings: std::collections::BTreeMap<u16, (ConnId, TestRing)>,
}

/// A ring of unbounded size, or one that takes `room` bytes.
#[derive(Default)]
struct TestRing {
    to_server: VecDeque<u8>,
    from_server: Vec<u8>,
    room: Option<usize>,
    step: usize,
}

impl Ring for TestRing {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Failure> {
        let count = into.len().min(self.to_server.len()).min(if self.step == 0 { 1024 } else { self.step });
        for (to, from) in into.iter_mut().zip(self.to_server.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, Failure> {
        let count = from.len().min(self.room.unwrap_or(usize::MAX));
        self.from_server.extend_from_slice(&from[..count]);
        if let Some(room) = &mut self.room {
            *room -= count;
        }
        Ok(count)
    }
}

type Reply = (u32, Vec<u8>);

impl Bed {
    pub(super) fn new(domains: u16) -> Bed {
        let mut server = Server::new(Quotas::XEN);
        let dom0 = server.connect();
        let mut rings = std::collections::BTreeMap::new();
        for domid in 1..=domains {
            let home = format!("/local/domain/{domid}");
            server.view(dom0, 0, |v| v.mkdir(&Path::absolute(home.as_bytes())?)).unwrap();
            let perms = Perms::owned_by(domid, Access::None);
            server.view(dom0, 0, |v| v.set_perms(&Path::absolute(home.as_bytes())?, perms)).unwrap();
            server.introduce(dom0, domid, 100 + u64::from(domid), 1).unwrap();
            server.flush();
            let Some(Effect::Introduced { conn, again: false, .. }) = server.take_effect() else { panic!() };
            rings.insert(domid, (conn, TestRing::default()));
        }
        Bed { server, dom0, rings }
    }

    fn send(&mut self, domid: u16, kind: u32, tx_id: u32, payload: &[u8]) {
        let header = XsdSockmsg { r#type: kind, req_id: REQUEST_ID, tx_id, len: payload.len() as u32 };
        let ring = &mut self.rings.get_mut(&domid).unwrap().1;
        ring.to_server.extend(header.as_bytes());
        ring.to_server.extend(payload);
    }

    /// Runs a domain's ring until the ring rests; returns the messages that came.
    fn run(&mut self, domid: u16) -> Result<Vec<(XsdSockmsg, Vec<u8>)>, Failure> {
        let (conn, ring) = self.rings.get_mut(&domid).unwrap();
        while self.server.exchange(*conn, ring)?.again {}
        let mut bytes = &core::mem::take(&mut ring.from_server)[..];
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let header = XsdSockmsg::read_from_bytes(&bytes[..16]).unwrap();
            let end = 16 + header.len as usize;
            messages.push((header, bytes[16..end].to_vec()));
            bytes = &bytes[end..];
        }
        Ok(messages)
    }

    /// Sends one request and gives the reply; events that came, too, are dropped.
    fn ask(&mut self, domid: u16, kind: u32, tx_id: u32, payload: &[u8]) -> Reply {
        self.send(domid, kind, tx_id, payload);
        let messages = self.run(domid).unwrap();
        let reply = messages.into_iter().find(|(header, _)| header.r#type != wire::XS_WATCH_EVENT).unwrap();
        assert_eq!((reply.0.req_id, reply.0.tx_id), (REQUEST_ID, tx_id));
        (reply.0.r#type, reply.1)
    }

    pub(super) fn ok(&mut self, domid: u16, kind: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
        let (got, reply) = self.ask(domid, kind, tx_id, payload);
        assert_eq!(got, kind, "{:?}", String::from_utf8_lossy(&reply));
        reply
    }

    pub(super) fn err(&mut self, domid: u16, kind: u32, tx_id: u32, payload: &[u8]) -> String {
        let (got, reply) = self.ask(domid, kind, tx_id, payload);
        assert_eq!(got, wire::XS_ERROR, "{:?}", String::from_utf8_lossy(&reply));
        assert_eq!(reply.last(), Some(&0));
        String::from_utf8(reply[..reply.len() - 1].to_vec()).unwrap()
    }

    pub(super) fn events(&mut self, domid: u16) -> Vec<String> {
        let messages = self.run(domid).unwrap();
        let events = messages.into_iter().filter(|(header, _)| header.r#type == wire::XS_WATCH_EVENT);
        events.map(|(_, payload)| String::from_utf8(payload).unwrap().replace('\0', "|")).collect()
    }

    /// A request by dom0, with all rights.
    fn dom0(&mut self, kind: u32, payload: &[u8]) -> Result<(), XsError> {
        let (path, value) = match payload.iter().position(|&b| b == 0) {
            Some(nul) => (&payload[..nul], &payload[nul + 1..]),
            None => (payload, &[][..]),
        };
        let path = Path::absolute(path)?;
        let result = self.server.view(self.dom0, 0, |v| match kind {
            wire::XS_WRITE => v.write(&path, value),
            wire::XS_RM => v.rm(&path),
            wire::XS_MKDIR => v.mkdir(&path),
            _ => panic!(),
        });
        self.server.flush();
        self.settle();
        result
    }

    /// Does all work that was left.
    fn settle(&mut self) {
        while self.server.settle_some() {}
    }

    fn begin(&mut self, domid: u16) -> u32 {
        let id = self.ok(domid, wire::XS_TRANSACTION_START, 0, b"\0");
        std::str::from_utf8(&id[..id.len() - 1]).unwrap().parse().unwrap()
    }
}

#[test]
fn writes_reads_lists_removes() {
    let mut bed = Bed::new(1);
    assert_eq!(bed.ok(1, wire::XS_WRITE, 0, b"device/vbd/51712/state\x003"), b"OK\0");
    assert_eq!(bed.ok(1, wire::XS_READ, 0, b"device/vbd/51712/state\0"), b"3");
    assert_eq!(bed.ok(1, wire::XS_READ, 0, b"/local/domain/1/device\0"), b"");
    bed.ok(1, wire::XS_MKDIR, 0, b"device/vif\0");
    bed.ok(1, wire::XS_MKDIR, 0, b"device/vif\0");
    assert_eq!(bed.ok(1, wire::XS_DIRECTORY, 0, b"device\0"), b"vbd\0vif\0");
    assert_eq!(bed.ok(1, wire::XS_DIRECTORY, 0, b"device/vif\0"), b"");
    bed.ok(1, wire::XS_RM, 0, b"device\0");
    bed.ok(1, wire::XS_RM, 0, b"device\0");
    assert_eq!(bed.err(1, wire::XS_READ, 0, b"device/vbd\0"), "ENOENT");
    assert_eq!(bed.err(1, wire::XS_RM, 0, b"device/vbd/1\0"), "ENOENT");
    // Values are any bytes.
    bed.ok(1, wire::XS_WRITE, 0, b"data\0a\0b\xff\0");
    assert_eq!(bed.ok(1, wire::XS_READ, 0, b"data\0"), b"a\0b\xff\0");
}

#[test]
fn malformed_requests_are_einval() {
    let mut bed = Bed::new(1);
    let cases: &[(u32, &[u8])] = &[
        (wire::XS_READ, b""),
        (wire::XS_READ, b"\0"),
        (wire::XS_READ, b"a"),
        (wire::XS_READ, b"a\0b\0"),
        (wire::XS_READ, b"a//b\0"),
        (wire::XS_READ, b"@introduceDomain\0"),
        (wire::XS_WRITE, b"a"),
        (wire::XS_WRITE, b""),
        (wire::XS_WRITE, b"a.b\0x"),
        (wire::XS_RM, b"/\0"),
        (wire::XS_SET_PERMS, b"/local/domain/1\0"),
        (wire::XS_SET_PERMS, b"/local/domain/1\0x1\0"),
        (wire::XS_SET_PERMS, b"/local/domain/1\0n1"),
        (wire::XS_WATCH, b"a\0"),
        (wire::XS_WATCH, b"a\0t"),
        (wire::XS_WATCH, b"@\0t\0"),
        (wire::XS_TRANSACTION_END, b"X\0"),
        (wire::XS_TRANSACTION_END, b""),
        (wire::XS_GET_DOMAIN_PATH, b"x\0"),
        (wire::XS_GET_DOMAIN_PATH, b"65536\0"),
        (wire::XS_DIRECTORY_PART, b"a\0"),
    ];
    for (kind, payload) in cases {
        assert_eq!(bed.err(1, *kind, 0, payload), "EINVAL", "{kind} {payload:?}");
    }
    for kind in [20, 15, 16, 23, 0xffff, u32::MAX] {
        assert_eq!(bed.err(1, kind, 0, b"\0"), "ENOSYS", "{kind}");
    }
    assert_eq!(bed.err(1, wire::XS_READ, 5, b"a\0"), "ENOENT");
    assert_eq!(bed.err(1, wire::XS_TRANSACTION_START, 5, b"\0"), "EBUSY");
    assert_eq!(bed.err(1, wire::XS_TRANSACTION_END, 0, b"T\0"), "ENOENT");
}

#[test]
fn permissions_are_enforced_and_inherited() {
    let mut bed = Bed::new(2);
    bed.ok(1, wire::XS_WRITE, 0, b"secret\0x");
    assert_eq!(bed.err(2, wire::XS_READ, 0, b"/local/domain/1/secret\0"), "EACCES");
    assert_eq!(bed.err(2, wire::XS_WRITE, 0, b"/local/domain/1/new\0x"), "EACCES");
    assert_eq!(bed.err(2, wire::XS_RM, 0, b"/local/domain/1/secret\0"), "EACCES");
    assert_eq!(
        bed.err(2, wire::XS_READ, 0, b"/local/domain/1/none\0"),
        "EACCES",
        "not even that it is missing"
    );
    assert_eq!(bed.ok(1, wire::XS_GET_PERMS, 0, b"secret\0"), b"n1\0");
    bed.ok(1, wire::XS_SET_PERMS, 0, b"secret\0n1\0r2\0");
    assert_eq!(bed.ok(1, wire::XS_GET_PERMS, 0, b"secret\0"), b"n1\0r2\0");
    assert_eq!(bed.ok(2, wire::XS_READ, 0, b"/local/domain/1/secret\0"), b"x");
    assert_eq!(bed.err(2, wire::XS_WRITE, 0, b"/local/domain/1/secret\0y"), "EACCES");
    assert_eq!(bed.err(2, wire::XS_SET_PERMS, 0, b"/local/domain/1/secret\0b2\0"), "EACCES");
    assert_eq!(bed.err(1, wire::XS_SET_PERMS, 0, b"secret\0n2\0"), "EPERM");
    // Domain 2 makes a child below a node of domain 1 that lets domain 2 write. Domain 2 owns the child, and the child
    // inherits the other permissions.
    bed.ok(1, wire::XS_SET_PERMS, 0, b"secret\0n1\0b2\0");
    bed.ok(2, wire::XS_WRITE, 0, b"/local/domain/1/secret/below\0z");
    assert_eq!(bed.ok(2, wire::XS_GET_PERMS, 0, b"/local/domain/1/secret/below\0"), b"n2\0b2\0");
    assert_eq!(bed.err(1, wire::XS_SET_PERMS, 0, b"secret\0n1\0r2\0r3\0r4\0r5\0r6\0"), "ENOSPC");
}

#[test]
fn watches_fire_at_once_and_on_changes_below() {
    let mut bed = Bed::new(2);
    bed.send(1, wire::XS_WATCH, 0, b"device\0tok\0");
    let messages = bed.run(1).unwrap();
    assert_eq!(messages[0].0.r#type, wire::XS_WATCH, "the reply comes before the first event");
    assert_eq!(messages[1].1, b"device\0tok\0");
    assert_eq!((messages[1].0.req_id, messages[1].0.tx_id), (0, 0));
    assert_eq!(bed.err(1, wire::XS_WATCH, 0, b"device\0tok\0"), "EEXIST");
    bed.ok(1, wire::XS_WATCH, 0, b"/local/domain/1/device/vbd/1\0abs\0");
    bed.dom0(wire::XS_WRITE, b"/local/domain/1/device/vbd/1\0x").unwrap();
    assert_eq!(bed.events(1), ["device/vbd/1|tok|", "/local/domain/1/device/vbd/1|abs|"]);
    // A removal further up fires the watch with the watched path, if that path existed.
    bed.dom0(wire::XS_RM, b"/local/domain/1/device").unwrap();
    assert_eq!(bed.events(1), ["/local/domain/1/device/vbd/1|abs|", "device|tok|"]);
    bed.dom0(wire::XS_WRITE, b"/local/domain/1/device-not\0x").unwrap();
    assert!(bed.events(1).is_empty());
    bed.ok(1, wire::XS_UNWATCH, 0, b"device\0tok\0");
    assert_eq!(bed.err(1, wire::XS_UNWATCH, 0, b"device\0tok\0"), "ENOENT");
    bed.dom0(wire::XS_WRITE, b"/local/domain/1/device/a\0x").unwrap();
    assert!(bed.events(1).is_empty());
    bed.ok(1, wire::XS_RESET_WATCHES, 0, b"\0");
    assert_eq!(bed.server.figures().watches, 0);
    // A domain that may not read gets no event.
    bed.ok(2, wire::XS_WATCH, 0, b"/local/domain/1\0t\0");
    bed.events(2);
    bed.ok(1, wire::XS_WRITE, 0, b"x\0y");
    assert!(bed.events(2).is_empty());
    bed.ok(1, wire::XS_SET_PERMS, 0, b"x\0n1\0r2\0");
    assert_eq!(bed.events(2), ["/local/domain/1/x|t|"]);
    bed.ok(1, wire::XS_RM, 0, b"x\0");
    assert_eq!(bed.events(2), ["/local/domain/1/x|t|"]);
}

#[test]
fn equal_events_waiting_are_one() {
    let mut bed = Bed::new(1);
    bed.ok(1, wire::XS_WATCH, 0, b"n\0t\0");
    for _ in 0..5 {
        bed.dom0(wire::XS_WRITE, b"/local/domain/1/n\0x").unwrap();
    }
    assert_eq!(bed.events(1), ["n|t|"]);
}

#[test]
fn transactions_are_seen_only_when_committed() {
    let mut bed = Bed::new(1);
    bed.ok(1, wire::XS_WRITE, 0, b"d/old\x001");
    bed.ok(1, wire::XS_WATCH, 0, b"d\0t\0");
    let tx = bed.begin(1);
    bed.ok(1, wire::XS_WRITE, tx, b"d/new/deep\x002");
    bed.ok(1, wire::XS_RM, tx, b"d/old\0");
    assert_eq!(bed.ok(1, wire::XS_DIRECTORY, tx, b"d\0"), b"new\0");
    assert_eq!(bed.ok(1, wire::XS_READ, tx, b"d/new/deep\0"), b"2");
    assert_eq!(bed.ok(1, wire::XS_DIRECTORY, 0, b"d\0"), b"old\0");
    assert!(bed.events(1).is_empty());
    bed.send(1, wire::XS_TRANSACTION_END, tx, b"T\0");
    let messages = bed.run(1).unwrap();
    assert_eq!(messages[0].0.r#type, wire::XS_TRANSACTION_END);
    assert_eq!(messages.len(), 3);
    assert_eq!(bed.ok(1, wire::XS_DIRECTORY, 0, b"d\0"), b"new\0");
    assert_eq!(bed.err(1, wire::XS_READ, tx, b"d\0"), "ENOENT", "its id is no longer valid");
    let tx = bed.begin(1);
    bed.ok(1, wire::XS_RM, tx, b"d\0");
    bed.ok(1, wire::XS_TRANSACTION_END, tx, b"F\0");
    assert_eq!(bed.ok(1, wire::XS_READ, 0, b"d/new/deep\0"), b"2");
}

#[test]
fn transactions_conflict_only_over_what_they_touch() {
    // A step in the transaction, a step by dom0 meanwhile, and whether the two conflict.
    type Step = (u32, &'static [u8]);
    let base = b"/local/domain/1/";
    let cases: &[(Step, Step, bool)] = &[
        ((wire::XS_READ, b"a\0"), (wire::XS_WRITE, b"a\0new"), true),
        ((wire::XS_READ, b"a\0"), (wire::XS_WRITE, b"b\0new"), false),
        ((wire::XS_READ, b"a\0"), (wire::XS_RM, b"a"), true),
        ((wire::XS_READ, b"a\0"), (wire::XS_WRITE, b"a/child\0x"), false),
        ((wire::XS_DIRECTORY, b"a\0"), (wire::XS_WRITE, b"a/child\0x"), true),
        ((wire::XS_DIRECTORY, b"a\0"), (wire::XS_WRITE, b"a/x/child\0x"), false),
        ((wire::XS_WRITE, b"a/mine\0x"), (wire::XS_WRITE, b"a/yours\0x"), false),
        ((wire::XS_WRITE, b"a/mine\0x"), (wire::XS_WRITE, b"a/mine\0y"), true),
        ((wire::XS_WRITE, b"a/mine\0x"), (wire::XS_RM, b"a"), true),
        // A removal takes along what is below the node at the commit.
        ((wire::XS_RM, b"a\0"), (wire::XS_WRITE, b"a/x/late\0x"), false),
        ((wire::XS_RM, b"a\0"), (wire::XS_WRITE, b"a/x\0late"), false),
        ((wire::XS_RM, b"a\0"), (wire::XS_WRITE, b"a\0late"), true),
        ((wire::XS_RM, b"b\0"), (wire::XS_WRITE, b"b/late\0x"), true),
        ((wire::XS_RM, b"a\0"), (wire::XS_WRITE, b"b/x\0late"), false),
        ((wire::XS_WRITE, b"a\0x"), (wire::XS_WRITE, b"a\0y"), true),
    ];
    for ((kind, payload), (other, what), conflict) in cases {
        let mut bed = Bed::new(1);
        bed.ok(1, wire::XS_WRITE, 0, b"a/x\x001");
        bed.ok(1, wire::XS_WRITE, 0, b"b\x001");
        let tx = bed.begin(1);
        bed.ok(1, *kind, tx, payload);
        bed.dom0(*other, &[&base[..], what].concat()).unwrap();
        if *conflict {
            assert_eq!(bed.err(1, wire::XS_TRANSACTION_END, tx, b"T\0"), "EAGAIN", "{payload:?} {what:?}");
        } else {
            bed.ok(1, wire::XS_TRANSACTION_END, tx, b"T\0");
        }
    }
}

#[test]
fn reads_within_a_transaction_repeat() {
    let mut bed = Bed::new(1);
    bed.ok(1, wire::XS_WRITE, 0, b"a\0old");
    let tx = bed.begin(1);
    assert_eq!(bed.ok(1, wire::XS_READ, tx, b"a\0"), b"old");
    bed.dom0(wire::XS_WRITE, b"/local/domain/1/a\0new").unwrap();
    assert_eq!(bed.ok(1, wire::XS_READ, tx, b"a\0"), b"old");
    assert_eq!(bed.err(1, wire::XS_TRANSACTION_END, tx, b"T\0"), "EAGAIN");
}

impl Server {
    /// Counts everything again and compares the sums with the accounts. Checks also that each node's parent is there
    /// for everybody that sees the node.
    fn check_accounts(&self) {
        let mut accounts: std::collections::BTreeMap<u16, super::quota::Account> = Default::default();
        for (path, node) in self.store.iter() {
            let account = accounts.entry(node.perms.owner()).or_default();
            account.nodes += 1;
            account.node_bytes += node.cost(path);
            let is_seen = |path: &Path| self.store.get(path).is_some();
            assert!(!is_seen(path) || path.parent().is_none_or(|parent| is_seen(&parent)), "{path}");
        }
        // Transactions that are over count until they are freed.
        let left = self
            .connections
            .values()
            .flat_map(|connection| &connection.left)
            .chain(&self.left)
            .chain(&self.deferred);
        for over in left {
            if let super::deferred::Deferred::Free(transactions) = over {
                for tx in transactions {
                    accounts.entry(tx.domid).or_default().transaction_bytes += tx.bytes;
                }
            }
        }
        if let Some((commit, ..)) = &self.committing {
            accounts.entry(commit.transaction.domid).or_default().transaction_bytes +=
                commit.transaction.bytes;
        }
        for connection in self.connections.values() {
            let account = accounts.entry(connection.domid).or_default();
            account.watch_bytes += connection.watches.iter().map(|watch| watch.cost()).sum::<usize>();
            account.transaction_bytes += connection.transactions.values().map(|tx| tx.bytes).sum::<usize>();
        }
        accounts.retain(|_, account| *account != Default::default());
        assert_eq!(self.store.accounts().collect::<Vec<_>>(), accounts.into_iter().collect::<Vec<_>>());
    }
}
