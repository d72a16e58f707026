//! Reads and writes with segments in the request itself.

use ring_abi::io::blkif::*;

use super::front::{Front, segment, transfer};
use crate::{Env, Verdict};

cases! {
    needs [Store, Disk];

    "blkif.read.one-sector" = one_sector {
        title: "a read of one sector in the middle of a page",
        rule: "A segment moves the sectors first_sect to last_sect of its page, both inclusive, and touches no other byte of it.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.read.last-sector" = last_sector {
        title: "a read of the disk's last sector",
        rule: "A request that ends with the last of `sectors` sectors is on the disk.",
        source: "io/blkif.h, 'sectors'",
    }
    "blkif.read.past-the-end" = past_the_end {
        title: "a read of the sector behind the last",
        rule: "A request beyond the disk's `sectors` is answered with an error.",
        source: "io/blkif.h, 'sectors', BLKIF_RSP_ERROR",
    }
    "blkif.flush.no-segment" = flush {
        title: "a flush without segments",
        rule: "A backend with feature-flush-cache = 1 understands BLKIF_OP_FLUSH_DISKCACHE, which may have no segment.",
        source: "io/blkif.h, BLKIF_OP_FLUSH_DISKCACHE",
    }
    "blkif.op.unknown" = unknown {
        title: "operations that nobody has defined",
        rule: "An operation that the backend does not know is answered with BLKIF_RSP_EOPNOTSUPP.",
        source: "io/blkif.h, BLKIF_RSP_EOPNOTSUPP",
    }
}

/// Sectors that the cases here write.
const PLACE: u64 = 64;

async fn one_sector(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 1).await?;
    let buffer = front.buffer(1)?;
    buffer.bytes().fill(0, 4096, 0xee);
    let request = transfer(BLKIF_OP_READ, PLACE + 3, &[segment(buffer.gref(0), 5, 5)]);
    front.ring().succeeds("a read", &request).await?;
    for at in 0..4096 {
        let wanted = if at / 512 == 5 { super::front::pattern(PLACE + 3, 1) } else { 0xee };
        ensure_eq!(buffer.bytes().load_u8(at), wanted, "byte {at} of the page");
    }
    front.close().await
}

async fn last_sector(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let last = front.sectors - 1;
    front.fill(last, 1, 9).await?;
    front.holds("the last sector", last, 1, 9).await?;
    front.close().await
}

async fn past_the_end(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, front.sectors, &[segment(buffer.gref(0), 0, 0)]);
    front.ring().refused("a read behind the end", &request).await?;
    front.close().await
}

async fn unknown(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    for operation in [4, 7, 8, 100, 255] {
        let request = transfer(operation, 0, &[segment(buffer.gref(0), 0, 0)]);
        let status = front.ring().status(&request).await?;
        ensure_eq!(status, BLKIF_RSP_EOPNOTSUPP, "status of operation {operation}");
    }
    front.close().await
}

async fn flush(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    require!(front.feature("feature-flush-cache").await? == 1, "the disk has no cache to flush");
    front.ring().succeeds("a flush", &transfer(BLKIF_OP_FLUSH_DISKCACHE, 0, &[])).await?;
    front.close().await
}
