//! The machine: boot, descriptor tables, entry and exit, interrupts, clocks. Nothing else says x86.
//!
//! | file | what |
//! | --- | --- |
//! | `boot.S`, `start.rs` | from the loader to the first guest |
//! | `syscall.S`, `trap.S`, `leave.S` | the ways in and out, a file each |
//! | `access.S`, `guest_access.rs` | accesses that may fault, and their fix-ups |
//! | `entry.rs` | what the ways in call: decode, and hand to the library |
//! | `switch.rs` | one vCPU's registers for another's, and idleness |
//! | `machine.rs` | the library's `Platform` |
#![allow(unsafe_code)] // the assembly of the entry paths

mod apic;
mod console;
mod cpu;
mod descriptors;
mod entry;
mod fpu;
mod guest_access;
mod heap;
mod machine;
mod paging;
mod panic;
mod percpu;
mod power;
mod serial;
mod start;
mod switch;
mod symbols;
mod time;
mod windows;

use core::mem::offset_of;

use ring_abi::guest_context::CpuUserRegs;

core::arch::global_asm!(include_str!("boot.S"), options(att_syntax));
core::arch::global_asm!(include_str!("memops.S"));
core::arch::global_asm!(include_str!("access.S"));
core::arch::global_asm!(
    include_str!("registers.S"),
    include_str!("syscall.S"),
    include_str!("trap.S"),
    include_str!("leave.S"),
    local_scratch = const percpu::LOCAL_SCRATCH,
    local_regs_top = const percpu::LOCAL_REGS_TOP,
    stack_before_regs = const switch::STACK_BEFORE_REGS,
    regs_rip = const offset_of!(CpuUserRegs, rip),
    regs_cs = const offset_of!(CpuUserRegs, cs),
    regs_rflags = const offset_of!(CpuUserRegs, rflags),
    regs_rsp = const offset_of!(CpuUserRegs, rsp),
    regs_ss = const offset_of!(CpuUserRegs, ss),
);
