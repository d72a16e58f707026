//! xenstored against guests that write any bytes to their rings.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use dom0::xenstore::{ConnId, Effect, Exchange, Failure, Nodes, Perms, Quotas, Ring, Xenstore};
use ring_abi::io::xs_wire::{XENSTORE_PAYLOAD_MAX, XS_ERROR, XS_WATCH_EVENT, XsdSockmsg};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::Input;

const GUESTS: u16 = 3;

/// A guest's connection and the two ways of its ring.
struct Guest {
    conn: ConnId,
    to_server: VecDeque<u8>,
    from_server: Vec<u8>,
    /// Bytes that fit in the ring to the guest until it reads again.
    room: usize,
    /// The requests sent whole and not yet answered.
    asked: VecDeque<u32>,
    /// Nothing but whole messages was sent.
    tidy: bool,
}

impl Ring for Guest {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Failure> {
        let count = into.len().min(self.to_server.len());
        for (to, from) in into.iter_mut().zip(self.to_server.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, Failure> {
        let count = from.len().min(self.room);
        self.from_server.extend_from_slice(&from[..count]);
        self.room -= count;
        Ok(count)
    }
}

impl Guest {
    fn new(conn: ConnId) -> Self {
        Self {
            conn,
            to_server: VecDeque::new(),
            from_server: Vec::new(),
            room: 1024,
            asked: VecDeque::new(),
            tidy: true,
        }
    }

    /// Reads what the server wrote: whole messages, and an answer to each request in its turn.
    fn check(&mut self) {
        while let Ok((header, rest)) = XsdSockmsg::read_from_prefix(&self.from_server) {
            let length = header.len as usize;
            assert!(length <= XENSTORE_PAYLOAD_MAX, "a message longer than one can be");
            if rest.len() < length {
                return;
            }
            if header.r#type == XS_WATCH_EVENT {
                assert_eq!((header.req_id, header.tx_id), (0, 0));
                assert_eq!(rest[..length].iter().filter(|byte| **byte == 0).count(), 2, "path and token");
            } else if self.tidy {
                assert_eq!(Some(header.req_id), self.asked.pop_front(), "answers come in the order asked");
            }
            if header.r#type == XS_ERROR {
                assert_eq!(rest[..length].last(), Some(&0));
            }
            self.from_server.drain(..size_of::<XsdSockmsg>() + length);
        }
    }
}

/// A path or part of one: mostly one of few, so that requests meet.
fn path(input: &Input) -> Vec<u8> {
    const PATHS: [&str; 14] = [
        "/local/domain/1",
        "/local/domain/2/data",
        "/local/domain/3/data/a",
        "data",
        "data/a",
        "data/a/b",
        "/shared",
        "/shared/x",
        "/",
        "@releaseDomain",
        "@introduceDomain",
        "/local/domain/1/secret",
        "",
        "data/",
    ];
    match PATHS.get(input.below(PATHS.len() + 2)) {
        Some(known) => known.as_bytes().to_vec(),
        None => input.take(input.below(40)),
    }
}

fn message(input: &Input, req_id: u32) -> (XsdSockmsg, Vec<u8>) {
    let mut payload = path(input);
    let shape = input.u8();
    if shape & 1 == 0 {
        payload.push(0);
    }
    if shape & 2 != 0 {
        payload.extend(input.take(input.below(48)));
    }
    if shape & 4 != 0 {
        payload.extend_from_slice(&[b'x'; 256][..input.below(256)]);
    }
    if shape & 8 != 0 {
        payload.push(0);
    }
    if shape & 16 != 0 {
        payload.extend(b"T\0");
    }
    let header = XsdSockmsg {
        r#type: u32::from(input.u8() % 26),
        req_id,
        tx_id: u32::from(input.u8() % 4),
        len: payload.len() as u32,
    };
    (header, payload)
}

/// Requests whole and in pieces, garbage, rings that are not read, domains that come and go: limits are kept, answers
/// are well formed and in order, and at the end nothing of the domains is left.
pub(crate) fn run(data: &[u8]) {
    let input = Input::new(data);
    let store = Xenstore::new(Quotas::XEN);
    let dom0 = store.client();
    dom0.mkdir("/shared").expect("made");
    dom0.write("/local/domain/1/secret", "s").expect("written");
    let before = store.figures().nodes;
    let mut guests: BTreeMap<u16, Guest> = BTreeMap::new();
    let mut req_id = 0;
    while !input.is_empty() {
        let domid = 1 + (input.u8() as u16 % GUESTS);
        let Some(guest) = guests.get_mut(&domid) else {
            let home = format!("/local/domain/{domid}/data");
            dom0.write(&home, "").expect("written");
            dom0.set_perms(&home, Perms::shared_with(domid, 0)).expect("owned");
            dom0.introduce(domid, 1, 1).expect("introduced");
            guests.insert(domid, Guest::new(introduced(&store)));
            continue;
        };
        match input.below(16) {
            0..=9 => {
                req_id += 1;
                let (header, payload) = message(&input, req_id);
                guest.to_server.extend(header.as_bytes());
                guest.to_server.extend(&payload);
                guest.asked.push_back(req_id);
            }
            10 => {
                guest.tidy = false;
                guest.to_server.extend(input.take(input.below(64)));
            }
            11 => guest.room = 1024,
            12 => store.domain_shut_down(domid),
            13 => {
                store.domain_destroyed(domid);
                guests.remove(&domid);
                while let Some(Effect::Introduced { .. }) = effect(&store) {}
                let _ = dom0.rm(&format!("/local/domain/{domid}/data"));
                continue;
            }
            14 => {
                store.reconnect(guest.conn);
                *guest = Guest::new(guest.conn);
            }
            _ => {}
        }
        for _ in 0..4 {
            match store.exchange(guest.conn, guest) {
                Ok(Exchange { again: true, .. }) => {}
                Ok(_) => break,
                Err(_) => break,
            }
        }
        guest.check();
        limits(&store);
    }
    for domid in guests.into_keys() {
        store.domain_destroyed(domid);
        let _ = dom0.rm(&format!("/local/domain/{domid}/data"));
    }
    let _ = dom0.rm("/local/domain/2");
    let _ = dom0.rm("/local/domain/3");
    // What was left for later.
    pvrt::executor::block_on_test(store.settled());
    let after = store.figures();
    assert_eq!((after.nodes, after.watches, after.transactions), (before, 0, 0), "left behind");
}

/// What an event takes at the least.
const MIN_EVENT_BYTES: usize = 128;

fn limits(store: &Xenstore) {
    let quotas = Quotas::XEN;
    for domain in store.figures().domains.iter().filter(|domain| domain.domid != 0) {
        assert!(domain.nodes <= quotas.nodes && domain.watches <= quotas.watches);
        assert!(domain.transactions <= quotas.transactions && domain.bytes <= quotas.memory_bytes);
        assert!(domain.queued <= quotas.outstanding + 16 + quotas.event_bytes / MIN_EVENT_BYTES);
    }
}

fn effect(store: &Xenstore) -> Option<Effect> {
    match pin!(store.next_effect()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(effect) => Some(effect),
        Poll::Pending => None,
    }
}

/// The connection of the domain that was just introduced.
fn introduced(store: &Xenstore) -> ConnId {
    loop {
        if let Effect::Introduced { conn, .. } = effect(store).expect("an effect") {
            return conn;
        }
    }
}
