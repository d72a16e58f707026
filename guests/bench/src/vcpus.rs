//! Brings up the domain's second vCPU.
#![allow(unsafe_code)] // hands a context to the hypervisor

use alloc::boxed::Box;

use pvrt::hypercall::raw;
use pvrt::mem::Pages;
use ring_abi::errno::Errno;
use ring_abi::guest_context::{VGCF_IN_KERNEL, VcpuGuestContext};
use ring_abi::hypercall::__HYPERVISOR_VCPU_OP;
use ring_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use ring_abi::types::PAGE_SIZE;
use ring_abi::vcpu::{VCPUOP_INITIALISE, VCPUOP_UP};

use crate::asm;

const STACK_PAGES: usize = 4;
const IF_FLAG: u64 = 0x200;

/// Has vCPU 1 execute `entry` in this kernel's address space, without handlers of its own.
///
/// # Errors
/// `ENOMEM`: there is no memory for a stack. `ENOENT`: the domain has one vCPU. `EEXIST`: the vCPU was brought up before.
pub(crate) fn start_second(entry: extern "C" fn() -> !) -> Result<(), Errno> {
    let Ok(stack) = Pages::zeroed(STACK_PAGES) else { return Err(Errno::ENOMEM) };
    let top = (stack.va() + STACK_PAGES * PAGE_SIZE) as u64;
    // The vCPU runs until the domain ends.
    core::mem::forget(stack);
    let mut context = Box::<VcpuGuestContext>::default();
    context.flags = VGCF_IN_KERNEL;
    context.user_regs.rip = entry as *const () as u64;
    // The stack is aligned as behind a call instruction.
    context.user_regs.rsp = top - 8;
    context.user_regs.rflags = IF_FLAG;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = FLAT_KERNEL_SS;
    context.kernel_ss = FLAT_KERNEL_SS.into();
    context.kernel_sp = top;
    context.ctrlreg[3] = asm::base_table() << 12;
    let op = |command: u32, arg: u64| {
        // SAFETY: the new vCPU has a stack and an entry of its own; the context is only read.
        Errno::check(unsafe { raw(__HYPERVISOR_VCPU_OP, [command.into(), 1, arg, 0, 0]) })
    };
    op(VCPUOP_INITIALISE, (&raw const *context) as u64)?;
    op(VCPUOP_UP, 0).map(drop)
}
