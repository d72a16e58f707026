//! A frontend's keys that are missing, garbage, or name a ring or port that does not exist. A backend that cannot
//! connect must not go to `Connected`, and must serve a frontend that starts anew.

use alloc::string::{String, ToString};

use pvrt::executor::time;
use ring_abi::io::blkif::*;
use ring_abi::io::xenbus::XenbusState::{Connected, Initialised};

use crate::blkif::front::{Front, Options, segment, transfer};
use crate::blkif::transfers::PLACE;
use crate::device::Device;
use crate::{Env, Need, Verdict};

cases! {
    needs [Store, Disk];

    "xenbus.keys.no-ring-ref" = no_ring_ref {
        title: "no ring-ref",
        rule: "A backend cannot connect to a frontend that names no ring.",
        source: "io/blkif.h, 'ring-ref'",
    }
    "xenbus.keys.no-event-channel" = no_event_channel {
        title: "no event-channel",
        rule: "A backend cannot connect to a frontend that names no event channel.",
        source: "io/blkif.h, 'event-channel'",
    }
    "xenbus.keys.garbage-ring-ref" = garbage_ring_ref {
        title: "a ring-ref that is no number",
        rule: "ring-ref is a decimal number.",
        source: "io/blkif.h, 'ring-ref'",
    }
    "xenbus.keys.empty-ring-ref" = empty_ring_ref {
        title: "a ring-ref with no value",
        rule: "ring-ref is a decimal number.",
        source: "io/blkif.h, 'ring-ref'",
    }
    "xenbus.keys.garbage-event-channel" = garbage_event_channel {
        title: "an event-channel that is no number",
        rule: "event-channel is a decimal number.",
        source: "io/blkif.h, 'event-channel'",
    }
    "xenbus.keys.ring-not-granted" = ring_not_granted {
        title: "a ring-ref that grants nothing",
        rule: "A backend cannot connect to a ring that it cannot map.",
        source: "io/blkif.h, 'ring-ref'; grant_table.h, GNTST_bad_gntref",
    }
    "xenbus.keys.ring-ref-max" = ring_ref_max {
        title: "a ring-ref of 2^32-1",
        rule: "A backend cannot connect to a ring that it cannot map.",
        source: "io/blkif.h, 'ring-ref'; grant_table.h, grant_ref_t",
    }
    "xenbus.keys.ring-granted-read-only" = ring_read_only {
        title: "a ring page granted read-only",
        rule: "A backend cannot connect to a ring that it cannot write.",
        source: "io/blkif.h, 'ring-ref'; grant_table.h, GTF_readonly",
    }
    "xenbus.keys.port-not-there" = port_not_there {
        title: "an event-channel that nobody has opened",
        rule: "A backend cannot connect to an event channel that it cannot bind.",
        source: "io/blkif.h, 'event-channel'; event_channel.h, EVTCHNOP_bind_interdomain",
    }
    "xenbus.keys.port-max" = port_max {
        title: "an event-channel of 2^32-1",
        rule: "A backend cannot connect to an event channel that it cannot bind.",
        source: "io/blkif.h, 'event-channel'; event_channel.h, evtchn_port_t",
    }
    "xenbus.keys.unknown-protocol" = unknown_protocol {
        title: "a protocol that nobody has defined",
        rule: "A backend cannot connect to a frontend whose protocol it does not know.",
        source: "io/protocols.h; io/blkif.h, 'protocol'",
    }
    "xenbus.keys.no-protocol" = no_protocol {
        title: "no protocol",
        rule: "A frontend without a protocol key has the machine's own layout.",
        source: "io/blkif.h, 'protocol'; io/protocols.h, XEN_IO_PROTO_ABI_NATIVE",
    }
    "xenbus.keys.unknown-keys" = unknown_keys {
        title: "keys that nobody has defined",
        rule: "A backend connects whatever else stands in the frontend's directory.",
        source: "io/blkif.h, 'Frontend XenBus Nodes'",
    }
    "xenbus.keys.order-too-large" = order_too_large {
        title: "a ring-page-order above what the backend takes",
        rule: "A backend cannot connect to a ring larger than its max-ring-page-order.",
        source: "io/blkif.h, 'max-ring-page-order'",
    }
    "xenbus.keys.order-31" = order_31 {
        title: "ring-page-order 31",
        rule: "A backend cannot connect to a ring larger than its max-ring-page-order.",
        source: "io/blkif.h, 'max-ring-page-order'",
    }
    "xenbus.keys.pages-missing" = pages_missing {
        title: "ring-page-order 1 with ring-ref0 alone",
        rule: "A ring of two pages has a ring-ref0 and a ring-ref1.",
        source: "io/blkif.h, 'ring-ref%u'",
    }
    "xenbus.keys.second-page-not-granted" = second_page_bad {
        title: "ring-page-order 1 with a ring-ref1 that grants nothing",
        rule: "A backend that cannot map all of a ring keeps no page of it.",
        source: "io/blkif.h, 'ring-ref%u'; grant_table.h, GNTST_bad_gntref",
    }
    "xenbus.keys.too-many-queues" = too_many_queues {
        title: "more queues than the backend takes",
        rule: "A backend cannot connect to a frontend with more queues than its multi-queue-max-queues.",
        source: "io/blkif.h, 'multi-queue-num-queues'",
    }
    "xenbus.keys.queue-missing" = queue_missing {
        title: "two queues announced, one written",
        rule: "Each queue announced has a ring-ref and an event-channel.",
        source: "io/blkif.h, 'queue-N'",
    }
    "xenbus.keys.long-value" = long_value {
        title: "a ring-ref of two thousand digits",
        rule: "ring-ref is a number of 32 bits.",
        source: "io/blkif.h, 'ring-ref'; grant_table.h, grant_ref_t",
    }
    "xenbus.keys.same-ring-again" = same_ring {
        title: "the grant and the port of the last connection",
        rule: "A backend that has closed lets its frontend connect with the same pages and, newly opened, the same kind of port.",
        source: "io/xenbus.h, XenbusStateClosed",
    }
}

/// How long a case waits for a backend that connects by mistake.
const LONG_ENOUGH_MS: u64 = 400;

/// Announces a frontend as `options` say, then overwrites the keys `spoiled`. Checks that the backend does not
/// connect, and that a valid frontend connects afterwards.
async fn refused(env: &mut Env, options: &Options, spoiled: &[(&str, Option<String>)]) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let rings = Front::announce(&mut device, options).await?;
    spoil(&mut device, spoiled).await?;
    device.set_state(Initialised).await?;
    let end = time::now_ns() + LONG_ENOUGH_MS * 1_000_000;
    while time::now_ns() < end {
        let state = device.state().await?;
        ensure!(state != Connected, "the backend is Connected to a frontend with {spoiled:?}");
        time::sleep(20_000_000).await;
    }
    ensure!(
        !rings.iter().any(|ring| ring.in_use()),
        "the backend refused, and keeps a page of the ring mapped"
    );
    for (key, _) in spoiled {
        device.remove_front(key).await?;
    }
    clean(&mut device, options).await?;
    device.reset().await?;
    drop(rings);
    let mut front = Front::connect_device(device, &Options::default()).await?;
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 7)]);
    front.ring().succeeds("a read by a frontend that starts anew", &request).await?;
    front.close().await
}

async fn spoil(device: &mut Device<'_>, spoiled: &[(&str, Option<String>)]) -> Verdict {
    for (key, value) in spoiled {
        match value {
            Some(value) => device.write_front(key, value).await?,
            None => device.remove_front(key).await?,
        }
    }
    Ok(())
}

/// Removes the keys that a valid frontend does not write.
async fn clean(device: &mut Device<'_>, options: &Options) -> Verdict {
    for key in ["ring-page-order", "ring-ref", "event-channel", "protocol", "multi-queue-num-queues"] {
        device.remove_front(key).await?;
    }
    for page in 0..1u32 << options.order.unwrap_or(0).min(4) {
        device.remove_front(&alloc::format!("ring-ref{page}")).await?;
    }
    for queue in 0..options.queues.unwrap_or(0) {
        device.remove_front(&alloc::format!("queue-{queue}")).await?;
    }
    Ok(())
}

async fn with_key(env: &mut Env, key: &str, value: Option<&str>) -> Verdict {
    refused(env, &Options::default(), &[(key, value.map(ToString::to_string))]).await
}

async fn no_ring_ref(env: &mut Env) -> Verdict {
    with_key(env, "ring-ref", None).await
}

async fn no_event_channel(env: &mut Env) -> Verdict {
    with_key(env, "event-channel", None).await
}

async fn garbage_ring_ref(env: &mut Env) -> Verdict {
    with_key(env, "ring-ref", Some("x")).await
}

async fn empty_ring_ref(env: &mut Env) -> Verdict {
    with_key(env, "ring-ref", Some("")).await
}

async fn garbage_event_channel(env: &mut Env) -> Verdict {
    with_key(env, "event-channel", Some("port")).await
}

async fn ring_not_granted(env: &mut Env) -> Verdict {
    // Reference 7 is reserved for the toolstack, and this kernel does not use it.
    with_key(env, "ring-ref", Some("7")).await
}

async fn ring_ref_max(env: &mut Env) -> Verdict {
    with_key(env, "ring-ref", Some("4294967295")).await
}

async fn ring_read_only(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let page = crate::shared::Granted::new(device.dom, 1, true)?;
    let gref = page.gref(0).to_string();
    device.remove_front("ring-ref").await?;
    refused(device.env, &Options::default(), &[("ring-ref", Some(gref))]).await
}

async fn port_not_there(env: &mut Env) -> Verdict {
    with_key(env, "event-channel", Some("900")).await
}

async fn port_max(env: &mut Env) -> Verdict {
    with_key(env, "event-channel", Some("4294967295")).await
}

async fn unknown_protocol(env: &mut Env) -> Verdict {
    with_key(env, "protocol", Some("pdp11-abi")).await
}

async fn no_protocol(env: &mut Env) -> Verdict {
    let mut front = Front::connect(env, &Options { protocol: None, ..Options::default() }).await?;
    front.fill(PLACE, 4, 130).await?;
    front.holds("without a protocol key", PLACE, 4, 130).await?;
    front.close().await
}

async fn unknown_keys(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    for key in ["feature-conformance", "ring-reference", "queue-x/ring-ref"] {
        device.write_front(key, "nonsense").await?;
    }
    let mut front = Front::connect_device(device, &Options::default()).await?;
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 7)]);
    front.ring().succeeds("a read", &request).await?;
    for key in ["feature-conformance", "ring-reference", "queue-x"] {
        front.device.remove_front(key).await?;
    }
    front.close().await
}

/// The largest ring order that the backend takes; the case is skipped where the backend names none.
async fn largest_order(env: &mut Env) -> Verdict<u32> {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let most = device.read_back("max-ring-page-order").await?.and_then(|text| text.parse::<u32>().ok());
    require!(most.is_some_and(|most| most > 0), "the backend takes rings of one page");
    Ok(most.unwrap_or(0))
}

async fn order_too_large(env: &mut Env) -> Verdict {
    let order = largest_order(env).await? + 1;
    refused(env, &Options { order: Some(order), ..Options::default() }, &[]).await
}

async fn order_31(env: &mut Env) -> Verdict {
    largest_order(env).await?;
    let options = Options { order: Some(1), ..Options::default() };
    refused(env, &options, &[("ring-page-order", Some("31".into()))]).await
}

async fn pages_missing(env: &mut Env) -> Verdict {
    largest_order(env).await?;
    let options = Options { order: Some(1), ..Options::default() };
    refused(env, &options, &[("ring-ref1", None)]).await
}

async fn second_page_bad(env: &mut Env) -> Verdict {
    largest_order(env).await?;
    let options = Options { order: Some(1), ..Options::default() };
    refused(env, &options, &[("ring-ref1", Some("7".into()))]).await
}

/// The most queues that the backend takes; the case is skipped where the backend names none.
async fn most_queues(env: &mut Env) -> Verdict<u32> {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let most = device.read_back("multi-queue-max-queues").await?.and_then(|text| text.parse::<u32>().ok());
    require!(most.is_some(), "the backend has no queues to choose");
    Ok(most.unwrap_or(0))
}

async fn too_many_queues(env: &mut Env) -> Verdict {
    let queues = most_queues(env).await? + 1;
    refused(env, &Options { queues: Some(queues), ..Options::default() }, &[]).await
}

async fn queue_missing(env: &mut Env) -> Verdict {
    let most = most_queues(env).await?;
    require!(most >= 2, "the backend has one queue");
    refused(env, &Options { queues: Some(2), ..Options::default() }, &[("queue-1/ring-ref", None)]).await
}

async fn long_value(env: &mut Env) -> Verdict {
    with_key(env, "ring-ref", Some(&"9".repeat(2000))).await
}

async fn same_ring(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let mut rings = Front::announce(&mut device, &Options::default()).await?;
    for round in 0..3 {
        device.set_state(Initialised).await?;
        device.wait_state(&[Connected]).await?;
        let mut front = Front { device, rings, sectors: 0 };
        let buffer = front.buffer(1)?;
        let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 7)]);
        front.ring().succeeds("a read", &request).await?;
        front.device.close().await?;
        front.given_back().await?;
        Front { device, rings, .. } = front;
        device.reset().await?;
        // The ring goes on at its old indices. The old port is closed at the backend's end, so the frontend
        // opens a new port.
        rings[0].open_port(device.dom)?;
        device.write_front("event-channel", rings[0].port_number()).await?;
        ensure_eq!(rings[0].produced, round + 1, "the index of the next request");
    }
    Ok(())
}
