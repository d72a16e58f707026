//! Scheduling.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `sched_op`.
///
/// # Errors
/// `NoSys`.
pub fn sched_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}

/// `set_timer_op`.
///
/// # Errors
/// `NoSys`.
pub fn set_timer_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
