//! `cargo xtask bench linux`: what operations of Debian's kernel cost as a guest, and on the bare machine.
//!
//! The program `guests/costs` in the kernel's ramdisk does each operation between two markers, and the counting
//! plugin counts the instructions between them. Kernel, ramdisk and program are the same files everywhere.

mod disks;
mod pairs;
mod systems;

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{BenchOptions, On, print_hot};
use crate::images;
use crate::plugin::{self, Counts};
use crate::qemu::ICOUNT;
use systems::{PROGRAM, Systems, Task};

/// The first marker; operation k stands between this + 2k and this + 2k + 1.
const FIRST_MARKER: u32 = 100;
/// Bytes of the disk that is read, few enough for the host to keep all in memory.
const DISK_BYTES: usize = 256 << 20;

/// An operation of the kernel's.
struct Operation {
    /// As the program prints it.
    name: &'static str,
    title: &'static str,
    /// Instructions of the operation in a domain of Xen 4.17, in total and within Xen; for the table where
    /// Xen is not measured anew.
    xen: Option<(u64, u64)>,
    /// The most instructions that microhv may execute for the operation, if there is such an aim.
    aim: Option<u64>,
}

const fn operation(
    name: &'static str,
    title: &'static str,
    xen: Option<(u64, u64)>,
    aim: Option<u64>,
) -> Operation {
    Operation { name, title, xen, aim }
}

/// By the order of their markers.
const OPERATIONS: [Operation; 8] = [
    operation("getpid", "getpid", Some((1_101, 791)), Some(400)),
    operation("fork_exit", "fork + exit", Some((629_381, 385_714)), Some(180_000)),
    operation("fork_exec", "fork + exec", Some((1_952_281, 1_075_654)), Some(450_000)),
    operation("page_fault", "page fault (touch a new page)", Some((6_491, 2_057)), Some(1_000)),
    operation("mmap_64", "mmap + touch + munmap, 64 pages", Some((712_208, 253_239)), Some(140_000)),
    operation("pipe_round_trip", "pipe round trip, 2 processes", Some((20_709, 8_365)), Some(4_000)),
    operation("read_4k_32", "4 KiB random read, depth 32", Some((33_267, 4_701)), None),
    operation("read_1m_4", "1 MiB random read, depth 4", Some((998_970, 29_357)), None),
];

/// What `--only` calls the reads by fio, which are no counted operation.
const DISK: &str = "disk";

/// Instructions of one operation, by name.
type Figures = BTreeMap<&'static str, Counts>;

/// Measures on the systems asked for and prints the table; false when a figure is missing.
///
/// # Errors
/// A package cannot be fetched, a build failed, or a machine did not run to its end.
pub(super) fn bench(options: &BenchOptions) -> Result<bool> {
    let on = match options.on.unwrap_or(On::Microhv) {
        On::Both => vec![On::Microhv, On::Xen, On::XenDom0, On::Bare],
        one => vec![one],
    };
    let systems = Systems::prepare()?;
    let scale = (options.ops / 500).max(1);
    let data = systems.file("data.img");
    // The file must not be sparse, so that the host reads its blocks.
    std::fs::write(&data, vec![0x5a; DISK_BYTES])?;
    if options.only.as_deref().is_some_and(|only| pairs::names().any(|name| name == only)) {
        return pairs::bench(&systems, &on, options);
    }
    if options.only.as_deref() == Some(DISK) {
        return disks::bench(&systems, &on, &data, options.rounds);
    }
    let mut measured = Vec::new();
    for &system in &on {
        let counts = systems.file("counts");
        let hot = options.only.as_deref().filter(|_| options.hot && system == On::Microhv);
        let mut counting = ICOUNT.map(str::to_string).to_vec();
        counting.extend(plugin::arguments(&counts, hot.map(markers))?);
        let command = format!("{PROGRAM} {scale} {}", systems::disk(system, 0));
        let console =
            systems.console(system, &Task { command, disks: vec![data.clone()], counting, more_cpus: 0 })?;
        let output = std::fs::read_to_string(&counts).context("the counting plugin wrote nothing")?;
        measured.push((system, figures(&console, &output)));
        if let Some(name) = hot {
            print_hot(&output, done(&console).get(name).copied().unwrap_or(1))?;
        }
    }
    if let Some(path) = &options.json {
        images::write(path, json(&measured).to_string().as_bytes())?;
    }
    let (text, mut complete) = table(&measured, options.only.as_deref());
    print!("{text}");
    if options.only.is_none() && options.rounds > 0 {
        println!();
        complete &= disks::bench(&systems, &on, &data, options.rounds)?;
    }
    if options.only.is_none() {
        println!();
        complete &= pairs::bench(&systems, &on, options)?;
    }
    Ok(complete)
}

/// What `--only` knows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OPERATIONS.iter().map(|known| known.name).chain([DISK]).chain(pairs::names())
}

/// The markers around an operation.
fn markers(name: &str) -> (u16, u16) {
    let index = OPERATIONS.iter().position(|known| known.name == name).unwrap_or_default();
    let first = FIRST_MARKER as u16 + 2 * index as u16;
    (first, first + 1)
}

/// How often each operation was done, from lines `costs NAME OPS` behind any prefix.
fn done(console: &str) -> BTreeMap<&'static str, u64> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != PROGRAM).skip(1);
        let (name, ops) = (words.next()?, words.next()?);
        let known = OPERATIONS.iter().find(|known| known.name == name)?;
        Some((known.name, ops.parse().ok().filter(|ops| *ops > 0)?))
    };
    console.lines().filter_map(line).collect()
}

/// Instructions of one operation each, from the counts at the markers.
fn figures(console: &str, output: &str) -> Figures {
    let marks = plugin::marks(output);
    let done = done(console);
    let figure = |(index, known): (usize, &Operation)| {
        let ops = *done.get(known.name)?;
        Some((known.name, between(&marks, FIRST_MARKER + 2 * index as u32)?.each(ops)))
    };
    OPERATIONS.iter().enumerate().filter_map(figure).collect()
}

/// What was executed between the marker `begin` and the next, `begin` + 1, in all.
fn between(marks: &[(u32, Counts)], begin: u32) -> Option<Counts> {
    let pairs = marks.windows(2).filter(|pair| (pair[0].0, pair[1].0) == (begin, begin + 1));
    let sum = pairs.fold(Counts::default(), |sum, pair| sum.plus(&pair[1].1.since(&pair[0].1)));
    Some(sum).filter(|sum| sum.total() > 0)
}

/// What was measured, by system.
type Measured = Vec<(On, Figures)>;

fn counts_on(measured: &Measured, system: On, name: &str) -> Option<Counts> {
    measured.iter().find(|(on, _)| *on == system).and_then(|(_, figures)| figures.get(name)).copied()
}

/// The table's lines, and whether every figure asked for is there.
fn table(measured: &Measured, only: Option<&str>) -> (String, bool) {
    let mut text = String::from(
        "| operation | microhv | of it hypervisor | aim | Xen 4.17 | of it Xen | Xen, dom0 | bare | hypervisor / Xen |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut complete = true;
    for known in OPERATIONS.iter().filter(|known| only.is_none_or(|only| only == known.name)) {
        let on = |system| counts_on(measured, system, known.name);
        complete &= measured.iter().all(|(system, _)| on(*system).is_some());
        let xen = on(On::Xen).map(|counts| (counts.total(), counts.hypervisor)).or(known.xen);
        let ours = on(On::Microhv);
        let cell = |value: Option<u64>| value.map_or("-".into(), |value| value.to_string());
        let ratio =
            ours.zip(xen).map(|(ours, (_, theirs))| format!("{:.2}", ours.hypervisor as f64 / theirs as f64));
        let cells = [
            known.title.to_string(),
            cell(ours.map(|counts| counts.total())),
            cell(ours.map(|counts| counts.hypervisor)),
            cell(known.aim),
            cell(xen.map(|(total, _)| total)),
            cell(xen.map(|(_, own)| own)),
            cell(on(On::XenDom0).map(|counts| counts.total())),
            cell(on(On::Bare).map(|counts| counts.total())),
            ratio.unwrap_or("-".into()),
        ];
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    (text, complete)
}

/// What was measured, for a program: system, operation, part.
fn json(measured: &Measured) -> serde_json::Value {
    let parts = |counts: &Counts| {
        serde_json::json!({
            "total": counts.total(), "hypervisor": counts.hypervisor, "kernel": counts.kernel, "user": counts.user,
        })
    };
    let operations = |figures: &Figures| -> serde_json::Map<String, serde_json::Value> {
        figures.iter().map(|(name, counts)| (name.to_string(), parts(counts))).collect()
    };
    let systems =
        measured.iter().map(|(system, figures)| (system.name().to_string(), operations(figures).into()));
    serde_json::Value::Object(systems.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "(d1 linux-bench) run: costs 2\r\n(d1 linux-bench) costs getpid 10\r\ncosts page_fault 4\r\n\
                           costs nothing 3\r\ncosts mmap_64 0\r\ncosts done\r\n";

    fn mark(number: u32, hypervisor: u64, kernel: u64) -> String {
        format!("mark {number} cpu 0 firmware 9 hyp {hypervisor} kernel {kernel} user 0 cr3 0 wrmsr 0\n")
    }

    #[test]
    fn figures_come_from_between_an_operations_markers() {
        let marks = [
            mark(100, 1000, 0),
            mark(101, 1400, 104), // ten getpid
            mark(106, 2000, 200),
            mark(107, 2004, 200),
            mark(106, 3000, 200),
            mark(107, 3004, 200), // four page faults in two rounds
            mark(65535, 9000, 900),
        ];
        let figures = figures(CONSOLE, &marks.concat());
        assert_eq!(figures.len(), 2, "an operation that was not done has no figure");
        assert_eq!((figures["getpid"].hypervisor, figures["getpid"].kernel), (40, 10));
        assert_eq!(figures["page_fault"].hypervisor, 2);
    }

    #[test]
    fn a_missing_figure_is_told() {
        let counts = Counts { firmware: 0, hypervisor: 397, kernel: 1, user: 2, ..Counts::default() };
        let one: Figures = [("getpid", counts)].into();
        let measured = vec![(On::Microhv, one)];
        let (text, complete) = table(&measured, Some("getpid"));
        assert!(complete);
        assert_eq!(text.lines().last(), Some("| getpid | 400 | 397 | 400 | 1101 | 791 | - | - | 0.50 |"));
        assert!(!table(&measured, None).1);
        assert_eq!(json(&measured)["microhv"]["getpid"]["total"], 400);
    }

    #[test]
    fn aims_are_below_xens_part() {
        for known in &OPERATIONS {
            if let (Some(aim), Some((total, xen))) = (known.aim, known.xen) {
                assert!(aim < xen && xen < total, "{}", known.name);
            }
        }
    }
}
