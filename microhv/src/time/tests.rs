//! Clocks of vCPUs that move between CPUs whose TSCs differ, and the wall clock.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering, fence};
use core::time::Duration;
use std::sync::Barrier;

use ring_abi::shared_info::{
    TIME_OFFSET, WC_NSEC_OFFSET, WC_SEC_HI_OFFSET, WC_SEC_OFFSET, WC_VERSION_OFFSET,
    XEN_PVCLOCK_TSC_STABLE_BIT,
};

use crate::domain::{Domain, Vcpu};
use crate::platform::{Clock, CpuId, CpuSet};
use crate::testing::World;

const CPUS: u32 = 4;

/// A machine whose CPUs' TSCs are ahead of the boot CPU's by so much, and differ from what is known of that by so much.
fn machine(tscs: [(i64, i64); CPUS as usize]) -> (World, Arc<Domain>) {
    let world = World::new(256);
    let machine = &world.hv.platform;
    for (n, (ahead, error)) in tscs.into_iter().enumerate() {
        machine.tsc_ahead[n].store(ahead as u64, Ordering::Relaxed);
        machine.tsc_offsets[n].store((error - ahead) as u64, Ordering::Relaxed);
        machine.is_one_clock.fetch_and(ahead == 0, Ordering::Relaxed);
        assert!(n == 0 || world.hv.add_cpu(CpuId::new(n as u32).expect("a CPU")));
    }
    world.hv.hold(&world.dom0.vcpus[0], crate::domain::PauseFlags::BLOCKED);
    let guest = world.guest(1);
    (world, guest)
}

fn flags(vcpu: &Vcpu) -> u8 {
    vcpu.info.get().expect("in shared_info").load_u8(TIME_OFFSET + 0x1d)
}

/// The time that the guest reads on the CPU that this thread is.
fn guest_ns(world: &World, vcpu: &Vcpu) -> u64 {
    let info = vcpu.info.get().expect("in shared_info");
    let [tsc, system_ns] = [8, 16].map(|at| info.load_u64(TIME_OFFSET + at));
    system_ns + world.hv.platform.tsc().wrapping_sub(tsc)
}

/// Lets the vCPU run on one CPU after another, and looks at its clock. Returns by how much that led the machine's at most.
fn moves(world: &World, guest: &Arc<Domain>, turns: u64) -> u64 {
    let (hv, vcpu) = (&world.hv, &guest.vcpus[0]);
    let (mut last, mut led, mut random) = (0, 0, 1u64);
    for _ in 0..turns {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let cpu = CpuId::new((random >> 60) as u32 % CPUS).expect("a CPU");
        hv.set_affinity(guest, vcpu, CpuSet::only(cpu), CpuSet::ALL);
        while vcpu.running_on() != Some(cpu) {
            (0..CPUS).filter_map(CpuId::new).for_each(|cpu| {
                world.settle_on(cpu);
            });
        }
        hv.platform.on_cpu(cpu.index());
        for _ in 0..2 {
            let now = guest_ns(world, vcpu);
            assert!(now >= last, "on {cpu:?} the clock went from {last} to {now}");
            (last, led) = (now, led.max(now - hv.platform.now.load(Ordering::Relaxed)));
            hv.platform.now.fetch_add(random >> 40 & 0x1ff, Ordering::Relaxed);
        }
        if random & 1 << 20 != 0 {
            hv.platform.calibrations.fetch_add(2, Ordering::Relaxed);
            hv.clock_changed();
        }
        last = last.max(guest_ns(world, vcpu));
    }
    led
}

#[test]
fn a_vcpu_that_moves_sees_no_time_twice() {
    let (world, guest) = machine([(0, 0), (1 << 40, 200), (-500_000, 500), (7, 350)]);
    let led = moves(&world, &guest, 3_000);
    assert!(
        (500..=1_000).contains(&led),
        "{led} ns before the boot CPU: no more than what is wrong of two TSCs"
    );
    assert_eq!(flags(&guest.vcpus[0]) & XEN_PVCLOCK_TSC_STABLE_BIT, 0);
}

#[test]
fn tscs_that_are_one_clock_are_told_to_be_stable() {
    let (world, guest) = machine([(0, 0); CPUS as usize]);
    assert_eq!(moves(&world, &guest, 100), 0);
    assert_eq!(flags(&guest.vcpus[0]), XEN_PVCLOCK_TSC_STABLE_BIT);
    assert_eq!(guest.clock_shown.load(Ordering::Relaxed), world.hv.platform.clock_generation());
}

/// CPUs set the clock at the same time, and change by how much the guest's is off. A reader that obeys the version reads a
/// second and the nanosecond that belongs to it, and at the end what was set last.
#[test]
fn the_wall_clock_is_one_writers_at_a_time() {
    const ROUNDS: u64 = 100_000;
    let world = World::new(256);
    let (hv, guest) = (&world.hv, world.guest(1));
    hv.set_wall_clock(0, 0);
    let word = |offset| guest.shared_info.load_u32(offset);
    let shown = || [WC_SEC_OFFSET, WC_SEC_HI_OFFSET, WC_NSEC_OFFSET].map(word);
    let (begun, writers) = (Barrier::new(3), AtomicU32::new(2));
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (begun, writers, guest) = (&begun, &writers, &guest);
            scope.spawn(move || {
                hv.platform.on_cpu(writer);
                begun.wait();
                for round in 0..ROUNDS {
                    let seconds = 1_000 * (2 * (round % 1000) + writer as u64);
                    hv.set_wall_clock(seconds * 1_000_000_001, 0);
                    *guest.time_offset.lock() = (round % 100) as i64;
                    hv.publish_wall_clock(guest);
                }
                writers.fetch_sub(1, Ordering::Release);
            });
        }
        begun.wait();
        while writers.load(Ordering::Acquire) != 0 {
            let version = word(WC_VERSION_OFFSET);
            fence(Ordering::SeqCst);
            let [seconds, high, ns] = shown();
            fence(Ordering::SeqCst);
            if version % 2 == 0 && version == word(WC_VERSION_OFFSET) && high == 0 {
                assert!(seconds < ns + 100 && seconds >= ns, "second {seconds}, nanosecond {ns}");
            }
        }
    });
    assert_eq!(word(WC_VERSION_OFFSET) % 2, 0);
    let set = hv.time.wall_ns.load(Ordering::Relaxed);
    let seconds = set / 1_000_000_000 + *guest.time_offset.lock() as u64;
    assert_eq!(shown(), [seconds as u32, (seconds >> 32) as u32, (set % 1_000_000_000) as u32]);
}

#[test]
fn who_sets_a_domains_clock_waits_for_who_does_so_already() {
    let world = World::new(256);
    let (hv, guest) = (&world.hv, world.guest(1));
    let version = || guest.shared_info.load_u32(WC_VERSION_OFFSET);
    let (before, offset) = (version(), guest.time_offset.lock());
    std::thread::scope(|scope| {
        scope.spawn(|| hv.publish_wall_clock(&guest));
        // A slower thread makes the test see less, never fail.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(version(), before);
        drop(offset);
    });
    assert_eq!(version(), before + 2);
}
