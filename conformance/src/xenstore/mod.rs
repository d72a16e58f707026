//! The xenstore protocol, from a domain's end of the ring.
//!
//! Each case works below `data/conformance` of its own domain, the one directory that every toolstack gives a guest
//! to write in, and starts with nothing there, without watches and transactions. Where the protocol's document leaves
//! a choice, or the C and OCaml daemons differ, a case accepts each permitted answer.
//!
//! ABI: `xen/include/public/io/xs_wire.h`; protocol: `docs/misc/xenstore.txt`, `docs/misc/xenstore-ring.txt`.

pub mod broken;
pub mod domains;
pub mod framing;
pub mod limits;
pub mod paths;
pub mod perms;
pub mod requests;
pub mod transaction_ends;
pub mod transactions;
pub mod tree;
pub mod unwatch;
pub mod values;
pub mod watches;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ring_abi::errno::Errno;
use ring_abi::io::xs_wire::*;

use crate::store::{Answer, Store, nul};
use crate::{Env, Problem, Verdict};

/// The directory of the cases.
const BASE: &str = "data/conformance";

/// How long a case waits for an event that must come.
const EVENT_MS: u64 = 5_000;

/// How long a case waits for an event that must not come, after the daemon has answered a later request.
const QUIET_MS: u64 = 20;

/// Returns the connection, after making an empty directory at [`BASE`].
async fn fresh(env: &mut Env) -> Verdict<&mut Store> {
    let store = env.store()?;
    // A daemon without this request has at most the watches that an earlier case failed to take away.
    store.ask(XS_RESET_WATCHES, 0, &nul("")).await?.ok();
    store.remove(BASE).await?.ok();
    ok(store.ask(XS_MKDIR, 0, &nul(BASE)).await?, "mkdir of the cases' directory")?;
    store.drop_events().await?;
    Ok(store)
}

/// A path below [`BASE`].
fn at(name: &str) -> String {
    format!("{BASE}/{name}")
}

/// Several strings, each with its NUL.
fn list(parts: &[&str]) -> Vec<u8> {
    parts.iter().flat_map(|part| nul(part)).collect()
}

/// Returns the answer's payload; an error fails the case.
fn ok<T>(answer: Answer<T>, what: &str) -> Verdict<T> {
    answer.map_err(|error| Problem::Fail(format!("{what}: {error}")))
}

/// Checks that the answer is one of `errors`.
fn refused<T>(answer: Answer<T>, errors: &[Errno], what: &str) -> Verdict {
    match answer {
        Ok(_) => Err(Problem::Fail(format!("{what} succeeded"))),
        Err(error) if errors.is_empty() || errors.contains(&error) => Ok(()),
        Err(error) => Err(Problem::Fail(format!("{what}: {error}, not {errors:?}"))),
    }
}

/// Checks that the answer is an error.
fn refused_somehow<T>(answer: Answer<T>, what: &str) -> Verdict {
    refused(answer, &[], what)
}

/// Writes a node, and checks that the daemon accepts it.
async fn put(store: &mut Store, path: &str, value: &str) -> Verdict {
    ok(store.write(path, value).await?, &format!("write of {path}")).map(drop)
}

/// Checks that a node has this value.
async fn holds(store: &mut Store, path: &str, value: &str) -> Verdict {
    ensure_eq!(store.read(path).await?, Ok(String::from(value)), "the value of {path}");
    Ok(())
}

/// Checks that a node does not exist.
async fn missing(store: &mut Store, path: &str) -> Verdict {
    refused(store.read(path).await?, &[Errno::ENOENT], &format!("read of {path}"))
}

/// Writes a node in a transaction.
async fn put_in(store: &mut Store, tx: u32, path: &str, value: &str) -> Verdict {
    let payload = [nul(path), value.as_bytes().to_vec()].concat();
    ok(store.ask(XS_WRITE, tx, &payload).await?, &format!("write of {path} in a transaction")).map(drop)
}

/// A node's value in a transaction.
async fn read_in(store: &mut Store, tx: u32, path: &str) -> Verdict<Answer<String>> {
    let answer = store.ask(XS_READ, tx, &nul(path)).await?;
    Ok(answer.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

/// Starts a transaction.
async fn start(store: &mut Store) -> Verdict<u32> {
    let id = ok(store.ask(XS_TRANSACTION_START, 0, &nul("")).await?, "transaction start")?;
    let text = String::from_utf8_lossy(id.strip_suffix(&[0]).unwrap_or(&id)).into_owned();
    text.parse().map_err(|_| Problem::Fail(format!("the transaction's id is {text:?}")))
}

/// Ends a transaction.
async fn end(store: &mut Store, tx: u32, commit: bool) -> Verdict<Answer> {
    store.ask(XS_TRANSACTION_END, tx, &nul(if commit { "T" } else { "F" })).await
}

/// Waits for an event; spurious events may come before it.
async fn seen(store: &mut Store, path: &str, token: &str) -> Verdict {
    let mut others = Vec::new();
    while let Some(event) = store.event(EVENT_MS).await? {
        if event.path == path && event.token == token {
            return Ok(());
        }
        others.push((event.path, event.token));
    }
    Err(Problem::Fail(format!("no event for {path} with token {token:?}; others: {others:?}")))
}

/// Sets a watch and takes its first event.
async fn watch(store: &mut Store, path: &str, token: &str) -> Verdict {
    ok(store.watch(path, token).await?, &format!("watch on {path}"))?;
    seen(store, path, token).await
}

/// Checks that no event has come, and that none comes now.
async fn quiet(store: &mut Store) -> Verdict {
    store.read("domid").await?.ok();
    match store.event(QUIET_MS).await? {
        None => Ok(()),
        Some(event) => {
            Err(Problem::Fail(format!("an event for {} with token {:?}", event.path, event.token)))
        }
    }
}

/// The own domain's number.
async fn own_id(store: &mut Store) -> Verdict<String> {
    match store.read("domid").await? {
        Ok(id) => Ok(id),
        Err(error) => Err(Problem::Skip(format!("the toolstack wrote no domid: {error}"))),
    }
}
