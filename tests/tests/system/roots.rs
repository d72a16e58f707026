//! Guests on page tables of the hypervisor's own, by the command line: QEMU's emulator needs none.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use tests::Machine;

use crate::Case;
use crate::edges::Code;
use crate::gdb::Stub;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![roots:
        guests_run_on_tables_of_their_own,
        every_conformance_case_passes_there,
        nothing_else_of_the_hypervisor_is_mapped_for_a_guest,
    ])
}

fn guests_run_on_tables_of_their_own() -> Result<()> {
    for cpus in [1, 4] {
        let machine = Machine::new(&format!("own-tables-{cpus}")).with(|machine| {
            machine.hypervisor_arguments = "xpti=yes spec-ctrl=verw".into();
            machine.cpus = cpus;
        });
        let run = machine
            .line("xl dmesg")
            .line("xl create -c /boot/hello.cfg")
            .line("xl create -c /boot/hostile.cfg extra='case=traps'")
            .line("xl create -c /boot/hostile.cfg extra='case=tables'")
            .run()?;
        let run = run.succeeded()?.says("guests run on page tables of the hypervisor's own")?;
        run.says("hello: goodbye")?.says("hostile: PASS")?;
    }
    Ok(())
}

/// With all counter-measures that the emulator has the instructions for.
fn every_conformance_case_passes_there() -> Result<()> {
    let kernel = xtask::images::find(xtask::conformance::IMAGE)?.bootable();
    let machine = Machine::new("own-tables-conformance").seconds(600).with(|machine| {
        machine.dom0 = kernel;
        machine.hypervisor_arguments = format!("xpti=yes {}", crate::edges::EVERYTHING);
    });
    crate::conformance::passes(machine)
}

const PAGE: u64 = 4096;
/// The hypervisor's slots of level 4, of 512 GiB each: for the M2P, for descriptor windows, for what is linked; and all.
const M2P: Range<u64> = slots(256, 257);
const WINDOWS: Range<u64> = slots(260, 261);
const LINKED: Range<u64> = slots(261, 262);
const ALL: Range<u64> = slots(256, 272);
/// Each vCPU's window lies in 2 MiB of its own.
const WINDOW: u64 = 2 << 20;
/// Pages of a CPU's area: the stacks of interruptions that nothing masks begin the area, and the entry page is the last.
const INTERRUPT_STACKS: u64 = 4;
const ENTRY_PAGE: u64 = 15;

const fn slots(from: u64, to: u64) -> Range<u64> {
    0xffff_0000_0000_0000 | from << 39..0xffff_0000_0000_0000 | to << 39
}

/// What the loaded tables map, as `info mem` tells: addresses, and rights as `urw`.
fn mapped(text: &str) -> Vec<(Range<u64>, &str)> {
    let line = |line: &'_ str| -> Option<(Range<u64>, usize)> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let at = line.len() - rest.split_once(' ')?.1.len();
        (range.len() == 33).then_some((number(start)?..number(end)?, at))
    };
    text.lines().filter_map(|text| line(text).map(|(range, at)| (range, text[at..].trim()))).collect()
}

/// What is mapped while a guest runs, on tables of its own, and the address of the IDT.
fn mapped_for_a_guest() -> Result<(String, u64)> {
    let stub = Stub::new()?;
    let mut machine = Machine::new("mapped")
        .with(|machine| {
            machine.hypervisor_arguments = "xpti=yes".into();
            machine.cpus = 1;
            stub.add_to(machine);
        })
        .start()?;
    machine.expect("dom0# ", 60)?;
    // A guest that computes for ever: the machine is most often stopped there.
    machine.type_line("xl create /boot/hello.cfg extra='busy wait'")?;
    machine.expect("hello: clock", 60)?;
    let ask = ["monitor info registers".to_string(), "monitor info mem".to_string()];
    let mut text = String::new();
    for _ in 0..20 {
        text = stub.run(&ask)?;
        if text.contains("CPL=3") {
            break;
        }
    }
    ensure!(text.contains("CPL=3"), "the machine was never stopped in a guest: {text}");
    let idt = text.lines().find_map(|line| line.strip_prefix("IDT=")).context("no IDT")?;
    let idt = u64::from_str_radix(idt.split_whitespace().next().unwrap_or_default(), 16)?;
    machine.type_line("xl destroy hello")?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok((text, idt))
}

/// Of the addresses that are the hypervisor's, those that docs/SPECULATION.md lists are mapped for a guest, and no other.
fn nothing_else_of_the_hypervisor_is_mapped_for_a_guest() -> Result<()> {
    let code = Code::of_image()?;
    let (text, idt) = mapped_for_a_guest()?;
    let within =
        |outer: &Range<u64>, range: &Range<u64>| outer.start <= range.start && range.end <= outer.end;
    let pages = |ranges: &[Range<u64>]| -> BTreeSet<u64> {
        ranges.iter().flat_map(|range| range.clone().step_by(PAGE as usize)).collect()
    };
    let (mut linked, mut windows, mut has_m2p) = (Vec::new(), Vec::new(), false);
    for (range, rights) in mapped(&text) {
        if range.end <= ALL.start || ALL.end <= range.start {
            continue;
        }
        let is_right = if within(&M2P, &range) {
            has_m2p = true;
            rights == "ur-"
        } else if within(&WINDOWS, &range) {
            windows.push(range.clone());
            !rights.contains('u')
        } else {
            linked.push(range.clone());
            within(&LINKED, &range) && !rights.contains('u')
        };
        ensure!(is_right, "{range:x?} is mapped: {rights}");
    }
    ensure!(has_m2p, "no M2P is mapped, or nothing was read: {text}");
    let first = windows.first().context("no descriptor window")?.start / WINDOW;
    ensure!(windows.iter().all(|range| (range.end - 1) / WINDOW == first), "windows of others: {windows:x?}");
    let ends = |name: &str| -> Result<Range<u64>> {
        Ok(code.address(&format!("__entry_{name}_start"))?..code.address(&format!("__entry_{name}_end"))?)
    };
    let area = code.address("cpu_areas")?;
    let entry_page = area + ENTRY_PAGE * PAGE;
    let due = [
        ends("text")?,
        ends("rodata")?,
        idt..idt + PAGE,
        area..area + INTERRUPT_STACKS * PAGE,
        entry_page..entry_page + PAGE,
    ];
    let (due, linked) = (pages(&due), pages(&linked));
    ensure!(due == linked, "pages too many {:x?}, too few {:x?}", &linked - &due, &due - &linked);
    Ok(())
}
