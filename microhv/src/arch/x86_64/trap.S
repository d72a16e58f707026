/* Exceptions and interrupts: one stub per vector, in vector_stubs, 16 bytes apart.
   From a guest: the CPU pushed its words straight into the vCPU's frame (TSS.rsp0), the stub
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
    mov rdi, rsp
    xor ebp, ebp
    test byte ptr [rsp + {regs_cs}], 3
    je 1f
    mov rsp, [rdi - {stack_before_regs}]
    call_from_guest call_trap, cleared_trap, trap_from_guest
    test edx, edx
    je leave_by_iret
    jmp leave_by_sysret

1:  mov rbp, rsp                    /* a frame record is not needed: regs.rbp and rip are in the frame */
    and rsp, -16
    call trap_from_hypervisor
    mov rsp, rbp
    return_to_ring_0

/* Debug exceptions: on a stack of their own, since a guest can have one taken at the first instruction of
   syscall_entry, where the guest's stack pointer is still loaded (a breakpoint hit by MOV SS, then SYSCALL; XSA-260).
   Machine checks: likewise, since they come anywhere.
   From ring 3 the words are moved to the vCPU's frame, and the exception goes on as any other. */
    .macro own_stack_but_from_guest name, vector
    .balign 16
    function \name
    push 0
    mov dword ptr [rsp + 4], \vector
    test byte ptr [rsp + 16], 3
    je ist_common
    .globl \name\()_from_guest
\name\()_from_guest:                     /* five bytes that may become a jump to own_debug */
    push rax
    push rdx
    mov rax, rsp
    and rax, -0x10000                    /* this CPU's area */
    mov rax, [rax + {local_regs_top}]
    move_words
    jmp trap_common
    .endm
    own_stack_but_from_guest debug_stub, 1
    own_stack_but_from_guest machine_check_stub, 18

/* NMI, double fault: on stacks of their own, whatever was running. */
    .macro own_stack_stub name, vector
    function \name
    push 0
    mov dword ptr [rsp + 4], \vector
    jmp ist_common
    .endm
    own_stack_stub nmi_stub, 2
    function double_fault_stub
    mov dword ptr [rsp + 4], 8
    function ist_common
    push_registers                       /* may become a jump to own_ist */
    cld
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
