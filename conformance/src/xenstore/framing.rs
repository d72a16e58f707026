//! Messages on the ring: in pieces, many at once, and across the ring's end.

use super::*;
use crate::store::Message;

cases! {
    needs [Store];

    "xenstore.ring.one-octet-at-a-time" = one_octet {
        title: "a request that comes octet by octet",
        rule: "A message is a stream of octets; where the producer stops between means nothing.",
        source: "io/xs_wire.h, struct xenstore_domain_interface; docs/misc/xenstore-ring.txt",
    }
    "xenstore.ring.header-in-two" = header_in_two {
        title: "a header cut at each of its octets",
        rule: "A message is a stream of octets; where the producer stops between means nothing.",
        source: "io/xs_wire.h, struct xsd_sockmsg",
    }
    "xenstore.ring.pipelined" = pipelined {
        title: "thirty requests before the first answer is read",
        rule: "A caller may send several requests and match the replies by req_id.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.ring.message-and-a-half" = and_a_half {
        title: "a request and the beginning of the next",
        rule: "A whole request is answered, whatever follows it.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.ring.request-larger-than-ring" = larger_request {
        title: "a request of twice the ring's size",
        rule: "A payload of up to XENSTORE_PAYLOAD_MAX bytes crosses a ring of XENSTORE_RING_SIZE in pieces.",
        source: "io/xs_wire.h, XENSTORE_PAYLOAD_MAX, XENSTORE_RING_SIZE",
    }
    "xenstore.ring.answer-larger-than-ring" = larger_answer {
        title: "an answer of more than the ring's size",
        rule: "A payload of up to XENSTORE_PAYLOAD_MAX bytes crosses a ring of XENSTORE_RING_SIZE in pieces.",
        source: "io/xs_wire.h, XENSTORE_PAYLOAD_MAX, XENSTORE_RING_SIZE",
    }
    "xenstore.ring.wraps" = wraps {
        title: "values of changing lengths, forty times around",
        rule: "Indices run on; an octet's place is its index modulo XENSTORE_RING_SIZE.",
        source: "io/xs_wire.h, MASK_XENSTORE_IDX",
    }
    "xenstore.ring.all-consumed" = all_consumed {
        title: "the indices when all is answered",
        rule: "The consumer moves req_cons to req_prod; when nothing is under way the ring is empty.",
        source: "io/xs_wire.h, struct xenstore_domain_interface",
    }
    "xenstore.ring.spurious-notify" = spurious {
        title: "notifications with nothing on the ring",
        rule: "An event says no more than that the ring should be looked at.",
        source: "docs/misc/xenstore-ring.txt",
    }
    "xenstore.ring.steady-state" = steady {
        title: "connection and error in the steady state",
        rule: "The connection field is 0 in the steady state; error is 0 when there was none.",
        source: "io/xs_wire.h, XENSTORE_CONNECTED, XENSTORE_ERROR_NONE; docs/misc/xenstore-ring.txt",
    }
    "xenstore.ring.slow-reader" = slow_reader {
        title: "answers that are left on the ring for a while",
        rule: "The producer waits for room; nothing is lost.",
        source: "docs/misc/xenstore-ring.txt",
    }
}

/// Sends bytes in pieces, and waits after each until the daemon has read it.
async fn send_pieces(store: &mut Store, pieces: &[&[u8]]) -> Verdict {
    for piece in pieces {
        store.send_bytes(piece).await?;
        ensure_eq!(store.event(1).await?, None, "an event");
    }
    Ok(())
}

async fn one_octet(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    let id = store.new_id();
    let bytes = Message::request(XS_READ, id, 0, &nul(&at("a"))).to_bytes();
    let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
    send_pieces(store, &pieces).await?;
    ensure_eq!(store.answer_to(id).await?.answer(), Ok(b"x".to_vec()), "the value");
    Ok(())
}

async fn header_in_two(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    for cut in 1..=size_of::<XsdSockmsg>() {
        let id = store.new_id();
        let bytes = Message::request(XS_READ, id, 0, &nul(&at("a"))).to_bytes();
        let (front, back) = bytes.split_at(cut);
        send_pieces(store, &[front, back]).await?;
        ensure_eq!(store.answer_to(id).await?.answer(), Ok(b"x".to_vec()), "the value, cut at {cut}");
    }
    Ok(())
}

async fn pipelined(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for number in 0..30 {
        put(store, &at(&format!("n{number}")), &format!("value {number}")).await?;
    }
    let mut waiting = Vec::new();
    for number in 0..30 {
        let id = store.new_id();
        store.send(&Message::request(XS_READ, id, 0, &nul(&at(&format!("n{number}"))))).await?;
        waiting.push((id, format!("value {number}")));
    }
    while !waiting.is_empty() {
        let message = store.next_answer().await?;
        let Some(found) = waiting.iter().position(|(id, _)| *id == message.header.req_id) else {
            return Err(Problem::Fail(format!(
                "an answer to request {}, which does not wait",
                message.header.req_id
            )));
        };
        let (_, value) = waiting.swap_remove(found);
        ensure_eq!(message.answer(), Ok(value.into_bytes()), "the value");
    }
    Ok(())
}

async fn and_a_half(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    let (one, two) = (store.new_id(), store.new_id());
    let first = Message::request(XS_READ, one, 0, &nul(&at("a"))).to_bytes();
    let second = Message::request(XS_READ, two, 0, &nul(&at("a"))).to_bytes();
    let (front, back) = second.split_at(9);
    store.send_bytes(&[&first[..], front].concat()).await?;
    ensure_eq!(store.answer_to(one).await?.answer(), Ok(b"x".to_vec()), "the first value");
    store.send_bytes(back).await?;
    ensure_eq!(store.answer_to(two).await?.answer(), Ok(b"x".to_vec()), "the second value");
    Ok(())
}

async fn larger_request(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let path = at("a");
    // The daemon may refuse the value for its size, but must answer.
    let value = "0123456789abcdef".repeat(2 * XENSTORE_RING_SIZE / 16);
    match store.write(&path, &value).await? {
        Ok(_) => holds(store, &path, &value).await,
        Err(error) => {
            ensure!(matches!(error, Errno::ENOSPC | Errno::E2BIG), "a write of 2 KiB: {error}");
            Ok(())
        }
    }
}

async fn larger_answer(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let value = "0123456789abcdef".repeat(96);
    put(store, &at("a"), &value).await?;
    for _ in 0..5 {
        holds(store, &at("a"), &value).await?;
    }
    Ok(())
}

async fn wraps(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for round in 0..80 {
        let value: String =
            (0..300 + round * 7).map(|at| char::from(b' ' + ((at + round) % 90) as u8)).collect();
        put(store, &at("a"), &value).await?;
        holds(store, &at("a"), &value).await?;
    }
    Ok(())
}

async fn all_consumed(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    // The daemon may write the answer before it moves the requests' index, so the case waits a moment.
    ensure_eq!(store.event(QUIET_MS).await?, None, "an event");
    let page = store.page();
    let index = |offset: usize| page.load_u32(offset);
    ensure_eq!(index(REQ.cons), index(REQ.prod), "req_cons, beside req_prod");
    ensure_eq!(index(RSP.cons), index(RSP.prod), "rsp_cons, beside rsp_prod");
    Ok(())
}

async fn spurious(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for _ in 0..50 {
        store.port().notify();
    }
    put(store, &at("a"), "x").await?;
    holds(store, &at("a"), "x").await
}

async fn steady(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let page = store.page();
    let features = page.load_u32(SERVER_FEATURES_OFFSET);
    require!(features != 0, "the daemon announces no features");
    if features & XENSTORE_SERVER_FEATURE_RECONNECTION != 0 {
        ensure_eq!(page.load_u32(CONNECTION_OFFSET), XENSTORE_CONNECTED, "connection");
    }
    if features & XENSTORE_SERVER_FEATURE_ERROR != 0 {
        ensure_eq!(page.load_u32(ERROR_OFFSET), XENSTORE_ERROR_NONE, "error");
    }
    Ok(())
}

async fn slow_reader(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let value = "0123456789abcdef".repeat(50);
    put(store, &at("a"), &value).await?;
    let mut ids = Vec::new();
    for _ in 0..8 {
        // 8 answers of 800 bytes: far more than the ring holds.
        let id = store.new_id();
        store.send(&Message::request(XS_READ, id, 0, &nul(&at("a")))).await?;
        ids.push(id);
    }
    pvrt::executor::time::sleep(20_000_000).await;
    for id in ids {
        ensure_eq!(store.answer_to(id).await?.answer(), Ok(value.clone().into_bytes()), "the value");
    }
    Ok(())
}
