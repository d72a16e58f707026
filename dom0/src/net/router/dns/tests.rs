//! Questions of guests, and answers of servers, right and forged.

use super::*;
use alloc::borrow::ToOwned;
use proptest::prelude::*;

struct Guests;

impl Names for Guests {
    fn address(&self, name: &str) -> Option<Ipv4Addr> {
        (name == "web").then_some(Ipv4Addr::new(10, 88, 0, 10))
    }
    fn name(&self, address: Ipv4Addr) -> Option<String> {
        (address == Ipv4Addr::new(10, 88, 0, 10)).then(|| "web".to_owned())
    }
    fn is_inside(&self, address: Ipv4Addr) -> bool {
        address.octets()[..3] == [10, 88, 0]
    }
}

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const SECOND: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

fn asker(port: u16) -> Asker {
    Asker { port: PortId::testing(port), address: Ipv4Addr::new(10, 88, 0, 20), udp_port: 5000 }
}

fn forwarder() -> Forwarder {
    let mut forwarder = Forwarder::new("internal", Random::new(b"seed"));
    forwarder.set_servers(alloc::vec![FIRST, SECOND]);
    forwarder
}

fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for half in [id, 0x0100, 1, 0, 0, 0] {
        bytes.extend(half.to_be_bytes());
    }
    bytes.extend(if name.is_empty() { alloc::vec![0] } else { encode(name) });
    bytes.extend(kind.to_be_bytes());
    bytes.extend(INTERNET.to_be_bytes());
    bytes
}

/// Code and records of the forwarder's own answer to a question.
fn own(name: &str, kind: u16) -> Option<(u16, Vec<u8>)> {
    let asked = query(0xabcd, name, kind);
    match forwarder().query(0, asker(1), &asked, &Guests) {
        Action::Answer(bytes) => {
            assert_eq!(bytes[..2], [0xab, 0xcd]);
            assert_eq!(bytes[HEADER..asked.len()], asked[HEADER..], "the question stands in the answer");
            assert_eq!(bytes[2] & 0x81, 0x81, "an answer, and recursion was asked for");
            Some((u16::from(bytes[3] & 15), bytes[asked.len()..].to_vec()))
        }
        _ => None,
    }
}

#[test]
fn an_answer_that_is_too_long_says_so() {
    let mut forwarder = forwarder();
    let asked = query(7, "example.org", A);
    let Action::Ask(server, sent) = forwarder.query(0, asker(1), &asked, &Guests) else { panic!("asked") };
    let mut answer = sent;
    answer[2] |= 0x80;
    answer[6..8].copy_from_slice(&[0, 90]);
    answer.resize(MAX_MESSAGE + 1, 7);
    let (_, told) = forwarder.answer(0, server, &answer).expect("its answer");
    assert_eq!((told.len(), told[2] & TRUNCATED), (asked.len(), TRUNCATED));
    assert_eq!((&told[..2], &told[6..HEADER]), (&asked[..2], &[0; 6][..]), "no records");
    assert_eq!(told[HEADER..], asked[HEADER..]);
}

#[test]
fn guests_know_each_other_by_name() {
    let record = |data: &[u8]| {
        let mut bytes = alloc::vec![0xc0, 12, 0, if data.len() == 4 { 1 } else { 12 }, 0, 1, 0, 0, 0, 10, 0];
        bytes.push(data.len() as u8);
        bytes.extend(data);
        bytes
    };
    for name in ["web", "WEB", "web.internal", "Web.Internal"] {
        assert_eq!(own(name, A), Some((0, record(&[10, 88, 0, 10]))), "{name}");
        // The name exists, without an address of that kind.
        assert_eq!(own(name, 28), Some((0, Vec::new())), "{name}");
    }
    assert_eq!(own("web", ANY).map(|(code, record)| (code, record.len())), Some((0, 16)));
    for name in ["other", "other.internal", "x.web.internal"] {
        assert_eq!(own(name, A), Some((3, Vec::new())), "{name}");
    }
    assert_eq!(own("10.0.88.10.in-addr.arpa", PTR), Some((0, record(b"\x03web\x08internal\0"))));
    assert_eq!(own("11.0.88.10.in-addr.arpa", PTR), Some((3, Vec::new())));
    // All others are the servers' business.
    for name in
        ["", "example.org", "notinternal.x", "web.xinternal", "1.1.1.1.in-addr.arpa", "x.in-addr.arpa"]
    {
        assert_eq!(own(name, A), None, "{name}");
    }
}

fn asked(action: Action) -> (Ipv4Addr, Vec<u8>) {
    match action {
        Action::Ask(server, bytes) => (server, bytes),
        other => panic!("{other:?}"),
    }
}

#[test]
fn answers_find_their_askers() {
    let mut forwarder = forwarder();
    let question = query(7, "example.org", A);
    let (server, mut message) = asked(forwarder.query(0, asker(1), &question, &Guests));
    assert_eq!((server, &message[2..]), (FIRST, &question[2..]));
    let (_, other) = asked(forwarder.query(0, asker(2), &question, &Guests));
    assert_ne!(message[..2], other[..2], "each waits by itself");
    message[2] |= 0x80;
    message.extend(record(A, &[1, 2, 3, 4]));
    // From another server, with another question, another identifier, or as a question: not the answer.
    assert_eq!(forwarder.answer(1, SECOND, &message), None);
    for (at, with) in [(0, message[0] ^ 1), (2, 0), (5, 2), (HEADER + 1, b'f'), (question.len() - 3, 28)] {
        let mut forged = message.clone();
        forged[at] = with;
        assert_eq!(forwarder.answer(1, FIRST, &forged), None, "byte {at}");
    }
    // Some servers repeat the name in other letters.
    message[HEADER + 1] = b'E';
    let (to, answer) = forwarder.answer(1, FIRST, &message).expect("the answer");
    assert_eq!((to, &answer[..2], &answer[2..]), (asker(1), &question[..2], &message[2..]));
    assert_eq!(forwarder.answer(1, FIRST, &message), None, "once");
    let counters = forwarder.counters();
    assert_eq!((counters.asked, counters.answered, counters.strange), (2, 1, 7));
}

#[test]
fn a_deaf_server_is_not_asked_again() {
    let mut forwarder = forwarder();
    let question = query(7, "example.org", A);
    let ask = |forwarder: &mut Forwarder, now| asked(forwarder.query(now, asker(1), &question, &Guests)).0;
    assert_eq!(ask(&mut forwarder, 0), FIRST);
    assert_eq!(ask(&mut forwarder, 1), SECOND);
    // The next question goes where the last one went, and an answer that comes too late is none.
    let next = query(8, "example.com", A);
    let (server, mut message) = asked(forwarder.query(2, asker(1), &next, &Guests));
    assert_eq!(server, SECOND);
    message[2] |= 0x80;
    assert_eq!(forwarder.answer(2 + PATIENCE_NS, SECOND, &message), None);
}

#[test]
fn no_port_has_all_the_places() {
    let mut forwarder = forwarder();
    let code = |action: Action| match action {
        Action::Answer(bytes) => Some(bytes[3] & 15),
        _ => None,
    };
    for id in 0..2 * WAITING_PER_PORT as u16 {
        let action = forwarder.query(0, asker(1), &query(id, "example.org", A), &Guests);
        let expected = (usize::from(id) >= WAITING_PER_PORT).then_some(Code::Failure as u8);
        assert_eq!(code(action), expected, "{id}");
    }
    for port in 2..40 {
        for id in 0..WAITING_PER_PORT as u16 {
            forwarder.query(0, asker(port), &query(id, "example.org", A), &Guests);
        }
    }
    assert_eq!(forwarder.waiting.len(), WAITING);
    // Time gives the places back, and so does the end of a port.
    forwarder.forget(PortId::testing(2));
    assert_eq!(forwarder.waiting.len(), WAITING - WAITING_PER_PORT);
    assert_eq!(code(forwarder.query(PATIENCE_NS, asker(1), &query(1, "example.org", A), &Guests)), None);
    assert_eq!(forwarder.waiting.len(), 1);
    forwarder.set_servers(Vec::new());
    let action = forwarder.query(PATIENCE_NS, asker(1), &query(2, "example.org", A), &Guests);
    assert_eq!(code(action), Some(Code::Failure as u8), "no server is known");
}

#[test]
fn what_is_no_query_gets_no_further() {
    let mut forwarder = forwarder();
    let question = query(7, "example.org", A);
    let mut ask = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = question.clone();
        change(&mut message);
        match forwarder.query(0, asker(1), &message, &Guests) {
            Action::Answer(bytes) => i32::from(bytes[3] & 15),
            Action::Ask(..) => -1,
            Action::Drop => -2,
        }
    };
    assert_eq!(ask(&|message| message.truncate(11)), -2);
    assert_eq!(ask(&|message| message[2] |= 0x80), -2, "an answer");
    assert_eq!(ask(&|message| message.truncate(20)), 1);
    assert_eq!(ask(&|message| message[5] = 2), 1);
    assert_eq!(ask(&|message| message[HEADER] = 0xc0), 1, "a pointer");
    assert_eq!(ask(&|message| message[2] |= 0x10), 4);
    assert_eq!(ask(&|message| message.resize(MAX_MESSAGE + 1, 0)), 2);
    let long = query(1, &alloc::format!("{0}.{0}.{0}.{0}", "x".repeat(63)), A);
    assert_eq!(ask(&|message| message.clone_from(&long)), 1);
    assert_eq!(ask(&|_| ()), -1);
}

proptest! {
    /// Any bytes are a query, an answer, or nothing; what is asked is what the guest asked.
    #[test]
    fn any_message(bytes in prop::collection::vec(any::<u8>(), 0..80), tail in 0usize..30) {
        let mut forwarder = forwarder();
        for message in [bytes.clone(), [&query(3, "a.b", A)[..tail.min(20)], &bytes].concat()] {
            match forwarder.query(0, asker(1), &message, &Guests) {
                Action::Ask(_, asked) => prop_assert_eq!(&asked[2..], &message[2..]),
                Action::Answer(answer) => prop_assert!(answer[..2] == message[..2] && answer[2] & 0x80 != 0),
                Action::Drop => {}
            }
            forwarder.answer(0, FIRST, &message);
        }
    }
}
