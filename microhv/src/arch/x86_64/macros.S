/* What the assembly files share. */
    .macro function name
    .globl \name
    .type \name, @function
\name:
    .endm

/* The general registers in a frame (struct cpu_user_regs: r15 first, rdi at 112). */

/* Completes the frame below what was pushed: entry vector and error code come before. */
    .macro push_registers
    .irp register, rdi, rsi, rdx, rcx, rax, r8, r9, r10, r11, rbx, rbp, r12, r13, r14, r15
    push \register
    .endr
    .endm

/* Moves the words of an interruption, and rax and rdx that were pushed behind them, to below rax, which becomes the stack; loads
   rax and rdx. */
    .macro move_words
    .irp word, 8, 16, 24, 32, 40, 48, 56, 64     /* ss, rsp, rflags, cs, rip, error code with vector, rax, rdx */
    mov rdx, [rsp + 64 - \word]
    mov [rax - \word], rdx
    .endr
    lea rsp, [rax - 64]
    pop rdx
    pop rax
    .endm

/* Five bytes that do nothing, and may become a call. */
    .macro place name
    .globl \name
\name:
    .byte 0x0f, 0x1f, 0x44, 0, 0        /* nop */
    .endm

/* `\call`: a call of `to`, which speculation.rs may make one of `\cleared`, which clears all registers first, so that the
   hypervisor executes nothing ahead with a guest's values in them, and before that may call guard_entry. In: the registers
   are saved. */
    .macro call_from_guest call, cleared, to
    .pushsection .text.entry.cleared, "ax", @progbits
    .balign 16
    function \cleared
    place \cleared\()_guard
    .irp register, eax, ebx, ecx, edx, esi, edi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d
    xor \register, \register
    .endr
    jmp \to
    .popsection
    .globl \call
\call:
    call \to
    .endm

/* Goes back to what was interrupted in ring 0. In: rsp = its frame. `\last` names the last instruction. */
    .macro return_to_ring_0 last
    .irp register, r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi
    pop \register
    .endr
    add rsp, 8
    .ifnb \last
    .globl \last
\last:
    .endif
    iretq
    .endm

/* Loads a vCPU's registers but rax. In: rax = frame. Without `all`, rcx and r11 too are the caller's to load. `\rest` names
   what follows the first two. */
    .macro load_registers all=0, rest
    mov r15, [rax]
    mov r14, [rax + 8]
    .ifnb \rest
    .globl \rest
\rest:
    .endif
    mov r13, [rax + 16]
    mov r12, [rax + 24]
    mov rbp, [rax + 32]
    mov rbx, [rax + 40]
    .if \all
    mov r11, [rax + 48]
    .endif
    mov r10, [rax + 56]
    mov r9, [rax + 64]
    mov r8, [rax + 72]
    .if \all
    mov rcx, [rax + 88]
    .endif
    mov rdx, [rax + 96]
    mov rsi, [rax + 104]
    mov rdi, [rax + 112]
    .endm
