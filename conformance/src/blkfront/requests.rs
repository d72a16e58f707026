//! The requests of a frontend, and how the frontend treats the answers of a correct backend.

use ring_abi::io::blkif::*;

use super::back::{Back, Disk, run};
use super::{FrontError, Sum, content};
use crate::{Env, Verdict};

cases! {
    needs [Frontend];

    "blkfront.read.data" = read {
        title: "reads of one sector, of eight, and of five in the middle",
        rule: "A read gives what the backend wrote to its pages.",
        source: "io/blkif.h, BLKIF_OP_READ",
    }
    "blkfront.write.data" = write {
        title: "writes of one sector, of eight, and of five in the middle",
        rule: "A write's pages hold what is to be written.",
        source: "io/blkif.h, BLKIF_OP_WRITE",
    }
    "blkfront.read.large" = read_large {
        title: "a read of 512 sectors from a backend without indirect requests",
        rule: "A request has at most 11 segments where no indirect ones are announced.",
        source: "io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST",
    }
    "blkfront.write.large" = write_large {
        title: "a write of 512 sectors to a backend without indirect requests",
        rule: "A request has at most 11 segments where no indirect ones are announced.",
        source: "io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST",
    }
    "blkfront.indirect.within-limits" = indirect_few {
        title: "512 sectors where 20 indirect segments are announced",
        rule: "A frontend lists no more segments than feature-max-indirect-segments.",
        source: "io/blkif.h, 'feature-max-indirect-segments'",
    }
    "blkfront.indirect.many" = indirect_many {
        title: "1024 sectors where 4096 indirect segments are announced",
        rule: "A list fills the pages that indirect_grefs names, 512 segments each.",
        source: "io/blkif.h, struct blkif_request_indirect",
    }
    "blkfront.indirect.announced-too-low" = indirect_low {
        title: "512 sectors where 3 indirect segments are announced",
        rule: "An announcement of fewer segments than a request holds does not lessen those.",
        source: "io/blkif.h, 'feature-max-indirect-segments'",
    }
    "blkfront.read.last-sector" = last_sector {
        title: "the disk's last sector",
        rule: "A request that ends with the last of `sectors` sectors is on the disk.",
        source: "io/blkif.h, 'sectors'",
    }
    "blkfront.read.behind-the-end" = behind_the_end {
        title: "a read behind the disk's end",
        rule: "A frontend does not ask for what is not on the disk.",
        source: "io/blkif.h, 'sectors'",
    }
    "blkfront.read.error" = read_error {
        title: "a read answered with BLKIF_RSP_ERROR",
        rule: "A request answered with an error has failed.",
        source: "io/blkif.h, BLKIF_RSP_ERROR",
    }
    "blkfront.write.error" = write_error {
        title: "one of many parts of a write answered with BLKIF_RSP_ERROR",
        rule: "An operation fails if any of its requests does.",
        source: "io/blkif.h, BLKIF_RSP_ERROR",
    }
    "blkfront.read.unknown-status" = unknown_status {
        title: "reads answered with the statuses -99, -32768 and 5",
        rule: "Only BLKIF_RSP_OKAY is success.",
        source: "io/blkif.h, BLKIF_RSP_OKAY",
    }
    "blkfront.read.error-then-good" = error_then_good {
        title: "a read after one that failed",
        rule: "An error ends its request alone.",
        source: "io/blkif.h, BLKIF_RSP_ERROR",
    }
    "blkfront.flush.announced" = flush {
        title: "a flush of a backend that announces them",
        rule: "A flush has the operation BLKIF_OP_FLUSH_DISKCACHE and needs no segment.",
        source: "io/blkif.h, BLKIF_OP_FLUSH_DISKCACHE",
    }
    "blkfront.flush.not-announced" = no_flush {
        title: "a flush of a backend that announces none",
        rule: "A frontend asks for no operation that was not announced.",
        source: "io/blkif.h, 'feature-flush-cache'",
    }
    "blkfront.flush.not-supported-after-all" = flush_unsupported {
        title: "a flush answered with BLKIF_RSP_EOPNOTSUPP",
        rule: "An announced operation may still be answered as not supported; nothing else breaks.",
        source: "io/blkif.h, 'feature-flush-cache'",
    }
    "blkfront.discard.announced" = discard {
        title: "a discard of a backend that announces them",
        rule: "A discard has sector_number and nr_sectors where struct blkif_request_discard has them.",
        source: "io/blkif.h, struct blkif_request_discard",
    }
    "blkfront.discard.not-announced" = no_discard {
        title: "a discard of a backend that announces none",
        rule: "A frontend asks for no operation that was not announced.",
        source: "io/blkif.h, 'feature-discard'",
    }
    "blkfront.read-only.write" = read_only {
        title: "a write to a disk with VDISK_READONLY",
        rule: "A frontend does not write to a disk that cannot be written.",
        source: "io/blkif.h, VDISK_READONLY",
    }
    "blkfront.big-sectors.aligned" = big_sectors {
        title: "aligned reads and writes of a disk with sectors of 4096 bytes",
        rule: "Requests begin and end at multiples of sector-size.",
        source: "io/blkif.h, 'sector-size'",
    }
    "blkfront.big-sectors.misaligned" = big_sectors_misaligned {
        title: "reads of parts of sectors of 4096 bytes",
        rule: "Requests begin and end at multiples of sector-size.",
        source: "io/blkif.h, 'sector-size'",
    }
    "blkfront.grants.taken-back" = taken_back {
        title: "the pages of reads and writes once they are answered",
        rule: "Without feature-persistent a frontend ends a page's grant when its request is answered.",
        source: "io/blkif.h, 'feature-persistent'; grant_table.h",
    }
    "blkfront.read.response-operation" = response_operation {
        title: "a read whose response names another operation",
        rule: "A response is told by its id; one with a wrong operation does not become other data.",
        source: "io/blkif.h, struct blkif_response, operation",
    }
}

/// Ranges that every frontend can transfer in one request: first sector and number.
const PIECES: [(u64, usize); 4] = [(0, 1), (8, 8), (17, 5), (100, 24)];

/// The bytes of sectors.
pub(super) fn range(sector: u64, sectors: usize) -> core::ops::Range<usize> {
    sector as usize * 512..(sector as usize + sectors) * 512
}

/// Reads, and checks the data.
pub(super) async fn reads(
    back: &mut Back,
    front: &alloc::sync::Arc<dyn super::BlockFrontend>,
    at: u64,
    n: usize,
) -> Verdict {
    let asked = run(front.clone().read(at, n));
    let got = back.serve(asked).await?;
    ensure!(got == Ok(Sum::of(&back.data[range(at, n)])), "a read of {n} sectors at {at} gave other data");
    Ok(())
}

/// Writes, and checks that the disk has changed there and nowhere else.
async fn writes(
    back: &mut Back,
    front: &alloc::sync::Arc<dyn super::BlockFrontend>,
    at: u64,
    n: usize,
) -> Verdict {
    let mut wanted = back.data.clone();
    wanted[range(at, n)].copy_from_slice(&content(0x5a, n));
    let asked = run(front.clone().write(at, n, 0x5a));
    let result = back.serve(asked).await?;
    ensure_eq!(result, Ok(()), "a write of {n} sectors at {at}");
    ensure!(back.data == wanted, "after a write of {n} sectors at {at} the disk holds other data");
    Ok(())
}

async fn read(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    for (at, n) in PIECES {
        reads(&mut back, &front, at, n).await?;
    }
    Ok(())
}

async fn write(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    for (at, n) in PIECES {
        writes(&mut back, &front, at, n).await?;
    }
    Ok(())
}

async fn read_large(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    reads(&mut back, &front, 3, 512).await
}

async fn write_large(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    writes(&mut back, &front, 3, 512).await
}

async fn indirect(env: &mut Env, segments: usize, sectors: usize) -> Verdict {
    let mut back = Back::new(env, Disk { indirect: segments, ..Disk::default() })?;
    let front = back.connect().await?;
    reads(&mut back, &front, 0, sectors).await?;
    writes(&mut back, &front, 0, sectors).await?;
    reads(&mut back, &front, 7, 12 * 8 + 3).await
}

async fn indirect_few(env: &mut Env) -> Verdict {
    indirect(env, 20, 512).await
}

async fn indirect_many(env: &mut Env) -> Verdict {
    indirect(env, 4096, 1024).await
}

async fn indirect_low(env: &mut Env) -> Verdict {
    indirect(env, 3, 512).await
}

async fn last_sector(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let last = back.disk.sectors - 1;
    reads(&mut back, &front, last, 1).await?;
    writes(&mut back, &front, last, 1).await?;
    reads(&mut back, &front, last - 12, 13).await
}

async fn behind_the_end(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let end = back.disk.sectors;
    for (at, n) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (u64::MAX - 3, 8), (1 << 55, 1)] {
        // The frontend may still request the part that is on the disk.
        let result = back.serve(run(front.clone().read(at, n))).await?;
        ensure!(result.is_err(), "a read of {n} sectors at {at} succeeded on a disk of {end}");
    }
    back.silent().await
}

/// Reads one sector, with the backend answering `status`.
async fn answered(env: &mut Env, status: i16) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let asked = run(front.clone().read(0, 8));
    let request = back.request().await?;
    back.respond(&request, status);
    let result = back.end(asked).await?;
    ensure!(result.is_err(), "a read answered with status {status} succeeded");
    // The frontend may end the connection at a status that does not exist.
    if status == BLKIF_RSP_ERROR {
        reads(&mut back, &front, 0, 8).await?;
    }
    Ok(())
}

async fn read_error(env: &mut Env) -> Verdict {
    answered(env, BLKIF_RSP_ERROR).await
}

async fn unknown_status(env: &mut Env) -> Verdict {
    for status in [-99, i16::MIN, 5] {
        answered(env, status).await?;
    }
    Ok(())
}

async fn write_error(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    // Three requests of 88 sectors, the second of which fails.
    let asked = run(front.clone().write(0, 264, 1));
    for nth in 0..3 {
        let request = back.request().await?;
        back.perform(&request)?;
        back.respond(&request, if nth == 1 { BLKIF_RSP_ERROR } else { BLKIF_RSP_OKAY });
    }
    let result = back.end(asked).await?;
    ensure!(result.is_err(), "a write one of whose parts failed succeeded");
    Ok(())
}

async fn error_then_good(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    for _ in 0..5 {
        let asked = run(front.clone().read(0, 8));
        let request = back.request().await?;
        back.respond(&request, BLKIF_RSP_ERROR);
        ensure_eq!(back.end(asked).await?, Err(FrontError::Failed), "a read that failed");
        reads(&mut back, &front, 0, 8).await?;
    }
    Ok(())
}

async fn flush(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk { flush: true, ..Disk::default() })?;
    let front = back.connect().await?;
    let asked = run(front.clone().flush());
    let request = back.request().await?;
    ensure_eq!(request.operation, BLKIF_OP_FLUSH_DISKCACHE, "the operation of a flush");
    ensure_eq!(request.nr_segments, 0, "the segments of a flush");
    back.respond(&request, BLKIF_RSP_OKAY);
    ensure_eq!(back.end(asked).await?, Ok(()), "the flush");
    Ok(())
}

async fn no_flush(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let _ = back.end(run(front.clone().flush())).await?;
    back.silent().await
}

async fn flush_unsupported(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk { flush: true, ..Disk::default() })?;
    let front = back.connect().await?;
    let asked = run(front.clone().flush());
    let request = back.request().await?;
    back.respond(&request, BLKIF_RSP_EOPNOTSUPP);
    let result = back.end(asked).await?;
    ensure!(
        matches!(result, Ok(()) | Err(FrontError::Unsupported)),
        "a flush that is not supported gave {result:?}"
    );
    reads(&mut back, &front, 0, 8).await
}

async fn discard(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk { discard: true, ..Disk::default() })?;
    let front = back.connect().await?;
    let asked = run(front.clone().discard(40, 300));
    let request = back.request().await?.as_discard();
    ensure_eq!(request.operation, BLKIF_OP_DISCARD, "the operation of a discard");
    ensure_eq!((request.sector_number, request.nr_sectors), (40, 300), "the range of a discard");
    ensure_eq!(request.flag, 0, "the flag of a discard");
    back.push(request.id, BLKIF_OP_DISCARD, BLKIF_RSP_OKAY);
    back.publish(false);
    ensure_eq!(back.end(asked).await?, Ok(()), "the discard");
    Ok(())
}

async fn no_discard(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let _ = back.end(run(front.clone().discard(40, 8))).await?;
    back.silent().await
}

async fn read_only(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk { info: VDISK_READONLY, ..Disk::default() })?;
    let front = back.connect().await?;
    let result = back.end(run(front.clone().write(0, 1, 0))).await?;
    ensure!(result.is_err(), "a write to a read-only disk succeeded");
    back.silent().await?;
    reads(&mut back, &front, 0, 8).await
}

const BIG: Disk =
    Disk { sectors: 1024, sector_size: 4096, info: 0, flush: false, discard: false, indirect: 32 };

async fn big_sectors(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, BIG)?;
    let front = back.connect().await?;
    for (at, n) in [(0, 8), (8, 240), (1016, 8), (0, 1024)] {
        reads(&mut back, &front, at, n).await?;
        writes(&mut back, &front, at, n).await?;
    }
    Ok(())
}

async fn big_sectors_misaligned(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, BIG)?;
    let front = back.connect().await?;
    for (at, n) in [(1, 8), (0, 4), (8, 12), (1020, 4)] {
        // The frontend may refuse, or read more than the caller wants: only the requests to the backend are
        // checked.
        let asked = run(front.clone().read(at, n));
        let result = back.serve(asked).await?;
        if let Ok(data) = result {
            ensure!(
                data == Sum::of(&back.data[range(at, n)]),
                "a read of {n} sectors at {at} gave other data"
            );
        }
    }
    Ok(())
}

async fn taken_back(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    for write in [false, true] {
        let (mut reading, mut writing) = (None, None);
        if write {
            writing = Some(run(front.clone().write(0, 16, 7)));
        } else {
            reading = Some(run(front.clone().read(0, 16)));
        }
        let request = back.request().await?;
        let grants = back.perform(&request)?;
        ensure!(grants.iter().all(|gref| back.grants(*gref)), "a page in flight is not granted");
        back.respond(&request, BLKIF_RSP_OKAY);
        if let Some(asked) = reading {
            ensure!(back.end(asked).await?.is_ok(), "the read failed");
        }
        if let Some(asked) = writing {
            ensure!(back.end(asked).await?.is_ok(), "the write failed");
        }
        ensure!(!grants.iter().any(|gref| back.grants(*gref)), "an answered request's page is still granted");
    }
    Ok(())
}

async fn response_operation(env: &mut Env) -> Verdict {
    let mut back = Back::new(env, Disk::default())?;
    let front = back.connect().await?;
    let asked = run(front.clone().read(0, 8));
    let request = back.request().await?;
    back.perform(&request)?;
    back.push(request.id, 77, BLKIF_RSP_OKAY);
    back.publish(false);
    if let Some(Ok(data)) = back.given_up(asked).await? {
        ensure!(data == Sum::of(&back.data[range(0, 8)]), "the read gave other data");
    }
    Ok(())
}
