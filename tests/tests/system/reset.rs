//! A machine that is reset: what stays in memory.

use anyhow::{Result, bail};
use tests::Machine;
use xtask::deps::{self, Need};
use xtask::machine::Boot;
use xtask::qemu::RunDirectory;
use xtask::session::Outcome;

use crate::Case;
use crate::monitor::{self, Monitor};

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![reset:
        a_panic_is_told_once_at_the_next_start,
        a_panic_is_told_at_the_next_start_by_grub,
        a_panic_is_told_at_the_next_start_by_uefi,
        reboot_resets_the_machine,
    ])
}

const TOLD: &str = "a panic ended the last start:";

/// Resets a machine after a panic, and once more.
fn panics_and_starts_again(name: &str, boot: Boot) -> Result<()> {
    deps::ensure(&[Need::Grub, Need::Uefi])?;
    let files = RunDirectory::new()?;
    let socket = files.file("monitor");
    let machine = Machine::new(name).boot(boot).seconds(500).with(|machine| {
        // A report port that ends no emulator, and resets that are what they are.
        machine.hypervisor_arguments = "debug-exit=0x80".into();
        machine.qemu_arguments = monitor::arguments(&socket);
        machine.qemu_arguments.extend(["-action", "reboot=reset"].map(String::from));
    });
    let mut machine = machine.start()?;
    let first = machine.expect("dom0# ", 200)?;
    if first.contains(TOLD) {
        bail!("a first start tells of a panic:\n{first}");
    }
    machine.type_text("\x01\x01\x01C")?;
    machine.expect("PANIC: ", 20)?;
    machine.expect("the report is kept for the next start", 20)?;
    let mut monitor = Monitor::connect(&socket)?;
    monitor.ask(r#"{"execute":"system_reset"}"#)?;
    machine.expect(TOLD, 200)?;
    let told = machine.expect("dom0# ", 200)?;
    for part in ["| PANIC: ", "| asked for by a debug key", "| backtrace:"] {
        if !told.contains(part) {
            bail!("the report has no {part:?}:\n{told}");
        }
    }
    monitor.ask(r#"{"execute":"system_reset"}"#)?;
    machine.expect("build id", 200)?;
    let again = machine.expect("dom0# ", 200)?;
    if again.contains(TOLD) {
        bail!("the panic is told twice:\n{again}");
    }
    Ok(())
}

fn a_panic_is_told_once_at_the_next_start() -> Result<()> {
    panics_and_starts_again("reset-direct", Boot::Direct)
}

fn a_panic_is_told_at_the_next_start_by_grub() -> Result<()> {
    panics_and_starts_again("reset-iso", Boot::Iso)
}

fn a_panic_is_told_at_the_next_start_by_uefi() -> Result<()> {
    panics_and_starts_again("reset-uefi", Boot::Uefi)
}

/// QEMU ends at a reset, since nothing else is asked for here.
fn reboot_resets_the_machine() -> Result<()> {
    let machine = Machine::new("reset-reboot").with(|machine| {
        machine.hypervisor_arguments = "debug-exit=0x80".into();
    });
    let mut machine = machine.start()?;
    machine.expect("dom0# ", 200)?;
    machine.type_line("reboot")?;
    machine.finish().ended_with(&Outcome::Silent)?;
    Ok(())
}
