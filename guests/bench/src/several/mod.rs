//! A guest that is one of several on several CPUs, by `role=`:
//!
//! - `hog`: each vCPU computes without end. With `seconds=N` prints for each vCPU how long the vCPU ran and how often its
//!   loop went round within N seconds.
//! - `sleeper`: sleeps `wakes=N` times, for a tenth to two times of `every=NS`, and prints how late the guest ran again.
//! - `storm`: does the operation `kind=` without end in turns of `slot=NS`: in every third turn alone, in every third beside the
//!   other party, and not at all in the others. Which turns those are says `part=0` or `part=1`; `slots=N` are done. In every
//!   other group of three turns the operation is one that never leaves the guest. With `part=both` the parties are the two
//!   vCPUs of this guest.
//!
//! Guests begin at one moment, `start=NS` of system time, which is the same for all domains. That moment must be so late that
//! all of them exist.

mod hog;
mod ops;
mod peers;
mod sleeper;
mod storm;

use alloc::format;
use alloc::string::String;

use pvrt::time;

/// Plays `role`, and prints the figures, or why there are none.
pub(crate) async fn run(boot: pvrt::BootInfo, role: &str) {
    let result = match role {
        "hog" => hog::run(&boot).await,
        "sleeper" => sleeper::run(&boot),
        "storm" => storm::run(&boot).await,
        _ => Err(format!("there is no role {role}")),
    };
    if let Err(error) = result {
        pvrt::println!("several skipped: {error}");
    }
}

/// The number behind `key=` on the command line.
fn number(boot: &pvrt::BootInfo, key: &str) -> Option<u64> {
    boot.option(key)?.parse().ok()
}

/// The moment at which all guests begin.
///
/// # Errors
/// The moment is past: the guests would not have begun together.
fn start(boot: &pvrt::BootInfo) -> Result<u64, String> {
    let now = time::now_ns();
    match number(boot, "start") {
        Some(start) if start < now => {
            Err(format!("too late for the start by {} ms", (now - start) / 1_000_000))
        }
        Some(start) => Ok(start),
        None => Ok(now),
    }
}
