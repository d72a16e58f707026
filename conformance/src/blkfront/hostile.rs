//! A backend that breaks the rules. The frontend may end the connection, but must not take nonsense for data.
//! Operations in flight then fail; where the ABI alone is the measure, such operations may also wait for ever.

use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::executor::time;
use ring_abi::io::blkif::*;
use ring_abi::io::xenbus::XenbusState::{Closed, Closing, Connected};

use super::back::{Back, Disk, run};
use super::connect::gives_up;
use super::{BlockFrontend, Sum};
use crate::{Env, Verdict};

cases! {
    needs [Frontend];

    "blkfront.hostile.unknown-id" = unknown_id {
        title: "a response with an id that was never used",
        rule: "A frontend that is answered what it did not ask takes it for nothing that it asked.",
        source: "io/blkif.h, struct blkif_response, id",
    }
    "blkfront.hostile.huge-id" = huge_id {
        title: "responses with the ids 2^64-1, 2^63 and 32",
        rule: "An id is looked up, never used as an address or an index as it is.",
        source: "io/blkif.h, struct blkif_response, id",
    }
    "blkfront.hostile.answered-twice" = twice {
        title: "one request answered twice",
        rule: "A second response to a request answers nothing, and no later request.",
        source: "io/blkif.h, struct blkif_response, id",
    }
    "blkfront.hostile.overrun" = overrun {
        title: "rsp_prod one ahead of req_prod",
        rule: "A frontend that is answered more than it asked takes the surplus for no answer.",
        source: "io/ring.h, RING_RESPONSE_PROD_OVERFLOW; io/blkif.h, struct blkif_response, id",
    }
    "blkfront.hostile.overrun-by-half" = overrun_half {
        title: "rsp_prod 2^31 ahead",
        rule: "A frontend that is answered more than it asked believes none of it.",
        source: "io/ring.h, RING_RESPONSE_PROD_OVERFLOW",
    }
    "blkfront.hostile.back" = backwards {
        title: "rsp_prod one less than it was",
        rule: "Indices only grow: one less is 2^32-1 more, an overrun.",
        source: "io/ring.h, RING_RESPONSE_PROD_OVERFLOW",
    }
    "blkfront.hostile.events" = events {
        title: "a thousand events without responses",
        rule: "An event promises nothing: the indices say what there is.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES",
    }
    "blkfront.hostile.req-prod-rewritten" = req_prod {
        title: "req_prod overwritten by the backend",
        rule: "A frontend keeps its own producer index to itself.",
        source: "io/ring.h, struct blkif_front_ring, req_prod_pvt",
    }
    "blkfront.hostile.requests-rewritten" = requests_rewritten {
        title: "all slots overwritten while requests are in flight",
        rule: "What stands in a shared slot after it was written is the backend's: a frontend does not rely on it.",
        source: "io/ring.h, RING_COPY_RESPONSE",
    }
    "blkfront.hostile.closes-with-requests" = closes {
        title: "Closing and Closed with a read in flight that is never answered",
        rule: "The requests of a connection that has ended do not succeed.",
        source: "io/xenbus.h, XenbusStateClosing, XenbusStateClosed",
    }
    "blkfront.hostile.vanishes-with-requests" = vanishes {
        title: "the backend's directory removed with a read in flight that is never answered",
        rule: "The requests of a connection that has ended do not succeed.",
        source: "io/xenbus.h, XenbusStateUnknown",
    }
    // This case comes last: a kernel that believes the size may hang in its xenbus code.
    "blkfront.connect.garbage-sector-size" = garbage_sector_size {
        title: "sector-size 0, 513 and 2^31",
        rule: "sector-size is a power of two, at least 512.",
        source: "io/blkif.h, 'sector-size'",
    }
}

/// Starts a read of eight sectors and lets `act` misbehave. The read must then fail, or return what is on the
/// disk.
async fn bears(env: &mut Env, act: impl Fn(&mut Back, &BlkifRequest) + Send) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let asked = run(front.clone().read(16, 8));
    let request = back.request().await?;
    act(&mut back, &request);
    time::sleep(50_000_000).await;
    // Now the backend gives the true answer. The result is of no matter: a frontend that has ended the
    // connection no longer grants its pages.
    let _ = back.perform(&request);
    back.push(request.id, request.operation, BLKIF_RSP_OKAY);
    back.publish(true);
    if let Some(Ok(data)) = back.given_up(asked).await? {
        ensure!(data == Sum::of(&back.data[16 * 512..24 * 512]), "the read gave other data");
    }
    goes_on(&mut back, &front).await
}

/// Checks that a later read either fails or returns the right data, whether or not the frontend ended the
/// connection.
async fn goes_on(back: &mut Back, front: &Arc<dyn BlockFrontend>) -> Verdict {
    let asked = run(front.clone().read(0, 8));
    if let Some(Ok(data)) = back.serve_given_up(asked).await? {
        ensure!(data == Sum::of(&back.data[..8 * 512]), "a later read gave other data");
    }
    Ok(())
}

async fn unknown_id(env: &mut Env) -> Verdict {
    bears(env, |back, request| {
        back.push(request.id ^ 1, request.operation, BLKIF_RSP_OKAY);
        back.publish(true);
    })
    .await
}

async fn huge_id(env: &mut Env) -> Verdict {
    for id in [u64::MAX, 1 << 63, 32] {
        bears(env, |back, request| {
            back.push(id, request.operation, BLKIF_RSP_OKAY);
            back.publish(true);
        })
        .await?;
    }
    Ok(())
}

async fn twice(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let first = run(front.clone().read(0, 8));
    let second = run(front.clone().read(8, 8));
    let requests = [back.request().await?, back.request().await?];
    back.perform(&requests[0])?;
    back.push(requests[0].id, BLKIF_OP_READ, BLKIF_RSP_OKAY);
    back.push(requests[0].id, BLKIF_OP_READ, BLKIF_RSP_OKAY);
    back.publish(true);
    if let Ok(data) = back.end(first).await? {
        ensure!(data == Sum::of(&back.data[..8 * 512]), "the first read gave other data");
    }
    // The second read was never answered, so the second has failed or still waits.
    let waiting = time::timeout(100_000_000, second).await;
    ensure!(!matches!(waiting, Ok(Ok(Ok(_)))), "a read that was never answered succeeded");
    Ok(())
}

async fn overrun(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let asked = run(front.clone().read(16, 8));
    let request = back.request().await?;
    // The backend carries out the first request: a frontend that takes responses one by one may believe the
    // first response.
    back.perform(&request)?;
    back.push(request.id, request.operation, BLKIF_RSP_OKAY);
    back.push(request.id, request.operation, BLKIF_RSP_OKAY);
    back.publish(true);
    if let Some(Ok(data)) = back.given_up(asked).await? {
        ensure!(data == Sum::of(&back.data[16 * 512..24 * 512]), "the read gave other data");
        ensure!(!back.strict, "a read succeeded on a ring with more answers than requests");
    }
    goes_on(&mut back, &front).await
}

async fn overrun_half(env: &mut Env) -> Verdict {
    bears(env, |back, _| back.claim(1 << 31)).await
}

async fn backwards(env: &mut Env) -> Verdict {
    bears(env, |back, _| back.claim(u32::MAX)).await
}

async fn events(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let asked = run(front.clone().read(16, 8));
    for _ in 0..1000 {
        back.notify();
    }
    let got = back.serve(asked).await?;
    ensure!(got == Ok(Sum::of(&back.data[16 * 512..24 * 512])), "the read gave other data");
    Ok(())
}

/// What the backend writes over the frontend's index.
const OVERWRITTEN: u32 = 0x1234_5678;

async fn req_prod(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    for n in 0..5 {
        let asked = run(front.clone().read(n, 1));
        let request = back.request().await?;
        let true_prod = back.indices()[0];
        back.overwrite_req_prod(OVERWRITTEN);
        back.perform(&request)?;
        back.respond(&request, BLKIF_RSP_OKAY);
        let got = back.end(asked).await?;
        ensure!(got.is_ok(), "a read failed: {:?}", got.err());
        // The frontend must number the next request by its private index, not by the overwritten one.
        let asked = run(front.clone().read(n, 1));
        let now = back.req_prod_after(OVERWRITTEN).await?;
        ensure_eq!(now, true_prod + 1, "req_prod after the next request");
        let got = back.serve(asked).await?;
        ensure!(got.is_ok(), "a read failed: {:?}", got.err());
    }
    Ok(())
}

async fn requests_rewritten(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let asked: Vec<_> = (0..16).map(|n| run(front.clone().read(n * 8, 8))).collect();
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(back.request().await?);
    }
    back.overwrite_slots(0xff);
    for request in &open {
        back.perform(request)?;
        back.push(request.id, request.operation, BLKIF_RSP_OKAY);
    }
    back.publish(false);
    for (n, asked) in asked.into_iter().enumerate() {
        let got = back.end(asked).await?;
        ensure!(got == Ok(Sum::of(&back.data[n * 4096..(n + 1) * 4096])), "read {n} gave other data");
    }
    Ok(())
}

/// Checks that a read in flight does not succeed when the backend goes away.
async fn goes(env: &mut Env, act: impl Fn(&mut Back) + Send) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let asked = run(front.clone().read(16, 8));
    back.request().await?;
    back.detach();
    act(&mut back);
    let result = back.given_up(asked).await?;
    ensure!(!matches!(result, Some(Ok(_))), "a read that was never answered succeeded");
    Ok(())
}

async fn closes(env: &mut Env) -> Verdict {
    goes(env, |back| {
        back.set_state(Closing);
        back.set_state(Closed);
    })
    .await
}

async fn vanishes(env: &mut Env) -> Verdict {
    goes(env, |back| back.vanish()).await
}

async fn garbage_sector_size(env: &mut Env) -> Verdict {
    for size in ["0", "513", "2147483648"] {
        gives_up(env, |back| {
            back.set("sectors", 1024);
            back.set("sector-size", size);
            back.set("info", 0);
            back.set_state(Connected);
        })
        .await?;
    }
    Ok(())
}
