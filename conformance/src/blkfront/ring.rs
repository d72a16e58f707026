//! A frontend's use of the ring: how many requests, which ids, whose events.

use alloc::vec::Vec;

use ring_abi::io::blkif::BLKIF_RSP_OKAY;

use super::Sum;
use super::back::{Back, Disk, run};
use super::requests::{range, reads};
use crate::{Env, Verdict};

cases! {
    needs [Frontend];

    "blkfront.ring.no-more-than-32" = no_more_than_32 {
        title: "a hundred reads at once, none answered",
        rule: "A frontend has no more requests open than the ring has slots.",
        source: "io/ring.h, RING_FULL",
    }
    "blkfront.ring.out-of-order" = out_of_order {
        title: "24 reads answered from the last to the first",
        rule: "Responses come in any order: the id says which request they answer.",
        source: "io/blkif.h, struct blkif_response, id",
    }
    "blkfront.ring.ids-differ" = ids_differ {
        title: "the ids of 32 requests in flight",
        rule: "A frontend can tell its requests apart by their ids.",
        source: "io/blkif.h, struct blkif_request, id",
    }
    "blkfront.ring.many-rounds" = many_rounds {
        title: "two hundred reads, one after the other",
        rule: "Indices run on: the slot of an index is its remainder by the ring's size.",
        source: "io/ring.h, RING_GET_RESPONSE",
    }
    "blkfront.ring.only-owed-events" = owed_events {
        title: "responses in batches, with events only where rsp_event asks",
        rule: "A frontend sees every response whose event its rsp_event did not ask for.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES",
    }
}

async fn no_more_than_32(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let asked: Vec<_> = (0..100).map(|n| run(front.clone().read(n * 8, 8))).collect();
    let mut open = Vec::new();
    for _ in 0..32 {
        open.push(back.request().await?);
    }
    back.silent().await?;
    for request in open {
        back.perform(&request)?;
        back.respond(&request, BLKIF_RSP_OKAY);
    }
    for (n, asked) in asked.into_iter().enumerate() {
        let got = back.serve(asked).await?;
        ensure!(got == Ok(Sum::of(&back.data[range(n as u64 * 8, 8)])), "read {n} gave other data");
    }
    Ok(())
}

async fn out_of_order(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let asked: Vec<_> = (0..24).map(|n| run(front.clone().read(n * 3, 3))).collect();
    let mut open = Vec::new();
    for _ in 0..24 {
        open.push(back.request().await?);
    }
    for request in open.into_iter().rev() {
        back.perform(&request)?;
        back.respond(&request, BLKIF_RSP_OKAY);
    }
    for (n, asked) in asked.into_iter().enumerate() {
        let got = back.end(asked).await?;
        ensure!(got == Ok(Sum::of(&back.data[range(n as u64 * 3, 3)])), "read {n} gave other data");
    }
    Ok(())
}

async fn ids_differ(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let asked: Vec<_> = (0..32).map(|n| run(front.clone().read(n, 1))).collect();
    let mut ids = Vec::new();
    for _ in 0..32 {
        let request = back.request().await?;
        ensure!(!ids.contains(&request.id), "two requests in flight have the id {:#x}", request.id);
        ids.push(request.id);
    }
    drop(asked);
    Ok(())
}

async fn many_rounds(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    for n in 0..200 {
        reads(&mut back, &front, n, 1).await?;
    }
    Ok(())
}

async fn owed_events(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    for round in 0..20u64 {
        let asked: Vec<_> = (0..10).map(|n| run(front.clone().read(round * 10 + n, 1))).collect();
        for part in [1, 6, 3] {
            for _ in 0..part {
                let request = back.request().await?;
                back.perform(&request)?;
                back.push(request.id, request.operation, BLKIF_RSP_OKAY);
            }
            back.publish(false);
        }
        for asked in asked {
            let result = back.end(asked).await?;
            ensure!(result.is_ok(), "a read failed: {:?}", result.err());
        }
    }
    Ok(())
}
