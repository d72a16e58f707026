//! A frontend on its way into a connection and out of it.

use alloc::collections::BTreeSet;

use pvrt::executor::time;
use ring_abi::io::xenbus::XenbusState::{Closed, Closing, Connected, Initialised, Initialising};

use super::back::{Back, receive, send};
use super::{FrontError, Offload};
use crate::blkfront::back::run;
use crate::netif::front::frames::payload;
use crate::{Env, Verdict};

cases! {
    needs [Frontend];

    "netfront.connect.waits-for-initwait" = waits {
        title: "a backend that stays Initialising",
        rule: "A frontend writes its details once the backend is in InitWait.",
        source: "io/xenbus.h, XenbusStateInitWait",
    }
    "netfront.connect.details-before-state" = details {
        title: "the rings and event channels when the frontend is Connected",
        rule: "A frontend's details are complete when its state says so.",
        source: "io/xenbus.h, XenbusStateConnected; io/netif.h, '{tx,rx}-ring-ref', 'event-channel'",
    }
    "netfront.connect.asks-for-copies" = asks_copies {
        title: "request-rx-copy",
        rule: "A frontend asks for copies into its own pages.",
        source: "io/netif.h, struct netif_rx_request, gref",
    }
    "netfront.connect.features-are-boolean" = booleans {
        title: "each feature that the frontend states",
        rule: "The node of a feature holds 0 or 1.",
        source: "io/netif.h, 'feature-*'",
    }
    "netfront.connect.gso-with-sg" = gso_with_sg {
        title: "feature-gso-tcpv4 and feature-gso-tcpv6 beside feature-sg",
        rule: "A frontend that takes large packets takes packets of several slots.",
        source: "io/netif.h, 'feature-gso-tcpv4'; 'Guest receive'",
    }
    "netfront.connect.fresh-rings" = fresh_rings {
        title: "the indices of the rings that the frontend names",
        rule: "A new ring is empty: rsp_prod is 0, rsp_event and req_event are 1.",
        source: "io/ring.h, SHARED_RING_INIT",
    }
    "netfront.connect.posts-buffers" = posts {
        title: "the receive ring of a frontend that is Connected",
        rule: "A frontend that is Connected can receive: there are buffers.",
        source: "io/netif.h, 'Guest receive'",
    }
    "netfront.connect.buffers-differ" = buffers_differ {
        title: "ids and pages of all buffers",
        rule: "Each receive request has an id and a page of its own, which the backend may write.",
        source: "io/netif.h, struct netif_rx_request",
    }
    "netfront.connect.nothing-sent-before" = nothing_before {
        title: "the transmit ring of a frontend whose backend is not Connected",
        rule: "A frontend sends nothing before both ends are Connected.",
        source: "io/xenbus.h, XenbusStateConnected",
    }
    "netfront.connect.follows-to-connected" = follows {
        title: "the frontend's state once the backend is Connected",
        rule: "A frontend whose backend is Connected is Connected.",
        source: "io/xenbus.h, XenbusStateConnected",
    }
    "netfront.connect.no-rx-copy" = no_rx_copy {
        title: "a backend without feature-rx-copy",
        rule: "A frontend that can only be copied to does not connect to a backend that does not copy.",
        source: "io/netif.h, 'Guest receive'",
    }
    "netfront.connect.garbage-mac" = garbage_mac {
        title: "mac nodes that are no address of a station",
        rule: "A frontend does not use an address that is none.",
        source: "docs/misc/xenstore-paths.pandoc, device/vif/*/mac",
    }
    "netfront.connect.no-features" = no_features {
        title: "a backend that announces feature-rx-copy alone",
        rule: "What a backend does not announce a frontend does not use.",
        source: "io/netif.h, 'feature-*'",
    }
    "netfront.connect.backend-closes" = backend_closes {
        title: "a backend that goes from InitWait to Closing",
        rule: "A frontend whose backend closes before it connects gives up.",
        source: "io/xenbus.h, XenbusStateClosing",
    }
    "netfront.connect.backend-vanishes" = backend_vanishes {
        title: "a backend whose directory goes while the frontend waits",
        rule: "A frontend whose backend is gone is not connected.",
        source: "io/xenbus.h, XenbusStateUnknown",
    }
    "netfront.connect.again" = again {
        title: "three connections, one after the other",
        rule: "A frontend connects to a backend that is in InitWait again.",
        source: "io/xenbus.h, enum xenbus_state",
    }
    "netfront.close.in-order" = in_order {
        title: "the states of a frontend that closes",
        rule: "A frontend that closes goes to Closed, at once or by way of Closing, where it waits for the backend.",
        source: "io/xenbus.h, XenbusStateClosing, XenbusStateClosed",
    }
    "netfront.close.rings-taken-back" = taken_back {
        title: "the rings' grants and a buffer's after the frontend is Closed",
        rule: "A frontend that has closed grants nothing any more.",
        source: "io/xenbus.h, XenbusStateClosed; grant_table.h",
    }
    "netfront.close.backend-first" = backend_first {
        title: "a backend that goes to Closing",
        rule: "A frontend whose backend closes goes to Closed, and what waits for a frame ends.",
        source: "io/xenbus.h, XenbusStateClosing",
    }
    "netfront.close.backend-vanishes" = vanishes {
        title: "a backend whose directory goes while a frame is in flight",
        rule: "A frontend whose backend is gone is not connected: what waits ends.",
        source: "io/xenbus.h, XenbusStateUnknown",
    }
}

async fn waits(env: &mut Env) -> Verdict {
    let back = Back::new(env)?;
    let _front = back.start();
    time::sleep(200_000_000).await;
    ensure_eq!(back.front_state(), Initialising, "the frontend's state");
    back.announce(&[]);
    back.wait_front(&[Initialised, Connected]).await?;
    Ok(())
}

/// A frontend that has written its details, and a backend that is not Connected yet.
async fn detailed(env: &Env) -> Verdict<Back> {
    let mut back = Back::new(env)?;
    let _front = back.start();
    back.announce(&[]);
    back.wait_front(&[Initialised, Connected]).await?;
    back.attach()?;
    Ok(back)
}

async fn details(env: &mut Env) -> Verdict {
    // `attach` needs them all.
    detailed(env).await?;
    Ok(())
}

async fn asks_copies(env: &mut Env) -> Verdict {
    let back = detailed(env).await?;
    ensure!(back.feature("request-rx-copy"), "request-rx-copy is {:?}", back.key("request-rx-copy"));
    Ok(())
}

async fn booleans(env: &mut Env) -> Verdict {
    let back = detailed(env).await?;
    for key in [
        "request-rx-copy",
        "feature-rx-notify",
        "feature-sg",
        "feature-gso-tcpv4",
        "feature-gso-tcpv6",
        "feature-no-csum-offload",
        "feature-ipv6-csum-offload",
        "request-multicast-control",
    ] {
        if let Some(text) = back.key(key) {
            ensure!(matches!(text.trim(), "0" | "1"), "{key} is {text:?}");
        }
    }
    Ok(())
}

async fn gso_with_sg(env: &mut Env) -> Verdict {
    let back = detailed(env).await?;
    for key in ["feature-gso-tcpv4", "feature-gso-tcpv6"] {
        ensure!(!back.feature(key) || back.feature("feature-sg"), "{key} without feature-sg");
    }
    Ok(())
}

async fn fresh_rings(env: &mut Env) -> Verdict {
    let mut back = detailed(env).await?;
    ensure_eq!(
        back.tx_indices(),
        [0, 1, 0, 1],
        "req_prod, req_event, rsp_prod, rsp_event of the transmit ring"
    );
    ensure_eq!(back.rx_indices()[1..], [1, 0, 1], "req_event, rsp_prod and rsp_event of the receive ring");
    Ok(())
}

async fn posts(env: &mut Env) -> Verdict {
    let (mut back, _front) = Back::usual(env).await?;
    let room = back.room();
    ensure!((18..=256).contains(&room), "{room} buffers on the receive ring");
    Ok(())
}

async fn buffers_differ(env: &mut Env) -> Verdict {
    let (mut back, _front) = Back::usual(env).await?;
    let (mut ids, mut pages) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..back.room() {
        let request = back.buffer().await?;
        ensure!(ids.insert(request.id), "the id {} twice", request.id);
        ensure!(pages.insert(request.gref), "the page {} twice", request.gref);
        back.writes(request.gref)?;
    }
    Ok(())
}

async fn nothing_before(env: &mut Env) -> Verdict {
    detailed(env).await?.silent().await
}

async fn follows(env: &mut Env) -> Verdict {
    let (back, _front) = Back::usual(env).await?;
    back.wait_front(&[Connected]).await?;
    Ok(())
}

/// A frontend that does not connect, by what `prepare` does to its nodes.
async fn gives_up(env: &Env, changed: &[(&str, &str)], prepare: impl FnOnce(&Back)) -> Verdict {
    let back = Back::new(env)?;
    prepare(&back);
    let front = back.start();
    back.announce(changed);
    let result = back.end(front).await?;
    ensure!(result.is_err(), "the frontend connects");
    ensure!(back.front_state() != Connected, "the frontend's state is Connected");
    Ok(())
}

async fn no_rx_copy(env: &mut Env) -> Verdict {
    gives_up(env, &[("feature-rx-copy", "0")], |_| {}).await
}

async fn garbage_mac(env: &mut Env) -> Verdict {
    for mac in ["", "00:16:3e:00:00", "00:16:3e:00:00:00:00", "00:16:3e:00:00:zz", "01:00:5e:00:00:01"] {
        gives_up(env, &[], |back| back.set_front("mac", mac)).await?;
    }
    Ok(())
}

async fn no_features(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let none = ["feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload"];
    let front = back.connect(&none.map(|key| (key, "0"))).await?;
    let frame = payload(1514, 1);
    let asked = send(&front, &frame, Offload::default());
    let taken = back.packet().await?;
    ensure_eq!((taken.slots.len(), taken.extras.len()), (1, 0), "slots and extras of a frame");
    ensure!(taken.bytes == frame, "another frame");
    ensure!(back.end(asked).await?.is_ok(), "the frame was not sent");
    // Neither in several slots, nor in segments.
    let long = send(&front, &payload(6000, 2), Offload::default());
    ensure!(back.end(long).await?.is_err(), "a frame longer than a page was taken");
    let offload = Offload { blank: true, validated: true, gso: Some((1, 1000)) };
    let large = send(&front, &payload(3000, 3), offload);
    ensure!(back.end(large).await?.is_err(), "a large packet was taken");
    back.silent().await
}

async fn backend_closes(env: &mut Env) -> Verdict {
    let back = Back::new(env)?;
    let front = back.start();
    back.announce(&[]);
    back.wait_front(&[Initialised, Connected]).await?;
    back.set_state(Closing);
    back.set_state(Closed);
    ensure!(back.end(front).await?.is_err(), "the frontend connects");
    Ok(())
}

async fn backend_vanishes(env: &mut Env) -> Verdict {
    let back = Back::new(env)?;
    let front = back.start();
    back.announce(&[]);
    back.wait_front(&[Initialised, Connected]).await?;
    back.vanish();
    ensure!(back.end(front).await?.is_err(), "the frontend connects");
    Ok(())
}

async fn again(env: &mut Env) -> Verdict {
    for seed in 0..3 {
        let (mut back, front) = Back::usual(env).await?;
        let frame = payload(200, seed);
        back.give(&frame).await?;
        let got = back.end(receive(&front)).await?;
        ensure!(got.is_ok_and(|(bytes, _)| bytes == frame), "another frame in connection {seed}");
        let asked = run(front.close());
        back.wait_front(&[Closing, Closed]).await?;
        back.detach();
        back.set_state(Closed);
        ensure!(back.end(asked).await?.is_ok(), "the frontend does not close");
        back.wait_front(&[Closed]).await?;
    }
    Ok(())
}

async fn in_order(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let asked = run(front.close());
    if back.wait_front(&[Closing, Closed]).await? == Closing {
        time::sleep(20_000_000).await;
        ensure_eq!(back.front_state(), Closing, "the state of a frontend whose backend has not closed");
    }
    back.detach();
    back.set_state(Closed);
    back.wait_front(&[Closed]).await?;
    ensure!(back.end(asked).await?.is_ok(), "the frontend does not close");
    Ok(())
}

async fn taken_back(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let mut grefs = alloc::vec![back.buffer().await?.gref];
    for key in ["tx-ring-ref", "rx-ring-ref"] {
        grefs.extend(back.key(key).and_then(|text| text.parse::<u32>().ok()));
    }
    ensure!(grefs.iter().all(|gref| back.grants(*gref)), "a page is not granted");
    let asked = run(front.close());
    back.wait_front(&[Closing, Closed]).await?;
    back.detach();
    back.set_state(Closed);
    ensure!(back.end(asked).await?.is_ok(), "the frontend does not close");
    for gref in grefs {
        back.grant_ends(gref).await?;
    }
    Ok(())
}

async fn backend_first(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let asked = receive(&front);
    time::sleep(1_000_000).await;
    back.detach();
    back.set_state(Closing);
    ensure_eq!(back.end(asked).await?.err(), Some(FrontError::Gone), "what waited for a frame");
    back.wait_front(&[Closed]).await?;
    Ok(())
}

async fn vanishes(env: &mut Env) -> Verdict {
    let (mut back, front) = Back::usual(env).await?;
    let sent = send(&front, &payload(100, 1), Offload::default());
    back.packet().await?;
    ensure!(back.end(sent).await?.is_ok(), "the frame was not sent");
    let asked = receive(&front);
    time::sleep(1_000_000).await;
    back.detach();
    back.vanish();
    ensure_eq!(back.end(asked).await?.err(), Some(FrontError::Gone), "what waited for a frame");
    let later = back.end(send(&front, &payload(100, 1), Offload::default())).await?;
    ensure_eq!(later, Err(FrontError::Gone), "a frame for a backend that is gone");
    Ok(())
}
