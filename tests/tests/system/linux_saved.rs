//! Debian saved to a disk and restored, with its disk and its network, and what goes wrong on the way.

use anyhow::{Context, Result, ensure};
use tests::linux::{command, machine_with, no_complaints};
use tests::{Live, Run, Scratch};
use xtask::machine::Disk;
use xtask::session::Outcome;
use xtask::xen::{self, Options};

use crate::Case;

const MIB: usize = 1024 * 1024;
const WATCH: &[u8] = include_bytes!("linux_saved/watch.sh");
/// How often the guest is saved and restored.
const TIMES: usize = 5;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_saved:
        debian_is_saved_and_restored_with_its_disk_and_its_network,
        a_guest_is_saved_while_it_runs_and_goes_back_to_that,
        a_save_that_fails_leaves_the_guest_running,
        a_damaged_stream_leaves_nothing,
        debians_xen_saves_and_microhv_restores_and_back,
    ]);
    for case in &mut cases {
        // They fetch Debian's packages first.
        case.soak = true;
    }
    cases
}

/// A machine with a disk for streams, `/dev/vda` of `mib` MiB, and one for the guest, at its prompt.
fn start(name: &str, scratch: &Scratch, mib: usize) -> Result<Live> {
    let streams = scratch.file("streams.img", &[])?;
    std::fs::File::options().write(true).open(&streams)?.set_len((mib * MIB) as u64)?;
    let disk = scratch.disk("d.img", 16 * MIB, 5)?;
    let machine = machine_with(name, scratch, &[("watch.sh", WATCH)])?;
    let mut machine =
        machine.with(|machine| machine.cpus = 2).disk(&streams).disk(&disk).seconds(900).start()?;
    machine.expect("dom0# ", 60)?;
    Ok(machine)
}

fn create(machine: &mut Live) -> Result<()> {
    let line = "xl create /boot/debian-ramdisk.cfg name='deb' memory=192 vcpus=4 vif=['bridge=xenbr0'] \
                disk=['phy:/dev/vdb,xvda,w'] extra='quiet run=\"sh /watch.sh 10.88.0.1\"'";
    command(machine, line, 60)?;
    rounds(machine, 2)
}

/// Waits until the guest has been round `count` times more.
fn rounds(machine: &mut Live, count: u32) -> Result<()> {
    for _ in 0..count {
        machine.expect("round ", 120)?;
        machine.expect(" CPUs", 20)?;
    }
    Ok(())
}

/// The machine's end: no round of the guest's is lost or there twice.
fn end(machine: Live) -> Result<()> {
    let (run, all) = ended(machine)?;
    let follow = all.windows(2).all(|pair| pair[1] == pair[0] + 1);
    run.require(follow && all.len() > 3, &format!("the rounds were {all:?}"))
}

/// The machine's end, without a complaint of the guest's: what the console said, and the guest's rounds.
fn ended(mut machine: Live) -> Result<(Run, Vec<u32>)> {
    command(&mut machine, "xl destroy deb", 60)?;
    machine.type_line("poweroff")?;
    let run = machine.finish().succeeded()?;
    let wrong = run.console().lines().find(|line| line.contains("WRONG"));
    run.require(wrong.is_none(), &format!("the guest said {wrong:?}"))?;
    let all: Vec<u32> = run
        .console()
        .lines()
        .filter_map(|line| line.split("round ").nth(1)?.split_once(", 4 CPUs")?.0.parse().ok())
        .collect();
    no_complaints(&run)?;
    Ok((run, all))
}

fn debian_is_saved_and_restored_with_its_disk_and_its_network() -> Result<()> {
    let scratch = Scratch::new("linux-saved")?;
    let mut machine = start("linux-saved", &scratch, 256)?;
    create(&mut machine)?;
    command(&mut machine, "xl save -c deb /dev/vda", 120)?;
    rounds(&mut machine, 2)?;
    for _ in 0..TIMES {
        command(&mut machine, "xl save deb /dev/vda", 120)?;
        let list = command(&mut machine, "xl list", 20)?;
        ensure!(!list.contains("deb"), "it is still there: {list}");
        command(&mut machine, "xl restore /dev/vda", 120)?;
        rounds(&mut machine, 2)?;
    }
    command(&mut machine, "xl save -p deb /dev/vda", 120)?;
    let list = command(&mut machine, "xl list", 20)?;
    let line = list.lines().find(|line| line.starts_with("deb")).context("it is gone")?;
    ensure!(line.contains("--p---"), "it is not paused: {line}");
    command(&mut machine, "xl unpause deb", 20)?;
    rounds(&mut machine, 1)?;
    end(machine)
}

fn a_guest_is_saved_while_it_runs_and_goes_back_to_that() -> Result<()> {
    let scratch = Scratch::new("linux-saved-live")?;
    let mut machine = start("linux-saved-live", &scratch, 512)?;
    create(&mut machine)?;
    command(&mut machine, "xl save -c deb /dev/vda", 240)?;
    for _ in 0..2 {
        rounds(&mut machine, 3)?;
        command(&mut machine, "xl destroy deb", 60)?;
        command(&mut machine, "xl restore /dev/vda", 120)?;
    }
    rounds(&mut machine, 3)?;
    let (run, all) = ended(machine)?;
    // The rounds behind the saved one are there three times.
    let last = all.iter().max().copied().context("no rounds")?;
    let back = all.windows(2).filter(|pair| pair[1] <= pair[0]).count();
    run.require(back == 2 && last as usize + 4 <= all.len(), &format!("the rounds were {all:?}"))
}

fn a_save_that_fails_leaves_the_guest_running() -> Result<()> {
    let scratch = Scratch::new("linux-save-fails")?;
    let mut machine = start("linux-save-fails", &scratch, 64)?;
    create(&mut machine)?;
    for (line, why) in [
        ("xl save deb /dev/vda", "the disk has 64 MiB, and deb needs up to 196"),
        ("xl save deb /dev/vdb", "deb has this disk"),
        ("xl save deb /dev/vdx", "/dev/vdx: no such disk"),
        ("xl save nobody /dev/vda", "nobody: no such domain"),
        ("xl save 0 /dev/vda", "that is dom0 itself"),
        ("xl save -c -p deb /dev/vda", "exclude each other"),
        ("xl restore /dev/vda", "/dev/vda: header at byte 0: this is no saved domain of xl's"),
        ("xl restore /boot/debian-vmlinuz", "this is no saved domain of xl's"),
        ("xl restore /boot/nothing", "no such disk and no such file"),
    ] {
        machine.type_line(line)?;
        machine.expect(why, 30).with_context(|| line.to_string())?;
        machine.expect("dom0# ", 30)?;
    }
    rounds(&mut machine, 2)?;
    end(machine)
}

/// The bytes of the machine's memory that are free, as `xl info` has them.
fn free(machine: &mut Live) -> Result<u64> {
    let info = command(machine, "xl info", 20)?;
    let line = info.lines().find_map(|line| line.strip_prefix("free_memory")).context("no free_memory")?;
    Ok(line.trim_start_matches([' ', ':']).trim().parse()?)
}

/// Turns a byte of a file over.
fn turn(path: &std::path::Path, at: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[!byte[0]], at)?;
    Ok(())
}

fn a_damaged_stream_leaves_nothing() -> Result<()> {
    let scratch = Scratch::new("linux-damaged")?;
    let mut machine = start("linux-damaged", &scratch, 256)?;
    create(&mut machine)?;
    command(&mut machine, "xl save deb /dev/vda", 120)?;
    let before = free(&mut machine)?;
    // In the header, in a vCPU's or the first records, in memory, and near the end.
    for (at, told) in [(3, "header at byte 0"), (1200, "record"), (90 << 20, "record"), (180 << 20, "record")]
    {
        turn(&scratch.path("streams.img"), at)?;
        machine.type_line("xl restore /dev/vda")?;
        let text = machine.expect("error: /dev/vda: ", 120)? + &machine.expect("\r", 20)?;
        machine.expect("dom0# ", 30)?;
        ensure!(text.contains(told), "byte {at}: {text}");
        let list = command(&mut machine, "xl list", 20)?;
        ensure!(!list.contains("deb"), "a domain is left: {list}");
        let after = free(&mut machine)?;
        ensure!(after == before, "{before} MiB were free, and {after} are");
        turn(&scratch.path("streams.img"), at)?;
    }
    command(&mut machine, "xl restore /dev/vda", 120)?;
    rounds(&mut machine, 2)?;
    end(machine)
}

/// Runs a script under Debian's Xen with the stream's disk, `/dev/disk/by-id/virtio-streams`.
fn under_xen(scratch: &Scratch, script: &str) -> Result<String> {
    let streams = Disk { id: Some("streams".into()), ..Disk::file(&scratch.path("streams.img")) };
    let options = Options { disks: vec![streams], memory_mib: 2048, ..Options::default() };
    let output = xen::prepare()?.run(script, &xtask::guest::modules(), &options)?;
    ensure!(output.outcome == Outcome::Succeeded, "it ended with {:?}: {}", output.outcome, output.console);
    Ok(output.console)
}

/// The guest counts from one machine to the next.
fn debians_xen_saves_and_microhv_restores_and_back() -> Result<()> {
    const PLACE: &str = "/dev/disk/by-id/virtio-streams";
    let scratch = Scratch::new("linux-xen-saved")?;
    let streams = scratch.file("streams.img", &[])?;
    std::fs::File::options().write(true).open(&streams)?.set_len((128 * MIB) as u64)?;
    let count = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 1; done";
    let config = format!(
        "name='deb'\ntype='pv'\nkernel='debian-vmlinuz'\nramdisk='debian-initrd'\nmemory=96\nvcpus=2\n\
         extra='quiet run=\"{count}\"'\n"
    );
    let wait = |tick: u32| {
        format!("until grep -q 'tick {tick}[^0-9]*$' /var/log/xen/console/guest-deb.log; do sleep 1; done\n")
    };
    let save = format!("xl save deb /tmp/s && dd if=/tmp/s of={PLACE} bs=1M conv=fsync");
    under_xen(
        &scratch,
        &format!("cat > d.cfg <<'E'\n{config}E\nxl create d.cfg || exit 9\n{}{save}", wait(3)),
    )?;

    xtask::guest::debian_ramdisk()?;
    let mut machine = tests::Machine::new("linux-xen-saved").disk(&streams).seconds(300).start()?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("xl restore /dev/vda")?;
    machine.expect("tick 7", 120)?;
    command(&mut machine, "xl save deb /dev/vda", 120)?;
    machine.type_line("poweroff")?;
    let run = machine.finish().succeeded()?;
    run.require(!run.console().contains("tick 1\r"), "the guest began anew")?;
    no_complaints(&run)?;

    let script = format!("dd if={PLACE} of=/root/s bs=1M && xl restore /root/s || exit 9\n{}", wait(15));
    let console = under_xen(&scratch, &format!("{script}xl list; cat /var/log/xen/console/guest-deb.log"))?;
    ensure!(!console.contains("tick 6\r"), "the guest began anew: {console}");
    Ok(())
}
