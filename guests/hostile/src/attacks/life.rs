//! Domains that end as soon as they run.

use pvrt::hypercall::sched;
use ring_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_REBOOT};

/// Asks to be started again.
pub(super) fn reboot() {
    sched::shutdown(SHUTDOWN_REBOOT);
}

/// Crashes.
pub(super) fn crash() {
    sched::shutdown(SHUTDOWN_CRASH);
}
