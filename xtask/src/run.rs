//! `cargo xtask run`: builds, boots, and tells how it went.

use anyhow::Result;

use crate::deps::{self, Need};
use crate::machine::{Boot, Emulator, Machine};
use crate::session::{Attach, Outcome, Session};
use crate::symbols::Symbols;
use crate::{bochs, guest, images};

/// Builds everything and boots `machine`; gives the exit status.
///
/// # Errors
/// A tool is missing, a build failed or QEMU cannot be started.
pub fn run(machine: &Machine) -> Result<u8> {
    deps::ensure(needs(machine))?;
    images::build(&machine.images())?;
    let mut machine = machine.clone();
    let _root_in_use = match machine.emulator {
        Emulator::Qemu => Some(guest::attach_root(&mut machine)?),
        Emulator::Bochs => None,
    };
    let machine = &machine;
    let attach = if machine.interactive() { Attach::Terminal } else { Attach::Output };
    let (outcome, output) = match machine.emulator {
        Emulator::Qemu => Session::start(machine, attach)?.wait(),
        Emulator::Bochs => bochs::run(machine, true)?,
    };
    match &outcome {
        // The last things printed are then the line that failed and its error.
        Outcome::Succeeded | Outcome::LineFailed => {}
        Outcome::Panicked => Symbols::of_images().explain(&output),
        Outcome::TimedOut => eprintln!("\nerror: ended at the time limit"),
        Outcome::Silent => {
            eprintln!("\nthe machine went off or was reset without a report");
            Symbols::of_images().explain(&output);
        }
        Outcome::Broken(why) => eprintln!("\nerror: {why}"),
    }
    Ok(outcome.exit_status(machine.script.is_some()))
}

/// The tools that booting `machine` takes.
pub fn needs(machine: &Machine) -> &'static [Need] {
    match (machine.emulator, machine.boot) {
        (Emulator::Bochs, _) => &[Need::Bochs, Need::Grub],
        (Emulator::Qemu, Boot::Direct) => &[Need::Qemu],
        (Emulator::Qemu, Boot::Iso) => &[Need::Qemu, Need::Grub],
    }
}
