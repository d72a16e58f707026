//! Programs in a Debian system: installed by apt, in storms of processes, 32-bit ones too, and under stress.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests::linux::{machine_with, no_complaints};
use tests::{Machine, Scratch};
use xtask::deps::{self, Need};

use crate::Case;
use crate::linux_guest::{Debian, machine, root_copy};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_storm:
        apt_installs_and_what_it_installed_runs,
        a_process_storm_passes,
        thirty_two_bit_programs_by_either_vendors_system_call,
        stress_for_two_minutes_leaves_no_message,
    ]);
    for case in &mut cases {
        // Each has a Debian system made, and boots it.
        case.soak = true;
    }
    cases
}

/// Small packages that need nothing else: one with scripts of its own and triggers, one without.
const PACKAGES: &[&str] = &["hello", "mksh"];

/// The storms that are scripts.
const SCRIPTS: &[(&str, &str)] = &[
    ("storm.sh", include_str!("linux_storm/storm.sh")),
    ("storm.py", include_str!("linux_storm/storm.py")),
    ("storm.pl", include_str!("linux_storm/storm.pl")),
];

/// The disks beside the root: what the test brings, as a tar archive.
const DISKS: &str = "disk=['phy:/dev/disk/by-id/virtio-debian,xvda,w','phy:/dev/vda,xvdb,r']";

/// Compiles the 32-bit storm: no library, so that any C compiler for x86 does.
fn storm32(scratch: &Scratch) -> Result<PathBuf> {
    deps::ensure(&[Need::CCompiler])?;
    let source: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests", "system", "linux_storm", "storm32.c"].iter().collect();
    let program = scratch.path("storm32");
    let status = Command::new("gcc")
        .args(["-m32", "-msse2", "-O1", "-std=gnu11", "-ffreestanding", "-nostdlib", "-static"])
        .args(["-fno-pic", "-no-pie", "-fno-stack-protector", "-fcf-protection=none"])
        .args([Path::new("-o"), &program, &source])
        .status()
        .context("cannot run gcc")?;
    ensure!(status.success(), "{}: {status}", source.display());
    Ok(program)
}

/// A tar archive of `files` that can stand as a disk.
fn archive(scratch: &Scratch, files: &[&Path]) -> Result<PathBuf> {
    let path = scratch.path("files.tar");
    let mut command = Command::new("tar");
    // No files at all are as well.
    command.arg("-cf").arg(&path).args(["-T", "/dev/null"]);
    for file in files {
        let (directory, name) = file.parent().zip(file.file_name()).context("a file has a name")?;
        command.arg("-C").arg(directory).arg(name);
    }
    // tar's own padding is twenty sectors: no more is needed.
    ensure!(command.status().context("cannot run tar")?.success(), "tar failed");
    Ok(path)
}

/// A Debian domain with `files` in `/tmp/files` and an empty kernel log.
fn boot(name: &str, scratch: &Scratch, files: &[&Path], settings: &str) -> Result<Debian> {
    boot_on(|machine| machine, name, scratch, files, settings)
}

/// [`boot`] on the machine as `change` makes it.
pub(crate) fn boot_on(
    change: impl FnOnce(Machine) -> Machine,
    name: &str,
    scratch: &Scratch,
    files: &[&Path],
    settings: &str,
) -> Result<Debian> {
    let root = root_copy(scratch)?;
    let archive = archive(scratch, files)?;
    let machine = change(machine(name, &root, &[&archive]));
    let mut debian = Debian::boot(machine, &format!("{DISKS} {settings}"))?;
    debian.succeed("mkdir /tmp/files && tar -xf /dev/xvdb -C /tmp/files && dmesg -C", 60)?;
    Ok(debian)
}

fn apt_installs_and_what_it_installed_runs() -> Result<()> {
    let scratch = Scratch::new("debian-apt")?;
    let directory = scratch.path("packages");
    std::fs::create_dir_all(&directory)?;
    xtask::packages::download(&directory, PACKAGES)?;
    let packages = std::fs::read_dir(&directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<PathBuf>, std::io::Error>>()?;
    let packages: Vec<&Path> = packages.iter().map(PathBuf::as_path).collect();
    let mut debian = boot("debian-apt", &scratch, &packages, "")?;
    debian.succeed("export DEBIAN_FRONTEND=noninteractive; apt-get install -y /tmp/files/*.deb", 300)?;
    ensure!(debian.succeed("hello", 60)?.contains("Hello, world!"), "hello says something else");
    ensure!(debian.succeed("mksh -c 'echo $((6 * 7))'", 60)?.contains("42"), "mksh reckons otherwise");
    debian.succeed("apt-get purge -y hello mksh && test -z \"$(dpkg --audit)\" && ! hello", 300)?;
    debian.silent()?;
    debian.power_off()?;
    Ok(())
}

fn a_process_storm_passes() -> Result<()> {
    let scratch = Scratch::new("debian-storm")?;
    let mut files = vec![storm32(&scratch)?];
    for (name, text) in SCRIPTS {
        files.push(scratch.file(name, text.as_bytes())?);
    }
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let mut debian = boot("debian-storm", &scratch, &files, "vcpus=2")?;
    let storms = [
        ("/tmp/files/storm32", "storm32: ok"),
        ("python3 /tmp/files/storm.py", "storm.py: ok"),
        ("perl /tmp/files/storm.pl", "storm.pl: ok"),
        ("sh /tmp/files/storm.sh", "storm.sh: ok"),
    ];
    for (command, said) in storms {
        ensure!(debian.succeed(command, 600)?.contains(said), "{command} never said {said}");
    }
    debian.silent()?;
    debian.power_off()?;
    Ok(())
}

/// The vDSO enters a 64-bit kernel from 32-bit code by SYSCALL on AMD's processors and by SYSENTER on Intel's.
fn thirty_two_bit_programs_by_either_vendors_system_call() -> Result<()> {
    let scratch = Scratch::new("debian-storm32")?;
    let storm = std::fs::read(storm32(&scratch)?)?;
    for cpu in ["Opteron_G3", "Westmere"] {
        let name = format!("debian-storm32-{}", cpu.to_lowercase().replace('_', "-"));
        let run = machine_with(&name, &scratch, &[("storm32", &storm)])?
            .with(|machine| machine.cpu_model = cpu.to_string())
            .line("xl create -c /boot/debian-ramdisk.cfg extra=\"run=/storm32 && /storm32 && /storm32\"")
            .run()?
            .succeeded()?
            .says("run: exit status 0")?;
        no_complaints(&run)?;
    }
    Ok(())
}

fn stress_for_two_minutes_leaves_no_message() -> Result<()> {
    let scratch = Scratch::new("debian-stress")?;
    let mut debian = boot("debian-stress", &scratch, &[], "vcpus=2")?;
    let stress = "stress-ng --vm 2 --vm-bytes 64m --fork 2 --switch 2 --timeout 120 --verify --metrics-brief";
    let said = debian.succeed(stress, 900)?;
    ensure!(said.contains("successful run completed"), "stress-ng: {said}");
    debian.silent()?;
    debian.power_off()?;
    Ok(())
}
