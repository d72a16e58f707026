//! SMEP and SMAP: ring 0 executes no page of a guest, and reads and writes one only where `guest_access.rs` says so, between
//! STAC and CLAC. What else touches a guest's page is an error of the hypervisor's own, which ends it.
//!
//! On a CPU with SMAP each place where a guest's memory is used becomes a jump to the same instructions between STAC and CLAC,
//! and entries clear AC, which a guest may have set: SYSCALL does by FMASK, SYSENTER loads flags, and all others execute CLAC.
//! Other CPUs execute nothing for this but a NOP on entry by an exception or interrupt.
#![allow(unsafe_code)] // code that is changed, and a control register

use core::sync::atomic::{AtomicU64, Ordering};

use microhv::boot::speculation::Measures;
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::percpu::this_cpu;
use super::speculation;

/// CLAC.
const CLAC: [u8; 3] = [0x0f, 0x01, 0xca];
const SMAP: Cr4Flags = Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION;

/// What each CPU's CR4 has of the two.
static BITS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static __smap_table_start: [u64; 2];
    static __smap_table_end: [u64; 2];
    static clac_trap: u8;
    static own_clac_trap: u8;
    static clac_ist: u8;
    static own_clac_ist: u8;
}

/// Does what was chosen, on the boot CPU: before other CPUs start, and before guests and interrupts.
pub(crate) fn apply(measures: &Measures) {
    if measures.smap {
        let start = &raw const __smap_table_start;
        let end = &raw const __smap_table_end;
        // SAFETY: the linker script puts both symbols around pairs of u64, 8-aligned, which nobody writes.
        let places = unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
        for [place, guarded] in places {
            speculation::patch_jump(*place, *guarded);
        }
        let entries =
            [&raw const clac_trap, &raw const own_clac_trap, &raw const clac_ist, &raw const own_clac_ist];
        for place in entries {
            speculation::patch_bytes(place as u64, CLAC);
        }
    }
    let smep = if measures.smep { Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION } else { Cr4Flags::empty() };
    let smap = if measures.smap { SMAP } else { Cr4Flags::empty() };
    BITS.store((smep | smap).bits(), Ordering::Relaxed);
    set_up();
}

/// Sets this CPU's control register.
pub(crate) fn set_up() {
    let bits = Cr4Flags::from_bits_truncate(BITS.load(Ordering::Relaxed));
    // SAFETY: ring 0 executes no page of a guest, and all its accesses to one were patched if SMAP is among the bits.
    unsafe { Cr4::update(|cr4| cr4.insert(bits)) };
}

/// Whether this CPU refuses ring 0 guests' pages.
pub(crate) fn is_on() -> bool {
    Cr4::read().contains(SMAP)
}

/// Turns SMAP off on this CPU for good: the CPU refuses pages of guests to ring 3, too, and the guest's instruction is none that
/// the hypervisor executes in its place. Only an emulator does that.
#[cold]
pub(crate) fn give_up() {
    log::warn!("CPU {} applies SMAP to ring 3 and goes on without SMAP", this_cpu().raw());
    // SAFETY: takes back a restriction.
    unsafe { Cr4::update(|cr4| cr4.remove(SMAP)) };
}
