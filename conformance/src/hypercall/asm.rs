//! Code in assembly: instructions that a compiler does not emit.
#![allow(unsafe_code)] // assembly: system calls of user mode, `iret`, an upcall handler

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use ring_abi::guest_context::IretContext;

global_asm!(
    r#"
    .section .text.conformance, "ax"

    # The hypercall iret, with the frame at rdi.
conformance_iret:
    mov rsp, rdi
    mov eax, 23
    syscall
    ud2

    # Where it may lead. Each ends in a trap.
conformance_landing:
    mov [rip + conformance_rax], rax
conformance_landing_end:
    ud2
conformance_user_syscall:
    syscall
conformance_user_syscall_end:
    ud2
conformance_user_read:
    mov rax, [rax]
    ud2
conformance_user_write:
    mov [rax], eax
    ud2
conformance_user_hlt:
    hlt
    ud2
conformance_user_gs:
    mov rax, gs:[0]
    mov [rip + conformance_rax], rax
conformance_user_gs_end:
    ud2
conformance_user_cli:
    cli
conformance_user_cli_end:
    ud2
conformance_user_int3:
    int3
conformance_user_int3_end:
    ud2
conformance_user_int80:
    int 0x80
conformance_user_int80_end:
    ud2

    # An upcall: counts, and returns with the mask as the hypervisor set it.
conformance_upcall:
    inc qword ptr [rip + conformance_upcalls]
    pop rcx
    pop r11
    or byte ptr [rsp + 8], 3
    iretq

    # A hypercall with every register known: gives a bit for each that has changed, of those that it must keep.
conformance_registers:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + conformance_rsp], rsp
    mov eax, 17
    mov edi, 0
    mov esi, 0x1111
    mov edx, 0x2222
    mov ebx, 0x3333
    mov ebp, 0x4444
    mov r8d, 0x5555
    mov r9d, 0x6666
    mov r10d, 0x7777
    mov r12d, 0x8888
    mov r13d, 0x9999
    mov r14d, 0xaaaa
    mov r15d, 0xbbbb
    syscall
    xor ecx, ecx
    cmp rdi, 0
    je 2f
    or ecx, 1
2:  cmp rsi, 0x1111
    je 2f
    or ecx, 2
2:  cmp rdx, 0x2222
    je 2f
    or ecx, 4
2:  cmp rbx, 0x3333
    je 2f
    or ecx, 8
2:  cmp rbp, 0x4444
    je 2f
    or ecx, 0x10
2:  cmp r8, 0x5555
    je 2f
    or ecx, 0x20
2:  cmp r9, 0x6666
    je 2f
    or ecx, 0x40
2:  cmp r10, 0x7777
    je 2f
    or ecx, 0x80
2:  cmp r12, 0x8888
    je 2f
    or ecx, 0x100
2:  cmp r13, 0x9999
    je 2f
    or ecx, 0x200
2:  cmp r14, 0xaaaa
    je 2f
    or ecx, 0x400
2:  cmp r15, 0xbbbb
    je 2f
    or ecx, 0x800
2:  cmp rsp, [rip + conformance_rsp]
    je 2f
    or ecx, 0x1000
2:  mov rsp, [rip + conformance_rsp]
    mov eax, ecx
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    # A second vCPU: does what it is told, one order after the other. An order is done when it is 0 again.
conformance_second:
    mov [rip + conformance_second_argument], rdi
conformance_second_next:
    inc qword ptr [rip + conformance_second_rounds]
    mov rcx, [rip + conformance_second_order]
    cmp rcx, {order_read}
    je 3f
    cmp rcx, {order_down}
    je 4f
    cmp rcx, {order_block}
    je 5f
    mov eax, 29              # sched_op
    xor edi, edi             # yield
    xor esi, esi
    syscall
    jmp conformance_second_next
3:  mov rdx, [rip + conformance_second_at]
    mov rdx, [rdx]
    mov [rip + conformance_second_value], rdx
    jmp 6f
4:  mov qword ptr [rip + conformance_second_order], 0
    mov eax, 24              # vcpu_op
    mov edi, 2               # down
    mov esi, 1
    xor edx, edx
    syscall
    jmp conformance_second_next
5:  mov eax, 29              # sched_op
    mov edi, 1               # block
    xor esi, esi
    syscall
6:  mov qword ptr [rip + conformance_second_order], 0
    jmp conformance_second_next

    # Its upcall: counts, and returns with events masked.
conformance_second_upcall:
    inc qword ptr [rip + conformance_second_upcalls]
    pop rcx
    pop r11
    or byte ptr [rsp + 8], 3
    iretq

    .section .bss.conformance, "aw", @nobits
    .balign 16
    .skip 4096
conformance_second_stack_top:
conformance_second_argument:
    .skip 8
conformance_second_rounds:
    .skip 8
conformance_second_order:
    .skip 8
conformance_second_at:
    .skip 8
conformance_second_value:
    .skip 8
conformance_second_upcalls:
    .skip 8
    .balign 16
    .skip 8192
conformance_stack_top:
    # A frame is read some words beyond its end.
    .skip 256
conformance_rax:
    .skip 8
conformance_rsp:
    .skip 8
conformance_upcalls:
    .skip 8
    .text
    "#,
    order_read = const second::READ,
    order_down = const second::DOWN,
    order_block = const second::BLOCK,
);

unsafe extern "C" {
    fn conformance_iret(frame: *const IretContext) -> !;
    fn conformance_registers() -> u64;
    static conformance_landing: u8;
    static conformance_landing_end: u8;
    static conformance_user_syscall: u8;
    static conformance_user_syscall_end: u8;
    static conformance_user_read: u8;
    static conformance_user_write: u8;
    static conformance_user_hlt: u8;
    static conformance_user_gs: u8;
    static conformance_user_gs_end: u8;
    static conformance_user_cli: u8;
    static conformance_user_cli_end: u8;
    static conformance_user_int3: u8;
    static conformance_user_int3_end: u8;
    static conformance_user_int80: u8;
    static conformance_user_int80_end: u8;
    static conformance_upcall: u8;
    static conformance_stack_top: u8;
    fn conformance_second();
    fn conformance_second_upcall();
    static conformance_second_stack_top: u8;
    static conformance_second_argument: AtomicU64;
    static conformance_second_rounds: AtomicU64;
    static conformance_second_order: AtomicU64;
    static conformance_second_at: AtomicU64;
    static conformance_second_value: AtomicU64;
    static conformance_second_upcalls: AtomicU64;
    static conformance_rax: AtomicU64;
    static conformance_upcalls: AtomicU64;
}

/// Code that a case enters by `iret`, and the address at which its trap occurs.
pub(super) struct Code {
    pub(super) start: u64,
    /// The rip that the trap reports: the one behind the first instruction, or that of the instruction that
    /// traps.
    pub(super) end: u64,
}

macro_rules! code {
    ($( $(#[$meta:meta])* $name:ident = $start:ident, $end:ident; )*) => {$(
        $(#[$meta])*
        pub(super) fn $name() -> Code {
            Code { start: (&raw const $start) as u64, end: (&raw const $end) as u64 }
        }
    )*};
}

code! {
    /// Stores rax where [`landed_rax`] finds it, then ends with `ud2`.
    landing = conformance_landing, conformance_landing_end;
    /// `syscall`.
    user_syscall = conformance_user_syscall, conformance_user_syscall_end;
    /// Reads at rax: the trap is at the start.
    user_read = conformance_user_read, conformance_user_read;
    /// Writes at rax: the trap is at the start.
    user_write = conformance_user_write, conformance_user_write;
    /// `hlt`: the trap is at the start.
    user_hlt = conformance_user_hlt, conformance_user_hlt;
    /// Stores the word at GS:0 where [`landed_rax`] finds it, then ends with `ud2`.
    user_gs = conformance_user_gs, conformance_user_gs_end;
    /// `cli`, then `ud2`, which is the end.
    user_cli = conformance_user_cli, conformance_user_cli_end;
    /// `int3`.
    user_int3 = conformance_user_int3, conformance_user_int3_end;
    /// `int 0x80`.
    user_int80 = conformance_user_int80, conformance_user_int80_end;
}

/// Makes the hypercall iret with `frame`. The code at the frame's rip must end in a trap.
///
/// # Safety
/// Inside an attempt, and to code of this module.
pub(super) unsafe fn iret(frame: &IretContext) {
    // SAFETY: promised by the caller.
    unsafe { conformance_iret(frame) }
}

/// The rax that the landing code stored.
pub(super) fn landed_rax() -> u64 {
    // SAFETY: a word of this image, of the atomic's size and alignment.
    unsafe { &conformance_rax }.load(Ordering::Relaxed)
}

/// The top of a stack for entries from user mode, and for code that has no stack of its own.
pub(super) fn stack_top() -> u64 {
    (&raw const conformance_stack_top) as u64
}

/// An upcall handler that counts and returns.
pub(super) fn upcall() -> u64 {
    (&raw const conformance_upcall) as u64
}

/// The number of upcalls that [`upcall`] has counted.
pub(super) fn upcalls() -> u64 {
    // SAFETY: a word of this image, of the atomic's size and alignment.
    unsafe { &conformance_upcalls }.load(Ordering::Relaxed)
}

/// Makes a hypercall of two arguments with known register values. The result has a bit for each register that
/// changed.
pub(super) fn changed_registers() -> u64 {
    // SAFETY: the routine saves the registers that the calling convention preserves.
    unsafe { conformance_registers() }
}

/// The code that a second vCPU runs, and the words in memory by which cases give it orders.
pub(super) mod second {
    use super::*;

    /// Read the word at [`at`] into [`value`].
    pub(crate) const READ: u64 = 1;
    /// Go down by `VCPUOP_down`; after `VCPUOP_up` the vCPU takes the next order.
    pub(crate) const DOWN: u64 = 2;
    /// Block.
    pub(crate) const BLOCK: u64 = 3;

    macro_rules! words {
        ($( $(#[$meta:meta])* $name:ident = $symbol:ident; )*) => {$(
            $(#[$meta])*
            pub(crate) fn $name() -> &'static AtomicU64 {
                // SAFETY: a word of this image, of the atomic's size and alignment.
                unsafe { &$symbol }
            }
        )*};
    }

    words! {
        /// The value of rdi with which the vCPU began.
        argument = conformance_second_argument;
        /// A counter that grows while the vCPU runs.
        rounds = conformance_second_rounds;
        /// The current order; 0 when the vCPU has carried it out.
        order = conformance_second_order;
        /// An address for [`READ`].
        at = conformance_second_at;
        /// What was read.
        value = conformance_second_value;
        /// The number of upcalls that the vCPU took.
        upcalls = conformance_second_upcalls;
    }

    /// The entry point, the top of the stack and the event callback of the second vCPU.
    pub(crate) fn entries() -> (u64, u64, u64) {
        (
            conformance_second as *const () as u64,
            (&raw const conformance_second_stack_top) as u64,
            conformance_second_upcall as *const () as u64,
        )
    }
}
