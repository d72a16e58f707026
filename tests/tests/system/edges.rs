//! The ways into the hypervisor and back to guests, instruction by instruction: counter-measures against side channels
//! are on exactly the edges that need them. One CPU, whose emulator writes down what runs of the entry code.

mod log;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use tests::{Machine, Scratch};

pub(crate) use self::log::Code;
use self::log::{Step, guest_address};
use crate::Case;
use crate::gdb::Stub;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![edges:
        nothing_is_done_where_nothing_is_needed,
        everything_is_done_on_each_edge_that_needs_it,
        tables_are_changed_on_each_edge_that_needs_it,
        an_nmi_in_a_window_is_an_edge_of_its_own,
        a_guests_ac_is_cleared_on_each_edge_with_smap,
    ])
}

/// All that needs no MSR of the CPU: the emulator has none of these.
pub(crate) const EVERYTHING: &str = "spec-ctrl=verw,rsb,bhb-entry,clear-regs,div-scrub";

/// What is on in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Nothing,
    Everything,
    /// With page tables of the hypervisor's own.
    OwnTables,
}

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
    /// The functions that the way goes through, but for what a CPU does ahead of idleness, for work and events ahead of a return, and
    /// for a new copy of a table.
    fn functions(&self) -> Vec<&str> {
        const ASIDE: [&str; 5] =
            ["verw_idle", "before_leave", "renew_for_sysret", "renew_for_iret", "refused"];
        let names = self.steps.iter().map(Step::function);
        let mut names: Vec<&str> = names.filter(|name| !ASIDE.contains(name)).collect();
        names.dedup();
        names
    }

    fn has(&self, function: &str) -> bool {
        self.steps.iter().any(|step| step.function() == function)
    }

    /// Checks that the way goes through what is due on it, and through nothing else.
    fn check(&self, on: On) -> Result<()> {
        const GUARDS: [&str; 5] =
            ["guard_entry", "clear_history", "guard_entry", "overwrite_return_stack", "guard_entry"];
        let (is_all_on, is_own) = (on != On::Nothing, on == On::OwnTables);
        let names = self.functions();
        let mut due = vec![names[0]];
        let from_own_stack = self.has("ist_common");
        match names[0] {
            "enter_guest" | "syscall_entry_00" => {}
            "sysenter_entry" | "syscall32_entry_00" => due.push("guest_entry_common_syscall"),
            _ if from_own_stack => due.push("ist_common"),
            _ => due.push("trap_common"),
        }
        let [guarding, clearing] = match names[0] {
            _ if from_own_stack => ["guard_ist"; 2],
            "syscall_entry_00" => ["guarded_syscall", "cleared_syscall"],
            "sysenter_entry" | "syscall32_entry_00" => ["guarded_compat_syscall", "cleared_compat_syscall"],
            _ => ["guarded_trap", "cleared_trap"],
        };
        let is_entry = names[0] != "enter_guest";
        if is_all_on && is_entry && (from_own_stack || !self.is_nested) {
            let last = due[due.len() - 1];
            due.extend([&[guarding][..], &GUARDS, &[clearing, last]].concat());
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
        self.check_tables(is_own, from_own_stack)
    }

    /// Checks that tables are changed ahead of everything else on the way in, and behind everything else on the way out.
    fn check_tables(&self, is_own: bool, from_own_stack: bool) -> Result<()> {
        let is_load = |step: &Step| step.text.starts_with("mov") && step.text.ends_with("%cr3");
        let loads: Vec<usize> =
            self.steps.iter().enumerate().filter(|(_, step)| is_load(step)).map(|(at, _)| at).collect();
        let is_entry = !self.has("enter_guest");
        let due = match is_own {
            true if from_own_stack => 2,
            true if !self.is_nested => 1 + usize::from(is_entry),
            _ => 0,
        };
        ensure!(loads.len() == due, "{} loads of CR3, not {due}, on {:?}", loads.len(), self.functions());
        let (Some(first), Some(last)) = (loads.first(), loads.last()) else { return Ok(()) };
        // All between belongs to the entry, which guests' tables map; behind the last load, all that is read is in the entry page.
        let is_early = |step: &Step| step.is_own() || step.is_stub() || step.function.ends_with("_common");
        ensure!(
            !is_entry || self.steps[..*first].iter().all(is_early),
            "late tables: {:?}",
            self.functions()
        );
        let rest = &self.steps[last + 1..self.steps.len() - 1];
        let is_late = |step: &Step| {
            let others = ["pop", "verw", "addq", "leaq", "movq %rbp, %rsp", "jmp"];
            let is_on_its_stack = step.function == "own_ist" && step.text.contains("(%rsp)");
            others.iter().any(|text| step.text.starts_with(text))
                || is_on_its_stack
                || reads_the_entry_page(&step.text)
        };
        let other = rest.iter().find(|step| !is_late(step));
        ensure!(other.is_none(), "{other:?} runs on a guest's tables");
        Ok(())
    }

    /// Checks that a guest's AC ends where the way does more than save registers, and that it never comes back.
    fn check_ac(&self) -> Result<()> {
        let first = self.steps[0].function.trim_start_matches("own_");
        // SYSCALL clears the flag itself.
        let is_syscall = first.starts_with("syscall") || first == "enter_guest";
        let clears = |step: &Step| {
            step.text == "clac" || step.function == "sysenter_entry" && step.text.starts_with("popf")
        };
        let clear = self.steps.iter().position(clears).map_or(0, |at| at + 1);
        ensure!(clear != 0 || is_syscall, "no CLAC on {:?}", self.functions());
        let early = self.steps[..clear].iter().find(|step| step.text.starts_with("call"));
        ensure!(early.is_none(), "a call ahead of CLAC: {early:?}");
        let late = self.steps[clear..].iter().find(|step| step.has_ac);
        ensure!(late.is_none(), "AC is set at {late:?}, on {:?}", self.functions());
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

/// Whether the instruction loads from the entry page, which comes behind the CPU's data on top of its stack.
fn reads_the_entry_page(text: &str) -> bool {
    const DATA_BYTES: u64 = 256;
    let offset = text.strip_prefix("movq 0x").and_then(|rest| rest.split_once("(%rsp), %r"));
    offset.and_then(|(offset, _)| u64::from_str_radix(offset, 16).ok()).is_some_and(|at| at >= DATA_BYTES)
}

/// The ways of a run of dom0, hello and a guest that takes all kinds of exceptions; `windows`: an NMI comes when the CPU is
/// about to execute each of these instructions.
fn ways(name: &str, words: &str, windows: &[(&str, i64)]) -> Result<Vec<Way>> {
    ways_of(name, None, words, windows)
}

/// The same, on a model of CPU.
fn ways_of(name: &str, model: Option<&str>, words: &str, windows: &[(&str, i64)]) -> Result<Vec<Way>> {
    let scratch = Scratch::new(name)?;
    let file = scratch.path("trace");
    let code = Code::of_image()?;
    let stub = Stub::new()?;
    let mut machine = Machine::new(name)
        .with(|machine| {
            machine.hypervisor_arguments = words.into();
            // Two CPUs would write beside each other.
            machine.cpus = 1;
            if let Some(model) = model {
                machine.cpu_model = model.into();
            }
            machine.qemu_arguments.extend(code.trace_to(&file));
            stub.add_to(machine);
        })
        .seconds(180)
        .start()?;
    machine.expect("dom0# ", 60)?;
    // The guest is busy for longer than it takes to come by each window.
    machine.type_line("xl create -c /boot/hello.cfg extra='store-reads=3000'")?;
    let address = |(name, offset): &(&str, i64)| {
        let at = match name.split_once(':') {
            Some((image, name)) => guest_address(image, name)?,
            None => code.address(name)?,
        };
        Ok(at.wrapping_add_signed(*offset))
    };
    let addresses: Result<Vec<u64>> = windows.iter().map(address).collect();
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
        } else if step.function() == "enter_guest"
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
fn check(ways: &[Way], on: On) -> Result<()> {
    for way in ways {
        way.check(on)?;
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
    let ways = ways("edges-plain", "", &[("syscall_entry_00", 0), ("hello:memcpy", 0)])?;
    // From a guest an NMI is an entry as all others: an IRET to a segment that the guest spoiled is the guest's to have.
    let nmis: Vec<&Way> = ways.iter().filter(|way| way.has("nmi_stub")).collect();
    let of_guest =
        nmis.iter().filter(|way| way.functions().starts_with(&["nmi_stub", "trap_common"])).count();
    ensure!((nmis.len(), of_guest) == (2, 1), "{} NMIs, {of_guest} of a guest", nmis.len());
    ensure!(!ways.iter().flat_map(|way| &way.steps).any(|step| step.text == "clac"), "CLAC without SMAP");
    check(&ways, On::Nothing)
}

fn everything_is_done_on_each_edge_that_needs_it() -> Result<()> {
    check(&ways("edges-all", EVERYTHING, &[])?, On::Everything)
}

fn tables_are_changed_on_each_edge_that_needs_it() -> Result<()> {
    // Also ahead of the load of CR3 on the way in, and behind that on the way out.
    let windows = [
        ("own_syscall_entry_00", 0),
        ("own_call_syscall", -13),
        ("own_leave_by_sysret", 0),
        ("own_leave_by_sysret_loads", 3),
        ("verw_sysret", 0),
    ];
    let ways = ways("edges-own", &format!("{EVERYTHING} xpti=yes"), &windows)?;
    let count = ways.iter().filter(|way| way.has("nmi_stub")).count();
    ensure!(count == windows.len(), "{count} NMIs");
    check(&ways, On::OwnTables)
}

/// Behind VERW, at the first two instructions of an entry, and within the guards.
fn an_nmi_in_a_window_is_an_edge_of_its_own() -> Result<()> {
    const VERW: i64 = 7;
    let windows = [
        ("verw_sysret", VERW),
        ("verw_iret", VERW),
        ("syscall_entry_00", 0),
        ("syscall_entry_00", 7),
        ("guard_entry", 0),
    ];
    let ways = ways("edges-nmi", EVERYTHING, &windows)?;
    check(&ways, On::Everything)?;
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

/// `hostile` enters with AC set in all ways. NMIs come where the hypervisor has set AC for an access of its own.
fn a_guests_ac_is_cleared_on_each_edge_with_smap() -> Result<()> {
    const STAC: i64 = 3;
    let windows = [("guarded_copy", STAC); 2];
    let own = format!("{EVERYTHING} xpti=yes");
    for (name, words, on) in [("edges-smap", "", On::Nothing), ("edges-smap-own", &own, On::OwnTables)] {
        let ways = ways_of(name, Some("Skylake-Client"), words, &windows)?;
        for way in &ways {
            way.check_ac()?;
        }
        // Far returns that the hypervisor executes for a guest go by IRETs, which the processor may refuse; nothing is due there.
        let ways: Vec<Way> = ways.into_iter().filter(|way| !way.has("iret_refused")).collect();
        check(&ways, on)?;
        let comes =
            |entry: &str| ways.iter().any(|way| way.steps[0].function == entry && way.steps[0].has_ac);
        for entry in [
            "vector_00",
            "vector_03",
            "vector_06",
            "vector_0d",
            "vector_0e",
            "vector_80",
            "debug_stub",
            "nmi_stub",
        ] {
            ensure!(comes(entry), "{name}: {entry} was never entered with AC set");
        }
        let is_device = |step: &Step| {
            let vector =
                step.function.strip_prefix("vector_").and_then(|name| u8::from_str_radix(name, 16).ok());
            vector.is_some_and(|vector| vector >= 0x20 && vector != 0x80) && step.has_ac
        };
        ensure!(ways.iter().any(|way| is_device(&way.steps[0])), "{name}: no interrupt came with AC set");
    }
    Ok(())
}
