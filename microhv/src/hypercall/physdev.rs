//! Physical devices: PIRQs, I/O privilege.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `physdev_op`.
///
/// # Errors
/// `NoSys`.
pub fn physdev_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
