//! Operations that two processes do at once, on a machine and in a domain with two CPUs: instructions, and how much more two do
//! than one in the same time.
//!
//! Instructions are counted while one thread of the emulator's executes both CPUs. Ticks of the kernel's clock count, and come by
//! the host's clock: they make some per cent of a figure.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::between;
use super::systems::{PROGRAM, Systems, Task};
use crate::bench::rounds::{self, median};
use crate::bench::{BenchOptions, On, print_hot};
use crate::plugin::{self, Counts};
use crate::qemu::ONE_THREAD;

/// An operation: as the program prints it, its title, the first of its two markers.
const PAIRS: [(&str, &str, u32); 3] = [
    ("pair_fork_exit", "fork + exit", 116),
    ("pair_fork_exec", "fork + exec", 118),
    ("pair_fault", "touch a new page, 1,000 mapped and unmapped at once", 120),
];

/// What `--only` knows.
const ALL: &str = "pairs";

/// What `--only` knows: all pairs together, and each.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    [ALL].into_iter().chain(PAIRS.iter().map(|(name, _, _)| *name))
}

/// One run of one operation.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Timed {
    /// What the two processes did together.
    ops: u64,
    /// Nanoseconds: of one process for half of that, of two for all.
    one_ns: u64,
    two_ns: u64,
}

impl Timed {
    /// How much more two do than one in the same time.
    fn ratio(&self) -> f64 {
        2.0 * self.one_ns as f64 / self.two_ns as f64
    }
}

/// What one system did in one run, by the operation's name.
type Run = BTreeMap<&'static str, Timed>;

/// Measures on each system and prints both tables; false when a figure is missing.
///
/// # Errors
/// The plugin cannot be built, or a machine for counted figures did not run to its end.
pub(super) fn bench(systems: &Systems, on: &[On], options: &BenchOptions) -> Result<bool> {
    let scale = (options.ops / 500).max(1);
    let task = |counting| Task {
        command: format!("{PROGRAM} pairs {scale}"),
        counting,
        more_cpus: 1,
        ..Task::default()
    };
    let only = PAIRS.iter().find(|(name, _, _)| options.only.as_deref() == Some(name));
    let hot = only.filter(|_| options.hot);
    let mut counted = Vec::new();
    for &system in on {
        let counts = systems.file("counts");
        let mut counting = ONE_THREAD.map(str::to_string).to_vec();
        let hot = hot.filter(|_| system == On::Microhv);
        counting
            .extend(plugin::arguments(&counts, hot.map(|(_, _, begin)| (*begin as u16, *begin as u16 + 1)))?);
        let run = run(&systems.console(system, &task(counting))?);
        let output = std::fs::read_to_string(&counts).context("the counting plugin wrote nothing")?;
        if let Some((name, _, _)) = hot {
            print_hot(&output, run.get(name).map_or(1, |timed| timed.ops))?;
        }
        counted.push((system, figures(&run, &plugin::marks(&output))));
    }
    let mut timed: Vec<(On, Vec<Run>)> = on.iter().map(|system| (*system, Vec::new())).collect();
    for _ in 0..options.rounds {
        for (system, rounds) in &mut timed {
            // A machine that broke off has no figures; the other machines' figures are kept.
            let console = systems.console(*system, &task(Vec::new())).unwrap_or_else(|error| {
                eprintln!("{}: {error:#}", system.name());
                String::new()
            });
            rounds.push(run(&console));
        }
    }
    let (text, mut complete) = instructions(&counted);
    println!("{text}");
    let (text, all) = times(&timed);
    print!("{text}");
    complete &= all;
    Ok(complete)
}

/// The operations of lines `costs NAME OPS ONE TWO` behind any prefix.
fn run(console: &str) -> Run {
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != PROGRAM).skip(1);
        let name = words.next()?;
        let (name, _, _) = PAIRS.iter().find(|(known, _, _)| *known == name)?;
        let mut number = || words.next()?.parse::<u64>().ok().filter(|number| *number > 0);
        Some((*name, Timed { ops: number()?, one_ns: number()?, two_ns: number()? }))
    };
    console.lines().filter_map(line).collect()
}

/// Instructions of one operation each.
fn figures(run: &Run, marks: &[(u32, Counts)]) -> BTreeMap<&'static str, Counts> {
    let figure = |(name, _, begin): &(&'static str, &str, u32)| {
        Some((*name, between(marks, *begin)?.each(run.get(name)?.ops)))
    };
    PAIRS.iter().filter_map(figure).collect()
}

/// The table of instructions, and whether every figure is there.
fn instructions(counted: &[(On, BTreeMap<&'static str, Counts>)]) -> (String, bool) {
    let mut text = String::from("| two processes at once, two CPUs |");
    let mut line = String::from("| --- |");
    for (system, _) in counted {
        let hypervisor = if *system == On::Bare { "" } else { " of it hypervisor |" };
        text.push_str(&format!(" {} |{hypervisor}", system.name()));
        line.push_str(if hypervisor.is_empty() { " --- |" } else { " --- | --- |" });
    }
    text.push_str(&format!(" hypervisor / Xen |\n{line} --- |\n"));
    let mut complete = true;
    for (name, title, _) in PAIRS {
        text.push_str(&format!("| {title} |"));
        let of = |on: On| counted.iter().find(|(system, _)| *system == on)?.1.get(name).copied();
        for (system, _) in counted {
            let counts = of(*system);
            complete &= counts.is_some();
            let cell = |figure: fn(&Counts) -> u64| {
                counts.as_ref().map_or("-".into(), |counts| figure(counts).to_string())
            };
            text.push_str(&format!(" {} |", cell(Counts::total)));
            if *system != On::Bare {
                text.push_str(&format!(" {} |", cell(|counts| counts.hypervisor)));
            }
        }
        let ratio = of(On::Microhv)
            .zip(of(On::Xen))
            .map(|(ours, xens)| format!("{:.2}", ours.hypervisor as f64 / xens.hypervisor as f64));
        text.push_str(&format!(" {} |\n", ratio.unwrap_or("-".into())));
    }
    (text, complete)
}

/// The table of times, and whether every figure is there.
fn times(timed: &[(On, Vec<Run>)]) -> (String, bool) {
    let mut text = String::from(
        "| at the host's speed | system | one process, us | two by one, in the same time: median (least to most) | \
         two processes, by Xen's time: median (least to most) |\n| --- | --- | --- | --- | --- |\n",
    );
    let mut complete = true;
    let xens = timed.iter().find(|(system, _)| *system == On::Xen).map(|(_, rounds)| rounds);
    for (name, title, _) in PAIRS {
        for (system, rounds) in timed {
            let runs: Vec<Timed> = rounds.iter().filter_map(|run| run.get(name)).copied().collect();
            complete &= runs.len() == rounds.len();
            let one_us = |run: &Timed| run.one_ns as f64 / 500.0 / run.ops as f64;
            let one = median(runs.iter().map(one_us).collect()).map_or("-".into(), |us| format!("{us:.1}"));
            let (ratio, _) = rounds::ratios(runs.iter().map(Timed::ratio));
            // Of figures of one round.
            let by_xen = rounds.iter().zip(xens.into_iter().flatten()).filter_map(|(ours, xens)| {
                Some(ours.get(name)?.two_ns as f64 / xens.get(name)?.two_ns as f64)
            });
            let (by_xen, _) = rounds::ratios(by_xen);
            text.push_str(&format!("| {title} | {} | {one} | {ratio} | {by_xen} |\n", system.name()));
        }
    }
    (text, complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str =
        "(d1 linux-bench) costs pair_fault 8000 1000 1250\r\ncosts pair_fork_exit 80 0 5\r\ncosts done\r\n";

    #[test]
    fn a_run_is_read_from_the_console() {
        let run = run(CONSOLE);
        assert_eq!(run.len(), 1, "no time is no figure");
        assert_eq!(run["pair_fault"], Timed { ops: 8000, one_ns: 1000, two_ns: 1250 });
        assert_eq!(run["pair_fault"].ratio(), 1.6);
    }

    #[test]
    fn instructions_are_those_of_one_operation() {
        let counts = |hypervisor| Counts { hypervisor, kernel: 2 * hypervisor, ..Counts::default() };
        let marks = [(120, counts(100)), (121, counts(100 + 8000 * 7)), (65535, counts(1_000_000))];
        let counted = vec![(On::Microhv, figures(&run(CONSOLE), &marks)), (On::Bare, BTreeMap::new())];
        assert_eq!(counted[0].1["pair_fault"].hypervisor, 7);
        let (text, complete) = instructions(&counted);
        assert!(!complete && text.ends_with("at once | 21 | 7 | - | - |\n"), "{text}");
    }

    #[test]
    fn times_are_compared_within_a_round() {
        let rounds = |two_ns: [u64; 2]| {
            two_ns.map(|two_ns| Run::from([("pair_fault", Timed { ops: 2, one_ns: 1000, two_ns })])).to_vec()
        };
        let (text, complete) = times(&[(On::Microhv, rounds([1000, 2000])), (On::Xen, rounds([2000, 8000]))]);
        assert!(!complete, "other rows have nothing");
        assert!(
            text.contains("at once | microhv | 1.0 | 1.00 (1.00 to 2.00) | 0.25 (0.25 to 0.50) |"),
            "{text}"
        );
    }
}
