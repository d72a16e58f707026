//! What a frontend makes of the frames that it is given.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::io::netif::*;
use ring_abi::types::PAGE_SIZE;

use super::back::{Back, part, receive};
use super::{NetFrontend, Offload};
use crate::netif::front::frames::payload;
use crate::netif::front::{gso, hash, same};
use crate::{Env, Verdict};

cases! {
    needs [Frontend];

    "netfront.rx.one-frame" = one {
        title: "a frame of 60 bytes",
        rule: "A response has a frame's offset in its page and its bytes.",
        source: "io/netif.h, struct netif_rx_response",
    }
    "netfront.rx.sizes" = sizes {
        title: "frames of 14 to 4096 bytes",
        rule: "A frame has exactly the bytes that its responses say.",
        source: "io/netif.h, rx response, status",
    }
    "netfront.rx.parts" = parts {
        title: "frames of two to five pages",
        rule: "A frame goes on in the next response by NETRXF_more_data, and its size is the sum.",
        source: "io/netif.h, NETRXF_more_data; 'Guest receive', NOTE",
    }
    "netfront.rx.small-parts" = small_parts {
        title: "a frame in seventeen parts of 50 bytes",
        rule: "A part has any number of bytes: only their sum is a frame.",
        source: "io/netif.h, 'Guest receive', Fragment N",
    }
    "netfront.rx.longest" = longest {
        title: "a frame of 65535 bytes",
        rule: "A frontend with feature-sg takes the longest packets there are.",
        source: "io/netif.h, XEN_NETIF_MAX_TX_SIZE; 'Guest receive'",
    }
    "netfront.rx.offsets" = offsets {
        title: "frames at the offsets 2, 64, 2000 and at their page's end",
        rule: "A frame begins at the response's offset in its page.",
        source: "io/netif.h, rx response, offset",
    }
    "netfront.rx.checksum-flags" = checksum {
        title: "frames that are complete, validated and blank",
        rule: "A frontend is told of a blank checksum by NETRXF_csum_blank, of a good one by NETRXF_data_validated.",
        source: "io/netif.h, NETRXF_csum_blank, NETRXF_data_validated",
    }
    "netfront.rx.gso" = large {
        title: "large packets over IPv4 and IPv6",
        rule: "A GSO extra behind the first response has the protocol and the segments' size.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_GSO",
    }
    "netfront.rx.hash" = hashed {
        title: "a frame with a hash extra, and one with a GSO extra and a hash extra",
        rule: "Extra information goes on where XEN_NETIF_EXTRA_FLAG_MORE is set.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_HASH, XEN_NETIF_EXTRA_FLAG_MORE",
    }
    "netfront.rx.error" = error {
        title: "a response with NETIF_RSP_ERROR between two frames",
        rule: "A negative status is no frame: the one behind it is the next.",
        source: "io/netif.h, rx response, status",
    }
    "netfront.rx.error-in-a-part" = error_part {
        title: "a frame whose second part of three has an error",
        rule: "A frame of which a part failed is no frame.",
        source: "io/netif.h, rx response, status; NETRXF_more_data",
    }
    "netfront.rx.too-short" = short {
        title: "frames of 0, 1 and 13 bytes",
        rule: "What is shorter than an Ethernet header is no frame: the one behind it is the next.",
        source: "io/netif.h, rx response, status",
    }
    "netfront.rx.posts-again" = posts_again {
        title: "seven hundred frames",
        rule: "A frontend posts its buffers again, and indices run on.",
        source: "io/netif.h, 'Guest receive'; io/ring.h, RING_GET_RESPONSE",
    }
    "netfront.rx.burst" = burst {
        title: "as many frames at once as there are buffers",
        rule: "A frontend takes all that came, in order.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES",
    }
    "netfront.rx.extras-give-buffers-back" = extras_back {
        title: "three hundred frames with two extras each",
        rule: "The buffer of a slot that holds extra information is the frontend's again.",
        source: "io/netif.h, 'Extra Info', NOTE",
    }
    "netfront.rx.only-owed-events" = owed {
        title: "frames with an event only where rsp_event asks",
        rule: "A frontend that waits asks for an event with the next response.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES",
    }
    "netfront.rx.page-is-copied" = copied {
        title: "a buffer that is written again after the frame was taken",
        rule: "What the frontend took is its own: the backend cannot change it.",
        source: "io/netif.h, 'Guest receive'; 'trusted'",
    }
    "netfront.rx.beside-transmission" = beside {
        title: "frames in both directions by turns",
        rule: "Transmission and reception are rings of their own.",
        source: "io/netif.h, '{tx,rx}-ring-ref'",
    }
}

const PLAIN: Offload = Offload { blank: false, validated: false, gso: None };

/// Looks that the next frame is this one.
async fn next(back: &Back, front: &Arc<dyn NetFrontend>, frame: &[u8]) -> Verdict<Offload> {
    match back.end(receive(front)).await? {
        Ok((bytes, offload)) => {
            same("the frame that the frontend took", &bytes, frame)?;
            Ok(offload)
        }
        Err(error) => Err(crate::Problem::Fail(alloc::format!("the frontend takes no frame: {error:?}"))),
    }
}

async fn one(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    back.give(&payload(60, 1)).await?;
    let offload = next(&back, &front, &payload(60, 1)).await?;
    ensure_eq!(offload, PLAIN, "the offloads of a plain frame");
    Ok(())
}

/// Frames of these lengths, one after the other.
async fn of_lengths(env: &Env, lens: &[usize]) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for &len in lens {
        let frame = payload(len, len as u8);
        back.give(&frame).await?;
        next(&back, &front, &frame).await?;
    }
    Ok(())
}

async fn sizes(env: &mut Env) -> Verdict {
    of_lengths(env, &[14, 15, 59, 60, 61, 1514, 4095, 4096]).await
}

async fn parts(env: &mut Env) -> Verdict {
    of_lengths(env, &[4097, 8192, 8193, 9014, 16_384, 20_000]).await
}

async fn longest(env: &mut Env) -> Verdict {
    of_lengths(env, &[65_535, 60, 65_535]).await
}

async fn small_parts(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let frame = payload(17 * 50, 3);
    let parts: Vec<_> = frame.chunks(50).map(part).collect();
    back.put(&parts, 0, &[]).await?;
    back.publish_rx();
    next(&back, &front, &frame).await?;
    Ok(())
}

async fn offsets(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for offset in [2, 64, 2000, PAGE_SIZE as u16 - 700] {
        let frame = payload(1400, offset as u8);
        back.put(&[(offset, &frame[..700]), (1, &frame[700..])], 0, &[]).await?;
        back.publish_rx();
        next(&back, &front, &frame).await?;
    }
    Ok(())
}

async fn checksum(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let frame = payload(500, 4);
    for (flags, blank) in [
        (0, false),
        (NETRXF_DATA_VALIDATED, false),
        (NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED, true),
        (NETRXF_CSUM_BLANK, true),
    ] {
        back.put(&[part(&frame)], flags, &[]).await?;
        back.publish_rx();
        let offload = next(&back, &front, &frame).await?;
        ensure_eq!(offload.blank, blank, "whether the checksum is blank, by flags {flags:#x}");
        ensure!(!offload.validated || flags != 0, "a frame is called validated that nobody validated");
    }
    Ok(())
}

async fn large(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for kind in [XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6] {
        let frame = payload(9000, kind);
        let parts: Vec<_> = frame.chunks(PAGE_SIZE).map(part).collect();
        back.put(&parts, NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED, &[gso(kind, 1448)]).await?;
        back.publish_rx();
        let offload = next(&back, &front, &frame).await?;
        ensure_eq!((offload.gso, offload.blank), (Some((kind, 1448)), true), "segments and checksum");
    }
    Ok(())
}

async fn hashed(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let frame = payload(5000, 5);
    let parts: Vec<_> = frame.chunks(PAGE_SIZE).map(part).collect();
    let (gso, hash) = (gso(XEN_NETIF_GSO_TYPE_TCPV4, 1448), hash(1, 0xdead_beef));
    let blank = NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED;
    for (extras, wanted) in
        [(&[hash][..], None), (&[gso, hash], Some((1, 1448))), (&[hash, gso], Some((1, 1448)))]
    {
        back.put(&parts, blank, extras).await?;
        back.publish_rx();
        ensure_eq!(
            next(&back, &front, &frame).await?.gso,
            wanted,
            "segments of a frame with {} extras",
            extras.len()
        );
    }
    Ok(())
}

async fn error(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for status in [NETIF_RSP_ERROR, NETIF_RSP_DROPPED, i16::MIN] {
        back.give(&payload(100, 1)).await?;
        let response = back.fill(0, &payload(100, 2), 0).await?;
        back.push_rx(&NetifRxResponse { status, ..response });
        back.give(&payload(100, 3)).await?;
        next(&back, &front, &payload(100, 1)).await?;
        next(&back, &front, &payload(100, 3)).await?;
    }
    Ok(())
}

async fn error_part(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for bad in 0..3 {
        for at in 0..3 {
            let flags = if at < 2 { NETRXF_MORE_DATA } else { 0 };
            let mut response = back.fill(0, &payload(1000, 1), flags).await?;
            if at == bad {
                response.status = NETIF_RSP_ERROR;
            }
            back.push_rx(&response);
        }
        back.give(&payload(100, 3)).await?;
        next(&back, &front, &payload(100, 3)).await?;
    }
    Ok(())
}

async fn short(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for len in [0, 1, 13] {
        back.put(&[part(&payload(len, 1))], 0, &[]).await?;
        back.give(&payload(100, 3)).await?;
        next(&back, &front, &payload(100, 3)).await?;
    }
    Ok(())
}

async fn posts_again(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for n in 0..700u32 {
        let frame = payload(60 + n as usize, n as u8);
        back.give(&frame).await?;
        next(&back, &front, &frame).await?;
    }
    Ok(())
}

async fn burst(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let room = back.room();
    for n in 0..room {
        let frame = payload(60 + n as usize, n as u8);
        back.put(&[part(&frame)], 0, &[]).await?;
    }
    back.publish_rx();
    for n in 0..room {
        next(&back, &front, &payload(60 + n as usize, n as u8)).await?;
    }
    Ok(())
}

async fn extras_back(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let extras = [gso(XEN_NETIF_GSO_TYPE_TCPV4, 1448), hash(1, 1)];
    for n in 0..300u32 {
        let frame = payload(200, n as u8);
        back.put(&[part(&frame)], NETRXF_CSUM_BLANK, &extras).await?;
        back.publish_rx();
        next(&back, &front, &frame).await?;
    }
    Ok(())
}

async fn owed(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for n in 0..50 {
        // The frontend waits, and `give` notifies only where the frontend asks.
        let asked = receive(&front);
        pvrt::executor::time::sleep(500_000).await;
        back.give(&payload(100, n)).await?;
        let got = back.end(asked).await?;
        ensure!(got.is_ok_and(|(bytes, _)| bytes == payload(100, n)), "another frame than {n}");
    }
    Ok(())
}

async fn copied(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for n in 0..20 {
        let request = back.buffer().await?;
        back.writes(request.gref)?;
        back.push_rx(&NetifRxResponse { id: request.id, offset: 0, flags: 0, status: 1000 });
        back.publish_rx();
        let got = back.end(receive(&front)).await?;
        // The buffer may be posted again, and is the backend's then.
        back.writes(request.gref)?;
        ensure!(got.is_ok_and(|(bytes, _)| bytes == [0x5a; 1000]), "another frame than {n}");
    }
    Ok(())
}

async fn beside(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    for n in 0..40 {
        let asked = super::back::send(&front, &payload(300, n), PLAIN);
        let taken = back.packet().await?;
        back.give(&payload(400, n)).await?;
        next(&back, &front, &payload(400, n)).await?;
        ensure!(taken.bytes == payload(300, n), "another frame");
        back.answer(&taken, NETIF_RSP_OKAY);
        ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    }
    Ok(())
}
