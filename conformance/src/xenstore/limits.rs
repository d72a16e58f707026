//! Limits on what the daemon keeps for one domain.

use super::*;

cases! {
    needs [Store, DomU];

    "xenstore.limit.transactions" = transactions {
        title: "transactions until one is refused",
        rule: "A guest that is at a limit gets an error, and can go on when it has given something back.",
        source: "docs/misc/xenstore.txt, TRANSACTION_START; io/xs_wire.h, xsd_errors",
    }
    "xenstore.limit.watches" = watches {
        title: "watches until one is refused",
        rule: "A guest that is at a limit gets an error, and can go on when it has given something back.",
        source: "docs/misc/xenstore.txt, WATCH; io/xs_wire.h, xsd_errors",
        limit_ms: 60_000,
    }
    "xenstore.limit.nodes" = nodes {
        title: "nodes until one is refused",
        rule: "A guest that is at a limit gets an error, and can go on when it has given something back.",
        source: "docs/misc/xenstore.txt, WRITE; io/xs_wire.h, xsd_errors",
        limit_ms: 120_000,
    }
    "xenstore.limit.freed-by-rm" = freed {
        title: "six hundred nodes made and removed, three times",
        rule: "Nodes that were removed no longer count.",
        source: "docs/misc/xenstore.txt, RM",
        limit_ms: 120_000,
    }
}

/// The errors by which a daemon reports a limit. The OCaml daemon answers EQUOTA, which `xs_wire.h` does not have:
/// clients read an unknown name as EINVAL.
const AT_LIMIT: [Errno; 6] =
    [Errno::ENOSPC, Errno::E2BIG, Errno::EBUSY, Errno::ENOMEM, Errno::EAGAIN, Errno::EINVAL];

async fn transactions(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let mut open = Vec::new();
    let refusal = loop {
        match store.ask(XS_TRANSACTION_START, 0, &nul("")).await? {
            Ok(id) => {
                let text = String::from_utf8_lossy(&id).into_owned();
                let id = text.trim_end_matches('\0').parse();
                open.push(id.map_err(|_| Problem::Fail(format!("the number is {text:?}")))?);
            }
            Err(error) => break Some(error),
        }
        if open.len() > 200 {
            break None;
        }
    };
    ensure!(open.len() >= 2, "refused after {} transactions", open.len());
    let last = open.pop().unwrap_or_default();
    ok(end(store, last, false).await?, "abort of the last")?;
    let next = start(store).await?;
    open.push(next);
    for id in open {
        ok(end(store, id, false).await?, "abort")?;
    }
    let Some(error) = refusal else { return Err(Problem::Skip("200 transactions are taken here".into())) };
    ensure!(AT_LIMIT.contains(&error), "the refusal is {error}");
    Ok(())
}

async fn watches(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let mut count = 0;
    let refusal = loop {
        match store.watch(&at("a"), &format!("{count}")).await? {
            Ok(_) => count += 1,
            Err(error) => break Some(error),
        }
        store.drop_events().await?;
        if count > 1000 {
            break None;
        }
    };
    ensure!(count >= 16, "refused after {count} watches");
    ok(store.unwatch(&at("a"), "0").await?, "unwatch")?;
    watch(store, &at("a"), "again").await?;
    store.ask(XS_RESET_WATCHES, 0, &nul("")).await?.ok();
    let Some(error) = refusal else { return Err(Problem::Skip("1000 watches are taken here".into())) };
    ensure!(AT_LIMIT.contains(&error), "the refusal is {error}");
    Ok(())
}

/// A different path for each number, with few nodes below each directory.
fn spread(number: usize) -> String {
    at(&format!("d{}/n{}", number / 40, number % 40))
}

async fn nodes(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let mut count = 0;
    let refusal = loop {
        match store.write(&spread(count), "x").await? {
            Ok(_) => count += 1,
            Err(error) => break Some(error),
        }
        if count > 3000 {
            break None;
        }
    };
    ensure!(count >= 100, "refused after {count} nodes");
    if refusal.is_some() {
        missing(store, &spread(count)).await?;
        ok(store.remove(&spread(0)).await?, "rm")?;
        put(store, &spread(1).replace("/n1", "/other"), "x").await?;
    }
    ok(store.remove(BASE).await?, "rm of all")?;
    put(store, &at("a"), "x").await?;
    let Some(error) = refusal else { return Err(Problem::Skip("3000 nodes are taken here".into())) };
    ensure!(AT_LIMIT.contains(&error), "the refusal is {error}");
    Ok(())
}

async fn freed(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for round in 0..3 {
        for number in 0..600 {
            let answer = store.write(&spread(number), "x").await?;
            if round == 0 && answer.is_err() {
                return Err(Problem::Skip(format!("{number} nodes are the limit here")));
            }
            ok(answer, &format!("node {number} of round {round}"))?;
        }
        ok(store.remove(BASE).await?, "rm of all")?;
    }
    Ok(())
}
