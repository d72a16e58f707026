//! Guest virtual memory through the loaded page tables, and other instructions that may fault.
#![allow(unsafe_code)] // raw accesses with fix-ups

use microhv::platform::GuestFault;

unsafe extern "C" {
    fn copy_guest(to: *mut u8, from: *const u8, bytes: usize) -> usize;
    fn load_ds(selector: u32) -> u32;
    fn load_es(selector: u32) -> u32;
    fn load_fs(selector: u32) -> u32;
    fn load_gs(selector: u32) -> u32;
    static __ex_table_start: [u64; 2];
    static __ex_table_end: [u64; 2];
}

/// End of the low half that guests have.
const LOW_END: u64 = 0x0000_8000_0000_0000;
/// First guest address behind the hypervisor's slots.
const HIGH_START: u64 = 0xffff_8800_0000_0000;

/// Whether all of `bytes` at `va` are addresses that a guest may use.
#[inline(always)]
fn is_guest_range(va: u64, bytes: usize) -> bool {
    match va.checked_add(bytes as u64) {
        Some(end) => end <= LOW_END || va >= HIGH_START,
        // Up to and with the last byte of the address space the sum wraps to 0.
        None => va >= HIGH_START && va.wrapping_add(bytes as u64) == 0,
    }
}

/// Copies from guest memory.
#[inline]
pub(crate) fn copy_from(to: &mut [u8], va: u64) -> Result<(), GuestFault> {
    if !is_guest_range(va, to.len()) {
        return Err(GuestFault { va });
    }
    // SAFETY: `to` is ours; the guest's side may fault, which `copy_guest` reports, and is not the hypervisor's.
    let left = unsafe { copy_guest(to.as_mut_ptr(), va as *const u8, to.len()) };
    if left == 0 { Ok(()) } else { Err(GuestFault { va: va + (to.len() - left) as u64 }) }
}

/// Copies to guest memory. Supervisor accesses honour read-only pages, since CR0.WP is on.
#[inline]
pub(crate) fn copy_to(va: u64, from: &[u8]) -> Result<(), GuestFault> {
    if !is_guest_range(va, from.len()) {
        return Err(GuestFault { va });
    }
    // SAFETY: as in `copy_from`.
    let left = unsafe { copy_guest(va as *mut u8, from.as_ptr(), from.len()) };
    if left == 0 { Ok(()) } else { Err(GuestFault { va: va + (from.len() - left) as u64 }) }
}

/// A data segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataSegment {
    Ds,
    Es,
    Fs,
    Gs,
}

/// Loads a data segment register from the guest's tables; a bad selector loads null and gives `false`.
pub(crate) fn load_selector(segment: DataSegment, selector: u16) -> bool {
    // SAFETY: ring 0 in 64-bit mode uses none of these segments; a fault is reported.
    unsafe {
        (match segment {
            DataSegment::Ds => load_ds(selector.into()),
            DataSegment::Es => load_es(selector.into()),
            DataSegment::Fs => load_fs(selector.into()),
            DataSegment::Gs => load_gs(selector.into()),
        }) != 0
    }
}

/// Where to go on after a fault at `rip`, if one was expected there.
pub(crate) fn fix_up(rip: u64) -> Option<u64> {
    let start = &raw const __ex_table_start;
    let end = &raw const __ex_table_end;
    // SAFETY: the linker script puts both symbols around pairs of u64, 8-aligned, which nobody writes.
    let table = unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
    table.iter().find(|[at, _]| *at == rip).map(|[_, to]| *to)
}
