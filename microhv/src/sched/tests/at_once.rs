//! Two CPUs that act at the same time, in every way of few turns.

use core::sync::atomic::Ordering;

use ring_abi::evtchn::{EVTCHNOP_BIND_IPI, EvtchnBindIpi};
use ring_abi::hypercall::{__HYPERVISOR_EVENT_CHANNEL_OP, __HYPERVISOR_SCHED_OP};
use ring_abi::sched::*;
use ring_abi::types::Port;

use super::several::Several;
use super::*;
use crate::domain::PauseFlags;
use crate::sched::pools::{Change, PoolError};
use crate::sync::wait_a_turn;
use crate::testing::ARGS;
use crate::testing::turns::plans;
use crate::time::state::TimerKind;

fn deadlines(world: &World, domain: &Domain) -> [Option<u64>; TimerKind::ALL.len()] {
    TimerKind::ALL.map(|kind| world.hv.time.deadline(&domain.vcpus[0], kind))
}

/// A domain ends, and its timers' places go to another, while a CPU is about to run one of its vCPUs.
#[test]
fn a_timer_that_another_cpu_ends_is_left_alone() {
    for plan in plans([16, 6, 8]) {
        let far = u64::MAX / 2;
        let several = Several::new(2);
        let world = &several.world;
        let [hog, guest, next] = [1, 1, 1].map(|vcpus| several.hog(vcpus, 256));
        let boot = CpuSet::only(CpuId::BOOT);
        [&hog, &guest].into_iter().for_each(|domain| several.pin(domain, boot, CpuSet::ALL));
        [&guest, &next].into_iter().for_each(|domain| world.sleep(domain));
        several.turn();
        world.wake(&guest);
        // So that no pause waits: the CPU gives up.
        world.hv.raise_softirq(CpuId::new(1).expect("a CPU"), SOFTIRQ_SCHEDULE);
        let (old, new) = (&guest.vcpus[0], &next.vcpus[0]);
        assert!(world.hv.time.remove_timers(new));
        let run = || {
            for _ in 0..3 {
                world.hv.raise_softirq(CpuId::BOOT, SOFTIRQ_SCHEDULE);
                world.hv.platform.now.fetch_add(20 * MS, Ordering::Relaxed);
                world.settle_on(CpuId::BOOT);
            }
        };
        let end = || {
            if (0..5).any(|_| world.hv.pause_domain(&guest)) {
                assert!(world.hv.time.remove_timers(old) && world.hv.create_timers(new));
                TimerKind::ALL.iter().for_each(|kind| world.hv.arm_timer(new, *kind, Some(far)));
            }
        };
        world.at_once(&plan, run, end);
        world.hv.time.check();
        let is_made = new.time.lock().timers.is_some();
        assert_eq!(deadlines(world, &next), [is_made.then_some(far); 6], "{plan:?}");
    }
}

#[test]
fn a_vcpu_that_stopped_gets_no_tick() {
    for plan in plans([4, 6, 6]) {
        let several = Several::new(2);
        let world = &several.world;
        let guest = several.hog(2, 256);
        several.turn();
        let vcpu = &guest.vcpus[0];
        let cpu = vcpu.running_on().expect("it runs");
        let stop = || {
            world.hv.hold(vcpu, PauseFlags::BLOCKED);
            world.settle_on(CpuId::BOOT);
        };
        let other = || world.hv.set_period(vcpu, MS);
        assert_eq!(cpu, CpuId::BOOT);
        world.at_once(&plan, stop, other);
        assert_eq!(vcpu.running_on(), None);
        assert_eq!(deadlines(world, &guest)[TimerKind::Periodic as usize], None, "{plan:?}");
    }
}

/// A vCPU polls again and again, each time at once when an event has ended the wait before.
#[test]
fn the_end_of_a_wait_takes_nothing_from_the_next() {
    for plan in plans([8, 10, 12]) {
        let several = Several::new(2);
        let world = &several.world;
        let guest = several.hog(1, 256);
        let until = (plan[0] % 2 == 0).then_some(world.hv.platform.now_ns() + 100 * MS);
        guest.shared_info.store_u64(0xa00, u64::MAX);
        let mut ipi = EvtchnBindIpi { vcpu: 0, port: 0 };
        assert_eq!(world.op(&guest, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, &mut ipi), 0);
        let polls = |vcpu: &Vcpu| vcpu.pause_flags.load(Ordering::Acquire) & PauseFlags::POLLING != 0;
        let vcpu = &guest.vcpus[0];
        let poll = || {
            for turn in 0..3 {
                clear_pending(&guest);
                world.put(ARGS + 64, &ipi.port);
                let timeout = if turn < 2 { 50 * MS } else { until.unwrap_or(0) };
                let op = SchedPoll { ports: ARGS + 64, nr_ports: 1, timeout, ..SchedPoll::default() };
                world.put(ARGS, &op);
                assert_eq!(world.call(&guest, __HYPERVISOR_SCHED_OP, &[SCHEDOP_POLL.into(), ARGS]), 0);
                while turn < 2 && polls(vcpu) {
                    wait_a_turn();
                }
            }
        };
        let send = || {
            for _ in 0..2 {
                while !polls(vcpu) {
                    wait_a_turn();
                }
                assert_eq!(world.hv.evtchn_send(&guest, Port::new(ipi.port)), Ok(()));
            }
        };
        world.at_once(&plan, poll, send);
        let is_last = polls(vcpu);
        assert_eq!(guest.events.pollers(), u32::from(is_last), "{plan:?}");
        let deadline = world.hv.time.deadline(vcpu, TimerKind::Poll);
        assert_eq!(deadline, until.filter(|_| is_last), "{plan:?}");
    }
}

#[test]
fn a_shutdown_that_is_taken_back_at_once_holds_nothing() {
    for plan in plans([6, 6, 6]) {
        let several = Several::new(2);
        let guest = several.hog(2, 256);
        several.turn();
        let hv = &several.world.hv;
        several.world.at_once(
            &plan,
            || hv.shutdown_domain(&guest, SHUTDOWN_SUSPEND),
            || hv.resume_domain(&guest),
        );
        let is_down = guest.shutdown.lock().is_shut_down;
        assert_eq!(guest.pause_count.load(Ordering::Relaxed), u32::from(is_down), "{plan:?}");
        several.turn();
    }
}

/// A timer that fired on a CPU is set again there, while another CPU lets that CPU go.
#[test]
fn a_timer_that_a_cpu_sets_while_it_goes_does_not_stay_there() {
    for plan in plans([1, 10, 60]) {
        let several = Several::new(2);
        let (world, one) = (&several.world, several.cpus[1]);
        let guest = several.hog(1, 256);
        several.pin(&guest, CpuSet::only(one), CpuSet::ALL);
        several.turn();
        // The guest runs up a debt of many periods, rests, and sleeps.
        world.hv.set_cap(&guest, 1);
        world.pass(200 * MS);
        several.turn();
        world.sleep(&guest);
        several.turn();
        let due = deadlines(world, &guest)[TimerKind::Period as usize].expect("the guest rests");
        world.hv.platform.now.store(due, Ordering::Relaxed);
        world.hv.platform.keeps_state.store(CpuSet::only(one).bits(), Ordering::SeqCst);
        let let_go = || {
            while world.hv.change_cpus(Change::Offline { cpu: one }) == Err(PoolError::Again) {
                wait_a_turn();
            }
        };
        let fire = || {
            world.hv.raise_softirq(one, SOFTIRQ_TIMER);
            world.settle_on(one);
            world.hv.platform.keeps_state.store(0, Ordering::SeqCst); // the CPU has nothing to do any more
        };
        world.at_once(&plan, let_go, fire);
        assert!(!world.hv.platform.online().contains(one));
        assert!(deadlines(world, &guest)[TimerKind::Period as usize] >= Some(due), "{plan:?}");
        let timer = guest.vcpus[0].time.lock().timer(TimerKind::Period);
        assert_eq!(timer.map(|(cpu, _)| cpu), Some(CpuId::BOOT), "{plan:?}");
    }
}
