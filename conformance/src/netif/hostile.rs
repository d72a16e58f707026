//! Rings that a frontend has ruined: the connection ends, nobody else is harmed, and the frontend may connect anew.
//!
//! What ruins a ring, and what is a fault of one frame, the header leaves open; these are the faults after which nobody
//! can say where the next frame begins, or which no frontend makes by mistake.

use ring_abi::io::netif::*;
use ring_abi::ring::REQ_PROD;
use ring_abi::types::PAGE_SIZE;

use super::front::{Made, Net, Options, gso};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs, MendingVifs];

    "netif.hostile.overrun-by-one" = overrun_one {
        title: "req_prod 257 ahead",
        rule: "A ring holds as many requests as it has slots: more cannot be true.",
        source: "io/ring.h, RING_REQUEST_PROD_OVERFLOW",
    }
    "netif.hostile.overrun-by-half" = overrun_half {
        title: "req_prod 2^31 ahead",
        rule: "A ring holds as many requests as it has slots: more cannot be true.",
        source: "io/ring.h, RING_REQUEST_PROD_OVERFLOW",
    }
    "netif.hostile.back" = back {
        title: "req_prod one less than it was",
        rule: "Indices only grow: one less is 2^32-1 more, an overrun.",
        source: "io/ring.h, RING_REQUEST_PROD_OVERFLOW",
    }
    "netif.hostile.rx-overrun" = rx_overrun {
        title: "req_prod of the receive ring 257 ahead",
        rule: "A ring holds as many requests as it has slots: more cannot be true.",
        source: "io/ring.h, RING_REQUEST_PROD_OVERFLOW",
    }
    "netif.hostile.crosses-page" = crosses {
        title: "a frame that begins in its page and ends behind it",
        rule: "offset and size lie within one page: a backend never reads beyond.",
        source: "io/netif.h, struct netif_tx_request, 'Offset within buffer page'",
    }
    "netif.hostile.offset-beyond" = offset_beyond {
        title: "offsets 4096, 32768 and 65535",
        rule: "offset and size lie within one page: their sum does not wrap into it.",
        source: "io/netif.h, struct netif_tx_request, 'Offset within buffer page'",
    }
    "netif.hostile.piece-crosses-page" = piece_crosses {
        title: "a piece behind the first that ends behind its page",
        rule: "offset and size lie within one page: a backend never reads beyond.",
        source: "io/netif.h, struct netif_tx_request, 'Offset within buffer page'",
    }
    "netif.hostile.more-data-and-nothing" = more_nothing {
        title: "more_data in the last request that req_prod counts",
        rule: "A frontend publishes a frame as a whole.",
        source: "io/netif.h, NETTXF_more_data; io/ring.h, RING_PUSH_REQUESTS",
    }
    "netif.hostile.extra-and-nothing" = extra_nothing {
        title: "extra_info in the last request that req_prod counts",
        rule: "A frontend publishes a frame with its extra information.",
        source: "io/netif.h, NETTXF_extra_info",
    }
    "netif.hostile.extra-more-and-nothing" = extra_more_nothing {
        title: "XEN_NETIF_EXTRA_FLAG_MORE in the last slot that req_prod counts",
        rule: "A frontend publishes a frame with all its extra information.",
        source: "io/netif.h, XEN_NETIF_EXTRA_FLAG_MORE",
    }
    "netif.hostile.endless-pieces" = endless {
        title: "a frame of 256 pieces",
        rule: "A frame of far more slots than XEN_NETIF_NR_SLOTS_MIN is no mistake.",
        source: "io/netif.h, XEN_NETIF_NR_SLOTS_MIN",
    }
    "netif.hostile.extra-type-none" = extra_none {
        title: "extra information of type 0",
        rule: "XEN_NETIF_EXTRA_TYPE_NONE is never used.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_NONE, 'Never used - invalid'",
    }
    "netif.hostile.extra-type-unknown" = extra_unknown {
        title: "extra information of the types 5 and 255",
        rule: "Types from XEN_NETIF_EXTRA_TYPE_MAX on do not exist.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_MAX",
    }
    "netif.hostile.gso-of-no-size" = gso_zero {
        title: "a GSO extra with segments of 0 bytes",
        rule: "A packet cannot be cut into segments of nothing.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_GSO, size",
    }
    "netif.hostile.gso-of-no-protocol" = gso_unknown {
        title: "GSO extras of the protocols 3 and 255",
        rule: "A packet cannot be cut by a protocol that does not exist.",
        source: "io/netif.h, XEN_NETIF_GSO_TYPE_*",
    }
    "netif.hostile.control-overrun" = control_overrun {
        title: "req_prod of the control ring further ahead than the ring is long",
        rule: "A ring holds as many requests as it has slots: more cannot be true.",
        source: "io/ring.h, RING_REQUEST_PROD_OVERFLOW; io/netif.h, 'Control ring'",
    }
    "netif.hostile.second-queue" = second_queue {
        title: "an overrun on the second of two queues",
        rule: "A connection whose one ring is ruined ends.",
        source: "io/ring.h, RING_REQUEST_PROD_OVERFLOW; io/netif.h, 'Queues replicate the shared rings'",
    }
    "netif.hostile.many-times" = many_times {
        title: "ten ruined rings, one after the other",
        rule: "What one connection did does not count in the next.",
        source: "io/xenbus.h, enum xenbus_state",
    }
}

async fn ruins(env: &mut Env, act: impl FnOnce(&mut super::front::End)) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.goes_on().await?;
    net.ruined(act).await?;
    net.close().await
}

/// Claims `ahead` more requests than there are.
fn claim(end: &mut super::front::End, ahead: u32) {
    let tx = end.tx();
    tx.claim(tx.produced.wrapping_add(ahead));
}

async fn overrun_one(env: &mut Env) -> Verdict {
    ruins(env, |end| claim(end, 257)).await
}

async fn overrun_half(env: &mut Env) -> Verdict {
    ruins(env, |end| claim(end, 1 << 31)).await
}

async fn back(env: &mut Env) -> Verdict {
    ruins(env, |end| claim(end, u32::MAX)).await
}

async fn rx_overrun(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.goes_on().await?;
    // The ring is looked at when there is something for it: whoever sends and receives change places.
    let rx = &net.sender.queues[0].rx;
    rx.claim(rx.consumed.wrapping_add(257));
    net.swap();
    let made = net.made(60, 1)?;
    net.sender.put(&made);
    net.sender.tx().publish();
    net.sender.answers(1).await?;
    net.swap();
    net.ruined(|_| {}).await?;
    net.close().await
}

/// A frame that ruins its ring, once `change` is done.
async fn ruined_by(env: &mut Env, change: impl FnOnce(&mut Made)) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.goes_on().await?;
    let mut made = net.cut(900, 300, &[0, 0, 0])?;
    change(&mut made);
    net.ruined(|end| {
        end.put(&made);
        end.tx().publish();
    })
    .await?;
    net.close().await
}

async fn crosses(env: &mut Env) -> Verdict {
    ruined_by(env, |made| {
        made.slots.truncate(1);
        made.slots[0].flags = 0;
        (made.slots[0].offset, made.slots[0].size) = (4000, 97);
    })
    .await
}

async fn offset_beyond(env: &mut Env) -> Verdict {
    for offset in [PAGE_SIZE as u16, 32768, u16::MAX] {
        ruined_by(env, |made| {
            made.slots.truncate(1);
            made.slots[0].flags = 0;
            (made.slots[0].offset, made.slots[0].size) = (offset, 100);
        })
        .await?;
    }
    Ok(())
}

async fn piece_crosses(env: &mut Env) -> Verdict {
    ruined_by(env, |made| made.slots[2].offset = 3797).await
}

async fn more_nothing(env: &mut Env) -> Verdict {
    ruined_by(env, |made| made.slots[2].flags |= NETTXF_MORE_DATA).await
}

async fn extra_nothing(env: &mut Env) -> Verdict {
    ruined_by(env, |made| {
        made.slots.truncate(1);
        made.slots[0].flags = NETTXF_EXTRA_INFO;
    })
    .await
}

/// Extra information as it is.
fn raw(r#type: u8, flags: u8, u: [u16; 3]) -> NetifExtraInfo {
    NetifExtraInfo { r#type, flags, u }
}

async fn extra_more_nothing(env: &mut Env) -> Verdict {
    let good = gso(XEN_NETIF_GSO_TYPE_TCPV4, 1000);
    ruined_by(env, |made| {
        made.slots.truncate(1);
        made.slots[0].flags = NETTXF_EXTRA_INFO;
        made.extras.push(raw(good.r#type, XEN_NETIF_EXTRA_FLAG_MORE, good.u));
    })
    .await
}

async fn endless(env: &mut Env) -> Verdict {
    ruined_by(env, |made| {
        let mut piece = made.slots[1];
        (piece.size, piece.flags) = (1, NETTXF_MORE_DATA);
        made.slots.resize(256, piece);
        made.slots[0].size = 1000;
    })
    .await
}

/// A frame whose extra information ruins the ring.
async fn by_extra(env: &mut Env, extra: NetifExtraInfo) -> Verdict {
    ruined_by(env, |made| {
        made.extras.push(extra);
        made.slots[0].flags |= NETTXF_EXTRA_INFO;
    })
    .await
}

async fn extra_none(env: &mut Env) -> Verdict {
    by_extra(env, raw(XEN_NETIF_EXTRA_TYPE_NONE, 0, [0; 3])).await
}

async fn extra_unknown(env: &mut Env) -> Verdict {
    for kind in [XEN_NETIF_EXTRA_TYPE_MAX, u8::MAX] {
        by_extra(env, raw(kind, 0, [0; 3])).await?;
    }
    Ok(())
}

async fn gso_zero(env: &mut Env) -> Verdict {
    by_extra(env, gso(XEN_NETIF_GSO_TYPE_TCPV4, 0)).await
}

async fn gso_unknown(env: &mut Env) -> Verdict {
    for kind in [3, u8::MAX] {
        by_extra(env, gso(kind, 1000)).await?;
    }
    Ok(())
}

async fn control_overrun(env: &mut Env) -> Verdict {
    let options = Options { control: true, ..Options::default() };
    let mut net = Net::connect(env, &options, &Options::default()).await?;
    net.needs("feature-ctrl-ring").await?;
    net.ruined(|end| {
        if let Some(ring) = &end.control {
            ring.claim(ring.consumed.wrapping_add(ring::CTRL_SLOTS + 1));
        }
    })
    .await?;
    net.close().await
}

async fn second_queue(env: &mut Env) -> Verdict {
    let options = Options { queues: 2, ..Options::default() };
    let mut net = Net::prepare(env).await?;
    require!(net.feature("multi-queue-max-queues").await? >= 2, "the backend has one queue");
    net.join(super::front::Which::Receiver, &Options::default()).await?;
    net.join(super::front::Which::Sender, &options).await?;
    net.ruined(|end| {
        let tx = &end.queues[1].tx;
        tx.bytes().store_u32(REQ_PROD, tx.produced.wrapping_add(1000));
        tx.notify();
    })
    .await?;
    net.close().await
}

async fn many_times(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for _ in 0..10 {
        net.ruined(|end| claim(end, 300)).await?;
    }
    net.close().await
}
