//! Debian's Xen 4.17 under QEMU, for comparison: the same kernels boot on the system that microhv stands in for.
//!
//! [`prepare`] makes everything from Debian's packages under `target/xen/`, once. A PV kernel then boots
//! [as the control domain](XenHost::boot_kernel_as_dom0), with no Linux in the machine; or a Linux control domain with
//! Debian's tool stack runs [a script](XenHost::run) or [domains](XenHost::run_domains). The disks of [`Options`] are
//! `/dev/vda` and so on there, as they are in microhv's own dom0, with the same names under `/dev/disk/by-id`.
//!
//! What must be right for it to work under QEMU 7.2: the CPU is `qemu64` (with `max` the control domain crashes early);
//! the control domain has 144 MiB or more; its kernel is an ELF file, since Xen spends 4.5 G instructions on xz; and a
//! control domain without udev needs `/dev/stdin`, or hotplug scripts hang.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cpio::{self, Archive};
use crate::deps::{self, Need};
use crate::machine::{DEBUG_EXIT_PORT, Disk, Machine, Module, Net};
use crate::qemu::{self, RunDirectory};
use crate::session::{Attach, Log, Outcome, Session};
use files::Files;

mod cli;
mod domains;
mod files;

pub use cli::{XenOptions, xen};
pub use domains::{Control, Domain, Ran};

/// The serial numbers by which the control domain knows its own disks.
const ROOT_ID: &str = "xen-root";
const SCRIPT_ID: &str = "xen-script";

/// Debian's Xen, ready to boot.
#[derive(Clone, Debug)]
pub struct XenHost {
    files: Files,
}

/// The machine, and what is printed of its console.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The control domain's part of it.
    pub dom0_mib: u32,
    /// CPUs.
    pub cpus: u32,
    /// QEMU's CPU model.
    pub cpu_model: String,
    /// Disks, in the control domain's order.
    pub disks: Vec<Disk>,
    /// The network card.
    pub net: Net,
    /// Words for Xen's command line, behind the standard ones.
    pub hypervisor_arguments: String,
    /// Words for the control domain's kernel.
    pub dom0_arguments: String,
    /// Passed to QEMU as they are: the counting plugin, for one.
    pub qemu_arguments: Vec<String>,
    /// One instruction a tick, so that the guest's TSC counts instructions.
    pub icount: bool,
    /// The console is shown as it comes.
    pub shown: bool,
    /// A copy of the console.
    pub log: Option<PathBuf>,
    /// When the machine is ended.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_mib: 1536,
            dom0_mib: 512,
            cpus: 1,
            cpu_model: "qemu64".into(),
            disks: Vec::new(),
            net: Net::None,
            hypervisor_arguments: String::new(),
            dom0_arguments: String::new(),
            qemu_arguments: Vec::new(),
            icount: false,
            shown: false,
            log: None,
            timeout: Duration::from_secs(300),
        }
    }
}

/// The result of a machine.
#[derive(Clone, Debug)]
pub struct Output {
    /// How the machine ended. [`Outcome::LineFailed`] is a script with another exit status than 0.
    pub outcome: Outcome,
    /// All output on the console, of Xen and of the control domain.
    pub console: String,
}

/// Makes everything from Debian's packages, unless it exists.
///
/// # Errors
/// A tool is missing, there is no way to be root, or a package cannot be fetched, unpacked or installed.
pub fn prepare() -> Result<XenHost> {
    deps::ensure(&[Need::Qemu])?;
    Ok(XenHost { files: files::make()? })
}

impl XenHost {
    /// The control domain's kernel, Debian's: an ELF file.
    pub fn linux(&self) -> &Path {
        &self.files.kernel
    }

    /// The control domain's kernel as the package has it: a bzImage.
    pub fn linux_bzimage(&self) -> &Path {
        &self.files.kernel_bzimage
    }

    /// Boots `kernel`, a PV ELF file, as the control domain. The kernel's command line has `debug-exit=PORT`, as on
    /// microhv, and the kernel ends the machine by that port.
    ///
    /// # Errors
    /// A file cannot be read or QEMU cannot be started.
    pub fn boot_kernel_as_dom0(&self, kernel: &Path, words: &str, options: &Options) -> Result<Output> {
        let files = RunDirectory::new()?;
        let own = files.file("dom0");
        std::fs::copy(kernel, &own).with_context(|| format!("cannot copy {}", kernel.display()))?;
        let words = format!("debug-exit={DEBUG_EXIT_PORT:#x} {words}");
        let command = self.command(options, &options.disks, &[qemu::module(&own, &words)]);
        boot(command, files, options, Attach::Nobody)
    }

    /// Boots Debian's Linux as the control domain, with the tool stack, and runs the shell script `script` there. The
    /// `files` are in the directory where the script starts.
    ///
    /// # Errors
    /// The errors of [`XenHost::boot_kernel_as_dom0`].
    pub fn run(&self, script: &str, files: &[Module], options: &Options) -> Result<Output> {
        self.run_attached(script, files, options, Attach::Nobody)
    }

    fn run_attached(
        &self,
        script: &str,
        files: &[Module],
        options: &Options,
        attach: Attach,
    ) -> Result<Output> {
        let mut archive = Archive::default();
        for module in files {
            let path = &module.path;
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            archive.add(cpio::PROGRAM, &module.name, &bytes);
        }
        archive.add(cpio::FILE, "run.sh", script.as_bytes());
        let directory = RunDirectory::new()?;
        let control = directory.file("script");
        std::fs::write(&control, archive.finish())
            .with_context(|| format!("cannot write {}", control.display()))?;

        let shell = if attach == Attach::Terminal { " shell" } else { "" };
        let words = format!("console=hvc0 quiet loglevel=3 panic=1{shell} {}", options.dom0_arguments);
        let linux = qemu::module(&self.files.kernel, &words);
        let mut disks = options.disks.clone();
        disks.push(Disk { read_only: true, id: Some(SCRIPT_ID.into()), ..Disk::file(&control) });
        let initrd = qemu::module(&self.files.initrd, "");
        let mut command = self.command(options, &disks, &[linux, initrd]);
        // Many machines may run from the one image, so no machine may write to it.
        let mut drive = std::ffi::OsString::from("if=none,id=root,format=raw,snapshot=on,file=");
        drive.push(qemu::doubled(&self.files.root));
        command.arg("-drive").arg(drive);
        command.args(["-device", &format!("virtio-blk-pci,drive=root,disable-legacy=on,serial={ROOT_ID}")]);
        boot(command, directory, options, attach)
    }

    /// QEMU with Xen and its modules, the control domain's kernel first.
    fn command(&self, options: &Options, disks: &[Disk], modules: &[String]) -> Command {
        let machine = Machine {
            cpus: options.cpus,
            cpu_model: options.cpu_model.clone(),
            disks: disks.to_vec(),
            net: options.net.clone(),
            qemu_arguments: options.qemu_arguments.clone(),
            ..Machine::default()
        };
        let mut command = qemu::bare(&machine);
        command.args(["-m", &options.memory_mib.to_string()]);
        command.args(["-device", &format!("isa-debug-exit,iobase={DEBUG_EXIT_PORT:#x},iosize=0x04")]);
        qemu::devices(&machine, &mut command);
        let words = format!(
            "console=com1 com1=115200,8n1 dom0_mem={}M loglvl=warning guest_loglvl=warning {}",
            options.dom0_mib, options.hypervisor_arguments
        );
        command.arg("-kernel").arg(&self.files.hypervisor).args(["-append", words.trim_end()]);
        command.arg("-initrd").arg(modules.join(","));
        if options.icount {
            command.args(qemu::ICOUNT);
        }
        command.args(&options.qemu_arguments);
        command
    }
}

/// Starts the machine and waits for its end.
fn boot(command: Command, files: RunDirectory, options: &Options, attach: Attach) -> Result<Output> {
    let attach = if attach == Attach::Nobody && options.shown { Attach::Output } else { attach };
    let limit = (attach != Attach::Terminal).then_some(options.timeout);
    let log = options.log.as_deref().map(|path| Log::open(path, false)).transpose()?;
    let session = Session::spawn(command, files, attach, log, limit)?;
    let (outcome, console) = session.wait();
    Ok(Output { outcome, console })
}
