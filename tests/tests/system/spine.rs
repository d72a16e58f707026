//! From power-on to dom0's prompt and back.

use anyhow::Result;
use tests::Machine;
use xtask::deps::{self, Need};
use xtask::machine::Boot;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![spine:
        the_prompt_is_reached_and_leaves_by_poweroff,
        the_prompt_is_reached_when_grub_booted,
        a_guest_runs_to_its_end_when_uefi_booted,
        a_disk_image_boots_by_both_kinds_of_firmware,
        another_kernel_stands_in_dom0s_place,
        the_runtime_passes_its_self_test,
        a_failing_line_ends_the_script,
    ])
}

fn the_prompt_is_reached_and_leaves_by_poweroff() -> Result<()> {
    let mut machine = Machine::new("prompt").start()?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("ls /boot")?;
    machine.expect("hello.cfg", 20)?;
    machine.expect("dom0# ", 20)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

fn the_prompt_is_reached_when_grub_booted() -> Result<()> {
    Machine::new("prompt-iso").boot(Boot::Iso).line("ls /boot").run()?.succeeded()?.says("hello.cfg")?;
    Ok(())
}

/// The root pointer of ACPI is the loader's under UEFI: without it there is neither a second CPU nor a way to power off.
fn a_guest_runs_to_its_end_when_uefi_booted() -> Result<()> {
    deps::ensure(&[Need::Grub, Need::Uefi])?;
    let machine = Machine::new("uefi").boot(Boot::Uefi).with(|machine| machine.cpus = 2);
    let machine = machine.line("ls /boot").line("xl create -c /boot/hello.cfg");
    let run = machine.run()?.succeeded()?.says("2 CPU(s) found, 2 used")?.says("hello: goodbye")?;
    run.require(!run.console().contains("ACPI tells no way to power off"), "ACPI's tables were not found")
}

/// The image that goes on a stick: its own files are on it, and dom0 reads and writes none of it.
fn a_disk_image_boots_by_both_kinds_of_firmware() -> Result<()> {
    deps::ensure(&[Need::Grub, Need::Uefi])?;
    for (name, boot) in [("disk-bios", Boot::Disk), ("disk-uefi", Boot::UefiDisk)] {
        let machine = Machine::new(name).boot(boot).line("ls /boot").line("xl create -c /boot/hello.cfg");
        machine.run()?.succeeded()?.says("hello.cfg")?.says("hello: goodbye")?;
    }
    Ok(())
}

/// Nothing in the hypervisor knows that dom0 is ours: any PV kernel boots in its place.
fn another_kernel_stands_in_dom0s_place() -> Result<()> {
    let bench = xtask::images::find("bench")?.bootable();
    let machine = Machine::new("another-dom0").with(|machine| {
        machine.dom0 = bench;
        machine.dom0_arguments = "ops=10".into();
    });
    machine.run()?.succeeded()?.says("bench done")?;
    Ok(())
}

/// Memory, grants, timers and tasks of every PV kernel here, with the real hypervisor below.
fn the_runtime_passes_its_self_test() -> Result<()> {
    let hello = xtask::images::find("hello")?.bootable();
    let machine = Machine::new("selftest").with(|machine| {
        machine.dom0 = hello;
        machine.dom0_arguments = "selftest".into();
    });
    machine.run()?.succeeded()?.says("selftest: passed")?;
    Ok(())
}

/// The line after the one that fails does not run.
fn a_failing_line_ends_the_script() -> Result<()> {
    let machine = Machine::new("failing").line("ls /boot").line("cat /boot/none").line("help");
    let run = machine.run()?.line_failed()?.says("hello.cfg")?.says_at_the_end(2, "/boot/none")?;
    run.require(!run.console().contains("poweroff"), "the line after the failed one ran")
}
