//! How fast a domain reads a raw disk, by fio, beside Xen's control domain and the bare machine.
//!
//! These figures are times, and the host's own speed changes while the systems run one after another. So each round
//! measures every system once, a ratio compares figures of the same round, and the table shows medians.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::systems::{FIO_SCRIPT, Systems, Task, disk};
use crate::bench::On;
use crate::bench::rounds::{self, median};
use crate::guest;

/// How long each pattern is measured.
const SECONDS: u32 = 6;

/// A pattern of reads: as the script prints it, and its title.
const PATTERNS: [(&str, &str); 3] = [
    ("random_4k_1", "4 KiB random read, depth 1, IOPS"),
    ("random_4k_32", "4 KiB random read, depth 32, IOPS"),
    ("sequential_1m_4", "1 MiB sequential read, depth 4, MB/s"),
];

/// What one system reached in one round, by pattern, in the pattern's unit.
type Speeds = BTreeMap<&'static str, u64>;

/// What systems reached in one round.
type Round = Vec<(On, Speeds)>;

/// A column's title.
fn title(system: On) -> &'static str {
    match system {
        On::Microhv => "microhv, domain",
        On::Xen => "Xen, domain",
        On::XenDom0 => "Xen, dom0",
        On::Bare | On::Both => "bare",
    }
}

/// Measures reads of the disk `data` on each system, `rounds` times in turn, and prints the table; false when a figure
/// is missing.
///
/// # Errors
/// The root image cannot be made.
pub(super) fn bench(systems: &Systems, on: &[On], data: &Path, rounds: u32) -> Result<bool> {
    let root = systems.file("root.img");
    guest::copy_root(&root)?;
    let mut measured = Vec::new();
    for _ in 0..rounds {
        let mut round = Round::new();
        for &system in on {
            let task =
                |command| Task { command, disks: vec![data.to_path_buf(), root.clone()], ..Task::default() };
            let task = if system == On::XenDom0 {
                task(format!("set -- {} {SECONDS}\n{FIO_SCRIPT}", disk(system, 0)))
            } else {
                task(format!("sh /bin/disk-speed {} {SECONDS} {}", disk(system, 0), disk(system, 1)))
            };
            // A machine that broke off has no figures; the other machines' figures are kept.
            let console = systems.console(system, &task).unwrap_or_else(|error| {
                eprintln!("{}: {error:#}", title(system));
                String::new()
            });
            round.push((system, speeds(&console)));
        }
        measured.push(round);
    }
    let (text, complete) = table(on, &measured);
    print!("{text}");
    Ok(complete)
}

/// The figures on a console, in lines `fio NAME KiB/s IOPS` behind any prefix.
fn speeds(console: &str) -> Speeds {
    let figure = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "fio").skip(1);
        let name = words.next()?;
        let (name, _) = PATTERNS.iter().find(|(known, _)| *known == name)?;
        let (kib, iops): (u64, u64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((*name, if name.starts_with("sequential") { kib * 1024 / 1_000_000 } else { iops }))
    };
    console.lines().filter_map(figure).collect()
}

/// The table, and whether every figure of every round is there.
fn table(on: &[On], measured: &[Round]) -> (String, bool) {
    let row = |first: &str, cells: Vec<String>| format!("| {first} | {} |\n", cells.join(" | "));
    let of = |round: &Round, system: On, name: &str| {
        round.iter().find(|(known, _)| *known == system).and_then(|(_, speeds)| speeds.get(name)).copied()
    };
    let compared = on.contains(&On::Microhv) && on.contains(&On::XenDom0);
    let mut titles: Vec<String> = on.iter().map(|system| title(*system).to_string()).collect();
    titles.extend(compared.then(|| "microhv / Xen, dom0: median (least to most)".to_string()));
    let mut text = row("reads", titles.clone());
    text.push_str(&row("---", vec!["---".into(); titles.len()]));
    let mut complete = true;
    for (name, title) in PATTERNS {
        let mut cells = Vec::new();
        for &system in on {
            let figures: Vec<u64> = measured.iter().filter_map(|round| of(round, system, name)).collect();
            complete &= figures.len() == measured.len();
            cells.push(median(figures).map_or("-".into(), |figure| figure.to_string()));
        }
        if compared {
            let ratio =
                |round| Some(of(round, On::Microhv, name)? as f64 / of(round, On::XenDom0, name)? as f64);
            let (cell, count) = rounds::ratios(measured.iter().filter_map(ratio));
            complete &= count == measured.len();
            cells.push(cell);
        }
        text.push_str(&row(title, cells));
    }
    (text, complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_found_wherever_they_stand() {
        let console = "(d1 linux-bench) fio random_4k_1 4000 1000\r\nfio sequential_1m_4 976563 900\r\nfio other 1 2\r\nfio\r\n";
        let found = speeds(console);
        assert_eq!(found.len(), 2);
        assert_eq!((found["random_4k_1"], found["sequential_1m_4"]), (1000, 1000));
    }

    #[test]
    fn a_missing_speed_is_told() {
        let all: Speeds = PATTERNS.iter().map(|(name, _)| (*name, 7)).collect();
        let round = |speeds: &Speeds| vec![(On::Microhv, all.clone()), (On::Bare, speeds.clone())];
        let on = [On::Microhv, On::Bare];
        let (text, complete) = table(&on, &[round(&all), round(&all)]);
        assert!(complete && text.starts_with("| reads | microhv, domain | bare |\n"), "{text}");
        assert!(text.ends_with("MB/s | 7 | 7 |\n"), "{text}");
        let (text, complete) = table(&on, &[round(&all), round(&Speeds::new())]);
        assert!(!complete && text.ends_with("MB/s | 7 | 7 |\n"), "{text}");
        let (text, complete) = table(&on, &[round(&Speeds::new())]);
        assert!(!complete && text.ends_with("MB/s | 7 | - |\n"), "{text}");
    }

    #[test]
    fn a_ratio_is_of_one_round() {
        let speeds = |figure| PATTERNS.iter().map(|(name, _)| (*name, figure)).collect();
        let round = |ours, xens| vec![(On::Microhv, speeds(ours)), (On::XenDom0, speeds(xens))];
        // The host was twice as fast in the second round, and four times in the third.
        let rounds = [round(90, 100), round(220, 200), round(400, 400)];
        let (text, complete) = table(&[On::Microhv, On::XenDom0], &rounds);
        assert!(complete && text.ends_with("MB/s | 220 | 200 | 1.00 (0.90 to 1.10) |\n"), "{text}");
        let (text, complete) = table(&[On::Microhv, On::XenDom0], &[round(7, 0)]);
        assert!(!complete && text.ends_with("| 7 | 0 | - |\n"), "{text}");
    }
}
