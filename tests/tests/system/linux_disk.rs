//! A Debian system on a disk of its own: what it is served, and what of it lasts.

use anyhow::{Result, ensure};
use tests::Scratch;
use tests::scratch::sha256;

use crate::Case;
use crate::domains::{FIGURES, values};
use crate::linux_guest::{Debian, check_file_system, machine, recover_file_system, root_copy};

const MIB: usize = 1024 * 1024;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_disk:
        debian_boots_to_a_login_and_powers_off,
        fio_reads_back_what_it_wrote,
        a_domain_destroyed_while_it_writes_leaves_a_disk_that_recovers,
    ]);
    for case in &mut cases {
        // Each has a Debian system made, and boots it.
        case.soak = true;
    }
    cases
}

fn debian_boots_to_a_login_and_powers_off() -> Result<()> {
    let scratch = Scratch::new("debian-login")?;
    let root = root_copy(&scratch)?;
    let mut debian = Debian::boot(machine("debian-login", &root, &[]), "")?;
    let state = debian.succeed("systemctl is-system-running --wait", 120)?;
    ensure!(state.contains("running"), "the system is {state}");
    debian.succeed("systemctl --failed --no-legend | grep . && exit 1; true", 60)?;
    debian.succeed("test $(stat -f -c %T /) = ext2/ext3 && echo kept > /root/kept && sync", 60)?;
    debian.power_off()?;
    check_file_system(&root)?;

    // What was written is there the next time.
    let mut debian = Debian::boot(machine("debian-login-again", &root, &[]), "")?;
    debian.succeed("test $(cat /root/kept) = kept", 60)?;
    debian.power_off()?;
    check_file_system(&root)
}

/// What every fio job here does: past the page cache, every block checked by a sum in it.
const FIO: &str = "fio --ioengine=libaio --direct=1 --verify_fatal=1 --do_verify=1 --output-format=terse --exitall_on_error";

/// Jobs on the root file system, each a name and options.
const ON_FILES: &[(&str, &str)] = &[
    ("random", "--rw=randwrite --bs=4k --iodepth=32 --size=48m --verify=crc32c"),
    ("sequential", "--rw=write --bs=1m --iodepth=4 --size=128m --verify=sha256"),
    ("four-jobs", "--rw=randwrite --bs=4k --iodepth=8 --size=8m --numjobs=4 --verify=crc32c"),
    ("one-by-one", "--rw=randwrite --bs=4k --iodepth=1 --size=4m --verify=sha256 --fsync=16"),
];

/// Jobs on the whole second disk: sizes and places that no file system would choose.
const ON_DISK: &[(&str, &str)] = &[
    ("odd", "--rw=randwrite --bsrange=512-64k --iodepth=16 --size=32m --verify=crc32c"),
    ("deep", "--rw=randwrite --bs=4k --iodepth=128 --size=32m --verify=crc32c"),
    ("large", "--rw=write --bs=4m --iodepth=4 --size=60m --verify=sha256"),
];

/// A disk that is no whole number of pages.
const ODD_DISK_BYTES: usize = 64 * MIB + 3 * 512;

fn fio_reads_back_what_it_wrote() -> Result<()> {
    let scratch = Scratch::new("debian-fio")?;
    let root = root_copy(&scratch)?;
    let odd = scratch.disk("odd.img", ODD_DISK_BYTES, 11)?;
    let before = sha256(&odd)?;
    let disks = "disk=['phy:/dev/disk/by-id/virtio-debian,xvda,w','phy:/dev/vda,xvdb,w']";
    let mut debian = Debian::boot(machine("debian-fio", &root, &[&odd]), disks)?;
    debian.succeed("dmesg -C", 60)?;
    let size = debian.succeed("blockdev --getsz /dev/xvdb", 60)?;
    ensure!(size.contains(&(ODD_DISK_BYTES / 512).to_string()), "the guest sees {size} sectors");
    ensure!(debian.succeed("sha256sum /dev/xvdb", 120)?.contains(&before), "the guest reads other bytes");
    for (name, options) in ON_FILES {
        debian.succeed(&format!("{FIO} --name={name} --directory=/root {options}"), 600)?;
    }
    for (name, options) in ON_DISK {
        debian.succeed(&format!("{FIO} --name={name} --filename=/dev/xvdb {options}"), 600)?;
    }
    let sum = debian.succeed("sync; sha256sum /dev/xvdb", 120)?;
    debian.silent()?;
    debian.power_off()?;
    ensure!(sum.contains(&sha256(&odd)?), "the file is not what the guest reads: {sum}");
    check_file_system(&root)
}

/// Four jobs that make, write, sync and remove files, until the end.
const CHURN: &str = "fio --name=churn --directory=/root --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k \
                     --nrfiles=16 --filesize=256k-1m --size=8m --numjobs=4 --fsync=8 --unlink=1 --loops=1000";

fn a_domain_destroyed_while_it_writes_leaves_a_disk_that_recovers() -> Result<()> {
    const ROUNDS: usize = 3;
    let scratch = Scratch::new("debian-destroy")?;
    let root = root_copy(&scratch)?;
    let mut live = machine("debian-destroy", &root, &[]).start()?;
    live.expect("dom0# ", 60)?;
    for round in 0..ROUNDS {
        let mut debian = Debian::create(live, "")?;
        if round > 0 {
            let said = debian.succeed("dmesg | grep EXT4-fs; cat /root/lasting", 60)?;
            ensure!(said.contains("recovery complete"), "no journal was replayed: {said}");
            ensure!(said.contains(&format!("round {}", round - 1)), "what was synced is lost: {said}");
        }
        debian.succeed(&format!("echo round {round} > /root/lasting && sync"), 60)?;
        debian.start(CHURN)?;
        // The jobs have written for a while, and go on.
        debian.succeed("sleep 5; pgrep fio", 60)?;
        live = debian.leave()?;
        live.type_line("xl destroy debian")?;
        live.expect("dom0# ", 60)?;
        live.type_line("xl info")?;
        live.expect("xenstore_bytes", 60)?;
        live.expect("dom0# ", 60)?;
    }
    live.type_text("\x01\x01\x01")?;
    live.type_text("M")?;
    live.expect("frame table: 0 differences", 60)?;
    live.type_text("\x01\x01\x01")?;
    live.type_line("poweroff")?;
    let run = live.finish().succeeded()?;
    // The shell remembers the lines that were typed.
    for figure in FIGURES.iter().filter(|figure| **figure != "dom0_heap_objects") {
        // What the first round brought stays for good, like a larger heap.
        let values = values(run.console(), figure);
        run.require(values.len() == ROUNDS, &format!("xl info shows {figure} {} times", values.len()))?;
        run.require(
            values[1..].iter().all(|value| *value == values[1]),
            &format!("{figure} became {}", values.join(", ")),
        )?;
    }
    recover_file_system(&root)?;
    check_file_system(&root)
}
