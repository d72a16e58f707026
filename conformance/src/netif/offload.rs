//! Checksums that are left to others, and TCP packets that are to be cut into segments.

use alloc::vec::Vec;

use ring_abi::io::netif::*;

use super::front::frames::{self, Field, Kind};
use super::front::{Got, Made, Net, Options, gso, same};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.checksum.complete-passes" = complete_passes {
        title: "TCP and UDP frames with their checksums, no flags",
        rule: "A frame without flags arrives as it is.",
        source: "io/netif.h, NETTXF_csum_blank",
    }
    "netif.checksum.blank-udp-v4" = blank_udp4 {
        title: "a UDP frame over IPv4 with its checksum blank",
        rule: "A checksum that arrives is complete, or is blank and called so by NETRXF_csum_blank.",
        source: "io/netif.h, NETTXF_csum_blank, NETRXF_csum_blank",
    }
    "netif.checksum.blank-tcp-v4" = blank_tcp4 {
        title: "a TCP frame over IPv4 with its checksum blank",
        rule: "A checksum that arrives is complete, or is blank and called so by NETRXF_csum_blank.",
        source: "io/netif.h, NETTXF_csum_blank, NETRXF_csum_blank",
    }
    "netif.checksum.blank-udp-v6" = blank_udp6 {
        title: "a UDP frame over IPv6 with its checksum blank",
        rule: "A backend with feature-ipv6-csum-offload takes blank checksums over IPv6.",
        source: "io/netif.h, 'feature-ipv6-csum-offload'",
    }
    "netif.checksum.blank-tcp-v6" = blank_tcp6 {
        title: "a TCP frame over IPv6 with its checksum blank",
        rule: "A backend with feature-ipv6-csum-offload takes blank checksums over IPv6.",
        source: "io/netif.h, 'feature-ipv6-csum-offload'",
    }
    "netif.checksum.blank-in-pieces" = blank_in_pieces {
        title: "a UDP frame with its checksum blank, cut behind 60 bytes and in its data",
        rule: "A frame's flags are its first request's, and hold for all its pieces.",
        source: "io/netif.h, 'Guest transmit', Fragment 1",
    }
    "netif.checksum.odd-lengths" = odd_lengths {
        title: "UDP frames with 0, 1, 2, 3 and 1471 bytes of data, checksums blank",
        rule: "A checksum is over all bytes, an odd one at the end with a zero behind.",
        source: "io/netif.h, NETTXF_csum_blank; RFC 1071",
    }
    "netif.checksum.blank-implies-validated" = implies_validated {
        title: "the flags of a frame that arrives with its checksum blank",
        rule: "A frame whose checksum is blank never left memory: its data counts as validated.",
        source: "io/netif.h, NETRXF_csum_blank, NETRXF_data_validated",
    }
    "netif.checksum.validated-alone" = validated_alone {
        title: "a frame with NETTXF_data_validated alone",
        rule: "data_validated says something of the checksum and changes nothing in the frame.",
        source: "io/netif.h, NETTXF_data_validated",
    }
    "netif.checksum.not-taken-v4" = not_taken_v4 {
        title: "a receiver with feature-no-csum-offload",
        rule: "A frontend that turned checksum offload off gets complete checksums over IPv4.",
        source: "io/netif.h, 'feature-no-csum-offload'",
    }
    "netif.checksum.not-taken-v6" = not_taken_v6 {
        title: "a receiver without feature-ipv6-csum-offload",
        rule: "Where feature-ipv6-csum-offload is missing, checksums over IPv6 are complete.",
        source: "io/netif.h, 'feature-ipv6-csum-offload'",
    }
    "netif.checksum.blank-of-no-protocol" = blank_nothing {
        title: "csum_blank in a frame that is neither TCP nor UDP",
        rule: "A request whose checksum nobody can complete is answered, and the ring stays in order.",
        source: "io/netif.h, NETTXF_csum_blank",
    }
    "netif.checksum.blank-cut-short" = blank_short {
        title: "csum_blank in a frame that ends within its IP or UDP header",
        rule: "A request whose checksum nobody can complete is answered, and the ring stays in order.",
        source: "io/netif.h, NETTXF_csum_blank",
    }
    "netif.gso.v4" = gso_v4 {
        title: "a TCP packet of four segments over IPv4",
        rule: "A large TCP packet arrives whole with its segments' size, or cut into segments of at most that.",
        source: "io/netif.h, 'feature-gso-tcpv4'; XEN_NETIF_EXTRA_TYPE_GSO",
    }
    "netif.gso.v6" = gso_v6 {
        title: "a TCP packet of four segments over IPv6",
        rule: "A large TCP packet arrives whole with its segments' size, or cut into segments of at most that.",
        source: "io/netif.h, 'feature-gso-tcpv6'; XEN_NETIF_EXTRA_TYPE_GSO",
    }
    "netif.gso.sizes" = gso_sizes {
        title: "segments of 100, 536, 1448 and 8948 bytes",
        rule: "The extra's size is the most bytes of payload in a segment.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_GSO, size",
    }
    "netif.gso.longest" = gso_longest {
        title: "TCP packets of nearly 64 KiB",
        rule: "A large TCP packet has up to XEN_NETIF_MAX_TX_SIZE bytes.",
        source: "io/netif.h, XEN_NETIF_MAX_TX_SIZE",
    }
    "netif.gso.one-segment" = one_segment {
        title: "a TCP packet no longer than one segment, with a GSO extra",
        rule: "A packet of one segment needs no cut.",
        source: "io/netif.h, XEN_NETIF_EXTRA_TYPE_GSO, size",
    }
    "netif.gso.not-taken-v4" = gso_not_taken_v4 {
        title: "a receiver without feature-gso-tcpv4",
        rule: "A frontend is not assumed to handle large TCP packets unless its feature says so: it gets segments.",
        source: "io/netif.h, 'feature-gso-tcpv4'",
    }
    "netif.gso.not-taken-v6" = gso_not_taken_v6 {
        title: "a receiver without feature-gso-tcpv6",
        rule: "A frontend is not assumed to handle large TCP packets unless its feature says so: it gets segments.",
        source: "io/netif.h, 'feature-gso-tcpv6'",
    }
    "netif.gso.no-sg" = gso_no_sg {
        title: "a receiver without feature-sg",
        rule: "A frontend without feature-sg gets frames of one slot.",
        source: "io/netif.h, 'Guest receive'; 'feature-gso-tcpv4'",
    }
}

const UDP4: Kind = Kind { v6: false, tcp: false };
const TCP4: Kind = Kind { v6: false, tcp: true };
const UDP6: Kind = Kind { v6: true, tcp: false };
const TCP6: Kind = Kind { v6: true, tcp: true };
const BLANK: u16 = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED;

fn frame(net: &Net<'_>, kind: Kind, len: usize, seed: u8, blank: bool) -> Vec<u8> {
    frames::transport(kind, net.receiver.mac, net.sender.mac, len, seed, blank)
}

/// A frame with its checksum blank.
fn blank(net: &Net<'_>, kind: Kind, len: usize, seed: u8) -> Verdict<Made> {
    Ok(Made::whole(net.sender.dom, &frame(net, kind, len, seed, true))?.flags(BLANK))
}

/// Looks that a frame that came is the one that was sent, with a checksum that is as its flags say.
fn is_right(kind: Kind, got: &Got, sent: &[u8]) -> Verdict {
    let wanted = frames::without_checksum(kind, sent);
    same("a frame", &frames::without_checksum(kind, &got.bytes), &wanted)?;
    let wanted = if got.flags & NETRXF_CSUM_BLANK == 0 { Field::Complete } else { Field::Blank };
    ensure_eq!(
        frames::field(kind, &got.bytes),
        wanted,
        "the checksum of a frame with flags {:#x}",
        got.flags
    );
    Ok(())
}

async fn complete_passes(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for kind in [UDP4, TCP4, UDP6, TCP6] {
        let made = Made::whole(net.sender.dom, &frame(&net, kind, 333, 1, false))?;
        let got = net.passes("a frame", &made).await?;
        ensure_eq!(got.flags & NETRXF_CSUM_BLANK, 0, "NETRXF_csum_blank of a complete frame");
    }
    net.close().await
}

/// A frame whose checksum is blank, of `lens` bytes of payload.
async fn blank_passes(env: &mut Env, kind: Kind, lens: &[usize]) -> Verdict {
    let mut net = Net::usual(env).await?;
    if kind.v6 {
        net.needs("feature-ipv6-csum-offload").await?;
    }
    for (seed, &len) in lens.iter().enumerate() {
        let made = blank(&net, kind, len, seed as u8)?;
        let got = net.carry(&made).await?;
        is_right(kind, &got, &made.bytes)?;
    }
    net.close().await
}

async fn blank_udp4(env: &mut Env) -> Verdict {
    blank_passes(env, UDP4, &[500]).await
}

async fn blank_tcp4(env: &mut Env) -> Verdict {
    blank_passes(env, TCP4, &[500]).await
}

async fn blank_udp6(env: &mut Env) -> Verdict {
    blank_passes(env, UDP6, &[500]).await
}

async fn blank_tcp6(env: &mut Env) -> Verdict {
    blank_passes(env, TCP6, &[500]).await
}

async fn odd_lengths(env: &mut Env) -> Verdict {
    blank_passes(env, UDP4, &[0, 1, 2, 3, 1471]).await
}

async fn blank_in_pieces(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for cut in [60, 100, 500] {
        let bytes = frame(&net, UDP4, 700, 2, true);
        let made = Made::pieces(net.sender.dom, &bytes, &[(0, cut), (0, bytes.len() - cut)])?.flags(BLANK);
        let got = net.carry(&made).await?;
        is_right(UDP4, &got, &bytes)?;
    }
    net.close().await
}

async fn implies_validated(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for kind in [UDP4, TCP4] {
        let made = blank(&net, kind, 600, 4)?;
        let got = net.carry(&made).await?;
        if got.flags & NETRXF_CSUM_BLANK != 0 {
            ensure!(got.flags & NETRXF_DATA_VALIDATED != 0, "flags {:#x} of a blank frame", got.flags);
        }
    }
    net.close().await
}

async fn validated_alone(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let bytes = frame(&net, UDP4, 500, 5, false);
    let made = Made::whole(net.sender.dom, &bytes)?.flags(NETTXF_DATA_VALIDATED);
    let got = net.passes("a frame", &made).await?;
    is_right(UDP4, &got, &bytes)?;
    net.close().await
}

/// Blank frames to a receiver that takes none.
async fn completed(env: &mut Env, options: &Options, kinds: &[Kind]) -> Verdict {
    let mut net = Net::receiving(env, options).await?;
    for &kind in kinds {
        for len in [0, 1, 700, 1401] {
            let made = blank(&net, kind, len, 6)?;
            let got = net.carry(&made).await?;
            ensure_eq!(got.flags & NETRXF_CSUM_BLANK, 0, "NETRXF_csum_blank to a frontend that takes none");
            is_right(kind, &got, &made.bytes)?;
        }
    }
    net.close().await
}

async fn not_taken_v4(env: &mut Env) -> Verdict {
    let options = Options::with("feature-no-csum-offload", 1).and("feature-gso-tcpv4", 0);
    completed(env, &options, &[UDP4, TCP4]).await
}

async fn not_taken_v6(env: &mut Env) -> Verdict {
    let options = Options::with("feature-ipv6-csum-offload", 0).and("feature-gso-tcpv6", 0);
    completed(env, &options, &[UDP6, TCP6]).await
}

async fn blank_nothing(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = net.made(200, 7)?.flags(BLANK);
    net.borne(&made).await?;
    net.close().await
}

async fn blank_short(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for len in [15, 20, 33, 34, 38, 41] {
        let mut bytes = frame(&net, UDP4, 10, 8, true);
        bytes.truncate(len);
        let made = Made::whole(net.sender.dom, &bytes)?.flags(BLANK);
        net.borne(&made).await?;
    }
    net.close().await
}

/// A large packet of `len` bytes of payload in segments of `size`.
fn large(net: &Net<'_>, kind: Kind, len: usize, size: u16) -> Verdict<Made> {
    let number = if kind.v6 { XEN_NETIF_GSO_TYPE_TCPV6 } else { XEN_NETIF_GSO_TYPE_TCPV4 };
    Ok(blank(net, kind, len, size as u8)?.with(gso(number, size)))
}

/// Receives a large packet, whole or in segments; looks that the payload is all there, and gives the number of frames.
async fn gathered(net: &mut Net<'_>, kind: Kind, made: &Made, size: u16) -> Verdict<(usize, Vec<Got>)> {
    let wanted = &made.bytes[kind.headers()..];
    let (mut payload, mut parts) = (Vec::new(), Vec::new());
    while payload.len() < wanted.len() {
        let got = net.receive().await?;
        ensure!(got.bytes.len() > kind.headers(), "a segment of {} bytes", got.bytes.len());
        let here = &got.bytes[kind.headers()..];
        match got.gso() {
            Some((number, cut)) => {
                let wanted = if kind.v6 { XEN_NETIF_GSO_TYPE_TCPV6 } else { XEN_NETIF_GSO_TYPE_TCPV4 };
                ensure_eq!((number, cut), (wanted, size), "protocol and size of segments to cut");
            }
            None => {
                ensure!(here.len() <= size.into(), "a segment of {} bytes, is to have {size}", here.len())
            }
        }
        let blank = got.flags & NETRXF_CSUM_BLANK != 0;
        let right = if blank { Field::Blank } else { Field::Complete };
        ensure_eq!(frames::field(kind, &got.bytes), right, "the checksum of a segment");
        payload.extend_from_slice(here);
        parts.push(got);
    }
    same("the payload of a large packet", &payload, wanted)?;
    Ok((parts.len(), parts))
}

async fn large_passes(env: &mut Env, kind: Kind, packets: &[(usize, u16)]) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.needs(if kind.v6 { "feature-gso-tcpv6" } else { "feature-gso-tcpv4" }).await?;
    for &(len, size) in packets {
        let made = large(&net, kind, len, size)?;
        net.sender.ask(&made).await?;
        gathered(&mut net, kind, &made, size).await?;
    }
    net.goes_on().await?;
    net.close().await
}

async fn gso_v4(env: &mut Env) -> Verdict {
    large_passes(env, TCP4, &[(4 * 1448, 1448)]).await
}

async fn gso_v6(env: &mut Env) -> Verdict {
    large_passes(env, TCP6, &[(4 * 1428, 1428)]).await
}

async fn gso_sizes(env: &mut Env) -> Verdict {
    large_passes(env, TCP4, &[(900, 100), (5000, 536), (20_001, 1448), (30_000, 8948)]).await
}

async fn gso_longest(env: &mut Env) -> Verdict {
    large_passes(env, TCP4, &[(65_535 - frames::TCP4_HEADERS, 1448), (64_000, 1448)]).await
}

async fn one_segment(env: &mut Env) -> Verdict {
    large_passes(env, TCP4, &[(1448, 1448), (1, 1448)]).await
}

/// A large packet to a receiver that takes none.
async fn cut(env: &mut Env, kind: Kind, options: &Options) -> Verdict {
    let mut net = Net::receiving(env, options).await?;
    net.needs(if kind.v6 { "feature-gso-tcpv6" } else { "feature-gso-tcpv4" }).await?;
    let made = large(&net, kind, 4000, 1000)?;
    net.sender.ask(&made).await?;
    let (count, parts) = gathered(&mut net, kind, &made, 1000).await?;
    ensure_eq!(count, 4, "segments");
    ensure!(parts.iter().all(|got| got.extras.is_empty()), "extra information to a frontend that takes none");
    ensure!(
        parts.iter().all(|got| got.slots == 1 || options.changed[0].0 != "feature-sg"),
        "a frame of two slots"
    );
    net.goes_on().await?;
    net.close().await
}

async fn gso_not_taken_v4(env: &mut Env) -> Verdict {
    cut(env, TCP4, &Options::with("feature-gso-tcpv4", 0)).await
}

async fn gso_not_taken_v6(env: &mut Env) -> Verdict {
    cut(env, TCP6, &Options::with("feature-gso-tcpv6", 0)).await
}

async fn gso_no_sg(env: &mut Env) -> Verdict {
    let options = Options::with("feature-sg", 0).and("feature-gso-tcpv4", 0).and("feature-gso-tcpv6", 0);
    cut(env, TCP4, &options).await
}
