//! Programs of Linux user space of this repository's own, for the busybox ramdisk.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::DebianBoot;
use crate::cpio::{self, Archive};
use crate::machine::Module;
use crate::{cargo, packages, paths};

/// The packages of iperf3, a program that moves bytes between two systems.
pub(super) const IPERF: [&str; 5] = ["iperf3", "libiperf0", "libsctp1", "libssl3", "libc6"];

/// The files of iperf3 and of the libraries that iperf3 is linked to: the path in a ramdisk, and the directory in the packages.
const IPERF_FILES: [(&str, &str); 7] = [
    ("bin/iperf3", "usr/bin"),
    ("lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu"),
    ("lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu"),
    ("lib/x86_64-linux-gnu/libm.so.6", "lib/x86_64-linux-gnu"),
    ("lib/x86_64-linux-gnu/libiperf.so.0", "usr/lib/x86_64-linux-gnu"),
    ("lib/x86_64-linux-gnu/libsctp.so.1", "usr/lib/x86_64-linux-gnu"),
    ("lib/x86_64-linux-gnu/libcrypto.so.3", "usr/lib/x86_64-linux-gnu"),
];

/// A path's last part.
fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Debian's iperf3, fetched by apt.
#[derive(Clone, Debug)]
pub(crate) struct Iperf {
    tree: PathBuf,
}

/// Fetches iperf3 unless it is there.
///
/// # Errors
/// A tool is missing, or apt has or gives no such package.
pub(crate) fn iperf() -> Result<Iperf> {
    let _turn = super::turn()?;
    let names = || Ok(IPERF.map(str::to_string).to_vec());
    Ok(Iperf { tree: packages::fetch(&super::directory().join("iperf3"), names)? })
}

impl Iperf {
    /// The program in a directory with the packages [`IPERF`] among others.
    pub(super) fn within(tree: PathBuf) -> Self {
        Self { tree }
    }

    /// Puts the program as `bin/iperf3` into a ramdisk, with its libraries.
    ///
    /// # Errors
    /// A file of the packages is missing.
    pub(crate) fn add(&self, archive: &mut Archive) -> Result<()> {
        for directory in ["lib", "lib/x86_64-linux-gnu", "lib64"] {
            archive.add(cpio::DIRECTORY, directory, &[]);
        }
        for (path, directory) in IPERF_FILES {
            let file = self.tree.join(directory).join(last(path));
            let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            archive.add(cpio::PROGRAM, path, &bytes);
        }
        Ok(())
    }

    /// The program and those of its libraries that other systems lack, as files of one directory, from which
    /// `LD_LIBRARY_PATH=. ./iperf3` runs.
    pub(crate) fn files(&self) -> Vec<Module> {
        let own = IPERF_FILES.iter().filter(|(path, _)| path.contains("iperf") || path.contains("sctp"));
        own.map(|(path, directory)| Module {
            path: self.tree.join(directory).join(last(path)),
            name: last(path).into(),
        })
        .collect()
    }

    /// A command that runs it on the host itself, which is a Debian of the same release.
    pub(crate) fn command(&self) -> std::process::Command {
        let mut command = crate::qemu::contained(&self.tree.join("usr/bin/iperf3").display().to_string());
        command.env("LD_LIBRARY_PATH", self.tree.join("usr/lib/x86_64-linux-gnu"));
        command
    }
}

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
