//! Programs of Linux user space of this repository's own, for the busybox ramdisk.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::DebianBoot;
use crate::cpio::{self, Archive};
use crate::{cargo, paths};

/// Builds the package `name`, a program of the same name: statically linked at a fixed address, since the ramdisk has
/// no dynamic loader.
///
/// # Errors
/// The build failed.
pub(crate) fn build(name: &str) -> Result<PathBuf> {
    let target = paths::target().join("linux");
    let mut command = cargo::host(&["build", "--release", "--package", name, "--target", cargo::TARGET]);
    command.env("CARGO_TARGET_DIR", &target).env_remove("RUSTFLAGS");
    let flags = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-Cstrip=symbols"];
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    cargo::run(&mut command)?;
    Ok(target.join(cargo::TARGET).join("release").join(name))
}

/// Debian's ramdisk with a program of this repository, as `/bin/NAME`, and more of the kernel's modules and what they
/// need, in `/modules` and not loaded: the kernel unpacks both archives.
///
/// # Errors
/// The build failed, or a file cannot be read.
pub fn ramdisk_with(kernel: &DebianBoot, name: &str, modules: &[&str]) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(&kernel.ramdisk)
        .with_context(|| format!("cannot read {}", kernel.ramdisk.display()))?;
    let mut archive = Archive::default();
    let mut add = |kind, name: &str, path: PathBuf| -> Result<()> {
        let contents = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.add(kind, name, &contents);
        Ok(())
    };
    add(cpio::PROGRAM, &format!("bin/{name}"), build(name)?)?;
    if !modules.is_empty() {
        for path in super::debian_kernel()?.modules(modules)? {
            let file = path.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
            add(cpio::FILE, &format!("modules/{file}"), path.clone())?;
        }
    }
    bytes.extend(archive.finish());
    Ok(bytes)
}
