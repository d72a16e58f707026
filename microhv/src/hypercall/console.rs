//! Console.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `console_io`.
///
/// # Errors
/// `NoSys`.
pub fn console_io<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
