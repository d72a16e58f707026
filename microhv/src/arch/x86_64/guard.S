/* What a CPU may need behind an entry from a guest, and ahead of a return to one. speculation.rs has the entries and exits lead
   here. */
    .section .text.entry, "ax", @progbits
/* Called by an entry. In: all registers are saved. Changes rax, rcx, rdx. */
    .balign 16
    function guard_entry
    place guard_predictions
    place guard_return_stack
    place guard_history
    lfence                              /* nothing behind is executed ahead of all that */
    ret

/* Forgets all predictions of indirect branches: MSR_PRED_CMD = IBPB. */
    .balign 16
    function forget_predictions
    mov ecx, 0x49
    mov eax, 1
    xor edx, edx
    wrmsr
    ret

/* Fills the CPU's stack of return addresses, of 32 at most, with such as lead to loops that wait. */
    .balign 16
    function overwrite_return_stack
    mov ecx, 16
    mov rax, rsp
1:  call 3f
2:  pause
    lfence
    jmp 2b
3:  call 5f
4:  pause
    lfence
    jmp 4b
5:  dec ecx
    jne 1b
    mov rsp, rax
    ret

/* Makes so many branches that the CPU's history of them has none of the guest's. Intel, "Branch History Injection". */
    .balign 16
    function clear_history
    mov ecx, 5
    call 1f
    ret
    .balign 64
1:  call 2f
    ret
    .balign 64
2:  mov eax, 5
3:  jmp 4f
    nop
4:  sub eax, 1
    jne 3b
    sub ecx, 1
    jne 1b
    ret

/* The ends of leave_by_sysret and leave_by_iret, once buffers of the CPU are cleared, whose entries the guest could sample. */
    .balign 16
    function verw_sysret
    verw word ptr [rip + verw_selector]
    sysretq
    function verw_iret
    verw word ptr [rip + verw_selector]
    .globl guest_iret_cleared
guest_iret_cleared:
    iretq

/* VERW clears buffers if its operand is in memory; with a good selector it does so fast. */
    .pushsection .rodata.entry, "a", @progbits
    .balign 2
verw_selector:
    .short {hypervisor_ds}
    .popsection
    .text
