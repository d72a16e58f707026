//! Trees of page tables that the hypervisor must validate and release: by pins, by base pointers, by lists of
//! entries.

use alloc::format;
use alloc::vec::Vec;

use pvrt::hypercall::mmu::pte;
use pvrt::mem::Pages;
use pvrt::space::*;
use pvrt::{println, probe};
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::mmu::*;
use ring_abi::types::{DOMID_SELF, PAGE_SIZE};

use super::{FREE_SLOT, SELF, TABLE, case};

/// A tree of tables: an L4, an L3, L2s and L1s that are all full.
pub(super) struct Tree {
    pages: Pages,
    l1: usize,
    l2: usize,
}

impl Tree {
    /// Makes a tree of about `count` tables, of which each L1 maps the frame of page 0 in every entry.
    pub(super) fn new(count: usize) -> Option<Self> {
        let l2 = count.div_ceil(512);
        let pages = Pages::zeroed(count + l2 + 3).ok()?;
        let tree = Self { pages, l1: count, l2 };
        let data = tree.frame(0) << 12 | RW | pte::US;
        for n in 0..count {
            for slot in 0..512 {
                tree.set(tree.l1_at(n), slot, data);
            }
        }
        for n in 0..count {
            tree.set(tree.l2_at(n / 512), n % 512, tree.frame(tree.l1_at(n)) << 12 | TABLE);
        }
        for n in 0..l2 {
            tree.set(tree.l3(), n, tree.frame(tree.l2_at(n)) << 12 | TABLE);
        }
        for n in 1..tree.pages.count() {
            if map(tree.at(n), tree.frame(n) << 12 | RO) != 0 {
                return None;
            }
        }
        Some(tree)
    }

    pub(super) fn l1_at(&self, n: usize) -> usize {
        1 + n
    }

    fn l2_at(&self, n: usize) -> usize {
        1 + self.l1 + n
    }

    pub(super) fn l3(&self) -> usize {
        1 + self.l1 + self.l2
    }

    /// The number of the page that becomes the L4 by [`Self::with_kernel`].
    fn l4(&self) -> usize {
        2 + self.l1 + self.l2
    }

    pub(super) fn frame(&self, n: usize) -> u64 {
        self.pages.mfn(n).raw()
    }

    fn at(&self, n: usize) -> u64 {
        (self.pages.va() + n * PAGE_SIZE) as u64
    }

    fn set(&self, n: usize, slot: usize, value: u64) {
        probe::write(self.at(n) + slot as u64 * 8, value);
    }

    /// Fills the L4 with the kernel's entries and the L3, so that this kernel can run on it.
    pub(super) fn with_kernel(&self) -> u64 {
        let l4 = self.l4();
        map(self.at(l4), self.frame(l4) << 12 | RW);
        for slot in (0..256).chain(272..512) {
            self.set(l4, slot, entry(base(), slot));
        }
        self.set(l4, 300, self.frame(self.l3()) << 12 | TABLE);
        map(self.at(l4), self.frame(l4) << 12 | RO);
        self.frame(l4)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for n in 1..self.pages.count() {
            map(self.at(n), self.frame(n) << 12 | RW);
        }
    }
}

/// How many tables fit into a quarter of this guest's memory.
fn tables_of_memory() -> usize {
    let pages = op(__HYPERVISOR_MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut { DOMID_SELF });
    (pages.max(0) as usize / 4).clamp(64, 16 * 1024)
}

/// Validates and releases trees.
pub(super) fn trees() {
    let Some(tree) = Tree::new(tables_of_memory()) else { return println!("stretch: no memory for trees") };
    let l3 = tree.frame(tree.l3());
    case(&format!("pin of {} tables", tree.l1), || extended(MMUEXT_PIN_L3_TABLE, l3, 0));
    case("unpin of them", || extended(MMUEXT_UNPIN_TABLE, l3, 0));
    let slot = (base() << 12) + 300 * 8;
    case("an entry of level 4 to them", || update(slot, l3 << 12 | TABLE));
    case("the entry cleared", || update(slot, 0));
    let l2 = tree.frame(tree.l2_at(0));
    case("pin of one full L2", || extended(MMUEXT_PIN_L2_TABLE, l2, 0));
    case("unpin of it", || extended(MMUEXT_UNPIN_TABLE, l2, 0));
    let old = base();
    let l4 = tree.with_kernel();
    case("new_baseptr to them", || extended(MMUEXT_NEW_BASEPTR, l4, 0));
    case("new_baseptr away from them", || extended(MMUEXT_NEW_BASEPTR, old, 0));
    case("new_user_baseptr to them", || extended(MMUEXT_NEW_USER_BASEPTR, l4, 0));
    case("new_user_baseptr to none", || extended(MMUEXT_NEW_USER_BASEPTR, 0, 0));
    let each: Vec<MmuextOp> = [MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE]
        .into_iter()
        .flat_map(|cmd| (0..tree.l1.min(4096)).map(move |n| (cmd, n)))
        .map(|(cmd, n)| MmuextOp { cmd, arg1: tree.frame(tree.l1_at(n)), ..MmuextOp::default() })
        .collect();
    case("pins and unpins of all L1s in one list", || {
        call(__HYPERVISOR_MMUEXT_OP, [each.as_ptr() as u64, each.len() as u64, 0, SELF, 0])
    });
    lists_of_tables(&tree);
    tree_of_bad_end(&tree);
}

/// Puts full L1s into an L2 and takes them out, by lists that are too short for a check within a call.
fn lists_of_tables(tree: &Tree) {
    const LISTS: usize = 16;
    const EACH: usize = 8;
    let scratch = Scratch::new(1);
    let l2 = tables(scratch.at(0))[2] << 12;
    let requests: Vec<MmuUpdate> = (0..LISTS * EACH)
        .map(|n| {
            let ptr = l2 + (FREE_SLOT + n as u64 / 2 % 4) * 8;
            let val = if n % 2 == 0 { tree.frame(tree.l1_at(n / 2)) << 12 | TABLE } else { 0 };
            MmuUpdate { ptr, val }
        })
        .collect();
    let mut calls: Vec<MulticallEntry> = requests
        .chunks(EACH)
        .map(|list| MulticallEntry {
            op: __HYPERVISOR_MMU_UPDATE.into(),
            result: 0,
            args: [list.as_ptr() as u64, EACH as u64, 0, SELF, 0, 0],
        })
        .collect();
    case("a multicall of 16 mmu_update of 8 entries of level 2", || {
        call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, LISTS as u64, 0, 0, 0])
    });
}

/// Pins a tree whose last entry is bad, so that the hypervisor must release all that it has validated.
fn tree_of_bad_end(tree: &Tree) {
    let last = tree.l1_at(tree.l1 - 1);
    map(tree.at(last), tree.frame(last) << 12 | RW);
    tree.set(last, 511, 0x1_0000_0000_0007);
    map(tree.at(last), tree.frame(last) << 12 | RO);
    case("pin of tables whose last is bad", || extended(MMUEXT_PIN_L3_TABLE, tree.frame(tree.l3()), 0));
}
