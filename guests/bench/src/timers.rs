//! Times setting timers, far enough ahead that none fires.
#![allow(unsafe_code)] // raw hypercalls

use pvrt::hypercall::{raw, vcpu};
use pvrt::time;
use ring_abi::hypercall::{__HYPERVISOR_SET_TIMER_OP, __HYPERVISOR_VCPU_OP};
use ring_abi::vcpu::{VCPUOP_SET_SINGLESHOT_TIMER, VcpuSetSingleshotTimer};

use crate::measure::Bench;

/// Longer than all operations together take.
const AHEAD_NS: u64 = 3_600_000_000_000;

/// Times both calls that set a timer, and cancels the timers.
pub(crate) fn run(bench: &Bench) {
    let later = time::now_ns() + AHEAD_NS;
    let mut turn = 0;
    // Each call gets another deadline, as a kernel's calls do.
    let mut deadline = || {
        turn += 1_000;
        later + turn
    };
    bench.time("set_timer_op", || {
        // SAFETY: no memory is touched.
        unsafe { raw(__HYPERVISOR_SET_TIMER_OP, [deadline(), 0, 0, 0, 0]) };
    });
    // SAFETY: no memory is touched; 0 cancels.
    unsafe { raw(__HYPERVISOR_SET_TIMER_OP, [0; 5]) };
    bench.time("singleshot_timer", || {
        let arg = VcpuSetSingleshotTimer { timeout_abs_ns: deadline(), ..Default::default() };
        let args = [u64::from(VCPUOP_SET_SINGLESHOT_TIMER), 0, (&raw const arg) as u64, 0, 0];
        // SAFETY: the argument is only read.
        unsafe { raw(__HYPERVISOR_VCPU_OP, args) };
    });
    if let Err(errno) = vcpu::stop_singleshot_timer(0) {
        bench.skip("singleshot_timer", errno);
    }
}
