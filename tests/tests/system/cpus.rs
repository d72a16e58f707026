//! Machines with several CPUs.

use anyhow::Result;
use tests::Machine;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![cpus:
        as_many_cpus_are_used_as_there_are_and_as_is_asked,
        guests_run_on_several_cpus,
        cpus_stop_and_go_on_beside_guests,
        pools_have_cpus_of_their_own,
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

/// CPUs stop and go on while a guest runs on all of them. With CPUs stopped, guests run as before.
fn cpus_stop_and_go_on_beside_guests() -> Result<()> {
    let mut machine =
        machine(4, "64").line("xl create /boot/hello.cfg name='busy' vcpus=4 extra='store-reads=30000'");
    for _ in 0..6 {
        for cpu in 1..4 {
            machine = machine.line(&format!("xl cpu-offline {cpu}")).line("xl vcpu-list");
        }
        for cpu in [2, 1, 3] {
            machine = machine.line(&format!("xl cpu-online {cpu}")).line("xl cpupool-list");
        }
    }
    let run = machine
        .line("xl cpu-offline 2")
        .line("try xl cpu-offline 2")
        .line("try xl cpu-offline 0")
        .line("xl cpupool-list -c")
        .line("xl info")
        .line("xl create -c /boot/hello.cfg vcpus=3")
        .line("xl create -c /boot/conformance.cfg")
        .line("xl cpu-online 2")
        .line("xl debug-keys r");
    let run = run.seconds(300).run()?.succeeded()?;
    let run =
        run.says("CPU 2 is offline")?.says("CPU 0 is the boot CPU")?.says("Pool-0             0,1,3")?;
    let run = run.says("nr_cpus                : 3")?.says("max_cpu_id             : 3")?;
    run.says("hello: goodbye")?.says(" pass 0 fail ")?;
    Ok(())
}

/// A pool of the null policy runs guests on its own CPUs; domains go from pool to pool while they run.
fn pools_have_cpus_of_their_own() -> Result<()> {
    let mut machine = machine(4, "64")
        .line("xl cpupool-cpu-remove Pool-0 2,3")
        .line("xl cpupool-create name='rt' sched='null' cpus='2-3'")
        .line("xl create -c /boot/hello.cfg vcpus=2 pool='rt'")
        .line("xl create -c /boot/conformance.cfg pool='rt'")
        .line("xl create /boot/hello.cfg name='busy' vcpus=2 pool='rt' extra='store-reads=30000'")
        .line("xl vcpu-list busy")
        .line("try xl cpupool-destroy rt");
    for _ in 0..10 {
        machine = machine.line("xl cpupool-migrate busy Pool-0").line("xl list -c");
        machine = machine.line("xl cpupool-migrate busy rt").line("xl vcpu-list busy");
    }
    let run = machine
        .line("xl destroy busy")
        .line("xl cpupool-destroy rt")
        .line("xl cpupool-cpu-add Pool-0 2-3")
        .line("xl cpupool-list -c")
        .line("try xl create /boot/hello.cfg pool='rt'")
        .line("xl create -c /boot/hello.cfg vcpus=4");
    let run = run.seconds(300).run()?.succeeded()?;
    let run = run.says("hello: goodbye")?.says(" pass 0 fail ")?.says("1 domain(s) are in this CPU pool")?;
    run.says("Pool-0             0,1,2,3")?.says("pool: rt: no such CPU pool")?;
    Ok(())
}
