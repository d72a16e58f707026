//! Indirect requests, whose segments are listed in granted pages.

use alloc::vec::Vec;

use ring_abi::io::blkif::*;
use zerocopy::{FromZeros, IntoBytes};

use super::front::{Front, pattern, segment, transfer};
use super::transfers::PLACE;
use crate::shared::Granted;
use crate::{Env, Verdict};

cases! {
    needs [Store, Disk];

    "blkif.indirect.announced" = announced {
        title: "the number of segments announced",
        rule: "feature-max-indirect-segments is a number, and of use only above BLKIF_MAX_SEGMENTS_PER_REQUEST.",
        source: "io/blkif.h, 'feature-max-indirect-segments'",
    }
    "blkif.indirect.read-12" = read_12 {
        title: "a read of twelve pages",
        rule: "An indirect request lists its segments in granted pages, in the order of the sectors.",
        source: "io/blkif.h, BLKIF_OP_INDIRECT",
    }
    "blkif.indirect.write-12" = write_12 {
        title: "a write of twelve pages",
        rule: "An indirect request lists its segments in granted pages, in the order of the sectors.",
        source: "io/blkif.h, BLKIF_OP_INDIRECT",
    }
    "blkif.indirect.one-segment" = one {
        title: "an indirect read of one segment",
        rule: "An indirect request may have as few segments as a direct one.",
        source: "io/blkif.h, struct blkif_request_indirect, nr_segments",
    }
    "blkif.indirect.largest" = largest {
        title: "a read and a write of as many pages as announced (at most 128)",
        rule: "An indirect request has up to feature-max-indirect-segments segments.",
        source: "io/blkif.h, 'feature-max-indirect-segments'",
    }
    "blkif.indirect.as-many-as-announced" = as_announced {
        title: "a read of one sector for each segment that is announced (at most 512)",
        rule: "An indirect request has up to feature-max-indirect-segments segments.",
        source: "io/blkif.h, 'feature-max-indirect-segments'",
    }
    "blkif.indirect.parts-of-pages" = parts {
        title: "segments of one to three sectors at odd places",
        rule: "An indirect segment is as one in a request: first and last sector of its page, both inclusive.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.indirect.read-only-list" = read_only_list {
        title: "the list in a page granted read-only",
        rule: "The backend only reads the pages that list segments.",
        source: "io/blkif.h, BLKIF_OP_INDIRECT; grant_table.h, GTF_readonly",
    }
    "blkif.indirect.unused-lists" = unused_lists {
        title: "nonsense in the references of pages that the list does not reach",
        rule: "Only as many indirect_grefs count as nr_segments segments fill pages.",
        source: "io/blkif.h, struct blkif_request_indirect, indirect_grefs",
    }
    "blkif.indirect.id" = id {
        title: "the id of an indirect request's response",
        rule: "A response has the id of its request; an indirect request has it where a direct one has.",
        source: "io/blkif.h, struct blkif_request_indirect, id",
    }
    "blkif.indirect.among-direct" = among {
        title: "direct and indirect requests in one batch",
        rule: "The two kinds share the ring.",
        source: "io/blkif.h, BLKIF_OP_INDIRECT",
    }
    "blkif.indirect.no-segment" = none {
        title: "an indirect read without segments",
        rule: "A read has at least one segment.",
        source: "io/blkif.h, struct blkif_request_indirect, nr_segments",
    }
    "blkif.indirect.one-too-many" = too_many {
        title: "one segment more than announced",
        rule: "An indirect request has at most feature-max-indirect-segments segments.",
        source: "io/blkif.h, 'feature-max-indirect-segments'",
    }
    "blkif.indirect.65535-segments" = most {
        title: "nr_segments at its largest",
        rule: "An indirect request has at most feature-max-indirect-segments segments.",
        source: "io/blkif.h, 'feature-max-indirect-segments'",
    }
    "blkif.indirect.of-indirect" = of_indirect {
        title: "an indirect request whose operation is the indirect one",
        rule: "indirect_op is a read or a write.",
        source: "io/blkif.h, struct blkif_request_indirect, indirect_op",
    }
    "blkif.indirect.of-discard" = of_discard {
        title: "an indirect discard",
        rule: "indirect_op is a read or a write.",
        source: "io/blkif.h, struct blkif_request_indirect, indirect_op",
    }
    "blkif.indirect.of-unknown" = of_unknown {
        title: "an indirect operation that nobody has defined",
        rule: "indirect_op is a read or a write.",
        source: "io/blkif.h, struct blkif_request_indirect, indirect_op",
    }
    "blkif.indirect.bad-list" = bad_list {
        title: "a list in a page that was not granted",
        rule: "A request whose list cannot be read is answered with an error.",
        source: "io/blkif.h, struct blkif_request_indirect, indirect_grefs",
    }
    "blkif.indirect.bad-segment-grant" = bad_segment_grant {
        title: "a write with one page of twelve not granted",
        rule: "A request one of whose pages was not granted is refused as a whole.",
        source: "io/blkif.h, struct blkif_request_segment, gref",
    }
    "blkif.indirect.last-sect-8" = last_sect_8 {
        title: "a listed segment that goes on behind its page",
        rule: "A segment lies within its page: last_sect is at most 7.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.indirect.first-after-last" = first_after_last {
        title: "a listed segment with first_sect behind last_sect",
        rule: "A segment whose first_sect is behind its last_sect is answered with an error.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.indirect.over-the-end" = over_the_end {
        title: "an indirect write that ends one sector behind the disk's end",
        rule: "A request that ends beyond the disk's `sectors` is answered with an error, and nothing is written.",
        source: "io/blkif.h, 'sectors'",
    }
    "blkif.indirect.sector-wraps" = sector_wraps {
        title: "an indirect write from sector 2^64-4 on",
        rule: "sector_number has 64 bits, and its sum with the length does not wrap into the disk.",
        source: "io/blkif.h, struct blkif_request_indirect, sector_number",
    }
}

/// The largest number of pages that a case transfers in one request.
const MOST: usize = 128;

/// Connects to a backend that takes indirect requests; returns also how many segments the backend takes in
/// one request.
async fn connect(env: &mut Env) -> Verdict<(Front<'_>, usize)> {
    let mut front = Front::usual(env).await?;
    let most = front.feature("feature-max-indirect-segments").await? as usize;
    require!(most > BLKIF_MAX_SEGMENTS_PER_REQUEST, "the backend takes no indirect requests");
    Ok((front, most))
}

/// Makes a page with a list of segments, and the indirect request that names the page.
fn listing(
    front: &Front<'_>,
    operation: u8,
    sector: u64,
    segments: &[BlkifRequestSegment],
    readonly: bool,
) -> Verdict<(Granted, BlkifRequestIndirect)> {
    let list = Granted::new(front.device.dom, 1, readonly)?;
    for (n, segment) in segments.iter().enumerate() {
        list.bytes().write(n * 8, segment.as_bytes());
    }
    let mut request = BlkifRequestIndirect::new_zeroed();
    request.operation = BLKIF_OP_INDIRECT;
    request.indirect_op = operation;
    request.nr_segments = segments.len() as u16;
    request.id = sector ^ 0x1d1_0000;
    request.sector_number = sector;
    request.indirect_grefs[0] = list.gref(0);
    Ok((list, request))
}

/// Makes a segment of each whole page of `buffer`.
fn whole(buffer: &Granted, pages: usize) -> Vec<BlkifRequestSegment> {
    (0..pages).map(|page| segment(buffer.gref(page), 0, 7)).collect()
}

async fn announced(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let Some(text) = front.device.read_back("feature-max-indirect-segments").await? else {
        return front.close().await;
    };
    ensure!(text.trim().parse::<u32>().is_ok(), "feature-max-indirect-segments is {text:?}");
    front.close().await
}

async fn read_pages(env: &mut Env, pages: usize) -> Verdict {
    let (mut front, most) = connect(env).await?;
    let pages = pages.min(most);
    front.fill(PLACE, pages as u64 * 8, 60).await?;
    let buffer = front.buffer(pages)?;
    let (_list, request) = listing(&front, BLKIF_OP_READ, PLACE, &whole(&buffer, pages), false)?;
    front.ring().succeeds("an indirect read", &BlkifRequest::from_indirect(&request)).await?;
    for at in 0..pages * 8 {
        let wanted = pattern(PLACE + at as u64, 60);
        for byte in [0, 511] {
            ensure_eq!(buffer.bytes().load_u8(at * 512 + byte), wanted, "byte {byte} of sector {at}");
        }
    }
    front.close().await
}

async fn write_pages(env: &mut Env, pages: usize) -> Verdict {
    let (mut front, most) = connect(env).await?;
    let pages = pages.min(most);
    let sectors = pages as u64 * 8;
    front.fill(PLACE, sectors + 2, 61).await?;
    let buffer = front.buffer(pages)?;
    for at in 0..sectors {
        buffer.bytes().fill(at as usize * 512, 512, pattern(PLACE + 1 + at, 62));
    }
    let (_list, request) = listing(&front, BLKIF_OP_WRITE, PLACE + 1, &whole(&buffer, pages), false)?;
    front.ring().succeeds("an indirect write", &BlkifRequest::from_indirect(&request)).await?;
    front.holds("the sectors written", PLACE + 1, sectors, 62).await?;
    front.holds("the sector before", PLACE, 1, 61).await?;
    front.holds("the sector behind", PLACE + 1 + sectors, 1, 61).await?;
    front.close().await
}

async fn read_12(env: &mut Env) -> Verdict {
    read_pages(env, 12).await
}

async fn write_12(env: &mut Env) -> Verdict {
    write_pages(env, 12).await
}

async fn one(env: &mut Env) -> Verdict {
    read_pages(env, 1).await
}

async fn largest(env: &mut Env) -> Verdict {
    read_pages(env, MOST).await?;
    write_pages(env, MOST).await
}

async fn as_announced(env: &mut Env) -> Verdict {
    let (mut front, most) = connect(env).await?;
    let count = most.min(SEGMENTS_PER_INDIRECT_PAGE);
    front.fill(PLACE, count as u64, 68).await?;
    let buffer = front.buffer(count.div_ceil(8))?;
    let segments: Vec<_> =
        (0..count).map(|n| segment(buffer.gref(n / 8), (n % 8) as u8, (n % 8) as u8)).collect();
    let (_list, request) = listing(&front, BLKIF_OP_READ, PLACE, &segments, false)?;
    front.ring().succeeds("an indirect read", &BlkifRequest::from_indirect(&request)).await?;
    for n in 0..count {
        let got = buffer.bytes().load_u8(n * 512);
        ensure_eq!(got, pattern(PLACE + n as u64, 68), "the sector of segment {n}");
    }
    front.close().await
}

async fn parts(env: &mut Env) -> Verdict {
    let (mut front, _) = connect(env).await?;
    front.fill(PLACE, 40, 63).await?;
    let buffer = front.buffer(16)?;
    let mut segments = Vec::new();
    let mut wanted = Vec::new();
    let mut sector = PLACE;
    for page in 0..16usize {
        let (first, count) = (page % 6, page % 3 + 1);
        segments.push(segment(buffer.gref(page), first as u8, (first + count - 1) as u8));
        for place in first..first + count {
            wanted.push((page * 4096 + place * 512, pattern(sector, 63)));
            sector += 1;
        }
    }
    let (_list, request) = listing(&front, BLKIF_OP_READ, PLACE, &segments, false)?;
    front.ring().succeeds("an indirect read", &BlkifRequest::from_indirect(&request)).await?;
    for (at, wanted) in wanted {
        ensure_eq!(buffer.bytes().load_u8(at), wanted, "the byte at {at:#x}");
        ensure_eq!(buffer.bytes().load_u8(at + 511), wanted, "the byte at {:#x}", at + 511);
    }
    front.close().await
}

async fn read_only_list(env: &mut Env) -> Verdict {
    let (mut front, _) = connect(env).await?;
    front.fill(PLACE, 8, 64).await?;
    let buffer = front.buffer(1)?;
    let (_list, request) = listing(&front, BLKIF_OP_READ, PLACE, &whole(&buffer, 1), true)?;
    front.ring().succeeds("an indirect read", &BlkifRequest::from_indirect(&request)).await?;
    ensure_eq!(buffer.bytes().load_u8(7 * 512), pattern(PLACE + 7, 64), "the last sector read");
    front.close().await
}

async fn unused_lists(env: &mut Env) -> Verdict {
    let (mut front, _) = connect(env).await?;
    let buffer = front.buffer(12)?;
    let (_list, mut request) = listing(&front, BLKIF_OP_READ, PLACE, &whole(&buffer, 12), false)?;
    request.indirect_grefs[1..].fill(u32::MAX);
    front.ring().succeeds("an indirect read", &BlkifRequest::from_indirect(&request)).await?;
    front.close().await
}

async fn id(env: &mut Env) -> Verdict {
    let (mut front, _) = connect(env).await?;
    let buffer = front.buffer(12)?;
    for id in [0, u64::MAX, 0x0102_0304_0506_0708] {
        let (_list, mut request) = listing(&front, BLKIF_OP_READ, PLACE, &whole(&buffer, 12), false)?;
        request.id = id;
        front.ring().succeeds("an indirect read", &BlkifRequest::from_indirect(&request)).await?;
    }
    front.close().await
}

async fn among(env: &mut Env) -> Verdict {
    let (mut front, _) = connect(env).await?;
    front.fill(PLACE, 96, 65).await?;
    let buffer = front.buffer(12)?;
    let single = front.buffer(1)?;
    let (_list, listed) = listing(&front, BLKIF_OP_READ, PLACE, &whole(&buffer, 12), false)?;
    for n in 0..20u64 {
        let mut request = if n % 2 == 0 {
            BlkifRequest::from_indirect(&listed)
        } else {
            transfer(BLKIF_OP_READ, PLACE + 3, &[segment(single.gref(0), 0, 0)])
        };
        request.id = n;
        front.ring().push(&request);
    }
    front.ring().publish();
    let mut seen = 0u32;
    for _ in 0..20 {
        let response = front.ring().response().await?;
        ensure_eq!(response.status, BLKIF_RSP_OKAY, "status of request {}", response.id);
        ensure!(response.id < 20 && seen & 1 << response.id == 0, "a second response to {}", response.id);
        seen |= 1 << response.id;
    }
    ensure_eq!(buffer.bytes().load_u8(95 * 512), pattern(PLACE + 95, 65), "the last sector of the list");
    ensure_eq!(single.bytes().load_u8(0), pattern(PLACE + 3, 65), "the single sector");
    front.close().await
}

/// Lets `change` make a request of twelve pages invalid. Checks that the backend refuses the request, writes
/// nothing and keeps no page.
async fn refused(
    env: &mut Env,
    operation: u8,
    what: &str,
    change: impl Fn(&mut BlkifRequestIndirect, &mut Vec<BlkifRequestSegment>, u64) + Send,
) -> Verdict {
    let (mut front, _) = connect(env).await?;
    front.fill(PLACE, 96, 66).await?;
    let end = front.sectors - 96;
    front.fill(end, 96, 67).await?;
    let buffer = front.buffer(12)?;
    buffer.bytes().fill(0, 12 * 4096, 0xee);
    let mut segments = whole(&buffer, 12);
    let mut request = BlkifRequestIndirect::new_zeroed();
    request.sector_number = PLACE;
    request.indirect_op = operation;
    request.nr_segments = 12;
    change(&mut request, &mut segments, front.sectors);
    let (list, made) = listing(&front, request.indirect_op, request.sector_number, &segments, false)?;
    let mut asked = made;
    asked.nr_segments = request.nr_segments;
    if request.indirect_grefs[0] != 0 {
        asked.indirect_grefs = request.indirect_grefs;
    }
    front.ring().refused(what, &BlkifRequest::from_indirect(&asked)).await?;
    ensure!(!buffer.in_use() && !list.in_use(), "pages of a refused request are still mapped");
    front.holds("after a refused request", PLACE, 96, 66).await?;
    front.holds("after a refused request", end, 96, 67).await?;
    front.close().await
}

async fn none(env: &mut Env) -> Verdict {
    refused(env, BLKIF_OP_READ, "a read of nothing", |request, _, _| request.nr_segments = 0).await
}

async fn too_many(env: &mut Env) -> Verdict {
    let (mut front, most) = connect(env).await?;
    require!(most < SEGMENTS_PER_INDIRECT_PAGE, "more segments are announced than a page lists");
    front.fill(PLACE, 8, 69).await?;
    let buffer = front.buffer(12)?;
    // All of these segments are valid; only their number is not.
    let segments: Vec<_> = (0..=most).map(|n| segment(buffer.gref(n % 12), 0, 0)).collect();
    let (_list, request) = listing(&front, BLKIF_OP_WRITE, PLACE, &segments, false)?;
    front.ring().refused("a write with one segment too many", &BlkifRequest::from_indirect(&request)).await?;
    front.holds("after a refused request", PLACE, 8, 69).await?;
    front.close().await
}

async fn most(env: &mut Env) -> Verdict {
    refused(env, BLKIF_OP_READ, "a read with 65535 segments", |request, _, _| request.nr_segments = u16::MAX)
        .await
}

async fn of_indirect(env: &mut Env) -> Verdict {
    refused(env, BLKIF_OP_INDIRECT, "an indirect indirect", |_, _, _| {}).await
}

async fn of_discard(env: &mut Env) -> Verdict {
    refused(env, BLKIF_OP_DISCARD, "an indirect discard", |_, _, _| {}).await
}

async fn of_unknown(env: &mut Env) -> Verdict {
    refused(env, 150, "an indirect operation 150", |_, _, _| {}).await
}

async fn bad_list(env: &mut Env) -> Verdict {
    refused(env, BLKIF_OP_WRITE, "a list that was not granted", |request, _, _| {
        request.indirect_grefs = [u32::MAX; 8];
    })
    .await
}

async fn bad_segment_grant(env: &mut Env) -> Verdict {
    refused(env, BLKIF_OP_WRITE, "a page that was not granted", |_, segments, _| {
        segments[11].gref = u32::MAX;
    })
    .await
}

async fn last_sect_8(env: &mut Env) -> Verdict {
    refused(env, BLKIF_OP_WRITE, "a segment behind its page", |_, segments, _| {
        segments[11].last_sect = 8;
    })
    .await
}

async fn first_after_last(env: &mut Env) -> Verdict {
    refused(env, BLKIF_OP_WRITE, "a segment that ends before it begins", |_, segments, _| {
        segments[11] = segment(segments[11].gref, 5, 4);
    })
    .await
}

async fn over_the_end(env: &mut Env) -> Verdict {
    refused(env, BLKIF_OP_WRITE, "a write over the end", |request, _, end| {
        request.sector_number = end - 95;
    })
    .await
}

async fn sector_wraps(env: &mut Env) -> Verdict {
    refused(env, BLKIF_OP_WRITE, "a write that wraps", |request, _, _| {
        request.sector_number = u64::MAX - 3;
    })
    .await
}
