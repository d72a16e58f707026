//! `cargo xtask bench operations`: what operations of the ABI cost, on microhv and on Debian's Xen.
//!
//! The guest `guests/bench` times each operation by the TSC, which counts instructions here. The same image runs on
//! both hypervisors, and does not know on which.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::{BenchOptions, On, TIME_LIMIT, counting_machine, print_hot, run};
use crate::plugin;
use crate::qemu::RunDirectory;
use crate::session::Outcome;
use crate::xen;
use crate::{images, usage};

/// The guest.
const IMAGE: &str = "bench";
/// The domain that answers the measuring domain. This one is created first and is domain 1; the measuring
/// domain is domain 2.
const SERVER: &str = "server";
const SERVER_WORDS: &str = "echo=2";
const CLIENT_WORDS: &str = "partner=1";
/// The markers that the guest executes around each operation's loop.
const MARKERS: (u16, u16) = (200, 201);

/// An operation, with a figure of Xen's to compare where it is not measured anew.
struct Operation {
    name: &'static str,
    title: &'static str,
    /// The same image on Debian's Xen 4.17 in the same QEMU.
    xen: u64,
    /// What microhv is to reach.
    aim: u64,
    scene: Scene,
}

/// What runs beside the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// Nothing: the guest is the control domain, or a domain with `--domu`.
    Alone,
    /// The guest is a domain with two vCPUs, and a second domain answers.
    Company,
}

const fn operation(name: &'static str, title: &'static str, xen: u64, aim: u64) -> Operation {
    Operation { name, title, xen, aim, scene: Scene::Alone }
}

const fn in_company(name: &'static str, title: &'static str, xen: u64, aim: u64) -> Operation {
    Operation { name, title, xen, aim, scene: Scene::Company }
}

const OPERATIONS: &[Operation] = &[
    operation("xen_version", "null hypercall (`xen_version`)", 331, 160),
    operation("vcpu_is_up", "`vcpu_op(is_up)`", 355, 170),
    operation("stack_switch", "`stack_switch`", 295, 170),
    operation("evtchn_self", "event to self: sent, delivered, returned", 643, 320),
    operation("evtchn_send_masked", "event send, masked", 558, 220),
    operation("evtchn_send_pending", "event send, pending already", 439, 220),
    operation("update_va_mapping", "`update_va_mapping`, no flush", 991, 450),
    operation("update_va_mapping_invlpg", "`update_va_mapping`, invlpg", 1_054, 450),
    operation("tlb_flush_local", "`mmuext_op`, local TLB flush", 546, 270),
    operation("pin_unpin_l1", "pin + unpin an empty L1", 18_957, 6_500),
    operation("grant_map_unmap", "grant map + unmap", 2_877, 1_200),
    operation("grant_map_unmap_device", "grant map + unmap, for a device", 2_260, 1_100),
    operation("grant_copy_4096", "grant copy, 4,096 bytes", 2_184, 1_200),
    operation("grant_copy_64", "grant copy, 64 bytes", 1_680, 700),
    operation("grant_copy_batch", "grant copy, one of 32, 64 bytes from grant to grant", 1_579, 300),
    operation("grant_copy_batch_from", "grant copy, one of 32, 64 bytes from grant to own frame", 1_194, 300),
    operation("grant_copy_batch_to", "grant copy, one of 32, 64 bytes from own frame to grant", 1_206, 300),
    operation("grant2_map_unmap", "version 2: grant map + unmap", 2_923, 1_500),
    operation("grant2_map_unmap_device", "version 2: grant map + unmap, for a device", 2_308, 1_150),
    operation("grant2_copy_4096", "version 2: grant copy, 4,096 bytes", 2_227, 1_300),
    operation("grant2_copy_64", "version 2: grant copy, 64 bytes", 1_723, 800),
    operation("grant2_copy_batch", "version 2: one of 32 from grant to grant", 1_668, 400),
    operation("grant2_copy_batch_from", "version 2: one of 32 from grant to own frame", 1_237, 400),
    operation("grant2_copy_batch_to", "version 2: one of 32 from own frame to grant", 1_252, 400),
    operation("multicall_8", "multicall of 8", 1_938, 800),
    operation("int3", "kernel `int3` bounce", 400, 200),
    operation("user_syscall", "user syscall to guest kernel, back by `iret`", 805, 400),
    operation("cpuid_forced", "forced-emulation `cpuid`", 440, 250),
    operation("rdmsr_efer", "emulated `rdmsr`", 1_228, 500),
    operation("clts", "emulated `clts`", 1_212, 500),
    operation("mmu_update_1", "`mmu_update`, 1 entry", 973, 490),
    operation("mmu_update_8", "`mmu_update`, 8 entries", 4_532, 2_250),
    operation("mmu_update_64", "`mmu_update`, 64 entries", 33_020, 16_500),
    operation("page_fault", "page fault of a kernel, bounced and back", 465, 230),
    operation("page_fault_user", "page fault of user mode, bounced and back", 953, 475),
    operation("set_timer_op", "`set_timer_op`", 610, 300),
    operation("singleshot_timer", "`vcpu_op(set_singleshot_timer)`", 705, 350),
    in_company("evtchn_send_vcpu", "event send to another vCPU", 529, 260),
    in_company("vcpu_round_trip", "event to another vCPU and back, with both switches", 14_408, 5_000),
    in_company("evtchn_send_domain", "event send to another domain", 554, 280),
    in_company("domain_round_trip", "event to another domain and back, with both switches", 9_587, 5_000),
    in_company("xenstore_read", "xenstore read of a node, with all that the daemon does", 107_820, 50_000),
    in_company("console_line", "a line of 64 bytes on the console, until it was taken", 55_887, 27_000),
];

/// Instructions of one operation, by name.
type Figures = BTreeMap<String, u64>;

/// The results of the machines: figures, and lines about skipped operations.
#[derive(Debug, Default)]
struct Measured {
    figures: Figures,
    skipped: Vec<String>,
}

/// What `--only` knows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OPERATIONS.iter().map(|known| known.name)
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
        On::Bare | On::XenDom0 => {
            return Err(usage("the operations are a hypervisor's: --on microhv, xen or both"));
        }
    };
    let mut words = format!("ops={}", options.ops);
    if let Some(only) = &options.only {
        let _ = write!(words, " only={only}");
    }
    println!("image {IMAGE}: sha256 {}", images::find(IMAGE)?.sha256()?);
    let scenes = scenes(options.only.as_deref());
    let ours = ours.then(|| on_microhv(options, &scenes, &words)).transpose()?;
    let theirs = theirs.then(|| on_xen(options, &scenes, &words)).transpose()?;
    let table = Table { only: options.only.as_deref(), ours: ours.as_ref(), theirs: theirs.as_ref() };
    let (text, complete) = table.text();
    print!("{text}");
    if let Some(path) = &options.json {
        images::write(path, table.json()?.to_string().as_bytes())?;
    }
    Ok(complete)
}

/// The scenes to run: all, or the scene of the operation that `only` names.
fn scenes(only: Option<&str>) -> Vec<Scene> {
    let of =
        |name| OPERATIONS.iter().find(|known| known.name == name).map_or(Scene::Alone, |known| known.scene);
    only.map_or(vec![Scene::Alone, Scene::Company], |name| vec![of(name)])
}

/// Whether the control domain's image is wanted, and not only the guest.
pub(super) fn needs_dom0(options: &BenchOptions) -> bool {
    options.domu || scenes(options.only.as_deref()).contains(&Scene::Company)
}

fn on_microhv(options: &BenchOptions, scenes: &[Scene], words: &str) -> Result<Measured> {
    let mut all = Measured::default();
    for scene in scenes {
        let mut machine = counting_machine();
        machine.hypervisor_arguments.clone_from(&options.append);
        let create = |words: &str| format!("xl create -c /boot/bench.cfg extra=\"{words}\"");
        match scene {
            Scene::Alone if options.domu => machine.script = Some(vec![create(words)]),
            Scene::Alone => {
                machine.dom0 = images::find(IMAGE)?.bootable();
                machine.dom0_arguments = words.to_string();
            }
            Scene::Company => {
                let server = format!("xl create /boot/bench.cfg name=\"{SERVER}\" extra=\"{SERVER_WORDS}\"");
                let client = create(&format!("{CLIENT_WORDS} {words}")) + " vcpus=2";
                machine.script = Some(vec![server, client, format!("xl destroy {SERVER}")]);
            }
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
        all.add(&console);
    }
    Ok(all)
}

fn on_xen(options: &BenchOptions, scenes: &[Scene], words: &str) -> Result<Measured> {
    let host = xen::prepare()?;
    let kernel = images::find(IMAGE)?.bootable();
    let machine = xen::Options {
        icount: true,
        timeout: TIME_LIMIT,
        hypervisor_arguments: options.append.clone(),
        ..xen::Options::default()
    };
    let domain = |name: &str, extra: &str, vcpus: u32| xen::Domain {
        name: name.into(),
        kernel: kernel.clone(),
        ramdisk: None,
        memory_mib: 8,
        extra: extra.into(),
        lines: vec![format!("vcpus={vcpus}")],
    };
    let mut all = Measured::default();
    for scene in scenes {
        let domains = match scene {
            Scene::Alone if options.domu => vec![domain(IMAGE, words, 1)],
            Scene::Alone => {
                let output = host.boot_kernel_as_dom0(&kernel, words, &machine)?;
                if output.outcome != Outcome::Succeeded {
                    eprintln!("{}", output.console.trim_end());
                    bail!("the machine with Xen {}", output.outcome);
                }
                all.add(&output.console);
                continue;
            }
            Scene::Company => {
                let client = format!("{CLIENT_WORDS} {words}");
                vec![domain(SERVER, SERVER_WORDS, 1), domain(IMAGE, &client, 2)]
            }
        };
        let (ran, _) = host.run_domains(&domains, TIME_LIMIT, &machine)?;
        all.add(&ran.last().context("there is a domain")?.console);
    }
    Ok(all)
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

impl Measured {
    /// Adds a console's figures, from lines `bench NAME TICKS ticks-per-op N ops` behind any prefix.
    fn add(&mut self, console: &str) {
        let figure = |line: &str| {
            let mut words = line.split_whitespace().skip_while(|word| *word != "bench").skip(1);
            let (name, ticks, unit) = (words.next()?, words.next()?, words.next()?);
            (unit == "ticks-per-op").then_some((name.to_string(), ticks.parse().ok()?))
        };
        // In an attached domain's line "bench" may stand twice: its name, then the figure.
        let after_name = |line: &str| line.split_once(") ").and_then(|(_, rest)| figure(rest));
        self.figures.extend(console.lines().filter_map(|line| figure(line).or_else(|| after_name(line))));
        let skipped = console.lines().filter(|line| line.contains(" skipped: "));
        self.skipped.extend(skipped.map(|line| line.trim().to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_wherever_they_stand() {
        let console = "x\r\nbench xen_version 335 ticks-per-op 1000 ops\r\n(d1 bench) bench int3 401 ticks-per-op 9 ops\r\n\
                       bench clts skipped: no\r\nbench done\r\nbench x y ticks-per-op 1 ops\r\n";
        let mut all = Measured::default();
        all.add(console);
        let Measured { figures, skipped } = all;
        assert_eq!(figures.len(), 2);
        assert_eq!((figures["xen_version"], figures["int3"]), (335, 401));
        assert_eq!(skipped, ["bench clts skipped: no"]);
    }

    #[test]
    fn an_operation_has_its_scene() {
        assert_eq!(scenes(Some("clts")), [Scene::Alone]);
        assert_eq!(scenes(Some("domain_round_trip")), [Scene::Company]);
        assert_eq!(scenes(None).len(), 2);
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
