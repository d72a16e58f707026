//! Where saved domains are: on a disk that no domain uses, or in the boot bundle, which is read alone.

use alloc::format;
use alloc::string::String;

use migration::{IoFailure, Source};
use pvrt::hypercall::domctl;

use super::super::claims::Claim;
use super::super::{Domain, Toolstack};
use super::link::Link;
use crate::blkdev::{DiskSink, DiskSource, SharedDevice};

/// Bytes of a stream beside memory, at most about: vCPUs, lists, configuration.
const BESIDE_MEMORY: u64 = 2 << 20;
/// Bytes beside a page's contents: its entry, and its share of what surrounds records.
const BESIDE_PAGE: u64 = 24;
const SECTOR: u64 = 512;

/// Where a stream comes from.
pub(in crate::toolstack) enum SavedSource {
    /// A disk.
    Disk(DiskSource),
    /// A file of the boot bundle: what is left of it.
    File(&'static [u8]),
    /// Another machine.
    Link(Link),
}

impl Source for SavedSource {
    async fn read(&mut self, bytes: &mut [u8]) -> Result<(), IoFailure> {
        match self {
            Self::Disk(disk) => disk.read(bytes).await,
            Self::File(file) => file.read(bytes).await,
            Self::Link(link) => link.read(bytes).await,
        }
    }
}

/// Begins to write a stream to a disk.
pub(super) async fn begin(path: &str, device: SharedDevice) -> Result<DiskSink, String> {
    DiskSink::begin(device).await.map_err(|failure| format!("{path}: {failure}"))
}

/// Whether a disk has room for a stream that has each page of a domain so many times. An error: the bytes that are needed, and those that
/// are there.
pub(super) fn has_room(domain: &Domain, device: &SharedDevice, times: u64) -> Result<(), (u64, u64)> {
    let pages = domctl::info(domain.id).map_or(0, |info| info.tot_pages) * times;
    let needed = (pages << 12) + pages * BESIDE_PAGE + BESIDE_MEMORY;
    let has = device.geometry().sectors.saturating_mul(SECTOR);
    if has < needed { Err((needed, has)) } else { Ok(()) }
}

impl Toolstack {
    /// Claims the disk to which a domain is to be saved.
    pub(super) fn claim_place(&self, domain: &Domain, path: &str) -> Result<(Claim, SharedDevice), String> {
        let claim = self.claim_stream(&format!("xl save of {}", domain.name), path, true)?;
        let disk = self.0.disks.find(path).ok_or_else(|| format!("{path}: no such disk"))?;
        let geometry = disk.device.geometry();
        if geometry.read_only {
            return Err(format!("{path}: the disk cannot be written"));
        }
        has_room(domain, &disk.device, 1).map_err(|(needed, has)| {
            let (needed, has) = (needed.div_ceil(1 << 20), has >> 20);
            format!("{path}: the disk has {has} MiB, and {} needs up to {needed}", domain.name)
        })?;
        Ok((claim, disk.device))
    }

    /// The stream of a saved domain, and the claim of its disk.
    pub(super) fn saved_source(&self, path: &str) -> Result<(Option<Claim>, SavedSource), String> {
        if let Some(disk) = self.0.disks.find(path) {
            let claim = self.claim_stream("xl restore", path, false)?;
            return Ok((Some(claim), SavedSource::Disk(DiskSource::new(disk.device))));
        }
        let file =
            self.0.bundle.find(path).ok_or_else(|| format!("{path}: no such disk and no such file"))?;
        Ok((None, SavedSource::File(file.bytes)))
    }
}
