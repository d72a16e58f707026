//! How fast a domain reads a raw disk, by fio, beside Xen's control domain and the bare machine.
//!
//! These are figures of time, taken one system after the other on one host: what else runs there shows in them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::systems::{FIO_SCRIPT, Systems, Task, disk};
use crate::bench::On;
use crate::guest;

/// How long each pattern is measured.
const SECONDS: u32 = 6;

/// A pattern of reads: as the script prints it, and its title.
const PATTERNS: [(&str, &str); 3] = [
    ("random_4k_1", "4 KiB random read, depth 1, IOPS"),
    ("random_4k_32", "4 KiB random read, depth 32, IOPS"),
    ("sequential_1m_4", "1 MiB sequential read, depth 4, MB/s"),
];

/// What one system reached, by pattern, in the pattern's unit.
type Speeds = BTreeMap<&'static str, u64>;

/// A column's title.
fn title(system: On) -> &'static str {
    match system {
        On::Microhv => "microhv, domain",
        On::Xen => "Xen, domain",
        On::XenDom0 => "Xen, dom0",
        On::Bare | On::Both => "bare",
    }
}

/// Measures reads of the disk `data` on each system and prints the table; false when a figure is missing.
///
/// # Errors
/// The root image cannot be made, or a machine did not run to its end.
pub(super) fn bench(systems: &Systems, on: &[On], data: &Path) -> Result<bool> {
    let root = systems.file("root.img");
    guest::copy_root(&root)?;
    let mut measured = Vec::new();
    for &system in on {
        let task =
            |command| Task { command, disks: vec![data.to_path_buf(), root.clone()], counting: Vec::new() };
        let task = if system == On::XenDom0 {
            task(format!("set -- {} {SECONDS}\n{FIO_SCRIPT}", disk(system, 0)))
        } else {
            task(format!("sh /bin/disk-speed {} {SECONDS} {}", disk(system, 0), disk(system, 1)))
        };
        measured.push((system, speeds(&systems.console(system, &task)?)));
    }
    let (text, complete) = table(&measured);
    print!("{text}");
    Ok(complete)
}

/// The figures on a console: `fio NAME KiB/s IOPS`, whatever stands before.
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

/// The table, and whether it has all figures.
fn table(measured: &[(On, Speeds)]) -> (String, bool) {
    let row = |first: &str, cells: Vec<String>| format!("| {first} | {} |\n", cells.join(" | "));
    let mut text = row("reads", measured.iter().map(|(system, _)| title(*system).to_string()).collect());
    text.push_str(&row("---", vec!["---".into(); measured.len()]));
    let mut complete = true;
    for (name, title) in PATTERNS {
        let figures = measured.iter().map(|(_, speeds)| speeds.get(name));
        complete &= figures.clone().all(|figure| figure.is_some());
        text.push_str(&row(title, figures.map(|figure| figure.map_or("-".into(), u64::to_string)).collect()));
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
        let (text, complete) = table(&[(On::Microhv, all.clone()), (On::XenDom0, all.clone())]);
        assert!(complete && text.starts_with("| reads | microhv, domain | Xen, dom0 |\n"), "{text}");
        let (text, complete) = table(&[(On::Bare, Speeds::new())]);
        assert!(!complete && text.ends_with("MB/s | - |\n"), "{text}");
    }
}
