//! Playing steps.

use std::collections::VecDeque;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::evtchn::*;
use ring_abi::grant::*;
use ring_abi::guest_context::CpuUserRegs;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::mmu::*;
use ring_abi::types::{DOMID_SELF, DomId, Maddr, Mfn};
use ring_abi::vcpu::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::step::{Act, Entry, Page, Pick, Step};
use crate::Hypervisor;
use crate::domain::Current;
use crate::domain::{Domain, DomainConfig};
use crate::hypercall::{Args, HypercallResult, Outcome, call};
use crate::mem::check::Extra;
use crate::mem::frame::FrameInfo;
use crate::mem::pte::{A, D, G, NX, P, PSE, RW, US};
use crate::mem::{FrameTable, PageType};
use crate::platform::{GuestMemory, MachineMemory, Settled};
use crate::testing::{CPUS, Remembered, TestMachine};

/// Frames of the machine.
const FRAMES: usize = 112;
/// Frames that no domain gets.
const RESERVED: u64 = 1;
/// Domains: the control domain and guests.
const DOMAINS: usize = 3;
/// vCPUs of each.
const VCPUS: u32 = 2;
/// Pages that a domain may own.
const MAX_PAGES: u64 = 26;
/// Pages of a new domain beside its tables.
const PAGES: u64 = 7;
/// The page of arguments, and the one behind it, in the first region.
const ARGS_PAGE: u64 = 8;
const ARGS: u64 = ARGS_PAGE << 12;
/// In the page of arguments: where an instruction lies.
const CODE: u64 = 0xe00;
/// Steps between two looks at all page tables.
const CHECK_EVERY: u32 = 16;
/// Frames that are preferred.
const RECENT: usize = 5;
/// Calls that the end of a domain takes at most.
const MOST_CALLS: u32 = 100_000;

const FLAGS: [u64; 15] = [
    0,
    0,
    0,
    0,
    P | RW | US,
    P | RW,
    P | RW | US,
    P | US,
    P,
    P | RW | US | A | D,
    P | RW | NX | US,
    0,
    P | RW | US | G,
    P | RW | 0xe00,
    P | PSE | RW | US,
];

/// What a scenario found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The step after which.
    pub step: usize,
    /// What is wrong.
    pub wrong: Vec<String>,
}

/// Entries of the frame table, given back at the end.
struct Infos(*mut [FrameInfo]);

impl Drop for Infos {
    fn drop(&mut self) {
        // SAFETY: it came from `Box::into_raw` in `Wild::new`; it is the last field of `Wild`, so that all that refers to the
        // entries is gone.
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
    /// Calls that are to go on: number, arguments.
    interrupted: [[Option<(u32, Args)>; VCPUS as usize]; DOMAINS],
    recent: VecDeque<u64>,
    mappings: Vec<Mapping>,
    steps: u32,
    /// What steps themselves found.
    wrong: Vec<String>,
    /// Of the CPU that acts.
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
        let infos: Box<[FrameInfo]> = (0..FRAMES).map(|_| FrameInfo::new()).collect();
        let infos = Box::into_raw(infos);
        // SAFETY: the entries live until `Infos` is dropped, which is after all that refers to them.
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
        // Guest 1 first, where there is one CPU.
        for cpu in 0..cpus {
            wild.cpu = cpu;
            wild.hv.platform.on_cpu(cpu);
            wild.switch((cpu + 1) % DOMAINS, (cpu / DOMAINS) as u32 % VCPUS);
        }
        wild
    }

    /// Makes domain `dom`, as the control domain's toolstack does.
    fn create(&mut self, dom: usize) -> Option<()> {
        if self.doms[dom].is_some() {
            return None;
        }
        let hv = &self.hv;
        hv.platform.return_to_guest(); // the toolstack makes many calls for it
        hv.reap_dead();
        let config = DomainConfig { max_vcpus: VCPUS, privileged: dom == 0, ..DomainConfig::default() };
        let id = DomId::new(dom as u16);
        if hv.domains.contains(id) || hv.frames.free_pages() < PAGES + 12 {
            return None; // the former one's pages are still in use
        }
        let domain = hv.create_domain(Some(id), config).ok()?;
        domain.mm.set_max_pages(MAX_PAGES);
        domain.assist.store(1 << 2, Ordering::Relaxed);
        let page = || hv.populate(&domain, 0, 0).expect("enough is free");
        let poke = |table: Mfn, slot: u64, entry: u64| {
            hv.platform.table(table)[slot as usize].store(entry, Ordering::Relaxed);
        };
        // kernel L4, user L4, L3, empty L3, L2, two L1
        let tables: [Mfn; 7] = core::array::from_fn(|_| page());
        let [kernel, user, l3, spare, l2, first, second] = tables;
        let down = |table: Mfn| table.raw() << 12 | P | RW | US;
        for base in [kernel, user] {
            for (slot, table) in [(0, l3), (1, spare), (2, spare)] {
                poke(base, slot, down(table));
            }
        }
        poke(l3, 0, down(l2));
        poke(l2, 0, down(first));
        poke(l2, 1, down(second));
        for (slot, table) in (0u64..).zip(tables) {
            poke(first, slot, table.raw() << 12 | P | US);
        }
        for n in 0..PAGES {
            let flags = if n & 1 == 0 { P | RW | US } else { P | RW };
            poke(first, ARGS_PAGE + n, page().raw() << 12 | flags);
        }
        for vcpu in &domain.vcpus {
            hv.install_bases(&domain, vcpu, kernel, Some(user)).expect("sound tables");
            vcpu.initialised.store(true, Ordering::Release);
        }
        hv.grow_grant_table(&domain, 1).ok()?;
        if dom == 0 {
            domain.permissions.lock().iomem.add(FRAMES as u64, FRAMES as u64 + 16);
        }
        self.interrupted[dom] = Default::default();
        self.doms[dom] = Some(domain);
        Some(())
    }

    /// The acting CPU goes over to a vCPU: what the switch of the machine does, and the word of the domains that says where
    /// they are loaded.
    fn switch(&mut self, dom: usize, vcpu: u32) -> Option<()> {
        let busy = (0..CPUS).any(|cpu| cpu != self.cpu && self.loaded[cpu] == Some((dom, vcpu)));
        let domain = self.doms[dom].clone().filter(|domain| !busy && !domain.is_dying())?;
        let base = domain.vcpus[vcpu as usize].cr3_kernel()?;
        self.unload(self.cpu);
        self.hv.platform.switch_to(base);
        self.hv.platform.set_window(Some(&domain.vcpus[vcpu as usize].window));
        domain.dirty_cpus.fetch_or(1 << self.cpu, Ordering::Relaxed);
        self.loaded[self.cpu] = Some((dom, vcpu));
        Some(())
    }

    /// A CPU has nobody's tables loaded any more.
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

    // --- Meanings. ---

    fn me(&self) -> Option<(usize, Arc<Domain>)> {
        let (dom, _) = self.loaded[self.cpu]?;
        Some((dom, self.doms[dom].clone()?))
    }

    fn note(&mut self, frame: u64) {
        if frame < FRAMES as u64 && self.recent.front() != Some(&frame) {
            self.recent.truncate(RECENT - 1);
            self.recent.push_front(frame);
        }
    }

    fn owned(&self, dom: usize, tables: bool, n: usize) -> Option<u64> {
        let id = DomId::new(dom as u16);
        let infos = (0..FRAMES as u64).filter(|frame| {
            let info = self.hv.frames.held(Mfn::new(*frame));
            let (page_type, count) = info.page_type();
            info.owner() == Some(id) && !info.is_lent() && (!tables || (page_type.level() > 0 && count > 0))
        });
        let count = infos.clone().count();
        infos.clone().nth(n.checked_rem(count)?)
    }

    /// One of those that were just used, the last more often than those before.
    fn latest(&self, n: usize) -> Option<u64> {
        let n = n.checked_rem(self.recent.len())?.min(n / 8 % self.recent.len());
        Some(self.recent[n])
    }

    fn pick(&self, pick: Pick) -> u64 {
        let dom = self.loaded[self.cpu].map_or(0, |(dom, _)| dom);
        let n = usize::from(pick & 63);
        let chosen = match pick >> 6 {
            0 => self.latest(n),
            1 => self.owned(dom, false, n),
            2 => self.owned(dom, true, n),
            _ if pick & 32 == 0 => self.latest(n),
            _ if pick & 16 == 0 => self.owned(n % DOMAINS, false, n / DOMAINS),
            _ => None,
        };
        chosen.unwrap_or((usize::from(pick) * 7 % (FRAMES + 2)) as u64)
    }

    fn entry(&self, (pick, flags): Entry) -> u64 {
        match FLAGS[usize::from(flags) % FLAGS.len()] {
            0 => 0,
            flags => self.pick(pick) << 12 | flags,
        }
    }

    fn va(page: Page) -> u64 {
        let (region, mut n) = (u64::from(page >> 4 & 3), u64::from(page & 15));
        if region == 0 && n == ARGS_PAGE && page >> 6 != 3 {
            n += 1;
        }
        (region << 9 | n) << 12
    }

    /// A slot of a table of that level: the first leads to what all else needs, and is seldom meant.
    fn slot(level: u8, slot: u8) -> u64 {
        match (level, slot) {
            (_, 0xf0..) => [255, 256, 271, 511][usize::from(slot & 3)],
            (1, _) if slot >> 4 != 3 && u64::from(slot & 15) == ARGS_PAGE => ARGS_PAGE + 1,
            (0 | 1, _) => u64::from(slot & 15),
            (_, 0xe0..) => 0,
            _ => u64::from(slot % 3 + 1),
        }
    }

    fn whose(&self, whose: u8) -> u16 {
        // Mostly itself.
        if whose & 3 == 3 { u16::from(whose >> 2) % (DOMAINS as u16 + 1) } else { DOMID_SELF }
    }

    /// Which frame an entry in memory names, if it is present.
    fn named(&self, table: u64, slot: u64) -> Option<u64> {
        let at = Maddr::new((table << 12) + slot * 8);
        let entry = (table < FRAMES as u64).then(|| self.hv.platform.load(at))?;
        (entry & P != 0).then_some((entry & crate::mem::pte::FRAME) >> 12)
    }

    // --- Calls. ---

    /// The guest writes an argument.
    fn put<T: IntoBytes + Immutable + ?Sized>(&self, at: u64, value: &T) -> Option<()> {
        self.loaded[self.cpu]?;
        self.hv.platform.copy_to_guest(Settled::new(), at, value.as_bytes()).ok()
    }

    fn get<T: FromBytes + IntoBytes>(&self, at: u64) -> Option<T> {
        let mut value = T::new_zeroed();
        self.hv.platform.copy_from_guest(Settled::new(), value.as_mut_bytes(), at).ok()?;
        Some(value)
    }

    fn call(&mut self, number: u32, args: &[u64]) -> Option<HypercallResult> {
        let mut all: Args = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let mut regs = CpuUserRegs::default();
        self.with(&mut regs, |cur| call(cur, number.into(), &all)).inspect(|result| {
            let (dom, vcpu) = self.loaded[self.cpu].expect("it called");
            let slot = &mut self.interrupted[dom][vcpu as usize];
            *slot = None;
            if *result == Ok(Outcome::Continue) {
                let domain = self.doms[dom].as_ref().expect("it called");
                *slot = Some((number, domain.vcpus[vcpu as usize].continuation()));
            }
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
            Act::Touch { page, slot, entry } => {
                let at = Self::va(page) + u64::from(slot & 15) * 8;
                self.me()?;
                let value = self.entry(entry);
                self.put(at, &value)
            }
            Act::Batch { requests, whose, split } => self.batch(&requests, whose, split),
            Act::Map { page, entry, flush } => self.map(page, entry, flush, None),
            Act::MapOther { page, entry, flush, dom } => self.map(page, entry, flush, Some(dom)),
            Act::Ext { ops, whose } => self.ext(&ops, whose),
            Act::Memory { op, frames, count, whose } => self.memory(op, frames, count, whose),
            Act::Exchange { frames, pair } => self.exchange(frames, pair),
            Act::Grant { gref, frame, to, flags } => {
                let (_, domain) = self.me()?;
                let table = self.hv.grant_table_frame(&domain, 0).ok()?;
                let frame = self.pick(frame);
                let flags = [1u64, 1, 5, 0][usize::from(flags & 3)];
                let entry = frame << 32 | (u64::from(to) % DOMAINS as u64) << 16 | flags;
                self.hv.platform.store(Maddr::new((table.raw() << 12) + u64::from(gref & 3) * 8), entry);
                self.note(frame);
                Some(())
            }
            Act::MapGrant { granter, gref, page, flags } => self.map_grant(granter, gref, page, flags),
            Act::Unmap { which, count, replace, page } => self.unmap(which, count, replace, page),
            Act::Copy { granter, gref, frame, back } => {
                let granted = GnttabCopyPtr {
                    u: u64::from(gref & 3),
                    domid: u16::from(granter) % DOMAINS as u16,
                    ..GnttabCopyPtr::default()
                };
                let own =
                    GnttabCopyPtr { u: self.pick(frame), domid: DOMID_SELF, ..GnttabCopyPtr::default() };
                let (source, dest) = if back { (own, granted) } else { (granted, own) };
                let flags = if back { GNTCOPY_DEST_GREF } else { GNTCOPY_SOURCE_GREF };
                self.put(ARGS, &GnttabCopy { source, dest, len: 64, flags, ..GnttabCopy::default() })?;
                self.call(__HYPERVISOR_GRANT_TABLE_OP, &[GNTTABOP_COPY.into(), ARGS, 1]).map(|_| ())
            }
            Act::Swap { a, b } => {
                let op = GnttabSwapGrantRef {
                    ref_a: u32::from(a & 3),
                    ref_b: u32::from(b & 3),
                    ..GnttabSwapGrantRef::default()
                };
                self.put(ARGS, &op)?;
                self.call(__HYPERVISOR_GRANT_TABLE_OP, &[GNTTABOP_SWAP_GRANT_REF.into(), ARGS, 1]).map(|_| ())
            }
            Act::Gdt { frames, count } => {
                let frames = frames.map(|frame| self.pick(frame));
                self.put(ARGS, &frames)?;
                frames.into_iter().for_each(|frame| self.note(frame));
                self.call(__HYPERVISOR_SET_GDT, &[ARGS, u64::from(count % 3) * 512]).map(|_| ())
            }
            Act::Ldt { page, entries, fault } => {
                let op = MmuextOp {
                    cmd: MMUEXT_SET_LDT,
                    arg1: Self::va(page),
                    arg2: u64::from(entries),
                    ..MmuextOp::default()
                };
                self.put(ARGS, &op)?;
                self.call(__HYPERVISOR_MMUEXT_OP, &[ARGS, 1, 0, DOMID_SELF.into()])?.ok()?;
                if fault {
                    let hv = &self.hv;
                    self.with(&mut CpuUserRegs::default(), |cur| hv.fault_in_ldt(cur.domain, cur.vcpu, 0))?;
                }
                Some(())
            }
            Act::Descriptor { frame, slot, value } => {
                let at = (self.pick(frame) << 12) + u64::from(slot & 15) * 8;
                let value =
                    [0, 0x00af_9b00_0000_ffff, self.entry((value, 1)), u64::MAX][usize::from(value & 3)];
                self.call(__HYPERVISOR_UPDATE_DESCRIPTOR, &[at, value]).map(|_| ())
            }
            Act::Area { what, frame, page, vcpu } => self.area(what, frame, page, vcpu),
            Act::Emulate { table, slot, entry, how } => self.emulate(table, slot, entry, how),
            Act::Multi { maps } => {
                for (n, (page, entry)) in (0u64..).zip(maps) {
                    let list = MulticallEntry {
                        op: __HYPERVISOR_UPDATE_VA_MAPPING.into(),
                        args: [Self::va(page), self.entry(entry), 0, 0, 0, 0],
                        ..MulticallEntry::default()
                    };
                    self.note_at(Self::va(page));
                    self.put(ARGS + n * size_of::<MulticallEntry>() as u64, &list)?;
                }
                self.call(__HYPERVISOR_MULTICALL, &[ARGS, 2]).map(|_| ())
            }
            Act::Event { what, port } => self.event(what, port),
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

    /// The page at `va` is about to change: its frame is preferred from now on.
    fn note_at(&mut self, va: u64) {
        if let Some(at) = self.hv.platform.translate(va, false) {
            self.note(at.raw() >> 12);
        }
    }

    fn batch(&mut self, requests: &[(Pick, u8, Entry, u8); 3], whose: u8, split: bool) -> Option<()> {
        const BYTES: u64 = size_of::<MmuUpdate>() as u64;
        let at = if split { ARGS + 0x1000 - BYTES } else { ARGS };
        let mut count = 0;
        for &(table, slot, entry, mode) in requests {
            if mode & 0xf0 == 0xf0 {
                continue;
            }
            let table = self.pick(table);
            let level = self.hv.frames.info(Mfn::new(table)).map_or(0, |info| info.page_type().0.level());
            let slot = Self::slot(level, slot);
            let mut val = self.entry(entry);
            if level > 1 && val & P != 0 {
                // A table of the level below, if there is one that serves.
                val = self.below(level, entry).unwrap_or(val);
            }
            let old = self.named(table, slot);
            self.note(table);
            old.into_iter().for_each(|frame| self.note(frame));
            let command = [0, 2, 0, 1][usize::from(mode & 3)];
            let command = if mode & 12 == 0 { command } else { 0 };
            self.put(at + count * BYTES, &MmuUpdate { ptr: (table << 12) + slot * 8 + command, val })?;
            count += 1;
        }
        let whose = self.whose(whose);
        let domains = if whose == DOMID_SELF || whose & 1 == 0 {
            u64::from(whose)
        } else {
            u64::from(DOMID_SELF) | (u64::from(whose) + 1) << 16
        };
        self.call(__HYPERVISOR_MMU_UPDATE, &[at, count, 0, domains]).map(|_| ())
    }

    /// An entry that names a table of the caller's of the level below.
    fn below(&self, level: u8, (pick, flags): Entry) -> Option<u64> {
        if pick & 0xc0 != 0x80 {
            return None;
        }
        let (dom, _) = self.loaded[self.cpu]?;
        let wanted = PageType::table(level - 1);
        let tables = (0..FRAMES as u64).filter(|frame| {
            let info = self.hv.frames.held(Mfn::new(*frame));
            info.owner() == Some(DomId::new(dom as u16)) && info.page_type().0 == wanted
        });
        let n = usize::from(pick & 63).checked_rem(tables.clone().count())?;
        let flags = FLAGS[usize::from(flags) % FLAGS.len()];
        tables.clone().nth(n).map(|frame| frame << 12 | flags)
    }

    fn map(&mut self, page: Page, entry: Entry, flush: u8, dom: Option<u8>) -> Option<()> {
        let va = Self::va(page);
        let flags =
            [0, 0, 0, UVMF_INVLPG, UVMF_INVLPG | UVMF_ALL, UVMF_TLB_FLUSH, UVMF_TLB_FLUSH | UVMF_ALL, 0]
                [usize::from(flush & 7)];
        self.me()?;
        let entry = self.entry(entry);
        self.note_at(va);
        let result = match dom {
            None => self.call(__HYPERVISOR_UPDATE_VA_MAPPING, &[va, entry, flags]),
            Some(dom) => {
                let dom = u64::from(dom) % DOMAINS as u64;
                self.call(__HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN, &[va, entry, flags, dom])
            }
        };
        if result? == Ok(Outcome::OK) {
            match flags & UVMF_FLUSHTYPE_MASK {
                UVMF_INVLPG => self.expect_flushed(flags & UVMF_ALL != 0, Some(va)),
                UVMF_TLB_FLUSH => self.expect_flushed(flags & UVMF_ALL != 0, None),
                _ => {}
            }
        }
        Some(())
    }

    /// The caller asked for a flush, and was told that it is done: nothing is remembered that the tables do not say.
    fn expect_flushed(&mut self, everywhere: bool, va: Option<u64>) {
        let Some((dom, _)) = self.loaded[self.cpu] else { return };
        for cpu in 0..self.cpus {
            let here =
                cpu == self.cpu || everywhere && self.loaded[cpu].is_some_and(|(other, _)| other == dom);
            if here && let Some(stale) = self.hv.platform.stale(cpu, va) {
                self.wrong.push(format!("CPU {cpu} was flushed, and remembers {stale:x?}"));
            }
        }
    }

    fn ext(&mut self, ops: &[(u8, u8); 2], whose: u8) -> Option<()> {
        const COMMANDS: [u32; 24] = [
            MMUEXT_PIN_L1_TABLE,
            MMUEXT_PIN_L1_TABLE,
            MMUEXT_PIN_L1_TABLE,
            MMUEXT_PIN_L2_TABLE,
            MMUEXT_PIN_L3_TABLE,
            MMUEXT_PIN_L4_TABLE,
            MMUEXT_UNPIN_TABLE,
            MMUEXT_UNPIN_TABLE,
            MMUEXT_UNPIN_TABLE,
            MMUEXT_NEW_BASEPTR,
            MMUEXT_NEW_USER_BASEPTR,
            MMUEXT_TLB_FLUSH_LOCAL,
            MMUEXT_INVLPG_LOCAL,
            MMUEXT_TLB_FLUSH_ALL,
            MMUEXT_INVLPG_ALL,
            MMUEXT_CLEAR_PAGE,
            MMUEXT_COPY_PAGE,
            MMUEXT_TLB_FLUSH_MULTI,
            MMUEXT_PIN_L4_TABLE,
            MMUEXT_NEW_USER_BASEPTR,
            MMUEXT_PIN_L1_TABLE,
            MMUEXT_CLEAR_PAGE,
            u32::MAX,
            u32::MAX,
        ];
        // Where two pages may be the page of arguments, the hypervisor may read other operations than these.
        let is_read = self.hv.platform.stale(self.cpu, Some(ARGS)).is_none();
        let mut count = 0u64;
        let mut last = None;
        for &(command, arg) in ops {
            let cmd = COMMANDS[usize::from(command) % COMMANDS.len()];
            if cmd == u32::MAX {
                continue;
            }
            let is_address = matches!(cmd, MMUEXT_INVLPG_LOCAL | MMUEXT_INVLPG_ALL);
            let arg1 = if is_address { Self::va(arg) } else { self.pick(arg) };
            let arg2 = if cmd == MMUEXT_TLB_FLUSH_MULTI { ARGS } else { self.pick(arg.rotate_left(3)) };
            self.put(ARGS + count * 24, &MmuextOp { cmd, arg1, arg2, ..MmuextOp::default() })?;
            if !is_address {
                self.note(arg1);
            }
            last = Some((cmd, arg1));
            count += 1;
        }
        let whose = self.whose(whose);
        let result = self.call(__HYPERVISOR_MMUEXT_OP, &[ARGS, count, 0, whose.into()])?;
        if result == Ok(Outcome::OK) && whose == DOMID_SELF && is_read {
            match last {
                Some((MMUEXT_TLB_FLUSH_LOCAL | MMUEXT_NEW_BASEPTR, _)) => self.expect_flushed(false, None),
                Some((MMUEXT_TLB_FLUSH_ALL | MMUEXT_TLB_FLUSH_MULTI, _)) => self.expect_flushed(true, None),
                Some((MMUEXT_INVLPG_LOCAL, va)) => self.expect_flushed(false, Some(va)),
                Some((MMUEXT_INVLPG_ALL, va)) => self.expect_flushed(true, Some(va)),
                _ => {}
            }
        }
        Some(())
    }

    fn memory(&mut self, op: u8, frames: [Pick; 2], count: u8, whose: u8) -> Option<()> {
        let op = [
            XENMEM_INCREASE_RESERVATION,
            XENMEM_DECREASE_RESERVATION,
            XENMEM_POPULATE_PHYSMAP,
            XENMEM_DECREASE_RESERVATION,
        ][usize::from(op & 3)];
        let frames = frames.map(|frame| self.pick(frame));
        self.put(ARGS + 0x100, &frames)?;
        let request = XenMemoryReservation {
            extent_start: ARGS + 0x100,
            nr_extents: u64::from(count & 1) + 1,
            domid: self.whose(whose),
            ..XenMemoryReservation::default()
        };
        self.put(ARGS, &request)?;
        self.call(__HYPERVISOR_MEMORY_OP, &[op.into(), ARGS])?.ok()?;
        let frames = if op == XENMEM_DECREASE_RESERVATION { frames } else { self.get(ARGS + 0x100)? };
        frames.into_iter().for_each(|frame| self.note(frame));
        Some(())
    }

    fn exchange(&mut self, frames: [Pick; 2], pair: bool) -> Option<()> {
        let frames = frames.map(|frame| self.pick(frame));
        self.put(ARGS + 0x100, &frames)?;
        self.put(ARGS + 0x200, &[1u64, 2])?;
        let list = |extent_start, extent_order| XenMemoryReservation {
            extent_start,
            nr_extents: 2u64 >> extent_order,
            extent_order,
            domid: DOMID_SELF,
            ..XenMemoryReservation::default()
        };
        let request = XenMemoryExchange {
            r#in: list(ARGS + 0x100, 0),
            out: list(ARGS + 0x200, pair.into()),
            nr_exchanged: 0,
        };
        self.put(ARGS, &request)?;
        frames.into_iter().for_each(|frame| self.note(frame));
        self.call(__HYPERVISOR_MEMORY_OP, &[XENMEM_EXCHANGE.into(), ARGS]).map(|_| ())
    }

    fn map_grant(&mut self, granter: u8, gref: u8, page: Page, flags: u8) -> Option<()> {
        let (dom, _) = self.me()?;
        let va = Self::va(page);
        let mut op = GnttabMapGrantRef {
            host_addr: va,
            flags: GNTMAP_HOST_MAP,
            r#ref: u32::from(gref & 3),
            dom: u16::from(granter) % DOMAINS as u16,
            ..GnttabMapGrantRef::default()
        };
        for (bit, flag) in [
            (1, GNTMAP_READONLY),
            (2, GNTMAP_APPLICATION_MAP),
            (4, GNTMAP_DEVICE_MAP),
            (8, GNTMAP_CONTAINS_PTE),
        ] {
            if flags & bit != 0 {
                op.flags |= flag;
            }
        }
        if op.flags & GNTMAP_CONTAINS_PTE != 0 {
            op.host_addr = (self.pick(0x80 | page & 63) << 12) + Self::slot(1, flags >> 4) * 8;
        }
        if flags & 0xf0 == 0x50 {
            op.flags &= !GNTMAP_HOST_MAP;
        }
        self.put(ARGS, &op)?;
        self.note_at(va);
        self.call(__HYPERVISOR_GRANT_TABLE_OP, &[GNTTABOP_MAP_GRANT_REF.into(), ARGS, 1])?.ok()?;
        let done: GnttabMapGrantRef = self.get(ARGS)?;
        if done.status == GNTST_OKAY {
            let host_addr = if op.flags & GNTMAP_HOST_MAP != 0 { op.host_addr } else { 0 };
            let device = if op.flags & GNTMAP_DEVICE_MAP != 0 { done.dev_bus_addr } else { 0 };
            self.mappings.push(Mapping { dom, handle: done.handle, host_addr, device });
            self.note(done.dev_bus_addr >> 12);
        }
        Some(())
    }

    fn unmap(&mut self, which: [u8; 2], count: u8, replace: bool, page: Page) -> Option<()> {
        let (dom, _) = self.me()?;
        let mut n = 0;
        for which in &which[..1 + usize::from(count & 1)] {
            let own: Vec<usize> = (0..self.mappings.len()).filter(|n| self.mappings[*n].dom == dom).collect();
            let at = own[usize::from(*which).checked_rem(own.len())?];
            // Kept now and then, to be unmapped once more.
            let keep = *which & 0xf0 == 0xf0;
            let Mapping { handle, host_addr, device, .. } = self.mappings[at];
            if !keep {
                self.mappings.swap_remove(at);
            }
            let unmap = GnttabUnmapGrantRef {
                host_addr,
                dev_bus_addr: device,
                handle,
                ..GnttabUnmapGrantRef::default()
            };
            if replace {
                let op = GnttabUnmapAndReplace {
                    host_addr,
                    new_addr: Self::va(page),
                    handle,
                    ..GnttabUnmapAndReplace::default()
                };
                self.put(ARGS + n * 24, &op)?;
            } else {
                self.put(ARGS + n * 24, &unmap)?;
            }
            n += 1;
        }
        let op = if replace { GNTTABOP_UNMAP_AND_REPLACE } else { GNTTABOP_UNMAP_GRANT_REF };
        self.call(__HYPERVISOR_GRANT_TABLE_OP, &[op.into(), ARGS, n]).map(|_| ())
    }

    fn area(&mut self, what: u8, frame: Pick, page: Page, vcpu: u8) -> Option<()> {
        let va = Self::va(page) + 0x40;
        let (command, vcpu) = match what & 3 {
            0 | 1 => {
                let mfn = self.pick(frame);
                self.put(ARGS, &VcpuRegisterVcpuInfo { mfn, offset: 0x80, rsvd: 0 })?;
                self.note(mfn);
                (VCPUOP_REGISTER_VCPU_INFO, u32::from(vcpu) % VCPUS)
            }
            2 => {
                self.put(ARGS, &va)?;
                (VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, self.loaded[self.cpu]?.1)
            }
            _ => {
                self.put(ARGS, &va)?;
                (VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, self.loaded[self.cpu]?.1)
            }
        };
        self.call(__HYPERVISOR_VCPU_OP, &[command.into(), vcpu.into(), ARGS]).map(|_| ())
    }

    fn emulate(&mut self, table: u8, slot: u8, entry: Entry, how: u8) -> Option<()> {
        // xchg [rbx], rax; mov [rbx], rax; lock and [rbx], rax; lock cmpxchg [rbx], rcx
        const CODES: [[u8; 5]; 4] = [
            [0x48, 0x87, 0x03, 0x90, 0x90],
            [0x48, 0x89, 0x03, 0x90, 0x90],
            [0xf0, 0x48, 0x21, 0x03, 0x90],
            [0xf0, 0x48, 0x0f, 0xb1, 0x0b],
        ];
        self.me()?;
        self.put(ARGS + CODE, &CODES[usize::from(how & 3)])?;
        // The tables are mapped at the first pages, the level 1 tables at the last of them.
        let page = if table & 7 == 7 { 5 } else { u64::from(table & 7) };
        let at = (page << 12) + Self::slot(1, slot) * 8;
        let entry = self.entry(entry);
        if let Some(frame) = self.hv.platform.translate(at, false) {
            self.named(frame.raw() >> 12, Self::slot(1, slot)).into_iter().for_each(|frame| self.note(frame));
        }
        let mut regs = CpuUserRegs {
            rip: ARGS + CODE,
            rbx: at,
            rax: entry,
            rcx: entry,
            cs: 0xe033,
            ..CpuUserRegs::default()
        };
        let hv = &self.hv;
        self.with(&mut regs, |cur| hv.handle_guest_page_fault(cur, at, 3)).map(|_| ())
    }

    fn event(&mut self, what: u8, port: u8) -> Option<()> {
        let port = u32::from(port & 7);
        let command = match what & 3 {
            0 | 1 => {
                let op = EvtchnAllocUnbound {
                    dom: DOMID_SELF,
                    remote_dom: port as u16 % DOMAINS as u16,
                    ..EvtchnAllocUnbound::default()
                };
                self.put(ARGS, &op)?;
                EVTCHNOP_ALLOC_UNBOUND
            }
            2 => {
                self.put(ARGS, &EvtchnClose { port })?;
                EVTCHNOP_CLOSE
            }
            _ => {
                self.put(ARGS, &EvtchnSend { port })?;
                EVTCHNOP_SEND
            }
        };
        self.call(__HYPERVISOR_EVENT_CHANNEL_OP, &[command.into(), ARGS]).map(|_| ())
    }

    /// The acting CPU runs the control domain.
    fn as_control(&mut self) -> Option<()> {
        if self.loaded[self.cpu].is_some_and(|(dom, _)| dom == 0) {
            return Some(());
        }
        (0..VCPUS).find_map(|vcpu| self.switch(0, vcpu))
    }

    fn control(&mut self, what: u8, dom: u8, frame: Pick) -> Option<()> {
        self.as_control()?;
        let dom = u16::from(dom) % DOMAINS as u16;
        let id = DomId::new(dom);
        let gmfn =
            if what & 8 == 0 { self.pick(frame) } else { self.owned(dom.into(), false, frame.into())? };
        match what & 3 {
            0 | 1 => {
                let payload = XenDomctlHypercallInit { gmfn };
                self.put(ARGS, &XenDomctl::with(XEN_DOMCTL_HYPERCALL_INIT, id, &payload))?;
                self.note(gmfn);
            }
            2 => {
                let payload = XenDomctlMaxMem { max_memkb: MAX_PAGES * 4 + u64::from(frame & 15) * 4 };
                self.put(ARGS, &XenDomctl::with(XEN_DOMCTL_MAX_MEM, id, &payload))?;
            }
            _ => self.put(
                ARGS,
                &XenDomctl::with(XEN_DOMCTL_GETDOMAININFO, id, &XenDomctlGetdomaininfo::default()),
            )?,
        }
        self.call(__HYPERVISOR_DOMCTL, &[ARGS]).map(|_| ())
    }

    /// The control domain ends another; its vCPUs leave their CPUs first.
    fn destroy(&mut self, dom: usize) -> Option<()> {
        if dom == 0 {
            return None;
        }
        self.doms[dom].as_ref()?;
        for cpu in 0..self.cpus {
            if self.loaded[cpu].is_some_and(|(loaded, _)| loaded == dom) {
                self.unload(cpu);
            }
        }
        self.as_control()?;
        let op = XenDomctl::with(
            XEN_DOMCTL_DESTROYDOMAIN,
            DomId::new(dom as u16),
            &XenDomctlHypercallInit { gmfn: 0 },
        );
        self.put(ARGS, &op)?;
        self.call(__HYPERVISOR_DOMCTL, &[ARGS]).map(|_| ())
    }

    // --- Looks. ---

    /// What the CPUs remember.
    #[must_use]
    pub fn remembered(&self) -> Vec<Remembered> {
        self.hv.platform.remembered()
    }

    /// What is wrong after a step; `all`: the page tables are walked in any case.
    pub fn wrong(&mut self, all: bool) -> Vec<String> {
        let mut wrong = core::mem::take(&mut self.wrong);
        let remembered = self.hv.platform.violations();
        let ended = self.unload_ended();
        wrong.extend(remembered.into_iter().filter(|said| !ended.iter().any(|cpu| said.starts_with(cpu))));
        self.forget_dead();
        let is_ending = self.doms.iter().flatten().any(|domain| domain.is_dying());
        if all || is_ending || self.steps.is_multiple_of(CHECK_EVERY) {
            wrong.extend(self.hv.check_frames(&self.held_by_devices()));
            self.check_grants(&mut wrong);
        }
        wrong
    }

    /// The control domain may read a request through a page that it once had at that place, and so destroy a domain that
    /// still runs: its vCPUs would have left their CPUs. What these CPUs remember of it is of no account; how it is told.
    fn unload_ended(&mut self) -> Vec<String> {
        let is_ended = |loaded: &Option<(usize, u32)>| {
            loaded.is_some_and(|(dom, _)| self.doms[dom].as_ref().is_some_and(|domain| domain.is_dying()))
        };
        let ended: Vec<usize> = (0..self.cpus).filter(|cpu| is_ended(&self.loaded[*cpu])).collect();
        ended.iter().for_each(|cpu| self.unload(*cpu));
        ended.iter().map(|cpu| format!("CPU {cpu}: ")).collect()
    }

    /// A domain that is dead is nobody's any more.
    fn forget_dead(&mut self) {
        for dom in 1..DOMAINS {
            if self.doms[dom].as_ref().is_some_and(|domain| domain.dying() == crate::domain::DyingState::Dead)
            {
                self.doms[dom] = None;
                self.mappings.retain(|mapping| mapping.dom != dom);
                self.hv.reap_dead();
            }
        }
    }

    fn held_by_devices(&self) -> Extra {
        let mut extra = Extra::new();
        for domain in self.hv.domains.snapshot() {
            domain.grants.visit_device_frames(|mfn, writable| {
                let (general, typed) = extra.entry(mfn.raw()).or_default();
                *general += 1;
                *typed += u32::from(writable);
            });
        }
        extra
    }

    /// Another's frame is remembered only where the tables map it, or its owner still sees it used. The control domain
    /// maps what it likes, and lets others map its own.
    fn check_grants(&self, wrong: &mut Vec<String>) {
        for leaf in self.hv.platform.remembered() {
            if leaf.by == leaf.owner || [leaf.by, leaf.owner].contains(&DomId::new(0)) {
                continue;
            }
            let Some(domain) = self.doms.get(usize::from(leaf.by.raw())).and_then(Option::as_ref) else {
                continue;
            };
            if !domain.grants.may_remember(leaf.frame, leaf.writable)
                && self.hv.platform.stale(leaf.cpu, Some(leaf.va)).is_some()
            {
                wrong.push(format!("{leaf:x?} is a page of another's that is no longer granted"));
            }
        }
    }

    /// Destroys all domains; what is wrong then.
    pub fn end(&mut self) -> Vec<String> {
        let mut wrong = self.wrong(true);
        if !wrong.is_empty() {
            return wrong;
        }
        let platform = &self.hv.platform;
        platform.return_to_guest();
        platform.set_adversary(0);
        for cpu in 0..self.cpus {
            self.unload(cpu);
        }
        for dom in (0..DOMAINS).rev() {
            let Some(domain) = self.doms[dom].take() else { continue };
            // Interrupted soon in each call, by what stays until the call has returned.
            let mut calls = 0;
            self.hv.platform.interrupt_after(0);
            while self.hv.kill_domain(&domain).is_err() {
                calls += 1;
                self.hv.platform.interrupt_after(u64::from(calls % 4));
                if calls == MOST_CALLS {
                    return vec![format!("the end of {domain:?} makes no progress")];
                }
            }
            self.hv.platform.return_to_guest();
            drop(domain);
            self.hv.reap_dead();
            wrong.extend(self.hv.check_frames(&self.held_by_devices()));
            wrong.extend(self.hv.platform.violations());
            if !wrong.is_empty() {
                return wrong;
            }
        }
        self.hv.reap_dead();
        let left = self.hv.frames.free_pages();
        if left != self.free {
            wrong.push(format!("{left} pages came back of {}", self.free));
        }
        wrong
    }
}
