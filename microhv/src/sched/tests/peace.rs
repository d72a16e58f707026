//! What a guest does on its CPUs interrupts other CPUs seldom, however often the guest does it.

use alloc::sync::Arc;

use super::several::Several;
use super::*;
use crate::domain::PauseFlags;
use crate::sched::pools::Policy;
use crate::sched::state::COURTEOUS_RUN_NS;
use crate::time::state::TimerKind;

const US: u64 = MS / 1000;

/// A guest whose first vCPU runs on `first` and whose second, which sleeps, ran on `second`. Both may run anywhere.
fn pair(several: &Several, [first, second]: [CpuId; 2]) -> Arc<Domain> {
    let (guest, hv) = (several.hog(2, 256), &several.world.hv);
    for (vcpu, cpu) in guest.vcpus.iter().zip([first, second]) {
        hv.set_affinity(&guest, vcpu, CpuSet::only(cpu), CpuSet::ALL);
    }
    several.run(50 * MS);
    hv.hold(&guest.vcpus[1], PauseFlags::BLOCKED);
    several.turn();
    for vcpu in &guest.vcpus {
        vcpu.sched.set_affinity(CpuSet::ALL, CpuSet::ALL);
        hv.refresh(&guest, vcpu);
    }
    several.run(50 * MS);
    assert_eq!(guest.vcpus[0].running_on(), Some(first));
    assert_eq!(guest.vcpus[1].sched.cpu(), second);
    guest
}

/// A guest that never sleeps and stays on `cpu`.
fn hog_on(several: &Several, cpu: CpuId) -> Arc<Domain> {
    let hog = several.hog(1, 256);
    several.pin(&hog, CpuSet::only(cpu), CpuSet::ALL);
    several.run(50 * MS);
    assert_eq!(hog.vcpus[0].running_on(), Some(cpu));
    hog
}

/// How often each CPU had something to do, and how often other CPUs or its timer interrupted it.
fn disturbed(several: &Several) -> Vec<[u32; 2]> {
    let events = several.world.hv.platform.events.lock();
    let kicks = |cpu: &CpuId| events.kicks.iter().filter(|kicked| *kicked == cpu).count() as u32;
    several.cpus.iter().map(|cpu| [several.rounds[cpu.index()].get(), kicks(cpu)]).collect()
}

fn since(several: &Several, before: &[[u32; 2]]) -> Vec<[u32; 2]> {
    let after = disturbed(several);
    after.iter().zip(before).map(|(after, before)| [after[0] - before[0], after[1] - before[1]]).collect()
}

#[test]
fn a_vcpu_that_is_up_for_a_moment_again_and_again_interrupts_nobody_much() {
    let several = Several::new(2);
    let hv = &several.world.hv;
    let [zero, one] = [0, 1].map(|cpu| several.cpus[cpu]);
    let victim = hog_on(&several, one);
    let guest = pair(&several, [zero, one]);
    let sibling = &guest.vcpus[1];
    hv.wake(&guest, sibling, PauseFlags::BLOCKED);
    hv.vcpu_down(&guest, sibling);
    several.run(50 * MS);
    let before = disturbed(&several);
    for _ in 0..1000 {
        hv.platform.on_cpu(0);
        hv.wake(&guest, sibling, PauseFlags::DOWN);
        hv.vcpu_down(&guest, sibling);
        several.do_work();
        assert_eq!(victim.vcpus[0].running_on(), Some(one));
        several.world.pass(2 * US);
        several.do_work();
    }
    // Each time the timer is set, and comes.
    let most = 2 * (1000 * 2 * US / COURTEOUS_RUN_NS) as u32 + 2;
    let [_, [rounds, kicks]] = since(&several, &before)[..] else { panic!("two CPUs") };
    assert!(rounds <= most && kicks <= most, "{rounds} rounds, {kicks} kicks, at most {most}");
    // A vCPU that stays up runs as soon as before.
    hv.platform.on_cpu(0);
    hv.wake(&guest, sibling, PauseFlags::DOWN);
    several.run(COURTEOUS_RUN_NS);
    assert_eq!(sibling.running_on(), Some(one));
}

#[test]
fn vcpus_that_wake_each_other_interrupt_nobody_much() {
    let several = Several::new(4);
    let hv = &several.world.hv;
    let [zero, one, two, three] = [0, 1, 2, 3].map(|cpu| several.cpus[cpu]);
    let pool = several.pool(Policy::Null, &[3]);
    let dedicated = several.hog(1, 256);
    dedicated.vcpus[0].time.lock().period_ns = 0; // the guest stops its tick
    hv.move_to_pool(&dedicated, pool).expect("moved");
    several.run(20 * MS);
    assert_eq!(dedicated.vcpus[0].running_on(), Some(three));
    let victims = [one, two].map(|cpu| hog_on(&several, cpu));
    for victim in &victims {
        victim.vcpus[0].time.lock().period_ns = 0;
    }
    let guest = pair(&several, [zero, zero]);
    let before = disturbed(&several);
    let mut turns = [0, 1];
    for _ in 0..10_000 {
        let [runs, sleeps] = turns.map(|vcpu: usize| &guest.vcpus[vcpu]);
        assert_eq!(runs.running_on(), Some(zero));
        hv.platform.on_cpu(0);
        hv.kick_vcpu(&guest, sleeps);
        hv.hold(runs, PauseFlags::BLOCKED);
        several.do_work(); // the first CPU first
        several.world.pass(2 * US);
        turns.reverse();
    }
    let [_, first, second, own] = since(&several, &before)[..] else { panic!("four CPUs") };
    // A call and the end of the slice, in each of two slices that have ended and one that has not.
    for disturbed in [first, second] {
        assert!(disturbed.iter().all(|times| *times <= 6), "{disturbed:?}");
    }
    assert_eq!(own, [0, 0], "the CPU of one vCPU is not called");
}

/// A watchdog's time is the guest's choice, and its timer lies where the guest's first vCPU ran last.
#[test]
fn watchdogs_far_away_interrupt_nobody() {
    let several = Several::new(2);
    let hv = &several.world.hv;
    let [zero, one] = [0, 1].map(|cpu| several.cpus[cpu]);
    let victim = hog_on(&several, one);
    victim.vcpus[0].time.lock().period_ns = 0;
    let guest = pair(&several, [zero, one]);
    several.run(50 * MS);
    let before = disturbed(&several);
    for n in 0..1000 {
        hv.platform.on_cpu(0);
        let deadline = hv.platform.now_ns() + (1_000_000 - n) * 1000 * MS;
        hv.arm_timer(&guest.vcpus[1], TimerKind::FirstWatchdog, Some(deadline));
        several.do_work();
        several.world.pass(2 * US);
    }
    let [_, [rounds, kicks]] = since(&several, &before)[..] else { panic!("two CPUs") };
    assert!(rounds <= 2 && kicks <= 2, "{rounds} rounds, {kicks} kicks");
}
