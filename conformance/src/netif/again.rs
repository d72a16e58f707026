//! Closing, and connecting anew.

use ring_abi::io::netif::*;
use ring_abi::io::xenbus::XenbusState::{Closed, Closing, Connected, InitWait, Initialising};

use super::front::{Net, Options, Which};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.close.in-order" = in_order {
        title: "Closing, and Closed",
        rule: "A backend follows its frontend into Closing and Closed.",
        source: "io/xenbus.h, XenbusStateClosing, XenbusStateClosed",
    }
    "netif.close.at-once" = at_once {
        title: "from Connected straight to Closed",
        rule: "A backend whose frontend is Closed closes and gives back what it shared, whatever went before.",
        source: "io/xenbus.h, XenbusStateClosed",
    }
    "netif.close.rings-given-back" = given_back {
        title: "the pages of all rings after both ends are Closed",
        rule: "A backend that has closed has unmapped the rings.",
        source: "io/xenbus.h, XenbusStateClosed, 'Closed: nothing shared any more'",
    }
    "netif.close.with-frames-in-flight" = in_flight {
        title: "a hundred frames and, without waiting, Closing",
        rule: "A backend that has closed uses none of the frontend's pages, those of frames in flight included.",
        source: "io/xenbus.h, XenbusStateClosed; grant_table.h",
    }
    "netif.close.with-buffers-posted" = posted {
        title: "a receiver that closes with 200 buffers posted",
        rule: "A backend that has closed uses none of the frontend's pages.",
        source: "io/xenbus.h, XenbusStateClosed; grant_table.h",
    }
    "netif.close.nothing-served" = nothing_served {
        title: "a frame after both ends are Closed",
        rule: "A backend that has closed serves no request.",
        source: "io/xenbus.h, XenbusStateClosed",
    }
    "netif.close.receiver-goes" = receiver_goes {
        title: "frames to a receiver that has closed",
        rule: "A frame whose receiver is gone is answered as any other.",
        source: "io/netif.h, tx response, status",
    }
    "netif.close.stays-closed" = stays_closed {
        title: "a backend whose frontend stays Closed",
        rule: "A closed backend waits: it does not come back before its frontend starts again.",
        source: "io/xenbus.h, XenbusStateClosed",
    }
    "netif.close.never-connected" = never {
        title: "closing before any connection",
        rule: "A frontend may close a device that it never connected, and begin anew.",
        source: "io/xenbus.h, XenbusStateClosing",
    }
    "netif.again.many-times" = many_times {
        title: "eight connections, one after the other",
        rule: "After both ends are Closed, a frontend that starts again at Initialising finds the backend in InitWait.",
        source: "io/xenbus.h, enum xenbus_state",
    }
    "netif.again.receiver" = receiver {
        title: "a receiver that closes and connects anew between frames",
        rule: "A connection of one interface has no part in that of another.",
        source: "io/xenbus.h, enum xenbus_state",
    }
    "netif.again.other-shape" = other_shape {
        title: "connections with one queue, split channels, two queues and one queue in turn",
        rule: "A connection's details are read anew: nothing of the last one counts.",
        source: "io/netif.h, 'multi-queue-num-queues', 'event-channel-tx'",
    }
    "netif.again.other-features" = other_features {
        title: "a receiver with feature-sg, without, and with it again",
        rule: "A connection's details are read anew: nothing of the last one counts.",
        source: "io/netif.h, 'feature-*'",
    }
    "netif.again.indices-start-anew" = indices {
        title: "rings that start at 0 after some that went far",
        rule: "A new ring's indices are as the frontend made them, whatever the last ring's were.",
        source: "io/ring.h, BACK_RING_ATTACH",
    }
    "netif.again.loader-and-kernel" = loader {
        title: "Closed, and at once Initialising",
        rule: "A boot loader hands its interface over to a kernel by way of Closed and Initialising.",
        source: "io/xenbus.h, enum xenbus_state",
    }
}

async fn in_order(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.goes_on().await?;
    let mut device = net.device(Which::Sender);
    device.set_state(Closing).await?;
    device.wait_state(&[Closing, Closed]).await?;
    device.set_state(Closed).await?;
    device.wait_state(&[Closed]).await?;
    net.again(&Options::default()).await?;
    net.close().await
}

async fn at_once(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.goes_on().await?;
    let mut device = net.device(Which::Sender);
    device.set_state(Closed).await?;
    device.wait_state(&[Closed]).await?;
    net.sender.given_back().await?;
    net.again(&Options::default()).await?;
    net.close().await
}

async fn given_back(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    let queues = net.feature("multi-queue-max-queues").await?.clamp(1, 2);
    let control = net.feature("feature-ctrl-ring").await? > 0;
    net.join(Which::Receiver, &Options::default()).await?;
    net.join(Which::Sender, &Options { queues, control, ..Options::default() }).await?;
    net.goes_on().await?;
    // `close` looks at all pages.
    net.close().await
}

async fn in_flight(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let mut frames = alloc::vec::Vec::new();
    for seed in 0..100 {
        let made = net.made(1000, seed)?;
        net.sender.put(&made);
        frames.push(made);
    }
    net.sender.tx().publish();
    net.device(Which::Sender).close().await?;
    net.sender.given_back().await?;
    ensure!(
        frames.iter().all(|made| !made.pages.in_use()),
        "a page of a frame is in use after both ends closed"
    );
    net.reset(Which::Sender).await?;
    net.join(Which::Sender, &Options::default()).await?;
    net.arrives_at_last().await?;
    net.close().await
}

async fn posted(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &Options { post: 200, ..Options::default() }).await?;
    for seed in 0..50 {
        let made = net.made(1000, seed)?;
        net.sender.put(&made);
    }
    net.sender.tx().publish();
    net.device(Which::Receiver).close().await?;
    net.receiver.given_back().await?;
    net.sender.answers(50).await?;
    net.close().await
}

async fn nothing_served(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.device(Which::Sender).close().await?;
    let made = net.made(100, 1)?;
    net.sender.put(&made);
    net.sender.tx().publish();
    net.sender.tx().notify();
    net.sender.tx().silent(50).await?;
    net.nothing_comes(50).await?;
    net.again(&Options::default()).await?;
    net.close().await
}

async fn receiver_goes(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.goes_on().await?;
    net.device(Which::Receiver).close().await?;
    for seed in 0..40 {
        let made = net.made(200, seed)?;
        let answers = net.sender.ask(&made).await?;
        ensure_eq!(answers.pieces[0].1, NETIF_RSP_OKAY, "the status of a frame whose receiver is gone");
    }
    net.reset(Which::Receiver).await?;
    net.join(Which::Receiver, &Options::default()).await?;
    net.arrives_at_last().await?;
    net.close().await
}

async fn stays_closed(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.device(Which::Sender).close().await?;
    net.device(Which::Sender).stays(200).await?;
    net.again(&Options::default()).await?;
    net.close().await
}

async fn never(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    net.device(Which::Sender).close().await?;
    net.join(Which::Receiver, &Options::default()).await?;
    net.again(&Options::default()).await?;
    net.close().await
}

async fn many_times(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for _ in 0..8 {
        net.again(&Options::default()).await?;
    }
    net.close().await
}

async fn receiver(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for _ in 0..4 {
        net.goes_on().await?;
        net.reset(Which::Receiver).await?;
        net.join(Which::Receiver, &Options::default()).await?;
        // A station that was gone is found again with the first frame to all.
        let mark = net.made_to([0xff; 6], 80, 1)?;
        net.passes("a frame to all", &mark).await?;
    }
    net.close().await
}

async fn other_shape(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let split = net.feature("feature-split-event-channels").await? > 0;
    let queues = net.feature("multi-queue-max-queues").await?.clamp(1, 2);
    for options in [
        Options { split, ..Options::default() },
        Options { queues, ..Options::default() },
        Options::default(),
        Options { queues, split, ..Options::default() },
        Options::default(),
    ] {
        net.again(&options).await?;
    }
    net.close().await
}

async fn other_features(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.carries(6000).await?;
    let plain = Options::with("feature-sg", 0).and("feature-gso-tcpv4", 0).and("feature-gso-tcpv6", 0);
    for options in [Options::default(), plain, Options::default()] {
        net.reset(Which::Receiver).await?;
        net.join(Which::Receiver, &options).await?;
        let made = net.made(1514, 3)?;
        net.passes("a frame", &made).await?;
        if options.changed.is_empty() {
            let made = net.made(6000, 4)?;
            let got = net.passes("a frame", &made).await?;
            ensure!(got.slots > 1, "one slot for 6000 bytes");
        }
    }
    net.close().await
}

async fn indices(env: &mut Env) -> Verdict {
    let far = Options { index: 0x7fff_fff0, ..Options::default() };
    let mut net = Net::connect(env, &far, &far).await?;
    for _ in 0..40 {
        net.goes_on().await?;
    }
    net.again(&Options::default()).await?;
    net.close().await
}

async fn loader(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let mut device = net.device(Which::Sender);
    device.set_state(Closed).await?;
    device.wait_state(&[Closed, InitWait]).await?;
    device.set_state(Initialising).await?;
    device.wait_state(&[InitWait]).await?;
    net.sender.given_back().await?;
    let before = net.device(Which::Receiver).state().await?;
    ensure_eq!(before, Connected, "the state of the receiver's backend");
    net.again(&Options::default()).await?;
    net.close().await
}
