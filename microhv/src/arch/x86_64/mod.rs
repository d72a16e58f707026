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
//! | `speculation.rs`, `smap.rs` | counter-measures against side channels; what keeps ring 0 off guests' pages |
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
mod smap;
mod speculation;
mod start;
mod switch;
mod time;
mod tsc;
mod windows;

use core::mem::offset_of;

use microhv::domain::Vcpu;
use microhv::traps::ENTRY_SYSCALL;
use ring_abi::guest_context::CpuUserRegs;
use ring_abi::shared_info::{UPCALL_MASK_OFFSET, UPCALL_PENDING_OFFSET};

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
    frame_rsp = const percpu::FRAME + offset_of!(CpuUserRegs, rsp),
    frame_top = const percpu::FRAME_TOP,
    frame_from_stack = const percpu::FRAME_FROM_STACK,
    stack_from_frame = const percpu::STACK_FROM_FRAME,
    full_from_frame = const percpu::FULL_FROM_FRAME,
    entry_hypervisor = const percpu::ENTRY_HYPERVISOR,
    own_exit = const percpu::OWN_EXIT,
    local_pending = const percpu::PENDING,
    local_vcpu = const percpu::VCPU,
    vcpu_info = const offset_of!(Vcpu, info),
    upcall_pending = const UPCALL_PENDING_OFFSET,
    upcall_mask = const UPCALL_MASK_OFFSET,
    entry_syscall = const ENTRY_SYSCALL as i32,
    regs_vector = const offset_of!(CpuUserRegs, entry_vector),
    regs_rip = const offset_of!(CpuUserRegs, rip),
    regs_cs = const offset_of!(CpuUserRegs, cs),
    regs_rflags = const offset_of!(CpuUserRegs, rflags),
    regs_rsp = const offset_of!(CpuUserRegs, rsp),
);
