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
    "netif.multicast.asked-while-connected" = asked_later {
        title: "request-multicast-control set while connected",
        rule: "With feature-dynamic-multicast-control the filter may be asked for at any time.",
        source: "io/netif.h, 'feature-dynamic-multicast-control'",
    }
    "netif.multicast.withdrawn-while-connected" = withdrawn {
        title: "request-multicast-control set to 0 while connected",
        rule: "With feature-dynamic-multicast-control the backend samples the value again on watch events.",
        source: "io/netif.h, 'In this case, the backend will watch the value'",
    }
    "netif.multicast.request-removed" = request_removed {
        title: "the node request-multicast-control removed while connected",
        rule: "A request that is not there is not set: multicast frames are flooded again.",
        source: "io/netif.h, 'feature-dynamic-multicast-control'",
    }
    "netif.multicast.list-outlives-the-request" = list_outlives {
        title: "an address added before the filter is asked for, withdrawn and asked for again",
        rule: "The list may be amended though the filter is not asked for, and applies once it is.",
        source: "io/netif.h, 'the filter list may be amended even if'",
    }
    "netif.multicast.asked-often" = asked_often {
        title: "request-multicast-control written two hundred times while frames go",
        rule: "The last value that was written counts, and frames to stations pass meanwhile.",
        source: "io/netif.h, 'the backend will watch the value and re-sample on watch events'",
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

const REQUEST: &str = "request-multicast-control";
/// Tries until a value that was written must have been seen, with a pause between any two.
const TRIES: u32 = 100;
const PAUSE_NS: u64 = 20_000_000;

/// A net whose receiver's backend follows the request.
async fn dynamic(env: &mut Env, asked: bool) -> Verdict<Net<'_>> {
    let mut net = with_filter(env, asked).await?;
    net.needs("feature-dynamic-multicast-control").await?;
    Ok(net)
}

/// The receiver writes its request.
async fn request(net: &mut Net<'_>, asked: u32) -> Verdict {
    net.device(Which::Receiver).write_front(REQUEST, asked).await
}

/// Whether a frame to `address` reaches the receiver now.
async fn does_reach(net: &mut Net<'_>, address: Mac) -> Verdict<bool> {
    let (made, mark) = (net.made_to(address, 100, address[5])?, net.mark()?);
    net.sender.ask(&made).await?;
    net.sender.ask(&mark).await?;
    let got = net.receive().await?;
    if got.bytes == mark.bytes {
        return Ok(false);
    }
    super::front::same("a multicast frame", &got.bytes, &made.bytes)?;
    super::front::same("the frame behind", &net.receive().await?.bytes, &mark.bytes)?;
    Ok(true)
}

/// Looks that frames to `address` soon reach the receiver, or soon do not, and that this lasts.
async fn comes_to(net: &mut Net<'_>, address: Mac, wanted: bool) -> Verdict {
    for _ in 0..TRIES {
        if does_reach(net, address).await? == wanted {
            return reaches(net, address, wanted).await;
        }
        pvrt::executor::time::sleep(PAUSE_NS).await;
    }
    let word = if wanted { "does not reach" } else { "still reaches" };
    Err(crate::Problem::Fail(alloc::format!("a multicast frame {word} the receiver")))
}

async fn asked_later(env: &mut Env) -> Verdict {
    let mut net = dynamic(env, false).await?;
    reaches(&mut net, GROUP, true).await?;
    request(&mut net, 1).await?;
    comes_to(&mut net, GROUP, false).await?;
    reaches(&mut net, [0xff; 6], true).await?;
    add(&mut net, GROUP).await?;
    reaches(&mut net, GROUP, true).await?;
    net.close().await
}

async fn withdrawn(env: &mut Env) -> Verdict {
    let mut net = dynamic(env, true).await?;
    reaches(&mut net, GROUP, false).await?;
    for asked in [0, 1, 0] {
        request(&mut net, asked).await?;
        comes_to(&mut net, GROUP, asked == 0).await?;
    }
    net.close().await
}

async fn request_removed(env: &mut Env) -> Verdict {
    let mut net = dynamic(env, true).await?;
    reaches(&mut net, GROUP, false).await?;
    net.device(Which::Receiver).remove_front(REQUEST).await?;
    comes_to(&mut net, GROUP, true).await?;
    net.close().await
}

async fn list_outlives(env: &mut Env) -> Verdict {
    let mut net = dynamic(env, false).await?;
    add(&mut net, GROUP).await?;
    for asked in [1, 0, 1] {
        request(&mut net, asked).await?;
        comes_to(&mut net, OTHER, asked == 0).await?;
        reaches(&mut net, GROUP, true).await?;
    }
    net.close().await
}

async fn asked_often(env: &mut Env) -> Verdict {
    let mut net = dynamic(env, false).await?;
    for round in 0..200 {
        request(&mut net, 1 - round % 2).await?;
        if round % 20 == 0 {
            net.goes_on().await?;
        }
    }
    comes_to(&mut net, GROUP, true).await?;
    request(&mut net, 1).await?;
    comes_to(&mut net, GROUP, false).await?;
    net.close().await
}
