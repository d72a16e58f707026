//! What a processor can reach: the model reads the tables as they change, and takes in every way and leaf.

use alloc::format;
use core::sync::atomic::Ordering;

use ring_abi::types::{DomId, Mfn};

use super::*;

/// Leaves that a CPU holds at most: garbage that is taken for a table may have very many.
const MOST_LEAVES: usize = 4096;
/// Ways that a CPU holds at most.
const MOST_WAYS: usize = 1024;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Slots of a level 4 table that are the hypervisor's.
const HYPERVISOR_SLOTS: core::ops::Range<u16> = 256..272;

impl Tlb {
    /// A table is handed out, and may be written from now on until the call ends.
    pub(in crate::testing) fn hand_out(&mut self, memory: &Memory, mfn: Mfn) {
        let frame = mfn.raw() as u32;
        if !self.is_watching() || frame as usize >= self.infos.len() {
            return;
        }
        if self.handed.has(frame) && self.known.has(frame) {
            // The earlier writes were there for a while, and a CPU may have seen them.
            self.read_again(memory, frame);
            self.take_in_all(memory);
        }
        self.handed.add(frame);
    }

    /// The frame is written now.
    pub(in crate::testing) fn written(&mut self, mfn: Mfn) {
        let frame = mfn.raw() as u32;
        if (frame as usize) < self.infos.len() {
            self.handed.add(frame);
        }
    }

    /// The hypervisor keeps a view of the frame.
    pub(in crate::testing) fn hold(&mut self, mfn: Mfn) {
        self.written(mfn);
        let frame = mfn.raw() as u32;
        if (frame as usize) < self.infos.len() {
            self.held.add(frame);
        }
    }

    /// The frame is cleared. A frame without an owner is about to get one.
    pub(in crate::testing) fn cleared(&mut self, memory: &Memory, mfn: Mfn) {
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
    pub(in crate::testing) fn checked(&mut self, memory: &Memory, mfn: Mfn, me: usize) {
        let frame = mfn.raw() as u32;
        self.catch_up(memory);
        for cpu in 0..CPUS {
            if let Some(way) = self.cpus[cpu].ways.keys().find(|way| way.frame == frame) {
                let text = format!("{way:x?} is remembered while the table is checked, or given back");
                self.violation(cpu, text);
            }
        }
        for cpu in (0..CPUS).filter(|cpu| *cpu != me) {
            let writable = self.cpus[cpu].leaves.keys().find(|leaf| leaf.frame == frame && leaf.writable);
            if let Some(leaf) = writable {
                let text = format!("{leaf:x?} can be written while the table is checked");
                self.violation(cpu, text);
            }
        }
    }

    /// Reads the present entries of a frame. Returns whether they changed.
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
    pub(super) fn catch_up(&mut self, memory: &Memory) {
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
    pub(super) fn take_in(&mut self, memory: &Memory, cpu: usize) {
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
            let copy = |tlb: &Self| tlb.top(cpu).filter(|_| level == 4).map(<[_]>::len);
            for n in 0..copy(self).unwrap_or(self.contents[frame as usize].len()) {
                let top = self.top(cpu).filter(|_| level == 4);
                let (slot, entry) = top.unwrap_or(&self.contents[frame as usize])[n];
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
        // A CPU may remember the way to a table that is out of use, and walk on from there to a frame that was freed with
        // the table. That does no harm before the frame has an owner again. The frame table's own check finds an entry of
        // a table in use that names such a frame.
        let seen = self.seen(leaf.frame, by).unwrap_or(self.free(leaf.frame, by));
        self.cpus[cpu].leaves.insert(leaf, seen);
    }

    /// Whether the way is new.
    fn add_way(&mut self, cpu: usize, way: Way, by: DomId) -> bool {
        let state = &self.cpus[cpu];
        if state.ways.contains_key(&way) || state.ways.len() >= MOST_WAYS {
            return false;
        }
        let seen = self.seen(way.frame, by).unwrap_or(self.free(way.frame, by));
        // The CPU that runs the hypervisor may walk on from a table that is a page by now, as long as it owes itself the
        // flush; `check` looks when the flush is due. On the other CPUs guests run, so there it is wrong at once.
        if cpu != self.me && !seen.is_table_of(by) {
            self.violation(cpu, format!("{way:x?} leads to a frame that is no table of {by:?}: {seen:?}"));
        }
        self.cpus[cpu].ways.insert(way, seen);
        true
    }
}
