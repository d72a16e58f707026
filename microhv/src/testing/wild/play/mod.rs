//! Plays the steps of a scenario.

mod domains;
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
use core::sync::atomic::Ordering;
use std::collections::VecDeque;

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::{DOMID_SELF, GuestVa, Mfn};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::step::{Act, Step};
use crate::Hypervisor;
use crate::domain::Current;
use crate::domain::Domain;
use crate::frames::FrameTable;
use crate::frames::info::FrameInfo;
use crate::hypercall::{Args, HypercallError, HypercallResult, Outcome, call};
use crate::platform::*;
use crate::testing::{CPUS, TestMachine};

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

impl Drop for Infos {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::into_raw` in `Wild::new`. This is the last field of `Wild`, so everything that
        // refers to the entries has been dropped.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

struct Mapping {
    dom: usize,
    handle: u32,
    host_addr: u64,
    device: u64,
}

/// A hypervisor with its domains in the midst of a scenario.
pub struct Wild {
    hv: Box<Hypervisor<TestMachine>>,
    /// Frames that were free before there was a domain.
    free: u64,
    cpus: usize,
    doms: [Option<Arc<Domain>>; DOMAINS],
    /// What each CPU has loaded: domain, vCPU.
    loaded: [Option<(usize, u32)>; CPUS],
    /// Interrupted calls that may go on: number, arguments.
    interrupted: [[Option<(u32, Args)>; VCPUS as usize]; DOMAINS],
    recent: VecDeque<u64>,
    mappings: Vec<Mapping>,
    steps: u32,
    /// What the steps themselves found to be wrong.
    wrong: Vec<String>,
    /// The CPU that acts.
    cpu: usize,
    _infos: Infos,
}

impl core::fmt::Debug for Wild {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Wild({} steps)", self.steps)
    }
}

impl Wild {
    /// The start of all scenarios on so many CPUs.
    #[must_use]
    pub fn new(cpus: usize) -> Self {
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
        let mut wild = Self {
            free: hv.frames.free_pages(),
            hv,
            cpus,
            doms: [const { None }; DOMAINS],
            loaded: [None; CPUS],
            interrupted: Default::default(),
            recent: VecDeque::new(),
            mappings: Vec::new(),
            steps: 0,
            wrong: Vec::new(),
            cpu: 0,
            _infos: Infos(infos),
        };
        for dom in 0..DOMAINS {
            wild.create(dom);
        }
        // CPU 0 runs guest 1 first.
        for cpu in 0..cpus {
            wild.cpu = cpu;
            wild.hv.platform.on_cpu(cpu);
            wild.switch((cpu + 1) % DOMAINS, (cpu / DOMAINS) as u32 % VCPUS);
        }
        wild
    }

    /// The acting CPU switches to a vCPU, as the machine's own switch does, and notes in the domains' words which CPUs have
    /// their tables loaded.
    fn switch(&mut self, dom: usize, vcpu: u32) -> Option<()> {
        let busy = (0..CPUS).any(|cpu| cpu != self.cpu && self.loaded[cpu] == Some((dom, vcpu)));
        let domain = self.doms[dom].clone().filter(|domain| !busy && !domain.is_dying())?;
        let base = domain.vcpus[vcpu as usize].cr3_kernel.get()?;
        self.unload(self.cpu);
        self.hv.platform.switch_to(base);
        self.hv.platform.set_window(Some(&domain.vcpus[vcpu as usize].window));
        domain.dirty_cpus.fetch_or(1 << self.cpu, Ordering::Relaxed);
        self.loaded[self.cpu] = Some((dom, vcpu));
        Some(())
    }

    /// A CPU puts its vCPU aside, and has no domain's tables loaded any more.
    fn unload(&mut self, cpu: usize) {
        if let Some((dom, _)) = self.loaded[cpu].take() {
            let domain = self.doms[dom].as_ref().expect("loaded");
            domain.dirty_cpus.fetch_and(!(1 << cpu), Ordering::Relaxed);
            self.hv.platform.on_cpu(cpu);
            self.hv.platform.set_window(None);
            self.hv.platform.identity();
            self.hv.platform.on_cpu(self.cpu);
        }
    }

    fn me(&self) -> Option<(usize, Arc<Domain>)> {
        let (dom, _) = self.loaded[self.cpu]?;
        Some((dom, self.doms[dom].clone()?))
    }

    /// The guest writes an argument.
    fn put<T: IntoBytes + Immutable + ?Sized>(&self, at: u64, value: &T) -> Option<()> {
        self.loaded[self.cpu]?;
        self.hv.platform.copy_to_guest(Settled::new(), GuestVa::new(at), value.as_bytes()).ok()
    }

    fn get<T: FromBytes + IntoBytes>(&self, at: u64) -> Option<T> {
        let mut value = T::new_zeroed();
        self.hv.platform.copy_from_guest(Settled::new(), value.as_mut_bytes(), GuestVa::new(at)).ok()?;
        Some(value)
    }

    fn call(&mut self, number: u32, args: &[u64]) -> Option<HypercallResult> {
        let mut all: Args = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let mut regs = CpuUserRegs::default();
        self.with(&mut regs, |cur| call(cur, number.into(), &all)).inspect(|result| {
            let (dom, vcpu) = self.loaded[self.cpu].expect("it called");
            let slot = &mut self.interrupted[dom][vcpu as usize];
            let domain = self.doms[dom].as_ref().expect("it called");
            *slot = match result {
                Ok(Outcome::Continue) => Some((number, domain.vcpus[vcpu as usize].continuation())),
                Err(HypercallError::Again) => Some((number, all)),
                _ => None,
            };
        })
    }

    fn with<R>(
        &self,
        regs: &mut CpuUserRegs,
        act: impl FnOnce(&mut Current<'_, TestMachine>) -> R,
    ) -> Option<R> {
        let (dom, vcpu) = self.loaded[self.cpu]?;
        let domain = self.doms[dom].as_ref()?;
        let vcpu = domain.vcpu(vcpu)?;
        let result = act(&mut Current { hv: &self.hv, domain, vcpu, regs });
        self.hv.platform.return_to_guest();
        Some(result)
    }

    /// Plays a step.
    pub fn step(&mut self, step: &Step) {
        self.steps += 1;
        self.cpu = usize::from(step.cpu) % self.cpus;
        let platform = &self.hv.platform;
        platform.on_cpu(self.cpu);
        platform.set_adversary(u64::from(self.steps).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let _ = self.act(&step.act);
        self.hv.platform.settle_tlb();
    }

    fn act(&mut self, act: &Act) -> Option<()> {
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
                let (dom, vcpu) = self.loaded[self.cpu]?;
                let (number, args) = self.interrupted[dom][vcpu as usize]?;
                self.call(number, &args).map(|_| ())
            }
        }
    }
}
