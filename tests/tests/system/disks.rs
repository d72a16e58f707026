//! The kinds of disks that dom0 has drivers for, all in one machine: what a guest reads, writes, flushes and gives up is
//! the same, whichever driver serves it.

use anyhow::Result;
use tests::scratch::sha256;
use tests::{Machine, Scratch};
use xtask::machine::{Disk, Way};

use crate::Case;
use crate::linux_guest::{Debian, check_file_system, machine, root_copy};

const MIB: usize = 1 << 20;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![disks:
        a_guest_reads_and_writes_each_kind_of_disk,
        block_requests_are_answered_alike_on_each_kind_of_disk,
    ]);
    cases.push(Case {
        name: "disks::debian_lives_on_each_kind_of_disk",
        // It makes a Debian system, and boots it twice for each kind.
        soak: true,
        run: debian_lives_on_each_kind_of_disk,
    });
    cases
}

/// The kinds besides virtio, which all other tests use.
fn others() -> impl Iterator<Item = (Way, &'static str)> {
    Way::ALL.into_iter().filter(|(way, _)| *way != Way::Virtio)
}

/// The guest's checksums are the files', found by both names of each disk; and its write tests restore what was there.
fn a_guest_reads_and_writes_each_kind_of_disk() -> Result<()> {
    let scratch = Scratch::new("disk-kinds")?;
    let mut machine = Machine::new("disk-kinds");
    let mut sums = Vec::new();
    for (index, (way, name)) in (1u8..).zip(Way::ALL) {
        let disk =
            scratch.disk(&format!("{name}.img"), 16 * MIB + usize::from(index) * 4096, index.into())?;
        sums.push((disk.clone(), sha256(&disk)?));
        let id = format!("root-{name}");
        let names = [way.disk_name(0), format!("disk/by-id/{}", way.id_name(&id))];
        machine = machine.with(|machine| machine.disks.push(Disk { id: Some(id), way, ..Disk::file(&disk) }));
        for device in names {
            machine =
                machine.line(&format!("xl create -c /boot/hello.cfg disk=['phy:/dev/{device},xvda,w']"));
        }
    }
    let mut run = machine.line("ls /dev").run()?.succeeded()?;
    for (disk, sum) in &sums {
        let said = run.console().matches(sum.as_str()).count();
        run.require(said >= 2, "a guest read other bytes, or not twice")?;
        run.require(sha256(disk)? == *sum, "a disk is not as it was")?;
        run = run.says("pattern written, flushed, verified")?;
    }
    Ok(())
}

/// The conformance cases of the block protocol: flushes, barriers, discards, odd segments, requests that cannot be.
fn block_requests_are_answered_alike_on_each_kind_of_disk() -> Result<()> {
    let scratch = Scratch::new("disk-requests")?;
    let mut machine = Machine::new("disk-requests").seconds(600);
    let mut ends = 0;
    for (way, name) in others() {
        let (writable, other) = (
            scratch.disk(&format!("{name}-rw"), 16 * MIB, 1)?,
            scratch.disk(&format!("{name}-ro"), 4 * MIB, 2)?,
        );
        let disks =
            format!("disk=['phy:/dev/{},xvda,w','phy:/dev/{},xvdb,r']", way.disk_name(0), way.disk_name(1));
        machine = machine
            .disk_as(&writable, way)
            .disk_as(&other, way)
            .line(&format!("xl create -c /boot/conformance.cfg {disks} extra=\"filter=blkif\""));
        ends += 1;
    }
    let run = machine.run()?.succeeded()?.says(" 0 fail ")?.says(" 0 error")?;
    let said = run.console().matches("conformance: end ").count();
    run.require(said == ends, "not every kind was tried")
}

/// A Debian system boots, writes and syncs, and has it after the next boot; the file system stays whole.
fn debian_lives_on_each_kind_of_disk() -> Result<()> {
    for (way, name) in others() {
        let scratch = Scratch::new(&format!("debian-{name}"))?;
        let root = root_copy(&scratch)?;
        let disk = format!("disk=['phy:/dev/disk/by-id/{},xvda,w']", way.id_name("debian"));
        let boot = |again: &str| {
            let machine = machine(&format!("debian-{name}{again}"), &root, &[]);
            let machine = machine.with(|machine| {
                if let Some(disk) = machine.disks.last_mut() {
                    disk.way = way;
                }
            });
            Debian::boot(machine, &disk)
        };
        let mut debian = boot("")?;
        debian.succeed("dd if=/dev/urandom of=/root/data bs=64k count=512 conv=fsync", 300)?;
        debian.succeed("sha256sum /root/data > /root/sum && sync && fstrim -v / && sync", 300)?;
        debian.power_off()?;
        check_file_system(&root)?;
        let mut debian = boot("-again")?;
        debian.succeed("echo 3 > /proc/sys/vm/drop_caches && sha256sum -c /root/sum", 120)?;
        debian.power_off()?;
        check_file_system(&root)?;
    }
    Ok(())
}
