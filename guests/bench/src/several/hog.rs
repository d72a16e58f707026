//! Computes without end, and counts.

use alloc::format;
use alloc::string::String;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use pvrt::hypercall::vcpu;
use pvrt::time;
use ring_abi::vcpu::RUNSTATE_RUNNING;

use super::{number, start};
use crate::{polling, vcpus};

/// Turns of the loop between two looks at the clock.
const TURNS: u64 = 10_000;
/// How long the hogs compute before they are measured.
const WARM_UP_NS: u64 = 500_000_000;

/// When to measure from and until; `u64::MAX` for the end: never.
static FROM: AtomicU64 = AtomicU64::new(0);
static UNTIL: AtomicU64 = AtomicU64::new(u64::MAX);
/// What vCPU 1 measured: nanoseconds, turns, and 1 when both are there.
static SECOND: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Computes on every vCPU.
///
/// # Errors
/// The start is past, or the second vCPU does not come up.
pub(super) async fn run(boot: &pvrt::BootInfo) -> Result<(), String> {
    let from = start(boot)? + WARM_UP_NS;
    FROM.store(from, Ordering::Relaxed);
    if let Some(seconds) = number(boot, "seconds") {
        UNTIL.store(from + seconds * 1_000_000_000, Ordering::Relaxed);
    }
    time::sleep_until(from - WARM_UP_NS).await;
    let has_second = number(boot, "vcpus") == Some(2);
    if has_second {
        polling::mask(1);
        vcpus::start_second(second).map_err(|errno| format!("vCPU 1: {errno}"))?;
    }
    let (ran, turns) = compute(0);
    report(0, ran, turns);
    if has_second {
        while SECOND[2].load(Ordering::Acquire) == 0 {
            time::sleep(10_000_000).await;
        }
        report(1, SECOND[0].load(Ordering::Relaxed), SECOND[1].load(Ordering::Relaxed));
    }
    Ok(())
}

fn report(vcpu: u32, ran: u64, turns: u64) {
    pvrt::println!("several hog {vcpu} {ran} ns {turns} turns");
}

/// vCPU 1: computes, and goes on for ever, so that the others are not given its time before they have measured.
extern "C" fn second() -> ! {
    let (ran, turns) = compute(1);
    SECOND[0].store(ran, Ordering::Relaxed);
    SECOND[1].store(turns, Ordering::Relaxed);
    SECOND[2].store(1, Ordering::Release);
    loop {
        turn();
    }
}

/// Computes until the end on vCPU `vcpu`; returns for how long the vCPU ran meanwhile, and the turns of the loop.
fn compute(vcpu: u32) -> (u64, u64) {
    let (from, until) = (FROM.load(Ordering::Relaxed), UNTIL.load(Ordering::Relaxed));
    while time::now_ns() < from {
        turn();
    }
    let before = ran(vcpu);
    let mut turns = 0;
    while time::now_ns() < until {
        turn();
        turns += TURNS;
    }
    (ran(vcpu).saturating_sub(before), turns)
}

fn turn() {
    for n in 0..TURNS {
        black_box(n);
    }
}

/// How long `vcpu` ran since its start.
fn ran(vcpu: u32) -> u64 {
    vcpu::runstate(vcpu).map_or(0, |info| info.time[RUNSTATE_RUNNING as usize])
}
