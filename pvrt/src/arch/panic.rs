//! A panic's report: what happened, the build, the registers, the call chain. Then the domain ends with reason "crash".
#![allow(unsafe_code)] // the frame-pointer walk, and the symbols around the build id

use core::arch::asm;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use super::entry::stack_range;
use super::traps::TrapState;
use crate::console::Emergency;

/// Exit code for isa-debug-exit: a kernel panicked.
const DEBUG_EXIT_PANIC: u8 = 0x13;
/// Return addresses printed at most.
const MAX_FRAMES: usize = 48;

/// A second panic while the first is printed must not print again.
static PANICKING: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static __build_id_start: u8;
    static __build_id_end: u8;
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    let mut out = Emergency;
    let _ = writeln!(out, "\nPANIC: {info}");
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    backtrace(&mut out, rbp);
    end()
}

/// Panics for an exception.
pub(crate) fn trap_panic(state: &TrapState) -> ! {
    begin();
    let mut out = Emergency;
    let _ = writeln!(
        out,
        "\nPANIC: exception {} error {:#x} at {:#018x}, cr2 {:#018x}",
        state.vector,
        state.error,
        state.rip,
        crate::shared::fault_address(),
    );
    let _ = writeln!(out, "  rsp {:016x} rbp {:016x} rflags {:08x}", state.rsp, state.rbp, state.rflags);
    const NAMES: [&str; 14] =
        ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    for (i, (name, value)) in NAMES.iter().zip(state.general).enumerate() {
        let end = if i % 4 == 3 || i == 13 { "\n" } else { "" };
        let _ = write!(out, "  {name:3} {value:016x}{end}");
    }
    let _ = writeln!(out, "backtrace:\n  {:#018x}", state.rip);
    walk(&mut out, state.rbp);
    end()
}

/// Goes no further when this is a panic inside a panic.
fn begin() {
    if PANICKING.swap(true, Ordering::Relaxed) {
        crate::hypercall::sched::shutdown(ring_abi::sched::SHUTDOWN_CRASH);
    }
}

fn backtrace(out: &mut Emergency, rbp: u64) {
    let _ = writeln!(out, "backtrace:");
    walk(out, rbp);
}

/// Prints the return addresses of the frame-pointer chain, then the build id.
fn walk(out: &mut Emergency, mut rbp: u64) {
    let (low, high) = stack_range();
    for _ in 0..MAX_FRAMES {
        if rbp < low || rbp > high - 16 || !rbp.is_multiple_of(8) {
            break;
        }
        // SAFETY: two words inside the kernel's own stack, checked above.
        let [next, address] = unsafe { (rbp as *const [u64; 2]).read() };
        if address == 0 {
            break;
        }
        let _ = writeln!(out, "  {address:#018x}");
        if next <= rbp {
            break;
        }
        rbp = next;
    }
    let start = &raw const __build_id_start;
    let bytes = (&raw const __build_id_end) as usize - start as usize;
    let _ = write!(out, "build id: ");
    // The note's header (16 bytes: sizes, type, "GNU") stands before the id itself.
    for i in 16..bytes.min(16 + 20) {
        // SAFETY: inside the note, which the linker script places between the two symbols.
        let byte = unsafe { start.add(i).read() };
        let _ = write!(out, "{byte:02x}");
    }
    let _ = writeln!(out);
}

/// Reports through isa-debug-exit where the command line names its port, then ends the domain.
fn end() -> ! {
    if let Some(port) = crate::boot::debug_exit_port() {
        crate::pio::write_u8(port, DEBUG_EXIT_PANIC);
    }
    crate::hypercall::sched::shutdown(ring_abi::sched::SHUTDOWN_CRASH)
}
