//! Clients that break the ring or the protocol. Such a client must lose its own connection, and no other
//! client may suffer.

use pvrt::executor::time;

use super::*;
use crate::store::Message;

cases! {
    needs [Store, BothEnds];

    "xenstore.broken.too-long" = too_long {
        title: "a header that promises more than XENSTORE_PAYLOAD_MAX",
        rule: "If a client exceeds the limit its connection is killed; the error field says XENSTORE_ERROR_PROTO.",
        source: "docs/misc/xenstore.txt, introduction; io/xs_wire.h, XENSTORE_ERROR_PROTO",
    }
    "xenstore.broken.longest" = longest {
        title: "a header that promises 4 GiB",
        rule: "If a client exceeds the limit its connection is killed; the error field says XENSTORE_ERROR_PROTO.",
        source: "docs/misc/xenstore.txt, introduction; io/xs_wire.h, XENSTORE_ERROR_PROTO",
    }
    "xenstore.broken.producer-ahead" = producer_ahead {
        title: "a producer index further ahead than the ring is long",
        rule: "Indices further apart than XENSTORE_RING_SIZE are an error: XENSTORE_ERROR_RINGIDX.",
        source: "io/xs_wire.h, XENSTORE_ERROR_RINGIDX",
    }
    "xenstore.broken.consumer-ahead" = consumer_ahead {
        title: "a consumer index beyond what was produced",
        rule: "Indices further apart than XENSTORE_RING_SIZE are an error: XENSTORE_ERROR_RINGIDX.",
        source: "io/xs_wire.h, XENSTORE_ERROR_RINGIDX",
    }
    "xenstore.broken.half-a-message" = half {
        title: "a message of which the rest never comes",
        rule: "A client that stops in the middle of a message holds up nobody but itself.",
        source: "docs/misc/xenstore-ring.txt",
    }
    "xenstore.broken.reads-nothing" = reads_nothing {
        title: "a client that never takes its answers",
        rule: "A client that leaves its answers on the ring holds up nobody but itself.",
        source: "docs/misc/xenstore-ring.txt",
    }
}

/// Waits until the daemon has set the ring's error field, and returns the field.
async fn error_field(store: &mut Store) -> Verdict<u32> {
    let page = store.page();
    require!(
        page.load_u32(SERVER_FEATURES_OFFSET) & XENSTORE_SERVER_FEATURE_ERROR != 0,
        "the daemon does not announce the error field"
    );
    store.port().notify();
    for _ in 0..100 {
        let error = page.load_u32(ERROR_OFFSET);
        if error != XENSTORE_ERROR_NONE {
            return Ok(error);
        }
        time::sleep(1_000_000).await;
    }
    Ok(XENSTORE_ERROR_NONE)
}

/// Checks that the toolstack can still use the store.
fn others_live(env: &Env) -> Verdict {
    let toolstack = env.toolstack()?;
    toolstack.write("/conformance-alive", b"yes");
    ensure_eq!(toolstack.read("/conformance-alive"), Some(b"yes".to_vec()), "a node of the toolstack's");
    Ok(())
}

async fn promises(env: &mut Env, len: u32) -> Verdict {
    let store = fresh(env).await?;
    let mut message = Message::request(XS_WRITE, 1, 0, &nul(&at("a")));
    message.header.len = len;
    store.send(&message).await?;
    ensure_eq!(error_field(store).await?, XENSTORE_ERROR_PROTO, "the error field");
    others_live(env)
}

async fn too_long(env: &mut Env) -> Verdict {
    promises(env, XENSTORE_PAYLOAD_MAX as u32 + 1).await
}

async fn longest(env: &mut Env) -> Verdict {
    promises(env, u32::MAX).await
}

async fn producer_ahead(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let page = store.page();
    page.store_u32(REQ.prod, page.load_u32(REQ.prod).wrapping_add(XENSTORE_RING_SIZE as u32 + 1));
    ensure_eq!(error_field(store).await?, XENSTORE_ERROR_RINGIDX, "the error field");
    others_live(env)
}

async fn consumer_ahead(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let page = store.page();
    page.store_u32(RSP.cons, page.load_u32(RSP.prod).wrapping_add(1));
    // The daemon reads the indices of the answers' ring when there is an answer to write, so this request
    // makes one.
    store.send(&Message::request(XS_READ, 1, 0, &nul(BASE))).await.ok();
    ensure_eq!(error_field(store).await?, XENSTORE_ERROR_RINGIDX, "the error field");
    others_live(env)
}

async fn half(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let bytes = Message::request(XS_WRITE, 1, 0, &[0; 100]).to_bytes();
    store.send_bytes(&bytes[..60]).await?;
    time::sleep(50_000_000).await;
    others_live(env)?;
    let store = env.store()?;
    store.send_bytes(&bytes[60..]).await?;
    refused_somehow(store.next_answer().await?.answer(), "the request, which names no path")
}

async fn reads_nothing(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let value = "0123456789abcdef".repeat(60);
    put(store, &at("a"), &value).await?;
    let bytes = Message::request(XS_READ, 1, 0, &nul(&at("a"))).to_bytes();
    // The case writes to the ring itself: the client would take answers off the ring while it waits for room.
    let mut ring = client(store.page()).map_err(|error| Problem::Error(format!("xenstore: {error}")))?;
    for _ in 0..60 {
        let count = ring.write(&bytes).map_err(|error| Problem::Error(format!("xenstore: {error}")))?;
        store.port().notify();
        if count < bytes.len() {
            break;
        }
        pvrt::yield_now().await;
    }
    time::sleep(50_000_000).await;
    others_live(env)
}
