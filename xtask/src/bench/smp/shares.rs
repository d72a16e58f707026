//! What hogs get of the CPUs, and how late a guest wakes beside them.
//!
//! On one CPU time is virtual, one instruction a tick, so that the host's load does not count. With several CPUs QEMU 7.2 then
//! starves one beside another that is never idle; so what hogs get of several CPUs is measured at the host's speed, in the
//! hypervisor's own account of time, and wake-ups are measured on one CPU.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::is_wanted;
use super::scene::{Guest, Scene};
use crate::bench::{BenchOptions, On};

/// When the guests begin, in seconds of the machine's time: when all of them exist. In virtual time waiting costs nothing, since
/// idle time is passed over.
const START: u64 = 15;
const START_ON_XEN: u64 = 150;
/// How long the hogs compute.
const SECONDS: u64 = 10;
/// How often the guest wakes, 0.1 to 2.1 ms apart.
const WAKES: u64 = 2000;
/// How far a share may be from what it should be, in hundredths of what it should be.
const TOLERANCE: f64 = 2.0;
/// The aims for one wake-up in a hundred: nanoseconds, and hundredths of Xen's.
const LATE_NS: u64 = 1_000_000;
const LATE_PERCENT: u64 = 20;

/// A case of hogs.
struct Case {
    name: &'static str,
    title: &'static str,
    cpus: u32,
    /// For each hog: its vCPUs, the configuration's word, and its share in thousandths of all CPUs.
    hogs: &'static [(u32, &'static str, u32)],
}

const CASES: &[Case] = &[
    Case {
        name: "weights",
        title: "weights 1:2:4, one vCPU each, one CPU",
        cpus: 1,
        hogs: &[(1, "cpu_weight=128", 143), (1, "cpu_weight=256", 286), (1, "cpu_weight=512", 571)],
    },
    Case {
        name: "weights-2",
        title: "weights 1:2:4, two vCPUs each, two CPUs",
        cpus: 2,
        hogs: &[(2, "cpu_weight=128", 143), (2, "cpu_weight=256", 286), (2, "cpu_weight=512", 571)],
    },
    Case {
        name: "equal-3",
        title: "three hogs, one vCPU each, two CPUs",
        cpus: 2,
        hogs: &[(1, "", 333), (1, "", 333), (1, "", 333)],
    },
    Case { name: "cap", title: "cap 50 alone, one CPU", cpus: 1, hogs: &[(1, "cap=50", 500)] },
    Case {
        name: "cap-2",
        title: "cap 50 beside a hog, two vCPUs each, two CPUs",
        cpus: 2,
        hogs: &[(2, "cap=50", 250), (2, "", 750)],
    },
];

/// What `--only` calls the wake-ups.
const WAKE: &str = "wake";

/// What `--only` knows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.name).chain([WAKE])
}

/// Measures on each system and prints the tables; false when a figure is missing or misses its aim on microhv.
///
/// # Errors
/// Xen cannot be made, or a machine did not run to its end.
pub(super) fn bench(options: &BenchOptions, on: &[On], json: &mut Map<String, Value>) -> Result<bool> {
    let mut complete = true;
    let wanted: Vec<&Case> = CASES.iter().filter(|case| is_wanted(options, case.name)).collect();
    if !wanted.is_empty() {
        println!(
            "| hogs | system | of all CPUs, each hog, in hundredths | all of them | farthest from its share |"
        );
        println!("| --- | --- | --- | --- | --- |");
    }
    for case in wanted {
        for &system in on {
            let shares = case.shares(system)?;
            let (row, is_kept) = case.row(system, &shares);
            println!("{row}");
            complete &= is_kept || system != On::Microhv;
            json.insert(format!("{} on {}", case.name, system.name()), json!(shares));
        }
    }
    if is_wanted(options, WAKE) {
        println!();
        let mut all = Vec::new();
        for &system in on {
            let late = wakes(system)?;
            json.insert(format!("{WAKE} on {}", system.name()), json!(late));
            all.push((system, late));
        }
        let (text, is_kept) = table(&all);
        print!("{text}");
        complete &= is_kept;
    }
    Ok(complete)
}

/// When all guests exist.
fn start(system: On) -> u64 {
    (if system == On::Xen { START_ON_XEN } else { START }) * 1_000_000_000
}

impl Case {
    /// What each hog got of all CPUs, in hundredths.
    ///
    /// # Errors
    /// The machine did not run to its end.
    fn shares(&self, system: On) -> Result<Vec<f64>> {
        let hog = |(index, (vcpus, word, _)): (usize, &(u32, &str, u32))| {
            let extra = format!("role=hog start={} seconds={SECONDS} vcpus={vcpus}", start(system));
            let guest = Guest { vcpus: *vcpus, ..Guest::new(&format!("hog{index}"), &extra) };
            if word.is_empty() { guest } else { guest.with(word) }
        };
        let guests: Vec<Guest> = self.hogs.iter().enumerate().map(hog).collect();
        let consoles =
            Scene { cpus: self.cpus, is_virtual: self.cpus == 1, guests: &guests }.consoles(system)?;
        let whole = f64::from(self.cpus) * (SECONDS * 1_000_000_000) as f64;
        Ok(consoles.iter().map(|console| 100.0 * ran_ns(console) / whole).collect())
    }

    /// The row, and whether each hog has its share and no CPU idled while a hog waited.
    fn row(&self, system: On, shares: &[f64]) -> (String, bool) {
        let mut cells = String::new();
        let mut farthest = 0.0f64;
        for (index, (got, (_, _, due))) in shares.iter().zip(self.hogs).enumerate() {
            let _ = write!(cells, "{}{got:.2}", if index > 0 { ", " } else { "" });
            let due = f64::from(*due) / 10.0;
            farthest = farthest.max((got - due).abs() / due * 100.0);
        }
        let (all, due): (f64, u32) = (shares.iter().sum(), self.hogs.iter().map(|(_, _, due)| due).sum());
        let is_kept = farthest <= TOLERANCE && all >= f64::from(due) / 10.0 - TOLERANCE;
        (format!("| {} | {} | {cells} | {all:.2} | {farthest:.2} % |", self.title, system.name()), is_kept)
    }
}

/// How long a guest ran on all its vCPUs, from lines `several hog VCPU NS ns TURNS turns`.
fn ran_ns(console: &str) -> f64 {
    let of_vcpu = |line: &str| line.strip_prefix("several hog ")?.split(' ').nth(1)?.parse::<f64>().ok();
    console.lines().filter_map(of_vcpu).sum()
}

/// How late a guest woke beside four hogs, in nanoseconds: the median, one in a hundred, the worst; `None`: there are no
/// figures.
///
/// # Errors
/// The machine did not run to its end.
fn wakes(system: On) -> Result<Option<[u64; 3]>> {
    let start = start(system);
    let hog = |index: u32| Guest {
        is_endless: true,
        ..Guest::new(&format!("hog{index}"), &format!("role=hog start={start}"))
    };
    let mut guests: Vec<Guest> = (0..4).map(hog).collect();
    // The hogs compute for a second before the first wake-up.
    let begin = start + 1_000_000_000;
    guests.push(Guest::new("sleeper", &format!("role=sleeper start={begin} wakes={WAKES}")));
    let consoles = Scene { cpus: 1, is_virtual: true, guests: &guests }.consoles(system)?;
    Ok(consoles.last().and_then(|console| late(console)))
}

/// The figures of a line `several sleeper N wakes p50 NS p99 NS max NS ns`.
fn late(console: &str) -> Option<[u64; 3]> {
    let line = console.lines().find(|line| line.starts_with("several sleeper "))?;
    let words: Vec<&str> = line.split(' ').collect();
    let figure = |name: &str| words.get(words.iter().position(|word| *word == name)? + 1)?.parse().ok();
    Some([figure("p50")?, figure("p99")?, figure("max")?])
}

/// The table of wake-ups, and whether microhv's are as early as they are to be.
fn table(all: &[(On, Option<[u64; 3]>)]) -> (String, bool) {
    let mut text = String::from(
        "| wake-ups beside four hogs, one CPU | median, us | one in a hundred, us | worst, us |\n\
         | --- | --- | --- | --- |\n",
    );
    let us = |ns: u64| format!("{}.{}", ns / 1000, ns % 1000 / 100);
    let of = |system| all.iter().find(|(known, _)| *known == system).map(|(_, late)| *late);
    let mut is_kept = all.iter().all(|(_, late)| late.is_some());
    for (system, late) in all {
        let cells = late.map_or(["-".into(), "-".into(), "-".into()], |late| late.map(us));
        let _ = writeln!(text, "| {} | {} |", system.name(), cells.join(" | "));
    }
    if let Some(Some([_, ours, _])) = of(On::Microhv) {
        is_kept &= ours <= LATE_NS;
        if let Some(Some([_, theirs, _])) = of(On::Xen) {
            is_kept &= ours * 100 <= theirs * LATE_PERCENT;
            let ratio = ours as f64 / theirs.max(1) as f64;
            let _ = writeln!(text, "| microhv / Xen | - | {ratio:.3} | - |");
        }
    }
    (text, is_kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> &'static Case {
        CASES.iter().find(|case| case.name == "weights").expect("known")
    }

    #[test]
    fn both_vcpus_of_a_hog_count() {
        assert_eq!(ran_ns("several hog 0 1000 ns 5 turns\nx\nseveral hog 1 500 ns 5 turns\n"), 1500.0);
    }

    #[test]
    fn a_share_that_is_off_is_told() {
        assert!(case().row(On::Microhv, &[14.3, 28.5, 57.1]).1);
        let (row, is_kept) = case().row(On::Microhv, &[14.7, 28.5, 56.8]);
        assert!(!is_kept && row.ends_with("| 14.70, 28.50, 56.80 | 100.00 | 2.80 % |"), "{row}");
    }

    #[test]
    fn an_idle_cpu_is_told() {
        // Every share is within its tolerance; together they are not.
        assert!(case().row(On::Microhv, &[14.1, 28.2, 56.2]).1);
        assert!(!case().row(On::Microhv, &[14.02, 28.03, 55.9]).1);
    }

    #[test]
    fn the_shares_of_a_case_are_no_more_than_there_is() {
        for case in CASES {
            let all: u32 = case.hogs.iter().map(|(_, _, due)| due).sum();
            assert!(all <= 1000, "{}", case.name);
        }
    }

    #[test]
    fn wake_ups_are_compared_with_xens() {
        let console = "x\nseveral sleeper 2000 wakes p50 1000 p99 2500 max 90000 ns\n";
        assert_eq!(late(console), Some([1000, 2500, 90_000]));
        assert_eq!(late("several sleeper skipped"), None);
        let ours = (On::Microhv, Some([1000, 2000, 9000]));
        let xens = |p99| (On::Xen, Some([1000, p99, 90_000]));
        let (text, is_kept) = table(&[ours, xens(10_000)]);
        assert!(is_kept && text.ends_with("| microhv / Xen | - | 0.200 | - |\n"), "{text}");
        assert!(!table(&[ours, xens(9_999)]).1);
        assert!(!table(&[(On::Microhv, Some([1000, LATE_NS + 1, 9_000_000]))]).1);
        assert!(!table(&[(On::Microhv, None)]).1);
    }
}
