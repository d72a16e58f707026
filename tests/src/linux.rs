//! Machines with Debian's kernel in the boot bundle, and programs for its ramdisk.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use xtask::cpio::{self, Archive};

use crate::{Live, Machine, Run, Scratch};

/// What the kernel says when something is wrong.
pub const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "bad page",
    "soft lockup",
    "detected stall",
    "rcu_sched",
    "rcu_preempt",
    "blocked for more than",
    "Kernel panic",
];

/// The ramdisk's name under `/boot`.
const RAMDISK: &str = "debian-initrd";

/// A machine with the kernel and its ramdisk in the boot bundle, made if need be.
///
/// # Errors
/// They cannot be made.
pub fn machine(name: &str) -> Result<Machine> {
    xtask::guest::debian_ramdisk()?;
    Ok(Machine::new(name).with(|machine| machine.modules.extend(xtask::guest::modules())))
}

/// [`machine`], with more programs in the ramdisk's root directory: their names and bytes.
///
/// # Errors
/// The files cannot be made.
pub fn machine_with(name: &str, scratch: &Scratch, programs: &[(&str, &[u8])]) -> Result<Machine> {
    machine_with_archives(name, scratch, &[archive(programs)])
}

/// [`machine_with`], with `iperf3` and `ethtool` in the ramdisk too.
///
/// # Errors
/// The files cannot be made, or Debian's packages cannot be fetched.
pub fn network_machine(name: &str, scratch: &Scratch, programs: &[(&str, &[u8])]) -> Result<Machine> {
    machine_with_archives(name, scratch, &[xtask::guest::network_tools()?, archive(programs)])
}

fn archive(programs: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Archive::default();
    for (name, bytes) in programs {
        archive.add(cpio::PROGRAM, name, bytes);
    }
    archive.finish()
}

fn machine_with_archives(name: &str, scratch: &Scratch, archives: &[Vec<u8>]) -> Result<Machine> {
    let machine = machine(name)?;
    let mut modules = xtask::guest::modules();
    let ramdisk =
        modules.iter_mut().find(|module| module.name == RAMDISK).context("the guest has no ramdisk")?;
    let mut bytes =
        std::fs::read(&ramdisk.path).with_context(|| format!("cannot read {}", ramdisk.path.display()))?;
    // The kernel unpacks one archive behind the other.
    bytes.extend(archives.iter().flatten());
    ramdisk.path = scratch.file("ramdisk", &bytes)?;
    Ok(machine.with(|machine| machine.modules = modules))
}

/// A program for Linux guests, `tests/programs/NAME.rs`, linked with all that it needs.
///
/// # Errors
/// It does not compile.
pub fn program(scratch: &Scratch, name: &str) -> Result<Vec<u8>> {
    let source: PathBuf = [env!("CARGO_MANIFEST_DIR"), "programs", &format!("{name}.rs")].iter().collect();
    let out = scratch.path(name);
    let status = Command::new("rustc")
        .args(["--edition=2024", "-O", "--target=x86_64-unknown-linux-gnu", "-Ctarget-feature=+crt-static"])
        .args(["-Cstrip=symbols", "-o"])
        .arg(&out)
        .arg(&source)
        .status()
        .context("cannot run rustc")?;
    if !status.success() {
        bail!("{}: {status}", source.display());
    }
    std::fs::read(&out).with_context(|| format!("cannot read {}", out.display()))
}

/// Fails when a kernel complained.
///
/// # Errors
/// One did.
pub fn no_complaints(run: &Run) -> Result<()> {
    for complaint in COMPLAINTS {
        run.require(!run.console().contains(complaint), &format!("the kernel said {complaint:?}"))?;
    }
    Ok(())
}

/// Types a line at dom0's prompt and waits until it is done; gives what was printed meanwhile.
///
/// What guests print makes the prompt come again and again: the end is told by the complaint about a second line,
/// which is no command.
///
/// # Errors
/// It is not done within `seconds`.
pub fn command(machine: &mut Live, line: &str, seconds: u64) -> Result<String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let end = format!("end-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    machine.type_line(line)?;
    machine.type_line(&end)?;
    machine.expect(&format!("error: {end}:"), seconds)
}
