//! Plays the steps of a scenario.

mod deeds;
mod domains;
mod duel;
mod fifo;
mod grants;
mod look;
mod pick;
mod tables;
mod wide;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::{DOMID_SELF, GuestVa, Mfn};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub use deeds::{Deed, Family, all as deeds};
pub use duel::{Storm, Way};

use super::step::{Act, Step};
use crate::Hypervisor;
use crate::domain::Current;
use crate::domain::{Domain, Vcpu};
use crate::frames::FrameTable;
use crate::frames::info::FrameInfo;
use crate::hypercall::{Args, HypercallError, HypercallResult, Outcome, call};
use crate::platform::*;
use crate::testing::{CPUS, TestMachine, turns};

/// Frames of the machine.
const FRAMES: usize = 112;
/// Frames that no domain gets.
const RESERVED: u64 = 1;
/// Domains: the control domain and guests.
const DOMAINS: usize = 3;
/// vCPUs of each domain.
const VCPUS: u32 = 2;
/// Pages that a domain may own.
const MAX_PAGES: u64 = 26;
/// Pages that a new domain has besides its tables.
const PAGES: u64 = 7;
/// The page of arguments, and the one behind it, in the first region.
const ARGS_PAGE: u64 = 8;
const ARGS: u64 = ARGS_PAGE << 12;
/// What a scenario found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The number of the step after which something was wrong.
    pub step: usize,
    /// What is wrong.
    pub wrong: Vec<String>,
}

/// Entries of the frame table, given back at the end.
struct Infos(*mut [FrameInfo]);

// SAFETY: the pointer is used in `drop` alone.
unsafe impl Sync for Infos {}

impl Drop for Infos {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::into_raw` in `Wild::new`. This is the last field of `Wild`, so everything that
        // refers to the entries has been dropped.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

#[derive(Clone, Copy)]
struct Mapping {
    dom: usize,
    handle: u32,
    host_addr: u64,
    device: u64,
}

/// What is known beside what the hypervisor knows.
#[derive(Default)]
struct State {
    doms: [Option<Arc<Domain>>; DOMAINS],
    /// Domains whose end the control domain has asked for: their vCPUs are not loaded any more.
    ending: [bool; DOMAINS],
    /// What each CPU has loaded: domain, vCPU.
    loaded: [Option<(usize, u32)>; CPUS],
    /// CPUs that are amid a step.
    busy: [bool; CPUS],
    /// Interrupted calls that may go on: number, arguments.
    interrupted: [[Option<(u32, Args)>; VCPUS as usize]; DOMAINS],
    recent: VecDeque<u64>,
    mappings: Vec<Mapping>,
    /// The port of each domain that a deed is about.
    ports: [u32; DOMAINS],
    steps: u32,
    /// What the steps themselves found to be wrong.
    wrong: Vec<String>,
}

/// A hypervisor with its domains in the midst of a scenario.
pub struct Wild {
    hv: Box<Hypervisor<TestMachine>>,
    /// Frames that were free before there was a domain.
    free: u64,
    cpus: usize,
    /// vCPUs of each domain that no CPU runs.
    spare: u32,
    /// One step is played at a time, so that a step may say what must have come of it.
    is_alone: bool,
    /// CPUs say which vCPUs they run and hold. CPUs that act at the same time do not: a CPU that pauses a vCPU would wait for the vCPU's.
    are_told: AtomicBool,
    /// Held for a look, and never during a call.
    state: Mutex<State>,
    _infos: Infos,
}

impl core::fmt::Debug for Wild {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Wild({} steps)", self.state().steps)
    }
}

impl Wild {
    /// The start of all scenarios on so many CPUs.
    #[must_use]
    pub fn new(cpus: usize) -> Self {
        Self::with_spare(cpus, 0)
    }

    /// CPUs run guests on copies of level 4 tables from now on.
    pub(super) fn run_on_copies(&self) {
        self.hv.platform.run_on_copies();
    }

    /// The same, with so many vCPUs more in each domain that no CPU runs.
    fn with_spare(cpus: usize, spare: u32) -> Self {
        assert!((1..=CPUS).contains(&cpus));
        let infos: Box<[FrameInfo]> = (0..FRAMES).map(|_| FrameInfo::default()).collect();
        let infos = Box::into_raw(infos);
        // SAFETY: the entries live until `Infos` is dropped, after everything that refers to them.
        let entries: &'static [FrameInfo] = unsafe { &*infos };
        let end = Mfn::new(FRAMES as u64);
        let frames = FrameTable::over(entries, &[(Mfn::new(0), end)]);
        frames.add_free(Mfn::new(RESERVED), end);
        let hv = Box::new(Hypervisor::new(TestMachine::new(FRAMES), frames));
        hv.platform.watch(&hv.frames);
        hv.platform.collect_violations();
        let wild = Self {
            free: hv.frames.free_pages(),
            hv,
            cpus,
            spare,
            is_alone: true,
            are_told: AtomicBool::new(true),
            state: Mutex::default(),
            _infos: Infos(infos),
        };
        for dom in 0..DOMAINS {
            wild.create(dom);
        }
        // CPU 0 runs guest 1 first.
        for cpu in 0..cpus {
            wild.hv.platform.on_cpu(cpu);
            wild.switch((cpu + 1) % DOMAINS, (cpu / DOMAINS) as u32 % VCPUS);
        }
        wild
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The CPU that acts.
    fn cpu(&self) -> usize {
        self.hv.platform.me()
    }

    /// The domain and the vCPU that the acting CPU has loaded.
    fn loaded(&self) -> Option<(usize, u32)> {
        self.state().loaded[self.cpu()]
    }

    fn domain(&self, dom: usize) -> Option<Arc<Domain>> {
        self.state().doms.get(dom)?.clone()
    }

    /// Tells of something that is wrong.
    fn tell(&self, wrong: String) {
        self.state().wrong.push(wrong);
    }

    /// The acting CPU switches to a vCPU, as the machine's own switch does, and notes in the domains' words which CPUs have
    /// their tables loaded.
    fn switch(&self, dom: usize, vcpu: u32) -> Option<()> {
        self.unload(self.cpu());
        let cpu = self.cpu();
        let (domain, base) = {
            let mut state = self.state();
            let is_taken = state.ending[dom] || state.loaded.contains(&Some((dom, vcpu)));
            let domain = state.doms[dom].clone().filter(|domain| !is_taken && !domain.is_dying())?;
            let base = domain.vcpus[vcpu as usize].cr3_kernel.get()?;
            state.loaded[cpu] = Some((dom, vcpu));
            (domain, base)
        };
        let vcpu = &domain.vcpus[vcpu as usize];
        self.tell_of(vcpu, Some(true));
        domain.dirty_cpus.fetch_or(1 << cpu, Ordering::SeqCst);
        self.hv.platform.switch_to(base);
        self.hv.platform.set_window(Some(&vcpu.window));
        Some(())
    }

    /// A CPU puts its vCPU aside, and has no domain's tables loaded any more.
    fn unload(&self, cpu: usize) {
        let loaded = self.state().loaded[cpu].take();
        self.put_aside(cpu, loaded);
    }

    /// Ends what [`Wild::unload`] begins: the CPU counts as without a vCPU, and has the tables of `loaded` still.
    fn put_aside(&self, cpu: usize, loaded: Option<(usize, u32)>) {
        let me = self.cpu();
        let Some((dom, vcpu)) = loaded else { return };
        if let Some(domain) = self.domain(dom) {
            self.hv.platform.on_cpu(cpu);
            self.hv.platform.set_window(None);
            self.hv.platform.identity();
            domain.dirty_cpus.fetch_and(!(1 << cpu), Ordering::SeqCst);
            self.tell_of(&domain.vcpus[vcpu as usize], None);
            self.hv.platform.on_cpu(me);
        }
    }

    /// The acting CPU says that it runs a vCPU, is idle and keeps the vCPU's state, or has nothing of the vCPU.
    fn tell_of(&self, vcpu: &Vcpu, runs: Option<bool>) {
        let cpu = Some(self.hv.platform.cpu()).filter(|_| self.are_told.load(Ordering::Relaxed));
        vcpu.set_running_on(cpu.filter(|_| runs == Some(true)));
        vcpu.set_holder(cpu.filter(|_| runs.is_some()));
    }

    /// The acting CPU runs the vCPU that it has loaded, or is idle.
    fn run(&self, runs: bool) {
        let loaded = self.loaded().and_then(|(dom, vcpu)| Some((self.domain(dom)?, vcpu)));
        if let Some((domain, vcpu)) = loaded {
            self.tell_of(&domain.vcpus[vcpu as usize], Some(runs));
        }
    }

    fn me(&self) -> Option<(usize, Arc<Domain>)> {
        let (dom, _) = self.loaded()?;
        Some((dom, self.domain(dom)?))
    }

    /// The guest writes an argument.
    fn put<T: IntoBytes + Immutable + ?Sized>(&self, at: u64, value: &T) -> Option<()> {
        self.loaded()?;
        self.hv.platform.copy_to_guest(Settled::new(), GuestVa::new(at), value.as_bytes()).ok()
    }

    fn get<T: FromBytes + IntoBytes>(&self, at: u64) -> Option<T> {
        let mut value = T::new_zeroed();
        self.hv.platform.copy_from_guest(Settled::new(), value.as_mut_bytes(), GuestVa::new(at)).ok()?;
        Some(value)
    }

    fn call(&self, number: u32, args: &[u64]) -> Option<HypercallResult> {
        let mut all: Args = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let mut regs = CpuUserRegs::default();
        let (dom, vcpu) = self.loaded()?;
        self.with(&mut regs, |cur| {
            let result = call(cur, number.into(), &all);
            let again = match result {
                Ok(Outcome::Continue) => Some((number, cur.vcpu.continuation())),
                Err(HypercallError::Again) => Some((number, all)),
                _ => None,
            };
            self.state().interrupted[dom][vcpu as usize] = again;
            result
        })
    }

    fn with<R>(
        &self,
        regs: &mut CpuUserRegs,
        act: impl FnOnce(&mut Current<'_, TestMachine>) -> R,
    ) -> Option<R> {
        let (dom, vcpu) = self.loaded().filter(|(dom, _)| !self.state().ending[*dom])?;
        let domain = self.domain(dom)?;
        self.hv.platform.enter(true);
        let result = act(&mut Current { hv: &self.hv, domain: &domain, vcpu: domain.vcpu(vcpu)?, regs });
        self.hv.platform.return_to_guest();
        self.hv.platform.enter(false);
        Some(result)
    }

    /// Plays a step.
    pub fn step(&self, step: &Step) {
        self.on(usize::from(step.cpu) % self.cpus, || {
            let _ = self.act(&step.act);
        });
    }

    /// The CPU does what `act` does.
    fn on(&self, cpu: usize, act: impl FnOnce()) {
        let steps = {
            let mut state = self.state();
            state.steps += 1;
            state.busy[cpu] = true;
            state.steps
        };
        let platform = &self.hv.platform;
        platform.on_cpu(cpu);
        platform.set_adversary(u64::from(steps).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // A CPU that pauses a vCPU of another CPU's gives up at once, and is to call again.
        self.hv.raise_softirq(platform.cpu(), SOFTIRQ_SCHEDULE);
        self.run(true);
        act();
        self.run(!steps.is_multiple_of(3));
        platform.settle_tlb();
        self.state().busy[cpu] = false;
    }

    /// The first CPU acts from now on.
    pub fn on_first(&self) {
        self.hv.platform.on_cpu(0);
    }

    /// Two CPUs run one guest, the next another, and the next the control domain.
    pub fn begin_at_once(&self) {
        self.are_told.store(false, Ordering::Relaxed);
        for (cpu, (dom, vcpu)) in (0..self.cpus).zip([(1, 0), (1, 1), (2, 0), (0, 0)]) {
            (0..self.cpus).skip(cpu).for_each(|cpu| self.unload(cpu));
            self.hv.platform.on_cpu(cpu);
            self.switch(dom, vcpu);
        }
    }

    /// Plays a step on each of the CPUs at the same time. `seed` says which of them goes on when.
    pub fn steps_at_once(&mut self, steps: &[Step], seed: u64) {
        self.is_alone = false;
        let on = |(cpu, step): (usize, &Step)| Step { cpu: cpu as u8, act: step.act };
        let steps = steps.iter().take(self.cpus).enumerate().map(on);
        let wild = &*self;
        turns::play(seed, steps.map(|step| move || wild.step(&step)).collect());
        self.is_alone = true;
    }

    fn act(&self, act: &Act) -> Option<()> {
        match *act {
            Act::Switch { dom, vcpu } => self.switch(usize::from(dom) % DOMAINS, u32::from(vcpu) % VCPUS),
            Act::Touch { page, slot, entry } => self.touch(page, slot, entry),
            Act::Batch { requests, whose, split } => self.batch(&requests, whose, split),
            Act::Map { page, entry, flush } => self.map(page, entry, flush, None),
            Act::MapOther { page, entry, flush, dom } => self.map(page, entry, flush, Some(dom)),
            Act::Ext { ops, whose } => self.ext(&ops, whose),
            Act::Memory { op, frames, count, whose } => self.memory(op, frames, count, whose),
            Act::Exchange { frames, pair } => self.exchange(frames, pair),
            Act::Grant { gref, frame, to, flags } => self.grant(gref, frame, to, flags),
            Act::MapGrant { granter, gref, page, flags } => self.map_grant(granter, gref, page, flags),
            Act::Unmap { which, count, replace, page } => self.unmap(which, count, replace, page),
            Act::Copy { granter, gref, frame, back } => self.copy(granter, gref, frame, back),
            Act::Swap { a, b } => self.swap(a, b),
            Act::Gdt { frames, count } => self.gdt(frames, count),
            Act::Ldt { page, entries, fault } => self.ldt(page, entries, fault),
            Act::Descriptor { frame, slot, value } => self.descriptor(frame, slot, value),
            Act::Area { what, frame, page, vcpu } => self.area(what, frame, page, vcpu),
            Act::Emulate { table, slot, entry, how } => self.emulate(table, slot, entry, how),
            Act::Multi { maps } => self.multi(maps),
            Act::Event { what, port } => self.event(what, port),
            Act::Fifo { what, frame, port, value } => self.fifo(what, frame, port, value),
            Act::Wide { what, granter, gref, frame, at, len } => {
                self.wide(what, (granter, gref), frame, at, len)
            }
            Act::Control { what, dom, frame } => self.control(what, dom, frame),
            Act::Destroy { dom } => self.destroy(usize::from(dom) % DOMAINS),
            Act::Create { dom } => self.create(usize::from(dom) % DOMAINS),
            Act::Interrupt { after } => {
                self.hv.platform.interrupt_after(u64::from(after % 24));
                Some(())
            }
            Act::Continue => {
                let (dom, vcpu) = self.loaded()?;
                let (number, args) = self.state().interrupted[dom][vcpu as usize]?;
                self.call(number, &args).map(|_| ())
            }
        }
    }
}
