//! `cargo xtask test`: host tests, image builds with their check, system tests; and one total.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::deps::{self, Need};
use crate::machine::{Boot, Emulator, Way};
use crate::{backports, cargo, cpu_model, fuzz, images, paths, qemu, usage};

/// Set for the system tests' process: the images are built, so that machines may be booted.
pub const IMAGES_BUILT: &str = "MICROHV_IMAGES_BUILT";
/// Set to run the long tests too.
pub const SOAK: &str = "MICROHV_SOAK";
/// How often the hypervisor's duels play each pair of deeds, whether this is a soak or not.
const DUEL_PLAYS: &str = "MICROHV_DUEL_PLAYS";

/// Set to the emulator of machines that do not say which they want.
pub const ON: &str = "MICROHV_ON";
/// Set to the number of CPUs of machines that do not say how many they have.
pub const SMP: &str = "MICROHV_SMP";
/// Set to the CPU model of machines that do not say which they have.
pub const CPU: &str = "MICROHV_CPU";
/// Set to what starts machines that do not say what does.
pub const BOOT: &str = "MICROHV_BOOT";
/// Set to the way by which machines reach disks that a test asks for without a kind; with another than virtio a machine has
/// no virtio device at all.
pub const DISKS: &str = "MICROHV_DISKS";

/// What to test.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TestOptions {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Only tests that run on the host.
    #[arg(long, conflicts_with = "system")]
    host: bool,
    /// Only tests that boot a machine.
    #[arg(long)]
    system: bool,
    /// The long tests too.
    #[arg(long, conflicts_with = "host")]
    soak: bool,
    /// CPUs of each machine that does not say how many it has.
    #[arg(long, value_name = "N", conflicts_with = "host", value_parser = clap::value_parser!(u32).range(1..=64))]
    smp: Option<u32>,
    /// The CPU model of each machine that does not say which it has, as for `run --cpu`.
    #[arg(long, value_name = "MODEL", conflicts_with = "host")]
    cpu: Option<String>,
    /// The emulator. With bochs, tests of what its machine has not are left out: disks, a network, and who types.
    #[arg(long, value_enum, conflicts_with_all = ["host", "boot", "disks", "qemu"])]
    on: Option<Emulator>,
    /// What starts each machine that does not say what does, as for `run --boot`.
    #[arg(long, value_enum, conflicts_with = "host")]
    boot: Option<Boot>,
    /// How each machine reaches disks whose kind the test does not choose. With nvme or ahci no machine has a virtio device
    /// (its network card is an e1000e), and tests about virtio are left out.
    #[arg(long, value_enum, value_name = "WAY", conflicts_with = "host")]
    disks: Option<Way>,
    /// The QEMU that machines run in: a program, or `backports` for the one of Debian's backports, which is fetched. Tests that
    /// count instructions want the installed one.
    #[arg(long, value_name = "PATH", conflicts_with = "host")]
    qemu: Option<String>,
}

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
}

impl Totals {
    /// Adds the numbers in a test program's last line, `test result: ok. 3 passed; 0 failed; ...`.
    fn add(&mut self, line: &str) {
        let Some(results) = line.trim().strip_prefix("test result:") else { return };
        for part in results.split([';', '.']) {
            let mut words = part.split_whitespace();
            if let (Some(count), Some(what)) =
                (words.next().and_then(|word| word.parse::<u64>().ok()), words.next())
            {
                match what {
                    "passed" => self.passed += count,
                    "failed" => self.failed += count,
                    _ => {}
                }
            }
        }
    }
}

/// Runs the tests; returns the exit status: 0 when all passed.
///
/// # Errors
/// A tool is missing or cargo cannot be run.
pub fn test(options: &TestOptions) -> Result<u8> {
    let mut totals = Totals::default();
    if let Some(model) = options.cpu.as_ref().filter(|_| options.on != Some(Emulator::Bochs)) {
        // Told ahead of the host tests, which take minutes.
        deps::ensure(&[Need::Qemu])?;
        cpu_model::check(model)?;
    }
    if !options.system {
        deps::ensure(&[Need::CCompiler, Need::XenHeaders])?;
        let mut command = cargo::host(&["test", "--workspace", "--no-fail-fast"]);
        if options.soak {
            command.env(SOAK, "1").env(DUEL_PLAYS, "1");
        }
        stage("host tests", with_filter(&mut command, options), &mut totals, std::io::stdout())?;
        let duels = options.filter.as_deref().unwrap_or("duels::");
        if options.soak && duels.contains("duels") {
            // As many plays as a soak has would take hours where nothing is optimised.
            let mut command =
                cargo::host(&["test", "--package", "microhv", "--lib", "--profile", "checked", "--", duels]);
            command.env(SOAK, "1");
            stage("duels", &mut command, &mut totals, std::io::stdout())?;
        }
        let mut command =
            cargo::host(&["test", "--package", "ring-abi", "--test", "ring_model", "--release"]);
        command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", paths::target().join("loom"));
        stage("model checker", with_filter(&mut command, options), &mut totals, std::io::stdout())?;
        // Under the checker, the hypervisor's other tests have words that only a model may use.
        let models = options.filter.as_deref().unwrap_or("model::");
        if models.contains("model::") {
            let mut command =
                cargo::host(&["test", "--package", "microhv", "--lib", "--release", "--", models]);
            command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", paths::target().join("loom"));
            stage("model checker, words", &mut command, &mut totals, std::io::stdout())?;
        }
    }
    if !options.host {
        deps::ensure(&[Need::Qemu, Need::Grub])?;
        if options.on == Some(Emulator::Bochs) {
            deps::ensure(&[Need::Bochs])?;
        }
        if options.boot.is_some_and(Boot::is_by_uefi) {
            deps::ensure(&[Need::Uefi])?;
        }
        match images::build(&images::ALL.iter().collect::<Vec<_>>()) {
            Ok(()) => {
                let mut command = system_tests(options)?;
                stage("system tests", with_filter(&mut command, options), &mut totals, std::io::stdout())?;
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                totals.failed += 1;
            }
        }
    }
    if options.soak {
        fuzz(options, &mut totals)?;
    }
    println!("{} passed, {} failed", totals.passed, totals.failed);
    if let Some(filter) = options.filter.as_ref().filter(|_| totals.passed + totals.failed == 0) {
        return Err(usage(format!("no test ran: none has {filter:?} in its name, or it needs --soak")));
    }
    Ok(u8::from(totals.failed != 0))
}

/// The command of the system tests, told what machines are to be.
fn system_tests(options: &TestOptions) -> Result<Command> {
    let mut command = cargo::host(&["test", "--package", "tests", "--test", "system"]);
    command.env(IMAGES_BUILT, "1");
    if options.soak {
        command.env(SOAK, "1");
    }
    if let Some(cpus) = options.smp {
        command.env(SMP, cpus.to_string());
    }
    if let Some(model) = &options.cpu {
        command.env(CPU, model);
    }
    if let Some(boot) = options.boot.and_then(|boot| boot.to_possible_value()) {
        command.env(BOOT, boot.get_name());
    }
    if let Some(emulator) = options.on.and_then(|emulator| emulator.to_possible_value()) {
        command.env(ON, emulator.get_name());
    }
    if let Some(way) = options.disks {
        command.env(DISKS, way.name());
    }
    match options.qemu.as_deref() {
        Some(backports::NAME) => drop(command.env(qemu::OTHER, backports::qemu()?)),
        Some(program) => drop(command.env(qemu::OTHER, program)),
        None => {}
    }
    Ok(command)
}

/// Fuzzes every target of a name with the filter in it, and counts each as a test.
fn fuzz(options: &TestOptions, totals: &mut Totals) -> Result<()> {
    let mut names = fuzz::targets()?;
    names.retain(|name| {
        options.filter.as_ref().is_none_or(|filter| format!("fuzz {name}").contains(filter.as_str()))
    });
    if names.is_empty() {
        return Ok(());
    }
    eprintln!("fuzzers");
    let (clean, findings) = fuzz::run(&names, fuzz::SOAK_SECONDS, None)?;
    totals.passed += clean;
    totals.failed += findings;
    Ok(())
}

fn with_filter<'a>(command: &'a mut Command, options: &TestOptions) -> &'a mut Command {
    if let Some(filter) = &options.filter {
        command.args(["--", filter]);
    }
    command
}

/// Runs one test command, shows what it prints and adds its results. A command that fails without a failed
/// test (a crate that does not compile) counts as a failed test.
fn stage(name: &str, command: &mut Command, totals: &mut Totals, mut shown: impl Write) -> Result<()> {
    eprintln!("{name}");
    let failed_before = totals.failed;
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run the {name}"))?;
    let stdout = child.stdout.take().context("cargo's output is not piped")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let text = String::from_utf8_lossy(&line);
        writeln!(shown, "{text}")?;
        totals.add(&text);
    }
    let status = child.wait()?;
    if !status.success() && totals.failed == failed_before {
        eprintln!("error: the {name} could not be run: {status}");
        totals.failed += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_add_up() {
        let mut totals = Totals::default();
        totals.add(
            "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.31s",
        );
        totals.add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        totals.add("test some::case ... ok");
        totals.add("9 passed; 9 failed");
        assert_eq!(totals, Totals { passed: 13, failed: 2 });
    }

    #[test]
    fn a_stage_that_cannot_run_is_a_failure() {
        let mut totals = Totals::default();
        stage("a test", Command::new("sh").args(["-c", "exit 3"]), &mut totals, std::io::sink())
            .expect("a shell");
        assert_eq!(totals, Totals { passed: 0, failed: 1 });
        let line = "echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored'; exit 101";
        stage("a test", Command::new("sh").args(["-c", line]), &mut totals, std::io::sink())
            .expect("a shell");
        assert_eq!(totals, Totals { passed: 1, failed: 3 });
    }
}
