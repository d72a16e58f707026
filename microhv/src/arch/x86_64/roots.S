/* Ways in and out on a CPU whose guests run on page tables of their own, which map of the hypervisor this section, the IDT, and
   of the CPU's area the entry page and the stacks of interruptions that nothing masks (roots.rs). Other CPUs execute nothing of
   this. In the entry page are what CR3 held when the CPU left, and a stack: the processor pushes there, and IRET takes its words
   from there. */
    .section .text.entry, "ax", @progbits

/* SYSCALL: loads the tables that the CPU left with, then goes on behind the first instruction of the CPU's common entry. */
    .macro own_entry_of_cpu name, cpu
    .balign 32
    function own_\name
    mov [rip + cpu_areas + \cpu * 0x10000 + {entry_scratch}], rsp
    mov rsp, [rip + cpu_areas + \cpu * 0x10000 + {entry_full}]
    mov cr3, rsp
    jmp \name\()_saved
    .endm

    .macro own_entries_of_cpus name
    .irp high, 3, 2, 1, 0
    .irp low, f, e, d, c, b, a, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0
    own_entry_of_cpu \name\()_\high\low, 0x\high\low
    .endr
    .endr
    .endm

    own_entries_of_cpus syscall_entry
    own_entries_of_cpus syscall32_entry

/* SYSENTER. In: rsp = top of the entry page. Keeps the flags. */
    .balign 16
    function own_sysenter_entry
    push rax
    lea rax, [rsp + 8]                   /* top of the page */
    mov rax, [rax - {entry_stack} + {entry_full}]
    mov cr3, rax
    pop rax
    lea rsp, [rsp - {entry_stack} + {stack_top}]
    jmp sysenter_entry

/* The start of trap_common. From ring 3, and where the IRET to a guest faulted, rsp is in the entry page and the guest's tables
   are loaded: the words go to the vCPU's frame, or to the CPU's main stack, which is empty. */
    .balign 16
    function own_trap
    push rax
    push rdx
    mov rax, rsp
    test byte ptr [rsp + 32], 3
    jne own_from_guest
    mov edx, eax
    and edx, 0xf000
    cmp edx, {entry_page}
    jne 1f
    and rax, -0x10000                    /* this CPU's area */
    mov rdx, [rax + {entry_full}]
    mov cr3, rdx
    add rax, {stack_top}
    jmp 2f
1:  pop rdx
    pop rax
    jmp 3f

/* The part of debug_stub for what comes from ring 3. */
    function own_debug
    push rax
    push rdx
    mov rax, rsp
own_from_guest:
    and rax, -0x10000
    mov rdx, [rax + {entry_full}]
    mov cr3, rdx
    mov rax, [rax + {local_regs_top}]
2:  move_words
3:  push_registers
    jmp trap_saved

/* ist_common: whatever tables are loaded, the hypervisor's are until the end. */
    .balign 16
    function own_ist
    push_registers
    cld
    mov rdi, rsp
    mov rbp, rsp
    and rsp, -16
    mov rax, cr3
    push rax
    push rax                             /* so that calls find the stack aligned */
    mov rax, rsp
    and rax, -0x10000
    mov rax, [rax + {entry_hypervisor}]
    mov cr3, rax
    place own_ist_guard
    call trap_on_own_stack
    place own_ist_end
    pop rax
    mov cr3, rax
    mov rsp, rbp
    return_to_ring_0 own_return_by_ist
    int3                                /* with these, room for a jump to verw_ist */
    int3
    int3

/* Finds this CPU's copy of the level 4 table that is loaded, or makes one. In: rax = frame, rsp = the CPU's own stack.
   Out: rsi = the copy, rsp = top of the entry page. */
    .macro to_entry_page
    mov rdi, cr3
    mov rcx, rsp
    and rcx, -0x10000
    mov rdx, [rcx + {own_keep}]
    or rdx, rdi
    mov [rcx + {entry_full}], rdx
    mov rsi, [rcx + {own_tables}]
    cmp rdi, [rcx + {own_copies}]
    je 1f
    mov rsi, [rcx + {own_tables} + 8]
    cmp rdi, [rcx + {own_copies} + 8]
    je 1f
    push rax
    push rcx
    call renew_root
    mov rsi, rax
    pop rcx
    pop rax
1:  lea rsp, [rcx + {entry_stack}]
    .endm

/* leave_by_sysret. */
    .balign 16
    function own_sysret
    to_entry_page
    place own_sysret_guard
    push [rax + {regs_rsp}]
    push [rax + 80]
    push rsi
    load_registers
    mov rcx, [rax + {regs_rip}]
    mov r11, [rax + {regs_rflags}]
    pop rax
    mov cr3, rax
    pop rax
    pop rsp
    .globl own_return_by_sysret
own_return_by_sysret:
    sysretq
    int3                                /* with these, room for a jump to verw_sysret */
    int3

/* leave_by_iret. */
    .balign 16
    function own_iret
    to_entry_page
    place own_iret_guard
    push [rax + {regs_ss}]
    push [rax + {regs_rsp}]
    push [rax + {regs_rflags}]
    push [rax + {regs_cs}]
    push [rax + {regs_rip}]
    push [rax + 80]
    push rsi
    load_registers all=1
    pop rax
    mov cr3, rax
    pop rax
    .globl own_guest_iret
own_guest_iret:
    iretq
    int3                                /* with these, room for a jump to verw_iret */
    int3
    int3
    .text
