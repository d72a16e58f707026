//! Requests that come right behind each other, or at the same time, and leave no work undone and no word stale.

use super::several::Several;
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
