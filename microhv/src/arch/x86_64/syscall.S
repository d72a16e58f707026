/* SYSCALL and SYSENTER from ring 3.
   In:  rcx = rip, r11 = rflags, everything else the guest's; rflags masked by FMASK.
   Does: stores the guest's registers in the CPU's frame, which is the running vCPU's, then works on the CPU's own stack. The
   guest's GS base stays loaded: the hypervisor never uses GS.
   SYSCALL brings no stack, so each CPU has entries of its own, which name the CPU's area by its address. They lie
   32 bytes apart, the highest CPU's first; the boot CPU's entry runs on into what is common to all.
   All this is there twice: names that begin with own_ are for guests on page tables of the hypervisor's own (roots.rs). */
    .section .text.entry, "ax", @progbits

/* One CPU's entry: from the stack pointer's place in the frame, what an interruption pushes is pushed. */
    .macro entry_of_cpu name, cpu, common
    .balign 32
    function \name
    mov [rip + cpu_areas + \cpu * 0x10000 + {frame_rsp}], rsp
    lea rsp, [rip + cpu_areas + \cpu * 0x10000 + {frame_rsp}]
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

/* The other words that an interruption pushes, of a SYSCALL from code of selector `cs`. `vector` is of 64 bits, error code and all. */
    .macro push_syscall_frame cs, vector
    mov qword ptr [rsp + 8], 0xe02b
    push r11
    push \cs
    push rcx
    push \vector
    .endm

    .macro syscall_entries own
    entries_of_cpus \own\()syscall_entry
    push_syscall_frame 0xe033, {entry_syscall}
    enter_hypervisor \own
    call_from_guest \own\()call_syscall, syscall_from_guest
    leave \own

/* Ends with SYSRET. In: rsp = top of the CPU's stack; rcx = rip, which is canonical; cs:ss are 0xe033:0xe02b. */
    begin_leave \own, sysret
    mov r11, [rsp + {frame_from_stack} + {regs_rflags}]
    mov rax, [rsp + {frame_from_stack} + 80]
    mov rsp, [rsp + {frame_from_stack} + {regs_rsp}]
    .globl \own\()return_by_sysret
\own\()return_by_sysret:
    sysretq
    int3                                /* with these, room for a jump to verw_sysret */
    int3

/* SYSCALL from 32-bit code. Same contract; the handler tells it by cs. */
    entries_of_cpus \own\()syscall32_entry
    push_syscall_frame 0xe023, 0
    jmp \own\()guest_entry_common_syscall

/* SYSENTER. The CPU keeps nothing of the caller's rip and rsp, and clears only IF of its flags: the caller's DF, NT and
   AC must not be ours. In: rsp = where interruptions of ring 3 are pushed. */
    .balign 16
    function \own\()sysenter_entry
    push 0xe02b
    push 0
    pushfq
    push 2
    popfq
    push 3
    push 0
    push 0
    function \own\()guest_entry_common_syscall
    enter_hypervisor \own
    call_from_guest \own\()call_compat_syscall, compat_syscall_from_guest
    leave \own
    jmp \own\()leave_by_sysret
    .endm

    syscall_entries
    syscall_entries own_
    .text
