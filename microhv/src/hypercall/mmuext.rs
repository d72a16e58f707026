//! Pinning, base pointers, flushes.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `mmuext_op`.
///
/// # Errors
/// `NoSys`.
pub fn mmuext_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
