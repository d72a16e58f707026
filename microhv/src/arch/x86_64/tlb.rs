//! Which page tables are loaded, and the TLB: the library's [`Paging`].
#![allow(unsafe_code)] // control registers

use microhv::platform::{CpuSet, Paging};
use ring_abi::types::Mfn;

use super::machine::Machine;
use super::percpu::this_cpu;
use super::{cpu, paging};

/// Loads an L4, which flushes what is not marked global.
#[inline]
pub(crate) fn load_l4(maddr: u64) {
    // SAFETY: a validated L4, or the hypervisor's: both hold the hypervisor's slots.
    unsafe { cpu::set_cr3(maddr) };
}

/// Flushes what is marked global too, which guests' user pages are.
pub(crate) fn flush_global() {
    if !flush_by_global_pages() {
        load_l4(cpu::cr3());
    }
}

/// Loads an L4 and flushes what is marked global too.
#[inline]
pub(crate) fn load_l4_flushing_global(maddr: u64) {
    load_l4(maddr);
    flush_by_global_pages();
}

/// Flushes all by turning global pages off and on; `false`: they are off, and a load of CR3 flushes all.
#[inline]
fn flush_by_global_pages() -> bool {
    let cr4 = cpu::cr4();
    let is_on = cr4 & paging::CR4_PGE != 0;
    if is_on {
        // SAFETY: turns global pages off and on again, nothing else.
        unsafe {
            cpu::set_cr4(cr4 & !paging::CR4_PGE);
            cpu::set_cr4(cr4);
        }
    }
    is_on
}

impl Paging for Machine {
    #[inline]
    fn load_cr3(&self, l4: Mfn) {
        load_l4(l4.maddr().raw());
    }

    #[inline]
    fn load_cr3_flushing(&self, l4: Mfn) {
        load_l4_flushing_global(l4.maddr().raw());
    }

    fn flush_tlb_local(&self) {
        flush_global();
    }

    #[inline]
    fn invlpg(&self, va: u64) {
        // XSA-279: a non-canonical address does nothing; the hypervisor's own pages may be dropped at any time.
        cpu::invlpg(va);
    }

    fn flush_tlb(&self, cpus: CpuSet) {
        if cpus.contains(this_cpu()) {
            flush_global();
        }
    }

    fn fill_hypervisor_slots(&self, l4: Mfn) {
        paging::fill_slots(l4.maddr().raw());
    }
}
