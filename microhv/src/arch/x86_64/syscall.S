/* SYSCALL from ring 3, on the boot CPU (each CPU has its own copy of this path, because it
   finds its data by address).
   In:  rcx = rip, r11 = rflags, everything else the guest's; rflags masked by FMASK.
   Does: stores the guest's registers straight into the running vCPU's frame (whose end is
   in LOCAL_REGS_TOP), then works on the CPU's own stack. The guest's GS base stays loaded:
   the hypervisor never uses GS. */
    .section .text.entry, "ax", @progbits
    .balign 16
    .globl syscall_entry
    .type syscall_entry, @function
syscall_entry:
    mov [rip + boot_cpu_area + {local_scratch}], rsp
    mov rsp, [rip + boot_cpu_area + {local_regs_top}]
    push 0xe02b
    push [rip + boot_cpu_area + {local_scratch}]
    push r11
    push 0xe033
    push rcx
    push 0
    push rdi
    push rsi
    push rdx
    push rcx
    push rax
    push r8
    push r9
    push r10
    push r11
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    mov rsp, [rdi - {stack_before_regs}]
    xor ebp, ebp
    call syscall_from_guest
    /* rax = frame of the vCPU to run, edx = 1 when rcx and r11 need not be kept */
    test edx, edx
    je leave_by_iret

/* Ends with SYSRET. In: rax = frame whose rip is canonical and cs:ss are 0xe033:0xe02b. */
    .globl leave_by_sysret
    .type leave_by_sysret, @function
leave_by_sysret:
    mov r15, [rax]
    mov r14, [rax + 8]
    mov r13, [rax + 16]
    mov r12, [rax + 24]
    mov rbp, [rax + 32]
    mov rbx, [rax + 40]
    mov r10, [rax + 56]
    mov r9, [rax + 64]
    mov r8, [rax + 72]
    mov rdx, [rax + 96]
    mov rsi, [rax + 104]
    mov rdi, [rax + 112]
    mov rcx, [rax + {regs_rip}]
    mov r11, [rax + {regs_rflags}]
    mov rsp, [rax + {regs_rsp}]
    mov rax, [rax + 80]
    sysretq

/* SYSCALL from 32-bit code. Same contract; the guest is told by cs. */
    .balign 16
    .globl syscall32_entry
    .type syscall32_entry, @function
syscall32_entry:
    mov [rip + boot_cpu_area + {local_scratch}], rsp
    mov rsp, [rip + boot_cpu_area + {local_regs_top}]
    push 0xe02b
    push [rip + boot_cpu_area + {local_scratch}]
    push r11
    push 0xe023
    push rcx
    push 0
    jmp guest_entry_common_syscall

/* SYSENTER. Nothing of the caller's rip and rsp is kept by the CPU, and of its flags only IF is cleared: the caller's
   DF, NT and AC must not be ours. */
    .balign 16
    .globl sysenter_entry
    .type sysenter_entry, @function
sysenter_entry:
    mov rsp, [rip + boot_cpu_area + {local_regs_top}]
    push 0xe02b
    push 0
    pushfq
    push 2
    popfq
    push 3
    push 0
    push 0
    .type guest_entry_common_syscall, @function
guest_entry_common_syscall:
    push rdi
    push rsi
    push rdx
    push rcx
    push rax
    push r8
    push r9
    push r10
    push r11
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    mov rsp, [rdi - {stack_before_regs}]
    xor ebp, ebp
    call compat_syscall_from_guest
    jmp leave_by_iret
    .text
