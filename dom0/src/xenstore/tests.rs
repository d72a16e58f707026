//! The server as its clients see it.

mod model;

use std::collections::VecDeque;

use ring_abi::io::xs_wire::{self as wire, XsdSockmsg};
use zerocopy::{FromBytes, IntoBytes};

use super::*;

/// A server with domains 1.. introduced, spoken to in whole messages.
struct Bed {
    server: Server,
    dom0: ConnId,
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
    fn new(domains: u16) -> Bed {
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
        let header = XsdSockmsg { r#type: kind, req_id: 77, tx_id, len: payload.len() as u32 };
        let ring = &mut self.rings.get_mut(&domid).unwrap().1;
        ring.to_server.extend(header.as_bytes());
        ring.to_server.extend(payload);
    }

    /// Runs a domain's ring until it rests; answers the messages that came.
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

    /// One request in, its reply out; events that came too are dropped.
    fn ask(&mut self, domid: u16, kind: u32, tx_id: u32, payload: &[u8]) -> Reply {
        self.send(domid, kind, tx_id, payload);
        let messages = self.run(domid).unwrap();
        let reply = messages.into_iter().find(|(header, _)| header.r#type != wire::XS_WATCH_EVENT).unwrap();
        assert_eq!((reply.0.req_id, reply.0.tx_id), (77, tx_id));
        (reply.0.r#type, reply.1)
    }

    fn ok(&mut self, domid: u16, kind: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
        let (got, reply) = self.ask(domid, kind, tx_id, payload);
        assert_eq!(got, kind, "{:?}", String::from_utf8_lossy(&reply));
        reply
    }

    fn err(&mut self, domid: u16, kind: u32, tx_id: u32, payload: &[u8]) -> String {
        let (got, reply) = self.ask(domid, kind, tx_id, payload);
        assert_eq!(got, wire::XS_ERROR, "{:?}", String::from_utf8_lossy(&reply));
        assert_eq!(reply.last(), Some(&0));
        String::from_utf8(reply[..reply.len() - 1].to_vec()).unwrap()
    }

    fn events(&mut self, domid: u16) -> Vec<String> {
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
        result
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
    // A child made by 2 below 1's node that lets it write: 2 owns it, the rest is inherited.
    bed.ok(1, wire::XS_SET_PERMS, 0, b"secret\0n1\0b2\0");
    bed.ok(2, wire::XS_WRITE, 0, b"/local/domain/1/secret/below\0z");
    assert_eq!(bed.ok(2, wire::XS_GET_PERMS, 0, b"/local/domain/1/secret/below\0"), b"n2\0b2\0");
    assert_eq!(bed.err(1, wire::XS_SET_PERMS, 0, b"secret\0n1\0r2\0r3\0r4\0r5\0r6\0"), "ENOSPC");
}

#[test]
fn what_is_dom0s_is_refused_to_others() {
    let mut bed = Bed::new(1);
    for (kind, payload) in [
        (wire::XS_INTRODUCE, &b"5\x00100\x001\0"[..]),
        (wire::XS_RELEASE, b"1\0"),
        (wire::XS_RESUME, b"1\0"),
        (wire::XS_SET_TARGET, b"1\x001\0"),
        (wire::XS_CONTROL, b"help\0"),
        (wire::XS_SET_PERMS, b"@releaseDomain\0n0\0r1\0"),
        (wire::XS_MKDIR, b"/x\0"),
    ] {
        assert_eq!(bed.err(1, kind, 0, payload), "EACCES", "{kind}");
    }
    assert_eq!(bed.ok(1, wire::XS_GET_DOMAIN_PATH, 0, b"0042\0"), b"/local/domain/42\0");
    assert_eq!(bed.ok(1, wire::XS_IS_DOMAIN_INTRODUCED, 0, b"1\0"), b"T\0");
    assert_eq!(bed.ok(1, wire::XS_IS_DOMAIN_INTRODUCED, 0, b"0\0"), b"T\0");
    assert_eq!(bed.ok(1, wire::XS_IS_DOMAIN_INTRODUCED, 0, b"2\0"), b"F\0");
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
    // Removal from above is told at the watched path, if it was there.
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
    // Who may not read hears nothing.
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
fn special_watches() {
    let mut bed = Bed::new(1);
    let (server, dom0) = (&mut bed.server, bed.dom0);
    server.watch(dom0, b"@introduceDomain", b"in").unwrap();
    server.watch(dom0, b"@releaseDomain", b"out").unwrap();
    server.flush();
    let tokens = |server: &mut Server| -> Vec<String> {
        std::iter::from_fn(|| server.take_event(dom0)).map(|event| event.path + " " + &event.token).collect()
    };
    assert_eq!(tokens(server), ["@introduceDomain in", "@releaseDomain out"]);
    server.introduce(dom0, 9, 1, 1).unwrap();
    server.flush();
    assert_eq!(tokens(server), ["@introduceDomain in"]);
    server.domain_shut_down(9);
    server.domain_shut_down(9);
    assert_eq!(tokens(server), ["@releaseDomain out"]);
    server.resume(dom0, 9).unwrap();
    server.domain_shut_down(9);
    assert_eq!(tokens(server), ["@releaseDomain out"]);
    server.domain_destroyed(9);
    assert_eq!(tokens(server), ["@releaseDomain out"]);
    assert!(!server.is_introduced(9));
    // A guest may set the watch; it hears only of what dom0 opens to it.
    bed.ok(1, wire::XS_WATCH, 0, b"@releaseDomain\0t\0");
    bed.server.domain_destroyed(8);
    assert!(bed.events(1).is_empty());
    *bed.server.special_perms(bed.dom0, &Path::special(RELEASE_DOMAIN)).unwrap() = Perms::shared_with(0, 1);
    bed.server.domain_destroyed(8);
    assert_eq!(bed.events(1), ["@releaseDomain|t|"]);
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
    // (in the transaction, meanwhile by dom0, does it conflict?)
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
        ((wire::XS_RM, b"a\0"), (wire::XS_WRITE, b"a/x/late\0x"), true),
        ((wire::XS_RM, b"a\0"), (wire::XS_WRITE, b"a/x\0late"), true),
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

#[test]
fn quotas_hold_to_the_last_one() {
    let mut bed = Bed::new(2);
    // One node, its home, is domain 1's already.
    for at in 1..Quotas::XEN.nodes {
        bed.ok(1, wire::XS_MKDIR, 0, format!("n{at}\0").as_bytes());
    }
    assert_eq!(bed.err(1, wire::XS_MKDIR, 0, b"more\0"), "ENOSPC");
    bed.ok(1, wire::XS_WRITE, 0, b"n1\0still");
    bed.ok(2, wire::XS_MKDIR, 0, b"more\0");
    bed.dom0(wire::XS_MKDIR, b"/local/domain/1/dom0s").unwrap();
    let tx = bed.begin(1);
    bed.ok(1, wire::XS_RM, tx, b"n1\0");
    bed.ok(1, wire::XS_RM, tx, b"n2\0");
    bed.ok(1, wire::XS_MKDIR, tx, b"again\0");
    assert_eq!(bed.err(1, wire::XS_MKDIR, tx, b"again/more\0"), "ENOSPC", "dom0's counts as well");
    bed.ok(1, wire::XS_TRANSACTION_END, tx, b"T\0");

    assert_eq!(bed.err(2, wire::XS_WRITE, 0, &[&b"v\0"[..], &[0; 2049]].concat()), "ENOSPC");
    bed.ok(2, wire::XS_WRITE, 0, &[&b"v\0"[..], &[0; 2048]].concat());
    for at in 0..Quotas::XEN.watches {
        bed.ok(2, wire::XS_WATCH, 0, format!("w\0{at}\0").as_bytes());
    }
    assert_eq!(bed.err(2, wire::XS_WATCH, 0, b"w\0more\0"), "E2BIG");
    for _ in 0..Quotas::XEN.transactions {
        bed.begin(2);
    }
    assert_eq!(bed.err(2, wire::XS_TRANSACTION_START, 0, b"\0"), "ENOSPC");
    bed.ok(2, wire::XS_RESET_WATCHES, 0, b"\0");
    let tx = bed.begin(2);
    for at in 0..Quotas::XEN.transaction_nodes - 1 {
        // Each miss counts once, and the node above them once.
        assert_eq!(bed.err(2, wire::XS_READ, tx, format!("m{at}\0").as_bytes()), "ENOENT");
    }
    assert_eq!(bed.err(2, wire::XS_READ, tx, b"one-more\0"), "ENOSPC");
}

#[test]
fn memory_quota_counts_transactions() {
    let mut bed = Bed::new(1);
    let big = [0; 2048];
    let mut refused = false;
    for _ in 0..Quotas::XEN.transactions {
        let tx = bed.begin(1);
        for at in 0..200 {
            let payload = [format!("n{at}\0").as_bytes(), &big].concat();
            let (kind, reply) = bed.ask(1, wire::XS_WRITE, tx, &payload);
            if kind == wire::XS_ERROR {
                assert_eq!(reply, b"ENOMEM\0");
                refused = true;
            }
        }
    }
    assert!(refused);
    assert!(bed.server.figures().bytes < 2 * Quotas::XEN.memory_bytes);
    bed.ok(1, wire::XS_RESET_WATCHES, 0, b"\0");
    assert!(bed.server.figures().bytes < 4096);
}

#[test]
fn long_directories_come_in_parts() {
    let mut bed = Bed::new(1);
    let names: Vec<String> = (0..300).map(|at| format!("a-rather-long-name-{at:04}")).collect();
    for name in &names {
        bed.ok(1, wire::XS_MKDIR, 0, format!("dir/{name}\0").as_bytes());
    }
    assert_eq!(bed.err(1, wire::XS_DIRECTORY, 0, b"dir\0"), "E2BIG");
    let (mut list, mut generation) = (Vec::new(), None);
    loop {
        let part = bed.ok(1, wire::XS_DIRECTORY_PART, 0, format!("dir\0{}\0", list.len()).as_bytes());
        assert!(part.len() <= 4096);
        let nul = part.iter().position(|&b| b == 0).unwrap();
        assert_eq!(*generation.get_or_insert(part[..nul].to_vec()), part[..nul]);
        list.extend_from_slice(&part[nul + 1..]);
        if list.len() <= 1 || list[list.len() - 2] == 0 {
            break;
        }
    }
    list.pop();
    let got: Vec<_> = list.split(|&b| b == 0).filter(|n| !n.is_empty()).map(|n| n.to_vec()).collect();
    assert_eq!(got, names.iter().map(|n| n.clone().into_bytes()).collect::<Vec<_>>());
    let past = bed.ok(1, wire::XS_DIRECTORY_PART, 0, b"dir\x0099999\0");
    assert_eq!(past[past.len() - 2..], [0, 0]);
    bed.ok(1, wire::XS_MKDIR, 0, b"dir/new\0");
    let part = bed.ok(1, wire::XS_DIRECTORY_PART, 0, b"dir\x000\0");
    assert_ne!(part.split(|&b| b == 0).next().unwrap(), generation.unwrap(), "the list has changed");
}

#[test]
fn targets_and_death() {
    let mut bed = Bed::new(2);
    bed.ok(1, wire::XS_WRITE, 0, b"x\0y");
    bed.server.set_target(bed.dom0, 2, 1).unwrap();
    assert_eq!(bed.ok(2, wire::XS_READ, 0, b"/local/domain/1/x\0"), b"y");
    assert_eq!(bed.server.set_target(bed.dom0, 2, 7), Err(XsError::NoEnt));
    let before = Bed::new(2).server.figures();
    bed.ok(1, wire::XS_WATCH, 0, b"x\0t\0");
    bed.begin(1);
    bed.server.domain_destroyed(1);
    assert_eq!(bed.server.take_effect(), Some(Effect::Released { conn: bed.rings[&1].0, domid: 1 }));
    assert_eq!(bed.run(1), Err(Failure::Gone));
    assert_eq!(bed.err(2, wire::XS_READ, 0, b"/local/domain/1/x\0"), "EACCES");
    let after = bed.server.figures();
    assert_eq!((after.nodes, after.watches, after.transactions), (before.nodes - 1, 0, 0));
    assert!(after.domains.iter().all(|figures| figures.domid != 1));
}

#[test]
fn introducing_again_starts_afresh() {
    let mut bed = Bed::new(1);
    bed.ok(1, wire::XS_WATCH, 0, b"x\0t\0");
    bed.ok(1, wire::XS_WRITE, 0, b"x\0kept");
    bed.rings.get_mut(&1).unwrap().1.to_server.extend([0xff; 16]);
    assert_eq!(bed.run(1), Err(Failure::PayloadTooLong(u32::MAX)));
    assert_eq!(bed.run(1), Err(Failure::PayloadTooLong(u32::MAX)));
    bed.server.introduce(bed.dom0, 1, 5, 6).unwrap();
    let conn = bed.rings[&1].0;
    let effect = Effect::Introduced { conn, domid: 1, mfn: 5, port: 6, again: true };
    assert_eq!(bed.server.take_effect(), Some(effect));
    assert_eq!(bed.ok(1, wire::XS_READ, 0, b"x\0"), b"kept");
    assert_eq!(bed.server.figures().watches, 0);
    for (domid, port) in [(0, 1), (0x7ff0, 1), (0xffff, 1), (3, 0)] {
        assert_eq!(bed.server.introduce(bed.dom0, domid, 5, port), Err(XsError::Inval));
    }
}

#[test]
fn a_client_that_does_not_fetch_is_held_up_then_ended() {
    let mut bed = Bed::new(1);
    bed.rings.get_mut(&1).unwrap().1.room = Some(0);
    for _ in 0..100 {
        bed.send(1, wire::XS_READ, 0, b"x\0");
    }
    bed.run(1).unwrap();
    let queued = bed.server.figures().domains.iter().find(|f| f.domid == 1).unwrap().queued;
    assert!(queued <= Quotas::XEN.outstanding + 1, "{queued}");
    bed.rings.get_mut(&1).unwrap().1.room = None;
    assert_eq!(bed.run(1).unwrap().len(), 100);

    bed.ok(1, wire::XS_WATCH, 0, b"x\0t\0");
    for at in 0..=Quotas::XEN.events {
        bed.dom0(wire::XS_WRITE, format!("/local/domain/1/x/{at}\0").as_bytes()).unwrap();
    }
    assert_eq!(bed.run(1), Err(Failure::EventsNotFetched));
    assert_eq!(bed.server.figures().watches, 0);
}

#[test]
fn a_busy_ring_gives_way() {
    let mut bed = Bed::new(1);
    for _ in 0..40 {
        bed.send(1, wire::XS_READ, 0, b"x\0");
    }
    let (conn, ring) = bed.rings.get_mut(&1).unwrap();
    ring.step = 7;
    let mut turns = 1;
    while bed.server.exchange(*conn, ring).unwrap().again {
        turns += 1;
    }
    assert!(turns >= 3, "{turns}");
}

#[test]
fn clients_within_dom0() {
    let store = Xenstore::new(Quotas::XEN);
    let (one, two) = (store.client(), store.client());
    one.write("/a/b", "5").unwrap();
    assert_eq!(two.read_as::<u32>("/a/b"), Ok(5));
    assert_eq!(two.read_as::<u32>("/a"), Err(XsError::Inval));
    assert_eq!(two.directory("/").unwrap(), ["a"]);
    two.watch("/a", "t").unwrap();
    let event = |path: &str| Some(WatchEvent { path: path.into(), token: "t".into() });
    assert_eq!(two.try_event(), event("/a"));
    {
        let discarded = one.transaction().unwrap();
        discarded.rm("/a").unwrap();
        assert!(!discarded.exists("/a/b"));
    }
    assert!(one.exists("/a/b"));
    let mut tries = 0;
    one.atomically(|tx| {
        tries += 1;
        let value: u32 = tx.read_as("/a/b")?;
        if tries == 1 {
            two.write("/a/b", "7")?;
        }
        tx.write("/a/b", (value + 1).to_string())
    })
    .unwrap();
    assert_eq!((tries, one.read_str("/a/b").unwrap().as_str()), (2, "8"));
    assert_eq!(two.try_event(), event("/a/b"));
    assert_eq!(two.try_event(), None);
    drop(two);
    let figures = store.figures();
    assert_eq!((figures.watches, figures.connections, figures.nodes), (0, 1, 3));
    assert_eq!(figures.transactions, 0);
    one.rm("/a").unwrap();
    assert_eq!(one.read("/a"), Err(XsError::NoEnt));
}

#[test]
fn an_event_wakes_its_waiter_and_an_effect_its_own() {
    use core::task::{Context, Poll, Waker};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Count(AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(count.clone());
    let mut context = Context::from_waker(&waker);
    let store = Xenstore::new(Quotas::XEN);
    let client = store.client();
    assert_eq!(client.poll_event(&mut context), Poll::Pending);
    client.watch("/x", "t").unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(client.poll_event(&mut context).is_ready());
    let mut effect = core::pin::pin!(store.next_effect());
    assert!(effect.as_mut().poll(&mut context).is_pending());
    client.introduce(3, 1, 1).unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
    let Poll::Ready(Effect::Introduced { conn, .. }) = effect.as_mut().poll(&mut context) else { panic!() };
    let mut output = core::pin::pin!(store.output_ready(conn));
    assert!(output.as_mut().poll(&mut context).is_pending());
    client.release(3).unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 3);
    assert!(output.as_mut().poll(&mut context).is_ready());
}

#[test]
fn deep_paths_do_not_recurse() {
    let mut bed = Bed::new(1);
    let deep = format!("{}\0", "a/".repeat(wire::XENSTORE_REL_PATH_MAX / 2 - 1) + "a");
    // More nodes than one domain may have.
    assert_eq!(bed.err(1, wire::XS_MKDIR, 0, deep.as_bytes()), "ENOSPC");
    let deep = "/a".repeat(wire::XENSTORE_ABS_PATH_MAX / 2);
    bed.dom0(wire::XS_MKDIR, deep.as_bytes()).unwrap();
    assert_eq!(bed.server.figures().nodes, 1 + 3 + 1536);
    bed.dom0(wire::XS_RM, b"/a").unwrap();
    assert_eq!(bed.server.figures().nodes, 4);
}

#[test]
fn a_page_with_two_rings() {
    let page = ring_abi::shared::leaked_pages(1);
    let mut guest = wire::client(page).unwrap();
    let mut ring = wire::server(page).unwrap();
    let mut bed = Bed::new(1);
    let conn = bed.rings[&1].0;
    let value = [b'v'; 2000];
    let mut sent = Vec::new();
    for (kind, payload) in
        [(wire::XS_WRITE, [&b"x\0"[..], &value].concat()), (wire::XS_READ, b"x\0".to_vec())]
    {
        let header = XsdSockmsg { r#type: kind, req_id: 3, tx_id: 0, len: payload.len() as u32 };
        sent.extend_from_slice(header.as_bytes());
        sent.extend(payload);
    }
    let (mut at, mut got) = (0, Vec::new());
    for _ in 0..10 {
        at += guest.write(&sent[at..]).unwrap();
        assert!(!bed.server.exchange(conn, &mut ring).unwrap().again);
        let mut piece = [0; 1024];
        let count = guest.read(&mut piece).unwrap();
        got.extend_from_slice(&piece[..count]);
    }
    assert_eq!(got.len(), 16 + 3 + 16 + 2000);
    assert!(got.ends_with(&value));
    page.store_u32(wire::REQ.prod, u32::MAX);
    assert_eq!(bed.server.exchange(conn, &mut ring), Err(Failure::RingIndex));
    assert_eq!(Failure::RingIndex.ring_error(), wire::XENSTORE_ERROR_RINGIDX);
}
