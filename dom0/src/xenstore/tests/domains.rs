//! Domains that come and go, and what only dom0 may do.

use ring_abi::io::xs_wire::{self as wire, XsdSockmsg};
use zerocopy::IntoBytes;

use super::super::*;
use super::Bed;

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
    // A guest may set the watch, which fires only for what dom0 opens to the guest.
    bed.ok(1, wire::XS_WATCH, 0, b"@releaseDomain\0t\0");
    bed.server.domain_destroyed(8);
    assert!(bed.events(1).is_empty());
    *bed.server.special_perms(bed.dom0, &Path::special(RELEASE_DOMAIN)).unwrap() = Perms::shared_with(0, 1);
    bed.server.domain_destroyed(8);
    assert_eq!(bed.events(1), ["@releaseDomain|t|"]);
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
