//! A toolstack that removes the device, and a frontend that disappears without closing.

use alloc::format;
use alloc::string::String;

use pvrt::executor::time;
use ring_abi::io::blkif::*;
use ring_abi::io::xenbus::XenbusState::{self, Closed, Closing, Connected, Initialising};

use crate::blkif::front::{Front, segment, transfer};
use crate::blkif::transfers::PLACE;
use crate::{Env, Need, Verdict};

cases! {
    needs [Store, Disk, BothEnds];

    "xenbus.vanished.frontend-removed" = frontend_removed {
        title: "the frontend's directory removed while connected",
        rule: "A backend whose frontend is gone closes and gives back what it shared.",
        source: "io/xenbus.h, XenbusStateUnknown",
    }
    "xenbus.vanished.frontend-removed-with-requests" = removed_in_flight {
        title: "the frontend's directory removed with requests in flight",
        rule: "A backend whose frontend is gone closes and gives back what it shared, requests in flight included.",
        source: "io/xenbus.h, XenbusStateUnknown; grant_table.h",
    }
    "xenbus.vanished.backend-removed" = backend_removed {
        title: "the backend's directory removed while connected",
        rule: "A backend whose own directory is gone gives back what it shared and does not write it again.",
        source: "io/xenbus.h; docs/misc/xenstore-paths.pandoc",
    }
    "xenbus.vanished.state-removed" = state_removed {
        title: "the frontend's state node removed while connected",
        rule: "A state that cannot be read is Unknown: the frontend is gone.",
        source: "io/xenbus.h, XenbusStateUnknown",
    }
    "xenbus.vanished.offline-then-closed" = offline {
        title: "online = 0, then a frontend that closes",
        rule: "A backend that is offline ends with its frontend's Closed.",
        source: "docs/misc/xenstore-paths.pandoc, 'online'; io/xenbus.h, XenbusStateClosed",
    }
    "xenbus.vanished.offline-does-not-return" = offline_stays {
        title: "online = 0, closed, and a frontend that starts again",
        rule: "A backend that is offline and closed does not wait for another frontend.",
        source: "docs/misc/xenstore-paths.pandoc, 'online'; io/xenbus.h, XenbusStateInitWait",
    }
    "xenbus.vanished.offline-goes-on" = offline_serves {
        title: "online = 0 under a connected frontend",
        rule: "A backend that is to go offline serves its frontend until that closes.",
        source: "docs/misc/xenstore-paths.pandoc, 'online'",
    }
    "xenbus.vanished.other-nodes-removed" = others_removed {
        title: "keys of the frontend's removed while connected",
        rule: "A frontend's details are read when it connects, and not again.",
        source: "io/blkif.h, 'ring-ref', 'event-channel'",
    }
    "xenbus.vanished.other-nodes-rewritten" = others_rewritten {
        title: "ring-ref and event-channel overwritten while connected",
        rule: "A frontend's details are read when it connects, and not again.",
        source: "io/blkif.h, 'ring-ref', 'event-channel'",
    }
    "xenbus.vanished.state-garbage" = state_garbage {
        title: "states that are none, in a frontend that waits to connect",
        rule: "A state that is no number of the list does not connect.",
        source: "io/xenbus.h, enum xenbus_state",
    }
}

/// Connects a disk; returns also the absolute path of its frontend's directory.
async fn connected(env: &mut Env) -> Verdict<(Front<'_>, String)> {
    let mut front = Front::usual(env).await?;
    let path = front.device.read_back("frontend").await?.unwrap_or_default();
    Ok((front, path))
}

async fn read_once(front: &mut Front<'_>) -> Verdict {
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 7)]);
    front.ring().succeeds("a read", &request).await
}

async fn frontend_removed(env: &mut Env) -> Verdict {
    let (mut front, path) = connected(env).await?;
    read_once(&mut front).await?;
    front.device.env.toolstack()?.remove(&path);
    front.device.wait_state(&[Closed]).await?;
    front.given_back().await
}

async fn removed_in_flight(env: &mut Env) -> Verdict {
    let (mut front, path) = connected(env).await?;
    let buffer = front.buffer(32)?;
    for n in 0..32u64 {
        let mut request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(n as usize), 0, 7)]);
        request.id = n;
        front.ring().push(&request);
    }
    front.ring().publish();
    front.device.env.toolstack()?.remove(&path);
    front.device.wait_state(&[Closed]).await?;
    front.given_back().await?;
    ensure!(!buffer.in_use(), "pages of requests in flight are still mapped");
    Ok(())
}

async fn backend_removed(env: &mut Env) -> Verdict {
    let (mut front, _) = connected(env).await?;
    read_once(&mut front).await?;
    let back = front.device.back.clone();
    let toolstack = front.device.env.toolstack()?;
    toolstack.remove(&back);
    front.given_back().await?;
    time::sleep(200_000_000).await;
    ensure!(toolstack.read(&back).is_none(), "the backend made its directory again");
    ensure!(toolstack.read(&format!("{back}/state")).is_none(), "the backend wrote its state again");
    Ok(())
}

async fn state_removed(env: &mut Env) -> Verdict {
    let (mut front, path) = connected(env).await?;
    front.device.env.toolstack()?.remove(&format!("{path}/state"));
    front.device.wait_state(&[Closing, Closed]).await?;
    front.given_back().await
}

async fn offline(env: &mut Env) -> Verdict {
    let (front, _) = connected(env).await?;
    let online = format!("{}/online", front.device.back);
    front.device.env.toolstack()?.write(&online, b"0");
    front.close().await
}

async fn offline_stays(env: &mut Env) -> Verdict {
    let (mut front, _) = connected(env).await?;
    let online = format!("{}/online", front.device.back);
    front.device.env.toolstack()?.write(&online, b"0");
    front.device.close().await?;
    front.device.set_state(Initialising).await?;
    time::sleep(300_000_000).await;
    let state = front.device.state().await?;
    ensure!(
        matches!(state, Closed | XenbusState::Unknown),
        "a backend that is offline went from Closed to {state:?}"
    );
    Ok(())
}

async fn offline_serves(env: &mut Env) -> Verdict {
    let (mut front, _) = connected(env).await?;
    let online = format!("{}/online", front.device.back);
    front.device.env.toolstack()?.write(&online, b"0");
    time::sleep(100_000_000).await;
    ensure_eq!(front.device.state().await?, Connected, "the backend's state");
    read_once(&mut front).await?;
    front.close().await
}

async fn others_removed(env: &mut Env) -> Verdict {
    let (mut front, _) = connected(env).await?;
    for key in ["ring-ref", "event-channel", "protocol"] {
        front.device.remove_front(key).await?;
    }
    time::sleep(50_000_000).await;
    read_once(&mut front).await?;
    ensure_eq!(front.device.state().await?, Connected, "the backend's state");
    front.close().await
}

async fn others_rewritten(env: &mut Env) -> Verdict {
    let (mut front, _) = connected(env).await?;
    for key in ["ring-ref", "event-channel", "protocol"] {
        front.device.write_front(key, "99999").await?;
    }
    time::sleep(50_000_000).await;
    read_once(&mut front).await?;
    ensure_eq!(front.device.state().await?, Connected, "the backend's state");
    front.close().await
}

async fn state_garbage(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let rings = Front::announce(&mut device, &crate::blkif::front::Options::default()).await?;
    for state in ["", "x", "-4", "99", "4294967300", "3x"] {
        device.write_front("state", state).await?;
        time::sleep(50_000_000).await;
        ensure!(device.state().await? != Connected, "the backend connected to state {state:?}");
        ensure!(!rings[0].in_use(), "the backend mapped the ring in state {state:?}");
    }
    Ok(())
}
