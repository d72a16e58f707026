//! The ways of the vCPUs into the hypervisor and back, in assembly: what is in all registers before, and what is there behind.
#![allow(unsafe_code)] // all registers of a vCPU, in assembly

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::AtomicU64;

/// What one vCPU's registers are to be, and what they were. A page has the vCPU's stack below the record, so that a handler finds
/// the record by the stack pointer.
#[repr(C)]
pub(super) struct Record {
    /// rax, rbx, rcx, rdx, rsi, rdi, rbp, r8 to r15, and flags.
    pub(super) wanted: [u64; 16],
    pub(super) got: [u64; 16],
    /// The stack pointer of the caller of [`keepers_play`].
    caller: u64,
    /// One of the ways.
    pub(super) way: u64,
    /// The vector that ended a way to [`keepers_iret`].
    pub(super) vector: u64,
    /// The error code, where the vector has one; rip, cs, flags, rsp, ss.
    pub(super) frame: [u64; 6],
    /// Words at the bases of FS and GS.
    pub(super) bases: [u64; 2],
    /// The same in user mode, and the flags there.
    pub(super) user: [u64; 3],
    /// 1: a trap came where none was due.
    pub(super) stray: u64,
    /// Where bases lead: each word holds its own address.
    pub(super) places: [u64; PLACES],
    /// What an NMI pushes while the stack pointer is at `iret`.
    _room: [u64; 33],
    /// What the `iret` hypercall reads: rax, r11, rcx, flags, rip, cs, rflags, rsp, ss.
    pub(super) iret: [u64; 9],
}

pub(super) const PLACES: usize = 8;
/// Where the record is in its page; the stack ends there.
pub(super) const RECORD: u64 = 3072;
const _: () = assert!(size_of::<Record>() <= 4096 - RECORD as usize && offset_of!(Record, iret) % 16 == 0);

global_asm!(
    r#"
    .section .text.keepers, "ax"

    # Puts rax, r11 and rcx below the words of an interruption, and returns there by the hypervisor. In: the registers of what was
    # interrupted, rsp = those words.
    .macro keepers_return
    push 0
    push rcx
    push r11
    push rax
    mov eax, 23
    syscall
    ud2
    .endm

    # rdi = record. Loads all registers, goes the way, and stores all registers.
    .balign 16
    .globl keepers_play
keepers_play:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rdi + {caller}], rsp
    mov rsp, rdi
    push qword ptr [rdi + {wanted} + 120]
    popfq
    .set keepers_n, 0
    .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    mov \register, [rsp + {wanted} + keepers_n]
    .set keepers_n, keepers_n + 8
    .endr
    jmp [rsp + {way}]

keepers_look:
    .set keepers_n, 0
    .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    mov [rsp + {got} + keepers_n], \register
    .set keepers_n, keepers_n + 8
    .endr
    pushfq
    pop qword ptr [rsp + {got} + 120]
    push 0x202
    popfq
    mov rax, fs:[0]
    mov [rsp + {bases}], rax
    mov rax, gs:[0]
    mov [rsp + {bases} + 8], rax
keepers_leave:
    mov rsp, [rsp + {caller}]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    # The ways. This changes rcx, and no flag.
    .globl keepers_spin
keepers_spin:
    jrcxz 1f
    lea rcx, [rcx - 1]
    jmp keepers_spin
1:  jmp keepers_look

    .globl keepers_call
keepers_call:
    syscall
    jmp keepers_look

    .globl keepers_undefined
keepers_undefined:
    ud2
    jmp keepers_look

    .globl keepers_breakpoint
keepers_breakpoint:
    int3
    jmp keepers_look

    .globl keepers_fault
keepers_fault:
    .byte 0x88, 0x04, 0x25, 0x10, 0, 0, 0       # mov [0x10], al
    jmp keepers_look

    .globl keepers_protection
keepers_protection:
    int 0x21
    jmp keepers_look

    # An instruction that the hypervisor emulates.
    .globl keepers_cpuid
keepers_cpuid:
    .byte 0x0f, 0x0b, 0x78, 0x65, 0x6e
    cpuid
    jmp keepers_look

    # The selector in ax.
    .globl keepers_load
keepers_load:
    mov es, eax
    mov ds, eax
    jmp keepers_look

    # To where `iret` says.
    .globl keepers_iret
keepers_iret:
    lea rsp, [rsp + {iret}]
    mov eax, 23
    syscall
    ud2

    # Where `iret` leads: user mode, which comes back by a system call.
    .globl keepers_user
keepers_user:
    jrcxz 1f
    lea rcx, [rcx - 1]
    jmp keepers_user
1:  mov rax, fs:[0]
    mov rdx, gs:[0]
    syscall
    ud2

    # Where `iret` leads, if nothing refuses.
    .globl keepers_landing
keepers_landing:
    ud2

    # The kernel's entry of system calls. On the stack: rcx, r11, rip, cs, flags, rsp, ss.
    .globl keepers_syscall
keepers_syscall:
    mov rcx, rsp
    and rcx, -4096
    add rcx, {record}
    mov [rcx + {user}], rax
    mov [rcx + {user} + 8], rdx
    mov rax, [rsp + 32]
    mov [rcx + {user} + 16], rax
    mov rsp, rcx
    jmp keepers_look

    # Handlers that return behind the instruction. On the stack: rcx, r11, perhaps an error code, rip, cs, flags, rsp, ss.
    .macro keepers_handler name, at, error, skip
    .globl \name
\name:
    lea rcx, [rip + \at]
    cmp [rsp + 16 + \error], rcx
    jne keepers_stray
    pop rcx
    pop r11
    add rsp, \error
    add qword ptr [rsp], \skip
    keepers_return
    .endm
    keepers_handler keepers_on_undefined, keepers_undefined, 0, 2
    keepers_handler keepers_on_breakpoint, keepers_breakpoint + 1, 0, 0
    keepers_handler keepers_on_fault, keepers_fault, 8, 7
    keepers_handler keepers_on_protection, keepers_protection, 8, 2

    .globl keepers_stray
keepers_stray:
    and rsp, -4096
    add rsp, {record}
    mov qword ptr [rsp + {stray}], 1
    jmp keepers_leave

    # These come anywhere, also where the stack is not a record's.
    .globl keepers_nmi
keepers_nmi:
    lock inc qword ptr [rip + keepers_nmis]
    pop rcx
    pop r11
    keepers_return

    # On the stack: rcx, r11, ds, es, fs, gs, then as above. The hypervisor has loaded null in the place of what it could not load.
    .globl keepers_failsafe
keepers_failsafe:
    lock inc qword ptr [rip + keepers_failsafes]
    pop rcx
    pop r11
    add rsp, 32
    keepers_return

    # Handlers that end the way: a vector each, 16 bytes apart.
    .balign 16
    .globl keepers_ends
keepers_ends:
    .set keepers_n, 0
    .rept 32
    .balign 16
    push keepers_n
    jmp keepers_end
    .set keepers_n, keepers_n + 1
    .endr

keepers_end:
    push rax
    mov rax, rsp
    and rax, -4096
    add rax, {record}
    mov [rax + {got} + 8], rbx
    .set keepers_n, 24
    .irp register, rdx, rsi, rdi, rbp, r8, r9, r10
    mov [rax + {got} + keepers_n], \register
    .set keepers_n, keepers_n + 8
    .endr
    .set keepers_n, 88
    .irp register, r12, r13, r14, r15
    mov [rax + {got} + keepers_n], \register
    .set keepers_n, keepers_n + 8
    .endr
    pop qword ptr [rax + {got}]
    pop qword ptr [rax + {vector}]
    pop qword ptr [rax + {got} + 16]
    pop qword ptr [rax + {got} + 80]
    .set keepers_n, 0
    .rept 6
    pop qword ptr [rax + {frame} + keepers_n]
    .set keepers_n, keepers_n + 8
    .endr
    mov rsp, rax
    push 0x202
    popfq
    jmp keepers_leave

    .section .bss.keepers, "aw", @nobits
    .balign 8
    .globl keepers_nmis
keepers_nmis:
    .skip 8
    .globl keepers_failsafes
keepers_failsafes:
    .skip 8
    .text
    "#,
    wanted = const offset_of!(Record, wanted),
    got = const offset_of!(Record, got),
    caller = const offset_of!(Record, caller),
    way = const offset_of!(Record, way),
    vector = const offset_of!(Record, vector),
    frame = const offset_of!(Record, frame),
    bases = const offset_of!(Record, bases),
    user = const offset_of!(Record, user),
    stray = const offset_of!(Record, stray),
    iret = const offset_of!(Record, iret),
    record = const RECORD,
);

unsafe extern "C" {
    pub(super) static keepers_nmis: AtomicU64;
    pub(super) static keepers_failsafes: AtomicU64;
    pub(super) fn keepers_play(record: *mut Record);
    pub(super) fn keepers_spin();
    pub(super) fn keepers_call();
    pub(super) fn keepers_undefined();
    pub(super) fn keepers_breakpoint();
    pub(super) fn keepers_fault();
    pub(super) fn keepers_protection();
    pub(super) fn keepers_cpuid();
    pub(super) fn keepers_load();
    pub(super) fn keepers_iret();
    pub(super) fn keepers_user();
    pub(super) fn keepers_landing();
    pub(super) fn keepers_syscall();
    pub(super) fn keepers_on_undefined();
    pub(super) fn keepers_on_breakpoint();
    pub(super) fn keepers_on_fault();
    pub(super) fn keepers_on_protection();
    pub(super) fn keepers_stray();
    pub(super) fn keepers_nmi();
    pub(super) fn keepers_failsafe();
    pub(super) fn keepers_ends();
}
