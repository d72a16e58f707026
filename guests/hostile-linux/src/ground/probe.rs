//! Executes instructions that trap, and comes back: the kernel turns this process's traps into signals.
#![allow(unsafe_code)] // a signal handler that unwinds to whoever tried

use core::arch::global_asm;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU64, Ordering};

global_asm!(
    r#"
    .text
    .globl hostile_try, hostile_landing, hostile_back
    .hidden hostile_try, hostile_landing, hostile_back
    .balign 16
    # hostile_try(rdi = function, rsi = its argument): 1 if it trapped.
hostile_try:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push qword ptr [rip + hostile_back]
    mov [rip + hostile_back], rsp
    mov rax, rdi
    mov rdi, rsi
    call rax
    xor eax, eax
2:
    pop qword ptr [rip + hostile_back]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    # Where a signal handler returns to, with rsp = hostile_back.
hostile_landing:
    mov eax, 1
    jmp 2b

    .bss
    .balign 8
hostile_back:
    .skip 8
    .text
    "#
);

unsafe extern "C" {
    static hostile_back: AtomicU64;
    static hostile_landing: u8;
    fn hostile_try(function: extern "C" fn(*mut c_void), data: *mut c_void) -> u32;
}

static VECTOR: AtomicU64 = AtomicU64::new(0);
static ERROR: AtomicU64 = AtomicU64::new(0);

/// A trap as the signal reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trap {
    /// The exception.
    pub(crate) vector: u64,
    /// The exception's error code.
    pub(crate) error: u64,
}

/// The signals that traps become.
const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

extern "C" fn handler(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes the interrupted context; the words are this image's.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let back = (&raw const hostile_back).as_ref().map_or(0, |back| back.load(Ordering::Relaxed));
        if back == 0 {
            // The trap is outside an attempt: the default action ends the process when the instruction runs
            // again.
            for signal in SIGNALS {
                libc::signal(signal, libc::SIG_DFL);
            }
            return;
        }
        VECTOR.store(registers[libc::REG_TRAPNO as usize] as u64, Ordering::Relaxed);
        ERROR.store(registers[libc::REG_ERR as usize] as u64, Ordering::Relaxed);
        registers[libc::REG_RSP as usize] = back as i64;
        registers[libc::REG_RIP as usize] = (&raw const hostile_landing) as i64;
    }
}

/// Sets the signal handlers, for the first time or again.
pub(crate) fn install() {
    // SAFETY: the handler keeps to what a handler may do.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        for signal in SIGNALS {
            libc::sigaction(signal, &action, core::ptr::null_mut());
        }
    }
}

extern "C" fn call<F: FnMut()>(data: *mut c_void) {
    // SAFETY: `attempt` passes the closure that it borrows exclusively.
    unsafe { (*data.cast::<F>())() }
}

/// Runs `act`, and returns the trap that ended it, if one did. `act` must own nothing that needs a drop.
pub(crate) fn attempt<F: FnMut()>(mut act: F) -> Option<Trap> {
    // SAFETY: the function is called with its own closure; a trap leaves frames that own nothing.
    let trapped = unsafe { hostile_try(call::<F>, (&raw mut act).cast()) };
    (trapped != 0)
        .then(|| Trap { vector: VECTOR.load(Ordering::Relaxed), error: ERROR.load(Ordering::Relaxed) })
}

/// Reads a word.
///
/// # Errors
/// The trap that the read caused.
pub(crate) fn read(at: u64) -> Result<u64, Trap> {
    let mut value = 0;
    // SAFETY: a trap is caught; what is read is not interpreted.
    match attempt(|| unsafe { core::arch::asm!("mov {}, [{}]", out(reg) value, in(reg) at) }) {
        Some(trap) => Err(trap),
        None => Ok(value),
    }
}

/// Writes a word. The caller either expects the write to trap, or owns the memory.
pub(crate) fn write(at: u64, value: u64) -> Option<Trap> {
    // SAFETY: a trap is caught; the caller gives an address that is its own or must be refused.
    attempt(|| unsafe { core::arch::asm!("mov [{}], {}", in(reg) at, in(reg) value) })
}
