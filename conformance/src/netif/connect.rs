//! How a frontend names its rings and event channels, and what of that a backend turns away.

use alloc::format;

use pvrt::executor::time;
use ring_abi::io::xenbus::XenbusState::{Connected, InitWait, Initialised};

use super::front::{Net, Options, Which};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.connect.one-queue" = one_queue {
        title: "one queue with one event channel",
        rule: "A frontend with one queue writes tx-ring-ref, rx-ring-ref and event-channel.",
        source: "io/netif.h, 'Multiple transmit and receive queues'",
    }
    "netif.connect.split-channels" = split {
        title: "one queue with two event channels",
        rule: "Split event channels are advertised as event-channel-tx and event-channel-rx.",
        source: "io/netif.h, 'feature-split-event-channels'",
    }
    "netif.connect.split-and-plain" = split_and_plain {
        title: "event-channel beside both split nodes",
        rule: "A frontend that names both split channels uses these.",
        source: "io/netif.h, 'feature-split-event-channels'",
    }
    "netif.connect.half-split" = half_split {
        title: "event-channel-tx alone, and no event-channel",
        rule: "A backend that is told of one split event channel and no other does not connect.",
        source: "io/netif.h, 'feature-split-event-channels'",
    }
    "netif.connect.num-queues-one" = num_queues_one {
        title: "multi-queue-num-queues 1 with the nodes of a frontend of one queue",
        rule: "For one queue the usual nodes are written, whether or not the number is.",
        source: "io/netif.h, 'Multiple transmit and receive queues'",
    }
    "netif.connect.two-queues" = two_queues {
        title: "two queues, each with one event channel",
        rule: "A frontend of two queues writes each queue's nodes under queue-N.",
        source: "io/netif.h, 'Multiple transmit and receive queues'",
    }
    "netif.connect.two-queues-split" = two_queues_split {
        title: "two queues with split event channels",
        rule: "Split event channels may be used with several queues.",
        source: "io/netif.h, 'Multiple transmit and receive queues'",
    }
    "netif.connect.most-queues" = most_queues {
        title: "as many queues as the backend allows",
        rule: "A frontend may use up to multi-queue-max-queues queues.",
        source: "io/netif.h, 'multi-queue-max-queues'",
    }
    "netif.connect.too-many-queues" = too_many_queues {
        title: "one queue more than the backend allows",
        rule: "A number of queues above multi-queue-max-queues is an error.",
        source: "io/netif.h, 'multi-queue-num-queues'",
    }
    "netif.connect.no-queues" = no_queues {
        title: "multi-queue-num-queues 0",
        rule: "The number of queues must be greater than zero.",
        source: "io/netif.h, 'multi-queue-num-queues'",
    }
    "netif.connect.queue-missing" = queue_missing {
        title: "two queues asked for, and nodes for one",
        rule: "A backend may treat more queues than there are details for as an error: it connects none of them by halves.",
        source: "io/netif.h, 'If there is any inconsistency in the XenStore data'",
    }
    "netif.connect.no-tx-ring" = no_tx_ring {
        title: "no tx-ring-ref",
        rule: "A backend does not connect a frontend that names no transmit ring.",
        source: "io/netif.h, '{tx,rx}-ring-ref'",
    }
    "netif.connect.no-rx-ring" = no_rx_ring {
        title: "no rx-ring-ref",
        rule: "A backend does not connect a frontend that names no receive ring.",
        source: "io/netif.h, '{tx,rx}-ring-ref'",
    }
    "netif.connect.no-event-channel" = no_event_channel {
        title: "no event channel at all",
        rule: "A backend does not connect a frontend that names no event channel.",
        source: "io/netif.h, 'event-channel'",
    }
    "netif.connect.no-rx-copy" = no_rx_copy {
        title: "no request-rx-copy",
        rule: "A backend that only copies does not connect a frontend that does not ask for copies.",
        source: "io/netif.h, 'Guest receive', gref",
    }
    "netif.connect.rx-copy-0" = rx_copy_0 {
        title: "request-rx-copy 0",
        rule: "A backend that only copies does not connect a frontend that does not ask for copies.",
        source: "io/netif.h, 'Guest receive', gref",
    }
    "netif.connect.ring-not-granted" = not_granted {
        title: "tx-ring-ref and rx-ring-ref that name grants that are none",
        rule: "A ring that cannot be mapped cannot be connected.",
        source: "io/netif.h, '{tx,rx}-ring-ref'; grant_table.h",
    }
    "netif.connect.bad-port" = bad_port {
        title: "event channels that are none of the frontend's",
        rule: "An event channel that cannot be bound cannot be connected.",
        source: "io/netif.h, 'event-channel'; event_channel.h",
    }
    "netif.connect.garbage" = garbage {
        title: "nodes that are no numbers",
        rule: "A backend does not connect a frontend whose nodes make no sense.",
        source: "io/netif.h, '{tx,rx}-ring-ref', 'event-channel'",
    }
    "netif.connect.other-protocol" = other_protocol {
        title: "protocol x86_32-abi where the rings are laid out for x86_64",
        rule: "The rings' layout is the same for both ABIs, so a backend may serve the frontend or turn it away, not in between.",
        source: "io/protocols.h; io/netif.h",
    }
    "netif.connect.unknown-nodes" = unknown_nodes {
        title: "a node that no header knows, and trusted=0",
        rule: "Nodes that a backend does not know mean nothing to it.",
        source: "io/netif.h, 'trusted'",
    }
    "netif.connect.not-before-connected" = not_before {
        title: "all nodes written, and the state Initialised",
        rule: "A backend takes frames only once both ends are connected.",
        source: "io/xenbus.h, XenbusStateInitialised, XenbusStateConnected",
    }
    "netif.connect.waits-for-frontend" = waits {
        title: "a backend whose frontend does nothing",
        rule: "A backend waits in InitWait for its frontend.",
        source: "io/xenbus.h, XenbusStateInitWait",
    }
    "netif.connect.indices-near-wrap" = near_wrap {
        title: "rings whose indices start at 2^32-40",
        rule: "A backend takes the rings' indices as it finds them, and they wrap at 2^32.",
        source: "io/ring.h, BACK_RING_ATTACH",
    }
}

/// Connects the sender as `options` say, and looks that each of its queues carries frames.
async fn carries(env: &mut Env, options: &Options) -> Verdict {
    let mut net = Net::connect(env, options, &Options::default()).await?;
    each_queue(&mut net).await?;
    net.close().await
}

/// A frame through each of the sender's queues.
async fn each_queue(net: &mut Net<'_>) -> Verdict {
    for queue in 0..net.sender.queues.len() {
        // The helpers use the first queue.
        net.sender.queues.swap(0, queue);
        net.goes_on().await?;
        net.sender.queues.swap(0, queue);
    }
    Ok(())
}

async fn turned_away(env: &mut Env, options: &Options) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.turned_away(options).await?;
    net.close().await
}

async fn one_queue(env: &mut Env) -> Verdict {
    carries(env, &Options::default()).await
}

async fn split(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    net.needs("feature-split-event-channels").await?;
    for which in [Which::Receiver, Which::Sender] {
        net.join(which, &Options { split: true, ..Options::default() }).await?;
    }
    each_queue(&mut net).await?;
    net.close().await
}

async fn split_and_plain(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.needs("feature-split-event-channels").await?;
    let options = Options { split: true, ..Options::default() }.and("event-channel", 4_000_000);
    net.again(&options).await?;
    net.close().await
}

async fn half_split(env: &mut Env) -> Verdict {
    let options = Options { split: true, ..Options::without("event-channel-rx") };
    turned_away(env, &options).await
}

async fn num_queues_one(env: &mut Env) -> Verdict {
    carries(env, &Options::default().and("multi-queue-num-queues", 1)).await
}

/// Two queues, if the backend has as many.
async fn several(env: &mut Env, queues: Option<u32>, split: bool) -> Verdict {
    let mut net = Net::prepare(env).await?;
    let most = net.feature("multi-queue-max-queues").await?;
    require!(most >= 2, "the backend has one queue");
    let queues = queues.unwrap_or(most.min(8));
    net.join(Which::Receiver, &Options::default()).await?;
    net.join(Which::Sender, &Options { queues, split, ..Options::default() }).await?;
    each_queue(&mut net).await?;
    net.close().await
}

async fn two_queues(env: &mut Env) -> Verdict {
    several(env, Some(2), false).await
}

async fn two_queues_split(env: &mut Env) -> Verdict {
    several(env, Some(2), true).await
}

async fn most_queues(env: &mut Env) -> Verdict {
    several(env, None, false).await
}

async fn too_many_queues(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let most = net.feature("multi-queue-max-queues").await?;
    require!((1..=16).contains(&most), "the backend has {most} queues");
    net.turned_away(&Options { queues: most + 1, ..Options::default() }).await?;
    net.close().await
}

async fn no_queues(env: &mut Env) -> Verdict {
    turned_away(env, &Options::with("multi-queue-num-queues", 0)).await
}

async fn queue_missing(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let most = net.feature("multi-queue-max-queues").await?;
    require!(most >= 2, "the backend has one queue");
    let options = Options { queues: 2, ..Options::without("queue-1/tx-ring-ref") };
    net.turned_away(&options).await?;
    net.close().await
}

async fn no_tx_ring(env: &mut Env) -> Verdict {
    turned_away(env, &Options::without("tx-ring-ref")).await
}

async fn no_rx_ring(env: &mut Env) -> Verdict {
    turned_away(env, &Options::without("rx-ring-ref")).await
}

async fn no_event_channel(env: &mut Env) -> Verdict {
    turned_away(env, &Options::without("event-channel")).await
}

async fn no_rx_copy(env: &mut Env) -> Verdict {
    turned_away(env, &Options::without("request-rx-copy")).await
}

async fn rx_copy_0(env: &mut Env) -> Verdict {
    turned_away(env, &Options::with("request-rx-copy", 0)).await
}

async fn not_granted(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for key in ["tx-ring-ref", "rx-ring-ref"] {
        for gref in [7, 4_000_000, u32::MAX] {
            net.turned_away(&Options::with(key, gref)).await?;
        }
    }
    net.close().await
}

async fn bad_port(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for port in [0, 4_000_000, u32::MAX] {
        net.turned_away(&Options::with("event-channel", port)).await?;
    }
    net.close().await
}

async fn garbage(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for key in ["tx-ring-ref", "rx-ring-ref", "event-channel", "request-rx-copy"] {
        net.turned_away(&Options::with(key, "seven")).await?;
    }
    net.close().await
}

async fn other_protocol(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.reset(Which::Sender).await?;
    let options = Options::with("protocol", "x86_32-abi");
    if net.join(Which::Sender, &options).await.is_ok() {
        net.goes_on().await?;
    }
    net.again(&Options::default()).await?;
    net.close().await
}

async fn unknown_nodes(env: &mut Env) -> Verdict {
    carries(env, &Options::with("conformance", "17").and("trusted", 0)).await
}

async fn not_before(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    net.join(Which::Receiver, &Options::default()).await?;
    net.announce(Which::Sender, &Options::default()).await?;
    let made = net.made(100, 1)?;
    net.sender.put(&made);
    net.sender.tx().publish();
    net.device(Which::Sender).set_state(Initialised).await?;
    time::sleep(super::REFUSAL_NS).await;
    let state = net.device(Which::Sender).state().await?;
    if state == InitWait {
        ensure_eq!(net.sender.tx().waiting(), 0, "answers of a backend that is not connected");
    }
    net.device(Which::Sender).set_state(Connected).await?;
    net.device(Which::Sender).wait_state(&[Connected]).await?;
    // What waits on the ring at the connection is sent; a receive ring that stays empty hinders nobody.
    let answers = net.sender.answers(1).await?;
    ensure_eq!(answers.pieces, [(made.slots[0].id, 0)], "the answer to {}", format!("{:?}", made.slots[0]));
    net.goes_on_after(&made).await?;
    net.close().await
}

async fn waits(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    net.device(Which::Sender).stays(200).await?;
    ensure_eq!(net.device(Which::Sender).state().await?, InitWait, "the backend's state");
    net.join(Which::Receiver, &Options::default()).await?;
    net.join(Which::Sender, &Options::default()).await?;
    net.goes_on().await?;
    net.close().await
}

async fn near_wrap(env: &mut Env) -> Verdict {
    let options = Options { index: 0u32.wrapping_sub(40), ..Options::default() };
    let mut net = Net::connect(env, &options, &options).await?;
    for _ in 0..100 {
        net.goes_on().await?;
    }
    ensure!(net.sender.tx().produced < 100 && net.receiver.rx().consumed < 100, "the indices have wrapped");
    net.close().await
}
