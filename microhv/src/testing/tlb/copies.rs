//! CPUs that run guests on copies of level 4 tables, as those with Meltdown do.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::types::Mfn;

use super::{CPUS, Leaf, Memory, Seen, Tlb, Way};
use crate::frames::copies::{COPIES, RootCopies};
use crate::frames::pte::{A, D, P};

/// One CPU's copies.
#[derive(Debug, Default)]
pub(super) struct Copies {
    of: RootCopies,
    /// Present entries: slot, entry.
    entries: [Vec<(u16, u64)>; COPIES],
    /// What the CPU holds of each copy but the used one.
    kept: [Held; COPIES],
    /// The copy that the CPU's guest runs on.
    used: usize,
}

/// Leaves and ways.
type Held = (BTreeMap<Leaf, Seen>, BTreeMap<Way, Seen>);

impl Copies {
    pub(super) fn flush(&mut self) {
        self.kept = Default::default();
    }

    pub(super) fn flush_page(&mut self, page: u64) {
        for (leaves, ways) in &mut self.kept {
            leaves.retain(|leaf, _| leaf.page != page);
            ways.clear();
        }
    }
}

fn address(frame: u32) -> u64 {
    u64::from(frame) << 12
}

fn present(memory: &Memory, frame: u32) -> Vec<(u16, u64)> {
    let start = frame as usize * 512;
    let entries = memory[start..start + 512].iter().map(|cell| cell.load(Ordering::Relaxed) & !(A | D));
    (0..).zip(entries).filter(|(_, entry)| entry & P != 0).collect()
}

impl Tlb {
    /// All CPUs run guests on copies from now on.
    pub(in crate::testing) fn run_on_copies(&mut self, memory: &Memory) {
        self.uses_copies = true;
        (0..CPUS).for_each(|cpu| self.go_to_guest(memory, cpu));
    }

    /// An entry of a level 4 table has changed, or the frame becomes such a table. Whether CPUs run on copies.
    pub(in crate::testing) fn root_changed(&self, l4: Mfn) -> bool {
        self.cpus.iter().for_each(|cpu| cpu.copies.of.forget(l4.maddr().raw()));
        self.uses_copies
    }

    /// The CPU goes to its guest: on a copy of the tables that are loaded, or on a new one.
    pub(super) fn go_to_guest(&mut self, memory: &Memory, cpu: usize) {
        let Some((root, _)) = self.cpus[cpu].root.filter(|_| self.uses_copies) else { return };
        let Copies { of, entries, kept, used } = &mut self.cpus[cpu].copies;
        let make = || {
            of.renew(address(root), |place| {
                entries[place] = present(memory, root);
                kept[place] = Held::default();
            })
        };
        // As entry code does: by the word, or by a look for the copy.
        *used = match of.exit.load(Ordering::SeqCst) {
            0 => {
                let place = of.find(address(root)).unwrap_or_else(make);
                of.remember(address(root), place, place as u64 + 1);
                place
            }
            exit => exit as usize - 1,
        };
    }

    /// The CPU goes to its guest on other tables, and finds what it held of them.
    pub(super) fn change_context(&mut self, memory: &Memory, cpu: usize) {
        let state = &mut self.cpus[cpu];
        let held = (core::mem::take(&mut state.leaves), core::mem::take(&mut state.ways));
        state.copies.kept[state.copies.used] = held;
        state.copies.of.loaded_another();
        self.go_to_guest(memory, cpu);
        let state = &mut self.cpus[cpu];
        (state.leaves, state.ways) = core::mem::take(&mut state.copies.kept[state.copies.used]);
    }

    /// What the CPU finds in its level 4 table.
    pub(super) fn top(&self, cpu: usize) -> Option<&[(u16, u64)]> {
        let copies = &self.cpus[cpu].copies;
        self.uses_copies.then(|| copies.entries[copies.used].as_slice())
    }

    /// Checks that no CPU's guest runs on a copy that differs from the table.
    pub(super) fn check_copies(&mut self, memory: &Memory) {
        self.go_to_guest(memory, self.me);
        for cpu in 0..CPUS {
            if let Some((root, _)) = self.cpus[cpu].root
                && (cpu == self.me || !self.inside[cpu])
                && self.top(cpu).is_some_and(|copy| copy != present(memory, root))
            {
                self.violation(cpu, format!("a guest runs on an old copy of {root:#x}"));
            }
        }
    }
}
