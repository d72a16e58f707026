//! The way back to a guest: sees that nothing waits, and says how to return.
#![allow(unsafe_code)] // the current vCPU's frame, which assembly loads

use core::sync::atomic::Ordering;

use microhv::frames::pte::is_canonical;
use microhv::traps::{self, ENTRY_SYSCALL};
use ring_abi::guest_context::CpuUserRegs;

use super::machine::hypervisor;
use super::percpu::{self, Local};
use super::switch;

unsafe extern "C" {
    fn enter_guest(stack: u64, regs: *const CpuUserRegs) -> !;
}

/// What the way out needs: whose registers, and whether SYSRET may be used.
#[repr(C)]
pub(crate) struct Exit {
    /// The frame of the vCPU that goes on.
    pub(crate) regs: *const CpuUserRegs,
    sysret: u64,
}

/// The last look before a return: work that waits, events that are due. Then how to return. A vCPU is current.
#[inline(always)]
pub(crate) fn leave(local: &'static Local) -> Exit {
    let pending = local.pending();
    loop {
        if pending.load(Ordering::Acquire) != 0 {
            switch::do_pending_work(hypervisor(), local);
        }
        // SAFETY: one was current, and is after the pending work too.
        let (_, vcpu) = unsafe { local.current_unchecked() };
        if vcpu.upcall_due() {
            deliver_event(local);
            if pending.load(Ordering::Acquire) != 0 {
                continue;
            }
        }
        let regs = vcpu.regs_ptr();
        // SAFETY: this CPU runs the vCPU; nobody else writes its frame.
        let frame = unsafe { &*regs };
        // The path that set this entry vector set cs and ss to the values that SYSRET loads; a guest chooses rip (XSA-7).
        let sysret = is_canonical(frame.rip) && frame.entry_vector == ENTRY_SYSCALL;
        return Exit { regs, sysret: sysret.into() };
    }
}

#[inline(never)]
fn deliver_event(local: &'static Local) {
    local.with_current(traps::deliver_event);
}

/// Leaves to the vCPU that is current, forgetting this CPU's stack.
pub(crate) extern "C" fn leave_afresh() -> ! {
    let local = percpu::local();
    if !local.is_busy() {
        switch::do_pending_work(hypervisor(), local);
    }
    let exit = leave(local);
    // SAFETY: the frame is that of the vCPU that runs now; the stack is this CPU's.
    unsafe { enter_guest(local.stack_top(), exit.regs) }
}
