//! How long a vCPU that wakes waits for the CPU.

use alloc::sync::Arc;
use alloc::vec;

use super::*;
use crate::domain::PauseFlags;

#[test]
fn who_just_came_is_not_displaced_by_who_wakes() {
    let world = quiet();
    let (a, b) = (world.guest(1), world.guest(1));
    world.sleep(&a);
    world.settle();
    world.pass(100 * MS);
    world.sleep(&b);
    assert!(world.settle().is_none());
    world.wake(&b);
    assert_eq!(world.runs(), b.id);
    world.pass(LEAST_RUN_NS / 4);
    world.wake(&a);
    assert_eq!(world.runs(), b.id, "b has run more than a, but got the CPU just now");
    assert_eq!(
        world.hv.sched.slice_end(CpuId::BOOT),
        Some(world.hv.platform.now_ns() + LEAST_RUN_NS / 4 * 3)
    );
    world.pass(LEAST_RUN_NS / 4 * 3 - 1);
    assert_eq!(world.runs(), b.id);
    world.pass(1);
    assert_eq!(world.runs(), a.id);
    world.sleep(&a);
    assert_eq!(world.runs(), b.id, "a domain that blocks gives way at once");
}

/// A step of the simulations below, in nanoseconds.
const STEP: u64 = MS / 10;

/// The longest wait of a neighbour that mostly sleeps, in nanoseconds. Beside it, a guest wakes all its `count` vCPUs at once
/// right before the neighbour wakes. If the guest `spins`, its first vCPU never sleeps.
fn worst_wait_after_a_burst(count: u32, spins: bool) -> u64 {
    let world = quiet();
    let (neighbour, many) = (world.guest(1), world.guest(count));
    for vcpu in &many.vcpus {
        world.hv.wake(&many, vcpu, PauseFlags::DOWN);
    }
    world.sleep(&neighbour);
    let burst = &many.vcpus[usize::from(spins)..];
    let mut worst = 0;
    for _ in 0..20 {
        burst.iter().for_each(|vcpu| world.hv.hold(vcpu, PauseFlags::BLOCKED));
        for _ in 0..40 {
            world.settle();
            world.pass(MS);
        }
        burst.iter().for_each(|vcpu| world.hv.kick_vcpu(&many, vcpu));
        world.settle();
        world.pass(STEP);
        world.settle();
        world.wake(&neighbour);
        let mut waited = 0;
        while world.runs() != neighbour.id {
            world.pass(STEP);
            waited += STEP;
        }
        worst = worst.max(waited);
        world.pass(STEP);
        world.sleep(&neighbour);
    }
    worst
}

#[test]
fn a_neighbour_waits_for_one_slice_whatever_the_number_of_vcpus_that_wake() {
    for spins in [true, false] {
        for count in [1, 2, 4, 8, 32, 128] {
            let worst = worst_wait_after_a_burst(count, spins);
            assert!(
                worst <= LEAST_RUN_NS + WAKE_GRANULARITY_NS,
                "{count} vCPUs, spinning: {spins}: {worst} ns"
            );
        }
    }
}

#[test]
fn a_neighbour_that_wakes_at_any_time_waits_for_one_slice() {
    for count in [1u32, 2, 8, 64] {
        let world = quiet();
        let (neighbour, many) = (world.guest(1), world.guest(count));
        world.sleep(&neighbour);
        for vcpu in &many.vcpus {
            world.hv.wake(&many, vcpu, PauseFlags::DOWN);
        }
        let mut ran = vec![0; count as usize];
        let (mut waits_since, mut wakes_at, mut worst) = (None, 73u64, 0);
        for now in 0..40_000u64 {
            if now == wakes_at {
                world.wake(&neighbour);
                waits_since = Some(now);
            }
            let running = world.settle().expect("somebody runs");
            if Arc::ptr_eq(running.domain(), &neighbour) {
                worst = worst.max(now - waits_since.take().unwrap_or(now));
                world.sleep(&neighbour);
                wakes_at = now + 60 + now % 31;
                world.settle();
            } else if running.id.raw() == 0 {
                // The guest's first vCPU wakes all its others; each of these sleeps when it has used its slice.
                many.vcpus[1..].iter().for_each(|other| world.hv.kick_vcpu(&many, other));
            } else {
                let ran = &mut ran[running.id.raw() as usize];
                *ran += 1;
                if *ran % 100 == 0 {
                    world.hv.hold(&running, PauseFlags::BLOCKED);
                }
            }
            world.pass(STEP);
        }
        let worst = worst * STEP;
        assert!(worst <= LEAST_RUN_NS + WAKE_GRANULARITY_NS, "{count} vCPUs: {worst} ns");
    }
}

#[test]
fn of_two_that_wake_together_the_second_waits_for_a_short_slice() {
    let world = quiet();
    let (first, second, _busy) = (world.guest(1), world.guest(1), world.guest(1));
    for sleeper in [&first, &second] {
        world.sleep(sleeper);
    }
    for _ in 0..40 {
        world.settle();
        world.pass(MS);
    }
    for sleeper in [&first, &second] {
        world.wake(sleeper);
    }
    assert_eq!(world.runs(), first.id);
    world.pass(LEAST_RUN_NS - 1);
    assert_eq!(world.runs(), first.id);
    world.pass(1);
    assert_eq!(world.runs(), second.id);
    // Beside a domain without credit, a slice has its full length.
    for sleeper in [&first, &second] {
        world.sleep(sleeper);
    }
    let _other = world.guest(1);
    for _ in 0..30 {
        world.settle();
        world.pass(MS);
    }
    let begun = world.runs();
    while world.runs() == begun {
        world.pass(MS);
    }
    let end = world.hv.sched.slice_end(CpuId::BOOT);
    assert_eq!(end, Some(world.hv.platform.now_ns() + TIME_SLICE_NS));
}
