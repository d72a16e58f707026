//! The memory functions that the compiler calls.
//!
//! These functions work by quadwords with `rep`: an emulator executes, and counts, every repetition, and on real
//! processors a long `rep` runs in whole cache lines.
#![allow(unsafe_code)] // global assembly: the compiler's own runtime symbols

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.pvrt_memory, "ax"
    .globl memcpy, memmove, memset, memcmp, bcmp

    # memcpy(rdi to, rsi from, rdx bytes) -> to
memcpy:
    mov rax, rdi
    mov rcx, rdx
    shr rcx, 3
    rep movsq
    mov ecx, edx
    and ecx, 7
    rep movsb
    ret

    # memmove(rdi to, rsi from, rdx bytes) -> to
    .balign 16
memmove:
    mov rax, rdi
    sub rax, rsi
    cmp rax, rdx
    mov rax, rdi
    jae memcpy
    # The target begins inside the source: from the end, odd bytes first.
    std
    lea rsi, [rsi + rdx - 1]
    lea rdi, [rdi + rdx - 1]
    mov ecx, edx
    and ecx, 7
    rep movsb
    sub rsi, 7
    sub rdi, 7
    mov rcx, rdx
    shr rcx, 3
    rep movsq
    cld
    ret

    # memset(rdi to, sil value, rdx bytes) -> to
    .balign 16
memset:
    mov r8, rdi
    movzx eax, sil
    mov r9, 0x0101010101010101
    imul rax, r9
    mov rcx, rdx
    shr rcx, 3
    rep stosq
    mov ecx, edx
    and ecx, 7
    rep stosb
    mov rax, r8
    ret

    # memcmp(rdi a, rsi b, rdx bytes) -> sign of the first difference
    .balign 16
memcmp:
bcmp:
    xor eax, eax
    mov rcx, rdx
    shr rcx, 3
    jz 3f
2:
    mov r8, [rdi]
    mov r9, [rsi]
    cmp r8, r9
    jne 5f
    add rdi, 8
    add rsi, 8
    dec rcx
    jnz 2b
3:
    and edx, 7
    jz 6f
4:
    movzx eax, byte ptr [rdi]
    movzx ecx, byte ptr [rsi]
    sub eax, ecx
    jnz 6f
    inc rdi
    inc rsi
    dec edx
    jnz 4b
    ret
5:
    # Big-endian order is the order of the bytes.
    bswap r8
    bswap r9
    xor eax, eax
    cmp r8, r9
    seta al
    setb cl
    sub al, cl
    movsx eax, al
6:
    ret
    .text
    "#
);

/// Landing pads in the toolchain's core and alloc name this symbol. With `panic = "abort"` nothing unwinds, so nothing
/// calls the function.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    panic!("unwinding")
}

/// Named by the unwind tables of core and alloc; never called.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    panic!("unwinding")
}
