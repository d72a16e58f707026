/* What a CPU may need behind an entry from a guest, and ahead of a return to one. speculation.rs has the entries and exits lead
   here. */
    .section .text.entry, "ax", @progbits
/* What an entry calls in the place of a function in Rust where a CPU needs it: clears all registers first, so that the hypervisor
   executes nothing ahead with a guest's values in them; from guarded_..., calls guard_entry before. In: the registers are saved. */
    .irp from, syscall, compat_syscall, trap
    .balign 16
    function guarded_\from
    call guard_entry
    function cleared_\from
    .irp register, eax, ebx, ecx, edx, esi, edi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d
    xor \register, \register
    .endr
    jmp \from\()_from_guest
    .endr

/* Called by an entry. In: all registers are saved. Changes rax, rcx, rdx. */
    .balign 16
    function guard_entry
    place guard_control
    place guard_predictions
    place guard_history
    place guard_return_stack            /* last: what is called behind that takes entries away again */
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

/* 32 calls whose return addresses lead to loops that wait. */
    .macro overwrite_calls count, stack
    mov \count, 16
    mov \stack, rsp
1:  call 3f
2:  pause
    lfence
    jmp 2b
3:  call 5f
4:  pause
    lfence
    jmp 4b
5:  dec \count
    jne 1b
    mov rsp, \stack
    .endm

/* Fills the CPU's stack of return addresses, of 32 at most, with such as lead to loops that wait. Changes rax, rcx. */
    .balign 16
    function overwrite_return_stack
    overwrite_calls ecx, rax
    ret

    .pushsection .text.returns, "ax", @progbits
/* return_stack.rs calls this behind calls that went deep: nothing, or a jump to overwrite_return_stack. */
    .balign 16
    function fill_return_stack
    ret
    int3                                /* with these, room for the jump */
    int3
    int3
    int3

/* The compiler's code for indirect calls (r11 = target) becomes a jump to this, which fills the return stack behind the call: so
   nothing need be known of how deep the target goes. The target's arguments must be in registers, since what was pushed
   above would be out of place: the image check sees that they are. What memops.S has calls nothing, and needs none of this.
   Changes r10; behind the target r10, r11. */
    .balign 16
    function fill_behind_indirect
    lea r10, [rip + memops]
    cmp r11, r10
    jb 6f
    lea r10, [rip + memops_end]
    cmp r11, r10
    jb 7f
6:  sub rsp, 8                          /* aligned as the target expects */
    call 7f
    overwrite_calls r10d, r11
    add rsp, 8
    ret
7:  call 9f                             /* a retpoline, as the compiler has it */
8:  pause
    lfence
    jmp 8b
9:  mov [rsp], r11
    ret
    .popsection

    .pushsection .rodata.returns, "a", @progbits
    .balign 8
    .globl indirect_thunk
indirect_thunk:
    .quad __llvm_retpoline_r11
    .popsection

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

/* On an entry by NMI, machine check, debug exception or double fault in ring 0: the hypervisor may have been before guard_entry or behind
   the last step of a return. In: all registers are saved. Keeps rdi, rbp; r12 is ist_end's. */
    .balign 16
    function guard_ist
    xor r12d, r12d
    place guard_ist_control
    call guard_entry
    .irp register, eax, ebx, ecx, edx, esi, r8d, r9d, r10d, r11d, r13d, r14d, r15d
    xor \register, \register
    .endr
    ret

/* MSR_SPEC_CTRL: IBRS while the hypervisor runs, none while a guest does; an entry by IST keeps what was, in r12. */
    .balign 16
    function keep_control
    mov ecx, 0x48
    rdmsr
    mov r12d, eax
    ret
    function restore_control
    mov eax, r12d
    jmp 1f
    function set_hypervisor_control
    mov eax, [rip + {hypervisor_control}]
    jmp 1f
    function set_guest_control
    mov eax, [rip + {guest_control}]
1:  mov ecx, 0x48
    xor edx, edx
    wrmsr
    ret

/* The beginnings of returns to guests on CPUs that need anything there. In and out: rcx = rip. */
    .irp way, sysret, iret
    .balign 16
    function guarded_\way
    call guard_exit
    mov rcx, [rsp + {frame_from_stack} + {regs_rip}]
    mov r15, [rsp + {frame_from_stack}]
    jmp leave_by_\way\()_rest
    .balign 16
    function own_guarded_\way
    mov rdx, [rsp + {own_exit}]
    test rdx, rdx
    jne 1f
    call renew_root                     /* code of Rust's: ahead of what takes IBRS back */
    mov rdx, rax
1:  push rdx
    push rdx                            /* so that calls find the stack aligned */
    call guard_exit
    pop rdx
    pop rdx
    mov rcx, [rsp + {frame_from_stack} + {regs_rip}]
    jmp own_leave_by_\way\()_loads
    .endr

/* The registers are the caller's to change. */
    .balign 16
    function guard_exit
    place guard_divider
    place guard_exit_control
    ret

/* Leaves a result in the divider that tells nothing. */
    function scrub_divider
    xor edx, edx
    mov eax, 1
    mov ecx, eax
    div ecx
    ret

/* The ends of returns to guests, once buffers of the CPU are cleared, whose entries the guest could sample. */
    .balign 16
    function verw_sysret
    verw word ptr [rip + verw_selector]
    sysretq
    function verw_iret
    verw word ptr [rip + verw_selector]
    .globl guest_iret_cleared
guest_iret_cleared:
    iretq
    function verw_ist
    verw word ptr [rip + verw_selector]
    iretq

/* Called ahead of idleness: another thread of the core may get what this one's buffers hold. */
    function verw_idle
    verw word ptr [rip + verw_selector]
    ret

/* VERW clears buffers if its operand is in memory; with a good selector it does so fast. */
    .pushsection .rodata.entry, "a", @progbits
    .balign 2
verw_selector:
    .short {hypervisor_ds}
    .popsection
    .text
