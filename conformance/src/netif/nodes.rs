//! What a backend says of itself in xenstore.

use super::front::{Net, Options, Which};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.nodes.rx-copy" = rx_copy {
        title: "the backend's `feature-rx-copy`",
        rule: "A backend that copies received packets into the frontend's pages says so by feature-rx-copy.",
        source: "io/netif.h, 'Guest receive'; struct netif_rx_request, gref",
    }
    "netif.nodes.no-rx-flip" = no_rx_flip {
        title: "the backend's `feature-rx-flip`",
        rule: "A backend that copies does not hand pages over: feature-rx-flip is 0 or missing.",
        source: "io/netif.h, 'Guest receive'",
    }
    "netif.nodes.features-are-boolean" = booleans {
        title: "each feature announced",
        rule: "The node of a feature holds 0 or 1.",
        source: "io/netif.h, 'feature-*'",
    }
    "netif.nodes.gso-needs-sg" = gso_needs_sg {
        title: "feature-gso-tcpv4 and feature-gso-tcpv6 beside feature-sg",
        rule: "A backend that takes large TCP packets takes packets of several slots.",
        source: "io/netif.h, 'feature-gso-tcpv4'; 'Guest transmit'",
    }
    "netif.nodes.ipv6-gso-needs-ipv6-csum" = gso_needs_csum {
        title: "feature-gso-tcpv6 beside feature-ipv6-csum-offload",
        rule: "A backend that takes large TCP packets over IPv6 takes their checksums as blank.",
        source: "io/netif.h, 'feature-ipv6-csum-offload'",
    }
    "netif.nodes.split-is-boolean" = split {
        title: "the backend's `feature-split-event-channels`",
        rule: "A backend advertises split event channels as 0 or 1, or not at all.",
        source: "io/netif.h, 'feature-split-event-channels'",
    }
    "netif.nodes.max-queues" = max_queues {
        title: "the backend's `multi-queue-max-queues`",
        rule: "Where it is stated, multi-queue-max-queues is a number above 0, there before the frontend chooses.",
        source: "io/netif.h, 'Multiple transmit and receive queues'",
    }
    "netif.nodes.dynamic-multicast-needs-multicast" = dynamic {
        title: "feature-dynamic-multicast-control beside feature-multicast-control",
        rule: "A backend that watches request-multicast-control also has the filter.",
        source: "io/netif.h, 'feature-dynamic-multicast-control'",
    }
    "netif.nodes.ctrl-ring" = ctrl_ring {
        title: "the backend's `feature-ctrl-ring`",
        rule: "A backend advertises that it can use a control ring by feature-ctrl-ring, 1.",
        source: "io/netif.h, 'Control ring'",
    }
    "netif.nodes.carrier" = carrier {
        title: "the backend's `carrier`",
        rule: "Where there is a carrier node, it is 0 or 1.",
        source: "io/netif.h, 'Link state'",
    }
    "netif.nodes.frontend" = frontend {
        title: "the backend's `frontend` and `frontend-id`",
        rule: "A backend's directory names its frontend's directory and domain.",
        source: "io/xenbus.h; docs/misc/xenstore-paths.pandoc",
    }
    "netif.nodes.mac" = macs {
        title: "the `mac` nodes of two interfaces",
        rule: "The toolstack gives each interface an address of one station.",
        source: "docs/misc/xenstore-paths.pandoc; docs/man/xl-network-configuration.5.pod, mac",
    }
    "netif.nodes.mtu" = mtu {
        title: "the frontend's `mtu` where there is one",
        rule: "The toolstack's mtu is a number of octets, at least what IPv4 needs.",
        source: "io/netif.h, 'MTU'",
    }
    "netif.nodes.before-initwait" = before_initwait {
        title: "the features of a backend in InitWait",
        rule: "A backend's features are there when its state says InitWait.",
        source: "io/xenbus.h, XenbusStateInitWait",
    }
    "netif.nodes.same-after-reconnection" = same_again {
        title: "what the backend says in a second connection",
        rule: "A backend's features are its own, not a connection's.",
        source: "io/netif.h, 'feature-*'",
    }
    "netif.nodes.not-ours-to-write" = not_ours {
        title: "a write into the backend's directory",
        rule: "A frontend's domain can read its backend's directory and cannot write it.",
        source: "docs/misc/xenstore-paths.pandoc, permissions of device directories",
    }
}

/// The features of netif.h that are 0 or 1.
const FEATURES: [&str; 10] = [
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-ipv6-csum-offload",
    "feature-no-csum-offload",
    "feature-rx-copy",
    "feature-rx-flip",
    "feature-multicast-control",
    "feature-dynamic-multicast-control",
    "feature-ctrl-ring",
];

async fn rx_copy(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    ensure_eq!(net.feature("feature-rx-copy").await?, 1, "feature-rx-copy");
    Ok(())
}

async fn no_rx_flip(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    ensure_eq!(net.feature("feature-rx-flip").await?, 0, "feature-rx-flip");
    Ok(())
}

async fn booleans(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    for which in [Which::Sender, Which::Receiver] {
        for key in FEATURES {
            if let Some(text) = net.device(which).read_back(key).await? {
                ensure!(matches!(text.trim(), "0" | "1"), "{key} is {text:?}");
            }
        }
    }
    Ok(())
}

/// Where the backend has `feature` it has `other`.
async fn implies(env: &mut Env, feature: &str, other: &str) -> Verdict {
    let mut net = Net::prepare(env).await?;
    if net.feature(feature).await? > 0 {
        ensure_eq!(net.feature(other).await?, 1, "{other} of a backend with {feature}");
    }
    Ok(())
}

async fn gso_needs_sg(env: &mut Env) -> Verdict {
    implies(env, "feature-gso-tcpv4", "feature-sg").await?;
    implies(env, "feature-gso-tcpv6", "feature-sg").await
}

async fn gso_needs_csum(env: &mut Env) -> Verdict {
    implies(env, "feature-gso-tcpv6", "feature-ipv6-csum-offload").await
}

async fn split(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    let text = net.device(Which::Sender).read_back("feature-split-event-channels").await?;
    let known = text.as_ref().is_none_or(|text| matches!(text.trim(), "0" | "1"));
    ensure!(known, "feature-split-event-channels is {text:?}");
    Ok(())
}

async fn max_queues(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    let mut device = net.device(Which::Sender);
    if device.read_back("multi-queue-max-queues").await?.is_some() {
        let queues: u32 = device.number_back("multi-queue-max-queues").await?;
        ensure!(queues > 0, "multi-queue-max-queues is {queues}");
    }
    Ok(())
}

async fn dynamic(env: &mut Env) -> Verdict {
    implies(env, "feature-dynamic-multicast-control", "feature-multicast-control").await
}

async fn ctrl_ring(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    let text = net.device(Which::Sender).read_back("feature-ctrl-ring").await?;
    require!(text.is_some(), "the backend has no control ring");
    ensure_eq!(text.as_deref().map(str::trim), Some("1"), "feature-ctrl-ring");
    Ok(())
}

async fn carrier(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let text = net.device(Which::Sender).read_back("carrier").await?;
    ensure!(text.as_ref().is_none_or(|text| matches!(text.trim(), "0" | "1")), "carrier is {text:?}");
    net.close().await
}

async fn frontend(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    let mut device = net.device(Which::Sender);
    let frontend = device.read_back("frontend").await?.unwrap_or_default();
    let ends = alloc::format!("/{}", device.front);
    ensure!(frontend.ends_with(&ends), "the backend's frontend is {frontend:?}, is to end in {ends:?}");
    let id = device.read_back("frontend-id").await?;
    let home = frontend.strip_suffix(&ends).unwrap_or_default();
    ensure_eq!(id.as_deref(), home.rsplit('/').next(), "the backend's frontend-id");
    Ok(())
}

async fn macs(env: &mut Env) -> Verdict {
    let net = Net::prepare(env).await?;
    let (one, other) = (net.sender.mac, net.receiver.mac);
    ensure!(one != other, "both interfaces have the address {one:x?}");
    for mac in [one, other] {
        ensure!(mac[0] & 1 == 0 && mac != [0; 6], "the address {mac:x?} is no station's");
    }
    Ok(())
}

async fn mtu(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    let mut device = net.device(Which::Sender);
    let path = alloc::format!("{}/mtu", device.front);
    let text = device.store()?.read(&path).await?.ok();
    if let Some(text) = text {
        let mtu = text.trim().parse::<u32>().ok();
        ensure!(mtu.is_some_and(|mtu| (68..=65_535).contains(&mtu)), "mtu is {text:?}");
    }
    Ok(())
}

async fn before_initwait(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    let mut device = net.device(Which::Sender);
    ensure_eq!(device.state().await?, ring_abi::io::xenbus::XenbusState::InitWait, "the backend's state");
    let text = device.read_back("feature-rx-copy").await?;
    ensure!(text.is_some(), "feature-rx-copy is missing in InitWait");
    Ok(())
}

async fn same_again(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    let mut first = None;
    for _ in 0..2 {
        let mut now = alloc::vec::Vec::new();
        for key in FEATURES {
            now.push((key, net.device(Which::Sender).read_back(key).await?));
        }
        match &first {
            None => first = Some(now),
            Some(first) => ensure_eq!(&now, first, "the features"),
        }
        net.join(Which::Sender, &Options::default()).await?;
        net.reset(Which::Sender).await?;
    }
    Ok(())
}

async fn not_ours(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    let mut device = net.device(Which::Sender);
    let before = device.read_back("feature-sg").await?;
    for key in ["feature-sg", "state", "conformance"] {
        let path = alloc::format!("{}/{key}", device.back);
        ensure!(device.store()?.write(&path, "7").await?.is_err(), "the frontend writes {path}");
    }
    ensure_eq!(device.read_back("feature-sg").await?, before, "feature-sg");
    Ok(())
}
