//! The handlers and instructions that are timed.
#![allow(unsafe_code)] // everything here is what an ordinary kernel has no wrapper for

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

global_asm!(
    r#"
    .section .text.bench, "ax"

    # Event upcall: clears everything pending (ports below 64 only), counts, opens events again, returns.
    .globl bench_upcall
bench_upcall:
    push rax
    mov rax, [rip + bench_shared]
    mov byte ptr [rax], 0
    mov qword ptr [rax + 8], 0
    mov qword ptr [rax + 0x800], 0
    inc qword ptr [rip + bench_upcalls]
    mov byte ptr [rax + 1], 0
    pop rax
    pop rcx
    pop r11
    or byte ptr [rsp + 8], 3
    iretq

    # Page fault: back behind the two bytes of the instruction; to user mode by the hypercall.
    .globl bench_page_fault
bench_page_fault:
    pop rcx
    pop r11
    add rsp, 8
    add qword ptr [rsp], 2
    test byte ptr [rsp + 8], 3
    jnz 1f
    or byte ptr [rsp + 8], 3
    iretq
1:
    push 0
    push rcx
    push r11
    push rax
    mov eax, 23
    syscall
    ud2

    # int3: straight back.
    .globl bench_int3
bench_int3:
    pop rcx
    pop r11
    or byte ptr [rsp + 8], 3
    iretq

    # bench_user_loop(rdi = system calls to make): enters user mode, which makes them, and comes back.
    # bench_user_faults(rdi = page faults to take, rsi = an address without a page): the same with faults.
    .globl bench_user_loop, bench_user_faults
bench_user_faults:
    lea rax, [rip + bench_user_touch]
    jmp 1f
bench_user_loop:
    lea rax, [rip + bench_user]
1:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + bench_kernel_rsp], rsp
    push 0xe02b              # ss
    push rsp                 # user stack: never touched
    push 0x2                 # rflags: events stay masked
    push 0xe033              # cs
    push rax                 # rip
    push 0                   # flags
    push 0                   # rcx
    push 0                   # r11
    push 0                   # rax
    mov eax, 23
    syscall
    ud2

    # User mode: rdi system calls with eax 0, then one with eax 1.
bench_user:
    xor eax, eax
2:
    syscall
    dec rdi
    jnz 2b
    mov eax, 1
    syscall
    ud2

    # User mode: rdi reads of the byte at rsi, then a system call with eax 1.
bench_user_touch:
    .byte 0x8a, 0x06         # mov al, [rsi]
    dec rdi
    jnz bench_user_touch
    mov eax, 1
    syscall
    ud2

    # System calls of user mode, on the stack of stack_switch: rcx, r11, rip, cs, rflags, rsp, ss.
    .globl bench_syscall
bench_syscall:
    test eax, eax
    jnz 3f
    add rsp, 16
    push 0x100               # VGCF_in_syscall
    push rcx
    push r11
    push rax
    mov eax, 23
    syscall
    ud2
3:
    mov rsp, [rip + bench_kernel_rsp]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .section .bss.bench, "aw", @nobits
    .balign 16
    .skip 4096
bench_stack_top:
bench_shared:
    .skip 8
bench_upcalls:
    .skip 8
bench_kernel_rsp:
    .skip 8
    .text
    "#
);

unsafe extern "C" {
    fn bench_upcall();
    fn bench_int3();
    fn bench_page_fault();
    fn bench_syscall();
    fn bench_user_loop(count: u64);
    fn bench_user_faults(count: u64, address: u64);
    static bench_stack_top: u8;
    static bench_shared: AtomicU64;
    static bench_upcalls: AtomicU64;
}

/// Tells the handlers where shared_info is.
pub(crate) fn set_shared(address: u64) {
    // SAFETY: a word of this image, of the atomic's size and alignment.
    unsafe { &bench_shared }.store(address, Ordering::Relaxed);
}

/// Upcalls taken so far.
pub(crate) fn upcalls() -> u64 {
    // SAFETY: a word of this image, of the atomic's size and alignment.
    unsafe { &bench_upcalls }.load(Ordering::Relaxed)
}

/// Entry points of this image's own.
pub(crate) struct Handlers {
    pub(crate) upcall: u64,
    pub(crate) int3: u64,
    pub(crate) page_fault: u64,
    pub(crate) syscall: u64,
}

/// The addresses of the entry points.
pub(crate) fn handlers() -> Handlers {
    let address = |function: unsafe extern "C" fn()| function as *const () as u64;
    Handlers {
        upcall: address(bench_upcall),
        int3: address(bench_int3),
        page_fault: address(bench_page_fault),
        syscall: address(bench_syscall),
    }
}

/// The stack for entries from user mode.
pub(crate) fn kernel_stack() -> u64 {
    (&raw const bench_stack_top) as u64
}

/// Makes `count` system calls from user mode.
pub(crate) fn user_syscalls(count: u64) {
    // SAFETY: the routine keeps the registers a function must keep; user mode runs its loop only.
    unsafe { bench_user_loop(count) };
}

/// Takes `count` page faults in user mode, on an address without a page.
pub(crate) fn user_faults(count: u64, address: u64) {
    // SAFETY: as above; the handler steps over the instruction.
    unsafe { bench_user_faults(count, address) };
}

/// Takes a page fault, on an address without a page.
pub(crate) fn page_fault(address: u64) {
    // SAFETY: the handler steps over the two bytes; rcx and r11 come back from the frame.
    unsafe { asm!(".byte 0x8a, 0x07", in("rdi") address, out("al") _, options(nostack)) };
}

/// `int3`.
pub(crate) fn int3() {
    // SAFETY: the handler returns behind the instruction; rcx and r11 come back from the frame.
    unsafe { asm!("int3", options(nostack)) };
}

/// The machine frame of the top page table in use.
pub(crate) fn base_table() -> u64 {
    let cr3: u64;
    // SAFETY: emulated for a kernel in ring 3; reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    cr3 >> 12
}

/// `cpuid` behind the prefix that makes the hypervisor emulate it.
pub(crate) fn forced_cpuid() {
    // SAFETY: the prefix and the instruction are emulated as one; rbx, which the compiler keeps, is saved.
    unsafe {
        asm!(
            "push rbx",
            ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e",
            "cpuid",
            "pop rbx",
            inout("eax") 0 => _,
            inout("ecx") 0 => _,
            out("edx") _,
        );
    }
}

/// Reads the MSR EFER.
pub(crate) fn read_efer() {
    // SAFETY: emulated; reads a register.
    unsafe {
        asm!("rdmsr", in("ecx") 0xc000_0080u32, out("eax") _, out("edx") _, options(nomem, nostack, preserves_flags));
    }
}

/// Clears CR0.TS.
pub(crate) fn clts() {
    // SAFETY: emulated; this kernel uses no floating point.
    unsafe { asm!("clts", options(nomem, nostack, preserves_flags)) };
}
