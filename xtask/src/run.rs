//! `cargo xtask run`: builds, boots, and reports how the machine ended.

use std::io::IsTerminal;
use std::time::Instant;

use anyhow::Result;

use crate::deps::{self, Need};
use crate::lines::{self, Lines, Source, Told};
use crate::machine::{Boot, Emulator, Machine};
use crate::session::{Attach, Outcome, Session};
use crate::symbols::Symbols;
use crate::{bochs, checks, cpu_model, guest, images};

/// Builds everything and boots `machine`; returns the exit status.
///
/// # Errors
/// A tool is missing, a build failed or QEMU cannot be started.
pub fn run(machine: &Machine) -> Result<u8> {
    for warning in checks::warnings(&machine.modules)? {
        eprintln!("warning: {warning}");
    }
    deps::ensure(needs(machine))?;
    if machine.cpu_model != machine.emulator.standard_cpu() {
        match machine.emulator {
            Emulator::Qemu => cpu_model::check(&machine.cpu_model)?,
            Emulator::Bochs => bochs::check_model(&machine.cpu_model)?,
        }
    }
    images::build(&machine.images())?;
    let mut machine = machine.clone();
    let _root_in_use = match machine.emulator {
        Emulator::Qemu => Some(guest::attach_root(&mut machine)?),
        Emulator::Bochs => None,
    };
    // The root image is a disk too, and has an id.
    checks::disks(&machine.disks)?;
    redirect(&mut machine)?;
    let scripted = machine.has_lines();
    let source = machine.from_input.then(lines::standard_input);
    let attach = if machine.interactive() && !machine.from_input { Attach::Terminal } else { Attach::Output };
    let (outcome, output) = boots(machine, attach, source)?;
    explain(&outcome, &output);
    Ok(outcome.exit_status(scripted))
}

/// Boots `machine`, whose images have been built, until it does not start again; gives how that ended, and what the last
/// boot printed. Lines of [`Machine::from_input`] come from `source`.
///
/// # Errors
/// The boot files cannot be made or the emulator cannot be started.
pub fn boots(machine: Machine, attach: Attach, source: Option<Source>) -> Result<(Outcome, String)> {
    to_the_end(machine, |machine| once(machine, attach, source.clone()))
}

/// Boots by `once` until the machine does not start again.
fn to_the_end(
    mut machine: Machine,
    mut once: impl FnMut(&Machine) -> Result<(Outcome, String, Told)>,
) -> Result<(Outcome, String)> {
    let started = Instant::now();
    let limit = machine.timeout;
    let mut failed = false;
    loop {
        let (outcome, output, told) = once(&machine)?;
        if outcome != Outcome::Restarts {
            // The last boot knows of its own lines only.
            let outcome = if failed { outcome.with_a_failed_line() } else { outcome };
            return Ok((outcome, output));
        }
        failed |= told.failed;
        // What stood before the line that asked for it is done, and that line too.
        if let Some(script) = &mut machine.script {
            script.drain(..told.taken.min(script.len()));
        }
        machine.starts_again = true;
        machine.timeout = limit.map(|limit| limit.saturating_sub(started.elapsed()));
    }
}

/// Boots `machine` once; gives what it told of its lines, too, if it is to start again.
fn once(machine: &Machine, attach: Attach, source: Option<Source>) -> Result<(Outcome, String, Told)> {
    if machine.emulator == Emulator::Bochs {
        let (outcome, output, taken) = bochs::run(machine, attach != Attach::Nobody)?;
        // Bochs gets the lines as a script, and dom0 ends a script at the first line that fails.
        return Ok((outcome, output, Told { taken, failed: false }));
    }
    let (outcome, output, lines) = Session::start_with(machine, attach, source)?.wait_with_lines();
    let told = match outcome {
        Outcome::Restarts => lines.map_or_else(Told::default, Lines::told),
        _ => Told::default(),
    };
    Ok((outcome, output, told))
}

/// Takes the lines of standard input as a script, where our dom0 would wait for a person and standard input is no
/// terminal. QEMU's machine takes each line as it comes; Bochs has no port for that, so all lines are read first.
fn redirect(machine: &mut Machine) -> Result<()> {
    if std::io::stdin().is_terminal() || !machine.interactive() || !machine.has_own_dom0() {
        return Ok(());
    }
    match machine.emulator {
        Emulator::Qemu => machine.from_input = true,
        Emulator::Bochs => {
            let text = lines::read_script(std::io::stdin(), "standard input")?;
            let lines = text.lines().map(str::to_string);
            machine.script.get_or_insert_default().extend(lines);
            machine.keep = false;
        }
    }
    Ok(())
}

/// Prints how a machine ended, unless its own output says so.
fn explain(outcome: &Outcome, output: &str) {
    match outcome {
        // The last things printed are then the line that failed and its error, or the hypervisor's reason.
        Outcome::Succeeded
        | Outcome::LineFailed
        | Outcome::Status(_)
        | Outcome::PoweredOff
        | Outcome::Refused
        | Outcome::Restarts => {}
        Outcome::Panicked => Symbols::of_images().explain(output),
        Outcome::TimedOut => eprintln!("\nerror: ended at the time limit"),
        Outcome::Silent => {
            eprintln!("\nthe machine went off or was reset without a report");
            Symbols::of_images().explain(output);
        }
        Outcome::Broken(why) => eprintln!("\nerror: {why}"),
    }
}

/// The tools that booting `machine` takes.
pub fn needs(machine: &Machine) -> &'static [Need] {
    match (machine.emulator, machine.boot) {
        (Emulator::Bochs, _) => &[Need::Bochs, Need::Grub],
        (Emulator::Qemu, Boot::Direct) => &[Need::Qemu],
        (Emulator::Qemu, Boot::Iso | Boot::Disk) => &[Need::Qemu, Need::Grub],
        (Emulator::Qemu, Boot::Uefi | Boot::UefiDisk) => &[Need::Qemu, Need::Grub, Need::Uefi],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn took(taken: usize) -> Told {
        Told { taken, failed: false }
    }

    #[test]
    fn a_line_that_failed_before_a_restart_is_not_forgotten() {
        let end = |failed: bool, last: Outcome| {
            let mut rest = vec![last, Outcome::Restarts, Outcome::Restarts];
            let end = to_the_end(Machine::default(), |_| {
                let outcome = rest.pop().expect("no fourth");
                // The first of three boots has it.
                Ok((outcome, String::new(), Told { taken: 2, failed: failed && rest.len() == 2 }))
            });
            end.expect("it ends").0.exit_status(true)
        };
        assert_eq!(end(false, Outcome::Succeeded), 0);
        assert_eq!(end(true, Outcome::Succeeded), 1);
        assert_eq!(end(true, Outcome::LineFailed), 1);
        assert_eq!(end(true, Outcome::Panicked), 3, "what is worse is told");
    }

    #[test]
    fn a_restart_goes_on_behind_the_line_that_asked_for_it() {
        let lines = |lines: &[&str]| Some(lines.iter().map(|line| line.to_string()).collect());
        let limit = Duration::from_secs(60);
        let machine = Machine {
            script: lines(&["a", "reboot", "b", "reboot", "c"]),
            timeout: Some(limit),
            ..Machine::default()
        };
        let mut boots = Vec::new();
        let end = to_the_end(machine, |machine| {
            boots.push((machine.script.clone(), machine.starts_again));
            assert!(machine.timeout.is_some_and(|left| left <= limit), "the limit is for all of it");
            let outcome = if boots.len() < 3 { Outcome::Restarts } else { Outcome::LineFailed };
            Ok((outcome, boots.len().to_string(), took(2)))
        });
        assert_eq!(end.expect("it ends"), (Outcome::LineFailed, "3".into()));
        let expected = [
            (lines(&["a", "reboot", "b", "reboot", "c"]), false),
            (lines(&["b", "reboot", "c"]), true),
            (lines(&["c"]), true),
        ];
        assert_eq!(boots, expected);
        // A kernel that takes no lines has none left over.
        let other = Machine { script: lines(&["a"]), ..Machine::default() };
        let mut rest = vec![Outcome::Status(7), Outcome::Restarts];
        let end = to_the_end(other, |_| Ok((rest.pop().expect("no third"), String::new(), took(9))));
        assert_eq!(end.expect("it ends").0.exit_status(true), 7);
    }
}
