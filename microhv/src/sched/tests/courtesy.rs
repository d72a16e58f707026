//! A vCPU that wakes beside a busy one lets that one run on for a while, and is repaid when it waited in vain.

use alloc::sync::Arc;

use ring_abi::types::DomId;

use super::*;
use crate::domain::PauseFlags;
use crate::testing::World;

/// A domain that ran for long, and others that slept meanwhile.
fn worker_and_sleepers<const N: usize>(world: &World) -> (Arc<Domain>, [Arc<Domain>; N]) {
    let (worker, sleepers) = (world.guest(1), core::array::from_fn(|_| world.guest(1)));
    for sleeper in &sleepers {
        world.hv.hold(&sleeper.vcpus[0], PauseFlags::BLOCKED);
    }
    world.settle();
    world.pass(100 * MS);
    (worker, sleepers)
}

/// All sleep; the worker wakes, and `after` ns later the sleeper: who runs then. A sleeper that waited does so in vain.
fn woken_beside(world: &World, worker: &Arc<Domain>, sleeper: &Arc<Domain>, after: u64) -> DomId {
    for domain in [sleeper, worker] {
        world.hv.hold(&domain.vcpus[0], PauseFlags::BLOCKED);
        world.settle();
    }
    world.hv.kick_vcpu(worker, &worker.vcpus[0]);
    assert_eq!(world.settle().expect("runs").domain().id, worker.id);
    world.pass(after);
    world.hv.kick_vcpu(sleeper, &sleeper.vcpus[0]);
    world.settle().expect("runs").domain().id
}

#[test]
fn who_slept_before_its_time_gives_way_sooner_the_next_times() {
    let world = quiet();
    let (worker, [sleeper]) = worker_and_sleepers(&world);
    for round in 0..3 {
        assert_eq!(woken_beside(&world, &worker, &sleeper, COURTEOUS_RUN_NS), worker.id, "round {round}");
        for time in 0..COURTESIES {
            // What needs no courtesy takes none.
            assert_eq!(woken_beside(&world, &worker, &sleeper, LEAST_RUN_NS), sleeper.id);
            assert_eq!(
                woken_beside(&world, &worker, &sleeper, COURTEOUS_RUN_NS),
                sleeper.id,
                "round {round}, {time}"
            );
        }
    }
}

/// What two domains do for each other gathers while one waits; beside a control domain that somebody else keeps awake
/// nothing does.
#[test]
fn who_wakes_beside_a_busy_control_domain_waits_for_little() {
    for (privileged, busy) in [(true, true), (true, false), (false, true)] {
        let world = quiet();
        let worker = if privileged { world.dom0.clone() } else { world.guest(1) };
        let sleeper = world.guest(1);
        for domain in [&sleeper, &worker] {
            world.hv.hold(&domain.vcpus[0], PauseFlags::BLOCKED);
            world.settle();
        }
        world.pass(100 * MS);
        world.hv.kick_vcpu(&worker, &worker.vcpus[0]);
        world.settle();
        world.pass(2 * BUSY_NS);
        world.settle();
        if !busy {
            world.hv.hold(&worker.vcpus[0], PauseFlags::BLOCKED);
            world.settle();
            world.hv.kick_vcpu(&worker, &worker.vcpus[0]);
            world.settle();
        } else {
            // The worker is put aside for a moment, and does not sleep.
            world.hv.kick_vcpu(&sleeper, &sleeper.vcpus[0]);
            assert_eq!(world.settle().expect("runs").domain().id, sleeper.id);
            world.hv.hold(&sleeper.vcpus[0], PauseFlags::BLOCKED);
            assert_eq!(world.settle().expect("runs").domain().id, worker.id);
        }
        world.pass(COURTEOUS_RUN_NS);
        world.hv.kick_vcpu(&sleeper, &sleeper.vcpus[0]);
        let now = world.settle().expect("runs").domain().id;
        assert_eq!(now == sleeper.id, privileged && busy, "privileged {privileged}, busy {busy}");
    }
}

#[test]
fn nobody_takes_the_cpu_from_who_hardly_ran() {
    let world = quiet();
    let (worker, [sleeper]) = worker_and_sleepers(&world);
    assert_eq!(woken_beside(&world, &worker, &sleeper, LEAST_RUN_NS / 2), worker.id);
    assert_eq!(woken_beside(&world, &worker, &sleeper, COURTEOUS_RUN_NS - 1), worker.id);
    world.pass(1);
    assert_eq!(world.settle().expect("runs").domain().id, sleeper.id);
}

#[test]
fn only_who_waited_in_vain_is_shown_the_courtesy() {
    let world = quiet();
    let (worker, [sleeper, other]) = worker_and_sleepers(&world);
    assert_eq!(woken_beside(&world, &worker, &sleeper, LEAST_RUN_NS / 2), worker.id);
    world.hv.hold(&worker.vcpus[0], PauseFlags::BLOCKED);
    world.settle();
    world.hv.hold(&sleeper.vcpus[0], PauseFlags::BLOCKED);
    world.settle();
    assert_eq!(woken_beside(&world, &worker, &other, LEAST_RUN_NS / 2), worker.id);
}

#[test]
fn who_was_waited_for_and_had_work_gives_way_no_sooner() {
    let world = quiet();
    let (worker, [sleeper]) = worker_and_sleepers(&world);
    for round in 0..3 {
        assert_eq!(woken_beside(&world, &worker, &sleeper, LEAST_RUN_NS / 2), worker.id, "round {round}");
        world.pass(LEAST_RUN_NS / 2);
        assert_eq!(world.settle().expect("runs").domain().id, sleeper.id, "round {round}");
    }
}

/// How often a back end got the CPU while its frontend, in each of `rounds`, asked it for `requests`, one each `gap_ns`, and
/// slept when the last of them was `rest_ns` old. The back end serves for as long.
fn turns_of_a_back_end(requests: u32, gap_ns: u64, rest_ns: u64, rounds: u32) -> u32 {
    let world = quiet();
    let (frontend, [back]) = worker_and_sleepers(&world);
    for domain in [&back, &frontend] {
        world.hv.hold(&domain.vcpus[0], PauseFlags::BLOCKED);
        world.settle();
    }
    let mut turns = 0;
    for _ in 0..rounds {
        world.pass(5 * MS);
        world.hv.kick_vcpu(&frontend, &frontend.vcpus[0]);
        assert_eq!(world.settle().expect("runs").domain().id, frontend.id);
        // What is left of each piece of the frontend's work, the last of which is its way to sleep.
        for (n, mut left) in (0..requests).map(|_| gap_ns).chain([rest_ns]).enumerate() {
            while left > 0 {
                if Arc::ptr_eq(world.settle().expect("runs").domain(), &back) {
                    turns += 1;
                    world.pass(5_000);
                    world.hv.hold(&back.vcpus[0], PauseFlags::BLOCKED);
                } else {
                    world.pass(left.min(5_000));
                    left -= left.min(5_000);
                }
            }
            if n < requests as usize {
                world.hv.kick_vcpu(&back, &back.vcpus[0]);
            }
        }
        world.hv.hold(&frontend.vcpus[0], PauseFlags::BLOCKED);
        while world.settle().is_some() {
            turns += 1;
            world.pass(5_000);
            world.hv.hold(&back.vcpus[0], PauseFlags::BLOCKED);
        }
    }
    turns
}

#[test]
fn a_back_end_runs_once_for_32_reads_and_at_once_for_one() {
    // 32 reads of 4 KiB in 0.55 ms: one turn for all of them, round after round.
    assert_eq!(turns_of_a_back_end(32, 17_000, 10_000, 40), 40);
    // Parts of 1 MiB, asked for within 0.1 ms, are served in one turn or two.
    assert!((40..=80).contains(&turns_of_a_back_end(8, 12_000, 10_000, 40)));
    // One read at a time.
    assert_eq!(turns_of_a_back_end(1, 20_000, 10_000, 40), 40);
}

#[test]
fn a_wait_is_in_vain_only_if_it_ends_soon() {
    for (runs_on, expected) in [(VAIN_WAIT_NS - 1, true), (VAIN_WAIT_NS, false)] {
        let world = quiet();
        let (worker, [sleeper]) = worker_and_sleepers(&world);
        assert_eq!(woken_beside(&world, &worker, &sleeper, COURTEOUS_RUN_NS), worker.id);
        world.pass(runs_on);
        // A second event of the same domain begins no second wait.
        world.hv.kick_vcpu(&sleeper, &sleeper.vcpus[0]);
        assert_eq!(world.settle().expect("runs").domain().id, worker.id);
        world.hv.hold(&worker.vcpus[0], PauseFlags::BLOCKED);
        assert_eq!(world.settle().expect("runs").domain().id, sleeper.id);
        let courteous = woken_beside(&world, &worker, &sleeper, COURTEOUS_RUN_NS) == sleeper.id;
        assert_eq!(courteous, expected, "{runs_on} ns");
    }
}

#[test]
fn who_wakes_while_the_other_falls_asleep_waited_for_nothing() {
    let world = quiet();
    let (worker, [sleeper]) = worker_and_sleepers(&world);
    for domain in [&sleeper, &worker] {
        world.hv.hold(&domain.vcpus[0], PauseFlags::BLOCKED);
        world.settle();
    }
    world.hv.kick_vcpu(&worker, &worker.vcpus[0]);
    world.settle();
    world.hv.hold(&worker.vcpus[0], PauseFlags::BLOCKED);
    world.hv.kick_vcpu(&sleeper, &sleeper.vcpus[0]); // before the queue is looked at
    assert_eq!(world.settle().expect("runs").domain().id, sleeper.id);
    assert_eq!(woken_beside(&world, &worker, &sleeper, LEAST_RUN_NS / 2), worker.id, "no courtesy is due");
}
