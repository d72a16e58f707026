//! A backend that breaks the rules: a frontend may end the connection, but not take nonsense for a frame.

use alloc::sync::Arc;

use pvrt::executor::time;
use ring_abi::io::netif::*;
use ring_abi::io::xenbus::XenbusState::{Closed, Closing};

use super::back::{Back, Taken, part, receive, send};
use super::{FrontError, NetFrontend, Offload};
use crate::netif::front::frames::payload;
use crate::netif::front::gso;
use crate::{Env, Verdict};

cases! {
    needs [Frontend];

    "netfront.hostile.tx-unknown-id" = tx_unknown {
        title: "an answer with an id that was never used",
        rule: "A frontend that is answered what it did not ask takes it for nothing that it asked.",
        source: "io/netif.h, tx response, id",
    }
    "netfront.hostile.tx-huge-id" = tx_huge {
        title: "answers with the ids 65535, 32768 and 256",
        rule: "An id is looked up, never used as an index as it is.",
        source: "io/netif.h, tx response, id",
    }
    "netfront.hostile.tx-answered-twice" = tx_twice {
        title: "one request answered twice",
        rule: "A second answer to a request answers nothing, and no later request.",
        source: "io/netif.h, tx response, id",
    }
    "netfront.hostile.tx-overrun" = tx_overrun {
        title: "rsp_prod of the transmit ring one ahead of req_prod",
        rule: "A frontend that is answered more than it asked takes the surplus for no answer.",
        source: "io/ring.h, RING_RESPONSE_PROD_OVERFLOW",
    }
    "netfront.hostile.tx-overrun-by-half" = tx_half {
        title: "rsp_prod of the transmit ring 2^31 ahead",
        rule: "A frontend that is answered more than it asked believes none of it.",
        source: "io/ring.h, RING_RESPONSE_PROD_OVERFLOW",
    }
    "netfront.hostile.tx-back" = tx_back {
        title: "rsp_prod of the transmit ring one less than it was",
        rule: "Indices only grow: one less is 2^32-1 more, an overrun.",
        source: "io/ring.h, RING_RESPONSE_PROD_OVERFLOW",
    }
    "netfront.hostile.rx-wrong-id" = rx_wrong {
        title: "a response with another id than its slot's request",
        rule: "A response stands in the slot of its request: an id that is another's names no buffer.",
        source: "io/netif.h, rx response, NOTE",
    }
    "netfront.hostile.rx-overrun" = rx_overrun {
        title: "rsp_prod of the receive ring ahead of req_prod",
        rule: "A frontend that is answered more than it asked believes none of it.",
        source: "io/ring.h, RING_RESPONSE_PROD_OVERFLOW",
    }
    "netfront.hostile.rx-overrun-by-half" = rx_half {
        title: "rsp_prod of the receive ring 2^31 ahead",
        rule: "A frontend that is answered more than it asked believes none of it.",
        source: "io/ring.h, RING_RESPONSE_PROD_OVERFLOW",
    }
    "netfront.hostile.rx-crosses-page" = rx_crosses {
        title: "a frame that begins in its page and ends behind it",
        rule: "offset and status lie within one page: a frontend never reads beyond.",
        source: "io/netif.h, rx response, offset, status",
    }
    "netfront.hostile.rx-offset-beyond" = rx_offset {
        title: "offsets 4096 and 65535",
        rule: "offset and status lie within one page: a frontend never reads beyond.",
        source: "io/netif.h, rx response, offset",
    }
    "netfront.hostile.rx-size-beyond" = rx_size {
        title: "statuses of 4097 and 32767 bytes",
        rule: "offset and status lie within one page: a frontend never reads beyond.",
        source: "io/netif.h, rx response, status",
    }
    "netfront.hostile.rx-extra-missing" = extra_missing {
        title: "NETRXF_extra_info in the last response that rsp_prod counts",
        rule: "A frame without the extra information that it promises is no frame.",
        source: "io/netif.h, NETRXF_extra_info",
    }
    "netfront.hostile.rx-extra-more-missing" = extra_more_missing {
        title: "XEN_NETIF_EXTRA_FLAG_MORE in the last slot that rsp_prod counts",
        rule: "A frame without the extra information that it promises is no frame.",
        source: "io/netif.h, XEN_NETIF_EXTRA_FLAG_MORE",
    }
    "netfront.hostile.rx-extra-type" = extra_type {
        title: "extra information of the types 0, 2, 5 and 255",
        rule: "A frame with extra information that no backend sends is no frame.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_*",
    }
    "netfront.hostile.rx-gso-size" = gso_size {
        title: "a GSO extra with segments of 0 bytes",
        rule: "A frontend does not pass on a packet that is to be cut into nothing.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_GSO, size",
    }
    "netfront.hostile.rx-gso-type" = gso_type {
        title: "GSO extras of the protocols 0, 3 and 255",
        rule: "A frontend does not pass on a packet of a protocol that does not exist.",
        source: "io/netif.h, XEN_NETIF_GSO_TYPE_*",
    }
    "netfront.hostile.rx-endless" = endless {
        title: "a frame of two hundred pages",
        rule: "A frontend keeps no more of a frame than a frame can have.",
        source: "io/netif.h, XEN_NETIF_MAX_TX_SIZE; NETRXF_more_data",
    }
    "netfront.hostile.rx-rest-later" = rest_later {
        title: "a frame's first part, and its second after a while",
        rule: "A frame is there when its last part is: none is taken in halves.",
        source: "io/netif.h, NETRXF_more_data",
    }
    "netfront.hostile.events" = events {
        title: "a thousand events without responses",
        rule: "An event promises nothing: the indices say what there is.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES",
    }
    "netfront.hostile.req-prod-rewritten" = req_prod {
        title: "req_prod overwritten by the backend",
        rule: "A frontend keeps its own producer index to itself.",
        source: "io/ring.h, struct netif_tx_front_ring, req_prod_pvt",
    }
    "netfront.hostile.slots-rewritten" = slots {
        title: "all slots of both rings overwritten while requests are in flight",
        rule: "What stands in a shared slot after it was written is the backend's: a frontend does not rely on it.",
        source: "io/ring.h, RING_COPY_RESPONSE",
    }
    "netfront.hostile.closes-with-frames" = closes {
        title: "Closing and Closed with frames in flight that are never answered",
        rule: "A connection that has ended sends nothing and receives nothing.",
        source: "io/xenbus.h, XenbusStateClosing, XenbusStateClosed",
    }
}

const PLAIN: Offload = Offload { blank: false, validated: false, gso: None };
/// A frame that is a good one.
const GOOD: u8 = 0x11;

/// A frame in flight, and then `act` misbehaves: whatever the frontend makes of it, the next frames are good ones, or none.
async fn bears(env: &Env, act: impl FnOnce(&mut Back, &Taken)) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let asked = send(&front, &payload(100, 1), PLAIN);
    let taken = back.packet().await?;
    ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    act(&mut back, &taken);
    time::sleep(2_000_000).await;
    goes_on(&mut back, &front).await
}

/// Gives a good frame: the frontend takes that one, or has ended the connection.
async fn goes_on(back: &mut Back, front: &Arc<dyn NetFrontend>) -> Verdict {
    let waiting = receive(front);
    let sent = back.soon(send(front, &payload(100, 2), PLAIN)).await;
    ensure!(sent.is_some(), "a frame that is sent neither passes nor fails");
    if sent == Some(Err(FrontError::Gone)) {
        ensure_eq!(back.end(waiting).await?.err(), Some(FrontError::Gone), "what waits for a frame");
        return Ok(());
    }
    back.give(&payload(333, GOOD)).await?;
    match back.end(waiting).await? {
        Ok((bytes, _)) => {
            ensure!(bytes == payload(333, GOOD), "the frontend takes {} bytes for a frame", bytes.len())
        }
        Err(error) => ensure_eq!(error, FrontError::Gone, "what waits for a frame"),
    }
    Ok(())
}

async fn tx_unknown(env: &mut Env) -> Verdict {
    bears(env, |back, taken| {
        back.push_tx(taken.slots[0].id ^ 1, NETIF_RSP_OKAY);
        back.publish_tx();
    })
    .await
}

async fn tx_huge(env: &mut Env) -> Verdict {
    for id in [u16::MAX, 0x8000, 256] {
        bears(env, |back, _| {
            back.push_tx(id, NETIF_RSP_OKAY);
            back.publish_tx();
        })
        .await?;
    }
    Ok(())
}

async fn tx_twice(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let mut ids = alloc::vec::Vec::new();
    for seed in 0..2 {
        let asked = send(&front, &payload(100, seed), PLAIN);
        ids.push(back.packet().await?.slots[0].id);
        ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    }
    back.push_tx(ids[0], NETIF_RSP_OKAY);
    back.push_tx(ids[0], NETIF_RSP_OKAY);
    back.publish_tx();
    // A frontend that believed it would use the id of the second, which is in flight, or that of the first twice.
    for seed in 0..4 {
        if back.soon(send(&front, &payload(100, seed), PLAIN)).await != Some(Ok(())) {
            return Ok(());
        }
        let id = back.packet().await?.slots[0].id;
        ensure!(id != ids[1], "the id {id} of a frame in flight is used again");
    }
    Ok(())
}

async fn tx_overrun(env: &mut Env) -> Verdict {
    bears(env, |back, _| back.claim_tx(2)).await
}

async fn tx_half(env: &mut Env) -> Verdict {
    bears(env, |back, _| back.claim_tx(1 << 31)).await
}

async fn tx_back(env: &mut Env) -> Verdict {
    bears(env, |back, _| back.claim_tx(u32::MAX)).await
}

/// A bad response on the receive ring: nothing of it is a frame.
async fn bad(env: &Env, change: impl Fn(NetifRxResponse) -> NetifRxResponse) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let response = back.fill(0, &payload(1000, 9), 0).await?;
    back.push_rx(&change(response));
    back.publish_rx();
    goes_on(&mut back, &front).await
}

async fn rx_wrong(env: &mut Env) -> Verdict {
    for id in [1, 128, u16::MAX] {
        bad(env, |response| NetifRxResponse { id: response.id ^ id, ..response }).await?;
    }
    Ok(())
}

async fn rx_claims(env: &Env, ahead: u32) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    back.claim_rx(ahead);
    goes_on(&mut back, &front).await
}

async fn rx_overrun(env: &mut Env) -> Verdict {
    rx_claims(env, 257).await
}

async fn rx_half(env: &mut Env) -> Verdict {
    rx_claims(env, 1 << 31).await
}

async fn rx_crosses(env: &mut Env) -> Verdict {
    for offset in [3097, 4000, 4095] {
        bad(env, |response| NetifRxResponse { offset, ..response }).await?;
    }
    Ok(())
}

async fn rx_offset(env: &mut Env) -> Verdict {
    for offset in [4096, u16::MAX] {
        bad(env, |response| NetifRxResponse { offset, ..response }).await?;
    }
    Ok(())
}

async fn rx_size(env: &mut Env) -> Verdict {
    for status in [4097, i16::MAX] {
        bad(env, |response| NetifRxResponse { status, ..response }).await?;
    }
    Ok(())
}

async fn extra_missing(env: &mut Env) -> Verdict {
    bad(env, |response| NetifRxResponse { flags: NETRXF_EXTRA_INFO, ..response }).await
}

/// A frame with this extra information, as it is.
async fn bad_extra(env: &Env, extra: NetifExtraInfo) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let response = back.fill(0, &payload(1000, 9), NETRXF_EXTRA_INFO).await?;
    back.push_rx(&response);
    back.push_extra(&extra).await?;
    back.publish_rx();
    goes_on(&mut back, &front).await
}

async fn extra_more_missing(env: &mut Env) -> Verdict {
    bad_extra(env, NetifExtraInfo { flags: XEN_NETIF_EXTRA_FLAG_MORE, ..gso(1, 1448) }).await
}

async fn extra_type(env: &mut Env) -> Verdict {
    for kind in [XEN_NETIF_EXTRA_TYPE_NONE, XEN_NETIF_EXTRA_TYPE_MCAST_ADD, XEN_NETIF_EXTRA_TYPE_MAX, u8::MAX]
    {
        bad_extra(env, NetifExtraInfo { r#type: kind, flags: 0, u: [0; 3] }).await?;
    }
    Ok(())
}

async fn gso_size(env: &mut Env) -> Verdict {
    bad_extra(env, gso(XEN_NETIF_GSO_TYPE_TCPV4, 0)).await
}

async fn gso_type(env: &mut Env) -> Verdict {
    for kind in [XEN_NETIF_GSO_TYPE_NONE, 3, u8::MAX] {
        bad_extra(env, gso(kind, 1448)).await?;
    }
    Ok(())
}

async fn endless(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for _ in 0..200 {
        let response = back.fill(0, &payload(4096, 9), NETRXF_MORE_DATA).await?;
        back.push_rx(&response);
    }
    back.publish_rx();
    // The frame's end, should the frontend still be there.
    let response = back.fill(0, &payload(100, 9), 0).await?;
    back.push_rx(&response);
    back.publish_rx();
    goes_on(&mut back, &front).await
}

async fn rest_later(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let frame = payload(1000, 7);
    let response = back.fill(0, &frame[..600], NETRXF_MORE_DATA).await?;
    back.push_rx(&response);
    back.publish_rx();
    let mut waiting = receive(&front);
    let early = time::timeout(20_000_000, &mut waiting).await;
    ensure!(early.is_err(), "a frame was taken before its end came");
    back.put(&[part(&frame[600..])], 0, &[]).await?;
    back.publish_rx();
    match back.end(waiting).await? {
        Ok((bytes, _)) => ensure!(bytes == frame, "another frame"),
        Err(error) => ensure_eq!(error, FrontError::Gone, "what waits for a frame"),
    }
    Ok(())
}

async fn events(env: &mut Env) -> Verdict {
    bears(env, |back, _| (0..1000).for_each(|_| back.notify())).await
}

async fn req_prod(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for seed in 0..5 {
        let wanted = back.tx_indices()[0].wrapping_add(1);
        back.overwrite_req_prod(0x1234_5678);
        let asked = send(&front, &payload(100, seed), PLAIN);
        ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
        ensure_eq!(back.tx_indices()[0], wanted, "req_prod after the next request");
        let taken = back.packet().await?;
        back.answer(&taken, NETIF_RSP_OKAY);
    }
    Ok(())
}

async fn slots(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let mut taken = alloc::vec::Vec::new();
    for seed in 0..20 {
        let asked = send(&front, &payload(100, seed), PLAIN);
        taken.push(back.packet().await?);
        ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    }
    let request = back.buffer().await?;
    back.writes(request.gref)?;
    back.overwrite_slots(0xff);
    for packet in &taken {
        back.answer(packet, NETIF_RSP_OKAY);
    }
    back.push_rx(&NetifRxResponse { id: request.id, offset: 0, flags: 0, status: 777 });
    back.publish_rx();
    let got = back.end(receive(&front)).await?;
    ensure!(got.is_ok_and(|(bytes, _)| bytes == [0x5a; 777]), "another frame");
    Ok(())
}

async fn closes(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for seed in 0..10 {
        let asked = send(&front, &payload(100, seed), PLAIN);
        back.packet().await?;
        ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    }
    let waiting = receive(&front);
    back.detach();
    back.set_state(Closing);
    back.set_state(Closed);
    ensure_eq!(back.end(waiting).await?.err(), Some(FrontError::Gone), "what waits for a frame");
    let later = back.end(send(&front, &payload(100, 1), PLAIN)).await?;
    ensure_eq!(later, Err(FrontError::Gone), "a frame for a backend that is closed");
    Ok(())
}
