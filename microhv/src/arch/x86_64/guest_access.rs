//! Guest virtual memory through the loaded page tables, the library's [`GuestMemory`]; other instructions that may fault.
#![allow(unsafe_code)] // raw accesses with fix-ups

use core::arch::asm;
use core::mem::MaybeUninit;

use microhv::frames::pte::LOW_HALF;
use microhv::nospec;
use microhv::platform::{GuestFault, GuestMemory, Settled};
use ring_abi::segment::HYPERVISOR_VIRT_END;
use ring_abi::types::GuestVa;
use zerocopy::IntoBytes;

use super::machine::Machine;

unsafe extern "C" {
    static __ex_table_start: [u64; 2];
    static __ex_table_end: [u64; 2];
}

/// An address that is not the hypervisor's, even where a CPU guesses. Only from this is a pointer to guest memory made.
#[derive(Clone, Copy)]
struct Reached(u64);

impl Reached {
    /// The guest's address `va`; in place of one of the hypervisor's, an address whose use faults.
    ///
    /// Where an access begins is enough. What begins below the hypervisor comes to addresses that are not canonical first, and
    /// faults there; behind the last address of all is address 0, which is a guest's too.
    #[inline(always)]
    fn new(va: GuestVa) -> Self {
        Self(nospec::outside::<LOW_HALF, HYPERVISOR_VIRT_END>(va.raw()))
    }

    #[inline(always)]
    const fn to_read(self) -> *const u8 {
        self.0 as *const u8
    }

    #[inline(always)]
    const fn to_write(self) -> *mut u8 {
        self.0 as *mut u8
    }
}

/// An instruction that may fault: the trap handler finds its address in the section `table`, with that of `to` to go on at.
macro_rules! may_fault {
    ($table:literal, $to:literal, $instruction:expr) => {
        concat!(
            "2: ",
            $instruction,
            "\n.pushsection ",
            $table,
            ", \"a\", @progbits\n.quad 2b, ",
            $to,
            "\n.popsection"
        )
    };
}

/// Instructions that use guest memory and may fault, one after the other. After a fault the code goes on behind them, with
/// `done` 0. The instructions are there twice: where there is SMAP, the first becomes a jump (`smap.rs`), so that one has a
/// displacement of 32 bits, which makes it long enough.
macro_rules! access {
    ([$first:expr $(, $more:expr)*], $done:ident, $($operand:tt)*) => {
        asm!(
            "5:",
            may_fault!(".ex_table", "22f", concat!("{{disp32}} ", $first)),
            $(may_fault!(".ex_table", "22f", $more),)*
            "3:",
            ".pushsection .smap_table, \"a\", @progbits",
            ".quad 5b, 4f",
            ".popsection",
            ".pushsection .text.guest_access, \"ax\", @progbits",
            "4: stac",
            may_fault!(".ex_table_smap", "22f", $first),
            $(may_fault!(".ex_table_smap", "22f", $more),)*
            "clac",
            "jmp 3b",
            "22: xor {done:e}, {done:e}",
            "jmp 3b",
            ".popsection",
            done = inout(reg) $done,
            $($operand)*
            options(nostack),
        )
    };
}

/// Stores that may fault, one after the other, twice as in [`access!`]: after a fault the code goes on with `fault`. So a store that
/// succeeds needs no test.
macro_rules! store {
    ([$first:expr $(, $more:expr)*], $fault:block, $($operand:tt)*) => {
        asm!(
            "5:",
            may_fault!(".ex_table", "{fault}", concat!("{{disp32}} ", $first)),
            $(may_fault!(".ex_table", "{fault}", $more),)*
            "3:",
            ".pushsection .smap_table, \"a\", @progbits",
            ".quad 5b, 4f",
            ".popsection",
            ".pushsection .text.guest_access, \"ax\", @progbits",
            "4: stac",
            may_fault!(".ex_table_smap", "{fault}", $first),
            $(may_fault!(".ex_table_smap", "{fault}", $more),)*
            "clac",
            "jmp 3b",
            ".popsection",
            fault = label $fault,
            $($operand)*
            options(nostack, preserves_flags),
        )
    };
}

/// The result of an [`access!`].
#[inline(always)]
fn outcome(done: u32) -> Result<(), GuestFault> {
    if done != 0 { Ok(()) } else { Err(GuestFault { copied: 0 }) }
}

/// The result of a copy of `bytes` bytes, of which the last `left` units of `unit` bytes were not copied.
#[inline(always)]
fn copied(left: usize, unit: usize, bytes: usize) -> Result<(), GuestFault> {
    if left == 0 { Ok(()) } else { Err(GuestFault { copied: bytes - unit * left }) }
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
            "2: .byte 0xf3, 0xf3", // REP twice more: room for a jump. QEMU adds the base of DS by a prefix of DS
            "rep movsq",
            "3:",
            ".pushsection .ex_table, \"a\", @progbits",
            ".quad 2b, 3b",
            ".popsection",
            ".pushsection .smap_table, \"a\", @progbits",
            ".quad 2b, 4f",
            ".popsection",
            ".pushsection .text.guest_access, \"ax\", @progbits",
            "4: stac",
            "5: rep movsq",
            "clac",
            "jmp 3b",
            ".popsection",
            ".pushsection .ex_table_smap, \"a\", @progbits",
            ".quad 5b, 3b",
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
        "6: mov rcx, rdx",
        "shr rcx, 3", // with the first, room for a jump
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
        "7: mov rcx, rdx",
        "shr rcx, 3",
        "and edx, 7",
        ".globl guarded_copy",
        "guarded_copy: stac",
        "8: rep movsq",
        "mov ecx, edx",
        "9: rep movsb",
        "clac",
        "xor eax, eax",
        "ret",
        ".pushsection .ex_table, \"a\", @progbits",
        ".quad 2b, 4b, 3b, 5b",
        ".popsection",
        ".pushsection .ex_table_smap, \"a\", @progbits",
        ".quad 8b, 4b, 9b, 5b",
        ".popsection",
        ".pushsection .smap_table, \"a\", @progbits",
        ".quad 6b, 7b",
        ".popsection",
    )
}

/// Copies to guest memory, any length.
fn copy_many_to(at: Reached, from: &[u8]) -> Result<(), GuestFault> {
    // SAFETY: `from` is ours; the guest's side may fault, which `copy_guest` reports, and is not the hypervisor's.
    let left = unsafe { copy_guest(at.to_write(), from.as_ptr(), from.len()) };
    copied(left, 1, from.len())
}

impl GuestMemory for Machine {
    /// With a length known to the compiler, 4 and 8 bytes are one instruction.
    #[inline(always)]
    fn copy_from_guest(&self, _: Settled<'_>, to: &mut [u8], va: GuestVa) -> Result<(), GuestFault> {
        let at = Reached::new(va);
        let mut done: u32 = 1;
        if let Ok(word) = <&mut [u8; 8]>::try_from(&mut *to) {
            let value: u64;
            // SAFETY: the address is not one of the hypervisor's; a fault is reported.
            unsafe { access!(["mov {value}, [{at}]"], done, at = in(reg) at.0, value = out(reg) value,) };
            *word = value.to_ne_bytes();
            return outcome(done);
        }
        if let Ok(word) = <&mut [u8; 4]>::try_from(&mut *to) {
            let value: u32;
            // SAFETY: the address is not one of the hypervisor's; a fault is reported.
            unsafe { access!(["mov {value:e}, [{at}]"], done, at = in(reg) at.0, value = out(reg) value,) };
            *word = value.to_ne_bytes();
            return outcome(done);
        }
        if to.len().is_multiple_of(8) {
            // SAFETY: `to` is ours, the other side is not the hypervisor's.
            let left = unsafe { copy_words(to.as_mut_ptr(), at.to_read(), to.len() / 8) };
            return copied(left, 8, to.len());
        }
        // SAFETY: as in `copy_many_to`.
        let left = unsafe { copy_guest(to.as_mut_ptr(), at.to_read(), to.len()) };
        copied(left, 1, to.len())
    }

    /// Supervisor accesses honour read-only pages, since CR0.WP is on. With a length known to the compiler, 2, 4 and 8
    /// bytes are one instruction.
    #[inline(always)]
    fn copy_to_guest(&self, _: Settled<'_>, va: GuestVa, from: &[u8]) -> Result<(), GuestFault> {
        const FAULT: Result<(), GuestFault> = Err(GuestFault { copied: 0 });
        let at = Reached::new(va);
        // SAFETY: the address is not one of the hypervisor's; a fault is reported.
        unsafe {
            match *from {
                [a, b] => {
                    let value = u16::from_ne_bytes([a, b]);
                    store!(["mov [{at}], {value:x}"], { return FAULT }, at = in(reg) at.0, value = in(reg) value,);
                }
                [a, b, c, d] => {
                    let value = u32::from_ne_bytes([a, b, c, d]);
                    store!(["mov [{at}], {value:e}"], { return FAULT }, at = in(reg) at.0, value = in(reg) value,);
                }
                [a, b, c, d, e, f, g, h] => {
                    let value = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                    store!(["mov [{at}], {value}"], { return FAULT }, at = in(reg) at.0, value = in(reg) value,);
                }
                _ if from.len().is_multiple_of(8) => {
                    let left = copy_words(at.to_write(), from.as_ptr(), from.len() / 8);
                    return copied(left, 8, from.len());
                }
                _ => return copy_many_to(at, from),
            }
        }
        Ok(())
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
        const FAULT: Result<(), GuestFault> = Err(GuestFault { copied: 0 });
        let at = Reached::new(va);
        // SAFETY: the address is not one of the hypervisor's; a fault is reported.
        unsafe {
            store!(
                [
                    "mov [{at}], {w0}",
                    "mov [{at} + 8], {w1}",
                    "mov [{at} + 16], {w2}",
                    "mov [{at} + 24], {w3}",
                    "mov [{at} + 32], {w4}",
                    "mov [{at} + 40], {w5}",
                    "mov [{at} + 48], {w6}"
                ],
                { return FAULT },
                at = in(reg) at.0, w0 = in(reg) words[0], w1 = in(reg) words[1], w2 = in(reg) words[2],
                w3 = in(reg) words[3], w4 = in(reg) words[4], w5 = in(reg) words[5], w6 = in(reg) words[6],
            );
            if N == 8 {
                store!(["mov [{at} + 56], {w7}"], { return FAULT }, at = in(reg) at.0, w7 = in(reg) words[N - 1],);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn read_words(&self, _: Settled<'_>, to: &mut [u64], va: GuestVa) -> Result<(), GuestFault> {
        let at = Reached::new(va);
        // SAFETY: the other side is not the hypervisor's, and `to` is as long.
        let left = unsafe { copy_words(to.as_mut_ptr().cast(), at.to_read(), to.len()) };
        if left == 0 { Ok(()) } else { Err(GuestFault { copied: 0 }) }
    }

    /// One and two words are loads, any other number a copy.
    #[inline(always)]
    fn read_frame<const N: usize>(&self, _: Settled<'_>, va: GuestVa) -> Result<[u64; N], GuestFault> {
        let at = Reached::new(va);
        let mut words = MaybeUninit::<[u64; N]>::uninit();
        let mut done: u32 = 1;
        if N == 1 {
            let word: u64;
            // SAFETY: the address is not one of the hypervisor's; a fault is reported.
            unsafe { access!(["mov {word}, [{at}]"], done, at = in(reg) at.0, word = out(reg) word,) };
            return outcome(done).map(|()| [word; N]);
        }
        if N == 2 {
            let (first, second): (u64, u64);
            // SAFETY: as above.
            unsafe {
                access!(
                    ["mov {first}, [{at}]", "mov {second}, [{at} + 8]"],
                    done,
                    at = in(reg) at.0, first = out(reg) first, second = out(reg) second,
                );
            }
            let words = core::array::from_fn(|index| if index == 0 { first } else { second });
            return outcome(done).map(|()| words);
        }
        // SAFETY: the buffer is ours, the other side is not the hypervisor's.
        let left = unsafe { copy_words(words.as_mut_ptr().cast(), at.to_read(), N) };
        // SAFETY: all words were written when nothing is left.
        if left == 0 { Ok(unsafe { words.assume_init() }) } else { Err(GuestFault { copied: 0 }) }
    }
}

/// Loads a data segment register from the guest's tables; a bad selector loads null and gives `false`.
macro_rules! load_selector {
    ($register:literal, $selector:expr) => {{
        let mut done: u32 = 1;
        // SAFETY: ring 0 in 64-bit mode uses none of these segments; a fault is reported. The tables are seen through the vCPU's
        // window, which is no page of a guest to SMAP.
        unsafe {
            asm!(
                may_fault!(".ex_table", "22f", concat!("mov ", $register, ", {it:e}")),
                "3:",
                ".pushsection .text.guest_access, \"ax\", @progbits",
                "22: xor {done:e}, {done:e}",
                "jmp 3b",
                ".popsection",
                it = in(reg) u32::from($selector),
                done = inout(reg) done,
                options(nostack),
            );
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
