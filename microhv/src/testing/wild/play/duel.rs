//! Duels: two deeds at the same time, on two CPUs, while others run the same domains. Afterwards all that the deeds are about is
//! as before, as far as that is possible, and the next two come.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use ring_abi::mmu::*;

use super::deeds::{By, Deed, Stake, all, named};
use super::*;
use crate::frames::PageType;
use crate::frames::info::TypeWord;
use crate::frames::pte::{P, RW, US};

/// CPUs: two for the guest's vCPUs, one for its peer's, one for the control domain's.
const PLAYERS: [(usize, u32); 4] = [(1, 0), (1, 1), (2, 0), (0, 0)];
/// Duels in one world, before all its domains end and every frame must come back.
const DUELS_OF_A_WORLD: u32 = 60;
/// How often each CPU of a parallel duel does its deed, with what the deed needs: a thread begins late, so that most deeds that
/// meet are later ones.
const PARALLEL_PLAYS: u32 = 6;
/// Of so many pages at most a guest keeps what its deeds took.
const MOST_KEPT: u64 = 22;

/// How the CPUs of a duel go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One at a time: a seed says which, so that the same seed does the same again.
    Turns,
    /// At the same time, as the host's CPUs let them.
    Parallel,
}

/// Duels of all pairs of deeds, and how often each was played.
pub struct Storm {
    way: Way,
    seed: u64,
    world: Option<World>,
    /// Of each pair, the lower number first: how often it was played, and how often both were done.
    played: Vec<[u32; 2]>,
    /// Worlds that ended and gave every frame back.
    ended: u32,
}

impl core::fmt::Debug for Storm {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Storm({:?}, seed {})", self.way, self.seed)
    }
}

/// A machine with its domains, and what their deeds are about.
struct World {
    wild: Wild,
    stake: Stake,
    duels: u32,
}

impl World {
    fn new() -> Self {
        let wild = Wild::with_spare(PLAYERS.len(), 1);
        wild.begin_at_once();
        let mut world = Self { wild, stake: Stake::default(), duels: 0 };
        world.find_stake();
        world
    }

    /// What the guest, as it begins, has for deeds.
    fn find_stake(&mut self) {
        let wild = &self.wild;
        let Some(domain) = wild.domain(1) else { return };
        let base = |slot: &crate::domain::FrameSlot| slot.get().map_or(0, Mfn::raw);
        let bases = [base(&domain.vcpus[0].cr3_kernel), base(&domain.vcpus[0].cr3_user)];
        let l2 = (0..2).try_fold(bases[0], |table, _| wild.named(table, 0)).unwrap_or(0);
        let second = wild.named(l2, 1).unwrap_or(0);
        self.stake = Stake { page: 0, bases, l2, second };
    }

    /// Domains that ended are there anew, each CPU runs its vCPU, and what the deeds are about is as in the beginning. `None`:
    /// something is not, and another world must be made.
    fn tidy(&mut self) -> Option<()> {
        self.wild.on_first();
        self.wild.on(2, || self.wild.tidy_peer());
        for dom in [1, 2] {
            if !self.wild.revive(dom)? {
                continue;
            }
            if dom == 1 {
                self.find_stake();
            }
        }
        for (cpu, player) in PLAYERS.into_iter().enumerate() {
            self.wild.at_place(cpu, player);
        }
        let stake = self.stake;
        self.wild.on(3, || self.wild.tidy_control(&stake));
        for cpu in [1, 0] {
            self.wild.on(cpu, || {
                let _ = self.wild.tidy_vcpu(&stake, cpu == 0);
            });
        }
        let wild = &self.wild;
        wild.hv.platform.on_cpu(0);
        let page = wild.free_page(&stake)?;
        self.stake.page = page;
        let entry = page << 12 | P | RW | US;
        let mut is_mapped = false;
        wild.on(0, || is_mapped = wild.map_at(super::deeds::HOME, entry, 0) == Some(true));
        is_mapped.then_some(())
    }

    fn duel(&mut self, deeds: [&'static Deed; 2], seed: u64, way: Way) -> [bool; 2] {
        let stake = self.stake;
        let mut cpus = deeds.map(|deed| deed.by.cpu());
        for (deed, cpu) in deeds.iter().zip(cpus) {
            for need in deed.needs {
                let need = named(need);
                let cpu = if need.by == deed.by { cpu } else { need.by.cpu() };
                self.wild.on(cpu, || {
                    self.wild.deed(need, &stake);
                });
            }
        }
        if cpus[0] == cpus[1] {
            // Another CPU runs another vCPU of the same domain.
            cpus[1] = 1;
            let (dom, _) = PLAYERS[cpus[0]];
            self.wild.at_place(1, (dom, 1));
        }
        if seed & 7 == 7 {
            self.wild.hv.platform.on_cpu(cpus[0]);
            self.wild.hv.platform.interrupt_after(seed >> 3 & 7);
        }
        self.wild.is_alone = false;
        let done = self.wild.at_once(deeds, cpus, &stake, seed, way);
        self.wild.is_alone = true;
        for cpu in cpus {
            self.wild.hv.platform.on_cpu(cpu);
            self.wild.hv.platform.return_to_guest(); // a CPU whose vCPU was taken away made no call
        }
        self.wild.on_first();
        done
    }
}

impl By {
    fn cpu(self) -> usize {
        match self {
            Self::Own => 0,
            Self::Peer => 2,
            Self::Control => 3,
        }
    }
}

impl Wild {
    /// Does two deeds, each on its CPU. Whether each was done.
    fn at_once(&self, deeds: [&Deed; 2], cpus: [usize; 2], stake: &Stake, seed: u64, way: Way) -> [bool; 2] {
        let done = [const { core::sync::atomic::AtomicBool::new(false) }; 2];
        let (ready, done_of) = (AtomicUsize::new(0), &done);
        let act = |n: usize| {
            let ready = &ready;
            move || {
                let times = if way == Way::Parallel { PARALLEL_PLAYS } else { 1 };
                if way == Way::Parallel {
                    ready.fetch_add(1, Ordering::AcqRel);
                    while ready.load(Ordering::Acquire) < 2 {
                        turns::wait();
                    }
                }
                for time in 0..times {
                    self.on(cpus[n], || {
                        if time > 0 {
                            let needs = deeds[n].needs.iter().map(|need| named(need));
                            needs.filter(|need| need.by == deeds[n].by).for_each(|need| {
                                self.deed(need, stake);
                            });
                        }
                        done_of[n].fetch_or(self.deed(deeds[n], stake), Ordering::AcqRel);
                    });
                }
            }
        };
        match way {
            Way::Turns => {
                let points = [2, 4, 8][seed as usize % 3];
                turns::play_often(seed, ((seed >> 8 & 1) as usize, points), vec![act(0), act(1)]);
            }
            Way::Parallel => thread::scope(|scope| {
                scope.spawn(act(1));
                act(0)();
            }),
        }
        done.map(|done| done.into_inner())
    }

    /// The CPU runs that vCPU.
    fn at_place(&self, cpu: usize, (dom, vcpu): (usize, u32)) {
        if self.state().loaded[cpu] == Some((dom, vcpu)) {
            return;
        }
        let elsewhere = self.state().loaded.iter().position(|loaded| *loaded == Some((dom, vcpu)));
        if let Some(other) = elsewhere {
            self.unload(other);
        }
        self.hv.platform.on_cpu(cpu);
        self.switch(dom, vcpu);
    }

    /// A domain whose end has begun ends, and is there anew. `Some(true)`: so it was; `None`: another has its number still.
    fn revive(&self, dom: usize) -> Option<bool> {
        const MOST_CALLS: u32 = 10_000;
        if self.domain(dom).is_some_and(|domain| !domain.is_dying()) {
            return Some(false);
        }
        if let Some(domain) = self.domain(dom) {
            self.unload_ended();
            (0..MOST_CALLS).find(|_| self.hv.kill_domain(&domain).is_ok())?;
        }
        self.forget_dead();
        self.hv.reap_dead();
        self.hv.platform.on_cpu(3);
        self.create(dom).map(|()| true)
    }

    /// The peer ends the mappings that it made.
    fn tidy_peer(&self) {
        while self.unmap_lent(ARGS, false).is_some() {}
    }

    /// The control domain ends its mapping, and the spare vCPU has no descriptors.
    fn tidy_control(&self, stake: &Stake) {
        self.map_at(super::deeds::AWAY, 0, 0);
        let has_descriptors = |domain: Arc<Domain>| domain.vcpus[2].cpu.lock().gdt_entries > 0;
        if self.domain(1).is_some_and(has_descriptors) {
            self.clean_spare(stake, ARGS);
        }
    }

    /// A vCPU of the guest gives up what deeds gave it; the first, what they gave the guest.
    fn tidy_vcpu(&self, stake: &Stake, is_first: bool) -> Option<()> {
        let (_, domain) = self.me()?;
        let (_, vcpu) = self.loaded()?;
        let at = ARGS + u64::from(vcpu) * 0x1000;
        let (has_gdt, has_ldt) = {
            let cpu = domain.vcpus[vcpu as usize].cpu.lock();
            (cpu.gdt_entries > 0, cpu.ldt_entries > 0)
        };
        if has_gdt {
            self.set_gdt(at, &[]);
        }
        if has_ldt {
            self.set_ldt(at, 0);
        }
        if domain.vcpus[vcpu as usize].cr3_kernel.get().map(Mfn::raw) != Some(stake.bases[0]) {
            self.extended(at, MMUEXT_NEW_BASEPTR, stake.bases[0]);
        }
        if domain.vcpus[vcpu as usize].cr3_user.get().map(Mfn::raw) != Some(stake.bases[1]) {
            self.extended(at, MMUEXT_NEW_USER_BASEPTR, stake.bases[1]);
        }
        if is_first { self.tidy_guest(stake, &domain, at) } else { Some(()) }
    }

    fn tidy_guest(&self, stake: &Stake, domain: &Domain, at: u64) -> Option<()> {
        use super::deeds::{AWAY, AWAY_SLOT, EMPTY, HOME, SECOND};
        let kind = |frame: u64| self.hv.frames.held(Mfn::new(frame)).load_kind();
        self.map_at(HOME, 0, 0);
        if self.named(stake.l2, EMPTY).is_some() {
            self.update(at, &[(stake.l2 << 12 | EMPTY * 8, 0)]);
        }
        if self.named(stake.l2, SECOND).is_none() {
            self.update(at, &[(stake.second << 12 | AWAY_SLOT * 8, 0)]);
            self.update(at, &[(stake.l2 << 12 | SECOND * 8, stake.second << 12 | P | RW | US)]);
        }
        self.map_at(AWAY, 0, 0);
        for table in [stake.page, stake.l2] {
            if table != 0 && kind(table).has(TypeWord::PINNED) {
                self.extended(at, MMUEXT_UNPIN_TABLE, table);
            }
        }
        for gref in 0..3 {
            self.write_entry(domain, gref, 0, 0, 3);
        }
        if domain.events.end() > 4 || !domain.events.fifo_array().is_empty() {
            self.reset_ports(at);
        }
        // What deeds took of memory goes back.
        while domain.mm.tot_pages() > MOST_KEPT {
            let page = self.untyped(stake.page)?;
            self.reserve(at, ring_abi::memory::XENMEM_DECREASE_RESERVATION, page, 0x7ff0)
                .filter(|done| *done)?;
        }
        Some(())
    }

    /// A page of the guest that nothing uses, but not `other`.
    fn untyped(&self, other: u64) -> Option<u64> {
        let is_free = |frame: &u64| {
            let info = self.hv.frames.held(Mfn::new(*frame));
            let kind = info.load_kind();
            let is_own = info.owner() == Some(ring_abi::types::DomId::new(1)) && !info.is_lent();
            is_own
                && kind.count() == 0
                && info.is_stealable(ring_abi::types::DomId::new(1))
                && *frame != other
        };
        (0..FRAMES as u64).find(is_free)
    }

    /// The page for the next deeds: the same as before, if nothing uses that.
    fn free_page(&self, stake: &Stake) -> Option<u64> {
        let info = self.hv.frames.info(Mfn::new(stake.page))?;
        let is_own = info.owner() == Some(ring_abi::types::DomId::new(1)) && !info.is_lent();
        let is_table = info.load_kind().page_type() != PageType::Writable && info.load_kind().count() > 0;
        if stake.page != 0 && is_own && !is_table && info.load_kind().count() == 0 {
            return Some(stake.page);
        }
        self.untyped(0)
    }
}

impl Storm {
    /// No duel yet.
    #[must_use]
    pub fn new(way: Way, seed: u64) -> Self {
        let count = all().count();
        Self { way, seed, world: None, played: alloc::vec![[0; 2]; count * count], ended: 0 }
    }

    /// Plays one duel of two deeds, by their numbers; what is wrong then.
    pub fn play(&mut self, pair: [usize; 2]) -> Vec<String> {
        self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let (seed, way) = (self.seed >> 20, self.way);
        let deeds = pair.map(|n| all().nth(n).expect("a deed's number"));
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut world = self.world.take();
            if world.as_mut().is_some_and(|world| world.duels == DUELS_OF_A_WORLD || world.tidy().is_none()) {
                let wrong = world.take().map_or(Vec::new(), |world| world.wild.end());
                self.ended += 1;
                if !wrong.is_empty() {
                    return Err(wrong);
                }
            }
            let mut world = match world {
                Some(world) => world,
                None => {
                    let mut world = World::new();
                    world.tidy().ok_or_else(|| vec![String::from("a new world is not tidy")])?;
                    world
                }
            };
            world.duels += 1;
            let done = world.duel(deeds, seed, way);
            let wrong = world.wild.wrong(true);
            self.world = Some(world);
            if wrong.is_empty() { Ok(done) } else { Err(wrong) }
        }));
        let result = result.unwrap_or_else(|_| Err(vec![String::from("a panic")]));
        let [a, b] = if pair[0] < pair[1] { pair } else { [pair[1], pair[0]] };
        let counts = &mut self.played[a * all().count() + b];
        counts[0] += if way == Way::Parallel { PARALLEL_PLAYS } else { 1 };
        match result {
            Ok(done) => counts[1] += u32::from(done == [true; 2]),
            Err(wrong) => return wrong,
        }
        Vec::new()
    }

    /// Ends the last world.
    pub fn end(&mut self) -> Vec<String> {
        self.world.take().map_or(Vec::new(), |world| world.wild.end())
    }

    /// How often a pair was played, and how often both its deeds were done.
    #[must_use]
    pub fn counts(&self, a: usize, b: usize) -> [u32; 2] {
        self.played[a.min(b) * all().count() + a.max(b)]
    }
}
