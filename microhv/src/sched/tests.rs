//! Fairness, latency and blocking on a machine whose time the test moves.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::EVTCHNOP_BIND_IPI;
use ring_abi::evtchn::{EvtchnBindIpi, VIRQ_TIMER};
use ring_abi::hypercall::{
    __HYPERVISOR_EVENT_CHANNEL_OP, __HYPERVISOR_SCHED_OP, __HYPERVISOR_SET_TIMER_OP, __HYPERVISOR_VCPU_OP,
};
use ring_abi::sched::*;
use ring_abi::types::DomId;
use ring_abi::vcpu::*;

use super::*;
use crate::domain::PauseFlags;
use crate::error::HypercallError;
use crate::evtchn::is_pending;
use crate::platform::Clock;
use crate::testing::{ARGS, World};
use crate::time::{Runstate, TimerKind};

const MS: u64 = 1_000_000;

/// A world whose dom0 sleeps.
fn quiet() -> World {
    let world = World::new(128);
    world.hv.hold(&world.dom0.vcpus[0], PauseFlags::BLOCKED);
    world.settle();
    world
}

/// Runs for `steps` steps of `ns`; how many each domain, in order, was running in.
fn shares(world: &World, domains: &[&Arc<Domain>], steps: u32, ns: u64) -> Vec<u32> {
    let mut counts = vec![0; domains.len()];
    for _ in 0..steps {
        if let Some(vcpu) = world.settle() {
            let index = domains.iter().position(|domain| Arc::ptr_eq(domain, vcpu.domain()));
            counts[index.expect("one of ours")] += 1;
        }
        world.pass(ns);
    }
    counts
}

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
    assert_eq!(world.settle().expect("runs").domain().id, guest.id);
    assert_eq!(world.hv.sched.slice_end(CpuId::BOOT), None);
    let other = world.guest(1);
    world.settle();
    assert!(world.hv.sched.slice_end(CpuId::BOOT).is_some());
    world.hv.hold(&other.vcpus[0], PauseFlags::BLOCKED);
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
    world.hv.hold(&sleeper.vcpus[0], PauseFlags::BLOCKED);
    world.settle();
    world.pass(800 * MS);
    assert_eq!(world.settle().expect("runs").domain().id, busy.id);
    world.hv.kick_vcpu(&sleeper, &sleeper.vcpus[0]);
    assert_eq!(world.settle().expect("runs").domain().id, sleeper.id, "woken: runs at once");
    // It does not sleep again: from then on both have the same, but for its credit.
    let counts = shares(&world, &[&sleeper, &busy], 1000, MS);
    assert!(counts[1] >= 450, "{counts:?}");
}

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
    world.hv.pause_domain(other);
    world.settle();
    world.call(first.domain(), __HYPERVISOR_SCHED_OP, &[SCHEDOP_YIELD.into()]);
    world.settle();
    assert_eq!(world.hv.running(CpuId::BOOT).expect("runs").domain().id, first.domain().id);
}

#[test]
fn pauses_nest() {
    let world = quiet();
    let guest = world.guest(2);
    assert!(world.settle().is_some());
    world.hv.pause_domain(&guest);
    world.hv.pause_domain(&guest);
    assert!(world.settle().is_none());
    world.hv.unpause_domain(&guest);
    assert!(world.settle().is_none());
    world.hv.unpause_domain(&guest);
    assert!(world.settle().is_some());
    world.hv.pause_vcpu(&guest.vcpus[0]);
    assert_eq!(world.settle().expect("the other").id.raw(), 1);
    world.hv.unpause_vcpu(&guest, &guest.vcpus[0]);
}

#[test]
fn runstates_add_up_to_the_time_that_passed() {
    let world = quiet();
    let start = world.hv.platform.now_ns();
    let (a, b) = (world.guest(1), world.guest(1));
    shares(&world, &[&a, &b], 100, MS);
    for domain in [&a, &b] {
        let mut time = domain.vcpus[0].time.lock();
        let (state, now) = (time.state, world.hv.platform.now_ns());
        time.enter(state, now);
        let spent: u64 = time.spent_ns[..3].iter().sum();
        assert_eq!(spent, now - start, "{:?}", time.spent_ns);
        assert!(time.spent_ns[Runstate::Running as usize] >= 40 * MS);
    }
}

#[test]
fn what_a_vcpu_asks_of_its_times_is_up_to_now() {
    let world = quiet();
    let guest = world.guest(1);
    world.settle();
    let times = |at: u64| -> [u64; 6] {
        let args = [VCPUOP_GET_RUNSTATE_INFO.into(), 0, at];
        assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &args), 0);
        world.get(at)
    };
    let first = times(ARGS);
    world.pass(7 * MS);
    let second = times(ARGS);
    assert_eq!(second[0], RUNSTATE_RUNNING as u64);
    assert_eq!(second[1], first[1], "the state began when it did");
    assert_eq!(second[2] - first[2], 7 * MS, "and lasts");
    world.put(ARGS + 256, &(ARGS + 512));
    let args = [VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA.into(), 0, ARGS + 256];
    assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &args), 0);
    let area: [u64; 6] = world.get(ARGS + 512);
    assert_eq!((area[1], area[2]), (first[1], 0), "the area has what was before the state began");
}

#[test]
fn only_the_privileged_end_others() {
    let world = quiet();
    let (guest, other) = (world.guest(1), world.guest(1));
    let end = |caller: &Arc<Domain>, domain_id: u16| {
        world.put(ARGS, &SchedRemoteShutdown { domain_id, reason: SHUTDOWN_CRASH, ..Default::default() });
        world.call(caller, __HYPERVISOR_SCHED_OP, &[SCHEDOP_REMOTE_SHUTDOWN.into(), ARGS])
    };
    assert_eq!(end(&guest, 999), HypercallError::NoSuchDomain.errno());
    assert_eq!(end(&guest, other.id.raw()), HypercallError::NotPermitted.errno());
    assert_eq!(other.shutdown.lock().code, None);
    assert_eq!(end(&world.dom0, 999), HypercallError::NoSuchDomain.errno());
    assert_eq!(end(&world.dom0, other.id.raw()), 0);
    assert_eq!(other.shutdown.lock().code, Some(SHUTDOWN_CRASH));
}

fn timer_port(world: &World, guest: &Arc<Domain>) -> u32 {
    world.hv.bind_virq(guest, VIRQ_TIMER, 0, |_| Ok(())).expect("bound")
}

fn clear_pending(guest: &Domain) {
    for offset in (0x800..0xa00).step_by(8) {
        guest.shared_info.store_u64(offset, 0);
    }
    let info = guest.vcpus[0].info.get().expect("info");
    info.store_u64(8, 0);
    info.store_u8(0, 0);
}

#[test]
fn a_new_vcpu_ticks_at_100_hz_until_stopped() {
    let world = quiet();
    let guest = world.guest(1);
    let port = timer_port(&world, &guest);
    let mut ticks = 0;
    for _ in 0..100 {
        world.settle();
        ticks += u32::from(is_pending(&guest, port));
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
    assert!(!is_pending(&guest, port));
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
    assert!(is_pending(&guest, port));
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
    assert_eq!(world.hv.platform.timer.load(Ordering::Relaxed), deadline);
    world.pass(5 * MS - 1);
    assert!(world.settle().is_none());
    world.pass(1);
    assert_eq!(world.settle().expect("woken").domain().id, guest.id);
    assert!(is_pending(&guest, port));
    world.pass(1);
    op.flags = VCPU_SSHOTTMR_FUTURE;
    world.put(ARGS, &op);
    assert_eq!(
        world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_SET_SINGLESHOT_TIMER.into(), 0, ARGS]),
        HypercallError::TimePast.errno()
    );
}

/// The single-shot timer of a guest, at `deadline`.
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
    let timer = || world.hv.platform.timer.load(Ordering::Relaxed);
    set_timer(&world, &guest, now + 10 * MS);
    assert_eq!(timer(), now + 10 * MS);
    set_timer(&world, &guest, now + 20 * MS);
    assert_eq!(timer(), now + 10 * MS, "comes early, and then looks again");
    set_timer(&world, &guest, now + 5 * MS);
    assert_eq!(timer(), now + 5 * MS, "never comes too late");
    set_timer(&world, &guest, now + 20 * MS);
    world.pass(5 * MS);
    world.settle();
    assert!(!is_pending(&guest, port));
    assert_eq!(timer(), now + 20 * MS);
    world.pass(15 * MS);
    world.settle();
    assert!(is_pending(&guest, port));
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
            4 => world.hv.hold(&guest.vcpus[0], PauseFlags::BLOCKED),
            5 => world.hv.kick_vcpu(guest, &guest.vcpus[0]),
            _ => world.pass(random >> 32 & 0x3f_ffff),
        }
        world.settle();
        let now = world.hv.platform.now_ns();
        let timer = world.hv.platform.timer.load(Ordering::Relaxed);
        let kinds = [TimerKind::Periodic, TimerKind::Singleshot, TimerKind::Poll];
        let deadlines = guests.iter().chain([&world.dom0]).flat_map(|guest| {
            kinds.iter().filter_map(|kind| world.hv.timer_deadline(&guest.vcpus[0], *kind))
        });
        for due in deadlines.chain(world.hv.sched.slice_end(CpuId::BOOT)) {
            assert!(timer <= due && due > now, "at {now}: the timer is set for {timer}, and {due} is due");
        }
    }
}

#[test]
fn nonsense_timeouts_become_100_ms() {
    let world = quiet();
    let guest = world.guest(1);
    let deadline = || world.hv.timer_deadline(&guest.vcpus[0], TimerKind::Singleshot);
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

#[test]
fn poll_ends_by_a_masked_port_or_its_time() {
    let world = quiet();
    let guest = world.guest(1);
    world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_STOP_PERIODIC_TIMER.into(), 0]);
    let mut ipi = EvtchnBindIpi { vcpu: 0, port: 0 };
    world.op(&guest, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, &mut ipi);
    guest.shared_info.store_u64(0xa00, u64::MAX);
    let poll = |timeout, nr_ports| {
        world.put(ARGS + 64, &ipi.port);
        world.put(ARGS, &SchedPoll { ports: ARGS + 64, nr_ports, timeout, ..SchedPoll::default() });
        world.call(&guest, __HYPERVISOR_SCHED_OP, &[SCHEDOP_POLL.into(), ARGS])
    };
    assert_eq!(poll(0, 129), HypercallError::Invalid.errno());
    assert_eq!(poll(0, 1), 0);
    assert!(world.settle().is_none());
    assert_eq!(world.hv.evtchn_send(&guest, ipi.port), Ok(()));
    assert!(world.settle().is_some(), "a masked port ends it");
    assert_eq!(poll(0, 1), 0);
    assert!(world.settle().is_some(), "pending before: no wait");
    clear_pending(&guest);
    assert_eq!(poll(world.hv.platform.now_ns() + MS, 1), 0);
    assert!(world.settle().is_none());
    world.pass(MS);
    assert!(world.settle().is_some(), "time is up");
    assert_eq!(guest.vcpus[0].pause_flags.load(Ordering::Relaxed), 0);
    assert_eq!(world.hv.timer_deadline(&guest.vcpus[0], TimerKind::Poll), None);
}

#[test]
fn a_poll_of_port_0_is_counted_once_and_ends() {
    let world = quiet();
    let guest = world.guest(1);
    world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_STOP_PERIODIC_TIMER.into(), 0]);
    guest.shared_info.store_u64(0xa00, u64::MAX);
    for _ in 0..2 {
        world.put(ARGS + 64, &0u32);
        let timeout = world.hv.platform.now_ns() + MS;
        world.put(ARGS, &SchedPoll { ports: ARGS + 64, nr_ports: 1, timeout, ..SchedPoll::default() });
        assert_eq!(world.call(&guest, __HYPERVISOR_SCHED_OP, &[SCHEDOP_POLL.into(), ARGS]), 0);
        assert_eq!(guest.events.pollers(), 1);
        assert!(world.settle().is_none());
        world.pass(MS);
        assert!(world.settle().is_some(), "time is up");
        assert_eq!(guest.events.pollers(), 0, "or each later send would look for who polls");
    }
}

#[test]
fn what_was_pending_before_does_not_end_a_poll_of_no_port() {
    let world = quiet();
    let guest = world.guest(1);
    world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_STOP_PERIODIC_TIMER.into(), 0]);
    let mut ipi = EvtchnBindIpi { vcpu: 0, port: 0 };
    world.op(&guest, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, &mut ipi);
    guest.shared_info.store_u64(0xa00, u64::MAX);
    assert_eq!(world.hv.evtchn_send(&guest, ipi.port), Ok(()));
    let timeout = world.hv.platform.now_ns() + MS;
    world.put(ARGS, &SchedPoll { timeout, ..SchedPoll::default() });
    assert_eq!(world.call(&guest, __HYPERVISOR_SCHED_OP, &[SCHEDOP_POLL.into(), ARGS]), 0);
    assert!(world.settle().is_none());
    assert_eq!(world.hv.evtchn_send(&guest, ipi.port), Ok(()));
    assert!(world.settle().is_none(), "its event is no new one");
    world.pass(MS);
    assert!(world.settle().is_some(), "time is up");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    /// Whatever the others do, a domain that wants to run gets at least three quarters of its share.
    #[test]
    fn nobody_starves(moves in proptest::collection::vec((0usize..4, 0u8..4, 1u64..20), 50..200)) {
        let world = quiet();
        let busy = world.guest(1);
        let others: Vec<_> = (0..4).map(|_| world.guest(1)).collect();
        let start = world.hv.platform.now_ns();
        for (who, what, ms) in moves {
            let other = &others[who];
            match what {
                0 => world.hv.hold(&other.vcpus[0], PauseFlags::BLOCKED),
                1 => world.hv.kick_vcpu(other, &other.vcpus[0]),
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
fn a_domain_that_sleeps_gets_its_credit_back() {
    let world = quiet();
    let (pair, busy) = (world.guest(2), world.guest(1));
    world.hv.wake(&pair, &pair.vcpus[1], PauseFlags::DOWN);
    for _ in 0..3 {
        // One of the two uses the credit up, then both sleep.
        for (vcpu, others) in pair.vcpus.iter().zip([1usize, 0]) {
            world.hv.hold(&pair.vcpus[others], PauseFlags::BLOCKED);
            world.hv.hold(vcpu, PauseFlags::BLOCKED);
            world.settle();
            for _ in 0..30 {
                world.pass(MS);
                assert_eq!(world.settle().expect("runs").domain().id, busy.id);
            }
            world.hv.kick_vcpu(&pair, vcpu);
            assert_eq!(world.settle().expect("runs").domain().id, pair.id, "at once");
            for _ in 0..20 {
                world.pass(MS);
                world.settle();
            }
        }
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
