//! A newer QEMU than the release's, from Debian's backports: fetched and unpacked beside the installed one, which stays. The
//! libraries are those of the installed one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::run;
use crate::{packages, paths, qemu};

/// What stands for this QEMU where a path is wanted.
pub const NAME: &str = "backports";
/// Where the packages come from, as apt writes it.
const SOURCE: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                      http://deb.debian.org/debian bookworm-backports main\n";
/// The emulator, and what it loads.
const PACKAGES: [&str; 4] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

/// The program, fetched if need be.
///
/// # Errors
/// The packages cannot be had, or the program lacks a library.
pub fn qemu() -> Result<PathBuf> {
    let directory = paths::target().join("qemu-backports");
    let tree = packages::unpacked(&directory, download)?;
    let program = tree.join("usr/bin").join(qemu::PROGRAM);
    let answer = Command::new(&program).arg("--version").output();
    let answer = answer.with_context(|| format!("cannot run {}", program.display()))?;
    if !answer.status.success() {
        let why = String::from_utf8_lossy(&answer.stderr);
        bail!(
            "{} does not run, which has the libraries of the installed QEMU: {}",
            program.display(),
            why.trim()
        );
    }
    eprintln!("{}", String::from_utf8_lossy(&answer.stdout).lines().next().unwrap_or_default());
    Ok(program)
}

/// Fetches the packages into `directory`, by lists of apt's that are made for this alone: the machine's own sources stay.
fn download(directory: &Path) -> Result<()> {
    let lists = directory.with_file_name("lists");
    let cache = directory.with_file_name("cache");
    for fresh in [lists.join("partial"), cache.join("archives/partial")] {
        std::fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    }
    let source = directory.with_file_name("backports.list");
    std::fs::write(&source, SOURCE).with_context(|| format!("cannot write {}", source.display()))?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        // apt's own user `_apt` cannot write to these directories.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::sourceparts=-"]);
        for (name, path) in [("Etc::sourcelist", &source), ("State::lists", &lists), ("Cache", &cache)] {
            command.arg("-o").arg(format!("Dir::{name}={}", path.display()));
        }
        command.current_dir(directory);
        command
    };
    eprintln!("fetching {} from Debian's backports", PACKAGES.join(", "));
    run(apt_get().arg("update")).context("Debian's backports cannot be reached")?;
    run(apt_get().arg("download").args(PACKAGES.map(|name| format!("{name}/bookworm-backports"))))
}
