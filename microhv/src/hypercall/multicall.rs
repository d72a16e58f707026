//! Several calls in one.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `multicall`.
///
/// # Errors
/// `NoSys`.
pub fn multicall<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
