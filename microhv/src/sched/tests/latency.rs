//! How long a vCPU that wakes waits for the CPU.

use alloc::sync::Arc;
use alloc::vec;

use super::*;
use crate::domain::PauseFlags;

#[test]
fn who_just_came_is_not_displaced_by_who_wakes() {
    let world = quiet();
    let (a, b) = (world.guest(1), world.guest(1));
    let sleep = |domain: &Arc<Domain>| world.hv.hold(&domain.vcpus[0], PauseFlags::BLOCKED);
    let runs = || world.settle().expect("runs").domain().id;
    sleep(&a);
    world.settle();
    world.pass(100 * MS);
    sleep(&b);
    assert!(world.settle().is_none());
    world.hv.kick_vcpu(&b, &b.vcpus[0]);
    assert_eq!(runs(), b.id);
    world.pass(LEAST_RUN_NS / 4);
    world.hv.kick_vcpu(&a, &a.vcpus[0]);
    assert_eq!(runs(), b.id, "which has run more than the other, but came just now");
    assert_eq!(
        world.hv.sched.slice_end(CpuId::BOOT),
        Some(world.hv.platform.now_ns() + LEAST_RUN_NS / 4 * 3)
    );
    world.pass(LEAST_RUN_NS / 4 * 3 - 1);
    assert_eq!(runs(), b.id);
    world.pass(1);
    assert_eq!(runs(), a.id);
    sleep(&a);
    assert_eq!(runs(), b.id, "who blocks gives way at once");
}

/// What the step of a simulation of waits is, in nanoseconds.
const STEP: u64 = MS / 10;

/// How long a neighbour that sleeps for most of the time waits at most, in nanoseconds, beside a guest of `count` vCPUs that
/// wakes them all at once right before the neighbour wakes. The guest's first vCPU never sleeps if it `spins`.
fn worst_wait_after_a_burst(count: u32, spins: bool) -> u64 {
    let world = quiet();
    let (neighbour, many) = (world.guest(1), world.guest(count));
    for vcpu in &many.vcpus {
        world.hv.wake(&many, vcpu, PauseFlags::DOWN);
    }
    world.hv.hold(&neighbour.vcpus[0], PauseFlags::BLOCKED);
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
        world.hv.kick_vcpu(&neighbour, &neighbour.vcpus[0]);
        let mut waited = 0;
        while world.settle().expect("somebody runs").domain().id != neighbour.id {
            world.pass(STEP);
            waited += STEP;
        }
        worst = worst.max(waited);
        world.pass(STEP);
        world.hv.hold(&neighbour.vcpus[0], PauseFlags::BLOCKED);
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
        world.hv.hold(&neighbour.vcpus[0], PauseFlags::BLOCKED);
        for vcpu in &many.vcpus {
            world.hv.wake(&many, vcpu, PauseFlags::DOWN);
        }
        let mut ran = vec![0; count as usize];
        let (mut waits_since, mut wakes_at, mut worst) = (None, 73u64, 0);
        for now in 0..40_000u64 {
            if now == wakes_at {
                world.hv.kick_vcpu(&neighbour, &neighbour.vcpus[0]);
                waits_since = Some(now);
            }
            let running = world.settle().expect("somebody runs");
            if Arc::ptr_eq(running.domain(), &neighbour) {
                worst = worst.max(now - waits_since.take().unwrap_or(now));
                world.hv.hold(&neighbour.vcpus[0], PauseFlags::BLOCKED);
                wakes_at = now + 60 + now % 31;
                world.settle();
            } else if running.id.raw() == 0 {
                // The first wakes all others, each of which sleeps when it has used its slice.
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
        world.hv.hold(&sleeper.vcpus[0], PauseFlags::BLOCKED);
    }
    for _ in 0..40 {
        world.settle();
        world.pass(MS);
    }
    for sleeper in [&first, &second] {
        world.hv.kick_vcpu(sleeper, &sleeper.vcpus[0]);
    }
    let runs = || world.settle().expect("somebody runs").domain().id;
    assert_eq!(runs(), first.id);
    world.pass(LEAST_RUN_NS - 1);
    assert_eq!(runs(), first.id);
    world.pass(1);
    assert_eq!(runs(), second.id);
    // Beside one that has no credit, a slice is a whole one.
    for sleeper in [&first, &second] {
        world.hv.hold(&sleeper.vcpus[0], PauseFlags::BLOCKED);
    }
    let _other = world.guest(1);
    for _ in 0..30 {
        world.settle();
        world.pass(MS);
    }
    let begun = runs();
    while runs() == begun {
        world.pass(MS);
    }
    let end = world.hv.sched.slice_end(CpuId::BOOT);
    assert_eq!(end, Some(world.hv.platform.now_ns() + TIME_SLICE_NS));
}
