//! Control of the machine.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `sysctl`.
///
/// # Errors
/// `NoSys`.
pub fn sysctl<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
