//! What becomes of frames in pages that are lent.

use alloc::vec::Vec;

use pvrt::executor::time;
use ring_abi::io::netif::*;

use super::control::{SUCCESS, supported, with_control};
use super::front::{Made, Net, Options, Which};
use super::staging::{ADD, DEL, INVALID, add, ask, entries, remove, with_stage};
use crate::shared::Granted;
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.staging.receive-into-lent-pages" = receive {
        title: "frames of 60 to 9000 bytes into buffers that are lent",
        rule: "A receive request may name a page that is lent as any other.",
        source: "io/netif.h, 'Static Grants'",
    }
    "netif.staging.lengths" = lengths {
        title: "frames of 14 to 4096 bytes from lent pages, at several offsets",
        rule: "A frame has the bytes that its request names, whether or not its page is lent.",
        source: "io/netif.h, 'Static Grants'; struct netif_tx_request",
    }
    "netif.staging.rewritten-between-frames" = rewritten {
        title: "a lent page whose bytes are others for each frame",
        rule: "A lent page is the frontend's memory still: a frame has the bytes that are there when it is sent.",
        source: "io/netif.h, 'Static Grants'",
    }
    "netif.staging.lent-for-reading-as-buffer" = reading_as_buffer {
        title: "buffers that are granted for writing and lent for reading",
        rule: "The flag is the mapping's: a buffer's grant allows writing still.",
        source: "io/netif.h, XEN_NETIF_CTRLF_GREF_readonly; struct netif_rx_request, gref",
    }
    "netif.staging.read-only-grant" = read_only_grant {
        title: "pages granted for reading alone, lent without the flag",
        rule: "A grant that does not allow writing cannot be mapped for writing: none of the list is added.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, NOTE; grant_table.h, GTF_readonly",
    }
    "netif.staging.used-after-removal" = used_after_removal {
        title: "a frame in a page that was lent, taken back and is granted no more",
        rule: "A page that was taken back is the frontend's alone: a request that names it is an error.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING; NETIF_RSP_ERROR",
    }
    "netif.staging.removed-under-way" = removed_under_way {
        title: "lent pages taken back while their frames wait for a receiver",
        rule: "A removal is answered, and the pages are the frontend's, whatever is under way.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING",
    }
    "netif.staging.another-queue" = another_queue {
        title: "frames by the second queue from pages lent for the first",
        rule: "A list is a queue's: another queue uses the page by its grant.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, data[0]",
    }
    "netif.staging.two-queues-lend-one-page" = two_queues_one_page {
        title: "one page lent for two queues, and taken back from both",
        rule: "Each queue has a list of its own: the page is mapped until both have given it back.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_{ADD,DEL}_GREF_MAPPING, data[0]",
    }
    "netif.staging.new-connection" = new_connection {
        title: "the removal of pages that the connection before had lent",
        rule: "What a connection lent is given back at its end: the next knows nothing of it.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING, NOTE",
    }
    "netif.staging.unknown-flags" = unknown_flags {
        title: "entries with flags that do not exist",
        rule: "Such a list is answered, added as a whole or not at all, and what follows is served.",
        source: "io/netif.h, struct xen_netif_gref, flags",
    }
    "netif.staging.list-within-a-lent-page" = list_is_lent {
        title: "a list in a page that the list itself lends",
        rule: "A list is read before its pages are mapped: its page may be one of them.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING",
    }
}

/// The end with a control ring lends the buffers that wait on its first queue.
async fn lend_buffers(net: &mut Net<'_>, most: u32, flags: u16) -> Verdict<Vec<XenNetifGref>> {
    let grefs = net.sender.posted();
    let list: Vec<_> = grefs
        .iter()
        .take(most as usize)
        .map(|&gref| XenNetifGref { r#ref: gref, flags, status: 0 })
        .collect();
    require!(!list.is_empty(), "no buffer waits");
    add(net, &list).await?;
    Ok(list)
}

/// Frames that the lending end receives.
async fn frames_arrive(net: &mut Net<'_>, sizes: &[usize]) -> Verdict {
    net.swap();
    let mut result = Ok(());
    for (seed, &size) in sizes.iter().enumerate() {
        let made = net.made(size, seed as u8);
        result = match made {
            Ok(made) => net.passes("a frame into a lent page", &made).await.map(|_| ()),
            Err(problem) => Err(problem),
        };
        if result.is_err() {
            break;
        }
    }
    net.swap();
    result
}

async fn receive(env: &mut Env) -> Verdict {
    let (mut net, most) = with_stage(env).await?;
    let list = lend_buffers(&mut net, most, 0).await?;
    // Buffers that are posted later are not lent.
    frames_arrive(&mut net, &[60, 200, 256, 257, 1514, 60, 4096, 60, 1514, 100]).await?;
    let (_, count, _) = ask(&mut net, DEL, &list).await?;
    ensure_eq!(count as usize, list.len(), "pages that were taken back");
    frames_arrive(&mut net, &[60, 1514, 60]).await?;
    net.close().await
}

async fn lengths(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    for (size, offset) in [(14, 0), (60, 4000), (255, 1), (256, 3840), (257, 7), (1514, 2000), (4096, 0)] {
        let made = net.cut(size, size, &[offset])?;
        let list = entries(&made.pages, XEN_NETIF_CTRLF_GREF_READONLY);
        add(&mut net, &list).await?;
        if size == 14 {
            net.sender.ask(&made).await?;
            net.goes_on_past(&made).await?;
        } else {
            net.passes("a frame from a lent page", &made).await?;
        }
        remove(&mut net, &list).await?;
    }
    net.close().await
}

async fn rewritten(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let mut made = net.made(200, 0)?;
    let list = entries(&made.pages, XEN_NETIF_CTRLF_GREF_READONLY);
    add(&mut net, &list).await?;
    for seed in 0..20 {
        made.bytes = net.frame(200, seed);
        made.pages.bytes().write(0, &made.bytes);
        net.passes("a frame from a lent page", &made).await?;
    }
    net.close().await
}

async fn reading_as_buffer(env: &mut Env) -> Verdict {
    let (mut net, most) = with_stage(env).await?;
    lend_buffers(&mut net, most, XEN_NETIF_CTRLF_GREF_READONLY).await?;
    frames_arrive(&mut net, &[60, 1514, 100, 60]).await?;
    net.close().await
}

async fn read_only_grant(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let (good, readonly) = (Granted::new(net.sender.dom, 2, false)?, Granted::new(net.sender.dom, 1, true)?);
    let list = [entries(&good, 0), entries(&readonly, 0)].concat();
    ensure_eq!(ask(&mut net, ADD, &list).await?.0, INVALID, "status of a list with a page for reading");
    ensure!(!good.in_use() && !readonly.in_use(), "a page of a refused list is mapped");
    net.goes_on().await?;
    net.close().await
}

async fn used_after_removal(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let mut made = net.made(200, 9)?;
    let list = entries(&made.pages, XEN_NETIF_CTRLF_GREF_READONLY);
    add(&mut net, &list).await?;
    net.passes("a frame from a lent page", &made).await?;
    remove(&mut net, &list).await?;
    // The request's answer takes a buffer's place at most, so no new grant takes the old one's number.
    made.pages = Granted::new(net.sender.dom, 1, true)?;
    ensure!(made.pages.gref(0) != made.slots[0].gref, "the old grant is there still");
    net.refused("a frame in a page that was taken back", &made).await?;
    net.close().await
}

async fn removed_under_way(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    let most = supported(&mut net, XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE, [0; 3], SUCCESS).await?;
    require!(most >= 8, "the backend keeps {most} pages");
    net.reset(Which::Receiver).await?;
    net.join(Which::Receiver, &Options { post: 0, ..Options::default() }).await?;
    let made = net.cut(1500, 600, &[0, 100, 0])?;
    let list = entries(&made.pages, XEN_NETIF_CTRLF_GREF_READONLY);
    add(&mut net, &list).await?;
    net.sender.put(&made);
    net.sender.tx().publish();
    remove(&mut net, &list).await?;
    ensure!(!made.pages.in_use(), "a page that was taken back is mapped");
    net.receiver.post(32)?;
    let answers = net.sender.answers(made.slots.len()).await?;
    ensure_eq!(answers.pieces.len(), made.slots.len(), "answers to a frame");
    // Whether the frame waited long enough is open.
    time::sleep(20_000_000).await;
    net.reset(Which::Receiver).await?;
    net.join(Which::Receiver, &Options::default()).await?;
    net.goes_on().await?;
    net.close().await
}

/// A net whose lending end has two queues.
async fn two_queues(env: &mut Env) -> Verdict<Net<'_>> {
    let mut net = with_control(env, 2).await?;
    for queue in [0, 1] {
        let kind = XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE;
        let most = supported(&mut net, kind, [queue, 0, 0], SUCCESS).await?;
        require!(most >= 8, "the backend keeps {most} pages of queue {queue}");
    }
    Ok(net)
}

/// Asks with a list for a queue; gives the status and the data.
async fn ask_for(net: &mut Net<'_>, queue: u32, kind: u16, list: &[XenNetifGref]) -> Verdict<(u32, u32)> {
    let page = Granted::new(net.sender.dom, 1, false)?;
    page.bytes().write(0, zerocopy::IntoBytes::as_bytes(list));
    net.sender.control(kind, [queue, page.gref(0), list.len() as u32]).await
}

async fn another_queue(env: &mut Env) -> Verdict {
    let mut net = two_queues(env).await?;
    let made = net.made(300, 4)?;
    let list = entries(&made.pages, XEN_NETIF_CTRLF_GREF_READONLY);
    ensure_eq!(ask_for(&mut net, 0, ADD, &list).await?.0, SUCCESS, "status of a list");
    for _ in 0..3 {
        let ring = &mut net.sender.queues[1].tx;
        ring.push(&made.slots[0]);
        ring.publish();
        let (_, response) = ring.response::<NetifTxResponse>().await?;
        ensure_eq!(response.status, NETIF_RSP_OKAY, "status of a frame by the second queue");
        let got = net.receive().await?;
        super::front::same("a frame by the second queue", &got.bytes, &made.bytes)?;
    }
    net.close().await
}

async fn two_queues_one_page(env: &mut Env) -> Verdict {
    let mut net = two_queues(env).await?;
    let pages = Granted::new(net.sender.dom, 1, false)?;
    let list = entries(&pages, 0);
    ensure_eq!(ask_for(&mut net, 0, ADD, &list).await?.0, SUCCESS, "status of a list");
    let second = ask_for(&mut net, 1, ADD, &list).await?.0;
    ensure_eq!(ask_for(&mut net, 0, DEL, &list).await?, (SUCCESS, 1), "status and count of a removal");
    if second == SUCCESS {
        ensure!(pages.in_use(), "a page that the second queue lends is mapped no more");
        ensure_eq!(ask_for(&mut net, 1, DEL, &list).await?, (SUCCESS, 1), "status and count of a removal");
    }
    ensure!(!pages.in_use(), "a page that was taken back is mapped");
    net.close().await
}

async fn new_connection(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 4, false)?;
    let list = entries(&pages, 0);
    add(&mut net, &list).await?;
    net.reset(Which::Sender).await?;
    ensure!(!pages.in_use(), "a page is mapped after the connection's end");
    net.join(Which::Sender, &Options { control: true, ..Options::default() }).await?;
    ensure_eq!(ask(&mut net, DEL, &list).await?.1, 0, "pages of another connection that were taken back");
    add(&mut net, &list).await?;
    net.close().await
}

async fn unknown_flags(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 2, false)?;
    for flags in [2, 0x8000, u16::MAX] {
        let mut list = entries(&pages, 0);
        list[1].flags = flags;
        let (status, ..) = ask(&mut net, ADD, &list).await?;
        let (_, count, _) = ask(&mut net, DEL, &list).await?;
        ensure_eq!(count, if status == SUCCESS { 2 } else { 0 }, "pages that a list has added");
        ensure!(!pages.in_use(), "a page is mapped after its removal");
    }
    net.goes_on().await?;
    net.close().await
}

async fn list_is_lent(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 2, false)?;
    let list = entries(&pages, 0);
    let data = [0, pages.gref(0), 2];
    for kind in [ADD, DEL] {
        pages.bytes().write(0, zerocopy::IntoBytes::as_bytes(&list[..]));
        let (status, count) = net.sender.control(kind, data).await?;
        ensure_eq!((status, count), (SUCCESS, if kind == DEL { 2 } else { 0 }), "status and count of a list");
    }
    ensure!(!pages.in_use(), "a page that was taken back is mapped");
    let made = Made::whole(net.sender.dom, &net.frame(60, 1))?;
    net.passes("a frame", &made).await?;
    net.close().await
}
