//! Descriptor tables.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `set_gdt`.
///
/// # Errors
/// `NoSys`.
pub fn set_gdt<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}

/// `update_descriptor`.
///
/// # Errors
/// `NoSys`.
pub fn update_descriptor<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
