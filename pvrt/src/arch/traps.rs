//! Exceptions. Each exception is a bug of this kernel, so each ends in a panic that shows the registers.
#![allow(unsafe_code)] // trap stubs in assembly, and the frame they hand over

use alloc::vec::Vec;
use core::arch::global_asm;
use ring_abi::guest_context::TrapInfo;
use ring_abi::segment::FLAT_KERNEL_CS;

/// Vectors with a stub: the architectural exceptions.
const VECTORS: usize = 32;
/// Bytes between two stubs.
const STUB_BYTES: usize = 16;

global_asm!(
    r#"
    .section .text.pvrt_traps, "ax"
    .balign 16
    .globl pvrt_trap_stubs
pvrt_trap_stubs:
    .set pvrt_vector, 0
    .rept {vectors}
    .balign {stub}
    pushq $pvrt_vector
    jmp pvrt_trap_common
    .set pvrt_vector, pvrt_vector + 1
    .endr

    # On the stack: vector, rcx, r11, [error code], rip, cs | mask << 32, rflags, rsp, ss.
pvrt_trap_common:
    push %r15
    push %r14
    push %r13
    push %r12
    push %r10
    push %r9
    push %r8
    push %rbp
    push %rdi
    push %rsi
    push %rdx
    push %rbx
    push %rax
    mov %rsp, %rdi
    and $-16, %rsp
    call {handler}
    ud2
    .text
    "#,
    vectors = const VECTORS,
    stub = const STUB_BYTES,
    handler = sym trap,
    options(att_syntax)
);

unsafe extern "C" {
    static pvrt_trap_stubs: u8;
}

/// The registers that the stub pushed, then what the hypervisor pushed.
#[repr(C)]
#[derive(Clone, Copy)]
struct Frame {
    rax: u64,
    rbx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rbp: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    vector: u64,
    rcx: u64,
    r11: u64,
    /// Error code (if the vector has one), rip, cs, rflags, rsp, ss.
    rest: [u64; 6],
}

/// Registers where an exception happened.
pub(crate) struct TrapState {
    /// The exception.
    pub(crate) vector: u64,
    /// The trap's error code; 0 where the vector has none.
    pub(crate) error: u64,
    /// The address of the instruction that trapped.
    pub(crate) rip: u64,
    /// Flags there.
    pub(crate) rflags: u64,
    /// Stack pointer there.
    pub(crate) rsp: u64,
    /// Frame pointer there.
    pub(crate) rbp: u64,
    /// rax rbx rcx rdx rsi rdi r8 r9 r10 r11 r12 r13 r14 r15.
    pub(crate) general: [u64; 14],
}

/// Whether a trap of this vector pushes an error code.
const fn has_error_code(vector: u64) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// The table for `set_trap_table`, with the terminating entry.
pub(crate) fn table() -> Vec<TrapInfo> {
    let stubs = (&raw const pvrt_trap_stubs) as u64;
    let mut table: Vec<TrapInfo> = (0..VECTORS as u64)
        .map(|vector| {
            // int3 and into may come from anywhere; bit 2 masks events in the handler.
            let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
            TrapInfo {
                vector: vector as u8,
                flags: dpl | 4,
                cs: FLAT_KERNEL_CS,
                address: stubs + vector * STUB_BYTES as u64,
                ..TrapInfo::default()
            }
        })
        .collect();
    table.push(TrapInfo::default());
    table
}

/// Decodes the frame and panics with it.
extern "C" fn trap(frame: *const Frame) -> ! {
    // SAFETY: the stub passes the address of the frame that the stub has just pushed on this stack, and nothing changes
    // the frame.
    let frame = unsafe { frame.read() };
    let (error, at) =
        if has_error_code(frame.vector) { (frame.rest[0], &frame.rest[1..]) } else { (0, &frame.rest[..5]) };
    super::panic::trap_panic(&TrapState {
        vector: frame.vector,
        error,
        rip: at[0],
        rflags: at[2],
        rsp: at[3],
        rbp: frame.rbp,
        general: [
            frame.rax, frame.rbx, frame.rcx, frame.rdx, frame.rsi, frame.rdi, frame.r8, frame.r9, frame.r10,
            frame.r11, frame.r12, frame.r13, frame.r14, frame.r15,
        ],
    })
}
