//! Makes QEMU's command line, and the files that it boots, for a [`Machine`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use anyhow::{Context, Result};

use crate::disk_image;
use crate::images;
use crate::iso;
use crate::lines;
use crate::machine::{Boot, DEBUG_EXIT_PORT, Disk, Machine, Way};
use crate::{network, paths};

/// QEMU's system emulator.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// The variable that names another QEMU to be run instead.
pub const OTHER: &str = "MICROHV_QEMU";

/// UEFI's firmware for QEMU's machine, code and variables in one file: what it sets lasts as long as the machine.
pub const UEFI: &str = "/usr/share/ovmf/OVMF.fd";

/// The most bytes of the path under which a run's directory is made: a socket's whole name may have 107.
const LONGEST: usize = 70;

/// QEMU's arguments for one instruction a tick: the guest's TSC then counts instructions, the same on every host.
pub const ICOUNT: [&str; 2] = ["-icount", "shift=0,sleep=off"];

/// QEMU's arguments for one thread that executes all CPUs, a tenth of a second each unless one has nothing to do: what the
/// counting plugin counts of several CPUs is then whole. With one instruction a tick QEMU 7.2 may starve a CPU beside another
/// that is never idle.
pub const ONE_THREAD: [&str; 2] = ["-accel", "tcg,thread=single"];

/// The files of one boot, removed when the run is over.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// An empty directory of this run alone.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let own = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let in_target = paths::target().join("run");
        // QEMU ends a module's file name at the first space, and the name of a socket must be short. A target
        // directory that breaks either limit cannot hold the run's files.
        let serves = |path: &str| !path.contains(char::is_whitespace) && path.len() <= LONGEST;
        let path = if in_target.to_str().is_some_and(serves) {
            in_target.join(own)
        } else {
            std::env::temp_dir().join(format!("microhv-{own}"))
        };
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        // A file that cannot be removed stays in the target directory and does no harm.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Writes the boot files to `run` and returns the command that boots them.
///
/// # Errors
/// A file cannot be read or written, or GRUB's tools fail.
pub fn command(machine: &Machine, run: &RunDirectory) -> Result<Command> {
    let (hypervisor, dom0, bundle) = (run.file("microhv"), run.file("dom0"), run.file("boot.cpio"));
    copy(&images::find("microhv")?.bootable(), &hypervisor)?;
    copy(&machine.dom0, &dom0)?;
    images::write(&bundle, &machine.bundle()?.archive())?;

    let mut command = bare(machine);
    command.args(["-m", &machine.memory_mib.to_string()]);
    command.args(["-device", &format!("isa-debug-exit,iobase={DEBUG_EXIT_PORT:#x},iosize=0x04")]);
    devices(machine, &mut command);
    command.args(network::capture(machine));
    if machine.has_lines() {
        let mut port = OsString::from("socket,id=lines,path=");
        port.push(doubled(&run.file(lines::SOCKET)));
        command.arg("-chardev").arg(port).args(["-serial", "chardev:lines"]);
    }
    match machine.boot {
        Boot::Direct => {
            command.arg("-kernel").arg(&hypervisor).args(["-append", &machine.hypervisor_line()]);
            let dom0 = module(&dom0, &machine.dom0_line());
            let bundle = module(&bundle, "");
            command.arg("-initrd").arg(format!("{dom0},{bundle}"));
        }
        Boot::Iso | Boot::Uefi => {
            let image = run.file("microhv.iso");
            let files = iso::Files { hypervisor: &hypervisor, dom0: &dom0, bundle: &bundle };
            iso::make(&image, &files, &machine.hypervisor_line(), &machine.dom0_line())?;
            command.args(["-boot", "d", "-cdrom"]).arg(&image);
        }
        Boot::Disk | Boot::UefiDisk => {
            let image = run.file("microhv.img");
            let files = iso::Files { hypervisor: &hypervisor, dom0: &dom0, bundle: &bundle };
            disk_image::make(&image, &files, &machine.hypervisor_line(), &machine.dom0_line())?;
            let mut drive = OsString::from("if=none,id=boot,format=raw,file=");
            drive.push(doubled(&image));
            command.arg("-drive").arg(drive).args(["-device", "ide-hd,drive=boot,bootindex=0"]);
        }
    }
    if machine.boot.is_by_uefi() {
        command.args(["-bios", UEFI]);
    }
    command.args(&machine.qemu_arguments);
    Ok(command)
}

/// The QEMU that is run.
pub fn program() -> String {
    std::env::var(OTHER).unwrap_or_else(|_| PROGRAM.into())
}

/// The arguments by which another QEMU, at `program`, takes the firmware beside it, and not the installed one's.
fn firmware(program: &str) -> Vec<OsString> {
    let Some(share) = Path::new(program).parent().and_then(Path::parent).map(|tree| tree.join("share"))
    else {
        return Vec::new();
    };
    let directories = ["qemu", "seabios"].map(|name| share.join(name));
    directories.into_iter().filter(|path| path.exists()).flat_map(|path| ["-L".into(), path.into()]).collect()
}

/// The machine's processors and its serial console, with nothing to boot yet.
pub fn bare(machine: &Machine) -> Command {
    let program = program();
    let mut command = if machine.one_host_cpu { on_one_cpu(&program) } else { contained(&program) };
    command.args(firmware(&program));
    // QEMU takes the first accelerator that it is given.
    if !machine.qemu_arguments.iter().any(|argument| argument == "-accel") {
        command.args(["-accel", "tcg"]);
    }
    command.args(["-machine", "pc", "-nodefaults", "-display", "none", "-no-reboot"]);
    command.args(["-cpu", &machine.cpu_model]);
    command.args(["-smp", &machine.cpus.to_string()]);
    // ^C belongs to dom0's shell, and three ^A go to the hypervisor.
    command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    command
}

/// Ports of QEMU's AHCI adapter: each six disks have an adapter.
const AHCI_PORTS: usize = 6;

/// Disks, and a network card.
pub fn devices(machine: &Machine, command: &mut Command) {
    let mut ports = 0;
    for (index, disk) in machine.disks.iter().enumerate() {
        // When the host's disk is full, the guest's request fails, as for any other error. By default QEMU
        // would stop the whole machine.
        let mut drive = OsString::from(format!(
            "if=none,id=disk{index},format=raw,discard=unmap,werror=report,rerror=report,readonly="
        ));
        drive.push(if disk.read_only { "on" } else { "off" });
        drive.push(",file=");
        drive.push(doubled(&disk.path));
        command.arg("-drive").arg(drive);
        if disk.way == Way::Ahci {
            if ports % AHCI_PORTS == 0 {
                command.args(["-device", &format!("ich9-ahci,id=ahci{}", ports / AHCI_PORTS)]);
            }
            ports += 1;
        }
        command.args(["-device", &disk_device(disk, index, ports)]);
    }
    let Some(netdev) = network::backend(machine) else { return };
    command.args(["-netdev", &netdev]);
    command.args(["-device", machine.card.device()]);
}

/// The device by which the machine reaches drive `index`. `ports`: how many ports of adapters are used, with this one.
fn disk_device(disk: &Disk, index: usize, ports: usize) -> String {
    let serial = disk.id.as_ref().map(|id| format!(",serial={id}"));
    match disk.way {
        Way::Virtio => {
            format!("virtio-blk-pci,drive=disk{index},disable-legacy=on{}", serial.unwrap_or_default())
        }
        // QEMU wants a serial number.
        Way::Nvme => {
            format!("nvme,drive=disk{index}{}", serial.unwrap_or_else(|| format!(",serial=disk{index}")))
        }
        Way::Ahci => {
            let (adapter, port) = ((ports - 1) / AHCI_PORTS, (ports - 1) % AHCI_PORTS);
            format!("ide-hd,drive=disk{index},bus=ahci{adapter}.{port}{}", serial.unwrap_or_default())
        }
    }
}

/// The tools that end a process with its parent and that choose CPUs: both of util-linux, which Debian always
/// installs.
const SETPRIV: &str = "/usr/bin/setpriv";
const TASKSET: &str = "taskset";

/// A command whose process ends with the thread that starts it, where the system can do that: a killed test
/// run leaves no emulator behind.
pub(crate) fn contained(program: &str) -> Command {
    if !ends_with_parent() {
        return Command::new(program);
    }
    let mut command = Command::new(SETPRIV);
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// A contained command whose threads share one CPU. Commands take the CPUs that this process may use in turn.
fn on_one_cpu(program: &str) -> Command {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("0");
    let cpus = numbers(allowed);
    let next = std::process::id() as usize + NEXT.fetch_add(1, Ordering::Relaxed);
    let cpu = cpus.get(next % cpus.len().max(1)).copied().unwrap_or(0);
    let mut command = contained(TASKSET);
    command.args(["-c", &cpu.to_string(), program]);
    command
}

/// The numbers of a list such as `0-2,5`.
fn numbers(list: &str) -> Vec<usize> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// Whether the system can end a process with its parent.
pub(crate) fn ends_with_parent() -> bool {
    Path::new(SETPRIV).exists()
}

/// A multiboot module for `-initrd`: the file, a space, its words; commas doubled.
pub(crate) fn module(file: &Path, words: &str) -> String {
    let text = format!("{} {words}", file.display());
    text.trim_end().replace(',', ",,")
}

/// A path for a QEMU option: commas doubled.
pub(crate) fn doubled(path: &Path) -> OsString {
    match path.to_str() {
        Some(text) => text.replace(',', ",,").into(),
        None => path.into(),
    }
}

/// Copies a file for the run, so that a build meanwhile does not change the file that the machine boots.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Net;

    #[test]
    fn commas_of_a_module_are_doubled() {
        assert_eq!(module(Path::new("/a,b"), "x=1,2"), "/a,,b x=1,,2");
        assert_eq!(module(Path::new("/a"), ""), "/a");
    }

    #[test]
    fn another_qemu_has_firmware_beside_it() {
        let files = RunDirectory::new().expect("a directory");
        let share = files.file("usr/share/qemu");
        std::fs::create_dir_all(&share).expect("writable");
        let program = files.file("usr/bin/qemu-system-x86_64").display().to_string();
        assert_eq!(firmware(&program), [OsString::from("-L"), share.into()]);
        assert!(firmware(PROGRAM).is_empty());
    }

    #[test]
    fn numbers_of_a_list() {
        assert_eq!(numbers(" 0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(numbers("3"), [3]);
        assert!(numbers("").is_empty());
    }

    #[test]
    fn a_run_directory_is_its_own_and_goes_away() {
        let (one, two) =
            (RunDirectory::new().expect("a directory"), RunDirectory::new().expect("a directory"));
        assert_ne!(one.file("x"), two.file("x"));
        let path = one.file("x");
        std::fs::write(&path, b"x").expect("writable");
        drop(one);
        assert!(!path.exists());
    }

    #[test]
    fn each_adapter_has_six_disks() {
        let machine = Machine {
            disks: vec!["d,as=ahci".parse().expect("a disk"); 8],
            net: Net::None,
            ..Machine::default()
        };
        let mut command = Command::new("x");
        devices(&machine, &mut command);
        let shown: Vec<&str> = command.get_args().filter_map(|argument| argument.to_str()).collect();
        for device in [
            "ich9-ahci,id=ahci0",
            "ide-hd,drive=disk5,bus=ahci0.5",
            "ich9-ahci,id=ahci1",
            "ide-hd,drive=disk7,bus=ahci1.1",
        ] {
            assert!(shown.contains(&device), "{device}: {shown:?}");
        }
    }

    #[test]
    fn devices_are_named_in_order() {
        let machine = Machine {
            disks: ["a,b", "c,ro,id=two", "d,as=nvme", "e,as=ahci,id=x"]
                .map(|disk| disk.parse().expect("a disk"))
                .into(),
            net: Net::Socket("listen=:1".into()),
            ..Machine::default()
        };
        let mut command = Command::new("x");
        devices(&machine, &mut command);
        let shown: Vec<&str> = command.get_args().filter_map(|argument| argument.to_str()).collect();
        assert_eq!(
            shown,
            [
                "-drive",
                "if=none,id=disk0,format=raw,discard=unmap,werror=report,rerror=report,readonly=off,file=a,,b",
                "-device",
                "virtio-blk-pci,drive=disk0,disable-legacy=on",
                "-drive",
                "if=none,id=disk1,format=raw,discard=unmap,werror=report,rerror=report,readonly=on,file=c",
                "-device",
                "virtio-blk-pci,drive=disk1,disable-legacy=on,serial=two",
                "-drive",
                "if=none,id=disk2,format=raw,discard=unmap,werror=report,rerror=report,readonly=off,file=d",
                "-device",
                "nvme,drive=disk2,serial=disk2",
                "-drive",
                "if=none,id=disk3,format=raw,discard=unmap,werror=report,rerror=report,readonly=off,file=e",
                "-device",
                "ich9-ahci,id=ahci0",
                "-device",
                "ide-hd,drive=disk3,bus=ahci0.0,serial=x",
                "-netdev",
                "socket,id=net0,listen=:1",
                "-device",
                "virtio-net-pci,netdev=net0,disable-legacy=on,romfile=",
            ]
        );
    }
}
