//! Several CPUs: shares hold over all, none idles while a vCPU waits, and moves lose nothing.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::VIRQ_TIMER;

use super::*;
use crate::domain::PauseFlags;
use crate::testing::{CPUS, World};
use crate::time::state::TimerKind;

/// A machine of several CPUs whose dom0 sleeps.
struct Several {
    world: World,
    cpus: Vec<CpuId>,
}

impl Several {
    fn new(cpus: u32) -> Self {
        let world = quiet();
        let cpus: Vec<_> = (0..cpus).filter_map(CpuId::new).collect();
        for cpu in &cpus[1..] {
            world.hv.platform.on_cpu(cpu.index());
            assert!(world.hv.add_cpu(*cpu));
        }
        let several = Self { world, cpus };
        several.turn();
        several
    }

    /// A domain that never sleeps, of so many vCPUs with this weight.
    fn hog(&self, vcpus: u32, weight: u32) -> Arc<Domain> {
        let domain = self.world.guest(vcpus);
        domain.vcpus.iter().for_each(|vcpu| vcpu.sched.weight.store(weight, Ordering::Relaxed));
        domain
    }

    /// Lets each CPU do what waits there, in turns, until nothing waits, and looks whether all is as it should be.
    fn turn(&self) {
        while let Some(cpu) = self.cpus.iter().find(|cpu| self.pending(**cpu)) {
            self.world.settle_on(*cpu);
        }
        self.check();
    }

    fn pending(&self, cpu: CpuId) -> bool {
        self.world.hv.sched.pending(cpu).load(Ordering::Relaxed) != 0
    }

    /// Lets time pass until `end`, from one interrupt to the next.
    fn run_until(&self, end: u64) {
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

    fn run(&self, ns: u64) {
        self.run_until(self.now() + ns);
    }

    fn now(&self) -> u64 {
        self.world.hv.platform.now_ns()
    }

    /// ns that each vCPU of `domains` ran.
    fn ran(&self, domains: &[Arc<Domain>]) -> Vec<u64> {
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
                assert!(!runs || can_run, "{vcpu:?} runs and should not");
                assert_eq!(vcpu.running_on(), runs.then_some(*cpu), "{vcpu:?}");
                if can_run {
                    assert!(seen.insert((vcpu.domain_id, vcpu.id)), "{vcpu:?} is in two places");
                    assert_eq!(vcpu.sched.cpu(), *cpu);
                    let may = vcpu.sched.affinity.load(Ordering::Relaxed);
                    assert!(may >> cpu.index() & 1 == 1, "{vcpu:?} on {cpu:?}, may {may:#x}");
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
            for vcpu in domain.vcpus.iter().filter(|vcpu| is_runnable(&domain, vcpu)) {
                assert!(seen.contains(&(domain.id, vcpu.id)), "{vcpu:?} is lost");
            }
        }
        for cpu in idle {
            let could = waiting.iter().find(|(_, may)| may >> cpu.index() & 1 == 1);
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
    several.run(200 * MS);
    let before = several.ran(hogs);
    several.run(seconds * 1000 * MS);
    let vcpus = || hogs.iter().flat_map(|domain| &domain.vcpus);
    let weights: Vec<_> = vcpus().map(|vcpu| vcpu.sched.weight.load(Ordering::Relaxed)).collect();
    let shares = ideal(&weights, several.cpus.len());
    if std::env::var("SHOW").is_ok() {
        let after = several.ran(hogs);
        let got: Vec<_> = after.iter().zip(&before).map(|(a, b)| (a - b) / 1000).collect();
        let want: Vec<_> = shares.iter().map(|s| (s * seconds as f64 * 1e6) as u64).collect();
        std::println!("{} cpus {got:?}\n want {want:?}", several.cpus.len());
    }
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
            shares_hold(&several, &hogs, 100);
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    #[test]
    fn any_weights_hold_over_all_cpus(
        cpus in 1u32..=6,
        weights in proptest::collection::vec(proptest::sample::select(&[64, 128, 256, 300, 512, 1024][..]), 1..14),
    ) {
        let several = Several::new(cpus);
        let hogs: Vec<_> = weights.into_iter().map(|weight| several.hog(1, weight)).collect();
        shares_hold(&several, &hogs, 40);
    }
}
