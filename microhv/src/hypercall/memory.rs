//! Memory reservations and maps.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `memory_op`.
///
/// # Errors
/// `NoSys`.
pub fn memory_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
