//! Frames of several slots.

use alloc::vec;
use alloc::vec::Vec;

use ring_abi::io::netif::*;
use ring_abi::types::PAGE_SIZE;

use super::front::{Made, Net};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.pieces.two" = two {
        title: "a frame in two pieces",
        rule: "A request with NETTXF_more_data goes on in the next, and its size is the whole frame's.",
        source: "io/netif.h, NETTXF_more_data; 'Guest transmit', Fragment 1",
    }
    "netif.pieces.each-count" = each_count {
        title: "frames in 1 to 18 pieces",
        rule: "A backend that negotiates nothing else takes frames of up to XEN_NETIF_NR_SLOTS_MIN slots.",
        source: "io/netif.h, XEN_NETIF_NR_SLOTS_MIN",
    }
    "netif.pieces.most" = most {
        title: "a frame in 18 pieces",
        rule: "A backend that negotiates nothing else takes frames of up to XEN_NETIF_NR_SLOTS_MIN slots.",
        source: "io/netif.h, XEN_NETIF_NR_SLOTS_MIN",
    }
    "netif.pieces.longest" = longest {
        title: "a frame of 65535 bytes",
        rule: "A frame has up to XEN_NETIF_MAX_TX_SIZE bytes.",
        source: "io/netif.h, XEN_NETIF_MAX_TX_SIZE",
    }
    "netif.pieces.first-size-is-the-sum" = first_size {
        title: "pieces of 100, 200 and 300 bytes",
        rule: "The bytes of the first piece are the frame's without those of the others.",
        source: "io/netif.h, 'Guest transmit', NOTE",
    }
    "netif.pieces.offsets" = offsets {
        title: "pieces at offsets of their own",
        rule: "Each piece begins at its own offset in its own page.",
        source: "io/netif.h, struct netif_tx_request, offset",
    }
    "netif.pieces.one-page" = one_page {
        title: "pieces of one frame in one page, the last in front",
        rule: "Pieces may name any parts of any page.",
        source: "io/netif.h, struct netif_tx_request, gref, offset",
    }
    "netif.pieces.single-bytes" = single_bytes {
        title: "pieces of one byte behind the first",
        rule: "A piece has any number of bytes.",
        source: "io/netif.h, struct netif_tx_request, size",
    }
    "netif.pieces.short-first" = short_first {
        title: "a first piece of 14, 20, 53 and 54 bytes",
        rule: "The headers of a frame may go on in later pieces.",
        source: "io/netif.h, 'Guest transmit'",
    }
    "netif.pieces.header-in-two" = header_in_two {
        title: "a first piece of 1 to 13 bytes, less than the Ethernet header",
        rule: "A frame whose header is cut is answered whole, one status for all its pieces, and the ring stays in order.",
        source: "io/netif.h, 'Guest transmit'; NETIF_RSP_ERROR",
    }
    "netif.pieces.across-the-end" = across_end {
        title: "frames of five pieces on and on over the ring's end",
        rule: "A frame's slots follow each other by index, modulo the ring's size.",
        source: "io/ring.h, RING_GET_REQUEST",
    }
    "netif.pieces.each-answered" = each_answered {
        title: "ids of a frame's pieces",
        rule: "Each piece is a request with an id of its own, and each is answered.",
        source: "io/netif.h, tx response, id",
    }
    "netif.pieces.full-ring" = full_ring {
        title: "a ring filled with frames of sixteen pieces",
        rule: "A one-page ring holds 256 requests, each answered once.",
        source: "io/ring.h, __RING_SIZE; io/netif.h",
    }
    "netif.pieces.total-too-small" = total_small {
        title: "a first size below the sum of the other pieces'",
        rule: "A frame whose pieces have more bytes than the frame is answered with errors.",
        source: "io/netif.h, 'Guest transmit', NOTE; NETIF_RSP_ERROR",
    }
    "netif.pieces.total-equal" = total_equal {
        title: "a first size of exactly the other pieces' sum: nothing is left for the first",
        rule: "A frame whose first piece is empty is answered, one status for all its pieces, and the ring stays in order.",
        source: "io/netif.h, 'Guest transmit', NOTE",
    }
    "netif.pieces.total-too-short" = total_short {
        title: "a first size below an Ethernet header",
        rule: "What is shorter than an Ethernet header is no frame: its requests are answered with errors.",
        source: "io/netif.h, NETIF_RSP_ERROR",
    }
    "netif.pieces.bad-gref-first" = bad_first {
        title: "a bad grant in the first piece of three",
        rule: "A frame of which a page cannot be read does not go out, and all its requests are answered.",
        source: "io/netif.h, NETIF_RSP_ERROR",
    }
    "netif.pieces.bad-gref-middle" = bad_middle {
        title: "a bad grant in the second piece of three",
        rule: "A frame of which a page cannot be read does not go out, and all its requests are answered.",
        source: "io/netif.h, NETIF_RSP_ERROR",
    }
    "netif.pieces.bad-gref-last" = bad_last {
        title: "a bad grant in the last piece of three",
        rule: "A frame of which a page cannot be read does not go out, and all its requests are answered.",
        source: "io/netif.h, NETIF_RSP_ERROR",
    }
    "netif.pieces.nineteen" = nineteen {
        title: "a frame in 19 pieces",
        rule: "More slots than XEN_NETIF_NR_SLOTS_MIN are sent or refused; the ring stays in order.",
        source: "io/netif.h, XEN_NETIF_NR_SLOTS_MIN",
    }
    "netif.pieces.zero-size" = zero_size {
        title: "an empty piece between others",
        rule: "A piece without bytes adds nothing: the frame is sent or refused as a whole, and the ring stays in order.",
        source: "io/netif.h, struct netif_tx_request, size",
    }
    "netif.pieces.flags-behind" = flags_behind {
        title: "checksum flags in pieces behind the first",
        rule: "Only the first request's flags say something of the frame.",
        source: "io/netif.h, 'Guest transmit', Fragment N, flags = 0",
    }
}

async fn two(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = net.cut(1500, 1000, &[0, 0])?;
    net.passes("a frame", &made).await?;
    net.close().await
}

/// A frame of `count` pieces of `size` bytes.
fn evenly(net: &Net<'_>, count: usize, size: usize) -> Verdict<Made> {
    net.cut(count * size, size, &vec![0; count])
}

async fn each_count(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for count in 1..=XEN_NETIF_NR_SLOTS_MIN as usize {
        let made = evenly(&net, count, 80)?;
        net.passes("a frame", &made).await?;
    }
    net.close().await
}

async fn most(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = evenly(&net, 18, 80)?;
    for _ in 0..20 {
        net.passes("a frame", &made).await?;
    }
    net.close().await
}

async fn longest(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.needs("feature-gso-tcpv4").await?;
    // A frame longer than a wire takes is for a peer in this machine; a bridge with an MTU may drop such a one.
    let made = net.made(65_535, 1)?;
    let answers = net.sender.ask(&made).await?;
    ensure!(answers.pieces.iter().all(|(_, status)| *status == 0), "answers {:?}", answers.pieces);
    net.goes_on_past(&made).await?;
    net.close().await
}

async fn first_size(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let bytes = net.frame(600, 3);
    let made = Made::pieces(net.sender.dom, &bytes, &[(0, 100), (0, 200), (0, 300)])?;
    ensure_eq!(made.slots[0].size, 600, "the case's own first size");
    net.passes("a frame", &made).await?;
    net.close().await
}

async fn offsets(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let bytes = net.frame(1000, 4);
    let pieces = [(5, 100), (4096 - 333, 333), (2048, 67), (1, 499), (4095, 1)];
    let made = Made::pieces(net.sender.dom, &bytes, &pieces)?;
    net.passes("a frame", &made).await?;
    net.close().await
}

async fn one_page(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let mut made = net.cut(900, 300, &[2000, 1000, 0])?;
    for page in 1..3 {
        let mut piece = [0; 300];
        piece.copy_from_slice(&made.bytes[page * 300..(page + 1) * 300]);
        made.pages.bytes().write(made.slots[page].offset.into(), &piece);
        made.slots[page].gref = made.pages.gref(0);
    }
    net.passes("a frame", &made).await?;
    net.close().await
}

async fn single_bytes(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let bytes = net.frame(77, 5);
    let mut pieces = vec![(0, 60)];
    pieces.resize(18, (9, 1));
    let made = Made::pieces(net.sender.dom, &bytes, &pieces)?;
    net.passes("a frame", &made).await?;
    net.close().await
}

async fn short_first(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for first in [14, 20, 53, 54, 55] {
        let bytes = net.frame(700, first as u8);
        let made = Made::pieces(net.sender.dom, &bytes, &[(0, first), (0, 700 - first)])?;
        net.passes("a frame", &made).await?;
    }
    net.close().await
}

/// Looks that all pieces have one status, and that the next frame goes through.
async fn all_or_none(net: &mut Net<'_>, made: &Made) -> Verdict {
    let answers = net.sender.ask(made).await?;
    let first = answers.pieces[0].1;
    ensure!(
        answers.pieces.iter().all(|(_, status)| *status == first),
        "statuses of one frame: {:?}",
        answers.pieces
    );
    if first < 0 {
        return net.goes_on().await;
    }
    net.goes_on_past(made).await
}

async fn header_in_two(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for first in 1..14 {
        let bytes = net.frame(200, first as u8);
        let made = Made::pieces(net.sender.dom, &bytes, &[(0, first), (0, 200 - first)])?;
        all_or_none(&mut net, &made).await?;
    }
    net.close().await
}

async fn across_end(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for round in 0..120 {
        let made = net.cut(500 + round, 110, &[0, 7, 0, 9, 0])?;
        net.passes("a frame", &made).await?;
    }
    ensure!(net.sender.tx().produced > 2 * ring::TX_SLOTS, "the ring went around");
    net.close().await
}

async fn each_answered(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let mut made = evenly(&net, 6, 100)?;
    for (slot, id) in made.slots.iter_mut().zip([9, 0, u16::MAX, 0x8000, 1, 77]) {
        slot.id = id;
    }
    net.passes("a frame", &made).await?;
    net.close().await
}

async fn full_ring(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = evenly(&net, 16, 64)?;
    for _ in 0..3 {
        for _ in 0..16 {
            net.sender.put(&made);
        }
        ensure_eq!(net.sender.tx().open(), ring::TX_SLOTS, "requests of a full ring");
        net.sender.tx().publish();
        let answers = net.sender.answers(256).await?;
        ensure!(answers.pieces.iter().all(|(_, status)| *status == 0), "an error: {:?}", answers.pieces);
        for _ in 0..16 {
            ensure!(net.receive().await?.bytes == made.bytes, "another frame");
        }
    }
    net.close().await
}

async fn total_small(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for size in [15, 100, 199] {
        let mut made = net.cut(300, 100, &[0, 0, 0])?;
        made.slots[0].size = size;
        net.refused("a frame of less bytes than its pieces have", &made).await?;
    }
    net.close().await
}

async fn total_equal(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let mut made = net.cut(300, 100, &[0, 0, 0])?;
    made.slots[0].size = 200;
    made.bytes.drain(..100);
    let answers = net.sender.ask(&made).await?;
    let first = answers.pieces[0].1;
    ensure!(answers.pieces.iter().all(|piece| piece.1 == first), "statuses {:?}", answers.pieces);
    net.goes_on().await?;
    net.close().await
}

async fn total_short(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for size in [0, 1, 13] {
        let mut made = net.cut(20, 10, &[0, 0])?;
        made.slots[0].size = size;
        made.slots[1].size = 0;
        net.refused("what is no frame", &made).await?;
    }
    net.close().await
}

/// A frame of three pieces, one with a bad grant: it does not arrive.
async fn bad(env: &mut Env, piece: usize) -> Verdict {
    let mut net = Net::usual(env).await?;
    for gref in [7, u32::MAX] {
        let mut made = net.cut(900, 300, &[0, 0, 0])?;
        made.slots[piece].gref = gref;
        net.sender.ask(&made).await?;
        // A receiver may be told of a frame that failed.
        let mark = net.mark()?;
        net.sender.ask(&mark).await?;
        let mut got = net.receive().await?;
        if got.failed {
            got = net.receive().await?;
        }
        super::front::same("the frame behind", &got.bytes, &mark.bytes)?;
    }
    net.close().await
}

async fn bad_first(env: &mut Env) -> Verdict {
    bad(env, 0).await
}

async fn bad_middle(env: &mut Env) -> Verdict {
    bad(env, 1).await
}

async fn bad_last(env: &mut Env) -> Verdict {
    bad(env, 2).await
}

async fn nineteen(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = evenly(&net, 19, 70)?;
    all_or_none(&mut net, &made).await?;
    net.close().await
}

async fn zero_size(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let bytes: Vec<u8> = net.frame(400, 2);
    let made = Made::pieces(net.sender.dom, &bytes, &[(0, 200), (0, 0), (PAGE_SIZE as u16, 0), (0, 200)])?;
    all_or_none(&mut net, &made).await?;
    net.close().await
}

async fn flags_behind(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let mut made = net.cut(900, 300, &[0, 0, 0])?;
    for slot in &mut made.slots[1..] {
        slot.flags |= NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED;
    }
    let got = net.passes("a frame", &made).await?;
    ensure_eq!(got.flags & NETRXF_CSUM_BLANK, 0, "NETRXF_csum_blank of the frame that came");
    net.close().await
}
