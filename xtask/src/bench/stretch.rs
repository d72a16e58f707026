//! How long the hypervisor runs without taking an interrupt, in instructions: `guests/hostile` makes the calls that
//! take longest, as a guest, as a control domain, and on two CPUs at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSymbol};

use super::{counting_machine, run};
use crate::image_check;
use crate::images;
use crate::machine::Machine;
use crate::plugin::{self, Places, Stretch};
use crate::qemu::RunDirectory;
use crate::usage;

/// The longest stretch that may be on one CPU, in instructions.
pub const LIMIT: u64 = 150_000;
/// The same where a second CPU is busy: the CPU may wait, with interrupts off, for one piece of the other's.
pub const PAIR_LIMIT: u64 = 2 * LIMIT;
/// Memory of the machines, in MiB, and of the guest in each.
const SIZES: [(u32, u32); 2] = [(256, 144), (2048, 1536)];
/// Memory of the machine of guests with many vCPUs, in MiB.
const HERDS_MEMORY: u32 = 256;
/// Memory of the machine of pairs, and of the guest in it, in MiB.
const PAIRS_MEMORY: u32 = 256;
const PAIRS_GUEST: u32 = 64;
/// After how long dom0 ends the guest that calls without end.
const HAMMERED_SECONDS: &str = "0.1";
/// The function in which the hypervisor waits for other CPUs.
const WAIT: &str = "microhv::sync::wait_until";
/// The function that the hypervisor calls when it has looked for interrupts and found none.
const NONE_WAITS: &str = "microhv::arch::x86_64::apic::nothing_waits";
/// The mark behind each case.
const CASE_ENDS: u32 = 301;
/// Functions of a stretch over the limit that are named.
const NAMED: usize = 6;

/// A case and its longest stretch.
pub type Measured = (String, Stretch);

/// Prints the table; true if no stretch is over its limit.
///
/// # Errors
/// A machine did not run to its end, or the images lack the symbols that the plugin needs.
pub(super) fn bench(only: Option<&str>) -> Result<bool> {
    let hypervisor = Hypervisor::load()?;
    println!("| machine | case | longest stretch | of that executed by another CPU |");
    println!("| --- | --- | --- | --- |");
    let mut over = Vec::new();
    let (mut shown, mut known) = (0, BTreeSet::new());
    for scene in scenes()?.into_iter().filter(|scene| only.is_none_or(|only| scene.may_have(only))) {
        let (memory, limit) = (scene.machine.memory_mib, scene.limit());
        for (name, stretch) in scene.measure(&hypervisor)? {
            known.insert(name.clone());
            if only.is_some_and(|only| !name.contains(only)) {
                continue;
            }
            shown += 1;
            println!("| {memory} MiB | {name} | {} | {} |", stretch.length, stretch.waited);
            if stretch.length > limit {
                over.push((memory, limit, name, stretch));
            }
        }
    }
    if let Some(only) = only.filter(|_| shown == 0) {
        let known: Vec<String> = known.into_iter().collect();
        return Err(usage(format!(
            "--only {only}: no case has that in its name: there are {}",
            known.join(", ")
        )));
    }
    for (memory, limit, name, stretch) in &over {
        println!(
            "\nover {limit} on {memory} MiB: {name}, {} from {:#x}, of that {} by another CPU:",
            stretch.length, stretch.entered_from, stretch.waited
        );
        for (function, instructions) in functions(stretch, &hypervisor.names).into_iter().take(NAMED) {
            println!("{instructions:10} {function}");
        }
    }
    println!("\n{} of the stretches are over their limit", over.len());
    Ok(over.is_empty())
}

/// Prints the case with the longest stretch of those on one CPU, on the smaller machine, and of those on two; true if neither is over its limit.
///
/// # Errors
/// As for [`bench`].
pub(super) fn worst() -> Result<bool> {
    let hypervisor = Hypervisor::load()?;
    let (memory, guest) = SIZES[0];
    let mut is_kept = true;
    println!("| no interrupt is taken, at most | instructions | limit |");
    println!("| --- | --- | --- |");
    for scenes in [vec![any_guest(memory, guest), control_domain(memory)?], vec![pairs()]] {
        let (mut all, mut limit) = (Vec::new(), LIMIT);
        for scene in scenes {
            limit = scene.limit();
            all.extend(scene.measure(&hypervisor)?);
        }
        let longest = all.into_iter().max_by_key(|(_, stretch)| stretch.length);
        let (name, stretch) = longest.context("no case ran")?;
        println!("| {name} | {} | {limit} |", stretch.length);
        is_kept &= stretch.length <= limit;
    }
    Ok(is_kept)
}

/// The longest stretch of each pair of calls that two vCPUs make at the same time.
///
/// # Errors
/// As for [`bench`].
pub fn of_pairs() -> Result<Vec<Measured>> {
    pairs().measure(&Hypervisor::load()?)
}

/// What of the hypervisor's symbols is needed.
struct Hypervisor {
    /// Functions by their addresses.
    names: Vec<(u64, String)>,
    places: Places,
}

impl Hypervisor {
    fn load() -> Result<Self> {
        let bytes = std::fs::read(images::find("microhv")?.linked())?;
        let file = object::File::parse(&*bytes)?;
        let address = |wanted: &str| {
            let found = file.symbols().find(|symbol| symbol.name() == Ok(wanted));
            found.map(|symbol| symbol.address()).with_context(|| format!("the hypervisor has no {wanted}"))
        };
        let names = image_check::names(&file);
        let function = |wanted: &str| -> Result<Range<u64>> {
            let found = names.iter().position(|(_, name)| name == wanted);
            let found = found.with_context(|| format!("the hypervisor has no {wanted}"))?;
            Ok(names[found].0..names.get(found + 1).map_or(u64::MAX, |(address, _)| *address))
        };
        let places = Places {
            stubs: address("vector_stubs")?,
            guest_iret: address("guest_iret")?,
            wait: function(WAIT)?,
            none_waits: Some(function(NONE_WAITS)?.start),
        };
        Ok(Self { names, places })
    }
}

/// How the names begin of the cases of some machines. No other machine's do.
const PREFIXES: [&str; 2] = [CONTROL, PAIRS];
const CONTROL: &str = "control domain";
const PAIRS: &str = "two vCPUs";

/// A machine, and how the names of its cases begin.
struct Scene {
    machine: Machine,
    prefix: &'static str,
    /// What comes behind the last case, until the machine's end, and is one more.
    last: Option<&'static str>,
}

impl Scene {
    /// Whether a case of this machine may have `only` in its name.
    fn may_have(&self, only: &str) -> bool {
        let named = PREFIXES.into_iter().find(|prefix| only.starts_with(prefix));
        named.is_none_or(|prefix| prefix == self.prefix)
    }

    /// The longest stretch that may be.
    fn limit(&self) -> u64 {
        if self.machine.cpus > 1 { PAIR_LIMIT } else { LIMIT }
    }

    /// The longest stretch of each case.
    fn measure(self, hypervisor: &Hypervisor) -> Result<Vec<Measured>> {
        let Self { mut machine, prefix, last } = self;
        let directory = RunDirectory::new()?;
        let file = directory.file("stretches");
        // Of one CPU the whole stretch counts: a timer comes all the time, so that something waits soon after each begins. With several
        // CPUs, QEMU 7.2 may execute one of them for long while a timer is due that it has not let come.
        let none_waits = hypervisor.places.none_waits.filter(|_| machine.cpus > 1);
        let places = Places { none_waits, ..hypervisor.places.clone() };
        machine.qemu_arguments.extend(plugin::stretch_arguments(&file, &places)?);
        let console = run(&machine)?;
        let said = console.lines().filter_map(|line| line.trim_end().strip_prefix("stretch: "));
        let said = said.take_while(|line| !line.starts_with("done"));
        let names: Vec<&str> = said.filter_map(|line| line.rsplit_once(": ")).map(|(name, _)| name).collect();
        let all = plugin::stretches(&std::fs::read_to_string(&file)?);
        let ends: Vec<Stretch> = all.iter().filter(|stretch| stretch.mark == CASE_ENDS).cloned().collect();
        if names.is_empty() || names.len() != ends.len() {
            bail!("{} cases and {} stretches: {console}", names.len(), ends.len());
        }
        let mut cases: Vec<(&str, Stretch)> = names.into_iter().zip(ends).collect();
        cases.extend(last.zip(all.into_iter().next_back()));
        let full = |name: &str| if prefix.is_empty() { name.into() } else { format!("{prefix}: {name}") };
        Ok(cases.into_iter().map(|(name, stretch)| (full(name), stretch)).collect())
    }
}

/// All machines.
fn scenes() -> Result<Vec<Scene>> {
    let mut scenes = Vec::new();
    for (memory, guest) in SIZES {
        scenes.extend([any_guest(memory, guest), control_domain(memory)?]);
    }
    scenes.extend([herds(), pairs()]);
    Ok(scenes)
}

/// A guest that makes the longest calls, with `guest` MiB of the machine's `memory`.
fn any_guest(memory: u32, guest: u32) -> Scene {
    let line = format!("xl create -c /boot/hostile.cfg memory={guest} vcpus=32 extra='case=stretch'");
    let machine = Machine { memory_mib: memory, script: Some(vec![line]), ..counting_machine() };
    Scene { machine, prefix: "", last: None }
}

/// The same of a control domain.
fn control_domain(memory: u32) -> Result<Scene> {
    let machine = Machine {
        memory_mib: memory,
        dom0: images::find("hostile")?.bootable(),
        dom0_arguments: "case=stretch-control".into(),
        hypervisor_arguments: "dom0_mem=64M".into(),
        ..counting_machine()
    };
    Ok(Scene { machine, prefix: CONTROL, last: None })
}

/// A guest of 128 vCPUs, beside another.
fn herds() -> Scene {
    let create = |words: &str, case: &str| {
        format!("xl create /boot/hostile.cfg memory=16 vcpus=128 {words} extra='case={case}'")
    };
    let script = vec![create("name='beside'", "stretch-herd-beside"), create("-c", "stretch-herd")];
    let machine = Machine { memory_mib: HERDS_MEMORY, script: Some(script), ..counting_machine() };
    Scene { machine, prefix: "", last: None }
}

/// A guest of which two vCPUs call at the same time, on two CPUs: each kind of call beside each. Then dom0 ends a guest that does that.
fn pairs() -> Scene {
    let create = |words: &str, case: &str| {
        format!("xl create /boot/hostile.cfg memory={PAIRS_GUEST} vcpus=3 {words} extra='case={case}'")
    };
    let script = vec![
        create("-c", "stretch-pairs"),
        create("name='hammer'", "stretch-hammer"),
        format!("sleep {HAMMERED_SECONDS}"),
        "xl destroy hammer".into(),
    ];
    let machine = Machine { memory_mib: PAIRS_MEMORY, cpus: 2, script: Some(script), ..counting_machine() };
    Scene { machine, prefix: PAIRS, last: Some("destroyed while both call") }
}

/// Instructions of a stretch by the function that they are in, most first.
fn functions(stretch: &Stretch, names: &[(u64, String)]) -> Vec<(String, u64)> {
    let mut by_function: BTreeMap<&str, u64> = BTreeMap::new();
    for block in &stretch.blocks {
        let above = names.partition_point(|(start, _)| *start <= block.address);
        let name = above.checked_sub(1).map_or("?", |index| names[index].1.as_str());
        *by_function.entry(name).or_default() += block.runs * block.instructions;
    }
    let mut sorted: Vec<(String, u64)> =
        by_function.into_iter().map(|(name, count)| (name.to_string(), count)).collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Block;

    #[test]
    fn instructions_count_for_the_function_that_begins_before_them() {
        let names = vec![(0x100, "a".to_string()), (0x200, "b".to_string())];
        let block = |address, runs| Block { address, runs, instructions: 2, page: None };
        let stretch = Stretch {
            blocks: vec![block(0x110, 1), block(0x1f0, 1), block(0x200, 5), block(1, 1)],
            ..Default::default()
        };
        assert_eq!(functions(&stretch, &names), [("b".to_string(), 10), ("a".into(), 4), ("?".into(), 2)]);
    }
}
