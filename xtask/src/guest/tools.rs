//! Debian's programs for networks, with their libraries, for the busybox ramdisk.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cpio::{self, Archive};
use crate::packages;

/// The packages of the files below.
const PACKAGES: &[&str] = &["iperf3", "libiperf0", "libsctp1", "libssl3", "ethtool", "libmnl0", "libc6"];

/// Directories that the ramdisk does not have.
const DIRECTORIES: &[&str] = &["lib", "lib/x86_64-linux-gnu", "lib64"];

/// Files of the packages, and their paths in the ramdisk.
const FILES: &[(&str, &str)] = &[
    ("usr/bin/iperf3", "bin/iperf3"),
    ("sbin/ethtool", "bin/ethtool"),
    ("usr/lib/x86_64-linux-gnu/libiperf.so.0", "lib/x86_64-linux-gnu/libiperf.so.0"),
    ("usr/lib/x86_64-linux-gnu/libsctp.so.1", "lib/x86_64-linux-gnu/libsctp.so.1"),
    ("usr/lib/x86_64-linux-gnu/libcrypto.so.3", "lib/x86_64-linux-gnu/libcrypto.so.3"),
    ("usr/lib/x86_64-linux-gnu/libmnl.so.0", "lib/x86_64-linux-gnu/libmnl.so.0"),
    ("lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libc.so.6"),
    ("lib/x86_64-linux-gnu/libm.so.6", "lib/x86_64-linux-gnu/libm.so.6"),
    ("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2"),
];

/// `iperf3` and `ethtool` as an archive that can follow a ramdisk's own, with the packages kept in `directory`.
///
/// # Errors
/// A package cannot be fetched, or has not the file.
pub(super) fn archive(directory: &Path) -> Result<Vec<u8>> {
    let names = || Ok(PACKAGES.iter().map(ToString::to_string).collect());
    let tree = packages::fetch(directory, names)?;
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.add(cpio::DIRECTORY, directory, &[]);
    }
    for (from, to) in FILES {
        let path = tree.join(from);
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.add(cpio::PROGRAM, to, &bytes);
    }
    Ok(archive.finish())
}
