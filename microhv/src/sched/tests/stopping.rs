//! Stopping the vCPUs of other CPUs.

use alloc::sync::Arc;
use core::sync::atomic::AtomicBool;

use ring_abi::guest_context::CpuUserRegs;

use super::several::Several;
use super::*;
use crate::testing::turns::plans;

fn other_cpu() -> CpuId {
    CpuId::new(1).expect("a second CPU")
}

#[test]
fn a_pause_waits_until_the_state_is_in_memory() {
    let world = quiet();
    let guest = world.guest(1);
    let vcpu = &guest.vcpus[0];
    world.settle();
    world.sleep(&guest);
    assert!(world.settle().is_none());
    vcpu.set_holder(Some(other_cpu()));
    let asked = || world.hv.platform.asked_to_let_go.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let began = std::time::Instant::now();
            while asked() & CpuSet::only(other_cpu()).bits() == 0 && began.elapsed().as_secs() < 10 {
                std::thread::yield_now();
            }
            vcpu.set_saved_regs(&CpuUserRegs { ds: 1, ..CpuUserRegs::default() });
            vcpu.set_holder(None);
        });
        assert!(world.hv.pause_domain(&guest));
        assert_eq!(vcpu.saved_regs().ds, 1);
    });
}

/// This CPU runs one guest, and the other CPU another.
fn two_guests(world: &World) -> [Arc<Domain>; 2] {
    let guests = [1, 2].map(|id| world.guest(id));
    world.sleep(&guests[1]);
    assert_eq!(world.runs(), DomId::new(1));
    guests[1].vcpus[0].set_running_on(Some(other_cpu()));
    guests
}

/// The other CPU pauses the domain that this CPU runs, and may wait for this one.
#[test]
fn a_pause_gives_up_when_its_own_domain_is_paused() {
    let world = quiet();
    let [own, guest] = two_guests(&world);
    world.hv.hold_domain(&own);
    assert!(!world.hv.pause_domain(&guest), "the other CPU may wait for this one");
    assert_eq!(guest.pause_count.load(Ordering::Relaxed), 0, "nothing has changed");
    let pending = world.hv.sched.pending(other_cpu()).load(Ordering::Relaxed);
    assert_eq!(pending, SOFTIRQ_SCHEDULE, "the other CPU was asked");
    assert!(world.hv.platform.events.lock().kicks.contains(&other_cpu()));
}

/// This CPU is asked again and again to choose anew, since vCPUs wake that are to run here: the pause takes one try.
#[test]
fn a_pause_goes_on_beside_other_work() {
    let world = quiet();
    let [_, guest] = two_guests(&world);
    world.hv.raise_softirq(CpuId::BOOT, SOFTIRQ_SCHEDULE);
    let pending = || world.hv.sched.pending(other_cpu()).load(Ordering::Acquire);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let began = std::time::Instant::now();
            while pending() == 0 && began.elapsed().as_secs() < 10 {
                std::thread::yield_now();
            }
            for _ in 0..100 {
                world.hv.sched.pending(CpuId::BOOT).fetch_or(SOFTIRQ_SCHEDULE, Ordering::AcqRel);
                std::thread::yield_now();
            }
            guest.vcpus[0].set_running_on(None);
        });
        assert!(world.hv.pause_domain(&guest));
    });
    assert_eq!(guest.pause_count.load(Ordering::Relaxed), 1);
}

/// Each of two CPUs pauses the domain that the other runs, in every way of few turns: both get to an end, one of them at most with
/// the pause.
#[test]
fn cpus_that_pause_each_others_domains_do_not_wait_for_each_other() {
    for plan in plans([12, 12, 6]) {
        let several = Several::new(2);
        let world = &several.world;
        let guests = [1, 1].map(|vcpus| several.hog(vcpus, 256));
        for (guest, cpu) in guests.iter().zip([CpuId::BOOT, other_cpu()]) {
            several.pin(guest, CpuSet::only(cpu), CpuSet::ALL);
        }
        several.turn();
        assert!(guests.iter().all(|guest| guest.vcpus[0].running_on().is_some()));
        let done = [(); 2].map(|()| AtomicBool::new(false));
        let pause = |n: usize| {
            let (done, guests) = (&done, &guests);
            move || {
                let cpu = world.hv.platform.cpu();
                let is_paused = world.hv.pause_domain(&guests[1 - n]);
                done[n].store(is_paused, Ordering::Relaxed);
                // The way back to the guest.
                world.settle_on(cpu);
            }
        };
        world.at_once(&plan, pause(0), pause(1));
        let [first, second] = done.map(AtomicBool::into_inner);
        assert!(!(first && second), "{plan:?}");
        for (guest, is_paused) in guests.iter().zip([second, first]) {
            assert_eq!(guest.pause_count.load(Ordering::Relaxed), u32::from(is_paused), "{plan:?}");
            assert!(!is_paused || guest.vcpus[0].running_on().is_none(), "{plan:?}");
        }
    }
}

#[test]
fn a_vcpu_that_was_paused_after_the_choice_is_not_touched() {
    for goes_on in [false, true] {
        let world = quiet();
        let guest = world.guest(1);
        world.hv.raise_softirq(CpuId::BOOT, SOFTIRQ_SCHEDULE);
        let Decision::Switch(Some(next)) = world.hv.schedule(CpuId::BOOT, false) else {
            panic!("the guest runs")
        };
        assert!(!world.hv.must_leave(next.domain()));
        world.hv.hold_domain(&guest);
        assert!(world.hv.must_leave(next.domain()));
        if !goes_on {
            assert!(world.settle().is_none(), "the CPU chooses anew");
            continue;
        }
        // The CPU has not looked again yet.
        world.hv.unpause_domain(&guest);
        let Decision::Switch(Some(next)) = world.hv.schedule(CpuId::BOOT, false) else {
            panic!("the CPU would sleep, and count the guest as running")
        };
        assert!(Arc::ptr_eq(next.domain(), &guest));
    }
}

#[test]
fn an_nmi_reaches_a_vcpu_that_runs_elsewhere_without_a_pause() {
    let world = quiet();
    let guest = world.guest(1);
    let vcpu = &guest.vcpus[0];
    vcpu.set_running_on(Some(other_cpu()));
    world.hv.send_nmi(&guest, vcpu);
    assert!(vcpu.nmi_pending.load(Ordering::Relaxed));
    assert!(world.hv.platform.events.lock().kicks.contains(&other_cpu()));
    assert_eq!(guest.pause_count.load(Ordering::Relaxed), 0);
}
