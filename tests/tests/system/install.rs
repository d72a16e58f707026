//! microhv on a machine that runs Debian: installed by the machine's own root, tried once, with the machine's own system as
//! the first guest, and back.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::Scratch;
use xtask::deps::{self, Need};
use xtask::guest::stock;
use xtask::machine::{Card, Disk, Module, Net, Way};
use xtask::session::{Attach, Session};
use xtask::{iso, qemu};

use crate::Case;
use crate::linux_guest::check_file_system;

/// How long a start may take, in seconds.
const BOOT: u64 = 900;

/// What the hypervisor says first.
const STARTED: &str = "(microhv) microhv ";

pub(crate) fn cases() -> Vec<Case> {
    let cases = crate::cases![install:
        an_old_system_becomes_a_guest_and_comes_back,
        so_does_one_by_uefi_on_nvme_with_a_file_system_for_boot,
        so_does_one_on_sata_whose_menu_has_a_saved_default,
    ];
    // Each installs a Debian system from packages first, unless another has, and starts it six times.
    cases.map(|case| Case { soak: true, ..case }).into()
}

/// What kind of machine it is, and how its Debian is set up.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    disks: Way,
    card: Card,
    uefi: bool,
    /// What its owner has done before.
    set_up: fn(&mut Console) -> Result<()>,
}

fn an_old_system_becomes_a_guest_and_comes_back() -> Result<()> {
    let (disks, card) = (Way::Virtio, Card::Virtio);
    story(Kind { name: "install", disks, card, uefi: false, set_up: |_| Ok(()) })
}

fn so_does_one_by_uefi_on_nvme_with_a_file_system_for_boot() -> Result<()> {
    let (disks, card) = (Way::Nvme, Card::E1000e);
    story(Kind { name: "install-uefi", disks, card, uefi: true, set_up: boot_gets_a_file_system })
}

fn so_does_one_on_sata_whose_menu_has_a_saved_default() -> Result<()> {
    let (disks, card) = (Way::Ahci, Card::E1000e);
    story(Kind { name: "install-sata", disks, card, uefi: false, set_up: the_default_is_saved })
}

/// `/boot` moves to the partition that is left, and UEFI's GRUB looks there.
fn boot_gets_a_file_system(debian: &mut Console) -> Result<()> {
    debian.succeed("test -d /sys/firmware/efi && umount /boot/efi", 60)?;
    debian.succeed("mkfs.ext4 -q -L boot /dev/disk/by-partlabel/left && mount -L boot /mnt", 120)?;
    debian.succeed("mv /boot/* /mnt && umount /mnt", 120)?;
    debian.succeed("echo 'LABEL=boot /boot ext4 defaults 0 2' >> /etc/fstab; systemctl daemon-reload", 60)?;
    debian.succeed("mount /boot && mount /boot/efi && test -d /boot/grub && update-grub", 300)?;
    debian
        .succeed("grub-install --target=x86_64-efi --efi-directory=/boot/efi --removable --no-nvram", 300)
        .map(|_| ())
}

/// The menu has another entry, which `grub-set-default` chooses: the kernel gets a word more.
fn the_default_is_saved(debian: &mut Console) -> Result<()> {
    debian.succeed("sed -i 's/^GRUB_DEFAULT=.*/GRUB_DEFAULT=saved/' /etc/default/grub", 60)?;
    debian.succeed(
        "printf '%s\\n' '#!/bin/sh' 'cat << END' 'menuentry chosen --id chosen {' \
         'search --no-floppy --label --set=root stock' \
         'linux /vmlinuz root=LABEL=stock ro console=tty0 console=ttyS0,115200 chosen' \
         'initrd /initrd.img' '}' END > /etc/grub.d/41_chosen && chmod 755 /etc/grub.d/41_chosen",
        60,
    )?;
    debian.succeed("update-grub && grub-set-default chosen", 300)?;
    debian.type_line("reboot")?;
    debian.log_in("ttyS0")?;
    ensure!(debian.parameters()?.ends_with(" chosen"), "the saved default is not what was started");
    Ok(())
}

/// A machine at its serial console, which a reset starts again.
struct Console {
    session: Session,
    seen: usize,
}

impl Console {
    fn start(kind: Kind, disks: &[&Path]) -> Result<Self> {
        let mut machine = stock::machine(disks[0]);
        machine.disks.extend(disks[1..].iter().map(|disk| Disk::file(disk)));
        for disk in &mut machine.disks {
            disk.way = kind.disks;
        }
        (machine.net, machine.card) = (Net::User, kind.card);
        machine.qemu_arguments = ["-action", "reboot=reset"].map(String::from).into();
        if kind.uefi {
            deps::ensure(&[Need::Uefi])?;
            machine.qemu_arguments.extend(["-bios", qemu::UEFI].map(String::from));
            // At a second start the firmware unpacks itself, byte by byte, to where Linux was: where QEMU keeps translations of a
            // page's code, each byte takes as long as there are many.
            machine.qemu_arguments.extend(["-accel", "tcg,tb-size=32"].map(String::from));
        }
        let log = xtask::paths::target().join(format!("tmp/{}.log", kind.name));
        std::fs::create_dir_all(xtask::paths::target().join("tmp"))?;
        let command = stock::machine_command(&machine);
        let session = Session::logged(command, Attach::Program, Some(Duration::from_secs(3000)), &log)?;
        Ok(Self { session, seen: 0 })
    }

    /// Waits for `text` behind what was waited for before; gives what came up to it.
    fn expect(&mut self, text: &str, seconds: u64) -> Result<String> {
        let behind = self.session.expect(text, self.seen, Duration::from_secs(seconds));
        let behind = behind.map_err(|error| {
            let all = self.session.output();
            let end: Vec<&str> = all.lines().rev().take(60).collect();
            anyhow::anyhow!("{error}\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n"))
        })?;
        let bytes = self.session.output_bytes(self.seen..behind);
        self.seen = behind;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn type_line(&mut self, text: &str) -> Result<()> {
        self.session.send(&format!("{text}\r"))
    }

    /// Waits for Debian's login, which stands on `terminal`, and logs in.
    fn log_in(&mut self, terminal: &str) -> Result<String> {
        let before = self.expect(&format!("stock {terminal}"), BOOT)?;
        self.expect("stock login: ", 60)?;
        self.type_line("root")?;
        self.expect("root@stock:~# ", 120)?;
        self.type_line("exec sh -c 'stty -echo; dmesg -n 1; echo rea\"\"dy; PS1= PS2= exec sh'")?;
        self.expect("ready", 60)?;
        Ok(before)
    }

    fn succeed(&mut self, command: &str, seconds: u64) -> Result<String> {
        self.type_line(&format!("{{ {command}\n}}; echo \"<status $?>\""))?;
        let output = self.expect("<status ", seconds)?;
        let status = self.expect(">", 10)?;
        ensure!(status == "0>", "`{command}` ended with status {status}:\n{output}");
        Ok(output)
    }

    /// The kernel's parameters, without the file's name that a loader may put before.
    fn parameters(&mut self) -> Result<String> {
        let printed = self.succeed("cat /proc/cmdline", 60)?;
        let words =
            printed.split_whitespace().filter(|word| !word.starts_with("BOOT_IMAGE=") && *word != "<status");
        Ok(words.collect::<Vec<_>>().join(" "))
    }
}

/// The directory of the installation, as `cargo xtask image --install` makes it, in a file system of its own.
fn delivered(scratch: &Scratch) -> Result<std::path::PathBuf> {
    let directory = scratch.directory("install")?;
    let mut machine = xtask::machine::Machine::default();
    machine.modules.push(Module { path: xtask::guest::loader()?, name: xtask::install::LOADER.into() });
    let bundle = scratch.file("boot.cpio", &machine.bundle()?.archive())?;
    let hypervisor = xtask::images::find("microhv")?.bootable();
    let files = iso::Files { hypervisor: &hypervisor, dom0: &machine.dom0, bundle: &bundle };
    xtask::install::make(&directory, &files)?;
    let image = scratch.file("install.img", &vec![0; 64 << 20])?;
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-L", "delivered", "-d"])
        .arg(&directory)
        .arg(&image)
        .status();
    ensure!(made.context("cannot run mke2fs")?.success(), "mke2fs failed");
    Ok(image)
}

/// Installed, tried once as the first guest, back to the menu's default, and removed.
fn story(kind: Kind) -> Result<()> {
    let scratch = Scratch::new(kind.name)?;
    let disk = scratch.file("stock.img", b"")?;
    stock::copy_disk(&disk)?;
    let delivered = delivered(&scratch)?;
    let mut debian = Console::start(kind, &[&disk, &delivered])?;
    debian.log_in("ttyS0")?;
    (kind.set_up)(&mut debian)?;
    let parameters = debian.parameters()?;
    debian.succeed(
        "mkdir /root/install && mount -r -L delivered /mnt && cp /mnt/* /root/install; umount /mnt",
        60,
    )?;
    debian.succeed("sh /root/install/install.sh --check", 120)?;
    debian.succeed("sh /root/install/install.sh", 300)?;
    debian.succeed(
        "ip -o route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/' > /root/card; test -s /root/card",
        60,
    )?;
    debian.succeed("grub-reboot microhv && echo before > /root/before", 60)?;
    debian.type_line("reboot")?;

    as_a_guest(&mut debian, &parameters)?;

    // The menu's default, as before: no hypervisor, and what the guest wrote.
    let before = debian.log_in("ttyS0")?;
    ensure!(!before.contains(STARTED), "the machine has started microhv again");
    debian.succeed("! test -e /sys/hypervisor/type && test $(cat /root/guest) = guest", 60)?;
    ensure!(debian.parameters()? == parameters, "the parameters have changed");
    a_panic_falls_back(&mut debian)?;
    debian.succeed("sh /root/install/install.sh --remove", 300)?;
    debian.succeed("! test -e /boot/microhv && ! grep -q microhv /boot/grub/grub.cfg", 60)?;
    debian.type_line("poweroff")?;
    debian.session.wait();
    let files = scratch.path("root.img");
    stock::file_system(&disk, &files)?;
    check_file_system(&files)
}

/// dom0's script has the old system started by the loader that reads the system's menu; then a person goes to dom0's prompt, and
/// restarts the machine.
fn as_a_guest(debian: &mut Console, parameters: &str) -> Result<()> {
    debian.expect("microhv dom0: ", BOOT)?;
    debian.expect("xl create -c -F /boot/debian.cfg", 60)?;
    debian.log_in("hvc0")?;
    debian.succeed("test $(cat /sys/hypervisor/type) = xen && test $(cat /root/before) = before", 60)?;
    let guest = debian.parameters()?;
    ensure!(guest == parameters, "the guest's parameters are {guest}, not {parameters}");
    debian.succeed("echo guest > /root/guest && sync", 60)?;
    // The interface has the card's name, and an address of the network where the card is.
    debian.succeed(
        "for i in $(seq 20); do ip -4 -o address show dev $(cat /root/card) | grep -F ' 10.0.2.' && break; sleep 3; done",
        120,
    )?;
    debian.succeed("sh /root/install/install.sh 2>&1 | grep 'runs as a guest'", 60)?;
    debian.type_line("reboot")?;
    debian.log_in("hvc0")?;
    debian.succeed("test $(cat /root/guest) = guest", 60)?;
    debian.session.send("\x1d")?;
    debian.expect("^C leads to the prompt", 30)?;
    debian.session.send("\x03")?;
    debian.expect("error: interrupted", 30)?;
    debian.expect("dom0# ", 30)?;
    debian.type_line("xl shutdown -w debian")?;
    debian.type_line("done")?;
    debian.expect("error: done:", 300)?;
    debian.type_line("reboot")
}

/// A hypervisor that panics restarts the machine, whose menu has its old default.
fn a_panic_falls_back(debian: &mut Console) -> Result<()> {
    debian.succeed("grub-reboot microhv", 60)?;
    debian.type_line("reboot")?;
    debian.expect("microhv dom0: ", BOOT)?;
    debian.session.send("\x01\x01\x01C")?;
    debian.expect("PANIC: ", 60)?;
    debian.expect("the machine starts again", 60)?;
    let before = debian.log_in("ttyS0")?;
    ensure!(!before.contains(STARTED), "the machine has started microhv again");
    Ok(())
}
