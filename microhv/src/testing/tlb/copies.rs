//! CPUs that run guests on copies of level 4 tables, as those with Meltdown do.

use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::types::Mfn;

use super::{CPUS, Memory, Tlb};
use crate::frames::copies::{COPIES, RootCopies};
use crate::frames::pte::{A, D, P};

/// One CPU's copies.
#[derive(Debug, Default)]
pub(super) struct Copies {
    of: RootCopies,
    /// Present entries: slot, entry.
    entries: [Vec<(u16, u64)>; COPIES],
    /// The copy that the CPU's guest runs on.
    used: usize,
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
    pub(in crate::testing) fn run_on_copies(&mut self) {
        self.uses_copies = true;
    }

    /// An entry of a level 4 table has changed, or the frame becomes such a table. Whether CPUs run on copies.
    pub(in crate::testing) fn root_changed(&self, l4: Mfn) -> bool {
        self.cpus.iter().for_each(|cpu| cpu.copies.of.forget(l4.maddr().raw()));
        self.uses_copies
    }

    /// The CPU goes to its guest: on a copy of the tables that are loaded, or on a new one.
    pub(super) fn go_to_guest(&mut self, memory: &Memory, cpu: usize) {
        let Some((root, _)) = self.cpus[cpu].root.filter(|_| self.uses_copies) else { return };
        let Copies { of, entries, used } = &mut self.cpus[cpu].copies;
        let make = || of.renew(address(root), |place| entries[place] = present(memory, root));
        *used = of.find(address(root)).unwrap_or_else(make);
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
