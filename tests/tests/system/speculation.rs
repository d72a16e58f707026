//! Counter-measures against side channels: what is told of a CPU, and that they are where they are to be.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol};
use tests::{Machine, Scratch};

use xtask::plugin::{self, Returns};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![speculation:
        what_a_cpu_needs_is_told,
        buffers_are_cleared_ahead_of_each_return_to_a_guest,
        no_return_finds_the_return_stack_empty,
    ])
}

fn what_a_cpu_needs_is_told() -> Result<()> {
    // Without the sign of a hypervisor, the emulator's name does not count: the model is believed.
    let model = |model: &str| {
        let machine = Machine::new("needs").with(|machine| machine.cpu_model = model.into());
        machine.line("xl dmesg -c").line("xl info").line("xl create -c /boot/hello.cfg").run()?.succeeded()
    };
    let run = model("Skylake-Client,-hypervisor")?.says("hello: goodbye")?;
    let run = run.says("side channels: Meltdown: on (page tables of the hypervisor's own): ")?;
    let run = run.says("side channels: Spectre v2: on (retpolines): ")?;
    let run = run.says("side_channels_missing  : MDS, ")?;
    let run =
        run.says("side_channels_on       : Meltdown, L1TF, Spectre v1, values from guests, Spectre v2")?;
    run.says("side_channels_unneeded : ")?;
    let run = model("EPYC,-hypervisor")?.says("hello: goodbye")?;
    run.says("side channels: Meltdown: not needed: not a fault of this maker's CPUs")?;
    let run = model("Skylake-Client")?.says("hello: goodbye")?;
    run.says("side_channels_unneeded : all\r\n")?;
    Ok(())
}

/// What the hypervisor executes at least once, as QEMU disassembles it: an instruction a line.
fn executed(name: &str, words: &str) -> Result<String> {
    let scratch = Scratch::new(name)?;
    let log = scratch.path("code");
    let run = Machine::new(name)
        .with(|machine| {
            machine.hypervisor_arguments = words.into();
            // Two CPUs would disassemble beside each other.
            machine.cpus = 1;
            let file = log.display().to_string();
            let image = "0xffff82d080200000..0xffff82d080ffffff";
            let more = ["-d", "in_asm", "-dfilter", image, "-D", &file];
            machine.qemu_arguments.extend(more.map(str::to_string));
        })
        .line("xl create -c /boot/hello.cfg")
        .line("xl create -c /boot/hostile.cfg extra='case=traps'")
        .run()?;
    run.succeeded()?.says("hello: goodbye")?.says("hostile: PASS")?;
    read(&log)
}

fn read(log: &Path) -> Result<String> {
    let text = std::fs::read_to_string(log).with_context(|| format!("no code in {}", log.display()))?;
    Ok(text.lines().filter(|line| line.starts_with("0xffff82d0")).map(|line| format!("{line}\n")).collect())
}

/// Where the image has barriers behind checks of what guests choose.
fn barriers() -> Result<BTreeSet<u64>> {
    let path = xtask::images::find("microhv")?.linked();
    let bytes = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
    let file = object::File::parse(&*bytes)?;
    let address =
        |name| file.symbol_by_name(name).map(|symbol| symbol.address()).with_context(|| format!("no {name}"));
    let (start, end) = (address("__barriers_start")?, address("__barriers_end")?);
    let mut sections = file.sections().map(|section| section.data_range(start, end - start));
    let words = sections.find_map(|data| data.transpose()).context("no table of barriers")??;
    let offsets = words.as_chunks().0.iter().map(|word| i32::from_le_bytes(*word));
    Ok(offsets.zip((start..).step_by(4)).map(|(offset, at)| at.wrapping_add_signed(offset.into())).collect())
}

/// Checks that each barrier that was executed is `what`, and that many were.
fn check_barriers(code: &str, what: &str) -> Result<()> {
    let places = barriers()?;
    let address = |line: &str| u64::from_str_radix(line.strip_prefix("0x")?.split_once(':')?.0, 16).ok();
    let executed: Vec<&str> =
        code.lines().filter(|line| address(line).is_some_and(|at| places.contains(&at))).collect();
    ensure!(executed.len() >= 10, "{} of {} barriers were executed", executed.len(), places.len());
    let other = executed.iter().find(|line| !line.contains(what));
    ensure!(other.is_none(), "a barrier that is not {what}: {other:?}");
    Ok(())
}

fn buffers_are_cleared_ahead_of_each_return_to_a_guest() -> Result<()> {
    let plain = executed("no-verw", "")?;
    ensure!(plain.contains("sysret") && plain.contains("iret"), "no way to a guest in the code");
    ensure!(!plain.contains("verw"), "VERW without being asked for");
    let code = executed("verw", "spec-ctrl=verw,rsb,bhb-entry,branch-harden")?;
    check_barriers(&plain, "nopl")?;
    check_barriers(&code, "lfence")?;
    let lines: Vec<&str> = code.lines().collect();
    let (mut to_guests, mut to_ring_0) = (0, 0);
    for pair in lines.windows(2).filter(|pair| ["sysret", "iret"].iter().any(|name| pair[1].contains(name))) {
        // What goes back to ring 0 skips the frame's vector.
        match pair[0] {
            before if before.contains("verw") => to_guests += 1,
            before if pair[1].contains("iret") && before.contains("addq") => to_ring_0 += 1,
            _ => anyhow::bail!("a return to a guest without VERW: {pair:?}"),
        }
    }
    ensure!(to_guests >= 2 && to_ring_0 >= 1, "{to_guests} returns to guests, {to_ring_0} to ring 0");
    // How registers are cleared, and how the loops begin that overwrite the return stack and the history of branches.
    for (what, first, second) in [
        ("registers are cleared", "%r10d, %r10d", "%r11d, %r11d"),
        ("the return stack is overwritten", "$0x10, %ecx", "%rsp, %rax"),
        ("the history is overwritten", "$5, %ecx", "call"),
    ] {
        let is_there = |text: &str| {
            let lines: Vec<&str> = text.lines().collect();
            lines.windows(2).any(|pair| pair[0].contains(first) && pair[1].contains(second))
        };
        ensure!(is_there(&code), "not so: {what}");
        ensure!(!is_there(&plain), "without being asked for, {what}");
    }
    Ok(())
}

/// What a model of the return stack sees of the hypervisor's returns, where guests of all kinds come and go.
fn returns(name: &str, words: &str) -> Result<Returns> {
    let scratch = Scratch::new(name)?;
    let output = scratch.path("returns");
    let arguments = plugin::return_arguments(&output)?;
    let run = Machine::new(name)
        .with(|machine| {
            machine.hypervisor_arguments = words.into();
            machine.cpus = 2;
            machine.qemu_arguments.extend(arguments);
        })
        .line("xl create -c /boot/hello.cfg")
        .line("xl create -c /boot/hostile.cfg extra='case=traps'")
        .line("xl dmesg")
        .run()?;
    run.succeeded()?.says("hello: goodbye")?.says("hostile: PASS")?;
    let text = std::fs::read_to_string(&output).with_context(|| format!("no {}", output.display()))?;
    Ok(Returns::parse(&text))
}

fn no_return_finds_the_return_stack_empty() -> Result<()> {
    let plain = returns("returns", "spec-ctrl=rsb")?;
    ensure!(!plain.empty.is_empty() && plain.all > 50_000, "the model saw nothing: {plain:?}");
    let kept = returns("its", "spec-ctrl=its,bhb-entry")?;
    ensure!(kept.empty.is_empty() && kept.all > 50_000, "returns found the stack empty: {kept:x?}");
    Ok(())
}
