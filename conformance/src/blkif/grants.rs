//! The pages of requests: bad grants, grants given back, persistent grants.

use alloc::vec::Vec;

use pvrt::executor::time;
use pvrt::mem::Pages;
use ring_abi::io::blkif::*;
use ring_abi::types::DomId;

use super::front::{Front, Options, PATIENCE_MS, pattern, segment, transfer};
use super::transfers::PLACE;
use crate::shared::Granted;
use crate::{Env, Problem, Verdict};

cases! {
    needs [Store, Disk];

    "blkif.grants.none" = none {
        title: "grant references that cannot be: 2^32-1, 2^31, one behind the table",
        rule: "A request whose page cannot be mapped is answered with an error.",
        source: "io/blkif.h, struct blkif_request_segment, gref; grant_table.h, GNTST_bad_gntref",
    }
    "blkif.grants.never-made" = never_made {
        title: "a grant reference within the table that grants nothing",
        rule: "A request whose page cannot be mapped is answered with an error.",
        source: "grant_table.h, GTF_invalid",
    }
    "blkif.grants.taken-back" = taken_back {
        title: "a page whose grant has ended",
        rule: "A request whose page cannot be mapped is answered with an error, and the page is not touched.",
        source: "grant_table.h, GTF_invalid",
    }
    "blkif.grants.read-into-read-only" = read_into_read_only {
        title: "a read into a page granted read-only",
        rule: "A page granted read-only is not written.",
        source: "grant_table.h, GTF_readonly",
    }
    "blkif.grants.of-another" = of_another {
        title: "a page granted to another domain",
        rule: "A grant is for the domain that it names.",
        source: "grant_table.h, struct grant_entry_v1, domid",
        also: [Hypervisor],
    }
    "blkif.grants.ten-good-and-one-bad" = ten_and_one {
        title: "a write of ten good pages and one that was not granted",
        rule: "A request with a bad page is refused as a whole, and its good pages are given back.",
        source: "io/blkif.h, BLKIF_RSP_ERROR; grant_table.h",
    }
    "blkif.grants.bad-first" = bad_first {
        title: "a read of one page that was not granted and ten good ones",
        rule: "A request with a bad page is refused as a whole, and its good pages are given back.",
        source: "io/blkif.h, BLKIF_RSP_ERROR; grant_table.h",
    }
    "blkif.grants.bad-among-good" = bad_among {
        title: "good and bad requests in one batch",
        rule: "A request that is refused does not disturb its neighbours.",
        source: "io/blkif.h, BLKIF_RSP_ERROR",
    }
    "blkif.grants.given-back" = given_back {
        title: "pages of reads and writes once they are answered",
        rule: "Without feature-persistent a page is the frontend's again when its request is answered.",
        source: "io/blkif.h, 'feature-persistent'",
    }
    "blkif.grants.given-back-after-a-full-ring" = given_back_full {
        title: "352 pages in flight, each granted once",
        rule: "Without feature-persistent a page is the frontend's again when its request is answered.",
        source: "io/blkif.h, 'feature-persistent'",
    }
    "blkif.grants.one-page-in-many" = one_in_many {
        title: "one page in 32 requests in flight",
        rule: "A grant may be used by several requests at a time.",
        source: "io/blkif.h, struct blkif_request_segment, gref",
    }
    "blkif.grants.high-references" = high {
        title: "a grant reference above 1024, in the third page of the table",
        rule: "A grant reference has 32 bits: the table may have many pages.",
        source: "grant_table.h, grant_ref_t",
    }
    "blkif.persistent.announced" = persistent_announced {
        title: "the backend's feature-persistent",
        rule: "feature-persistent is 0 or 1.",
        source: "io/blkif.h, 'feature-persistent'",
    }
    "blkif.persistent.reuse" = persistent_reuse {
        title: "one page for forty writes and reads, grants persistent",
        rule: "With feature-persistent at both ends the backend may keep a page mapped, and each request sees the page's content of its time.",
        source: "io/blkif.h, 'feature-persistent'",
    }
    "blkif.persistent.many-pages" = persistent_many {
        title: "more pages than the backend may keep, grants persistent",
        rule: "A backend that keeps pages mapped serves those that it does not keep, too.",
        source: "io/blkif.h, 'feature-persistent'",
    }
    "blkif.persistent.given-back-at-close" = persistent_close {
        title: "persistent pages after the backend has closed",
        rule: "A backend that has closed has no page of the frontend's mapped.",
        source: "io/blkif.h, 'feature-persistent'; io/xenbus.h, XenbusStateClosed",
    }
    "blkif.persistent.frontend-only" = persistent_not_offered {
        title: "feature-persistent = 1 from the frontend, whatever the backend announced",
        rule: "A frontend may offer persistent grants to a backend that has none.",
        source: "io/blkif.h, 'feature-persistent'",
    }
}

/// Checks that the backend refuses a read into the page of grant `gref`, and a write from it.
async fn refused(front: &mut Front<'_>, gref: u32) -> Verdict {
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(gref, 0, 7)]);
    front.ring().refused("a read into a page that is not granted", &request).await?;
    let request = transfer(BLKIF_OP_WRITE, PLACE, &[segment(gref, 0, 7)]);
    front.ring().refused("a write from a page that is not granted", &request).await?;
    Ok(())
}

async fn none(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 90).await?;
    for gref in [u32::MAX, 1 << 31, 1 << 24] {
        refused(&mut front, gref).await?;
    }
    front.holds("after refused requests", PLACE, 8, 90).await?;
    front.close().await
}

async fn never_made(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 91).await?;
    // Reference 7 is reserved for the toolstack and this kernel does not use it; 0 and 1 are the console's
    // and xenstore's.
    refused(&mut front, 7).await?;
    front.holds("after refused requests", PLACE, 8, 91).await?;
    front.close().await
}

async fn taken_back(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 92).await?;
    let pages = Pages::zeroed(1).map_err(|_| Problem::Error("out of memory".into()))?;
    let granted = pvrt::grant::Granted::whole(pages, front.device.dom, false)
        .map_err(|errno| Problem::Error(alloc::format!("granting a page: {errno}")))?;
    let gref = granted.gref(0).raw();
    let pages =
        granted.end().map_err(|_| Problem::Error("a page that nobody was told of is in use".into()))?;
    refused(&mut front, gref).await?;
    let mut bytes = [0u8; 4096];
    pages.bytes().read(0, &mut bytes);
    ensure!(bytes.iter().all(|byte| *byte == 0), "a page whose grant has ended was written");
    front.holds("after refused requests", PLACE, 8, 92).await?;
    front.close().await
}

async fn read_into_read_only(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 93).await?;
    let page = Granted::new(front.device.dom, 1, true)?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(page.gref(0), 0, 7)]);
    front.ring().refused("a read into a page granted read-only", &request).await?;
    let mut bytes = [0u8; 4096];
    page.bytes().read(0, &mut bytes);
    ensure!(bytes.iter().all(|byte| *byte == 0), "a page granted read-only was written");
    front.holds("after a refused request", PLACE, 8, 93).await?;
    front.close().await
}

async fn of_another(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let page = Granted::new(DomId::new(0x7ee0), 1, false)?;
    refused(&mut front, page.gref(0)).await?;
    front.close().await
}

/// Checks that the backend refuses a request of eleven pages if the reference of page `bad` names no grant.
async fn one_bad(env: &mut Env, operation: u8, bad: usize) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 88, 94).await?;
    let buffer = front.buffer(11)?;
    let mut segments: Vec<_> = (0..11).map(|page| segment(buffer.gref(page), 0, 7)).collect();
    segments[bad].gref = u32::MAX;
    front.ring().refused("a request with one bad page", &transfer(operation, PLACE, &segments)).await?;
    ensure!(!buffer.in_use(), "pages of a refused request are still mapped");
    front.holds("after a refused request", PLACE, 88, 94).await?;
    front.close().await
}

async fn ten_and_one(env: &mut Env) -> Verdict {
    one_bad(env, BLKIF_OP_WRITE, 10).await
}

async fn bad_first(env: &mut Env) -> Verdict {
    one_bad(env, BLKIF_OP_READ, 0).await
}

async fn bad_among(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 95).await?;
    let buffer = front.buffer(1)?;
    for n in 0..30u64 {
        let gref = if n % 3 == 2 { u32::MAX } else { buffer.gref(0) };
        let mut request = transfer(BLKIF_OP_READ, PLACE, &[segment(gref, 0, 7)]);
        request.id = n;
        front.ring().push(&request);
    }
    front.ring().publish();
    for _ in 0..30 {
        let response = front.ring().response().await?;
        let good = response.status == BLKIF_RSP_OKAY;
        ensure_eq!(good, response.id % 3 != 2, "success of request {}", response.id);
    }
    ensure_eq!(buffer.bytes().load_u8(0), pattern(PLACE, 95), "the first byte");
    front.close().await
}

async fn given_back(env: &mut Env) -> Verdict {
    let mut front = Front::connect(env, &Options { persistent: Some(false), ..Options::default() }).await?;
    let buffer = front.buffer(3)?;
    for n in 0..20 {
        let operation = if n % 2 == 0 { BLKIF_OP_READ } else { BLKIF_OP_WRITE };
        let segments: [_; 3] = core::array::from_fn(|page| segment(buffer.gref(page), 0, 7));
        front.ring().succeeds("a request", &transfer(operation, PLACE, &segments)).await?;
        ensure!(!buffer.in_use(), "pages of an answered request are still mapped");
    }
    front.close().await
}

async fn given_back_full(env: &mut Env) -> Verdict {
    let mut front = Front::connect(env, &Options { persistent: Some(false), ..Options::default() }).await?;
    let buffer = front.buffer(352)?;
    for n in 0..32usize {
        let segments: [_; 11] = core::array::from_fn(|page| segment(buffer.gref(n * 11 + page), 0, 7));
        let mut request = transfer(BLKIF_OP_READ, PLACE + n as u64 * 8, &segments);
        request.id = n as u64;
        front.ring().push(&request);
    }
    front.ring().publish();
    for _ in 0..32 {
        let response = front.ring().response().await?;
        ensure_eq!(response.status, BLKIF_RSP_OKAY, "status of request {}", response.id);
    }
    ensure!(!buffer.in_use(), "pages of answered requests are still mapped");
    front.close().await
}

async fn one_in_many(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 96).await?;
    let buffer = front.buffer(1)?;
    for n in 0..32u64 {
        let mut request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 7); 3]);
        // The case stays well below 128 uses of a grant at a time: a hypervisor may count uses in seven bits.
        request.nr_segments = 1 + (n % 3) as u8;
        request.id = n;
        front.ring().push(&request);
    }
    front.ring().publish();
    for _ in 0..32 {
        let response = front.ring().response().await?;
        ensure_eq!(response.status, BLKIF_RSP_OKAY, "status of request {}", response.id);
    }
    front.close().await
}

async fn high(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 97).await?;
    let mut low = Vec::new();
    let high = loop {
        let page = front.buffer(1)?;
        if page.gref(0) > 1024 {
            break page;
        }
        low.push(page);
    };
    drop(low);
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(high.gref(0), 0, 7)]);
    front.ring().succeeds("a read", &request).await?;
    ensure_eq!(high.bytes().load_u8(4095), pattern(PLACE + 7, 97), "the last byte");
    front.close().await
}

async fn persistent_announced(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    if let Some(text) = front.device.read_back("feature-persistent").await? {
        ensure!(matches!(text.trim(), "0" | "1"), "feature-persistent is {text:?}");
    }
    front.close().await
}

/// Connects with persistent grants, or skips the case where the backend does not offer them.
async fn persistent(env: &mut Env) -> Verdict<Front<'_>> {
    let mut front = Front::connect(env, &Options { persistent: Some(true), ..Options::default() }).await?;
    let announced = front.feature("feature-persistent").await?;
    require!(announced == 1, "the backend has no persistent grants");
    Ok(front)
}

async fn reuse(front: &mut Front<'_>) -> Verdict {
    let buffer = front.buffer(1)?;
    for round in 0..40u8 {
        let sector = PLACE + u64::from(round % 4);
        buffer.bytes().fill(0, 4096, round);
        let request = transfer(BLKIF_OP_WRITE, sector, &[segment(buffer.gref(0), 1, 1)]);
        front.ring().succeeds("a write", &request).await?;
        buffer.bytes().fill(0, 4096, 0xff);
        let request = transfer(BLKIF_OP_READ, sector, &[segment(buffer.gref(0), 3, 3)]);
        front.ring().succeeds("a read", &request).await?;
        ensure_eq!(buffer.bytes().load_u8(3 * 512), round, "the sector read back in round {round}");
        ensure_eq!(buffer.bytes().load_u8(2 * 512), 0xff, "the sector before it in round {round}");
    }
    Ok(())
}

async fn persistent_reuse(env: &mut Env) -> Verdict {
    let mut front = persistent(env).await?;
    reuse(&mut front).await?;
    front.close().await
}

async fn persistent_many(env: &mut Env) -> Verdict {
    let mut front = persistent(env).await?;
    front.fill(PLACE, 88, 98).await?;
    // Linux's backend keeps 1056 persistent grants by default.
    let buffer = front.buffer(1200)?;
    for first in (0..1199).step_by(11).map(|first: usize| first.min(1189)) {
        let segments: [_; 11] = core::array::from_fn(|page| segment(buffer.gref(first + page), 0, 7));
        front.ring().succeeds("a read", &transfer(BLKIF_OP_READ, PLACE, &segments)).await?;
        let last = buffer.bytes().load_u8((first + 10) * 4096);
        ensure_eq!(last, pattern(PLACE + 80, 98), "the last page from {first} on");
    }
    front.close().await
}

async fn persistent_close(env: &mut Env) -> Verdict {
    let mut front = persistent(env).await?;
    let buffer = front.buffer(11)?;
    let segments: [_; 11] = core::array::from_fn(|page| segment(buffer.gref(page), 0, 7));
    front.ring().succeeds("a read", &transfer(BLKIF_OP_READ, PLACE, &segments)).await?;
    front.close().await?;
    let end = time::now_ns() + PATIENCE_MS * 1_000_000;
    while buffer.in_use() {
        ensure!(time::now_ns() < end, "the backend has closed and keeps persistent pages mapped");
        time::sleep(1_000_000).await;
    }
    Ok(())
}

async fn persistent_not_offered(env: &mut Env) -> Verdict {
    let mut front = Front::connect(env, &Options { persistent: Some(true), ..Options::default() }).await?;
    reuse(&mut front).await?;
    front.close().await
}
