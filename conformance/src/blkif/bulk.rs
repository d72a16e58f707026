//! Flush, barrier and discard: operations on data already written.

use ring_abi::io::blkif::*;
use zerocopy::FromZeros;

use super::front::{Front, pattern, segment, transfer};
use super::transfers::PLACE;
use crate::{Env, Verdict};

cases! {
    needs [Store, Disk];

    "blkif.flush.empty" = flush {
        title: "a flush without segments",
        rule: "A backend that announces feature-flush-cache answers BLKIF_OP_FLUSH_DISKCACHE, at worst as not supported.",
        source: "io/blkif.h, BLKIF_OP_FLUSH_DISKCACHE",
    }
    "blkif.flush.response" = flush_response {
        title: "id and operation of a flush's response",
        rule: "A response has the id and the operation of its request.",
        source: "io/blkif.h, struct blkif_response",
    }
    "blkif.flush.keeps-writes" = flush_keeps {
        title: "what was written before flushes, read after them",
        rule: "A flush changes no sector.",
        source: "io/blkif.h, BLKIF_OP_FLUSH_DISKCACHE",
    }
    "blkif.flush.among-writes" = flush_among {
        title: "flushes between writes in flight",
        rule: "A flush does not keep the requests beside it from being done.",
        source: "io/blkif.h, BLKIF_OP_FLUSH_DISKCACHE",
    }
    "blkif.flush.not-announced" = flush_not_announced {
        title: "a flush where none was announced",
        rule: "An operation that the backend does not support is answered with BLKIF_RSP_EOPNOTSUPP or, having nothing to flush, done.",
        source: "io/blkif.h, 'feature-flush-cache'; BLKIF_RSP_EOPNOTSUPP",
    }
    "blkif.barrier.writes" = barrier {
        title: "a barrier with a sector to write",
        rule: "BLKIF_OP_WRITE_BARRIER writes as BLKIF_OP_WRITE does, where feature-barrier is announced.",
        source: "io/blkif.h, BLKIF_OP_WRITE_BARRIER",
    }
    "blkif.barrier.orders" = barrier_orders {
        title: "writes of one sector before, in and behind barriers",
        rule: "Writes before a barrier are completed before it is executed, and those behind it do not execute until it is completed.",
        source: "io/blkif.h, BLKIF_OP_WRITE_BARRIER",
    }
    "blkif.barrier.out-of-range" = barrier_range {
        title: "a barrier with a sector behind the disk's end",
        rule: "A request beyond the disk's `sectors` is answered with an error.",
        source: "io/blkif.h, 'sectors'; BLKIF_OP_WRITE_BARRIER",
    }
    "blkif.discard.range" = discard {
        title: "a discard of 16 sectors between others",
        rule: "A discard changes no sector outside its range, and what is inside may be read and written as before.",
        source: "io/blkif.h, BLKIF_OP_DISCARD",
    }
    "blkif.discard.response" = discard_response {
        title: "id and operation of a discard's response",
        rule: "A response has the id and the operation of its request.",
        source: "io/blkif.h, struct blkif_response",
    }
    "blkif.discard.behind-the-end" = discard_behind {
        title: "a discard of the sector behind the last",
        rule: "A request beyond the disk's `sectors` is answered with an error.",
        source: "io/blkif.h, struct blkif_request_discard; 'sectors'",
    }
    "blkif.discard.over-the-end" = discard_over {
        title: "a discard that ends one sector behind the disk's end",
        rule: "A request beyond the disk's `sectors` is answered with an error, and changes nothing.",
        source: "io/blkif.h, struct blkif_request_discard; 'sectors'",
    }
    "blkif.discard.wraps" = discard_wraps {
        title: "a discard of 2^64-1 sectors from the second on",
        rule: "The sum of sector_number and nr_sectors does not wrap into the disk.",
        source: "io/blkif.h, struct blkif_request_discard, nr_sectors",
    }
    "blkif.discard.not-announced" = discard_not_announced {
        title: "a discard where none was announced",
        rule: "An operation that the backend does not support is answered with BLKIF_RSP_EOPNOTSUPP, and changes nothing.",
        source: "io/blkif.h, 'feature-discard'; BLKIF_RSP_EOPNOTSUPP",
    }
    "blkif.discard.limits" = discard_limits {
        title: "what is announced beside feature-discard",
        rule: "discard-granularity and discard-alignment are numbers of bytes, the granularity not 0.",
        source: "io/blkif.h, 'discard-granularity', 'discard-alignment'",
    }
    "blkif.discard.segments-ignored" = discard_as_read {
        title: "a discard whose slot holds the rest of a read",
        rule: "A discard has a layout of its own: what a read has behind nr_sectors means nothing.",
        source: "io/blkif.h, struct blkif_request_discard",
    }
}

fn flush_request(id: u64) -> BlkifRequest {
    let mut request = transfer(BLKIF_OP_FLUSH_DISKCACHE, 0, &[]);
    request.id = id;
    request
}

/// A connection to a backend that announces `feature`.
async fn with<'a>(env: &'a mut Env, feature: &str) -> Verdict<Front<'a>> {
    let mut front = Front::usual(env).await?;
    let announced = front.feature(feature).await?;
    require!(announced == 1, "{feature} is not announced");
    Ok(front)
}

fn done_or_unsupported(what: &str, status: i16) -> Verdict {
    ensure!(
        matches!(status, BLKIF_RSP_OKAY | BLKIF_RSP_EOPNOTSUPP),
        "status of {what}: {status}, is to be 0 or -2"
    );
    Ok(())
}

async fn flush(env: &mut Env) -> Verdict {
    let mut front = with(env, "feature-flush-cache").await?;
    let status = front.ring().status(&flush_request(7)).await?;
    done_or_unsupported("a flush", status)?;
    front.close().await
}

async fn flush_response(env: &mut Env) -> Verdict {
    let mut front = with(env, "feature-flush-cache").await?;
    for id in [0, u64::MAX] {
        let response = front.ring().ask(&flush_request(id)).await?;
        ensure_eq!(response.operation, BLKIF_OP_FLUSH_DISKCACHE, "the response's operation");
    }
    front.close().await
}

async fn flush_keeps(env: &mut Env) -> Verdict {
    let mut front = with(env, "feature-flush-cache").await?;
    for seed in 70..74 {
        front.fill(PLACE, 16, seed).await?;
        let status = front.ring().status(&flush_request(u64::from(seed))).await?;
        done_or_unsupported("a flush", status)?;
        front.holds("after a flush", PLACE, 16, seed).await?;
    }
    front.close().await
}

async fn flush_among(env: &mut Env) -> Verdict {
    let mut front = with(env, "feature-flush-cache").await?;
    let buffer = front.buffer(1)?;
    buffer.bytes().fill(0, 4096, 0x6b);
    for n in 0..32u64 {
        let mut request = if n % 4 == 3 {
            flush_request(n)
        } else {
            transfer(BLKIF_OP_WRITE, PLACE + n, &[segment(buffer.gref(0), 0, 0)])
        };
        request.id = n;
        front.ring().push(&request);
    }
    front.ring().publish();
    for _ in 0..32 {
        let response = front.ring().response().await?;
        done_or_unsupported("a request", response.status)?;
    }
    for n in (0..32).filter(|n| n % 4 != 3) {
        ensure_eq!(front.look(PLACE + n, 1).await?, [0x6b], "sector {}", PLACE + n);
    }
    front.close().await
}

async fn flush_not_announced(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let announced = front.feature("feature-flush-cache").await?;
    require!(announced == 0, "feature-flush-cache is announced");
    let status = front.ring().status(&flush_request(7)).await?;
    done_or_unsupported("a flush", status)?;
    front.close().await
}

async fn barrier(env: &mut Env) -> Verdict {
    let mut front = with(env, "feature-barrier").await?;
    front.fill(PLACE, 3, 75).await?;
    let buffer = front.buffer(1)?;
    buffer.bytes().fill(0, 4096, 0x6c);
    let request = transfer(BLKIF_OP_WRITE_BARRIER, PLACE + 1, &[segment(buffer.gref(0), 2, 2)]);
    let response = front.ring().ask(&request).await?;
    ensure_eq!(response.operation, BLKIF_OP_WRITE_BARRIER, "the response's operation");
    require!(response.status != BLKIF_RSP_EOPNOTSUPP, "the disk below takes no barriers");
    ensure_eq!(response.status, BLKIF_RSP_OKAY, "status of a barrier");
    let wanted = [pattern(PLACE, 75), 0x6c, pattern(PLACE + 2, 75)];
    ensure_eq!(front.look(PLACE, 3).await?, wanted, "the sectors");
    front.close().await
}

async fn barrier_orders(env: &mut Env) -> Verdict {
    let mut front = with(env, "feature-barrier").await?;
    let buffer = front.buffer(9)?;
    for round in 0..4u8 {
        for n in 0..9u8 {
            buffer.bytes().fill(usize::from(n) * 4096, 4096, round << 4 | n);
            // A write, a barrier, a write and so on, all of the same sector.
            let operation = if n % 2 == 1 { BLKIF_OP_WRITE_BARRIER } else { BLKIF_OP_WRITE };
            let page = buffer.gref(usize::from(n));
            let mut request = transfer(operation, PLACE, &[segment(page, 0, 0)]);
            request.id = u64::from(n);
            front.ring().push(&request);
        }
        front.ring().publish();
        for _ in 0..9 {
            let response = front.ring().response().await?;
            require!(response.status != BLKIF_RSP_EOPNOTSUPP, "the disk below takes no barriers");
            ensure_eq!(response.status, BLKIF_RSP_OKAY, "status of request {}", response.id);
        }
        ensure_eq!(front.look(PLACE, 1).await?, [round << 4 | 8], "the sector after the last write");
    }
    front.close().await
}

async fn barrier_range(env: &mut Env) -> Verdict {
    let mut front = with(env, "feature-barrier").await?;
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_WRITE_BARRIER, front.sectors, &[segment(buffer.gref(0), 0, 0)]);
    front.ring().refused("a barrier behind the end", &request).await?;
    front.close().await
}

fn discard_request(sector: u64, sectors: u64) -> BlkifRequest {
    let mut request = BlkifRequestDiscard::new_zeroed();
    request.operation = BLKIF_OP_DISCARD;
    request.id = sector ^ 0xd15c_0000;
    request.sector_number = sector;
    request.nr_sectors = sectors;
    BlkifRequest::from_discard(&request)
}

async fn discard(env: &mut Env) -> Verdict {
    let mut front = with(env, "feature-discard").await?;
    front.fill(PLACE, 32, 76).await?;
    let status = front.ring().status(&discard_request(PLACE + 8, 16)).await?;
    done_or_unsupported("a discard", status)?;
    front.holds("in front of the discard", PLACE, 8, 76).await?;
    front.holds("behind the discard", PLACE + 24, 8, 76).await?;
    front.fill(PLACE + 8, 16, 77).await?;
    front.holds("written after the discard", PLACE + 8, 16, 77).await?;
    front.close().await
}

async fn discard_response(env: &mut Env) -> Verdict {
    let mut front = with(env, "feature-discard").await?;
    let mut request = discard_request(PLACE, 8);
    request.id = u64::MAX;
    let response = front.ring().ask(&request).await?;
    ensure_eq!(response.operation, BLKIF_OP_DISCARD, "the response's operation");
    front.close().await
}

/// Checks that the backend refuses a discard of `range`, and that the disk does not change.
async fn discard_refused(env: &mut Env, range: impl Fn(u64) -> (u64, u64) + Send) -> Verdict {
    let mut front = with(env, "feature-discard").await?;
    let end = front.sectors - 8;
    front.fill(PLACE, 8, 78).await?;
    front.fill(end, 8, 79).await?;
    let (sector, sectors) = range(front.sectors);
    front.ring().refused("a discard beyond the disk", &discard_request(sector, sectors)).await?;
    front.holds("after a refused discard", PLACE, 8, 78).await?;
    front.holds("after a refused discard", end, 8, 79).await?;
    front.close().await
}

async fn discard_behind(env: &mut Env) -> Verdict {
    discard_refused(env, |end| (end, 1)).await
}

async fn discard_over(env: &mut Env) -> Verdict {
    discard_refused(env, |end| (end - 8, 9)).await
}

async fn discard_wraps(env: &mut Env) -> Verdict {
    discard_refused(env, |_| (1, u64::MAX)).await
}

async fn discard_not_announced(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let announced = front.feature("feature-discard").await?;
    require!(announced == 0, "feature-discard is announced");
    front.fill(PLACE, 8, 80).await?;
    let status = front.ring().status(&discard_request(PLACE, 8)).await?;
    ensure_eq!(status, BLKIF_RSP_EOPNOTSUPP, "status of a discard");
    front.holds("after an unsupported discard", PLACE, 8, 80).await?;
    front.close().await
}

async fn discard_limits(env: &mut Env) -> Verdict {
    let mut front = with(env, "feature-discard").await?;
    if let Some(text) = front.device.read_back("discard-granularity").await? {
        let granularity: u64 = front.device.number_back("discard-granularity").await?;
        ensure!(granularity > 0, "discard-granularity is {text:?}");
    }
    if front.device.read_back("discard-alignment").await?.is_some() {
        front.device.number_back::<u64>("discard-alignment").await?;
    }
    front.close().await
}

async fn discard_as_read(env: &mut Env) -> Verdict {
    let mut front = with(env, "feature-discard").await?;
    front.fill(PLACE, 24, 81).await?;
    let mut request = transfer(BLKIF_OP_DISCARD, PLACE + 8, &[segment(u32::MAX, 9, 200); 11]);
    // Where a read has the number of its segments and the first of them, a discard has its flag and nr_sectors.
    request.nr_segments = 0;
    request.seg[0] = segment(8, 0, 0);
    let status = front.ring().status(&request).await?;
    done_or_unsupported("a discard", status)?;
    front.holds("in front of the discard", PLACE, 8, 81).await?;
    front.holds("behind the discard", PLACE + 16, 8, 81).await?;
    front.close().await
}
