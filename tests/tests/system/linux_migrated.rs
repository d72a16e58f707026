//! Debian moves between two machines that share a disk, and what goes wrong on the way.

use std::net::TcpListener;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use tests::linux::{command, machine_with, no_complaints, program};
use tests::{Live, Scratch};
use xtask::network;

use crate::Case;

const MIB: usize = 1024 * 1024;
const WATCH: &[u8] = include_bytes!("linux_saved/watch.sh");
const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// How often the guest goes there and back.
const TIMES: usize = 3;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_migrated:
        debian_moves_between_two_machines_and_back,
        a_migration_that_fails_leaves_the_guest_running,
    ]);
    for case in &mut cases {
        // They fetch Debian's packages first.
        case.soak = true;
    }
    cases
}

static ALONE: Mutex<()> = Mutex::new(());

/// Two machines on one wire, with one disk.
struct Pair {
    _alone: MutexGuard<'static, ()>,
    scratch: Scratch,
    port: u16,
    name: String,
}

impl Pair {
    fn new(name: &str) -> Result<Self> {
        // A pair is as much as the host carries.
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = Scratch::new(name)?;
        scratch.disk("shared.img", 16 * MIB, 5)?;
        // The port is free again once the listener is gone.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self { _alone, scratch, port, name: name.to_string() })
    }

    /// Machine 0 or 1, at its prompt. Machine 0 is first.
    fn start(&self, index: usize, memory_mib: u32) -> Result<Live> {
        let keeper = program(&self.scratch, "keeper")?;
        let programs = [("watch.sh", WATCH), ("keeper", &keeper[..])];
        let machine = machine_with(&format!("{}-{index}", self.name), &self.scratch, &programs)?;
        let drive = format!(
            "if=none,id=shared,format=raw,file.locking=off,file={}",
            self.scratch.path("shared.img").display()
        );
        let device = "virtio-blk-pci,drive=shared,disable-legacy=on";
        let mut machine = machine
            .with(|machine| {
                (machine.cpus, machine.memory_mib) = (2, memory_mib);
                network::wire(machine, index, self.port);
                // QEMU locks the shared disk for nobody.
                machine.qemu_arguments.extend(["-drive", &drive, "-device", device].map(Into::into));
            })
            .seconds(900)
            .start()?;
        machine.expect("dom0# ", 60)?;
        command(&mut machine, &format!("net uplink {}/24", ADDRESSES[index]), 20)?;
        Ok(machine)
    }
}

fn create(machine: &mut Live, vcpus: u32, mib: u32) -> Result<()> {
    let line = format!(
        "xl create /boot/debian-ramdisk.cfg name='deb' memory=256 vcpus={vcpus} vif=['bridge=xenbr0'] \
         disk=['phy:/dev/vda,xvda,w'] extra='quiet run=\"/keeper {mib} 3 & sh /watch.sh 10.88.0.1\"'"
    );
    command(machine, &line, 60)?;
    rounds(machine, 2)
}

/// Waits until the guest has been round `count` times more, and has found its memory `count` times.
fn rounds(machine: &mut Live, count: u32) -> Result<()> {
    for _ in 0..count {
        machine.expect(" CPUs", 180)?;
        machine.expect("keeper: round ", 180)?;
    }
    Ok(())
}

/// The machine's end, without a complaint of the guest's.
fn end(mut machine: Live) -> Result<String> {
    machine.type_line("poweroff")?;
    let run = machine.finish().succeeded()?;
    let wrong = run.console().lines().find(|line| line.contains("WRONG"));
    run.require(wrong.is_none(), &format!("the guest said {wrong:?}"))?;
    no_complaints(&run)?;
    Ok(run.console().to_string())
}

fn numbers(console: &str, before: &str) -> Vec<u32> {
    let number = |line: &str| {
        let text = line.split_once(before)?.1;
        text.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
    };
    console.lines().filter_map(number).collect()
}

fn debian_moves_between_two_machines_and_back() -> Result<()> {
    let pair = Pair::new("linux-migrated")?;
    let mut machines = [pair.start(0, 768)?, pair.start(1, 768)?];
    create(&mut machines[0], 4, 24)?;
    for time in 0..2 * TIMES {
        let (from, to) = (time % 2, 1 - time % 2);
        machines[to].type_line("xl migrate-receive")?;
        machines[to].expect("waiting at port 8002", 20)?;
        let said = command(&mut machines[from], &format!("xl migrate deb {}", ADDRESSES[to]), 300)?;
        ensure!(said.contains("Migration successful."), "{said}");
        ensure!(said.contains("round 2: "), "one round alone: {said}");
        machines[to].expect("deb is here, running", 60)?;
        ensure!(!command(&mut machines[from], "xl list", 20)?.contains("deb "), "it is at both");
        rounds(&mut machines[to], 2)?;
    }
    let [mut first, second] = machines;
    command(&mut first, "xl destroy deb", 60)?;
    let consoles = [end(first)?, end(second)?];
    // Each round of the guest's is on one of the consoles, once; but what it says in the moment of a move may be lost with the ring.
    let mut all: Vec<u32> = consoles.iter().flat_map(|console| numbers(console, "keeper: round ")).collect();
    all.sort_unstable();
    let twice = all.windows(2).find(|pair| pair[0] == pair[1]);
    ensure!(twice.is_none(), "the guest was at two places: round {twice:?}");
    let last = all.last().copied().context("no rounds")? as usize;
    ensure!(all.len() + 2 * TIMES >= last, "{} of {last} rounds were seen", all.len());
    Ok(())
}

fn a_migration_that_fails_leaves_the_guest_running() -> Result<()> {
    let pair = Pair::new("linux-migrated-failed")?;
    let mut source = pair.start(0, 768)?;
    create(&mut source, 2, 24)?;
    // Nobody is there, or nobody waits.
    let said = command(&mut source, "try xl migrate deb 192.0.2.2", 90)?;
    ensure!(said.contains("192.0.2.2:8002: the peer refused the connection, or did not answer"), "{said}");
    let mut target = pair.start(1, 256)?;
    let said = command(&mut source, "try xl migrate deb 192.0.2.2", 60)?;
    ensure!(said.contains("192.0.2.2:8002: the peer refused the connection, or did not answer"), "{said}");
    rounds(&mut source, 1)?;
    // The target has too little memory.
    target.type_line("try xl migrate-receive")?;
    target.expect("waiting at port 8002", 20)?;
    let said = command(&mut source, "try xl migrate deb 192.0.2.2", 300)?;
    ensure!(said.contains("the target does not take the domain") && said.contains("256 MiB"), "{said}");
    let said = target.expect("dom0# ", 60)?;
    ensure!(said.contains("256 MiB"), "{said}");
    rounds(&mut source, 2)?;
    drop(target);

    // Somebody interrupts the source, and then the target, amid the first round.
    let mut target = pair.start(1, 768)?;
    for who in 0..2 {
        target.type_line("try xl migrate-receive")?;
        target.expect("waiting at port 8002", 20)?;
        source.type_line("try xl migrate deb 192.0.2.2")?;
        target.expect("sends", 60)?;
        let machine = if who == 0 { &mut source } else { &mut target };
        machine.type_text("\u{3}")?;
        command(&mut target, "xl list", 60)?;
        ensure!(!command(&mut target, "xl list", 20)?.contains("deb "), "something is left");
        rounds(&mut source, 2)?;
    }
    // The target dies.
    target.type_line("try xl migrate-receive")?;
    target.expect("waiting at port 8002", 20)?;
    source.type_line("try xl migrate deb 192.0.2.2")?;
    target.expect("sends", 60)?;
    drop(target);
    source.expect("the peer broke the connection, or has not answered", 120)?;
    rounds(&mut source, 2)?;
    command(&mut source, "xl destroy deb", 60)?;
    end(source)?;
    Ok(())
}
