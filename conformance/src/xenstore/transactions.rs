//! Transactions: what they see, what a commit writes, and which changes conflict.

use super::*;
use crate::store::strings;

cases! {
    needs [Store];

    "xenstore.transaction.id" = id {
        title: "the number of a new transaction",
        rule: "TRANSACTION_START gives an uint32_t as unsigned decimal, with a NUL.",
        source: "docs/misc/xenstore.txt, TRANSACTION_START",
    }
    "xenstore.transaction.ids-differ" = ids_differ {
        title: "two transactions at a time",
        rule: "A transaction's number refers to one transaction.",
        source: "docs/misc/xenstore.txt, TRANSACTION_START",
    }
    "xenstore.transaction.hidden" = hidden {
        title: "a write that is not yet committed",
        rule: "Reads and writes of a transaction happen on a copy.",
        source: "docs/misc/xenstore.txt, TRANSACTION_START",
    }
    "xenstore.transaction.own-writes" = own_writes {
        title: "a transaction reads what it wrote",
        rule: "Reads and writes of a transaction happen on one copy.",
        source: "docs/misc/xenstore.txt, TRANSACTION_START",
    }
    "xenstore.transaction.commit" = commit {
        title: "all writes after the commit",
        rule: "TRANSACTION_END with T commits.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.abort" = abort {
        title: "no write after the abort",
        rule: "TRANSACTION_END with F discards the transaction.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.stable-read" = stable_read {
        title: "a value that somebody changes meanwhile",
        rule: "Reads of a transaction happen on a copy: what it has read stays as it was.",
        source: "docs/misc/xenstore.txt, TRANSACTION_START",
    }
    "xenstore.transaction.conflict" = conflict {
        title: "a value that was read, changed meanwhile",
        rule: "If a path that was read in the transaction was changed meanwhile, its END gets EAGAIN.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.conflict-leaves-nothing" = conflict_leaves_nothing {
        title: "what a transaction with EAGAIN wrote",
        rule: "A transaction that was not committed has changed nothing.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.retry" = retry {
        title: "the same again after EAGAIN",
        rule: "After EAGAIN a new transaction can do the same, and commits if nothing intervenes.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.all-or-nothing" = all_or_nothing {
        title: "two transactions that write the same nodes",
        rule: "Of each transaction either all changes are there or none.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.conflict-abort" = conflict_abort {
        title: "discarding a transaction that has a conflict",
        rule: "If F, the transaction is discarded: there is nothing to conflict.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.conflict-directory" = conflict_directory {
        title: "a list of children that changed meanwhile",
        rule: "A list of children is read like a value: a change of it meanwhile is a conflict.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }
    "xenstore.transaction.conflict-missing" = conflict_missing {
        title: "a node that was not there, made meanwhile",
        rule: "That a path does not exist is read like a value: its creation meanwhile is a conflict.",
        source: "docs/misc/xenstore.txt, TRANSACTION_END",
    }

}

async fn id(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let payload = ok(store.ask(XS_TRANSACTION_START, 0, &nul("")).await?, "transaction start")?;
    ensure!(payload.ends_with(&[0]), "the number does not end with a NUL: {payload:?}");
    let text = strings(&payload).pop().unwrap_or_default();
    let number = text.parse::<u32>().unwrap_or(0);
    ensure!(number != 0 && text == format!("{number}"), "the number is {text:?}");
    ok(end(store, number, false).await?, "abort").map(drop)
}

async fn ids_differ(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let (one, two) = (start(store).await?, start(store).await?);
    ensure!(one != two, "both transactions are number {one}");
    put_in(store, one, &at("a"), "one").await?;
    put_in(store, two, &at("b"), "two").await?;
    refused(read_in(store, one, &at("b")).await?, &[Errno::ENOENT], "reading what the other wrote")?;
    ok(end(store, one, false).await?, "abort of the first")?;
    ensure_eq!(read_in(store, two, &at("b")).await?, Ok("two".into()), "the second's value");
    ok(end(store, two, false).await?, "abort of the second").map(drop)
}

async fn hidden(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "old").await?;
    let tx = start(store).await?;
    put_in(store, tx, &at("a"), "new").await?;
    put_in(store, tx, &at("b"), "new").await?;
    holds(store, &at("a"), "old").await?;
    missing(store, &at("b")).await?;
    ok(end(store, tx, false).await?, "abort").map(drop)
}

async fn own_writes(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "old").await?;
    let tx = start(store).await?;
    put_in(store, tx, &at("a"), "new").await?;
    ensure_eq!(read_in(store, tx, &at("a")).await?, Ok("new".into()), "the value in the transaction");
    put_in(store, tx, &at("b/c"), "made").await?;
    ensure_eq!(read_in(store, tx, &at("b")).await?, Ok(String::new()), "the parent that the write made");
    ok(end(store, tx, false).await?, "abort").map(drop)
}

async fn commit(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "old").await?;
    let tx = start(store).await?;
    for name in ["a", "b", "c/d"] {
        put_in(store, tx, &at(name), "new").await?;
    }
    ensure_eq!(end(store, tx, true).await?, Ok(b"OK\0".to_vec()), "the answer");
    for name in ["a", "b", "c/d"] {
        holds(store, &at(name), "new").await?;
    }
    Ok(())
}

async fn abort(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "old").await?;
    let tx = start(store).await?;
    put_in(store, tx, &at("a"), "new").await?;
    put_in(store, tx, &at("b"), "new").await?;
    ensure_eq!(end(store, tx, false).await?, Ok(b"OK\0".to_vec()), "the answer");
    holds(store, &at("a"), "old").await?;
    missing(store, &at("b")).await
}

async fn stable_read(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "old").await?;
    let tx = start(store).await?;
    ensure_eq!(read_in(store, tx, &at("a")).await?, Ok("old".into()), "the first read");
    put(store, &at("a"), "new").await?;
    ensure_eq!(read_in(store, tx, &at("a")).await?, Ok("old".into()), "the second read");
    ok(end(store, tx, false).await?, "abort").map(drop)
}

/// Starts a transaction that conflicts: it has read `a`, which was changed afterwards, and has written `b`.
async fn conflicting(store: &mut Store) -> Verdict<u32> {
    put(store, &at("a"), "old").await?;
    let tx = start(store).await?;
    ensure_eq!(read_in(store, tx, &at("a")).await?, Ok("old".into()), "the value");
    put_in(store, tx, &at("b"), "from old").await?;
    put(store, &at("a"), "new").await?;
    Ok(tx)
}

async fn conflict(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let tx = conflicting(store).await?;
    refused(end(store, tx, true).await?, &[Errno::EAGAIN], "the commit")
}

async fn conflict_leaves_nothing(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let tx = conflicting(store).await?;
    refused(end(store, tx, true).await?, &[Errno::EAGAIN], "the commit")?;
    missing(store, &at("b")).await?;
    holds(store, &at("a"), "new").await?;
    refused_somehow(end(store, tx, true).await?, "a second commit")
}

async fn retry(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let tx = conflicting(store).await?;
    refused(end(store, tx, true).await?, &[Errno::EAGAIN], "the commit")?;
    // In a running system another client's change may cause a conflict, but not ten times in a row.
    for _ in 0..10 {
        let tx = start(store).await?;
        ensure_eq!(read_in(store, tx, &at("a")).await?, Ok("new".into()), "the value");
        put_in(store, tx, &at("b"), "from new").await?;
        match end(store, tx, true).await? {
            Ok(_) => return holds(store, &at("b"), "from new").await,
            Err(error) => ensure_eq!(error, Errno::EAGAIN, "the second commit"),
        }
    }
    Err(Problem::Fail("ten commits got EAGAIN with nothing between".into()))
}

async fn all_or_nothing(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let (one, two) = (start(store).await?, start(store).await?);
    for (tx, value) in [(one, "one"), (two, "two")] {
        put_in(store, tx, &at("a"), value).await?;
        put_in(store, tx, &at("b"), value).await?;
    }
    ok(end(store, one, true).await?, "the first commit")?;
    let winner = match end(store, two, true).await? {
        Ok(_) => "two",
        Err(error) => {
            ensure_eq!(error, Errno::EAGAIN, "the second commit");
            "one"
        }
    };
    holds(store, &at("a"), winner).await?;
    holds(store, &at("b"), winner).await
}

async fn conflict_abort(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let tx = conflicting(store).await?;
    ok(end(store, tx, false).await?, "abort")?;
    missing(store, &at("b")).await
}

async fn conflict_directory(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("dir/a"), "x").await?;
    let tx = start(store).await?;
    ok(store.ask(XS_DIRECTORY, tx, &nul(&at("dir"))).await?, "directory")?;
    put_in(store, tx, &at("count"), "1").await?;
    put(store, &at("dir/b"), "x").await?;
    refused(end(store, tx, true).await?, &[Errno::EAGAIN], "the commit")
}

async fn conflict_missing(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let tx = start(store).await?;
    refused(read_in(store, tx, &at("a")).await?, &[Errno::ENOENT], "read")?;
    put_in(store, tx, &at("b"), "there was no a").await?;
    put(store, &at("a"), "x").await?;
    refused(end(store, tx, true).await?, &[Errno::EAGAIN], "the commit")
}
