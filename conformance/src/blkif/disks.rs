//! Read-only disks, and disks with large sectors.

use ring_abi::io::blkif::*;
use zerocopy::FromZeros;

use super::front::{Front, Options, segment, transfer};
use crate::{Env, Need, Verdict};

cases! {
    needs [Store];

    "blkif.read-only.info" = ro_info {
        title: "the backend's `info` of a read-only disk",
        rule: "A disk that cannot be written has VDISK_READONLY in its backend's info.",
        source: "io/blkif.h, 'info', VDISK_READONLY",
        also: [ReadOnlyDisk],
    }
    "blkif.read-only.read" = ro_read {
        title: "reads of a read-only disk, its last sector too",
        rule: "A read-only disk is read as any other.",
        source: "io/blkif.h, VDISK_READONLY",
        also: [ReadOnlyDisk],
    }
    "blkif.read-only.write" = ro_write {
        title: "a write to a read-only disk",
        rule: "A write to a read-only disk is answered with an error, and the disk stays as it is.",
        source: "io/blkif.h, VDISK_READONLY; BLKIF_RSP_ERROR",
        also: [ReadOnlyDisk],
    }
    "blkif.read-only.barrier" = ro_barrier {
        title: "a barrier with data to a read-only disk",
        rule: "A write to a read-only disk is answered with an error, whichever operation writes.",
        source: "io/blkif.h, VDISK_READONLY; BLKIF_OP_WRITE_BARRIER",
        also: [ReadOnlyDisk],
    }
    "blkif.read-only.indirect-write" = ro_indirect {
        title: "an indirect write to a read-only disk",
        rule: "A write to a read-only disk is answered with an error, whichever operation writes.",
        source: "io/blkif.h, VDISK_READONLY; BLKIF_OP_INDIRECT",
        also: [ReadOnlyDisk],
    }
    "blkif.read-only.discard" = ro_discard {
        title: "a discard on a read-only disk",
        rule: "A discard on a read-only disk is answered with an error, and the disk stays as it is.",
        source: "io/blkif.h, VDISK_READONLY; BLKIF_OP_DISCARD",
        also: [ReadOnlyDisk],
    }
    "blkif.read-only.writes-among-reads" = ro_mixed {
        title: "reads and writes of a read-only disk in one batch",
        rule: "A request that is refused does not disturb its neighbours.",
        source: "io/blkif.h, BLKIF_RSP_ERROR",
        also: [ReadOnlyDisk],
    }
    "blkif.big-sectors.size" = big_size {
        title: "sector-size and sectors of a disk with large sectors",
        rule: "`sectors` counts 512 bytes whatever the sector-size, and is a multiple of it.",
        source: "io/blkif.h, 'sectors', 'sector-size'",
        also: [BigSectorDisk],
    }
    "blkif.big-sectors.last" = big_last {
        title: "the last large sector, written and read",
        rule: "sector_number counts 512 bytes whatever the sector-size.",
        source: "io/blkif.h, struct blkif_request, sector_number",
        also: [BigSectorDisk],
    }
    "blkif.big-sectors.behind-the-end" = big_behind {
        title: "a large sector behind `sectors`",
        rule: "`sectors` counts 512 bytes whatever the sector-size: what is behind is not on the disk.",
        source: "io/blkif.h, 'sectors', 'sector-size'",
        also: [BigSectorDisk],
    }
    "blkif.big-sectors.misaligned-start" = big_start {
        title: "a write that begins within a large sector",
        rule: "A request begins at a multiple of sector-size.",
        source: "io/blkif.h, 'sector-size'",
        also: [BigSectorDisk],
    }
    "blkif.big-sectors.misaligned-length" = big_length {
        title: "a write of half a large sector",
        rule: "Each segment's length is a multiple of sector-size.",
        source: "io/blkif.h, 'sector-size'",
        also: [BigSectorDisk],
    }
}

fn options(disk: Need) -> Options {
    Options { disk, ..Options::default() }
}

async fn read_only(env: &mut Env) -> Verdict<Front<'_>> {
    Front::connect(env, &options(Need::ReadOnlyDisk)).await
}

async fn ro_info(env: &mut Env) -> Verdict {
    let mut front = read_only(env).await?;
    let info: u32 = front.device.number_back("info").await?;
    ensure!(info & VDISK_READONLY != 0, "info {info:#x} of a read-only disk lacks VDISK_READONLY");
    front.close().await
}

async fn ro_read(env: &mut Env) -> Verdict {
    let mut front = read_only(env).await?;
    let first = front.content(0, 8).await?;
    ensure!(front.content(0, 8).await? == first, "the first sectors read otherwise again");
    let last = front.sectors - 1;
    front.content(last, 1).await?;
    front.close().await
}

/// Checks that the backend refuses a request that would change a read-only disk, and that the disk does not
/// change.
async fn ro_refused(env: &mut Env, what: &str, make: impl Fn(u32, u32) -> BlkifRequest + Send) -> Verdict {
    let mut front = read_only(env).await?;
    let before = front.content(0, 16).await?;
    let buffer = front.buffer(2)?;
    buffer.bytes().fill(0, 4096, !before[512]);
    // The second page lists the first as a segment.
    let list = segment(buffer.gref(0), 0, 0);
    buffer.bytes().write_value(4096, &list);
    front.ring().refused(what, &make(buffer.gref(0), buffer.gref(1))).await?;
    ensure!(!buffer.in_use(), "pages of a refused request are still mapped");
    ensure!(front.content(0, 16).await? == before, "a read-only disk's sectors have changed");
    front.close().await
}

async fn ro_write(env: &mut Env) -> Verdict {
    ro_refused(env, "a write to a read-only disk", |gref, _| {
        transfer(BLKIF_OP_WRITE, 1, &[segment(gref, 0, 0)])
    })
    .await
}

async fn ro_barrier(env: &mut Env) -> Verdict {
    ro_refused(env, "a barrier to a read-only disk", |gref, _| {
        transfer(BLKIF_OP_WRITE_BARRIER, 1, &[segment(gref, 0, 0)])
    })
    .await
}

async fn ro_indirect(env: &mut Env) -> Verdict {
    ro_refused(env, "an indirect write to a read-only disk", |_, list| {
        let mut request = BlkifRequestIndirect::new_zeroed();
        request.operation = BLKIF_OP_INDIRECT;
        request.indirect_op = BLKIF_OP_WRITE;
        request.nr_segments = 1;
        request.sector_number = 1;
        request.indirect_grefs[0] = list;
        BlkifRequest::from_indirect(&request)
    })
    .await
}

async fn ro_discard(env: &mut Env) -> Verdict {
    ro_refused(env, "a discard on a read-only disk", |_, _| {
        let mut request = BlkifRequestDiscard::new_zeroed();
        request.operation = BLKIF_OP_DISCARD;
        request.nr_sectors = 8;
        BlkifRequest::from_discard(&request)
    })
    .await
}

async fn ro_mixed(env: &mut Env) -> Verdict {
    let mut front = read_only(env).await?;
    let buffer = front.buffer(1)?;
    for n in 0..16u64 {
        let operation = if n % 2 == 0 { BLKIF_OP_READ } else { BLKIF_OP_WRITE };
        let mut request = transfer(operation, n, &[segment(buffer.gref(0), 0, 0)]);
        request.id = n;
        front.ring().push(&request);
    }
    front.ring().publish();
    for _ in 0..16 {
        let response = front.ring().response().await?;
        let good = response.status == BLKIF_RSP_OKAY;
        ensure_eq!(good, response.id % 2 == 0, "success of request {}", response.id);
    }
    front.close().await
}

async fn big(env: &mut Env) -> Verdict<(Front<'_>, u64)> {
    let mut front = Front::connect(env, &options(Need::BigSectorDisk)).await?;
    let size: u64 = front.device.number_back("sector-size").await?;
    ensure!(size > 512 && size <= 4096, "sector-size is {size}");
    Ok((front, size / 512))
}

async fn big_size(env: &mut Env) -> Verdict {
    let (front, unit) = big(env).await?;
    ensure!(
        front.sectors.is_multiple_of(unit),
        "{} sectors of 512 bytes are no whole large ones",
        front.sectors
    );
    front.close().await
}

async fn big_last(env: &mut Env) -> Verdict {
    let (mut front, unit) = big(env).await?;
    let last = front.sectors - unit;
    front.fill(last, unit, 110).await?;
    front.holds("the last large sector", last, unit, 110).await?;
    front.close().await
}

async fn big_behind(env: &mut Env) -> Verdict {
    let (mut front, unit) = big(env).await?;
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, front.sectors, &[segment(buffer.gref(0), 0, unit as u8 - 1)]);
    front.ring().refused("a read behind the end", &request).await?;
    front.close().await
}

/// Checks that the backend refuses a write of `count` sectors from `sector` on, and that the disk does not
/// change.
async fn big_refused(env: &mut Env, sector: u64, count: u8) -> Verdict {
    let (mut front, unit) = big(env).await?;
    front.fill(0, unit * 4, 111).await?;
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_WRITE, sector, &[segment(buffer.gref(0), 0, count - 1)]);
    front.ring().refused("a write of parts of sectors", &request).await?;
    front.holds("after a refused write", 0, unit * 4, 111).await?;
    front.close().await
}

async fn big_start(env: &mut Env) -> Verdict {
    big_refused(env, 1, 8).await
}

async fn big_length(env: &mut Env) -> Verdict {
    big_refused(env, 8, 1).await
}
