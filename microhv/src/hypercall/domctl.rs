//! Control of domains.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `domctl`.
///
/// # Errors
/// `NoSys`.
pub fn domctl<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
