//! Long work is done in steps, and nobody sees the work half done.

use ring_abi::io::xs_wire as wire;

use super::super::*;
use super::Bed;

/// More nodes than a step takes out, and watches than a step tells.
const MANY: usize = 900;
/// Most work of one step, with the request to which the step belongs.
const STEP: usize = 16 * 1024;

/// Fills the home of domain 1 with a tree.
fn fill(bed: &mut Bed) {
    for at in 0..MANY {
        bed.ok(1, wire::XS_WRITE, 0, format!("d/{}/{at}\0v", at % 30).as_bytes());
    }
}

/// Runs domain 1's ring until the ring rests, and returns the number of turns. No turn does much.
fn turns(bed: &mut Bed, mut between: impl FnMut(&mut Bed)) -> usize {
    let mut count = 0;
    loop {
        count += 1;
        let before = bed.server.store.work();
        let (conn, ring) = bed.rings.get_mut(&1).unwrap();
        let again = bed.server.exchange(*conn, ring).unwrap().again;
        let work = bed.server.store.work() - before;
        assert!(work <= 2 * STEP, "{work} in one turn");
        if !again {
            return count;
        }
        between(bed);
    }
}

#[test]
fn a_removal_is_one_step_for_those_who_look_and_many_for_the_server() {
    for within in [false, true] {
        let mut bed = Bed::new(2);
        fill(&mut bed);
        let most = Quotas::XEN.nodes - bed.server.store.account(1).nodes;
        for at in 0..most {
            bed.ok(1, wire::XS_MKDIR, 0, format!("more{at}\0").as_bytes());
        }
        bed.server.set_target(bed.dom0, 2, 1).unwrap();
        bed.ok(1, wire::XS_WATCH, 0, b"d\0t\0");
        bed.events(1);
        let tx = if within { bed.begin(1) } else { 0 };
        bed.send(1, wire::XS_RM, tx, b"d\0");
        if within {
            bed.send(1, wire::XS_TRANSACTION_END, tx, b"T\0");
        }
        // At the quota: the next request finds room.
        bed.send(1, wire::XS_MKDIR, 0, b"d/5/again\0");
        let mut looks = 0;
        let took = turns(&mut bed, |bed| {
            looks += 1;
            let listed = bed.ok(2, wire::XS_DIRECTORY, 0, b"/local/domain/1\0");
            assert!(!listed.split(|&byte| byte == 0).any(|name| name == b"d"));
            for path in ["d", "d/5", "d/5/5", "d/29/899"] {
                let path = format!("/local/domain/1/{path}\0");
                assert_eq!(bed.err(2, wire::XS_READ, 0, path.as_bytes()), "ENOENT", "{path}");
            }
            bed.server.check_accounts();
        });
        assert!(took > 10 && looks > 10, "{took} turns");
        let messages = bed.run(1).unwrap();
        assert_eq!(messages.iter().filter(|(header, _)| header.r#type == wire::XS_ERROR).count(), 0);
        assert_eq!(bed.ok(1, wire::XS_DIRECTORY, 0, b"d\0"), b"5\0");
        assert_eq!(bed.server.store.account(1).nodes, 1 + most + 3);
    }
}

/// A new node in the place of an old one that is still to be taken out is the new node for everybody.
#[test]
fn what_is_made_again_meanwhile_stays() {
    let mut bed = Bed::new(2);
    fill(&mut bed);
    bed.server.set_target(bed.dom0, 2, 1).unwrap();
    bed.send(1, wire::XS_RM, 0, b"d\0");
    let mut made = false;
    turns(&mut bed, |bed| {
        if !core::mem::replace(&mut made, true) {
            bed.ok(2, wire::XS_WRITE, 0, b"/local/domain/1/d/7/7\0new");
        }
        assert_eq!(bed.ok(2, wire::XS_DIRECTORY, 0, b"/local/domain/1/d\0"), b"7\0");
        assert_eq!(bed.ok(2, wire::XS_DIRECTORY, 0, b"/local/domain/1/d/7\0"), b"7\0");
        assert_eq!(bed.ok(2, wire::XS_READ, 0, b"/local/domain/1/d/7/7\0"), b"new");
    });
    assert!(made);
    assert_eq!(bed.ok(2, wire::XS_READ, 0, b"/local/domain/1/d/7/7\0"), b"new");
    assert_eq!(bed.server.store.len(), 1 + 2 + 2 + 3);
    bed.server.check_accounts();
}

#[test]
fn a_death_is_many_steps() {
    let mut bed = Bed::new(2);
    fill(&mut bed);
    for _ in 0..3 {
        let tx = bed.begin(1);
        for at in 0..500 {
            bed.ask(1, wire::XS_READ, tx, format!("none{at}\0").as_bytes());
        }
    }
    let before = bed.server.store.work();
    bed.server.domain_destroyed(1);
    assert!(bed.server.store.work() - before <= STEP);
    let mut steps = 0;
    loop {
        let before = bed.server.store.work();
        let is_more = bed.server.settle_some();
        assert!(bed.server.store.work() - before <= STEP);
        steps += 1;
        bed.server.check_accounts();
        if !is_more {
            break;
        }
    }
    assert!(steps > 10, "{steps}");
    assert_eq!(bed.server.store.account(1), Default::default());
    assert_eq!(bed.server.store.len(), 4);
}

/// A write of one domain may fire all the watches of many domains.
#[test]
fn many_watches_are_told_in_steps() {
    const OTHERS: u16 = 8;
    let mut bed = Bed::new(OTHERS);
    bed.ok(1, wire::XS_WRITE, 0, b"x\0v");
    bed.ok(1, wire::XS_SET_PERMS, 0, b"x\0r1\0");
    for domid in 2..=OTHERS {
        for at in 0..Quotas::XEN.watches {
            bed.ok(domid, wire::XS_WATCH, 0, format!("/local/domain/1/x\0{at}\0").as_bytes());
        }
        bed.events(domid);
    }
    bed.send(1, wire::XS_WRITE, 0, b"x\0w");
    bed.send(1, wire::XS_READ, 0, b"x\0");
    assert!(turns(&mut bed, |_| ()) > 5);
    for domid in 2..=OTHERS {
        assert_eq!(bed.events(domid).len(), Quotas::XEN.watches);
    }
    assert_eq!(bed.run(1).unwrap().len(), 2);
}

/// Work that a connection leaves when the connection ends is still done.
#[test]
fn a_connection_that_ends_leaves_its_work_to_others() {
    let mut bed = Bed::new(1);
    fill(&mut bed);
    bed.send(1, wire::XS_RM, 0, b"d\0");
    let (conn, ring) = bed.rings.get_mut(&1).unwrap();
    assert!(bed.server.exchange(*conn, ring).unwrap().again);
    ring.to_server.extend([0xff; 16]);
    while bed.server.exchange(*conn, ring).is_ok() {}
    bed.settle();
    assert_eq!(bed.server.store.len(), 4);
    bed.server.check_accounts();
}

/// The watches' events, which nobody fetches, are merged in the middle of the work that made them.
#[test]
fn events_that_nobody_fetches_hold_up_no_work() {
    const TOPS: usize = 64;
    let mut bed = Bed::new(1);
    let before = bed.server.store.len();
    for at in 0..TOPS {
        bed.ok(1, wire::XS_WRITE, 0, format!("n/{at}/x\0v").as_bytes());
    }
    for token in 0..Quotas::XEN.watches {
        bed.ok(1, wire::XS_WATCH, 0, format!("n\0{token}\0").as_bytes());
    }
    let tx = bed.begin(1);
    for at in 0..TOPS {
        bed.ok(1, wire::XS_RM, tx, format!("n/{at}\0").as_bytes());
    }
    bed.send(1, wire::XS_TRANSACTION_END, tx, b"T\0");
    bed.rings.get_mut(&1).unwrap().1.room = Some(0);
    let (conn, ring) = bed.rings.get_mut(&1).unwrap();
    while bed.server.exchange(*conn, ring).unwrap().again {}
    assert_eq!(bed.server.store.len(), before + 1, "all but n");
    bed.rings.get_mut(&1).unwrap().1.room = None;
    let watches = Quotas::XEN.watches;
    let events = bed.events(1);
    for token in 0..watches {
        assert!(events.iter().any(|event| event.ends_with(&format!("|{token}|"))), "{token}");
    }
    bed.server.check_accounts();
}

/// A transaction of domain 1 that writes many nodes.
fn writes_many(bed: &mut Bed) -> u32 {
    let tx = bed.begin(1);
    for at in 0..MANY {
        bed.ok(1, wire::XS_WRITE, tx, format!("c/{at}\0new").as_bytes());
    }
    tx
}

#[test]
fn a_commit_is_one_step_for_those_who_look() {
    let mut bed = Bed::new(2);
    bed.server.set_target(bed.dom0, 2, 1).unwrap();
    bed.ok(1, wire::XS_WRITE, 0, b"c/0\0old");
    let tx = writes_many(&mut bed);
    bed.send(1, wire::XS_TRANSACTION_END, tx, b"T\0");
    bed.send(1, wire::XS_READ, 0, b"c/0\0");
    // A request of another connection waits; a call of dom0's ends the commit that is under way.
    bed.send(2, wire::XS_READ, 0, format!("/local/domain/1/c/{}\0", MANY - 1).as_bytes());
    let (conn, ring) = bed.rings.get_mut(&1).unwrap();
    assert!(bed.server.exchange(*conn, ring).unwrap().again);
    assert!(ring.from_server.is_empty(), "not answered yet");
    let (conn, ring) = bed.rings.get_mut(&2).unwrap();
    let before = bed.server.store.work();
    assert!(bed.server.exchange(*conn, ring).unwrap().again);
    assert!(bed.server.store.work() - before <= STEP);
    assert!(ring.from_server.is_empty());
    assert!(turns(&mut bed, |_| ()) > 10);
    let answers: Vec<_> = bed.run(1).unwrap().into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(answers, [b"OK\0".to_vec(), b"new".to_vec()]);
    assert_eq!(bed.run(2).unwrap()[0].1, b"new");
    bed.server.check_accounts();
}

#[test]
fn dom0_looks_at_a_commit_that_is_over_or_not_begun() {
    let mut bed = Bed::new(1);
    bed.ok(1, wire::XS_WRITE, 0, b"c/0\0old");
    let tx = writes_many(&mut bed);
    bed.send(1, wire::XS_TRANSACTION_END, tx, b"T\0");
    let steps = |bed: &mut Bed, count| {
        for _ in 0..count {
            let (conn, ring) = bed.rings.get_mut(&1).unwrap();
            assert!(bed.server.exchange(*conn, ring).unwrap().again);
        }
    };
    let last = Path::absolute(format!("/local/domain/1/c/{}", MANY - 1).as_bytes()).unwrap();
    let first = Path::absolute(b"/local/domain/1/c/0").unwrap();
    // While nothing was written, dom0 has the tree as it is, and a call of dom0's costs what it costs at other times.
    steps(&mut bed, 3);
    let before = bed.server.store.work();
    let read = |bed: &mut Bed, path| bed.server.view(bed.dom0, 0, |view| view.read(path));
    assert_eq!(read(&mut bed, &last), Err(XsError::NoEnt));
    assert_eq!(read(&mut bed, &first).as_deref(), Ok(&b"old"[..]));
    assert!(bed.server.store.work() - before <= STEP);
    // Afterwards the commit is ended for dom0.
    while bed.server.committing.as_ref().is_none_or(|(commit, ..)| commit.gives_way()) {
        steps(&mut bed, 1);
    }
    steps(&mut bed, 1);
    assert_eq!(read(&mut bed, &last).as_deref(), Ok(&b"new"[..]));
    assert_eq!(bed.run(1).unwrap().len(), 1);
    bed.server.check_accounts();
}

#[test]
fn what_dom0_changes_while_a_commit_is_checked_is_a_conflict() {
    for again in [1, 10] {
        let mut bed = Bed::new(1);
        bed.ok(1, wire::XS_WRITE, 0, b"c/0\0old");
        let tx = writes_many(&mut bed);
        bed.send(1, wire::XS_TRANSACTION_END, tx, b"T\0");
        let mut done = 0;
        // Elsewhere at first: the commit gives way, but not for ever.
        while done < again && bed.server.committing.is_some() || done == 0 {
            for _ in 0..2 {
                let (conn, ring) = bed.rings.get_mut(&1).unwrap();
                let _ = bed.server.exchange(*conn, ring).unwrap();
            }
            bed.server.view(bed.dom0, 0, |view| view.write(&Path::absolute(b"/other")?, b"")).unwrap();
            done += 1;
        }
        let conflicts = again == 1;
        if conflicts {
            // The first node was looked at already.
            let path = Path::absolute(b"/local/domain/1/c/0").unwrap();
            bed.server.view(bed.dom0, 0, |view| view.write(&path, b"dom0's")).unwrap();
        }
        let answers = bed.run(1).unwrap();
        assert_eq!(answers[0].1, if conflicts { b"EAGAIN\0".to_vec() } else { b"OK\0".to_vec() });
        assert!(done < 10);
        let read = bed.ok(1, wire::XS_READ, 0, b"c/0\0");
        assert_eq!(read, if conflicts { b"dom0's".to_vec() } else { b"new".to_vec() });
        bed.server.check_accounts();
    }
}

/// The wait for a domain's end includes the work that the domain's commit leaves, whichever connection ends the commit:
/// the domain's number may belong to another domain afterwards.
#[test]
fn what_is_left_of_a_dead_domain_has_what_its_commit_leaves() {
    for by_others in [false, true] {
        let mut bed = Bed::new(1);
        let tx = writes_many(&mut bed);
        bed.send(1, wire::XS_TRANSACTION_END, tx, b"T\0");
        let (conn, ring) = bed.rings.get_mut(&1).unwrap();
        assert!(bed.server.exchange(*conn, ring).unwrap().again);
        bed.server.domain_destroyed(1);
        assert!(bed.server.committing.is_some());
        let mark = bed.server.mark_left();
        if by_others {
            bed.server.finish_commit();
        }
        while bed.server.settle_until(mark) {}
        assert!(bed.server.committing.is_none() && bed.server.left.is_empty());
        assert_eq!(bed.server.store.account(1), Default::default());
    }
}

#[test]
fn a_commit_whose_domain_goes_leaves_nothing() {
    let mut bed = Bed::new(2);
    let tx = writes_many(&mut bed);
    bed.send(1, wire::XS_TRANSACTION_END, tx, b"T\0");
    let (conn, ring) = bed.rings.get_mut(&1).unwrap();
    assert!(bed.server.exchange(*conn, ring).unwrap().again);
    bed.server.domain_destroyed(1);
    bed.settle();
    assert_eq!((bed.server.store.len(), bed.server.figures().transactions), (4, 0));
    assert_eq!(bed.ok(2, wire::XS_WRITE, 0, b"x\0still served"), b"OK\0");
    // When a domain starts its connection afresh, the server ends the domain's commit, too.
    let tx = bed.begin(2);
    for at in 0..MANY {
        bed.ok(2, wire::XS_WRITE, tx, format!("c/{at}\0new").as_bytes());
    }
    bed.send(2, wire::XS_TRANSACTION_END, tx, b"T\0");
    let (conn, ring) = bed.rings.get_mut(&2).unwrap();
    assert!(bed.server.exchange(*conn, ring).unwrap().again);
    let conn = *conn;
    bed.server.reconnect(conn);
    bed.server.flush();
    bed.settle();
    assert_eq!(bed.ok(2, wire::XS_READ, 0, b"c/5\0"), b"new");
    bed.server.check_accounts();
}
