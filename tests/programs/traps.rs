//! Raises traps in a Linux guest's user mode and counts what the kernel makes of them.
//!
//! Prints the signals that `int3`, `int1` and some steps with the trap flag gave.

use std::arch::asm;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

unsafe extern "C" {
    fn signal(signal: i32, handler: extern "C" fn(i32)) -> usize;
}

/// `SIGILL`, `SIGTRAP` and `SIGSEGV`, `signal.h`.
const WATCHED: [i32; 3] = [4, 5, 11];
/// `SIGTRAP`.
const TRAP: i32 = 5;

static TRAPS: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_signal(signal: i32) {
    if signal != TRAP {
        println!("traps: signal {signal}");
        std::process::exit(1);
    }
    TRAPS.fetch_add(1, SeqCst);
}

fn main() {
    for signal_number in WATCHED {
        // SAFETY: the handler is a function of this program.
        unsafe { signal(signal_number, on_signal) };
    }
    // SAFETY: the handler goes on behind the instruction.
    unsafe { asm!("int3") };
    let int3 = TRAPS.swap(0, SeqCst);
    // SAFETY: as above.
    unsafe { asm!(".byte 0xf1") };
    let int1 = TRAPS.swap(0, SeqCst);
    // SAFETY: the flag is set for some instructions and taken away again; the red zone is left alone.
    unsafe {
        asm!(
            "lea rsp, [rsp - 128]",
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "nop",
            "nop",
            "nop",
            "pushfq",
            "and qword ptr [rsp], -0x101",
            "popfq",
            "lea rsp, [rsp + 128]",
        );
    }
    println!("traps: int3 {int3}, int1 {int1}, steps {}", TRAPS.load(SeqCst));
}
