//! Linux's blkfront at the edges of what it may be told and may ask: kinds of disks, errors, disks that come and go.

use std::path::Path;

use anyhow::{Result, ensure};
use tests::linux::{machine_with, no_complaints};
use tests::scratch::sha256;
use tests::{Machine, Scratch};

use crate::Case;
use crate::linux_guest::{Debian, check_file_system, machine, root_copy};

const MIB: usize = 1024 * 1024;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_blkfront:
        blkfront_knows_what_its_disks_are,
        disks_come_and_go,
    ]);
    for case in &mut cases {
        // They fetch Debian's packages first.
        case.soak = true;
    }
    cases
}

/// What QEMU does to one disk's requests: errors at a sector each for reading and writing.
const BAD_SECTORS: &str = "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"2048\"\n\n\
                           [inject-error]\nevent = \"write_aio\"\nerrno = \"5\"\nsector = \"4096\"\n";

/// A disk that the command line cannot describe.
fn special(machine: Machine, id: &str, file: &str, device: &str) -> Machine {
    machine.with(|machine| {
        let drive = format!("if=none,id={id},format=raw,file={file}");
        let device = format!("virtio-blk-pci,drive={id},serial={id},disable-legacy=on{device}");
        machine.qemu_arguments.extend(["-drive".into(), drive, "-device".into(), device]);
    })
}

fn blkfront_knows_what_its_disks_are() -> Result<()> {
    let scratch = Scratch::new("debian-corners")?;
    let read_only = scratch.disk("ro.img", 8 * MIB, 21)?;
    let odd = scratch.disk("odd.img", 16 * MIB + 3 * 512, 22)?;
    let before = sha256(&read_only)?;
    let large = scratch.disk("large.img", 8 * MIB, 23)?;
    let bad = scratch.disk("bad.img", 8 * MIB, 24)?;
    let errors = scratch.file("errors", BAD_SECTORS.as_bytes())?;
    let script = include_str!("linux_blkfront/corners.sh");
    let machine = machine_with("debian-corners", &scratch, &[("corners.sh", script.as_bytes())])?;
    let machine = machine.read_only_disk(&read_only).disk(&odd);
    let sectors = ",logical_block_size=4096,physical_block_size=4096";
    let machine = special(machine, "large", &large.display().to_string(), sectors);
    let bad_file = format!("blkdebug:{}:{}", errors.display(), bad.display());
    let machine = special(machine, "bad", &bad_file, "");
    let disks = "disk=['phy:/dev/vda,xvda,r','phy:/dev/vdb,xvdb,w',\
                 '/dev/disk/by-id/virtio-large,raw,xvdc,w,no-discard','phy:/dev/disk/by-id/virtio-bad,xvdd,w']";
    let run = machine
        .line(&format!("xl create -c /boot/debian-ramdisk.cfg {disks} extra=\"run=sh /corners.sh\""))
        .run()?
        .succeeded()?
        .says("corners: ok")?
        .says("run: exit status 0")?;
    no_complaints(&run)?;
    ensure!(sha256(&read_only)? == before, "the read-only disk was written");
    let bytes = std::fs::read(&odd)?;
    run.require(bytes[8 * MIB..8 * MIB + 65536].iter().all(|byte| *byte == 0), "a discard did nothing")?;
    let last = bytes.chunks(512).next_back().unwrap_or(&[1]);
    run.require(last.iter().all(|byte| *byte == 0), "the last sector was not written")
}

fn disks_come_and_go() -> Result<()> {
    let scratch = Scratch::new("debian-hotplug")?;
    let root = root_copy(&scratch)?;
    let other = scratch.file("other.img", &vec![0; 96 * MIB])?;
    let mut debian = Debian::boot(machine("debian-hotplug", &root, &[&other]), "")?;
    debian.succeed("dmesg -C", 60)?;
    let here = "timeout 20 sh -c 'until test -b /dev/xvdc; do sleep 0.1; done'";
    let gone = "timeout 20 sh -c 'while test -e /dev/xvdc; do sleep 0.1; done'";

    // Comes, is used, and goes.
    debian.at_dom0("xl block-attach debian phy:/dev/vda,xvdc,w")?;
    let listed = debian.at_dom0("xl block-list debian")?;
    ensure!(listed.contains("/backend/vbd/1/51744"), "it is not listed: {listed}");
    debian.succeed(&format!("{here} && mkfs.ext4 -q /dev/xvdc && mount /dev/xvdc /mnt"), 60)?;
    debian.succeed("cp -r /usr/share/perl5 /mnt && sync && umount /mnt", 120)?;
    let twice = debian.at_dom0("xl block-attach debian phy:/dev/vda,xvdd,w")?;
    ensure!(twice.contains("debian has this disk"), "two names for one disk: {twice}");
    debian.at_dom0("xl block-detach debian xvdc")?;
    debian.succeed(gone, 60)?;
    let listed = debian.at_dom0("xl block-list debian")?;
    ensure!(!listed.contains("51744"), "it is listed still: {listed}");
    check_file_system(&other)?;
    debian.succeed("! dmesg -l emerg,alert,crit,err,warn | grep .", 60)?;

    // Comes again read-only, and is taken by force.
    debian.at_dom0("xl block-attach debian phy:/dev/vda,xvdc,r")?;
    debian.succeed(&format!("{here} && mount -o ro /dev/xvdc /mnt && ls /mnt/perl5 && umount /mnt"), 60)?;
    debian.succeed("test $(blockdev --getro /dev/xvdc) = 1", 60)?;
    debian.at_dom0("xl block-detach debian 51744 --force")?;
    debian.succeed(gone, 60)?;

    // Goes while it is in use: what is mounted fails, the domain lives.
    debian.at_dom0("xl block-attach debian phy:/dev/vda,xvdc,w")?;
    debian.succeed(&format!("{here} && mount /dev/xvdc /mnt && cd /mnt"), 60)?;
    debian.at_dom0("xl block-detach debian xvdc")?;
    debian.succeed("cd /; ! { echo lost > /mnt/lost && sync -f /mnt/lost; }; umount -l /mnt", 120)?;
    debian.succeed(&format!("{gone}; echo alive > /root/alive && sync"), 60)?;
    let errors = debian.at_dom0("xl block-detach debian xvdc")?;
    ensure!(errors.contains("no such disk"), "taken twice: {errors}");
    debian.power_off()?;
    check_file_system(&root)?;
    replayed(&other)
}

/// The disk that went while it was mounted is as a crash would leave it.
fn replayed(disk: &Path) -> Result<()> {
    crate::linux_guest::recover_file_system(disk)?;
    check_file_system(disk)
}
