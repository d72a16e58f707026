//! The first instructions of a PV kernel, its stack and its ELF notes.
//!
//! ABI: `xen/include/public/xen.h` (start of day memory layout), `elfnote.h`, `arch-x86/xen.h`.
#![allow(unsafe_code)] // global assembly and its symbols: the start of the world

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the kernel's only stack. The stack's lowest page is unmapped at start as a guard.
pub(crate) const STACK_BYTES: usize = 128 * 1024;

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .macro pvrt_note type, data:vararg
    .balign 4
    .long 4, 8f - 7f, \type
    .asciz "Xen"
7:
    \data
8:
    .balign 4
    .endm
    pvrt_note 1, .quad _start                   # ENTRY
    pvrt_note 3, .quad 0xffffffff80000000       # VIRT_BASE
    pvrt_note 4, .quad 0                        # PADDR_OFFSET
    pvrt_note 5, .asciz "xen-3.0"               # XEN_VERSION
    pvrt_note 6, .asciz "microhv-pvrt"          # GUEST_OS
    pvrt_note 8, .asciz "generic"               # LOADER
    pvrt_note 9, .asciz "yes"                   # PAE_MODE
    pvrt_note 10, .asciz "!writable_page_tables|pae_pgdir_above_4gb"  # FEATURES
    pvrt_note 13, .quad 1, 1                    # L1_MFN_VALID: mask, value
    pvrt_note 16, .quad 1                       # MOD_START_PFN: the ramdisk need not be mapped
    pvrt_note 17, .long 0x801                   # SUPPORTED_FEATURES: writable_page_tables, dom0

    .section .text._start, "ax"
    .globl _start
    # rsi = start_info, rsp = top of the builder's stack page.
_start:
    cld
    mov rdi, rsi
    mov rsi, rsp
    lea rsp, [rip + pvrt_stack_top]
    xor ebp, ebp
    call {start}
    ud2

    # Event upcall, entered from SCHEDOP_block with the mask set again by the hypervisor. The executor polls the
    # pending words, so there is nothing to do; the mask stays set. The saved selector has privilege level 0, which
    # `iretq` in ring 3 refuses.
    .globl pvrt_event_upcall
pvrt_event_upcall:
    pop rcx
    pop r11
    or byte ptr [rsp + 8], 3
    iretq

    # A bad segment selector on return to this kernel: it never loads any.
    .globl pvrt_failsafe
pvrt_failsafe:
    ud2

    .section .bss.pvrt_pages, "aw", @nobits
    .balign 4096
    .globl pvrt_stack_bottom, pvrt_stack_top, pvrt_shared_info
pvrt_stack_bottom:
    .skip {stack}
pvrt_stack_top:
    # The page whose address shared_info is mapped at.
pvrt_shared_info:
    .skip 4096
    .text
    "#,
    start = sym start,
    stack = const STACK_BYTES,
);

unsafe extern "C" {
    static pvrt_stack_bottom: u8;
    static pvrt_stack_top: u8;
    static pvrt_shared_info: u8;
    static __image_end: u8;
    fn pvrt_event_upcall();
    fn pvrt_failsafe();
}

/// The address of start_info, from the first instruction on.
static START_INFO: AtomicU64 = AtomicU64::new(0);

/// Address of start_info.
pub(crate) fn start_info_va() -> u64 {
    START_INFO.load(Ordering::Relaxed)
}

/// Lowest address and end of the stack.
pub(crate) fn stack_range() -> (u64, u64) {
    ((&raw const pvrt_stack_bottom) as u64, (&raw const pvrt_stack_top) as u64)
}

/// The page-aligned address at which shared_info is mapped.
pub(crate) fn shared_info_va() -> u64 {
    (&raw const pvrt_shared_info) as u64
}

/// The first address behind the image.
pub(crate) fn image_end() -> u64 {
    (&raw const __image_end) as u64
}

/// Addresses of the event and the failsafe callback.
pub(crate) fn callbacks() -> (u64, u64) {
    (pvrt_event_upcall as *const () as u64, pvrt_failsafe as *const () as u64)
}

/// The first Rust function: records what the entry registers said and starts the kernel.
extern "C" fn start(start_info: u64, builder_stack: u64) -> ! {
    START_INFO.store(start_info, Ordering::Relaxed);
    crate::boot::start(start_info, builder_stack)
}
