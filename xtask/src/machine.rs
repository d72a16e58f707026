//! The machine that a person or a test asks for: its devices, what it boots, and what dom0's shell runs.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;

use crate::bochs;
use crate::bundle::{self, Bundle};
use crate::checks;
use crate::images::{self, Image};
use crate::{lines, network, usage};

pub use crate::network::{Card, Forward, Net};

/// The port of QEMU's isa-debug-exit, by which microhv and dom0 report how they ended.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;

/// QEMU's limit for a disk's serial number, which becomes the end of the by-id name.
const MAX_DISK_ID_BYTES: usize = 20;

/// How the machine reaches a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// A virtio block device.
    #[default]
    Virtio,
    /// An NVMe controller of the disk's own.
    Nvme,
    /// A port of the machine's AHCI adapter.
    Ahci,
}

impl Way {
    /// All, each with its name as an option.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Virtio, "virtio"), (Self::Nvme, "nvme"), (Self::Ahci, "ahci")];

    /// The name of this way, as options spell it.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(way, _)| *way == self).map_or("", |(_, name)| name)
    }

    /// The name of disk `index` of this kind in dom0, below `/dev`.
    pub fn disk_name(self, index: u8) -> String {
        match self {
            Self::Virtio => format!("vd{}", char::from(b'a' + index)),
            Self::Nvme => format!("nvme{index}n1"),
            Self::Ahci => format!("sd{}", char::from(b'a' + index)),
        }
    }

    /// The name below `/dev/disk/by-id` of a disk with the id `id`.
    pub fn id_name(self, id: &str) -> String {
        match self {
            Self::Virtio => format!("virtio-{id}"),
            Self::Nvme => format!("nvme-QEMU_NVMe_Ctrl_{id}"),
            Self::Ahci => format!("ata-QEMU_HARDDISK_{id}"),
        }
    }
}

/// A raw file that becomes a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// The machine cannot write it.
    pub read_only: bool,
    /// Gives it a name below `/dev/disk/by-id` in dom0, as [`Way::id_name`] says.
    pub id: Option<String>,
    /// How the machine reaches it.
    pub way: Way,
}

impl Disk {
    /// A virtio disk without an id, which the machine may write.
    pub fn file(path: &Path) -> Self {
        Self { path: path.to_path_buf(), read_only: false, id: None, way: Way::Virtio }
    }
}

impl FromStr for Disk {
    type Err = String;

    /// `PATH[,ro][,id=NAME][,as=WAY]`. The path may hold commas: only the known words at its end are options.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mut path, mut read_only, mut id, mut way) = (text, false, None, Way::Virtio);
        while let Some((rest, last)) = path.rsplit_once(',') {
            if last == "ro" {
                read_only = true;
            } else if let Some(name) = last.strip_prefix("id=") {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
                if name.is_empty() || name.len() > MAX_DISK_ID_BYTES || !name.bytes().all(plain) {
                    return Err(format!(
                        "a disk's id is 1 to {MAX_DISK_ID_BYTES} letters, digits or -_. characters"
                    ));
                }
                id = Some(name.to_string());
            } else if let Some(name) = last.strip_prefix("as=") {
                let names = || Way::ALL.map(|(_, name)| name).join(", ");
                let known = Way::ALL.into_iter().find(|(_, known)| *known == name);
                (way, _) = known.ok_or_else(|| format!("as={name}: a disk is one of {}", names()))?;
            } else {
                break;
            }
            path = rest;
        }
        if path.is_empty() {
            return Err("a disk needs a path".into());
        }
        Ok(Self { path: path.into(), read_only, id, way })
    }
}

/// A host file that becomes a member of the boot bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The file.
    pub path: PathBuf,
    /// The file's name under `/boot`.
    pub name: String,
}

impl FromStr for Module {
    type Err = String;

    /// `PATH[=NAME]`; the name is the path's last part unless given.
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, name) = match text.rsplit_once('=') {
            // A `=` inside a directory's name does not introduce a name.
            Some((path, name)) if !name.contains('/') => (path, name),
            _ => (text, Path::new(text).file_name().and_then(|name| name.to_str()).unwrap_or("")),
        };
        if path.is_empty() {
            return Err("a module needs a path".into());
        }
        bundle::check_name(name).map_err(|error| error.to_string())?;
        if name == bundle::SCRIPT {
            return Err(format!("{} is kept for --cmd and --script", bundle::SCRIPT));
        }
        Ok(Self { path: path.into(), name: name.to_string() })
    }
}

/// How the machine is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Boot {
    /// Multiboot1, by QEMU itself.
    Direct,
    /// Multiboot2, by GRUB from a CD image that a BIOS starts.
    Iso,
    /// The same image, started by UEFI.
    Uefi,
    /// By GRUB from an image of a disk that a BIOS starts.
    Disk,
    /// The same image, started by UEFI.
    UefiDisk,
}

impl Boot {
    /// The loader of this name, as the command line spells it.
    pub fn named(name: &str) -> Option<Self> {
        <Self as clap::ValueEnum>::from_str(name, true).ok()
    }

    /// Whether the firmware is UEFI.
    pub fn is_by_uefi(self) -> bool {
        matches!(self, Self::Uefi | Self::UefiDisk)
    }
}

/// What emulates the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Emulator {
    /// QEMU.
    #[default]
    Qemu,
    /// Bochs: from a CD image, without disks and network.
    Bochs,
}

impl Emulator {
    /// The emulator of this name, as the command line spells it.
    pub fn named(name: &str) -> Option<Self> {
        <Self as clap::ValueEnum>::from_str(name, true).ok()
    }

    /// The emulator's default CPU model.
    pub fn standard_cpu(self) -> &'static str {
        match self {
            Self::Qemu => "qemu64",
            Self::Bochs => "ryzen",
        }
    }

    /// The port by which microhv and dom0 report how they ended.
    fn report_port(self) -> u16 {
        match self {
            Self::Qemu => DEBUG_EXIT_PORT,
            Self::Bochs => bochs::REPORT_PORT,
        }
    }
}

/// A machine to be booted.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What emulates it.
    pub emulator: Emulator,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// CPUs.
    pub cpus: u32,
    /// The emulator's CPU model.
    pub cpu_model: String,
    /// Disks, in dom0's order.
    pub disks: Vec<Disk>,
    /// What dom0's network card leads to.
    pub net: Net,
    /// The kind of the card.
    pub card: Card,
    /// Ports of the host that lead to guests.
    pub forwards: Vec<Forward>,
    /// Where packets go that dom0 carries.
    pub capture: Option<PathBuf>,
    /// What starts it.
    pub boot: Boot,
    /// The dom0 kernel: a PV ELF file.
    pub dom0: PathBuf,
    /// Words for the hypervisor's command line, behind the standard ones.
    pub hypervisor_arguments: String,
    /// Words for dom0's command line, behind the standard ones.
    pub dom0_arguments: String,
    /// Files for `/boot` besides the example guests.
    pub modules: Vec<Module>,
    /// The shell's lines; `None` leaves a person at the prompt.
    pub script: Option<Vec<String>>,
    /// The shell stays after the script's last line.
    pub keep: bool,
    /// After the script, the shell takes lines from our standard input, and the machine powers off when they
    /// end.
    pub from_input: bool,
    /// Passed to QEMU as they are.
    pub qemu_arguments: Vec<String>,
    /// All of QEMU's threads share one of the host's CPUs. The thread for disks then always runs before the thread
    /// that executes instructions, however busy the host is.
    pub one_host_cpu: bool,
    /// A copy of all serial output.
    pub log: Option<PathBuf>,
    /// The machine has booted before: the copy is appended to.
    pub starts_again: bool,
    /// When the machine is ended, counted from QEMU's start.
    pub timeout: Option<Duration>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            emulator: Emulator::Qemu,
            memory_mib: 1024,
            cpus: 2,
            cpu_model: Emulator::Qemu.standard_cpu().into(),
            disks: Vec::new(),
            net: Net::User,
            card: Card::default(),
            forwards: Vec::new(),
            capture: None,
            boot: Boot::Direct,
            dom0: images::ALL[1].bootable(),
            hypervisor_arguments: String::new(),
            dom0_arguments: String::new(),
            modules: Vec::new(),
            script: None,
            keep: false,
            from_input: false,
            qemu_arguments: Vec::new(),
            one_host_cpu: false,
            log: None,
            starts_again: false,
            timeout: None,
        }
    }
}

impl Machine {
    /// The images that the machine boots or offers to its guests. dom0's image is left out when another kernel
    /// takes its place.
    pub fn images(&self) -> Vec<&'static Image> {
        let own = self.has_own_dom0();
        images::ALL.iter().filter(|image| own || image.name != "dom0").collect()
    }

    /// Whether a person sits at the prompt, at once or after the script.
    pub fn interactive(&self) -> bool {
        self.script.is_none() || self.keep
    }

    /// Whether our own dom0 is booted, which knows scripts.
    pub fn has_own_dom0(&self) -> bool {
        self.dom0 == Self::default().dom0
    }

    /// Whether dom0 reports by the second serial port which lines it takes.
    pub fn has_lines(&self) -> bool {
        self.script.is_some() || self.from_input
    }

    /// Checks, before anything is built, for everything that can be wrong.
    ///
    /// # Errors
    /// Wrong usage: a file does not exist, or the script has a line that the boot bundle cannot carry.
    pub fn check(&self) -> Result<()> {
        checks::disks(&self.disks)?;
        network::check(self)?;
        // One of ours may not be built yet.
        if !self.dom0.parent().is_some_and(|directory| directory.ends_with("freestanding/boot")) {
            checks::file("dom0", &self.dom0)?;
        }
        for module in &self.modules {
            checks::file("module", &module.path)?;
        }
        if self.memory_mib == 0 || self.cpus == 0 {
            return Err(usage("a machine needs memory and a CPU"));
        }
        checks::memory_for(self)?;
        match self.emulator {
            Emulator::Qemu => Ok(()),
            Emulator::Bochs => bochs::check(self),
        }
    }

    /// The hypervisor's command line.
    pub fn hypervisor_line(&self) -> String {
        join(&format!("com1 debug-exit={:#x}", self.emulator.report_port()), &self.hypervisor_arguments)
    }

    /// dom0's command line, without a first word for the file.
    pub fn dom0_line(&self) -> String {
        let mut line = format!("debug-exit={:#x}", self.emulator.report_port());
        if self.has_lines() {
            line += &format!(" lines={:#x}", lines::PORT);
        }
        if self.keep {
            line += " keep";
        }
        if self.from_input {
            line += " input";
        }
        for forward in &self.forwards {
            line += &format!(" {}", forward.word());
        }
        if self.capture.is_some() {
            line += &format!(" capture={:#x}", network::CAPTURE_PORT);
        }
        join(&line, &self.dom0_arguments)
    }

    /// The boot bundle: example guests, modules, script.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn bundle(&self) -> Result<Bundle> {
        let mut bundle = Bundle::with_guests()?;
        for module in &self.modules {
            bundle.add_file(&module.name, &module.path)?;
        }
        if let Some(lines) = &self.script {
            bundle.add_script(lines)?;
        }
        Ok(bundle)
    }
}

fn join(standard: &str, extra: &str) -> String {
    if extra.is_empty() { standard.to_string() } else { format!("{standard} {extra}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_take_their_options_from_the_end() {
        let disk = |text: &str| text.parse::<Disk>();
        let file = |path: &str| Disk::file(Path::new(path));
        assert_eq!(disk("d.img"), Ok(file("d.img")));
        assert_eq!(disk("a,b,id=x,ro"), Ok(Disk { read_only: true, id: Some("x".into()), ..file("a,b") }));
        assert_eq!(disk("a,ro,b"), Ok(file("a,ro,b")));
        assert_eq!(disk("a,as=nvme,ro"), Ok(Disk { read_only: true, way: Way::Nvme, ..file("a") }));
        assert_eq!(disk("a,as=virtio"), Ok(file("a")));
        assert!(disk("a,as=scsi").is_err());
        assert!(disk("").is_err());
        assert!(disk(",ro").is_err());
        assert!(disk("d,id=").is_err());
        assert!(disk(&format!("d,id={}", "x".repeat(21))).is_err());
        assert!(disk(&format!("d,id={}", "x".repeat(20))).is_ok());
        assert!(disk("d,id=a b").is_err());
    }

    #[test]
    fn modules_are_named_by_the_last_part_or_by_hand() {
        let module = |text: &str| text.parse::<Module>().map(|module| (module.path, module.name));
        assert_eq!(module("/x/vmlinuz"), Ok(("/x/vmlinuz".into(), "vmlinuz".into())));
        assert_eq!(module("/x/vmlinuz=k"), Ok(("/x/vmlinuz".into(), "k".into())));
        assert_eq!(module("/x=y/k"), Ok(("/x=y/k".into(), "k".into())));
        assert!(module("/x/k=").is_err());
        assert!(module("=k").is_err());
        assert!(module("/").is_err());
        assert!(module("k=.script").is_err());
        assert!(module("k=..").is_err());
    }

    #[test]
    fn both_command_lines_name_the_report_port() {
        let machine = Machine { keep: true, dom0_arguments: "x=1".into(), ..Machine::default() };
        assert_eq!(machine.hypervisor_line(), "com1 debug-exit=0xf4");
        assert_eq!(machine.dom0_line(), "debug-exit=0xf4 keep x=1");
        let machine = Machine { script: Some(Vec::new()), from_input: true, ..Machine::default() };
        assert_eq!(machine.dom0_line(), "debug-exit=0xf4 lines=0x2f8 input");
        let machine = Machine { capture: Some("x.pcap".into()), ..Machine::default() };
        assert_eq!(machine.dom0_line(), "debug-exit=0xf4 capture=0x3e8");
    }
}
