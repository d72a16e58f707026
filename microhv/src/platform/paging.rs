//! Which page tables are loaded, and what the TLBs remember of them.

use ring_abi::types::{GuestVa, Mfn};

use super::CpuSet;

/// Page tables as the processor uses them.
pub trait Paging {
    /// Loads a page-table base, which flushes what is not global.
    fn load_cr3(&self, l4: Mfn);
    /// Loads a page-table base and flushes this CPU's TLB, global entries included.
    fn load_cr3_flushing(&self, l4: Mfn);
    /// Flushes this CPU's TLB, global entries included.
    fn flush_tlb_local(&self);
    /// Flushes one page of this CPU's TLB.
    fn invlpg(&self, va: GuestVa);
    /// Flushes the TLBs of `cpus`, and waits until it is done.
    fn flush_tlb(&self, cpus: CpuSet);
    /// Writes the hypervisor's slots (256-271) of a guest L4 that is being validated.
    fn fill_hypervisor_slots(&self, l4: Mfn);
}
