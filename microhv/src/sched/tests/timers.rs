//! The timers of vCPUs and of the CPU, and watchdogs.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::VIRQ_TIMER;
use ring_abi::hypercall::{__HYPERVISOR_SCHED_OP, __HYPERVISOR_SET_TIMER_OP, __HYPERVISOR_VCPU_OP};
use ring_abi::sched::*;
use ring_abi::types::Port;
use ring_abi::vcpu::*;

use super::*;
use crate::hypercall::HypercallError;
use crate::testing::{ARGS, World};
use crate::time::state::TimerKind;

fn timer_port(world: &World, guest: &Arc<Domain>) -> Port {
    world.hv.bind_virq(guest, VIRQ_TIMER, 0, |_| Ok(())).expect("bound")
}

#[test]
fn a_new_vcpu_ticks_at_100_hz_until_stopped() {
    let world = quiet();
    let guest = world.guest(1);
    let port = timer_port(&world, &guest);
    let mut ticks = 0;
    for _ in 0..100 {
        world.settle();
        ticks += u32::from(guest.events.is_pending(port));
        clear_pending(&guest);
        world.pass(MS);
    }
    assert!((9..=11).contains(&ticks), "{ticks} in 100 ms");
    assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_STOP_PERIODIC_TIMER.into(), 0]), 0);
    clear_pending(&guest);
    for _ in 0..50 {
        world.settle();
        world.pass(MS);
    }
    assert!(!guest.events.is_pending(port));
    let mut op = VcpuSetPeriodicTimer { period_ns: MS - 1 };
    let mut set = |period_ns| {
        op.period_ns = period_ns;
        world.put(ARGS, &op);
        world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_SET_PERIODIC_TIMER.into(), 0, ARGS])
    };
    assert_eq!(set(MS - 1), HypercallError::Invalid.errno());
    assert_eq!(set(u64::MAX), HypercallError::Invalid.errno());
    assert_eq!(set(MS), 0);
    world.pass(MS);
    world.settle();
    assert!(guest.events.is_pending(port));
}

#[test]
fn a_singleshot_timer_wakes_a_blocked_vcpu() {
    let world = quiet();
    let guest = world.guest(1);
    let port = timer_port(&world, &guest);
    world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_STOP_PERIODIC_TIMER.into(), 0]);
    let deadline = world.hv.platform.now_ns() + 5 * MS;
    let mut op = VcpuSetSingleshotTimer { timeout_abs_ns: deadline, ..VcpuSetSingleshotTimer::default() };
    world.put(ARGS, &op);
    assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_SET_SINGLESHOT_TIMER.into(), 0, ARGS]), 0);
    assert_eq!(world.call(&guest, __HYPERVISOR_SCHED_OP, &[SCHEDOP_BLOCK.into()]), 0);
    assert!(world.settle().is_none());
    assert_eq!(world.hv.platform.timers[0].load(Ordering::Relaxed), deadline);
    world.pass(5 * MS - 1);
    assert!(world.settle().is_none());
    world.pass(1);
    assert_eq!(world.runs(), guest.id);
    assert!(guest.events.is_pending(port));
    world.pass(1);
    op.flags = VCPU_SSHOTTMR_FUTURE;
    world.put(ARGS, &op);
    assert_eq!(
        world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_SET_SINGLESHOT_TIMER.into(), 0, ARGS]),
        HypercallError::TimePast.errno()
    );
}

/// The guest sets its single-shot timer to `deadline`.
fn set_timer(world: &World, guest: &Arc<Domain>, deadline: u64) {
    assert_eq!(world.call(guest, __HYPERVISOR_SET_TIMER_OP, &[deadline]), 0);
    world.settle();
}

#[test]
fn a_deadline_put_off_leaves_the_cpus_timer_alone_and_is_kept() {
    let world = quiet();
    let guest = world.guest(1);
    let port = timer_port(&world, &guest);
    world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_STOP_PERIODIC_TIMER.into(), 0]);
    let now = world.hv.platform.now_ns();
    let timer = || world.hv.platform.timers[0].load(Ordering::Relaxed);
    set_timer(&world, &guest, now + 10 * MS);
    assert_eq!(timer(), now + 10 * MS);
    set_timer(&world, &guest, now + 20 * MS);
    assert_eq!(timer(), now + 10 * MS, "the timer comes early, and the CPU looks again then");
    set_timer(&world, &guest, now + 5 * MS);
    assert_eq!(timer(), now + 5 * MS, "the timer never comes too late");
    set_timer(&world, &guest, now + 20 * MS);
    world.pass(5 * MS);
    world.settle();
    assert!(!guest.events.is_pending(port));
    assert_eq!(timer(), now + 20 * MS);
    world.pass(15 * MS);
    world.settle();
    assert!(guest.events.is_pending(port));
}

#[test]
fn the_cpus_timer_comes_for_whatever_is_due_first() {
    let world = quiet();
    let guests: Vec<_> = (0..3).map(|_| world.guest(1)).collect();
    let mut random = 1u64;
    for _ in 0..20_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let guest = &guests[(random >> 60) as usize % 3];
        let now = world.hv.platform.now_ns();
        match random >> 56 & 7 {
            0..=3 => set_timer(&world, guest, now + 1 + (random >> 32 & 0xff_ffff)),
            4 => world.sleep(guest),
            5 => world.wake(guest),
            _ => world.pass(random >> 32 & 0x3f_ffff),
        }
        world.settle();
        let now = world.hv.platform.now_ns();
        let timer = world.hv.platform.timers[0].load(Ordering::Relaxed);
        let kinds = [TimerKind::Periodic, TimerKind::Singleshot, TimerKind::Poll];
        let deadlines = guests
            .iter()
            .chain([&world.dom0])
            .flat_map(|guest| kinds.iter().filter_map(|kind| world.hv.time.deadline(&guest.vcpus[0], *kind)));
        for due in deadlines.chain(world.hv.sched.slice_end(CpuId::BOOT)) {
            assert!(timer <= due && due > now, "at {now}: the timer is set for {timer}, and {due} is due");
        }
    }
}

#[test]
fn nonsense_timeouts_become_100_ms() {
    let world = quiet();
    let guest = world.guest(1);
    let deadline = || world.hv.time.deadline(&guest.vcpus[0], TimerKind::Singleshot);
    let now = world.hv.platform.now_ns();
    for (timeout, expected) in [
        (u64::MAX, Some(now + 100 * MS)),
        (1 << 63, Some(now + 100 * MS)),
        (now + (1 << 51), Some(now + 100 * MS)),
        (now + 7, Some(now + 7)),
        (1, Some(1)),
        (0, None),
    ] {
        assert_eq!(world.call(&guest, __HYPERVISOR_SET_TIMER_OP, &[timeout]), 0);
        assert_eq!(deadline(), expected, "{timeout:#x}");
    }
}

#[test]
fn a_watchdog_that_nobody_feeds_ends_the_domain() {
    let world = quiet();
    let guest = world.guest(1);
    let dog = |id, timeout| {
        world.put(ARGS, &SchedWatchdog { id, timeout });
        world.call(&guest, __HYPERVISOR_SCHED_OP, &[SCHEDOP_WATCHDOG.into(), ARGS])
    };
    let invalid = HypercallError::Invalid.errno();
    for id in [1, 2, 3, u32::MAX] {
        assert_eq!(dog(id, 1), invalid, "{id} before any is made");
    }
    assert_eq!((dog(0, 2), dog(0, 5)), (1, 2));
    assert_eq!(dog(0, 1), HypercallError::NoSpace.errno());
    assert_eq!(dog(2, 0), 0);
    assert_eq!(dog(2, 0), invalid, "it is gone");
    world.pass(1_900 * MS);
    world.settle();
    assert_eq!(dog(1, 2), 0, "fed");
    world.pass(1_900 * MS);
    world.settle();
    assert_eq!(guest.shutdown.lock().code, None);
    world.pass(100 * MS);
    world.settle();
    assert_eq!(guest.shutdown.lock().code, Some(SHUTDOWN_WATCHDOG));
}

#[test]
fn each_watchdog_ends_the_domain() {
    for starved in [1, 2] {
        let world = quiet();
        let guest = world.guest(1);
        let dog = |id, timeout| {
            world.put(ARGS, &SchedWatchdog { id, timeout });
            world.call(&guest, __HYPERVISOR_SCHED_OP, &[SCHEDOP_WATCHDOG.into(), ARGS])
        };
        assert_eq!((dog(0, 2), dog(0, 2)), (1, 2));
        assert_eq!(dog(3 - starved, 9), 0, "fed");
        world.pass(2_000 * MS);
        world.settle();
        assert_eq!(guest.shutdown.lock().code, Some(SHUTDOWN_WATCHDOG), "watchdog {starved}");
    }
}
