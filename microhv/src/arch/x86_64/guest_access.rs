//! Guest virtual memory through the loaded page tables, the library's [`GuestMemory`]; other instructions that may fault.
#![allow(unsafe_code)] // raw accesses with fix-ups

use core::arch::asm;
use core::mem::MaybeUninit;

use microhv::frames::pte::LOW_HALF;
use microhv::platform::{GuestFault, GuestMemory, Settled};
use ring_abi::segment::HYPERVISOR_VIRT_END;
use ring_abi::types::GuestVa;
use zerocopy::IntoBytes;

use super::machine::Machine;

unsafe extern "C" {
    static __ex_table_start: [u64; 2];
    static __ex_table_end: [u64; 2];
}

/// Whether all of `bytes` at `va` are addresses that a guest may use.
#[inline(always)]
fn is_guest_range(va: GuestVa, bytes: usize) -> bool {
    let va = va.raw();
    if bytes <= 8 {
        // A short access that begins in the guest's range and ends outside is not canonical at its end, so it
        // faults.
        return va.wrapping_sub(LOW_HALF) >= HYPERVISOR_VIRT_END - LOW_HALF;
    }
    match va.checked_add(bytes as u64) {
        Some(end) => end <= LOW_HALF || va >= HYPERVISOR_VIRT_END,
        // The end of a range that includes the last byte of the address space wraps to 0.
        None => va >= HYPERVISOR_VIRT_END && va.wrapping_add(bytes as u64) == 0,
    }
}

/// Instructions that may fault, one after the other. After a fault the code goes on behind them, with `done` 0: the trap
/// handler finds each one's address in `.ex_table`, with the address to go on at.
macro_rules! access {
    ([$($instruction:expr),+], $done:ident, $($operand:tt)*) => {
        asm!(
            $(
                concat!("2: ", $instruction),
                ".pushsection .ex_table, \"a\", @progbits",
                ".quad 2b, 22f",
                ".popsection",
            )+
            "3:",
            ".pushsection .text.fix_up, \"ax\", @progbits",
            "22: xor {done:e}, {done:e}",
            "jmp 3b",
            ".popsection",
            done = inout(reg) $done,
            $($operand)*
            options(nostack),
        )
    };
}

/// The result of an [`access!`] at `va`.
#[inline(always)]
fn outcome(done: u32, va: GuestVa) -> Result<(), GuestFault> {
    if done != 0 { Ok(()) } else { Err(GuestFault { va }) }
}

/// The result of a copy of `bytes` bytes at `va`, of which the last `left` units of `unit` bytes were not copied.
#[inline(always)]
fn copied(left: usize, unit: usize, bytes: usize, va: GuestVa) -> Result<(), GuestFault> {
    if left == 0 { Ok(()) } else { Err(GuestFault { va: va.wrapping_add((bytes - unit * left) as u64) }) }
}

/// Copies quadwords, one side of which may fault. Returns how many were not copied.
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

/// Copies bytes, one side of which may fault. Returns how many were not copied.
///
/// # Safety
/// One side is the guest's, the other ours.
#[unsafe(naked)]
unsafe extern "C" fn copy_guest(to: *mut u8, from: *const u8, bytes: usize) -> usize {
    core::arch::naked_asm!(
        "mov rcx, rdx",
        "shr rcx, 3",
        "and edx, 7",
        "2: rep movsq",
        "mov ecx, edx",
        "3: rep movsb",
        "xor eax, eax",
        "ret",
        "4: lea rax, [rdx + rcx * 8]",
        "ret",
        "5: mov rax, rcx",
        "ret",
        ".pushsection .ex_table, \"a\", @progbits",
        ".quad 2b, 4b, 3b, 5b",
        ".popsection",
    )
}

/// Copies to guest memory, any length. The range was checked.
fn copy_many_to(va: GuestVa, from: &[u8]) -> Result<(), GuestFault> {
    // SAFETY: `from` is ours; the guest's side may fault, which `copy_guest` reports, and is not the hypervisor's.
    let left = unsafe { copy_guest(va.raw() as *mut u8, from.as_ptr(), from.len()) };
    copied(left, 1, from.len(), va)
}

impl GuestMemory for Machine {
    /// With a length known to the compiler, 4 and 8 bytes are one instruction.
    #[inline(always)]
    fn copy_from_guest(&self, _: Settled<'_>, to: &mut [u8], va: GuestVa) -> Result<(), GuestFault> {
        if !is_guest_range(va, to.len()) {
            return Err(GuestFault { va });
        }
        let mut done: u32 = 1;
        if let Ok(word) = <&mut [u8; 8]>::try_from(&mut *to) {
            let value: u64;
            // SAFETY: the range is the guest's; a fault is reported.
            unsafe { access!(["mov {value}, [{at}]"], done, at = in(reg) va.raw(), value = out(reg) value,) };
            *word = value.to_ne_bytes();
            return outcome(done, va);
        }
        if let Ok(word) = <&mut [u8; 4]>::try_from(&mut *to) {
            let value: u32;
            // SAFETY: the range is the guest's; a fault is reported.
            unsafe {
                access!(["mov {value:e}, [{at}]"], done, at = in(reg) va.raw(), value = out(reg) value,)
            };
            *word = value.to_ne_bytes();
            return outcome(done, va);
        }
        if to.len().is_multiple_of(8) {
            // SAFETY: `to` is ours, the range is the guest's.
            let left = unsafe { copy_words(to.as_mut_ptr(), va.raw() as *const u8, to.len() / 8) };
            return copied(left, 8, to.len(), va);
        }
        // SAFETY: as in `copy_many_to`.
        let left = unsafe { copy_guest(to.as_mut_ptr(), va.raw() as *const u8, to.len()) };
        copied(left, 1, to.len(), va)
    }

    /// Supervisor accesses honour read-only pages, since CR0.WP is on. With a length known to the compiler, 2, 4 and 8
    /// bytes are one instruction.
    #[inline(always)]
    fn copy_to_guest(&self, _: Settled<'_>, va: GuestVa, from: &[u8]) -> Result<(), GuestFault> {
        if !is_guest_range(va, from.len()) {
            return Err(GuestFault { va });
        }
        let mut done: u32 = 1;
        // SAFETY: the range is the guest's; a fault is reported.
        unsafe {
            match *from {
                [a, b] => {
                    let value = u16::from_ne_bytes([a, b]);
                    access!(["mov [{at}], {value:x}"], done, at = in(reg) va.raw(), value = in(reg) value,);
                }
                [a, b, c, d] => {
                    let value = u32::from_ne_bytes([a, b, c, d]);
                    access!(["mov [{at}], {value:e}"], done, at = in(reg) va.raw(), value = in(reg) value,);
                }
                [a, b, c, d, e, f, g, h] => {
                    let value = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                    access!(["mov [{at}], {value}"], done, at = in(reg) va.raw(), value = in(reg) value,);
                }
                _ if from.len().is_multiple_of(8) => {
                    let left = copy_words(va.raw() as *mut u8, from.as_ptr(), from.len() / 8);
                    return copied(left, 8, from.len(), va);
                }
                _ => return copy_many_to(va, from),
            }
        }
        outcome(done, va)
    }

    /// Seven or eight words are a row of stores, any other number a copy.
    #[inline(always)]
    fn write_frame<const N: usize>(
        &self,
        settled: Settled<'_>,
        va: GuestVa,
        words: [u64; N],
    ) -> Result<(), GuestFault> {
        if N != 7 && N != 8 {
            return self.copy_to_guest(settled, va, words.as_bytes());
        }
        if !is_guest_range(va, N * 8) {
            return Err(GuestFault { va });
        }
        let mut done: u32 = 1;
        // SAFETY: the range is the guest's; a fault is reported.
        unsafe {
            access!(
                [
                    "mov [{at}], {w0}",
                    "mov [{at} + 8], {w1}",
                    "mov [{at} + 16], {w2}",
                    "mov [{at} + 24], {w3}",
                    "mov [{at} + 32], {w4}",
                    "mov [{at} + 40], {w5}",
                    "mov [{at} + 48], {w6}"
                ],
                done,
                at = in(reg) va.raw(), w0 = in(reg) words[0], w1 = in(reg) words[1], w2 = in(reg) words[2],
                w3 = in(reg) words[3], w4 = in(reg) words[4], w5 = in(reg) words[5], w6 = in(reg) words[6],
            );
            if N == 8 && done != 0 {
                access!(["mov [{at} + 56], {w7}"], done, at = in(reg) va.raw(), w7 = in(reg) words[N - 1],);
            }
        }
        outcome(done, va)
    }

    #[inline(always)]
    fn read_words(&self, _: Settled<'_>, to: &mut [u64], va: GuestVa) -> Result<(), GuestFault> {
        if !is_guest_range(va, size_of_val(to)) {
            return Err(GuestFault { va });
        }
        // SAFETY: the range is the guest's, and `to` is as long.
        let left = unsafe { copy_words(to.as_mut_ptr().cast(), va.raw() as *const u8, to.len()) };
        if left == 0 { Ok(()) } else { Err(GuestFault { va }) }
    }

    /// One and two words are loads, any other number a copy.
    #[inline(always)]
    fn read_frame<const N: usize>(&self, _: Settled<'_>, va: GuestVa) -> Result<[u64; N], GuestFault> {
        if !is_guest_range(va, N * 8) {
            return Err(GuestFault { va });
        }
        let mut words = MaybeUninit::<[u64; N]>::uninit();
        let mut done: u32 = 1;
        if N == 1 {
            let word: u64;
            // SAFETY: the range is the guest's; a fault is reported.
            unsafe { access!(["mov {word}, [{at}]"], done, at = in(reg) va.raw(), word = out(reg) word,) };
            return outcome(done, va).map(|()| [word; N]);
        }
        if N == 2 {
            let (first, second): (u64, u64);
            // SAFETY: as above.
            unsafe {
                access!(
                    ["mov {first}, [{at}]", "mov {second}, [{at} + 8]"],
                    done,
                    at = in(reg) va.raw(), first = out(reg) first, second = out(reg) second,
                );
            }
            let words = core::array::from_fn(|index| if index == 0 { first } else { second });
            return outcome(done, va).map(|()| words);
        }
        // SAFETY: the buffer is ours, the range is the guest's.
        let left = unsafe { copy_words(words.as_mut_ptr().cast(), va.raw() as *const u8, N) };
        // SAFETY: all words were written when nothing is left.
        if left == 0 { Ok(unsafe { words.assume_init() }) } else { Err(GuestFault { va }) }
    }
}

/// Loads a data segment register from the guest's tables; a bad selector loads null and gives `false`.
macro_rules! load_selector {
    ($register:literal, $selector:expr) => {{
        let mut done: u32 = 1;
        // SAFETY: ring 0 in 64-bit mode uses none of these segments; a fault is reported.
        unsafe {
            access!([concat!("mov ", $register, ", {it:e}")], done, it = in(reg) u32::from($selector),);
            if done == 0 {
                asm!(concat!("mov ", $register, ", {:e}"), in(reg) 0, options(nostack, preserves_flags));
            }
        }
        done != 0
    }};
}

/// Loads ds, es, fs and gs. Returns whether all have the guest's values.
pub(crate) fn load_selectors([ds, es, fs, gs]: [u16; 4]) -> bool {
    load_selector!("ds", ds) & load_selector!("es", es) & load_selector!("fs", fs) & load_selector!("gs", gs)
}

/// Loads gs alone.
pub(crate) fn load_gs_selector(gs: u16) {
    let _ = load_selector!("gs", gs); // null will do
}

/// Where to go on after a fault at `rip`, if one was expected there.
pub(crate) fn fix_up(rip: u64) -> Option<u64> {
    let start = &raw const __ex_table_start;
    let end = &raw const __ex_table_end;
    // SAFETY: the linker script puts both symbols around pairs of u64, 8-aligned, which nobody writes.
    let table = unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
    table.iter().find(|[at, _]| *at == rip).map(|[_, to]| *to)
}
