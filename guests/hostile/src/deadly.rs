//! Cases that must end this domain and harm nothing else; each runs in a domain of its own.
#![allow(unsafe_code)] // stacks and handlers that cannot work

use core::arch::asm;

use ring_abi::guest_context::TrapInfo;
use ring_abi::hypercall::*;
use ring_abi::shared_info::{UPCALL_MASK_OFFSET, UPCALL_PENDING_OFFSET};

use pvrt::probe;
use pvrt::space::*;

/// Each case by its name.
const CASES: &[(&str, fn())] = &[
    ("null-handler", null_handler),
    ("hypervisor-handler", hypervisor_handler),
    ("hypervisor-stack", hypervisor_stack),
    ("noncanonical-stack", noncanonical_stack),
    ("unmapped-stack", unmapped_stack),
    ("table-as-stack", table_as_stack),
    ("iret-bad-frame", iret_bad_frame),
    ("iret-hypervisor-frame", iret_hypervisor_frame),
    ("iret-no-user-tables", iret_no_user_tables),
    ("null-event-callback", null_event_callback),
    ("trap-loop", trap_loop),
    ("crash", crash),
];

/// The deadly case of this name.
pub(crate) fn find(name: &str) -> Option<fn()> {
    CASES.iter().find(|(known, _)| *known == name).map(|(_, act)| *act)
}

/// An exception with no handler.
fn null_handler() {
    call(__HYPERVISOR_SET_TRAP_TABLE, [0, 0, 0, 0, 0]);
    // SAFETY: ends the domain.
    unsafe { asm!("ud2") };
}

/// A handler at an address where the guest cannot execute: each attempt to handle the page fault causes the
/// next.
fn hypervisor_handler() {
    let gates = [6, 14, 13].map(|vector| TrapInfo {
        vector,
        cs: 0xe033,
        address: 0xffff_8300_0000_0000,
        ..TrapInfo::default()
    });
    let table = [gates[0], gates[1], gates[2], TrapInfo::default()];
    call(__HYPERVISOR_SET_TRAP_TABLE, [table.as_ptr() as u64, 0, 0, 0, 0]);
    // SAFETY: ends the domain.
    unsafe { asm!("ud2") };
}

/// Raises an exception with this stack pointer.
fn with_stack(stack: u64) {
    // SAFETY: ends the domain.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) stack, options(noreturn)) };
}

fn hypervisor_stack() {
    with_stack(0xffff_8300_0010_0000);
}

fn noncanonical_stack() {
    with_stack(1 << 63);
}

fn unmapped_stack() {
    with_stack(0x0000_5555_5555_5000);
}

/// The stack is in a page table, to which the hypervisor must not write a frame.
fn table_as_stack() {
    with_stack(linear(base()) + 2048);
}

/// Makes the `iret` hypercall with this stack pointer.
fn iret_with(stack: u64) {
    // SAFETY: ends the domain.
    unsafe { asm!("mov rsp, {}", "mov eax, 23", "syscall", "ud2", in(reg) stack, options(noreturn)) };
}

fn iret_bad_frame() {
    iret_with(0x0000_5555_5555_5000);
}

fn iret_hypervisor_frame() {
    iret_with(M2P);
}

/// Returns to user mode, for which no page tables are set.
fn iret_no_user_tables() {
    // SAFETY: ends the domain.
    unsafe {
        asm!(
            "push 0xe02b",
            "push 0",
            "push 0x202",
            "push 0xe033",
            "push 0x1000",
            "push 0",
            "push 0",
            "push 0",
            "push 0",
            "mov eax, 23",
            "syscall",
            "ud2",
            options(noreturn),
        )
    };
}

/// Takes an upcall without a callback.
fn null_event_callback() {
    call(__HYPERVISOR_SET_CALLBACKS, [0, 0, 0, 0, 0]);
    let info = pvrt::shared_info();
    info.store_u8(UPCALL_PENDING_OFFSET, 1);
    info.store_u8(UPCALL_MASK_OFFSET, 0);
    for _ in 0..1000 {
        call(__HYPERVISOR_XEN_VERSION, [0, 0, 0, 0, 0]);
    }
}

/// A handler that traps at once, until the stack overflows.
fn trap_loop() {
    let mut table = probe::trap_table();
    table.iter_mut().filter(|info| info.address != 0).for_each(|info| info.address = 0x10);
    call(__HYPERVISOR_SET_TRAP_TABLE, [table.as_ptr() as u64, 0, 0, 0, 0]);
    // SAFETY: ends the domain.
    unsafe { asm!("ud2") };
}

/// Shuts down with the reason "crash", as a kernel does that panics.
fn crash() {
    let mut reason = 3u32;
    op(__HYPERVISOR_SCHED_OP, 2, &mut reason);
}
