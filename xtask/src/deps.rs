//! The host's tools: finds what is missing, installs it, or says how.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::{bochs, iso, qemu};

/// What a task needs besides cargo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To boot a machine.
    Qemu,
    /// To boot one in Bochs.
    Bochs,
    /// To make a CD image.
    Grub,
    /// To boot a machine by UEFI.
    Uefi,
    /// To compile the header probe and the counting plugin.
    CCompiler,
    /// To link the fuzzer's engine.
    CxxCompiler,
    /// Xen's public headers.
    XenHeaders,
    /// To attach to a machine.
    Gdb,
    /// To put names to addresses.
    Addr2line,
    /// To fetch and unpack Debian's packages.
    Packages,
    /// To decompress a kernel.
    Decompressors,
    /// To make a Debian root image.
    RootImage,
}

impl Need {
    /// How to find the tool, and the Debian package that brings it.
    fn parts(self) -> &'static [(Probe, &'static str)] {
        match self {
            Self::Qemu => &[(Probe::Program(qemu::PROGRAM), "qemu-system-x86")],
            Self::Bochs => &[
                (Probe::Program(bochs::PROGRAM), "bochs"),
                (Probe::File(bochs::BIOS), "bochsbios"),
                (Probe::File(bochs::SCREEN_BIOS), "vgabios"),
                (Probe::File(bochs::SCREEN), "bochs-term"),
                (Probe::Program(bochs::TERMINAL), "bsdutils"),
            ],
            Self::Grub => &[
                (Probe::Program(iso::PROGRAM), "grub-common"),
                (Probe::File("/usr/lib/grub/i386-pc/multiboot2.mod"), "grub-pc-bin"),
                (Probe::File("/usr/lib/grub/x86_64-efi/multiboot2.mod"), "grub-efi-amd64-bin"),
                (Probe::Program("xorriso"), "xorriso"),
                (Probe::Program("mformat"), "mtools"),
            ],
            Self::Uefi => &[(Probe::File(qemu::UEFI), "ovmf")],
            Self::CCompiler => {
                &[(Probe::Program("gcc"), "gcc"), (Probe::File("/usr/include/stdio.h"), "libc6-dev")]
            }
            Self::CxxCompiler => &[(Probe::Program("g++"), "g++")],
            Self::XenHeaders => &[(Probe::File("/usr/include/xen/xen.h"), "libxen-dev")],
            Self::Gdb => &[(Probe::Program("gdb"), "gdb")],
            Self::Addr2line => &[(Probe::Program("addr2line"), "binutils")],
            Self::Packages => &[(Probe::Program("apt-get"), "apt"), (Probe::Program("dpkg-deb"), "dpkg")],
            Self::Decompressors => &[(Probe::Program("gzip"), "gzip"), (Probe::Program("xz"), "xz-utils")],
            Self::RootImage => {
                &[(Probe::Program("mmdebstrap"), "mmdebstrap"), (Probe::File("/sbin/mke2fs"), "e2fsprogs")]
            }
        }
    }
}

/// How to find whether a package is installed.
#[derive(Clone, Copy, Debug)]
enum Probe {
    Program(&'static str),
    File(&'static str),
}

impl Probe {
    fn there(self) -> bool {
        match self {
            Self::Program(name) => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
            }
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

/// The packages that `needs` lack.
fn missing(needs: &[Need]) -> Vec<&'static str> {
    let parts = needs.iter().flat_map(|need| need.parts());
    parts.filter(|(probe, _)| !probe.there()).map(|(_, package)| *package).collect()
}

/// Makes sure that everything in `needs` is installed; installs what is missing, as root or by a sudo that
/// asks no password.
///
/// # Errors
/// Something is still missing: the error names the command that installs it.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let packages = missing(needs);
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if Probe::Program("apt-get").there()
        && let Some(prefix) = privilege()
    {
        eprintln!("installing {list}");
        // The package lists may be missing (a fresh container) or too old: fetch them on the first failure.
        if !(apt(prefix, &["install"], &packages)
            || apt(prefix, &["update"], &[]) && apt(prefix, &["install"], &packages))
        {
            eprintln!("apt-get failed");
        }
    }
    if !missing(needs).is_empty() {
        bail!(
            "missing on this machine: {list}. Install with: sudo apt-get install --no-install-recommends {list}"
        );
    }
    Ok(())
}

/// The words in front of a command that needs root: none for root itself. `None`: there is no way to become
/// root.
pub fn privilege() -> Option<&'static [&'static str]> {
    let quiet = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
    };
    if quiet("id", &["-u"]).is_some_and(|output| output.stdout.starts_with(b"0\n")) {
        return Some(&[]);
    }
    quiet("sudo", &["-n", "true"]).is_some_and(|output| output.status.success()).then_some(&["sudo", "-n"])
}

/// Fetches apt's package lists, which a fresh container may lack.
///
/// # Errors
/// There is no way to be root, or the lists cannot be fetched.
pub fn update_package_lists() -> Result<()> {
    match privilege() {
        Some(prefix) if apt(prefix, &["update"], &[]) => Ok(()),
        Some(_) => bail!("apt-get update failed"),
        None => bail!("apt knows no packages here. Fetch its lists with: sudo apt-get update"),
    }
}

/// Runs apt-get without questions.
fn apt(prefix: &[&str], verb: &[&str], packages: &[&str]) -> bool {
    // Another apt-get, such as that of the machine's own daily update, ends within minutes.
    let apt_get = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-o", "DPkg::Lock::Timeout=300"];
    let line: Vec<&str> = [prefix, &apt_get, verb].concat();
    let mut command = Command::new(line[0]);
    command.args(&line[1..]);
    if !packages.is_empty() {
        command.arg("--no-install-recommends").args(packages);
    }
    command.stdin(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_tell_what_is_there() {
        assert!(Probe::Program("sh").there());
        assert!(!Probe::Program("no-such-program-at-all").there());
        assert!(Probe::File("/").there());
        assert!(!Probe::File("/no/such/file").there());
    }

    #[test]
    fn nothing_needed_is_nothing_missing() {
        assert!(ensure(&[]).is_ok());
        assert!(missing(&[]).is_empty());
    }
}
