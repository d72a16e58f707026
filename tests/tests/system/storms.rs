//! Storms on several CPUs: guests whose vCPUs use what another is just taking away, and domains with two vCPUs that come, run, are
//! paused, pinned, weighed and go, in an order that a seed gives.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::linux::command;
use tests::{Live, Machine, Scratch};

use crate::Case;
use crate::domains::{FIGURES, values};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![storms:
        neighbours_use_nothing_that_was_taken,
        domains_come_and_go_at_random,
        neighbours_use_nothing_that_was_taken_for_long,
        domains_come_and_go_at_random_for_long,
    ]);
    for case in &mut cases[2..] {
        case.soak = true;
    }
    cases
}

/// How long dom0 may take for a line: all CPUs are busy.
const ANSWER: u64 = 240;
/// `MICROHV_STORM_SEED=N` plays another game.
const SEED: &str = "MICROHV_STORM_SEED";

/// Two guests of three vCPUs each on machines of two and four CPUs.
fn neighbours(name: &str, seconds: u64) -> Result<()> {
    for cpus in [2, 4] {
        let guest = |name: &str, peer: u32| {
            format!(
                "xl create /boot/hostile.cfg name='{name}' memory=12 vcpus=3 extra='case=storm peer={peer} seconds={seconds}'"
            )
        };
        let mut machine = Machine::new(&format!("{name}-{cpus}"))
            .with(|machine| {
                machine.cpus = cpus;
                machine.hypervisor_arguments = "maxcpus=64".into();
            })
            .seconds(seconds * 2 + 240)
            .start()?;
        machine.expect("dom0# ", 60)?;
        command(&mut machine, &guest("left", 2), ANSWER)?;
        command(&mut machine, &guest("right", 1), ANSWER)?;
        command(&mut machine, "wait --all", seconds * 2 + 120)?;
        command(&mut machine, "xl debug-keys M", ANSWER)?;
        machine.type_line("poweroff")?;
        let run = machine.finish().succeeded()?;
        for guest in ["left", "right"] {
            let lines = run.console().lines().filter(|line| line.contains(&format!(" {guest}) storm: ")));
            let lines: Vec<&str> = lines.collect();
            run.require(
                lines.iter().any(|line| line.ends_with("storm: PASS")),
                &format!("{guest}: {lines:?}"),
            )?;
            // Each kind was done at least once.
            for kind in ["given back", "exchanged", "a table", "a gdt", "lent", "borrowed"] {
                let count = lines.iter().find_map(|line| line.split_once(&format!("storm: {kind}: ")));
                let done = count.and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok());
                run.require(done.is_some_and(|done| done > 0), &format!("{guest}: {kind}: {done:?}"))?;
            }
            lines.iter().for_each(|line| println!("{cpus} CPUs: {line}"));
        }
        run.says("frame table: 0 differences")?;
    }
    Ok(())
}

fn neighbours_use_nothing_that_was_taken() -> Result<()> {
    neighbours("storm", 15)
}

fn neighbours_use_nothing_that_was_taken_for_long() -> Result<()> {
    neighbours("storm-long", 600)
}

/// What the domains do: hypercalls about their tables and memory, events, sleeps and wakes, xenstore, disks.
const LOADS: [&str; 8] = [
    "case=storm",
    "case=hypercalls",
    "case=event-storm",
    "case=writes",
    "case=yields",
    "case=ring-of-reads",
    "case=subtrees",
    "case=storm seconds=5",
];

/// Domains that may be ending while all others are there.
const ENDING: usize = 8;

/// What a game has of each.
struct Size {
    domains: usize,
    steps_at_least: u32,
    time: Duration,
}

/// A machine on which a game is played.
struct Game {
    machine: Live,
    seed: u64,
    domains: usize,
    /// The domains that there are by their numbers in the game, and whether each is paused.
    alive: BTreeMap<usize, bool>,
    /// How often each thing was done.
    done: BTreeMap<&'static str, u32>,
}

impl Game {
    fn next(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.seed >> 33) as usize % below
    }

    fn run(&mut self, line: &str) -> Result<String> {
        command(&mut self.machine, line, ANSWER).with_context(|| line.to_string())
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn create(&mut self, n: usize, is_paused: bool) -> Result<()> {
        let load = LOADS[n % LOADS.len()];
        let disk = if load.contains("ring-of") { " disk=['phy:/dev/vda,xvda,r']" } else { "" };
        let words = format!("name='s{n}' memory=8 vcpus=2{disk} extra='{load}'");
        let pause = if is_paused { " -p" } else { "" };
        self.run(&format!("xl create{pause} /boot/hostile.cfg {words}"))?;
        self.alive.insert(n, is_paused);
        self.count("created");
        Ok(())
    }

    /// Has dom0 and the hypervisor make what they keep for good: room for as many domains and vCPUs as there ever are at one
    /// time, the lists that a load needs, and the lines that dom0 remembers.
    fn warm_up(&mut self) -> Result<()> {
        // Paused domains do not end by themselves, so all are there at one time.
        for n in 0..self.domains + ENDING {
            self.create(n, true)?;
        }
        self.destroy_all()?;
        for n in 0..self.domains {
            self.create(n, false)?;
        }
        for line in 0..100 {
            self.machine.type_line(&format!("line-{line}"))?;
        }
        self.destroy_all()
    }

    /// A domain that there is.
    fn any(&mut self) -> Option<usize> {
        let n = self.next(self.alive.len().max(1));
        self.alive.keys().nth(n).copied()
    }

    /// One step of the game.
    fn step(&mut self) -> Result<()> {
        let what = self.next(16);
        let free = (0..self.domains).find(|n| !self.alive.contains_key(n));
        let (Some(n), false) = (self.any(), what < 4 && free.is_some()) else {
            return free.map_or(Ok(()), |n| self.create(n, false));
        };
        let is_paused = self.alive[&n];
        match what {
            // As many go as come, on the whole.
            0..=2 => {
                self.run(&format!("xl destroy s{n}"))?;
                self.alive.remove(&n);
                self.count("destroyed");
            }
            3..=6 => {
                let word = if is_paused { "unpause" } else { "pause" };
                self.run(&format!("xl {word} s{n}"))?;
                self.alive.insert(n, !is_paused);
                self.count("paused or unpaused");
            }
            7..=10 => {
                let (vcpu, cpus) = (["0", "1", "all"][self.next(3)], ["0", "1", "all"][self.next(3)]);
                self.run(&format!("xl vcpu-pin s{n} {vcpu} {cpus}"))?;
                self.count("pinned");
            }
            11..=13 => {
                let (weight, cap) = (64 << self.next(5), [0, 0, 30, 80][self.next(4)]);
                self.run(&format!("xl sched-credit2 -d s{n} -w {weight} -c {cap}"))?;
                self.count("weighed");
            }
            14 => {
                let count = 1 + self.next(2);
                self.run(&format!("xl vcpu-set s{n} {count}"))?;
                self.count("given vCPUs");
            }
            _ => self.look()?,
        }
        Ok(())
    }

    /// All domains but dom0 stop, and the frame table is held against all page tables.
    fn look(&mut self) -> Result<()> {
        let running: Vec<usize> =
            self.alive.iter().filter(|(_, paused)| !**paused).map(|(n, _)| *n).collect();
        for n in &running {
            self.run(&format!("xl pause s{n}"))?;
        }
        self.run("sleep 0.5")?; // what ends meanwhile has ended then
        self.run("xl debug-keys M")?;
        for n in &running {
            self.run(&format!("xl unpause s{n}"))?;
        }
        self.count("looked at");
        Ok(())
    }

    fn destroy_all(&mut self) -> Result<()> {
        while let Some((n, _)) = self.alive.pop_first() {
            self.run(&format!("xl destroy s{n}"))?;
        }
        Ok(())
    }

    /// What dom0 and the hypervisor have now, when what ends behind a domain has ended.
    fn figures(&mut self) -> Result<(Vec<String>, Heap)> {
        self.run("sleep 3")?;
        let said = self.run("xl info")? + &self.run("accounts")?;
        let value = |figure: &&str| values(&said, figure).pop().with_context(|| (*figure).to_string());
        let figures = FIGURES.iter().map(value).collect::<Result<_>>()?;
        let dom0_pages: u64 = value(&"dom0_pages")?.parse().context("dom0_pages")?;
        let said = self.run("xl debug-keys H")?;
        let mut heap = Heap::read(&said).with_context(|| said.clone())?;
        heap.frames += dom0_pages;
        Ok((figures, heap))
    }
}

/// What the hypervisor's heap has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heap {
    used_bytes: u64,
    /// Frames that are free, those that the heap has taken, which never come back, and dom0's: dom0 keeps what it grew by.
    frames: u64,
}

impl Heap {
    /// From a line `heap: USED of BYTES bytes in use; FREE of ALL frames free`.
    fn read(said: &str) -> Option<Self> {
        let line = said.lines().find(|line| line.contains("heap: "))?;
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [used_bytes, bytes, free, ..] = numbers[..] else { return None };
        Some(Self { used_bytes, frames: free + bytes / 4096 })
    }
}

fn come_and_go(name: &str, size: &Size) -> Result<()> {
    let scratch = Scratch::new(name)?;
    let disk = scratch.disk("d.img", 1 << 20, 5)?;
    let machine = Machine::new(name)
        .with(|machine| {
            machine.cpus = 2;
            machine.hypervisor_arguments = "maxcpus=2".into();
        })
        .read_only_disk(&disk)
        .seconds(size.time.as_secs() * 3 + 900)
        .start()?;
    let seed = std::env::var(SEED).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut game =
        Game { machine, seed, domains: size.domains, alive: BTreeMap::new(), done: BTreeMap::new() };
    game.machine.expect("dom0# ", 60)?;
    game.warm_up()?;
    let (before, heap_before) = game.figures()?;
    game.done.clear();
    let end = Instant::now() + size.time;
    let mut steps = 0;
    while Instant::now() < end || steps < size.steps_at_least {
        game.step().with_context(|| format!("step {steps} of seed {seed}, {:?}", game.done))?;
        steps += 1;
    }
    println!("{steps} steps of seed {seed}: {:?}", game.done);
    game.look()?;
    game.destroy_all()?;
    let (after, heap_after) = game.figures()?;
    game.look()?;
    let looks = game.done.get("looked at").copied().unwrap_or(0);
    game.machine.type_line("poweroff")?;
    let run = game.machine.finish().succeeded()?;
    println!("the hypervisor: {heap_before:?}, then {heap_after:?}");
    run.require(heap_after == heap_before, &format!("{heap_before:?} became {heap_after:?}"))?;
    for ((figure, before), after) in FIGURES.iter().zip(&before).zip(&after) {
        // The heap of the hypervisor grew as the game needed that.
        if *figure == "free_frames" {
            continue;
        }
        run.require(before == after, &format!("{figure} went from {before} to {after}"))?;
    }
    let clean = run.console().matches("frame table: 0 differences").count();
    ensure!(clean as u32 == looks, "{looks} looks at the frame table, {clean} without a difference");
    for line in run.console().lines() {
        ensure!(!line.contains("storm: FAIL"), "{line}");
    }
    Ok(())
}

fn domains_come_and_go_at_random() -> Result<()> {
    come_and_go("come-and-go", &Size { domains: 8, steps_at_least: 60, time: Duration::from_secs(5) })
}

/// The whole game: 24 domains with two vCPUs each on two CPUs, for ten minutes.
fn domains_come_and_go_at_random_for_long() -> Result<()> {
    come_and_go(
        "come-and-go-long",
        &Size { domains: 24, steps_at_least: 100, time: Duration::from_secs(600) },
    )
}
