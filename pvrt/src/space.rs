//! This domain's address space as its tables describe the space, frames that belong to others, and raw hypercalls on
//! both: for kernels that test the hypervisor below them.
//!
//! The functions here are safe to call only in this sense: the caller asks for something that must be refused, or for
//! something that concerns memory set apart for the purpose ([`Scratch`]).
#![allow(unsafe_code)] // raw hypercalls, reads of tables

use alloc::vec::Vec;

use ring_abi::hypercall::*;
use ring_abi::mmu::{MmuUpdate, MmuextOp, UVMF_INVLPG};
use ring_abi::types::{DOMID_SELF, PAGE_SIZE};

use crate::hypercall::mmu::pte;
use crate::hypercall::raw;
use crate::mem::{Pages, WindowPages, tables as memory};
use crate::probe;

/// The machine-to-physical table.
pub const M2P: u64 = 0xffff_8000_0000_0000;
/// Where page 0 is mapped.
const LINEAR: u64 = 0xffff_ffff_8000_0000;
/// End of the linear map, where the window region begins.
const LINEAR_END: u64 = 0xffff_ffff_c000_0000;
/// End of the window region.
const WINDOW_END: u64 = LINEAR_END + (512 << 20);
/// Page numbers from here on are those of memory that tests ask for: no domain beside them has so many pages.
const TESTS_PFN: u64 = 0x3_0000;
/// Bits of an entry of plain memory.
pub const RW: u64 = pte::P | pte::RW | pte::A | pte::D;
/// Bits of an entry that maps memory read-only.
pub const RO: u64 = pte::P | pte::A;

/// A hypercall, whatever its number and arguments.
pub fn call(number: u32, args: [u64; 5]) -> i64 {
    // SAFETY: this kernel asks for what must be refused, and for what concerns memory set apart for the purpose.
    unsafe { raw(number, args) }
}

/// A hypercall with a structure by address.
pub fn op<T>(number: u32, command: u32, arg: &mut T) -> i64 {
    call(number, [command.into(), (&raw mut *arg) as u64, 0, 0, 0])
}

/// A hypercall with an array of one entry.
pub fn one<T>(number: u32, command: u32, arg: &mut T) -> i64 {
    call(number, [command.into(), (&raw mut *arg) as u64, 1, 0, 0])
}

/// One request of `mmu_update` on this domain's tables and frames.
pub fn update(ptr: u64, val: u64) -> i64 {
    update_as(ptr, val, DOMID_SELF.into())
}

/// One request of `mmu_update`; `whose` names the domains.
pub fn update_as(ptr: u64, val: u64, whose: u64) -> i64 {
    let request = MmuUpdate { ptr, val };
    call(__HYPERVISOR_MMU_UPDATE, [(&raw const request) as u64, 1, 0, whose, 0])
}

/// One operation of `mmuext_op`.
pub fn extended(cmd: u32, arg1: u64, arg2: u64) -> i64 {
    extended_as(cmd, arg1, arg2, DOMID_SELF.into())
}

/// One operation of `mmuext_op` on another domain.
pub fn extended_as(cmd: u32, arg1: u64, arg2: u64, domain: u64) -> i64 {
    let request = MmuextOp { cmd, arg1, arg2, ..MmuextOp::default() };
    call(__HYPERVISOR_MMUEXT_OP, [(&raw const request) as u64, 1, 0, domain, 0])
}

/// `update_va_mapping` with a flush of the address `va`.
pub fn map(va: u64, entry: u64) -> i64 {
    call(__HYPERVISOR_UPDATE_VA_MAPPING, [va, entry, UVMF_INVLPG, 0, 0])
}

/// The frame of the top table.
pub fn base() -> u64 {
    let cr3: u64;
    // SAFETY: emulated for a kernel in ring 3; reads a register.
    unsafe { core::arch::asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    cr3 >> 12
}

/// The page number of one of this domain's frames.
fn pfn(mfn: u64) -> u64 {
    probe::read(M2P + mfn * 8).unwrap_or(u64::MAX)
}

/// Where a frame of this domain is mapped in the linear map.
pub fn linear(mfn: u64) -> u64 {
    LINEAR.wrapping_add(pfn(mfn).wrapping_mul(PAGE_SIZE as u64))
}

/// Entry `slot` of the table in frame `mfn`.
pub fn entry(mfn: u64, slot: usize) -> u64 {
    probe::read(linear(mfn) + slot as u64 * 8).unwrap_or(0)
}

/// Frames of the tables that map `va`, from the top one down: L4, L3, L2, L1.
pub fn tables(va: u64) -> [u64; 4] {
    let mut frames = [base(), 0, 0, 0];
    for level in 0..3 {
        let slot = va >> (39 - 9 * level) & 511;
        frames[level + 1] = (entry(frames[level], slot as usize) & pte::FRAME) >> 12;
    }
    frames
}

/// The entry that maps `va`.
pub fn leaf(va: u64) -> u64 {
    entry(tables(va)[3], (va >> 12 & 511) as usize)
}

/// The frames that this domain maps as memory, in order: memory that came after its start is in the window region alone, and what the
/// M2P says of a frame is the domain's own to change.
fn own_frames() -> Vec<u64> {
    const TABLE_BYTES: usize = 512 * PAGE_SIZE;
    let mut frames = Vec::new();
    for first in (LINEAR..WINDOW_END).step_by(TABLE_BYTES) {
        let above = entry(tables(first)[2], (first >> 21 & 511) as usize);
        if above & pte::P != 0 {
            let entries = (0..512).map(|slot| entry((above & pte::FRAME) >> 12, slot));
            frames
                .extend(entries.filter(|entry| entry & pte::P != 0).map(|entry| (entry & pte::FRAME) >> 12));
        }
    }
    frames.sort_unstable();
    frames
}

/// One past the last frame of the machine's memory.
pub fn end_of_memory() -> u64 {
    const XENMEM_MAXIMUM_RAM_PAGE: u64 = 2;
    call(__HYPERVISOR_MEMORY_OP, [XENMEM_MAXIMUM_RAM_PAGE, 0, 0, 0, 0]).max(0x1000) as u64
}

/// Frames all over the machine that are other domains', the hypervisor's, or free.
pub fn foreign_frames() -> Vec<u64> {
    let end = end_of_memory();
    let step = (end / 96).max(1);
    let own = own_frames();
    let all = (0..96).map(|n| n * step + n % 7);
    // Pages of this domain's that are mapped nowhere just now: its first ones, and those that a test has asked for.
    let is_kept = |mfn: u64| pfn(mfn).wrapping_add(1) > TESTS_PFN || memory::was_given(pfn(mfn), mfn);
    let is_own = |mfn: u64| own.binary_search(&mfn).is_ok() || (pfn(mfn) != u64::MAX && is_kept(mfn));
    all.filter(|mfn| *mfn < end && !is_own(*mfn)).collect()
}

/// Pages of memory, and as many addresses that have page tables; nothing else uses either. The pages are mapped in the
/// linear map, too. On drop the addresses are unmapped and the pages are made writable.
pub struct Scratch {
    /// The memory.
    pub pages: Pages,
    window: WindowPages,
    count: usize,
}

impl Scratch {
    /// `count` pages, zeroed, and as many addresses.
    ///
    /// # Panics
    /// When memory is used up.
    pub fn new(count: usize) -> Self {
        let pages = Pages::zeroed(count).expect("scratch pages");
        let window = WindowPages::take(count).expect("scratch addresses");
        Self { pages, window, count }
    }

    /// Address `n` that is free to be mapped.
    pub fn at(&self, n: usize) -> u64 {
        assert!(n < self.count);
        (self.window.va() + n * PAGE_SIZE) as u64
    }

    /// Frame of page `n`.
    pub fn mfn(&self, n: usize) -> u64 {
        self.pages.mfn(n).raw()
    }

    /// Address of page `n` in the linear map.
    pub fn page(&self, n: usize) -> u64 {
        assert!(n < self.count);
        (self.pages.va() + n * PAGE_SIZE) as u64
    }

    /// Machine address of the L1 entry for address `n`.
    pub fn entry_address(&self, n: usize) -> u64 {
        (tables(self.at(n))[3] << 12) + (self.at(n) >> 12 & 511) * 8
    }

    /// Makes page `n` read-only in the linear map, as a table or descriptor page must be.
    pub fn protect(&self, n: usize) -> i64 {
        map(self.page(n), self.mfn(n) << 12 | RO)
    }

    /// Takes page `n` out of the linear map; [`Scratch::unprotect`] puts the page there again.
    pub fn hide(&self, n: usize) -> i64 {
        map(self.page(n), 0)
    }

    /// Makes page `n` writable again.
    pub fn unprotect(&self, n: usize) -> i64 {
        map(self.page(n), self.mfn(n) << 12 | RW)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for n in 0..self.count {
            map(self.at(n), 0);
            if self.unprotect(n) != 0 {
                log::warn!("page {:#x} stays read-only", self.mfn(n));
            }
        }
    }
}
