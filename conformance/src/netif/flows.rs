//! Which packets have which hash.

use alloc::vec::Vec;

use ring_abi::io::netif::*;

use super::control::{KINDS, SUCCESS, status, supported};
use super::front::frames::{self, Kind};
use super::front::{Made, Net, gso, hash};
use super::hashes::{TCP4, UDP4, by_the_header, deliver, deliver_made, hash_of, hashing};
use crate::shared::Granted;
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.hash.udp-over-ipv6" = udp6 {
        title: "the hash of a UDP packet over IPv6",
        rule: "XEN_NETIF_CTRL_HASH_TYPE_IPV6 is over both addresses, 32 bytes.",
        source: "io/netif.h, _XEN_NETIF_CTRL_HASH_TYPE_IPV6",
    }
    "netif.hash.tcp-over-ipv6" = tcp6 {
        title: "the hash of a TCP packet over IPv6",
        rule: "XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP is over both addresses and both ports, 36 bytes.",
        source: "io/netif.h, _XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP",
    }
    "netif.hash.tcp-by-addresses-alone" = tcp_by_addresses {
        title: "TCP packets where only the types without ports are enabled",
        rule: "The maximal type is chosen of those that the frontend set: IPV4 for TCP where IPV4_TCP is not set.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS",
    }
    "netif.hash.type-not-enabled" = not_enabled {
        title: "packets over IPv4 where only the types of IPv6 are enabled",
        rule: "Only the types of hash that the frontend set are calculated: there is no hash of another packet.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS",
    }
    "netif.hash.not-ip" = not_ip {
        title: "a frame that is not IP",
        rule: "Each type of hash is of an IP packet: another frame has none.",
        source: "io/netif.h, 'Hash types'",
    }
    "netif.hash.fragment" = fragment {
        title: "the first fragment of a TCP packet",
        rule: "The parts of one packet have one hash, so a fragment's is over the addresses.",
        source: "io/netif.h, _XEN_NETIF_CTRL_HASH_TYPE_IPV4; XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS",
    }
    "netif.hash.each-flow" = each_flow {
        title: "the hashes of twenty flows, twice",
        rule: "The hash is a function of the key and the packet's addresses and ports alone.",
        source: "io/netif.h, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ",
    }
    "netif.hash.short-key" = short_key {
        title: "keys of 1, 5 and 39 octets",
        rule: "Key octets that are not specified are zero.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, NOTE",
    }
    "netif.hash.key-replaced" = key_replaced {
        title: "a key of 40 octets, and then one of 2",
        rule: "A new key invalidates the one before: none of its octets is left.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, NOTE",
    }
    "netif.hash.key-is-copied" = key_copied {
        title: "the key's page rewritten after the response",
        rule: "The page must remain valid until the response; what is written there later is no key.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, NOTE",
    }
    "netif.hash.beside-gso" = beside_gso {
        title: "a large TCP packet to a frontend with hashing",
        rule: "A packet may have several extras: the segmentation and the hash, each once.",
        source: "io/netif.h, 'Extra Info'; XEN_NETIF_EXTRA_FLAG_MORE",
    }
    "netif.hash.flags-cleared" = flags_cleared {
        title: "a packet after SET_HASH_FLAGS 0",
        rule: "SET_HASH_FLAGS with zero disables hashing: there are no hash extras.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, NOTE",
    }
    "netif.hash.sent" = sent {
        title: "sent packets with hash extras of each type, and of types and algorithms that do not exist",
        rule: "A backend that supports hashing accepts hash extras in transmit packets.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_HASH",
    }
    "netif.hash.sent-is-not-believed" = not_believed {
        title: "a packet whose sender names another hash, to a frontend with hashing",
        rule: "Hashes that a frontend gets are of its own key and types: a sender's word is not passed on.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_HASH; XEN_NETIF_CTRL_TYPE_SET_HASH_KEY",
    }
}

const UDP6: Kind = Kind { v6: true, tcp: false };
const TCP6: Kind = Kind { v6: true, tcp: true };

fn test_key() -> Vec<u8> {
    (0..40).map(|at: u8| at.wrapping_mul(37) ^ 0x5a).collect()
}

/// A packet of a flow to the end that hashes.
fn packet(net: &Net<'_>, flow: u8, kind: Kind) -> Vec<u8> {
    frames::transport_of(flow, kind, net.sender.mac, net.receiver.mac, 100, flow, false)
}

/// Looks that a packet has the hash of `kind`, calculated with `key`.
async fn has_hash(net: &mut Net<'_>, bytes: &[u8], (kind, of): (u8, &[u8]), key: &[u8]) -> Verdict {
    let got = deliver(net, bytes, 0).await?;
    let wanted = (kind, 1, by_the_header(key, of));
    ensure_eq!(hash_of(&got)?, wanted, "type, algorithm and value of a hash");
    Ok(())
}

async fn set_key(net: &mut Net<'_>, key: &[u8]) -> Verdict<Granted> {
    let page = Granted::new(net.sender.dom, 1, true)?;
    page.bytes().write(0, key);
    let data = [page.gref(0), key.len() as u32, 0];
    supported(net, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, data, SUCCESS).await?;
    Ok(page)
}

async fn set_flags(net: &mut Net<'_>, flags: u32) -> Verdict {
    status(net, XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, [flags, 0, 0], SUCCESS).await?;
    Ok(())
}

/// A net with hashing of all types.
async fn all_kinds<'a>(env: &'a mut Env, key: &[u8]) -> Verdict<Net<'a>> {
    let mut net = hashing(env, 1, key).await?;
    let kinds = status(&mut net, XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, [0; 3], SUCCESS).await?;
    require!(kinds & KINDS == KINDS, "the backend hashes {kinds:#x} alone");
    Ok(net)
}

async fn udp6(env: &mut Env) -> Verdict {
    let key = test_key();
    let mut net = all_kinds(env, &key).await?;
    let bytes = packet(&net, 1, UDP6);
    has_hash(&mut net, &bytes, (2, frames::hashed(UDP6, &bytes, false)), &key).await?;
    net.close().await
}

async fn tcp6(env: &mut Env) -> Verdict {
    let key = test_key();
    let mut net = all_kinds(env, &key).await?;
    let bytes = packet(&net, 1, TCP6);
    has_hash(&mut net, &bytes, (3, frames::hashed(TCP6, &bytes, true)), &key).await?;
    net.close().await
}

async fn tcp_by_addresses(env: &mut Env) -> Verdict {
    let key = test_key();
    let mut net = all_kinds(env, &key).await?;
    set_flags(&mut net, XEN_NETIF_CTRL_HASH_TYPE_IPV4 | XEN_NETIF_CTRL_HASH_TYPE_IPV6).await?;
    for (kind, number) in [(TCP4, 0), (TCP6, 2)] {
        let bytes = packet(&net, 3, kind);
        has_hash(&mut net, &bytes, (number, frames::hashed(kind, &bytes, false)), &key).await?;
    }
    net.close().await
}

/// Looks that a frame comes without a hash.
async fn has_none(net: &mut Net<'_>, bytes: &[u8]) -> Verdict {
    let got = deliver(net, bytes, 0).await?;
    ensure_eq!(got.hash(), None, "the hash of a frame that has none");
    Ok(())
}

async fn not_enabled(env: &mut Env) -> Verdict {
    let mut net = all_kinds(env, &test_key()).await?;
    set_flags(&mut net, XEN_NETIF_CTRL_HASH_TYPE_IPV6 | XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP).await?;
    for kind in [UDP4, TCP4] {
        let bytes = packet(&net, 1, kind);
        has_none(&mut net, &bytes).await?;
    }
    net.close().await
}

async fn not_ip(env: &mut Env) -> Verdict {
    let mut net = hashing(env, 1, &test_key()).await?;
    let bytes = frames::plain(net.sender.mac, net.receiver.mac, 100, 7);
    has_none(&mut net, &bytes).await?;
    net.close().await
}

async fn fragment(env: &mut Env) -> Verdict {
    let key = test_key();
    let mut net = hashing(env, 1, &key).await?;
    let bytes = frames::first_fragment(packet(&net, 1, TCP4));
    has_hash(&mut net, &bytes, (0, frames::hashed(TCP4, &bytes, false)), &key).await?;
    net.close().await
}

async fn each_flow(env: &mut Env) -> Verdict {
    let key = test_key();
    let mut net = hashing(env, 1, &key).await?;
    for flow in (1..21).chain(1..21) {
        for (kind, number) in [(UDP4, 0), (TCP4, 1)] {
            let bytes = packet(&net, flow, kind);
            has_hash(&mut net, &bytes, (number, frames::hashed(kind, &bytes, kind.tcp)), &key).await?;
        }
    }
    net.close().await
}

async fn short_key(env: &mut Env) -> Verdict {
    let key = test_key();
    let mut net = hashing(env, 1, &key).await?;
    let bytes = packet(&net, 1, TCP4);
    for len in [1, 5, 39] {
        set_key(&mut net, &key[..len]).await?;
        // Behind its end a key counts as zeros.
        has_hash(&mut net, &bytes, (1, frames::hashed(TCP4, &bytes, true)), &key[..len]).await?;
    }
    net.close().await
}

async fn key_replaced(env: &mut Env) -> Verdict {
    let mut net = hashing(env, 1, &[0xff; 40]).await?;
    let bytes = packet(&net, 1, TCP4);
    set_key(&mut net, &[0x80, 1]).await?;
    has_hash(&mut net, &bytes, (1, frames::hashed(TCP4, &bytes, true)), &[0x80, 1]).await?;
    net.close().await
}

async fn key_copied(env: &mut Env) -> Verdict {
    let key = test_key();
    let mut net = hashing(env, 1, &[]).await?;
    let page = set_key(&mut net, &key).await?;
    page.bytes().fill(0, 64, 0xff);
    let bytes = packet(&net, 1, TCP4);
    has_hash(&mut net, &bytes, (1, frames::hashed(TCP4, &bytes, true)), &key).await?;
    net.close().await
}

async fn beside_gso(env: &mut Env) -> Verdict {
    let key = test_key();
    let mut net = hashing(env, 1, &key).await?;
    net.needs("feature-gso-tcpv4").await?;
    let bytes = frames::transport(TCP4, net.sender.mac, net.receiver.mac, 9000, 5, true);
    let made = Made::whole(net.receiver.dom, &bytes)?
        .with(gso(XEN_NETIF_GSO_TYPE_TCPV4, 1448))
        .flags(NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED);
    let got = deliver_made(&mut net, &made, 0).await?;
    ensure_eq!(got.gso(), Some((XEN_NETIF_GSO_TYPE_TCPV4, 1448)), "segmentation of a large packet");
    hash_of(&got)?;
    let wanted = (1, 1, by_the_header(&key, frames::hashed(TCP4, &bytes, true)));
    ensure_eq!((got.hash(), got.extras.len()), (Some(wanted), 2), "hash and extras of a large packet");
    net.close().await
}

async fn flags_cleared(env: &mut Env) -> Verdict {
    let mut net = hashing(env, 1, &test_key()).await?;
    set_flags(&mut net, 0).await?;
    let bytes = packet(&net, 1, TCP4);
    has_none(&mut net, &bytes).await?;
    net.close().await
}

async fn sent(env: &mut Env) -> Verdict {
    let mut net = hashing(env, 1, &test_key()).await?;
    for kind in [0, 1, 2, 3, 4, 200, 255] {
        let bytes = frames::transport(TCP4, net.receiver.mac, net.sender.mac, 100, kind, false);
        let mut extra = hash(kind, 0xdead_0000);
        for algorithm in [1, 0, 9] {
            extra.u[0] = u16::from_le_bytes([kind, algorithm]);
            let made = Made::whole(net.sender.dom, &bytes)?.with(extra);
            let got = net.passes("a packet with a hash", &made).await?;
            ensure_eq!(got.hash(), None, "the hash that a frontend without hashing is told");
        }
    }
    net.close().await
}

async fn not_believed(env: &mut Env) -> Verdict {
    let key = test_key();
    let mut net = hashing(env, 1, &key).await?;
    for (kind, number) in [(UDP4, 0), (TCP4, 1)] {
        let bytes = packet(&net, 1, kind);
        let made = Made::whole(net.receiver.dom, &bytes)?.with(hash(number, 0x1234_5678));
        let got = deliver_made(&mut net, &made, 0).await?;
        let wanted = (number, 1, by_the_header(&key, frames::hashed(kind, &bytes, kind.tcp)));
        ensure_eq!(hash_of(&got)?, wanted, "type, algorithm and value of a hash");
    }
    net.close().await
}
