//! SMEP and SMAP: the hypervisor uses a guest's page only where it means to.

use anyhow::Result;
use tests::Machine;

use crate::Case;
use crate::edges::Code;
use crate::gdb::Stub;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![smap:
        what_the_cpu_keeps_the_hypervisor_from_is_told,
        an_access_without_stac_ends_the_hypervisor,
    ])
}

/// Guests run on a CPU that has both, whatever the command line says, and take exceptions of all kinds.
fn what_the_cpu_keeps_the_hypervisor_from_is_told() -> Result<()> {
    for (model, words, told) in [
        ("Skylake-Client", "", "SMEP: on; SMAP: on"),
        ("EPYC", "smep=no", "SMEP: off, by the command line; SMAP: on"),
        ("max", "smap=no", "SMEP: on; SMAP: off, by the command line"),
        ("qemu64", "smap=yes", "SMEP: not of this CPU; SMAP: not of this CPU"),
    ] {
        let machine = Machine::new("smap").with(|machine| {
            machine.cpu_model = model.into();
            machine.hypervisor_arguments = words.into();
        });
        let machine = machine.line("xl create -c /boot/hello.cfg");
        let run = machine.line("xl create -c /boot/hostile.cfg extra='case=traps'").run()?.succeeded()?;
        run.says(told)?.says("hello: goodbye")?.says("hostile: PASS")?;
    }
    Ok(())
}

/// STAC becomes three NOPs while the machine runs: the next copy of that kind is an access that nobody marked.
fn an_access_without_stac_ends_the_hypervisor() -> Result<()> {
    let stub = Stub::new()?;
    let machine = Machine::new("smap-stac").with(|machine| {
        machine.cpu_model = "Skylake-Client".into();
        stub.add_to(machine);
    });
    let mut machine = machine.start()?;
    machine.expect("dom0# ", 60)?;
    let at = Code::of_image()?.address("guarded_copy")?;
    let nops: Vec<String> = (at..at + 3).map(|at| format!("set {{unsigned char}}{at:#x} = 0x90")).collect();
    stub.run(&nops)?;
    // The console's hypercall copies lines of any length.
    machine.type_line("xl list")?;
    machine.expect("PANIC: the hypervisor used a guest's address ", 60)?;
    machine.expect(" without STAC (SMAP)", 60)?;
    machine.finish().panicked()?;
    Ok(())
}
