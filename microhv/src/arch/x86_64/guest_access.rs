//! Guest virtual memory through the loaded page tables, and other instructions that may fault.
#![allow(unsafe_code)] // raw accesses with fix-ups

use core::arch::asm;
use core::mem::MaybeUninit;

use microhv::mem::pte::LOW_HALF;
use microhv::platform::GuestFault;
use ring_abi::segment::HYPERVISOR_VIRT_END;
use zerocopy::IntoBytes;

unsafe extern "C" {
    fn copy_guest(to: *mut u8, from: *const u8, bytes: usize) -> usize;
    fn load_ds(selector: u32) -> u32;
    fn load_es(selector: u32) -> u32;
    fn load_fs(selector: u32) -> u32;
    fn load_gs(selector: u32) -> u32;
    static __ex_table_start: [u64; 2];
    static __ex_table_end: [u64; 2];
}

/// First guest address behind the hypervisor's slots.
const HIGH_START: u64 = HYPERVISOR_VIRT_END;

/// Whether all of `bytes` at `va` are addresses that a guest may use.
#[inline(always)]
fn is_guest_range(va: u64, bytes: usize) -> bool {
    if bytes <= 8 {
        // What begins in the guest's part and does not end there faults, like any address that is none.
        return va.wrapping_sub(LOW_HALF) >= HIGH_START - LOW_HALF;
    }
    match va.checked_add(bytes as u64) {
        Some(end) => end <= LOW_HALF || va >= HIGH_START,
        // Up to and with the last byte of the address space the sum wraps to 0.
        None => va >= HIGH_START && va.wrapping_add(bytes as u64) == 0,
    }
}

/// One access of 4 or 8 bytes; on a fault it goes on behind it, with `done` 0.
macro_rules! access {
    ($instruction:literal, $done:ident, $($operand:tt)*) => {
        asm!(
            concat!("2: ", $instruction),
            "3:",
            ".pushsection .text.fix_up, \"ax\", @progbits",
            "22: xor {done:e}, {done:e}",
            "jmp 3b",
            ".popsection",
            ".pushsection .ex_table, \"a\", @progbits",
            ".quad 2b, 22b",
            ".popsection",
            done = inout(reg) $done,
            $($operand)*
            options(nostack),
        )
    };
}

/// Copies quadwords, one side of which may fault: how many were not copied.
///
/// # Safety
/// One side is the guest's, the other ours.
#[inline(always)]
unsafe fn copy_words(to: *mut u8, from: *const u8, words: usize) -> usize {
    let left;
    // SAFETY: the caller's duty; a fault goes on behind the copy with the rest in rcx.
    unsafe {
        asm!(
            "2: rep movsq",
            "3:",
            ".pushsection .ex_table, \"a\", @progbits",
            ".quad 2b, 3b",
            ".popsection",
            inout("rcx") words => left, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
    left
}

/// Copies from guest memory. With a length known to the compiler, 4 and 8 bytes are one instruction.
#[inline(always)]
pub(crate) fn copy_from(to: &mut [u8], va: u64) -> Result<(), GuestFault> {
    if !is_guest_range(va, to.len()) {
        return Err(GuestFault { va });
    }
    if let Ok(word) = <&mut [u8; 8]>::try_from(&mut *to) {
        let (mut done, value): (u32, u64);
        done = 1;
        // SAFETY: the range is the guest's; a fault is reported.
        unsafe { access!("mov {value}, [{at}]", done, at = in(reg) va, value = out(reg) value,) };
        *word = value.to_ne_bytes();
        return if done != 0 { Ok(()) } else { Err(GuestFault { va }) };
    }
    if let Ok(word) = <&mut [u8; 4]>::try_from(&mut *to) {
        let (mut done, value): (u32, u32);
        done = 1;
        // SAFETY: the range is the guest's; a fault is reported.
        unsafe { access!("mov {value:e}, [{at}]", done, at = in(reg) va, value = out(reg) value,) };
        *word = value.to_ne_bytes();
        return if done != 0 { Ok(()) } else { Err(GuestFault { va }) };
    }
    if to.len().is_multiple_of(8) {
        // SAFETY: `to` is ours, the range is the guest's.
        let left = unsafe { copy_words(to.as_mut_ptr(), va as *const u8, to.len() / 8) };
        return if left == 0 { Ok(()) } else { Err(GuestFault { va: va + (to.len() - 8 * left) as u64 }) };
    }
    // SAFETY: `to` is ours; the guest's side may fault, which `copy_guest` reports, and is not the hypervisor's.
    let left = unsafe { copy_guest(to.as_mut_ptr(), va as *const u8, to.len()) };
    if left == 0 { Ok(()) } else { Err(GuestFault { va: va + (to.len() - left) as u64 }) }
}

/// Copies to guest memory. Supervisor accesses honour read-only pages, since CR0.WP is on. With a length known to the
/// compiler, 2, 4 and 8 bytes are one instruction.
#[inline(always)]
pub(crate) fn copy_to(va: u64, from: &[u8]) -> Result<(), GuestFault> {
    if !is_guest_range(va, from.len()) {
        return Err(GuestFault { va });
    }
    let mut done: u32 = 1;
    // SAFETY: the range is the guest's; a fault is reported.
    unsafe {
        match *from {
            [a, b] => {
                let value = u16::from_ne_bytes([a, b]);
                access!("mov [{at}], {value:x}", done, at = in(reg) va, value = in(reg) value,);
            }
            [a, b, c, d] => {
                let value = u32::from_ne_bytes([a, b, c, d]);
                access!("mov [{at}], {value:e}", done, at = in(reg) va, value = in(reg) value,);
            }
            [a, b, c, d, e, f, g, h] => {
                let value = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                access!("mov [{at}], {value}", done, at = in(reg) va, value = in(reg) value,);
            }
            _ if from.len().is_multiple_of(8) => {
                let left = copy_words(va as *mut u8, from.as_ptr(), from.len() / 8);
                return if left == 0 {
                    Ok(())
                } else {
                    Err(GuestFault { va: va + (from.len() - 8 * left) as u64 })
                };
            }
            _ => return copy_many_to(va, from),
        }
    }
    if done != 0 { Ok(()) } else { Err(GuestFault { va }) }
}

/// [`copy_to`] of any length. The range was checked.
fn copy_many_to(va: u64, from: &[u8]) -> Result<(), GuestFault> {
    // SAFETY: as in `copy_from`.
    let left = unsafe { copy_guest(va as *mut u8, from.as_ptr(), from.len()) };
    if left == 0 { Ok(()) } else { Err(GuestFault { va: va + (from.len() - left) as u64 }) }
}

/// Writes the words of a trap frame: seven or eight in a row of stores, else as bytes.
#[inline(always)]
pub(crate) fn write_frame<const N: usize>(va: u64, words: [u64; N]) -> Result<(), GuestFault> {
    if N != 7 && N != 8 {
        return copy_to(va, words.as_bytes());
    }
    if !is_guest_range(va, N * 8) {
        return Err(GuestFault { va });
    }
    let mut done: u32 = 1;
    // SAFETY: the range is the guest's; a fault goes on behind the stores with `done` 0.
    unsafe {
        asm!(
            "2: mov [{at}], {w0}",
            "3: mov [{at} + 8], {w1}",
            "4: mov [{at} + 16], {w2}",
            "5: mov [{at} + 24], {w3}",
            "6: mov [{at} + 32], {w4}",
            "7: mov [{at} + 40], {w5}",
            "8: mov [{at} + 48], {w6}",
            "9:",
            ".pushsection .text.fix_up, \"ax\", @progbits",
            "22: xor {done:e}, {done:e}",
            "jmp 9b",
            ".popsection",
            ".pushsection .ex_table, \"a\", @progbits",
            ".quad 2b, 22b, 3b, 22b, 4b, 22b, 5b, 22b, 6b, 22b, 7b, 22b, 8b, 22b",
            ".popsection",
            at = in(reg) va, done = inout(reg) done,
            w0 = in(reg) words[0], w1 = in(reg) words[1], w2 = in(reg) words[2], w3 = in(reg) words[3],
            w4 = in(reg) words[4], w5 = in(reg) words[5], w6 = in(reg) words[6],
            options(nostack),
        );
        if N == 8 && done != 0 {
            asm!(
                "2: mov [{at} + 56], {w7}",
                "9:",
                ".pushsection .text.fix_up, \"ax\", @progbits",
                "22: xor {done:e}, {done:e}",
                "jmp 9b",
                ".popsection",
                ".pushsection .ex_table, \"a\", @progbits",
                ".quad 2b, 22b",
                ".popsection",
                at = in(reg) va, done = inout(reg) done, w7 = in(reg) words[N - 1],
                options(nostack),
            );
        }
    }
    if done != 0 { Ok(()) } else { Err(GuestFault { va }) }
}

/// Reads words, the copy in line.
#[inline(always)]
pub(crate) fn read_words(to: &mut [u64], va: u64) -> Result<(), GuestFault> {
    if !is_guest_range(va, size_of_val(to)) {
        return Err(GuestFault { va });
    }
    let left: u64;
    // SAFETY: the range is the guest's, and `to` is as long; a fault goes on behind the copy with the rest in rcx.
    unsafe {
        asm!(
            "2: rep movsq",
            "3:",
            ".pushsection .ex_table, \"a\", @progbits",
            ".quad 2b, 3b",
            ".popsection",
            inout("rcx") to.len() => left, inout("rsi") va => _, inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        );
    }
    if left == 0 { Ok(()) } else { Err(GuestFault { va }) }
}

/// Reads the words of a frame, the copy in line.
#[inline(always)]
pub(crate) fn read_frame<const N: usize>(va: u64) -> Result<[u64; N], GuestFault> {
    if !is_guest_range(va, N * 8) {
        return Err(GuestFault { va });
    }
    let mut words = MaybeUninit::<[u64; N]>::uninit();
    if N == 1 {
        let word: u64;
        let mut done: u32 = 1;
        // SAFETY: as below; a fault goes on behind the load with `done` 0.
        unsafe {
            asm!(
                "2: mov {word}, [{at}]",
                "9:",
                ".pushsection .text.fix_up, \"ax\", @progbits",
                "22: xor {done:e}, {done:e}",
                "xor {word:e}, {word:e}",
                "jmp 9b",
                ".popsection",
                ".pushsection .ex_table, \"a\", @progbits",
                ".quad 2b, 22b",
                ".popsection",
                at = in(reg) va, word = out(reg) word, done = inout(reg) done,
                options(nostack),
            );
        }
        return if done != 0 { Ok([word; N]) } else { Err(GuestFault { va }) };
    }
    if N == 2 {
        let (first, second): (u64, u64);
        let mut done: u32 = 1;
        // SAFETY: as above.
        unsafe {
            asm!(
                "2: mov {first}, [{at}]",
                "3: mov {second}, [{at} + 8]",
                "9:",
                ".pushsection .text.fix_up, \"ax\", @progbits",
                "22: xor {done:e}, {done:e}",
                "xor {first:e}, {first:e}",
                "xor {second:e}, {second:e}",
                "jmp 9b",
                ".popsection",
                ".pushsection .ex_table, \"a\", @progbits",
                ".quad 2b, 22b, 3b, 22b",
                ".popsection",
                at = in(reg) va, first = out(reg) first, second = out(reg) second, done = inout(reg) done,
                options(nostack),
            );
        }
        let words = core::array::from_fn(|index| if index == 0 { first } else { second });
        return if done != 0 { Ok(words) } else { Err(GuestFault { va }) };
    }
    // SAFETY: the buffer is ours, the range is the guest's.
    let left = unsafe { copy_words(words.as_mut_ptr().cast(), va as *const u8, N) };
    // SAFETY: all words were written when nothing is left.
    if left == 0 { Ok(unsafe { words.assume_init() }) } else { Err(GuestFault { va }) }
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
