//! The machine's clock, the library's [`Clock`]: the TSC, measured against a timer of known rate; the local APIC's timer
//! for deadlines.
#![allow(unsafe_code)] // the HPET's registers

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use microhv::boot::acpi::Acpi;
use microhv::boot::clock::{self, Scale};
use microhv::platform::{Clock, CpuId, TimeParams};
use microhv::sync::{Mutex, Once, rank};

use super::cpu::{port_in, port_out, rdtsc};
use super::machine::Machine;
use super::{apic, paging, percpu, tsc};

/// How long the first measurement takes.
const CALIBRATION_NS: u64 = 10_000_000;
/// How often the rate is measured again.
const REFIT_NS: u64 = 1_000_000_000;

/// A counter of known rate.
#[derive(Clone, Copy, Debug)]
struct Reference {
    source: Source,
    hz: u64,
    /// The bits that count.
    mask: u64,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// ACPI's timer, at this port.
    PmTimer(u16),
    /// The address of the HPET's counter.
    Hpet(u64),
    /// Channel 2 of the 8254, counting down from 65535 once.
    Pit,
}

impl Reference {
    fn read(self) -> u64 {
        match self.source {
            Source::PmTimer(port) => u64::from(port_in::<u32>(port)) & self.mask,
            // SAFETY: `find` mapped the register page.
            Source::Hpet(counter) => u64::from(unsafe { (counter as *const u32).read_volatile() }),
            Source::Pit => {
                port_out::<u8>(0x43, 0x80);
                let low = u64::from(port_in::<u8>(0x42));
                0xffff - (u64::from(port_in::<u8>(0x42)) << 8 | low)
            }
        }
    }

    /// A counter value and the TSC at that moment: of several readings, the reading that took least time.
    fn read_with_tsc(self) -> (u64, u64) {
        let mut best = (u64::MAX, 0, 0);
        for _ in 0..5 {
            let before = rdtsc();
            let count = self.read();
            let after = rdtsc();
            if after.wrapping_sub(before) < best.0 {
                best = (after.wrapping_sub(before), count, before + after.wrapping_sub(before) / 2);
            }
        }
        (best.1, best.2)
    }
}

/// In a second.
const FEMTOSECONDS: u64 = 1_000_000_000_000_000;

fn find(acpi: &Acpi) -> Reference {
    if let Some((port, mask)) = acpi.pm_timer {
        return Reference { source: Source::PmTimer(port), hz: 3_579_545, mask };
    }
    if let Some(registers) = acpi.hpet.and_then(paging::device) {
        // SAFETY: the register page is mapped; the period in femtoseconds is at 4, "enable" is bit 0 at 16.
        let period = u64::from(unsafe { ((registers + 4) as *const u32).read_volatile() });
        if let Some(hz) = FEMTOSECONDS.checked_div(period) {
            // SAFETY: as above.
            unsafe { ((registers + 16) as *mut u64).write_volatile(1) };
            return Reference { source: Source::Hpet(registers + 240), hz, mask: 0xffff_ffff };
        }
    }
    port_out::<u8>(0x61, port_in::<u8>(0x61) & !2 | 1);
    port_out::<u8>(0x43, 0xb0);
    port_out::<u8>(0x42, 0xff);
    port_out::<u8>(0x42, 0xff);
    Reference { source: Source::Pit, hz: 1_193_182, mask: 0xffff }
}

/// In `VERSION`: the TSCs are not one clock. The fast path tests this bit together with the lowest.
const SKEWED: u32 = 1 << 31;

/// The published clock by the boot CPU's TSC; `VERSION` is odd during a write.
static VERSION: AtomicU32 = AtomicU32::new(0);
static TSC: AtomicU64 = AtomicU64::new(0);
static SYSTEM_NS: AtomicU64 = AtomicU64::new(0);
/// The scale: its multiplier, and its shift above that.
static SCALE: AtomicU64 = AtomicU64::new(0);
static TSC_HZ: AtomicU64 = AtomicU64::new(0);
/// Timer ticks for a ns, 32.32 fixed point.
static TIMER_PER_NS: AtomicU64 = AtomicU64::new(0);

/// The longest that the timer may stay away; `u64::MAX`: as long as it likes.
static TICK_NS: AtomicU64 = AtomicU64::new(u64::MAX);

/// What refitting remembers.
struct Fit {
    reference: Reference,
    /// Counter and TSC at the last fit.
    last: (u64, u64),
}

/// When the rate is to be fitted again. Outside of the lock, which each CPU's timer would wait for otherwise.
static NEXT_FIT_NS: AtomicU64 = AtomicU64::new(0);

static FIT: Once<Mutex<rank::ClockFit, Fit>> = Once::new();

fn publish(tsc: u64, system_ns: u64, hz: u64) {
    let scale = Scale::of_hz(hz);
    VERSION.fetch_add(1, Ordering::AcqRel);
    TSC.store(tsc, Ordering::Relaxed);
    SYSTEM_NS.store(system_ns, Ordering::Relaxed);
    SCALE.store(u64::from(scale.mul) | u64::from(scale.shift as u8) << 32, Ordering::Relaxed);
    TSC_HZ.store(hz, Ordering::Relaxed);
    VERSION.fetch_add(1, Ordering::Release);
}

/// Measures the TSC and the local APIC's timer, and starts system time at 0.
pub(crate) fn init(acpi: &Acpi) {
    let reference = find(acpi);
    apic::start_timer(u32::MAX);
    let timer_start = apic::timer_count();
    let start = reference.read_with_tsc();
    let ticks = CALIBRATION_NS * reference.hz / 1_000_000_000;
    while reference.read().wrapping_sub(start.0) & reference.mask < ticks {
        core::hint::spin_loop();
    }
    let end = reference.read_with_tsc();
    let timer_ticks = u64::from(timer_start.wrapping_sub(apic::timer_count()));
    apic::start_timer(0);
    let counted = end.0.wrapping_sub(start.0) & reference.mask;
    let hz = clock::hz(end.1 - start.1, counted, reference.hz);
    let elapsed_ns = (u128::from(counted) * 1_000_000_000 / u128::from(reference.hz)) as u64;
    TIMER_PER_NS
        .store(((u128::from(timer_ticks) << 32) / u128::from(elapsed_ns.max(1))) as u64, Ordering::Relaxed);
    publish(end.1, 0, hz);
    NEXT_FIT_NS.store(REFIT_NS, Ordering::Relaxed);
    FIT.call_once(|| Mutex::new(Fit { reference, last: end }));
    apic::enable_timer();
    log::info!("TSC {} kHz, timer {} kHz", hz / 1000, timer_ticks * 1_000_000 / elapsed_ns.max(1));
}

/// What is published: of one write if no write is under way, and [`is_still`] says so.
#[inline(always)]
fn published() -> TimeParams {
    let generation = VERSION.load(Ordering::Acquire);
    let scale = SCALE.load(Ordering::Relaxed);
    TimeParams {
        tsc: TSC.load(Ordering::Relaxed),
        system_ns: SYSTEM_NS.load(Ordering::Relaxed),
        mul: scale as u32,
        shift: (scale >> 32) as i8,
        generation,
        tsc_khz: (TSC_HZ.load(Ordering::Relaxed) / 1000) as u32,
        is_one_clock: generation & SKEWED == 0,
    }
}

#[inline(always)]
fn is_still(params: &TimeParams) -> bool {
    fence(Ordering::Acquire);
    VERSION.load(Ordering::Relaxed) == params.generation
}

/// How the boot CPU's TSC gives system time.
pub(crate) fn params() -> TimeParams {
    loop {
        let params = published();
        if params.generation & 1 == 0 && is_still(&params) {
            return params;
        }
        core::hint::spin_loop();
    }
}

/// How this CPU's TSC gives system time.
fn own_params() -> TimeParams {
    params().by_tsc_with(tsc::offset(percpu::this_cpu()))
}

/// From now on the TSCs are not one clock.
pub(crate) fn note_skew() {
    VERSION.fetch_add(1, Ordering::AcqRel);
    VERSION.fetch_or(SKEWED, Ordering::AcqRel);
    VERSION.fetch_add(1, Ordering::Release);
}

/// System time at a value of this CPU's TSC. The value may lie before that of the parameters, which another CPU has read.
#[inline]
fn system_ns(params: &TimeParams, tsc: u64) -> u64 {
    let scale = Scale { mul: params.mul, shift: params.shift };
    params.system_ns + scale.ns((tsc.wrapping_sub(params.tsc) as i64).max(0) as u64)
}

/// System time.
#[inline]
pub(crate) fn now_ns() -> u64 {
    let params = published();
    if params.generation & (SKEWED | 1) != 0 || !is_still(&params) {
        return now_ns_slowly();
    }
    system_ns(&params, rdtsc())
}

/// The same where TSCs are not one clock, or amid a write.
#[cold]
#[inline(never)]
fn now_ns_slowly() -> u64 {
    system_ns(&own_params(), rdtsc())
}

/// The timer's count for so many ns.
#[inline]
fn timer_ticks(ns: u64) -> u32 {
    let ticks = u128::from(ns) * u128::from(TIMER_PER_NS.load(Ordering::Relaxed)) >> 32;
    u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
}

/// Lets the timer come at least every so many ns from now on, or no longer.
pub(crate) fn set_tick(ns: Option<u64>) {
    TICK_NS.store(ns.unwrap_or(u64::MAX), Ordering::Relaxed);
    if let Some(ns) = ns {
        let (ticks, left) = (timer_ticks(ns), apic::timer_count());
        if left == 0 || left > ticks {
            apic::start_timer(ticks);
        }
    }
}

/// Fits the rate again when a second has passed since the last time, and says whether it did. Cheap otherwise.
pub(crate) fn refit() -> bool {
    let now = now_ns();
    if now < NEXT_FIT_NS.load(Ordering::Relaxed) {
        return false;
    }
    let Some(mut fit) = FIT.get().map(Mutex::lock) else { return false };
    if now < NEXT_FIT_NS.load(Ordering::Relaxed) {
        return false; // another CPU did so meanwhile
    }
    let (count, own_tsc) = fit.reference.read_with_tsc();
    let tsc = own_tsc.wrapping_add(tsc::offset(percpu::this_cpu()));
    let reference = fit.reference;
    let old_hz = TSC_HZ.load(Ordering::Relaxed);
    let elapsed = clock::unwrap_count(
        count.wrapping_sub(fit.last.0),
        reference.mask,
        tsc.wrapping_sub(fit.last.1),
        old_hz,
        reference.hz,
    );
    if matches!(reference.source, Source::Pit) {
        // The PIT ran out after 55 ms: the first measurement stays.
        NEXT_FIT_NS.store(u64::MAX, Ordering::Relaxed);
        return false;
    }
    let hz = clock::refitted(old_hz, clock::hz(tsc.wrapping_sub(fit.last.1), elapsed, reference.hz));
    publish(tsc, system_ns(&own_params(), own_tsc), hz);
    fit.last = (count, tsc);
    NEXT_FIT_NS.store(now + REFIT_NS, Ordering::Relaxed);
    true
}

/// Wall time from the real-time clock, in ns since 1970. The chip tells whole seconds: half a second is added, so that
/// the error is no more than that either way.
pub(crate) fn wall_ns() -> u64 {
    let register = |number: u8| {
        port_out::<u8>(0x70, number);
        port_in::<u8>(0x71)
    };
    // Second, minute, hour, day, month, year, century.
    let all = || [0u8, 2, 4, 7, 8, 9, 0x32].map(register);
    let mut tries = 0;
    loop {
        // Two equal readings outside an update are one moment.
        let first = all();
        if (register(0xa) & 0x80 == 0 && first == all()) || tries > 1000 {
            return clock::unix_seconds(first, register(0xb)) * 1_000_000_000 + 500_000_000;
        }
        tries += 1;
    }
}

impl Clock for Machine {
    #[inline]
    fn now_ns(&self) -> u64 {
        now_ns()
    }

    #[inline]
    fn tsc(&self) -> u64 {
        rdtsc()
    }

    fn tsc_offset(&self, cpu: CpuId) -> u64 {
        tsc::offset(cpu)
    }

    fn time_params(&self) -> TimeParams {
        params()
    }

    /// The generation even while the clock is written.
    #[inline]
    fn clock_generation(&self) -> u32 {
        VERSION.load(Ordering::Acquire)
    }

    fn set_timer(&self, deadline_ns: Option<u64>) {
        // The counter holds no more on some machines: the interrupt that comes early finds nothing due and asks again.
        let delta =
            deadline_ns.map_or(u64::MAX, |deadline| deadline.saturating_sub(now_ns()).min(2_000_000_000));
        let delta = delta.min(TICK_NS.load(Ordering::Relaxed));
        apic::start_timer(if delta == u64::MAX { 0 } else { timer_ticks(delta) });
    }
}
