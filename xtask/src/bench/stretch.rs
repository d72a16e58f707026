//! How long the hypervisor runs without taking an interrupt, in instructions: `guests/hostile` makes the calls that
//! take longest, as a guest and as a control domain.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSymbol};

use super::{counting_machine, run};
use crate::image_check;
use crate::images;
use crate::machine::Machine;
use crate::plugin::{self, Stretch};
use crate::qemu::RunDirectory;
use crate::usage;

/// The longest stretch that may be, in instructions.
const LIMIT: u64 = 150_000;
/// Memory of the machines, in MiB, and of the guest in each.
const SIZES: [(u32, u32); 2] = [(256, 144), (2048, 1536)];
/// Memory of the machine of guests with many vCPUs, in MiB.
const HERDS_MEMORY: u32 = 256;
/// The mark behind each case.
const CASE_ENDS: u32 = 301;
/// Functions of a stretch over the limit that are named.
const NAMED: usize = 6;

/// Prints the table; true if no stretch is over the limit.
///
/// # Errors
/// A machine did not run to its end, or the images lack the symbols that the plugin needs.
pub(super) fn bench(only: Option<&str>) -> Result<bool> {
    let hypervisor = Hypervisor::load()?;
    println!("| machine | case | longest stretch |");
    println!("| --- | --- | --- |");
    let mut over = Vec::new();
    let (mut shown, mut known) = (0, BTreeSet::new());
    let sizes = SIZES.into_iter().map(|(memory, guest)| (memory, measure(memory, guest, &hypervisor)));
    let herds = std::iter::once_with(|| (HERDS_MEMORY, measure_herds(&hypervisor)));
    for (memory, measured) in sizes.chain(herds) {
        for (name, stretch) in measured? {
            known.insert(name.clone());
            if only.is_some_and(|only| !name.contains(only)) {
                continue;
            }
            shown += 1;
            println!("| {memory} MiB | {name} | {} |", stretch.length);
            if stretch.length > LIMIT {
                over.push((memory, name, stretch));
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
    for (memory, name, stretch) in &over {
        println!(
            "\nover {LIMIT} on {memory} MiB: {name}, {} from {:#x}:",
            stretch.length, stretch.entered_from
        );
        for (function, instructions) in functions(stretch, &hypervisor.names).into_iter().take(NAMED) {
            println!("{instructions:10} {function}");
        }
    }
    println!("\n{} of the stretches are over {LIMIT}", over.len());
    Ok(over.is_empty())
}

/// What of the hypervisor's symbols is needed.
struct Hypervisor {
    /// Functions by their addresses.
    names: Vec<(u64, String)>,
    /// Where the stubs for exceptions begin, and the IRET that returns to a guest.
    stubs: u64,
    guest_iret: u64,
}

impl Hypervisor {
    fn load() -> Result<Self> {
        let bytes = std::fs::read(images::find("microhv")?.linked())?;
        let file = object::File::parse(&*bytes)?;
        let address = |wanted: &str| {
            let found = file.symbols().find(|symbol| symbol.name() == Ok(wanted));
            found.map(|symbol| symbol.address()).with_context(|| format!("the hypervisor has no {wanted}"))
        };
        let (stubs, guest_iret) = (address("vector_stubs")?, address("guest_iret")?);
        Ok(Self { names: image_check::names(&file), stubs, guest_iret })
    }
}

/// The longest stretch of each case, on a machine of `memory` MiB: of a guest's, and of a control domain's.
fn measure(memory: u32, guest: u32, hypervisor: &Hypervisor) -> Result<Vec<(String, Stretch)>> {
    let line = format!("xl create -c /boot/hostile.cfg memory={guest} vcpus=32 extra='case=stretch'");
    let machine = Machine { memory_mib: memory, script: Some(vec![line]), ..counting_machine() };
    let mut all = measure_one(machine, hypervisor)?;
    let control = Machine {
        memory_mib: memory,
        dom0: images::find("hostile")?.bootable(),
        dom0_arguments: "case=stretch-control".into(),
        hypervisor_arguments: "dom0_mem=64M".into(),
        ..counting_machine()
    };
    let of_control = measure_one(control, hypervisor)?;
    all.extend(of_control.into_iter().map(|(name, stretch)| (format!("control domain: {name}"), stretch)));
    Ok(all)
}

/// The longest stretch of each case of a guest of 128 vCPUs, beside another.
fn measure_herds(hypervisor: &Hypervisor) -> Result<Vec<(String, Stretch)>> {
    let create = |words: &str, case: &str| {
        format!("xl create /boot/hostile.cfg memory=16 vcpus=128 {words} extra='case={case}'")
    };
    let script = vec![create("name='beside'", "stretch-herd-beside"), create("-c", "stretch-herd")];
    measure_one(Machine { memory_mib: HERDS_MEMORY, script: Some(script), ..counting_machine() }, hypervisor)
}

fn measure_one(mut machine: Machine, hypervisor: &Hypervisor) -> Result<Vec<(String, Stretch)>> {
    let directory = RunDirectory::new()?;
    let file = directory.file("stretches");
    machine.qemu_arguments.extend(plugin::stretch_arguments(&file, hypervisor.stubs, hypervisor.guest_iret)?);
    let console = run(&machine)?;
    let said = console.lines().filter_map(|line| line.trim_end().strip_prefix("stretch: "));
    let said = said.take_while(|line| !line.starts_with("done"));
    let names: Vec<&str> = said.filter_map(|line| line.rsplit_once(": ")).map(|(name, _)| name).collect();
    let all = plugin::stretches(&std::fs::read_to_string(&file)?);
    let ends: Vec<Stretch> = all.into_iter().filter(|stretch| stretch.mark == CASE_ENDS).collect();
    if names.is_empty() || names.len() != ends.len() {
        bail!("{} cases and {} stretches: {console}", names.len(), ends.len());
    }
    Ok(names.into_iter().map(str::to_string).zip(ends).collect())
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
