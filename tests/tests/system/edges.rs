//! The ways into the hypervisor and back to guests, instruction by instruction: counter-measures against side channels
//! are on exactly the edges that need them. One CPU, whose emulator writes down what runs of the entry code.

mod log;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use tests::{Machine, Scratch};

pub(crate) use self::log::Code;
use self::log::Step;
use crate::Case;
use crate::gdb::Stub;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![edges:
        nothing_is_done_where_nothing_is_needed,
        everything_is_done_on_each_edge_that_needs_it,
        an_nmi_in_a_window_is_an_edge_of_its_own,
    ])
}

/// All that needs no MSR of the CPU: the emulator has none of these.
const EVERYTHING: &str = "spec-ctrl=verw,rsb,bhb-entry,clear-regs,div-scrub";

/// A way through the entry code: from the first instruction of an entry to the IRET or SYSRET that ends it. A way that an
/// exception or an NMI interrupts goes on behind that one's end.
#[derive(Default)]
struct Way {
    steps: Vec<Step>,
    /// The way began within another, so the hypervisor was interrupted and no guest.
    is_nested: bool,
    /// The steps around each other way that began within this one.
    interrupted: Vec<(Step, Option<Step>)>,
}

impl Way {
    /// The functions that the way goes through, but for what a CPU does ahead of idleness.
    fn functions(&self) -> Vec<&str> {
        let names = self.steps.iter().map(|step| step.function.as_str());
        let mut names: Vec<&str> = names.filter(|name| *name != "verw_idle").collect();
        names.dedup();
        names
    }

    fn has(&self, function: &str) -> bool {
        self.steps.iter().any(|step| step.function == function)
    }

    /// Checks that the way goes through what is due on it, and through nothing else.
    fn check(&self, is_all_on: bool) -> Result<()> {
        const GUARDS: [&str; 5] =
            ["guard_entry", "overwrite_return_stack", "guard_entry", "clear_history", "guard_entry"];
        let names = self.functions();
        let mut due = vec![names[0]];
        let from_own_stack = self.has("ist_common");
        match names[0] {
            "enter_guest" | "syscall_entry_00" => {}
            "sysenter_entry" | "syscall32_entry_00" => due.push("guest_entry_common_syscall"),
            _ if from_own_stack => due.push("ist_common"),
            _ => due.push("trap_common"),
        }
        let clearing = match names[0] {
            _ if from_own_stack => "guard_ist",
            "syscall_entry_00" => "cleared_syscall",
            "sysenter_entry" | "syscall32_entry_00" => "cleared_compat_syscall",
            _ => "cleared_trap",
        };
        let is_entry = names[0] != "enter_guest";
        if is_all_on && is_entry && (from_own_stack || !self.is_nested) {
            let last = due[due.len() - 1];
            due.extend([&[clearing][..], &GUARDS, &[clearing, last]].concat());
            // rbp and rsp are the hypervisor's before; on a stack of its own rdi has the frame.
            self.check_cleared(clearing, if from_own_stack { 13 } else { 14 })?;
        }
        if from_own_stack {
            due.extend(is_all_on.then_some("verw_ist"));
        } else if !self.is_nested {
            let by = |iret, sysret| if self.has("leave_by_iret") { iret } else { sysret };
            let leave = by("leave_by_iret", "leave_by_sysret");
            let guarded = by("guarded_iret", "guarded_sysret");
            due.push(leave);
            if is_all_on {
                due.extend([guarded, "guard_exit", "scrub_divider", "guard_exit", guarded, leave]);
                due.push(by("verw_iret", "verw_sysret"));
            }
        }
        ensure!(names == due, "a way through {names:?}, where {due:?} is due");
        let is_cleared = is_all_on && (from_own_stack || !self.is_nested);
        let [.., before, last] = &self.steps[..] else { anyhow::bail!("a way of one step") };
        ensure!(last.is_return(), "a way ends with {}", last.text);
        ensure!(before.text.contains("verw") == is_cleared, "ahead of {}: {}", last.text, before.text);
        Ok(())
    }

    /// Checks that `by` clears so many registers, and does so behind an LFENCE that ends the guards.
    fn check_cleared(&self, by: &str, count: usize) -> Result<()> {
        let clears = |step: &&Step| step.function == by && step.text.starts_with("xorl");
        let registers: BTreeSet<&str> =
            self.steps.iter().filter(clears).filter_map(|step| step.text.split(' ').nth(1)).collect();
        ensure!(registers.len() == count, "{by} clears {registers:?}");
        let is_fence = |step: &Step| step.function == "guard_entry" && step.text.starts_with("lfence");
        let fence = self.steps.iter().position(is_fence).context("no LFENCE")?;
        let before: Vec<&Step> = self.steps[..fence].iter().filter(clears).collect();
        ensure!(before.len() <= usize::from(by == "guard_ist"), "{by} clears {before:?} ahead of the LFENCE");
        ensure!(
            self.steps[fence + 1].text.starts_with("ret"),
            "behind the LFENCE: {:?}",
            self.steps[fence + 1]
        );
        Ok(())
    }
}

/// The ways of a run of dom0, hello and a guest that takes all kinds of exceptions; `windows`: an NMI comes when the CPU is
/// about to execute each of these instructions.
fn ways(name: &str, words: &str, windows: &[(&str, u64)]) -> Result<Vec<Way>> {
    let scratch = Scratch::new(name)?;
    let file = scratch.path("trace");
    let code = Code::of_image()?;
    let stub = Stub::new()?;
    let mut machine = Machine::new(name)
        .with(|machine| {
            machine.hypervisor_arguments = words.into();
            // Two CPUs would write beside each other.
            machine.cpus = 1;
            machine.qemu_arguments.extend(code.trace_to(&file));
            stub.add_to(machine);
        })
        .seconds(180)
        .start()?;
    machine.expect("dom0# ", 60)?;
    // The guest is busy for longer than it takes to come by each window.
    machine.type_line("xl create -c /boot/hello.cfg extra='store-reads=3000'")?;
    let addresses: Result<Vec<u64>> =
        windows.iter().map(|(name, offset)| Ok(code.address(name)? + offset)).collect();
    stub.nmi_at(&addresses?)?;
    machine.expect("hello: goodbye", 60)?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("xl create -c /boot/hostile.cfg extra='case=traps'")?;
    machine.expect("hostile: PASS", 60)?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    apart(&code.read(&file)?)
}

/// Takes the steps apart into ways.
fn apart(steps: &[Step]) -> Result<Vec<Way>> {
    let (mut open, mut ended): (Vec<Way>, Vec<Way>) = (Vec::new(), Vec::new());
    for step in steps {
        if step.is_entry {
            open.push(Way { is_nested: !open.is_empty(), ..Way::default() });
        } else if step.function == "enter_guest"
            && open.last().is_none_or(|way| way.functions().last() != Some(&"enter_guest"))
        {
            // The stack above is forgotten: nothing of that goes on.
            open = vec![Way::default()];
        }
        let Some(way) = open.last_mut() else { continue };
        if let Some((_, next @ None)) = way.interrupted.last_mut() {
            *next = Some(step.clone());
        }
        way.steps.push(step.clone());
        if step.is_return() {
            ended.extend(open.pop());
            let outer = open.last_mut();
            if let Some(outer) = outer
                && let Some(last) = outer.steps.last()
            {
                outer.interrupted.push((last.clone(), None));
            }
        }
    }
    ensure!(ended.len() > 100, "only {} ways in {} steps", ended.len(), steps.len());
    Ok(ended)
}

/// Checks all ways of a run, and that there were ways of each kind.
fn check(ways: &[Way], is_all_on: bool) -> Result<()> {
    for way in ways {
        way.check(is_all_on)?;
    }
    let all =
        ["enter_guest", "syscall_entry_00", "vector_06", "vector_0d", "vector_0e", "vector_80", "debug_stub"];
    for (entry, leave) in all.iter().flat_map(|entry| [(entry, "leave_by_iret"), (entry, "leave_by_sysret")])
    {
        let is_possible = match leave {
            "leave_by_iret" => ["enter_guest", "syscall_entry_00", "vector_0d"].contains(entry),
            _ => *entry != "enter_guest",
        };
        let is_there = ways.iter().any(|way| way.functions()[0] == *entry && way.has(leave));
        ensure!(is_there || !is_possible, "no way from {entry} to {leave}");
    }
    ensure!(ways.iter().any(|way| way.is_nested), "nothing interrupted the hypervisor");
    Ok(())
}

fn nothing_is_done_where_nothing_is_needed() -> Result<()> {
    let ways = ways("edges-plain", "", &[("syscall_entry_00", 0)])?;
    ensure!(ways.iter().any(|way| way.has("nmi_stub")), "no NMI");
    check(&ways, false)
}

fn everything_is_done_on_each_edge_that_needs_it() -> Result<()> {
    check(&ways("edges-all", EVERYTHING, &[])?, true)
}

/// Behind VERW, at the first two instructions of an entry, and within the guards.
fn an_nmi_in_a_window_is_an_edge_of_its_own() -> Result<()> {
    const VERW: u64 = 7;
    let windows = [
        ("verw_sysret", VERW),
        ("verw_iret", VERW),
        ("syscall_entry_00", 0),
        ("syscall_entry_00", 7),
        ("guard_entry", 0),
    ];
    let ways = ways("edges-nmi", EVERYTHING, &windows)?;
    check(&ways, true)?;
    let count = ways.iter().filter(|way| way.has("nmi_stub")).count();
    ensure!(count == windows.len(), "{count} NMIs");
    for last in ["sysret", "iret"] {
        let around = ways.iter().flat_map(|way| &way.interrupted);
        let mut around = around.filter_map(|(before, after)| Some((before, after.as_ref()?)));
        let is_window =
            |(before, after): (&Step, &Step)| before.text.contains("verw") && after.text.starts_with(last);
        ensure!(around.any(is_window), "no NMI between VERW and {last}");
    }
    Ok(())
}
