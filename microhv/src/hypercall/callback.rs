//! Entry points of the guest.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `set_callbacks`.
///
/// # Errors
/// `NoSys`.
pub fn set_callbacks<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}

/// `callback_op`.
///
/// # Errors
/// `NoSys`.
pub fn callback_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
