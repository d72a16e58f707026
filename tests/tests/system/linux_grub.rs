//! PV GRUB: another maker's console, block and xenstore drivers, which leave the domain to the next kernel.

use std::process::Command;

use anyhow::{Context, Result};
use tests::scratch::sha256;
use tests::{Machine, Scratch};

use crate::Case;
use crate::linux_guest::{self, Debian, check_file_system, root_copy};

/// What GRUB runs instead of a menu.
const SCRIPT: &str = "linux /boot/hello by grub\nboot\n";

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_grub:
        grub_starts_a_kernel_on_the_disk,
        grub_boots_debian_from_its_menu,
    ]);
    for case in &mut cases {
        // They fetch Debian's packages first.
        case.soak = true;
    }
    cases
}

/// GRUB reads a kernel of ours from a file system, builds its page tables and starts it in the same domain; the kernel
/// finds console, xenstore and the disk as if nobody had used them before.
fn grub_starts_a_kernel_on_the_disk() -> Result<()> {
    let scratch = Scratch::new("grub-kernel")?;
    let tree = scratch.directory("tree/boot/grub")?;
    let hello = xtask::images::find("hello")?.bootable();
    std::fs::copy(&hello, tree.with_file_name("hello"))
        .with_context(|| format!("cannot copy {}", hello.display()))?;
    std::fs::write(tree.join("grub.cfg"), SCRIPT)?;
    let disk = scratch.file("d.img", &vec![0; 8 << 20])?;
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(scratch.path("tree"))
        .arg(&disk)
        .status();
    anyhow::ensure!(made.context("cannot run mke2fs")?.success(), "mke2fs failed");

    let configuration =
        b"name='grub'\nkernel='/boot/debian-pvgrub'\nmemory=64\ndisk=['phy:/dev/vda,xvda,w']\n";
    let configuration = scratch.file("grub.cfg", configuration)?;
    xtask::guest::debian_loader()?;
    let before = sha256(&disk)?;
    Machine::new("grub-kernel")
        .with(|machine| machine.modules.extend(xtask::guest::modules()))
        .disk(&disk)
        .module(&configuration, "grub.cfg")
        .line("xl create -c /boot/grub.cfg")
        .run()?
        .succeeded()?
        .says("Welcome to GRUB!")?
        .says("hello: command line \"by grub\"")?
        .says(&format!("hello: sha256 {before}"))?
        .says("hello: pattern written, flushed, verified")?
        .says("hello: goodbye")?;
    anyhow::ensure!(sha256(&disk)? == before, "the disk has changed");
    Ok(())
}

/// A person at GRUB's menu and at its prompt, then the system that the menu boots, with more vCPUs than GRUB uses.
fn grub_boots_debian_from_its_menu() -> Result<()> {
    let scratch = Scratch::new("grub-debian")?;
    let root = root_copy(&scratch)?;
    xtask::guest::debian_loader()?;
    let mut machine = linux_guest::machine("grub-debian", &root, &[]).start()?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("xl create -c /boot/debian-grub.cfg vcpus=2")?;
    machine.expect("*Debian", 60)?;
    machine.type_text("c")?;
    machine.expect("grub> ", 30)?;
    machine.type_line("cat (xen/xvda)/etc/hostname")?;
    // Behind its progress bar, which goes to a place of its own on a screen.
    machine.expect("debian", 30)?;
    machine.expect("grub> ", 30)?;
    // Escape alone goes back to the menu, once no more of a key's sequence can follow.
    machine.type_text("\x1b")?;
    machine.expect("*Debian", 30)?;
    machine.type_text("\r")?;
    machine.expect("Hypervisor detected: Xen PV", 120)?;
    let mut debian = Debian::log_in(machine)?;
    debian.succeed("test $(nproc) = 2 && test $(cat /sys/hypervisor/type) = xen", 60)?;
    debian.succeed("grep -qx 'root=/dev/xvda ro console=hvc0' /proc/cmdline", 60)?;
    debian.succeed("dd if=/dev/zero of=/root/written bs=1M count=16 conv=fsync", 120)?;
    debian.power_off()?;
    check_file_system(&root)
}
