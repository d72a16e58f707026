//! Debian's programs for networks, with their libraries, for the busybox ramdisk.

use std::path::Path;

use anyhow::{Context, Result};

use super::program::{IPERF, Iperf};
use crate::cpio::{self, Archive};
use crate::packages;

/// The packages of the files below, beside those of iperf3.
const PACKAGES: [&str; 2] = ["ethtool", "libmnl0"];

/// Files of the packages, and their paths in the ramdisk.
const FILES: [(&str, &str); 2] = [
    ("sbin/ethtool", "bin/ethtool"),
    ("usr/lib/x86_64-linux-gnu/libmnl.so.0", "lib/x86_64-linux-gnu/libmnl.so.0"),
];

/// `iperf3` and `ethtool` as an archive that can follow a ramdisk's own, with the packages kept in `directory`.
///
/// # Errors
/// A package cannot be fetched, or has not the file.
pub(super) fn archive(directory: &Path) -> Result<Vec<u8>> {
    let names = || Ok(IPERF.iter().chain(&PACKAGES).map(ToString::to_string).collect());
    let tree = packages::fetch(directory, names)?;
    let mut archive = Archive::default();
    Iperf::within(tree.clone()).add(&mut archive)?;
    for (from, to) in FILES {
        let path = tree.join(from);
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.add(cpio::PROGRAM, to, &bytes);
    }
    Ok(archive.finish())
}
