//! Debian's own kernel as a guest: its frontends, and its reading of the ABI, against ours.

use anyhow::Result;
use tests::Scratch;
use tests::linux::{machine, machine_with, no_complaints};
use tests::scratch::sha256;

use crate::Case;

const MIB: usize = 1024 * 1024;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux:
        debian_reaches_userspace_without_a_complaint,
        debian_tells_its_commands_status,
        debian_reads_and_writes_its_disk,
        debian_brings_up_four_vcpus,
        debian_has_an_address_and_knows_names,
        debian_sees_what_its_configuration_leaves_of_the_cpu,
    ]);
    for case in &mut cases {
        // They fetch Debian's packages first.
        case.soak = true;
    }
    cases
}

fn debian_reaches_userspace_without_a_complaint() -> Result<()> {
    let run = machine("debian-ramdisk")?
        .line("xl create -c /boot/debian-ramdisk.cfg")
        .run()?
        .succeeded()?
        .says("Hypervisor detected: Xen PV")?
        .says("Using FIFO-based ABI")?
        .says("userspace reached: Linux ")?;
    no_complaints(&run)
}

fn debian_tells_its_commands_status() -> Result<()> {
    let run = machine("debian-command")?
        .line("xl create -c /boot/debian-ramdisk.cfg extra=\"run=echo one; (exit 7)\"")
        .run()?
        .succeeded()?
        .says("run: exit status 7")?;
    no_complaints(&run)
}

/// The kernel's blkfront and ours read the same bytes; what it writes is what the file then holds.
fn debian_reads_and_writes_its_disk() -> Result<()> {
    let scratch = Scratch::new("debian-disk")?;
    let disk = scratch.disk("d.img", 16 * MIB, 5)?;
    let before = sha256(&disk)?;
    let command = "sha256sum /dev/xvda && dd if=/dev/zero of=/dev/xvda bs=1M seek=4 count=8 conv=fsync";
    let run = machine("debian-disk")?
        .disk(&disk)
        .line(&format!(
            "xl create -c /boot/debian-ramdisk.cfg disk=['phy:/dev/vda,xvda,w'] extra=\"run={command}\""
        ))
        .run()?
        .succeeded()?
        .says(&before)?
        .says("run: exit status 0")?;
    no_complaints(&run)?;
    let bytes = std::fs::read(&disk)?;
    run.require(bytes[4 * MIB..12 * MIB].iter().all(|byte| *byte == 0), "what it wrote is not in the file")?;
    let same = std::fs::read(scratch.disk("same.img", 16 * MIB, 5)?)?;
    let kept = bytes[..4 * MIB] == same[..4 * MIB] && bytes[12 * MIB..] == same[12 * MIB..];
    run.require(kept, "bytes beside what it wrote are changed")
}

/// More vCPUs than the machine has CPUs: each comes up, is sent interrupts by the others, and runs processes.
fn debian_brings_up_four_vcpus() -> Result<()> {
    let command = "for cpu in 0 1 2 3; do taskset -c $cpu true || exit 9; done; nproc";
    let run = machine("debian-vcpus")?
        .line(&format!("xl create -c /boot/debian-ramdisk.cfg vcpus=4 extra=\"run={command}\""))
        .run()?
        .succeeded()?
        .says("Brought up 1 node, 4 CPUs")?
        .says("run: exit status 0")?;
    no_complaints(&run)
}

/// dom0's DHCP server gives the address, dom0's name server knows the other guest, and that guest answers: a ping, and its page
/// over TCP. netback, which takes nothing that the ABI does not allow, finds no fault with Debian's frontend.
fn debian_has_an_address_and_knows_names() -> Result<()> {
    // A script, since Linux takes no more than 32 words that it does not know.
    let script = b"set -e\nip -4 -o address show dev eth0\nping -c 3 10.88.0.1\nnslookup web.internal\n\
                   ping -c 1 web.internal\nwget -q -O - http://web.internal/ | grep -c doctype\n\
                   ping -c 5 -s 1472 10.88.0.1\nping -c 2 -s 1 10.88.0.1\n";
    let scratch = Scratch::new("debian-network")?;
    let run = machine_with("debian-network", &scratch, &[("network.sh", script)])?
        .line("xl create /boot/web.cfg")
        .line("xl create -c /boot/debian-ramdisk.cfg vif=['bridge=xenbr0'] extra=\"run=sh /network.sh\"")
        .line("xl destroy web")
        .run()?
        .succeeded()?
        .says("inet 10.88.0.")?
        .says("3 packets transmitted, 3 packets received, 0% packet loss")?
        .says("web.internal")?
        .says("1 packets transmitted, 1 packets received, 0% packet loss")?
        .says("run: exit status 0")?;
    for fault in ["bad requests: ", "disconnect: "] {
        run.require(!run.console().contains(fault), fault)?;
    }
    no_complaints(&run)
}

/// A feature that `cpuid=` hides is hidden from the kernel, with what builds on that feature.
fn debian_sees_what_its_configuration_leaves_of_the_cpu() -> Result<()> {
    let command = "grep -wq avx2 /proc/cpuinfo && echo avx2: yes || echo avx2: no; exit 0";
    let create = |cpuid: &str| {
        format!("xl create -c /boot/debian-ramdisk.cfg name=one {cpuid} extra=\"run={command}\"")
    };
    let run = machine("debian-cpuid")?
        .with(|machine| machine.cpu_model = "max".into())
        .line(&create(""))
        .line(&create("cpuid='host,avx=0,rdrand=x'"))
        .run()?
        .succeeded()?
        .says("avx2: yes")?
        .says("avx2: no")?;
    no_complaints(&run)
}
