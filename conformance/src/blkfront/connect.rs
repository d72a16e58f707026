//! How a frontend connects and disconnects.

use ring_abi::io::xenbus::XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};

use super::back::{Back, Disk, run};
use super::{FrontError, Sum};
use crate::{Env, Verdict};
use pvrt::executor::time;

cases! {
    needs [Frontend];

    "blkfront.connect.waits-for-initwait" = waits {
        title: "a backend that stays Initialising",
        rule: "A frontend writes its details once the backend is in InitWait.",
        source: "io/xenbus.h, XenbusStateInitWait; io/blkif.h, 'Startup'",
    }
    "blkfront.connect.details-before-state" = details {
        title: "ring-ref, event-channel and protocol when the frontend is Initialised",
        rule: "A frontend's details are complete when its state says so.",
        source: "io/xenbus.h, XenbusStateInitialised; io/blkif.h, 'Frontend XenBus Nodes'",
    }
    "blkfront.connect.fresh-ring" = fresh_ring {
        title: "the indices of the ring that the frontend names",
        rule: "A new ring is empty: both producers are equal, and both events are one further.",
        source: "io/ring.h, SHARED_RING_INIT",
    }
    "blkfront.connect.follows-to-connected" = follows {
        title: "the frontend's state once the backend is Connected",
        rule: "A frontend goes to Connected when the backend has.",
        source: "io/xenbus.h, XenbusStateConnected",
    }
    "blkfront.connect.nothing-asked-before" = nothing_before {
        title: "the ring of a frontend whose backend is not Connected",
        rule: "A frontend asks for nothing before the backend is Connected.",
        source: "io/blkif.h, 'Startup'",
    }
    "blkfront.connect.backend-closes" = backend_closes {
        title: "a backend that goes from InitWait to Closing",
        rule: "A frontend whose backend closes before it connects gives up.",
        source: "io/xenbus.h, XenbusStateClosing",
    }
    "blkfront.connect.backend-vanishes" = backend_vanishes {
        title: "a backend whose directory goes while the frontend waits",
        rule: "A frontend whose backend is gone is not connected.",
        source: "io/xenbus.h, XenbusStateUnknown",
    }
    "blkfront.connect.no-sectors" = no_sectors {
        title: "a backend that is Connected without `sectors`",
        rule: "A frontend does not use a disk whose size it does not know.",
        source: "io/blkif.h, 'sectors'",
    }
    "blkfront.connect.garbage-sectors" = garbage_sectors {
        title: "a backend whose `sectors` is no number",
        rule: "A frontend does not use a disk whose size it does not know.",
        source: "io/blkif.h, 'sectors'",
    }
    "blkfront.connect.again" = again {
        title: "three connections, one after the other",
        rule: "A frontend connects to a backend that is in InitWait again.",
        source: "io/xenbus.h, enum xenbus_state",
    }
    "blkfront.close.in-order" = close_in_order {
        title: "the states of a frontend that closes",
        rule: "A frontend that closes goes to Closed, at once or by way of Closing, where it waits for the backend.",
        source: "io/xenbus.h, XenbusStateClosing, XenbusStateClosed",
    }
    "blkfront.close.requests-first" = close_drains {
        title: "a close with a read in flight",
        rule: "A frontend that closes in order has its requests answered first.",
        source: "io/xenbus.h, XenbusStateClosing",
    }
    "blkfront.close.ring-taken-back" = close_takes_back {
        title: "the ring's grant after the frontend is Closed",
        rule: "A frontend that has closed grants nothing any more.",
        source: "io/xenbus.h, XenbusStateClosed; grant_table.h",
    }
}

async fn waits(env: &mut Env) -> Verdict {
    let back = Back::new(env, Disk::default())?;
    let front = back.start();
    time::sleep(200_000_000).await;
    ensure_eq!(back.front_state(), Initialising, "the frontend's state");
    back.announce();
    back.wait_front(&[Initialised, Connected]).await?;
    drop(front);
    Ok(())
}

async fn details(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let _front = back.start();
    back.announce();
    // The case reads the state often, since the state must not appear before the details do.
    back.wait_front(&[Initialised, Connected]).await?;
    for key in ["ring-ref", "event-channel"] {
        let text = back.key(key);
        ensure!(text.as_ref().is_some_and(|text| text.parse::<u32>().is_ok()), "{key} is {text:?}");
    }
    let protocol = back.key("protocol");
    ensure!(protocol.as_deref().is_none_or(|text| text == "x86_64-abi"), "protocol is {protocol:?}");
    back.attach()
}

async fn fresh_ring(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let _front = back.start();
    back.announce();
    back.wait_front(&[Initialised, Connected]).await?;
    back.attach()?;
    ensure_eq!(back.indices(), [0, 1, 0, 1], "req_prod, req_event, rsp_prod and rsp_event");
    Ok(())
}

async fn follows(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let _front = back.connect().await?;
    back.wait_front(&[Connected]).await?;
    Ok(())
}

async fn nothing_before(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let _front = back.start();
    back.announce();
    back.wait_front(&[Initialised, Connected]).await?;
    back.attach()?;
    back.silent().await
}

/// Does `act` while the frontend waits for `Connected`; the frontend must then give up.
pub(super) async fn gives_up(env: &mut Env, act: impl Fn(&Back) + Send) -> Verdict {
    let back = Back::new(env, Disk::default())?;
    let front = back.start();
    back.announce();
    back.wait_front(&[Initialised, Connected]).await?;
    act(&back);
    let result = back.end(front).await?;
    ensure!(result.is_err(), "the frontend believes that it is connected");
    Ok(())
}

async fn backend_closes(env: &mut Env) -> Verdict {
    gives_up(env, |back| back.set_state(Closing)).await
}

async fn backend_vanishes(env: &mut Env) -> Verdict {
    let back = Back::new(env, Disk::default())?;
    let front = back.start();
    back.announce();
    back.wait_front(&[Initialised, Connected]).await?;
    back.vanish();
    let result = back.given_up(front).await?;
    ensure!(!matches!(result, Some(Ok(_))), "the frontend believes that it is connected");
    Ok(())
}

async fn no_sectors(env: &mut Env) -> Verdict {
    gives_up(env, |back| {
        back.set("sector-size", 512);
        back.set("info", 0);
        back.set_state(Connected);
    })
    .await
}

async fn garbage_sectors(env: &mut Env) -> Verdict {
    gives_up(env, |back| {
        back.set("sectors", "many");
        back.set("sector-size", 512);
        back.set("info", 0);
        back.set_state(Connected);
    })
    .await
}

/// Closes a connected frontend from both ends.
async fn close(back: &mut Back, front: alloc::sync::Arc<dyn super::BlockFrontend>) -> Verdict {
    let closing = run(front.close());
    back.wait_front(&[Closing, Closed]).await?;
    back.set_state(Closing);
    back.detach();
    back.wait_front(&[Closed]).await?;
    back.set_state(Closed);
    ensure_eq!(back.end(closing).await?, Ok(()), "the frontend's close");
    Ok(())
}

async fn again(env: &mut Env) -> Verdict {
    for _ in 0..3 {
        let mut back = Back::new(env, Disk::default())?;
        let front = back.connect().await?;
        let asked = run(front.clone().read(5, 3));
        let read = back.serve(asked).await?;
        ensure!(read == Ok(Sum::of(&back.data[5 * 512..8 * 512])), "the read gave other data");
        close(&mut back, front).await?;
    }
    Ok(())
}

async fn close_in_order(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let closing = run(front.close());
    if back.wait_front(&[Closing, Closed]).await? == Closing {
        time::sleep(100_000_000).await;
        ensure_eq!(back.front_state(), Closing, "the state of a frontend whose backend has not followed");
    }
    back.set_state(Closing);
    back.detach();
    back.wait_front(&[Closed]).await?;
    ensure_eq!(back.end(closing).await?, Ok(()), "the frontend's close");
    Ok(())
}

async fn close_drains(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let asked = run(front.clone().read(0, 8));
    let request = back.request().await?;
    let closing = run(front.close());
    time::sleep(50_000_000).await;
    let early = back.front_state();
    ensure!(early != Closed, "the frontend is Closed with a request in flight");
    back.perform(&request)?;
    back.respond(&request, 0);
    let read = back.end(asked).await?;
    ensure!(matches!(read, Ok(_) | Err(FrontError::Gone)), "the read in flight at the close gave {:?}", read);
    back.wait_front(&[Closing, Closed]).await?;
    back.set_state(Closing);
    back.detach();
    back.wait_front(&[Closed]).await?;
    ensure_eq!(back.end(closing).await?, Ok(()), "the frontend's close");
    Ok(())
}

async fn close_takes_back(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let gref: u32 = back.key("ring-ref").and_then(|text| text.parse().ok()).unwrap_or(0);
    ensure!(back.grants(gref), "the ring of a connected frontend is not granted");
    close(&mut back, front).await?;
    back.grant_ends(gref).await?;
    ensure!(back.front_state() != InitWait, "the frontend's state");
    Ok(())
}
