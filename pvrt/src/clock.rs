//! The paravirtual clock and the vCPU's timer. ABI: `struct vcpu_time_info`, `xen/include/public/xen.h`.
#![allow(unsafe_code)] // reads the TSC

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use ring_abi::evtchn::VIRQ_TIMER;
use ring_abi::shared_info::{
    TIME_OFFSET, VcpuTimeInfo, WC_NSEC_OFFSET, WC_SEC_HI_OFFSET, WC_SEC_OFFSET, WC_VERSION_OFFSET,
};
use spin::Once;

use crate::event::Port;
use crate::hypercall::vcpu;
use crate::shared;

/// The deadline the timer is set to; `u64::MAX` when it never was.
static ARMED: AtomicU64 = AtomicU64::new(u64::MAX);

/// The timer's event channel.
static TIMER: Once<Port> = Once::new();

/// The TSC now.
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86_64 processor has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Nanoseconds of system time: the hypervisor's last record, and the TSC ticks since.
pub(crate) fn system_ns() -> u64 {
    let info = shared::info();
    let version = || info.load_u32(TIME_OFFSET + offset_of!(VcpuTimeInfo, version));
    loop {
        let before = version();
        let record: VcpuTimeInfo = info.read_value(TIME_OFFSET);
        let now = record.nanoseconds_at(tsc());
        fence(Ordering::Acquire);
        // Odd while it is written.
        if before & 1 == 0 && version() == before {
            return now;
        }
    }
}

/// Wall-clock nanoseconds since 1970 at system time 0.
pub(crate) fn wall_base_ns() -> u64 {
    let info = shared::info();
    loop {
        let before = info.load_u32(WC_VERSION_OFFSET);
        let low = info.load_u32(WC_SEC_OFFSET);
        let high = info.load_u32(WC_SEC_HI_OFFSET);
        let nanoseconds = info.load_u32(WC_NSEC_OFFSET);
        fence(Ordering::Acquire);
        if before & 1 == 0 && info.load_u32(WC_VERSION_OFFSET) == before {
            let seconds = u64::from(high) << 32 | u64::from(low);
            return seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(nanoseconds));
        }
    }
}

/// Stops the periodic timer and binds the timer's event.
pub(crate) fn init() {
    if let Err(errno) = vcpu::stop_periodic_timer(0) {
        log::warn!("the periodic timer goes on: {errno}");
    }
    // The event only ends a block: no task waits for it.
    TIMER.call_once(|| Port::bind_virq(VIRQ_TIMER).expect("a port for the timer"));
}

/// Sets the timer to `deadline`; false when that is past.
pub(crate) fn arm(deadline: u64) -> bool {
    if system_ns() >= deadline {
        return false;
    }
    // A timer that has fired is set no more, even if this clock still stands a moment before the deadline.
    let fired = TIMER.get().is_some_and(Port::take_event);
    if !fired && ARMED.load(Ordering::Relaxed) == deadline {
        return true;
    }
    match vcpu::set_singleshot_timer(0, deadline) {
        Ok(in_future) => {
            ARMED.store(deadline, Ordering::Relaxed);
            in_future
        }
        Err(errno) => panic!("set_singleshot_timer: {errno}"),
    }
}
