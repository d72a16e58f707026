//! The cost of requests, counted in looks at paths and permissions. A request's cost depends on what the request
//! touches, and not on how much other domains have.

use std::sync::Arc;

use ring_abi::io::xs_wire as wire;

use super::super::looks;
use super::super::store::Store;
use super::super::*;
use super::Bed;

/// Numbers of nodes of other domains: many where the count decides, and some elsewhere.
const MANY: usize = 100_000;
const SOME: usize = 10_000;
/// Looks of one search in a tree of a few hundred thousand paths: some 6 levels, at most 11 comparisons on each, 2
/// looks for each comparison.
const SEARCH: usize = 132;

fn put(store: &mut Store, path: &str, owner: u16) {
    let node = store.new_node(Arc::from(&b""[..]), Perms::owned_by(owner, Access::None));
    store.put(&Path::absolute(path.as_bytes()).unwrap(), node);
}

/// A test bed of two domains, among `others` nodes of 100 other domains.
fn crowded(others: usize) -> Bed {
    let mut bed = Bed::new(2);
    for domid in 1000..1100 {
        let home = format!("/local/domain/{domid}");
        put(&mut bed.server.store, &home, domid);
        for at in 1..others / 100 {
            put(&mut bed.server.store, &format!("{home}/n{at}"), domid);
        }
    }
    bed
}

fn looks_of<R>(act: impl FnOnce() -> R) -> usize {
    let before = looks::taken();
    act();
    looks::taken() - before
}

/// Checks that `act` costs at most `bound` looks, and that the charge for `act` covers the looks.
fn costs(bed: &mut Bed, what: &str, bound: usize, act: impl FnOnce(&mut Bed)) {
    let before = bed.server.store.work();
    let looks = looks_of(|| act(bed));
    let work = bed.server.store.work() - before;
    assert!(looks <= bound, "{what}: {looks} looks, not {bound}");
    assert!(looks <= 8 * SEARCH + work, "{what}: {looks} looks were charged as {work}");
}

#[test]
fn a_list_costs_its_children() {
    let mut bed = crowded(MANY);
    let mut made = 0;
    for children in [0, 1, 30, 990] {
        while made < children {
            bed.ok(1, wire::XS_MKDIR, 0, format!("d/{made}\0").as_bytes());
            made += 1;
        }
        for tx in [0, bed.begin(1)] {
            bed.ask(1, wire::XS_WRITE, tx, b"e/own\0");
            let bound = 20 * SEARCH + 8 * children;
            costs(&mut bed, "DIRECTORY", bound, |bed| drop(bed.ask(1, wire::XS_DIRECTORY, tx, b"d\0")));
            let part = b"d\x002000\0";
            costs(&mut bed, "DIRECTORY_PART", bound, |bed| {
                drop(bed.ask(1, wire::XS_DIRECTORY_PART, tx, part));
            });
            bed.ask(1, wire::XS_TRANSACTION_END, tx, b"F\0");
        }
    }
}

#[test]
fn a_list_that_no_reply_holds_is_left_where_it_is_too_long() {
    let mut bed = Bed::new(1);
    for at in 0..50_000 {
        put(&mut bed.server.store, &format!("/local/domain/1/n{at}"), 9);
    }
    let listed = |bed: &mut Bed| assert_eq!(bed.err(1, wire::XS_DIRECTORY, 0, b"/local/domain/1\0"), "E2BIG");
    costs(&mut bed, "DIRECTORY", 20 * SEARCH + 8 * 2049, listed);
}

#[test]
fn a_fire_costs_the_watches_that_match() {
    let mut bed = crowded(SOME);
    bed.ok(1, wire::XS_WRITE, 0, b"x\0");
    bed.ok(1, wire::XS_WATCH, 0, b"x\0t\0");
    for at in 0..1000 {
        let path = format!("/local/domain/{}/w{at}", 1000 + at % 100);
        let conn = bed.server.connect();
        bed.server.watch(conn, path.as_bytes(), b"t").unwrap();
    }
    bed.server.flush();
    bed.run(1).unwrap();
    costs(&mut bed, "WRITE", 20 * SEARCH, |bed| drop(bed.ask(1, wire::XS_WRITE, 0, b"x\0v")));
    bed.server.flush();
    costs(&mut bed, "UNWATCH", 20 * SEARCH, |bed| drop(bed.ask(1, wire::XS_UNWATCH, 0, b"x\0t\0")));
}

#[test]
fn a_death_costs_what_dies() {
    let mut bed = crowded(MANY);
    for at in 0..5 {
        bed.ok(1, wire::XS_MKDIR, 0, format!("n{at}\0").as_bytes());
        bed.ok(2, wire::XS_MKDIR, 0, format!("n{at}\0").as_bytes());
        bed.ok(2, wire::XS_SET_PERMS, 0, format!("n{at}\0n2\0r1\0").as_bytes());
    }
    costs(&mut bed, "a death", 11 * 4 * SEARCH, |bed| {
        bed.server.domain_destroyed(1);
        bed.settle();
    });
    assert_eq!(bed.server.store.account(1), Default::default());
    assert_eq!(bed.ok(2, wire::XS_GET_PERMS, 0, b"n3\0"), b"n2\0");
    bed.server.check_accounts();
}

#[test]
fn removal_and_commit_cost_their_nodes() {
    let mut bed = crowded(SOME);
    let fill = |bed: &mut Bed, tx| {
        for at in 0..900 {
            bed.ok(1, wire::XS_WRITE, tx, format!("d/{at}\0v").as_bytes());
        }
    };
    let bound = |nodes: usize| (nodes + 4) * 8 * SEARCH;
    let tx = bed.begin(1);
    fill(&mut bed, tx);
    bed.ok(1, wire::XS_WATCH, 0, b"d\0t\0");
    costs(&mut bed, "a commit", bound(900), |bed| drop(bed.ask(1, wire::XS_TRANSACTION_END, tx, b"T\0")));
    let tx = bed.begin(1);
    costs(&mut bed, "RM in a transaction", bound(900), |bed| drop(bed.ask(1, wire::XS_RM, tx, b"d\0")));
    bed.ok(1, wire::XS_TRANSACTION_END, tx, b"F\0");
    costs(&mut bed, "RM", bound(900), |bed| drop(bed.ask(1, wire::XS_RM, 0, b"d\0")));
}

#[test]
fn a_path_of_many_parts_is_one_search_for_each_halving() {
    let mut bed = crowded(SOME);
    let deep = format!("{}a\0", "a/".repeat(wire::XENSTORE_REL_PATH_MAX / 2 - 1));
    for kind in [wire::XS_READ, wire::XS_MKDIR, wire::XS_RM] {
        costs(&mut bed, "a deep path", 20 * SEARCH, |bed| drop(bed.ask(1, kind, 0, deep.as_bytes())));
    }
    // A path with as many parts as one request may make.
    let most = format!("{}a\0", "a/".repeat(Quotas::XEN.levels - 4));
    bed.ok(1, wire::XS_MKDIR, 0, most.as_bytes());
    assert_eq!(bed.err(1, wire::XS_MKDIR, 0, format!("a/{most}").as_bytes()), "ENOSPC");
}

/// Any domain may watch the root. All watches that one domain has there cost one look together, and no event if the
/// domain may not read what changed.
#[test]
fn watches_above_what_their_owners_may_read_cost_next_to_nothing() {
    const OTHERS: u16 = 9;
    let mut bed = Bed::new(OTHERS);
    for domid in 2..=OTHERS {
        for at in 0..Quotas::XEN.watches {
            bed.ok(domid, wire::XS_WATCH, 0, format!("/\0{at}\0").as_bytes());
        }
        bed.events(domid);
    }
    bed.ok(1, wire::XS_WRITE, 0, b"x\0");
    costs(&mut bed, "WRITE", 4 * SEARCH, |bed| drop(bed.ask(1, wire::XS_WRITE, 0, b"x\0v")));
    let tx = bed.begin(1);
    for at in 0..100 {
        bed.ok(1, wire::XS_WRITE, tx, format!("d/{at}\0v").as_bytes());
    }
    let before = bed.server.store.work();
    costs(&mut bed, "a commit", 400 * SEARCH, |bed| drop(bed.ask(1, wire::XS_TRANSACTION_END, tx, b"T\0")));
    let work = bed.server.store.work() - before;
    assert!(work > 100 * 8 * 64, "each connection's look is work: {work}");
    // If a domain may read the node, each of its watches fires for the change.
    bed.ok(1, wire::XS_SET_PERMS, 0, b"x\0r1\0");
    assert_eq!(bed.events(2).len(), Quotas::XEN.watches);
}
