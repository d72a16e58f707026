//! The table that maps hashes to queues, and what hashing does to frames.

use alloc::vec::Vec;

use ring_abi::io::netif::*;
use zerocopy::IntoBytes;

use super::control::{KINDS, SUCCESS, kinds, status, supported, toeplitz, with_control};
use super::front::frames::{self, Kind};
use super::front::{Got, Made, Net};
use crate::shared::Granted;
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.mapping.size-get" = size_get {
        title: "the largest table",
        rule: "GET_HASH_MAPPING_SIZE gives the most entries, or 0 where there is no table.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE",
    }
    "netif.mapping.size-set" = size_set {
        title: "tables of 0, 1 and the most entries",
        rule: "SET_HASH_MAPPING_SIZE takes up to as many entries as the backend supports; 0 is modular arithmetic.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE",
    }
    "netif.mapping.size-too-large" = size_large {
        title: "a table with one entry too many, and one with 2^32-1",
        rule: "A table size that is invalid is INVALID_PARAMETER.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE",
    }
    "netif.mapping.set-whole" = set_whole {
        title: "a whole table of zeros",
        rule: "SET_HASH_MAPPING sets entries from the beginning of a page.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
    }
    "netif.mapping.set-part" = set_part {
        title: "the last entry, and a run in the middle",
        rule: "A sub-table may be set at an offset.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, NOTE",
    }
    "netif.mapping.set-beyond" = set_beyond {
        title: "a sub-table that ends one entry behind the table",
        rule: "A table whose size is invalid is refused: nothing lies behind the table.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
    }
    "netif.mapping.set-wraps" = set_wraps {
        title: "offset 2^32-1 with two entries",
        rule: "The sum of offset and size does not wrap into the table.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
    }
    "netif.mapping.queue-out-of-range" = queue_range {
        title: "an entry that names a queue that is not there",
        rule: "Each mapping specifies one of the frontend's queues: content that does not is INVALID_PARAMETER.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, NOTE",
    }
    "netif.mapping.not-granted" = not_granted {
        title: "a table in a page that was not granted",
        rule: "A table that cannot be read is not set: the status is no success.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
    }
    "netif.mapping.steers" = steers {
        title: "a table whose entries all name one of two queues, and then the other",
        rule: "A packet goes to the queue that the table has at its hash.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
    }
    "netif.hash.told" = told {
        title: "the hash extra of a received UDP packet",
        rule: "Hash extras that a frontend gets are of the type and the algorithm that it chose.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_HASH",
    }
    "netif.hash.value" = value {
        title: "the hash of a packet, by a key whose sums are known",
        rule: "The Toeplitz hash is the sum of the key's 32-bit windows at the set bits of the buffer.",
        source: "io/netif.h, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ; 'Hash types'",
    }
    "netif.hash.tcp-is-maximal" = maximal {
        title: "the hash extra of a TCP packet with IPV4 and IPV4_TCP enabled",
        rule: "The maximal type of hash is chosen: IPV4_TCP for a TCP packet.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS",
    }
    "netif.hash.empty-key" = empty_key {
        title: "the hash of a packet without a key",
        rule: "With a key of size zero the calculated hash is always zero.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, NOTE",
    }
    "netif.hash.off-again" = off_again {
        title: "a packet after hashing was disabled",
        rule: "A frontend that has not enabled hashing gets no hash extras.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, NOTE; XEN_NETIF_EXTRA_TYPE_HASH",
    }
    "netif.hash.no-control-ring" = without {
        title: "a packet to a frontend without a control ring",
        rule: "A frontend that has not enabled hashing gets no hash extras.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_HASH",
    }
}

/// The most entries of a table, not 0.
pub(super) async fn most(net: &mut Net<'_>) -> Verdict<u32> {
    let most = supported(net, XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3], SUCCESS).await?;
    require!(most > 0, "the backend has no table");
    Ok(most)
}

pub(super) async fn set_size(net: &mut Net<'_>, size: u32, wanted: u32) -> Verdict {
    status(net, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, [size, 0, 0], wanted).await?;
    Ok(())
}

/// Sets a sub-table, and gives the status.
pub(super) async fn set(net: &mut Net<'_>, entries: &[u32], count: u32, offset: u32) -> Verdict<u32> {
    let page = Granted::new(net.sender.dom, 1, true)?;
    page.bytes().write(0, entries.as_bytes());
    let data = [page.gref(0), count, offset];
    Ok(net.sender.control(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, data).await?.0)
}

async fn size_get(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    supported(&mut net, XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3], SUCCESS).await?;
    net.close().await
}

async fn size_set(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    let most = most(&mut net).await?;
    for size in [1, most, 0] {
        set_size(&mut net, size, SUCCESS).await?;
    }
    net.close().await
}

async fn size_large(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    let most = most(&mut net).await?;
    for size in [most + 1, u32::MAX] {
        set_size(&mut net, size, XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER).await?;
    }
    net.close().await
}

async fn set_whole(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    let size = most(&mut net).await?.min(512);
    set_size(&mut net, size, SUCCESS).await?;
    let entries = alloc::vec![0; size as usize];
    ensure_eq!(set(&mut net, &entries, size, 0).await?, SUCCESS, "status of a whole table");
    net.close().await
}

async fn set_part(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    let size = most(&mut net).await?.min(64);
    set_size(&mut net, size, SUCCESS).await?;
    for (count, offset) in [(1, size - 1), (size / 2, size / 4), (1, 0)] {
        ensure_eq!(
            set(&mut net, &[0; 64], count, offset).await?,
            SUCCESS,
            "status of {count} entries at {offset}"
        );
    }
    net.close().await
}

/// A sub-table that does not lie in a table of eight entries.
async fn outside(env: &mut Env, count: u32, offset: u32) -> Verdict {
    let mut net = with_control(env, 1).await?;
    most(&mut net).await?;
    set_size(&mut net, 8, SUCCESS).await?;
    let got = set(&mut net, &[0; 16], count, offset).await?;
    let refused = [XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER, XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW];
    ensure!(refused.contains(&got), "status {got} of {count} entries at {offset} in a table of 8");
    net.close().await
}

async fn set_beyond(env: &mut Env) -> Verdict {
    outside(env, 9, 0).await?;
    outside(env, 1, 8).await?;
    outside(env, 2, 7).await
}

async fn set_wraps(env: &mut Env) -> Verdict {
    outside(env, 2, u32::MAX).await?;
    outside(env, u32::MAX, 2).await
}

async fn queue_range(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    most(&mut net).await?;
    set_size(&mut net, 8, SUCCESS).await?;
    for queue in [1, 64, u32::MAX] {
        let got = set(&mut net, &[0, 0, queue, 0], 4, 0).await?;
        ensure_eq!(got, XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER, "status of a table with queue {queue} of 1");
    }
    net.goes_on().await?;
    net.close().await
}

async fn not_granted(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    most(&mut net).await?;
    set_size(&mut net, 8, SUCCESS).await?;
    for gref in [7, 4_000_000, u32::MAX] {
        let (got, _) = net.sender.control(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, [gref, 4, 0]).await?;
        ensure!(got != SUCCESS, "a table in a page that was not granted is set");
    }
    net.close().await
}

pub(super) const UDP4: Kind = Kind { v6: false, tcp: false };
pub(super) const TCP4: Kind = Kind { v6: false, tcp: true };

/// Enables hashes of IPv4 with `key` for the end that has a control ring, and lets it receive.
pub(super) async fn hashing<'a>(env: &'a mut Env, queues: u32, key: &[u8]) -> Verdict<Net<'a>> {
    let mut net = with_control(env, queues).await?;
    let kinds = kinds(&mut net).await?;
    require!(kinds & 3 == 3, "the backend hashes no IPv4");
    status(&mut net, XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, [kinds & KINDS, 0, 0], SUCCESS).await?;
    let page = Granted::new(net.sender.dom, 1, true)?;
    page.bytes().write(0, key);
    let data = [page.gref(0), key.len() as u32, 0];
    supported(&mut net, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, data, SUCCESS).await?;
    Ok(net)
}

/// A packet to the end that has the control ring; received on `queue`.
async fn to_hashing(net: &mut Net<'_>, kind: Kind, queue: usize) -> Verdict<Got> {
    let bytes = frames::transport(kind, net.sender.mac, net.receiver.mac, 100, queue as u8, false);
    deliver(net, &bytes, queue).await
}

/// A frame to the end that has the control ring; received on `queue`.
pub(super) async fn deliver(net: &mut Net<'_>, bytes: &[u8], queue: usize) -> Verdict<Got> {
    let made = Made::whole(net.receiver.dom, bytes)?;
    deliver_made(net, &made, queue).await
}

/// The same of a frame that was made before.
pub(super) async fn deliver_made(net: &mut Net<'_>, made: &Made, queue: usize) -> Verdict<Got> {
    net.receiver.ask(made).await?;
    net.swap();
    let got = net.receive_on(queue).await;
    net.swap();
    let got = got?;
    super::front::same("a packet", &got.bytes, &made.bytes)?;
    Ok(got)
}

/// The hash that a frame has. A frontend is to accept hashes; a backend need not tell them, and Linux's xen-netback tells
/// none where there is one queue.
pub(super) fn hash_of(got: &Got) -> Verdict<(u8, u8, u32)> {
    let hash = got.hash();
    require!(hash.is_some(), "the backend tells no hashes");
    Ok(hash.unwrap_or_default())
}

async fn steers(env: &mut Env) -> Verdict {
    let mut net = hashing(env, 2, &[0x6d; 40]).await?;
    most(&mut net).await?;
    set_size(&mut net, 4, SUCCESS).await?;
    for queue in [0, 1, 0] {
        ensure_eq!(set(&mut net, &[queue; 4], 4, 0).await?, SUCCESS, "status of a table");
        to_hashing(&mut net, UDP4, queue as usize).await?;
        to_hashing(&mut net, TCP4, queue as usize).await?;
    }
    net.close().await
}

async fn told(env: &mut Env) -> Verdict {
    let mut net = hashing(env, 1, &[0x6d; 40]).await?;
    let got = to_hashing(&mut net, UDP4, 0).await?;
    let (kind, algorithm, _) = hash_of(&got)?;
    ensure_eq!((kind, algorithm), (0, 1), "type and algorithm of a UDP packet's hash");
    net.close().await
}

/// The Toeplitz hash, bit by bit as the header has it.
pub(super) fn by_the_header(key: &[u8], buffer: &[u8]) -> u32 {
    let bit = |bytes: &[u8], at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 != 0);
    let window = |from: usize| (from..from + 32).fold(0, |window, at| window << 1 | u32::from(bit(key, at)));
    (0..buffer.len() * 8).filter(|&at| bit(buffer, at)).fold(0, |hash, at| hash ^ window(at))
}

async fn value(env: &mut Env) -> Verdict {
    let key: Vec<u8> = (0..40).map(|at: u8| at.wrapping_mul(37) ^ 0x5a).collect();
    let mut net = hashing(env, 1, &key).await?;
    for (kind, bytes) in [(UDP4, 8), (TCP4, 12)] {
        let got = to_hashing(&mut net, kind, 0).await?;
        let (_, _, value) = hash_of(&got)?;
        // The addresses of both kinds, and the ports behind them, lie at one place.
        let wanted = by_the_header(&key, &got.bytes[frames::ETHERNET + 12..frames::ETHERNET + 12 + bytes]);
        ensure_eq!(value, wanted, "the hash of {kind:?}");
    }
    net.close().await
}

async fn maximal(env: &mut Env) -> Verdict {
    let mut net = hashing(env, 1, &[0x6d; 40]).await?;
    let got = to_hashing(&mut net, TCP4, 0).await?;
    ensure_eq!(hash_of(&got)?.0, 1, "the type of a TCP packet's hash");
    net.close().await
}

async fn empty_key(env: &mut Env) -> Verdict {
    let mut net = hashing(env, 1, &[]).await?;
    let got = to_hashing(&mut net, TCP4, 0).await?;
    ensure_eq!(hash_of(&got)?.2, 0, "the hash without a key");
    net.close().await
}

async fn off_again(env: &mut Env) -> Verdict {
    let mut net = hashing(env, 1, &[0x6d; 40]).await?;
    let none = XEN_NETIF_CTRL_HASH_ALGORITHM_NONE;
    status(&mut net, XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, [none, 0, 0], SUCCESS).await?;
    let got = to_hashing(&mut net, TCP4, 0).await?;
    ensure_eq!(got.hash(), None, "the hash extra though hashing is disabled");
    toeplitz(&mut net).await?;
    net.close().await
}

async fn without(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let bytes = frames::transport(TCP4, net.receiver.mac, net.sender.mac, 100, 1, false);
    let made = Made::whole(net.sender.dom, &bytes)?.with(super::front::hash(1, 77));
    require!(net.feature("feature-ctrl-ring").await? > 0, "the backend has no control ring");
    let got = net.passes("a packet", &made).await?;
    ensure!(got.extras.is_empty(), "extra information {:?}", got.extras);
    net.close().await
}
