//! Attacks.

use ring_abi::io::xs_wire as wire;

use super::super::*;
use super::Bed;

/// What is compared, in bytes, by a request; see `looks`.
#[test]
fn long_paths_beside_removed_subtrees() {
    let mut bed = Bed::new(1);
    let long = format!("/local/domain/1/{}", "p".repeat(2700));
    for at in 0..60 {
        bed.ok(1, wire::XS_MKDIR, 0, format!("{long}/a{at:02}/c\0").as_bytes());
    }
    let tx = bed.begin(1);
    for at in 0..60 {
        bed.ok(1, wire::XS_RM, tx, format!("{long}/a{at:02}\0").as_bytes());
    }
    let deep = format!("{long}{}\0", "/b".repeat(110));
    for _ in 0..3 {
        let (before, looks) = (bed.server.store.work(), super::super::looks::taken());
        let begun = std::time::Instant::now();
        let reply = bed.ask(1, wire::XS_MKDIR, tx, deep.as_bytes());
        println!(
            "{:?}: {:?}, work {}, looks {}, {:?}",
            reply.0,
            String::from_utf8_lossy(&reply.1),
            bed.server.store.work() - before,
            super::super::looks::taken() - looks,
            begun.elapsed()
        );
    }
}

/// A transaction whose owned nodes are counted below what it removed: for each request that a quota refuses, all anew.
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
    let deep = format!("q{}\0", "/b".repeat(60));
    let (before, looks) = (bed.server.store.work(), super::super::looks::taken());
    assert_eq!(bed.err(1, wire::XS_MKDIR, tx, deep.as_bytes()), "ENOSPC");
    let (work, looks) = (bed.server.store.work() - before, super::super::looks::taken() - looks);
    println!("{made} nodes: {looks} looks, work {work}");
    assert!(looks <= 8 * 132 + work, "{looks} looks were charged as {work}");
}

/// A subtree that a transaction made goes again, beside many that the transaction removed.
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
    let mut made = 0;
    while made < 700 && bed.ask(1, wire::XS_MKDIR, tx, format!("r/z/{made}\0").as_bytes()).0 != wire::XS_ERROR {
        made += 1;
    }
    let (before, looks) = (bed.server.store.work(), super::super::looks::taken());
    bed.ok(1, wire::XS_RM, tx, b"r/z\0");
    let (work, looks) = (bed.server.store.work() - before, super::super::looks::taken() - looks);
    println!("{made} nodes: {looks} looks, work {work}");
    assert!(looks <= 8 * 132 + work, "{looks} looks were charged as {work}");
}
