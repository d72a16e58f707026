//! What the processors of a [`TestMachine`](super::TestMachine) may remember of page tables, and what they must not.
//!
//! **What a processor may hold.** A translation lookaside buffer holds leaves: this page of the address space is that
//! frame, and may be written or not. Paging-structure caches hold the way: for this part of the address space the next
//! table is that frame. A walk of the processor begins at the longest way that it holds, and reads from there on what
//! the tables contain *now*. So a way that is gone from memory, but not from the cache, still leads to its table. When
//! that frame has become something else, the walk takes its contents for entries.
//!
//! **The model takes in everything.** A real processor may take in any translation that it can reach, at any moment,
//! and may lose any. The model never loses one, and takes in all that can be reached: after a load of CR3, at each
//! access to a guest's address, before a table is handed out a second time, at the end of each call, and **again right
//! after each flush**. So a flush that comes before the entry changes has no effect, as on a processor whose other
//! thread runs the guest meanwhile. The model leaves nothing out because it is unlikely.
//!
//! **What removes translations**, by Intel's manual (volume 3, 4.10.4) and AMD's alike:
//!
//! | operation | leaves | ways |
//! | --- | --- | --- |
//! | `flush_tlb_local`, `flush_tlb` of a set that has the CPU | all | all |
//! | `load_cr3` | those that are not global | all |
//! | `load_cr3_flushing` | all | all |
//! | `invlpg` | those of that page, global or not | all |
//!
//! Guests' user pages are global (see `mem::pte::stored`), so a load of CR3 alone does not forget them.
//!
//! **What must hold** ([`Tlb::look`]), of every CPU of the model, at each access to a guest's address and at the end of
//! each call:
//!
//! 1. No leaf that can be written leads to a frame that is in use as page table, descriptors, or as the hypervisor's
//!    read-only page. A page table or a page of descriptors counts from the moment at which its entries were checked.
//! 2. No leaf and no way leads to a frame that has another owner than when it was taken in, or had another life in
//!    between. A frame begins a new life when the hypervisor clears it while no domain owns it. CPUs may still remember
//!    free frames, since nobody uses those; when the hypervisor clears a frame for an owner, no CPU may remember it.
//! 3. No way leads to a frame that is a table of another level than it was, or no table. What counts is the type that
//!    the frame's entry names, in use or not: the contents of a table that is out of use cannot change before its type
//!    does.
//! 4. Where a table is checked for the first time, or given back (`present_groups`), no CPU holds a way to it, and no *other*
//!    CPU can write it. This CPU runs the hypervisor, and may flush itself later, but before the next access to a guest's
//!    address.
//! 5. Where CPUs run guests on copies of level 4 tables ([`TestMachine::run_on_copies`](super::TestMachine::run_on_copies)), a guest's
//!    copy is as its table is. A CPU that is flushed, or goes back to its guest, makes a new copy if the old one is forgotten.
//! 6. The windows through which a CPU reads a guest's descriptors lead to descriptor pages.
//!
//! The model checks these rules against the frame table, which [`TestMachine::watch`](super::TestMachine::watch) gives it.
//!
//! **Accesses.** With an adversary ([`TestMachine::set_adversary`](super::TestMachine::set_adversary)) an access may use any
//! leaf that some CPU's cache holds for the page; without one, tests see the tables as they are now, and the rules
//! above are checked all the same.
//!
//! **Several CPUs.** [`TestMachine::on_cpu`](super::TestMachine::on_cpu) chooses the CPU that the hypervisor runs on;
//! the others keep what they have loaded, and their guests go on. The hypervisor knows of them by `Domain::dirty_cpus`.
//! The code that loads vCPUs on CPUs of the model writes this word (`wild::play::Wild::switch`): it sets a CPU's bit before it
//! loads the tables, and clears the bit after a full flush. Threads that are CPUs may be in the hypervisor at the same time
//! ([`super::turns`]): a CPU that is amid a call is held to the rules when it uses a guest's address, and when it returns.
//!
//! **What is left out.** Large pages count as their first page: no table of a guest may have one. Accessed and dirty
//! bits are not written. Code fetches are reads.
//!
//! **Copies.** A CPU that runs guests on copies of level 4 tables has a process-context identifier for each: `load_cr3` puts all that
//! the CPU holds aside, and brings back what was held of the copy that the CPU goes to, if that is no new one.

mod copies;
mod frames;
mod look;
mod reach;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use ring_abi::types::{DomId, Mfn};

use self::copies::Copies;
use self::frames::Frames;
use crate::frames::info::{FrameInfo, PageType, TypeWord};
use crate::platform::DescriptorPage;

/// CPUs of the model.
pub const CPUS: usize = 8;
/// Violations that are kept.
const MOST_VIOLATIONS: usize = 4;
/// Pages of a vCPU's descriptor window: 14 of the GDT, 16 of the LDT.
const WINDOW_PAGES: usize = 30;

/// Bits of a page's number.
const PAGE_MASK: u64 = (1 << 36) - 1;

/// A translation of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Leaf {
    /// The page's number: 36 bits.
    page: u64,
    frame: u32,
    writable: bool,
    global: bool,
}

/// The way to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    /// What the walk takes the table for: 1-3.
    level: u8,
    /// The page number's bits above those that the table translates.
    prefix: u64,
    frame: u32,
    writable: bool,
}

/// What a frame was when it was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    owner: DomId,
    life: u32,
    page_type: PageType,
    /// Whose tables were loaded.
    by: DomId,
}

impl Seen {
    /// Whether the frame has another owner than before. A lent frame that outlives its owner has none, and may still be used
    /// through the references that are left.
    fn is_anothers(&self, before: &Self) -> bool {
        self.life != before.life || (self.owner != before.owner && self.owner != DomId::INVALID)
    }

    fn is_table_of(&self, domain: DomId) -> bool {
        self.page_type.level() > 0 && self.owner == domain
    }
}

/// What one CPU holds.
#[derive(Debug, Default)]
struct Cpu {
    /// The loaded base, and its owner. `None`: the CPU has no watched tables loaded.
    root: Option<(u32, Seen)>,
    /// Copies of such bases.
    copies: Copies,
    /// Something that a walk of this CPU reads has changed.
    changed: bool,
    leaves: BTreeMap<Leaf, Seen>,
    ways: BTreeMap<Way, Seen>,
    /// Frames that the CPU's walks read.
    read: Frames,
    /// The descriptor window that is loaded.
    vcpu: Option<u64>,
    /// Pages of that window: index, frame.
    window: BTreeMap<(usize, u32), Seen>,
    /// Those of them that this CPU itself has taken out of the window: the CPU is in the hypervisor, and flushes itself before
    /// its guest goes on.
    taken_out: BTreeSet<(usize, u32)>,
}

/// A leaf as the driver of tests sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The CPU that holds it.
    pub cpu: usize,
    /// The page's address, not sign-extended.
    pub va: u64,
    /// The frame.
    pub frame: Mfn,
    /// Whether the page can be written.
    pub writable: bool,
    /// Whose tables it was taken from.
    pub by: DomId,
    /// Whose frame it was.
    pub owner: DomId,
}

/// What all CPUs hold.
#[derive(Debug)]
pub(super) struct Tlb {
    /// The frame table; empty: nothing is watched.
    infos: &'static [FrameInfo],
    /// Present entries of each frame as the model last read them: slot, entry.
    contents: Vec<Vec<(u16, u64)>>,
    /// Frames of which `contents` is known.
    known: Frames,
    /// Frames that were handed out since `contents` was read, and so may have been written.
    handed: Frames,
    /// Frames of which the hypervisor keeps a view for long.
    held: Frames,
    /// How often each frame was cleared while no domain owned it.
    lives: Vec<u32>,
    cpus: [Cpu; CPUS],
    /// The CPU that runs the hypervisor, of several the one whose turn it is.
    me: usize,
    /// The CPUs that are in the hypervisor.
    inside: [bool; CPUS],
    /// CPUs run guests on copies of level 4 tables.
    uses_copies: bool,
    /// Frames of descriptor windows, by number.
    windows: BTreeMap<u64, [Option<u32>; WINDOW_PAGES]>,
    violations: Vec<String>,
    scratch: Vec<(u8, u64, u32, bool)>,
}

/// The machine's memory.
pub(super) type Memory = [AtomicU64];

impl Tlb {
    pub(super) fn new() -> Self {
        Self {
            infos: &[],
            contents: Vec::new(),
            known: Frames::default(),
            handed: Frames::default(),
            held: Frames::default(),
            lives: Vec::new(),
            cpus: core::array::from_fn(|_| Cpu::default()),
            me: 0,
            inside: [false; CPUS],
            uses_copies: false,
            windows: BTreeMap::new(),
            violations: Vec::new(),
            scratch: Vec::new(),
        }
    }

    pub(super) fn watch(&mut self, infos: &'static [FrameInfo]) {
        let frames = infos.len();
        *self = Self {
            infos,
            contents: alloc::vec![Vec::new(); frames],
            known: Frames::new(frames),
            handed: Frames::new(frames),
            held: Frames::new(frames),
            lives: alloc::vec![0; frames],
            cpus: core::array::from_fn(|_| Cpu { read: Frames::new(frames), ..Cpu::default() }),
            ..Self::new()
        };
    }

    pub(super) fn is_watching(&self) -> bool {
        !self.infos.is_empty()
    }

    pub(super) fn enter(&mut self, cpu: usize, is_inside: bool) {
        self.inside[cpu] = is_inside;
    }

    pub(super) fn hypervisor_runs_on(&mut self, cpu: usize) {
        self.me = cpu;
    }

    fn violation(&mut self, cpu: usize, text: String) {
        if self.violations.len() < MOST_VIOLATIONS {
            self.violations.push(format!("CPU {cpu}: {text}"));
        }
    }

    pub(super) fn take_violations(&mut self) -> Vec<String> {
        core::mem::take(&mut self.violations)
    }

    fn seen(&self, frame: u32, by: DomId) -> Option<Seen> {
        let info = self.infos.get(frame as usize)?;
        let (owner, life) = (info.owner()?, self.lives[frame as usize]);
        Some(Seen { owner, life, page_type: info.load_kind().page_type(), by })
    }

    /// Does the same as [`Tlb::seen`] for a frame without an owner.
    fn free(&self, frame: u32, by: DomId) -> Seen {
        Seen { owner: DomId::INVALID, life: self.lives[frame as usize], page_type: PageType::None, by }
    }

    // --- Loads and flushes. ---

    pub(super) fn load(&mut self, memory: &Memory, cpu: usize, l4: Option<Mfn>) {
        if !self.is_watching() {
            return;
        }
        self.catch_up(memory);
        let root = l4.map(|l4| l4.raw() as u32).filter(|frame| (*frame as usize) < self.infos.len());
        // Tables without an owner are a test's own.
        let root = root.and_then(|frame| Some((frame, self.seen(frame, DomId::new(0))?)));
        let state = &mut self.cpus[cpu];
        state.root = root.map(|(frame, seen)| (frame, Seen { by: seen.owner, ..seen }));
        if self.uses_copies {
            self.change_context(memory, cpu);
        } else {
            state.leaves.retain(|leaf, _| leaf.global);
            state.ways.clear();
        }
        self.refill(memory, cpu);
    }

    pub(super) fn flush(&mut self, memory: &Memory, cpu: usize) {
        if !self.is_watching() {
            return;
        }
        self.catch_up(memory);
        self.check_window_is_held(cpu);
        let state = &mut self.cpus[cpu];
        state.leaves.clear();
        state.ways.clear();
        state.copies.flush();
        state.window.clear();
        state.taken_out.clear();
        self.refill(memory, cpu);
    }

    pub(super) fn flush_page(&mut self, memory: &Memory, cpu: usize, va: u64) {
        if !self.is_watching() {
            return;
        }
        self.catch_up(memory);
        let page = va >> 12 & PAGE_MASK;
        let state = &mut self.cpus[cpu];
        state.leaves.retain(|leaf, _| leaf.page != page);
        state.ways.clear();
        state.copies.flush_page(page);
        self.refill(memory, cpu);
    }

    /// Takes in again what can be reached, right after a flush.
    fn refill(&mut self, memory: &Memory, cpu: usize) {
        self.go_to_guest(memory, cpu);
        self.cpus[cpu].read.clear();
        self.cpus[cpu].changed = true;
        self.take_in(memory, cpu);
        self.take_in_window(cpu);
    }

    // --- Descriptor windows. ---

    pub(super) fn set_vcpu(&mut self, cpu: usize, vcpu: Option<u64>) {
        self.cpus[cpu].vcpu = vcpu;
        self.cpus[cpu].window.clear();
        self.cpus[cpu].taken_out.clear();
        self.take_in_window(cpu);
    }

    pub(super) fn set_window(&mut self, vcpu: u64, page: DescriptorPage, frame: Option<Mfn>) {
        let index = match page {
            DescriptorPage::Gdt(n) => usize::from(n),
            DescriptorPage::Ldt(n) => 14 + usize::from(n),
        };
        let place = &mut self.windows.entry(vcpu).or_default()[index];
        let old = core::mem::replace(place, frame.map(|mfn| mfn.raw() as u32));
        for cpu in 0..CPUS {
            if self.cpus[cpu].vcpu == Some(vcpu) {
                self.cpus[cpu].taken_out.extend(old.filter(|_| cpu == self.me).map(|frame| (index, frame)));
                self.take_in_window(cpu);
            }
        }
    }

    fn take_in_window(&mut self, cpu: usize) {
        let Some(window) = self.cpus[cpu].vcpu.and_then(|vcpu| self.windows.get(&vcpu)) else { return };
        for (index, frame) in window.iter().enumerate() {
            if let Some(frame) = *frame
                && let Some(seen) = self.seen(frame, DomId::new(0))
            {
                self.cpus[cpu].window.entry((index, frame)).or_insert(seen);
                self.cpus[cpu].taken_out.remove(&(index, frame));
            }
        }
    }
}
