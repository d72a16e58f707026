//! Timers of many vCPUs that are due at one instant.

use alloc::format;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pvrt::hypercall::sched;
use pvrt::mem::Pages;
use pvrt::println;
use ring_abi::types::PAGE_SIZE;
use ring_abi::vcpu::*;

use super::case;
use crate::others;

/// vCPUs at most: those whose `vcpu_info` is in the shared page.
const MOST: u32 = 32;
/// How far ahead the timers are set, in ns: all vCPUs have set theirs by then.
const AHEAD_NS: u64 = 20_000_000;

/// When all timers fire.
static DUE: AtomicU64 = AtomicU64::new(0);
/// vCPUs whose timer has fired.
static FIRED: AtomicU32 = AtomicU32::new(0);

/// Runs the case, if this guest has other vCPUs.
pub(super) fn run() {
    let Ok(stacks) = Pages::zeroed(MOST as usize) else { return };
    let top = |vcpu: u32| (stacks.va() + (vcpu as usize + 1) * PAGE_SIZE) as u64;
    DUE.store(pvrt::time::now_ns() + AHEAD_NS, Ordering::Relaxed);
    let started = (1..MOST).take_while(|&vcpu| others::start(vcpu, top(vcpu), other)).count() as u32;
    if started < 2 {
        return println!("stretch: no vCPUs for timers");
    }
    case(&format!("timers of {started} vCPUs due at one instant"), || {
        while FIRED.load(Ordering::Acquire) < started {
            sched::yield_cpu();
        }
        started.into()
    });
    (1..=started).for_each(others::wait_until_down);
}

/// The code of another vCPU: sets its timer for the instant, and polls until then.
extern "C" fn other(vcpu: u32) -> ! {
    let due = DUE.load(Ordering::Relaxed);
    let timer = VcpuSetSingleshotTimer { timeout_abs_ns: due, ..Default::default() };
    others::operate(VCPUOP_SET_SINGLESHOT_TIMER, vcpu, (&raw const timer) as u64);
    let _ = sched::poll(&[], due);
    FIRED.fetch_add(1, Ordering::AcqRel);
    others::go_down(vcpu)
}
