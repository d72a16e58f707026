//! Several CPUs: shares hold over all, none idles while a vCPU waits, and moves lose nothing.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::Range;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::VIRQ_TIMER;

use super::*;
use crate::domain::PauseFlags;
use crate::sched::cores::Admits;
use crate::sched::pools::Policy;
use crate::sched::state::COURTEOUS_RUN_NS;
use crate::testing::World;
use crate::time::state::TimerKind;

/// A machine of several CPUs whose dom0 sleeps.
pub(super) struct Several {
    pub(super) world: World,
    pub(super) cpus: Vec<CpuId>,
    /// How often each CPU had something to do.
    pub(super) rounds: [Cell<u32>; 8],
}

impl Several {
    pub(super) fn new(cpus: u32) -> Self {
        let world = quiet();
        let cpus: Vec<_> = (0..cpus).filter_map(CpuId::new).collect();
        for cpu in &cpus[1..] {
            world.hv.platform.on_cpu(cpu.index());
            assert!(world.hv.add_cpu(*cpu));
        }
        let several = Self { world, cpus, rounds: Default::default() };
        several.turn();
        several
    }

    /// A domain that never sleeps, of so many vCPUs with this weight.
    pub(super) fn hog(&self, vcpus: u32, weight: u32) -> Arc<Domain> {
        let domain = self.world.guest(vcpus);
        domain.vcpus.iter().for_each(|vcpu| vcpu.sched.weight.store(weight, Ordering::Relaxed));
        domain
    }

    /// Sets the affinity of the domain's vCPUs.
    pub(super) fn pin(&self, domain: &Arc<Domain>, hard: CpuSet, soft: CpuSet) {
        domain.vcpus.iter().for_each(|vcpu| self.world.hv.set_affinity(domain, vcpu, hard, soft));
    }

    /// Lets each CPU do what waits there, in turns, until nothing waits, and looks whether all is as it should be.
    pub(super) fn turn(&self) {
        self.do_work();
        self.check();
    }

    /// Lets each CPU do what waits there, in turns, until nothing waits.
    pub(super) fn do_work(&self) {
        let mut left = 10_000;
        while let Some(cpu) = self.cpus.iter().find(|cpu| self.pending(**cpu)) {
            left -= 1;
            assert!(left > 0, "CPUs call each other without end");
            let rounds = &self.rounds[cpu.index()];
            rounds.set(rounds.get() + 1);
            self.world.settle_on(*cpu);
            self.check_core(*cpu);
        }
    }

    fn pending(&self, cpu: CpuId) -> bool {
        self.world.hv.sched.pending(cpu).load(Ordering::Relaxed) != 0
    }

    /// Lets time pass until `end`, from one interrupt to the next.
    pub(super) fn run_until(&self, end: u64) {
        loop {
            self.turn();
            let timers = &self.world.hv.platform.timers;
            let next = timers.iter().map(|timer| timer.load(Ordering::Relaxed)).min().expect("CPUs").min(end);
            let now = self.now();
            self.world.pass(next.saturating_sub(now));
            if next == end {
                return self.turn();
            }
        }
    }

    pub(super) fn run(&self, ns: u64) {
        self.run_until(self.now() + ns);
    }

    pub(super) fn now(&self) -> u64 {
        self.world.hv.platform.now_ns()
    }

    /// ns that each vCPU of `domains` ran.
    pub(super) fn ran(&self, domains: &[Arc<Domain>]) -> Vec<u64> {
        let vcpus = domains.iter().flat_map(|domain| &domain.vcpus);
        vcpus.map(|vcpu| vcpu.time.lock().cpu_ns(self.now())).collect()
    }

    /// What must hold whenever each CPU has done what waits there.
    fn check(&self) {
        let (mut seen, mut idle, mut waiting) = (BTreeSet::new(), Vec::new(), Vec::new());
        for cpu in &self.cpus {
            let mut runs_here = false;
            self.world.hv.sched.describe(*cpu, |vcpu, _, runs| {
                let can_run = is_runnable(vcpu.domain(), vcpu);
                // What was run elsewhere may have been too much for its domain.
                let rests = vcpu.domain().pause_count.load(Ordering::Relaxed) == RESTS;
                assert!(!runs || can_run || rests, "{vcpu:?} runs and should not");
                assert_eq!(vcpu.running_on(), runs.then_some(*cpu), "{vcpu:?}");
                if can_run {
                    assert!(seen.insert((vcpu.domain_id, vcpu.id)), "{vcpu:?} is in two places");
                    assert_eq!(vcpu.sched.cpu(), *cpu);
                    let may = vcpu.sched.allowed();
                    assert!(may.contains(*cpu), "{vcpu:?} on {cpu:?}, may {may:?}");
                    let (_, pool) = self.world.hv.sched.pool_of(vcpu.domain());
                    assert!(pool.contains(*cpu), "{vcpu:?} on {cpu:?}, its pool has {pool:?}");
                    if !runs {
                        waiting.push((vcpu.clone(), may));
                    }
                }
                runs_here |= runs;
            });
            if !runs_here {
                idle.push(*cpu);
            }
        }
        for domain in self.world.hv.domains.snapshot() {
            let (policy, pool) = self.world.hv.sched.pool_of(&domain);
            for vcpu in domain.vcpus.iter().filter(|vcpu| is_runnable(&domain, vcpu)) {
                let waits = policy == Policy::Null && vcpu.sched.allowed() == CpuSet::default();
                assert!(waits || seen.contains(&(domain.id, vcpu.id)), "{vcpu:?} is lost");
                if waits {
                    let owned = |cpu: CpuId| self.world.hv.sched.pools.lock().unowned(cpu).is_none();
                    assert!(vcpu.sched.usable(pool).iter().all(owned), "{vcpu:?} waits, and a CPU is free");
                }
            }
        }
        let known_idle = CpuSet::from_bits(self.world.hv.sched.idle.load(Ordering::Relaxed));
        if self.cpus.len() > 1 {
            assert!(
                known_idle.iter().eq(idle.iter().copied()),
                "{known_idle:?} are known to be idle of {idle:?}"
            );
        }
        for cpu in idle {
            let is_admitted = |vcpu: &VcpuRef| {
                let others = self.beside(cpu);
                others.is_empty() || others.contains(&vcpu.domain_id)
            };
            let could = waiting.iter().find(|(vcpu, may)| may.contains(cpu) && is_admitted(vcpu));
            assert!(could.is_none(), "{cpu:?} idles, and {could:?} waits");
        }
    }
}

/// What each vCPU should get of so many CPUs, by weight; none can have more than a whole one.
fn ideal(weights: &[u32], cpus: usize) -> Vec<f64> {
    let mut shares = vec![0.0; weights.len()];
    let mut order: Vec<_> = (0..weights.len()).collect();
    order.sort_by_key(|n| core::cmp::Reverse(weights[*n]));
    let (mut left, mut weight) = (cpus as f64, weights.iter().sum::<u32>() as f64);
    for n in order {
        shares[n] = (left * f64::from(weights[n]) / weight).min(1.0);
        left -= shares[n];
        weight -= f64::from(weights[n]);
    }
    shares
}

/// Each vCPU gets its share of the time that passes within 2 %.
fn shares_hold(several: &Several, hogs: &[Arc<Domain>], seconds: u64) {
    shares_hold_on(several, hogs, several.cpus.len(), seconds);
}

/// The same, where so many CPUs run these.
pub(super) fn shares_hold_on(several: &Several, hogs: &[Arc<Domain>], cpus: usize, seconds: u64) {
    several.run(200 * MS);
    let before = several.ran(hogs);
    several.run(seconds * 1000 * MS);
    let vcpus = || hogs.iter().flat_map(|domain| &domain.vcpus);
    let weights: Vec<_> = vcpus().map(|vcpu| vcpu.sched.weight.load(Ordering::Relaxed)).collect();
    let shares = ideal(&weights, cpus);
    for (n, (after, before)) in several.ran(hogs).into_iter().zip(before).enumerate() {
        let share = (after - before) as f64 / (seconds * 1000 * MS) as f64;
        let ratio = share / shares[n];
        assert!((0.98..=1.02).contains(&ratio), "{n}: {share:.4} of {:.4}, weights {weights:?}", shares[n]);
    }
}

#[test]
fn weights_hold_over_all_cpus() {
    for cpus in 1..=4 {
        for vcpus in 1..=4 {
            let several = Several::new(cpus);
            let hogs: Vec<_> = [1, 2, 4].map(|n| several.hog(vcpus, 256 * n)).into();
            shares_hold(&several, &hogs, 40);
        }
    }
}

#[test]
fn a_vcpu_that_wakes_takes_an_idle_cpu_and_goes_back_to_its_own() {
    let several = Several::new(3);
    let busy = several.hog(1, 256);
    let sleeper = several.hog(1, 256);
    several.turn();
    let cpu = |domain: &Domain| domain.vcpus[0].sched.cpu();
    assert_ne!(cpu(&busy), cpu(&sleeper));
    let own = cpu(&sleeper);
    for _ in 0..10 {
        several.world.sleep(&sleeper);
        several.run(MS);
        several.world.wake(&sleeper);
        several.turn();
        assert_eq!(cpu(&sleeper), own, "the CPU is idle");
    }
    // The sleeper's own CPU is busy, but another is idle.
    several.world.sleep(&sleeper);
    several.turn();
    let pinned = several.hog(1, 256);
    several.pin(&pinned, CpuSet::only(own), CpuSet::ALL);
    several.turn();
    assert_eq!(cpu(&pinned), own);
    several.run(20 * MS);
    several.world.wake(&sleeper);
    several.turn();
    assert_ne!(cpu(&sleeper), own, "nobody is disturbed");
    assert_eq!(several.world.hv.sched.idle.load(Ordering::Relaxed), 0);
}

#[test]
fn an_idle_cpu_that_may_not_run_what_waits_lets_another_look() {
    let several = Several::new(4);
    let [one, two, three] = [1, 2, 3].map(|cpu| several.cpus[cpu]);
    let pinned = |cpus: CpuSet| {
        let hog = several.hog(1, 256);
        several.pin(&hog, cpus, CpuSet::only(one));
        several.run(50 * MS);
        hog
    };
    let stays = pinned(CpuSet::only(one));
    several.world.sleep(&stays);
    several.turn();
    // A vCPU that might have run on the second CPU was here, and is gone.
    several.world.sleep(&pinned(CpuSet::only(one).with(two)));
    several.turn();
    let waits = pinned(CpuSet::only(one).with(three));
    assert_eq!(waits.vcpus[0].running_on(), Some(one));
    several.world.wake(&stays);
    several.turn();
    assert_eq!(stays.vcpus[0].running_on(), Some(one));
    assert_eq!(waits.vcpus[0].running_on(), Some(three));
}

#[test]
fn soft_affinity_orders_the_choices() {
    let several = Several::new(3);
    let [zero, one, two] = [0, 1, 2].map(|cpu| several.cpus[cpu]);
    let guest = several.hog(1, 256);
    let cpu = |domain: &Domain| domain.vcpus[0].sched.cpu();
    let doze = |domain: &Arc<Domain>| {
        several.world.sleep(domain);
        several.run(MS);
        several.world.wake(domain);
        several.turn();
    };
    for wanted in [one, two, zero] {
        several.pin(&guest, CpuSet::ALL, CpuSet::only(wanted));
        doze(&guest);
        assert_eq!(cpu(&guest), wanted, "an idle CPU of its soft affinity comes first");
    }
    several.pin(&guest, CpuSet::only(one), CpuSet::only(two));
    several.turn();
    assert_eq!(cpu(&guest), one, "hard affinity counts more");
    // Nobody waits for a CPU that is better while another is idle.
    let late = several.hog(1, 256);
    several.pin(&late, CpuSet::ALL, CpuSet::only(one));
    doze(&late);
    assert_ne!(cpu(&late), one);
    // Of those that wait, a CPU takes first which has it in its soft affinity.
    let pair = [zero, two].map(|soft| {
        let hog = several.hog(1, 256);
        several.pin(&hog, CpuSet::only(one), CpuSet::only(soft));
        hog
    });
    several.turn();
    several.world.sleep(&late);
    several.turn();
    for (hog, soft) in pair.iter().zip([zero, two]) {
        let hard = CpuSet::only(one).with(zero).with(two);
        hog.vcpus[0].sched.set_affinity(hard, CpuSet::only(soft));
        several.world.hv.refresh(hog, &hog.vcpus[0]);
    }
    let mut queue = several.world.hv.sched.cpus[one.index()].queue.lock();
    queue.count_wanted();
    let waiting = queue.waiting().count();
    let given = queue.give(two, u64::MAX, Admits::All).expect("some wait");
    assert!(waiting < 2 || Arc::ptr_eq(given.domain(), &pair[1]), "{given:?} of {waiting}");
}

#[test]
fn timers_move_with_their_vcpu() {
    let several = Several::new(2);
    let guest = several.hog(1, 256);
    let vcpu = &guest.vcpus[0];
    let port = several.world.hv.bind_virq(&guest, VIRQ_TIMER, 0, |_| Ok(())).expect("bound");
    for _ in 0..4 {
        let cpu = vcpu.sched.cpu();
        let other = several.cpus.iter().find(|other| **other != cpu).expect("two CPUs");
        let deadline = several.now() + 5 * MS;
        several.world.hv.arm_timer(vcpu, TimerKind::Singleshot, Some(deadline));
        several.turn();
        several.pin(&guest, CpuSet::only(*other), CpuSet::ALL);
        several.turn();
        assert_eq!(vcpu.sched.cpu(), *other);
        let timer = several.world.hv.platform.timers[other.index()].load(Ordering::Relaxed);
        assert!(timer <= deadline, "its new CPU's timer comes in time");
        assert_eq!(several.world.hv.time.deadline(vcpu, TimerKind::Singleshot), Some(deadline));
        clear_pending(&guest);
        several.world.pass(5 * MS);
        several.world.settle_on(*other); // the old CPU does nothing
        assert!(guest.events.is_pending(port));
        several.turn();
    }
    let made = several.world.hv.time.vcpus();
    assert!(several.world.hv.time.remove_timers(vcpu));
    assert_eq!(several.world.hv.time.vcpus(), made - 1);
}

#[test]
fn each_cpu_has_room_for_all_vcpus() {
    let several = Several::new(2);
    let guests: Vec<_> = (0..3).map(|_| several.hog(100, 256)).collect();
    let late = CpuId::new(2).expect("few CPUs");
    assert!(several.world.hv.add_cpu(late));
    let vcpus = several.world.hv.time.vcpus();
    assert_eq!(vcpus, 1 + guests.iter().map(|guest| guest.vcpus.len()).sum::<usize>());
    for cpu in [CpuId::BOOT, several.cpus[1], late] {
        assert!(several.world.hv.sched.make_room(cpu, vcpus, |_| false), "{cpu:?}");
        assert!(several.world.hv.time.make_room(cpu, vcpus, |_| false), "{cpu:?}");
    }
    several.world.hv.platform.heap_has_room.store(false, Ordering::Relaxed);
    assert!(!several.world.hv.add_cpu(CpuId::new(3).expect("few CPUs")), "no room, no CPU");
}

/// How long a domain that sleeps for `sleeps` ns and then runs for 100 us waits for a CPU beside hogs: sorted, in ns.
fn waits_beside(hogs: u32, cpus: u32, sleeps: Range<u64>, rounds: usize) -> Vec<u64> {
    let several = Several::new(cpus);
    let sleeper = several.hog(1, 256);
    let _hogs: Vec<_> = (0..hogs).map(|_| several.hog(1, 256)).collect();
    several.world.sleep(&sleeper);
    several.run(500 * MS);
    let (mut waits, mut random) = (Vec::new(), 1u64);
    let vcpu = &sleeper.vcpus[0];
    for _ in 0..rounds {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        several.run(sleeps.start + (random >> 33) % (sleeps.end - sleeps.start));
        let waiting = |vcpu: &Vcpu| vcpu.time.lock().spent_ns[Runstate::Runnable as usize];
        let before = waiting(vcpu);
        several.world.wake(&sleeper);
        several.turn();
        while vcpu.running_on().is_none() {
            several.run(MS / 20);
        }
        waits.push(waiting(vcpu) - before);
        several.run(MS / 10);
        several.world.sleep(&sleeper);
    }
    waits.sort_unstable();
    waits
}

#[test]
fn a_sleeper_beside_four_hogs_hardly_waits() {
    let sleeps = [3 * MS..40 * MS, MS / 10..MS / 10 * 21];
    for (cpus, sleeps) in [1, 2, 4].iter().flat_map(|cpus| sleeps.iter().map(move |range| (*cpus, range))) {
        let waits = waits_beside(4, cpus, sleeps.clone(), 1000);
        let (median, late) = (waits[500], waits[990]);
        assert!(
            late <= COURTEOUS_RUN_NS,
            "{cpus} CPUs, sleeps of {sleeps:?}: median {median}, of 100 one waits {late} ns, the last {:?}",
            waits.last()
        );
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    /// vCPUs sleep, wake, stop, go on and are bound to other CPUs at random: none is lost, and [`Several::check`] holds. Those
    /// that always could run were never without a CPU for long.
    #[test]
    fn moves_lose_nothing(
        cpus in 1u32..=5,
        moves in proptest::collection::vec((0usize..6, 0usize..3, 0u8..8, 1u64..32, 0u64..15), 50..150),
    ) {
        let several = Several::new(cpus);
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
                    // As `pause_domain`, which would wait for CPUs that this thread plays.
                    guest.pause_count.fetch_add(1, Ordering::AcqRel);
                    guest.vcpus.iter().for_each(|vcpu| hv.stop(vcpu));
                    paused[domain] = 1;
                }
                6 if paused[domain] == 1 => {
                    hv.unpause_domain(guest);
                    paused[domain] = 0;
                }
                _ => {}
            }
            several.run(ms * MS / 4);
        }
        // The domain has at least half of what would be left if no other ever slept.
        let passed = several.now() - start;
        let all = 256 + 3 * (128 + 256 + 512 + 1024 + 128 + 256);
        let share = (u64::from(cpus) * 256 * 1000 / all).min(1000);
        let ran = several.ran(&[always])[0];
        proptest::prop_assert!(ran * 2000 + 200_000 * MS >= passed * share, "{ran} of {passed}, share {share}/1000");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(8))]
    #[test]
    fn any_weights_hold_over_all_cpus(
        cpus in 1u32..=6,
        weights in proptest::collection::vec(proptest::sample::select(&[128, 256, 300, 512, 1024][..]), 1..12),
    ) {
        let several = Several::new(cpus);
        let hogs: Vec<_> = weights.into_iter().map(|weight| several.hog(1, weight)).collect();
        shares_hold(&several, &hogs, 60);
    }
}
