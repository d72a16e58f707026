//! Sleeps and wakes, after times that differ, and keeps how late.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::hypercall::sched;
use pvrt::time;

use super::{number, start};

/// Wake-ups before any counts.
const WARM_UP: u64 = 200;

/// Sleeps on vCPU 0, and prints how late it woke: the median, one in a hundred, and the worst.
///
/// # Errors
/// The start is past, or the hypervisor does not know the call.
pub(super) fn run(boot: &pvrt::BootInfo) -> Result<(), String> {
    let (wakes, every) = (number(boot, "wakes").unwrap_or(2000), number(boot, "every").unwrap_or(1_000_000));
    sleep_until(start(boot)?)?;
    let mut late = Vec::with_capacity(wakes as usize);
    let mut random = 1u64;
    for wake in 0..wakes + WARM_UP {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let deadline = time::now_ns() + every / 10 + (random >> 33) % (2 * every);
        let woke = sleep_until(deadline)?;
        if wake >= WARM_UP {
            late.push(woke - deadline);
        }
    }
    late.sort_unstable();
    let at = |percent: usize| late.get(late.len() * percent / 100).or(late.last()).copied().unwrap_or(0);
    pvrt::println!("several sleeper {} wakes p50 {} p99 {} max {} ns", late.len(), at(50), at(99), at(100));
    Ok(())
}

/// Sleeps until `deadline`, and returns the time.
///
/// # Errors
/// The hypervisor does not know the call.
pub(super) fn sleep_until(deadline: u64) -> Result<u64, String> {
    loop {
        let now = time::now_ns();
        if now >= deadline {
            return Ok(now);
        }
        // An event of the runtime's may end the sleep early.
        sched::poll(&[], deadline).map_err(|errno| format!("sleep: {errno}"))?;
    }
}
