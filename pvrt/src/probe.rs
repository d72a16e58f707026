//! Doing something that may trap, and coming back: for kernels that test the hypervisor below them.
//!
//! [`install`] puts this module's handlers in place of the runtime's. Then [`attempt`] does something and says which
//! trap ended the attempt, if a trap did. System calls of user mode, event upcalls and failed segment loads end an
//! attempt in the same way where [`entry`] is registered for them.
#![allow(unsafe_code)] // trap stubs in assembly that unwind to whoever tried

use alloc::vec::Vec;
use core::arch::global_asm;
use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, Ordering};

use ring_abi::guest_context::TrapInfo;
use ring_abi::hypercall::__HYPERVISOR_SET_TRAP_TABLE;
use ring_abi::segment::FLAT_KERNEL_CS;
use ring_abi::shared_info::CR2_OFFSET;

use crate::hypercall::raw;

/// Architectural exceptions.
const EXCEPTIONS: u64 = 32;
/// [`Trap::vector`] of a system call from user mode.
pub const SYSCALL: u64 = 256;
/// [`Trap::vector`] of an event upcall.
pub const EVENT: u64 = 257;
/// [`Trap::vector`] of a failed segment load.
pub const FAILSAFE: u64 = 258;
/// Words kept of a frame: the longest, a failed segment load's, without rcx and r11.
const FRAME_WORDS: usize = 9;

global_asm!(
    r#"
    .section .text.pvrt_probe, "ax"
    .balign 16
pvrt_probe_stubs:
    .set pvrt_probe_n, 0
    .rept 259
    .balign 16
    push pvrt_probe_n
    jmp pvrt_probe_common
    .set pvrt_probe_n, pvrt_probe_n + 1
    .endr

    # On the stack: vector, rcx, r11, frame. Goes back to where pvrt_probe_try was called.
pvrt_probe_common:
    pushfq
    pop qword ptr [rip + pvrt_probe_handler + 8]
    cld
    pop qword ptr [rip + pvrt_probe_vector]
    mov [rip + pvrt_probe_handler], rsp
    mov ecx, cs
    mov [rip + pvrt_probe_handler + 16], rcx
    mov ecx, ss
    mov [rip + pvrt_probe_handler + 24], rcx
    pop qword ptr [rip + pvrt_probe_saved]
    pop qword ptr [rip + pvrt_probe_saved + 8]
    .set pvrt_probe_n, 0
    .rept 9
    pop qword ptr [rip + pvrt_probe_frame + pvrt_probe_n]
    .set pvrt_probe_n, pvrt_probe_n + 8
    .endr
    cmp qword ptr [rip + pvrt_probe_back], 0
    je {unexpected}
    mov rsp, [rip + pvrt_probe_back]
    pop qword ptr [rip + pvrt_probe_back]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    mov eax, 1
    ret

    # pvrt_probe_try(rdi = function, rsi = its argument): 1 if it trapped.
pvrt_probe_try:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push qword ptr [rip + pvrt_probe_back]
    mov [rip + pvrt_probe_back], rsp
    mov rax, rdi
    mov rdi, rsi
    call rax
    pop qword ptr [rip + pvrt_probe_back]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    xor eax, eax
    ret

    .section .bss.pvrt_probe, "aw", @nobits
    .balign 8
pvrt_probe_back:
    .skip 8
pvrt_probe_vector:
    .skip 8
pvrt_probe_saved:
    .skip 16
pvrt_probe_frame:
    .skip 72
pvrt_probe_handler:
    .skip 32
    .text
    "#,
    unexpected = sym unexpected,
);

unsafe extern "C" {
    static pvrt_probe_stubs: u8;
    static pvrt_probe_vector: AtomicU64;
    static pvrt_probe_saved: [AtomicU64; 2];
    static pvrt_probe_frame: [AtomicU64; FRAME_WORDS];
    static pvrt_probe_handler: [AtomicU64; 4];
    fn pvrt_probe_try(function: extern "C" fn(*mut c_void), data: *mut c_void) -> u32;
}

/// A trap outside an attempt.
extern "C" fn unexpected() -> ! {
    let trap = last();
    panic!("unexpected {trap:x?}");
}

/// A trap as its handler found it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trap {
    /// The exception or interrupt vector, or [`SYSCALL`], [`EVENT`], [`FAILSAFE`].
    pub vector: u64,
    /// The error code; 0 where the vector has none.
    pub error: u64,
    /// The address of the instruction that trapped.
    pub rip: u64,
    /// The code selector of that instruction; its privilege level is 0 for the kernel.
    pub cs: u16,
    /// `evtchn_upcall_mask` there.
    pub mask: u8,
    /// The flags there.
    pub rflags: u64,
    /// The stack pointer there.
    pub rsp: u64,
    /// The stack selector there.
    pub ss: u16,
    /// rcx and r11 there.
    pub rcx_r11: [u64; 2],
    /// For [`FAILSAFE`] alone: ds, es, fs, gs.
    pub selectors: [u16; 4],
    /// `arch.cr2` of the vCPU's record.
    pub cr2: u64,
    /// How the handler was entered.
    pub handler: Entered,
}

/// The state in which a handler was entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entered {
    /// The stack pointer: the address of the frame, whose first word is rcx.
    pub rsp: u64,
    /// The flags.
    pub rflags: u64,
    /// The code selector.
    pub cs: u16,
    /// The stack selector.
    pub ss: u16,
}

/// Whether a trap of this vector pushes an error code.
const fn has_error_code(vector: u64) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

fn last() -> Trap {
    let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
    // SAFETY: words of this image, of the atomics' size and alignment.
    let (vector, saved, frame, handler) =
        unsafe { (&pvrt_probe_vector, &pvrt_probe_saved, &pvrt_probe_frame, &pvrt_probe_handler) };
    let (vector, frame) = (load(vector), frame.each_ref().map(load));
    let handler = handler.each_ref().map(load);
    let error = has_error_code(vector);
    let failsafe = vector == FAILSAFE;
    let first = if failsafe { 4 } else { usize::from(error) };
    Trap {
        vector,
        error: if error { frame[0] } else { 0 },
        rip: frame[first],
        cs: frame[first + 1] as u16,
        mask: (frame[first + 1] >> 32) as u8,
        rflags: frame[first + 2],
        rsp: frame[first + 3],
        ss: frame[first + 4] as u16,
        rcx_r11: saved.each_ref().map(load),
        selectors: if failsafe { [0, 1, 2, 3].map(|n| frame[n] as u16) } else { [0; 4] },
        cr2: crate::shared_info().load_u64(CR2_OFFSET),
        handler: Entered {
            rsp: handler[0],
            rflags: handler[1],
            cs: handler[2] as u16,
            ss: handler[3] as u16,
        },
    }
}

/// Address of the handler for `vector`, below 256, or for [`SYSCALL`], [`EVENT`] or [`FAILSAFE`].
///
/// # Panics
/// When there is no such handler.
pub fn entry(vector: u64) -> u64 {
    assert!(vector <= FAILSAFE, "no handler {vector}");
    (&raw const pvrt_probe_stubs) as u64 + vector * 16
}

/// The gate of one vector, entered with events masked. Software may call only `int3` and `into`.
pub fn gate(vector: u8) -> TrapInfo {
    TrapInfo {
        vector,
        flags: if matches!(vector, 3 | 4) { 7 } else { 4 },
        cs: FLAT_KERNEL_CS,
        address: entry(vector.into()),
        ..TrapInfo::default()
    }
}

/// The table of this module's handlers.
pub fn trap_table() -> Vec<TrapInfo> {
    let mut table: Vec<TrapInfo> = (0..EXCEPTIONS as u8).map(gate).collect();
    table.push(TrapInfo::default());
    table
}

/// Sets the handlers of the architectural exceptions, and of nothing else.
pub fn install() {
    let table = trap_table();
    // SAFETY: the handlers keep to the frame.
    let result = unsafe {
        raw(__HYPERVISOR_SET_TRAP_TABLE, [0, 0, 0, 0, 0]);
        raw(__HYPERVISOR_SET_TRAP_TABLE, [table.as_ptr() as u64, 0, 0, 0, 0])
    };
    assert_eq!(result, 0, "set_trap_table");
}

extern "C" fn call<F: FnMut()>(data: *mut c_void) {
    // SAFETY: `attempt` passes the closure that it borrows exclusively.
    unsafe { (*data.cast::<F>())() }
}

/// Does `act`. The result is the trap that ended `act`, if a trap did. What `act` owns at that moment is never dropped,
/// and a lock that `act` holds stays locked. An attempt may make other attempts.
pub fn attempt<F: FnMut()>(mut act: F) -> Option<Trap> {
    // SAFETY: the function is called with its own closure; a trap only leaves frames behind.
    let trapped = unsafe { pvrt_probe_try(call::<F>, (&raw mut act).cast()) };
    (trapped != 0).then(last)
}

/// Reads a word.
///
/// # Errors
/// The trap that ended the read.
pub fn read(at: u64) -> Result<u64, Trap> {
    let mut value = 0;
    // SAFETY: a trap is caught, and the value read is not interpreted.
    match attempt(|| unsafe { core::arch::asm!("mov {}, [{}]", out(reg) value, in(reg) at) }) {
        Some(trap) => Err(trap),
        None => Ok(value),
    }
}

/// Writes a word. The caller expects the write to fail, or owns the memory and keeps no reference to it.
pub fn write(at: u64, value: u64) -> Option<Trap> {
    // SAFETY: a trap is caught. The caller gives an address that is the caller's own, or to which a write must be
    // refused.
    attempt(|| unsafe { core::arch::asm!("mov [{}], {}", in(reg) at, in(reg) value) })
}
