//! Machines with several CPUs.

use anyhow::Result;
use tests::Machine;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![cpus:
        as_many_cpus_are_used_as_there_are_and_as_is_asked,
        guests_run_on_several_cpus,
    ])
}

fn machine(cpus: u32, most: &str) -> Machine {
    Machine::new(&format!("cpus-{cpus}-{most}")).with(|machine| {
        machine.cpus = cpus;
        machine.hypervisor_arguments = format!("maxcpus={most}");
    })
}

fn as_many_cpus_are_used_as_there_are_and_as_is_asked() -> Result<()> {
    for (there, asked, used) in [(1, "4", 1), (2, "1", 1), (2, "2", 2), (4, "3", 3), (4, "64", 4)] {
        let run = machine(there, asked).line("xl info").run()?.succeeded()?;
        let run = run.says(&format!("{there} CPU(s) found, {used} used"))?.says("nr_cpus")?;
        run.require(!run.console().contains("left out"), "a CPU did not come up")?;
    }
    let run = machine(2, "0").line("ls /boot").run()?.succeeded()?;
    run.says("maxcpus=0 is ignored: no such value")?.says("2 CPU(s) found, 1 used")?;
    Ok(())
}

/// dom0 and guests move between CPUs, and what the ABI promises a guest stays.
fn guests_run_on_several_cpus() -> Result<()> {
    for cpus in [2, 4] {
        let run = machine(cpus, "64")
            .line("xl create -c /boot/hello.cfg vcpus=2")
            .line("xl create -c /boot/conformance.cfg");
        run.seconds(300).run()?.succeeded()?.says("hello: goodbye")?.says(" pass 0 fail ")?;
    }
    Ok(())
}
