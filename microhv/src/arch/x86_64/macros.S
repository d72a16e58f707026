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

/* Moves the words of an interruption from a guest, and rax and rdx that are pushed behind them, from the stack of an interruption that
   nothing masks to the frame of this CPU, which becomes the stack. Zeros stay behind: the next guest's page tables map that stack. */
    .macro move_words
    push rax
    push rdx
    mov rax, rsp
    and rax, -0x10000                   /* this CPU's area */
    add rax, {frame_top}
    .irp word, 8, 16, 24, 32, 40, 48, 56, 64     /* ss, rsp, rflags, cs, rip, error code with vector, rax, rdx */
    mov rdx, [rsp + 64 - \word]
    mov [rax - \word], rdx
    mov qword ptr [rsp + 64 - \word], 0
    .endr
    lea rsp, [rax - 64]
    pop rdx
    pop rax
    .endm

/* Saves the registers in the frame, and goes on on the CPU's own stack, and with `own` on its own page tables.
   In: rsp = behind the words of an interruption, in the frame. */
    .macro enter_hypervisor own
    push_registers
    .ifnb \own
    mov rax, [rsp + {full_from_frame}]
    mov cr3, rax
    .endif
    mov rsp, [rsp + {stack_from_frame}]
    xor ebp, ebp
    .endm

/* Five bytes that do nothing, and may become a call. */
    .macro place name
    .globl \name
\name:
    .byte 0x0f, 0x1f, 0x44, 0, 0        /* nop */
    .endm

/* Three bytes that do nothing, and may become CLAC: a guest's AC, or that of an access to guest memory that was interrupted, must
   not let the hypervisor use guests' pages. IRET puts the flag back. */
    .macro place_of_clac name
    .globl \name
\name:
    .byte 0x0f, 0x1f, 0                 /* nop */
    .endm

/* `\call`: a call of `to`, which speculation.rs may make one of what clears all registers first (guard.S). In: the registers are saved. */
    .macro call_from_guest call, to
    .globl \call
\call:
    call \to
    .endm

/* Goes back to what was interrupted, to the same stack. In: rsp = its frame. `\last` names the last instruction.
   With `wipe`, zeros stay behind for the registers: on a stack that the page tables of guests map. */
    .macro return_to_ring_0 last, wipe=0
    .set .Lplace, 0
    .irp register, r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi
    .if \wipe
    mov \register, [rsp + .Lplace]
    mov qword ptr [rsp + .Lplace], 0
    .set .Lplace, .Lplace + 8
    .else
    pop \register
    .endif
    .endr
    add rsp, 8 + .Lplace
    .ifnb \last
    .globl \last
\last:
    .endif
    iretq
    .endm

    .pushsection .text.entry.later, "ax", @progbits
    function before_leave
    .popsection

/* The last look before a return to a guest: for work that waits, and for an event upcall that is due. Then returns by IRET, or goes on
   to return by SYSRET, with rcx = rip. All handlers end here: a function of Rust's would save registers.
   In: rsp = top of the CPU's stack. */
    .macro leave own
.Llook_\@:
    mov rcx, [rsp + {local_pending}]
    cmp dword ptr [rcx], 0
    jne .Lwork_\@
    mov rcx, [rsp + {local_vcpu}]
    mov rcx, [rcx + {vcpu_info}]
    test rcx, rcx                       /* no vcpu_info: no upcall */
    je .Lgo_\@
    cmp byte ptr [rcx + {upcall_pending}], 0
    jne .Lupcall_\@
.Lgo_\@:
    cmp dword ptr [rsp + {frame_from_stack} + {regs_vector}], {entry_syscall}
    jne \own\()leave_by_iret
    mov rcx, [rsp + {frame_from_stack} + {regs_rip}]
    mov rdx, rcx                        /* SYSRET takes no address that is not canonical (XSA-7) */
    shl rdx, 16
    sar rdx, 16
    cmp rdx, rcx
    jne \own\()leave_by_iret
    .pushsection .text.entry.later, "ax", @progbits
.Lupcall_\@:
    cmp byte ptr [rcx + {upcall_mask}], 0
    jne .Lgo_\@
    call upcall_before_leave
    mov rcx, [rsp + {local_pending}]
    cmp dword ptr [rcx], 0
    je .Lgo_\@
.Lwork_\@:
    call work_before_leave
    jmp .Llook_\@
    .popsection
    .endm

/* The steps of returns to guests by `way`, sysret or iret: what both load of the registers. In: rsp = top of the CPU's stack. With
   `own`, loads the guest's page tables first: the copy that this CPU has of its level 4 table. The first instruction has five bytes
   at least, and may become a jump to what comes back behind that. */
    .macro begin_leave own, way
    function \own\()leave_by_\way
    .ifnb \own
    mov rdx, [rsp + {own_exit}]
    .globl own_leave_by_\way\()_rest
own_leave_by_\way\()_rest:
    test rdx, rdx
    je own_renew_for_\way
    .globl own_leave_by_\way\()_loads
own_leave_by_\way\()_loads:
    mov cr3, rdx
    .endif
    mov r15, [rsp + {frame_from_stack}]
    .ifb \own
    .globl leave_by_\way\()_rest
leave_by_\way\()_rest:
    .endif
    mov r14, [rsp + {frame_from_stack} + 8]
    mov r13, [rsp + {frame_from_stack} + 16]
    mov r12, [rsp + {frame_from_stack} + 24]
    mov rbp, [rsp + {frame_from_stack} + 32]
    mov rbx, [rsp + {frame_from_stack} + 40]
    mov r10, [rsp + {frame_from_stack} + 56]
    mov r9, [rsp + {frame_from_stack} + 64]
    mov r8, [rsp + {frame_from_stack} + 72]
    mov rdx, [rsp + {frame_from_stack} + 96]
    mov rsi, [rsp + {frame_from_stack} + 104]
    mov rdi, [rsp + {frame_from_stack} + 112]
    .endm
