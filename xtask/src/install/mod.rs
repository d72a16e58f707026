//! `cargo xtask image --install`: a directory that is copied to a Debian machine, whose `install.sh` puts microhv into the
//! machine's GRUB menu.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::images;
use crate::iso::Files;

/// The program that a person runs on the Debian machine.
pub const PROGRAM: &str = "install.sh";
/// PV GRUB's name below `/boot` in dom0: `install.sh` writes that name into the guest's configuration.
pub const LOADER: &str = "pvgrub";
const SCRIPT: &str = include_str!("install.sh");
/// The sums of the other files, as `sha256sum` checks them.
const SUMS: &str = "SHA256SUMS";

/// Makes the directory, whose boot bundle holds PV GRUB as [`LOADER`].
///
/// # Errors
/// A file cannot be read or written.
pub fn make(directory: &Path, files: &Files<'_>) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (path, name) in [(files.hypervisor, "microhv"), (files.dom0, "dom0"), (files.bundle, "boot.cpio")] {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        images::write(&directory.join(name), &bytes)?;
    }
    images::write(&directory.join(PROGRAM), SCRIPT.as_bytes())?;
    let output = Command::new("sha256sum")
        .args(["microhv", "dom0", "boot.cpio", PROGRAM])
        .current_dir(directory)
        .output()
        .context("cannot run sha256sum")?;
    ensure!(output.status.success(), "sha256sum failed: {}", output.status);
    images::write(&directory.join(SUMS), &output.stdout)
}
