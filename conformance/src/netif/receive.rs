//! The receive ring: buffers, responses, and what a backend does when there are none.

use alloc::vec::Vec;

use pvrt::executor::time;
use ring_abi::io::netif::*;
use ring_abi::types::PAGE_SIZE;

use super::front::{Net, Options, Which};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.rx.same-slot" = same_slot {
        title: "the slots of a hundred frames",
        rule: "A response stands in the slot of its request, under its request's id.",
        source: "io/netif.h, rx response, NOTE",
    }
    "netif.rx.id-any" = id_any {
        title: "receive requests with the ids 0, 1, 32768 and 65535",
        rule: "A response has the id of its request, whatever that is.",
        source: "io/netif.h, rx response, id",
    }
    "netif.rx.id-twice" = id_twice {
        title: "thirty receive requests with one id",
        rule: "Ids are the frontend's own: equal ones are answered as often as they were asked.",
        source: "io/netif.h, rx request, id",
    }
    "netif.rx.pad-ignored" = pad {
        title: "receive requests whose pad is not 0",
        rule: "What is padding means nothing.",
        source: "io/netif.h, struct netif_rx_request, pad",
    }
    "netif.rx.long-frames" = long_frames {
        title: "frames of 1 to 4 pages",
        rule: "A frame longer than a page goes on in the next response, by NETRXF_more_data.",
        source: "io/netif.h, NETRXF_more_data; 'Guest receive'",
    }
    "netif.rx.size-is-the-sum" = sum {
        title: "the sizes in the responses of a frame of 9000 bytes",
        rule: "A received frame's size is the sum of its fragments'.",
        source: "io/netif.h, 'Guest receive', NOTE",
    }
    "netif.rx.untouched-outside" = untouched {
        title: "the bytes of a buffer before offset and behind the frame",
        rule: "A backend writes what its response says, and nothing else.",
        source: "io/netif.h, rx response, offset, status",
    }
    "netif.rx.few-slots" = few_slots {
        title: "a frame of many small pieces at its receiver",
        rule: "A backend uses no more slots than a frame can have.",
        source: "io/netif.h, XEN_NETIF_NR_SLOTS_MIN",
    }
    "netif.rx.no-buffers" = no_buffers {
        title: "a frame for a receiver without requests",
        rule: "A frame without a buffer waits or is dropped; its sender is answered within a second.",
        source: "io/netif.h, 'feature-rx-notify'",
    }
    "netif.rx.no-buffers-then-some" = then_some {
        title: "requests that are posted after frames were lost",
        rule: "A receiver that posts requests again gets frames again.",
        source: "io/netif.h, 'feature-rx-notify'",
    }
    "netif.rx.buffers-in-time" = in_time {
        title: "requests that are posted a millisecond after a frame",
        rule: "A frame arrives whole and once, or not at all, and those behind it arrive.",
        source: "io/netif.h, 'feature-rx-notify'",
    }
    "netif.rx.too-few-buffers" = too_few {
        title: "a frame of three pages for a receiver with two requests",
        rule: "A frame that does not fit into what was posted is not begun.",
        source: "io/netif.h, NETRXF_more_data",
    }
    "netif.rx.without-notify" = without_notify {
        title: "a receiver without feature-rx-notify",
        rule: "A backend does not rely on events that the frontend has not promised.",
        source: "io/netif.h, 'feature-rx-notify'",
    }
    "netif.rx.one-buffer-at-a-time" = one_buffer {
        title: "a receiver that posts one request for each frame",
        rule: "One request is enough for a frame of a page.",
        source: "io/netif.h, 'Guest receive'",
    }
    "netif.rx.full-ring" = full_ring {
        title: "256 requests posted at once",
        rule: "A one-page receive ring holds 256 requests.",
        source: "io/ring.h, __RING_SIZE; io/netif.h",
    }
    "netif.rx.wraps" = wraps {
        title: "seven hundred frames of two slots",
        rule: "Indices run on: the slot of an index is its remainder by the ring's size.",
        source: "io/ring.h, RING_GET_REQUEST",
    }
    "netif.rx.read-only-buffer" = read_only {
        title: "a buffer that was granted for reading alone",
        rule: "A buffer that cannot be written is answered with an error, or its frame is dropped; the next one is filled.",
        source: "io/netif.h, rx response, status; NETIF_RSP_ERROR",
    }
    "netif.rx.bad-buffer" = bad_buffer {
        title: "a receive request whose grant is none",
        rule: "A buffer that cannot be written is answered with an error, or its frame is dropped; the next one is filled.",
        source: "io/netif.h, rx response, status; NETIF_RSP_ERROR",
    }
    "netif.rx.bad-buffer-is-not-the-senders" = not_senders {
        title: "the answer to the sender of a frame whose receiver's buffer is bad",
        rule: "A fault of the receiver's is not told to the sender as the sender's own.",
        source: "io/netif.h, tx response, status",
    }
    "netif.rx.bad-second-buffer" = bad_second {
        title: "a frame of two slots whose second buffer is bad",
        rule: "A frame that did not arrive whole is not shown as good.",
        source: "io/netif.h, NETRXF_more_data; NETIF_RSP_ERROR",
    }
    "netif.rx.unused-buffers-untouched" = unused {
        title: "buffers behind those that were used",
        rule: "A backend writes into a buffer only when it answers the buffer.",
        source: "io/netif.h, 'Guest receive'",
    }
    "netif.rx.no-sg" = no_sg {
        title: "frames of up to 1514 bytes to a receiver without feature-sg",
        rule: "A frontend without feature-sg gets frames of one slot.",
        source: "io/netif.h, 'Guest receive'",
    }
    "netif.rx.several-queues" = several_queues {
        title: "frames to a receiver with two queues",
        rule: "A receiver is to be prepared for frames on any queue; each arrives once, on one.",
        source: "io/netif.h, 'Mapping of packets to queues'",
    }
    "netif.rx.slow-receiver-harms-nobody" = slow {
        title: "the sender's own traffic while a receiver takes nothing",
        rule: "A receiver that takes nothing does not keep its sender from being answered.",
        source: "io/netif.h, 'feature-rx-notify'; NETIF_RSP_DROPPED",
    }
}

/// A receiver that posts by itself.
fn without_stock() -> Options {
    Options { post: 0, ..Options::default() }
}

async fn same_slot(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    for _ in 0..100 {
        // `receive` compares each id with that of the request in the same slot.
        net.goes_on().await?;
    }
    net.close().await
}

async fn id_any(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    for id in [0, 1, 0x8000, u16::MAX] {
        net.receiver.post_as(id, false)?;
        let mark = net.mark()?;
        let got = net.passes("a frame", &mark).await?;
        ensure_eq!(got.ids, [id], "the ids of a frame's responses");
    }
    net.close().await
}

async fn id_twice(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    for _ in 0..30 {
        net.receiver.post_as(7, false)?;
    }
    for _ in 0..10 {
        net.goes_on().await?;
    }
    net.close().await
}

async fn pad(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    for _ in 0..4 {
        net.receiver.post_with(|request| request.pad = 0xffff)?;
        net.goes_on().await?;
    }
    net.close().await
}

async fn long_frames(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.carries(16_000).await?;
    for len in [4096, 4097, 8192, 8193, 12_288, 16_000] {
        let made = net.made(len, len as u8)?;
        let got = net.passes("a frame", &made).await?;
        ensure!(got.slots >= len.div_ceil(PAGE_SIZE), "{} slots for {len} bytes", got.slots);
    }
    net.close().await
}

async fn sum(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.carries(9000).await?;
    let made = net.made(9000, 1)?;
    let got = net.carry(&made).await?;
    ensure_eq!(got.bytes.len(), 9000, "the sum of the responses' sizes");
    net.close().await
}

async fn untouched(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.carries(5000).await?;
    for len in [15, 60, 61, 1000, 4095, 5000] {
        // `receive` looks at the rest of each buffer.
        let made = net.made(len, 1)?;
        net.passes("a frame", &made).await?;
    }
    net.close().await
}

async fn few_slots(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    let made = net.cut(18 * 40, 40, &[0; 18])?;
    let got = net.passes("a frame", &made).await?;
    ensure!(
        got.slots <= XEN_NETIF_NR_SLOTS_MIN as usize,
        "{} slots for {} bytes",
        got.slots,
        made.bytes.len()
    );
    net.close().await
}

async fn no_buffers(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    for seed in 0..3 {
        let made = net.made(100, seed)?;
        let start = time::now_ns();
        net.sender.ask(&made).await?;
        ensure!(time::now_ns() - start < 1_000_000_000, "the answer took more than a second");
    }
    net.receiver.rx().silent(20).await?;
    net.close().await
}

async fn then_some(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    for seed in 0..10 {
        let made = net.made(100, seed)?;
        net.sender.ask(&made).await?;
    }
    net.receiver.post(40)?;
    net.arrives_at_last().await?;
    net.close().await
}

async fn in_time(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    let made = net.made(100, 1)?;
    net.sender.put(&made);
    net.sender.tx().publish();
    time::sleep(1_000_000).await;
    net.receiver.post(8)?;
    net.sender.answers(1).await?;
    net.goes_on_past(&made).await?;
    net.close().await
}

async fn too_few(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    net.receiver.post(2)?;
    let made = net.made(3 * PAGE_SIZE, 2)?;
    net.sender.ask(&made).await?;
    net.receiver.rx().silent(20).await?;
    net.receiver.post(20)?;
    net.arrives_at_last().await?;
    net.close().await
}

async fn without_notify(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &Options::with("feature-rx-notify", 0)).await?;
    for _ in 0..20 {
        net.goes_on().await?;
    }
    net.close().await
}

async fn one_buffer(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    for _ in 0..50 {
        net.receiver.post(1)?;
        net.goes_on().await?;
    }
    net.close().await
}

async fn full_ring(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    net.receiver.post(ring::RX_SLOTS)?;
    // Not all: somebody else on the network may have sent, too.
    for _ in 0..ring::RX_SLOTS - 16 {
        net.goes_on().await?;
    }
    net.close().await
}

async fn wraps(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.carries(5000).await?;
    for n in 0..700u32 {
        let made = net.made(PAGE_SIZE + 60 + n as usize, n as u8)?;
        net.passes("a frame", &made).await?;
    }
    net.close().await
}

/// A frame whose buffer is bad, and then good ones.
async fn with_bad(env: &mut Env, readonly: bool) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    if readonly {
        net.receiver.post_as(1, true)?;
    } else {
        net.receiver.post_with(|request| request.gref = u32::MAX)?;
    }
    net.receiver.post(8)?;
    let made = net.made(100, 1)?;
    net.sender.ask(&made).await?;
    let got = net.receive().await?;
    ensure!(got.failed, "a frame was shown in a buffer that cannot be written");
    net.goes_on().await?;
    net.close().await
}

async fn read_only(env: &mut Env) -> Verdict {
    with_bad(env, true).await
}

async fn bad_buffer(env: &mut Env) -> Verdict {
    with_bad(env, false).await
}

async fn not_senders(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    net.receiver.post_with(|request| request.gref = u32::MAX)?;
    let made = net.made(100, 1)?;
    let answers = net.sender.ask(&made).await?;
    ensure_eq!(answers.pieces, [(made.slots[0].id, NETIF_RSP_OKAY)], "the sender's answer");
    net.close().await
}

async fn bad_second(env: &mut Env) -> Verdict {
    let mut net = Net::usual(env).await?;
    net.carries(5000).await?;
    net.close().await?;
    let mut net = Net::receiving(env, &without_stock()).await?;
    net.receiver.post(1)?;
    net.receiver.post_with(|request| request.gref = u32::MAX)?;
    net.receiver.post(8)?;
    let made = net.made(PAGE_SIZE + 500, 1)?;
    net.sender.ask(&made).await?;
    let got = net.receive().await?;
    ensure!(got.failed, "a frame was shown as good that did not arrive whole");
    net.goes_on().await?;
    net.close().await
}

async fn unused(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    net.receiver.post(20)?;
    for _ in 0..10 {
        net.goes_on().await?;
    }
    net.receiver.posted_untouched()?;
    net.close().await
}

async fn no_sg(env: &mut Env) -> Verdict {
    let options = Options::with("feature-sg", 0).and("feature-gso-tcpv4", 0).and("feature-gso-tcpv6", 0);
    let mut net = Net::receiving(env, &options).await?;
    for len in [60, 1000, 1514] {
        let made = net.cut(len, len.div_ceil(4), &[0, 0, 0, 0])?;
        let got = net.passes("a frame", &made).await?;
        ensure_eq!(got.slots, 1, "slots of a frame of {len} bytes");
    }
    net.close().await
}

async fn several_queues(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    require!(net.feature("multi-queue-max-queues").await? >= 2, "the backend has one queue");
    net.join(Which::Receiver, &Options { queues: 2, ..Options::default() }).await?;
    net.join(Which::Sender, &Options::default()).await?;
    let mut frames = Vec::new();
    for seed in 0..20 {
        let made = net.made(100, seed)?;
        net.sender.ask(&made).await?;
        frames.push(made.bytes);
    }
    for queue in 0..2 {
        while let Ok(got) = time::timeout(50_000_000, net.receive_on(queue)).await {
            let bytes = got?.bytes;
            let place = frames.iter().position(|frame| *frame == bytes);
            ensure!(place.is_some(), "a frame that was not sent, or came before");
            frames.remove(place.unwrap_or(0));
        }
    }
    ensure!(frames.is_empty(), "{} of 20 frames did not come", frames.len());
    net.close().await
}

async fn slow(env: &mut Env) -> Verdict {
    let mut net = Net::receiving(env, &without_stock()).await?;
    for round in 0..4 {
        for seed in 0..64u8 {
            let made = net.made(100, seed ^ round)?;
            net.sender.put(&made);
        }
        net.sender.tx().publish();
        net.sender.answers(64).await?;
    }
    net.close().await
}
