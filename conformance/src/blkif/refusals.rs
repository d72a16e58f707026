//! Invalid requests. The backend must answer each with an error, change nothing on the disk, keep no page, and go
//! on with the ring.

use ring_abi::io::blkif::*;

use super::front::{Front, segment, transfer};
use super::transfers::PLACE;
use crate::{Env, Verdict};

cases! {
    needs [Store, Disk];

    "blkif.range.read-behind-the-end" = read_behind {
        title: "a read of the sector behind the last",
        rule: "A request beyond the disk's `sectors` is answered with an error.",
        source: "io/blkif.h, 'sectors'; BLKIF_RSP_ERROR",
    }
    "blkif.range.read-over-the-end" = read_over {
        title: "a read of eight sectors of which seven are on the disk",
        rule: "A request that ends beyond the disk's `sectors` is answered with an error.",
        source: "io/blkif.h, 'sectors'; BLKIF_RSP_ERROR",
    }
    "blkif.range.read-over-the-end-in-a-later-segment" = read_over_later {
        title: "a read whose second segment begins behind the end",
        rule: "The sectors of all segments count for where a request ends.",
        source: "io/blkif.h, 'sectors'; BLKIF_RSP_ERROR",
    }
    "blkif.range.write-behind-the-end" = write_behind {
        title: "a write of the sector behind the last",
        rule: "A request beyond the disk's `sectors` is answered with an error.",
        source: "io/blkif.h, 'sectors'; BLKIF_RSP_ERROR",
    }
    "blkif.range.write-over-the-end" = write_over {
        title: "a write of eight sectors of which seven are on the disk",
        rule: "A request that is refused changes nothing on the disk.",
        source: "io/blkif.h, 'sectors'; BLKIF_RSP_ERROR",
    }
    "blkif.range.sector-max" = sector_max {
        title: "sector 2^64-1",
        rule: "A request beyond the disk's `sectors` is answered with an error.",
        source: "io/blkif.h, struct blkif_request, sector_number",
    }
    "blkif.range.sector-wraps" = sector_wraps {
        title: "eight sectors from 2^64-4 on, the last four of which wrap to 0",
        rule: "sector_number has 64 bits, and its sum with the length does not wrap into the disk.",
        source: "io/blkif.h, struct blkif_request, sector_number",
    }
    "blkif.range.byte-offset-wraps" = byte_wraps {
        title: "sector 2^55, whose byte offset is 2^64",
        rule: "sector_number has 64 bits of sectors: its byte offset does not wrap into the disk.",
        source: "io/blkif.h, struct blkif_request, sector_number",
    }
    "blkif.range.sector-above-32-bits" = sector_33_bits {
        title: "a write to sector 2^32 + 64 of a smaller disk",
        rule: "sector_number has 64 bits: none is dropped.",
        source: "io/blkif.h, blkif_sector_t",
    }
    "blkif.segments.none-to-read" = none_to_read {
        title: "a read without segments",
        rule: "A read has at least one segment.",
        source: "io/blkif.h, struct blkif_request, nr_segments",
    }
    "blkif.segments.none-to-write" = none_to_write {
        title: "a write without segments",
        rule: "A write has at least one segment.",
        source: "io/blkif.h, struct blkif_request, nr_segments",
    }
    "blkif.segments.twelve-to-read" = twelve_to_read {
        title: "a read with one segment more than a request holds",
        rule: "nr_segments is at most BLKIF_MAX_SEGMENTS_PER_REQUEST.",
        source: "io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST",
    }
    "blkif.segments.twelve-to-write" = twelve_to_write {
        title: "a write with one segment more than a request holds",
        rule: "nr_segments is at most BLKIF_MAX_SEGMENTS_PER_REQUEST.",
        source: "io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST",
    }
    "blkif.segments.255" = segments_255 {
        title: "nr_segments at its largest",
        rule: "nr_segments is at most BLKIF_MAX_SEGMENTS_PER_REQUEST.",
        source: "io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST",
    }
    "blkif.segments.first-after-last" = first_after_last {
        title: "first_sect 4 and last_sect 3",
        rule: "A segment whose first_sect is behind its last_sect is answered with an error.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.segments.first-after-last-at-the-ends" = first_after_last_wide {
        title: "first_sect 7 and last_sect 0",
        rule: "A segment whose first_sect is behind its last_sect is answered with an error.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.segments.last-sect-8" = last_sect_8 {
        title: "last_sect 8, the first sector of the next page",
        rule: "A segment lies within its page: last_sect is at most 7.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.segments.last-sect-255" = last_sect_255 {
        title: "last_sect 255",
        rule: "A segment lies within its page: last_sect is at most 7.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.segments.both-behind-the-page" = both_behind {
        title: "first_sect 8 and last_sect 8",
        rule: "A segment lies within its page: last_sect is at most 7.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.segments.write-last-sect-8" = write_last_sect_8 {
        title: "a write with last_sect 8",
        rule: "A segment lies within its page, and a refused write changes nothing.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.segments.bad-behind-good" = bad_behind_good {
        title: "a write of one good segment and one behind its page",
        rule: "A request with a bad segment is refused as a whole: nothing of it is written.",
        source: "io/blkif.h, struct blkif_request_segment; BLKIF_RSP_ERROR",
    }
    "blkif.op.unknown" = unknown {
        title: "operations that nobody has defined",
        rule: "An operation that the backend does not know is answered with BLKIF_RSP_EOPNOTSUPP.",
        source: "io/blkif.h, BLKIF_RSP_EOPNOTSUPP",
    }
    "blkif.op.reserved" = reserved {
        title: "BLKIF_OP_RESERVED_1",
        rule: "The reserved operation is answered as one that is not supported.",
        source: "io/blkif.h, BLKIF_OP_RESERVED_1",
    }
    "blkif.op.unknown-with-nonsense" = unknown_nonsense {
        title: "an unknown operation with all bits set in every other field",
        rule: "The id of an unknown operation's request is where a read's is, and nothing else of it is looked at.",
        source: "io/blkif.h, struct blkif_request; BLKIF_RSP_EOPNOTSUPP",
    }
    "blkif.op.unknown-among-reads" = unknown_among {
        title: "reads and unknown operations in one batch",
        rule: "A request that is refused does not disturb its neighbours.",
        source: "io/blkif.h, BLKIF_RSP_EOPNOTSUPP",
    }
}

/// Checks that the backend refuses the request that `make` builds from the disk's size and a page's grant. Afterwards
/// the disk must be unchanged, the page unmapped, and the ring must still serve requests.
async fn refused(env: &mut Env, what: &str, make: impl Fn(u64, u32) -> BlkifRequest + Send) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 40).await?;
    let end = front.sectors - 8;
    front.fill(end, 8, 41).await?;
    let buffer = front.buffer(1)?;
    buffer.bytes().fill(0, 4096, 0xee);
    let request = make(front.sectors, buffer.gref(0));
    front.ring().refused(what, &request).await?;
    ensure!(!buffer.in_use(), "the page of a refused request is still mapped");
    front.holds("after a refused request", PLACE, 8, 40).await?;
    front.holds("after a refused request", end, 8, 41).await?;
    front.close().await
}

async fn read_behind(env: &mut Env) -> Verdict {
    refused(env, "a read behind the end", |end, gref| transfer(BLKIF_OP_READ, end, &[segment(gref, 0, 0)]))
        .await
}

async fn read_over(env: &mut Env) -> Verdict {
    refused(env, "a read over the end", |end, gref| transfer(BLKIF_OP_READ, end - 7, &[segment(gref, 0, 7)]))
        .await
}

async fn read_over_later(env: &mut Env) -> Verdict {
    refused(env, "a read over the end", |end, gref| {
        transfer(BLKIF_OP_READ, end - 4, &[segment(gref, 0, 3), segment(gref, 4, 4)])
    })
    .await
}

async fn write_behind(env: &mut Env) -> Verdict {
    refused(env, "a write behind the end", |end, gref| transfer(BLKIF_OP_WRITE, end, &[segment(gref, 0, 0)]))
        .await
}

async fn write_over(env: &mut Env) -> Verdict {
    refused(env, "a write over the end", |end, gref| {
        transfer(BLKIF_OP_WRITE, end - 7, &[segment(gref, 0, 7)])
    })
    .await
}

async fn sector_max(env: &mut Env) -> Verdict {
    refused(env, "a read of sector -1", |_, gref| transfer(BLKIF_OP_READ, u64::MAX, &[segment(gref, 0, 0)]))
        .await
}

async fn sector_wraps(env: &mut Env) -> Verdict {
    refused(env, "a write that wraps", |_, gref| {
        transfer(BLKIF_OP_WRITE, u64::MAX - 3, &[segment(gref, 0, 7)])
    })
    .await
}

async fn byte_wraps(env: &mut Env) -> Verdict {
    refused(env, "a write whose byte offset wraps", |_, gref| {
        transfer(BLKIF_OP_WRITE, (1 << 55) + PLACE, &[segment(gref, 0, 7)])
    })
    .await
}

async fn sector_33_bits(env: &mut Env) -> Verdict {
    refused(env, "a write beyond 2^32", |_, gref| {
        transfer(BLKIF_OP_WRITE, (1 << 32) + PLACE, &[segment(gref, 0, 7)])
    })
    .await
}

async fn none_to_read(env: &mut Env) -> Verdict {
    refused(env, "a read of nothing", |_, _| transfer(BLKIF_OP_READ, PLACE, &[])).await
}

async fn none_to_write(env: &mut Env) -> Verdict {
    refused(env, "a write of nothing", |_, _| transfer(BLKIF_OP_WRITE, PLACE, &[])).await
}

/// A transfer that claims `count` segments; the 11 that fit are valid.
fn claiming(operation: u8, gref: u32, count: u8) -> BlkifRequest {
    let mut request = transfer(operation, PLACE, &[segment(gref, 0, 0); 11]);
    request.nr_segments = count;
    request
}

async fn twelve_to_read(env: &mut Env) -> Verdict {
    refused(env, "a read with 12 segments", |_, gref| claiming(BLKIF_OP_READ, gref, 12)).await
}

async fn twelve_to_write(env: &mut Env) -> Verdict {
    refused(env, "a write with 12 segments", |_, gref| claiming(BLKIF_OP_WRITE, gref, 12)).await
}

async fn segments_255(env: &mut Env) -> Verdict {
    refused(env, "a write with 255 segments", |_, gref| claiming(BLKIF_OP_WRITE, gref, 255)).await
}

async fn first_after_last(env: &mut Env) -> Verdict {
    refused(env, "a read of sectors 4 to 3", |_, gref| transfer(BLKIF_OP_READ, PLACE, &[segment(gref, 4, 3)]))
        .await
}

async fn first_after_last_wide(env: &mut Env) -> Verdict {
    refused(env, "a write of sectors 7 to 0", |_, gref| {
        transfer(BLKIF_OP_WRITE, PLACE, &[segment(gref, 7, 0)])
    })
    .await
}

async fn last_sect_8(env: &mut Env) -> Verdict {
    refused(env, "a read of sectors 0 to 8", |_, gref| transfer(BLKIF_OP_READ, PLACE, &[segment(gref, 0, 8)]))
        .await
}

async fn last_sect_255(env: &mut Env) -> Verdict {
    refused(env, "a read of sectors 0 to 255", |_, gref| {
        transfer(BLKIF_OP_READ, PLACE, &[segment(gref, 0, 255)])
    })
    .await
}

async fn both_behind(env: &mut Env) -> Verdict {
    refused(env, "a read of sector 8 of a page", |_, gref| {
        transfer(BLKIF_OP_READ, PLACE, &[segment(gref, 8, 8)])
    })
    .await
}

async fn write_last_sect_8(env: &mut Env) -> Verdict {
    refused(env, "a write of sectors 7 to 8", |_, gref| {
        transfer(BLKIF_OP_WRITE, PLACE, &[segment(gref, 7, 8)])
    })
    .await
}

async fn bad_behind_good(env: &mut Env) -> Verdict {
    refused(env, "a write with a bad segment", |_, gref| {
        transfer(BLKIF_OP_WRITE, PLACE, &[segment(gref, 0, 0), segment(gref, 1, 8)])
    })
    .await
}

async fn unknown(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    for operation in [7, 8, 100, 127, 128, 255] {
        let request = transfer(operation, 0, &[segment(buffer.gref(0), 0, 0)]);
        let status = front.ring().status(&request).await?;
        ensure_eq!(status, BLKIF_RSP_EOPNOTSUPP, "status of operation {operation}");
    }
    front.close().await
}

async fn reserved(env: &mut Env) -> Verdict {
    refused(env, "operation 4", |_, gref| transfer(BLKIF_OP_RESERVED_1, PLACE, &[segment(gref, 0, 0)])).await
}

async fn unknown_nonsense(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let mut request = transfer(200, u64::MAX, &[segment(u32::MAX, 255, 255); 11]);
    request.nr_segments = 255;
    request.handle = u16::MAX;
    request._pad0 = u32::MAX;
    request.id = 0x0123_4567_89ab_cdef;
    let response = front.ring().ask(&request).await?;
    ensure_eq!(response.status, BLKIF_RSP_EOPNOTSUPP, "the status");
    front.close().await
}

async fn unknown_among(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 42).await?;
    let buffer = front.buffer(1)?;
    for n in 0..16u64 {
        let operation = if n % 2 == 0 { BLKIF_OP_READ } else { 99 };
        let mut request = transfer(operation, PLACE, &[segment(buffer.gref(0), 0, 0)]);
        request.id = n;
        front.ring().push(&request);
    }
    front.ring().publish();
    for _ in 0..16 {
        let response = front.ring().response().await?;
        let wanted = if response.id % 2 == 0 { BLKIF_RSP_OKAY } else { BLKIF_RSP_EOPNOTSUPP };
        ensure_eq!(response.status, wanted, "status of request {}", response.id);
    }
    front.close().await
}
