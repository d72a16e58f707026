/* SYSCALL and SYSENTER from ring 3.
   In:  rcx = rip, r11 = rflags, everything else the guest's; rflags masked by FMASK.
   Does: stores the guest's registers straight into the running vCPU's frame (whose end is
   in LOCAL_REGS_TOP), then works on the CPU's own stack. The guest's GS base stays loaded:
   the hypervisor never uses GS.
   SYSCALL brings no stack, so each CPU has entries of its own, which name the CPU's area by its address. They lie
   32 bytes apart, the highest CPU's first; the boot CPU's entry runs on into what is common to all. */
    .section .text.entry, "ax", @progbits

/* One CPU's entry: the first words that an interruption pushes. */
    .macro entry_of_cpu name, cpu, common
    .balign 32
    function \name
    mov [rip + cpu_areas + \cpu * 0x10000 + {entry_scratch}], rsp
\name\()_saved:
    mov rsp, [rip + cpu_areas + \cpu * 0x10000 + {local_regs_top}]
    push 0xe02b
    push [rip + cpu_areas + \cpu * 0x10000 + {entry_scratch}]
    .if \cpu
    jmp \common
    .endif
    .endm

    .macro entries_of_cpus name
    .irp high, 3, 2, 1, 0
    .irp low, f, e, d, c, b, a, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0
    entry_of_cpu \name\()_\high\low, 0x\high\low, \name\()_common
    .endr
    .endr
\name\()_common:
    .endm

/* The other words that an interruption pushes, of a SYSCALL from code of selector `cs`. */
    .macro push_syscall_frame cs
    push r11
    push \cs
    push rcx
    push 0
    .endm

    entries_of_cpus syscall_entry
    push_syscall_frame 0xe033
    push_registers
    mov rdi, rsp
    mov rsp, [rdi - {stack_before_regs}]
    xor ebp, ebp
    call_from_guest call_syscall, cleared_syscall, syscall_from_guest
    /* rax = frame of the vCPU to run, edx = 1 when rcx and r11 need not be kept */
    test edx, edx
    je leave_by_iret

/* Ends with SYSRET. In: rax = frame whose rip is canonical and cs:ss are 0xe033:0xe02b. */
    function leave_by_sysret
    load_registers rest=leave_by_sysret_rest
    mov rcx, [rax + {regs_rip}]
    mov r11, [rax + {regs_rflags}]
    mov rsp, [rax + {regs_rsp}]
    mov rax, [rax + 80]
    .globl return_by_sysret
return_by_sysret:
    sysretq
    int3                                /* with these, room for a jump to verw_sysret */
    int3

/* SYSCALL from 32-bit code. Same contract; the handler tells it by cs. */
    entries_of_cpus syscall32_entry
    push_syscall_frame 0xe023
    jmp guest_entry_common_syscall

/* SYSENTER. The CPU keeps nothing of the caller's rip and rsp, and clears only IF of its flags: the caller's DF, NT and
   AC must not be ours. In: rsp = top of the CPU's stack, where its data begin. */
    .balign 16
    function sysenter_entry
    mov rsp, [rsp + {stack_to_regs_top}]
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
    call_from_guest call_compat_syscall, cleared_compat_syscall, compat_syscall_from_guest
    jmp leave_by_iret
    .text
