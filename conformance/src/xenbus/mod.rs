//! The states by which two ends of a device find each other, and what is read when.
//!
//! ABI: `xen/include/public/io/xenbus.h`, and the state diagrams of `io/blkif.h`.

use ring_abi::io::xenbus::XenbusState;

use crate::blkif::front::{Front, Options};
use crate::{Env, Need, Verdict};

cases! {
    needs [Store, Disk];

    "xenbus.frontend-connected-at-once" = connected_at_once {
        title: "a frontend that goes straight to Connected",
        rule: "A backend connects when the frontend's state is Initialised or Connected.",
        source: "io/blkif.h, 'Startup'; io/xenbus.h",
    }
    "xenbus.close-and-reconnect" = reconnect {
        title: "three connections, one after the other",
        rule: "After both ends are Closed, a frontend that starts again at Initialising finds the backend in InitWait.",
        source: "io/xenbus.h, enum xenbus_state",
    }
}

async fn connected_at_once(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let _rings = Front::announce(&mut device, &Options::default()).await?;
    device.set_state(XenbusState::Connected).await?;
    device.wait_state(&[XenbusState::Connected]).await?;
    device.close().await
}

async fn reconnect(env: &mut Env) -> Verdict {
    for _ in 0..3 {
        let front = Front::usual(env).await?;
        front.close().await?;
    }
    Ok(())
}
