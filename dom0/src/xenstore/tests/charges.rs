//! A request is charged for what it looks at and compares, whatever state a guest has brought its part of the store
//! into.

use proptest::prelude::*;
use ring_abi::io::xs_wire as wire;

use super::super::{Quotas, looks};
use super::Bed;

/// Number of looks that are free for a request: a few searches.
const FREE_LOOKS: usize = 8 * 132;
/// Number of bytes that a request compares or hashes free: those of its own path, a few times.
const FREE_BYTES: usize = 24 * wire::XENSTORE_ABS_PATH_MAX;
/// Number of bytes compared or hashed for each byte of work.
const BYTES: usize = 8;

/// Does one request, with all the work that the request leaves, and checks that the request is charged for the work.
/// Gives the reply.
fn charged(bed: &mut Bed, kind: u32, tx: u32, payload: &str) -> (u32, Vec<u8>) {
    let (work, looks, bytes) = (bed.server.store.work(), looks::taken(), looks::taken_bytes());
    let reply = bed.ask(1, kind, tx, payload.as_bytes());
    let (work, looks, bytes) =
        (bed.server.store.work() - work, looks::taken() - looks, looks::taken_bytes() - bytes);
    let what = format!("request {kind} of {} bytes", payload.len());
    assert!(looks <= FREE_LOOKS + work, "{what}: {looks} looks were charged as {work}");
    assert!(bytes <= FREE_BYTES + BYTES * work, "{what}: {bytes} bytes were charged as {work}");
    reply
}

/// A path so long that every path below is as long as a path may be.
fn long() -> String {
    format!("/local/domain/1/{}", "p".repeat(2700))
}

#[test]
fn long_paths_beside_removed_subtrees() {
    let mut bed = Bed::new(1);
    let long = long();
    for at in 0..60 {
        bed.ok(1, wire::XS_MKDIR, 0, format!("{long}/a{at:02}/c\0").as_bytes());
    }
    let tx = bed.begin(1);
    for at in 0..60 {
        charged(&mut bed, wire::XS_RM, tx, &format!("{long}/a{at:02}\0"));
    }
    let mut refused = 0;
    for at in 0..20 {
        let deep = format!("{long}/{at}{}\0", "/b".repeat(Quotas::XEN.levels - 6));
        let before = looks::taken_bytes();
        refused += usize::from(charged(&mut bed, wire::XS_MKDIR, tx, &deep).0 == wire::XS_ERROR);
        let bytes = looks::taken_bytes() - before;
        assert!(bytes <= 1 << 20, "{bytes}");
    }
    assert!(0 < refused && refused < 20, "{refused}");
    charged(&mut bed, wire::XS_RM, tx, &format!("{long}/0\0"));
    charged(&mut bed, wire::XS_TRANSACTION_END, tx, "T\0");
}

/// At the quota's edge each request is refused, and the refusal takes no look at other nodes.
#[test]
fn counting_what_is_removed_is_work() {
    let mut bed = Bed::new(1);
    for at in 0..16 {
        bed.ok(1, wire::XS_MKDIR, 0, format!("r/{at}/c\0").as_bytes());
    }
    let mut made = 0;
    while bed.ask(1, wire::XS_MKDIR, 0, format!("n/{made}\0").as_bytes()).0 != wire::XS_ERROR {
        made += 1;
    }
    let tx = bed.begin(1);
    for at in 0..16 {
        bed.ok(1, wire::XS_RM, tx, format!("r/{at}\0").as_bytes());
    }
    let deep = format!("q{}\0", "/b".repeat(Quotas::XEN.levels - 4));
    assert_eq!(charged(&mut bed, wire::XS_MKDIR, tx, &deep).1, b"ENOSPC\0");
}

/// A subtree that a transaction made is removed again, beside many subtrees that the transaction removed.
#[test]
fn removing_what_was_made_is_work() {
    let mut bed = Bed::new(1);
    for at in 0..63 {
        bed.ok(1, wire::XS_MKDIR, 0, format!("r/{at}/c\0").as_bytes());
    }
    let tx = bed.begin(1);
    for at in 0..63 {
        bed.ok(1, wire::XS_RM, tx, format!("r/{at}\0").as_bytes());
    }
    for at in 0..700 {
        bed.ok(1, wire::XS_MKDIR, tx, format!("r/z/{at}\0").as_bytes());
    }
    assert_eq!(charged(&mut bed, wire::XS_RM, tx, "r/z\0").1, b"OK\0");
}

/// A list of children, beside many children that a transaction has asked for and that do not exist.
#[test]
fn asking_for_what_is_not_there_makes_a_list_dear() {
    let mut bed = Bed::new(1);
    let long = long();
    bed.ok(1, wire::XS_MKDIR, 0, format!("{long}\0").as_bytes());
    let tx = bed.begin(1);
    for at in 0..60 {
        assert_eq!(charged(&mut bed, wire::XS_READ, tx, &format!("{long}/{at}\0")).1, b"ENOENT\0");
    }
    assert_eq!(charged(&mut bed, wire::XS_DIRECTORY, tx, &format!("{long}\0")).1, b"");
}

/// Many requests with long paths that are like each other in one way or another.
fn requests() -> impl Strategy<Value = Vec<(u32, String, bool, usize)>> {
    let top = prop_oneof![Just(long()), Just("d".to_owned()), Just(format!("{}/e", long()))];
    let name = prop_oneof![
        (0usize..300).prop_map(|at| format!("{at}")),
        (0usize..60).prop_map(|at| format!("a{at}/c")),
        (0usize..60).prop_map(|at| format!("a{at}")),
        (0usize..100).prop_map(|at| format!("{}{at}", "n".repeat(240))),
        (1usize..50).prop_map(|deep| format!("z{}", "/b".repeat(deep))),
    ];
    let request = (
        prop_oneof![4 => (top, name).prop_map(|(top, name)| format!("{top}/{name}")), 1 => Just(long())],
        any::<u8>(),
    )
        .prop_map(|(path, which)| match which % 16 {
            0..=3 => (wire::XS_MKDIR, format!("{path}\0")),
            4..=5 => (wire::XS_WRITE, format!("{path}\0value")),
            6..=7 => (wire::XS_RM, format!("{path}\0")),
            8 => (wire::XS_READ, format!("{path}\0")),
            9 => (wire::XS_DIRECTORY, format!("{path}\0")),
            10 => (wire::XS_SET_PERMS, format!("{path}\0n1\0b2\0b{which}\0")),
            11..=12 => (wire::XS_WATCH, format!("{path}\0t\0")),
            13 => (wire::XS_UNWATCH, format!("{path}\0t\0")),
            14 => (wire::XS_TRANSACTION_START, "\0".to_owned()),
            _ => match which / 16 % 4 {
                0 => (wire::XS_RESET_WATCHES, "\0".to_owned()),
                1 => (wire::XS_TRANSACTION_END, "F\0".to_owned()),
                _ => (wire::XS_TRANSACTION_END, "T\0".to_owned()),
            },
        });
    let repeated = (request, any::<bool>(), prop_oneof![3 => Just(1usize), 1 => 1usize..80]);
    prop::collection::vec(
        repeated.prop_map(|((kind, text), within, times)| (kind, text, within, times)),
        1..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_looked_at_is_charged(requests in requests()) {
        let mut bed = Bed::new(2);
        let mut tx = 0;
        for (kind, payload, within, times) in requests {
            for round in 0..times {
                let payload = match payload.split_once('\0') {
                    Some((path, rest)) if times > 1 && path.len() > 1 => format!("{path}{round}\0{rest}"),
                    _ => payload.clone(),
                };
                let is_end = kind == wire::XS_TRANSACTION_END;
                let within = if is_end || within && kind <= wire::XS_SET_PERMS { tx } else { 0 };
                let reply = charged(&mut bed, kind, within, &payload);
                if reply.0 == wire::XS_TRANSACTION_START {
                    tx = std::str::from_utf8(&reply.1[..reply.1.len() - 1]).unwrap().parse().unwrap();
                }
                if is_end || kind == wire::XS_RESET_WATCHES {
                    tx = 0;
                }
            }
        }
        bed.server.check_accounts();
    }
}
