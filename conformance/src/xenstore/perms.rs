//! Permissions: the domains that may read, write, and change a node's permissions.

use super::*;
use crate::store::strings;

cases! {
    needs [Store, DomU];

    "xenstore.perms.new-node" = new_node {
        title: "the owner of a node that the domain makes",
        rule: "The first entry of a node's permissions names its owner: the domain that made it.",
        source: "docs/misc/xenstore.txt, GET_PERMS",
    }
    "xenstore.perms.set-get" = set_get {
        title: "entries of each letter",
        rule: "An entry is one of the letters w, r, b, n and a domain; GET_PERMS gives what SET_PERMS set.",
        source: "docs/misc/xenstore.txt, GET_PERMS, SET_PERMS",
    }
    "xenstore.perms.format" = format_of_list {
        title: "each entry ends with a NUL",
        rule: "GET_PERMS gives one or more entries, each followed by a NUL.",
        source: "docs/misc/xenstore.txt, GET_PERMS",
    }
    "xenstore.perms.keep-value" = keep_value {
        title: "value and children after new permissions",
        rule: "SET_PERMS changes a node's permissions and nothing else.",
        source: "docs/misc/xenstore.txt, SET_PERMS",
    }
    "xenstore.perms.not-children" = not_children {
        title: "the permissions of a child that was there before",
        rule: "Each node has permissions of its own; SET_PERMS does not reach down.",
        source: "docs/misc/xenstore.txt, SET_PERMS",
    }
    "xenstore.perms.inherited" = inherited {
        title: "the permissions of a child that is made later",
        rule: "A new node gets its parent's permissions.",
        source: "docs/misc/xenstore.txt, SET_PERMS; the XenBus page it refers to",
    }
    "xenstore.perms.missing" = perms_missing {
        title: "a node that is not there",
        rule: "GET_PERMS and SET_PERMS of a path that does not exist give ENOENT.",
        source: "docs/misc/xenstore.txt; io/xs_wire.h, xsd_errors",
    }
    "xenstore.perms.give-away" = give_away {
        title: "making dom0 the owner",
        rule: "A domain that is not privileged cannot give a node of its own to another.",
        source: "docs/misc/xenstore.txt, SET_PERMS; the XenBus page it refers to",
    }
    "xenstore.perms.bad-letter" = bad_letter {
        title: "a letter that means nothing",
        rule: "An entry is one of the letters w, r, b, n and a domain.",
        source: "docs/misc/xenstore.txt, SET_PERMS",
    }
    "xenstore.perms.no-domain" = no_domain {
        title: "a letter without a domain",
        rule: "An entry is one of the letters w, r, b, n and a domain.",
        source: "docs/misc/xenstore.txt, SET_PERMS",
    }
    "xenstore.perms.no-entry" = no_entry {
        title: "a path without entries",
        rule: "SET_PERMS takes one or more entries.",
        source: "docs/misc/xenstore.txt, SET_PERMS",
    }
    "xenstore.perms.refused-keeps-old" = refused_keeps {
        title: "the permissions after a request that was refused",
        rule: "A request answered with ERROR has changed nothing.",
        source: "docs/misc/xenstore.txt, ERROR",
    }
    "xenstore.perms.read-only-node" = read_only_node {
        title: "writing, removing and opening a node of the toolstack's",
        rule: "A domain with the right to read alone gets EACCES for all that changes a node.",
        source: "docs/misc/xenstore.txt, SET_PERMS; io/xs_wire.h, xsd_errors",
    }
    "xenstore.perms.home" = home {
        title: "making a node beside the toolstack's own",
        rule: "Making a node takes the right to write its parent.",
        source: "docs/misc/xenstore.txt, SET_PERMS; docs/misc/xenstore-paths.pandoc",
    }
    "xenstore.perms.foreign" = foreign {
        title: "writing where dom0 keeps its nodes",
        rule: "A domain cannot write, make or remove nodes of another that has given it no right.",
        source: "docs/misc/xenstore.txt, SET_PERMS",
    }
    "xenstore.perms.own-letter-is-for-others" = own_letter {
        title: "the owner's access to a node of letter n",
        rule: "The first entry's letter is for domains not named; the owner may read and write.",
        source: "the XenBus page to which docs/misc/xenstore.txt refers, Permissions",
    }
}

async fn set(store: &mut Store, path: &str, entries: &[&str]) -> Verdict<Answer> {
    let payload = [nul(path), list(entries)].concat();
    store.ask(XS_SET_PERMS, 0, &payload).await
}

async fn get(store: &mut Store, path: &str) -> Verdict<Vec<String>> {
    let answer = ok(store.ask(XS_GET_PERMS, 0, &nul(path)).await?, &format!("get_perms of {path}"))?;
    Ok(strings(&answer))
}

async fn new_node(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    let perms = get(store, &at("a")).await?;
    let owner = perms.first().and_then(|entry| entry.get(1..)).unwrap_or_default();
    ensure_eq!(owner, me, "the owner in {perms:?}");
    Ok(())
}

async fn set_get(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    for (own, other) in [("n", "r0"), ("r", "w0"), ("w", "b0"), ("b", "n0")] {
        let own = format!("{own}{me}");
        ok(set(store, &at("a"), &[&own, other]).await?, "set_perms")?;
        ensure_eq!(get(store, &at("a")).await?, [own, other.into()], "the permissions");
    }
    Ok(())
}

async fn format_of_list(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    ok(set(store, &at("a"), &[&format!("n{me}"), "r0"]).await?, "set_perms")?;
    let answer = store.ask(XS_GET_PERMS, 0, &nul(&at("a"))).await?;
    ensure_eq!(answer, Ok(list(&[&format!("n{me}"), "r0"])), "the list");
    Ok(())
}

async fn keep_value(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    put(store, &at("a/b"), "y").await?;
    ok(set(store, &at("a"), &[&format!("r{me}")]).await?, "set_perms")?;
    holds(store, &at("a"), "x").await?;
    holds(store, &at("a/b"), "y").await
}

async fn not_children(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a/b"), "y").await?;
    let before = get(store, &at("a/b")).await?;
    ok(set(store, &at("a"), &[&format!("b{me}"), "b0"]).await?, "set_perms")?;
    ensure_eq!(get(store, &at("a/b")).await?, before, "the child's permissions");
    Ok(())
}

async fn inherited(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    let entries = [format!("r{me}"), "b0".into()];
    ok(set(store, &at("a"), &[&entries[0], &entries[1]]).await?, "set_perms")?;
    put(store, &at("a/b/c"), "y").await?;
    for path in ["a/b", "a/b/c"] {
        ensure_eq!(get(store, &at(path)).await?, entries, "the permissions of {path}");
    }
    Ok(())
}

async fn perms_missing(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    let got = store.ask(XS_GET_PERMS, 0, &nul(&at("a"))).await?;
    refused(got, &[Errno::ENOENT], "get_perms")?;
    refused(set(store, &at("a"), &[&format!("n{me}")]).await?, &[Errno::ENOENT], "set_perms")?;
    missing(store, &at("a")).await
}

async fn give_away(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    let before = get(store, &at("a")).await?;
    let errors = [Errno::EPERM, Errno::EACCES, Errno::EINVAL];
    refused(set(store, &at("a"), &["b0", &format!("b{me}")]).await?, &errors, "giving a node to dom0")?;
    ensure_eq!(get(store, &at("a")).await?, before, "the permissions");
    Ok(())
}

async fn bad_letter(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    for letter in ["x", "R", "0", " "] {
        let entry = format!("{letter}{me}");
        refused_somehow(set(store, &at("a"), &[&entry]).await?, &format!("the entry {entry:?}"))?;
    }
    Ok(())
}

async fn no_domain(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    refused_somehow(set(store, &at("a"), &[&format!("n{me}"), "rx"]).await?, "the entry \"rx\"")?;
    refused_somehow(set(store, &at("a"), &[""]).await?, "an empty entry")
}

async fn no_entry(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    refused_somehow(set(store, &at("a"), &[]).await?, "set_perms without entries")
}

async fn refused_keeps(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    let before = get(store, &at("a")).await?;
    refused_somehow(set(store, &at("a"), &[&format!("b{me}"), "x0"]).await?, "a good and a bad entry")?;
    ensure_eq!(get(store, &at("a")).await?, before, "the permissions");
    Ok(())
}

async fn read_only_node(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let id = own_id(store).await?;
    let denied = [Errno::EACCES, Errno::EPERM];
    refused(store.write("domid", "7").await?, &denied, "write")?;
    refused(store.remove("domid").await?, &denied, "rm")?;
    refused(set(store, "domid", &[&format!("b{id}")]).await?, &denied, "set_perms")?;
    refused(store.write("domid/below", "7").await?, &denied, "a new child")?;
    holds(store, "domid", &id).await
}

async fn home(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let denied = [Errno::EACCES, Errno::EPERM];
    refused(store.write("conformance-was-here", "x").await?, &denied, "a node in the home directory")?;
    refused(store.ask(XS_MKDIR, 0, &nul("conformance-was-here")).await?, &denied, "mkdir")?;
    missing(store, "conformance-was-here").await
}

async fn foreign(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let denied = [Errno::EACCES, Errno::EPERM, Errno::ENOENT];
    for path in
        ["/local/domain/0/conformance", "/conformance", "/local/domain/conformance", "/tool/conformance"]
    {
        refused(store.write(path, "x").await?, &denied, &format!("write of {path}"))?;
        refused(store.ask(XS_MKDIR, 0, &nul(path)).await?, &denied, &format!("mkdir of {path}"))?;
    }
    refused(store.remove("/local/domain/0").await?, &denied, "rm of dom0's home")
}

async fn own_letter(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    put(store, &at("a"), "x").await?;
    ok(set(store, &at("a"), &[&format!("n{me}")]).await?, "set_perms")?;
    put(store, &at("a"), "y").await?;
    holds(store, &at("a"), "y").await?;
    put(store, &at("a/b"), "z").await
}
