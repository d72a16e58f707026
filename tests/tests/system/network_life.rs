//! Network interfaces that come and go, and guests that end, while packets pass: nothing stays behind, and the others go on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::linux::command;
use tests::{Live, Machine};

use crate::Case;
use crate::domains::{FIGURES, values};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![network_life:
        interfaces_and_guests_come_and_go_under_load,
        interfaces_and_guests_come_and_go_under_load_for_long,
    ]);
    cases[1].soak = true;
    cases
}

/// How often each thing is done.
struct Rounds {
    /// An interface is taken away and given again.
    attach: u32,
    /// A guest is destroyed and made anew.
    destroy: u32,
    /// A guest is made and destroyed at once.
    create: u32,
}

fn interfaces_and_guests_come_and_go_under_load() -> Result<()> {
    come_and_go("network-life", &Rounds { attach: 4, destroy: 4, create: 3 }, 300)
}

fn interfaces_and_guests_come_and_go_under_load_for_long() -> Result<()> {
    come_and_go("network-life-long", &Rounds { attach: 100, destroy: 50, create: 20 }, 3000)
}

/// The guests: name, address (else by DHCP), and the address that the guest fetches from. Two that nobody disturbs; two whose
/// interfaces and whose lives end, one serving and fetching, one fetching; and one that fetches from the former.
const GUESTS: [(&str, Option<&str>, &str); 5] = [
    ("server", Some("10.88.0.2"), "10.88.0.3"),
    ("client", Some("10.88.0.3"), "10.88.0.2"),
    ("victim", Some("10.88.0.4"), "10.88.0.2"),
    ("puller", Some("10.88.0.5"), "10.88.0.4"),
    ("roamer", None, "10.88.0.3"),
];

/// The guests that nobody disturbs, and the longest time that each may be without an answer, in milliseconds.
const STEADY: [&str; 2] = ["server", "client"];
const LONGEST_MS: u64 = 1000;

/// How many lines dom0's shell remembers.
const HISTORY: u32 = 100;

/// How long a guest may take until it has an answer, and dom0 for a line.
const ANSWER: Duration = Duration::from_secs(120);

fn create(name: &str) -> String {
    let (_, address, peer) = GUESTS.into_iter().find(|guest| guest.0 == name).expect("one of the guests");
    let words = address.map_or(String::new(), |address| format!("ip={address}/24 "));
    format!(
        "xl create /boot/web.cfg name='{name}' vif=['{}'] on_crash='destroy' extra='{words}peer={peer}'",
        vif(name, ",")
    )
}

/// What a guest's interface is. The address of the guest that another fetches from stays, so that the other need not ask
/// for it again.
fn vif(name: &str, separator: &str) -> String {
    let mac = if name == "victim" { format!("{separator}mac=00:16:3e:00:00:04") } else { String::new() };
    format!("bridge=xenbr0{mac}")
}

/// A machine at dom0's prompt, and all that its console has shown.
struct World {
    machine: Live,
    shown: String,
}

impl World {
    fn run(&mut self, line: &str) -> Result<String> {
        let said = command(&mut self.machine, line, ANSWER.as_secs()).with_context(|| line.to_string())?;
        self.shown += &said;
        Ok(said)
    }

    /// Runs a line, and waits until the guest `name` has answers on the network that the line gave it.
    fn until_answered(&mut self, line: &str, name: &str) -> Result<()> {
        let mut said = self.run(line)?;
        let begun = format!(" {name}) web: 00-16-3e");
        let mut from = said.find(&begun);
        let end = Instant::now() + ANSWER;
        while !said[from.unwrap_or(said.len())..]
            .lines()
            .any(|line| answers(line, name).is_some_and(|n| n.0 > 0))
        {
            ensure!(Instant::now() < end, "{name} has no answer after `{line}`:\n{said}");
            let more = self.machine.expect(&format!(" {name}) web: "), ANSWER.as_secs())?;
            let rest = self.machine.expect("\n", ANSWER.as_secs())?;
            self.shown += &more;
            self.shown += &rest;
            said += &more;
            said += &rest;
            from = from.or_else(|| said.find(&begun));
        }
        Ok(())
    }

    /// Has the shell remember as many lines as it can: from then on, it forgets one for each that it is given.
    fn fill_history(&mut self) -> Result<()> {
        for number in 0..HISTORY {
            self.machine.type_line(&format!("line-{number}"))?;
        }
        self.run("help").map(drop)
    }

    fn create_all(&mut self) -> Result<()> {
        for (name, ..) in GUESTS {
            // The first has nobody to fetch from yet.
            if name == "server" {
                self.run(&create(name))?;
            } else {
                self.until_answered(&create(name), name)?;
            }
        }
        Ok(())
    }

    fn destroy_all(&mut self) -> Result<()> {
        for (name, ..) in GUESTS {
            self.run(&format!("xl destroy {name}"))?;
        }
        Ok(())
    }

    /// All that is to be tried, so often.
    fn rounds(&mut self, rounds: &Rounds) -> Result<()> {
        for round in 0..rounds.attach {
            let name = ["victim", "roamer"][round as usize % 2];
            self.run(&format!("xl network-detach {name} 0"))?;
            self.until_answered(&format!("xl network-attach {name} {}", vif(name, " ")), name)?;
        }
        for round in 0..rounds.destroy {
            let name = ["victim", "roamer"][round as usize % 2];
            self.run(&format!("xl destroy {name}"))?;
            self.until_answered(&create(name), name)?;
        }
        for _ in 0..rounds.create {
            self.run(&create("roamer").replace("roamer", "brief"))?;
            self.run("xl destroy brief")?;
        }
        Ok(())
    }

    /// What dom0 has now, when what ends behind a guest has ended.
    fn figures(&mut self) -> Result<Vec<String>> {
        self.run("sleep 2")?;
        let said = self.run("xl info")? + &self.run("accounts")?;
        FIGURES
            .iter()
            .map(|figure| values(&said, figure).pop().with_context(|| (*figure).to_string()))
            .collect()
    }
}

/// From a line of the guest's report: answers, wrong ones, the longest wait in milliseconds.
fn answers(line: &str, name: &str) -> Option<(u64, u64, u64)> {
    let (_, report) = line.split_once(&format!(" {name}) web: peer: "))?;
    let words: Vec<&str> = report.split_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse().ok();
    Some((number(0)?, number(4)?, number(8)?))
}

fn come_and_go(name: &str, rounds: &Rounds, seconds: u64) -> Result<()> {
    let machine = Machine::new(name).seconds(seconds).start()?;
    let mut world = World { machine, shown: String::new() };
    world.machine.expect("dom0# ", 60)?;
    world.fill_history()?;
    // What stays for good is there after a first time.
    world.create_all()?;
    world.rounds(&Rounds { attach: 2, destroy: 2, create: 1 })?;
    world.destroy_all()?;
    let before = world.figures()?;
    world.create_all()?;
    world.shown.clear();
    world.rounds(rounds)?;
    let shown = std::mem::take(&mut world.shown);
    world.destroy_all()?;
    let after = world.figures()?;
    world.machine.type_text("\x01\x01\x01M")?;
    world.machine.expect("frame table: 0 differences", 60)?;
    world.machine.type_text("\x01\x01\x01")?;
    world.machine.type_line("poweroff")?;
    let run = world.machine.finish().succeeded()?;
    for ((figure, before), after) in FIGURES.iter().zip(&before).zip(&after) {
        run.require(before == after, &format!("{figure} went from {before} to {after}"))?;
    }
    for name in STEADY {
        let reports: Vec<_> = shown.lines().filter_map(|line| answers(line, name)).collect();
        let (least, longest) = (reports.iter().map(|r| r.0).min(), reports.iter().map(|r| r.2).max());
        println!(
            "{name}: {} reports, at least {least:?} answers in a second, longest wait {longest:?} ms",
            reports.len()
        );
        ensure!(longest.is_some_and(|longest| longest <= LONGEST_MS), "{name} waited {longest:?} ms");
    }
    let wrong = GUESTS.iter().flat_map(|guest| shown.lines().filter_map(|line| answers(line, guest.0)));
    ensure!(wrong.map(|report| report.1).sum::<u64>() == 0, "bytes came that nobody sent");
    Ok(())
}
