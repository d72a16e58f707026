//! Events to another vCPU of this domain.
#![allow(unsafe_code)] // brings up a vCPU

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering};

use pvrt::hypercall::{event, raw};
use pvrt::mem::Pages;
use ring_abi::errno::Errno;
use ring_abi::guest_context::{VGCF_IN_KERNEL, VcpuGuestContext};
use ring_abi::hypercall::__HYPERVISOR_VCPU_OP;
use ring_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use ring_abi::types::{PAGE_SIZE, Port};
use ring_abi::vcpu::{VCPUOP_INITIALISE, VCPUOP_UP};

use crate::measure::Bench;
use crate::{asm, polling};

const STACK_PAGES: usize = 4;
const IF_FLAG: u64 = 0x200;

/// The port that the second vCPU waits for, and the port by which it answers.
static PING: AtomicU32 = AtomicU32::new(0);
static PONG: AtomicU32 = AtomicU32::new(0);

/// Times events to vCPU 1: sends while the vCPU is down, and round trips.
pub(crate) fn run(bench: &Bench) {
    let (ping, pong) = match (event::bind_ipi(1), event::bind_ipi(0)) {
        (Ok(ping), Ok(pong)) => (ping, pong),
        (ping, _) => return bench.skip("evtchn_send_vcpu", ping.err()),
    };
    polling::mask(1);
    bench.time("evtchn_send_vcpu", || {
        polling::take(ping, 1);
        polling::send(ping);
    });
    polling::take(ping, 1);
    PING.store(ping.raw(), Ordering::Relaxed);
    PONG.store(pong.raw(), Ordering::Relaxed);
    if let Err(errno) = start() {
        return bench.skip("vcpu_round_trip", errno);
    }
    bench.time("vcpu_round_trip", || {
        polling::send(ping);
        polling::wait(pong, 0);
    });
    polling::look_again();
}

/// vCPU 1: answers every event, for ever.
extern "C" fn second() -> ! {
    let (ping, pong) = (PING.load(Ordering::Relaxed), PONG.load(Ordering::Relaxed));
    loop {
        polling::wait(Port::new(ping), 1);
        polling::send(Port::new(pong));
    }
}

fn start() -> Result<(), Errno> {
    let Ok(stack) = Pages::zeroed(STACK_PAGES) else { return Err(Errno::ENOMEM) };
    let top = (stack.va() + STACK_PAGES * PAGE_SIZE) as u64;
    // The vCPU runs until the domain ends.
    core::mem::forget(stack);
    let mut context = Box::<VcpuGuestContext>::default();
    context.flags = VGCF_IN_KERNEL;
    context.user_regs.rip = second as *const () as u64;
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
