//! The nodes by which a backend describes itself and its disk in xenstore.

use super::front::Front;
use crate::{Env, Need, Verdict};

cases! {
    needs [Store, Disk];

    "blkif.nodes.sectors" = sectors {
        title: "the backend's `sectors`",
        rule: "A connected backend states the disk's size in sectors of 512 bytes, a number above 0.",
        source: "io/blkif.h, 'sectors'",
    }
    "blkif.nodes.sector-size" = sector_size {
        title: "the backend's `sector-size`",
        rule: "A connected backend states its sectors' size in bytes: a power of two, at least 512.",
        source: "io/blkif.h, 'sector-size'",
    }
    "blkif.nodes.physical-sector-size" = physical {
        title: "the backend's `physical-sector-size`",
        rule: "Where it is stated, physical-sector-size is a multiple of sector-size.",
        source: "io/blkif.h, 'physical-sector-size'",
    }
    "blkif.nodes.info" = info {
        title: "the backend's `info` of a disk that can be written",
        rule: "info is a sum of VDISK_ flags, VDISK_READONLY only for a disk that cannot be written.",
        source: "io/blkif.h, 'info', VDISK_READONLY",
    }
    "blkif.nodes.features-are-boolean" = booleans {
        title: "each feature announced",
        rule: "feature-flush-cache, feature-barrier and feature-discard are 0 or 1, as are feature-persistent and discard-secure.",
        source: "io/blkif.h, 'Backend XenBus Nodes'",
    }
    "blkif.nodes.max-ring-page-order" = page_order {
        title: "the backend's `max-ring-page-order`",
        rule: "Where it is stated, max-ring-page-order is a small number, there before the frontend chooses.",
        source: "io/blkif.h, 'max-ring-page-order'",
    }
    "blkif.nodes.max-queues" = max_queues {
        title: "the backend's `multi-queue-max-queues`",
        rule: "Where it is stated, multi-queue-max-queues is a number above 0, there before the frontend chooses.",
        source: "io/blkif.h, 'multi-queue-max-queues'",
    }
    "blkif.nodes.frontend" = frontend {
        title: "the backend's `frontend` and `frontend-id`",
        rule: "A backend's directory names its frontend's directory and domain.",
        source: "io/xenbus.h; docs/misc/xenstore-paths.pandoc",
    }
    "blkif.nodes.same-after-reconnection" = same_again {
        title: "what the backend says in a second connection",
        rule: "The disk's properties are those of the disk, not of a connection.",
        source: "io/blkif.h, 'sectors', 'sector-size', 'info'",
    }
    "blkif.nodes.not-ours-to-write" = not_ours {
        title: "a write into the backend's directory",
        rule: "A frontend's domain can read its backend's directory and cannot write it.",
        source: "docs/misc/xenstore-paths.pandoc, permissions of device directories",
    }
}

async fn sectors(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let sectors: u64 = front.device.number_back("sectors").await?;
    ensure!(sectors > 0, "the disk has no sectors");
    front.close().await
}

async fn sector_size(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let size: u32 = front.device.number_back("sector-size").await?;
    ensure!(size.is_power_of_two() && size >= 512, "sector-size is {size}");
    front.close().await
}

async fn physical(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    if front.device.read_back("physical-sector-size").await?.is_some() {
        let size: u32 = front.device.number_back("sector-size").await?;
        let physical: u32 = front.device.number_back("physical-sector-size").await?;
        ensure!(
            physical > 0 && physical.is_multiple_of(size),
            "physical-sector-size {physical}, sector-size {size}"
        );
    }
    front.close().await
}

async fn info(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let info: u32 = front.device.number_back("info").await?;
    ensure!(info & 4 == 0, "info {info:#x} calls a disk read-only that was given for writing");
    ensure!(info < 0x20, "info {info:#x} has flags that are not defined");
    front.close().await
}

async fn booleans(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    for key in
        ["feature-flush-cache", "feature-barrier", "feature-discard", "feature-persistent", "discard-secure"]
    {
        if let Some(text) = front.device.read_back(key).await? {
            ensure!(matches!(text.trim(), "0" | "1"), "{key} is {text:?}");
        }
    }
    front.close().await
}

async fn page_order(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    if device.read_back("max-ring-page-order").await?.is_some() {
        let order: u32 = device.number_back("max-ring-page-order").await?;
        ensure!(order <= 10, "max-ring-page-order is {order}");
    }
    Ok(())
}

async fn max_queues(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    if device.read_back("multi-queue-max-queues").await?.is_some() {
        let queues: u32 = device.number_back("multi-queue-max-queues").await?;
        ensure!(queues > 0, "multi-queue-max-queues is {queues}");
    }
    Ok(())
}

async fn frontend(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let frontend = device.read_back("frontend").await?.unwrap_or_default();
    let ends = alloc::format!("/{}", device.front);
    ensure!(frontend.ends_with(&ends), "the backend's frontend is {frontend:?}, is to end in {ends:?}");
    let id = device.read_back("frontend-id").await?;
    let home = frontend.strip_suffix(&ends).unwrap_or_default();
    let from_path = home.rsplit('/').next().unwrap_or_default();
    ensure_eq!(id.as_deref(), Some(from_path), "the backend's frontend-id");
    Ok(())
}

async fn same_again(env: &mut Env) -> Verdict {
    let mut first = None;
    for _ in 0..2 {
        let mut front = Front::usual(env).await?;
        let mut now = alloc::vec::Vec::new();
        for key in ["sectors", "sector-size", "info"] {
            now.push(front.device.read_back(key).await?);
        }
        match &first {
            None => first = Some(now),
            Some(first) => ensure_eq!(&now, first, "sectors, sector-size and info"),
        }
        front.close().await?;
    }
    Ok(())
}

async fn not_ours(env: &mut Env) -> Verdict {
    let mut device = Front::prepare(env, Need::Disk).await?;
    let before = device.read_back("mode").await?;
    for key in ["mode", "state", "conformance"] {
        let path = alloc::format!("{}/{key}", device.back);
        let answer = device.store()?.write(&path, "w").await?;
        ensure!(answer.is_err(), "xenstored let a frontend's domain write {path}");
    }
    ensure_eq!(device.read_back("mode").await?, before, "the backend's mode");
    Ok(())
}
