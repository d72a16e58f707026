//! Timers of many vCPUs that are due at once.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::*;
use crate::platform::*;
use crate::testing::World;
use crate::time::state::TimerKind;

#[test]
fn timers_that_are_due_together_fire_in_pieces() {
    let world = World::new(256);
    let guest = world.guest(100);
    let due = world.hv.platform.now_ns() + 1_000;
    for vcpu in &guest.vcpus {
        world.hv.arm_timer(vcpu, TimerKind::Singleshot, Some(due));
    }
    let set =
        || guest.vcpus.iter().filter(|v| world.hv.time.deadline(v, TimerKind::Singleshot).is_some()).count();
    world.hv.do_softirqs(CpuId::BOOT);
    for left in [68, 36, 4, 0] {
        world.pass(1_000);
        world.hv.do_softirqs(CpuId::BOOT);
        assert_eq!(set(), left);
        let next = world.hv.platform.timers[0].load(Ordering::Relaxed);
        assert_eq!(left > 0, next <= world.hv.platform.now_ns(), "the rest at once");
    }
}

#[test]
fn a_timer_that_wakes_a_herd_fires_alone() {
    let world = World::new(256);
    let guests = [1, 2].map(|_| world.guest(9));
    let due = world.hv.platform.now_ns() + 1_000;
    for guest in &guests {
        assert!(guest.vcpus[1..].iter().all(|vcpu| !guest.events.poller_entered(vcpu, None)));
        world.hv.arm_timer(&guest.vcpus[0], TimerKind::Singleshot, Some(due));
    }
    let left = || {
        let is_set =
            |guest: &&Arc<Domain>| world.hv.time.deadline(&guest.vcpus[0], TimerKind::Singleshot).is_some();
        guests.iter().filter(is_set).count()
    };
    for expected in [1, 0] {
        world.pass(1_000);
        world.hv.do_softirqs(CpuId::BOOT);
        assert_eq!(left(), expected);
    }
}
