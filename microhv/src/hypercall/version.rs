//! Version and features.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `xen_version`.
///
/// # Errors
/// `NoSys`.
pub fn xen_version<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
