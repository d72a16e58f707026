//! Making, removing and listing nodes.

use super::*;
use crate::store::strings;

cases! {
    needs [Store];

    "xenstore.mkdir.creates" = creates {
        title: "a new node, with its parents",
        rule: "MKDIR ensures that the path exists, creating it and any missing parents with empty values.",
        source: "docs/misc/xenstore.txt, MKDIR",
    }
    "xenstore.mkdir.keeps-value" = mkdir_keeps {
        title: "mkdir of a node that has a value",
        rule: "If the path or any parent already exists, its value is left unchanged.",
        source: "docs/misc/xenstore.txt, MKDIR",
    }
    "xenstore.mkdir.keeps-children" = mkdir_keeps_children {
        title: "mkdir of a node that has children",
        rule: "MKDIR of a path that exists changes nothing.",
        source: "docs/misc/xenstore.txt, MKDIR",
    }
    "xenstore.mkdir.answer" = mkdir_answer {
        title: "what success looks like, twice",
        rule: "MKDIR succeeds whether the path existed or not.",
        source: "docs/misc/xenstore.txt, MKDIR",
    }
    "xenstore.rm.node" = rm_node {
        title: "a removed node is gone",
        rule: "RM ensures that the path does not exist.",
        source: "docs/misc/xenstore.txt, RM",
    }
    "xenstore.rm.subtree" = rm_subtree {
        title: "all that is below goes too",
        rule: "RM deletes the path and all of its children.",
        source: "docs/misc/xenstore.txt, RM",
    }
    "xenstore.rm.siblings" = rm_siblings {
        title: "what stands beside stays",
        rule: "RM deletes the path and all of its children, and nothing else.",
        source: "docs/misc/xenstore.txt, RM",
    }
    "xenstore.rm.missing" = rm_missing {
        title: "removing what is not there, its parent is",
        rule: "It is not an error if the path does not exist.",
        source: "docs/misc/xenstore.txt, RM",
    }
    "xenstore.rm.missing-parent" = rm_missing_parent {
        title: "removing below what is not there",
        rule: "It is an error if the path's immediate parent does not exist either.",
        source: "docs/misc/xenstore.txt, RM",
    }
    "xenstore.rm.root" = rm_root {
        title: "removing the root",
        rule: "A domain cannot remove what it does not own, the root above all.",
        source: "docs/misc/xenstore.txt, RM, permissions",
    }
    "xenstore.rm.made-again" = made_again {
        title: "a node made again under the same name",
        rule: "A removed node leaves nothing behind for the next of its name.",
        source: "docs/misc/xenstore.txt, RM",
    }
    "xenstore.directory.children" = children {
        title: "the names of the children",
        rule: "DIRECTORY gives the immediate children, as leaf names only, each followed by a NUL.",
        source: "docs/misc/xenstore.txt, DIRECTORY",
    }
    "xenstore.directory.empty" = directory_empty {
        title: "a node without children",
        rule: "The list of a node without children is empty: no payload, and no NUL.",
        source: "docs/misc/xenstore.txt, DIRECTORY",
    }
    "xenstore.directory.missing" = directory_missing {
        title: "a node that is not there",
        rule: "DIRECTORY of a path that does not exist gives ENOENT.",
        source: "docs/misc/xenstore.txt, DIRECTORY; io/xs_wire.h, xsd_errors",
    }
    "xenstore.directory.once" = once {
        title: "a child written twice",
        rule: "Each child is named once.",
        source: "docs/misc/xenstore.txt, DIRECTORY",
    }
    "xenstore.directory.after-rm" = after_rm {
        title: "a child that was removed",
        rule: "DIRECTORY names the children that exist.",
        source: "docs/misc/xenstore.txt, DIRECTORY, RM",
    }
    "xenstore.directory-part.whole" = part_whole {
        title: "a short list in one part",
        rule: "DIRECTORY_PART gives a generation count and the children from an offset on.",
        source: "docs/misc/xenstore.txt, DIRECTORY_PART",
    }
    "xenstore.directory-part.offset" = part_offset {
        title: "the list from its second name on",
        rule: "The offset counts bytes of the list of names, each with its NUL.",
        source: "docs/misc/xenstore.txt, DIRECTORY_PART",
    }
    "xenstore.directory-part.generation" = part_generation {
        title: "the count stays, and changes with the node",
        rule: "The same generation count in several reads guarantees that the node has not changed.",
        source: "docs/misc/xenstore.txt, DIRECTORY_PART",
    }
    "xenstore.directory-part.missing" = part_missing {
        title: "a node that is not there",
        rule: "DIRECTORY_PART of a path that does not exist gives ENOENT.",
        source: "docs/misc/xenstore.txt, DIRECTORY_PART; io/xs_wire.h, xsd_errors",
    }
    "xenstore.directory-part.bad-request" = part_bad {
        title: "without an offset",
        rule: "The payload of DIRECTORY_PART is a path and an offset, each followed by a NUL.",
        source: "docs/misc/xenstore.txt, DIRECTORY_PART",
    }
}

async fn mkdir(store: &mut Store, path: &str) -> Verdict {
    ok(store.ask(XS_MKDIR, 0, &nul(path)).await?, &format!("mkdir of {path}")).map(drop)
}

async fn creates(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    mkdir(store, &at("a/b/c")).await?;
    for path in ["a", "a/b", "a/b/c"] {
        holds(store, &at(path), "").await?;
    }
    Ok(())
}

async fn mkdir_keeps(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "upper").await?;
    put(store, &at("a/b"), "lower").await?;
    mkdir(store, &at("a/b")).await?;
    mkdir(store, &at("a/b/c")).await?;
    holds(store, &at("a"), "upper").await?;
    holds(store, &at("a/b"), "lower").await
}

async fn mkdir_keeps_children(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a/b"), "x").await?;
    mkdir(store, &at("a")).await?;
    holds(store, &at("a/b"), "x").await
}

async fn mkdir_answer(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for _ in 0..2 {
        ensure_eq!(store.ask(XS_MKDIR, 0, &nul(&at("a"))).await?, Ok(b"OK\0".to_vec()), "the answer");
    }
    Ok(())
}

async fn rm_node(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    ensure_eq!(store.remove(&at("a")).await?, Ok(b"OK\0".to_vec()), "the answer");
    missing(store, &at("a")).await
}

async fn rm_subtree(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for path in ["a/b/c", "a/b/d", "a/e"] {
        put(store, &at(path), "x").await?;
    }
    ok(store.remove(&at("a")).await?, "rm")?;
    for path in ["a", "a/b", "a/b/c", "a/b/d", "a/e"] {
        missing(store, &at(path)).await?;
    }
    Ok(())
}

async fn rm_siblings(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for path in ["a/b/c", "a/d", "e"] {
        put(store, &at(path), path).await?;
    }
    ok(store.remove(&at("a/b")).await?, "rm")?;
    holds(store, &at("a"), "").await?;
    holds(store, &at("a/d"), "a/d").await?;
    holds(store, &at("e"), "e").await
}

async fn rm_missing(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    ok(store.remove(&at("a")).await?, "rm of what is not there").map(drop)
}

async fn rm_missing_parent(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    refused(store.remove(&at("a/b")).await?, &[Errno::ENOENT], "rm below what is not there")
}

async fn rm_root(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    require!(own_id(store).await? != "0", "dom0 may do what it likes");
    refused_somehow(store.remove("/").await?, "rm of the root")?;
    holds(store, BASE, "").await
}

async fn made_again(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a/b"), "old").await?;
    put(store, &at("a"), "old").await?;
    ok(store.remove(&at("a")).await?, "rm")?;
    mkdir(store, &at("a")).await?;
    holds(store, &at("a"), "").await?;
    ensure_eq!(store.directory(&at("a")).await?.map(|names| names.len()), Ok(0), "children of the new node");
    Ok(())
}

async fn children(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for path in ["a/one", "a/two", "a/two/three"] {
        put(store, &at(path), "x").await?;
    }
    let list = ok(store.ask(XS_DIRECTORY, 0, &nul(&at("a"))).await?, "directory")?;
    ensure!(list.ends_with(&[0]), "the list does not end with a NUL: {list:?}");
    let mut names = strings(&list);
    names.sort();
    ensure_eq!(names, ["one", "two"], "the children");
    Ok(())
}

async fn directory_empty(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "a value").await?;
    ensure_eq!(store.ask(XS_DIRECTORY, 0, &nul(&at("a"))).await?, Ok(Vec::new()), "the list");
    Ok(())
}

async fn directory_missing(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    refused(store.directory(&at("a")).await?, &[Errno::ENOENT], "directory")
}

async fn once(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a/b"), "x").await?;
    put(store, &at("a/b"), "y").await?;
    put(store, &at("a/b/c"), "z").await?;
    ensure_eq!(store.directory(&at("a")).await?, Ok(["b".into()].into()), "the children");
    Ok(())
}

async fn after_rm(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for name in ["a", "b", "c"] {
        put(store, &at(name), "x").await?;
    }
    ok(store.remove(&at("b")).await?, "rm")?;
    let mut names = ok(store.directory(BASE).await?, "directory")?;
    names.sort();
    ensure_eq!(names, ["a", "c"], "the children");
    Ok(())
}

/// Lists one part of a directory: returns the generation count, and the names.
async fn part(store: &mut Store, path: &str, offset: usize) -> Verdict<(String, Vec<String>)> {
    let payload = list(&[path, &format!("{offset}")]);
    match store.ask(XS_DIRECTORY_PART, 0, &payload).await? {
        Ok(answer) => {
            let mut parts = strings(&answer).into_iter();
            let count = parts.next().unwrap_or_default();
            ensure!(count.parse::<u64>().is_ok(), "the generation count is {count:?}");
            Ok((count, parts.filter(|name| !name.is_empty()).collect()))
        }
        Err(Errno::ENOSYS) => Err(Problem::Skip("xenstored has no DIRECTORY_PART".into())),
        Err(error) => Err(Problem::Fail(format!("directory_part: {error}"))),
    }
}

async fn part_whole(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for name in ["one", "two", "three"] {
        put(store, &at(name), "x").await?;
    }
    let (_, mut names) = part(store, BASE, 0).await?;
    names.sort();
    ensure_eq!(names, ["one", "three", "two"], "the children");
    Ok(())
}

async fn part_offset(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for name in ["one", "second", "third-child"] {
        put(store, &at(name), "x").await?;
    }
    let (count, all) = part(store, BASE, 0).await?;
    ensure_eq!(all.len(), 3, "names in the whole list");
    let (again, rest) = part(store, BASE, all[0].len() + 1).await?;
    ensure_eq!((again, rest), (count, all[1..].to_vec()), "the list behind its first name");
    Ok(())
}

async fn part_generation(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("one"), "x").await?;
    let (first, _) = part(store, BASE, 0).await?;
    let (second, _) = part(store, BASE, 0).await?;
    ensure_eq!(second, first, "the count of an unchanged node");
    put(store, &at("two"), "x").await?;
    let (third, _) = part(store, BASE, 0).await?;
    ensure!(third != first, "the count is {third} before and after a child was added");
    Ok(())
}

async fn part_missing(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    part(store, BASE, 0).await?;
    let answer = store.ask(XS_DIRECTORY_PART, 0, &list(&[&at("a"), "0"])).await?;
    refused(answer, &[Errno::ENOENT], "directory_part")
}

async fn part_bad(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    part(store, BASE, 0).await?;
    refused_somehow(store.ask(XS_DIRECTORY_PART, 0, &nul(BASE)).await?, "directory_part without an offset")
}
