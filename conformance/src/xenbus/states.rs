//! The order of states: connecting, disconnecting, and connecting again.

use pvrt::executor::time;
use ring_abi::io::blkif::*;
use ring_abi::io::xenbus::XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};

use crate::blkif::front::{Front, Options, segment, transfer};
use crate::blkif::transfers::PLACE;
use crate::{Env, Need, Verdict};

cases! {
    needs [Store, Disk];

    "xenbus.states.initialised" = initialised {
        title: "a frontend that goes to Initialised, then Connected",
        rule: "A backend connects when the frontend's state is Initialised, and stays so when the frontend follows.",
        source: "io/xenbus.h, enum xenbus_state; io/blkif.h, 'Startup'",
    }
    "xenbus.states.connected-at-once" = connected_at_once {
        title: "a frontend that goes straight to Connected",
        rule: "A backend connects when the frontend's state is Initialised or Connected.",
        source: "io/xenbus.h, enum xenbus_state; io/blkif.h, 'Startup'",
    }
    "xenbus.states.waits-for-the-frontend" = waits {
        title: "a backend whose frontend stays Initialising",
        rule: "A backend waits in InitWait until its frontend has written its details.",
        source: "io/xenbus.h, XenbusStateInitWait",
    }
    "xenbus.states.details-without-state" = details_first {
        title: "ring and port written, the state not yet",
        rule: "A frontend's details count from the moment its state says so.",
        source: "io/xenbus.h, XenbusStateInitialised",
    }
    "xenbus.states.requests-before-connected" = early_requests {
        title: "requests as soon as the backend is Connected, the frontend still Initialised",
        rule: "A backend that is Connected serves its ring.",
        source: "io/xenbus.h, XenbusStateConnected",
    }
    "xenbus.states.requests-from-the-beginning" = waiting_requests {
        title: "requests that stand in the ring before the backend maps it",
        rule: "A backend that connects looks at the ring without waiting for an event.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS; io/blkif.h, 'Startup'",
    }
    "xenbus.states.same-state-again" = same_again {
        title: "Connected written three times more",
        rule: "A state that is written again is no change: the connection goes on.",
        source: "io/xenbus.h, enum xenbus_state",
    }
    "xenbus.states.initialised-again" = initialised_again {
        title: "back from Connected to Initialised",
        rule: "A backend that is Connected stays so: it leaves by Closing or Closed alone.",
        source: "io/blkif.h, 'State Diagrams'",
    }
    "xenbus.close.in-order" = in_order {
        title: "Closing, answered by Closing or Closed, then Closed, answered by Closed",
        rule: "A backend follows its frontend to Closing and to Closed.",
        source: "io/xenbus.h, XenbusStateClosing, XenbusStateClosed",
    }
    "xenbus.close.at-once" = at_once {
        title: "from Connected straight to Closed",
        rule: "A backend whose frontend is Closed closes and gives back what it shared, whatever went before.",
        source: "io/xenbus.h, XenbusStateClosed",
    }
    "xenbus.close.never-connected" = never_connected {
        title: "closing before any connection",
        rule: "A frontend may close a device that it never connected, and begin anew.",
        source: "io/xenbus.h, XenbusStateClosing",
    }
    "xenbus.close.while-connecting" = while_connecting {
        title: "closing right behind Initialised",
        rule: "A backend that finds its frontend closing while it connects ends closed, with nothing mapped.",
        source: "io/xenbus.h, XenbusStateClosing",
    }
    "xenbus.close.with-requests-in-flight" = in_flight {
        title: "32 writes and, without waiting, Closing",
        rule: "A backend that has closed uses none of the frontend's pages, those of requests in flight included.",
        source: "io/xenbus.h, XenbusStateClosed; grant_table.h",
    }
    "xenbus.close.ring-given-back" = ring_given_back {
        title: "the ring's pages after both ends are Closed, a ring of four pages",
        rule: "A backend that has closed has unmapped the ring.",
        source: "io/xenbus.h, XenbusStateClosed, 'Closed: nothing shared any more'",
    }
    "xenbus.close.nothing-served" = nothing_served {
        title: "a request after both ends are Closed",
        rule: "A backend that has closed serves no request.",
        source: "io/xenbus.h, XenbusStateClosed",
    }
    "xenbus.close.stays-closed" = stays_closed {
        title: "a backend whose frontend stays Closed",
        rule: "A closed backend waits: it does not come back before its frontend starts again.",
        source: "io/xenbus.h, XenbusStateClosed",
    }
    "xenbus.reconnect.many-times" = many_times {
        title: "eight connections, one after the other",
        rule: "After both ends are Closed, a frontend that starts again at Initialising finds the backend in InitWait.",
        source: "io/xenbus.h, enum xenbus_state",
    }
    "xenbus.reconnect.other-ring" = other_ring {
        title: "rings of one, four, one and two pages in turn",
        rule: "A connection's details are read anew: nothing of the last one counts.",
        source: "io/blkif.h, 'ring-page-order', 'ring-ref'",
    }
    "xenbus.reconnect.other-features" = other_features {
        title: "connections with persistent grants and without in turn",
        rule: "A connection's details are read anew: nothing of the last one counts.",
        source: "io/blkif.h, 'feature-persistent'",
    }
    "xenbus.reconnect.data-stays" = data_stays {
        title: "what one connection wrote, read in the next",
        rule: "The disk's content does not belong to a connection.",
        source: "io/blkif.h, BLKIF_OP_WRITE",
    }
    "xenbus.reconnect.indices-start-anew" = indices_anew {
        title: "a ring that starts at 0 after one that went far",
        rule: "A new ring's indices are as the frontend made them, whatever the last ring's were.",
        source: "io/ring.h, BACK_RING_ATTACH",
    }
}

/// Checks that a read succeeds.
async fn serves(front: &mut Front<'_>) -> Verdict {
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 7)]);
    front.ring().succeeds("a read", &request).await
}

async fn initialised(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    serves(&mut front).await?;
    ensure_eq!(front.device.state().await?, Connected, "the backend's state");
    front.close().await
}

async fn connected_at_once(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let rings = Front::announce(&mut device, &Options::default()).await?;
    device.set_state(Connected).await?;
    device.wait_state(&[Connected]).await?;
    let mut front = Front { device, rings, sectors: 0 };
    serves(&mut front).await?;
    front.close().await
}

async fn waits(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    device.stays(300).await?;
    ensure_eq!(device.state().await?, InitWait, "the backend's state");
    Ok(())
}

async fn details_first(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let rings = Front::announce(&mut device, &Options::default()).await?;
    device.stays(300).await?;
    ensure!(!rings[0].in_use(), "the backend has mapped the ring of a frontend that is Initialising");
    Ok(())
}

async fn early_requests(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let rings = Front::announce(&mut device, &Options::default()).await?;
    device.set_state(Initialised).await?;
    device.wait_state(&[Connected]).await?;
    let mut front = Front { device, rings, sectors: 0 };
    serves(&mut front).await?;
    front.device.set_state(Connected).await?;
    serves(&mut front).await?;
    front.close().await
}

async fn waiting_requests(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let rings = Front::announce(&mut device, &Options::default()).await?;
    let mut front = Front { device, rings, sectors: 0 };
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 7)]);
    front.ring().push(&request);
    front.ring().publish();
    front.device.set_state(Initialised).await?;
    front.device.wait_state(&[Connected]).await?;
    let response = front.ring().response().await?;
    ensure_eq!((response.id, response.status), (request.id, BLKIF_RSP_OKAY), "the response");
    front.close().await
}

async fn same_again(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    for _ in 0..3 {
        front.device.set_state(Connected).await?;
        time::sleep(20_000_000).await;
        serves(&mut front).await?;
    }
    ensure_eq!(front.device.state().await?, Connected, "the backend's state");
    front.close().await
}

async fn initialised_again(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.device.set_state(Initialised).await?;
    time::sleep(100_000_000).await;
    ensure_eq!(front.device.state().await?, Connected, "the backend's state");
    serves(&mut front).await?;
    front.close().await
}

async fn in_order(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.device.set_state(Closing).await?;
    front.device.wait_state(&[Closing, Closed]).await?;
    front.device.set_state(Closed).await?;
    front.device.wait_state(&[Closed]).await?;
    Ok(())
}

async fn at_once(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.device.set_state(Closed).await?;
    front.device.wait_state(&[Closed]).await?;
    front.given_back().await?;
    let front = Front::usual(env).await?;
    front.close().await
}

async fn never_connected(env: &mut Env) -> Verdict {
    for _ in 0..2 {
        let mut device = Front::prepare(env, Need::Disk).await?;
        device.close().await?;
    }
    let front = Front::usual(env).await?;
    front.close().await
}

async fn while_connecting(env: &mut Env) -> Verdict {
    for _ in 0..4 {
        let mut device = Front::prepare(env, Need::Disk).await?;
        let rings = Front::announce(&mut device, &Options::default()).await?;
        device.set_state(Initialised).await?;
        let front = Front { device, rings, sectors: 0 };
        front.close().await?;
    }
    Ok(())
}

async fn in_flight(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(32)?;
    for n in 0..32u64 {
        let segments = [segment(buffer.gref(n as usize), 0, 7)];
        let mut request = transfer(BLKIF_OP_WRITE, PLACE + n * 8, &segments);
        request.id = n;
        front.ring().push(&request);
    }
    front.ring().publish();
    front.close().await?;
    let end = time::now_ns() + 5_000_000_000;
    while buffer.in_use() {
        ensure!(time::now_ns() < end, "the backend is closed, but keeps pages of requests mapped");
        time::sleep(1_000_000).await;
    }
    Ok(())
}

async fn ring_given_back(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let most = device.read_back("max-ring-page-order").await?.and_then(|text| text.parse::<u32>().ok());
    let order = most.unwrap_or(0).min(2);
    let options = Options { order: (order > 0).then_some(order), ..Options::default() };
    let front = Front::connect_device(device, &options).await?;
    ensure!(front.rings[0].in_use(), "the ring of a connected backend is not mapped");
    front.close().await
}

async fn nothing_served(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    serves(&mut front).await?;
    front.device.close().await?;
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 7)]);
    front.ring().push(&request);
    front.ring().publish();
    front.ring().silent(200).await
}

async fn stays_closed(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    device.close().await?;
    device.stays(300).await?;
    device.set_state(Initialising).await?;
    device.wait_state(&[InitWait]).await?;
    Ok(())
}

async fn many_times(env: &mut Env) -> Verdict {
    for _ in 0..8 {
        let mut front = Front::usual(env).await?;
        serves(&mut front).await?;
        front.close().await?;
    }
    Ok(())
}

async fn other_ring(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let most = device.read_back("max-ring-page-order").await?.and_then(|text| text.parse::<u32>().ok());
    require!(most.is_some_and(|most| most >= 2), "the backend takes rings of order {most:?} at most");
    for order in [None, Some(2), None, Some(1)] {
        let mut front = Front::connect(env, &Options { order, ..Options::default() }).await?;
        let slots = front.ring().slots;
        let buffer = front.buffer(1)?;
        for n in 0..u64::from(slots) {
            let mut request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
            request.id = n;
            front.ring().push(&request);
        }
        front.ring().publish();
        for _ in 0..slots {
            let response = front.ring().response().await?;
            ensure_eq!(response.status, BLKIF_RSP_OKAY, "status of request {}", response.id);
        }
        front.close().await?;
    }
    Ok(())
}

async fn other_features(env: &mut Env) -> Verdict {
    for persistent in [Some(true), Some(false), Some(true), None] {
        let mut front = Front::connect(env, &Options { persistent, ..Options::default() }).await?;
        let buffer = front.buffer(1)?;
        let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 7)]);
        front.ring().succeeds("a read", &request).await?;
        if persistent != Some(true) {
            ensure!(!buffer.in_use(), "a page is kept mapped without feature-persistent");
        }
        front.close().await?;
    }
    Ok(())
}

async fn data_stays(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 16, 120).await?;
    front.close().await?;
    let mut front = Front::usual(env).await?;
    front.holds("in the next connection", PLACE, 16, 120).await?;
    front.close().await
}

async fn indices_anew(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    for _ in 0..45 {
        serves(&mut front).await?;
    }
    front.close().await?;
    let mut front = Front::usual(env).await?;
    for _ in 0..3 {
        serves(&mut front).await?;
    }
    ensure_eq!(front.ring().produced, 3, "the index of the next request");
    front.close().await
}
