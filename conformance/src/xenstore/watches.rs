//! Watches: when they fire, and with which path and token.

use super::*;

cases! {
    needs [Store];

    "xenstore.watch.fires-at-once" = at_once {
        title: "the event of the watch itself",
        rule: "When a watch is first set up it is triggered once straight away, with the path it was set on.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.fires-at-once-missing" = at_once_missing {
        title: "a watch on a node that is not there",
        rule: "A watch is triggered once straight away, whether its path exists or not.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.write" = write {
        title: "a write to the node",
        rule: "A change of contents generates an event.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.same-value" = same_value {
        title: "a write of the value that is there",
        rule: "Drivers use writes of equal values to be looked at again: each write generates an event.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.creation" = creation {
        title: "the node is made",
        rule: "Creation of a path generates an event, of WRITE and of MKDIR.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.child" = child {
        title: "a write two levels below",
        rule: "The event's path is the path that was modified; it matches if it is a child of the watch's.",
        source: "docs/misc/xenstore.txt, WATCH, WATCH_EVENT",
    }
    "xenstore.watch.removal" = removal {
        title: "the node is removed",
        rule: "Removal of a path generates an event.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.child-removal" = child_removal {
        title: "a child is removed",
        rule: "Removal of a child generates an event with the child's path.",
        source: "docs/misc/xenstore.txt, WATCH, WATCH_EVENT",
    }
    "xenstore.watch.parent-removal" = parent_removal {
        title: "a directory above is removed",
        rule: "If the event was the recursive removal of a parent, its path is the watch's own.",
        source: "docs/misc/xenstore.txt, WATCH_EVENT",
    }
    "xenstore.watch.permissions" = permissions {
        title: "new permissions",
        rule: "A change of permissions generates an event.",
        source: "docs/misc/xenstore.txt, WATCH",
        also: [DomU],
    }
    "xenstore.watch.relative" = relative {
        title: "paths of events for a relative watch",
        rule: "If the watch's path was relative, the event's is too.",
        source: "docs/misc/xenstore.txt, WATCH_EVENT",
    }
    "xenstore.watch.absolute" = absolute {
        title: "paths of events for an absolute watch",
        rule: "Only if the watch's path was relative is the event's relative.",
        source: "docs/misc/xenstore.txt, WATCH_EVENT",
    }
    "xenstore.watch.token" = token {
        title: "tokens of several kinds come back",
        rule: "A token is a string without NUL, given back as it was sent.",
        source: "docs/misc/xenstore.txt, WATCH, WATCH_EVENT",
    }
    "xenstore.watch.two-tokens" = two_tokens {
        title: "two watches on one node",
        rule: "Each event is matched against all watches, and each that matches gets one.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.nested" = nested {
        title: "watches on a node and on its parent",
        rule: "Each event is matched against all watches, and each that matches gets one.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.twice" = twice {
        title: "the same path and token again",
        rule: "A watch that is already set gives EEXIST.",
        source: "docs/misc/xenstore.txt, WATCH; io/xs_wire.h, xsd_errors",
    }
    "xenstore.watch.sibling" = sibling {
        title: "a node whose name begins with the watch's",
        rule: "The event's path matches if it is a child of the watch's, not if it starts with the same letters.",
        source: "docs/misc/xenstore.txt, introduction, WATCH",
    }
    "xenstore.watch.parent-write" = parent_write {
        title: "a write to the directory above",
        rule: "A change of a parent is no change of the child.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.read" = read {
        title: "requests that change nothing",
        rule: "Events are generated when a path is modified.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.refused-write" = refused_write {
        title: "a write that is refused",
        rule: "A request answered with ERROR has changed nothing, and generates no event.",
        source: "docs/misc/xenstore.txt, WATCH, ERROR",
    }
    "xenstore.watch.order" = order {
        title: "events of several writes",
        rule: "Events come in the order of the changes, none lost.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.burst" = burst {
        title: "changes of a hundred nodes before the first event is read",
        rule: "No event is lost for as long as the client is within its limits.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.last-change" = last_change {
        title: "sixty changes of one node before the first event is read",
        rule: "Equal events may become one, but after a change there is an event.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.header" = header {
        title: "the header of an event",
        rule: "In a WATCH_EVENT req_id and tx_id are both 0.",
        source: "docs/misc/xenstore.txt, WATCH_EVENT",
    }
    "xenstore.watch.bad-path" = bad_path {
        title: "a watch on a path that cannot be",
        rule: "A watch's path is a path, or special and begins with an atsign.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.no-token" = no_token {
        title: "a watch without a token",
        rule: "The payload of WATCH is a path and a token, each followed by a NUL.",
        source: "docs/misc/xenstore.txt, WATCH",
    }
    "xenstore.watch.in-transaction" = in_transaction {
        title: "a watch set with a transaction's id",
        rule: "The tx_id in a WATCH request is ignored.",
        source: "docs/misc/xenstore.txt, WATCH",
    }

}

async fn at_once(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    ok(store.watch(&at("a"), "t").await?, "watch")?;
    seen(store, &at("a"), "t").await?;
    quiet(store).await
}

async fn at_once_missing(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, &at("a/b/c"), "t").await?;
    missing(store, &at("a")).await?;
    put(store, &at("a/b/c"), "x").await?;
    seen(store, &at("a/b/c"), "t").await
}

async fn write(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    watch(store, &at("a"), "t").await?;
    for value in ["y", "z", ""] {
        put(store, &at("a"), value).await?;
        seen(store, &at("a"), "t").await?;
    }
    Ok(())
}

async fn same_value(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    watch(store, &at("a"), "t").await?;
    put(store, &at("a"), "x").await?;
    seen(store, &at("a"), "t").await
}

async fn creation(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, &at("a"), "t").await?;
    put(store, &at("a"), "x").await?;
    seen(store, &at("a"), "t").await?;
    watch(store, &at("b"), "u").await?;
    ok(store.ask(XS_MKDIR, 0, &nul(&at("b"))).await?, "mkdir")?;
    seen(store, &at("b"), "u").await
}

async fn child(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, BASE, "t").await?;
    put(store, &at("a"), "x").await?;
    seen(store, &at("a"), "t").await?;
    put(store, &at("a/b"), "x").await?;
    seen(store, &at("a/b"), "t").await
}

async fn removal(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    watch(store, &at("a"), "t").await?;
    ok(store.remove(&at("a")).await?, "rm")?;
    seen(store, &at("a"), "t").await
}

async fn child_removal(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a/b"), "x").await?;
    watch(store, &at("a"), "t").await?;
    ok(store.remove(&at("a/b")).await?, "rm")?;
    seen(store, &at("a/b"), "t").await
}

async fn parent_removal(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a/b/c"), "x").await?;
    watch(store, &at("a/b/c"), "t").await?;
    ok(store.remove(&at("a")).await?, "rm")?;
    seen(store, &at("a/b/c"), "t").await
}

async fn permissions(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    watch(store, &at("a"), "t").await?;
    let payload = list(&[&at("a"), &format!("r{me}")]);
    ok(store.ask(XS_SET_PERMS, 0, &payload).await?, "set_perms")?;
    seen(store, &at("a"), "t").await
}

async fn relative(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let id = own_id(store).await?;
    watch(store, BASE, "t").await?;
    put(store, &format!("/local/domain/{id}/{}", at("a")), "x").await?;
    seen(store, &at("a"), "t").await
}

async fn absolute(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let id = own_id(store).await?;
    let full = |name: &str| format!("/local/domain/{id}/{}", at(name));
    watch(store, &full("a"), "t").await?;
    put(store, &at("a/b"), "x").await?;
    seen(store, &full("a/b"), "t").await?;
    ok(store.unwatch(&full("a"), "t").await?, "unwatch by the absolute path").map(drop)
}

async fn token(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let long = "0123456789".repeat(20);
    for token in ["t", "two words", "/path/like", "backend:0x1234", "\u{1}\u{7f}", "=,;%", &long] {
        watch(store, &at("a"), token).await?;
        ok(store.unwatch(&at("a"), token).await?, "unwatch")?;
    }
    Ok(())
}

async fn two_tokens(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for token in ["one", "two"] {
        watch(store, &at("a"), token).await?;
    }
    put(store, &at("a"), "x").await?;
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let Some(event) = store.event(EVENT_MS).await? else { break };
        ensure_eq!(event.path, at("a"), "the event's path");
        tokens.push(event.token);
    }
    tokens.sort();
    ensure_eq!(tokens, ["one", "two"], "tokens of the events");
    Ok(())
}

async fn nested(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, &at("a"), "upper").await?;
    watch(store, &at("a/b"), "lower").await?;
    put(store, &at("a"), "x").await?;
    seen(store, &at("a"), "upper").await?;
    store.drop_events().await?;
    put(store, &at("a/b"), "x").await?;
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let Some(event) = store.event(EVENT_MS).await? else { break };
        ensure_eq!(event.path, at("a/b"), "the event's path");
        tokens.push(event.token);
    }
    tokens.sort();
    ensure_eq!(tokens, ["lower", "upper"], "tokens of the events");
    Ok(())
}

async fn twice(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, &at("a"), "t").await?;
    refused(store.watch(&at("a"), "t").await?, &[Errno::EEXIST], "the same watch")?;
    store.drop_events().await?;
    put(store, &at("a"), "x").await?;
    seen(store, &at("a"), "t").await?;
    quiet(store).await
}

async fn sibling(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, &at("ab"), "t").await?;
    for name in ["abc", "ab-c", "a", "abc/d"] {
        put(store, &at(name), "x").await?;
    }
    quiet(store).await
}

async fn parent_write(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a/b"), "x").await?;
    watch(store, &at("a/b"), "t").await?;
    put(store, &at("a"), "y").await?;
    put(store, &at("a/c"), "y").await?;
    quiet(store).await
}

async fn read(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    watch(store, &at("a"), "t").await?;
    holds(store, &at("a"), "x").await?;
    ok(store.directory(&at("a")).await?, "directory")?;
    ok(store.ask(XS_GET_PERMS, 0, &nul(&at("a"))).await?, "get_perms")?;
    quiet(store).await
}

async fn refused_write(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, BASE, "t").await?;
    refused_somehow(store.write(&at("a b"), "x").await?, "a write to a bad path")?;
    refused_somehow(store.remove(&at("a/b/c")).await?, "rm below what is not there")?;
    quiet(store).await
}

async fn order(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, BASE, "t").await?;
    let names = ["c", "a", "b", "a", "c"];
    for name in names {
        put(store, &at(name), "x").await?;
    }
    for name in names {
        let event = store.event(EVENT_MS).await?;
        ensure_eq!(event.map(|event| event.path), Some(at(name)), "the next event's path");
    }
    Ok(())
}

async fn burst(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, BASE, "t").await?;
    // Sends all requests before it reads an answer, so that answers and events wait in the ring and in the
    // daemon.
    for number in 0..100 {
        let payload = nul(&at(&format!("n{number}")));
        let id = store.new_id();
        store.send(&crate::store::Message::request(XS_WRITE, id, 0, &payload)).await?;
    }
    for number in 0..100 {
        seen(store, &at(&format!("n{number}")), "t").await?;
    }
    Ok(())
}

async fn last_change(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    watch(store, &at("a"), "t").await?;
    for number in 0..60 {
        let payload = [nul(&at("a")), format!("{number}").into_bytes()].concat();
        let id = store.new_id();
        store.send(&crate::store::Message::request(XS_WRITE, id, 0, &payload)).await?;
    }
    // A client that reads the node at each event has read the node's last value after the last event.
    loop {
        ensure!(store.event(EVENT_MS).await?.is_some(), "no event after the last change");
        if store.read(&at("a")).await? == Ok("59".into()) {
            return Ok(());
        }
    }
}

async fn header(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    ok(store.watch(&at("a"), "t").await?, "watch")?;
    let Some(event) = store.event(EVENT_MS).await? else {
        return Err(Problem::Fail("no event of the watch itself".into()));
    };
    ensure_eq!((event.req_id, event.tx_id), (0, 0), "req_id and tx_id");
    Ok(())
}

async fn bad_path(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for path in ["", "a b", "a//b", "a/", "//"] {
        refused(store.watch(path, "t").await?, &[Errno::EINVAL], &format!("a watch on {path:?}"))?;
    }
    quiet(store).await
}

async fn no_token(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    refused(store.ask(XS_WATCH, 0, &nul(&at("a"))).await?, &[Errno::EINVAL], "a path alone")?;
    refused(store.ask(XS_UNWATCH, 0, &nul(&at("a"))).await?, &[Errno::EINVAL], "unwatch with a path alone")
}

async fn in_transaction(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let tx = start(store).await?;
    ok(store.ask(XS_WATCH, tx, &list(&[&at("a"), "t"])).await?, "watch with a tx_id")?;
    seen(store, &at("a"), "t").await?;
    ok(end(store, tx, false).await?, "abort")?;
    put(store, &at("a"), "x").await?;
    seen(store, &at("a"), "t").await
}
