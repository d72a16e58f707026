//! Root of a Linux guest asks for everything that a guest must not have, while another Linux guest reads its disk.

use std::path::Path;

use anyhow::Result;
use tests::linux::{COMPLAINTS, command};
use tests::scratch::sha256;
use tests::{Live, Machine, Run, Scratch};

use crate::Case;

const MIB: usize = 1 << 20;
/// The program, by the shell of the ramdisk.
const PROGRAM: &str = "insmod /modules/xen-privcmd.ko unrestricted=1 && hostile-linux";
/// What the attacker's kernel has to do after the attack: memory from most of its pages, and processes.
/// Without quotes: the kernel's command line has them around it.
const WORK: &str = "mkdir /fill && mount -t tmpfs -o size=160m none /fill && \
                    a=$(head -c 140m /dev/zero | tee /fill/a | md5sum) && b=$(md5sum < /fill/a) && \
                    [ ${a%% *} = ${b%% *} ] && rm /fill/a && for n in $(seq 200); do sh -c true || exit 1; done";
/// How often the neighbour reads its disk.
const ROUNDS: usize = 12;
/// Guests that make random calls, one after the other.
const WILD: usize = 3;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_hostile:
        linux_root_is_refused_and_the_neighbour_undisturbed,
        random_calls_of_linux_root_harm_its_own_guest_alone,
    ]);
    for case in &mut cases {
        // They fetch Debian's packages first.
        case.soak = true;
    }
    cases
}

/// A machine with the program in a ramdisk, and `disk` for the neighbour.
fn machine(name: &str, scratch: &Scratch, disk: &Path) -> Result<Machine> {
    let kernel = xtask::guest::debian_boot()?;
    let ramdisk = xtask::guest::ramdisk_with(&kernel, "hostile-linux", &["xen-privcmd"])?;
    let ramdisk = scratch.file("hostile-initrd", &ramdisk)?;
    let machine = Machine::new(name).disk(disk).module(&ramdisk, "hostile-initrd");
    Ok(machine.with(|machine| machine.modules.extend(xtask::guest::modules())))
}

/// Creates the guest that reads its disk, over and over.
fn neighbour() -> String {
    let command = format!("for n in $(seq {ROUNDS}); do sha256sum /dev/xvda; done");
    format!(
        "xl create /boot/debian-ramdisk.cfg name='neighbour' disk=['phy:/dev/vda,xvda,r'] extra=\"run={command}\""
    )
}

/// Creates the guest that attacks, with the program's words and what its shell does then.
fn attacker(words: &str) -> String {
    format!(
        "xl create /boot/debian-ramdisk.cfg name='attacker' ramdisk='/boot/hostile-initrd' \
         extra='run=\"{PROGRAM} {words}\"'"
    )
}

/// The frame table as the hypervisor walks it, in a machine at dom0's prompt.
fn check_frame_table(machine: &mut Live) -> Result<()> {
    machine.type_text("\x01\x01\x01M")?;
    machine.expect("frame table: 0 differences", 60)?;
    machine.type_text("\x01\x01\x01")
}

/// What a guest and its kernel said.
fn said<'a>(run: &'a Run, name: &str) -> Vec<&'a str> {
    let mark = format!("{name}) ");
    run.console().lines().filter(|line| line.contains(&mark)).collect()
}

/// A guest's kernel saw nothing wrong.
fn is_well(run: &Run, name: &str) -> Result<()> {
    let said = said(run, name);
    let complaint = said.iter().find(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint)));
    run.require(complaint.is_none(), &format!("the kernel of {name} said {complaint:?}"))
}

/// The neighbour read the same each time, and its kernel saw nothing.
fn undisturbed(run: &Run, sum: &str) -> Result<()> {
    let read = said(run, "neighbour").iter().filter(|line| line.contains(sum)).count();
    run.require(read == ROUNDS, &format!("the neighbour read its disk {read} times as it is"))?;
    is_well(run, "neighbour")
}

/// Not even the kernel of the attacker takes harm: the cases leave its memory as they found it.
fn linux_root_is_refused_and_the_neighbour_undisturbed() -> Result<()> {
    let scratch = Scratch::new("linux-hostile")?;
    let disk = scratch.disk("neighbour", 64 * MIB, 2)?;
    let mut machine = machine("linux-hostile", &scratch, &disk)?.seconds(900).start()?;
    machine.expect("dom0# ", 60)?;
    command(&mut machine, &neighbour(), 60)?;
    command(&mut machine, &attacker(&format!("&& {WORK}")), 60)?;
    machine.expect("attacker) hostile: PASS ", 300)?;
    machine.expect("attacker) run: exit status 0", 300)?;
    command(&mut machine, "wait attacker", 60)?;
    is_well(&end(machine, &sha256(&disk)?)?, "attacker")
}

/// When the guest that attacked is gone: waits for its neighbour, and looks at what is left.
fn end(mut machine: Live, sum: &str) -> Result<Run> {
    check_frame_table(&mut machine)?;
    command(&mut machine, "wait neighbour", 300)?;
    let sees = command(&mut machine, "xl list", 60)?;
    anyhow::ensure!(!sees.contains("attacker") && !sees.contains("neighbour"), "what is left: {sees}");
    machine.type_line("poweroff")?;
    let run = machine.finish().succeeded()?;
    undisturbed(&run, sum)?;
    Ok(run)
}

/// Each guest's kernel may die of what its root does; nothing else may.
fn random_calls_of_linux_root_harm_its_own_guest_alone() -> Result<()> {
    let scratch = Scratch::new("linux-wild")?;
    let disk = scratch.disk("neighbour", 64 * MIB, 2)?;
    let mut machine = machine("linux-wild", &scratch, &disk)?.seconds(900).start()?;
    machine.expect("dom0# ", 60)?;
    command(&mut machine, &neighbour(), 60)?;
    for _ in 0..WILD {
        command(&mut machine, &attacker("wild"), 60)?;
        machine.expect("attacker) hostile: group wild", 120)?;
        // It powers off, crashes, or hangs for good: that is its own affair.
        if command(&mut machine, "wait attacker", 60).is_err() {
            machine.type_text("\x03")?;
        }
        command(&mut machine, "xl destroy attacker", 60)?;
        check_frame_table(&mut machine)?;
    }
    end(machine, &sha256(&disk)?)?;
    Ok(())
}
