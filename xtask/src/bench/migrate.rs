//! `cargo xtask bench migrate`: what dirty tracking costs a guest, and what it takes to move one to another machine.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest;
use crate::machine::{Machine, Module};
use crate::network;
use crate::plugin;
use crate::qemu::RunDirectory;
use crate::session::{Attach, Session};

use super::{counting_machine, run};

const PROGRAM: &str = "costs";
/// Pages that the program writes in a pass, and the markers around a pass.
const TOUCHED: u64 = 1000;
const MARKS: (u32, u32) = (180, 181);
const PASSES: u32 = 12;
const ROUNDS: u32 = 6;
/// The guest that is tracked, and the one that moves.
const TRACKED_MIB: u64 = 256;
const MOVED_MIB: u64 = 512;
/// What the guest that moves does: it writes and copies files in memory.
const LOAD: &str = "dd if=/dev/urandom of=/a bs=1M count=64; while :; do cp /a /b; md5sum /b; done";
const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// The most instructions for a page's first write in a round, and for each of the guest's frames that a round looks at.
const FIRST_WRITE_AIM: u64 = 400;
const SCAN_AIM: u64 = 8;
const PATIENCE: Duration = Duration::from_secs(600);

/// Measures and prints; false when a figure is missing.
///
/// # Errors
/// A package cannot be fetched, a build failed, or a machine did not run to its end.
pub(super) fn bench() -> Result<bool> {
    let directory = RunDirectory::new()?;
    let modules = modules(&directory)?;
    tracking(&directory, &modules)?;
    println!();
    moving(&modules)?;
    Ok(true)
}

/// Debian with the program in its ramdisk.
fn modules(directory: &RunDirectory) -> Result<Vec<Module>> {
    let bytes = guest::ramdisk_with(&guest::debian_boot()?, PROGRAM, &[])?;
    let ramdisk = directory.file("ramdisk");
    std::fs::write(&ramdisk, bytes)?;
    let mut modules = guest::modules();
    let module = modules.iter_mut().find(|module| module.name == "debian-initrd");
    module.context("the guest has no ramdisk")?.path = ramdisk;
    Ok(modules)
}

fn create(mib: u64, command: &str) -> String {
    format!("xl create /boot/debian-ramdisk.cfg name='deb' memory={mib} extra='quiet run=\"{command}\"'")
}

/// The first write of a page in a round, and a round itself.
fn tracking(directory: &RunDirectory, modules: &[Module]) -> Result<()> {
    let file = directory.file("counts");
    let mut machine = counting_machine();
    machine.modules.extend_from_slice(modules);
    machine.qemu_arguments.extend(plugin::arguments(&file, None)?);
    let lines = [
        create(TRACKED_MIB, &format!("{PROGRAM} touch {PASSES}")),
        // Until the program is there.
        "sleep 8".into(),
        format!("xl dirty-rate deb {ROUNDS}"),
        "xl destroy deb".into(),
    ];
    machine.script = Some(lines.into());
    let console = run(&machine)?;
    let marks = plugin::marks(&std::fs::read_to_string(&file)?);
    let passes: Vec<_> = marks
        .windows(2)
        .filter(|pair| (pair[0].0, pair[1].0) == MARKS)
        .map(|pair| pair[1].1.since(&pair[0].1))
        .collect();
    let [free, tracked] = [
        passes.iter().min_by_key(|counts| counts.total()).context("the guest wrote no pages")?,
        passes.iter().max_by_key(|counts| counts.total()).context("the guest wrote no pages")?,
    ];
    let first = (tracked.total() - free.total()) / TOUCHED;
    let found: Vec<u64> = console
        .lines()
        .filter_map(|line| line.split_once("found in ")?.1.strip_suffix(" us")?.parse().ok())
        .collect();
    let round = super::rounds::median(found).context("no round was shown")?;
    let frames = TRACKED_MIB << 8;
    println!("| of dirty tracking, in instructions | microhv | aim |");
    println!("| --- | --- | --- |");
    println!(
        "| first write of a page in a round, beside what the write takes otherwise | {first} | {FIRST_WRITE_AIM} |"
    );
    println!(
        "| of these in the hypervisor | {} | |",
        (tracked.hypervisor - free.hypervisor.min(tracked.hypervisor)) / TOUCHED
    );
    println!(
        "| a round over {TRACKED_MIB} MiB of Debian, for each of its frames | {:.1} | {SCAN_AIM} |",
        (round * 1000) as f64 / frames as f64
    );
    Ok(())
}

/// A machine of the two, at its prompt.
struct End {
    session: Session,
    seen: usize,
}

impl End {
    fn start(index: usize, port: u16, modules: &[Module]) -> Result<Self> {
        let mut machine = Machine {
            modules: modules.to_vec(),
            memory_mib: 1024,
            timeout: Some(PATIENCE),
            ..Machine::default()
        };
        network::wire(&mut machine, index, port);
        let mut end = Self { session: Session::start(&machine, Attach::Program)?, seen: 0 };
        end.expect("dom0# ")?;
        end.line(&format!("net uplink {}/24", ADDRESSES[index]))?;
        end.expect("dom0# ")?;
        Ok(end)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        self.session.send(&format!("{line}\r"))
    }

    fn expect(&mut self, text: &str) -> Result<String> {
        let end = self.session.expect(text, self.seen, PATIENCE)?;
        let bytes = self.session.output_bytes(self.seen..end);
        self.seen = end;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A number that stands between two texts in a line.
fn between(line: &str, before: &str, behind: &str) -> Option<u64> {
    line.split_once(before)?.1.split_once(behind)?.0.trim().parse().ok()
}

/// What a migration showed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Moved {
    rounds: u64,
    /// Of all rounds and the last pages.
    pages: u64,
    faults: u64,
    /// What was sent of the suspended guest: pages, KiB and milliseconds.
    last: (u64, u64, u64),
    downtime_ms: u64,
}

impl Moved {
    fn read(console: &str) -> Option<Self> {
        let mut moved = Self::default();
        for line in console.lines().filter_map(|line| Some(line.split_once("migration sender: ")?.1)) {
            if line.starts_with("round ") {
                moved.rounds += 1;
                moved.pages += between(line, ": ", " pages")?;
                moved.faults += between(line, "meanwhile, ", " faults")?;
            } else if line.starts_with("suspended: ") {
                let pages = between(line, "suspended: ", " pages")?;
                moved.pages += pages;
                moved.last = (pages, between(line, "pages, ", " KiB")?, between(line, "in ", " ms")?);
            } else if line.contains("between suspend and start") {
                moved.downtime_ms = between(line, "sent, ", " ms")?;
            }
        }
        (moved.rounds > 0 && moved.last.0 > 0).then_some(moved)
    }
}

/// A guest that works, from one machine to another.
fn moving(modules: &[Module]) -> Result<()> {
    // The port is free again once the listener is gone.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut source = End::start(0, port, modules)?;
    let mut target = End::start(1, port, modules)?;
    source.line(&create(MOVED_MIB, LOAD))?;
    source.expect("run: dd")?;
    source.expect(" /b")?;
    target.line("xl migrate-receive")?;
    target.expect("waiting at port")?;
    source.line(&format!("xl migrate deb {}", ADDRESSES[1]))?;
    let console = source.expect("Migration successful.")?;
    target.expect("deb is here, running")?;
    target.expect(" /b")?;
    let moved = Moved::read(&console).context("the source showed no rounds")?;
    let pages = MOVED_MIB << 8;
    ensure!(moved.pages >= pages, "fewer pages were sent than the guest has: {moved:?}");
    let (last, kib, ms) = moved.last;
    println!("| `xl migrate` of Debian with {MOVED_MIB} MiB that writes 64 MiB again and again | microhv |");
    println!("| --- | --- |");
    println!("| rounds | {} |", moved.rounds);
    println!("| pages sent, of those that it has | {:.2} |", moved.pages as f64 / pages as f64);
    println!(
        "| faults at first writes, for each page sent | {:.2} |",
        moved.faults as f64 / moved.pages as f64
    );
    println!("| pages sent while it was suspended | {last}, {kib} KiB |");
    println!(
        "| downtime, of the time that these pages took | {:.2} |",
        moved.downtime_ms as f64 / ms.max(1) as f64
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_migration_showed_is_read() {
        let console = "migration target: 192.0.2.2:8002\n\
            migration sender: round 1: 100 pages, 400 KiB in 25 ms; 7 written meanwhile, 5 faults\n\
            (d1 deb) x\nmigration sender: round 2: 7 pages, 28 KiB in 2 ms; 3 written meanwhile, 1 faults\n\
            migration sender: suspended: 3 pages, 12 KiB in 4 ms\n\
            migration sender: 1 MiB sent, 9 ms between suspend and start\n";
        let moved = Moved { rounds: 2, pages: 110, faults: 6, last: (3, 12, 4), downtime_ms: 9 };
        assert_eq!(Moved::read(console), Some(moved));
        assert_eq!(Moved::read("migration sender: round 1: x pages"), None);
        assert_eq!(Moved::read(""), None);
    }
}
