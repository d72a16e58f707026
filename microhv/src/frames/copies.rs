//! Copies of level 4 tables, on which CPUs with Meltdown run guests: which tables a CPU has copies of.
//!
//! A CPU that goes to a guest looks for a copy of the table that is loaded, and makes one where there is none. Two are kept, so that
//! a guest's kernel and its user mode need no new one for each system call. Where an entry of a table changes, or a frame becomes
//! a table, all CPUs forget their copies of that table. A CPU that runs a guest on such a copy meanwhile gets out of the guest by the
//! flush that the changer then orders, and makes another on the way back.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many copies a CPU keeps.
pub const COPIES: usize = 2;
/// The machine address of no table.
const NONE: u64 = u64::MAX;

/// Of which tables one CPU has copies. The CPU itself makes copies; any CPU has them forgotten.
#[derive(Debug)]
#[repr(C)]
pub struct RootCopies {
    /// What CR3 is to be for the guest, which entry code loads; 0: that is to be found out.
    pub exit: AtomicU64,
    /// The machine address of the table that each is a copy of.
    of: [AtomicU64; COPIES],
    /// Which is replaced next.
    next: AtomicUsize,
}

impl RootCopies {
    /// No copy of anything.
    pub const fn new() -> Self {
        let of = [const { AtomicU64::new(NONE) }; COPIES];
        Self { exit: AtomicU64::new(0), of, next: AtomicUsize::new(0) }
    }

    /// Has `copy` make a copy of the table at `l4` at a place, on the CPU itself; the place.
    pub fn renew(&self, l4: u64, copy: impl FnOnce(usize)) -> usize {
        let place = self.next.load(Ordering::Relaxed) % COPIES;
        self.next.store(place + 1, Ordering::Relaxed);
        // A full barrier ahead of the first look at an entry: whoever changes an entry from now on finds the copy, and has it
        // forgotten; what was changed before is read.
        self.of[place].swap(l4, Ordering::SeqCst);
        copy(place);
        place
    }

    /// Forgets copies of the table at `l4`. The caller has changed the table, and flushes the CPUs that may run on copies.
    pub fn forget(&self, l4: u64) {
        for of in &self.of {
            let _ = of.compare_exchange(l4, NONE, Ordering::SeqCst, Ordering::SeqCst);
        }
        self.exit.store(0, Ordering::SeqCst);
    }

    /// The copy at `place`, of the table at `l4`, which is loaded, is the one for the guest: CR3 is to be `cr3`.
    pub fn remember(&self, l4: u64, place: usize, cr3: u64) {
        self.exit.store(cr3, Ordering::SeqCst);
        // A CPU that has the copy forgotten from now on takes the word back; one that did so before has changed the place's word.
        if self.find(l4) != Some(place) {
            self.exit.store(0, Ordering::SeqCst);
        }
    }

    /// Another table is loaded, on the CPU itself.
    #[inline(always)]
    pub fn loaded_another(&self) {
        self.exit.store(0, Ordering::Relaxed);
    }

    /// Where there is a copy of the table at `l4`.
    pub fn find(&self, l4: u64) -> Option<usize> {
        self.of.iter().position(|of| of.load(Ordering::SeqCst) == l4)
    }
}

impl Default for RootCopies {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_are_kept_and_the_older_is_replaced() {
        let copies = RootCopies::new();
        assert_eq!(copies.find(0x1000), None);
        let mut made = [0; COPIES];
        for l4 in [0x1000, 0x2000, 0x3000] {
            copies.renew(l4, |place| made[place] = l4);
            assert_eq!(copies.find(l4).map(|place| made[place]), Some(l4));
        }
        assert_eq!([0x1000, 0x2000, 0x3000].map(|l4| copies.find(l4).is_some()), [false, true, true]);
        copies.remember(0x3000, 0, 0x7000);
        assert_eq!(copies.exit.load(Ordering::SeqCst), 0x7000);
        copies.forget(0x2000);
        assert_eq!(copies.exit.load(Ordering::SeqCst), 0, "the way out looks again");
        copies.forget(0x9000);
        assert_eq!([0x2000, 0x3000].map(|l4| copies.find(l4).is_some()), [false, true]);
    }

    #[test]
    fn a_table_that_changes_amid_the_copy_is_copied_again() {
        let copies = RootCopies::new();
        let place = copies.renew(0x1000, |_| copies.forget(0x1000));
        assert_eq!(copies.find(0x1000), None);
        copies.remember(0x1000, place, 0x7000);
        assert_eq!(copies.exit.load(Ordering::SeqCst), 0, "the way out looks again");
    }
}
