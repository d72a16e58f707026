//! Stopping the vCPUs of other CPUs.

use alloc::sync::Arc;

use super::*;

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
            vcpu.set_saved_selectors([1, 2, 3, 4]);
            vcpu.set_holder(None);
        });
        assert!(world.hv.pause_domain(&guest));
        assert_eq!(vcpu.saved_selectors(), [1, 2, 3, 4]);
    });
}

/// Each of two CPUs pauses the domain that the other runs. Both waits end, whoever comes first.
#[test]
fn a_pause_gives_up_when_its_own_cpu_is_wanted() {
    let world = quiet();
    let guest = world.guest(1);
    guest.vcpus[0].set_running_on(Some(other_cpu()));
    world.hv.raise_softirq(CpuId::BOOT, SOFTIRQ_SCHEDULE);
    assert!(!world.hv.pause_domain(&guest), "the other CPU may wait for this one");
    assert_eq!(guest.pause_count.load(Ordering::Relaxed), 0, "nothing has changed");
    let pending = world.hv.sched.pending(other_cpu()).load(Ordering::Relaxed);
    assert_eq!(pending, SOFTIRQ_SCHEDULE, "the other CPU was asked");
    assert!(world.hv.platform.events.lock().kicks.contains(&other_cpu()));
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
