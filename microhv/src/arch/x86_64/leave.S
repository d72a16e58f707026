/* The way back to a guest by IRET.
   In: rax = the frame of the vCPU to run; rsp = the CPU's own stack.
   The five words that IRET takes are copied to our stack first, so that a fault of the
   IRET itself (a selector that the guest spoiled) finds the vCPU's frame whole: the handler
   sees rip = guest_iret or guest_iret_cleared, and gives the guest's kernel the exception. */
    .section .text.entry, "ax", @progbits
    .balign 16
    function leave_by_iret
    push [rax + {regs_ss}]
    .globl leave_by_iret_rest
leave_by_iret_rest:
    push [rax + {regs_rsp}]
    push [rax + {regs_rflags}]
    push [rax + {regs_cs}]
    push [rax + {regs_rip}]
    load_registers all=1
    mov rax, [rax + 80]
    .globl guest_iret
guest_iret:
    iretq
    int3                                /* with these, room for a jump to verw_iret */
    int3
    int3

/* Enters the first guest, or the next one after idling: forgets the stack above.
   In: rdi = top of the CPU's stack, rsi = frame of the vCPU to run. */
    function enter_guest
    mov rsp, rdi
    mov rax, rsi
    jmp leave_by_iret

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
