//! Quotas, and clients that take too much.

use ring_abi::io::xs_wire as wire;

use super::super::*;
use super::Bed;

#[test]
fn quotas_hold_to_the_last_one() {
    let mut bed = Bed::new(2);
    // Domain 1 has one node already: its home.
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
        // Each missing node counts once, and the node above them counts once.
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
        let (kind, reply) = bed.ask(1, wire::XS_TRANSACTION_START, 0, b"\0");
        if kind == wire::XS_ERROR {
            assert_eq!(reply, b"ENOMEM\0");
            break;
        }
        let tx = std::str::from_utf8(&reply[..reply.len() - 1]).unwrap().parse().unwrap();
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
fn a_client_that_does_not_fetch_is_held_up_and_hears_less() {
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
    bed.events(1);
    for at in 0..EVENTS {
        bed.dom0(wire::XS_WRITE, format!("/local/domain/1/x/{at}\0").as_bytes()).unwrap();
    }
    let events = bed.events(1);
    assert!(events.len() < EVENTS, "{}", events.len());
    assert_eq!(events[0], "x|t|", "what was merged is told of");
    assert_eq!(bed.server.figures().watches, 1);
}

/// More events than wait.
const EVENTS: usize = 3 * Quotas::XEN.event_bytes / stream::EVENT_PLACE;

/// Domain 1 changes many nodes with long names. Domain 2, which serves domains 1 and 3, watches the node above.
#[test]
fn no_domain_ends_the_connection_of_one_that_watches_it() {
    let mut bed = Bed::new(3);
    for domid in [1, 3] {
        bed.ok(domid, wire::XS_WRITE, 0, b"state\x001");
        bed.ok(domid, wire::XS_SET_PERMS, 0, format!("state\0n{domid}\0r2\0").as_bytes());
        bed.ok(2, wire::XS_WATCH, 0, format!("/local/domain/{domid}/state\0t\0").as_bytes());
    }
    bed.events(2);
    let name = "n".repeat(1000);
    for round in 0..20 {
        if round == 10 {
            bed.ok(3, wire::XS_WRITE, 0, b"state\x004");
            bed.ok(3, wire::XS_WRITE, 0, b"state/new\x004");
        }
        let tx = bed.begin(1);
        for at in 0..10 {
            bed.ok(1, wire::XS_WRITE, tx, format!("state/{name}{round}-{at}\0").as_bytes());
        }
        bed.ok(1, wire::XS_TRANSACTION_END, tx, b"T\0");
        let conn = bed.rings[&2].0;
        assert!(bed.server.kept_for(conn) <= Quotas::XEN.most_kept());
    }
    let events = bed.events(2);
    assert!(events.iter().any(|event| event == "/local/domain/1/state|t|"));
    let others: Vec<_> = events.iter().filter(|event| event.starts_with("/local/domain/3")).collect();
    assert_eq!(others, ["/local/domain/3/state|t|", "/local/domain/3/state/new|t|"]);
    bed.dom0(wire::XS_WRITE, b"/local/domain/1/state\x006").unwrap();
    assert_eq!(bed.events(2), ["/local/domain/1/state|t|"], "it goes on");
    bed.server.check_accounts();
}

/// All watches of a domain fire for each change. Merging their events is counted as work, and has an end.
#[test]
fn merging_is_work() {
    let mut bed = Bed::new(1);
    for at in 0..Quotas::XEN.watches {
        bed.ok(1, wire::XS_WATCH, 0, format!("x\0{at}\0").as_bytes());
    }
    bed.rings.get_mut(&1).unwrap().1.room = Some(0);
    let conn = bed.rings[&1].0;
    let waiting = |bed: &Bed| bed.server.connections[&conn].output.events();
    let (mut least, mut merged) = (usize::MAX, 0);
    for at in 0..200 {
        let (before, events) = (bed.server.store.work(), waiting(&bed));
        bed.dom0(wire::XS_WRITE, format!("/local/domain/1/x/{at}\0").as_bytes()).unwrap();
        let work = bed.server.store.work() - before;
        assert!(bed.server.connections[&conn].output.event_bytes() <= Quotas::XEN.event_bytes);
        // This bounds the work to one search for the watches that have most.
        assert!(work < 100_000, "{at}: {work}");
        if waiting(&bed) < events {
            merged += 1;
            assert!(work > least + events, "{at}: {work}, and {least} without merging");
        }
        least = least.min(work);
    }
    assert!(merged > 0);
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
fn deep_paths_do_not_recurse() {
    let mut bed = Bed::new(1);
    let deep = format!("{}\0", "a/".repeat(wire::XENSTORE_REL_PATH_MAX / 2 - 1) + "a");
    // The path has more nodes than one domain may have.
    assert_eq!(bed.err(1, wire::XS_MKDIR, 0, deep.as_bytes()), "ENOSPC");
    let deep = "/a".repeat(wire::XENSTORE_ABS_PATH_MAX / 2);
    bed.dom0(wire::XS_MKDIR, deep.as_bytes()).unwrap();
    assert_eq!(bed.server.figures().nodes, 1 + 3 + 1536);
    bed.dom0(wire::XS_RM, b"/a").unwrap();
    assert_eq!(bed.server.figures().nodes, 4);
}

#[test]
fn a_client_within_dom0_that_does_not_look_gets_one_event_for_many() {
    let bed = Xenstore::new(Quotas::XEN);
    let (client, writer) = (bed.client(), bed.client());
    client.watch("/seen", "t").unwrap();
    for at in 0..EVENTS {
        writer.write(&format!("/seen/{at}"), "").unwrap();
    }
    let mut paths = Vec::new();
    while let Some(event) = client.try_event() {
        paths.push(event.path);
    }
    assert!(paths.len() <= Quotas::XEN.client_event_bytes / stream::EVENT_PLACE, "{}", paths.len());
    assert!(paths.iter().any(|path| path == "/seen"), "what was merged is told of");
}

#[test]
fn a_turn_ends_by_cost_and_not_by_messages_alone() {
    let mut bed = Bed::new(1);
    for at in 0..990 {
        bed.ok(1, wire::XS_MKDIR, 0, format!("d/{at}\0").as_bytes());
    }
    let tx = bed.begin(1);
    for _ in 0..4 {
        bed.send(1, wire::XS_DIRECTORY, tx, b"d\0");
    }
    let (conn, ring) = bed.rings.get_mut(&1).unwrap();
    let mut turns = 1;
    while bed.server.exchange(*conn, ring).unwrap().again {
        turns += 1;
    }
    assert_eq!(turns, 4, "each list is a turn's worth");
    for _ in 0..4 {
        bed.send(1, wire::XS_READ, 0, b"d\0");
    }
    let (conn, ring) = bed.rings.get_mut(&1).unwrap();
    assert!(!bed.server.exchange(*conn, ring).unwrap().again, "cheap ones share a turn");
}
