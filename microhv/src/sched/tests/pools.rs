//! CPUs that come and go, CPU pools, and the null policy.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::several::{Several, shares_hold_on};
use super::*;
use crate::domain::PauseFlags;
use crate::sched::pools::{Change, Policy, PoolError};
use crate::time::state::TimerKind;

impl Several {
    /// Changes what a CPU is used for, as a toolstack that runs on the boot CPU.
    pub(super) fn change(&self, change: Change) -> Result<(), PoolError> {
        for _ in 0..100 {
            self.world.hv.platform.on_cpu(0);
            match self.world.hv.change_cpus(change) {
                Err(PoolError::Again) => self.do_work(),
                other => {
                    self.turn();
                    return other;
                }
            }
        }
        panic!("{change:?} does not end");
    }

    /// A pool with these CPUs, which are taken out of pool 0.
    pub(super) fn pool(&self, policy: Policy, cpus: &[usize]) -> u32 {
        let pool = self.world.hv.sched.create_pool(None, policy).expect("a pool");
        for cpu in cpus.iter().map(|cpu| self.cpus[*cpu]) {
            self.change(Change::Remove { pool: 0, cpu }).expect("taken out");
            self.change(Change::Add { pool, cpu }).expect("added");
        }
        pool
    }

    pub(super) fn migrate(&self, domain: &Arc<Domain>, pool: u32) {
        self.world.hv.move_to_pool(domain, pool).expect("moved");
        self.turn();
    }

    /// Ends a domain.
    fn kill(&self, domain: &Arc<Domain>) {
        self.world.hv.hold_domain(domain); // which nobody waits for here: this thread plays all CPUs
        self.do_work();
        self.world.hv.platform.on_cpu(0);
        assert!(self.world.hv.kill_domain(domain).is_ok());
        self.turn();
    }

    fn online(&self) -> CpuSet {
        self.world.hv.sched.online()
    }
}

/// Where the domain's first vCPU is, if it runs.
fn runs_on(domain: &Domain) -> Option<u32> {
    domain.vcpus[0].running_on().map(CpuId::raw)
}

/// A sleeper whose last CPU belongs to another's vCPU by now sets its timers elsewhere, however soon they are due.
#[test]
fn timers_of_others_do_not_disturb_a_dedicated_cpu() {
    let several = Several::new(3);
    let hv = &several.world.hv;
    let sleeper = several.hog(1, 256);
    sleeper.vcpus[0].time.lock().period_ns = 0;
    hv.set_affinity(&sleeper, &sleeper.vcpus[0], CpuSet::only(several.cpus[2]), CpuSet::ALL);
    several.do_work();
    assert_eq!(runs_on(&sleeper), Some(2));
    hv.platform.on_cpu(2);
    hv.hold(&sleeper.vcpus[0], PauseFlags::BLOCKED);
    several.do_work();
    hv.set_affinity(&sleeper, &sleeper.vcpus[0], CpuSet::ALL, CpuSet::ALL);
    let pool = several.pool(Policy::Null, &[2]);
    let guest = several.hog(1, 256);
    guest.vcpus[0].time.lock().period_ns = 0;
    several.migrate(&guest, pool);
    assert_eq!(runs_on(&guest), Some(2));
    let kicks = || hv.platform.events.lock().kicks.iter().filter(|cpu| **cpu == several.cpus[2]).count();
    let before = kicks();
    for n in 0..100 {
        hv.platform.on_cpu(0);
        let deadline = hv.platform.now_ns() + (1_000 - n) * MS;
        hv.arm_timer(&sleeper.vcpus[0], TimerKind::FirstWatchdog, Some(deadline));
        several.do_work();
    }
    assert_eq!(kicks(), before);
}

#[test]
fn a_cpu_goes_and_comes_back() {
    let several = Several::new(3);
    let [boot, one, two] = [0, 1, 2].map(|cpu| several.cpus[cpu]);
    let hogs: Vec<_> = [1, 2, 4].map(|n| several.hog(2, 256 * n)).into();
    shares_hold_on(&several, &hogs, 3, 20);
    assert_eq!(several.change(Change::Offline { cpu: boot }), Err(PoolError::Invalid), "the boot CPU stays");
    assert_eq!(several.change(Change::Online { cpu: one }), Err(PoolError::Exists));
    assert_eq!(several.change(Change::Offline { cpu: two }), Ok(()));
    assert_eq!(several.change(Change::Offline { cpu: two }), Err(PoolError::Exists));
    assert_eq!((several.online().bits(), several.world.hv.platform.online().bits() & 4), (0b011, 0));
    shares_hold_on(&several, &hogs, 2, 20);
    assert_eq!(several.change(Change::Offline { cpu: one }), Ok(()));
    shares_hold_on(&several, &hogs, 1, 20);
    for cpu in [two, one] {
        assert_eq!(several.change(Change::Online { cpu }), Ok(()));
    }
    assert_eq!(several.online().bits(), 0b111);
    shares_hold_on(&several, &hogs, 3, 20);
    let late = CpuId::new(5).expect("few CPUs");
    for change in [Change::Offline { cpu: late }, Change::Online { cpu: late }] {
        assert_eq!(several.change(change), Err(PoolError::Invalid), "there is no such CPU");
    }
}

#[test]
fn affinity_without_a_cpu_is_broken_and_comes_back() {
    let several = Several::new(2);
    let one = several.cpus[1];
    let pinned = several.hog(1, 256);
    several.pin(&pinned, CpuSet::only(one), CpuSet::ALL);
    several.turn();
    assert_eq!(runs_on(&pinned), Some(1));
    several.change(Change::Offline { cpu: one }).expect("goes");
    assert_eq!(runs_on(&pinned), Some(0));
    assert_eq!(pinned.vcpus[0].sched.affinity().0, CpuSet::only(one), "what was set is kept");
    several.change(Change::Online { cpu: one }).expect("comes");
    several.run(50 * MS);
    assert_eq!(runs_on(&pinned), Some(1));
    // A sleeper too wakes where it may run.
    several.world.sleep(&pinned);
    several.turn();
    several.change(Change::Offline { cpu: one }).expect("goes");
    several.world.wake(&pinned);
    several.turn();
    assert_eq!(runs_on(&pinned), Some(0));
}

#[test]
fn timers_of_a_cpu_that_goes_fire_elsewhere() {
    let several = Several::new(2);
    let (hv, one) = (&several.world.hv, several.cpus[1]);
    let guest = several.hog(1, 256);
    several.pin(&guest, CpuSet::only(one), CpuSet::ALL);
    several.turn();
    let vcpu = &guest.vcpus[0];
    let deadline = several.now() + 5 * MS;
    hv.arm_timer(vcpu, TimerKind::Poll, Some(deadline));
    hv.hold(vcpu, PauseFlags::BLOCKED | PauseFlags::POLLING);
    several.turn();
    several.change(Change::Offline { cpu: one }).expect("goes");
    assert_eq!(hv.time.deadline(vcpu, TimerKind::Poll), Some(deadline));
    assert!(hv.platform.timers[0].load(Ordering::Relaxed) <= deadline);
    several.world.pass(5 * MS);
    several.world.settle_on(several.cpus[0]);
    assert_eq!(vcpu.pause_flags.load(Ordering::Relaxed), 0, "the timeout came");
    // What is armed for a vCPU whose timers were there when the CPU went does not stay there.
    several.change(Change::Online { cpu: one }).expect("comes");
    several.pin(&guest, CpuSet::only(one), CpuSet::ALL);
    several.turn();
    several.world.sleep(&guest);
    several.turn();
    several.change(Change::Offline { cpu: one }).expect("goes");
    hv.platform.on_cpu(0);
    hv.arm_timer(vcpu, TimerKind::Singleshot, Some(several.now() + MS));
    several.turn();
    assert!(hv.platform.timers[0].load(Ordering::Relaxed) <= several.now() + MS);
}

#[test]
fn a_cpu_goes_only_when_it_keeps_nothing_of_a_vcpu() {
    let several = Several::new(2);
    let (hv, one) = (&several.world.hv, several.cpus[1]);
    let guest = several.hog(1, 256);
    several.pin(&guest, CpuSet::only(one), CpuSet::ALL);
    several.turn();
    several.world.hv.platform.on_cpu(0);
    assert_eq!(hv.change_cpus(Change::Offline { cpu: one }), Err(PoolError::Again), "a vCPU runs there");
    hv.platform.keeps_state.store(2, Ordering::SeqCst);
    several.do_work();
    assert_eq!(runs_on(&guest), Some(0));
    for _ in 0..3 {
        hv.platform.on_cpu(0);
        assert_eq!(hv.change_cpus(Change::Offline { cpu: one }), Err(PoolError::Again), "its state is there");
        assert!(hv.platform.online().contains(one), "so it can be asked to let go");
    }
    hv.platform.keeps_state.store(0, Ordering::SeqCst);
    assert_eq!(several.change(Change::Offline { cpu: one }), Ok(()));
    assert!(!hv.platform.online().contains(one));
}

#[test]
fn a_caller_leaves_the_cpu_that_goes_first() {
    let several = Several::new(2);
    let (hv, one) = (&several.world.hv, several.cpus[1]);
    let guest = several.hog(1, 256);
    several.pin(&guest, CpuSet::only(one), CpuSet::ALL);
    several.turn();
    hv.platform.on_cpu(1);
    assert_eq!(hv.change_cpus(Change::Offline { cpu: one }), Err(PoolError::Again));
    assert_ne!(hv.sched.pending(one).load(Ordering::Relaxed) & SOFTIRQ_SCHEDULE, 0, "it leaves at once");
    several.do_work();
    assert_eq!(runs_on(&guest), Some(0));
    assert_eq!(several.change(Change::Offline { cpu: one }), Ok(()));
}

#[test]
fn pools_are_made_and_end_by_xens_rules() {
    let several = Several::new(3);
    let (hv, [boot, one, two]) = (&several.world.hv, [0, 1, 2].map(|cpu| several.cpus[cpu]));
    let guest = several.hog(1, 256);
    let pool = hv.sched.create_pool(None, Policy::Shares).expect("a pool");
    assert_eq!(pool, 1);
    assert_eq!(hv.sched.create_pool(Some(3), Policy::Null), Ok(3));
    assert_eq!(hv.sched.create_pool(None, Policy::Null), Ok(2), "the least that is free");
    assert_eq!(hv.sched.create_pool(Some(2), Policy::Null), Err(PoolError::Exists));
    assert_eq!(hv.sched.destroy_pool(2), Ok(()));
    assert_eq!(hv.sched.destroy_pool(2), Err(PoolError::NoSuchPool));
    assert_eq!(hv.sched.destroy_pool(0), Err(PoolError::Busy));
    assert_eq!(hv.move_to_pool(&guest, pool), Err(PoolError::NoSuchPool), "a pool without a CPU");
    assert_eq!(several.change(Change::Add { pool, cpu: one }), Err(PoolError::NotFree));
    assert_eq!(several.change(Change::Remove { pool, cpu: one }), Err(PoolError::NotInPool));
    assert_eq!(several.change(Change::Remove { pool: 0, cpu: one }), Ok(()));
    assert_eq!(hv.sched.free_cpus(), CpuSet::only(one));
    assert_eq!(several.change(Change::Add { pool: 9, cpu: one }), Err(PoolError::NoSuchPool));
    assert_eq!(several.change(Change::Add { pool, cpu: one }), Ok(()));
    several.migrate(&guest, pool);
    assert_eq!(runs_on(&guest), Some(1));
    assert_eq!(several.change(Change::Remove { pool, cpu: one }), Err(PoolError::Busy), "its domain's last");
    assert_eq!(hv.sched.destroy_pool(pool), Err(PoolError::Busy));
    assert_eq!(several.change(Change::Offline { cpu: one }), Err(PoolError::NotFree), "another pool's");
    assert_eq!(several.change(Change::Remove { pool: 0, cpu: boot }), Ok(()), "two is left");
    assert_eq!(several.change(Change::Remove { pool: 0, cpu: two }), Err(PoolError::Busy));
    assert_eq!(several.change(Change::Offline { cpu: two }), Err(PoolError::Busy));
    let made = hv.sched.pool_from(pool).expect("there").domains;
    several.kill(&guest);
    assert_eq!(hv.sched.pool_from(pool).expect("there").domains, made - 1, "a dying domain is in no pool");
    assert_eq!(several.change(Change::Remove { pool, cpu: one }), Ok(()));
    assert_eq!(hv.sched.destroy_pool(pool), Ok(()));
    for id in 0..64 {
        let made = hv.sched.create_pool(None, Policy::Shares);
        assert_eq!(made.is_ok(), id < 62, "{made:?}");
    }
}

#[test]
fn pools_keep_to_themselves() {
    let several = Several::new(4);
    let pool = several.pool(Policy::Shares, &[2, 3]);
    let inside: Vec<_> = [1, 2, 3].map(|n| several.hog(1, 256 * n)).into();
    let outside: Vec<_> = [1, 2].map(|n| several.hog(2, 256 * n)).into();
    inside.iter().zip(1..).for_each(|(domain, n)| {
        several.migrate(domain, pool);
        domain.vcpus[0].sched.weight.store(256 * n, Ordering::Relaxed);
    });
    shares_hold_on(&several, &inside, 2, 20);
    shares_hold_on(&several, &outside, 2, 20);
    // With one CPU more in one pool than in the other, shares hold in each.
    several.change(Change::Remove { pool, cpu: several.cpus[3] }).expect("taken out");
    several.change(Change::Add { pool: 0, cpu: several.cpus[3] }).expect("added");
    shares_hold_on(&several, &inside, 1, 20);
    shares_hold_on(&several, &outside, 3, 20);
}

#[test]
fn a_dedicated_cpu_has_no_timer_and_no_softirq_but_its_guests_own() {
    let several = Several::new(3);
    let pool = several.pool(Policy::Null, &[2]);
    let (hv, two) = (&several.world.hv, several.cpus[2]);
    let guest = several.hog(1, 256);
    guest.vcpus[0].time.lock().period_ns = 0; // the guest stops its tick
    several.migrate(&guest, pool);
    assert_eq!(runs_on(&guest), Some(2));
    // Until then an interrupt may be set for what was there before.
    several.run(20 * MS);
    let hogs: Vec<_> = (0..4).map(|_| several.hog(2, 256)).collect();
    let (rounds, kicks) = (several.rounds[2].get(), hv.platform.events.lock().kicks.len());
    for n in 0..100 {
        several.run(10 * MS);
        several.world.sleep(&hogs[n % 4]);
        several.run(MS);
        several.world.wake(&hogs[n % 4]);
        hv.platform.on_cpu(two.index());
        hv.yield_now(&guest.vcpus[0]);
        assert_eq!(hv.sched.pending(two).load(Ordering::Relaxed), 0);
        assert_eq!(hv.sched.slice_end(two), None);
        assert_eq!(hv.platform.timers[2].load(Ordering::Relaxed), u64::MAX, "no timer is armed");
    }
    assert_eq!(several.rounds[2].get(), rounds, "the CPU was never disturbed");
    assert!(!hv.platform.events.lock().kicks[kicks..].contains(&two));
    let ran = several.ran(core::slice::from_ref(&guest))[0];
    several.run(100 * MS);
    assert_eq!(
        several.ran(core::slice::from_ref(&guest))[0] - ran,
        100 * MS,
        "all of the CPU is the guest's"
    );
}

#[test]
fn a_vcpu_of_the_null_policy_keeps_its_cpu_and_others_wait_for_it() {
    let several = Several::new(3);
    let pool = several.pool(Policy::Null, &[1, 2]);
    let hv = &several.world.hv;
    let guests: Vec<_> = (0..4).map(|_| several.hog(1, 256)).collect();
    for guest in &guests {
        several.migrate(guest, pool);
        several.run(MS);
    }
    let places = || guests.iter().map(|guest| runs_on(guest)).collect::<Vec<_>>();
    let first = places();
    assert!(first[0].is_some() && first[1].is_some() && first[0] != first[1]);
    assert_eq!(first[2..], [None, None], "no CPU is left");
    // The CPU stays the sleeper's.
    several.world.sleep(&guests[0]);
    several.run(50 * MS);
    assert_eq!(places()[2..], [None, None]);
    several.world.wake(&guests[0]);
    several.turn();
    assert_eq!(places(), first);
    // A vCPU that goes down leaves it to the one that has waited longest.
    hv.vcpu_down(&guests[0], &guests[0].vcpus[0]);
    several.turn();
    assert_eq!(places(), [None, first[1], first[0], None]);
    // A domain that ends, too.
    several.kill(&guests[1]);
    assert_eq!(places(), [None, None, first[0], first[1]]);
    // A CPU that comes is given to who waits, and a domain that leaves gives up its own.
    let late = several.hog(1, 256);
    several.migrate(&late, pool);
    assert_eq!(runs_on(&late), None);
    several.migrate(&guests[2], 0);
    assert_eq!((runs_on(&guests[2]), runs_on(&late)), (Some(0), first[0]));
}

#[test]
fn a_vcpu_that_waits_in_one_null_pool_finds_the_free_cpu_of_another() {
    let several = Several::new(3);
    let pools = [1, 2].map(|cpu| several.pool(Policy::Null, &[cpu]));
    let guests = [(); 2].map(|()| several.hog(1, 256));
    for guest in &guests {
        several.migrate(guest, pools[0]);
    }
    assert_eq!([0, 1].map(|n| runs_on(&guests[n])), [Some(1), None]);
    several.migrate(&guests[1], pools[1]);
    assert_eq!([0, 1].map(|n| runs_on(&guests[n])), [Some(1), Some(2)]);
}

#[test]
fn a_change_waits_until_the_one_before_is_complete() {
    let several = Several::new(3);
    let (hv, [one, two]) = (&several.world.hv, [1, 2].map(|cpu| several.cpus[cpu]));
    let guest = several.hog(1, 256);
    several.pin(&guest, CpuSet::only(one), CpuSet::ALL);
    several.turn();
    hv.platform.on_cpu(0);
    let first = Change::Offline { cpu: one };
    assert_eq!(hv.change_cpus(first), Err(PoolError::Again), "a vCPU runs there");
    let others = [
        Change::Offline { cpu: two },
        Change::Online { cpu: one },
        Change::Remove { pool: 0, cpu: two },
        Change::Add { pool: 0, cpu: two },
    ];
    for other in others {
        assert_eq!(hv.change_cpus(other), Err(PoolError::Again), "{other:?}");
    }
    assert_eq!(
        (several.online().bits(), hv.platform.online().bits()),
        (0b101, 0b111),
        "nothing but the first"
    );
    assert_eq!(several.change(first), Ok(()));
    assert_eq!((several.online().bits(), hv.platform.online().bits()), (0b101, 0b101));
    assert_eq!(several.change(first), Err(PoolError::Exists), "it is complete");
    assert_eq!(several.change(Change::Offline { cpu: two }), Ok(()));
    assert_eq!((several.online().bits(), hv.platform.online().bits()), (0b001, 0b001));
}

#[test]
fn a_vcpu_that_goes_down_asks_the_pools_only_for_a_cpu_of_its_own() {
    let several = Several::new(3);
    let pool = several.pool(Policy::Null, &[2]);
    let guests = [(); 2].map(|()| several.hog(2, 256));
    several.migrate(&guests[1], pool);
    // A mask that the pools would not make.
    let wrong = CpuSet::only(several.cpus[1]);
    let asks = |domain: &Arc<Domain>| {
        let vcpu = &domain.vcpus[1];
        vcpu.sched.set_allowed(wrong);
        several.world.hv.vcpu_down(domain, vcpu);
        vcpu.sched.allowed() != wrong
    };
    assert_eq!([(); 2].map(|()| asks(&guests[0])), [false, false], "no CPU is the vCPU's own");
    assert_eq!([(); 2].map(|()| asks(&guests[1])), [true, false], "the second time it is down already");
}

/// What a random history does.
fn play(several: &Several, domains: &[Arc<Domain>], step: (usize, usize, u8, u8, u64)) {
    let (domain, vcpu, what, mask, ms) = step;
    let (guest, hv) = (&domains[domain], &several.world.hv);
    let cpu = several.cpus[mask as usize % several.cpus.len()];
    let pool = ms as u32 % 4;
    let vcpu = &guest.vcpus[vcpu];
    hv.platform.on_cpu(ms as usize % several.cpus.len());
    match what {
        0 | 1 => hv.hold(vcpu, PauseFlags::BLOCKED),
        2 | 3 => hv.kick_vcpu(guest, vcpu),
        4 => hv.set_affinity(guest, vcpu, CpuSet::from_bits(mask.into()), CpuSet::from_bits(ms)),
        5 if guest.vcpus.iter().filter(|vcpu| vcpu.is_up()).count() > 1 => hv.vcpu_down(guest, vcpu),
        6 => hv.wake(guest, vcpu, PauseFlags::DOWN),
        7 | 8 => drop(hv.move_to_pool(guest, pool)),
        9 => drop(several.change(Change::Offline { cpu })),
        10 => drop(several.change(Change::Online { cpu })),
        11 => drop(several.change(Change::Remove { pool, cpu })),
        _ => drop(several.change(Change::Add { pool, cpu })),
    }
    several.run(ms * MS / 4);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]
    /// Domains move between four pools, two of them of the null policy, while CPUs change pools, go and come: nothing runs on a CPU
    /// of another pool, no vCPU is lost, and no CPU idles while a vCPU waits that may use it ([`Several::check`]).
    #[test]
    fn pools_lose_nothing_and_mix_nothing(
        cpus in 2u32..=5,
        steps in proptest::collection::vec((0usize..5, 0usize..3, 0u8..14, 0u8..32, 0u64..15), 50..150),
    ) {
        let several = Several::new(cpus);
        for policy in [Policy::Null, Policy::Shares, Policy::Null] {
            several.world.hv.sched.create_pool(None, policy).expect("a pool");
        }
        let domains: Vec<_> = (0..5).map(|n| several.hog(3, 128 << (n % 4))).collect();
        for step in steps {
            play(&several, &domains, step);
        }
    }
}
