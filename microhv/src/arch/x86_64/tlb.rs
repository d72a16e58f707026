//! Which page tables are loaded, and the TLB: the library's [`Paging`].
#![allow(unsafe_code)] // control registers

use microhv::platform::{CpuSet, Paging};
use ring_abi::types::{GuestVa, Mfn};
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::machine::Machine;
use super::percpu::this_cpu;
use super::{cpu, paging};

/// Flushes all by turning global pages off and on; `false`: they are off, and a load of CR3 flushes all.
#[inline]
fn flush_by_global_pages() -> bool {
    const GLOBAL: u64 = Cr4Flags::PAGE_GLOBAL.bits();
    let cr4 = Cr4::read_raw();
    let is_on = cr4 & GLOBAL != 0;
    if is_on {
        // SAFETY: turns global pages off and on again, nothing else.
        unsafe {
            Cr4::write_raw(cr4 & !GLOBAL);
            Cr4::write_raw(cr4);
        }
    }
    is_on
}

impl Paging for Machine {
    #[inline]
    fn load_cr3(&self, l4: Mfn) {
        // SAFETY: a validated L4, or the hypervisor's: both hold the hypervisor's slots.
        unsafe { cpu::set_cr3(l4.maddr().raw()) };
    }

    #[inline]
    fn load_cr3_flushing(&self, l4: Mfn) {
        self.load_cr3(l4);
        flush_by_global_pages();
    }

    fn flush_tlb_local(&self) {
        if !flush_by_global_pages() {
            // SAFETY: what is loaded already.
            unsafe { cpu::set_cr3(cpu::cr3()) };
        }
    }

    #[inline]
    fn invlpg(&self, va: GuestVa) {
        // XSA-279: a non-canonical address does nothing; the hypervisor's own pages may be dropped at any time.
        cpu::invlpg(va.raw());
    }

    fn flush_tlb(&self, cpus: CpuSet) {
        if cpus.contains(this_cpu()) {
            self.flush_tlb_local();
        }
    }

    fn fill_hypervisor_slots(&self, l4: Mfn) {
        paging::fill_slots(l4.maddr().raw());
    }
}
