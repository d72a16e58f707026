//! Rings of several pages, and several rings.

use alloc::vec::Vec;

use super::front::{Front, Options};
use super::ring::all_answered;
use crate::{Env, Need, Verdict};

cases! {
    needs [Store, Disk];

    "blkif.pages.order-0" = order_0 {
        title: "ring-page-order 0 with ring-ref0",
        rule: "A frontend that writes ring-page-order names its pages ring-ref0 and on.",
        source: "io/blkif.h, 'ring-page-order', 'ring-ref%u'",
    }
    "blkif.pages.order-1" = order_1 {
        title: "a ring of two pages, full",
        rule: "With ring-page-order = 1 the ring has 64 slots on two pages.",
        source: "io/blkif.h, 'ring-page-order'; io/ring.h, __RING_SIZE",
    }
    "blkif.pages.order-2" = order_2 {
        title: "a ring of four pages, full",
        rule: "With ring-page-order = 2 the ring has 128 slots on four pages.",
        source: "io/blkif.h, 'ring-page-order'; io/ring.h, __RING_SIZE",
    }
    "blkif.pages.largest" = order_max {
        title: "a ring of as many pages as the backend takes, full",
        rule: "A backend takes rings up to its max-ring-page-order.",
        source: "io/blkif.h, 'max-ring-page-order'",
    }
    "blkif.queues.one" = one_queue {
        title: "multi-queue-num-queues = 1",
        rule: "A single queue's ring-ref and event-channel stand in the frontend's directory itself.",
        source: "io/blkif.h, 'multi-queue-num-queues', 'queue-N'",
    }
    "blkif.queues.two" = two_queues {
        title: "two queues, both in use",
        rule: "With multi-queue-num-queues = 2 each of queue-0 and queue-1 has a ring and an event channel.",
        source: "io/blkif.h, 'multi-queue-max-queues', 'queue-N'",
    }
}

/// Connects with a ring of 2^`order` pages and fills it twice.
async fn pages(env: &mut Env, order: u32) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let most: u32 =
        device.read_back("max-ring-page-order").await?.and_then(|text| text.parse().ok()).unwrap_or(0);
    require!(order == 0 || order <= most, "the backend takes rings of order {most} at most");
    let options = Options { order: Some(order), ..Options::default() };
    let mut front = Front::connect_device(device, &options).await?;
    let buffer = front.buffer(1 << order)?;
    let slots = front.ring().slots;
    ensure_eq!(slots, 32 << order, "slots");
    for round in 0..2u64 {
        let ids: Vec<u64> = (0..u64::from(slots)).map(|n| round << 32 | n).collect();
        all_answered(front.ring(), &buffer, &ids).await?;
    }
    front.close().await
}

async fn order_0(env: &mut Env) -> Verdict {
    pages(env, 0).await
}

async fn order_1(env: &mut Env) -> Verdict {
    pages(env, 1).await
}

async fn order_2(env: &mut Env) -> Verdict {
    pages(env, 2).await
}

async fn order_max(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let most: Option<u32> = device.read_back("max-ring-page-order").await?.and_then(|text| text.parse().ok());
    require!(most.is_some_and(|most| most > 0), "the backend takes rings of one page");
    let most = most.unwrap_or(0);
    ensure!(most <= 8, "max-ring-page-order is {most}");
    pages(device.env, most).await
}

async fn one_queue(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let most = device.read_back("multi-queue-max-queues").await?;
    require!(most.is_some(), "the backend has no queues to choose");
    let mut front = Front::connect_device(device, &Options { queues: Some(1), ..Options::default() }).await?;
    let buffer = front.buffer(1)?;
    all_answered(front.ring(), &buffer, &[1, 2, 3]).await?;
    front.close().await
}

async fn two_queues(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let most: u32 =
        device.read_back("multi-queue-max-queues").await?.and_then(|text| text.parse().ok()).unwrap_or(1);
    require!(most >= 2, "the backend has one queue");
    let mut front = Front::connect_device(device, &Options { queues: Some(2), ..Options::default() }).await?;
    let buffer = front.buffer(1)?;
    for round in 0..4u64 {
        for queue in 0..2 {
            let ids: Vec<u64> = (0..32).map(|n| round << 16 | n).collect();
            all_answered(&mut front.rings[queue], &buffer, &ids).await?;
        }
    }
    front.close().await
}
