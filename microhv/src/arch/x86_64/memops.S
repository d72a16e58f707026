/* Symbols that the compiler and its libraries name.

   The C memory symbols rustc emits calls to. Quadword string instructions, because
   an emulator executes (and counts) every repetition; the tail is at most 7 bytes. */
    .section .text.memops, "ax", @progbits

    .globl memops
memops:
/* memcpy(rdi, rsi, rdx) -> rax = rdi. Clobbers rcx, rdx, rsi, rdi. */
    function memcpy
    mov rax, rdi
    mov rcx, rdx
    shr rcx, 3
    rep movsq
    and edx, 7
    je 1f
    mov ecx, edx
    rep movsb
1:  ret
    .size memcpy, . - memcpy

/* memmove(rdi, rsi, rdx) -> rax = rdi. Backwards only when the ranges overlap that way. */
    function memmove
    mov rax, rdi
    sub rax, rsi
    cmp rax, rdx
    jae memcpy
    mov rax, rdi
    mov rcx, rdx
    lea rdi, [rdi + rdx - 1]
    lea rsi, [rsi + rdx - 1]
    and ecx, 7
    std
    rep movsb
    sub rdi, 7
    sub rsi, 7
    mov rcx, rdx
    shr rcx, 3
    rep movsq
    cld
    ret
    .size memmove, . - memmove

/* memset(rdi, sil, rdx) -> rax = rdi. Clobbers rcx, rdx, r8, rdi. */
    function memset
    mov r8, rdi
    movzx eax, sil
    movabs rcx, 0x0101010101010101
    imul rax, rcx
    mov rcx, rdx
    shr rcx, 3
    rep stosq
    and edx, 7
    je 1f
    mov ecx, edx
    rep stosb
1:  mov rax, r8
    ret
    .size memset, . - memset

/* memcmp/bcmp(rdi, rsi, rdx) -> eax: sign of the first difference. Quadwords while
   they are equal, then bytes. */
    .globl memcmp
    .globl bcmp
    function memcmp
bcmp:
1:  cmp rdx, 8
    jb 2f
    mov rax, [rdi]
    cmp rax, [rsi]
    jne 2f
    add rdi, 8
    add rsi, 8
    sub rdx, 8
    jmp 1b
2:  test rdx, rdx
    je 4f
    movzx eax, byte ptr [rdi]
    movzx ecx, byte ptr [rsi]
    sub eax, ecx
    jne 3f
    inc rdi
    inc rsi
    dec rdx
    jmp 2b
4:  xor eax, eax
3:  ret
    .size memcmp, . - memcmp
    .globl memops_end
memops_end:

/* `alloc` was compiled for unwinding, and its landing pads name these: nothing ever calls them. */
    function rust_eh_personality
    function _Unwind_Resume
    ud2
    .text
