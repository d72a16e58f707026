use alloc::string::String;

use pvrt::executor::block_on_test;
use pvrt::host::{Machine, take_console_output};
use ring_abi::domctl::{XEN_SCHEDULER_CREDIT2, XEN_SCHEDULER_NULL};
use ring_abi::errno::Errno;

use super::waiting;
use crate::commands::Shell;
use crate::commands::tests::shell;
use crate::xenstore::Nodes;

/// What a line prints; an error's text, if it fails.
fn told(shell: &Shell, line: &str) -> Result<String, String> {
    take_console_output();
    block_on_test(async { shell.run_line(line).await })?;
    Ok(String::from_utf8(take_console_output()).unwrap())
}

#[test]
fn pools_are_made_named_and_end() {
    Machine::install();
    let shell = shell();
    let run = |line: &str| told(&shell, line).unwrap_or_else(|why| panic!("{line}: {why}"));
    let fails = |line: &str, part: &str| {
        let why = told(&shell, line).expect_err(line);
        assert!(why.contains(part), "{line}: {why}");
    };
    assert!(run("xl cpupool-list").contains("Pool-0               4   credit2       y"));
    fails("xl cpupool-create name=rt", "no CPU is free");
    run("xl cpupool-cpu-remove Pool-0 2-3");
    fails("xl cpupool-cpu-remove Pool-0 3", "CPU 3 is not in the CPU pool Pool-0");
    fails("xl cpupool-create name=rt cpus=1,2", "CPU 1 is not free: `xl cpupool-cpu-remove Pool-0 1`");
    fails("xl cpupool-create name=rt cpus=17", "cpus: CPU 17 is not online");
    fails("xl cpupool-create name=rt cpus=x", "cpus: `x`: expected a CPU");
    fails("xl cpupool-create name=rt sched=rtds", "expected `credit2` or `null`");
    fails("xl cpupool-create sched=null", "name: missing");
    fails("xl cpupool-create name=Pool-0", "a CPU pool of that name exists");
    fails("xl cpupool-create name=7", "must not be a number");
    let dry = run("xl cpupool-create -n name=rt sched=null cpus=2-3");
    assert!(dry.contains("scheduler:      null") && dry.contains("number of cpus: 2"), "{dry}");
    assert!(!run("xl cpupool-list").contains("rt "), "nothing was made");
    run("xl cpupool-create name=rt sched=null 'cpus=[2]'");
    let store = shell.store.client();
    assert_eq!(store.read_str("/local/pool/1/name").as_deref(), Ok("rt"));
    assert!(run("xl cpupool-list rt").contains("rt                   1      null       y          0"));
    fails("xl cpu-offline 2", "CPU 2 is in a CPU pool");
    fails(
        "xl cpupool-cpu-add rt 1",
        "CPU 1 is not free: `xl cpupool-cpu-remove Pool-0 1` takes it out of the CPU pool Pool-0",
    );
    fails("xl cpupool-cpu-add rt 3,1", "CPU 1 is not free");
    fails("xl sched-credit2 -p rt", "rt: the CPU pool's scheduler is null, not credit2");
    fails("xl cpupool-cpu-remove Pool-0 1-2", "CPU 2 is not in the CPU pool Pool-0; done for CPU 1");
    run("xl cpupool-cpu-add Pool-0 1");
    fails(
        "xl cpupool-cpu-remove Pool-0 node:0",
        "CPU 1 is the last of the CPU pool Pool-0, which has domains",
    );
    run("xl cpupool-cpu-add Pool-0 0");
    let why = shell.toolstack.affinity_refused(1, Errno::EINVAL);
    assert_eq!(why, "none of the CPUs is in the CPU pool rt, which has 2");
    run("xl cpupool-cpu-add rt node:0"); // as many of the node's as are free
    assert!(run("xl cpupool-list -c").contains("rt                 2,3\n"));
    run("xl cpupool-rename rt dedicated");
    fails("xl cpupool-list rt", "rt: no such CPU pool");
    assert!(run("xl cpupool-list -c 1").contains("dedicated          2,3"));
    fails("xl cpupool-destroy Pool-0", "dom0 is in this CPU pool");
    run("xl cpupool-destroy dedicated");
    assert!(store.read_str("/local/pool/1/name").is_err(), "its name is free");
    run("xl cpupool-cpu-add Pool-0 2,3");
    assert!(run("xl cpupool-list -c").contains("Pool-0             0,1,2,3"));
}

#[test]
fn who_waits_for_a_cpu_of_its_own_is_told() {
    assert_eq!(waiting(XEN_SCHEDULER_CREDIT2, 9, 1), None);
    assert_eq!(waiting(XEN_SCHEDULER_NULL, 2, 2), None);
    let text = waiting(XEN_SCHEDULER_NULL, 3, 1).unwrap();
    assert_eq!(text, "3 vCPUs for 1 CPU(s): with the scheduler null, 2 wait until a CPU comes free");
}

#[test]
fn cpus_go_and_come_back() {
    Machine::install();
    let shell = shell();
    for (line, part) in [
        ("xl cpu-offline 0", "CPU 0 is the boot CPU"),
        ("xl cpu-offline 9", "CPU 9: there is no such CPU"),
        ("xl cpu-offline x", "`x`: expected a CPU's number"),
        ("xl cpu-online 1", "CPU 1 is online"),
    ] {
        let why = told(&shell, line).expect_err(line);
        assert!(why.contains(part), "{line}: {why}");
    }
    told(&shell, "xl cpu-offline 1").unwrap();
    assert_eq!(told(&shell, "xl cpu-offline 1").unwrap_err(), "CPU 1 is offline");
    assert!(told(&shell, "xl cpupool-list -c").unwrap().contains("Pool-0             0,2,3"));
    told(&shell, "xl cpu-online 1").unwrap();
    assert!(told(&shell, "xl cpupool-list -c").unwrap().contains("Pool-0             0,1,2,3"));
}
