//! Machines with several CPUs.

use anyhow::{Result, ensure};
use tests::linux::command;
use tests::{Live, Machine};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![cpus:
        as_many_cpus_are_used_as_there_are_and_as_is_asked,
        guests_run_on_several_cpus,
        cpus_stop_and_go_on_beside_guests,
        pools_have_cpus_of_their_own,
        a_core_runs_one_domain_at_a_time,
        threads_of_cores_are_found,
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
    run.says("maxcpus=0 is ignored: expected a number from 1 to 64")?.says("2 CPU(s) found, 2 used")?;
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
        .line("try xl vcpu-pin busy 0 1")
        .line("try xl create /boot/hello.cfg pool='rt' cpus_soft='0'")
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
    let refused = "none of the CPUs is in the CPU pool rt, which has 2,3";
    let run = run.says(&format!("busy: vCPU 0: CPUs 1, soft -: {refused}"))?;
    let run = run.says(&format!("cpus_soft: vCPU 0: {refused}"))?;
    run.says("Pool-0             0,1,2,3")?.says("pool: rt: no such CPU pool")?;
    Ok(())
}

/// A machine of two cores with two threads each.
fn cores(model: &str, granularity: &str) -> Machine {
    machine(4, granularity).with(|machine| {
        machine.cpu_model = model.into();
        machine.hypervisor_arguments = format!("sched-gran={granularity}");
        machine.qemu_arguments = ["-smp", "4,sockets=1,cores=2,threads=2"].map(Into::into).into();
    })
}

fn threads_of_cores_are_found() -> Result<()> {
    for model in ["qemu64", "Nehalem", "EPYC"] {
        let run = cores(model, "core").line("xl info -n").run()?.succeeded()?;
        let run = run.says("Scheduling granularity: core, 2 CPUs per sched-resource")?;
        let run = run.says("threads_per_core       : 2")?.says("cores_per_socket       : 2")?;
        run.says("  1:       0        0        0")?.says("  2:       2        0        0")?;
    }
    let run = cores("qemu64", "socket").line("xl info").run()?.succeeded()?;
    let run = run.says("sched-gran=socket is ignored: expected cpu or core")?;
    run.says("Scheduling granularity: cpu, 1 CPU per sched-resource")?;
    Ok(())
}

/// The domains that the two CPUs of a core ran when the hypervisor was asked, and how many turns there had been.
fn shared(line: &str) -> Option<(&str, &str, u64)> {
    let (_, rest) = line.split_once("cores: CPUs ")?;
    let (runs, turns) = rest.split_once(" run [")?.1.split_once("], ")?;
    let (first, second) = runs.split_once(", ")?;
    Some((first, second, turns.split_once(' ')?.0.parse().ok()?))
}

/// Two busy guests and dom0 share two cores of two threads: whenever one looks, no core runs vCPUs of two domains. The guests are busy
/// until enough was seen, however fast the host is.
fn a_core_runs_one_domain_at_a_time() -> Result<()> {
    const MOST_LOOKS: usize = 1000;
    let mut machine = cores("qemu64", "core").seconds(900).start()?;
    machine.expect("dom0# ", 60)?;
    for (name, peer) in [("left", 2), ("right", 1)] {
        let create = "xl create /boot/hostile.cfg memory=12 vcpus=3";
        command(&mut machine, &format!("{create} name='{name}' extra='case=storm peer={peer}'"), 120)?;
    }
    let (mut looks, mut pairs, mut turns) = (0, 0, 0);
    while looks < 120 || pairs <= 10 || turns <= 50 {
        ensure!(looks < MOST_LOOKS, "of {looks} looks {pairs} saw two vCPUs on a core, after {turns} turns");
        let shown = command(&mut machine, "xl debug-keys r", 60)?;
        for (first, second, turn) in shown.lines().filter_map(shared) {
            let is_half = first == "None" || second == "None";
            ensure!(is_half || first == second, "a core is shared: {shown}");
            looks += 1;
            pairs += usize::from(!is_half);
            turns = turn.max(turns);
        }
    }
    command(&mut machine, "xl cpu-offline 3", 60)?;
    for name in ["left", "right"] {
        command(&mut machine, &format!("xl destroy {name}"), 60)?;
    }
    let end = |machine: &mut Live, line: &str, text: &str| {
        machine.type_line(line)?;
        machine.expect(text, 300)?;
        machine.expect("dom0# ", 60)
    };
    end(&mut machine, "xl debug-keys M", "frame table: 0 differences")?;
    end(&mut machine, "xl create -c /boot/hello.cfg vcpus=2", "hello: goodbye")?;
    command(&mut machine, "xl cpu-online 3", 60)?;
    end(&mut machine, "xl create -c /boot/conformance.cfg", "conformance: end ")?;
    machine.type_line("poweroff")?;
    let run = machine.finish().succeeded()?.says(" pass 0 fail ")?;
    run.require(!run.console().contains("storm: FAIL"), "a storm has used what was stale")
}
