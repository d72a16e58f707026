//! How watches end: one by one, and all at once.

use super::*;

cases! {
    needs [Store];

    "xenstore.unwatch.stops" = stops {
        title: "no events after unwatch",
        rule: "UNWATCH takes a watch away.",
        source: "docs/misc/xenstore.txt, UNWATCH",
    }
    "xenstore.unwatch.one-of-two" = one_of_two {
        title: "the other token's watch stays",
        rule: "UNWATCH takes away the watch of this path and this token.",
        source: "docs/misc/xenstore.txt, UNWATCH",
    }
    "xenstore.unwatch.unknown" = unwatch_unknown {
        title: "a watch that was never set",
        rule: "UNWATCH of no watch gives ENOENT.",
        source: "docs/misc/xenstore.txt, UNWATCH; io/xs_wire.h, xsd_errors",
    }
    "xenstore.unwatch.other-token" = other_token {
        title: "the right path with a wrong token",
        rule: "A watch is known by its path and its token together.",
        source: "docs/misc/xenstore.txt, UNWATCH",
    }
    "xenstore.unwatch.again" = unwatch_again {
        title: "set, taken away, and set once more",
        rule: "After UNWATCH the same watch can be set again, and fires at once again.",
        source: "docs/misc/xenstore.txt, WATCH, UNWATCH",
    }
    "xenstore.reset-watches.all" = reset {
        title: "no events after a reset",
        rule: "RESET_WATCHES resets all watches of the caller.",
        source: "docs/misc/xenstore.txt, RESET_WATCHES",
    }
    "xenstore.reset-watches.again" = reset_again {
        title: "the same watch after a reset",
        rule: "After RESET_WATCHES the same watches can be set again.",
        source: "docs/misc/xenstore.txt, RESET_WATCHES",
    }
}

async fn stops(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, &at("a"), "t").await?;
    ensure_eq!(store.unwatch(&at("a"), "t").await?, Ok(b"OK\0".to_vec()), "the answer");
    put(store, &at("a"), "x").await?;
    quiet(store).await
}

async fn one_of_two(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, &at("a"), "one").await?;
    watch(store, &at("a"), "two").await?;
    ok(store.unwatch(&at("a"), "one").await?, "unwatch")?;
    put(store, &at("a"), "x").await?;
    seen(store, &at("a"), "two").await?;
    quiet(store).await
}

async fn unwatch_unknown(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    refused(store.unwatch(&at("a"), "t").await?, &[Errno::ENOENT], "unwatch")
}

async fn other_token(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, &at("a"), "t").await?;
    refused(store.unwatch(&at("a"), "u").await?, &[Errno::ENOENT], "unwatch with another token")?;
    refused(store.unwatch(&at("b"), "t").await?, &[Errno::ENOENT], "unwatch of another path")?;
    put(store, &at("a"), "x").await?;
    seen(store, &at("a"), "t").await
}

async fn unwatch_again(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for _ in 0..3 {
        watch(store, &at("a"), "t").await?;
        ok(store.unwatch(&at("a"), "t").await?, "unwatch")?;
    }
    refused(store.unwatch(&at("a"), "t").await?, &[Errno::ENOENT], "one unwatch more")
}

async fn reset_watches(store: &mut Store) -> Verdict {
    match store.ask(XS_RESET_WATCHES, 0, &nul("")).await? {
        Ok(_) => Ok(()),
        Err(Errno::ENOSYS) => Err(Problem::Skip("xenstored has no RESET_WATCHES".into())),
        Err(error) => Err(Problem::Fail(format!("reset_watches: {error}"))),
    }
}

async fn reset(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, &at("a"), "one").await?;
    watch(store, &at("b"), "two").await?;
    reset_watches(store).await?;
    put(store, &at("a"), "x").await?;
    put(store, &at("b"), "x").await?;
    quiet(store).await
}

async fn reset_again(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, &at("a"), "t").await?;
    reset_watches(store).await?;
    watch(store, &at("a"), "t").await?;
    put(store, &at("a"), "x").await?;
    seen(store, &at("a"), "t").await
}
