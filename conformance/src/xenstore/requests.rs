//! The form of requests and answers: headers, and invalid payloads.

use super::*;
use crate::store::Message;

cases! {
    needs [Store];

    "xenstore.request.id-echo" = id_echo {
        title: "request ids, 0 and the largest among them",
        rule: "A reply has the request's req_id.",
        source: "docs/misc/xenstore.txt, introduction; io/xs_wire.h, struct xsd_sockmsg",
    }
    "xenstore.request.id-again" = id_again {
        title: "the same id in requests one after the other",
        rule: "The req_id is the client's own: the daemon gives it no meaning.",
        source: "io/xs_wire.h, struct xsd_sockmsg",
    }
    "xenstore.request.type-echo" = type_echo {
        title: "the type of answers",
        rule: "A reply has the request's type, or is an ERROR.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.request.error-payload" = error_payload {
        title: "what an error looks like",
        rule: "An ERROR's payload is the name of an errno value listed in xs_wire.h, with a NUL.",
        source: "docs/misc/xenstore.txt, ERROR; io/xs_wire.h, xsd_errors",
    }
    "xenstore.request.no-nul" = no_nul {
        title: "paths without the NUL behind them",
        rule: "A path in a payload is followed by a NUL.",
        source: "docs/misc/xenstore.txt, introduction, notation",
    }
    "xenstore.request.no-payload" = no_payload {
        title: "requests without the payload they need",
        rule: "A request whose payload does not have its syntax is refused.",
        source: "docs/misc/xenstore.txt, introduction, notation",
    }
    "xenstore.request.too-many-strings" = too_many {
        title: "a second string where one belongs",
        rule: "A request whose payload does not have its syntax is refused.",
        source: "docs/misc/xenstore.txt, READ, DIRECTORY, MKDIR, RM",
    }
    "xenstore.request.unknown-type" = unknown_type {
        title: "types that were never given, and the one that was removed",
        rule: "A request of a type that the daemon does not know is answered with ERROR.",
        source: "io/xs_wire.h, enum xsd_sockmsg_type, XS_INVALID, XS_TYPE_COUNT",
    }
    "xenstore.request.answer-types" = answer_types {
        title: "WATCH_EVENT and ERROR as requests",
        rule: "WATCH_EVENT and ERROR are the daemon's to send.",
        source: "docs/misc/xenstore.txt, WATCH_EVENT, ERROR",
    }
    "xenstore.request.after-error" = after_error {
        title: "a hundred refusals, and then a request",
        rule: "A request that is refused does no harm to the connection.",
        source: "docs/misc/xenstore.txt, ERROR",
    }
}

async fn id_echo(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for id in [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1234_5678] {
        for path in [BASE, "data/conformance/none"] {
            store.send(&Message::request(XS_READ, id, 0, &nul(path))).await?;
            let header = store.next_answer().await?.header;
            ensure_eq!((header.req_id, header.tx_id), (id, 0), "req_id and tx_id");
        }
    }
    Ok(())
}

async fn id_again(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    for _ in 0..5 {
        store.send(&Message::request(XS_READ, 7, 0, &nul(&at("a")))).await?;
        ensure_eq!(store.next_answer().await?.answer(), Ok(b"x".to_vec()), "the value");
    }
    Ok(())
}

async fn type_echo(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let path = nul(BASE);
    for (kind, payload) in [
        (XS_READ, path.clone()),
        (XS_DIRECTORY, path.clone()),
        (XS_GET_PERMS, path.clone()),
        (XS_MKDIR, path.clone()),
        (XS_WRITE, path.clone()),
        (XS_WATCH, list(&[BASE, "t"])),
        (XS_UNWATCH, list(&[BASE, "t"])),
        (XS_GET_DOMAIN_PATH, nul("0")),
        (XS_RM, path),
    ] {
        let id = store.new_id();
        store.send(&Message::request(kind, id, 0, &payload)).await?;
        let answer = store.answer_to(id).await?;
        ensure_eq!(answer.header.r#type, kind, "the type of the answer");
    }
    let id = store.new_id();
    store.send(&Message::request(XS_READ, id, 0, &nul(&at("none")))).await?;
    ensure_eq!(store.answer_to(id).await?.header.r#type, XS_ERROR, "the type of an error");
    Ok(())
}

async fn error_payload(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let id = store.new_id();
    store.send(&Message::request(XS_READ, id, 0, &nul(&at("none")))).await?;
    ensure_eq!(store.answer_to(id).await?.payload, b"ENOENT\0", "the payload");
    let id = store.new_id();
    store.send(&Message::request(XS_READ, id, 0, &nul(&at("no ne")))).await?;
    ensure_eq!(store.answer_to(id).await?.payload, b"EINVAL\0", "the payload");
    Ok(())
}

async fn no_nul(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    for kind in [XS_READ, XS_DIRECTORY, XS_MKDIR, XS_RM, XS_GET_PERMS, XS_WRITE] {
        let answer = store.ask(kind, 0, at("a").as_bytes()).await?;
        refused(answer, &[Errno::EINVAL], &format!("a request of type {kind}"))?;
    }
    holds(store, &at("a"), "x").await
}

async fn no_payload(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for kind in
        [XS_READ, XS_WRITE, XS_MKDIR, XS_RM, XS_DIRECTORY, XS_GET_PERMS, XS_SET_PERMS, XS_WATCH, XS_UNWATCH]
    {
        let answer = store.ask(kind, 0, b"").await?;
        refused(answer, &[Errno::EINVAL], &format!("a request of type {kind}"))?;
    }
    Ok(())
}

async fn too_many(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    for kind in [XS_READ, XS_DIRECTORY, XS_MKDIR, XS_RM, XS_GET_PERMS] {
        let answer = store.ask(kind, 0, &list(&[&at("a"), "b"])).await?;
        refused(answer, &[Errno::EINVAL], &format!("a request of type {kind}"))?;
    }
    holds(store, &at("a"), "x").await
}

async fn unknown_type(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for kind in [20, 100, XS_INVALID, 0x7fff_ffff, 0xffff_ffff] {
        let id = store.new_id();
        store.send(&Message::request(kind, id, 0, &nul(BASE))).await?;
        let header = store.next_answer().await?.header;
        ensure_eq!(
            (header.r#type, header.req_id),
            (XS_ERROR, id),
            "type and req_id for a request of type {kind}"
        );
    }
    holds(store, BASE, "").await
}

async fn answer_types(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for kind in [XS_WATCH_EVENT, XS_ERROR] {
        let id = store.new_id();
        store.send(&Message::request(kind, id, 0, &list(&[BASE, "t"]))).await?;
        let header = store.next_answer().await?.header;
        ensure_eq!(
            (header.r#type, header.req_id),
            (XS_ERROR, id),
            "type and req_id for a request of type {kind}"
        );
    }
    quiet(store).await
}

async fn after_error(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for _ in 0..100 {
        refused_somehow(store.read(&at("a b")).await?, "read of a bad path")?;
    }
    put(store, &at("a"), "x").await?;
    holds(store, &at("a"), "x").await
}
