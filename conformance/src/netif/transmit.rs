//! Frames of one slot.

use ring_abi::io::netif::*;
use ring_abi::types::PAGE_SIZE;

use super::front::{Made, Net, Options, Which};
use crate::shared::Granted;
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.tx.one-slot" = one_slot {
        title: "a frame of 60 bytes",
        rule: "A request names a page, an offset and a size: these bytes are the frame.",
        source: "io/netif.h, struct netif_tx_request",
    }
    "netif.tx.sizes" = sizes {
        title: "frames of 15 to 4096 bytes",
        rule: "A frame has exactly the bytes that its request names.",
        source: "io/netif.h, struct netif_tx_request, size",
    }
    "netif.tx.header-alone" = header_alone {
        title: "a frame of 14 bytes: a header and nothing behind",
        rule: "A request that holds an Ethernet header is answered, and those behind it are served.",
        source: "io/netif.h, struct netif_tx_request, size",
    }
    "netif.tx.too-short" = too_short {
        title: "frames of 1 to 13 bytes",
        rule: "What is shorter than an Ethernet header is no frame: the request is answered with an error.",
        source: "io/netif.h, NETIF_RSP_ERROR",
    }
    "netif.tx.empty" = empty {
        title: "a frame of no bytes",
        rule: "A request with nothing in it is answered with an error.",
        source: "io/netif.h, NETIF_RSP_ERROR",
    }
    "netif.tx.whole-page" = whole_page {
        title: "a frame that fills its page",
        rule: "offset and size may reach up to the page's end.",
        source: "io/netif.h, struct netif_tx_request, offset, size",
    }
    "netif.tx.offsets" = offsets {
        title: "frames at the offsets 1, 2, 3, 17, 255 and 2048",
        rule: "A frame begins at any offset in its page.",
        source: "io/netif.h, struct netif_tx_request, offset",
    }
    "netif.tx.at-the-page-end" = at_end {
        title: "frames whose last byte is the page's last",
        rule: "offset and size may reach up to the page's end.",
        source: "io/netif.h, struct netif_tx_request, offset",
    }
    "netif.tx.id-zero-and-max" = id_ends {
        title: "the ids 0 and 65535",
        rule: "A response has the id of its request, whatever that is.",
        source: "io/netif.h, tx response, id",
    }
    "netif.tx.id-each-bit" = id_bits {
        title: "an id for each bit",
        rule: "A response has all 16 bits of its request's id.",
        source: "io/netif.h, tx response, id",
    }
    "netif.tx.id-in-errors" = id_in_errors {
        title: "ids of requests that are refused",
        rule: "A response has the id of its request, whatever its status.",
        source: "io/netif.h, tx response, id",
    }
    "netif.tx.id-twice-at-once" = id_twice {
        title: "twenty requests with one id in flight",
        rule: "Ids are the frontend's own: equal ones are answered as often as they were asked.",
        source: "io/netif.h, struct netif_tx_request, id",
    }
    "netif.tx.read-only-grant" = read_only {
        title: "a page that was granted for reading alone",
        rule: "A backend only reads what it transmits.",
        source: "io/netif.h, 'Guest transmit'; grant_table.h, GTF_readonly",
    }
    "netif.tx.writable-grant" = writable {
        title: "a page that was granted for writing too",
        rule: "A backend only reads what it transmits: the page is as it was.",
        source: "io/netif.h, 'Guest transmit'",
    }
    "netif.tx.bad-gref" = bad_gref {
        title: "grants that are none: a reserved one, a large one, 2^32-1",
        rule: "A request whose page cannot be read is answered with an error.",
        source: "io/netif.h, NETIF_RSP_ERROR; grant_table.h, GNTST_bad_gntref",
    }
    "netif.tx.grant-ended" = grant_ended {
        title: "a page whose grant has ended",
        rule: "A request whose page cannot be read is answered with an error.",
        source: "io/netif.h, NETIF_RSP_ERROR",
    }
    "netif.tx.bad-among-good" = bad_among_good {
        title: "ten frames in one batch, two of them with bad grants",
        rule: "A request that is refused does no harm to its neighbours.",
        source: "io/netif.h, NETIF_RSP_ERROR",
    }
    "netif.tx.page-free-after-answer" = page_free {
        title: "the page's grant after the answer",
        rule: "A backend uses a request's page until the answer, and no longer.",
        source: "io/netif.h, tx response",
    }
    "netif.tx.content-at-answer" = content {
        title: "a page that is overwritten as soon as the answer is there",
        rule: "After the answer the page is the frontend's: what was sent is what it held before.",
        source: "io/netif.h, tx response",
    }
    "netif.tx.order" = order {
        title: "a hundred frames",
        rule: "Frames of one queue keep their order.",
        source: "io/netif.h, 'Mapping of packets to queues'; io/ring.h",
    }
    "netif.tx.one-page-many-frames" = one_page {
        title: "sixteen frames in one page, all in flight",
        rule: "Requests may name parts of the same page.",
        source: "io/netif.h, struct netif_tx_request, gref, offset",
    }
    "netif.tx.unknown-flags" = unknown_flags {
        title: "flags that have no meaning",
        rule: "A request with flags that are not defined is answered, and the ring stays in order.",
        source: "io/netif.h, NETTXF_*",
    }
    "netif.tx.to-nobody" = to_nobody {
        title: "a frame to an address that nobody has",
        rule: "A frame that reaches nobody is answered as any other.",
        source: "io/netif.h, tx response, status",
    }
    "netif.tx.broadcast" = broadcast {
        title: "a frame to all",
        rule: "A frame to all stations reaches the other interface, and not the sender's own.",
        source: "io/netif.h, 'Guest receive'; IEEE 802.3",
    }
    "netif.tx.both-ways" = both_ways {
        title: "frames in both directions at once",
        rule: "Transmission and reception are rings of their own.",
        source: "io/netif.h, '{tx,rx}-ring-ref'",
    }
}

async fn one_slot(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = net.made(60, 1)?;
    net.passes("a frame", &made).await?;
    net.close().await
}

async fn sizes(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.carries(4096).await?;
    for len in [15, 16, 17, 31, 53, 54, 55, 59, 60, 61, 255, 256, 257, 1000, 1513, 1514, 2048, 4095, 4096] {
        let made = net.made(len, len as u8)?;
        net.passes("a frame", &made).await?;
    }
    net.close().await
}

async fn header_alone(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = net.made(14, 0)?;
    net.borne(&made).await?;
    net.close().await
}

async fn too_short(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for len in 1..14 {
        let made = net.made(len, 0)?;
        net.refused("what is no frame", &made).await?;
    }
    net.close().await
}

async fn empty(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let mut made = net.made(60, 0)?;
    made.slots[0].size = 0;
    net.refused("an empty frame", &made).await?;
    net.close().await
}

async fn whole_page(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.carries(4096).await?;
    let made = net.made(PAGE_SIZE, 9)?;
    let got = net.passes("a frame", &made).await?;
    ensure!(got.slots <= 2, "{} slots for a page", got.slots);
    net.close().await
}

async fn offsets(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for offset in [1, 2, 3, 17, 255, 2048] {
        let made = net.cut(700, 700, &[offset])?;
        net.passes("a frame", &made).await?;
    }
    net.close().await
}

async fn at_end(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.carries(4096).await?;
    for len in [15, 60, 1514, 4095] {
        let made = net.cut(len, len, &[(PAGE_SIZE - len) as u16])?;
        net.passes("a frame", &made).await?;
    }
    net.close().await
}

/// A frame under each of `ids`.
async fn with_ids(env: &mut Env, ids: impl Iterator<Item = u16>, good: bool) -> Verdict {
    let mut net = Net::usual(env).await?;
    for id in ids {
        let mut made = net.made(60, id as u8)?;
        made.slots[0].id = id;
        if good {
            net.passes("a frame", &made).await?;
        } else {
            made.slots[0].gref = u32::MAX;
            net.refused("a frame in a page that is not there", &made).await?;
        }
    }
    net.close().await
}

async fn id_ends(env: &mut Env) -> Verdict {
    with_ids(env, [0, u16::MAX].into_iter(), true).await
}

async fn id_bits(env: &mut Env) -> Verdict {
    with_ids(env, (0..16).map(|bit| 1 << bit), true).await
}

async fn id_in_errors(env: &mut Env) -> Verdict {
    with_ids(env, [0, 1, 255, 256, 0x8000, u16::MAX].into_iter(), false).await
}

async fn id_twice(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = net.made(60, 3)?;
    for _ in 0..20 {
        net.sender.put(&made);
    }
    net.sender.tx().publish();
    let answers = net.sender.answers(20).await?;
    ensure!(
        answers.pieces.iter().all(|piece| *piece == (made.slots[0].id, 0)),
        "answers {:?}",
        answers.pieces
    );
    for _ in 0..20 {
        let got = net.receive().await?;
        ensure!(got.bytes == made.bytes, "another frame");
    }
    net.close().await
}

/// A frame of 500 bytes in a page that may be written or not, and the page.
fn in_page(net: &Net<'_>, readonly: bool) -> Verdict<(Made, Granted)> {
    let mut made = net.made(500, 4)?;
    let page = Granted::new(net.sender.dom, 1, readonly)?;
    page.bytes().fill(0, PAGE_SIZE, 0x77);
    page.bytes().write(100, &made.bytes);
    (made.slots[0].gref, made.slots[0].offset) = (page.gref(0), 100);
    Ok((made, page))
}

async fn read_only(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let (made, _page) = in_page(&net, true)?;
    net.passes("a frame", &made).await?;
    net.close().await
}

async fn writable(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let (made, page) = in_page(&net, false)?;
    net.passes("a frame", &made).await?;
    let mut bytes = [0; PAGE_SIZE];
    page.bytes().read(0, &mut bytes);
    ensure!(bytes[100..600] == made.bytes[..], "the frame's bytes are others after it was sent");
    let around = bytes[..100].iter().chain(&bytes[600..]);
    ensure!(around.copied().all(|byte| byte == 0x77), "bytes around the frame are others");
    net.close().await
}

async fn bad_gref(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for gref in [7, 4_000_000, u32::MAX] {
        let mut made = net.made(60, 5)?;
        made.slots[0].gref = gref;
        net.refused("a frame in a page that is not there", &made).await?;
    }
    net.close().await
}

async fn grant_ended(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let (made, page) = in_page(&net, true)?;
    net.passes("a frame", &made).await?;
    drop(page);
    net.refused("a frame in a page that is granted no more", &made).await?;
    net.close().await
}

async fn bad_among_good(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let mut frames = alloc::vec::Vec::new();
    for id in 0..10 {
        let mut made = net.made(60 + usize::from(id), 6)?;
        made.slots[0].id = id;
        if id % 5 == 3 {
            made.slots[0].gref = u32::MAX;
        }
        net.sender.put(&made);
        frames.push(made);
    }
    net.sender.tx().publish();
    for (id, status) in net.sender.answers(10).await?.pieces {
        ensure_eq!(status < 0, id % 5 == 3, "an error in the answer to request {id}");
    }
    for made in frames.iter().filter(|made| made.slots[0].gref != u32::MAX) {
        let got = net.receive().await?;
        ensure!(got.bytes == made.bytes, "another frame than {}", made.slots[0].id);
    }
    net.close().await
}

async fn page_free(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.carries(4096).await?;
    for len in [60, 1514, 4096] {
        let made = net.made(len, 7)?;
        net.sender.ask(&made).await?;
        ensure!(!made.pages.in_use(), "the page of a frame that was answered is still in use");
        net.receive().await?;
    }
    net.close().await
}

async fn content(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.carries(4096).await?;
    for len in [60, 600, 4096] {
        let (mut made, page) = in_page(&net, false)?;
        made.bytes = net.frame(len, 8);
        page.bytes().write(0, &made.bytes);
        (made.slots[0].offset, made.slots[0].size) = (0, len as u16);
        net.sender.ask(&made).await?;
        page.bytes().fill(0, PAGE_SIZE, 0xff);
        let got = net.receive().await?;
        ensure!(got.bytes == made.bytes, "a frame of {len} bytes holds what was written after its answer");
    }
    net.close().await
}

async fn order(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for round in 0..5u8 {
        let mut frames = alloc::vec::Vec::new();
        for n in 0..20u8 {
            let made = net.made(60 + usize::from(n) * 37 % 20 * 40, round * 20 + n)?;
            net.sender.put(&made);
            frames.push(made);
        }
        net.sender.tx().publish();
        net.sender.answers(20).await?;
        for (n, made) in frames.iter().enumerate() {
            let got = net.receive().await?;
            ensure!(got.bytes == made.bytes, "frame {n} of round {round} is not the next one");
        }
    }
    net.close().await
}

async fn one_page(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let page = Granted::new(net.sender.dom, 1, true)?;
    let mut frames = alloc::vec::Vec::new();
    for n in 0..16u16 {
        let frame = net.frame(250, n as u8);
        page.bytes().write(usize::from(n) * 256, &frame);
        let (gref, offset) = (page.gref(0), n * 256);
        net.sender.tx().push(&NetifTxRequest { gref, offset, flags: 0, id: n, size: 250 });
        frames.push(frame);
    }
    net.sender.tx().publish();
    net.sender.answers(16).await?;
    for frame in frames {
        ensure!(net.receive().await?.bytes == frame, "another frame");
    }
    net.close().await
}

async fn unknown_flags(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for bit in 4..16 {
        let made = net.made(60, bit)?.flags(1 << bit);
        net.borne(&made).await?;
    }
    net.close().await
}

async fn to_nobody(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = net.made_to([2, 0, 0, 0x5e, 0xed, 1], 100, 1)?;
    let answers = net.sender.ask(&made).await?;
    ensure_eq!(answers.pieces, [(made.slots[0].id, NETIF_RSP_OKAY)], "the answer");
    // A bridge that does not know the address gives the frame to all.
    net.goes_on_past(&made).await?;
    net.close().await
}

async fn broadcast(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = net.made_to([0xff; 6], 100, 2)?;
    net.passes("a frame to all", &made).await?;
    net.hears_not_itself().await?;
    net.close().await
}

async fn both_ways(env: &mut Env) -> Verdict {
    let mut net = Net::connect(env, &Options::default(), &Options::default()).await?;
    net.goes_on().await?;
    for _ in 0..10 {
        // The other way: who sends and who receives change places.
        net.swap();
        net.goes_on().await?;
    }
    let state = net.device(Which::Sender).state().await?;
    ensure_eq!(state, ring_abi::io::xenbus::XenbusState::Connected, "the backend's state");
    net.close().await
}
