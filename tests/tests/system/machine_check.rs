//! Machine checks, which QEMU's monitor injects.

use anyhow::Result;
use tests::{Live, Machine};

use crate::Case;
use crate::edges::Code;
use crate::gdb::Stub;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![machine_check:
        a_corrected_error_is_told,
        a_guest_whose_memory_is_lost_ends_alone,
        what_the_hypervisor_loses_ends_the_machine,
        the_machine_ends_where_nobody_knows_what_is_lost,
    ])
}

/// `MCi_STATUS`: valid; uncorrected; enabled; with misc and address; the context is lost; signalled, action required.
const VALID: u64 = 1 << 63;
const UNCORRECTED: u64 = 7 << 60 & !(1 << 62) | 1 << 59 | 1 << 58;
const CONTEXT_LOST: u64 = 1 << 57;
const ACTION_REQUIRED: u64 = 3 << 55;
/// `MCG_STATUS`: the CPU can go on; the error is its own; a machine check is under way.
const GOES_ON: u64 = 1 | 1 << 1 | 1 << 2;

/// Two CPUs: a guest reads the store on one, dom0 runs on the other.
fn machine(name: &str) -> Result<(Live, Stub)> {
    let stub = Stub::new()?;
    let machine = Machine::new(name).with(|machine| {
        machine.cpus = 2;
        stub.add_to(machine);
    });
    let mut machine = machine.start()?;
    machine.expect("dom0# ", 60)?;
    for line in [
        "xl vcpu-pin 0 all 0",
        "xl create /boot/hello.cfg name='busy' cpus='1' extra='store-reads=100000000'",
    ] {
        machine.type_line(line)?;
        machine.expect("dom0# ", 60)?;
    }
    Ok((machine, stub))
}

/// The error on CPU 1, in bank 4, when the CPU comes to the first instruction of `function` or to the one that follows.
fn inject(stub: &Stub, at: Option<(&str, bool)>, status: u64, mcg_status: u64) -> Result<()> {
    let mut commands = Vec::new();
    if let Some((function, follows)) = at {
        let address = Code::of_image()?.address(function)?;
        commands.extend(["thread 2".into(), format!("break *{address:#x} thread 2"), "continue".into()]);
        commands.extend(follows.then(|| "stepi".into()));
        commands.push("delete".into());
    }
    commands.push(format!("monitor mce 1 4 {:#x} {mcg_status:#x} 0x12345000 0x8c", VALID | status));
    stub.run(&commands)?;
    Ok(())
}

fn a_corrected_error_is_told() -> Result<()> {
    let (mut machine, stub) = machine("mce-corrected")?;
    inject(&stub, None, 0, 0)?;
    machine.expect("hardware error, corrected, 1 so far: bank 4: status 0x8000000000000000", 60)?;
    // The second time, the count is a power of two; the third time is not told.
    inject(&stub, None, 0, 0)?;
    machine.expect("hardware error, corrected, 2 so far: bank 4: ", 60)?;
    machine.type_line("xl destroy busy")?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

fn a_guest_whose_memory_is_lost_ends_alone() -> Result<()> {
    let (mut machine, stub) = machine("mce-guest")?;
    inject(&stub, Some(("return_by_sysret", true)), UNCORRECTED | ACTION_REQUIRED, GOES_ON)?;
    machine
        .expect("machine check while d1v0 ran; bank 4: status 0xbd80000000000000, address 0x12345000", 60)?;
    machine.expect("d1: crashed: the hardware lost what the domain had", 60)?;
    machine.type_line("xl create -c /boot/hello.cfg name='after' cpus='1'")?;
    machine.expect("hello: goodbye", 60)?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

fn the_machine_ends_where_nobody_knows_what_is_lost() -> Result<()> {
    let (machine, stub) = machine("mce-lost")?;
    inject(&stub, None, UNCORRECTED | CONTEXT_LOST, GOES_ON)?;
    let run = machine.finish().panicked()?;
    run.says("PANIC: machine check; bank 4: status 0xbe00000000000000, address 0x12345000, misc 0x8c")?;
    Ok(())
}

/// The same error as ends a guest.
fn what_the_hypervisor_loses_ends_the_machine() -> Result<()> {
    let (machine, stub) = machine("mce-hypervisor")?;
    inject(&stub, Some(("trap_common", false)), UNCORRECTED | ACTION_REQUIRED, GOES_ON)?;
    machine
        .finish()
        .panicked()?
        .says("PANIC: machine check; bank 4: status 0xbd80000000000000, address 0x12345000")?;
    Ok(())
}
