//! CPUs that act at the same time, at random, in turns that a seed chooses: between any two words of the scheduler another CPU may go
//! on. Afterwards all is as it should be ([`Several::turn`] looks), and each vCPU runs that may.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::several::Several;
use super::*;
use crate::domain::PauseFlags;
use crate::lifecycle::LifecycleError;
use crate::sched::pools::{Change, Policy, PoolError};
use crate::sync::wait_a_turn;
use crate::testing::turns::play_finely;
use crate::time::state::TimerKind;

/// Games. From the 101st on some had an idle CPU beside one of the domain whose vCPU waited for a CPU that shares no core.
const GAMES: u64 = 200;
/// What each CPU does in a game.
const STEPS: u32 = 40;

/// A seed's numbers.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// Names the game when its test fails.
struct Game(u64);

impl Drop for Game {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::eprintln!("game {}", self.0);
        }
    }
}

/// A CPU of a game.
struct Player<'a> {
    world: &'a World,
    cpus: &'a [CpuId],
    domains: &'a [Arc<Domain>],
    /// How often the toolstack has paused each domain.
    pauses: &'a [AtomicU32],
    me: CpuId,
    random: Random,
    /// What the toolstack on this CPU is about to change: it asks again.
    change: Option<Change>,
    was_away: bool,
}

impl Player<'_> {
    /// All steps, and then what waits here until the others are done, who may wait for this CPU.
    fn play(&mut self, done: &AtomicUsize) {
        (0..STEPS).for_each(|_| self.step());
        done.fetch_add(1, Ordering::SeqCst);
        while done.load(Ordering::SeqCst) < self.cpus.len() {
            self.world.hv.platform.on_cpu(self.me.index());
            self.world.settle_on(self.me);
            wait_a_turn();
        }
    }

    /// One step, as the idle loop or the way out has it: a CPU stops between two steps alone, and only if nothing waits.
    fn step(&mut self) {
        let (hv, bit) = (&self.world.hv, CpuSet::only(self.me).bits());
        hv.platform.on_cpu(self.me.index());
        hv.platform.keeps_state.fetch_or(bit, Ordering::SeqCst);
        if hv.platform.online().contains(self.me) {
            if core::mem::take(&mut self.was_away) {
                hv.raise_softirq(self.me, SOFTIRQ_SCHEDULE | SOFTIRQ_TIMER);
            }
            if let Some(vcpu) = self.world.settle_on(self.me) {
                self.act(vcpu.domain(), vcpu.vcpu());
            }
            if self.random.below(2) == 0 {
                self.administer();
            }
        } else {
            self.was_away = true;
        }
        if hv.sched.running(self.me).is_none() && hv.sched.pending(self.me).load(Ordering::Relaxed) == 0 {
            hv.platform.keeps_state.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// What the guest does whose vCPU runs here.
    fn act(&mut self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        let hv = &self.world.hv;
        let other = self.random.of(&domain.vcpus);
        let soon = hv.platform.now_ns() + self.random.below(3 * MS);
        match self.random.below(12) {
            0 | 1 => hv.hold(vcpu, PauseFlags::BLOCKED),
            2 => hv.yield_now(vcpu),
            3 => hv.vcpu_down(domain, vcpu),
            4 => hv.vcpu_down(domain, other),
            5 | 6 => hv.wake(domain, other, PauseFlags::DOWN),
            7 => hv.kick_vcpu(domain, other),
            8 => {
                hv.begin_poll(domain, vcpu, None);
                hv.end_poll_at(vcpu, soon);
            }
            9 => hv.set_period(other, self.random.below(2) * MS),
            10 => hv.arm_own_timer(vcpu, TimerKind::Singleshot, Some(soon)),
            _ => {}
        }
    }

    /// What a toolstack does, or time.
    fn administer(&mut self) {
        let hv = &self.world.hv;
        let n = self.random.below(self.domains.len() as u64) as usize;
        let domain = &self.domains[n];
        let is_own = hv.sched.running(self.me).is_some_and(|vcpu| Arc::ptr_eq(vcpu.domain(), domain));
        if self.random.below(100) == 0 && !is_own {
            let _ = hv.kill_domain(domain);
            return;
        }
        let (vcpu, pauses) = (self.random.of(&domain.vcpus), &self.pauses[n]);
        let [hard, soft] = [(); 2].map(|()| CpuSet::from_bits(self.random.below(1 << self.cpus.len())));
        match self.random.below(4) {
            0 => self.world.pass(self.random.below(12 * MS)),
            1 => hv.kick_vcpu(domain, vcpu),
            _ => match self.random.below(8) {
                0 => hv.set_affinity(domain, vcpu, hard, soft),
                1 | 2 => drop(hv.move_to_pool(domain, self.random.below(4) as u32)),
                3 => hv.set_cap(domain, self.random.below(3) * 20),
                4 => {
                    pauses.fetch_add(1, Ordering::SeqCst);
                    hv.hold_domain(domain);
                }
                5 => {
                    let paused = |count: u32| count.checked_sub(1);
                    if pauses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, paused).is_ok() {
                        hv.unpause_domain(domain);
                    }
                }
                _ => self.change_cpus(),
            },
        }
    }

    fn change_cpus(&mut self) {
        let cpu = *self.random.of(self.cpus);
        let pool = self.random.below(4) as u32;
        let change = self.change.take().unwrap_or_else(|| match self.random.below(5) {
            0 => Change::Offline { cpu },
            1 => Change::Online { cpu },
            2 => Change::Remove { pool, cpu },
            _ => Change::Add { pool, cpu },
        });
        if self.world.hv.change_cpus(change) == Err(PoolError::Again) {
            self.change = Some(change);
        }
    }
}

/// Ends what the toolstacks have begun, lets all go on, and looks whether each vCPU runs.
fn let_all_run(several: &Several, domains: &[Arc<Domain>], pauses: &[AtomicU32]) {
    let hv = &several.world.hv;
    for domain in domains.iter().filter(|domain| domain.is_dying()) {
        while hv.kill_domain(domain) == Err(LifecycleError::Again) {}
    }
    for cpu in &several.cpus {
        let _ = several.change(Change::Online { cpu: *cpu });
    }
    let live: Vec<_> = domains.iter().filter(|domain| !domain.is_dying()).cloned().collect();
    let in_pools: u32 = (0..4).filter_map(|id| hv.sched.pool_from(id)).map(|pool| pool.domains).sum();
    assert_eq!(in_pools as usize, live.len() + 1, "each domain is in one pool, dom0 too");
    for (domain, pauses) in domains.iter().zip(pauses).filter(|(domain, _)| !domain.is_dying()) {
        hv.platform.on_cpu(0);
        hv.resume_domain(domain);
        (0..pauses.load(Ordering::Relaxed)).for_each(|_| hv.unpause_domain(domain));
        hv.move_to_pool(domain, 0).expect("pool 0 keeps a CPU");
        hv.set_cap(domain, 0);
        several.pin(domain, CpuSet::ALL, CpuSet::ALL);
        domain.vcpus.iter().for_each(|vcpu| hv.wake(domain, vcpu, PauseFlags::DOWN | PauseFlags::WAITING));
    }
    several.turn();
    let before = several.ran(&live);
    several.run(1_000 * MS);
    let ran: Vec<_> = several.ran(&live).iter().zip(&before).map(|(after, before)| after - before).collect();
    assert!(ran.iter().all(|ns| *ns >= 10 * MS), "each vCPU wants to run: {ran:?}");
}

fn game(seed: u64) {
    let _game = Game(seed);
    let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let several = Several::new(2 + random.below(3) as u32);
    if random.below(3) == 0 {
        let core = |cpu: CpuId| CpuSet::from_bits(0b11 << (cpu.raw() & !1));
        several.world.hv.sched.set_cores(core, true);
    }
    for policy in [Policy::Null, Policy::Shares, Policy::Null] {
        several.world.hv.sched.create_pool(None, policy).expect("a pool");
    }
    let domains: Vec<_> = (0..4).map(|n| several.hog(1 + n % 3, 128 << n)).collect();
    let pauses: Vec<_> = domains.iter().map(|_| AtomicU32::new(0)).collect();
    several.turn();
    let changes: [std::sync::Mutex<Option<Change>>; 8] = Default::default();
    let done = &AtomicUsize::new(0);
    let player = |me: &CpuId| {
        let random = Random(random.below(u64::MAX) | 1);
        let (world, cpus, me) = (&several.world, &several.cpus[..], *me);
        let mut player = Player {
            world,
            cpus,
            domains: &domains,
            pauses: &pauses,
            me,
            random,
            change: None,
            was_away: false,
        };
        let left = &changes[me.index()];
        Box::new(move || {
            player.play(done);
            *left.lock().expect("one game") = player.change;
        })
    };
    let players: Vec<_> = several.cpus.iter().map(player).collect();
    play_finely(seed, 2 + seed % 8, players);
    several.world.hv.platform.on_cpu(0);
    several.world.hv.platform.keeps_state.store(0, Ordering::SeqCst);
    let mut left: Vec<_> = changes.iter().filter_map(|change| *change.lock().expect("one game")).collect();
    for turn in 0.. {
        left.retain(|change| several.world.hv.change_cpus(*change) == Err(PoolError::Again));
        if left.is_empty() {
            break;
        }
        assert!(turn < 100, "{left:?} do not end");
        several.do_work();
        several.world.hv.platform.on_cpu(0);
    }
    several.turn();
    several.world.hv.time.check();
    let_all_run(&several, &domains, &pauses);
}

#[test]
fn cpus_that_act_at_once_lose_nothing() {
    (0..GAMES).for_each(game);
}
