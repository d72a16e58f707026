//! Guests on page tables of the hypervisor's own, by the command line: QEMU's emulator needs none.

use anyhow::Result;
use tests::Machine;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![roots: guests_run_on_tables_of_their_own, every_conformance_case_passes_there])
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
