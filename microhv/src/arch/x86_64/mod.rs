//! The hardware: boot, descriptor tables, entry and exit, interrupts, clocks. Every assembly instruction, MSR and port of
//! the hypervisor is here; the library knows the ABI's x86 alone (page-table entries, descriptors, guest registers).
//!
//! A file uses only files above it in this list:
//!
//! | file | what |
//! | --- | --- |
//! | `cpu.rs`, `memops.S` | single instructions; C's memory functions, and what else the compiler names |
//! | `descriptors.rs` | GDT, TSS, IDT |
//! | `machine.rs` | the type [`machine::Machine`], and the hypervisor over it |
//! | `entry_page.rs`, `percpu.rs` | each CPU's stacks and data, the vCPU that runs |
//! | `paging.rs`, `memory.rs`, `guest_access.rs` | the hypervisor's address space, machine memory, guests' |
//! | `roots.rs`, `roots.S` | page tables for guests that map next to nothing of the hypervisor's, and the ways in and out there |
//! | `fpu.rs`, `windows.rs` | what of a vCPU lives in the processor |
//! | `apic.rs`, `time.rs`, `tsc.rs`, `serial.rs`, `screen.rs` | interrupt controllers, clock, whether TSCs differ, console |
//! | `speculation.rs` | counter-measures against side channels |
//! | `machine_check.rs` | errors that the hardware reports |
//! | `heap.rs`, `panic.rs`, `devices.rs` | the heap, a report at the end, ports, power and facts |
//! | `switch.rs` | one vCPU's registers for another's, and idleness |
//! | `macros.S`, `syscall.S`, `trap.S`, `leave.S`, `guard.S` | the ways in and out, a file each; what is done there on some CPUs |
//! | `leave.rs`, `entry.rs` | what those call: decode, hand to the library, see what waits |
//! | `trampoline.S`, `cpus.rs` | the other CPUs' start |
//! | `boot.S`, `start.rs` | from the loader to the first guest |
//!
//! Each of the library's `platform` traits is implemented for `Machine` in its subject's file.
#![allow(unsafe_code)] // the assembly of the entry paths

mod apic;
mod cpu;
mod cpus;
mod descriptors;
mod devices;
mod entry;
mod entry_page;
mod fpu;
mod guest_access;
mod heap;
mod leave;
mod machine;
mod machine_check;
mod memory;

mod paging;
mod panic;
mod percpu;
mod roots;
mod screen;
mod serial;
mod speculation;
mod start;
mod switch;
mod time;
mod tsc;
mod windows;

use core::mem::offset_of;

use ring_abi::guest_context::CpuUserRegs;

core::arch::global_asm!(include_str!("boot.S"), include_str!("trampoline.S"), options(att_syntax));
core::arch::global_asm!(
    include_str!("macros.S"),
    include_str!("memops.S"),
    include_str!("syscall.S"),
    include_str!("trap.S"),
    include_str!("leave.S"),
    include_str!("guard.S"),
    include_str!("roots.S"),
    hypervisor_control = sym speculation::HYPERVISOR_CONTROL,
    guest_control = sym speculation::GUEST_CONTROL,
    hypervisor_ds = const descriptors::HYPERVISOR_DS,
    entry_scratch = const percpu::ENTRY_SCRATCH,
    entry_full = const percpu::ENTRY_FULL,
    entry_hypervisor = const percpu::ENTRY_HYPERVISOR,
    entry_page = const percpu::ENTRY_PAGE,
    entry_stack = const percpu::ENTRY_STACK,
    own_copies = const percpu::OWN_COPIES,
    own_keep = const percpu::OWN_KEEP,
    own_tables = const percpu::OWN_TABLES,
    stack_top = const percpu::LOCAL_OFFSET,
    stack_to_regs_top = const percpu::STACK_TO_REGS_TOP,
    local_regs_top = const percpu::LOCAL_REGS_TOP,
    stack_before_regs = const switch::STACK_BEFORE_REGS,
    regs_rip = const offset_of!(CpuUserRegs, rip),
    regs_cs = const offset_of!(CpuUserRegs, cs),
    regs_rflags = const offset_of!(CpuUserRegs, rflags),
    regs_rsp = const offset_of!(CpuUserRegs, rsp),
    regs_ss = const offset_of!(CpuUserRegs, ss),
);
