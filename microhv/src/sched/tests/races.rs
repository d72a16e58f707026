//! Requests that come right behind each other, or at the same time, and leave no work undone and no word stale.

use alloc::vec::Vec;

use super::several::{Several, shares_hold_on};
use super::*;
use crate::domain::PauseFlags;
use crate::sched::pools::{Change, Policy, PoolError};
use crate::testing::turns::plans;
use crate::time::state::TimerKind;

/// A vCPU of the null policy sets its timer while another takes its CPU away, and its timers with that. No timer is left on the
/// CPU, which can go.
#[test]
fn a_timer_is_set_where_its_vcpus_timers_are() {
    for plan in plans([6, 8, 8]) {
        let several = Several::new(3);
        let (hv, two) = (&several.world.hv, several.cpus[2]);
        let pool = several.pool(Policy::Null, &[2]);
        let guest = several.hog(2, 256);
        several.migrate(&guest, pool);
        let vcpu = guest.vcpus.iter().find(|vcpu| vcpu.running_on() == Some(two)).expect("one runs");
        let far = hv.platform.now_ns() + 3_600_000 * MS;
        let set = || hv.arm_own_timer(vcpu, TimerKind::Singleshot, Some(far));
        let take = || {
            hv.vcpu_down(&guest, vcpu);
            hv.arm_timer(vcpu, TimerKind::FirstWatchdog, Some(far + MS));
        };
        several.world.at_once(&plan, set, take);
        hv.time.check();
        for kind in [TimerKind::Singleshot, TimerKind::FirstWatchdog] {
            assert!(hv.time.deadline(vcpu, kind).is_some(), "{plan:?}: {kind:?} is not set");
        }
        several.do_work();
        several.migrate(&guest, 0);
        assert_eq!(several.change(Change::Remove { pool, cpu: two }), Ok(()), "{plan:?}");
    }
}

/// A vCPU wakes and goes down again before its CPU has looked: the CPU is then free for a vCPU that waits for one.
#[test]
fn a_cpu_whose_owner_woke_in_vain_looks_for_another() {
    let several = Several::new(3);
    let hv = &several.world.hv;
    let pool = several.pool(Policy::Null, &[2]);
    let [owner, waiter] = [(); 2].map(|()| several.hog(1, 256));
    several.migrate(&owner, pool);
    let vcpu = &owner.vcpus[0];
    hv.hold(vcpu, PauseFlags::BLOCKED);
    several.turn();
    several.migrate(&waiter, pool);
    hv.platform.on_cpu(0);
    assert_eq!(waiter.vcpus[0].running_on(), None, "the CPU is the other's");
    hv.wake(&owner, vcpu, PauseFlags::BLOCKED);
    hv.vcpu_down(&owner, vcpu);
    several.turn();
    assert_eq!(waiter.vcpus[0].running_on(), Some(several.cpus[2]));
    assert!(!vcpu.sched.queued.load(Ordering::Relaxed));
}

/// One CPU takes a vCPU of the null policy down while another brings it up: the vCPU waits for a CPU, or has one.
#[test]
fn a_vcpu_that_goes_down_and_comes_up_at_once_is_not_lost() {
    for plan in plans([12, 20, 4]) {
        let several = Several::new(3);
        let (hv, two) = (&several.world.hv, several.cpus[2]);
        let pool = several.pool(Policy::Null, &[2]);
        let guest = several.hog(2, 256);
        hv.vcpu_down(&guest, &guest.vcpus[1]);
        several.migrate(&guest, pool);
        let vcpu = &guest.vcpus[0];
        assert_eq!(vcpu.running_on(), Some(two));
        let come_up = || {
            several.world.settle_on(two);
            hv.platform.on_cpu(1);
            hv.wake(&guest, vcpu, PauseFlags::DOWN);
            several.world.settle_on(two);
        };
        let world = &several.world;
        world.at_once(&plan, || hv.take_down(&guest, vcpu), come_up);
        several.turn();
    }
}

/// A pool stays while one of its CPUs is on its way: whoever moves the CPU goes on by the pool's number.
#[test]
fn a_pool_ends_when_its_cpus_have_gone() {
    let several = Several::new(3);
    let (hv, one) = (&several.world.hv, several.cpus[1]);
    let pool = several.pool(Policy::Shares, &[1]);
    let guest = several.hog(1, 256);
    several.migrate(&guest, pool);
    several.turn();
    hv.platform.on_cpu(0);
    assert_eq!(hv.move_to_pool(&guest, 0), Ok(()), "and the vCPU runs there still");
    let change = Change::Remove { pool, cpu: one };
    let mut turns = 0;
    while hv.change_cpus(change) == Err(PoolError::Again) {
        assert_eq!(hv.sched.destroy_pool(pool), Err(PoolError::Busy));
        several.do_work();
        turns += 1;
    }
    assert_ne!(turns, 0, "the change took a while");
    assert_eq!(hv.sched.destroy_pool(pool), Ok(()));
}

/// A vCPU that mostly sleeps, and is taken over whenever it wakes, has the credit of its wake-ups, and no more.
#[test]
fn who_sleeps_much_saves_nothing_up() {
    let several = Several::new(2);
    let others = [0, 1].map(|cpu| {
        let other = several.hog(1, 256);
        several.pin(&other, CpuSet::only(several.cpus[cpu]), CpuSet::ALL);
        other
    });
    let sleeper = several.hog(1, 256);
    let vcpu = &sleeper.vcpus[0];
    several.world.sleep(&sleeper);
    several.run(500 * MS);
    let mut moves = 0;
    for _ in 0..500 {
        let last = vcpu.sched.cpu();
        others.iter().for_each(|other| several.world.wake(other));
        several.run(MS / 100);
        several.world.wake(&sleeper);
        several.turn();
        // The other CPU has nothing to do from now on, and takes the vCPU that waits.
        let other = &others[usize::from(last == several.cpus[0])];
        several.world.sleep(other);
        several.run(MS / 10);
        moves += u32::from(vcpu.sched.cpu() != last);
        others.iter().chain([&sleeper]).for_each(|domain| several.world.sleep(domain));
        several.run(7 * MS);
    }
    assert!(moves > 100, "{moves} moves");
    // From now on the sleeper computes, beside another that does so too.
    let cpu = CpuSet::only(several.cpus[0]);
    several.pin(&sleeper, cpu, CpuSet::ALL);
    [&sleeper, &others[0]].into_iter().for_each(|domain| several.world.wake(domain));
    several.run(20 * MS);
    let both = [sleeper, others[0].clone()];
    let before = several.ran(&both);
    several.run(1000 * MS);
    let ran: Vec<u64> =
        several.ran(&both).iter().zip(&before).map(|(after, before)| after - before).collect();
    assert!(ran[0] < 560 * MS, "{moves} moves, then of a second {ran:?} ns");
}

/// Two CPUs at once have something for an idle CPU, and call the same one. The other idle CPU hears of what is left.
#[test]
fn who_is_called_by_two_passes_the_second_call_on() {
    let several = Several::new(4);
    let hogs = [0, 1].map(|cpu| {
        let hog = several.hog(1, 256);
        several.pin(&hog, CpuSet::only(several.cpus[cpu]), CpuSet::ALL);
        hog
    });
    let sleepers = [0, 1].map(|cpu| {
        let sleeper = several.hog(1, 256);
        several.pin(&sleeper, CpuSet::only(several.cpus[cpu]), CpuSet::ALL);
        several.world.sleep(&sleeper);
        sleeper
    });
    several.run(100 * MS);
    hogs.iter().for_each(|hog| hog.vcpus[0].sched.set_affinity(CpuSet::ALL, CpuSet::ALL));
    for hog in &hogs {
        several.world.hv.refresh(hog, &hog.vcpus[0]);
    }
    sleepers.iter().for_each(|sleeper| several.world.wake(sleeper));
    several.turn();
    let all = hogs.iter().chain(&sleepers).all(|domain| domain.vcpus[0].running_on().is_some());
    assert!(all, "four vCPUs, four CPUs");
}

/// vCPUs that go round the CPUs in one step: the one that waits each time gets its share all the same.
#[test]
fn who_always_waits_gets_its_share() {
    let several = Several::new(4);
    let hogs: Vec<_> = [128, 128, 128, 128, 256, 256].map(|weight| several.hog(1, weight)).into();
    shares_hold_on(&several, &hogs, 4, 20);
}

/// One vCPU has a CPU for itself, and of the others one has less weight by a little: once it had 4 % more than was due on a machine.
#[test]
fn a_little_less_weight_is_a_little_less_time() {
    for turn in 0..6 {
        let several = Several::new(5);
        let mut weights = [300, 256, 300, 300, 300, 512];
        weights.rotate_left(turn);
        let hogs: Vec<_> = weights.map(|weight| several.hog(1, weight)).into();
        shares_hold_on(&several, &hogs, 5, 60);
    }
}
