//! Control of the platform.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `platform_op`.
///
/// # Errors
/// `NoSys`.
pub fn platform_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
