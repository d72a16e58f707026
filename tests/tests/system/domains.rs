//! Domains: created by `xl`, with disks through blkfront and blkback, many at once, over and over.

use anyhow::Result;
use tests::scratch::sha256;
use tests::{Machine, Scratch};
use xtask::machine::Boot;

use crate::Case;

const MIB: usize = 1024 * 1024;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![domains:
        hello_runs_without_a_disk,
        hello_reads_its_disk_and_leaves_it_as_it_was,
        hello_reads_its_disk_when_grub_booted,
        hello_reads_a_read_only_disk,
        domains_and_vcpus_answer_each_other,
        eight_domains_at_once_each_on_its_own_disk,
        two_hundred_domains_leave_nothing_behind,
    ]);
    cases.push(Case {
        name: "domains::two_thousand_domains_leave_nothing_behind",
        soak: true,
        run: two_thousand_domains_leave_nothing_behind,
    });
    cases
}

fn hello_runs_without_a_disk() -> Result<()> {
    Machine::new("hello").line("xl create -c /boot/hello.cfg").run()?.succeeded()?.says("hello")?;
    Ok(())
}

/// Two domains find each other through xenstore, and send events there and back; so do two vCPUs of one.
fn domains_and_vcpus_answer_each_other() -> Result<()> {
    let mut run = Machine::new("company")
        .line("xl create /boot/bench.cfg name=\"server\" extra=\"echo=2\"")
        .line("xl create -c /boot/bench.cfg vcpus=2 extra=\"partner=1 ops=64\"")
        .line("xl destroy server")
        .run()?
        .succeeded()?;
    for name in
        ["vcpu_round_trip", "domain_round_trip", "evtchn_send_domain", "xenstore_read", "console_line"]
    {
        run = run.says(&format!("bench {name} "))?;
    }
    run.require(!run.console().contains(" skipped: "), "an operation was skipped")
}

/// The whole main job: the guest's checksum is the file's, and its write test restores what was there.
fn whole_disk(name: &str, boot: Boot) -> Result<()> {
    let scratch = Scratch::new(name)?;
    let disk = scratch.disk("d.img", 64 * MIB, 1)?;
    let sum = sha256(&disk)?;
    Machine::new(name)
        .disk(&disk)
        .boot(boot)
        .line("xl create -c /boot/hello.cfg disk=['phy:/dev/vda,xvda,w']")
        .run()?
        .succeeded()?
        .says(&sum)?
        .require(sha256(&disk)? == sum, "the disk is not as it was")
}

fn hello_reads_its_disk_and_leaves_it_as_it_was() -> Result<()> {
    whole_disk("disk-direct", Boot::Direct)
}

fn hello_reads_its_disk_when_grub_booted() -> Result<()> {
    whole_disk("disk-iso", Boot::Iso)
}

fn hello_reads_a_read_only_disk() -> Result<()> {
    let scratch = Scratch::new("read-only")?;
    let disk = scratch.disk("d.img", 4 * MIB, 2)?;
    let machine = Machine::new("read-only").read_only_disk(&disk);
    machine
        .line("xl create -c /boot/hello.cfg disk=['phy:/dev/vda,xvda,r']")
        .run()?
        .succeeded()?
        .says(&sha256(&disk)?)?;
    Ok(())
}

fn eight_domains_at_once_each_on_its_own_disk() -> Result<()> {
    const DOMAINS: u8 = 8;
    let scratch = Scratch::new("eight")?;
    let mut machine = Machine::new("eight");
    let mut sums = Vec::new();
    for index in 0..DOMAINS {
        // Not all of one size, so that a mix-up of disks cannot go unseen.
        let size = 4 * MIB + usize::from(index) * 4096;
        let disk = scratch.disk(&format!("d{index}.img"), size, u64::from(index))?;
        sums.push(sha256(&disk)?);
        let letter = char::from(b'a' + index);
        machine = machine.disk(&disk).line(&format!(
            "xl create /boot/hello.cfg name=\"h{index}\" disk=['phy:/dev/vd{letter},xvda,w']"
        ));
    }
    let mut run = machine.line("wait --all").run()?.succeeded()?;
    for sum in &sums {
        run = run.says(sum)?;
    }
    Ok(())
}

/// What must come back to where it was, from the `xl info` before and the one after.
pub(crate) const FIGURES: &[&str] = &[
    "free_frames",
    "domains",
    "dom0_heap_objects",
    "dom0_accounts",
    "dom0_tasks",
    "dom0_ports",
    "dom0_grants",
    "dom0_grants_busy",
    "consoles",
    "xenstore_nodes",
    "xenstore_watches",
    "xenstore_transactions",
    "xenstore_connections",
];

/// Every value of a figure, in the order of the console.
pub(crate) fn values(console: &str, figure: &str) -> Vec<String> {
    let value = |line: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == figure).then(|| value.trim().to_string())
    };
    console.lines().filter_map(value).collect()
}

/// Creates `times` domains after a few that warm up what stays for good, and compares the figures.
fn nothing_left_behind(name: &str, times: u32, seconds: u64) -> Result<()> {
    let scratch = Scratch::new(name)?;
    let disk = scratch.disk("d.img", MIB, 3)?;
    let create = "xl create -c /boot/hello.cfg disk=['phy:/dev/vda,xvda,w']";
    let mut machine = Machine::new(name)
        .seconds(seconds)
        .disk(&disk)
        .line(&format!("repeat 3 {create}"))
        .line("sleep 1") // what ends behind a domain has ended then
        .line("xl info")
        .line(&format!("repeat {times} {create}"))
        .line("sleep 1") // what ends behind a domain has ended then
        .line("xl info")
        .with(|machine| machine.keep = true)
        .start()?;
    for _ in 0..2 {
        machine.expect("xenstore_bytes", seconds)?;
    }
    machine.expect("dom0# ", 20)?;
    machine.type_text("\x01\x01\x01")?;
    machine.type_text("M")?;
    machine.expect("frame table: 0 differences", 60)?;
    machine.type_text("\x01\x01\x01")?;
    machine.type_line("poweroff")?;
    let run = machine.finish().succeeded()?;
    for figure in FIGURES {
        let values = values(run.console(), figure);
        run.require(values.len() == 2, &format!("xl info shows {figure} {} times", values.len()))?;
        run.require(values[0] == values[1], &format!("{figure} went from {} to {}", values[0], values[1]))?;
    }
    Ok(())
}

fn two_hundred_domains_leave_nothing_behind() -> Result<()> {
    nothing_left_behind("two-hundred", 200, 600)
}

fn two_thousand_domains_leave_nothing_behind() -> Result<()> {
    nothing_left_behind("two-thousand", 2000, 3600)
}
