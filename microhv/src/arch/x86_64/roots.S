/* Ways in on a CPU whose guests run on page tables of their own, which map of the hypervisor this section, the IDT, and of the CPU's
   area the entry page, with the frame, and the stacks of interruptions that nothing masks (roots.rs). Other CPUs execute nothing of
   this. The entry page holds what CR3 is to be in the hypervisor. */
    .section .text.entry, "ax", @progbits

/* The start of trap_common. From ring 3 the guest's tables are loaded. */
    .balign 16
    function own_trap
    test byte ptr [rsp + 16], 3
    je 1f
    enter_hypervisor own_
    cld
    place_of_clac own_clac_trap
    call_from_guest own_call_trap, trap_from_guest
    leave own_
    jmp own_leave_by_sysret
1:  push_registers
    jmp trap_saved

/* Called where the IRET to a guest was refused, which left the guest's tables loaded. In: rdi = the frame. */
    function own_refused
    mov rax, [rdi + {full_from_frame}]
    mov cr3, rax
    ret

/* ist_common: whatever tables are loaded, the hypervisor's are until the end. */
    .balign 16
    function own_ist
    push_registers
    cld
    place_of_clac own_clac_ist
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
    return_to_ring_0 own_return_by_ist, wipe=1
    int3                                /* with these, room for a jump to verw_ist */
    int3
    int3

/* No copy of the level 4 table is known: begin_leave goes on with one. In and out: rcx = rip. */
    .irp way, sysret, iret
    function own_renew_for_\way
    call renew_root
    mov rdx, rax
    mov rcx, [rsp + {frame_from_stack} + {regs_rip}]
    jmp own_leave_by_\way\()_loads
    .endr
    .text
