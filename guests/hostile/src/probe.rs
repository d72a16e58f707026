//! Doing what traps, and coming back.
#![allow(unsafe_code)] // trap stubs in assembly that unwind to whoever tried

use alloc::vec::Vec;
use core::arch::global_asm;
use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, Ordering};

use pvrt::hypercall::raw;
use ring_abi::guest_context::TrapInfo;
use ring_abi::hypercall::__HYPERVISOR_SET_TRAP_TABLE;
use ring_abi::segment::FLAT_KERNEL_CS;
use ring_abi::shared_info::CR2_OFFSET;

/// Vectors with a stub: the architectural exceptions.
const VECTORS: u64 = 32;

global_asm!(
    r#"
    .section .text.hostile_probe, "ax"
    .balign 16
hostile_stubs:
    .set hostile_n, 0
    .rept 32
    .balign 16
    push hostile_n
    jmp hostile_common
    .set hostile_n, hostile_n + 1
    .endr

    # On the stack: vector, rcx, r11, [error], rip, cs, rflags, rsp, ss. Goes back to where hostile_try was called.
hostile_common:
    cld
    pop qword ptr [rip + hostile_vector]
    add rsp, 16
    pop qword ptr [rip + hostile_first]
    pop qword ptr [rip + hostile_second]
    cmp qword ptr [rip + hostile_back], 0
    je {unexpected}
    mov rsp, [rip + hostile_back]
    mov qword ptr [rip + hostile_back], 0
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    mov eax, 1
    ret

    # hostile_try(rdi = function, rsi = its argument): 1 if it trapped.
hostile_try:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + hostile_back], rsp
    mov rax, rdi
    mov rdi, rsi
    sub rsp, 8
    call rax
    add rsp, 8
    mov qword ptr [rip + hostile_back], 0
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    xor eax, eax
    ret

    .section .bss.hostile_probe, "aw", @nobits
    .balign 8
hostile_back:
    .skip 8
hostile_vector:
    .skip 8
hostile_first:
    .skip 8
hostile_second:
    .skip 8
    .text
    "#,
    unexpected = sym unexpected,
);

unsafe extern "C" {
    static hostile_stubs: u8;
    static hostile_vector: AtomicU64;
    static hostile_first: AtomicU64;
    static hostile_second: AtomicU64;
    fn hostile_try(function: extern "C" fn(*mut c_void), data: *mut c_void) -> u32;
}

/// A trap nobody asked for.
extern "C" fn unexpected() -> ! {
    let trap = last();
    panic!("unexpected {trap:x?}");
}

/// An exception as its handler found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trap {
    pub(crate) vector: u64,
    /// 0 where the vector has none.
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cr2: u64,
}

fn last() -> Trap {
    // SAFETY: words of this image, of the atomics' size and alignment.
    let [vector, first, second] = unsafe { [&hostile_vector, &hostile_first, &hostile_second] }
        .map(|word| word.load(Ordering::Relaxed));
    let (error, rip) =
        if matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30) { (first, second) } else { (0, first) };
    Trap { vector, error, rip, cr2: pvrt::shared_info().load_u64(CR2_OFFSET) }
}

/// The table of this module's handlers.
pub(crate) fn trap_table() -> Vec<TrapInfo> {
    let stubs = (&raw const hostile_stubs) as u64;
    let mut table: Vec<TrapInfo> = (0..VECTORS)
        .map(|vector| TrapInfo {
            vector: vector as u8,
            flags: if matches!(vector, 3 | 4) { 7 } else { 4 },
            cs: FLAT_KERNEL_CS,
            address: stubs + vector * 16,
            ..TrapInfo::default()
        })
        .collect();
    table.push(TrapInfo::default());
    table
}

/// Sets the handlers.
pub(crate) fn install() {
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

/// Does `act`: the trap that ended it, if one did. `act` must own nothing that is to be dropped.
pub(crate) fn attempt<F: FnMut()>(mut act: F) -> Option<Trap> {
    // SAFETY: the function is called with its own closure; a trap leaves frames that own nothing.
    let trapped = unsafe { hostile_try(call::<F>, (&raw mut act).cast()) };
    (trapped != 0).then(last)
}

/// Reads a word.
pub(crate) fn read(at: u64) -> Result<u64, Trap> {
    let mut value = 0;
    // SAFETY: a trap is caught; what is read is not interpreted.
    match attempt(|| unsafe { core::arch::asm!("mov {}, [{}]", out(reg) value, in(reg) at) }) {
        Some(trap) => Err(trap),
        None => Ok(value),
    }
}

/// Writes a word: the caller means it to fail, or owns the memory.
pub(crate) fn write(at: u64, value: u64) -> Option<Trap> {
    // SAFETY: a trap is caught; the caller gives an address that is its own or must be refused.
    attempt(|| unsafe { core::arch::asm!("mov [{}], {}", in(reg) at, in(reg) value) })
}
