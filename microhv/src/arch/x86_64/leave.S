/* The way back to a guest by IRET.
   In: rax = the frame of the vCPU to run; rsp = the CPU's own stack.
   The five words that IRET takes are copied to our stack first, so that a fault of the
   IRET itself (a selector that the guest spoiled) finds the vCPU's frame whole: the handler
   sees rip = guest_iret, and delivers the failsafe callback. */
    .section .text.entry, "ax", @progbits
    .balign 16
    .globl leave_by_iret
    .type leave_by_iret, @function
leave_by_iret:
    push [rax + {regs_ss}]
    push [rax + {regs_rsp}]
    push [rax + {regs_rflags}]
    push [rax + {regs_cs}]
    push [rax + {regs_rip}]
    mov r15, [rax]
    mov r14, [rax + 8]
    mov r13, [rax + 16]
    mov r12, [rax + 24]
    mov rbp, [rax + 32]
    mov rbx, [rax + 40]
    mov r11, [rax + 48]
    mov r10, [rax + 56]
    mov r9, [rax + 64]
    mov r8, [rax + 72]
    mov rcx, [rax + 88]
    mov rdx, [rax + 96]
    mov rsi, [rax + 104]
    mov rdi, [rax + 112]
    mov rax, [rax + 80]
    .globl guest_iret
guest_iret:
    iretq

/* Enters the first guest, or the next one after idling: forgets the stack above.
   In: rdi = top of the CPU's stack, rsi = frame of the vCPU to run. */
    .globl enter_guest
    .type enter_guest, @function
enter_guest:
    mov rsp, rdi
    mov rax, rsi
    jmp leave_by_iret

/* Runs a function on an emptied stack. In: rdi = top of the CPU's stack, rsi = function. */
    .globl restart_stack
    .type restart_stack, @function
restart_stack:
    mov rsp, rdi
    xor ebp, ebp
    call rsi
    ud2
    .text
