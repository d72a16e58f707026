//! What a frontend sends.

use alloc::vec::Vec;

use pvrt::executor::time;
use ring_abi::io::netif::*;
use ring_abi::types::PAGE_SIZE;

use super::Offload;
use super::back::{Back, SILENCE_NS, send};
use crate::netif::front::frames::payload;
use crate::{Env, Verdict};

cases! {
    needs [Frontend];

    "netfront.tx.one-frame" = one {
        title: "a frame of 60 bytes",
        rule: "A request names a page, an offset and a size: these bytes are the frame.",
        source: "io/netif.h, struct netif_tx_request",
    }
    "netfront.tx.sizes" = sizes {
        title: "frames of 14 to 1514 bytes",
        rule: "A frame has exactly the bytes that its requests name.",
        source: "io/netif.h, struct netif_tx_request, size",
    }
    "netfront.tx.pieces" = pieces {
        title: "a packet of 9000 bytes",
        rule: "A frame longer than a page goes on in the next request, and the first one's size is the whole.",
        source: "io/netif.h, NETTXF_more_data; 'Guest transmit', Fragment 1",
    }
    "netfront.tx.most-pieces" = most_pieces {
        title: "a large packet of 65535 bytes",
        rule: "A frontend uses no more slots than XEN_NETIF_NR_SLOTS_MIN for a frame.",
        source: "io/netif.h, XEN_NETIF_NR_SLOTS_MIN",
    }
    "netfront.tx.too-long" = too_long {
        title: "frames that are longer than the MTU allows, empty, or shorter than a header",
        rule: "What cannot be sent does not reach the ring.",
        source: "io/netif.h, 'MTU'",
    }
    "netfront.tx.blank-checksum" = blank {
        title: "a frame with its checksum blank, and one with it complete",
        rule: "NETTXF_csum_blank is set where the checksum is blank, and there alone.",
        source: "io/netif.h, NETTXF_csum_blank",
    }
    "netfront.tx.gso-v4" = gso_v4 {
        title: "a large TCP packet over IPv4",
        rule: "A GSO extra behind the first request has the protocol and the segments' size.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_GSO",
    }
    "netfront.tx.gso-v6" = gso_v6 {
        title: "a large TCP packet over IPv6",
        rule: "A GSO extra behind the first request has the protocol and the segments' size.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_GSO",
    }
    "netfront.tx.gso-not-offered" = gso_not_offered {
        title: "large TCP packets to a backend that takes those over IPv4 alone",
        rule: "Backends are not assumed to be capable of large packets unless the flag is present.",
        source: "io/netif.h, 'feature-gso-tcpv6'",
    }
    "netfront.tx.ids-in-flight" = ids {
        title: "sixty frames that are not answered",
        rule: "A request in flight has an id that no other has.",
        source: "io/netif.h, struct netif_tx_request, id",
    }
    "netfront.tx.answered-out-of-order" = out_of_order {
        title: "frames answered last first",
        rule: "Answers come in any order: the id says which.",
        source: "io/netif.h, tx response, id",
    }
    "netfront.tx.error-answers" = errors {
        title: "frames answered with NETIF_RSP_ERROR and NETIF_RSP_DROPPED",
        rule: "A frame that was refused is lost, and the next one is sent.",
        source: "io/netif.h, NETIF_RSP_ERROR, NETIF_RSP_DROPPED",
    }
    "netfront.tx.full" = full {
        title: "more frames than the backend answers",
        rule: "A frontend does not ask for more than the ring holds, and goes on when there are answers.",
        source: "io/ring.h, RING_FULL",
    }
    "netfront.tx.page-kept" = page_kept {
        title: "the pages of frames that are not answered",
        rule: "A request's page is the backend's until the answer.",
        source: "io/netif.h, 'Guest transmit'",
    }
    "netfront.tx.order" = order {
        title: "fifty frames",
        rule: "Frames of one queue keep their order.",
        source: "io/ring.h",
    }
    "netfront.tx.wraps" = wraps {
        title: "seven hundred frames",
        rule: "Indices run on: the slot of an index is its remainder by the ring's size.",
        source: "io/ring.h, RING_GET_REQUEST",
    }
    "netfront.tx.only-owed-events" = owed {
        title: "req_event far away",
        rule: "A frontend notifies when it moves req_prod over req_event.",
        source: "io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY",
    }
    "netfront.tx.events-mean-nothing" = events {
        title: "a thousand events without answers",
        rule: "An event promises nothing: the indices say what there is.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES",
    }
}

const PLAIN: Offload = Offload { blank: false, validated: false, gso: None };

/// Has a frame sent, and takes and answers it.
async fn passes(back: &mut Back, front: &alloc::sync::Arc<dyn super::NetFrontend>, frame: &[u8]) -> Verdict {
    let asked = send(front, frame, PLAIN);
    let taken = back.packet().await?;
    ensure!(taken.bytes == frame, "another frame than the one of {} bytes that was sent", frame.len());
    ensure!(
        taken.extras.is_empty() && taken.slots[0].flags & NETTXF_CSUM_BLANK == 0,
        "offloads of a plain frame"
    );
    back.answer(&taken, NETIF_RSP_OKAY);
    ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    Ok(())
}

async fn one(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    passes(&mut back, &front, &payload(60, 1)).await
}

async fn sizes(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for len in [14, 15, 59, 60, 61, 255, 256, 1000, 1513, 1514] {
        passes(&mut back, &front, &payload(len, len as u8)).await?;
    }
    Ok(())
}

async fn pieces(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let frame = payload(9000, 2);
    let asked = send(&front, &frame, large(1, 1448));
    let taken = back.packet().await?;
    ensure!(taken.slots.len() >= 3, "{} slots for 9000 bytes", taken.slots.len());
    ensure_eq!(taken.slots[0].size, 9000, "the first request's size");
    ensure!(taken.bytes == frame, "another frame");
    back.answer(&taken, NETIF_RSP_OKAY);
    ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    Ok(())
}

fn large(kind: u8, size: u16) -> Offload {
    Offload { blank: true, validated: true, gso: Some((kind, size)) }
}

async fn most_pieces(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let frame = payload(65_535, 3);
    let asked = send(&front, &frame, large(1, 1448));
    // `packet` counts the slots.
    let taken = back.packet().await?;
    ensure!(taken.bytes == frame, "another frame");
    ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    Ok(())
}

async fn too_long(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for len in [0, 1, 13, 1519, 9000, 65_600] {
        let result = back.end(send(&front, &payload(len, 4), PLAIN)).await?;
        ensure!(result.is_err(), "a frame of {len} bytes was taken");
    }
    back.silent().await?;
    passes(&mut back, &front, &payload(100, 5)).await
}

async fn blank(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for blank in [true, false, true] {
        let asked = send(&front, &payload(300, 6), Offload { blank, validated: blank, gso: None });
        let taken = back.packet().await?;
        let flag = taken.slots[0].flags & NETTXF_CSUM_BLANK != 0;
        ensure_eq!(flag, blank, "NETTXF_csum_blank of a frame");
        back.answer(&taken, NETIF_RSP_OKAY);
        ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    }
    Ok(())
}

async fn gso(env: &mut Env, kind: u8) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for (len, size) in [(5000, 1448), (3000, 536), (30_000, 8948)] {
        let frame = payload(len, 7);
        let asked = send(&front, &frame, large(kind, size));
        let taken = back.packet().await?;
        ensure!(taken.bytes == frame, "another frame");
        ensure_eq!(taken.extras.len(), 1, "extras of a large packet");
        let extra = taken.extras[0].as_gso();
        ensure_eq!(
            (extra.r#type, extra.gso_type, extra.size),
            (XEN_NETIF_EXTRA_TYPE_GSO, kind, size),
            "the extra"
        );
        ensure_eq!((extra.pad, extra.features), (0, 0), "pad and features of the extra");
        ensure!(taken.slots[0].flags & NETTXF_CSUM_BLANK != 0, "the checksum of a large packet is not blank");
        back.answer(&taken, NETIF_RSP_OKAY);
        ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    }
    Ok(())
}

async fn gso_v4(env: &mut Env) -> Verdict {
    gso(env, XEN_NETIF_GSO_TYPE_TCPV4).await
}

async fn gso_v6(env: &mut Env) -> Verdict {
    gso(env, XEN_NETIF_GSO_TYPE_TCPV6).await
}

async fn gso_not_offered(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let front = back.connect(&[("feature-gso-tcpv6", "0")]).await?;
    let refused = back.end(send(&front, &payload(5000, 8), large(XEN_NETIF_GSO_TYPE_TCPV6, 1428))).await?;
    ensure!(refused.is_err(), "a large packet over IPv6 was taken");
    back.silent().await?;
    let asked = send(&front, &payload(5000, 9), large(XEN_NETIF_GSO_TYPE_TCPV4, 1448));
    back.packet().await?;
    ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    Ok(())
}

/// Has `count` frames sent, and takes them.
async fn several(
    back: &mut Back,
    front: &alloc::sync::Arc<dyn super::NetFrontend>,
    count: u8,
) -> Verdict<Vec<super::back::Taken>> {
    let mut taken = Vec::new();
    for seed in 0..count {
        let frame = payload(100, seed);
        let asked = send(front, &frame, PLAIN);
        // `packet` looks that no id is in use twice.
        let packet = back.packet().await?;
        ensure!(packet.bytes == frame, "another frame than {seed}");
        ensure!(back.end(asked).await?.is_ok(), "frame {seed} was not sent");
        taken.push(packet);
    }
    Ok(taken)
}

async fn ids(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    several(&mut back, &front, 60).await?;
    Ok(())
}

async fn out_of_order(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for _ in 0..10 {
        for taken in several(&mut back, &front, 30).await?.iter().rev() {
            back.answer(taken, NETIF_RSP_OKAY);
        }
    }
    Ok(())
}

async fn errors(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for status in [NETIF_RSP_ERROR, NETIF_RSP_DROPPED] {
        for taken in several(&mut back, &front, 30).await? {
            back.answer(&taken, status);
        }
    }
    passes(&mut back, &front, &payload(100, 1)).await
}

async fn full(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let asked: Vec<_> = (0..=255).chain(0..44).map(|seed| send(&front, &payload(100, seed), PLAIN)).collect();
    time::sleep(SILENCE_NS).await;
    // `packet` looks that the ring holds what was asked.
    ensure!(back.waiting() > 0, "nothing was sent");
    for _ in 0..300 {
        let taken = back.packet().await?;
        back.answer(&taken, NETIF_RSP_OKAY);
    }
    for asked in asked {
        ensure!(back.end(asked).await?.is_ok(), "a frame was not sent");
    }
    Ok(())
}

async fn page_kept(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let taken = several(&mut back, &front, 40).await?;
    for (seed, packet) in taken.iter().enumerate() {
        let again = back.read_again(packet)?;
        ensure!(again == payload(100, seed as u8), "the page of frame {seed} has changed before the answer");
        back.answer(packet, NETIF_RSP_OKAY);
    }
    Ok(())
}

async fn order(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for taken in several(&mut back, &front, 50).await? {
        back.answer(&taken, NETIF_RSP_OKAY);
    }
    Ok(())
}

async fn wraps(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for n in 0..700u32 {
        passes(&mut back, &front, &payload(60 + n as usize, n as u8)).await?;
    }
    Ok(())
}

async fn owed(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    passes(&mut back, &front, &payload(100, 1)).await?;
    back.want_requests(1 << 31);
    back.drain_events();
    for seed in 0..10 {
        let asked = send(&front, &payload(100, seed), PLAIN);
        ensure!(back.end(asked).await?.is_ok(), "a frame was not sent");
    }
    ensure!(!back.tx_event(20).await, "an event that req_event did not ask for");
    for _ in 0..10 {
        let taken = back.packet().await?;
        back.answer(&taken, NETIF_RSP_OKAY);
    }
    // And one that it asks for comes.
    passes(&mut back, &front, &payload(PAGE_SIZE / 4, 2)).await
}

async fn events(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let taken = several(&mut back, &front, 5).await?;
    for _ in 0..1000 {
        back.notify();
    }
    time::sleep(1_000_000).await;
    for packet in &taken {
        back.answer(packet, NETIF_RSP_OKAY);
    }
    passes(&mut back, &front, &payload(100, 1)).await
}
