//! Runs the same kernel and ramdisk on each system, and returns the console's text.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bench::{On, TIME_LIMIT, machine, run};
use crate::cpio::{self, Archive};
use crate::guest::{self, DebianBoot};
use crate::images;
use crate::machine::{Disk, Machine, Module};
use crate::qemu::{self, RunDirectory};
use crate::session::{Attach, Outcome, Session};
use crate::xen::{self, Domain};

/// The package and its program.
pub(super) const PROGRAM: &str = "costs";
/// The script that measures disks.
pub(super) const FIO: &str = "bin/disk-speed";
pub(super) const FIO_SCRIPT: &str = include_str!("disk-speed.sh");

/// The domain's configuration: its name, and the file's.
const CONFIGURATION: &str = include_str!("linux.cfg");
const NAME: &str = "linux-bench";
const MEMORY_MIB: u32 = 256;

/// Kernel modules for the bare machine's disks, besides those for a domain's.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "xen-blkfront", "crc32c_generic", "ext4"];

/// What is run where.
#[derive(Clone, Debug, Default)]
pub(super) struct Task {
    /// A command for the ramdisk's shell.
    pub(super) command: String,
    /// Files that are the system's disks, for reading. The system calls them `vda` and so on, or `xvda`: see
    /// [`disk`].
    pub(super) disks: Vec<PathBuf>,
    /// QEMU's arguments for one instruction a tick, or one thread, and the counting plugin; without any, the machine runs at the
    /// host's speed.
    pub(super) counting: Vec<String>,
    /// CPUs of the machine, and of the domain, besides the first.
    pub(super) more_cpus: u32,
}

/// The kernel, the ramdisk, and the files that a run needs beside them.
#[derive(Debug)]
pub(super) struct Systems {
    directory: RunDirectory,
    kernel: DebianBoot,
    ramdisk: PathBuf,
}

/// A disk's device, by its index: `vda` where the machine's own disks are seen, `xvda` in a domain.
pub(super) fn disk(system: On, index: u8) -> String {
    let prefix = if matches!(system, On::Bare | On::XenDom0) { "/dev/vd" } else { "/dev/xvd" };
    format!("{prefix}{}", char::from(b'a' + index))
}

impl Systems {
    /// Makes kernel and ramdisk.
    ///
    /// # Errors
    /// A package cannot be fetched, or the program does not build.
    pub(super) fn prepare() -> Result<Self> {
        let directory = RunDirectory::new()?;
        let kernel = guest::debian_boot()?;
        let ramdisk = directory.file("bench-initrd");
        images::write(&ramdisk, &archive(&kernel)?)?;
        images::write(&directory.file("linux-bench.cfg"), CONFIGURATION.as_bytes())?;
        Ok(Self { directory, kernel, ramdisk })
    }

    /// A file for the time of the measurement.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.file(name)
    }

    /// Runs a task on a system, and returns the console's text.
    ///
    /// # Errors
    /// Xen cannot be made, QEMU cannot be started, or the machine did not run to its end.
    pub(super) fn console(&self, system: On, task: &Task) -> Result<String> {
        match system {
            On::Microhv => self.on_microhv(task),
            On::Xen => self.on_xen(task),
            On::XenDom0 => self.on_xen_dom0(task),
            On::Bare => self.on_bare(task),
            On::Both => bail!("both are two"),
        }
    }

    fn on_microhv(&self, task: &Task) -> Result<String> {
        let files = [
            (self.file("linux-bench.cfg"), "linux-bench.cfg"),
            (self.ramdisk.clone(), "bench-initrd"),
            (self.kernel.image.clone(), "debian-vmlinuz"),
        ];
        let extra = words(&task.command);
        let cpus = task.cpus();
        let line =
            format!("xl create -c /boot/linux-bench.cfg vcpus={cpus} extra=\"{extra}\" {}", disks(task));
        run(&Machine {
            cpus,
            hypervisor_arguments: format!("maxcpus={cpus}"),
            modules: files.map(|(path, name)| Module { path, name: name.into() }).to_vec(),
            script: Some(vec![line.trim_end().into()]),
            disks: task.machine_disks(),
            qemu_arguments: task.counting.clone(),
            ..machine()
        })
    }

    fn on_xen(&self, task: &Task) -> Result<String> {
        let domain = Domain {
            name: NAME.into(),
            kernel: self.kernel.image.clone(),
            ramdisk: Some(self.ramdisk.clone()),
            memory_mib: MEMORY_MIB,
            extra: words(&task.command),
            lines: vec![format!("vcpus={}", task.cpus()), "tsc_mode=\"native\"".into(), disks(task)],
        };
        let (domains, _) = xen::prepare()?.run_domains(&[domain], TIME_LIMIT, &task.xen_options())?;
        Ok(domains.into_iter().map(|domain| domain.console).collect())
    }

    fn on_xen_dom0(&self, task: &Task) -> Result<String> {
        let program = Module { path: guest::build_program(PROGRAM)?, name: PROGRAM.into() };
        let script = format!("chmod +x {PROGRAM}\nPATH=.:$PATH\n{}\n", task.command);
        let output = xen::prepare()?.run(&script, &[program], &task.xen_options())?;
        if output.outcome != Outcome::Succeeded {
            bail!("the machine {}:\n{}", output.outcome, output.console);
        }
        Ok(output.console)
    }

    fn on_bare(&self, task: &Task) -> Result<String> {
        let machine = Machine {
            disks: task.machine_disks(),
            cpus: task.cpus(),
            qemu_arguments: task.counting.clone(),
            ..machine()
        };
        let mut command = qemu::bare(&machine);
        qemu::devices(&machine, &mut command);
        command.args(["-m", &MEMORY_MIB.to_string()]);
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(&self.ramdisk);
        command.args(["-append", &format!("console=ttyS0 {}", words(&task.command))]);
        command.args(&task.counting);
        let (outcome, console) = Session::of(command, Attach::Nobody, machine.timeout)?.wait();
        // The kernel turns the power off, and reports nothing.
        if outcome != Outcome::Silent {
            eprintln!("{}", console.trim_end());
            bail!("the machine {outcome}");
        }
        Ok(console)
    }
}

impl Task {
    fn cpus(&self) -> u32 {
        1 + self.more_cpus
    }

    fn machine_disks(&self) -> Vec<Disk> {
        let disk = |path: &PathBuf| Disk { read_only: true, ..Disk::file(path) };
        self.disks.iter().map(disk).collect()
    }

    /// The machine with Xen and its Linux.
    pub(super) fn xen_options(&self) -> xen::Options {
        xen::Options {
            disks: self.machine_disks(),
            cpus: self.cpus(),
            qemu_arguments: self.counting.clone(),
            timeout: TIME_LIMIT + Duration::from_secs(300),
            ..xen::Options::default()
        }
    }
}

/// The kernel's words: run a command.
fn words(command: &str) -> String {
    format!("quiet run={command}")
}

/// The line of a domain's configuration that gives it the machine's disks.
fn disks(task: &Task) -> String {
    let one = |index: u8| format!("'phy:/dev/vd{0},xvd{0},r'", char::from(b'a' + index));
    let all: Vec<String> = (0..task.disks.len() as u8).map(one).collect();
    if all.is_empty() { String::new() } else { format!("disk=[{}]", all.join(",")) }
}

/// Debian's ramdisk with what measures behind it: the kernel unpacks both archives, the second over the first.
fn archive(kernel: &DebianBoot) -> Result<Vec<u8>> {
    let read =
        |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut bytes = read(&kernel.ramdisk)?;
    let mut archive = Archive::default();
    archive.add(cpio::PROGRAM, &format!("bin/{PROGRAM}"), &read(&guest::build_program(PROGRAM)?)?);
    archive.add(cpio::PROGRAM, FIO, FIO_SCRIPT.as_bytes());
    guest::debian_kernel()?.add_modules(MODULES, &mut archive)?;
    bytes.extend(archive.finish());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_gets_the_machines_disks() {
        let task = |count| Task { disks: vec![PathBuf::from("/d"); count], ..Task::default() };
        assert_eq!(disks(&task(0)), "");
        assert_eq!(disks(&task(2)), "disk=['phy:/dev/vda,xvda,r','phy:/dev/vdb,xvdb,r']");
        assert_eq!(disk(On::Microhv, 1), "/dev/xvdb");
        assert_eq!(disk(On::Bare, 0), "/dev/vda");
    }

    #[test]
    fn the_domain_is_the_same_on_both() {
        assert!(CONFIGURATION.contains(&format!("name        = \"{NAME}\"\n")));
        assert!(CONFIGURATION.contains(&format!("memory      = {MEMORY_MIB}\n")));
        assert!(CONFIGURATION.contains("tsc_mode    = \"native\"\n"));
    }
}
