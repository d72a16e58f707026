//! `cargo xtask bench operations`: what operations of the ABI cost, on microhv and on Debian's Xen.
//!
//! The guest `guests/bench` times each by the TSC, which counts instructions here. It is the same image on both, and
//! knows nothing of the hypervisor under it.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::{BenchOptions, On, TIME_LIMIT, machine, print_hot, run};
use crate::plugin;
use crate::qemu::RunDirectory;
use crate::session::Outcome;
use crate::xen;
use crate::{images, usage};

/// The guest.
const IMAGE: &str = "bench";
/// What it executes around each operation's loop.
const MARKERS: (u16, u16) = (200, 201);

/// An operation, with a figure of Xen's to compare where it is not measured anew.
struct Operation {
    name: &'static str,
    title: &'static str,
    /// The same image on Debian's Xen 4.17 in the same QEMU.
    xen: u64,
    /// What microhv is to reach.
    aim: u64,
}

const fn operation(name: &'static str, title: &'static str, xen: u64, aim: u64) -> Operation {
    Operation { name, title, xen, aim }
}

const OPERATIONS: &[Operation] = &[
    operation("xen_version", "null hypercall (`xen_version`)", 331, 160),
    operation("vcpu_is_up", "`vcpu_op(is_up)`", 355, 170),
    operation("stack_switch", "`stack_switch`", 295, 170),
    operation("evtchn_self", "event to self: sent, delivered, returned", 643, 320),
    operation("evtchn_send_masked", "event send, masked", 558, 220),
    operation("evtchn_send_pending", "event send, pending already", 439, 220),
    operation("update_va_mapping", "`update_va_mapping`, no flush", 989, 450),
    operation("update_va_mapping_invlpg", "`update_va_mapping`, invlpg", 1_057, 450),
    operation("tlb_flush_local", "`mmuext_op`, local TLB flush", 546, 270),
    operation("pin_unpin_l1", "pin + unpin an empty L1", 18_954, 6_500),
    operation("grant_map_unmap", "grant map + unmap", 2_879, 1_200),
    operation("grant_map_unmap_device", "grant map + unmap, for a device", 2_260, 1_100),
    operation("grant_copy_4096", "grant copy, 4,096 bytes", 2_184, 1_200),
    operation("grant_copy_64", "grant copy, 64 bytes", 1_680, 700),
    operation("multicall_8", "multicall of 8", 1_938, 800),
    operation("int3", "kernel `int3` bounce", 398, 200),
    operation("user_syscall", "user syscall to guest kernel, back by `iret`", 807, 400),
    operation("cpuid_forced", "forced-emulation `cpuid`", 440, 250),
    operation("rdmsr_efer", "emulated `rdmsr`", 1_228, 500),
    operation("clts", "emulated `clts`", 1_212, 500),
];

/// Instructions of one operation, by name.
type Figures = BTreeMap<String, u64>;

/// What came of a machine: figures, and lines of operations that were skipped.
struct Measured {
    figures: Figures,
    skipped: Vec<String>,
}

/// Times the operations on the systems asked for and prints the table; false when a figure is missing.
///
/// # Errors
/// Xen cannot be made, or a machine did not run to its end.
pub(super) fn bench(options: &BenchOptions) -> Result<bool> {
    let (ours, theirs) = match options.on.unwrap_or(On::Microhv) {
        On::Microhv => (true, false),
        On::Xen => (false, true),
        On::Both => (true, true),
        On::Bare => return Err(usage("the operations are a hypervisor's: --on microhv, xen or both")),
    };
    let mut words = format!("ops={}", options.ops);
    if let Some(only) = &options.only {
        let _ = write!(words, " only={only}");
    }
    println!("image {IMAGE}: sha256 {}", images::find(IMAGE)?.sha256()?);
    let ours = ours.then(|| on_microhv(options, &words)).transpose()?;
    let theirs = theirs.then(|| on_xen(options, &words)).transpose()?;
    let table = Table { only: options.only.as_deref(), ours: ours.as_ref(), theirs: theirs.as_ref() };
    let (text, complete) = table.text();
    print!("{text}");
    if let Some(path) = &options.json {
        images::write(path, table.json()?.to_string().as_bytes())?;
    }
    Ok(complete)
}

fn on_microhv(options: &BenchOptions, words: &str) -> Result<Measured> {
    let mut machine = machine();
    if options.domu {
        machine.script = Some(vec![format!("xl create -c /boot/bench.cfg extra=\"{words}\"")]);
    } else {
        machine.dom0 = images::find(IMAGE)?.bootable();
        machine.dom0_arguments = words.to_string();
    }
    let directory = RunDirectory::new()?;
    let counts = directory.file("counts");
    if options.hot {
        machine.qemu_arguments.extend(plugin::arguments(&counts, Some(MARKERS))?);
    }
    let console = run(&machine)?;
    if options.hot {
        print_hot(&std::fs::read_to_string(&counts)?, options.ops)?;
    }
    Ok(measured(&console))
}

fn on_xen(options: &BenchOptions, words: &str) -> Result<Measured> {
    let host = xen::prepare()?;
    let kernel = images::find(IMAGE)?.bootable();
    let machine = xen::Options { icount: true, timeout: TIME_LIMIT, ..xen::Options::default() };
    if options.domu {
        let domain = xen::Domain {
            name: IMAGE.into(),
            kernel,
            ramdisk: None,
            memory_mib: 8,
            extra: words.into(),
            lines: Vec::new(),
        };
        let (ran, _) = host.run_domains(&[domain], TIME_LIMIT, &machine)?;
        return Ok(measured(&ran.first().context("a domain of one")?.console));
    }
    let output = host.boot_kernel_as_dom0(&kernel, words, &machine)?;
    if output.outcome != Outcome::Succeeded {
        eprintln!("{}", output.console.trim_end());
        bail!("the machine with Xen ended with {:?}", output.outcome);
    }
    Ok(measured(&output.console))
}

/// What there is to print.
struct Table<'a> {
    only: Option<&'a str>,
    ours: Option<&'a Measured>,
    theirs: Option<&'a Measured>,
}

impl Table<'_> {
    /// The operations asked for, with their figures: ours, Xen's.
    fn rows(&self) -> Vec<(&Operation, Option<u64>, Option<u64>)> {
        let figure = |measured: Option<&Measured>, name: &str| measured?.figures.get(name).copied();
        let wanted = OPERATIONS.iter().filter(|known| self.only.is_none_or(|only| only == known.name));
        let row = |known: &'static Operation| {
            let Operation { name, xen, .. } = *known;
            let xen = if self.theirs.is_some() { figure(self.theirs, name) } else { Some(xen) };
            (known, figure(self.ours, name), xen)
        };
        wanted.map(row).collect()
    }

    /// The table, and whether every figure is there that was to be measured.
    fn text(&self) -> (String, bool) {
        let mut text = String::from(
            "| operation | microhv | Xen 4.17 | ratio | aim | |\n| --- | --- | --- | --- | --- | --- |\n",
        );
        let mut complete = true;
        let shown = |figure: Option<u64>| figure.map_or("-".into(), thousands);
        for (known, ours, xen) in self.rows() {
            let verdict = match (ours, xen) {
                (Some(ours), Some(xen)) => known.verdict(ours, xen),
                _ if ours.is_none() && self.ours.is_some() || xen.is_none() => {
                    complete = false;
                    "missing"
                }
                _ => "",
            };
            let ratio = ratio(ours, xen)
                .map_or("-".into(), |hundredths| format!("{}.{:02}", hundredths / 100, hundredths % 100));
            let (title, ours, xen, aim) = (known.title, shown(ours), shown(xen), thousands(known.aim));
            let _ = writeln!(text, "| {title} | {ours} | {xen} | {ratio} | {aim} | {verdict} |");
        }
        for measured in [self.ours, self.theirs].into_iter().flatten() {
            for (name, ticks) in &measured.figures {
                if !OPERATIONS.iter().any(|known| known.name == name) {
                    let _ = writeln!(text, "{name}: {ticks}");
                }
            }
            for line in &measured.skipped {
                let _ = writeln!(text, "{line}");
            }
        }
        (text, complete)
    }

    /// The same for programs: the image, and by name the figures and their ratio in hundredths.
    fn json(&self) -> Result<Value> {
        let mut operations = Map::new();
        for (known, ours, xen) in self.rows() {
            let row = json!({
                "title": known.title,
                "microhv": ours,
                "xen": xen,
                "ratio_percent": ratio(ours, xen),
                "aim": known.aim,
            });
            operations.insert(known.name.into(), row);
        }
        Ok(json!({
            "image": IMAGE,
            "sha256": images::find(IMAGE)?.sha256()?,
            "xen_measured": self.theirs.is_some(),
            "operations": operations,
        }))
    }
}

/// Ours by Xen's, in hundredths.
fn ratio(ours: Option<u64>, xen: Option<u64>) -> Option<u64> {
    let (ours, xen) = (ours?, xen.filter(|xen| *xen > 0)?);
    Some((ours * 100 + xen / 2) / xen)
}

/// A number with commas.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Operation {
    fn verdict(&self, ours: u64, xen: u64) -> &'static str {
        if ours > xen {
            "over Xen"
        } else if ours <= self.aim {
            "reached"
        } else {
            "below Xen"
        }
    }
}

/// The figures on a console: `bench NAME TICKS ticks-per-op N ops`, whatever stands before.
fn measured(console: &str) -> Measured {
    let figure = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "bench").skip(1);
        let (name, ticks, unit) = (words.next()?, words.next()?, words.next()?);
        (unit == "ticks-per-op").then_some((name.to_string(), ticks.parse().ok()?))
    };
    // In an attached domain's line "bench" may stand twice: its name, then the figure.
    let after_name = |line: &str| line.split_once(") ").and_then(|(_, rest)| figure(rest));
    let skipped = console.lines().filter(|line| line.contains(" skipped: "));
    Measured {
        figures: console.lines().filter_map(|line| figure(line).or_else(|| after_name(line))).collect(),
        skipped: skipped.map(|line| line.trim().to_string()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_wherever_they_stand() {
        let console = "x\r\nbench xen_version 335 ticks-per-op 1000 ops\r\n(d1 bench) bench int3 401 ticks-per-op 9 ops\r\n\
                       bench clts skipped: no\r\nbench done\r\nbench x y ticks-per-op 1 ops\r\n";
        let Measured { figures, skipped } = measured(console);
        assert_eq!(figures.len(), 2);
        assert_eq!((figures["xen_version"], figures["int3"]), (335, 401));
        assert_eq!(skipped, ["bench clts skipped: no"]);
    }

    #[test]
    fn verdicts_at_their_edges() {
        let known = operation("x", "x", 300, 100);
        assert_eq!(known.verdict(100, 300), "reached");
        assert_eq!(known.verdict(101, 300), "below Xen");
        assert_eq!(known.verdict(300, 300), "below Xen");
        assert_eq!(known.verdict(301, 300), "over Xen");
        assert_eq!(known.verdict(100, 99), "over Xen");
    }

    #[test]
    fn every_aim_is_below_xens_figure() {
        assert!(OPERATIONS.iter().all(|known| known.aim < known.xen));
    }

    #[test]
    fn the_table_says_what_is_missing() {
        let of = |figures: &[(&str, u64)]| Measured {
            figures: figures.iter().map(|(name, ticks)| (name.to_string(), *ticks)).collect(),
            skipped: vec![],
        };
        let (ours, theirs) = (of(&[("clts", 1_500)]), of(&[("clts", 3_000)]));
        let table = Table { only: Some("clts"), ours: Some(&ours), theirs: Some(&theirs) };
        let (text, complete) = table.text();
        assert!(
            complete && text.contains("| emulated `clts` | 1,500 | 3,000 | 0.50 | 500 | below Xen |"),
            "{text}"
        );
        let none = of(&[]);
        for (ours, theirs) in [(Some(&none), None), (Some(&ours), Some(&none)), (None, Some(&none))] {
            assert!(!Table { only: Some("clts"), ours, theirs }.text().1);
        }
        assert!(Table { only: Some("clts"), ours: None, theirs: Some(&theirs) }.text().1);
        assert!(!Table { only: None, ours: Some(&ours), theirs: None }.text().1);
    }

    #[test]
    fn numbers_are_read_easily() {
        assert_eq!(["0", "999", "1,000", "12,345,678"], [0, 999, 1_000, 12_345_678].map(thousands));
    }
}
