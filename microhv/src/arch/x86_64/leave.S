/* The way back to a guest by IRET. In: rsp = top of the CPU's own stack.
   IRET takes its words from the frame. A fault of the IRET itself (a selector that the guest spoiled) is pushed over registers in
   the frame, which are loaded by then, and saved by trap_common: iret_refused (trap.S) puts them back. */
    .section .text.entry, "ax", @progbits
    .macro leave_by_iret own
    .balign 16
    begin_leave \own, iret
    mov r11, [rsp + {frame_from_stack} + 48]
    mov rcx, [rsp + {frame_from_stack} + 88]
    mov rax, [rsp + {frame_from_stack} + 80]
    lea rsp, [rsp + {frame_from_stack} + {regs_rip}]
    .globl \own\()guest_iret
\own\()guest_iret:
    iretq
    int3                                /* with these, room for a jump to verw_iret */
    int3
    int3
    .endm
    leave_by_iret
    leave_by_iret own_

/* Enters a CPU's first guest: forgets the stack above. In: rdi = top of the CPU's stack. */
    function enter_guest
    mov rsp, rdi
    leave
    jmp leave_by_sysret

/* Runs a function on an emptied stack. In: rdi = top of the CPU's stack, rsi = function, which does not return.
   A retpoline: the CPU predicts the return by the call before it, and waits at 1 until the target is known. */
    function restart_stack
    mov rsp, rdi
    xor ebp, ebp
    push 0                              /* where the function would return to */
    call 2f
1:  pause
    lfence
    jmp 1b
2:  mov [rsp], rsi
    ret
    .text
