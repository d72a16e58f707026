//! The busybox ramdisk of Debian's kernel.

use anyhow::{Context, Result};

use super::kernel::Unpacked;
use crate::cpio::{self, Archive};

/// The first program.
const INIT: &str = include_str!("init.sh");

/// Directories to mount on, and those of the files below.
const DIRECTORIES: &[&str] = &["bin", "dev", "etc", "modules", "mnt", "proc", "root", "sys", "tmp"];

/// What the kernel has as modules and the ramdisk needs: disks and their file system, network interfaces. ext4 asks for
/// its checksum by what it does, not by name.
const MODULES: &[&str] = &["xen-blkfront", "xen-netfront", "crc32c_generic", "ext4"];

/// The ramdisk, as the kernel unpacks it.
///
/// # Errors
/// A file of the packages is missing.
pub(super) fn archive(unpacked: &Unpacked) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.add(cpio::DIRECTORY, directory, &[]);
    }
    archive.add(cpio::PROGRAM, "init", INIT.as_bytes());
    let busybox = unpacked.busybox();
    let bytes = std::fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.add(cpio::PROGRAM, "bin/busybox", &bytes);
    unpacked.add_modules(MODULES, &mut archive)?;
    Ok(archive.finish())
}
