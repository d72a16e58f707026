//! A newer Debian kernel than the release's own, so that nothing is made for one kernel alone.

use anyhow::Result;
use tests::linux::no_complaints;
use tests::scratch::sha256;
use tests::{Machine, Scratch};

use crate::Case;
use crate::linux_guest::{self, Debian, check_file_system, root_copy};

const MIB: usize = 1024 * 1024;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_newer:
        newer_reaches_userspace_and_reads_its_disk,
        newer_brings_up_four_vcpus,
        newer_runs_a_debian_system,
    ]);
    for case in &mut cases {
        // They fetch Debian's packages first.
        case.soak = true;
    }
    cases
}

/// A machine with the newer kernel and its ramdisk in the boot bundle, made if need be.
fn machine(name: &str) -> Result<Machine> {
    xtask::guest::other_debian_ramdisk("newer")?;
    Ok(Machine::new(name).with(|machine| machine.modules.extend(xtask::guest::modules())))
}

fn newer_reaches_userspace_and_reads_its_disk() -> Result<()> {
    let scratch = Scratch::new("newer-disk")?;
    let disk = scratch.disk("d.img", 16 * MIB, 5)?;
    let settings = "disk=['phy:/dev/vda,xvda,r'] extra=\"run=sha256sum /dev/xvda\"";
    let run = machine("newer-disk")?
        .disk(&disk)
        .line(&format!("xl create -c /boot/debian-6.12-ramdisk.cfg {settings}"))
        .run()?
        .succeeded()?
        .says("Hypervisor detected: Xen PV")?
        .says("userspace reached: Linux 6.12.")?
        .says(&sha256(&disk)?)?
        .says("run: exit status 0")?;
    no_complaints(&run)
}

fn newer_brings_up_four_vcpus() -> Result<()> {
    let command = "for cpu in 0 1 2 3; do taskset -c $cpu true || exit 9; done; nproc";
    let run = machine("newer-vcpus")?
        .line(&format!("xl create -c /boot/debian-6.12-ramdisk.cfg vcpus=4 extra=\"run={command}\""))
        .run()?
        .succeeded()?
        .says("Brought up 1 node, 4 CPUs")?
        .says("run: exit status 0")?;
    no_complaints(&run)
}

/// systemd and its services by the newer kernel, and a load on memory, processes and the disk.
fn newer_runs_a_debian_system() -> Result<()> {
    let scratch = Scratch::new("newer-root")?;
    let root = root_copy(&scratch)?;
    xtask::guest::other_debian_ramdisk("newer")?;
    let machine = linux_guest::machine("newer-root", &root, &[]);
    let settings = "kernel=/boot/debian-6.12-vmlinuz ramdisk=/boot/debian-6.12-initrd vcpus=2";
    let mut debian = Debian::boot(machine, settings)?;
    debian.succeed("uname -r | grep ^6.12. && test $(nproc) = 2", 60)?;
    debian.succeed("systemctl is-system-running --wait", 120)?;
    debian
        .succeed("stress-ng --vm 1 --vm-bytes 64M --fork 2 --switch 1 --hdd 1 --hdd-bytes 16M -t 20", 180)?;
    debian.power_off()?;
    check_file_system(&root)
}
