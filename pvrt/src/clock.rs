//! The paravirtual clock and the vCPU's timer. ABI: `struct vcpu_time_info`, `xen/include/public/xen.h`.
#![allow(unsafe_code)] // reads the TSC

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use ring_abi::evtchn::VIRQ_TIMER;
use ring_abi::shared_info::{
    TIME_OFFSET, VcpuTimeInfo, WC_NSEC_OFFSET, WC_SEC_HI_OFFSET, WC_SEC_OFFSET, WC_VERSION_OFFSET,
};
use ring_abi::vcpu::{RUNSTATE_RUNNING, VcpuRunstateInfo};
use spin::Once;

use crate::event::Port;
use crate::hypercall::vcpu;
use crate::shared;

/// The deadline to which the timer is set; `u64::MAX` when the timer was never set.
static ARMED: AtomicU64 = AtomicU64::new(u64::MAX);

/// The unit in which [`ticks_within`] counts.
const TICKS_STEP_NS: u64 = 1 << 20;
/// Ticks of the TSC in [`TICKS_STEP_NS`]; 0: the rate is not known.
static TICKS_OF_STEP: AtomicU64 = AtomicU64::new(0);

/// The timer's event channel.
static TIMER: Once<Port> = Once::new();

/// The TSC now.
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86_64 processor has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The area in which the hypervisor writes how long the vCPU was in each state, once [`watch_steal`] has registered the
/// area.
struct Runstate(UnsafeCell<VcpuRunstateInfo>);

// SAFETY: this kernel only reads the area, whole words at a time; the hypervisor writes the area while the vCPU does
// not run.
unsafe impl Sync for Runstate {}

static RUNSTATE: Runstate =
    Runstate(UnsafeCell::new(VcpuRunstateInfo { state: 0, _pad0: 0, state_entry_time: 0, time: [0; 4] }));

/// The entry time in the runstate area for which `STOLEN` was computed.
static STOLEN_SEEN: AtomicU64 = AtomicU64::new(0);
/// Ticks in which the vCPU did not run, since [`watch_steal`].
static STOLEN: AtomicU64 = AtomicU64::new(0);

/// From now on [`busy_ticks`] leaves out the time in which the vCPU did not run. The hypervisor then writes an area at
/// each switch to this vCPU, which costs some hundred instructions: so this is not for daily use.
pub(crate) fn watch_steal() {
    if let Err(errno) = vcpu::register_runstate_area(0, RUNSTATE.0.get() as u64) {
        log::warn!("stolen time is not known: {errno}");
    }
}

/// The runstate area's entry time.
#[inline]
fn runstate_entry() -> u64 {
    // SAFETY: a live static; the hypervisor changes it only while this vCPU does not run.
    unsafe { (&raw const (*RUNSTATE.0.get()).state_entry_time).read_volatile() }
}

/// The TSC less the ticks in which the vCPU did not run, once these are watched.
#[inline]
pub(crate) fn busy_ticks() -> u64 {
    loop {
        let entry = runstate_entry();
        if entry != STOLEN_SEEN.load(Ordering::Relaxed) {
            count_stolen(entry);
        }
        let now = tsc();
        // The vCPU was not preempted between the two reads.
        if runstate_entry() == entry {
            return now.wrapping_sub(STOLEN.load(Ordering::Relaxed));
        }
    }
}

/// The vCPU was away since the last look.
#[cold]
fn count_stolen(entry: u64) {
    // SAFETY: a live static; the hypervisor changes it only while this vCPU does not run.
    let info = unsafe { RUNSTATE.0.get().read_volatile() };
    let running = info.time.get(RUNSTATE_RUNNING as usize).copied().unwrap_or(0);
    let away_ns = info.time.iter().sum::<u64>() - running;
    let clock: VcpuTimeInfo = shared::info().read_value(TIME_OFFSET);
    STOLEN.store(clock.ticks(away_ns), Ordering::Relaxed);
    STOLEN_SEEN.store(entry, Ordering::Relaxed);
}

/// Nanoseconds of system time: the hypervisor's last record, and the TSC ticks since.
pub(crate) fn system_ns() -> u64 {
    let info = shared::info();
    let version = || info.load_u32(TIME_OFFSET + offset_of!(VcpuTimeInfo, version));
    loop {
        let before = version();
        // Field by field: as many loads are cheaper than a copy of the whole record.
        let record = VcpuTimeInfo {
            tsc_timestamp: info.load_u64(TIME_OFFSET + offset_of!(VcpuTimeInfo, tsc_timestamp)),
            system_time: info.load_u64(TIME_OFFSET + offset_of!(VcpuTimeInfo, system_time)),
            tsc_to_system_mul: info.load_u32(TIME_OFFSET + offset_of!(VcpuTimeInfo, tsc_to_system_mul)),
            tsc_shift: info.load_u8(TIME_OFFSET + offset_of!(VcpuTimeInfo, tsc_shift)) as i8,
            ..VcpuTimeInfo::default()
        };
        let now = record.nanoseconds_at(tsc());
        fence(Ordering::Acquire);
        // The version is odd while the hypervisor writes the record.
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
    let record: VcpuTimeInfo = shared::info().read_value(TIME_OFFSET);
    let step = record.ticks(TICKS_STEP_NS);
    TICKS_OF_STEP.store(if step == u64::MAX { 0 } else { step }, Ordering::Relaxed);
}

/// No more ticks of the TSC than pass in `ns` nanoseconds, and less than a step of [`TICKS_STEP_NS`] fewer. The rate is
/// that of the start.
pub(crate) fn ticks_within(ns: u64) -> u64 {
    (ns / TICKS_STEP_NS).saturating_mul(TICKS_OF_STEP.load(Ordering::Relaxed))
}

/// Sets the timer to `deadline`; `false` when `deadline` is past.
pub(crate) fn arm(deadline: u64) -> bool {
    let fired = TIMER.get().is_some_and(Port::take_event);
    if !fired && ARMED.load(Ordering::Relaxed) == deadline {
        // The timer ends a block, whether the deadline is past or not.
        return true;
    }
    if fired {
        // A timer that has fired is no longer set, even if this clock still stands a moment before the deadline.
        ARMED.store(u64::MAX, Ordering::Relaxed);
    }
    if system_ns() >= deadline {
        return false;
    }
    match vcpu::set_singleshot_timer(0, deadline) {
        Ok(in_future) => {
            ARMED.store(deadline, Ordering::Relaxed);
            in_future
        }
        Err(errno) => panic!("set_singleshot_timer: {errno}"),
    }
}
