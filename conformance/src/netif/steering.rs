//! Which queue a packet's hash sends the packet to.

use alloc::vec::Vec;

use ring_abi::io::netif::*;

use super::control::{SUCCESS, status};
use super::front::Net;
use super::front::frames;
use super::hashes::{TCP4, by_the_header, deliver, hashing, most, set, set_size};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.mapping.modular" = modular {
        title: "twenty flows to two queues without a table",
        rule: "With a table of size 0 the hash mapping is modular arithmetic.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, NOTE",
    }
    "netif.mapping.by-hash" = by_hash {
        title: "twenty flows to two queues by a table of seven entries",
        rule: "The hash, modulo the table's size, is the index of the entry that names the queue.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
    }
    "netif.mapping.new-table-is-zero" = new_table {
        title: "a table of ones, and then its size again",
        rule: "Setting the size invalidates the table: a new one is filled with zeros.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE",
    }
    "netif.mapping.part-keeps-the-rest" = part_keeps {
        title: "one entry of a table set anew",
        rule: "A new sub-table does not invalidate the table's data outside of its range.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, NOTE",
    }
    "netif.mapping.refused-changes-nothing" = refused {
        title: "a table whose last entry names a queue that is not there",
        rule: "A message that is INVALID_PARAMETER sets nothing: the table before stays.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
    }
    "netif.mapping.page-free" = page_free {
        title: "the table's page after the response, rewritten",
        rule: "The page must remain valid until the response, and no longer; what is written there later is no table.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, NOTE",
    }
    "netif.mapping.changed-under-load" = under_load {
        title: "the table set fifty times, with packets between",
        rule: "Each packet goes to the queue that the table has when the packet is steered.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
    }
    "netif.mapping.set-before-hashing" = before_hashing {
        title: "a table that is set before an algorithm is chosen",
        rule: "The table needs no algorithm, and counts once packets are hashed.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
    }
}

const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// A net whose end with a control ring has two queues, and hashes.
async fn two_queues(env: &mut Env) -> Verdict<Net<'_>> {
    hashing(env, 2, &KEY).await
}

/// Sends a packet of a flow, which must come by the queue that `choose` gives for its hash.
async fn comes_by(net: &mut Net<'_>, flow: u8, choose: impl Fn(u32) -> usize) -> Verdict<usize> {
    let bytes = frames::transport_of(flow, TCP4, net.sender.mac, net.receiver.mac, 60, flow, false);
    let queue = choose(by_the_header(&KEY, frames::hashed(TCP4, &bytes, true)));
    deliver(net, &bytes, queue).await?;
    Ok(queue)
}

/// Twenty flows, of which some must come by each queue.
async fn flows(net: &mut Net<'_>, choose: impl Fn(u32) -> usize) -> Verdict {
    let mut seen = Vec::new();
    for flow in 1..21 {
        seen.push(comes_by(net, flow, &choose).await?);
    }
    ensure!(seen.contains(&0) && seen.contains(&1), "the case's flows all have one queue");
    Ok(())
}

async fn table(net: &mut Net<'_>, entries: &[u32]) -> Verdict {
    set_size(net, entries.len() as u32, SUCCESS).await?;
    ensure_eq!(set(net, entries, entries.len() as u32, 0).await?, SUCCESS, "status of a table");
    Ok(())
}

async fn modular(env: &mut Env) -> Verdict {
    let mut net = two_queues(env).await?;
    set_size(&mut net, 0, SUCCESS).await?;
    flows(&mut net, |hash| hash as usize % 2).await?;
    net.close().await
}

async fn by_hash(env: &mut Env) -> Verdict {
    let mut net = two_queues(env).await?;
    require!(most(&mut net).await? >= 7, "the backend's table is short");
    let entries = [0, 1, 1, 0, 1, 0, 0];
    table(&mut net, &entries).await?;
    flows(&mut net, |hash| entries[hash as usize % 7] as usize).await?;
    net.close().await
}

async fn new_table(env: &mut Env) -> Verdict {
    let mut net = two_queues(env).await?;
    most(&mut net).await?;
    table(&mut net, &[1; 4]).await?;
    comes_by(&mut net, 1, |_| 1).await?;
    set_size(&mut net, 4, SUCCESS).await?;
    for flow in 1..9 {
        comes_by(&mut net, flow, |_| 0).await?;
    }
    net.close().await
}

async fn part_keeps(env: &mut Env) -> Verdict {
    let mut net = two_queues(env).await?;
    most(&mut net).await?;
    table(&mut net, &[1, 1, 0, 0]).await?;
    ensure_eq!(set(&mut net, &[1], 1, 2).await?, SUCCESS, "status of one entry");
    flows(&mut net, |hash| [1, 1, 1, 0][hash as usize % 4]).await?;
    net.close().await
}

async fn refused(env: &mut Env) -> Verdict {
    let mut net = two_queues(env).await?;
    most(&mut net).await?;
    table(&mut net, &[1, 0, 1, 0]).await?;
    for queue in [2, 0x1_0001, u32::MAX] {
        let got = set(&mut net, &[0, 1, 0, queue], 4, 0).await?;
        ensure_eq!(got, XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER, "status of a table with queue {queue} of 2");
        flows(&mut net, |hash| [1, 0, 1, 0][hash as usize % 4]).await?;
    }
    net.close().await
}

async fn page_free(env: &mut Env) -> Verdict {
    let mut net = two_queues(env).await?;
    most(&mut net).await?;
    set_size(&mut net, 2, SUCCESS).await?;
    let page = crate::shared::Granted::new(net.sender.dom, 1, true)?;
    page.bytes().write(0, zerocopy::IntoBytes::as_bytes(&[1u32, 0]));
    status(&mut net, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, [page.gref(0), 2, 0], SUCCESS).await?;
    ensure!(!page.in_use(), "the table's page is still in use after the response");
    page.bytes().fill(0, 8, 0xff);
    flows(&mut net, |hash| [1, 0][hash as usize % 2]).await?;
    net.close().await
}

async fn under_load(env: &mut Env) -> Verdict {
    let mut net = two_queues(env).await?;
    most(&mut net).await?;
    set_size(&mut net, 2, SUCCESS).await?;
    for round in 0..50u32 {
        let queue = round / 3 % 2;
        ensure_eq!(set(&mut net, &[queue; 2], 2, 0).await?, SUCCESS, "status of a table");
        comes_by(&mut net, round as u8 + 1, |_| queue as usize).await?;
    }
    net.close().await
}

async fn before_hashing(env: &mut Env) -> Verdict {
    let mut net = two_queues(env).await?;
    most(&mut net).await?;
    let none = XEN_NETIF_CTRL_HASH_ALGORITHM_NONE;
    status(&mut net, XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, [none, 0, 0], SUCCESS).await?;
    table(&mut net, &[1; 2]).await?;
    super::control::toeplitz(&mut net).await?;
    for flow in 1..5 {
        comes_by(&mut net, flow, |_| 1).await?;
    }
    net.close().await
}
