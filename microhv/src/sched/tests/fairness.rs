//! Each domain gets its share, whatever the others do.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::hypercall::__HYPERVISOR_SCHED_OP;
use ring_abi::sched::*;

use super::*;
use crate::domain::PauseFlags;
use crate::platform::*;

#[test]
fn equal_domains_get_equal_shares() {
    let world = quiet();
    let domains: Vec<_> = (0..5).map(|_| world.guest(1)).collect();
    let counts = shares(&world, &domains.iter().collect::<Vec<_>>(), 5000, MS);
    for count in counts {
        assert!((950..=1050).contains(&count), "{count} of 1000");
    }
}

#[test]
fn shares_follow_weights() {
    let world = quiet();
    let (light, heavy) = (world.guest(1), world.guest(1));
    heavy.vcpus[0].sched.weight.store(768, Ordering::Relaxed);
    let counts = shares(&world, &[&light, &heavy], 4000, MS);
    assert!((950..=1050).contains(&counts[0]), "{counts:?}");
}

#[test]
fn a_lone_vcpu_has_no_slices() {
    let world = quiet();
    let guest = world.guest(1);
    assert_eq!(world.runs(), guest.id);
    assert_eq!(world.hv.sched.slice_end(CpuId::BOOT), None);
    let other = world.guest(1);
    world.settle();
    assert!(world.hv.sched.slice_end(CpuId::BOOT).is_some());
    world.sleep(&other);
    world.pass(TIME_SLICE_NS);
    world.settle();
    world.pass(TIME_SLICE_NS);
    world.settle();
    assert_eq!(world.hv.sched.slice_end(CpuId::BOOT), None);
}

#[test]
fn who_sleeps_much_is_served_at_once_and_starves_nobody() {
    let world = quiet();
    let (sleeper, busy) = (world.guest(1), world.guest(1));
    world.sleep(&sleeper);
    world.settle();
    world.pass(800 * MS);
    assert_eq!(world.runs(), busy.id);
    world.wake(&sleeper);
    assert_eq!(world.runs(), sleeper.id, "runs as soon as it wakes");
    // The sleeper does not sleep again: both get the same from now on, but for the credit that it woke with.
    let counts = shares(&world, &[&sleeper, &busy], 1000, MS);
    assert!(counts[1] >= 450, "{counts:?}");
}

#[test]
fn yield_lets_another_run_and_costs_nothing_alone() {
    let world = quiet();
    let (a, b) = (world.guest(1), world.guest(1));
    let first = world.settle().expect("runs");
    assert_eq!(world.call(first.domain(), __HYPERVISOR_SCHED_OP, &[SCHEDOP_YIELD.into()]), 0);
    let second = world.settle().expect("runs");
    assert!(!first.same(&second));
    assert_eq!(world.call(second.domain(), __HYPERVISOR_SCHED_OP, &[SCHEDOP_YIELD.into()]), 0);
    assert!(world.settle().expect("runs").same(&first));
    let other = if Arc::ptr_eq(first.domain(), &a) { &b } else { &a };
    assert!(world.hv.pause_domain(other));
    world.settle();
    world.call(first.domain(), __HYPERVISOR_SCHED_OP, &[SCHEDOP_YIELD.into()]);
    world.settle();
    assert_eq!(world.hv.sched.running(CpuId::BOOT).expect("runs").domain().id, first.domain().id);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    /// A domain that always wants to run gets at least three quarters of its share, whatever the others do.
    #[test]
    fn nobody_starves(moves in proptest::collection::vec((0usize..4, 0u8..4, 1u64..20), 50..200)) {
        let world = quiet();
        let busy = world.guest(1);
        let others: Vec<_> = (0..4).map(|_| world.guest(1)).collect();
        let start = world.hv.platform.now_ns();
        for (who, what, ms) in moves {
            let other = &others[who];
            match what {
                0 => world.sleep(other),
                1 => world.wake(other),
                2 => { world.call(other, __HYPERVISOR_SCHED_OP, &[SCHEDOP_YIELD.into()]); }
                _ => {}
            }
            for _ in 0..ms {
                world.settle();
                world.pass(MS);
            }
        }
        let now = world.hv.platform.now_ns();
        let ran = busy.vcpus[0].time.lock().cpu_ns(now);
        proptest::prop_assert!(ran * 5 * 4 / 3 + 100 * MS >= now - start, "{ran} of {}", now - start);
    }
}

#[test]
fn a_domain_that_sleeps_gets_its_credit_back() {
    let world = quiet();
    let (pair, busy) = (world.guest(2), world.guest(1));
    world.hv.wake(&pair, &pair.vcpus[1], PauseFlags::DOWN);
    for _ in 0..3 {
        // One of the pair uses the domain's credit up, then both sleep.
        for (vcpu, others) in pair.vcpus.iter().zip([1usize, 0]) {
            world.hv.hold(&pair.vcpus[others], PauseFlags::BLOCKED);
            world.hv.hold(vcpu, PauseFlags::BLOCKED);
            world.settle();
            for _ in 0..30 {
                world.pass(MS);
                assert_eq!(world.runs(), busy.id);
            }
            world.hv.kick_vcpu(&pair, vcpu);
            assert_eq!(world.runs(), pair.id, "at once");
            for _ in 0..20 {
                world.pass(MS);
                world.settle();
            }
        }
    }
}
