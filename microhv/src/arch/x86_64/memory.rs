//! Machine memory through the direct map: the library's [`MachineMemory`].
#![allow(unsafe_code)] // raw accesses

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use microhv::platform::MachineMemory;
use ring_abi::shared::SharedBytes;
use ring_abi::types::{Maddr, Mfn, PAGE_SIZE, Pfn};

use super::machine::Machine;
use super::paging;

/// Machine memory as a pointer.
#[inline(always)]
fn at(maddr: u64) -> *mut u8 {
    paging::direct(maddr) as *mut u8
}

impl MachineMemory for Machine {
    #[inline]
    fn table(&self, mfn: Mfn) -> &[AtomicU64; 512] {
        // SAFETY: callers pass RAM frames by the frame table, whole and aligned; the direct map is there for ever, and guests'
        // concurrent accesses are atomic words to us.
        unsafe { &*at(mfn.maddr().raw()).cast() }
    }

    #[inline(never)] // four copies would be 8 KiB
    fn present_groups(&self, mfn: Mfn) -> u64 {
        let groups;
        // Each group's present bit goes by way of the carry into the top of the word, which 64 bits fill. The compiler
        // would load every entry by an instruction of its own: this runs at each pin, for mostly empty tables.
        // SAFETY: reads a whole RAM frame, as `table` gives it; another CPU may set its accessed and dirty bits.
        unsafe {
            asm!(
                "2:",
                ".irp group, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960",
                "mov {any:e}, [{at} + \\group]",
                ".irp entry, 8, 16, 24, 32, 40, 48, 56",
                "or {any:e}, [{at} + \\group + \\entry]",
                ".endr",
                "shr {any:e}, 1",
                "rcr {groups}, 1",
                ".endr",
                "add {at}, 1024",
                "dec {left:e}",
                "jnz 2b",
                at = inout(reg) at(mfn.maddr().raw()) => _, any = out(reg) _, groups = out(reg) groups,
                left = inout(reg) 4 => _,
                options(nostack, readonly),
            );
        }
        groups
    }

    fn write_bytes(&self, to: Maddr, from: &[u8]) {
        // SAFETY: RAM by the frame table; `from` is private.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), at(to.raw()), from.len()) };
    }

    #[inline]
    fn copy_bytes(&self, to: Maddr, from: Maddr, len: usize) {
        // SAFETY: RAM by the frame table. Ranges of one frame may overlap: bytes are then repeated, which is all that a
        // guest that asks for it gets.
        unsafe {
            asm!(
                "rep movsq",
                "mov ecx, {tail:e}",
                "rep movsb",
                tail = in(reg) len & 7,
                inout("rcx") len >> 3 => _, inout("rsi") at(from.raw()) => _, inout("rdi") at(to.raw()) => _,
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline]
    fn zero_frame(&self, mfn: Mfn) {
        // SAFETY: a whole RAM frame that nobody uses yet.
        unsafe { core::ptr::write_bytes(at(mfn.maddr().raw()), 0, PAGE_SIZE) };
    }

    #[inline]
    fn shared(&self, mfn: Mfn) -> SharedBytes<'static> {
        // SAFETY: the direct map covers all RAM for ever; shared frames are reached by atomics or such values alone.
        unsafe { SharedBytes::new(at(mfn.maddr().raw()), PAGE_SIZE) }
    }

    fn m2p(&self, mfn: Mfn) -> Pfn {
        paging::m2p_entry(mfn.raw()).map_or(Pfn::INVALID, |entry| Pfn::new(entry.load(Ordering::Relaxed)))
    }

    #[inline]
    fn set_m2p(&self, mfn: Mfn, pfn: Pfn) {
        if let Some(entry) = paging::m2p_entry(mfn.raw()) {
            entry.store(pfn.raw(), Ordering::Relaxed);
        }
    }
}
