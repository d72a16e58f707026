/* Accesses that may fault. Each names its faulting instruction and where to go on in
   .ex_table (two quadwords: rip, fix-up rip); the trap handler does the jump. */
    .macro on_fault at, to
    .pushsection .ex_table, "a", @progbits
    .quad \at, \to
    .popsection
    .endm

    .section .text.entry, "ax", @progbits

/* copy_guest(to: rdi, from: rsi, bytes: rdx) -> rax = bytes not copied. */
    .globl copy_guest
    .type copy_guest, @function
copy_guest:
    mov rcx, rdx
    shr rcx, 3
    and edx, 7
1:  rep movsq
    mov ecx, edx
2:  rep movsb
    xor eax, eax
    ret
3:  lea rax, [rdx + rcx * 8]
    ret
4:  mov rax, rcx
    ret
    on_fault 1b, 3b
    on_fault 2b, 4b

/* load_ds/es/fs/gs(selector: edi) -> eax = 1 when it was loaded; else the register is null. */
    .macro load_selector name, register
    .globl \name
    .type \name, @function
\name:
1:  mov \register, edi
    mov eax, 1
    ret
2:  xor eax, eax
    mov \register, eax
    ret
    on_fault 1b, 2b
    .endm
    load_selector load_ds, ds
    load_selector load_es, es
    load_selector load_fs, fs
    load_selector load_gs, gs
    .text
