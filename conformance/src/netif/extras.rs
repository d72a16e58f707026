//! Extra information on the transmit ring: where it stands, and how it is answered.

use ring_abi::io::netif::*;

use super::front::frames::{self, Kind};
use super::front::{Made, Net, gso, hash, multicast};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.extra.gso-behind-first" = gso_behind_first {
        title: "a GSO extra behind the first slot",
        rule: "Extra information stands behind a frame's first request where its flags have NETTXF_extra_info.",
        source: "io/netif.h, 'Guest transmit', Extra 1",
    }
    "netif.extra.gso-with-pieces" = gso_with_pieces {
        title: "a GSO extra between the first piece and three others",
        rule: "Extra information stands between the first piece and the second.",
        source: "io/netif.h, 'Guest transmit', Extra 1, Fragment N",
    }
    "netif.extra.answered-with-null" = null {
        title: "the answers to a frame with extra information",
        rule: "A slot of extra information is answered with NETIF_RSP_NULL.",
        source: "io/netif.h, NETIF_RSP_NULL",
    }
    "netif.extra.null-of-refused" = null_of_refused {
        title: "the answers to a refused frame with extra information",
        rule: "A slot of extra information is answered with NETIF_RSP_NULL, whatever comes of its frame.",
        source: "io/netif.h, NETIF_RSP_NULL",
    }
    "netif.extra.hash" = hash_extra {
        title: "a hash extra of each kind",
        rule: "A backend that supports Toeplitz hashing accepts hash extras in transmit packets.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_HASH",
    }
    "netif.extra.hash-values" = hash_values {
        title: "hash extras with the values 0, 1, 2^31 and 2^32-1",
        rule: "A hash that a frontend tells is any number, and changes nothing in the frame.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_HASH, value",
    }
    "netif.extra.hash-odd" = hash_odd {
        title: "hash extras with kinds and algorithms that are none",
        rule: "What a frontend says of a hash is advice: the frame is answered and the ring stays in order.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_HASH, htype, alg",
    }
    "netif.extra.two" = two {
        title: "a GSO extra and a hash extra",
        rule: "Extra information goes on where XEN_NETIF_EXTRA_FLAG_MORE is set.",
        source: "io/netif.h, XEN_NETIF_EXTRA_FLAG_MORE",
    }
    "netif.extra.two-other-order" = two_other_order {
        title: "a hash extra and a GSO extra",
        rule: "Extra information stands in any order.",
        source: "io/netif.h, 'Guest transmit', Extra N",
    }
    "netif.extra.same-twice" = same_twice {
        title: "two GSO extras",
        rule: "Of extra information that comes twice the frame has one; both slots are answered.",
        source: "io/netif.h, XEN_NETIF_EXTRA_FLAG_MORE",
    }
    "netif.extra.flags-behind" = extra_flag_behind {
        title: "NETTXF_extra_info in a piece behind the first",
        rule: "Extra information follows the first piece alone.",
        source: "io/netif.h, 'Guest transmit', Fragment N, flags = 0",
    }
    "netif.extra.looks-like-a-request" = looks_like {
        title: "an extra whose bytes would be a request with more_data",
        rule: "A slot of extra information is no request, whatever its bytes.",
        source: "io/netif.h, 'Guest transmit', 'flags on preceding extras are not relevant here'",
    }
    "netif.extra.across-the-end" = across_end {
        title: "two hundred frames of a piece, an extra and two pieces",
        rule: "A frame's slots follow each other by index, modulo the ring's size.",
        source: "io/ring.h, RING_GET_REQUEST",
    }
    "netif.extra.bad-gref-with-extra" = bad_gref {
        title: "a bad grant in a frame with an extra",
        rule: "A request that is refused takes its extra information along.",
        source: "io/netif.h, NETIF_RSP_ERROR, NETIF_RSP_NULL",
    }
    "netif.extra.multicast-sends-nothing" = multicast_nothing {
        title: "requests with multicast extras that would be good frames",
        rule: "A request with a multicast extra is a dummy: nothing is transmitted.",
        source: "io/netif.h, 'dummy transmit requests containing XEN_NETIF_EXTRA_TYPE_MCAST_{ADD,DEL}'",
    }
    "netif.extra.multicast-without-page" = multicast_no_page {
        title: "a multicast extra whose request names no page",
        rule: "A dummy request's page is not looked at.",
        source: "io/netif.h, 'dummy transmit requests'",
    }
}

/// A TCP frame of one segment, over IPv4.
fn segment(net: &Net<'_>, len: usize, seed: u8) -> Verdict<Made> {
    let kind = Kind { v6: false, tcp: true };
    let bytes = frames::transport(kind, net.receiver.mac, net.sender.mac, len, seed, true);
    let made = Made::whole(net.sender.dom, &bytes)?;
    Ok(made.flags(NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED))
}

/// Sends a frame whose checksum may be completed on its way.
async fn passes(net: &mut Net<'_>, made: &Made) -> Verdict {
    let kind = Kind { v6: false, tcp: true };
    let got = net.carry(made).await?;
    let bytes = frames::without_checksum(kind, &got.bytes);
    super::front::same("a TCP frame", &bytes, &frames::without_checksum(kind, &made.bytes))
}

const V4: u8 = XEN_NETIF_GSO_TYPE_TCPV4;

/// A net whose backend takes large TCP packets.
async fn with_gso(env: &mut Env) -> Verdict<Net<'_>> {
    let mut net = Net::usual(env).await?;
    net.needs("feature-gso-tcpv4").await?;
    Ok(net)
}

async fn gso_behind_first(env: &mut Env) -> Verdict {
    let mut net = with_gso(env).await?;
    let made = segment(&net, 1000, 1)?.with(gso(V4, 1448));
    passes(&mut net, &made).await?;
    net.close().await
}

/// The frame in four pieces.
fn in_pieces(net: &Net<'_>, made: &Made) -> Verdict<Made> {
    let mut cut = Made::cut(net.sender.dom, &made.bytes, 200, &[0, 0, 0, 0])?;
    cut.slots[0].flags |= made.slots[0].flags;
    Ok(cut)
}

async fn gso_with_pieces(env: &mut Env) -> Verdict {
    let mut net = with_gso(env).await?;
    let made = segment(&net, 900, 2)?;
    let made = in_pieces(&net, &made)?.with(gso(V4, 1448));
    passes(&mut net, &made).await?;
    net.close().await
}

async fn null(env: &mut Env) -> Verdict {
    let mut net = with_gso(env).await?;
    let made = segment(&net, 300, 3)?.with(gso(V4, 1448));
    let answers = net.sender.ask(&made).await?;
    ensure_eq!((answers.nulls, answers.pieces.len()), (1, 1), "answers that say nothing, and others");
    ensure_eq!(answers.pieces[0].1, NETIF_RSP_OKAY, "the frame's status");
    net.receive().await?;
    net.close().await
}

async fn null_of_refused(env: &mut Env) -> Verdict {
    let mut net = with_gso(env).await?;
    let mut made = segment(&net, 300, 3)?.with(gso(V4, 1448));
    made.slots[0].size = 5;
    net.refused("what is no frame", &made).await?;
    net.close().await
}

/// Frames with a hash extra.
async fn hashes(env: &mut Env, extras: impl Iterator<Item = NetifExtraInfo>) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.needs("feature-ctrl-ring").await?;
    for (seed, extra) in extras.enumerate() {
        let made = net.made(200, seed as u8)?.with(extra);
        net.passes("a frame with a hash", &made).await?;
    }
    net.close().await
}

async fn hash_extra(env: &mut Env) -> Verdict {
    hashes(env, (0..4).map(|kind| hash(kind, 0x1234_5678))).await
}

async fn hash_values(env: &mut Env) -> Verdict {
    hashes(env, [0, 1, 1 << 31, u32::MAX].into_iter().map(|value| hash(0, value))).await
}

async fn hash_odd(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.needs("feature-ctrl-ring").await?;
    for (kind, algorithm) in [(4, 1), (31, 1), (255, 1), (0, 0), (0, 2), (0, 255)] {
        let extra = NetifExtraHash { algorithm, ..hash(kind, 5).as_hash() };
        let made = net.made(200, kind)?.with(extra);
        net.borne(&made).await?;
    }
    net.close().await
}

async fn two(env: &mut Env) -> Verdict {
    let mut net = with_gso(env).await?;
    net.needs("feature-ctrl-ring").await?;
    let made = segment(&net, 700, 5)?.with(gso(V4, 1448)).with(hash(1, 99));
    passes(&mut net, &made).await?;
    net.close().await
}

async fn two_other_order(env: &mut Env) -> Verdict {
    let mut net = with_gso(env).await?;
    net.needs("feature-ctrl-ring").await?;
    let made = segment(&net, 700, 6)?;
    let made = in_pieces(&net, &made)?.with(hash(1, 99)).with(gso(V4, 1448));
    passes(&mut net, &made).await?;
    net.close().await
}

async fn same_twice(env: &mut Env) -> Verdict {
    let mut net = with_gso(env).await?;
    let made = segment(&net, 700, 7)?.with(gso(V4, 1448)).with(gso(V4, 1448));
    passes(&mut net, &made).await?;
    net.close().await
}

async fn extra_flag_behind(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let mut made = net.cut(900, 300, &[0, 0, 0])?;
    made.slots[2].flags |= NETTXF_EXTRA_INFO;
    net.passes("a frame", &made).await?;
    net.close().await
}

async fn looks_like(env: &mut Env) -> Verdict {
    let mut net = with_gso(env).await?;
    // gso.features lies where a request has its flags, and 0xffff is every flag there is.
    let extra = NetifExtraGso { pad: 0xff, features: u16::MAX, ..gso(V4, 1448).as_gso() };
    let made = segment(&net, 700, 8)?.with(extra);
    let answers = net.sender.ask(&made).await?;
    ensure_eq!(answers.nulls, 1, "answers that say nothing");
    net.receive().await?;
    net.goes_on().await?;
    net.close().await
}

async fn across_end(env: &mut Env) -> Verdict {
    let mut net = with_gso(env).await?;
    for round in 0..200 {
        let made = segment(&net, 600 + round, round as u8)?;
        let made = Made::cut(net.sender.dom, &made.bytes, 250, &[0, 0, 0])?
            .flags(NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED)
            .with(gso(V4, 1448));
        passes(&mut net, &made).await?;
    }
    net.close().await
}

async fn bad_gref(env: &mut Env) -> Verdict {
    let mut net = with_gso(env).await?;
    let mut made = segment(&net, 700, 9)?.with(gso(V4, 1448));
    made.slots[0].gref = u32::MAX;
    net.refused("a frame in a page that is not there", &made).await?;
    net.close().await
}

const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 0x42];

async fn multicast_nothing(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.needs("feature-multicast-control").await?;
    for add in [true, false] {
        let made = net.made(200, 9)?.with(multicast(add, GROUP));
        let answers = net.sender.ask(&made).await?;
        ensure_eq!(answers.pieces[0].1, NETIF_RSP_OKAY, "the status of a dummy request");
        net.goes_on().await?;
    }
    net.close().await
}

async fn multicast_no_page(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.needs("feature-multicast-control").await?;
    for add in [true, false] {
        let mut made = net.made(60, 9)?.with(multicast(add, GROUP));
        (made.slots[0].gref, made.slots[0].offset, made.slots[0].size) = (u32::MAX, u16::MAX, 0);
        let answers = net.sender.ask(&made).await?;
        ensure_eq!(answers.pieces[0].1, NETIF_RSP_OKAY, "the status of a dummy request");
    }
    net.goes_on().await?;
    net.close().await
}
