//! Timers of many vCPUs that are due at one instant.
#![allow(unsafe_code)] // brings up vCPUs

use alloc::boxed::Box;
use alloc::format;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pvrt::hypercall::sched;
use pvrt::mem::Pages;
use pvrt::println;
use pvrt::space::*;
use ring_abi::guest_context::{VGCF_IN_KERNEL, VcpuGuestContext};
use ring_abi::hypercall::*;
use ring_abi::sched::{SCHEDOP_POLL, SchedPoll};
use ring_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use ring_abi::types::PAGE_SIZE;
use ring_abi::vcpu::*;

use super::case;

/// vCPUs at most: those whose `vcpu_info` is in the shared page.
const MOST: u32 = 32;
/// How far ahead the timers are set, in ns: all vCPUs have set theirs by then.
const AHEAD_NS: u64 = 20_000_000;

/// When all timers fire.
static DUE: AtomicU64 = AtomicU64::new(0);
/// vCPUs whose timer has fired.
static FIRED: AtomicU32 = AtomicU32::new(0);

/// Runs them, if this guest has other vCPUs.
pub(super) fn run() {
    let Ok(stacks) = Pages::zeroed(MOST as usize) else { return };
    DUE.store(pvrt::time::now_ns() + AHEAD_NS, Ordering::Relaxed);
    let started = (1..MOST).take_while(|&vcpu| start(vcpu, &stacks)).count() as u32;
    if started < 2 {
        return println!("stretch: no vCPUs for timers");
    }
    case(&format!("timers of {started} vCPUs due at one instant"), || {
        while FIRED.load(Ordering::Acquire) < started {
            sched::yield_cpu();
        }
        started.into()
    });
    for vcpu in 1..=started {
        while pvrt::hypercall::vcpu::is_up(vcpu) == Ok(true) {
            sched::yield_cpu();
        }
    }
}

/// Brings a vCPU up that sets its timer and waits: false if there is no such vCPU.
fn start(vcpu: u32, stacks: &Pages) -> bool {
    let top = (stacks.va() + (vcpu as usize + 1) * PAGE_SIZE) as u64;
    let mut context = Box::<VcpuGuestContext>::default();
    context.flags = VGCF_IN_KERNEL;
    context.user_regs.rip = other as *const () as u64;
    // As behind a call.
    context.user_regs.rsp = top - 8;
    context.user_regs.rdi = vcpu.into();
    context.user_regs.rflags = 0x200;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = FLAT_KERNEL_SS;
    context.kernel_ss = FLAT_KERNEL_SS.into();
    context.kernel_sp = top;
    context.ctrlreg[3] = base() << 12;
    let op = |command: u32, arg: u64| call(__HYPERVISOR_VCPU_OP, [command.into(), vcpu.into(), arg, 0, 0]);
    op(VCPUOP_INITIALISE, (&raw const *context) as u64) == 0 && op(VCPUOP_UP, 0) == 0
}

/// Another vCPU: waits for the instant, with two of its timers.
extern "C" fn other(vcpu: u64) -> ! {
    let due = DUE.load(Ordering::Relaxed);
    let timer = VcpuSetSingleshotTimer { timeout_abs_ns: due, ..Default::default() };
    let arg = (&raw const timer) as u64;
    call(__HYPERVISOR_VCPU_OP, [VCPUOP_SET_SINGLESHOT_TIMER.into(), vcpu, arg, 0, 0]);
    let poll = SchedPoll { timeout: due, ..Default::default() };
    call(__HYPERVISOR_SCHED_OP, [SCHEDOP_POLL.into(), (&raw const poll) as u64, 0, 0, 0]);
    FIRED.fetch_add(1, Ordering::AcqRel);
    loop {
        call(__HYPERVISOR_VCPU_OP, [VCPUOP_DOWN.into(), vcpu, 0, 0, 0]);
    }
}
