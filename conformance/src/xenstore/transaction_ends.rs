//! How transactions end, which requests they may hold, and what a commit changes.

use super::*;
use crate::store::{Message, strings};

cases! {
    needs [Store];

    "xenstore.transaction.end-unknown" = end_unknown {
        title: "the end of no transaction",
        rule: "The tx_id of TRANSACTION_END must refer to an existing transaction.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.end-none" = end_none {
        title: "an end with tx_id 0",
        rule: "The tx_id of TRANSACTION_END must refer to an existing transaction, and 0 is none.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END; io/xs_wire.h, struct xsd_sockmsg",
    }
    "xenstore.transaction.end-twice" = end_twice {
        title: "a second end",
        rule: "After TRANSACTION_END the tx_id is no longer valid.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.use-after-end" = use_after_end {
        title: "reads and writes after the end",
        rule: "After TRANSACTION_END the tx_id is no longer valid.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.end-letter" = end_letter {
        title: "an end with neither T nor F",
        rule: "TRANSACTION_END's payload is T or F and a NUL.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.unknown-id" = unknown_id {
        title: "requests with a number that was never given",
        rule: "A tx_id is 0 or that of an existing transaction.",
        source: "docs/misc/xenstore.txt, TRANSACTION_START; io/xs_wire.h, struct xsd_sockmsg",
    }
    "xenstore.transaction.start-within" = start_within {
        title: "a start with a transaction's number",
        rule: "It is not legal to send a tx_id other than 0 in TRANSACTION_START.",
        source: "docs/misc/xenstore.txt, TRANSACTION_START",
    }
    "xenstore.transaction.remove" = remove {
        title: "a removal, before and after the commit",
        rule: "Changes of a transaction happen on a copy, removals too.",
        source: "docs/misc/xenstore.txt, TRANSACTION_START",
    }
    "xenstore.transaction.directory" = directory {
        title: "the children that a transaction made",
        rule: "A transaction's lists have what it changed; others' have not.",
        source: "docs/misc/xenstore.txt, TRANSACTION_START",
    }
    "xenstore.transaction.permissions" = permissions {
        title: "new permissions, before and after the commit",
        rule: "Changes of a transaction happen on a copy, permissions too.",
        source: "docs/misc/xenstore.txt, TRANSACTION_START",
        also: [DomU],
    }
    "xenstore.transaction.events-at-commit" = events_at_commit {
        title: "when a watch fires",
        rule: "Changes made in transactions cause an event only if and when committed.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.transaction.no-events-at-abort" = no_events {
        title: "a watch on what a discarded transaction wrote",
        rule: "Changes made in transactions cause an event only if and when committed.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.transaction.answer-has-id" = answer_has_id {
        title: "the header of answers, an error's too",
        rule: "An answer has the request's req_id and tx_id.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.transaction.empty" = empty {
        title: "transactions that do nothing",
        rule: "A transaction may be ended at once, by T or by F.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.reset" = reset {
        title: "a transaction's number after RESET_WATCHES",
        rule: "RESET_WATCHES resets all watches and transactions of the caller.",
        source: "docs/misc/xenstore.txt, RESET_WATCHES",
    }
    "xenstore.transaction.twenty-in-turn" = in_turn {
        title: "one after the other",
        rule: "A transaction that has ended takes nothing from those that come.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
}

async fn end_unknown(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for commit in [true, false] {
        refused_somehow(end(store, 0x7fff_fff0, commit).await?, "the end of no transaction")?;
    }
    Ok(())
}

async fn end_none(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    refused_somehow(end(store, 0, true).await?, "an end with tx_id 0")
}

async fn end_twice(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for commit in [true, false] {
        let tx = start(store).await?;
        ok(end(store, tx, commit).await?, "the first end")?;
        refused_somehow(end(store, tx, commit).await?, "the second end")?;
    }
    Ok(())
}

async fn use_after_end(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    let tx = start(store).await?;
    ok(end(store, tx, true).await?, "the end")?;
    refused_somehow(read_in(store, tx, &at("a")).await?, "a read")?;
    let payload = [nul(&at("a")), b"y".to_vec()].concat();
    refused_somehow(store.ask(XS_WRITE, tx, &payload).await?, "a write")?;
    holds(store, &at("a"), "x").await
}

async fn end_letter(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let tx = start(store).await?;
    refused(store.ask(XS_TRANSACTION_END, tx, &nul("X")).await?, &[Errno::EINVAL], "an end with X")?;
    // The daemon may have ended the transaction or not, so the case accepts both answers.
    end(store, tx, false).await?.ok();
    Ok(())
}

async fn unknown_id(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    let payload = [nul(&at("a")), b"y".to_vec()].concat();
    refused_somehow(read_in(store, 0x7fff_fff0, &at("a")).await?, "a read")?;
    refused_somehow(store.ask(XS_WRITE, 0x7fff_fff0, &payload).await?, "a write")?;
    refused_somehow(store.ask(XS_RM, 0xffff_ffff, &nul(&at("a"))).await?, "rm")?;
    holds(store, &at("a"), "x").await
}

async fn start_within(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let tx = start(store).await?;
    refused_somehow(store.ask(XS_TRANSACTION_START, tx, &nul("")).await?, "a start within a transaction")?;
    put_in(store, tx, &at("a"), "x").await?;
    ok(end(store, tx, true).await?, "commit of the outer one")?;
    holds(store, &at("a"), "x").await
}

async fn remove(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a/b"), "x").await?;
    let tx = start(store).await?;
    ok(store.ask(XS_RM, tx, &nul(&at("a"))).await?, "rm")?;
    refused(read_in(store, tx, &at("a/b")).await?, &[Errno::ENOENT], "read in the transaction")?;
    holds(store, &at("a/b"), "x").await?;
    ok(end(store, tx, true).await?, "commit")?;
    missing(store, &at("a/b")).await?;
    missing(store, &at("a")).await
}

async fn directory(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    let tx = start(store).await?;
    put_in(store, tx, &at("b"), "x").await?;
    ok(store.ask(XS_RM, tx, &nul(&at("a"))).await?, "rm")?;
    let inside = ok(store.ask(XS_DIRECTORY, tx, &nul(BASE)).await?, "directory")?;
    ensure_eq!(strings(&inside), ["b"], "the children in the transaction");
    ensure_eq!(store.directory(BASE).await?, Ok(["a".into()].into()), "the children outside");
    ok(end(store, tx, false).await?, "abort").map(drop)
}

async fn permissions(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    let before = store.ask(XS_GET_PERMS, 0, &nul(&at("a"))).await?;
    let entries = list(&[&format!("r{me}"), "w0"]);
    let tx = start(store).await?;
    let payload = [nul(&at("a")), entries.clone()].concat();
    ok(store.ask(XS_SET_PERMS, tx, &payload).await?, "set_perms")?;
    ensure_eq!(store.ask(XS_GET_PERMS, 0, &nul(&at("a"))).await?, before, "the permissions outside");
    ok(end(store, tx, true).await?, "commit")?;
    ensure_eq!(store.ask(XS_GET_PERMS, 0, &nul(&at("a"))).await?, Ok(entries), "after the commit");
    Ok(())
}

async fn events_at_commit(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, BASE, "t").await?;
    let tx = start(store).await?;
    put_in(store, tx, &at("a"), "x").await?;
    put_in(store, tx, &at("b"), "x").await?;
    quiet(store).await?;
    ok(end(store, tx, true).await?, "commit")?;
    let mut paths = Vec::new();
    for _ in 0..2 {
        paths.extend(store.event(EVENT_MS).await?.map(|event| event.path));
    }
    paths.sort();
    ensure_eq!(paths, [at("a"), at("b")], "paths of the events");
    Ok(())
}

async fn no_events(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("b"), "x").await?;
    watch(store, BASE, "t").await?;
    let tx = start(store).await?;
    put_in(store, tx, &at("a"), "x").await?;
    ok(store.ask(XS_RM, tx, &nul(&at("b"))).await?, "rm")?;
    ok(end(store, tx, false).await?, "abort")?;
    quiet(store).await
}

async fn answer_has_id(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let tx = start(store).await?;
    for (what, path) in [("an answer", BASE), ("an error", "data/conformance/none")] {
        let id = store.new_id();
        store.send(&Message::request(XS_READ, id, tx, &nul(path))).await?;
        let header = store.next_answer().await?.header;
        ensure_eq!((header.req_id, header.tx_id), (id, tx), "req_id and tx_id of {what}");
    }
    ok(end(store, tx, false).await?, "abort").map(drop)
}

async fn empty(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for commit in [true, false, true] {
        let tx = start(store).await?;
        ok(end(store, tx, commit).await?, "the end")?;
    }
    Ok(())
}

async fn reset(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let tx = start(store).await?;
    put_in(store, tx, &at("a"), "x").await?;
    let answer = store.ask(XS_RESET_WATCHES, 0, &nul("")).await?;
    require!(answer != Err(Errno::ENOSYS), "xenstored has no RESET_WATCHES");
    ok(answer, "reset_watches")?;
    refused_somehow(end(store, tx, true).await?, "the commit after the reset")?;
    missing(store, &at("a")).await
}

async fn in_turn(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for number in 0..20 {
        let tx = start(store).await?;
        put_in(store, tx, &at(&format!("n{number}")), "x").await?;
        ok(end(store, tx, number % 3 != 0).await?, "the end")?;
    }
    let kept = ok(store.directory(BASE).await?, "directory")?.len();
    ensure_eq!(kept, 13, "nodes of committed transactions");
    Ok(())
}
