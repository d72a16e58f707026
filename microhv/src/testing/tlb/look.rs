//! What the processors hold is checked against the frame table, and shown to the machine and to tests.

use alloc::format;
use alloc::vec::Vec;

use ring_abi::types::Mfn;

use super::*;

impl Tlb {
    /// Takes in what changed, and checks what all CPUs hold against the frame table.
    pub(in crate::testing) fn look(&mut self, memory: &Memory) {
        if !self.is_watching() {
            return;
        }
        self.catch_up(memory);
        self.check_copies(memory);
        // A CPU that is amid a call of its own is looked at when it uses a guest's address, or returns.
        for cpu in 0..CPUS {
            if cpu == self.me || !self.inside[cpu] {
                self.check(cpu);
            }
        }
    }

    /// Does the same as [`Tlb::look`] at the end of a call, after which the hypervisor no longer writes to the tables
    /// that it handed out.
    pub(in crate::testing) fn settle(&mut self, memory: &Memory) {
        self.look(memory);
        if !self.inside.contains(&true) {
            self.handed.take_from(&self.held);
        }
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
            if leaf.writable && self.is_protected(leaf.frame) {
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

    /// Checks, before another CPU is flushed, that what it remembers of descriptors is still held as such: of a frame that is not,
    /// a third CPU could make something else before the flush. Pages that the CPU itself has just taken out do not count.
    pub(super) fn check_window_is_held(&mut self, cpu: usize) {
        let state = &self.cpus[cpu];
        let is_free = |page: &&(usize, u32)| {
            self.infos[page.1 as usize].load_kind().count() == 0 && !state.taken_out.contains(page)
        };
        if cpu != self.me
            && let Some((page, frame)) = state.window.keys().find(is_free)
        {
            let wrong =
                format!("page {page} of the descriptors' window, {frame:#x}, is given back before the flush");
            self.violation(cpu, wrong);
        }
    }

    /// Whether the frame must not be written. One that has just got its type is flushed before it is looked at.
    fn is_protected(&self, frame: u32) -> bool {
        let kind = self.infos[frame as usize].load_kind();
        let is_checked = kind.has(TypeWord::VALIDATED | TypeWord::PARTIAL);
        kind.count() > 0
            && match kind.page_type() {
                PageType::ReadOnly => true,
                page_type => is_checked && (page_type.level() > 0 || page_type == PageType::SegDesc),
            }
    }

    /// One of the frames to which the CPU may translate `va`: `choice` says which.
    pub(in crate::testing) fn translate(&self, cpu: usize, va: u64, write: bool, choice: u64) -> Option<Mfn> {
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
    pub(in crate::testing) fn window(&self, cpu: usize) -> Vec<Mfn> {
        self.cpus[cpu].window.keys().map(|(_, frame)| Mfn::new((*frame).into())).collect()
    }

    /// Everything that is remembered.
    pub(in crate::testing) fn leaves(&self) -> Vec<Remembered> {
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
