//! The control ring: its messages, and those about hashes.

use ring_abi::io::netif::*;

use super::front::{Net, Options, Which};
use crate::shared::Granted;
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.control.connects" = connects {
        title: "a frontend with a control ring",
        rule: "A frontend gives a backend its control ring by ctrl-ring-ref and event-channel-ctrl.",
        source: "io/netif.h, 'Control ring'",
    }
    "netif.control.no-port" = no_port {
        title: "ctrl-ring-ref without event-channel-ctrl",
        rule: "A backend does not use a control ring that it was told half of; the queues work, or nothing does.",
        source: "io/netif.h, 'Control ring'",
    }
    "netif.control.id-echo" = id_echo {
        title: "the ids 0, 1, 32768 and 65535",
        rule: "A control response has its request's id and type.",
        source: "io/netif.h, struct xen_netif_ctrl_response",
    }
    "netif.control.unknown-types" = unknown {
        title: "the types 0, 11 and 65535",
        rule: "A request of a type that the backend does not know is answered with NOT_SUPPORTED.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_INVALID, XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED",
    }
    "netif.control.many" = many {
        title: "three hundred requests, one at a time",
        rule: "The control ring is balanced: one response for each request.",
        source: "io/netif.h, 'Control ring'",
    }
    "netif.control.full" = full {
        title: "as many requests at once as the ring has slots",
        rule: "The control ring is balanced: one response for each request, in any order.",
        source: "io/netif.h, 'Control ring'; io/ring.h, __RING_SIZE",
    }
    "netif.control.beside-traffic" = beside {
        title: "control requests between frames",
        rule: "The control ring is a ring of its own.",
        source: "io/netif.h, 'Control ring'",
    }
    "netif.control.algorithms" = algorithms {
        title: "the algorithms NONE and TOEPLITZ",
        rule: "SET_HASH_ALGORITHM selects an algorithm, NONE disables hashing.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM",
    }
    "netif.control.algorithm-unknown" = algorithm_unknown {
        title: "the algorithms 2 and 2^32-1",
        rule: "An algorithm that is not supported is INVALID_PARAMETER.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM",
    }
    "netif.control.flags-need-algorithm" = flags_need {
        title: "GET_HASH_FLAGS and SET_HASH_FLAGS before an algorithm was chosen",
        rule: "A valid hash algorithm must be selected before these operations can succeed.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, NOTE; XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, NOTE",
    }
    "netif.control.flags-get" = flags_get {
        title: "the types of hash that the backend supports",
        rule: "GET_HASH_FLAGS gives types that the header has, at least one.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS",
    }
    "netif.control.flags-each" = flags_each {
        title: "each supported type of hash, all of them, and none",
        rule: "SET_HASH_FLAGS takes any of the supported types, and zero disables hashing.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS",
    }
    "netif.control.flags-unknown" = flags_unknown {
        title: "bits that are no type of hash",
        rule: "A flag value that is invalid or unsupported is INVALID_PARAMETER.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS",
    }
    "netif.control.key" = key {
        title: "keys of 0, 1, 39 and 40 octets",
        rule: "SET_HASH_KEY takes a key from the beginning of a page; one of size zero clears the key.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY",
    }
    "netif.control.key-too-long" = key_long {
        title: "keys of 4097 and 2^32-1 octets",
        rule: "A key larger than a page, and so than any backend supports, is BUFFER_OVERFLOW or of invalid size.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY",
    }
    "netif.control.key-read-only" = key_read_only {
        title: "a key in a page granted for reading alone",
        rule: "The key's grant may be read-only.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, NOTE",
    }
    "netif.control.key-not-granted" = key_not_granted {
        title: "a key in a page that was not granted",
        rule: "A key that cannot be read is not set: the status is no success.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY",
    }
    "netif.control.key-page-free" = key_page_free {
        title: "the key's page after the response",
        rule: "The grant must remain valid until the response, and no longer.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, NOTE",
    }
}

/// What the control ring says when all is well.
pub const SUCCESS: u32 = XEN_NETIF_CTRL_STATUS_SUCCESS;
/// All types of hash.
pub const KINDS: u32 = XEN_NETIF_CTRL_HASH_TYPE_IPV4
    | XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP
    | XEN_NETIF_CTRL_HASH_TYPE_IPV6
    | XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP;

/// A net whose sender has a control ring, and `queues` queues.
pub async fn with_control(env: &mut Env, queues: u32) -> Verdict<Net<'_>> {
    let mut net = Net::prepare(env).await?;
    net.needs("feature-ctrl-ring").await?;
    let most = net.feature("multi-queue-max-queues").await?.max(1);
    require!(most >= queues, "the backend has {most} queues");
    net.join(Which::Receiver, &Options::default()).await?;
    net.join(Which::Sender, &Options { control: true, queues, ..Options::default() }).await?;
    Ok(net)
}

/// Asks for what must have `status`.
pub async fn status(net: &mut Net<'_>, kind: u16, data: [u32; 3], status: u32) -> Verdict<u32> {
    let (got, value) = net.sender.control(kind, data).await?;
    ensure_eq!(got, status, "status of control request {kind} {data:x?}");
    Ok(value)
}

/// The same, of a message that the backend may not have at all.
pub async fn supported(net: &mut Net<'_>, kind: u16, data: [u32; 3], status: u32) -> Verdict<u32> {
    let (got, value) = net.sender.control(kind, data).await?;
    require!(got != XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, "the backend has no control request {kind}");
    ensure_eq!(got, status, "status of control request {kind} {data:x?}");
    Ok(value)
}

/// Chooses the Toeplitz algorithm.
pub async fn toeplitz(net: &mut Net<'_>) -> Verdict {
    let algorithm = XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ;
    supported(net, XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, [algorithm, 0, 0], SUCCESS).await?;
    Ok(())
}

async fn connects(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    net.sender.control(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3]).await?;
    net.goes_on().await?;
    net.close().await
}

async fn no_port(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.needs("feature-ctrl-ring").await?;
    net.reset(Which::Sender).await?;
    let options = Options { control: true, ..Options::without("event-channel-ctrl") };
    if net.join(Which::Sender, &options).await.is_ok() {
        let mark = net.mark()?;
        net.sender.put(&mark);
        net.sender.tx().publish();
        pvrt::executor::time::sleep(super::REFUSAL_NS).await;
        if net.sender.tx().waiting() > 0 {
            ensure!(net.receive().await?.bytes == mark.bytes, "another frame");
        }
    }
    net.again(&Options::default()).await?;
    net.close().await
}

async fn id_echo(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    let Some(ring) = &mut net.sender.control else { return Ok(()) };
    for id in [0, 1, 0x8000, u16::MAX] {
        let r#type = XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE;
        ring.push(&XenNetifCtrlRequest { id, r#type, data: [0; 3] });
        ring.publish();
        let (_, response) = ring.response::<XenNetifCtrlResponse>().await?;
        ensure_eq!((response.id, response.r#type), (id, r#type), "id and type of a control response");
    }
    net.close().await
}

async fn unknown(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    for kind in [XEN_NETIF_CTRL_TYPE_INVALID, 11, u16::MAX] {
        status(&mut net, kind, [1, 2, 3], XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED).await?;
    }
    net.close().await
}

async fn many(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    for _ in 0..300 {
        net.sender.control(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3]).await?;
    }
    net.close().await
}

async fn full(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    let Some(ring) = &mut net.sender.control else { return Ok(()) };
    let mut open = alloc::collections::BTreeSet::new();
    for id in 0..ring::CTRL_SLOTS as u16 {
        let r#type = XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE;
        ring.push(&XenNetifCtrlRequest { id, r#type, data: [0; 3] });
        open.insert(id);
    }
    ring.publish();
    while !open.is_empty() {
        let (_, response) = ring.response::<XenNetifCtrlResponse>().await?;
        ensure!(open.remove(&response.id), "a second response to {}", response.id);
    }
    net.close().await
}

async fn beside(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    for _ in 0..20 {
        net.goes_on().await?;
        net.sender.control(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3]).await?;
    }
    net.close().await
}

async fn algorithms(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    for _ in 0..2 {
        toeplitz(&mut net).await?;
        let none = XEN_NETIF_CTRL_HASH_ALGORITHM_NONE;
        status(&mut net, XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, [none, 0, 0], SUCCESS).await?;
    }
    net.goes_on().await?;
    net.close().await
}

async fn algorithm_unknown(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    for algorithm in [2, u32::MAX] {
        let data = [algorithm, 0, 0];
        let wanted = XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER;
        supported(&mut net, XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, data, wanted).await?;
    }
    net.close().await
}

async fn flags_need(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    for (kind, flags) in
        [(XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, 0), (XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, KINDS)]
    {
        let (got, _) = net.sender.control(kind, [flags, 0, 0]).await?;
        ensure!(got != SUCCESS, "control request {kind} succeeds without an algorithm");
    }
    net.close().await
}

/// The types of hash that the backend supports.
pub async fn kinds(net: &mut Net<'_>) -> Verdict<u32> {
    toeplitz(net).await?;
    status(net, XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, [0; 3], SUCCESS).await
}

async fn flags_get(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    let kinds = kinds(&mut net).await?;
    ensure!(kinds != 0 && kinds & !KINDS == 0, "supported types of hash: {kinds:#x}");
    net.close().await
}

async fn flags_each(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    let kinds = kinds(&mut net).await?;
    for flags in (0..4).map(|bit| 1 << bit & kinds).chain([kinds, 0]) {
        status(&mut net, XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, [flags, 0, 0], SUCCESS).await?;
        net.goes_on().await?;
    }
    net.close().await
}

async fn flags_unknown(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    toeplitz(&mut net).await?;
    for flags in [0x10, 0x8000_0000, u32::MAX] {
        let wanted = XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER;
        status(&mut net, XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, [flags, 0, 0], wanted).await?;
    }
    net.close().await
}

/// Sets a key of `len` octets from a page.
async fn set_key(net: &mut Net<'_>, len: u32, readonly: bool, wanted: u32) -> Verdict<Granted> {
    let page = Granted::new(net.sender.dom, 1, readonly)?;
    page.bytes().fill(0, 64, 0x6d);
    let data = [page.gref(0), len, 0];
    supported(net, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, data, wanted).await?;
    Ok(page)
}

async fn key(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    toeplitz(&mut net).await?;
    for len in [0, 1, 39, 40, 0] {
        set_key(&mut net, len, true, SUCCESS).await?;
    }
    net.close().await
}

async fn key_long(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    toeplitz(&mut net).await?;
    let key = Granted::new(net.sender.dom, 1, true)?;
    for len in [4097, u32::MAX] {
        let (got, _) = net.sender.control(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, [key.gref(0), len, 0]).await?;
        let refused = [XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER, XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW];
        ensure!(refused.contains(&got), "status {got} of a key of {len} octets");
    }
    net.close().await
}

async fn key_read_only(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    toeplitz(&mut net).await?;
    set_key(&mut net, 40, true, SUCCESS).await?;
    set_key(&mut net, 40, false, SUCCESS).await?;
    net.close().await
}

async fn key_not_granted(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    toeplitz(&mut net).await?;
    for gref in [7, 4_000_000, u32::MAX] {
        let (got, _) = net.sender.control(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, [gref, 40, 0]).await?;
        ensure!(got != SUCCESS, "a key in a page that was not granted is set");
    }
    net.close().await
}

async fn key_page_free(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    toeplitz(&mut net).await?;
    let page = set_key(&mut net, 40, true, SUCCESS).await?;
    ensure!(!page.in_use(), "the key's page is still in use after the response");
    net.close().await
}
