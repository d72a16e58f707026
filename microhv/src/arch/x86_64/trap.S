/* Exceptions and interrupts: one stub per vector, in vector_stubs, 16 bytes apart.
   From a guest: the CPU pushed its words straight into its frame (TSS.rsp0), the stub
   completes the frame, and the handler runs on the CPU's own stack.
   From ring 0 (the idle loop, an expected fault, or our own bug): the frame is on the
   stack that was in use, and is restored at the end. */
    .section .text.entry, "ax", @progbits
    .balign 16
    .globl vector_stubs
vector_stubs:
    .irp high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f
    .irp low, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f
    .balign 16
    .type vector_\high\low, @function
vector_\high\low:
    /* All but 8, 10-14, 17 and 21, for which the CPU pushes an error code. */
    .if (0x\high\low != 8) & ((0x\high\low < 10) | (0x\high\low > 14)) & (0x\high\low != 17) & (0x\high\low != 21)
    push 0
    .endif
    mov dword ptr [rsp + 4], 0x\high\low
    jmp trap_common
    .endr
    .endr

    .balign 16
    function trap_common
    push_registers                       /* five bytes at least, which may become a jump to own_trap */
    .globl trap_saved
trap_saved:
    cld
    place_of_clac clac_trap
    test byte ptr [rsp + {regs_cs}], 3
    je 1f
    mov rsp, [rsp + {stack_from_frame}]
    xor ebp, ebp
    call_from_guest call_trap, trap_from_guest
    leave
    jmp leave_by_sysret

1:  .irp return, guest_iret, guest_iret_cleared, own_guest_iret
    lea rax, [rip + \return]
    cmp rax, [rsp + {regs_rip}]
    je iret_refused
    .endr
    mov rdi, rsp
    mov rbp, rsp                    /* a frame record is not needed: regs.rbp and rip are in the frame */
    and rsp, -16
    call trap_from_hypervisor
    mov rsp, rbp
    return_to_ring_0

/* The IRET to a guest faulted. The processor pushed six words below those of the IRET, the stub completed them, and push_registers
   saved the guest's registers below: 48 bytes below their places in the frame, to which they go back. The place below is cleared: the
   next guest's page tables map that page. In: rsp = what was saved. */
    function iret_refused
    mov r14d, [rsp + 124]               /* vector */
    mov r15d, [rsp + 120]               /* error code */
    lea rdi, [rsp + 48]
    place refused_tables
    mov ecx, 14
1:  mov rax, [rsp + rcx * 8]
    mov [rdi + rcx * 8], rax
    dec ecx
    jns 1b
    xor eax, eax
    mov [rdi - 56], rax                 /* where own_refused returned to */
    .irp word, 48, 40, 32, 24, 16, 8
    mov [rdi - \word], rax
    .endr
    mov rsp, [rdi + {stack_from_frame}]
    place refused_guard
    mov edi, r14d
    mov esi, r15d
    .irp register, eax, ebx, ecx, edx, ebp, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d
    xor \register, \register
    .endr
    call refused_iret
    leave
    jmp leave_by_sysret

/* Debug exceptions: on a stack of their own, since a guest can have one taken at the first instruction of
   syscall_entry, where the guest's stack pointer is still loaded (a breakpoint hit by MOV SS, then SYSCALL; XSA-260).
   Machine checks and NMIs: likewise, since they come anywhere.
   From ring 3 the words are moved to the CPU's frame, and the exception goes on as any other. */
    .macro own_stack_but_from_guest name, vector
    .balign 16
    function \name
    push 0
    mov dword ptr [rsp + 4], \vector
    test byte ptr [rsp + 16], 3
    je ist_common
    move_words
    jmp trap_common
    .endm
    own_stack_but_from_guest debug_stub, 1
    own_stack_but_from_guest machine_check_stub, 18
    own_stack_but_from_guest nmi_stub, 2

/* Double fault: on a stack of its own, whatever was running. */
    function double_fault_stub
    mov dword ptr [rsp + 4], 8
    function ist_common
    push_registers                       /* may become a jump to own_ist */
    cld
    place_of_clac clac_ist
    mov rdi, rsp
    mov rbp, rsp
    and rsp, -16
    place call_ist_guard
    call trap_on_own_stack
    place call_ist_end
    mov rsp, rbp
    return_to_ring_0 return_by_ist
    int3                                /* with these, room for a jump to verw_ist */
    int3
    int3
    .text
