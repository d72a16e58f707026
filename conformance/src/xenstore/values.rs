//! Reading and writing nodes.

use alloc::string::String;
use alloc::vec::Vec;

use super::*;

cases! {
    needs [Store];

    "xenstore.write.read-back" = read_back {
        title: "a value is read as it was written",
        rule: "READ gives the octets that WRITE stored at the path.",
        source: "docs/misc/xenstore.txt, READ, WRITE",
    }
    "xenstore.write.empty" = empty {
        title: "an empty value",
        rule: "A value may be empty: WRITE's payload then ends with the path's NUL.",
        source: "docs/misc/xenstore.txt, WRITE",
    }
    "xenstore.write.binary" = binary {
        title: "all 256 octets, NUL among them",
        rule: "A value is binary data, which may contain NUL bytes, and gets no NUL of the daemon's.",
        source: "docs/misc/xenstore.txt, READ, WRITE",
    }
    "xenstore.write.shorter" = shorter {
        title: "a shorter value over a longer one",
        rule: "WRITE replaces the whole value.",
        source: "docs/misc/xenstore.txt, WRITE",
    }
    "xenstore.write.creates-parents" = creates_parents {
        title: "a write three levels below what exists",
        rule: "WRITE creates any missing parent paths, with empty values.",
        source: "docs/misc/xenstore.txt, WRITE",
    }
    "xenstore.write.keeps-children" = keeps_children {
        title: "a write to a node with children",
        rule: "Every path maps to a value and may have children; writing the one leaves the others.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.write.kilobyte" = kilobyte {
        title: "values around the size of the ring",
        rule: "A payload of up to XENSTORE_PAYLOAD_MAX bytes crosses a ring of XENSTORE_RING_SIZE in pieces.",
        source: "io/xs_wire.h, XENSTORE_PAYLOAD_MAX, XENSTORE_RING_SIZE",
    }
    "xenstore.write.largest" = largest {
        title: "a request of exactly XENSTORE_PAYLOAD_MAX bytes",
        rule: "The payload is limited to 4096 bytes, so that one of 4096 is answered: kept whole or refused.",
        source: "docs/misc/xenstore.txt, introduction; io/xs_wire.h, XENSTORE_PAYLOAD_MAX",
    }
    "xenstore.write.refused-keeps-old" = refused_keeps_old {
        title: "the old value after a write that was refused",
        rule: "A request answered with ERROR has changed nothing.",
        source: "docs/misc/xenstore.txt, ERROR",
    }
    "xenstore.write.answer" = write_answer {
        title: "what success looks like",
        rule: "Where no reply payload is specified, success has the payload OK and a NUL.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.read.missing" = read_missing {
        title: "a node that is not there",
        rule: "READ of a path that does not exist gives ENOENT.",
        source: "docs/misc/xenstore.txt, READ; io/xs_wire.h, xsd_errors",
    }
    "xenstore.read.absolute" = absolute {
        title: "the same node by both kinds of path",
        rule: "A path without a slash in front is relative to /local/domain/DOMID of the sender.",
        source: "docs/misc/xenstore.txt, Values commonly included in payloads",
    }
    "xenstore.read.new-parent-is-empty" = new_parent {
        title: "reading a parent that a write created",
        rule: "Every existing path maps to a possibly empty value; there is no difference between directories and leaves.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.read.case-matters" = case_matters {
        title: "names in upper and lower case",
        rule: "Paths are compared octet by octet.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.read.many" = many {
        title: "forty nodes, each with its own value",
        rule: "READ gives the octets that WRITE stored at the path.",
        source: "docs/misc/xenstore.txt, READ, WRITE",
    }
}

async fn read_back(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "one").await?;
    holds(store, &at("a"), "one").await?;
    put(store, &at("a"), "two").await?;
    holds(store, &at("a"), "two").await
}

async fn empty(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "").await?;
    holds(store, &at("a"), "").await?;
    put(store, &at("a"), "full").await?;
    put(store, &at("a"), "").await?;
    holds(store, &at("a"), "").await
}

async fn binary(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let value: Vec<u8> = (0..=255).chain([0, 0]).collect();
    let payload = [nul(&at("a")), value.clone()].concat();
    ok(store.ask(XS_WRITE, 0, &payload).await?, "write")?;
    ensure_eq!(store.ask(XS_READ, 0, &nul(&at("a"))).await?, Ok(value), "the value");
    Ok(())
}

async fn shorter(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "a long value").await?;
    put(store, &at("a"), "b").await?;
    holds(store, &at("a"), "b").await
}

async fn creates_parents(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a/b/c"), "deep").await?;
    holds(store, &at("a/b/c"), "deep").await?;
    holds(store, &at("a/b"), "").await?;
    holds(store, &at("a"), "").await
}

async fn keeps_children(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a/b"), "child").await?;
    put(store, &at("a"), "parent").await?;
    holds(store, &at("a"), "parent").await?;
    holds(store, &at("a/b"), "child").await
}

async fn kilobyte(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for len in [960, 1000, 1007, 1008, 1009, 1023, 1024, 1025, 1500] {
        let value: String = (0..len).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
        put(store, &at("a"), &value).await?;
        holds(store, &at("a"), &value).await?;
    }
    Ok(())
}

async fn largest(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let path = at("a");
    let value = "v".repeat(XENSTORE_PAYLOAD_MAX - path.len() - 1);
    match store.write(&path, &value).await? {
        Ok(_) => holds(store, &path, &value).await,
        Err(error) => {
            let limits = [Errno::ENOSPC, Errno::E2BIG, Errno::EINVAL];
            ensure!(limits.contains(&error), "a write of 4096 bytes: {error}");
            missing(store, &path).await
        }
    }
}

async fn refused_keeps_old(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let path = at("a");
    put(store, &path, "old").await?;
    let value = "v".repeat(XENSTORE_PAYLOAD_MAX - path.len() - 1);
    require!(store.write(&path, &value).await?.is_err(), "values of 4 KiB are taken here");
    holds(store, &path, "old").await
}

async fn write_answer(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    ensure_eq!(store.write(&at("a"), "x").await?, Ok(b"OK\0".to_vec()), "the answer");
    Ok(())
}

async fn read_missing(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    missing(store, &at("a")).await?;
    missing(store, &at("a/b/c")).await
}

async fn absolute(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let id = own_id(store).await?;
    let full = format!("/local/domain/{id}/{}", at("a"));
    put(store, &at("a"), "relative").await?;
    holds(store, &full, "relative").await?;
    put(store, &full, "absolute").await?;
    holds(store, &at("a"), "absolute").await
}

async fn new_parent(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a/b"), "x").await?;
    holds(store, &at("a"), "").await?;
    put(store, &at("a"), "now a leaf too").await?;
    holds(store, &at("a"), "now a leaf too").await
}

async fn case_matters(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("name"), "lower").await?;
    missing(store, &at("NAME")).await?;
    put(store, &at("NAME"), "upper").await?;
    holds(store, &at("name"), "lower").await
}

async fn many(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for number in 0..40 {
        put(store, &at(&format!("n{number}")), &format!("value {number}")).await?;
    }
    for number in 0..40 {
        holds(store, &at(&format!("n{number}")), &format!("value {number}")).await?;
    }
    Ok(())
}
