//! `cargo xtask bench`: the figures of docs/PERFORMANCE.md.
//!
//! QEMU executes one instruction a tick (`-icount shift=0`), so that the guest's TSC counts instructions, and the
//! figures are the same on every host.

mod linux;
mod migrate;
pub mod neighbour;
mod net;
mod operations;
mod rounds;
mod smp;
pub mod stretch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::deps::{self, Need};
use crate::machine::{Disk, Machine, Net, Way};
use crate::plugin::{self, Counts};
use crate::qemu::{ICOUNT, RunDirectory};
use crate::session::{Attach, Outcome, Session};
use crate::symbols::Symbols;
use crate::{image_check, images, usage};

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchOptions {
    /// Which figures: operations (of the ABI, timed by the bench guest), system (boot and creation, counted, and how
    /// long the hypervisor takes no interrupt, at worst), linux (operations of Debian's kernel, fetched by apt), stretch (the latter for
    /// each case, and of two CPUs that call at the same time), neighbour (what a guest gets while another attacks), net (packets between guests, dom0 and the host), smp (what several CPUs give to several guests,
    /// and how one is shared), or migrate (dirty tracking, and a guest that moves to another machine). Without it: operations and system.
    #[arg(value_enum)]
    what: Option<What>,
    /// The system that operations, linux, net or smp are measured on: microhv unless given.
    #[arg(long, value_enum)]
    on: Option<On>,
    /// Writes the figures of operations, linux, neighbour, net or smp to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only this operation or attack, or these ways of packets, storms or shares, with commas between.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// How often each operation is done.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    ops: u64,
    /// How often each system reads its disk for linux, or moves packets for net at the host's speed, all of them in
    /// turn: medians are printed; the same for smp's storms. With 0 rounds only instructions are counted, as packets
    /// between net's Rust guests always are.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=99))]
    rounds: u32,
    /// The bench guest as a domain under dom0, not as dom0 itself.
    #[arg(long)]
    domu: bool,
    /// QEMU's CPU model, of microhv and of Xen: the operations' alone.
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// Words for the hypervisor's command line, of microhv and of Xen: the operations' alone.
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Also how often each operation loads CR3 and writes an MSR.
    #[arg(long)]
    registers: bool,
    /// Also where the hypervisor and dom0 spend the instructions of the operation that --only names.
    #[arg(long, requires = "only")]
    hot: bool,
}

/// A kind of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    Operations,
    System,
    Linux,
    Stretch,
    Neighbour,
    Net,
    Smp,
    Migrate,
}

/// A system to measure on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum On {
    /// microhv.
    Microhv,
    /// Debian's Xen.
    Xen,
    /// Linux as Xen's control domain, with no back end between it and the disk (linux).
    XenDom0,
    /// The machine without a hypervisor (linux).
    Bare,
    /// microhv and Xen, and for linux the bare machine too.
    Both,
}

impl On {
    /// The system's word on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Microhv => "microhv",
            Self::Xen => "xen",
            Self::XenDom0 => "xen-dom0",
            Self::Bare => "bare",
            Self::Both => "both",
        }
    }
}

/// Power-on to the prompt and `xl create` of a small guest: the aims, in instructions.
const BOOT_AIM: u64 = 300_000_000;
const CREATE_AIM: u64 = 10_000_000;
/// A block read end to end, across frontend, hypervisor and backend.
const READ_AIM: u64 = 15_000;
/// How many reads are timed, and on what disk.
const READS: u64 = 1000;
const DISK_BYTES: u64 = 16 << 20;

/// Where a boot is certainly stuck.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// Measures and prints; returns the exit status: 1 when a figure is missing.
///
/// # Errors
/// A tool is missing, a build failed, or a machine did not run to its end.
pub fn bench(options: &BenchOptions) -> Result<u8> {
    if let Some(only) = &options.only {
        check_name(options.what, only)?;
    }
    deps::ensure(&[Need::Qemu, Need::CCompiler])?;
    // Without dom0 in it, the operations' machine needs none built.
    let alone = options.what == Some(What::Operations) && !operations::needs_dom0(options);
    images::build(&images::ALL.iter().filter(|image| !alone || image.name != "dom0").collect::<Vec<_>>())?;
    let mut complete = true;
    if matches!(options.what, None | Some(What::Operations)) {
        complete &= operations::bench(options)?;
    }
    if matches!(options.what, None | Some(What::System)) {
        system()?;
        complete &= stretch::worst()?;
    }
    if options.what == Some(What::Linux) {
        complete &= linux::bench(options)?;
    }
    if options.what == Some(What::Stretch) {
        complete &= stretch::bench(options.only.as_deref())?;
    }
    if options.what == Some(What::Neighbour) {
        complete &= neighbour::bench(options)?;
    }
    if options.what == Some(What::Net) {
        complete &= net::bench(options)?;
    }
    if options.what == Some(What::Smp) {
        complete &= smp::bench(options)?;
    }
    if options.what == Some(What::Migrate) {
        complete &= migrate::bench()?;
    }
    Ok(u8::from(!complete))
}

/// Checks before a build that what `--only` names exists.
///
/// # Errors
/// Wrong usage: there is no such operation or attack.
fn check_name(what: Option<What>, only: &str) -> Result<()> {
    let (kind, known): (&str, Vec<&str>) = match what {
        None | Some(What::Operations) => ("operation", operations::names().collect()),
        Some(What::Linux) => ("operation", linux::names().collect()),
        Some(What::Neighbour) => ("attack", neighbour::names().collect()),
        Some(What::Net) => ("way", net::names().collect()),
        Some(What::Smp) => ("storm or share", smp::names().collect()),
        Some(What::System | What::Migrate) => {
            return Err(usage("these figures come together: leave --only out"));
        }
        // The guest names its cases while it runs.
        Some(What::Stretch) => return Ok(()),
    };
    let names =
        if matches!(what, Some(What::Net | What::Smp)) { only.split(',').collect() } else { vec![only] };
    let Some(only) = names.into_iter().find(|name| !known.contains(name)) else { return Ok(()) };
    Err(usage(format!("--only {only}: there is no such {kind}: there are {}", known.join(", "))))
}

/// The machine of every figure, at the host's speed.
fn machine() -> Machine {
    Machine { cpus: 1, net: Net::None, timeout: Some(TIME_LIMIT), ..Machine::default() }
}

/// The machine for counted figures: one instruction a tick.
fn counting_machine() -> Machine {
    Machine { qemu_arguments: ICOUNT.map(str::to_string).to_vec(), ..machine() }
}

/// KiB that microhv and dom0 may take at the prompt.
const MEMORY_AIM_KIB: u64 = 32 << 10;

/// Runs a machine to its end; returns its console.
fn run(machine: &Machine) -> Result<String> {
    let (outcome, console) = Session::start(machine, Attach::Nobody)?.wait();
    if outcome != Outcome::Succeeded {
        eprintln!("{}", console.trim_end());
        Symbols::of_images().explain(&console);
        bail!("the machine {outcome}");
    }
    Ok(console)
}

/// The longest that an image's code may be behind the start of its last function. Nothing else lies within this
/// distance.
const IMAGE_END: u64 = (1 << 20) - 1;
/// Where no function of ours is.
const OTHER: &str = "(other kernels)";

/// Prints the instructions of one operation for each function of the hypervisor and of dom0, most first, and for
/// all other kernels together. Inlined code counts for the function that contains it.
fn print_hot(output: &str, ops: u64) -> Result<()> {
    let mut functions = Vec::new();
    for image in ["microhv", "dom0"] {
        let bytes = std::fs::read(images::find(image)?.linked())?;
        let names = image_check::names(&object::File::parse(&*bytes)?);
        let end = names.last().map_or(0, |(start, _)| start | IMAGE_END);
        functions.extend(names.into_iter().map(|(start, name)| (start, format!("{image}: {name}"))));
        functions.push((end, OTHER.into()));
    }
    functions.sort();
    let mut by_function = BTreeMap::new();
    for block in plugin::blocks(output) {
        let above = functions.partition_point(|(start, _)| *start <= block.address);
        let (start, name) =
            above.checked_sub(1).map_or((0, OTHER), |index| (functions[index].0, &*functions[index].1));
        let (instructions, calls) = by_function.entry(name).or_insert((0, 0));
        *instructions += block.runs * block.instructions;
        *calls += if block.address == start { block.runs } else { 0 };
    }
    let mut sorted: Vec<(&str, (u64, u64))> = by_function.into_iter().collect();
    sorted.sort_by_key(|(_, (instructions, _))| std::cmp::Reverse(*instructions));
    println!("instructions per operation, by function, and how often it was called:");
    for (name, (instructions, calls)) in
        sorted.into_iter().take_while(|(_, (instructions, _))| *instructions >= ops)
    {
        println!("{:8} {:8.1} {name}", instructions / ops, calls as f64 / ops as f64);
    }
    Ok(())
}

/// Counts the instructions of a boot, of a creation, and of block reads. A creation is the difference between
/// boots with and without one.
fn system() -> Result<()> {
    let boot = whole(&marks(&[], &[])?)?;
    let create = whole(&marks(&["xl create -p /boot/hello.cfg"], &[])?)?;
    println!("| from, to | instructions | hypervisor | kernels | aim |");
    println!("| --- | --- | --- | --- | --- |");
    row("power-on, dom0's prompt, power-off", &boot, 1, BOOT_AIM);
    row("`xl create` of 8 MiB, the guest's first instruction", &create.since(&boot), 1, CREATE_AIM);

    let directory = RunDirectory::new()?;
    let disk = directory.file("disk");
    std::fs::File::create(&disk)?.set_len(DISK_BYTES)?;
    for (way, name) in Way::ALL {
        let device = way.disk_name(0);
        let line =
            format!("xl create -c /boot/hello.cfg extra=\"reads={READS}\" disk=['phy:/dev/{device},xvda,r']");
        let marks = marks(&[&line], &[Disk { way, ..Disk::file(&disk) }])?;
        for (what, from, to) in [("one at a time", 210, 211), ("32 at a time", 212, 213)] {
            let counts = |number| marks.iter().find(|(mark, _)| *mark == number).map(|(_, counts)| *counts);
            let (Some(from), Some(to)) = (counts(from), counts(to)) else {
                bail!("the guest timed no reads");
            };
            row(&format!("a 4 KiB block read, {name}, {what}"), &to.since(&from), READS, READ_AIM);
        }
    }
    memory()
}

/// Prints how much of a machine of the default size microhv and dom0 take at the prompt.
fn memory() -> Result<()> {
    let script = Some(vec!["xl info".to_string()]);
    let default = Machine::default();
    let console = run(&Machine { script, timeout: Some(TIME_LIMIT), net: Net::None, ..default })?;
    let figure = |key: &str| -> Result<u64> {
        let line = console.lines().find(|line| line.starts_with(key)).context("`xl info` lacks a line")?;
        Ok(line.rsplit(' ').next().unwrap_or_default().trim().parse()?)
    };
    let used = figure("total_frames")? - figure("free_frames")? - figure("bundle_frames")?;
    println!("| at the prompt | KiB | aim |");
    println!("| --- | --- | --- |");
    println!("| microhv and dom0 on 1024 MiB, the bundle not counted | {} | {} |", used * 4, MEMORY_AIM_KIB);
    Ok(())
}

/// Prints a line of the system's table: counts for one of `times`.
fn row(what: &str, counts: &Counts, times: u64, aim: u64) {
    let [total, hypervisor, kernel] =
        [counts.total(), counts.hypervisor, counts.kernel].map(|instructions| instructions / times);
    println!("| {what} | {total} | {hypervisor} | {kernel} | {aim} |");
}

/// The counts at the machine's end.
fn whole(marks: &[(u32, Counts)]) -> Result<Counts> {
    marks.last().map(|(_, counts)| *counts).context("the counting plugin wrote nothing")
}

/// The counts at every mark of a machine that runs `lines` and powers off.
fn marks(lines: &[&str], disks: &[Disk]) -> Result<Vec<(u32, Counts)>> {
    let directory = RunDirectory::new()?;
    let file = directory.file("counts");
    let mut machine = counting_machine();
    machine.script = Some(lines.iter().map(|line| line.to_string()).collect());
    machine.disks.extend_from_slice(disks);
    machine.qemu_arguments.extend(plugin::arguments(&file, None)?);
    run(&machine)?;
    Ok(plugin::marks(&std::fs::read_to_string(&file)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_names_must_be_there() {
        for what in [
            None,
            Some(What::Operations),
            Some(What::Linux),
            Some(What::Neighbour),
            Some(What::Net),
            Some(What::Smp),
            Some(What::System),
        ] {
            let error = check_name(what, "nope").expect_err("there is none");
            assert!(error.is::<crate::Usage>(), "{what:?}: {error}");
        }
        for (what, only) in [(None, "clts"), (Some(What::Operations), "int3"), (Some(What::Linux), "disk")] {
            check_name(what, only).expect(only);
        }
        check_name(Some(What::Net), "guest_tcp,64").expect("two ways");
        check_name(Some(What::Net), "guest_tcp,nope").expect_err("there is one");
    }
}
