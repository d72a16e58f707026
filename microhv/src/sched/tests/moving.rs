//! What a vCPU takes with it from one CPU to another.

use alloc::sync::Arc;

use super::several::Several;
use super::*;
use crate::sched::cores::Admits;

/// A CPU gets nothing of another's queue that may not run on it.
#[test]
fn a_queue_gives_a_vcpu_to_none_but_those_that_may_run_it() {
    let several = Several::new(3);
    let [zero, one, two] = [0, 1, 2].map(|cpu| several.cpus[cpu]);
    let hogs = [CpuSet::only(one), CpuSet::only(one), CpuSet::only(one).with(two)].map(|cpus| {
        let hog = several.hog(1, 256);
        several.pin(&hog, CpuSet::only(one), CpuSet::ALL);
        hog.vcpus[0].sched.set_affinity(cpus, CpuSet::ALL);
        several.world.hv.refresh(&hog, &hog.vcpus[0]);
        several.world.hv.platform.on_cpu(1);
        hog
    });
    let mut queue = several.world.hv.sched.cpus[one.index()].queue.lock();
    queue.account(several.now());
    assert!(queue.give(zero, u64::MAX, Admits::All).is_none(), "all are bound to others");
    let waits = queue.waiting().any(|vcpu| Arc::ptr_eq(vcpu.domain(), &hogs[2]));
    let given = queue.give(two, u64::MAX, Admits::All);
    assert_eq!(given.map(|vcpu| vcpu.domain_id), waits.then_some(hogs[2].id));
}

/// A vCPU that computes goes on to do so when another CPU takes it over, whatever the run times are there.
#[test]
fn a_vcpu_that_moves_has_not_slept() {
    let several = Several::new(2);
    let pinned = [(0, 64), (1, 2048)].map(|(cpu, weight)| {
        let hog = several.hog(1, weight);
        several.pin(&hog, CpuSet::only(several.cpus[cpu]), CpuSet::ALL);
        hog
    });
    several.run(2_000 * MS);
    let busy = several.hog(1, 1024);
    let vcpu = &busy.vcpus[0];
    several.run(200 * MS);
    let run_times = pinned.each_ref().map(|hog| hog.vcpus[0].sched.run_time());
    assert!(run_times[0] > 8 * run_times[1], "the CPUs' run times are far apart: {run_times:?}");
    let mut moves = 0;
    for _ in 0..100 {
        // The CPU on which the vCPU does not run has nothing to do, and takes the vCPU when it waits.
        let last = vcpu.sched.cpu();
        let other = &pinned[usize::from(last == several.cpus[0])];
        several.world.sleep(other);
        several.run(30 * MS);
        moves += u32::from(vcpu.sched.cpu() != last);
        assert!(vcpu.sched.has_run_without_sleep(), "after {moves} moves");
        several.world.wake(other);
        several.run(MS);
    }
    assert!(moves > 10, "{moves} moves");
}
