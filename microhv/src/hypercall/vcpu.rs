//! vCPUs.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `vcpu_op`.
///
/// # Errors
/// `NoSys`.
pub fn vcpu_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
