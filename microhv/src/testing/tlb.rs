//! What the processors of a [`TestMachine`](super::TestMachine) may remember of page tables, and what they must not.
//!
//! **What a processor may hold.** A translation lookaside buffer holds leaves: this page of the address space is that frame,
//! and may be written or not. Paging-structure caches hold the way: for this part of the address space the next table is
//! that frame. A walk of the processor begins at the longest way that it holds, and reads from there on what the tables
//! contain *now*. So a way that was forgotten in memory but not in the cache still leads to its table, and when that frame has become
//! something else, the walk takes its contents for entries.
//!
//! **The model takes in everything.** A real processor may take in any translation that it can reach, at any moment, and may lose
//! any. The model never loses one, and takes in all that can be reached: after a load of CR3, at each access to a guest's
//! address, before a table is handed out a second time, at the end of each call, and **again right after each flush**.
//! So a flush which comes before the entry has changed has no effect, as on a processor whose other
//! thread runs the guest meanwhile. Nothing is left out because it is unlikely.
//!
//! **What removes it**, by Intel's manual (volume 3, 4.10.4) and AMD's alike:
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
//! **What must hold** ([`Tlb::look`]), of every CPU of the model, at each access to a guest's address and at the end of each call:
//!
//! 1. No leaf that can be written leads to a frame that is in use as page table, descriptors, or as the hypervisor's
//!    read-only page.
//! 2. No leaf and no way leads to a frame that has another owner than when it was taken in, or had another life in between.
//!    A frame begins a new life when the hypervisor clears it while it is nobody's. Frames that are free
//!    may still be remembered, since nobody uses them; when one is cleared for somebody, nobody may remember it.
//! 3. No way leads to a frame that is a table of another level than it was, or no table. What counts is the
//!    type that the frame's entry names, not whether it is in use as that: the contents of a table that is out of use cannot
//!    change before its type does.
//! 4. Where a table is checked for the first time (`present_groups`), no *other* CPU can write it. This CPU runs the hypervisor,
//!    and may flush itself later, but before the next access to a guest's address.
//! 5. The windows through which a CPU reads a guest's descriptors lead to descriptor pages.
//!
//! All that is checked against the frame table itself, which [`TestMachine::watch`](super::TestMachine::watch) makes known.
//!
//! **Accesses.** With an adversary ([`TestMachine::set_adversary`](super::TestMachine::set_adversary)) an access may use any
//! leaf that some CPU's cache holds for the page; without one, tests see the tables as they are now, and the rules
//! above are checked all the same.
//!
//! **Several CPUs.** [`TestMachine::on_cpu`](super::TestMachine::on_cpu) chooses the CPU that the hypervisor runs on; the others keep
//! what they have loaded, and their guests go on. What the hypervisor knows of that is `Domain::dirty_cpus`: as
//! long as no code of the library writes this word, what loads vCPUs on CPUs of the model keeps it
//! (`wild::play::Wild::switch`): a bit is set before the tables are loaded, and cleared after all was flushed.
//!
//! **What is left out.** Large pages count as their first page: no table of a guest may have one. Accessed and dirty bits are not
//! written. Code fetches are reads. Process context identifiers are not used by the hypervisor.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use ring_abi::types::{DomId, Mfn};

use crate::mem::frame::{FrameInfo, PageType};
use crate::platform::DescriptorPage;

/// CPUs of the model.
pub const CPUS: usize = 8;
/// Leaves that a CPU holds at most: garbage that is taken for a table may have very many.
const MOST_LEAVES: usize = 4096;
/// Ways that a CPU holds at most.
const MOST_WAYS: usize = 1024;
/// Violations that are kept.
const MOST_VIOLATIONS: usize = 4;
/// Pages of a vCPU's descriptor window: 14 of the GDT, 16 of the LDT.
const WINDOW_PAGES: usize = 30;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Slots of a level 4 table that are the hypervisor's.
const HYPERVISOR_SLOTS: core::ops::Range<u16> = 256..272;
/// Bits of a page's number.
const PAGE_MASK: u64 = (1 << 36) - 1;

/// A set of frames.
#[derive(Clone, Debug, Default)]
struct Frames(Vec<u64>);

impl Frames {
    fn new(frames: usize) -> Self {
        Self(alloc::vec![0; frames.div_ceil(64)])
    }

    fn has(&self, frame: u32) -> bool {
        self.0[frame as usize / 64] >> (frame % 64) & 1 != 0
    }

    fn add(&mut self, frame: u32) {
        self.0[frame as usize / 64] |= 1 << (frame % 64);
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }

    fn take_from(&mut self, other: &Self) {
        self.0.copy_from_slice(&other.0);
    }

    /// Those in both.
    fn common(&self, other: &Self, mut each: impl FnMut(u32)) {
        for (word, (a, b)) in (0u32..).zip(self.0.iter().zip(&other.0)) {
            let mut bits = a & b;
            while bits != 0 {
                each(word * 64 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
    }
}

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
    /// Whether the frame is another's than it was. A lent frame that outlives its owner stays what it was for those that
    /// refer to it, and is nobody else's.
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
    /// The loaded base, and whose it is. `None`: nothing that is watched is loaded.
    root: Option<(u32, Seen)>,
    /// Something that a walk of this CPU reads has changed.
    changed: bool,
    leaves: BTreeMap<Leaf, Seen>,
    ways: BTreeMap<Way, Seen>,
    /// Frames that its walks read.
    read: Frames,
    /// The descriptor window that is loaded.
    vcpu: Option<u64>,
    /// Pages of its window: index, frame.
    window: BTreeMap<(usize, u32), Seen>,
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
    /// It can be written.
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
    /// Present entries of each frame as they were when it was last read: slot, entry.
    contents: Vec<Vec<(u16, u64)>>,
    /// Frames of which `contents` is known.
    known: Frames,
    /// Frames that may have been written since `contents` was read: they were handed out.
    handed: Frames,
    /// Frames of which the hypervisor keeps a view for long.
    held: Frames,
    /// How often each frame was cleared while it was nobody's.
    lives: Vec<u32>,
    cpus: [Cpu; CPUS],
    /// The CPU that runs the hypervisor.
    me: usize,
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

    /// As [`Tlb::seen`], of a frame that is nobody's.
    fn free(&self, frame: u32, by: DomId) -> Seen {
        Seen { owner: DomId::INVALID, life: self.lives[frame as usize], page_type: PageType::None, by }
    }

    // --- Memory. ---

    /// A table is handed out, and may be written from now on until the call ends.
    pub(super) fn hand_out(&mut self, memory: &Memory, mfn: Mfn) {
        let frame = mfn.raw() as u32;
        if !self.is_watching() || frame as usize >= self.infos.len() {
            return;
        }
        if self.handed.has(frame) && self.known.has(frame) {
            // What was written there before this look was there for a while.
            self.read_again(memory, frame);
            self.take_in_all(memory);
        }
        self.handed.add(frame);
    }

    /// The frame is written now.
    pub(super) fn written(&mut self, mfn: Mfn) {
        let frame = mfn.raw() as u32;
        if (frame as usize) < self.infos.len() {
            self.handed.add(frame);
        }
    }

    /// The hypervisor keeps a view of the frame.
    pub(super) fn hold(&mut self, mfn: Mfn) {
        self.written(mfn);
        let frame = mfn.raw() as u32;
        if (frame as usize) < self.infos.len() {
            self.held.add(frame);
        }
    }

    /// The frame is cleared: if it is nobody's, it is to be somebody's.
    pub(super) fn cleared(&mut self, memory: &Memory, mfn: Mfn) {
        let frame = mfn.raw() as u32;
        if (frame as usize) >= self.infos.len() {
            return;
        }
        if self.infos[frame as usize].owner().is_none() {
            self.catch_up(memory);
            for cpu in 0..CPUS {
                let state = &self.cpus[cpu];
                let leaf = state.leaves.keys().find(|leaf| leaf.frame == frame);
                let way = state.ways.keys().find(|way| way.frame == frame);
                let text = match (leaf, way) {
                    (Some(leaf), _) => {
                        format!("{leaf:x?} is remembered, and the frame is cleared for somebody")
                    }
                    (_, Some(way)) => {
                        format!("{way:x?} is remembered, and the frame is cleared for somebody")
                    }
                    _ => continue,
                };
                self.violation(cpu, text);
            }
            self.lives[frame as usize] += 1;
        }
        self.handed.add(frame);
    }

    /// A table is looked at for the first time, or for the last.
    pub(super) fn checked(&mut self, memory: &Memory, mfn: Mfn, me: usize) {
        let frame = mfn.raw() as u32;
        self.catch_up(memory);
        for cpu in (0..CPUS).filter(|cpu| *cpu != me) {
            let writable = self.cpus[cpu].leaves.keys().find(|leaf| leaf.frame == frame && leaf.writable);
            if let Some(leaf) = writable {
                let text = format!("{leaf:x?} can be written while the table is checked");
                self.violation(cpu, text);
            }
        }
    }

    /// Reads the present entries of a frame; whether they changed.
    fn read_again(&mut self, memory: &Memory, frame: u32) {
        let start = frame as usize * 512;
        let words = &memory[start..start + 512];
        let old = &mut self.contents[frame as usize];
        let mut n = 0;
        let mut same = true;
        for (group, cells) in words.chunks_exact(8).enumerate() {
            let any = cells.iter().fold(0, |any, cell| any | cell.load(Ordering::Relaxed));
            if any & PRESENT == 0 {
                continue;
            }
            for (slot, cell) in cells.iter().enumerate() {
                let entry = cell.load(Ordering::Relaxed);
                if entry & PRESENT == 0 {
                    continue;
                }
                let now = ((group * 8 + slot) as u16, entry);
                if old.get(n) != Some(&now) {
                    same = false;
                    old.truncate(n);
                    old.push(now);
                }
                n += 1;
            }
        }
        if old.len() != n {
            old.truncate(n);
            same = false;
        }
        if !same || !self.known.has(frame) {
            self.known.add(frame);
            for cpu in &mut self.cpus {
                cpu.changed |= cpu.read.has(frame);
            }
        }
    }

    /// Takes in what was written into tables since the last look.
    fn catch_up(&mut self, memory: &Memory) {
        let mut again = core::mem::take(&mut self.scratch);
        again.clear();
        self.handed.common(&self.known, |frame| again.push((0, 0, frame, false)));
        for &(_, _, frame, _) in &again {
            self.read_again(memory, frame);
        }
        self.scratch = again;
        self.take_in_all(memory);
    }

    fn take_in_all(&mut self, memory: &Memory) {
        for cpu in 0..CPUS {
            if self.cpus[cpu].changed {
                self.take_in(memory, cpu);
            }
        }
    }

    /// Takes in all that the CPU can reach, from its base and from the ways that it holds.
    fn take_in(&mut self, memory: &Memory, cpu: usize) {
        self.cpus[cpu].changed = false;
        let Some((root, seen)) = self.cpus[cpu].root else { return };
        let mut todo = core::mem::take(&mut self.scratch);
        todo.clear();
        todo.push((4, 0, root, true));
        todo.extend(self.cpus[cpu].ways.keys().map(|way| (way.level, way.prefix, way.frame, way.writable)));
        while let Some((level, prefix, frame, writable)) = todo.pop() {
            self.cpus[cpu].read.add(frame);
            if !self.known.has(frame) {
                self.read_again(memory, frame);
            }
            for n in 0..self.contents[frame as usize].len() {
                let (slot, entry) = self.contents[frame as usize][n];
                if entry & USER == 0 || (level == 4 && HYPERVISOR_SLOTS.contains(&slot)) {
                    continue;
                }
                let writable = writable && entry & WRITABLE != 0;
                let target = (entry & FRAME) >> 12;
                if target >= self.infos.len() as u64 {
                    continue; // a device's
                }
                let (prefix, target) = (prefix << 9 | u64::from(slot), target as u32);
                if level == 1 || (level < 4 && entry & LARGE != 0) {
                    let page = (prefix << (9 * (u32::from(level) - 1))) & PAGE_MASK;
                    let global = entry & GLOBAL != 0;
                    self.add_leaf(cpu, Leaf { page, frame: target, writable, global }, seen.owner);
                } else {
                    let way = Way { level: level - 1, prefix, frame: target, writable };
                    if self.add_way(cpu, way, seen.owner) {
                        todo.push((level - 1, prefix, target, writable));
                    }
                }
            }
        }
        self.scratch = todo;
    }

    fn add_leaf(&mut self, cpu: usize, leaf: Leaf, by: DomId) {
        let state = &self.cpus[cpu];
        if state.leaves.contains_key(&leaf) || state.leaves.len() >= MOST_LEAVES {
            return;
        }
        // From a table that is out of use and to which a way is remembered still, the walk may go on to a frame that was
        // freed with it. That does no harm before the frame is somebody's again. An entry of a table in use that names
        // such a frame is found by the frame table's own check.
        let seen = self.seen(leaf.frame, by).unwrap_or(self.free(leaf.frame, by));
        self.cpus[cpu].leaves.insert(leaf, seen);
    }

    /// Whether it is new.
    fn add_way(&mut self, cpu: usize, way: Way, by: DomId) -> bool {
        let state = &self.cpus[cpu];
        if state.ways.contains_key(&way) || state.ways.len() >= MOST_WAYS {
            return false;
        }
        let seen = self.seen(way.frame, by).unwrap_or(self.free(way.frame, by));
        // The CPU that runs the hypervisor may go on from a table that is a page by now, while it owes itself the flush:
        // `check` looks at that when the flush is due. The others' guests run.
        if cpu != self.me && !seen.is_table_of(by) {
            self.violation(cpu, format!("{way:x?} leads to a frame that is no table of {by:?}: {seen:?}"));
        }
        self.cpus[cpu].ways.insert(way, seen);
        true
    }

    // --- Loads and flushes. ---

    pub(super) fn load(&mut self, memory: &Memory, cpu: usize, l4: Option<Mfn>) {
        if !self.is_watching() {
            return;
        }
        self.catch_up(memory);
        let root = l4.map(|l4| l4.raw() as u32).filter(|frame| (*frame as usize) < self.infos.len());
        // Tables that are nobody's are a test's own.
        let root = root.and_then(|frame| Some((frame, self.seen(frame, DomId::new(0))?)));
        let state = &mut self.cpus[cpu];
        state.root = root.map(|(frame, seen)| (frame, Seen { by: seen.owner, ..seen }));
        state.leaves.retain(|leaf, _| leaf.global);
        state.ways.clear();
        self.refill(memory, cpu);
    }

    pub(super) fn flush(&mut self, memory: &Memory, cpu: usize) {
        if !self.is_watching() {
            return;
        }
        self.catch_up(memory);
        let state = &mut self.cpus[cpu];
        state.leaves.clear();
        state.ways.clear();
        state.window.clear();
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
        self.refill(memory, cpu);
    }

    /// Takes in again what can be reached, right after a flush.
    fn refill(&mut self, memory: &Memory, cpu: usize) {
        self.cpus[cpu].read.clear();
        self.cpus[cpu].changed = true;
        self.take_in(memory, cpu);
        self.take_in_window(cpu);
    }

    // --- Descriptor windows. ---

    pub(super) fn set_vcpu(&mut self, cpu: usize, vcpu: Option<u64>) {
        self.cpus[cpu].vcpu = vcpu;
        self.cpus[cpu].window.clear();
        self.take_in_window(cpu);
    }

    pub(super) fn set_window(&mut self, vcpu: u64, page: DescriptorPage, frame: Option<Mfn>) {
        let index = match page {
            DescriptorPage::Gdt(n) => usize::from(n),
            DescriptorPage::Ldt(n) => 14 + usize::from(n),
        };
        self.windows.entry(vcpu).or_default()[index] = frame.map(|mfn| mfn.raw() as u32);
        for cpu in 0..CPUS {
            if self.cpus[cpu].vcpu == Some(vcpu) {
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
            }
        }
    }

    // --- Looks. ---

    /// Takes in what changed, and checks what all CPUs hold against the frame table.
    pub(super) fn look(&mut self, memory: &Memory) {
        if !self.is_watching() {
            return;
        }
        self.catch_up(memory);
        for cpu in 0..CPUS {
            self.check(cpu);
        }
    }

    /// As [`Tlb::look`], at the end of a call: nobody writes to tables any more.
    pub(super) fn settle(&mut self, memory: &Memory) {
        self.look(memory);
        self.handed.take_from(&self.held);
    }

    fn check(&mut self, cpu: usize) {
        let state = &self.cpus[cpu];
        let mut wrong = None;
        if let Some((root, seen)) = state.root {
            let info = &self.infos[root as usize];
            if info.owner() != Some(seen.owner)
                || info.page_type().0 != PageType::L4
                || info.page_type().1 == 0
            {
                wrong = Some(format!("base {root:#x} is {:?} of {:?}", info.page_type(), info.owner()));
            }
        }
        for (leaf, seen) in &state.leaves {
            let Some(now) = self.seen(leaf.frame, seen.by) else { continue };
            if now.is_anothers(seen) {
                wrong = Some(format!("{leaf:x?}: was {seen:?}, is {now:?}"));
            }
            let protected =
                now.page_type.level() > 0 || matches!(now.page_type, PageType::SegDesc | PageType::Shared);
            if leaf.writable && protected && self.infos[leaf.frame as usize].page_type().1 > 0 {
                wrong = Some(format!("{leaf:x?} can be written, and is {now:?}"));
            }
        }
        for (way, seen) in &state.ways {
            let Some(now) = self.seen(way.frame, seen.by) else { continue };
            if now != *seen || !now.is_table_of(now.by) {
                wrong = Some(format!("{way:x?}: was {seen:?}, is {now:?}"));
            }
        }
        for ((page, frame), seen) in &state.window {
            let Some(now) = self.seen(*frame, seen.by) else { continue };
            if now.is_anothers(seen) || now.page_type != PageType::SegDesc {
                wrong = Some(format!("page {page} of the descriptors' window is {frame:#x}, {now:?}"));
            }
        }
        if let Some(wrong) = wrong {
            self.violation(cpu, wrong);
        }
    }

    // --- Accesses. ---

    /// A frame that the CPU may take the page at `va` to be, by `choice` among all.
    pub(super) fn translate(&self, cpu: usize, va: u64, write: bool, choice: u64) -> Option<Mfn> {
        let page = va >> 12 & PAGE_MASK;
        let first = Leaf { page, frame: 0, writable: false, global: false };
        let fits = || {
            self.cpus[cpu]
                .leaves
                .range(first..)
                .map(|(leaf, _)| leaf)
                .take_while(move |leaf| leaf.page == page)
                .filter(move |leaf| leaf.writable || !write)
        };
        let count = fits().count() as u64;
        let leaf = fits().nth(choice.checked_rem(count)? as usize)?;
        Some(Mfn::new(leaf.frame.into()))
    }

    /// Frames of the CPU's window.
    pub(super) fn window(&self, cpu: usize) -> Vec<Mfn> {
        self.cpus[cpu].window.keys().map(|(_, frame)| Mfn::new((*frame).into())).collect()
    }

    /// Everything that is remembered.
    pub(super) fn leaves(&self) -> Vec<Remembered> {
        let of = |cpu: usize| {
            self.cpus[cpu].leaves.iter().map(move |(leaf, seen)| Remembered {
                cpu,
                va: leaf.page << 12,
                frame: Mfn::new(leaf.frame.into()),
                writable: leaf.writable,
                by: seen.by,
                owner: seen.owner,
            })
        };
        (0..CPUS).flat_map(of).collect()
    }
}
