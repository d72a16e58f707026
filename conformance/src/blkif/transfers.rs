//! Reads and writes with segments in the request itself: which sectors and bytes change, and which do not.

use ring_abi::io::blkif::*;

use super::front::{Front, pattern, segment, transfer};
use crate::shared::Granted;
use crate::{Env, Verdict};

cases! {
    needs [Store, Disk];

    "blkif.read.one-sector" = read_one_sector {
        title: "a read of one sector into the middle of a page",
        rule: "A segment moves the sectors first_sect to last_sect of its page, both inclusive, and touches no other byte of it.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.read.each-sector-of-a-page" = read_each_place {
        title: "one-sector reads into each of a page's eight places",
        rule: "first_sect counts the page's sectors of 512 bytes from 0.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.read.whole-page" = read_whole_page {
        title: "a read of eight sectors into one page",
        rule: "last_sect is inclusive: 0 to 7 is a page.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.read.first-sector" = read_first_sector {
        title: "sector 0 of the disk",
        rule: "sector_number counts the disk's sectors of 512 bytes from 0.",
        source: "io/blkif.h, struct blkif_request, sector_number",
    }
    "blkif.read.last-sector" = read_last_sector {
        title: "the disk's last sector",
        rule: "A request that ends with the last of `sectors` sectors is on the disk.",
        source: "io/blkif.h, 'sectors'",
    }
    "blkif.read.last-page" = read_last_page {
        title: "the disk's last eight sectors in one request",
        rule: "A request that ends with the last of `sectors` sectors is on the disk.",
        source: "io/blkif.h, 'sectors'",
    }
    "blkif.read.segments-in-order" = read_in_order {
        title: "three pages, granted in one order and listed in another",
        rule: "Consecutive sectors go to the segments in the order of the list.",
        source: "io/blkif.h, struct blkif_request, seg",
    }
    "blkif.read.eleven-segments" = read_eleven {
        title: "a read with as many segments as a request holds",
        rule: "A request has up to BLKIF_MAX_SEGMENTS_PER_REQUEST segments.",
        source: "io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST",
    }
    "blkif.read.odd-segments" = read_odd {
        title: "segments of one, three and two sectors at odd places",
        rule: "Each segment has a length of its own: the next goes on with the next sector.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.read.one-page-twice" = read_page_twice {
        title: "two segments in one page",
        rule: "A grant may stand in several segments of one request.",
        source: "io/blkif.h, struct blkif_request_segment, gref",
    }
    "blkif.read.unused-segments" = read_unused_segments {
        title: "nonsense in the segments behind nr_segments, and in padding",
        rule: "Only nr_segments entries of seg count.",
        source: "io/blkif.h, struct blkif_request, nr_segments",
    }
    "blkif.read.handle" = read_handle {
        title: "a handle of 0xffff",
        rule: "A read's handle selects nothing: the ring belongs to one device.",
        source: "io/blkif.h, struct blkif_request, handle",
    }
    "blkif.read.repeated" = read_repeated {
        title: "the same request three times",
        rule: "A request with the content of an earlier one is a new request.",
        source: "io/blkif.h, struct blkif_request",
    }
    "blkif.write.one-sector" = write_one_sector {
        title: "a write of one sector between others",
        rule: "A write changes the sectors that its segments cover and no other.",
        source: "io/blkif.h, BLKIF_OP_WRITE",
    }
    "blkif.write.whole-page" = write_whole_page {
        title: "a write of a page",
        rule: "A write changes the sectors that its segments cover and no other.",
        source: "io/blkif.h, BLKIF_OP_WRITE",
    }
    "blkif.write.part-of-a-page" = write_part {
        title: "a write of the sectors 2 to 5 of a page",
        rule: "A write takes the sectors first_sect to last_sect of its page, both inclusive.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.write.last-sector" = write_last_sector {
        title: "a write of the disk's last sector",
        rule: "A request that ends with the last of `sectors` sectors is on the disk.",
        source: "io/blkif.h, 'sectors'",
    }
    "blkif.write.segments-in-order" = write_in_order {
        title: "three pages, granted in one order and listed in another",
        rule: "The segments go to consecutive sectors in the order of the list.",
        source: "io/blkif.h, struct blkif_request, seg",
    }
    "blkif.write.eleven-segments" = write_eleven {
        title: "a write with as many segments as a request holds",
        rule: "A request has up to BLKIF_MAX_SEGMENTS_PER_REQUEST segments.",
        source: "io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST",
    }
    "blkif.write.odd-segments" = write_odd {
        title: "segments of one, three and two sectors from odd places",
        rule: "Each segment has a length of its own: the next goes on with the next sector.",
        source: "io/blkif.h, struct blkif_request_segment",
    }
    "blkif.write.source-stays" = write_source_stays {
        title: "the memory of a write afterwards",
        rule: "A write only reads the frontend's pages.",
        source: "io/blkif.h, BLKIF_OP_WRITE",
    }
    "blkif.write.read-only-grant" = write_read_only_grant {
        title: "a write from a page granted read-only",
        rule: "For a write the backend needs no right to write the page.",
        source: "grant_table.h, GTF_readonly; io/blkif.h, BLKIF_OP_WRITE",
    }
    "blkif.write.seen-at-once" = write_seen_at_once {
        title: "a read after the response of a write, with the source changed in between",
        rule: "A write that was answered is what later reads give.",
        source: "io/blkif.h, BLKIF_OP_WRITE",
    }
    "blkif.write.many" = write_many {
        title: "a run of 200 sectors, written and read",
        rule: "A write changes the sectors that its segments cover and no other.",
        source: "io/blkif.h, BLKIF_OP_WRITE",
    }
}

/// The first sector that the cases here write.
pub(crate) const PLACE: u64 = 64;

/// Checks a page sector by sector: each has the wanted pattern's byte, or 0xee where the backend must not
/// have written.
fn page_holds(buffer: &Granted, page: usize, wanted: [Option<u8>; 8]) -> Verdict {
    for (sector, wanted) in wanted.into_iter().enumerate() {
        let wanted = wanted.unwrap_or(0xee);
        for at in 0..512 {
            let offset = page * 4096 + sector * 512 + at;
            let got = buffer.bytes().load_u8(offset);
            ensure!(got == wanted, "byte {at} of sector {sector} of page {page}: {got:#x}, not {wanted:#x}");
        }
    }
    Ok(())
}

/// Connects, fills `count` sectors from [`PLACE`] on with the pattern of `seed`, and makes pages that hold
/// 0xee throughout.
async fn filled(env: &mut Env, count: u64, seed: u8, pages: usize) -> Verdict<(Front<'_>, Granted)> {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, count, seed).await?;
    let buffer = front.buffer(pages)?;
    buffer.bytes().fill(0, pages * 4096, 0xee);
    Ok((front, buffer))
}

async fn read_one_sector(env: &mut Env) -> Verdict {
    let (mut front, buffer) = filled(env, 8, 1, 1).await?;
    let request = transfer(BLKIF_OP_READ, PLACE + 3, &[segment(buffer.gref(0), 5, 5)]);
    front.ring().succeeds("a read", &request).await?;
    let mut wanted = [None; 8];
    wanted[5] = Some(pattern(PLACE + 3, 1));
    page_holds(&buffer, 0, wanted)?;
    front.close().await
}

async fn read_each_place(env: &mut Env) -> Verdict {
    let (mut front, buffer) = filled(env, 8, 2, 1).await?;
    let mut wanted = [None; 8];
    for place in 0..8u8 {
        let sector = PLACE + 7 - u64::from(place);
        let request = transfer(BLKIF_OP_READ, sector, &[segment(buffer.gref(0), place, place)]);
        front.ring().succeeds("a read", &request).await?;
        wanted[usize::from(place)] = Some(pattern(sector, 2));
        page_holds(&buffer, 0, wanted)?;
    }
    front.close().await
}

async fn read_whole_page(env: &mut Env) -> Verdict {
    let (mut front, buffer) = filled(env, 9, 3, 2).await?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 7)]);
    front.ring().succeeds("a read", &request).await?;
    page_holds(&buffer, 0, core::array::from_fn(|n| Some(pattern(PLACE + n as u64, 3))))?;
    page_holds(&buffer, 1, [None; 8])?;
    front.close().await
}

async fn read_first_sector(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(0, 2, 4).await?;
    front.holds("sectors 0 and 1", 0, 2, 4).await?;
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, 0, &[segment(buffer.gref(0), 0, 0)]);
    front.ring().succeeds("a read of sector 0", &request).await?;
    ensure_eq!(buffer.bytes().load_u8(511), pattern(0, 4), "the last byte of sector 0");
    front.close().await
}

async fn read_last_sector(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let last = front.sectors - 1;
    front.fill(last - 1, 2, 5).await?;
    let buffer = front.buffer(1)?;
    buffer.bytes().fill(0, 4096, 0xee);
    let request = transfer(BLKIF_OP_READ, last, &[segment(buffer.gref(0), 0, 0)]);
    front.ring().succeeds("a read of the last sector", &request).await?;
    let mut wanted = [None; 8];
    wanted[0] = Some(pattern(last, 5));
    page_holds(&buffer, 0, wanted)?;
    front.close().await
}

async fn read_last_page(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let first = front.sectors - 8;
    front.fill(first, 8, 6).await?;
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, first, &[segment(buffer.gref(0), 0, 7)]);
    front.ring().succeeds("a read of the last eight sectors", &request).await?;
    page_holds(&buffer, 0, core::array::from_fn(|n| Some(pattern(first + n as u64, 6))))?;
    front.close().await
}

async fn read_in_order(env: &mut Env) -> Verdict {
    let (mut front, buffer) = filled(env, 24, 7, 3).await?;
    let order = [2usize, 0, 1];
    let segments = order.map(|page| segment(buffer.gref(page), 0, 7));
    front.ring().succeeds("a read", &transfer(BLKIF_OP_READ, PLACE, &segments)).await?;
    for (nth, page) in order.into_iter().enumerate() {
        let first = PLACE + nth as u64 * 8;
        page_holds(&buffer, page, core::array::from_fn(|n| Some(pattern(first + n as u64, 7))))?;
    }
    front.close().await
}

async fn read_eleven(env: &mut Env) -> Verdict {
    let (mut front, buffer) = filled(env, 88, 8, 11).await?;
    let segments: [_; 11] = core::array::from_fn(|page| segment(buffer.gref(page), 0, 7));
    front.ring().succeeds("a read", &transfer(BLKIF_OP_READ, PLACE, &segments)).await?;
    for page in 0..11 {
        let first = PLACE + page as u64 * 8;
        page_holds(&buffer, page, core::array::from_fn(|n| Some(pattern(first + n as u64, 8))))?;
    }
    front.close().await
}

/// Segments of one, three and two sectors: page, first and last.
const ODD: [(usize, u8, u8); 3] = [(0, 7, 7), (1, 1, 3), (2, 0, 1)];

async fn read_odd(env: &mut Env) -> Verdict {
    let (mut front, buffer) = filled(env, 8, 9, 3).await?;
    let segments = ODD.map(|(page, first, last)| segment(buffer.gref(page), first, last));
    front.ring().succeeds("a read", &transfer(BLKIF_OP_READ, PLACE, &segments)).await?;
    let mut sector = PLACE;
    for (page, first, last) in ODD {
        let mut wanted = [None; 8];
        for place in first..=last {
            wanted[usize::from(place)] = Some(pattern(sector, 9));
            sector += 1;
        }
        page_holds(&buffer, page, wanted)?;
    }
    front.close().await
}

async fn read_page_twice(env: &mut Env) -> Verdict {
    let (mut front, buffer) = filled(env, 8, 10, 1).await?;
    let segments = [segment(buffer.gref(0), 6, 7), segment(buffer.gref(0), 0, 1)];
    front.ring().succeeds("a read", &transfer(BLKIF_OP_READ, PLACE, &segments)).await?;
    let at = |n: u64| Some(pattern(PLACE + n, 10));
    page_holds(&buffer, 0, [at(2), at(3), None, None, None, None, at(0), at(1)])?;
    front.close().await
}

async fn read_unused_segments(env: &mut Env) -> Verdict {
    let (mut front, buffer) = filled(env, 8, 11, 1).await?;
    let mut request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
    request._pad0 = u32::MAX;
    request.seg[0]._pad0 = u16::MAX;
    for unused in &mut request.seg[1..] {
        *unused = segment(u32::MAX, 255, 0);
    }
    front.ring().succeeds("a read", &request).await?;
    let mut wanted = [None; 8];
    wanted[0] = Some(pattern(PLACE, 11));
    page_holds(&buffer, 0, wanted)?;
    front.close().await
}

async fn read_handle(env: &mut Env) -> Verdict {
    let (mut front, buffer) = filled(env, 8, 12, 1).await?;
    let mut request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
    request.handle = u16::MAX;
    front.ring().succeeds("a read", &request).await?;
    ensure_eq!(buffer.bytes().load_u8(0), pattern(PLACE, 12), "the first byte");
    front.close().await
}

async fn read_repeated(env: &mut Env) -> Verdict {
    let (mut front, buffer) = filled(env, 8, 13, 1).await?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 7)]);
    for _ in 0..3 {
        buffer.bytes().fill(0, 4096, 0xee);
        front.ring().succeeds("a read", &request).await?;
        page_holds(&buffer, 0, core::array::from_fn(|n| Some(pattern(PLACE + n as u64, 13))))?;
    }
    front.close().await
}

/// Fills each sector of `buffer` with a byte of its own, writes `segments` over the pattern of seed 20, and checks
/// the disk.
async fn write_and_look(env: &mut Env, offset: u64, pages: usize, list: &[(usize, u8, u8)]) -> Verdict {
    let sectors: u64 = list.iter().map(|(_, first, last)| u64::from(last - first) + 1).sum();
    let total = offset + sectors + 2;
    let (mut front, buffer) = filled(env, total, 20, pages).await?;
    let mut wanted: alloc::vec::Vec<u8> = (0..total).map(|n| pattern(PLACE + n, 20)).collect();
    let mut segments = alloc::vec::Vec::new();
    let mut byte = 0x80u8;
    let mut at = offset as usize;
    for &(page, first, last) in list {
        segments.push(segment(buffer.gref(page), first, last));
        for place in first..=last {
            byte = byte.wrapping_add(3);
            buffer.bytes().fill(page * 4096 + usize::from(place) * 512, 512, byte);
            wanted[at] = byte;
            at += 1;
        }
    }
    front.ring().succeeds("a write", &transfer(BLKIF_OP_WRITE, PLACE + offset, &segments)).await?;
    let seen = front.look(PLACE, total).await?;
    ensure!(seen == wanted, "the sectors from {PLACE} on begin {seen:x?}, not {wanted:x?}");
    front.close().await
}

async fn write_one_sector(env: &mut Env) -> Verdict {
    write_and_look(env, 3, 1, &[(0, 0, 0)]).await
}

async fn write_whole_page(env: &mut Env) -> Verdict {
    write_and_look(env, 1, 1, &[(0, 0, 7)]).await
}

async fn write_part(env: &mut Env) -> Verdict {
    write_and_look(env, 2, 1, &[(0, 2, 5)]).await
}

async fn write_last_sector(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let last = front.sectors - 1;
    front.fill(last - 1, 2, 5).await?;
    let buffer = front.buffer(1)?;
    buffer.bytes().fill(7 * 512, 512, 0x42);
    let request = transfer(BLKIF_OP_WRITE, last, &[segment(buffer.gref(0), 7, 7)]);
    front.ring().succeeds("a write of the last sector", &request).await?;
    ensure_eq!(front.look(last - 1, 2).await?, [pattern(last - 1, 5), 0x42], "the last two sectors");
    front.close().await
}

async fn write_in_order(env: &mut Env) -> Verdict {
    write_and_look(env, 1, 3, &[(2, 0, 7), (0, 0, 7), (1, 0, 7)]).await
}

async fn write_eleven(env: &mut Env) -> Verdict {
    let list: [(usize, u8, u8); 11] = core::array::from_fn(|page| (page, 0, 7));
    write_and_look(env, 1, 11, &list).await
}

async fn write_odd(env: &mut Env) -> Verdict {
    write_and_look(env, 1, 3, &ODD).await
}

async fn write_source_stays(env: &mut Env) -> Verdict {
    let (mut front, buffer) = filled(env, 8, 21, 1).await?;
    let request = transfer(BLKIF_OP_WRITE, PLACE, &[segment(buffer.gref(0), 1, 6)]);
    front.ring().succeeds("a write", &request).await?;
    page_holds(&buffer, 0, [None; 8])?;
    front.close().await
}

async fn write_read_only_grant(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 22).await?;
    let buffer = Granted::new(front.device.dom, 1, true)?;
    buffer.bytes().fill(0, 4096, 0x77);
    let request = transfer(BLKIF_OP_WRITE, PLACE + 1, &[segment(buffer.gref(0), 0, 0)]);
    front.ring().succeeds("a write", &request).await?;
    ensure_eq!(front.look(PLACE + 1, 1).await?, [0x77], "the sector");
    front.close().await
}

async fn write_seen_at_once(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    for round in 0..16u8 {
        buffer.bytes().fill(0, 4096, round);
        let request = transfer(BLKIF_OP_WRITE, PLACE, &[segment(buffer.gref(0), 0, 7)]);
        front.ring().succeeds("a write", &request).await?;
        buffer.bytes().fill(0, 4096, 0xff);
        let seen = front.look(PLACE, 8).await?;
        ensure_eq!(seen, [round; 8], "the sectors in round {round}");
    }
    front.close().await
}

async fn write_many(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    require!(front.sectors >= PLACE + 202, "the disk has {} sectors", front.sectors);
    front.fill(PLACE + 1, 200, 30).await?;
    front.holds("after one writing", PLACE + 1, 200, 30).await?;
    front.fill(PLACE + 1, 200, 31).await?;
    front.holds("after another", PLACE + 1, 200, 31).await?;
    front.close().await
}
