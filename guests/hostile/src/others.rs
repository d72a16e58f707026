//! Other vCPUs of this guest: how they come up and go down.
#![allow(unsafe_code)] // the fields of a context

use alloc::boxed::Box;

use pvrt::hypercall::{sched, vcpu};
use pvrt::space::*;
use ring_abi::guest_context::{VGCF_IN_KERNEL, VcpuGuestContext};
use ring_abi::hypercall::__HYPERVISOR_VCPU_OP;
use ring_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use ring_abi::vcpu::{VCPUOP_DOWN, VCPUOP_INITIALISE, VCPUOP_UP};

const IF_FLAG: u64 = 0x200;

/// One operation on a vCPU.
pub(crate) fn operate(command: u32, vcpu: u32, arg: u64) -> i64 {
    call(__HYPERVISOR_VCPU_OP, [command.into(), vcpu.into(), arg, 0, 0])
}

/// Brings a vCPU up, on the stack that ends at `top`: `entry` gets the vCPU's number. `false`: there is no such vCPU.
pub(crate) fn start(vcpu: u32, top: u64, entry: extern "C" fn(u32) -> !) -> bool {
    let mut context = Box::<VcpuGuestContext>::default();
    context.flags = VGCF_IN_KERNEL;
    context.user_regs.rip = entry as *const () as u64;
    // The stack is aligned as behind a call instruction.
    context.user_regs.rsp = top - 8;
    context.user_regs.rdi = vcpu.into();
    context.user_regs.rflags = IF_FLAG;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = FLAT_KERNEL_SS;
    context.kernel_ss = FLAT_KERNEL_SS.into();
    context.kernel_sp = top;
    context.ctrlreg[3] = base() << 12;
    operate(VCPUOP_INITIALISE, vcpu, (&raw const *context) as u64) == 0 && operate(VCPUOP_UP, vcpu, 0) == 0
}

/// Takes the calling vCPU down.
pub(crate) fn go_down(vcpu: u32) -> ! {
    loop {
        operate(VCPUOP_DOWN, vcpu, 0);
    }
}

/// Waits until a vCPU that is going down is down.
pub(crate) fn wait_until_down(vcpu: u32) {
    while vcpu::is_up(vcpu) == Ok(true) {
        sched::yield_cpu();
    }
}
