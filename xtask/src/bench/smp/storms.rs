//! Storms: one operation without end, by one party alone and by two at the same time.
//!
//! The guests take turns of 100 ms by the machine's own clock, alone and together, so the host's speed is the same for both. In
//! every other group of turns the operation is one that never leaves the guest: by how much two do more of that than one is what
//! host and emulator give, and a storm's ratio is compared with that.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::is_wanted;
use super::scene::{Guest, Scene};
use crate::bench::rounds::{self, median};
use crate::bench::{BenchOptions, On};

/// Turns of each storm.
const SLOTS: u32 = 60;

/// The two parties of a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parties {
    /// Two guests, each with a CPU of its own.
    Guests,
    /// The two vCPUs of one guest.
    Vcpus,
}

/// A storm.
struct Storm {
    /// As `--only` knows it.
    name: &'static str,
    /// As the guest knows the operation.
    kind: &'static str,
    title: &'static str,
    parties: Parties,
    /// How much more two are to do than one, in hundredths.
    aim: Option<u32>,
}

const fn guests(name: &'static str, title: &'static str) -> Storm {
    Storm { name, kind: name, title, parties: Parties::Guests, aim: Some(180) }
}

const fn vcpus(name: &'static str, kind: &'static str, title: &'static str, aim: Option<u32>) -> Storm {
    Storm { name, kind, title, parties: Parties::Vcpus, aim }
}

const STORMS: &[Storm] = &[
    guests("hypercall", "null hypercalls"),
    guests("flush", "TLB flushes of the own CPU"),
    guests("event", "events to the own vCPU"),
    guests("table", "`mmu_update`, 1 entry"),
    guests("tables", "`mmu_update`, 64 entries"),
    guests("pin", "pin + unpin a full L1"),
    guests("fault", "page faults, each with a page mapped"),
    guests("grant", "map + unmap the own grant"),
    guests("copy", "copies from the own grant"),
    guests("peer-grant", "map + unmap the other's grant"),
    guests("peer-copy", "copies from the other's grant"),
    vcpus("vcpus-hypercall", "hypercall", "null hypercalls", None),
    vcpus("vcpus-event", "event", "events to the own vCPU", None),
    vcpus("vcpus-fault", "fault", "page faults, each with a page mapped", Some(150)),
    vcpus("vcpus-table", "table", "`mmu_update`, 1 entry", None),
    vcpus("vcpus-pin", "pin", "pin + unpin a full L1", None),
    vcpus("vcpus-copy", "copy", "copies from the own grant", None),
    vcpus("vcpus-grant", "grant", "map + unmap the own grant", None),
];

/// What `--only` knows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    STORMS.iter().map(|storm| storm.name)
}

/// One storm in one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Figure {
    /// Nanoseconds of one operation of one party alone.
    alone_ns: f64,
    /// What two did at the same time by what one did alone: of the storm, and of what never leaves the guest.
    ratio: f64,
    control: f64,
}

impl Figure {
    /// The storm's ratio where host and emulator give two whole CPUs.
    fn scaled(&self) -> f64 {
        2.0 * self.ratio / self.control
    }
}

/// What one system did in one round, by the storm's name.
type Figures = BTreeMap<&'static str, Figure>;

/// Runs the storms on each system, in turn, and prints the table; false when a figure is missing.
///
/// # Errors
/// Xen cannot be made.
pub(super) fn bench(options: &BenchOptions, on: &[On], json: &mut Map<String, Value>) -> Result<bool> {
    let wanted: Vec<&Storm> = STORMS.iter().filter(|storm| is_wanted(options, storm.name)).collect();
    if wanted.is_empty() {
        return Ok(true);
    }
    let mut measured: Vec<(On, Vec<Figures>)> = on.iter().map(|system| (*system, Vec::new())).collect();
    for _ in 0..options.rounds {
        for (system, rounds) in &mut measured {
            let mut round = Figures::new();
            for parties in [Parties::Guests, Parties::Vcpus] {
                let storms: Vec<&Storm> =
                    wanted.iter().filter(|storm| storm.parties == parties).copied().collect();
                // A machine that broke off has no figures; the other machines' figures are kept.
                match run(*system, parties, &storms) {
                    Ok(figures) => round.extend(figures),
                    Err(error) => eprintln!("{}: {error:#}", system.name()),
                }
            }
            rounds.push(round);
        }
    }
    let (text, complete) = table(&wanted, &measured);
    print!("\n{text}");
    for (system, rounds) in &measured {
        let one = |(name, figure): (&&str, &Figure)| {
            let Figure { alone_ns, ratio, control } = figure;
            (name.to_string(), json!({"alone_ns": alone_ns, "ratio": ratio, "control": control}))
        };
        let rounds = rounds.iter().map(|round| Value::Object(round.iter().map(one).collect())).collect();
        json.insert(format!("storms on {}", system.name()), Value::Array(rounds));
    }
    Ok(complete)
}

/// Runs storms of the same parties one after another in one machine.
fn run(system: On, parties: Parties, storms: &[&Storm]) -> Result<Figures> {
    if storms.is_empty() {
        return Ok(Figures::new());
    }
    let kinds: Vec<&str> = storms.iter().map(|storm| storm.kind).collect();
    let words = format!("role=storm slots={SLOTS} kind={}", kinds.join(","));
    let guests = match parties {
        // The first domain that is created has the number 1 on both systems.
        Parties::Guests => vec![
            Guest::new("one", &format!("{words} part=0 peer=2")).with("cpus='0'"),
            Guest::new("two", &format!("{words} part=1 peer=1")).with("cpus='1'"),
        ],
        Parties::Vcpus => {
            let guest = Guest { vcpus: 2, ..Guest::new("one", &format!("{words} part=both")) };
            vec![guest.with("cpus='0-1'")]
        }
    };
    let consoles = Scene { cpus: 2, is_virtual: false, guests: &guests }.consoles(system)?;
    let console = consoles.concat();
    for line in console.lines().filter(|line| line.contains(" skipped: ")) {
        eprintln!("{}: {line}", system.name());
    }
    Ok(storms.iter().filter_map(|storm| Some((storm.name, figure(&console, storm.kind)?))).collect())
}

/// The figure of `kind` from lines `several storm|control PART KIND OPS ops NS ns alone OPS ops NS ns beside`.
fn figure(console: &str, kind: &str) -> Option<Figure> {
    // Of each party: operations in a nanosecond, alone and beside the other.
    let rates = |what: &str| -> Vec<[f64; 2]> {
        let rate = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |index: usize| words.get(index)?.parse::<f64>().ok();
            let is_it = words.first() == Some(&"several") && words.get(1) == Some(&what);
            (is_it && words.get(3) == Some(&kind))
                .then(|| Some([number(4)? / number(6)?, number(9)? / number(11)?]))?
        };
        console.lines().filter_map(rate).collect()
    };
    let ratio = |rates: &[[f64; 2]]| {
        let [alone, beside] = [0, 1].map(|index| rates.iter().map(|rate| rate[index]).sum::<f64>());
        (rates.len() == 2 && alone > 0.0).then(|| (2.0 / alone, 2.0 * beside / alone))
    };
    let ((alone_ns, ratio), (_, control)) = (ratio(&rates("storm"))?, ratio(&rates("control"))?);
    Some(Figure { alone_ns, ratio, control })
}

/// The table, and whether every figure is there.
fn table(wanted: &[&Storm], measured: &[(On, Vec<Figures>)]) -> (String, bool) {
    let mut text = String::from(
        "| parties | storm | system | one alone, ns | two by one | what never leaves the guest | \
         two by one, of two whole CPUs: median (least to most) | aim |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut complete = true;
    for storm in wanted {
        for (system, rounds) in measured {
            let figures: Vec<Figure> =
                rounds.iter().filter_map(|round| round.get(storm.name)).copied().collect();
            complete &= figures.len() == rounds.len();
            let middle = |of: fn(&Figure) -> f64| median(figures.iter().map(of).collect::<Vec<_>>());
            let cell = |figure: Option<f64>, digits: usize| {
                figure.map_or("-".into(), |figure| format!("{figure:.digits$}"))
            };
            let (scaled, _) = rounds::ratios(figures.iter().map(Figure::scaled));
            let parties = match storm.parties {
                Parties::Guests => "two guests",
                Parties::Vcpus => "two vCPUs",
            };
            let aim = storm.aim.map_or("-".into(), |aim| format!("{:.1}", f64::from(aim) / 100.0));
            text.push_str(&format!(
                "| {parties} | {} | {} | {} | {} | {} | {scaled} | {aim} |\n",
                storm.title,
                system.name(),
                cell(middle(|figure| figure.alone_ns), 0),
                cell(middle(|figure| figure.ratio), 2),
                cell(middle(|figure| figure.control), 2),
            ));
        }
    }
    (text, complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "several storm 0 pin 100 ops 1000 ns alone 90 ops 1000 ns beside\n\
                           several control 0 pin 10 ops 10 ns alone 9 ops 10 ns beside\n\
                           several storm 1 pin 300 ops 3000 ns alone 160 ops 2000 ns beside\n\
                           several control 1 pin 20 ops 20 ns alone 10 ops 10 ns beside\n\
                           several storm 1 pins 1 ops 1 ns alone 1 ops 1 ns beside\n";

    #[test]
    fn two_are_compared_with_one_and_with_the_control() {
        let figure = figure(CONSOLE, "pin").expect("a figure");
        assert_eq!((figure.alone_ns.round(), (figure.ratio * 100.0).round()), (10.0, 170.0));
        assert_eq!((figure.control * 100.0).round(), 190.0);
        assert_eq!((figure.scaled() * 100.0).round(), 179.0);
    }

    #[test]
    fn a_party_that_says_nothing_is_missed() {
        let storm = STORMS.iter().find(|storm| storm.name == "pin").expect("known");
        assert_eq!(figure(CONSOLE, "pins"), None);
        let one = figure(CONSOLE, "pin").expect("a figure");
        let all = [(On::Microhv, vec![Figures::from([("pin", one)])])];
        let (text, complete) = table(&[storm], &all);
        assert!(complete && text.ends_with("| 10 | 1.70 | 1.90 | 1.79 (1.79 to 1.79) | 1.8 |\n"), "{text}");
        assert!(!table(&[storm], &[(On::Microhv, vec![Figures::new()])]).1);
    }

    #[test]
    fn names_are_told_apart() {
        let names: std::collections::BTreeSet<_> = names().collect();
        assert_eq!(names.len(), STORMS.len());
    }
}
