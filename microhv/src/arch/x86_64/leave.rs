//! The way back to a guest: sees that nothing waits, and says how to return.
#![allow(unsafe_code)] // this CPU's frame, which assembly loads

use microhv::traps;

use super::machine::hypervisor;
use super::percpu;
use super::switch;

unsafe extern "C" {
    fn enter_guest(stack: u64) -> !;
}

/// Called by entry code ahead of a return, while work waits on this CPU.
#[unsafe(no_mangle)]
extern "C" fn work_before_leave() {
    switch::do_pending_work(hypervisor(), percpu::local());
}

/// Called by entry code ahead of a return, if an event upcall is due.
#[unsafe(no_mangle)]
extern "C" fn upcall_before_leave() {
    percpu::local().with_current(traps::deliver_event);
}

/// Leaves to the vCPU that is current, forgetting this CPU's stack.
pub(crate) extern "C" fn leave_afresh() -> ! {
    let local = percpu::local();
    if !local.is_busy() {
        switch::do_pending_work(hypervisor(), local);
    }
    // SAFETY: the stack is this CPU's.
    unsafe { enter_guest(local.stack_top()) }
}
