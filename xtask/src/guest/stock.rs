//! The disk of a machine that runs Debian, like the disks of clouds: a table of partitions (GPT), GRUB by Debian's own
//! `grub-install` for a BIOS and for UEFI, one ext4 file system, all text on the serial line. A partition is left, of which a
//! test may make a `/boot` of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gpt::partition_types::{EFI, LINUX_FS};

use super::root::{self, Root};
use super::{directory, turn};
use crate::cargo::run;
use crate::disk_image::{self, FILES, SECTOR};
use crate::machine::{Disk, Machine};
use crate::packages::remove;
use crate::qemu;
use crate::session::{Attach, Session};

/// The serial number: the disk is `/dev/disk/by-id/virtio-system` in Linux, and in dom0.
pub const ID: &str = "system";

/// The disk's file, beside those of other guests.
const FILE: &str = "stock-disk.img";
/// MiB of the partition where UEFI finds GRUB, and of the one that is left.
const EFI_MIB: u32 = 64;
const LEFT_MIB: u32 = 256;

/// How long the first start may take.
const FIRST_START: Duration = Duration::from_secs(600);
/// What the first start says at its end.
const INSTALLED: &str = "GRUB is installed";

/// Completes the new system: what Debian's images for clouds set, a login of root without a password, and the program of
/// the first start. Kernel and ramdisk are put beside the tree.
const SETTLE: &str = r#"set -e
echo stock > "$1/etc/hostname"
echo "127.0.0.1 localhost stock" > "$1/etc/hosts"
echo "LABEL=stock / ext4 defaults,errors=remount-ro 0 1" > "$1/etc/fstab"
echo "LABEL=ESP /boot/efi vfat umask=0077 0 1" >> "$1/etc/fstab"
mkdir -p "$1/boot/efi"
chroot "$1" passwd -q -d root
cat > "$1/etc/default/grub" <<'END'
GRUB_DEFAULT=0
GRUB_TIMEOUT=2
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --speed=115200"
END
printf '[Match]\nName=en*\n[Network]\nDHCP=yes\n' > "$1/etc/systemd/network/50-cards.network"
chroot "$1" systemctl -q enable systemd-networkd
cat > "$1/sbin/first-start" <<'END'
#!/bin/sh
mount -o remount,rw /
mkfs.vfat -n ESP /dev/vda3 && mount /dev/vda3 /boot/efi && grub-install --target=i386-pc /dev/vda &&
grub-install --target=x86_64-efi --efi-directory=/boot/efi --removable --no-nvram && umount /boot/efi &&
update-grub && rm /sbin/first-start && echo "GRUB is installed"
sync
mount -o remount,ro /
echo o > /proc/sysrq-trigger
sleep 60
END
chmod 755 "$1/sbin/first-start"
cp "$1/vmlinuz" "$1.vmlinuz"
cp "$1/initrd.img" "$1.initrd"
"#;

const ROOT: Root = Root {
    label: "stock",
    size_mib: 1536,
    packages: "systemd-sysv,udev,dbus,login,kmod,e2fsprogs,dosfstools,iproute2,procps,linux-image-amd64,grub-pc,\
               grub-efi-amd64-bin",
    settle: SETTLE,
};

/// Copies the disk to `copy`; makes the disk before, if need be, which takes some minutes.
///
/// # Errors
/// The errors of [`super::guest`], or the first start fails.
pub fn copy_disk(copy: &Path) -> Result<()> {
    let _turn = turn()?;
    let disk = directory().join(FILE);
    if !disk.exists() {
        make(&disk)?;
    }
    run(Command::new("cp").arg("--sparse=always").arg(&disk).arg(copy))
}

/// The part of `disk` that holds the system's file system, as a file of its own.
///
/// # Errors
/// The file cannot be read or written.
pub fn file_system(disk: &Path, file: &Path) -> Result<()> {
    let skip = format!("skip={}", FILES * SECTOR);
    let count = format!("count={}", u64::from(ROOT.size_mib) << 20);
    let (from, to) = (format!("if={}", disk.display()), format!("of={}", file.display()));
    let flags = ["iflag=skip_bytes,count_bytes", "bs=1M", "conv=sparse", "status=none"];
    run(Command::new("dd").args([&from, &to, &skip, &count]).args(flags))
}

fn make(disk: &Path) -> Result<()> {
    let root = directory().join("stock-root.img");
    remove(&root)?;
    root::make(&ROOT, &root)?;
    let partial = disk.with_extension("partial");
    write_table(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
    let (from, to) = (format!("if={}", root.display()), format!("of={}", partial.display()));
    let seek = format!("seek={}", FILES * SECTOR);
    run(Command::new("dd").args([&from, &to, &seek]).args([
        "oflag=seek_bytes",
        "bs=1M",
        "conv=sparse,notrunc",
        "status=none",
    ]))?;
    let tree = root.with_extension("tree");
    let beside = |end: &str| PathBuf::from(format!("{}.{end}", tree.display()));
    install_grub(&partial, &beside("vmlinuz"), &beside("initrd"))?;
    for file in [root, beside("vmlinuz"), beside("initrd")] {
        remove(&file)?;
    }
    std::fs::rename(&partial, disk).with_context(|| format!("cannot make {}", disk.display()))
}

/// Writes the table of partitions.
fn write_table(disk: &Path) -> Result<()> {
    let sectors = |mib: u32| (u64::from(mib) << 20) / SECTOR;
    let partitions = [
        ("root", LINUX_FS, sectors(ROOT.size_mib)),
        ("efi", EFI, sectors(EFI_MIB)),
        ("left", LINUX_FS, sectors(LEFT_MIB)),
    ];
    disk_image::partitioned(disk, &partitions)?.flush()?;
    Ok(())
}

/// The first start: the kernel comes from QEMU, and Debian's own tools make the disk start by itself.
fn install_grub(disk: &Path, kernel: &Path, ramdisk: &Path) -> Result<()> {
    eprintln!("installing GRUB in a first start of the new system");
    let machine = machine(disk);
    let mut command = machine_command(&machine);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(ramdisk);
    command.args(["-append", "root=/dev/vda2 ro console=ttyS0 panic=-1 init=/sbin/first-start"]);
    let (outcome, console) = Session::of(command, Attach::Nobody, Some(FIRST_START))?.wait();
    if !console.contains(INSTALLED) {
        bail!("the first start failed: {outcome:?}\n{console}");
    }
    Ok(())
}

/// The machine whose disk `disk` is: it starts from the disk, and can start again.
pub fn machine(disk: &Path) -> Machine {
    let disk = Disk { id: Some(ID.into()), ..Disk::file(disk) };
    Machine { disks: vec![disk], ..Machine::default() }
}

/// QEMU's command line for a machine whose firmware chooses what starts.
pub fn machine_command(machine: &Machine) -> Command {
    let mut command = qemu::bare(machine);
    command.args(["-m", &machine.memory_mib.to_string()]);
    qemu::devices(machine, &mut command);
    command.args(&machine.qemu_arguments);
    command
}
