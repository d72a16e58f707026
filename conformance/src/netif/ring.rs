//! The rings' indices and events.

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use pvrt::executor::time;
use ring_abi::io::netif::*;
use ring_abi::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};

use super::front::{Net, Options, PATIENCE_MS};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.ring.full" = full {
        title: "256 frames at once",
        rule: "A one-page transmit ring holds 256 requests, each answered once.",
        source: "io/ring.h, __RING_SIZE; io/netif.h",
    }
    "netif.ring.full-again-and-again" = full_often {
        title: "the ring filled five times",
        rule: "Indices run on: the slot of an index is its remainder by the ring's size.",
        source: "io/ring.h, RING_GET_REQUEST",
    }
    "netif.ring.one-at-a-time" = one_at_a_time {
        title: "six hundred frames, each after the answer before",
        rule: "Indices run on: the slot of an index is its remainder by the ring's size.",
        source: "io/ring.h, RING_GET_REQUEST",
    }
    "netif.ring.unpublished" = unpublished {
        title: "a request in its slot behind req_prod",
        rule: "A request exists from the moment req_prod counts it, with or without an event.",
        source: "io/ring.h, RING_PUSH_REQUESTS",
    }
    "netif.ring.events-without-requests" = spurious {
        title: "a hundred events and nothing asked",
        rule: "An event promises nothing: the indices say what there is.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS",
    }
    "netif.ring.req-event-is-armed" = req_event {
        title: "req_event once the backend has nothing to do",
        rule: "A backend that goes to sleep asks for an event with the next request: req_event is one more than req_prod.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS",
    }
    "netif.ring.only-owed-events" = owed_events {
        title: "frames with an event only where req_event asks",
        rule: "A backend needs no event but those that its req_event asks for.",
        source: "io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY",
    }
    "netif.ring.rsp-event-next" = rsp_event_next {
        title: "rsp_event at the next response",
        rule: "A backend notifies when it moves rsp_prod over rsp_event.",
        source: "io/ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY",
    }
    "netif.ring.rsp-event-later" = rsp_event_later {
        title: "rsp_event ten responses on",
        rule: "A backend that has not reached rsp_event does not notify.",
        source: "io/ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY",
    }
    "netif.ring.rsp-event-far" = rsp_event_far {
        title: "rsp_event 2^31 away",
        rule: "A backend that has not reached rsp_event does not notify.",
        source: "io/ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY",
    }
    "netif.ring.rsp-event-is-the-frontends" = rsp_event_ours {
        title: "rsp_event after a hundred frames",
        rule: "rsp_event is the frontend's to write.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES",
    }
    "netif.ring.req-prod-is-the-frontends" = req_prod_ours {
        title: "req_prod after a hundred frames",
        rule: "req_prod is the frontend's to write.",
        source: "io/ring.h, RING_PUSH_REQUESTS",
    }
    "netif.ring.req-event-rewritten" = req_event_rewritten {
        title: "req_event overwritten by the frontend between frames",
        rule: "A backend's own arithmetic does not rest on req_event.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS",
    }
    "netif.ring.rsp-prod-rewritten" = rsp_prod_rewritten {
        title: "rsp_prod overwritten by the frontend between frames",
        rule: "A backend keeps its own producer index to itself.",
        source: "io/ring.h, struct netif_tx_back_ring, rsp_prod_pvt",
    }
    "netif.ring.slots-rewritten" = slots_rewritten {
        title: "a slot overwritten as soon as its request was published and taken",
        rule: "A backend reads a request once.",
        source: "io/ring.h, RING_COPY_REQUEST",
    }
    "netif.ring.rx-req-event-is-armed" = rx_req_event {
        title: "req_event of the receive ring when a frame found no buffers",
        rule: "A backend that waits for buffers asks for an event with those that it needs.",
        source: "io/netif.h, 'feature-rx-notify'; io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS",
    }
    "netif.ring.rx-rsp-event-far" = rx_rsp_event_far {
        title: "rsp_event of the receive ring far away",
        rule: "A backend that has not reached rsp_event does not notify.",
        source: "io/ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY",
    }
    "netif.ring.split-events" = split_events {
        title: "which event channel tells of what, where there are two",
        rule: "With split event channels the transmit channel tells of answers, the receive channel of frames.",
        source: "io/netif.h, 'feature-split-event-channels'",
    }
}

async fn filled(net: &mut Net<'_>) -> Verdict {
    let mut frames = Vec::new();
    for id in 0..ring::TX_SLOTS as u16 {
        let mut made = net.made(60, id as u8)?;
        made.slots[0].id = id;
        net.sender.put(&made);
        frames.push(made);
    }
    net.sender.tx().publish();
    let answers = net.sender.answers(frames.len()).await?;
    let wanted: Vec<_> = (0..ring::TX_SLOTS as u16).map(|id| (id, NETIF_RSP_OKAY)).collect();
    ensure!(answers.pieces == wanted, "the answers to a full ring: {:?}", answers.pieces);
    // A receiver with 64 buffers may miss some of so many; what comes is in order, and the last ones are no others.
    let mut at = 0;
    loop {
        let Ok(got) = time::timeout(60_000_000, net.receive()).await else { break };
        let got = got?;
        let place = frames[at..].iter().position(|made| made.bytes == got.bytes);
        ensure!(place.is_some(), "a frame that was not sent, or not in this order");
        at += place.unwrap_or(0) + 1;
        if at == frames.len() {
            break;
        }
    }
    net.goes_on().await
}

async fn full(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    filled(&mut net).await?;
    net.close().await
}

async fn full_often(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for _ in 0..5 {
        filled(&mut net).await?;
    }
    net.close().await
}

async fn one_at_a_time(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for _ in 0..600 {
        net.goes_on().await?;
    }
    net.close().await
}

async fn unpublished(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = net.made(60, 1)?;
    net.sender.put(&made);
    net.sender.tx().notify();
    net.sender.tx().silent(100).await?;
    net.sender.tx().publish();
    net.sender.answers(1).await?;
    ensure!(net.receive().await?.bytes == made.bytes, "another frame");
    net.close().await
}

async fn spurious(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for _ in 0..100 {
        net.sender.tx().notify();
    }
    net.sender.tx().silent(50).await?;
    net.goes_on().await?;
    net.close().await
}

async fn req_event(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for _ in 0..5 {
        net.goes_on().await?;
        net.sender.tx().armed().await?;
    }
    net.close().await
}

async fn owed_events(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    // `publish` keeps to the rule; each round waits for its answer, so that a missed frame is noticed.
    let mut events = 0;
    for n in 0..60u8 {
        let made = net.made(60, n)?;
        net.sender.put(&made);
        events += u32::from(net.sender.tx().publish());
        if n % 6 == 5 {
            net.sender.answers(6).await?;
        }
    }
    ensure!(events > 0, "an idle backend asked for no event");
    net.close().await
}

/// Sends `count` frames with `rsp_event` so far on, and waits for all answers without events.
async fn with_rsp_event(env: &mut Env, ahead: u32, count: u32, wanted: bool) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.goes_on().await?;
    net.sender.tx().armed().await?;
    time::sleep(20_000_000).await;
    let tx = net.sender.tx();
    tx.drain_events();
    let event = tx.consumed.wrapping_add(ahead);
    tx.bytes().store_u32(RSP_EVENT, event);
    for seed in 0..count {
        let made = net.made(60, seed as u8)?;
        net.sender.put(&made);
        net.sender.tx().publish();
        // One after the other, or a batch might pass by.
        let end = time::now_ns() + PATIENCE_MS * 1_000_000;
        while net.sender.tx().waiting() <= seed {
            ensure!(time::now_ns() < end, "no answer to frame {seed}");
            time::sleep(200_000).await;
        }
    }
    let got = net.sender.tx().event(30).await;
    ensure_eq!(got, wanted, "an event with {count} answers and rsp_event {ahead} on");
    net.sender.answers(count as usize).await?;
    net.close().await
}

async fn rsp_event_next(env: &mut Env) -> Verdict {
    with_rsp_event(env, 1, 1, true).await
}

async fn rsp_event_later(env: &mut Env) -> Verdict {
    with_rsp_event(env, 10, 9, false).await
}

async fn rsp_event_far(env: &mut Env) -> Verdict {
    with_rsp_event(env, 1 << 31, 20, false).await
}

async fn rsp_event_ours(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for seed in 0..100 {
        let made = net.made(60, seed)?;
        let tx = net.sender.tx();
        let event = tx.consumed.wrapping_add(1);
        tx.bytes().store_u32(RSP_EVENT, event);
        net.sender.put(&made);
        net.sender.tx().publish();
        let end = time::now_ns() + PATIENCE_MS * 1_000_000;
        while net.sender.tx().waiting() == 0 {
            ensure!(time::now_ns() < end, "no answer to frame {seed}");
            time::sleep(100_000).await;
        }
        ensure_eq!(net.sender.tx().bytes().load_u32(RSP_EVENT), event, "rsp_event");
        net.sender.answers(1).await?;
    }
    net.close().await
}

async fn req_prod_ours(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for _ in 0..100 {
        net.goes_on().await?;
        let tx = net.sender.tx();
        ensure_eq!(tx.bytes().load_u32(REQ_PROD), tx.produced, "req_prod");
    }
    net.close().await
}

async fn req_event_rewritten(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for value in [0, 7, 0x8000_0000, u32::MAX] {
        net.sender.tx().armed().await?;
        let made = net.made(60, value as u8)?;
        net.sender.put(&made);
        let tx = net.sender.tx();
        tx.bytes().store_u32(REQ_EVENT, value);
        tx.publish();
        tx.notify();
        net.sender.answers(1).await?;
        ensure!(net.receive().await?.bytes == made.bytes, "another frame");
    }
    net.close().await
}

async fn rsp_prod_rewritten(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for value in [0, 100, 0x1234_5678, u32::MAX] {
        net.sender.tx().armed().await?;
        let made = net.made(60, value as u8)?;
        let tx = net.sender.tx();
        let wanted = tx.consumed.wrapping_add(1);
        tx.bytes().store_u32(RSP_PROD, value);
        net.sender.put(&made);
        net.sender.tx().publish();
        net.sender.tx().notify();
        let end = time::now_ns() + PATIENCE_MS * 1_000_000;
        while net.sender.tx().bytes().load_u32(RSP_PROD) != wanted {
            ensure!(time::now_ns() < end, "rsp_prod is not {wanted:#x} after another answer");
            time::sleep(1_000_000).await;
        }
        net.sender.answers(1).await?;
        net.receive().await?;
    }
    net.close().await
}

async fn slots_rewritten(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for n in 0..100u8 {
        let made = net.made(60, n)?;
        net.sender.put(&made);
        let tx = net.sender.tx();
        tx.publish();
        fence(Ordering::SeqCst);
        net.sender.answers(1).await?;
        let got = net.receive().await?;
        ensure!(got.bytes == made.bytes, "another frame");
        // All slots but those of answers to come: nothing that was answered is looked at again.
        let tx = net.sender.tx();
        tx.bytes().fill(ring_abi::ring::SLOTS, ring::TX_SLOTS as usize * ring::TX_SLOT_BYTES, 0xff);
    }
    net.close().await
}

async fn rx_req_event(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &Options { post: 0, ..Options::default() }).await?;
    let made = net.made(60, 1)?;
    net.sender.put(&made);
    net.sender.tx().publish();
    time::sleep(1_000_000).await;
    let rx = net.receiver.rx();
    let ahead = rx.bytes().load_u32(REQ_EVENT).wrapping_sub(rx.produced);
    ensure!((1..=18).contains(&ahead), "req_event is {ahead} ahead of req_prod, with a frame that waits");
    net.sender.answers(1).await?;
    net.close().await
}

async fn rx_rsp_event_far(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &Options { split: true, ..Options::default() }).await?;
    net.goes_on().await?;
    time::sleep(20_000_000).await;
    let rx = net.receiver.rx();
    rx.drain_events();
    rx.bytes().store_u32(RSP_EVENT, rx.consumed.wrapping_add(1 << 31));
    let made = net.made(60, 1)?;
    net.sender.ask(&made).await?;
    let end = time::now_ns() + PATIENCE_MS * 1_000_000;
    while net.receiver.rx().waiting() == 0 {
        ensure!(time::now_ns() < end, "no frame");
        time::sleep(1_000_000).await;
    }
    ensure!(!net.receiver.rx().event(30).await, "an event that rsp_event did not ask for");
    ensure!(net.receive().await?.bytes == made.bytes, "another frame");
    net.close().await
}

async fn split_events(env: &mut Env) -> Verdict {
    let options = Options { split: true, ..Options::default() };
    let mut net = Net::connect(env, &options, &options).await?;
    net.needs("feature-split-event-channels").await?;
    for _ in 0..5 {
        // Each wait is for an event of the ring's own channel.
        net.goes_on().await?;
    }
    time::sleep(20_000_000).await;
    net.sender.tx().drain_events();
    net.receiver.tx().drain_events();
    net.goes_on().await?;
    ensure!(!net.receiver.tx().event(20).await, "an event on the transmit channel of who only receives");
    net.close().await
}
