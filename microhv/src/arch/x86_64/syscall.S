/* SYSCALL and SYSENTER from ring 3, on the one CPU that is used: the entries find its data by address.
   In:  rcx = rip, r11 = rflags, everything else the guest's; rflags masked by FMASK.
   Does: stores the guest's registers straight into the running vCPU's frame (whose end is
   in LOCAL_REGS_TOP), then works on the CPU's own stack. The guest's GS base stays loaded:
   the hypervisor never uses GS. */
    .section .text.entry, "ax", @progbits

/* The words that an interruption pushes, of a SYSCALL from code of selector `cs`. */
    .macro push_syscall_frame cs
    mov [rip + boot_cpu_area + {local_scratch}], rsp
    mov rsp, [rip + boot_cpu_area + {local_regs_top}]
    push 0xe02b
    push [rip + boot_cpu_area + {local_scratch}]
    push r11
    push \cs
    push rcx
    push 0
    .endm

    .balign 16
    function syscall_entry
    push_syscall_frame 0xe033
    push_registers
    mov rdi, rsp
    mov rsp, [rdi - {stack_before_regs}]
    xor ebp, ebp
    call syscall_from_guest
    /* rax = frame of the vCPU to run, edx = 1 when rcx and r11 need not be kept */
    test edx, edx
    je leave_by_iret

/* Ends with SYSRET. In: rax = frame whose rip is canonical and cs:ss are 0xe033:0xe02b. */
    function leave_by_sysret
    load_registers
    mov rcx, [rax + {regs_rip}]
    mov r11, [rax + {regs_rflags}]
    mov rsp, [rax + {regs_rsp}]
    mov rax, [rax + 80]
    sysretq

/* SYSCALL from 32-bit code. Same contract; the handler tells it by cs. */
    .balign 16
    function syscall32_entry
    push_syscall_frame 0xe023
    jmp guest_entry_common_syscall

/* SYSENTER. The CPU keeps nothing of the caller's rip and rsp, and clears only IF of its flags: the caller's DF, NT and
   AC must not be ours. */
    .balign 16
    function sysenter_entry
    mov rsp, [rip + boot_cpu_area + {local_regs_top}]
    push 0xe02b
    push 0
    pushfq
    push 2
    popfq
    push 3
    push 0
    push 0
    function guest_entry_common_syscall
    push_registers
    mov rdi, rsp
    mov rsp, [rdi - {stack_before_regs}]
    xor ebp, ebp
    call compat_syscall_from_guest
    jmp leave_by_iret
    .text
