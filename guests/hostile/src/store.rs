//! Xenstore: nodes of other domains, bad paths, all quotas, and at last an impossible message.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use frontends::xenbus::{Nodes, StoreError, Xenstore};
use pvrt::event::Port;
use pvrt::executor::time;
use ring_abi::errno::Errno;
use ring_abi::io::xs_wire::*;
use ring_abi::shared::SharedBytes;
use zerocopy::IntoBytes;

use crate::report::Report;

/// Limit of each flood, beyond every sensible quota.
const FLOOD: usize = 3000;

type Answer<T> = Result<T, StoreError>;

fn refused<T: core::fmt::Debug>(report: &mut Report, name: &str, got: &Answer<T>, wanted: &[Errno]) {
    let holds = matches!(got, Err(StoreError::Refused(errno)) if wanted.contains(errno));
    report.case(name, holds, got);
}

/// Runs all cases but the last.
pub(crate) async fn run(report: &mut Report, store: &Xenstore) {
    let no = [Errno::EACCES, Errno::EPERM, Errno::ENOENT];
    for path in ["/local/domain/0/hostile", "/tool/hostile", "/hostile", "/", "/local/domain/12345/data"] {
        refused(report, &format!("write of {path}"), &store.write(path, "x").await, &no);
        let got = store.rm(path).await;
        report.case(&format!("rm of {path}"), got.is_err(), got);
        let got = store.request(XS_SET_PERMS, &[path.as_bytes(), b"\0w1\0"]).await;
        report.case(&format!("set_perms of {path}"), got.is_err(), got);
    }
    refused(report, "rm of all domains", &store.rm("/local").await, &no);
    for path in ["", "a//b", "/a/", "a b", "a\u{7f}", "/local/domain/0/../1", "a*b"] {
        let got = store.write(path, "x").await;
        let holds = matches!(&got, Err(StoreError::Refused(_) | StoreError::BadRequest));
        report.case(&format!("write of {path:?}"), holds, got);
    }
    let long: String = "a".repeat(2049);
    let got = store.write(&long, "x").await;
    report.case("a relative path of 2049 bytes", got.is_err(), got);
    let long = format!("/{}", "a/".repeat(1600));
    let got = store.read(&long).await;
    report.case("an absolute path of 3201 bytes", got.is_err(), got.map(|value| value.len()));
    for (name, kind, parts) in [
        ("introduce", XS_INTRODUCE, &[&b"1\0"[..], b"1\0", b"1\0"][..]),
        ("release", XS_RELEASE, &[&b"0\0"[..]]),
        ("resume", XS_RESUME, &[&b"0\0"[..]]),
        ("set_target", XS_SET_TARGET, &[&b"0\0"[..], b"1\0"]),
        ("is_introduced of nobody", XS_IS_DOMAIN_INTRODUCED, &[&b"x\0"[..]]),
        ("path of nobody", XS_GET_DOMAIN_PATH, &[&b"-1\0"[..]]),
        ("control", XS_CONTROL, &[&b"print\0"[..], b"x\0"]),
        ("type 99", 99, &[&b"x\0"[..]]),
        ("type -1", u32::MAX, &[&b"x\0"[..]]),
        ("an error as a request", XS_ERROR, &[&b"x\0"[..]]),
        ("an event as a request", XS_WATCH_EVENT, &[&b"x\0"[..], b"y\0"]),
        ("a read without an end", XS_READ, &[&b"name"[..]]),
        ("a watch without a token", XS_WATCH, &[&b"name\0"[..]]),
        ("an empty write", XS_WRITE, &[]),
        ("an empty set_perms", XS_SET_PERMS, &[&b"data\0"[..]]),
    ] {
        let got = store.request(kind, parts).await;
        report.case(name, got.is_err(), got);
    }
    let got = store.request(XS_SET_PERMS, &[b"data\0", b"n0\0"]).await;
    report.case("a node of one's own for dom0", got.is_err(), got);
    refused(
        report,
        "the end of no transaction",
        &store.request(XS_TRANSACTION_END, &[b"T\0"]).await,
        &[Errno::ENOENT, Errno::EINVAL],
    );
    floods(report, store).await;
}

async fn floods(report: &mut Report, store: &Xenstore) {
    let mut open = Vec::new();
    let full = loop {
        match store.begin().await {
            Ok(transaction) if open.len() < FLOOD => open.push(transaction),
            Ok(_) => break None,
            Err(error) => break Some(error),
        }
    };
    report.case("transactions without end", full.is_some(), (open.len(), &full));
    drop(open);
    let mut watches = Vec::new();
    let full = loop {
        match store.watch(&format!("data/w{}", watches.len())).await {
            Ok(watch) if watches.len() < FLOOD => watches.push(watch),
            Ok(_) => break None,
            Err(error) => break Some(error),
        }
    };
    report.case("watches without end", full.is_some(), (watches.len(), &full));
    drop(watches);
    let mut nodes = 0;
    let full = loop {
        match store.write(&format!("data/n{nodes}"), "x").await {
            Ok(()) if nodes < FLOOD => nodes += 1,
            Ok(()) => break None,
            Err(error) => break Some(error),
        }
    };
    report.case("nodes without end", full.is_some(), (nodes, &full));
    let mut kept = 0;
    for node in 0..nodes {
        kept += u32::from(store.rm(&format!("data/n{node}")).await.is_err());
    }
    report.case("all go", kept == 0, kept);
    let big = [b'x'; 4000];
    let got = store.write("data/big", big).await;
    report.case("a node of 4000 bytes", got.is_err(), &got);
    let got = store.write("data/small", "1").await;
    report.case("a small node after all", got.is_ok(), &got);
}

/// Sends a header that promises more than a message can hold, then writes invalid indices. The daemon must give this
/// ring up.
pub(crate) async fn break_ring(
    report: &mut Report,
    page: SharedBytes<'static>,
    number: ring_abi::types::Port,
) {
    // The client's task waits for answers that will not come, and does not write to the ring meanwhile.
    let header = XsdSockmsg { r#type: XS_READ, req_id: 1, tx_id: 0, len: 1 << 20 };
    let produced = page.load_u32(0x804);
    for (n, byte) in header.as_bytes().iter().enumerate() {
        page.store_u8((produced as usize + n) % 1024, *byte);
    }
    page.store_u32(0x804, produced.wrapping_add(size_of::<XsdSockmsg>() as u32));
    notify(number);
    time::sleep(200_000_000).await;
    let told = page.load_u32(ERROR_OFFSET);
    report.case("a message of a megabyte", true, told);
    page.store_u32(0x804, page.load_u32(0x800).wrapping_add(5000));
    page.store_u32(0x808, page.load_u32(0x80c).wrapping_add(77));
    notify(number);
    time::sleep(200_000_000).await;
    report.case("indices that cannot be", true, page.load_u32(ERROR_OFFSET));
    for _ in 0..1000 {
        notify(number);
    }
}

fn notify(number: ring_abi::types::Port) {
    let port = Port::adopt(number);
    port.notify();
    // The client owns the port, so the port is not closed here.
    core::mem::forget(port);
}
