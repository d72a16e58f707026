//! A vCPU that wakes beside a running one waits until the running one has had its least time. If the running one sleeps
//! soon after all, the wait was in vain, and that domain waits for less the next times: the courtesy.

use alloc::sync::Arc;

use ring_abi::types::DomId;

use super::*;
use crate::sched::state::{BUSY_NS, COURTESIES, VAIN_WAIT_NS};
use crate::testing::World;

/// A domain that has run for long, and others that slept meanwhile.
fn worker_and_sleepers<const N: usize>(world: &World) -> (Arc<Domain>, [Arc<Domain>; N]) {
    let (worker, sleepers) = (world.guest(1), core::array::from_fn(|_| world.guest(1)));
    for sleeper in &sleepers {
        world.sleep(sleeper);
    }
    world.settle();
    world.pass(100 * MS);
    (worker, sleepers)
}

/// Each of them sleeps in turn.
fn fall_asleep(world: &World, domains: [&Arc<Domain>; 2]) {
    for domain in domains {
        world.sleep(domain);
        world.settle();
    }
}

/// Both sleep, the worker wakes, and `after` ns later the sleeper wakes. The domain that runs then. If the sleeper has to
/// wait, and the worker is put to sleep soon (as the next call of this function does), the wait was in vain.
fn woken_beside(world: &World, worker: &Arc<Domain>, sleeper: &Arc<Domain>, after: u64) -> DomId {
    fall_asleep(world, [sleeper, worker]);
    world.wake(worker);
    assert_eq!(world.runs(), worker.id);
    world.pass(after);
    world.wake(sleeper);
    world.runs()
}

#[test]
fn who_slept_before_its_time_gives_way_sooner_the_next_times() {
    let world = quiet();
    let (worker, [sleeper]) = worker_and_sleepers(&world);
    for round in 0..3 {
        assert_eq!(woken_beside(&world, &worker, &sleeper, COURTEOUS_RUN_NS), worker.id, "round {round}");
        for time in 0..COURTESIES {
            // The worker has had its least time: giving way now is no courtesy, and uses none up.
            assert_eq!(woken_beside(&world, &worker, &sleeper, LEAST_RUN_NS), sleeper.id);
            assert_eq!(
                woken_beside(&world, &worker, &sleeper, COURTEOUS_RUN_NS),
                sleeper.id,
                "round {round}, {time}"
            );
        }
    }
}

/// While a back end waits for its frontend to give way, the frontend's requests pile up, and one turn serves them all.
/// A back end that waits for a control domain which a third domain keeps awake gains nothing by the wait, nor does a guest
/// that waits for one that computes.
#[test]
fn who_wakes_beside_a_busy_domain_waits_for_little() {
    for [worker_is_control, sleeper_is_control, busy] in [
        [true, false, true],
        [true, false, false],
        [false, false, true],
        [false, false, false],
        [false, true, true],
        [false, true, false],
    ] {
        let world = quiet();
        let one = |is_control| if is_control { world.dom0.clone() } else { world.guest(1) };
        let (worker, sleeper) = (one(worker_is_control), one(sleeper_is_control));
        fall_asleep(&world, [&sleeper, &worker]);
        world.pass(100 * MS);
        world.wake(&worker);
        world.settle();
        world.pass(2 * BUSY_NS);
        world.settle();
        if !busy {
            world.sleep(&worker);
            world.settle();
            world.wake(&worker);
            world.settle();
        } else {
            // The worker gives way for a moment, but does not sleep.
            world.wake(&sleeper);
            assert_eq!(world.runs(), sleeper.id);
            world.sleep(&sleeper);
            assert_eq!(world.runs(), worker.id);
        }
        world.pass(COURTEOUS_RUN_NS);
        world.wake(&sleeper);
        let now = world.runs();
        assert_eq!(
            now == sleeper.id,
            busy && !sleeper_is_control,
            "of control domain {worker_is_control}, {sleeper_is_control}, busy {busy}"
        );
    }
}

#[test]
fn nobody_takes_the_cpu_from_who_hardly_ran() {
    let world = quiet();
    let (worker, [sleeper]) = worker_and_sleepers(&world);
    assert_eq!(woken_beside(&world, &worker, &sleeper, LEAST_RUN_NS / 2), worker.id);
    assert_eq!(woken_beside(&world, &worker, &sleeper, COURTEOUS_RUN_NS - 1), worker.id);
    world.pass(1);
    assert_eq!(world.runs(), sleeper.id);
}

#[test]
fn only_who_waited_in_vain_is_shown_the_courtesy() {
    let world = quiet();
    let (worker, [sleeper, other]) = worker_and_sleepers(&world);
    assert_eq!(woken_beside(&world, &worker, &sleeper, LEAST_RUN_NS / 2), worker.id);
    fall_asleep(&world, [&worker, &sleeper]);
    assert_eq!(woken_beside(&world, &worker, &other, LEAST_RUN_NS / 2), worker.id);
}

#[test]
fn who_was_waited_for_and_had_work_gives_way_no_sooner() {
    let world = quiet();
    let (worker, [sleeper]) = worker_and_sleepers(&world);
    for round in 0..3 {
        assert_eq!(woken_beside(&world, &worker, &sleeper, LEAST_RUN_NS / 2), worker.id, "round {round}");
        world.pass(LEAST_RUN_NS / 2);
        assert_eq!(world.runs(), sleeper.id, "round {round}");
    }
}

/// How often a back end got the CPU. In each of `rounds`, its frontend makes `requests`, one each `gap_ns`, and sleeps
/// `rest_ns` after the last of them. Each turn of the back end takes 5 us.
fn turns_of_a_back_end(requests: u32, gap_ns: u64, rest_ns: u64, rounds: u32) -> u32 {
    let world = quiet();
    let (frontend, [back]) = worker_and_sleepers(&world);
    fall_asleep(&world, [&back, &frontend]);
    let mut turns = 0;
    for _ in 0..rounds {
        world.pass(5 * MS);
        world.wake(&frontend);
        assert_eq!(world.runs(), frontend.id);
        // The frontend's work in pieces: one before each request, and the last before the frontend sleeps.
        for (n, mut left) in (0..requests).map(|_| gap_ns).chain([rest_ns]).enumerate() {
            while left > 0 {
                if Arc::ptr_eq(world.settle().expect("runs").domain(), &back) {
                    turns += 1;
                    world.pass(5_000);
                    world.sleep(&back);
                } else {
                    world.pass(left.min(5_000));
                    left -= left.min(5_000);
                }
            }
            if n < requests as usize {
                world.wake(&back);
            }
        }
        world.sleep(&frontend);
        while world.settle().is_some() {
            turns += 1;
            world.pass(5_000);
            world.sleep(&back);
        }
    }
    turns
}

#[test]
fn a_back_end_runs_once_for_32_reads_and_at_once_for_one() {
    // 32 reads of 4 KiB within 0.55 ms: one turn a round serves them all.
    assert_eq!(turns_of_a_back_end(32, 17_000, 10_000, 40), 40);
    // The parts of 1 MiB, requested within 0.1 ms: one turn a round, or two.
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
        // A second event for the same domain begins no second wait.
        world.wake(&sleeper);
        assert_eq!(world.runs(), worker.id);
        world.sleep(&worker);
        assert_eq!(world.runs(), sleeper.id);
        let courteous = woken_beside(&world, &worker, &sleeper, COURTEOUS_RUN_NS) == sleeper.id;
        assert_eq!(courteous, expected, "{runs_on} ns");
    }
}

#[test]
fn who_wakes_while_the_other_falls_asleep_waited_for_nothing() {
    let world = quiet();
    let (worker, [sleeper]) = worker_and_sleepers(&world);
    fall_asleep(&world, [&sleeper, &worker]);
    world.wake(&worker);
    world.settle();
    world.sleep(&worker);
    world.wake(&sleeper); // before the scheduler looks at the queue
    assert_eq!(world.runs(), sleeper.id);
    assert_eq!(woken_beside(&world, &worker, &sleeper, LEAST_RUN_NS / 2), worker.id, "no courtesy is due");
}
