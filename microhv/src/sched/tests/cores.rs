//! `sched-gran=core`: the CPUs of a core run vCPUs of one domain at a time, and nobody waits without end for that. The machine looks
//! after each decision: see [`Several::do_work`].

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use super::several::{Several, shares_hold_on};
use super::*;
use crate::domain::PauseFlags;
use crate::sched::cores::{Admits, Core};
use crate::sched::pools::{Change, Policy};
use crate::testing::turns::plans;

impl Several {
    /// The domains whose vCPUs the others of a CPU's core run, if the core has one domain at a time.
    pub(super) fn beside(&self, cpu: CpuId) -> BTreeSet<DomId> {
        let sched = &self.world.hv.sched;
        let others =
            sched.siblings(cpu).without(cpu).iter().filter(|_| sched.has_cores.load(Ordering::Relaxed));
        others.filter_map(|other| sched.running(other)).map(|vcpu| vcpu.domain_id).collect()
    }

    /// A CPU, which has decided just now, shares its core with no other domain.
    pub(super) fn check_core(&self, cpu: CpuId) {
        let (runs, beside) = (self.world.hv.sched.running(cpu), self.beside(cpu));
        let is_alone = runs.iter().all(|vcpu| beside.iter().all(|domain| *domain == vcpu.domain_id));
        assert!(is_alone, "{runs:?} on {cpu:?} beside {beside:?}");
    }
}

/// So many cores of so many CPUs each, whose dom0 sleeps.
fn machine(cores: u32, threads: u32) -> Several {
    let several = Several::new(cores * threads);
    let siblings = |cpu: CpuId| {
        let first = cpu.raw() / threads * threads;
        CpuSet::from_bits(((1 << threads) - 1) << first)
    };
    several.world.hv.sched.set_cores(siblings, true);
    several.turn();
    several
}

/// ns that the domain's vCPUs ran in the next `ns`.
fn runs_in(several: &Several, domain: &Arc<Domain>, ns: u64) -> u64 {
    let ran = || several.ran(core::slice::from_ref(domain)).into_iter().sum::<u64>();
    let before = ran();
    several.run(ns);
    ran() - before
}

#[test]
fn a_core_runs_two_vcpus_of_one_domain_and_one_of_two() {
    let several = machine(1, 2);
    let pair = several.hog(2, 256);
    assert_eq!(runs_in(&several, &pair, 1000 * MS), 2000 * MS, "nobody else is there");
    let one = several.hog(1, 256);
    several.run(1000 * MS);
    let ran = runs_in(&several, &one, 4000 * MS);
    assert!((1900 * MS..=2100 * MS).contains(&ran), "{ran}");
    several.world.sleep(&pair);
    several.world.hv.hold(&pair.vcpus[1], PauseFlags::BLOCKED);
    assert_eq!(runs_in(&several, &one, 1000 * MS), 1000 * MS);
}

#[test]
fn weights_hold_between_domains_of_one_vcpu() {
    for (cores, threads) in [(1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (3, 2)] {
        let several = machine(cores, threads);
        let hogs: Vec<_> = [1, 2, 4, 1, 2].map(|n| several.hog(1, 256 * n)).into();
        shares_hold_on(&several, &hogs, cores as usize, 40);
    }
}

#[test]
fn a_domain_of_many_vcpus_keeps_nobody_out() {
    for threads in 2..=4 {
        let several = machine(1, threads);
        let many = several.hog(threads * 2, 256);
        let one = several.hog(1, 256);
        several.run(500 * MS);
        let mut longest = 0;
        for _ in 0..200 {
            let began = several.now();
            while runs_in(&several, &one, 5 * MS) == 0 {
                assert!(several.now() - began < 100 * MS, "{threads} threads");
            }
            longest = longest.max(several.now() - began);
        }
        assert!(longest <= 60 * MS, "{threads} threads: {longest}");
        assert!(runs_in(&several, &many, 1000 * MS) > 500 * MS);
    }
}

#[test]
fn a_core_that_is_left_goes_to_a_cpu_that_was_refused() {
    let [one, two] = [0, 1].map(cpu_of);
    let both = CpuSet::only(one).with(two);
    let [first, second] = [1, 2].map(DomId::new);
    let mut core = Core::default();
    assert_eq!(core.decide(one, Some(first), false, both, 0), CpuSet::only(two));
    assert_eq!((core.admits(one), core.admits(two)), (Admits::All, Admits::Only(first)));
    assert_eq!(core.decide(two, None, true, both, 0), CpuSet::default());
    assert_eq!(core.decide(one, None, false, both, 0), CpuSet::only(two));
    assert_eq!((core.admits(one), core.admits(two)), (Admits::Nothing, Admits::All));
    assert_eq!(core.decide(one, None, true, both, 0), CpuSet::default(), "it was told");
    assert_eq!(core.decide(two, Some(second), false, both, 0), CpuSet::only(one));
    assert_eq!(core.admits(one), Admits::Only(second));
    assert_eq!(core.claim(one), CpuSet::only(two));
    assert_eq!(
        (core.admits(one), core.admits(two)),
        (Admits::Nothing, Admits::Nothing),
        "the other leaves first"
    );
    assert_eq!(core.decide(two, None, true, both, 0), CpuSet::only(one));
    assert_eq!(core.admits(one), Admits::All);
}

/// A domain whose vCPUs sleep and wake in turns always has one that runs, and the others of its core are wanted all the same.
#[test]
fn who_sleeps_and_wakes_keeps_nobody_out() {
    let several = machine(1, 2);
    let restless = several.hog(2, 256);
    let one = several.hog(1, 256);
    several.run(500 * MS);
    let before = several.ran(core::slice::from_ref(&one))[0];
    for turn in 0..8000 {
        let hv = &several.world.hv;
        let vcpu = |n: usize| &restless.vcpus[n % 2];
        hv.platform.on_cpu(0);
        hv.kick_vcpu(&restless, vcpu(turn));
        several.do_work();
        hv.platform.on_cpu(0);
        hv.hold(vcpu(turn + 1), PauseFlags::BLOCKED);
        several.run(MS / 4);
    }
    let ran = several.ran(&[one])[0] - before;
    assert!((630 * MS..=1400 * MS).contains(&ran), "{ran} of 2 s: three vCPUs want the core");
}

/// How long a domain waits that sleeps for 3 to 40 ms and runs for 100 us, in ns: sorted.
fn waits_beside(hogs: &[u32], cores: u32) -> Vec<u64> {
    let several = machine(cores, 2);
    let sleeper = several.hog(1, 256);
    let _hogs: Vec<_> = hogs.iter().map(|vcpus| several.hog(*vcpus, 256)).collect();
    several.world.sleep(&sleeper);
    several.run(500 * MS);
    let (mut waits, mut random) = (Vec::new(), 1u64);
    let vcpu = &sleeper.vcpus[0];
    for _ in 0..300 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        several.run(3 * MS + (random >> 33) % (37 * MS));
        let began = several.now();
        several.world.wake(&sleeper);
        several.turn();
        while vcpu.running_on().is_none() {
            several.run(MS / 20);
        }
        waits.push(several.now() - began);
        several.run(MS / 10);
        several.world.sleep(&sleeper);
    }
    waits.sort_unstable();
    waits
}

#[test]
fn a_sleeper_gets_a_core_soon() {
    for (hogs, cores) in [(&[1][..], 1), (&[2], 1), (&[1, 1, 1], 1), (&[4, 1], 2), (&[1, 1, 1, 1], 2)] {
        let waits = waits_beside(hogs, cores);
        assert!(
            waits[290] <= 2 * MS,
            "{hogs:?} on {cores}: {} {} {:?}",
            waits[150],
            waits[290],
            waits.last()
        );
    }
}

#[test]
fn a_domain_alone_on_its_core_calls_nobody() {
    let several = machine(2, 2);
    let guest = several.hog(1, 256);
    several.run(50 * MS);
    let kicks = || several.world.hv.platform.events.lock().kicks.len();
    let before = kicks();
    for _ in 0..100 {
        several.world.hv.platform.on_cpu(guest.vcpus[0].sched.cpu().index());
        several.world.sleep(&guest);
        several.run(MS / 10);
        several.world.hv.platform.on_cpu(guest.vcpus[0].sched.cpu().index());
        several.world.wake(&guest);
        several.run(MS / 10);
    }
    assert_eq!(kicks(), before);
}

#[test]
fn dedicated_cpus_of_a_core_take_turns() {
    let several = machine(2, 2);
    let pool = several.pool(Policy::Null, &[2, 3]);
    let guests: Vec<_> = (0..2).map(|_| several.hog(1, 256)).collect();
    guests.iter().for_each(|guest| several.migrate(guest, pool));
    several.run(100 * MS);
    let before = several.ran(&guests);
    several.run(2000 * MS);
    for (after, before) in several.ran(&guests).into_iter().zip(before) {
        assert!((900 * MS..=1100 * MS).contains(&(after - before)), "{}", after - before);
    }
}

#[test]
fn a_core_waits_for_no_cpu_that_goes() {
    let several = machine(2, 2);
    let hogs: Vec<_> = [1, 2, 1, 3, 1].map(|vcpus| several.hog(vcpus, 256)).into();
    for round in 0..100 {
        let cpu = several.cpus[1 + round % 3];
        several.run((round as u64 * 7 % 23) * MS / 2);
        several.change(Change::Offline { cpu }).expect("goes");
        let before = several.ran(&hogs);
        several.run(1000 * MS);
        let after = several.ran(&hogs);
        assert!(after.iter().zip(&before).all(|(after, before)| after > before), "{before:?} {after:?}");
        several.change(Change::Online { cpu }).expect("comes");
    }
}

fn domains_of(world: &World, cpus: [u32; 2]) -> [Option<DomId>; 2] {
    let runs = |cpu| world.hv.sched.running(CpuId::new(cpu).expect("few CPUs"));
    cpus.map(|cpu| runs(cpu).map(|vcpu| vcpu.domain_id))
}

#[test]
fn two_cpus_of_a_core_that_decide_at_once_agree() {
    for plan in plans([30, 30, 12]) {
        let several = machine(1, 2);
        let world = &several.world;
        let [one, two] = [0, 1].map(|cpu| {
            let guest = several.hog(1, 256);
            several.pin(&guest, CpuSet::only(several.cpus[cpu]), CpuSet::ALL);
            world.sleep(&guest);
            guest
        });
        several.turn();
        let run = |guest: &Arc<Domain>, cpu: CpuId| {
            world.wake(guest);
            world.settle_on(cpu);
        };
        world.at_once(&plan, || run(&one, cpu_of(0)), || run(&two, cpu_of(1)));
        let runs = domains_of(world, [0, 1]);
        assert!(runs.contains(&None) && runs != [None; 2], "{runs:?}, {plan:?}");
        several.turn();
    }
}

fn cpu_of(cpu: u32) -> CpuId {
    CpuId::new(cpu).expect("few CPUs")
}

/// Four threads play the CPUs of two cores, on the host's own.
#[test]
fn no_core_is_shared_where_all_cpus_decide_at_once() {
    const NOBODY: u32 = u32::MAX;
    let several = machine(2, 2);
    let guests: Vec<_> = (0..3).map(|_| several.hog(3, 256)).collect();
    let (world, guests) = (&several.world, &guests);
    let inside = [const { AtomicU32::new(NOBODY) }; 4];
    let changes = AtomicU32::new(0);
    let play = |cpu: u32| {
        world.hv.platform.on_cpu(cpu as usize);
        let mut random = u64::from(cpu) + 1;
        let mut last = NOBODY;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let guest = &guests[(random >> 33) as usize % guests.len()];
            let vcpu = &guest.vcpus[(random >> 40) as usize % 3];
            match random >> 60 {
                0..=5 => world.hv.kick_vcpu(guest, vcpu),
                6..=9 => world.hv.hold(vcpu, PauseFlags::BLOCKED),
                _ => world.pass(MS / 50),
            }
            let runs = world.settle_on(cpu_of(cpu)).map_or(NOBODY, |vcpu| vcpu.domain_id.raw().into());
            inside[cpu as usize].store(runs, Ordering::SeqCst);
            let beside = inside[(cpu ^ 1) as usize].load(Ordering::SeqCst);
            assert!(runs == NOBODY || beside == NOBODY || runs == beside, "{runs} beside {beside} on {cpu}");
            changes.fetch_add(u32::from(runs != last), Ordering::Relaxed);
            last = runs;
            inside[cpu as usize].store(NOBODY, Ordering::SeqCst);
        }
    };
    std::thread::scope(|scope| {
        let play = &play;
        (0..4).for_each(|cpu| drop(scope.spawn(move || play(cpu))));
    });
    // How much the threads do at once is the host's choice: a slower one makes the test see less.
    assert!(changes.load(Ordering::Relaxed) > 4);
    several.turn();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    /// As `moves_lose_nothing`, on cores.
    #[test]
    fn cores_are_not_shared_and_nothing_is_lost(
        (cores, threads) in proptest::sample::select(&[(1, 2), (1, 3), (2, 2), (1, 4), (2, 3), (3, 2)][..]),
        moves in proptest::collection::vec((0usize..6, 0usize..3, 0u8..9, 1u64..64, 0u64..15), 50..150),
    ) {
        let several = machine(cores, threads);
        let cpus = cores * threads;
        let always = several.hog(1, 256);
        let domains: Vec<_> = (0..6).map(|n| several.hog(3, 128 << (n % 4))).collect();
        let mut paused = [0u32; 6];
        let start = several.now();
        for (domain, vcpu, what, mask, ms) in moves {
            let (guest, hv) = (&domains[domain], &several.world.hv);
            hv.platform.on_cpu(ms as usize % cpus as usize);
            let vcpu = &guest.vcpus[vcpu];
            match what {
                0 | 1 => hv.hold(vcpu, PauseFlags::BLOCKED),
                2 | 3 => hv.kick_vcpu(guest, vcpu),
                4 if mask & ((1 << cpus) - 1) != 0 => {
                    hv.set_affinity(guest, vcpu, CpuSet::from_bits(mask), CpuSet::from_bits(mask >> 1 | ms));
                }
                5 if paused[domain] == 0 => {
                    hv.hold_domain(guest);
                    paused[domain] = 1;
                }
                6 if paused[domain] == 1 => {
                    hv.unpause_domain(guest);
                    paused[domain] = 0;
                }
                7 => hv.set_cap(guest, mask % 3 * 40),
                _ => {}
            }
            several.run(ms * MS / 4);
        }
        // The domain has at least half of what would be left if no other ever slept.
        let passed = several.now() - start;
        let all = 256 + 3 * (128 + 256 + 512 + 1024 + 128 + 256);
        let share = (u64::from(cores) * 256 * 1000 / all).min(1000);
        let ran = several.ran(&[always])[0];
        proptest::prop_assert!(ran * 2000 + 200_000 * MS >= passed * share, "{ran} of {passed}, share {share}/1000");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(6))]
    #[test]
    fn any_weights_hold_on_a_core(
        threads in 2u32..=4,
        weights in proptest::collection::vec(proptest::sample::select(&[128, 256, 300, 512, 1024][..]), 2..8),
    ) {
        let several = machine(1, threads);
        let hogs: Vec<_> = weights.into_iter().map(|weight| several.hog(1, weight)).collect();
        shares_hold_on(&several, &hogs, 1, 60);
    }
}
