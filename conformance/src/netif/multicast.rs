//! The backend's filter of multicast frames.

use super::front::frames::Mac;
use super::front::{Made, Net, Options, Which, multicast};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.multicast.flooded-unasked" = flooded {
        title: "a multicast frame to a receiver that asked for no filter",
        rule: "Without request-multicast-control a frontend gets all multicast frames.",
        source: "io/netif.h, 'request-multicast-control'",
    }
    "netif.multicast.filtered" = filtered {
        title: "a multicast frame to a receiver that asked for the filter and named nothing",
        rule: "With request-multicast-control multicast frames that match no address are dropped.",
        source: "io/netif.h, 'request-multicast-control'",
    }
    "netif.multicast.added" = added {
        title: "an address that was added",
        rule: "Multicast frames to an address in the filter's list pass.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_MCAST_ADD",
    }
    "netif.multicast.removed" = removed {
        title: "an address that was added and removed",
        rule: "An address that was removed is no more in the filter's list.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_MCAST_DEL",
    }
    "netif.multicast.others-stay-out" = others {
        title: "an address beside the one that was added",
        rule: "Multicast frames that do not match the list are dropped.",
        source: "io/netif.h, 'feature-multicast-control'",
    }
    "netif.multicast.broadcast-passes" = broadcast {
        title: "a frame to all stations, with the filter asked for",
        rule: "Only multicast frames are filtered: one to all stations passes.",
        source: "io/netif.h, 'filter ethernet multicast packets'",
    }
    "netif.multicast.unicast-passes" = unicast {
        title: "a frame to the receiver's own address, with the filter asked for",
        rule: "Only multicast frames are filtered.",
        source: "io/netif.h, 'filter ethernet multicast packets'",
    }
    "netif.multicast.list-without-filter" = list_without_filter {
        title: "addresses added and removed without request-multicast-control",
        rule: "The list may be amended though the filter is not asked for; the filter is then not applied.",
        source: "io/netif.h, 'the filter list may be amended even if'",
    }
    "netif.multicast.many" = many {
        title: "sixty-four addresses",
        rule: "The filter's list has room for more than one address: each passes.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_MCAST_ADD",
    }
    "netif.multicast.limit" = limit {
        title: "addresses until one is refused, at most four thousand",
        rule: "A list that is full refuses an address with an error, and has room again after a removal.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_MCAST_ADD; NETIF_RSP_ERROR",
    }
    "netif.multicast.remove-unknown" = remove_unknown {
        title: "the removal of an address that was never added",
        rule: "A removal is answered, whether or not the address was there.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_MCAST_DEL",
    }
    "netif.multicast.new-connection" = new_connection {
        title: "an address that was added in the connection before",
        rule: "The list is a connection's: a new one begins without addresses.",
        source: "io/netif.h, 'The list is amended by the frontend'",
    }
}

const GROUP: Mac = [1, 0, 0x5e, 0, 0, 0x42];
const OTHER: Mac = [1, 0, 0x5e, 0, 0, 0x43];

/// A net whose receiver asked for the filter, or not.
async fn with_filter(env: &mut Env, asked: bool) -> Verdict<Net<'_>> {
    let mut net = Net::prepare(env).await?;
    net.needs("feature-multicast-control").await?;
    let options = if asked { Options::with("request-multicast-control", 1) } else { Options::default() };
    net.join(Which::Receiver, &options).await?;
    net.join(Which::Sender, &Options::default()).await?;
    Ok(net)
}

/// The receiver amends its list; whether the backend took it.
async fn amend(net: &mut Net<'_>, add: bool, address: Mac) -> Verdict<bool> {
    let frame = net.frame(60, 0);
    let made = Made::whole(net.receiver.dom, &frame)?.with(multicast(add, address));
    Ok(net.receiver.ask(&made).await?.pieces[0].1 == 0)
}

async fn add(net: &mut Net<'_>, address: Mac) -> Verdict {
    ensure!(amend(net, true, address).await?, "the address {address:x?} is refused");
    Ok(())
}

/// Whether a frame to `address` reaches the receiver.
async fn reaches(net: &mut Net<'_>, address: Mac, wanted: bool) -> Verdict {
    let made = net.made_to(address, 100, address[5])?;
    if wanted {
        net.passes("a frame that the receiver wants", &made).await?;
    } else {
        net.sender.ask(&made).await?;
    }
    net.goes_on().await
}

async fn flooded(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, false).await?;
    reaches(&mut net, GROUP, true).await?;
    net.close().await
}

async fn filtered(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, true).await?;
    reaches(&mut net, GROUP, false).await?;
    net.close().await
}

async fn added(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, true).await?;
    add(&mut net, GROUP).await?;
    reaches(&mut net, GROUP, true).await?;
    net.close().await
}

async fn removed(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, true).await?;
    add(&mut net, GROUP).await?;
    ensure!(amend(&mut net, false, GROUP).await?, "the removal is refused");
    reaches(&mut net, GROUP, false).await?;
    net.close().await
}

async fn others(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, true).await?;
    add(&mut net, GROUP).await?;
    reaches(&mut net, OTHER, false).await?;
    reaches(&mut net, GROUP, true).await?;
    net.close().await
}

async fn broadcast(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, true).await?;
    reaches(&mut net, [0xff; 6], true).await?;
    net.close().await
}

async fn unicast(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, true).await?;
    net.goes_on().await?;
    net.close().await
}

async fn list_without_filter(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, false).await?;
    add(&mut net, GROUP).await?;
    reaches(&mut net, OTHER, true).await?;
    ensure!(amend(&mut net, false, GROUP).await?, "the removal is refused");
    reaches(&mut net, GROUP, true).await?;
    net.close().await
}

/// The address of number `n`.
fn numbered(n: u16) -> Mac {
    let [high, low] = n.to_be_bytes();
    [0x33, 0x33, 0, 1, high, low]
}

async fn many(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, true).await?;
    for n in 0..64 {
        add(&mut net, numbered(n)).await?;
    }
    for n in [0, 1, 31, 63] {
        reaches(&mut net, numbered(n), true).await?;
    }
    reaches(&mut net, numbered(64), false).await?;
    net.close().await
}

async fn limit(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, true).await?;
    let mut count = 0;
    while count < 4000 && amend(&mut net, true, numbered(count)).await? {
        count += 1;
    }
    require!(count < 4000, "the list has no end within four thousand addresses");
    ensure!(count > 0, "the list has no room for an address");
    reaches(&mut net, numbered(count), false).await?;
    ensure!(amend(&mut net, false, numbered(0)).await?, "a removal from a full list is refused");
    add(&mut net, numbered(count)).await?;
    reaches(&mut net, numbered(count), true).await?;
    net.close().await
}

async fn remove_unknown(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, true).await?;
    amend(&mut net, false, GROUP).await?;
    add(&mut net, OTHER).await?;
    amend(&mut net, false, GROUP).await?;
    reaches(&mut net, OTHER, true).await?;
    net.close().await
}

async fn new_connection(env: &mut Env) -> Verdict {
    let mut net = with_filter(env, true).await?;
    add(&mut net, GROUP).await?;
    net.reset(Which::Receiver).await?;
    net.join(Which::Receiver, &Options::with("request-multicast-control", 1)).await?;
    reaches(&mut net, GROUP, false).await?;
    net.close().await
}
